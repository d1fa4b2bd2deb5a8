//! A long transaction against a stream of short ones of another member, which change the same rows and
//! are always ordered before it.

use crate::support::{PATIENCE, Stop, TestGroup, group, is_serialization_failure};
use postgres::error::SqlState;
use postgres::{Client, Error};
use postgres_r::cluster::server::wait_for;
use postgres_r::limits::LOSSES_BEFORE_RESERVATION;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const SCHEMA: &str = "CREATE TABLE hot (id int4 PRIMARY KEY, v int4 NOT NULL); INSERT INTO hot SELECT i, 0 FROM generate_series(1, 50) i;
                      CREATE TABLE cold (id int4 PRIMARY KEY);";

/// Short transactions, one after the other, on member 2.
#[derive(Default)]
struct Stream {
    over: AtomicBool,
    committed: AtomicU64,
    /// For the long one's sake.
    refused: AtomicU64,
}

impl Stream {
    fn run(&self, mut client: Client) {
        let mut id = 0;
        while !self.over.load(Relaxed) {
            id = id % 50 + 1;
            match client.execute("UPDATE hot SET v = v + 1 WHERE id = $1", &[&id]) {
                Ok(_) => self.committed.fetch_add(1, Relaxed),
                Err(e) if is_reserved(&e) => self.refused.fetch_add(1, Relaxed),
                Err(e) if is_serialization_failure(&e) => continue,
                Err(e) => panic!("{e:?}"),
            };
        }
    }

    /// Waits until so many more short ones had their turn, refused or not.
    fn await_turns(&self, more: u64) {
        let turns = || self.committed.load(Relaxed) + self.refused.load(Relaxed);
        let wanted = turns() + more;
        wait_for(PATIENCE, || (turns() >= wanted).then_some(())).expect("the stream goes on");
    }

    fn await_commits(&self, more: u64) {
        let wanted = self.committed.load(Relaxed) + more;
        let there = || (self.committed.load(Relaxed) >= wanted).then_some(());
        wait_for(PATIENCE, there).expect("short transactions commit again");
    }
}

fn is_reserved(error: &Error) -> bool {
    let detail = error.as_db_error().and_then(|e| e.detail());
    is_serialization_failure(error)
        && detail.is_some_and(|d| d.contains("Table \"hot\" is reserved by member 1"))
}

/// Runs `test` beside a stream.
fn beside_a_stream(group: &TestGroup, test: impl FnOnce(&Stream)) {
    let stream = Stream::default();
    std::thread::scope(|scope| {
        let client = group.client(2);
        scope.spawn(|| stream.run(client));
        let _stop = Stop(&stream.over);
        test(&stream);
    });
}

