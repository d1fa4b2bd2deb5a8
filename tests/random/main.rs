//! Random tables and random transactions, from all members of a group at once. Speaks TAP. See `README.md`.

#[path = "../sim/rng.rs"]
#[allow(dead_code)]
mod rng;
mod schema;
mod sequence;
mod statement;
#[path = "../cluster/support.rs"]
#[allow(dead_code)]
mod support;

use postgres::{Client, SimpleQueryMessage};
use rng::Rng;
use schema::Schema;
use sequence::Taken;
use statement::Work;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::TestGroup;

/// Transactions of a seed, if LENGTH does not say.
const LENGTH: u64 = 1200;
/// Transactions between two comparisons.
const ROUND: usize = 200;
const TABLES: u64 = 12;
/// What a statement may fail with: it violates a constraint, meets another transaction, follows an
/// error (of a savepoint, too), changes a row twice, is not for a block, or a value is too large for an index; and the first
/// characters of a class.
const ALLOWED: &[&str] = &[
    "23", "40001", "40P01", "25P01", "25P02", "21000", "27000", "25001", "22", "3B001", "54000",
];
/// ... or with another one, and such a text.
const ALLOWED_TEXT: &[&str] = &[
    "ON CONFLICT does not support deferrable unique constraints",
    "cannot truncate a table referenced in a foreign key constraint",
    "cannot TRUNCATE",
    "currval of sequence",
    "lastval is not yet defined",
    "invalid ON UPDATE specification",
];
/// Each is the beginning of a statement that succeeds, if a run is not a short one.
const WORDS: &[&str] = &[
    "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "SELECT", "TRUNCATE", "ALTER",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn main() {
    let length = number("LENGTH").unwrap_or(LENGTH);
    let seeds: Vec<u64> = match number("SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("SEEDS").unwrap_or(2)).collect(),
    };
    let mut failed = 0;
    for (n, seed) in seeds.iter().enumerate() {
        let (mut rounds, mut told) = (0, String::new());
        let outcome = catch_unwind(AssertUnwindSafe(|| told = run(*seed, length, &mut rounds)));
        if outcome.is_ok() {
            println!("ok {} - seed {seed} # {told}", n + 1);
        } else {
            failed += 1;
            println!("not ok {} - seed {seed}", n + 1);
            let length = length.min((rounds * ROUND) as u64);
            println!("# SEED={seed} LENGTH={length} cargo test --features cli --test random");
        }
    }
    println!("1..{}", seeds.len());
    assert_eq!(failed, 0, "of {} seeds", seeds.len());
}

/// Runs a seed; panics at the end of the first round that is not well.
fn run(seed: u64, length: u64, rounds: &mut usize) -> String {
    let mut rng = Rng::new(seed);
    let (schema, sql) = schema::make(&mut rng, TABLES);
    let list: Vec<Work> = (0..length)
        .map(|_| statement::work(&mut rng, &schema))
        .collect();
    if std::env::var_os("SHOW").is_some() {
        println!("# {}", sql.replace('\n', "\n# "));
    }
    let range = rng.pick(&[1, 3, 32]);
    let mut options = support::options(3);
    options.configuration.push_str(&format!(
        "deadlock_timeout = 100ms\nreplication_sequence_range = {range}\n"
    ));
    let group = support::group_with(&format!("random-{seed}"), options, &sql);
    let mut clients: Vec<Client> = (1..=3).map(|n| group.client(n)).collect();
    let (mut counts, mut done, mut rows) = (BTreeMap::new(), BTreeMap::new(), 0);
    let mut taken = Taken::default();
    for round in list.chunks(ROUND) {
        *rounds += 1;
        let sessions: Vec<Session> = std::thread::scope(|scope| {
            let sessions = clients.iter_mut().enumerate().map(|(member, client)| {
                let own: Vec<&Work> = round.iter().filter(|w| w.member == member).collect();
                let schema = &schema;
                scope.spawn(move || session(client, &own, schema))
            });
            let sessions: Vec<_> = sessions.collect();
            sessions
                .into_iter()
                .map(|s| s.join().expect("a session ends"))
                .collect()
        });
        for session in sessions {
            for (code, n) in session.counts {
                *counts.entry(code).or_insert(0) += n;
            }
            for (word, n) in session.done {
                *done.entry(word).or_insert(0) += n;
            }
            for (sequence, value) in session.values {
                taken.add(schema.sequence(&sequence).expect("by its name"), value);
            }
        }
        rows = group.assert_identical();
        indexes(&group);
        let orphans = group.client(1).query(&schema.orphans(), &[]);
        let orphans = orphans.unwrap_or_else(|e| panic!("{e:?}"));
        assert!(orphans.is_empty(), "rows that refer to none: {orphans:?}");
    }
    assert!(rows > 0, "all tables are empty");
    let statements: u32 = counts.values().sum();
    let ok = counts.get("ok").copied().unwrap_or(0);
    assert!(ok * 3 > statements, "most statements fail: {counts:?}");
    if length >= LENGTH {
        for word in WORDS {
            assert!(done.contains_key(*word), "no {word} succeeded: {done:?}");
        }
        assert!(taken.count() > 0, "no sequence is only taken from");
    }
    let values = taken.count();
    format!("{statements} statements, {rows} rows left, {values} values, {counts:?}")
}

