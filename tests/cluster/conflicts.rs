//! What several members do to the same keys at the same time.

use crate::storms::{self, Length, Storm};
use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure, scale};
use postgres::error::SqlState;
use std::time::Duration;

const STORM: Duration = Duration::from_secs(6);

/// A storm with its invariant, in a group with more tables; enough of its transactions must have changed
/// something.
fn rage_beside(storm: &dyn Storm, more: &str) -> TestGroup {
    let group = group(storm.name(), 3, &format!("{} {more}", storm.tables()));
    let length = Length::Time(STORM * scale());
    let tally = storms::rage(&group, storm, length).unwrap_or_else(|e| panic!("{e}"));
    assert!(tally.changed > 50 && tally.looks > 10, "{tally}");
    group
}

fn rage(storm: &dyn Storm) {
    rage_beside(storm, "");
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
    rage(&storms::Ring);
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
    let group = rage_beside(
        &storms::Collations,
        "CREATE EXTENSION citext;
         CREATE COLLATION plain (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
         CREATE TABLE of_citext (k citext COLLATE plain PRIMARY KEY);",
    );
    // Its equality goes by bytes, so its index does not find what it holds.
    for (member, text) in [(1, "foo"), (2, "f\u{f6}o")] {
        let sql = format!("INSERT INTO of_citext VALUES ('{text}')");
        let done = group.client(member).batch_execute(&sql);
        assert_eq!(done.is_ok(), member == 1, "{done:?}");
        group.wait_in_step(PATIENCE).expect("in step");
    }
    // Nor does it name the row, which goes by all that it holds.
    group.execute(1, "UPDATE of_citext SET k = 'bar'");
    group.assert_identical();
    group.execute(3, "DELETE FROM of_citext");
    group.assert_identical();
    let left: i64 = group
        .client(2)
        .query_one("SELECT count(*) FROM of_citext", &[])
        .expect("count")
        .get(0);
    assert_eq!(left, 0);
}
