//! One function a command.

use super::{Command, demo};
use nix::sys::signal::Signal;
use postgres_r::cluster::server::StopMode;
use postgres_r::cluster::{Cluster, ClusterError, Result, UpOptions, status, verify};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(300);

/// PostgreSQL's programs: those beside this one, or `PGR_BINDIR`.
pub fn programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("PGR_BINDIR") {
        return Ok(dir.into());
    }
    let step = "finding PostgreSQL's programs";
    let me = std::env::current_exe().map_err(|e| ClusterError::new(step, e))?;
    me.parent()
        .map(Path::to_path_buf)
        .ok_or_else(|| ClusterError::new(step, "this program is in no folder"))
}

/// Says what is being done, with the time that it took so far.
pub fn progress() -> impl FnMut(&str) {
    let start = Instant::now();
    move |text| println!("[{:6.1} s] {text}", start.elapsed().as_secs_f64())
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up {
            members,
            dir,
            port,
            db,
            init,
            pgbench_scale,
            config,
        } => {
            let mut options = UpOptions::new(programs()?);
            options.members = members;
            options.port = port;
            options.group.clone_from(&db);
            options.database = db;
            options.init = init;
            options.pgbench_scale = pgbench_scale;
            options.configuration = config.join("\n");
            let cluster = Cluster::up(&dir.dir, &options, &mut progress())?;
            println!(
                "The group is online. Connect with\n{}",
                cluster.how_to_connect()
            );
        }
        Command::Join { dir } => {
            Cluster::open(&dir.dir)?.join(&mut progress())?;
        }
        Command::Status { dir, json } => print_status(&Cluster::open(&dir.dir)?, json),
        Command::Verify { dir, timeout } => {
            let report = verify::verify(&Cluster::open(&dir.dir)?, Duration::from_secs(timeout))?;
            return Ok(print_report(&report));
        }
        Command::Kill(m) => Cluster::open(&m.dir.dir)?.member(m.member)?.kill()?,
        Command::Stop(m) => Cluster::open(&m.dir.dir)?
            .member(m.member)?
            .stop(StopMode::Fast)?,
        Command::Start(m) => {
            let cluster = Cluster::open(&m.dir.dir)?;
            let server = cluster.member(m.member)?;
            server.start(START_TIMEOUT)?;
            status::wait_online(server, START_TIMEOUT)?;
        }
        Command::Pause(m) => Cluster::open(&m.dir.dir)?
            .member(m.member)?
            .signal_all(Signal::SIGSTOP)?,
        Command::Resume(m) => Cluster::open(&m.dir.dir)?
            .member(m.member)?
            .signal_all(Signal::SIGCONT)?,
        Command::Down { dir, purge } => {
            let cluster = Cluster::open(&dir.dir)?;
            if purge {
                cluster.purge()?;
            } else {
                cluster.stop_all(StopMode::Fast)?;
            }
        }
        Command::Demo { time, port, dir } => return demo::run(time, port, dir),
        Command::Log { dir, check } => {
            let mut out = std::io::stdout().lock();
            postgres_r::gcs::egcs::log::inspect(&dir, !check, &mut out)
                .map_err(|e| ClusterError::new(format!("checking {}", dir.display()), e))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a comparison found; the exit code says whether the members are equal.
pub fn print_report(report: &verify::Report) -> ExitCode {
    for line in &report.differences {
        println!("{line}");
    }
    let what = format!(
        "{} members, {} tables, {} rows, {} sequences, as of GID {}",
        report.members, report.tables, report.rows, report.sequences, report.gid
    );
    if report.differences.is_empty() {
        println!("identical: {what}");
        ExitCode::SUCCESS
    } else {
        println!("DIFFERENT: {what}");
        ExitCode::FAILURE
    }
}

fn print_status(cluster: &Cluster, json: bool) {
    let mut rows = Vec::new();
    for server in &cluster.servers {
        let group = server.pid().map(|_| status::group_state(server));
        let (state, group) = match group {
            None => ("down".to_owned(), None),
            Some(Ok(g)) => (g.state.clone(), Some(g)),
            Some(Err(e)) => (format!("unknown: {}", e.cause), None),
        };
        rows.push((server, state, group));
    }
    if json {
        let lines: Vec<String> = rows
            .iter()
            .map(|(server, state, group)| {
                let mut text = format!("{{\"member\": {}, \"port\": {}, \"state\": {}", server.number, server.port, json_string(state));
                if let Some(g) = group {
                    text.push_str(&format!(
                        ", \"group\": {}, \"database\": {}, \"member_id\": {}, \"last_committed_gid\": {}, \"last_ordered_gid\": {}, \"apply_queue\": {}, \"members\": {}, \"voters\": {}, \"commits\": {}, \"applied\": {}, \"certification_failures\": {}, \"local_victims\": {}, \"helper_errors\": {}, \"failure\": {}",
                        json_string(&g.group), json_string(&g.database), g.member, g.last_committed_gid, g.last_ordered_gid, g.apply_queue, g.members, g.voters,
                        g.commits, g.applied, g.certification_failures, g.local_victims, g.helper_errors,
                        g.failure.as_deref().map_or("null".into(), json_string)
                    ));
                }
                text.push('}');
                text
            })
            .collect();
        println!("[{}]", lines.join(",\n "));
        return;
    }
    println!(
        "{:>6} {:>6} {:<11} {:>12} {:>12} {:>6} {:>7} {:>10} {:>10} {:>9} {:>7}",
        "member",
        "port",
        "state",
        "committed",
        "ordered",
        "queue",
        "voters",
        "commits",
        "applied",
        "conflicts",
        "errors"
    );
    for (server, state, group) in rows {
        print!("{:>6} {:>6} {:<11}", server.number, server.port, state);
        if let Some(g) = group {
            print!(
                " {:>12} {:>12} {:>6} {:>7} {:>10} {:>10} {:>9} {:>7}",
                g.last_committed_gid,
                g.last_ordered_gid,
                g.apply_queue,
                format!("{}/{}", g.voters, g.members),
                g.commits,
                g.applied,
                g.certification_failures + g.local_victims,
                g.helper_errors
            );
            if let Some(failure) = g.failure {
                print!("  {failure}");
            }
        }
        println!();
    }
}

fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
