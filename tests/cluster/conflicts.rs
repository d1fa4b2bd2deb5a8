//! What several members do to the same keys at the same time.

use crate::storms::{self, Length, Storm};
use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure, scale};
use postgres::Error;
use postgres::error::SqlState;
use std::time::{Duration, Instant};

const STORM: Duration = Duration::from_secs(6);

/// Runs a job over and over from two sessions on each member until the time is over.
fn storm(
    group: &TestGroup,
    job: impl Fn(&mut postgres::Client, u64) -> Result<bool, Error> + Sync,
) -> u64 {
    let end = Instant::now() + STORM * scale();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6u64)
            .map(|w| {
                let mut client = group.client(w as usize % 3 + 1);
                let job = &job;
                scope.spawn(move || {
                    let (mut random, mut done) = (w.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, 0);
                    while Instant::now() < end {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        match job(&mut client, random) {
                            Ok(true) => done += 1,
                            Ok(false) => {}
                            Err(e) => panic!("session {w}: {e:?}"),
                        }
                    }
                    done
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().expect("session"))
            .sum()
    })
}

/// `Ok(false)` for the outcomes that a storm expects.
fn expected(outcome: Result<u64, Error>, codes: &[SqlState]) -> Result<bool, Error> {
    match outcome {
        Ok(n) => Ok(n > 0),
        Err(e) if is_serialization_failure(&e) || e.code().is_some_and(|c| codes.contains(c)) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// A storm with its invariant; enough of its transactions must have changed something.
fn rage(storm: &dyn Storm) {
    let group = group(storm.name(), 3, storm.tables());
    let length = Length::Time(STORM * scale());
    let tally = storms::rage(&group, storm, length).unwrap_or_else(|e| panic!("{e}"));
    assert!(tally.changed > 50 && tally.looks > 10, "{tally}");
}

#[test]
fn parents_that_go_while_children_come_leave_no_orphan() {
    rage(&storms::ForeignKeys);
}

#[test]
fn one_unique_value_from_all_members_is_taken_once() {
    rage(&storms::Unique);
}

#[test]
fn a_ring_of_readers_and_writers_is_serializable() {
    let level = postgres::IsolationLevel::Serializable;
    rage(&storms::Ring { level });
}

#[test]
fn a_loser_hears_which_relation_and_which_member_won() {
    let group = group(
        "loser",
        3,
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t VALUES (1, 0), (2, 0);",
    );
    let mut one = group.client(1);
    let mut open = one.transaction().expect("begin");
    open.execute("UPDATE t SET v = 1 WHERE id = 1", &[])
        .expect("update");
    // The other member's transaction is ordered first, and its helper needs the row that is locked here.
    group.execute(2, "UPDATE t SET v = 2 WHERE id = 1");
    group
        .wait_in_step(PATIENCE)
        .expect("the idle transaction gives way");
    let error = open.commit().expect_err("it has lost");
    assert_eq!(
        error.code(),
        Some(&SqlState::T_R_SERIALIZATION_FAILURE),
        "{error:?}"
    );
    let detail = error
        .as_db_error()
        .and_then(|e| e.detail())
        .unwrap_or_default()
        .to_owned();
    assert!(
        detail.contains("\"t\"") || detail.contains("public.t"),
        "DETAIL names the relation: {detail}"
    );
    assert!(
        detail.contains("member 2"),
        "DETAIL names the other origin: {detail}"
    );
    // The session goes on.
    one.execute("UPDATE t SET v = v + 10 WHERE id = 1", &[])
        .expect("the session is usable");
    group.assert_identical();
    assert_eq!(
        group
            .client(3)
            .query_one("SELECT v FROM t WHERE id = 1", &[])
            .expect("v")
            .get::<_, i32>(0),
        12
    );
}

#[test]
fn every_kind_of_victim_gives_way_while_its_client_is_silent() {
    let group = group(
        "victims",
        3,
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i; CREATE TABLE c (id int4 PRIMARY KEY);",
    );
    // In the middle of a long statement.
    let server = group.member(1).expect("member");
    let url = server.url(&group.database);
    let sleeper = std::thread::spawn(move || {
        let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connect");
        client
            .batch_execute("BEGIN; UPDATE t SET v = 1 WHERE id = 1; SELECT pg_sleep(600); COMMIT;")
            .expect_err("it has lost")
    });
    group.await_value(
        server,
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        1,
    );
    group.execute(2, "UPDATE t SET v = 2 WHERE id = 1");
    let error = sleeper.join().expect("sleeper");
    assert!(is_serialization_failure(&error), "{error:?}");
    // With row locks only, and with a cursor open.
    for (id, lock) in [
        (2, "FOR UPDATE"),
        (3, "FOR SHARE"),
        (4, "FOR NO KEY UPDATE"),
    ] {
        let mut client = group.client(1);
        client
            .batch_execute(&format!("BEGIN; DECLARE k CURSOR FOR SELECT * FROM t; FETCH k; SELECT * FROM t WHERE id = {id} {lock}"))
            .expect("lock");
        group.execute(3, &format!("UPDATE t SET v = 3 WHERE id = {id}"));
        group
            .wait_in_step(PATIENCE)
            .expect("the holder of the lock gives way");
        let error = client
            .batch_execute("COMMIT")
            .expect_err("a bare COMMIT must not look like one");
        assert!(is_serialization_failure(&error), "{lock}: {error:?}");
        client
            .batch_execute("SELECT 1")
            .expect("the session is usable");
    }
    // With an index entry.
    let mut client = group.client(1);
    client
        .batch_execute("BEGIN; INSERT INTO c VALUES (7)")
        .expect("insert");
    group.execute(2, "INSERT INTO c VALUES (7)");
    group
        .wait_in_step(PATIENCE)
        .expect("the holder of the index entry gives way");
    assert!(is_serialization_failure(
        &client.batch_execute("SELECT 1").expect_err("it has lost")
    ));
    client.batch_execute("ROLLBACK").expect("rollback");
    // With a relation lock.
    let mut client = group.client(1);
    client
        .batch_execute("BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE; SELECT 1")
        .expect("lock");
    group.execute(2, "UPDATE t SET v = 9 WHERE id = 9");
    group.wait_in_step(PATIENCE).expect("no conflict at all");
    client
        .batch_execute("COMMIT")
        .expect("a weak lock is in nobody's way");
    group.assert_identical();
}

#[test]
fn strings_that_a_collation_holds_equal_are_taken_once() {
    let group = group(
        "collations",
        3,
        "CREATE EXTENSION citext;
         CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE COLLATION plain (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
         CREATE TYPE pair AS (a int4, b name COLLATE ci); CREATE TYPE span AS RANGE (subtype = name, collation = ci);
         CREATE DOMAIN label AS name;
         CREATE TABLE of_name (k name COLLATE ci PRIMARY KEY); CREATE TABLE of_text (k text COLLATE ci PRIMARY KEY);
         CREATE TABLE of_char (k char(9) COLLATE ci PRIMARY KEY); CREATE TABLE of_label (k label COLLATE ci PRIMARY KEY);
         CREATE TABLE of_array (k name[] COLLATE ci PRIMARY KEY); CREATE TABLE of_pair (k pair PRIMARY KEY);
         CREATE TABLE of_span (k span PRIMARY KEY); CREATE TABLE of_citext (k citext COLLATE plain PRIMARY KEY);",
    );
    const TABLES: [(&str, &str); 7] = [
        ("of_name", "'?'"),
        ("of_text", "'?'"),
        ("of_char", "'?'"),
        ("of_label", "'?'"),
        ("of_array", "ARRAY['?']::name[]"),
        ("of_pair", "ROW(1, '?')::pair"),
        ("of_span", "span('?', '?', '[]')"),
    ];
    let violation = [SqlState::UNIQUE_VIOLATION];
    let done = storm(&group, |client, random| {
        let (table, value) = TABLES[(random >> 20) as usize % TABLES.len()];
        let text = match random >> 8 & 3 {
            0 => "Foo",
            1 => "foo",
            2 => "FOO",
            _ => "fOO",
        };
        let value = value.replace('?', text);
        let sql = if random % 3 == 0 {
            format!("DELETE FROM {table}")
        } else {
            format!("INSERT INTO {table} VALUES ({value})")
        };
        expected(client.execute(&sql, &[]), &violation)
    });
    assert!(done > 100, "only {done} statements changed anything");
    group.assert_identical();
    for (table, _) in TABLES {
        let sql = format!("SELECT count(*) FROM {table}");
        let count: i64 = group.client(1).query_one(&sql, &[]).expect("count").get(0);
        assert!(count <= 1, "{count} rows in {table}");
    }
    // Its equality goes by bytes, so its index does not find what it holds.
    for (member, text) in [(1, "foo"), (2, "f\u{f6}o")] {
        let sql = format!("INSERT INTO of_citext VALUES ('{text}')");
        let done = group.client(member).batch_execute(&sql);
        assert_eq!(done.is_ok(), member == 1, "{done:?}");
        group.wait_in_step(PATIENCE).expect("in step");
    }
    let error = group
        .client(1)
        .batch_execute("DELETE FROM of_citext")
        .expect_err("rows can't be named");
    assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
}
