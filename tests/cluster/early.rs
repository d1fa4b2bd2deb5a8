//! Large transactions that other members apply before they commit, and that give way meanwhile.

use crate::large::{SCHEMA, check, insert, large};
use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure};
use postgres::Client;

/// Helpers that have begun to apply something on `big`, which no session of their member has locked.
const EARLY: &str = "SELECT count(DISTINCT pid) FROM pg_locks
     WHERE relation = 'big'::regclass AND mode = 'RowExclusiveLock' AND granted";

/// Begins a large transaction on member 1 with these statements, and waits until the others have applied a
/// good part of it.
fn begun(group: &TestGroup, sql: &str, pages: u32) -> Client {
    let mut client = large(group, 1);
    client
        .batch_execute(&format!("BEGIN; {sql}"))
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    for number in [2, 3] {
        let server = group.member(number).expect("member");
        let size = format!("SELECT (pg_relation_size('big') / 8192 >= {pages})::int4::int8");
        group.await_value(server, &size, 1);
        group.await_value(server, EARLY, 1);
    }
    client
}

pub fn await_given_up(group: &TestGroup, number: usize) {
    group.await_value(group.member(number).expect("member"), EARLY, 0);
}

/// A helper that has changed `big`, and its transaction.
pub struct AtWork {
    number: usize,
    xid: String,
}

/// Those of the members that follow, each with `big` locked in this mode.
pub fn at_work(group: &TestGroup, mode: &str) -> Vec<AtWork> {
    let sql = format!(
        "SELECT a.backend_xid::text FROM pg_stat_activity a JOIN pg_locks l USING (pid)
         WHERE l.relation = 'big'::regclass AND l.mode = '{mode}'"
    );
    let helper = |number| {
        let row = group.client(number).query_one(&sql, &[]);
        let xid = row.expect("a helper at work").get(0);
        AtWork { number, xid }
    };
    [2, 3].map(helper).into()
}

impl AtWork {
    /// Its transaction has committed, and so many rows are from it.
    pub fn await_rows(&self, group: &TestGroup, rows: i64) {
        let xid = &self.xid;
        let sql = format!("SELECT count(*) FROM big WHERE id > 0 AND xmin::text = '{xid}'");
        group.await_value(group.member(self.number).expect("member"), &sql, rows);
    }
}

#[test]
fn what_is_applied_early_is_what_is_committed() {
    let group = group("early", 3, SCHEMA);
    let update = "UPDATE big SET v = 'changed' WHERE id % 3 = 0";
    let sql = format!("{}; SAVEPOINT a; {update}; RELEASE a", insert(1, 60_000));
    let mut client = begun(&group, &sql, 300);
    let helpers = at_work(&group, "RowExclusiveLock");
    for number in 1..=3 {
        group.execute(number, "UPDATE small SET v = v + 1 WHERE id = 1");
    }
    client
        .batch_execute("DELETE FROM big WHERE id % 5 = 0 AND id > 0; COMMIT")
        .expect("nobody is in its way");
    check(&group, 48_000);
    helpers.iter().for_each(|h| h.await_rows(&group, 48_000));
    for server in group.running() {
        group.await_value(server, "SELECT v FROM small WHERE id = 1", 3);
    }
}