/// What came of a session's transactions.
#[derive(Default)]
struct Session {
    /// Statements by SQLSTATE.
    counts: BTreeMap<String, u32>,
    /// Statements that succeeded, by their first word.
    done: BTreeMap<String, u32>,
    /// Sequences, and what they gave.
    values: Vec<(String, i64)>,
}

/// Runs transactions one after the other.
fn session(client: &mut Client, list: &[&Work], schema: &Schema) -> Session {
    let show = std::env::var_os("SHOW").is_some();
    let mut session = Session::default();
    for work in list {
        for sql in &work.statements {
            let code = match client.simple_query(sql) {
                Ok(messages) => {
                    let word = sql.split(' ').next().unwrap_or_default();
                    *session.done.entry(word.to_owned()).or_insert(0) += 1;
                    session.read(&messages, schema, sql);
                    "ok".to_owned()
                }
                Err(error) => {
                    let code = error
                        .code()
                        .unwrap_or_else(|| panic!("{sql}: {error:?}"))
                        .code()
                        .to_owned();
                    let text = error.as_db_error().map_or("", |e| e.message());
                    assert!(
                        ALLOWED.iter().any(|a| code.starts_with(a))
                            || ALLOWED_TEXT.iter().any(|a| text.starts_with(a)),
                        "{sql}: {error:?}"
                    );
                    code
                }
            };
            if show {
                println!("# {} {code} {sql}", work.member + 1);
            }
            *session.counts.entry(code).or_insert(0) += 1;
        }
        // A COMMIT that lost, or that was not reached, leaves the block open.
        let _ = client.batch_execute("ROLLBACK");
    }
    session
}

impl Session {
    /// Columns that have the name of a sequence are values of it; one that says what holds is true.
    fn read(&mut self, messages: &[SimpleQueryMessage], schema: &Schema, sql: &str) {
        for message in messages {
            let SimpleQueryMessage::Row(row) = message else {
                continue;
            };
            for (n, column) in row.columns().iter().enumerate() {
                let value = row.get(n).unwrap_or_default();
                if column.name() == "holds" {
                    assert_eq!(value, "t", "{sql}");
                } else if schema.sequence(column.name()).is_some() {
                    let value = value.parse().expect("a number");
                    self.values.push((column.name().to_owned(), value));
                }
            }
        }
    }
}

/// Every index of every member against its table.
fn indexes(group: &TestGroup) {
    let sql = "SELECT count(*) FILTER (WHERE am = 'btree' AND bt_index_check(i, true, u) IS NOT NULL)
                    + count(*) FILTER (WHERE am = 'gin' AND gin_index_check(i) IS NOT NULL)
        FROM (SELECT c.oid::regclass i, amname am, indisunique u FROM pg_class c JOIN pg_index ON indexrelid = c.oid
              JOIN pg_am a ON a.oid = relam WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace) x";
    for member in 1..=3 {
        let row = group.client(member).query_one(sql, &[]);
        let count: i64 = row
            .unwrap_or_else(|e| panic!("member {member}: {e:?}"))
            .get(0);
        assert!(count > 0);
    }
}