/// Tries a transaction until it commits; how often it lost.
fn losses(
    client: &mut Client,
    what: &str,
    mut long: impl FnMut(&mut Client) -> Result<(), Error>,
) -> u32 {
    for losses in 0..LOSSES_BEFORE_RESERVATION + 2 {
        let outcome = client.batch_execute("BEGIN").and_then(|()| long(client));
        match outcome.and_then(|()| client.batch_execute("COMMIT")) {
            Ok(()) => return losses,
            Err(e) if is_serialization_failure(&e) => {
                client.batch_execute("ROLLBACK").expect("rollback");
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    panic!("it never gets through: {what}");
}

#[test]
fn a_long_writer_gets_through_after_a_bounded_number_of_losses() {
    let group = group("fairness", 2, SCHEMA);
    let mut client = group.client(1);
    beside_a_stream(&group, |stream| {
        // Rows that were read must not change before they are written.
        let under_row_locks = losses(&mut client, "under row locks", |client| {
            client.batch_execute("SELECT v FROM hot FOR UPDATE")?;
            stream.await_turns(20);
            client.batch_execute("UPDATE hot SET v = v + 1000")
        });
        // Each try that has no reservation loses: there is no other way out.
        assert_eq!(under_row_locks, LOSSES_BEFORE_RESERVATION);
        assert!(stream.refused.load(Relaxed) >= 20);
        stream.await_commits(50);

        let under_a_table_lock = losses(&mut client, "under a table lock", |client| {
            client.batch_execute("LOCK TABLE hot IN SHARE ROW EXCLUSIVE MODE")?;
            stream.await_turns(20);
            client.batch_execute("UPDATE hot SET v = v + 1000")
        });
        assert_eq!(under_a_table_lock, LOSSES_BEFORE_RESERVATION);
        stream.await_commits(50);

        // The snapshot is older than what it meets.
        client
            .batch_execute("SET default_transaction_isolation = 'repeatable read'")
            .expect("set");
        let in_one_snapshot = losses(&mut client, "in one snapshot", |client| {
            client.batch_execute("SELECT sum(v) FROM hot")?;
            stream.await_turns(20);
            client.batch_execute("UPDATE hot SET v = v + 1000")
        });
        assert_eq!(in_one_snapshot, LOSSES_BEFORE_RESERVATION);
        stream.await_commits(50);
    });
    let sql = "SELECT min(v / 1000)::int8 FROM hot";
    group.await_value(group.member(2).expect("member"), sql, 3);
    group.assert_identical();
}

/// A session that has lost until its member has the table reserved, and is in the transaction for which.
fn reserve(group: &TestGroup, stream: &Stream) -> Client {
    let mut client = group.client(1);
    for _ in 0..LOSSES_BEFORE_RESERVATION {
        let overtaken = client
            .batch_execute("BEGIN; SELECT v FROM hot FOR UPDATE")
            .and_then(|()| {
                stream.await_commits(20);
                client.batch_execute("UPDATE hot SET v = v; COMMIT")
            });
        let error = overtaken.expect_err("others were faster");
        assert!(is_serialization_failure(&error), "{error:?}");
        client.batch_execute("ROLLBACK").expect("rollback");
    }
    client.batch_execute("BEGIN; SELECT 1").expect("reserved");
    let refused = stream.refused.load(Relaxed);
    wait_for(PATIENCE, || {
        (stream.refused.load(Relaxed) > refused + 5).then_some(())
    })
    .expect("short transactions are refused");
    client
}

#[test]
fn a_refused_statement_is_retried_when_the_reservation_is_over() {
    let group = group("refused", 2, SCHEMA);
    let second = group.member(2).expect("member");
    let mut cancel = group.client(2);
    let update = "UPDATE hot SET v = v + 1 WHERE id = 1";
    for is_cancelled in [false, true] {
        let mut holder = None;
        beside_a_stream(&group, |stream| holder = Some(reserve(&group, stream)));
        let mut holder = holder.expect("it is reserved");
        let mut client = group.client(2);
        // At once it would be refused again.
        client
            .batch_execute("SET replication_retry = 1")
            .expect("set");
        let refused = std::thread::spawn(move || client.execute(update, &[]));
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ReplicationConsistency'";
        group.await_value(second, waiting, 1);
        if is_cancelled {
            cancel
                .batch_execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'ReplicationConsistency'")
                .expect("cancel");
            let error = refused.join().expect("session").expect_err("cancelled");
            assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
            holder.batch_execute("ROLLBACK").expect("rollback");
        } else {
            holder
                .batch_execute("UPDATE hot SET v = 1000 WHERE id = 1; COMMIT")
                .expect("nobody is ordered before it");
            let updated = refused.join().expect("session");
            assert_eq!(updated.expect("its turn has come"), 1);
            group.await_value(second, "SELECT v::int8 FROM hot WHERE id = 1", 1001);
        }
    }
    let retries = "SELECT sum(retries)::int8 FROM pg_stat_replication_conflicts";
    group.await_value(second, retries, 2);
    group.assert_identical();
}

#[test]
fn a_reservation_ends_with_what_it_was_for_however_that_ends() {
    let group = group("reservation", 3, SCHEMA);
    beside_a_stream(&group, |stream| {
        let mut client = reserve(&group, stream);
        client.batch_execute("ROLLBACK").expect("rollback");
        stream.await_commits(50);

        let mut client = reserve(&group, stream);
        client
            .batch_execute("INSERT INTO cold VALUES (1); COMMIT")
            .expect("it may do something else");
        stream.await_commits(50);

        drop(reserve(&group, stream));
        stream.await_commits(50);

        // Nobody is left to end it but the others.
        let client = reserve(&group, stream);
        group.member(1).expect("member").kill().expect("kill");
        drop(client);
        stream.await_commits(50);
    });
    group.start(1);
    group.assert_identical();
}
