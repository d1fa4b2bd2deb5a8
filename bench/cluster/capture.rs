//! What replication adds to the instructions of a session: of a TPC-B-like transaction of pgbench in a group
//! of one, the part that is spent in calls into the library, counted by callgrind.

use postgres_r::cluster::server::{StopMode, wait_for};
use postgres_r::cluster::{Cluster, Server, UpOptions};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SHORT: u32 = 100;
const LONG: u32 = 400;
/// Under callgrind everything takes fifty times as long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Instructions a transaction.
pub struct Capture {
    /// In all.
    pub all: f64,
    /// In calls into the library.
    pub library: f64,
}

/// Instructions of a process.
struct Profile {
    all: f64,
    library: f64,
}

/// Counts, or says why not.
pub fn measure(bin: &Path) -> Option<Capture> {
    let annotate = Command::new("callgrind_annotate").arg("--version").output();
    if let Err(error) = annotate {
        println!("instructions of capture are not counted: {error}");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("pgr-capture-{}", std::process::id()));
    let mut options = UpOptions::new(bin.to_owned());
    options.members = 1;
    options.port = 6241;
    options.pgbench_scale = Some(2);
    options.configuration = "autovacuum = off\ncheckpoint_timeout = 1h\n".into();
    let cluster = Cluster::up(&dir, &options, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    let server = &cluster.servers[0];
    server
        .stop(StopMode::Fast)
        .unwrap_or_else(|e| panic!("{e}"));
    let profiles = sessions(server);
    let _ = cluster.stop_all(StopMode::Immediate);
    let _ = std::fs::remove_dir_all(&dir);
    let [short, long] = &profiles[..] else {
        println!("instructions of capture are not counted: no profile of the sessions");
        return None;
    };
    // The difference is free of start and end.
    let a_transaction =
        |part: fn(&Profile) -> f64| (part(long) - part(short)) / f64::from(LONG - SHORT);
    Some(Capture {
        all: a_transaction(|p| p.all),
        library: a_transaction(|p| p.library),
    })
}

/// Runs a short and a long session on the server below callgrind: their profiles, the shorter first.
fn sessions(server: &Server) -> Vec<Profile> {
    let files = server.data.join("callgrind");
    let mut below = server
        .account
        .command("valgrind", &server.data)
        .args(["--tool=callgrind", "--trace-children=yes"])
        .arg(format!("--callgrind-out-file={}.%p", files.display()))
        .arg(server.bin.join("postgres"))
        .arg("-D")
        .arg(&server.data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("valgrind");
    wait_for(PATIENCE, || {
        let mut client = server.connect("app").ok()?;
        let sql = "SELECT state FROM pg_stat_replication_group";
        let state: String = client.query_one(sql, &[]).ok()?.get(0);
        (state == "online").then_some(())
    })
    .expect("a server below callgrind");
    for transactions in [SHORT, LONG] {
        let status = server
            .account
            .command(server.bin.join("pgbench"), &server.data)
            .args(["-n", "-h", "127.0.0.1", "-U", "postgres", "-c", "1"])
            .args(["-p", &server.port.to_string()])
            .args(["-t", &transactions.to_string(), "app"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            status.expect("pgbench").success(),
            "pgbench below callgrind"
        );
    }
    server
        .stop(StopMode::Fast)
        .unwrap_or_else(|e| panic!("{e}"));
    below.wait().expect("the server below callgrind");
    let found = std::fs::read_dir(&server.data).expect("data directory");
    let mut profiles: Vec<Profile> = found
        .filter_map(|f| Some(f.ok()?.path()))
        .filter(|f| f.file_stem() == files.file_name())
        .filter_map(|f| profile(&f))
        .collect();
    profiles.sort_by(|a, b| a.all.total_cmp(&b.all));
    profiles
}

/// Of a process that has changed rows.
fn profile(file: &Path) -> Option<Profile> {
    let output = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100", "--auto=no"])
        .arg(file)
        .output();
    let text = String::from_utf8_lossy(&output.expect("callgrind_annotate").stdout).into_owned();
    let mut all = None;
    // A function has a line for each file that its instructions are from; its calls count in one.
    let mut calls: BTreeMap<&str, f64> = BTreeMap::new();
    for line in text.lines() {
        let Some((count, what)) = line.split_once('(') else {
            continue;
        };
        let Ok(count) = count.trim().replace(',', "").parse::<f64>() else {
            continue;
        };
        if what.contains("PROGRAM TOTALS") {
            all = Some(count);
        } else if let Some(at) = what.find(":pgr_do_") {
            let name = what[at + 1..].split([' ', '\'']).next().unwrap_or("");
            let most = calls.entry(name).or_default();
            *most = most.max(count);
        }
    }
    calls.get("pgr_do_capture_update")?;
    Some(Profile {
        all: all?,
        library: calls.values().sum(),
    })
}
