//! Conflicts of three members: storms with their invariants, for minutes, and how long victims take to
//! give way.
//!
//! Adjustable: `BENCH_STORM_SECONDS` of each storm, `BENCH_STORMS` (a list of names; all if empty),
//! `BENCH_VICTIM_ROUNDS` of each kind of victim (0: none), `BENCH_OUT` (a folder). A storm that breaks
//! its invariant, or members that differ, end it with a failure.

#[path = "../settings.rs"]
mod settings;
#[path = "../../tests/storms/mod.rs"]
#[allow(dead_code)]
mod storms;
mod victims;

use postgres_r::cluster::server::StopMode;
use postgres_r::cluster::{Cluster, UpOptions};
use settings::{list, setting};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use storms::{Bank, Collations, ForeignKeys, Jobs, Length, Ring, Storm, Unique};

/// Autovacuum works, as it would in minutes of an ordinary day.
const CONFIGURATION: &str = "shared_buffers = 128MB\nmax_connections = 60\nmax_wal_size = 4GB\n\
                             autovacuum_naptime = 5s\nlog_line_prefix = '%m [%p] %q%a '\n";

/// Removed in the end.
struct Group(Cluster);

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.0.stop_all(StopMode::Immediate) {
            eprintln!("{error}");
        }
        let _ = std::fs::remove_dir_all(&self.0.dir);
    }
}

fn group(tables: &str) -> Group {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::temp_dir().join(format!("pgr-bench-conflicts-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("folder of the group");
    let init = dir.join("tables.sql");
    std::fs::write(&init, tables).expect("write the tables");
    let mut options = UpOptions::new(root.join("build/pgsql/bin"));
    options.port = 6211;
    options.configuration = CONFIGURATION.into();
    options.init = Some(init);
    let made = Cluster::up(&dir, &options, &mut |text| println!("  {text}"));
    // Whatever came up is cleaned up, also when the rest did not.
    let group = Cluster::open(&dir).map(Group);
    made.and(group).unwrap_or_else(|e| panic!("{e}"))
}

fn main() -> ExitCode {
    let seconds = setting("BENCH_STORM_SECONDS", 120);
    let wanted: Vec<String> = list("BENCH_STORMS", "");
    let rounds = setting("BENCH_VICTIM_ROUNDS", 300);
    let out = setting(
        "BENCH_OUT",
        Path::new(env!("CARGO_MANIFEST_DIR")).join("build/bench"),
    );
    let mut storms: Vec<Box<dyn Storm>> = vec![
        Box::new(ForeignKeys),
        Box::new(Unique),
        Box::new(Collations),
        Box::new(Jobs::default()),
        Box::new(Bank),
        Box::new(Ring),
    ];
    storms.retain(|s| wanted.iter().any(|w| w.is_empty() || w == s.name()));
    let tables: Vec<&str> = storms.iter().map(|s| s.tables()).collect();
    let group = group(&format!("{}{}", tables.join("\n"), victims::TABLES));
    let mut report = Report::new(out);
    for storm in &storms {
        let length = Length::Time(Duration::from_secs(seconds));
        match storms::rage(&group.0, storm.as_ref(), length) {
            Ok(tally) => report.line(&format!("{:<13} {tally}", storm.name())),
            Err(error) => report.fail(&error),
        }
    }
    if rounds > 0 {
        match victims::measure(&group.0, rounds) {
            Ok(lines) => lines.iter().for_each(|line| report.line(line)),
            Err(error) => report.fail(&error),
        }
    }
    report.end()
}

/// What is said on standard output and kept in a file.
struct Report {
    file: PathBuf,
    text: String,
    failed: bool,
}

impl Report {
    fn new(out: PathBuf) -> Report {
        std::fs::create_dir_all(&out).expect("folder for the results");
        Report {
            file: out.join("conflicts.txt"),
            text: String::new(),
            failed: false,
        }
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn fail(&mut self, error: &str) {
        self.failed = true;
        self.line(&format!("FAILED: {error}"));
    }

    fn end(self) -> ExitCode {
        std::fs::write(&self.file, &self.text).expect("write the results");
        println!("results: {}", self.file.display());
        if self.failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}
