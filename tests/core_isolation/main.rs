//! PostgreSQL's own isolation suite, its tester and its expected files, on a member whose database is
//! replicated. Speaks TAP. See `README.md`.

mod head;
#[path = "../cluster/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "../isolation/wanted.rs"]
mod wanted;

use head::Head;
use postgres::Client;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::TestGroup;

/// Beyond it a specification hangs.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    let is_wanted = wanted::names();
    let suite = Suite::new();
    let all = suite.schedule();
    let names: Vec<&String> = all.iter().filter(|n| is_wanted(n)).collect();
    let mut different = different();
    let mut options = support::options(1);
    options
        .configuration
        .push_str("lc_messages = 'C'\nautovacuum = off\nmax_prepared_transactions = 20\n");
    let group = support::group_with("core-isolation", options, "");
    group.execute(1, "ALTER DATABASE app STOP REPLICATION");
    let mut server = connect(&group, "postgres");
    let mut failed = 0;
    for (number, name) in names.iter().enumerate() {
        let (number, start) = (number + 1, Instant::now());
        if let Some(why) = different.remove(format!("{name}!").as_str()) {
            println!("ok {number} - {name} # not run: {why}");
            continue;
        }
        let outcome = suite.run(name, &group, &mut server);
        let seconds = start.elapsed().as_secs_f64();
        match (outcome, different.remove(name.as_str())) {
            (Ok(through), None) => {
                println!(
                    "ok {number} - {name} # {through} commits through the group, {seconds:.1} s"
                );
            }
            (Err(_), Some(why)) => println!("ok {number} - {name} # not the same: {why}"),
            (Ok(_), Some(_)) => {
                failed += 1;
                println!("not ok {number} - {name}\n# is the same: take it off the list");
            }
            (Err(error), None) => {
                failed += 1;
                println!("not ok {number} - {name}");
                error.lines().for_each(|line| println!("# {line}"));
            }
        }
    }
    println!("1..{}", names.len());
    if names.len() == all.len() {
        assert!(different.is_empty(), "there are no specs {different:?}");
        // The database was replicated, not only called so.
        let commits = suite.committed.get();
        assert!(commits > 500, "{commits} commits went through the group");
    }
    assert_eq!(failed, 0, "of {}", names.len());
}

