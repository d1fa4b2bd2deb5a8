//! What it costs to apply the changes of another server: a member of a group beside PostgreSQL's own
//! logical replication and physical replay, on the same statements.
//!
//! The follower is stopped while the origin works, so that what is measured afterwards is applying
//! alone: seconds until it has caught up, and processor seconds of all its processes. Adjustable:
//! `APPLY_ROWS` (rows of the largest cases), `APPLY_ROUNDS`, `APPLY_CASES` (a list of names), `APPLY_HELPERS` (of
//! the group; a subscription has one process that applies), `APPLY_COMPRESSION` (a list of values of
//! `replication_compression`, which rounds take in turn).

mod cases;
#[path = "../servers.rs"]
mod servers;
#[path = "../settings.rs"]
mod settings;
mod subjects;
#[path = "../usage.rs"]
mod usage;

use cases::{CASES, Case};
use nix::sys::signal::Signal;
use settings::{list, setting};
use std::time::Instant;
use subjects::{Subject, Subjects};

/// What one subject needed for one case.
struct Run {
    rows: f64,
    seconds: f64,
    cpu_seconds: f64,
    /// Of the origin's backend.
    origin_seconds: f64,
    wal_bytes: f64,
    /// Of the origin's changesets, if it has a group.
    changeset_bytes: Option<f64>,
    /// To the follower that was not stopped.
    wire_bytes: Option<f64>,
}

fn main() {
    let (size, rounds) = (setting("APPLY_ROWS", 200_000), setting("APPLY_ROUNDS", 4));
    let wanted: Vec<String> = list("APPLY_CASES", "");
    let is_wanted = |case: &Case| wanted.iter().any(|w| w.is_empty() || w == case.name);
    let compressions: Vec<String> = list("APPLY_COMPRESSION", "lz4,off");
    let subjects = Subjects::make(setting("APPLY_HELPERS", 4));
    println!(
        "{:<14} {:>5} {:<9} {:>10} {:>14} {:>11} {:>13} {:>11} {:>11} {:>7} {:>10}",
        "case",
        "round",
        "",
        "rows/s",
        "rows/CPU s",
        "of logical",
        "origin us/row",
        "WAL B/row",
        "chg B/row",
        "of WAL",
        "wire B/row"
    );
    for (round, compression) in (1..=rounds).zip(compressions.iter().cycle()) {
        for (i, case) in CASES.iter().enumerate() {
            let of_table = |later: &Case| later.table == case.table && is_wanted(later);
            if !CASES[i..].iter().any(of_table) {
                continue;
            }
            let run = |subject| run(subject, case, size, compression);
            let runs: Vec<Run> = subjects.all.iter().map(run).collect();
            if is_wanted(case) {
                report(case, round, compression, &subjects.all, &runs);
            }
        }
        // The next round inserts the same rows anew.
        for subject in &subjects.all {
            let sql = "DELETE FROM narrow; DELETE FROM copied; DELETE FROM wide; DELETE FROM toasted; DELETE FROM indexed; \
                       DELETE FROM accounts; DELETE FROM tellers; DELETE FROM branches; TRUNCATE history";
            let all = if round == rounds { "" } else { sql };
            for statement in all.split(';').filter(|s| !s.is_empty()) {
                subject
                    .origin
                    .execute("app", "emptying", statement)
                    .unwrap_or_else(|e| panic!("{e}"));
            }
            assert!(subject.await_target(), "{} does not catch up", subject.name);
            for server in [&subject.origin, &subject.target] {
                // A standby checkpoints and is vacuumed by replay.
                let _ = server.execute("app", "vacuum", "VACUUM");
                let _ = server.execute("app", "checkpoint", "CHECKPOINT");
            }
        }
    }
    subjects.check();
}

fn run(subject: &Subject, case: &Case, size: u32, compression: &str) -> Run {
    assert!(subject.await_target(), "{} does not catch up", subject.name);
    let target = std::slice::from_ref(&subject.target);
    let signal = |signal| {
        subject
            .target
            .signal_all(signal)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let wire = || {
        let other = subject.other.as_ref()?;
        Some(usage::wire_bytes(&[subject.origin.clone(), other.clone()]))
    };
    let origin = std::slice::from_ref(&subject.origin);
    let changesets = || usage::changeset_bytes(origin);
    let wal = || usage::wal_bytes(origin);
    let mut client = subject
        .origin
        .connect("app")
        .unwrap_or_else(|e| panic!("{e}"));
    if subject.is_group() {
        let sql = format!("SET replication_compression = {compression}");
        client.batch_execute(&sql).expect("set");
    }
    let row = client.query_one("SELECT pg_backend_pid()", &[]);
    let backend = row.expect("the backend's pid").get(0);
    client.batch_execute(case.before).expect(case.name);
    assert!(subject.await_target(), "{} does not catch up", subject.name);
    signal(Signal::SIGSTOP);
    let (wire_before, changesets_before, wal_before) = (wire(), changesets(), wal());
    let origin_before = usage::process_seconds(backend);
    let rows = case.run(&mut client, size) as f64;
    let origin_seconds = usage::process_seconds(backend) - origin_before;
    let (wire_after, changesets_after, wal_after) = (wire(), changesets(), wal());
    let cpu = usage::cpu_seconds(target);
    let start = Instant::now();
    signal(Signal::SIGCONT);
    assert!(subject.await_target(), "{} does not catch up", subject.name);
    Run {
        rows,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: usage::cpu_seconds(target) - cpu,
        origin_seconds,
        wal_bytes: wal_after - wal_before,
        changeset_bytes: changesets_before
            .zip(changesets_after)
            .map(|(before, after)| after - before),
        wire_bytes: wire_before
            .zip(wire_after)
            .map(|(before, after)| after - before),
    }
}

fn report(case: &Case, round: u32, compression: &str, subjects: &[Subject], runs: &[Run]) {
    let per_cpu = |run: &Run| run.rows / run.cpu_seconds.max(0.01);
    let logical = subjects
        .iter()
        .position(|s| s.name == "logical")
        .map(|i| per_cpu(&runs[i]));
    for (subject, run) in subjects.iter().zip(runs) {
        let [changesets, wire] = [run.changeset_bytes, run.wire_bytes]
            .map(|bytes| bytes.map_or(String::new(), |b| format!("{:.0}", b / run.rows)));
        let of_wal = run.changeset_bytes.map(|b| b / run.wal_bytes);
        let name = if subject.is_group() {
            format!("{} {compression}", subject.name)
        } else {
            subject.name.to_owned()
        };
        println!(
            "{:<14} {:>5} {:<9} {:>10.0} {:>14.0} {:>11.2} {:>13.2} {:>11.0} {:>11} {:>7} {:>10}",
            case.name,
            round,
            name,
            run.rows / run.seconds,
            per_cpu(run),
            per_cpu(run) / logical.unwrap_or(f64::NAN),
            run.origin_seconds * 1e6 / run.rows,
            run.wal_bytes / run.rows,
            changesets,
            of_wal.map_or(String::new(), |ratio| format!("{ratio:.2}")),
            wire
        );
    }
}