#[test]
fn what_is_applied_early_gives_way() {
    let group = group("early-way", 3, SCHEMA);
    // To a transaction of its member that changes the same row, and so wins.
    let sql = format!(
        "UPDATE big SET v = 'lost' WHERE id = -1; {}",
        insert(1, 30_000)
    );
    let mut loser = begun(&group, &sql, 50);
    group.execute(2, "UPDATE big SET v = 'won' WHERE id = -1");
    let error = loser.batch_execute("COMMIT").expect_err("it lost");
    assert!(is_serialization_failure(&error), "{error:?}");
    loser.batch_execute("ROLLBACK").expect("rollback");
    for number in [2, 3] {
        await_given_up(&group, number);
    }
    check(&group, 0);

    // To one that only locks, and lets it go.
    let mut client = begun(&group, &sql.replace("lost", "kept"), 50);
    let mut other = group.client(2);
    other
        .batch_execute("BEGIN; SELECT FROM big WHERE id = -1 FOR UPDATE")
        .expect("the lock");
    await_given_up(&group, 2);
    other.batch_execute("ROLLBACK").expect("rollback");
    // It is begun again when there is more of it.
    client
        .batch_execute(&insert(100_001, 160_000))
        .expect("rows");
    group.await_value(group.member(2).expect("member"), EARLY, 1);
    client.batch_execute("COMMIT").expect("nobody changed it");
    check(&group, 90_000);
    group.execute(1, "DELETE FROM big WHERE id > 100000");

    // To one that was there before.
    other
        .batch_execute("BEGIN; SELECT FROM big WHERE id = -2 FOR UPDATE")
        .expect("the lock");
    let mut client = large(&group, 1);
    client
        .batch_execute(&format!(
            "BEGIN; UPDATE big SET v = 'x' WHERE id = -2; {}",
            insert(30_001, 50_000)
        ))
        .expect("rows");
    group.await_value(group.member(3).expect("member"), EARLY, 1);
    await_given_up(&group, 2);
    other.batch_execute("ROLLBACK").expect("rollback");
    client.batch_execute("COMMIT").expect("nobody changed it");
    check(&group, 50_000);
}

#[test]
fn what_was_applied_early_and_rolled_back_at_the_origin_does_not_count() {
    let group = group("early-back", 3, SCHEMA);
    let sql = format!(
        "{}; SAVEPOINT a; {}",
        insert(1, 20_000),
        insert(20_001, 60_000)
    );
    let mut client = begun(&group, &sql, 250);
    client.batch_execute("ROLLBACK TO a").expect("rollback");
    client.batch_execute(&insert(60_001, 70_000)).expect("rows");
    client.batch_execute("COMMIT").expect("commit");
    check(&group, 30_000);

    let mut client = begun(&group, &insert(100_001, 160_000), 600);
    client.batch_execute("ROLLBACK").expect("rollback");
    for number in [2, 3] {
        await_given_up(&group, number);
    }
    check(&group, 30_000);

    // A member that dies in the middle, and is back before the end.
    let mut client = begun(&group, &insert(100_001, 160_000), 900);
    group.member(3).expect("member").kill().expect("kill");
    group.start(3);
    // The origin dies.
    client
        .batch_execute(&format!("COMMIT; BEGIN; {}", insert(200_001, 250_000)))
        .expect("commit");
    check(&group, 90_000);
    group.await_value(group.member(2).expect("member"), EARLY, 1);
    group.member(1).expect("member").kill().expect("kill");
    group.start(1);
    for number in [2, 3] {
        await_given_up(&group, number);
    }
    check(&group, 90_000);
}

/// The transaction in which a helper applies something on `big`.
fn applying(group: &TestGroup, number: usize) -> Option<String> {
    let sql = "SELECT min(a.backend_xid::text) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
         WHERE l.relation = 'big'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted";
    let row = group.client(number).query_one(sql, &[]).expect("a row");
    row.get(0)
}

