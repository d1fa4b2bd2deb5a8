//! `pgr demo`: the main job in front of one's eyes.

use super::commands::{print_report, programs, progress};
use postgres_r::cluster::{Cluster, ClusterError, Result, Server, UpOptions, verify};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

const CLIENTS: &str = "4";

/// Three members under pgbench, compared at the end.
pub fn run(seconds: u32, port: u16, dir: Option<PathBuf>) -> Result<ExitCode> {
    let keep = dir.is_some();
    let dir = dir
        .unwrap_or_else(|| std::env::temp_dir().join(format!("pgr-demo-{}", std::process::id())));
    let mut say = progress();
    let mut options = UpOptions::new(programs()?);
    options.port = port;
    options.pgbench_scale = Some(2);
    let made = Cluster::up(&dir, &options, &mut say);
    let outcome = made.and_then(|cluster| {
        say(&format!(
            "pgbench, TPC-B-like, {CLIENTS} clients on each of the three members for {seconds} s"
        ));
        let done = load(&cluster, seconds, &mut say);
        say("comparing all members row by row");
        let report = done.and_then(|()| verify::verify(&cluster, Duration::from_secs(60)))?;
        Ok(print_report(&report))
    });
    if keep {
        println!(
            "The members go on; `pgr status -D {0}`, `pgr down -D {0} --purge`.",
            dir.display()
        );
    } else if let Ok(cluster) = Cluster::open(&dir) {
        cluster.purge()?;
    }
    outcome
}

fn load(cluster: &Cluster, seconds: u32, say: &mut dyn FnMut(&str)) -> Result<()> {
    let mut running: Vec<(Server, Child)> = Vec::new();
    for server in &cluster.servers {
        let child = server
            .program("pgbench")
            .args([
                "-n",
                "-c",
                CLIENTS,
                "-T",
                &seconds.to_string(),
                "--max-tries=0",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
            ])
            .args(["-p", &server.port.to_string(), &cluster.database])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| ClusterError::on(server, "starting pgbench", e))?;
        running.push((server.clone(), child));
    }
    let mut failed = None;
    for (server, child) in running {
        let output = child
            .wait_with_output()
            .map_err(|e| ClusterError::on(&server, "pgbench", e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let keep = [
            "number of transactions actually",
            "number of transactions retried",
            "latency average",
            "tps =",
        ];
        for line in text
            .lines()
            .filter(|l| keep.iter().any(|k| l.starts_with(k)))
        {
            say(&format!("member {}: {line}", server.number));
        }
        if !output.status.success() {
            failed = Some(ClusterError::on(
                &server,
                "pgbench",
                String::from_utf8_lossy(&output.stderr),
            ));
        }
    }
    failed.map_or(Ok(()), Err)
}
