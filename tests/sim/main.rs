//! A whole group in one process, from one seed: see `README.md`.

mod apply;
mod backend;
mod check;
mod database;
mod disk;
mod faults;
mod helper;
mod host;
mod link;
mod model;
mod network;
mod reference;
mod rng;
mod scenario;
mod server;
mod session;
mod world;

use scenario::Plant;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Summary, World};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{name}={v} is no number"))
    })
}

fn run(seed: u64, plant: Plant, tracing: bool) -> Result<Summary, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, plant, tracing).run())).map_err(|panic| {
        match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => other
                .downcast_ref::<&str>()
                .map_or("panic".into(), |s| (*s).to_string()),
        }
    })
}

/// Runs seeds from `first` on, on all cores; gives the failures and the sum of the rest.
fn run_all(
    first: u64,
    count: u64,
    plant: Plant,
    failures_max: usize,
) -> (Vec<(u64, String)>, Summary) {
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let sum = Mutex::new(Summary::default());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failures.lock().unwrap().len() >= failures_max {
                        return;
                    }
                    match run(seed, plant, false) {
                        Ok(one) => {
                            let mut sum = sum.lock().unwrap();
                            sum.committed += one.committed;
                            sum.large += one.large;
                            sum.compressed += one.compressed;
                            sum.compressed_ahead += one.compressed_ahead;
                            sum.together += one.together;
                            sum.gids += one.gids;
                            sum.events += one.events;
                            sum.recovery_ticks = sum.recovery_ticks.max(one.recovery_ticks);
                        }
                        Err(why) => failures.lock().unwrap().push((seed, why)),
                    }
                }
            });
        }
    });
    (failures.into_inner().unwrap(), sum.into_inner().unwrap())
}

/// Panics of single seeds are caught and told at the end.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    static HOOK: Mutex<()> = Mutex::new(());
    let _one = HOOK.lock().unwrap_or_else(|e| e.into_inner());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = f();
    std::panic::set_hook(hook);
    result
}

#[test]
fn seeds() {
    let count = variable("SEEDS").unwrap_or(if cfg!(debug_assertions) { 300 } else { 10_000 });
    let first = variable("FIRST").unwrap_or(1);
    let begin = std::time::Instant::now();
    let (failures, sum) = quietly(|| run_all(first, count, Plant::None, 5));
    println!(
        "{count} seeds from {first} in {:.1?}: {sum:?}",
        begin.elapsed()
    );
    for (seed, why) in &failures {
        println!(
            "seed {seed}: {why}\n  SEED={seed} cargo test --profile assert --test sim replay -- --nocapture"
        );
    }
    assert!(
        failures.is_empty(),
        "{} seeds failed, see above",
        failures.len()
    );
    assert!(
        sum.committed as u64 > count,
        "clients hardly commit anything: {sum:?}"
    );
    assert!(
        sum.large as u64 * 10 > count,
        "hardly anything goes ahead of its commit: {sum:?}"
    );
    assert!(
        sum.compressed as u64 > count && sum.compressed_ahead as u64 * 10 > count,
        "hardly anything is compressed: {sum:?}"
    );
    assert!(
        sum.together > count,
        "hardly anything is committed together: {sum:?}"
    );
}

/// `SEED=n cargo test --profile assert --test sim replay -- --nocapture` shows what happened; without
/// SEED it shows that a seed is one history.
#[test]
fn replay() {
    match variable("SEED") {
        Some(seed) => println!("{:?}", World::new(seed, Plant::None, true).run()),
        None => {
            let hash = |seed| World::new(seed, Plant::None, false).run().hash;
            for seed in 1..20 {
                assert_eq!(hash(seed), hash(seed), "seed {seed} is not one history");
            }
        }
    }
}

/// A bug that was put in is found within some hundred seeds.
fn caught(plant: Plant, seeds: u64, said: &[&str]) {
    let (failures, _) = quietly(|| run_all(1, seeds, plant, 1));
    let Some((seed, why)) = failures.first() else {
        panic!("{plant:?} was not caught in {seeds} seeds");
    };
    println!("{plant:?}: seed {seed}: {why}");
    assert!(
        said.iter().any(|s| why.contains(s)),
        "{plant:?} was caught by another check: {why}"
    );
}

#[test]
fn plants_are_caught() {
    caught(
        Plant::NoLockOnlyKeys,
        500,
        &["orphan", "mirrors", "in the way"],
    );
    caught(Plant::LateSince, 1000, &["orphan"]);
    caught(Plant::NoReadKeys, 300, &["mirrors", "what was read"]);
    caught(Plant::NoEntryKeys, 500, &["what was read"]);
    caught(
        Plant::NoUniqueKeys,
        300,
        &["duplicate", "in the way", "can't apply", "meets helper"],
    );
    caught(
        Plant::DeliverBeforeDisk,
        300,
        &[
            "lost",
            "delivered",
            "another message",
            "ends at",
            "history",
            "committed here",
            "a simulated disk",
        ],
    );
    caught(
        Plant::NoDependencies,
        300,
        &["meets helper", "can't apply", "in the way"],
    );
    let too_early = ["meets helper", "can't apply"];
    caught(Plant::FirstDependenciesOnly, 300, &too_early);
    caught(Plant::HighestDependencyOnly, 1000, &too_early);
    caught(Plant::PastGate, 100, &["has a gap"]);
    caught(Plant::NobodyGivesWay, 300, &["the group never"]);
    caught(Plant::GivenUpIsDone, 300, &["is not committed"]);
    caught(Plant::EarlyAnswer, 100, &["is lost"]);
    caught(
        Plant::WrongVerdict,
        100,
        &["another verdict", "another checkpoint", "the reference"],
    );
}