#[test]
fn what_is_left_after_a_rollback_at_the_origin_is_applied_before_it_commits() {
    let group = group("early-anew", 3, SCHEMA);
    let sql = format!(
        "{}; SAVEPOINT a; {}",
        insert(1, 20_000),
        insert(20_001, 60_000)
    );
    let mut client = begun(&group, &sql, 250);
    let before: Vec<_> = (2..=3).map(|number| applying(&group, number)).collect();
    client
        .batch_execute(&format!("ROLLBACK TO a; {}", insert(60_001, 70_000)))
        .expect("rollback");
    let mut anew = Vec::new();
    for (number, before) in (2..=3).zip(before) {
        let begun = postgres_r::cluster::server::wait_for(PATIENCE, || {
            applying(&group, number).filter(|xid| before.as_ref() != Some(xid))
        });
        anew.push((number, begun.expect("it is begun anew")));
    }
    client.batch_execute("COMMIT").expect("commit");
    check(&group, 30_000);
    for (number, xid) in anew {
        let sql = format!("SELECT count(*) FROM big WHERE id > 0 AND xmin::text = '{xid}'");
        group.await_value(group.member(number).expect("member"), &sql, 30_000);
    }

    // Nothing follows but the COMMIT; and what was taken back had truncated.
    for undone in [
        insert(120_001, 160_000),
        format!("TRUNCATE big; {}", insert(1, 40_000)),
    ] {
        let mut client = large(&group, 1);
        client
            .batch_execute(&format!(
                "BEGIN; {}; SAVEPOINT a; {undone}; ROLLBACK TO a; COMMIT; DELETE FROM big WHERE id > 100000",
                insert(100_001, 120_000)
            ))
            .expect("nobody is in its way");
        check(&group, 30_000);
    }
}

#[test]
fn a_loop_that_catches_errors_sends_nothing_in_vain() {
    let group = group("early-loop", 3, SCHEMA);
    let sql = "DO $$ BEGIN FOR i IN 1..3000 LOOP BEGIN
             INSERT INTO big SELECT i * 10 + j, 'row ' || j FROM generate_series(0, 9) j;
             IF i % 3 = 0 THEN RAISE 'not this one'; END IF;
           EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$";
    let mut client = begun(&group, sql, 50);
    let begun: Vec<_> = (2..=3).map(|number| applying(&group, number)).collect();
    client.batch_execute("COMMIT").expect("commit");
    check(&group, 20_000);
    for (number, xid) in (2..=3).zip(begun) {
        let xid = xid.expect("a helper at work");
        let sql = format!("SELECT count(*) FROM big WHERE id > 0 AND xmin::text = '{xid}'");
        group.await_value(group.member(number).expect("member"), &sql, 20_000);
    }
}

#[test]
fn two_that_overlap_end_in_their_order() {
    let group = group("early-two", 3, SCHEMA);
    let mut first = large(&group, 1);
    let mut second = large(&group, 2);
    for (client, sql) in [
        (&mut first, insert(1, 40_000)),
        (&mut second, insert(30_001, 70_000)),
    ] {
        client
            .batch_execute(&format!("BEGIN; {sql}"))
            .expect("rows");
    }
    second.batch_execute("COMMIT").expect("it is the first");
    let error = first.batch_execute("COMMIT").expect_err("it has lost");
    assert!(is_serialization_failure(&error), "{error:?}");
    check(&group, 40_000);
}

#[test]
fn large_objects_are_applied_early() {
    let group = group("early-objects", 3, SCHEMA);
    let sql = format!(
        "SELECT lo_from_bytea(4711, ''); SELECT lo_unlink(lo_from_bytea(4712, '\\x00'));
         SELECT lo_put(4711, i * 2048, convert_to(rpad(i::text, 2048, md5(i::text)), 'UTF8')) FROM generate_series(0, 999) i;
         GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC; {}",
        insert(1, 20_000)
    );
    let mut client = begun(&group, &sql, 80);
    client
        .batch_execute("SELECT lo_truncate(lo_open(4711, 131072), 1500000); COMMIT")
        .expect("commit");
    check(&group, 20_000);
    let of = |number: usize| -> String {
        let sql = "SELECT md5(lo_get(4711)) || (SELECT string_agg(m::text, ' ') FROM pg_largeobject_metadata m)";
        group
            .client(number)
            .query_one(sql, &[])
            .expect("the object")
            .get(0)
    };
    for number in [2, 3] {
        assert_eq!(of(number), of(1), "member {number}");
    }
}
