//! Every type by index and operation, every statement by kind of table: each cell ends as it does on one
//! server and the same on all members, or is refused. Speaks TAP. See `README.md`.

mod cell;
mod compare;
mod expect;
mod kinds;
mod manual;
mod report;
mod script;
#[path = "../cluster/support.rs"]
#[allow(dead_code)]
mod support;
mod types;

use cell::{Cell, Outcome};
use compare::{Compare, connect, connect_alone};
use expect::Expectations;
use kinds::{Case, Kinds};
use report::Report;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use support::TestGroup;
use types::Type;

/// Statements between two comparisons.
const BATCH: usize = 8;
/// SQLSTATEs of statements that can't be tried in a block, or whose other side is not there.
const UNTRIED: &[&str] = &["25001", "2D000", "08001", "22023", "55006"];

fn main() {
    let only = ["STATEMENT", "TABLE"].map(|name| std::env::var(name).ok());
    let some = only.iter().any(Option::is_some);
    let (types, left_out) = if some {
        (Vec::new(), Vec::new())
    } else {
        types::read(&configured())
    };
    let kinds = Kinds::read();
    let group = make(&types, &kinds);
    let expectations = Expectations::read();
    let directory = group.dir.display().to_string();
    let mut report = Report::new(expectations);
    let apart = kinds
        .kinds
        .iter()
        .filter(|k| k.apart)
        .map(|k| k.schema.clone());
    let mut compare = Compare::new(&group, apart.collect());
    if !some {
        let mut note = |found| report.note("every built-in type", found);
        types::check_all(&mut connect_alone(&group), &types, &left_out, &mut note);
    }
    let mut lanes: Vec<Lane> = (0..3).map(|_| Lane::new(&group, &kinds)).collect();

    // Operations of one name follow each other; they are of different tables.
    for (turn, operations) in types::OPERATIONS
        .chunk_by(|a, b| a.name == b.name)
        .enumerate()
    {
        let cells = |(n, t): (usize, &Type)| {
            operations
                .iter()
                .flat_map(|o| t.cells(n, o, turn, &directory))
                .collect::<Vec<_>>()
        };
        let cells: Vec<Cell> = types.iter().enumerate().flat_map(cells).collect();
        run(&cells, &mut lanes, &mut report);
        for (table, text) in compare.differences("types") {
            report.failed(&format!("{}, {table}", operations[0].name), &text);
        }
    }
    for last in [false, true] {
        let cases: Vec<&Case> = kinds
            .cases
            .iter()
            .filter(|c| c.last == last && only[0].as_ref().is_none_or(|o| c.name.contains(o)))
            .collect();
        for batch in cases.chunks(BATCH) {
            run(&kinds.cells(batch, &directory), &mut lanes, &mut report);
            for (table, text) in compare
                .differences("k__")
                .into_iter()
                .chain(compare.differences("other"))
            {
                let names: Vec<&str> = batch.iter().map(|c| c.name.as_str()).collect();
                report.failed(
                    &format!("table {table} after one of {}", names.join(" / ")),
                    &text,
                );
            }
        }
    }
    local_tables(&kinds, &mut lanes, &mut report);
    drop(lanes);
    // Before the group goes, so that its logs are shown.
    group.assert_identical();
    if !some {
        indexes(&group, &mut report);
        let manual = manual::text(&report);
        report.note("manual", manual);
        report.unused();
    }
    assert_eq!(report.print(), 0);
}

/// Options of the configure of the servers.
fn configured() -> String {
    let output = std::process::Command::new(support::bin_dir().join("pg_config"))
        .arg("--configure")
        .output();
    let output = output.expect("pg_config runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A group of three with all tables, and a copy of the database that is not replicated.
fn make(types: &[Type], kinds: &Kinds) -> TestGroup {
    // In transactions of a few tables each: what a command costs grows with what its transaction made.
    let mut init = String::from("SET synchronous_commit = off;\n");
    init.push_str(include_str!("objects.sql"));
    for one in types {
        init.push_str(&one.init());
    }
    let probes = types.iter().flat_map(Type::probes).enumerate();
    for (n, (table, index, condition)) in probes {
        let _ = writeln!(
            init,
            "INSERT INTO matrix.probe VALUES ({n}, '{table}', '{index}', $_${condition}$_$);"
        );
    }
    init.push_str(&kinds.init());
    init.push_str("\\c postgres\nCREATE DATABASE alone TEMPLATE app;\n");
    let mut options = support::options(3);
    options.configuration.push_str(
        "max_prepared_transactions = 5\nautovacuum = off\nmax_locks_per_transaction = 1000\nstatement_timeout = 90s\n",
    );
    support::group_with("matrix", options, &init)
}

/// A third of the lanes of the matrix, with a session on each member and one that is on none.
struct Lane {
    sessions: Vec<postgres::Client>,
    alone: postgres::Client,
}

impl Lane {
    fn new(group: &TestGroup, kinds: &Kinds) -> Lane {
        let mut lane = Lane {
            sessions: (1..=3).map(|n| connect(group, n)).collect(),
            alone: connect_alone(group),
        };
        for kind in kinds.kinds.iter().filter(|k| k.temporary) {
            for client in lane.sessions.iter_mut().chain([&mut lane.alone]) {
                let sql = kind.temporary_init();
                client
                    .batch_execute(&sql)
                    .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            }
        }
        lane
    }
}

/// What a cell came to: in the group, and on one server.
struct Ran<'a> {
    cell: &'a Cell,
    group: Outcome,
    alone: Outcome,
}

fn run(cells: &[Cell], lanes: &mut [Lane], report: &mut Report) {
    let n = lanes.len();
    let ran: Vec<Ran> = std::thread::scope(|scope| {
        let expectations = &report.expectations;
        let workers = lanes.iter_mut().enumerate().map(|(number, lane)| {
            let own = cells.iter().filter(move |c| c.lane % n == number);
            let work = move || {
                own.map(|cell| lane.run(cell, expectations))
                    .collect::<Vec<_>>()
            };
            scope.spawn(work)
        });
        let workers: Vec<_> = workers.collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().expect("a lane ends"))
            .collect()
    });
    for Ran { cell, group, alone } in ran {
        report.cell(cell, &group, &alone);
    }
}

