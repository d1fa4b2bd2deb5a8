//! What replication costs, as ratios against stock PostgreSQL measured in the same run.
//!
//! Five set-ups stand side by side and take turns, several rounds of each, so that what else the
//! machine does hits all alike. Adjustable: `BENCH_SECONDS` a run, `BENCH_ROUNDS`, `BENCH_SCALE`,
//! `BENCH_CLIENTS` (a list), `BENCH_SCRIPTS` (a list of tpcb, simple, serializable,
//! indexed, hotN for updates of N rows), `BENCH_SETUPS` (a list of names;
//! all if empty), `BENCH_OUT` (a folder).

mod capture;
mod curves;
mod instructions;
mod measure;
mod report;
#[path = "../servers.rs"]
mod servers;
#[path = "../settings.rs"]
mod settings;
mod setups;
#[path = "../usage.rs"]
mod usage;

use measure::{Script, run};
use settings::{list, setting};
use setups::Setups;
use std::path::PathBuf;

struct Settings {
    seconds: u32,
    rounds: u32,
    scale: u32,
    clients: Vec<u32>,
    scripts: Vec<Script>,
    out: PathBuf,
}

fn main() {
    let settings = Settings {
        seconds: setting("BENCH_SECONDS", 5),
        rounds: setting("BENCH_ROUNDS", 3),
        scale: setting("BENCH_SCALE", 10),
        clients: list("BENCH_CLIENTS", "1,8,32"),
        scripts: list("BENCH_SCRIPTS", "tpcb,simple"),
        out: setting(
            "BENCH_OUT",
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("build/bench"),
        ),
    };
    std::fs::create_dir_all(&settings.out).expect("folder for the results");
    let mut setups = Setups::make(settings.scale);
    let wanted: Vec<String> = list("BENCH_SETUPS", "");
    let named = |name: &str| wanted.iter().any(|w| w.is_empty() || w == name);
    setups.all.retain(|s| named(s.name));
    let mut results = Vec::new();
    for script in &settings.scripts {
        for clients in &settings.clients {
            for round in 0..settings.rounds {
                // Another one begins in each round, so that no set-up always follows the same one.
                let count = setups.all.len();
                for i in 0..count {
                    let setup = &setups.all[(i + round as usize) % count];
                    let result = run(setup, *script, *clients, settings.seconds);
                    println!("{}", result.line(round));
                    results.push(result);
                }
            }
        }
    }
    let equal = setups.verify();
    let instructions = instructions::compare(&setups);
    let captured =
        capture::measure(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("build/pgsql/bin"));
    report::write(
        &settings.out,
        &setups,
        &results,
        (instructions.as_ref(), captured.as_ref()),
        &equal,
    );
    assert!(equal.is_ok(), "after the benchmark: {}", equal.unwrap_err());
}