/// Specifications that end otherwise, and why: `different.txt`.
fn different() -> BTreeMap<&'static str, &'static str> {
    include_str!("different.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(": ").expect("NAME: REASON"))
        .collect()
}

fn connect(group: &TestGroup, database: &str) -> Client {
    let server = group.member(1).expect("member");
    server.connect(database).unwrap_or_else(|e| panic!("{e}"))
}

struct Suite {
    /// `src/test/isolation` of PostgreSQL's source.
    source: PathBuf,
    tester: PathBuf,
    /// Through groups, since the server started.
    committed: Cell<u64>,
}

impl Suite {
    fn new() -> Suite {
        let source = std::env::var_os("PGR_SOURCE").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("build/src"),
            PathBuf::from,
        );
        let tester = "../lib/postgresql/pgxs/src/test/isolation/isolationtester";
        Suite {
            source: source.join("src/test/isolation"),
            tester: support::bin_dir().join(tester),
            committed: Cell::new(0),
        }
    }

    /// Names of the specifications that PostgreSQL runs.
    fn schedule(&self) -> Vec<String> {
        let file = self.source.join("isolation_schedule");
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let tests = text.lines().filter_map(|line| line.strip_prefix("test: "));
        tests
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    }

    /// Runs a specification in a database of its own; how many transactions committed through the
    /// group, or how its output differs from what is expected.
    fn run(&self, name: &str, group: &TestGroup, server: &mut Client) -> Result<u64, String> {
        let file = self.source.join("specs").join(format!("{name}.spec"));
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let head = Head::parse(&text);
        let sql = |server: &mut Client, sql: &str| {
            server
                .batch_execute(sql)
                .map_err(|e| format!("{sql}: {e:?}"))
        };
        sql(server, "CREATE DATABASE spec TEMPLATE template0")?;
        let before = self.committed.get();
        let ended = self.try_run(name, &head, group);
        // Nothing while the database is not replicated.
        self.committed.set(commits(server).max(before));
        let through = self.committed.get() - before;
        // Refused where it is not replicated any more, for the specification failed.
        let _ = server.batch_execute("ALTER DATABASE spec STOP REPLICATION");
        sql(server, "DROP DATABASE spec WITH (FORCE)")?;
        ended.map(|()| through)
    }

    fn try_run(&self, name: &str, head: &Head, group: &TestGroup) -> Result<(), String> {
        let mut client = connect(group, "spec");
        for setup in &head.setups {
            client
                .batch_execute(setup)
                .map_err(|e| format!("setup: {e:?}"))?;
        }
        client
            .batch_execute(&head.start())
            .map_err(|e| format!("START REPLICATION: {e:?}"))?;
        drop(client);
        let output = self.test(name, &head.replicated(), group)?;
        let mut expected = self.expected(name)?;
        if expected.contains(&output) {
            return Ok(());
        }
        Err(difference(&expected.swap_remove(0), &output))
    }

    /// What the tester prints.
    fn test(&self, name: &str, spec: &str, group: &TestGroup) -> Result<String, String> {
        let file = group.dir.join("current.spec");
        std::fs::write(&file, spec).map_err(|e| e.to_string())?;
        let port = group.member(1).expect("member").port;
        let output = Command::new("timeout")
            .arg(PATIENCE.as_secs().to_string())
            .arg(&self.tester)
            .arg(format!(
                "host=127.0.0.1 port={port} user=postgres dbname=spec"
            ))
            .stdin(std::fs::File::open(&file).map_err(|e| e.to_string())?)
            .env("PGAPPNAME", format!("isolation/{name}"))
            .env("PGTZ", "America/Los_Angeles")
            .env("PGDATESTYLE", "Postgres, MDY")
            .env("PGOPTIONS", "-c intervalstyle=postgres_verbose")
            .output()
            .map_err(|e| format!("{}: {e}", self.tester.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            let error = String::from_utf8_lossy(&output.stderr);
            let end: Vec<&str> = text.lines().rev().take(5).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            Err(format!("{}: {error}{}", output.status, end.join("\n")))
        }
    }

    /// The outputs that PostgreSQL accepts.
    fn expected(&self, name: &str) -> Result<Vec<String>, String> {
        let folder = self.source.join("expected");
        let names = std::iter::once(format!("{name}.out"))
            .chain((0..10).map(|i| format!("{name}_{i}.out")));
        let found: Vec<String> = names
            .filter_map(|file| std::fs::read_to_string(folder.join(file)).ok())
            .collect();
        if found.is_empty() {
            return Err(format!("no expected file in {}", folder.display()));
        }
        Ok(found)
    }
}

/// Transactions of this server that committed through a group since it started.
fn commits(server: &mut Client) -> u64 {
    let sql = "SELECT COALESCE(sum(commits), 0)::int8 FROM pg_stat_get_replication_group()";
    let row = server
        .query_one(sql, &[])
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    row.get::<_, i64>(0).cast_unsigned()
}

/// The first lines that differ, with some before and after.
fn difference(expected: &str, output: &str) -> String {
    let (expected, output): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), output.lines().collect());
    let pairs = expected.iter().zip(&output);
    let same = pairs.take_while(|(a, b)| a == b).count();
    let from = same.saturating_sub(8);
    let part = |lines: &[&str], mark: &str| {
        let lines = lines.iter().skip(same).take(6);
        lines
            .map(|line| format!("{mark} {line}\n"))
            .collect::<String>()
    };
    let context: String = output[from..same]
        .iter()
        .map(|l| format!("  {l}\n"))
        .collect();
    format!(
        "line {}:\n{context}{}{}",
        same + 1,
        part(&expected, "-"),
        part(&output, "+")
    )
}