impl Lane {
    /// Panics if the session did not live: what follows would say nothing.
    fn run<'a>(&mut self, cell: &'a Cell, expectations: &Expectations) -> Ran<'a> {
        let session = &mut self.sessions[cell.member - 1];
        let group = cell.run(session);
        assert!(
            group.code() != cell::LOST,
            "member {}: {} | {}: {group}",
            cell.member,
            cell.statement,
            cell.table
        );
        // DISCARD ALL forgets it.
        let _ = session.batch_execute("SET replication_consistency = before");
        let alone = if expectations.refused(cell).is_none() {
            cell.run(&mut self.alone)
        } else {
            match cell.would_run(&mut self.alone) {
                Outcome::Failed(f) if UNTRIED.contains(&f.code.as_str()) => {
                    Outcome::Done(Vec::new())
                }
                outcome => outcome,
            }
        };
        Ran { cell, group, alone }
    }
}

/// Unlogged and temporary tables are of one member, whose sessions left in them what they do on one server.
fn local_tables(kinds: &Kinds, lanes: &mut [Lane], report: &mut Report) {
    let n = lanes.len();
    for (number, kind) in kinds.kinds.iter().enumerate().filter(|(_, k)| k.local) {
        let lane = &mut lanes[kind.lane(number) % n];
        let rows = |client: &mut postgres::Client| -> Vec<String> {
            let rows = client.query(&kind.contents(), &[]);
            rows.unwrap_or_else(|e| panic!("{e:?}"))
                .iter()
                .map(|row| row.get(0))
                .collect()
        };
        let (here, alone) = (rows(&mut lane.sessions[0]), rows(&mut lane.alone));
        if here != alone {
            let all: BTreeSet<&String> = here.iter().chain(&alone).collect();
            let other: Vec<_> = all
                .into_iter()
                .filter(|l| here.contains(l) != alone.contains(l))
                .take(5)
                .collect();
            report.failed(&kind.name, &format!("not as on one server: {other:?}"));
        }
    }
}

/// Each index finds what a scan finds, on each member, and is whole. Ends the group.
fn indexes(group: &TestGroup, report: &mut Report) {
    for member in (1..=3).rev() {
        group.execute(member, "ALTER DATABASE app STOP REPLICATION");
    }
    let sound = "SELECT count(*) FILTER (WHERE am = 'btree' AND bt_index_check(i, true, u) IS NOT NULL)
                      + count(*) FILTER (WHERE am = 'gin' AND gin_index_check(i) IS NOT NULL)
        FROM (SELECT c.oid::regclass i, amname am, indisunique u FROM pg_class c JOIN pg_index ON indexrelid = c.oid
              JOIN pg_am a ON a.oid = relam WHERE relkind = 'i' AND relpersistence = 'p' AND relnamespace >= 16384) x";
    std::thread::scope(|scope| {
        let members: Vec<_> = (1..=3)
            .map(|member| {
                scope.spawn(move || {
                    let mut client = connect(group, member);
                    let misses = client
                        .query("SELECT matrix.misses()", &[])
                        .map_err(|e| format!("{e:?}"))?;
                    let misses: Vec<String> = misses.iter().map(|row| row.get(0)).collect();
                    let checked: i64 = client
                        .query_one(sound, &[])
                        .map_err(|e| format!("{e:?}"))?
                        .get(0);
                    if misses.is_empty() && checked > 0 {
                        Ok(())
                    } else {
                        Err(misses.join("\n"))
                    }
                })
            })
            .collect();
        for (n, member) in members.into_iter().enumerate() {
            let found: Result<(), String> = member.join().expect("an index check ends");
            report.note(
                "indexes",
                found.map_err(|e| format!("member {}: {e}", n + 1)),
            );
        }
    });
}
