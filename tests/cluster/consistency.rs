//! `replication_consistency`: what a session sees of the others, and they of it.

use crate::support::{PATIENCE, TestGroup, group};
use postgres::Client;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::wait_for;

const TABLE: &str =
    "CREATE EXTENSION injection_points; CREATE TABLE t (id int4 PRIMARY KEY, v int4);";

fn client(group: &TestGroup, number: usize, consistency: &str) -> Client {
    group.client_with(number, "replication_consistency", consistency)
}

fn rows(client: &mut Client) -> i64 {
    let row = client.query_one("SELECT count(*) FROM t", &[]);
    row.expect("count").get(0)
}

/// Commits on a member are durable, but do not become visible there, until this is dropped.
struct Held<'a>(&'a TestGroup, usize);

impl<'a> Held<'a> {
    fn on(group: &'a TestGroup, number: usize) -> Held<'a> {
        let sql = "SELECT injection_points_attach('replication-commit-visible', 'wait')";
        group.execute(number, sql);
        Held(group, number)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Held(group, number) = *self;
        await_waiting(group, number, "replication-commit-visible");
        group.execute(
            number,
            "SELECT injection_points_detach('replication-commit-visible');
             SELECT injection_points_wakeup('replication-commit-visible')",
        );
    }
}

/// Waits until somebody waits for this on a member; his process.
fn await_waiting(group: &TestGroup, number: usize, event: &str) -> i32 {
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE wait_event = '{event}'");
    let server = group.member(number).expect("member");
    wait_for(PATIENCE, || query_one(server, "postgres", &sql).ok())
        .unwrap_or_else(|| panic!("nobody waits in {event} on member {number}"))
}

#[test]
fn a_reader_waits_for_what_was_acknowledged_before_it_began() {
    let group = group("before", 3, TABLE);
    let held = Held::on(&group, 2);
    group.execute(1, "INSERT INTO t VALUES (1, 1)");
    let mut eventual = client(&group, 2, "eventual");
    assert_eq!(rows(&mut eventual), 0, "member 2 does not show it yet");
    let mut before = client(&group, 2, "before");
    let reader = std::thread::spawn(move || {
        let seen = rows(&mut before);
        (before, seen)
    });
    await_waiting(&group, 2, "ReplicationConsistency");
    assert_eq!(rows(&mut eventual), 0);
    drop(held);
    let (mut before, seen) = reader.join().expect("the reader");
    assert_eq!(seen, 1);

    // A transaction asks once, when it takes its first snapshot.
    let mut transaction = before
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .start()
        .expect("begin");
    let count = |t: &mut postgres::Transaction<'_>| -> i64 {
        let row = t.query_one("SELECT count(*) FROM t", &[]);
        row.expect("count").get(0)
    };
    assert_eq!(count(&mut transaction), 1);
    group.execute(3, "INSERT INTO t VALUES (2, 1)");
    assert_eq!(count(&mut transaction), 1);
    drop(transaction);
    assert_eq!(rows(&mut before), 2);

    // A wait can be cancelled, and leaves nothing behind.
    let held = Held::on(&group, 2);
    group.execute(1, "INSERT INTO t VALUES (3, 1)");
    let reader = std::thread::spawn(move || {
        let error = before.query_one("SELECT count(*) FROM t", &[]).err();
        (before, error.and_then(|e| e.code().cloned()))
    });
    let pid = await_waiting(&group, 2, "ReplicationConsistency");
    group.execute(2, &format!("SELECT pg_cancel_backend({pid})"));
    let (mut before, code) = reader.join().expect("the reader");
    assert_eq!(code, Some(postgres::error::SqlState::QUERY_CANCELED));
    drop(held);
    assert_eq!(rows(&mut before), 3);
}

#[test]
fn a_commit_waits_until_all_members_show_it() {
    let group = group("after", 3, TABLE);
    let insert = |mut after: Client, id: i32| {
        std::thread::spawn(move || {
            let done = after.execute("INSERT INTO t VALUES ($1, 1)", &[&id]);
            done.expect("insert");
            after
        })
    };
    let mut here = client(&group, 1, "eventual");
    let held = Held::on(&group, 2);
    let writer = insert(client(&group, 1, "after"), 1);
    await_waiting(&group, 1, "ReplicationConsistency");
    assert_eq!(rows(&mut here), 1, "it is committed");
    // It holds nothing that others need.
    here.execute("UPDATE t SET v = 2", &[]).expect("update");
    assert!(!writer.is_finished());
    drop(held);
    let after = writer.join().expect("the writer");

    // A cancel ends the wait and not the transaction.
    let held = Held::on(&group, 2);
    let writer = insert(after, 2);
    let pid = await_waiting(&group, 1, "ReplicationConsistency");
    group.execute(1, &format!("SELECT pg_cancel_backend({pid})"));
    let mut after = writer.join().expect("the writer");
    assert_eq!(rows(&mut after), 2);

    drop(held);

    // A termination ends the session and not the server, of which other sessions would know.
    let held = Held::on(&group, 2);
    let writer =
        std::thread::spawn(move || after.execute("INSERT INTO t VALUES (3, 1)", &[]).err());
    let pid = await_waiting(&group, 1, "ReplicationConsistency");
    here.execute("SELECT pg_terminate_backend($1)", &[&pid])
        .expect("terminate");
    drop(writer.join().expect("the writer"));
    assert_eq!(rows(&mut here), 3);
    drop(held);
    group.assert_identical();
}

#[test]
fn with_either_a_session_elsewhere_sees_what_another_was_told() {
    let group = group("either", 3, TABLE);
    let (mut eventual, mut after): (Vec<_>, Vec<_>) = (1..=3)
        .map(|n| (client(&group, n, "eventual"), client(&group, n, "after")))
        .unzip();
    let mut before: Vec<_> = (1..=3).map(|n| client(&group, n, "before")).collect();
    for i in 0..60i32 {
        let (from, to) = (i as usize % 3, (i as usize + 1 + i as usize / 3 % 2) % 3);
        let (writers, readers) = if i % 2 == 0 {
            (&mut after, &mut eventual)
        } else {
            (&mut eventual, &mut before)
        };
        let done = writers[from].execute("INSERT INTO t VALUES ($1, 1)", &[&i]);
        done.expect("insert");
        let seen = rows(&mut readers[to]);
        assert_eq!(
            seen,
            i64::from(i) + 1,
            "member {} after {}",
            to + 1,
            from + 1
        );
    }
    group.assert_identical();
}
