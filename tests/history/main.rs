//! Histories of transactions under faults, judged by adya. README.md says what is promised.
//!
//! `PGR_BINDIR` and `PGR_STOCK_BINDIR` name the programs, `ADYA` the judge. `HISTORY_LEVELS` chooses
//! isolation levels, `HISTORY_SEED` repeats the choices of a run, `PGR_TEST_SCALE` multiplies faults.

mod client;
mod control;
mod faults;
mod judge;
mod level;
mod load;
mod members;
mod plants;
mod recorder;
#[path = "../sim/rng.rs"]
mod rng;
mod wire;
mod workload;

use faults::Faults;
use judge::{Verdict, judge};
use level::{Consistency, Level};
use load::Load;
use members::Group;
use postgres_r::cluster::network;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; what needs it all has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// One in so many transactions must commit, or the history says too little.
const LEAST_SHARE: usize = 5;

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    let parsed = value.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name}={value} is no such value")))
}

/// What all random choices of a run follow from.
fn seed() -> u64 {
    let seed = setting("HISTORY_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        now.as_nanos() as u64
    });
    println!("HISTORY_SEED={seed}");
    seed
}

/// Where histories are kept.
fn file(name: &str, level: Level) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("build/history");
    std::fs::create_dir_all(&folder).expect("folder of the histories");
    folder.join(format!("{name}-{level}.jsonl"))
}

#[test]
fn a_group_keeps_the_promises_of_each_isolation_level_under_faults() {
    let seed = seed();
    let cuts = network::enter_own().unwrap_or_else(|e| panic!("{e}"));
    if !cuts {
        eprintln!("no member is cut off: only root can make a network namespace");
    }
    let group = Group::of_three();
    for level in level::chosen() {
        let start = Instant::now();
        group.empty_lists();
        let path = file("group", level);
        let load = Load::new(&group.servers, &group.database, level, seed, &path);
        let mut faults = Faults::new(&group, &load, cuts);
        load.while_running(|| faults.rounds(setting("PGR_TEST_SCALE").unwrap_or(1)));
        group.assert_identical();
        for server in &group.servers {
            load.assert_acknowledged_is_there(server);
        }
        let tally = load.finish();
        println!(
            "{level}: {tally}; {faults}; recorded in {} s",
            start.elapsed().as_secs()
        );
        assert!(
            tally.committed * LEAST_SHARE >= tally.all(),
            "too few committed: {tally}"
        );
        if let Verdict::Wrong(report) = judge(&path, level.promised()) {
            panic!("{level} is not {}:\n{report}", level.promised());
        }
        println!("{level}: {}", level.promised());
    }
}

#[test]
#[ignore = "needs stock PostgreSQL: make pg-stock"]
fn two_servers_with_logical_replication_keep_none_of_them() {
    let seed = seed();
    // Stock servers do not know the setting of the other levels.
    for level in level::chosen()
        .into_iter()
        .filter(|l| l.consistency == Consistency::Eventual)
    {
        let pair = control::Pair::new();
        let path = file("control", level);
        let load = Load::new(&pair.servers, control::DATABASE, level, seed, &path);
        load.while_running(|| load.await_progress(1000));
        for server in &pair.servers {
            load.read_all(server);
        }
        let tally = load.finish();
        println!("control, {level}: {tally}");
        assert!(
            tally.committed * LEAST_SHARE >= tally.all(),
            "too few committed: {tally}"
        );
        match judge(&path, level.promised()) {
            Verdict::Right => {
                panic!("the judge sees nothing wrong with two-way logical replication")
            }
            Verdict::Wrong(report) => {
                let found = report.lines().find(|line| line.starts_with("Found"));
                println!("control, {level}: {}", found.unwrap_or(&report));
            }
        }
    }
}
