//! Random tables and random transactions, from all members of a group at once. Speaks TAP. See `README.md`.

#[path = "../sim/rng.rs"]
#[allow(dead_code)]
mod rng;
mod schema;
mod statement;
#[path = "../cluster/support.rs"]
#[allow(dead_code)]
mod support;

use postgres::Client;
use rng::Rng;
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
    "invalid ON UPDATE specification",
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
    let (tables, sql) = schema::tables(&mut rng, TABLES);
    let list: Vec<Work> = (0..length)
        .map(|_| statement::work(&mut rng, &tables))
        .collect();
    if std::env::var_os("SHOW").is_some() {
        println!("# {}", sql.replace('\n', "\n# "));
    }
    let mut options = support::options(3);
    options.configuration.push_str("deadlock_timeout = 100ms\n");
    let group = support::group_with(&format!("random-{seed}"), options, &sql);
    let mut clients: Vec<Client> = (1..=3).map(|n| group.client(n)).collect();
    let (mut counts, mut rows) = (BTreeMap::new(), 0);
    for round in list.chunks(ROUND) {
        *rounds += 1;
        let counted: Vec<BTreeMap<String, u32>> = std::thread::scope(|scope| {
            let sessions = clients.iter_mut().enumerate().map(|(member, client)| {
                let own: Vec<&Work> = round.iter().filter(|w| w.member == member).collect();
                scope.spawn(move || session(client, &own))
            });
            let sessions: Vec<_> = sessions.collect();
            sessions
                .into_iter()
                .map(|s| s.join().expect("a session ends"))
                .collect()
        });
        for (code, n) in counted.into_iter().flatten() {
            *counts.entry(code).or_insert(0) += n;
        }
        rows = group.assert_identical();
        indexes(&group);
    }
    assert!(rows > 0, "all tables are empty");
    let statements: u32 = counts.values().sum();
    let ok = counts.get("ok").copied().unwrap_or(0);
    assert!(ok * 3 > statements, "most statements fail: {counts:?}");
    format!("{statements} statements, {rows} rows left, {counts:?}")
}

/// Runs transactions one after the other; how many statements ended with which SQLSTATE.
fn session(client: &mut Client, list: &[&Work]) -> BTreeMap<String, u32> {
    let show = std::env::var_os("SHOW").is_some();
    let mut counts = BTreeMap::new();
    for work in list {
        for sql in &work.statements {
            let code = match client.batch_execute(sql) {
                Ok(()) => "ok".to_owned(),
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
            *counts.entry(code).or_insert(0) += 1;
        }
        // A COMMIT that lost, or that was not reached, leaves the block open.
        let _ = client.batch_execute("ROLLBACK");
    }
    counts
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
