//! Tables that are truncated and filled anew in one large transaction, which other members apply before it
//! commits.

use crate::early::{at_work, await_given_up};
use crate::large::{SCHEMA, check, insert, large};
use crate::support::{TestGroup, group, is_serialization_failure};
use postgres::Client;

/// Helpers that have truncated `big`: nobody else locks it like that.
const TRUNCATED: &str = "SELECT count(DISTINCT pid) FROM pg_locks
     WHERE relation = 'big'::regclass AND mode = 'AccessExclusiveLock' AND granted";

/// Who waits for `big`.
const WAITING: &str =
    "SELECT count(*) FROM pg_locks WHERE relation = 'big'::regclass AND NOT granted";

/// Whether the files of the database have so many bytes, what is not committed among them. Locks no table.
fn has_bytes(bytes: u64) -> String {
    format!(
        "SELECT (sum((pg_stat_file('base/' || d.oid || '/' || f, true)).size) >= {bytes})::int4::int8
         FROM pg_database d, pg_ls_dir('base/' || d.oid) f WHERE d.datname = current_database()"
    )
}

fn bytes(group: &TestGroup, number: usize) -> u64 {
    let sql = has_bytes(0)
        .replace("(sum(", "sum(")
        .replace(" >= 0)::int4", "");
    let row = group.client(number).query_one(&sql, &[]).expect("a sum");
    row.get::<_, i64>(0) as u64
}

/// A reload of `big` that is open on member 1, and that these members have applied up to its rows.
fn reloading(group: &TestGroup, sql: &str, members: &[usize]) -> Client {
    let before: Vec<u64> = members.iter().map(|n| bytes(group, *n)).collect();
    let mut client = large(group, 1);
    client
        .batch_execute(&format!("BEGIN; {sql}"))
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    for (number, before) in members.iter().zip(before) {
        let server = group.member(*number).expect("member");
        group.await_value(server, TRUNCATED, 1);
        group.await_value(server, &has_bytes(before + (1 << 20)), 1);
    }
    client
}

fn reload(rows: u32) -> String {
    format!("TRUNCATE big; {}", insert(1, rows))
}

/// A session that fails instead of waiting long.
fn impatient(group: &TestGroup, number: usize) -> Client {
    let mut client = group.client(number);
    client
        .batch_execute("SET statement_timeout = '5s'")
        .expect("set");
    client
}

fn count(client: &mut Client) -> i64 {
    let row = client.query_one("SELECT count(*) FROM big", &[]);
    row.expect("nobody keeps it").get(0)
}

#[test]
fn what_is_truncated_early_is_what_is_committed() {
    let ids = "CREATE TABLE ids (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int4);
         CREATE TABLE wide (id int4 PRIMARY KEY, v text); ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
         INSERT INTO ids (v) SELECT i FROM generate_series(1, 50) i;
         INSERT INTO wide SELECT i, repeat('x', 10000) FROM generate_series(1, 20) i;";
    let group = group("reload", 3, &format!("{SCHEMA}{ids}"));
    let sql = format!(
        "{}; TRUNCATE big, ids, wide RESTART IDENTITY; INSERT INTO ids (v) VALUES (1), (2);
         INSERT INTO wide SELECT i, repeat('y', 10000) FROM generate_series(1, 30) i;
         {}; DELETE FROM big WHERE id % 2 = 0; {}",
        insert(1, 5_000),
        reload(5_000),
        reload(60_000)
    );
    let mut client = reloading(&group, &sql, &[2, 3]);
    let helpers = at_work(&group, "AccessExclusiveLock");
    for number in 1..=3 {
        group.execute(number, "UPDATE small SET v = v + 1 WHERE id = 1");
    }
    client
        .batch_execute("DELETE FROM big WHERE id % 5 = 0; COMMIT")
        .expect("nobody is in its way");
    check(&group, 48_000);
    helpers.iter().for_each(|h| h.await_rows(&group, 48_000));
    let row = group
        .client(2)
        .query_one("INSERT INTO ids (v) VALUES (3) RETURNING id", &[])
        .expect("insert");
    assert_eq!(row.get::<_, i64>(0), 3, "the sequence was restarted");
    group.assert_identical();

    // What was rolled back leaves everything as it was.
    let mut client = reloading(&group, &reload(30_000), &[2, 3]);
    client.batch_execute("ROLLBACK").expect("rollback");
    for number in [2, 3] {
        group.await_value(group.member(number).expect("member"), TRUNCATED, 0);
    }
    check(&group, 48_000);
}

#[test]
fn a_reload_keeps_no_reader_waiting() {
    let group = group("reload-readers", 3, SCHEMA);
    let mut client = reloading(&group, &reload(30_000), &[2, 3]);
    assert_eq!(count(&mut impatient(&group, 2)), 1000);
    group.await_value(group.member(2).expect("member"), TRUNCATED, 0);
    group.await_value(group.member(3).expect("member"), TRUNCATED, 1);
    client.batch_execute("COMMIT").expect("commit");
    check(&group, 30_000);

    // One that is there before holds up no other, and not the reload.
    let mut reader = group.client(2);
    reader
        .batch_execute("BEGIN; SELECT count(*) FROM big")
        .expect("it reads");
    let mut client = reloading(&group, &reload(20_000), &[3]);
    let here = group.member(2).expect("member");
    let mut other = impatient(&group, 2);
    for _ in 0..10 {
        assert_eq!(count(&mut other), 30_000);
        group.await_value(here, WAITING, 0);
    }
    client
        .batch_execute(&insert(20_001, 40_000))
        .expect("nobody waits for the member that can't go on");
    group.await_value(here, TRUNCATED, 0);
    reader.batch_execute("COMMIT").expect("it has read");
    group.await_value(here, TRUNCATED, 1);
    client.batch_execute("COMMIT").expect("commit");
    check(&group, 40_000);
}

#[test]
fn who_writes_a_table_that_is_being_reloaded_wins() {
    let group = group("reload-writers", 3, SCHEMA);
    let mut client = reloading(&group, &reload(30_000), &[2, 3]);
    impatient(&group, 2)
        .batch_execute("INSERT INTO big VALUES (1, 'won')")
        .expect("it is the first");
    let error = client.batch_execute("COMMIT").expect_err("it lost");
    assert!(is_serialization_failure(&error), "{error:?}");
    client.batch_execute("ROLLBACK").expect("rollback");
    for number in [2, 3] {
        await_given_up(&group, number);
    }
    check(&group, 1);
}

#[test]
fn a_member_may_die_while_it_reloads() {
    let group = group("reload-crash", 3, SCHEMA);
    let mut client = reloading(&group, &reload(60_000), &[2, 3]);
    group.member(3).expect("member").kill().expect("kill");
    group.start(3);
    assert_eq!(count(&mut impatient(&group, 3)), 1000);
    client.batch_execute("COMMIT").expect("commit");
    check(&group, 60_000);

    // The origin dies.
    let _client = reloading(&group, &reload(30_000), &[2, 3]);
    group.member(1).expect("member").kill().expect("kill");
    group.start(1);
    for number in [2, 3] {
        group.await_value(group.member(number).expect("member"), TRUNCATED, 0);
    }
    check(&group, 60_000);
}
