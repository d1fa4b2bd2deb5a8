//! Isolation levels across members: specifications in `specs`, a job queue and a bank, in one group
//! of three. Speaks TAP. See `README.md`.

mod expectation;
mod members;
mod parser;
mod placement;
mod run;
mod session;
mod spec;
#[path = "../storms/mod.rs"]
#[allow(dead_code, unused_imports)]
mod storms;
#[path = "../cluster/support.rs"]
#[allow(dead_code)]
mod support;
mod tester;
mod wanted;

use members::Members;
use std::path::{Path, PathBuf};
use std::time::Instant;
use storms::{Length, Storm};

/// Of each session of a storm.
const COMMITS: u64 = 30;

/// The specifications, by name.
fn specs() -> Vec<spec::Spec> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isolation/specs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of the specifications")
        .map(|entry| entry.expect("a folder's entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "spec"))
        .collect();
    files.sort();
    let read = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).expect("a specification can be read");
        let name = file.file_stem().and_then(|n| n.to_str()).expect("a name");
        parser::parse(name, &text).unwrap_or_else(|e| panic!("{e}"))
    };
    files.iter().map(read).collect()
}

/// The number of transactions; or what went wrong.
fn rage(group: &support::TestGroup, storm: &dyn Storm) -> Result<usize, String> {
    let tally = storms::rage(group, storm, Length::Commits(COMMITS))?;
    if tally.failures() == 0 {
        return Err("the members did not compete".into());
    }
    Ok((tally.committed + tally.failures()) as usize)
}

fn main() {
    let is_wanted = wanted::names();
    let specs: Vec<spec::Spec> = specs().into_iter().filter(|s| is_wanted(&s.name)).collect();

    let mut options = support::options(3);
    // Plans, and so what a SERIALIZABLE transaction reads, stay those of tables without statistics.
    let settings = "deadlock_timeout = 100ms\nautovacuum = off\n";
    options.configuration.push_str(settings);
    let storms: [Box<dyn Storm>; 2] = [Box::new(storms::Jobs::default()), Box::new(storms::Bank)];
    let mut tables = include_str!("schema.sql").to_owned();
    storms.iter().for_each(|s| tables.push_str(s.tables()));
    let group = support::group_with("isolation", options, &tables);
    let mut members = Members::new(&group);
    let (mut number, mut failed) = (0, 0);
    let mut tell = |name: &str, start: Instant, outcome: Result<usize, String>| {
        number += 1;
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(runs) => println!("ok {number} - {name} # {runs} runs, {seconds:.1} s"),
            Err(error) => {
                failed += 1;
                println!("not ok {number} - {name}");
                for line in error.lines() {
                    println!("# {line}");
                }
            }
        }
    };
    for spec in &specs {
        let start = Instant::now();
        tell(&spec.name, start, tester::test(spec, &mut members));
    }
    for storm in &storms {
        if is_wanted(storm.name()) {
            let start = Instant::now();
            tell(storm.name(), start, rage(&group, storm.as_ref()));
        }
    }
    let start = Instant::now();
    tell("indexes", start, members.check_indexes());
    println!("1..{number}");
    // Before the group goes, so that its logs are shown.
    assert_eq!(failed, 0, "of {number}");
}
