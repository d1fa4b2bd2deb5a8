//! kill -9 under load: nothing acknowledged is lost, and the members agree.

use crate::support::{
    PATIENCE, Stop, TestGroup, group, group_with, is_serialization_failure, options, scale,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::wait_for;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const LEDGER: &str = "CREATE TABLE ledger (id int8 PRIMARY KEY, member int4, note text); CREATE TABLE hot (id int4 PRIMARY KEY, n int8); INSERT INTO hot SELECT i, 0 FROM generate_series(1, 4) i;";

/// What clients know of their commits.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<BTreeSet<i64>>,
    next: AtomicI64,
    stop: AtomicBool,
}

impl Ledger {
    /// Writes to a member until told to stop, over crashes and refusals; remembers every id whose
    /// COMMIT was answered.
    fn write(&self, group: &TestGroup, member: usize) {
        let mut client = None;
        while !self.stop.load(Ordering::Relaxed) {
            let server = group.member(member).expect("member");
            let Some(open) = client.as_mut() else {
                client = server.connect(&group.database).ok();
                continue;
            };
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let sql = format!(
                "BEGIN; UPDATE hot SET n = n + 1 WHERE id = {}; INSERT INTO ledger VALUES ({id}, {member}, repeat('x', 200)); COMMIT",
                id % 4 + 1
            );
            match postgres::Client::batch_execute(open, &sql) {
                Ok(()) => {
                    self.acknowledged.lock().expect("lock").insert(id);
                }
                Err(e) if is_serialization_failure(&e) => {
                    if open.batch_execute("ROLLBACK").is_err() {
                        client = None;
                    }
                }
                Err(_) => client = None,
            }
        }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().expect("lock").len()
    }

    /// Waits until so many more commits were acknowledged.
    fn await_progress(&self, more: usize) {
        let wanted = self.acknowledged() + more * scale() as usize;
        wait_for(PATIENCE, || (self.acknowledged() >= wanted).then_some(())).unwrap_or_else(|| {
            panic!(
                "only {} of {wanted} commits were acknowledged in time",
                self.acknowledged()
            )
        });
    }

    /// Every acknowledged row is on every member; the counters count exactly the rows that are there.
    fn check(&self, group: &TestGroup) {
        group.assert_identical();
        for server in group.running() {
            let mut client = server
                .connect(&group.database)
                .unwrap_or_else(|e| panic!("{e}"));
            let rows = client.query("SELECT id FROM ledger", &[]).expect("ledger");
            let there: BTreeSet<i64> = rows.iter().map(|r| r.get(0)).collect();
            let lost: Vec<i64> = self
                .acknowledged
                .lock()
                .expect("lock")
                .difference(&there)
                .copied()
                .collect();
            assert!(
                lost.is_empty(),
                "member {} lost acknowledged commits {lost:?}",
                server.number
            );
            let n: i64 = client
                .query_one("SELECT sum(n)::int8 FROM hot", &[])
                .expect("sum")
                .get(0);
            assert_eq!(
                n,
                there.len() as i64,
                "member {}: every commit counted once",
                server.number
            );
        }
    }
}

fn with_writers(group: &TestGroup, ledger: &Ledger, faults: impl FnOnce()) {
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let member = writer % group.servers.len() + 1;
            scope.spawn(move || ledger.write(group, member));
        }
        let _stop = Stop(&ledger.stop);
        faults();
    });
}

#[test]
fn a_killed_member_comes_back_and_nothing_acknowledged_is_missing() {
    let group = group("kill-one", 3, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        // Every member once, so that the leader is among them.
        for victim in [3, 1, 2] {
            ledger.await_progress(50);
            group
                .member(victim)
                .expect("member")
                .kill()
                .unwrap_or_else(|e| panic!("{e}"));
            ledger.await_progress(50);
            group.start(victim);
        }
        ledger.await_progress(50);
    });
    ledger.check(&group);
}

#[test]
fn all_members_killed_at_once_come_back_with_all_that_was_acknowledged() {
    let group = group("kill-all", 3, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        for round in 0..2 {
            ledger.await_progress(60);
            if round == 1 {
                group.execute(2, "CHECKPOINT");
            }
            for server in &group.servers {
                server.kill().unwrap_or_else(|e| panic!("{e}"));
            }
            std::thread::scope(|scope| {
                for number in [2, 3, 1] {
                    let group = &group;
                    scope.spawn(move || group.start(number));
                }
            });
        }
        ledger.await_progress(60);
    });
    ledger.check(&group);
}

#[test]
fn a_group_of_one_survives_kills() {
    let group = group("kill-lone", 1, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        for _ in 0..3 {
            ledger.await_progress(50);
            let server = group.member(1).expect("member");
            server.kill().unwrap_or_else(|e| panic!("{e}"));
            group.start(1);
        }
        ledger.await_progress(20);
    });
    ledger.check(&group);
}

#[test]
fn a_killed_process_restarts_its_server_only() {
    let group = group("kill-process", 3, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        let server = group.member(2).expect("member");
        for kind in ["replication coordinator", "replication helper"] {
            ledger.await_progress(50);
            let sql = format!(
                "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%{kind}%' LIMIT 1"
            );
            let pid: i32 = postgres_r::cluster::group::query_one(server, "postgres", &sql)
                .unwrap_or_else(|e| panic!("{e}"));
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            )
            .expect("kill");
            let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            wait_for(PATIENCE, || {
                postgres_r::cluster::group::query_one::<i64>(server, "postgres", &gone)
                    .ok()
                    .filter(|n| *n == 0)
            })
            .expect("the killed process is gone");
            postgres_r::cluster::status::wait_online(server, PATIENCE)
                .unwrap_or_else(|e| panic!("{e}"));
        }
        ledger.await_progress(50);
    });
    ledger.check(&group);
}

#[test]
fn orderly_stops_lose_nothing() {
    let group = group("stops", 3, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        for number in [1, 2, 3] {
            ledger.await_progress(40);
            let server = group.member(number).expect("member");
            server
                .stop(postgres_r::cluster::server::StopMode::Fast)
                .unwrap_or_else(|e| panic!("{e}"));
            ledger.await_progress(40);
            group.start(number);
        }
    });
    ledger.check(&group);
}

/// A process of a member, as pg_stat_activity calls it.
fn process(group: &TestGroup, member: usize, kind: &str) -> nix::unistd::Pid {
    let server = group.member(member).expect("member");
    let sql =
        format!("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%{kind}%' LIMIT 1");
    let pid = wait_for(PATIENCE, || {
        postgres_r::cluster::group::query_one::<i32>(server, "postgres", &sql).ok()
    });
    nix::unistd::Pid::from_raw(pid.unwrap_or_else(|| panic!("member {member} has no {kind}")))
}

#[test]
fn a_coordinator_that_ends_in_order_takes_no_memory_with_it() {
    let mut options = options(3);
    // So little memory that every block is soon used again, by whoever has it by mistake.
    options
        .configuration
        .push_str("replication_imessage_buffers = 2MB\n");
    let group = group_with("end-coordinator", options, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        for round in 0..6 {
            ledger.await_progress(60);
            let member = 1 + round % 3;
            let coordinator = process(&group, member, "replication coordinator");
            nix::sys::signal::kill(coordinator, nix::sys::signal::Signal::SIGTERM).expect("end");
            wait_for(PATIENCE, || {
                (process(&group, member, "replication coordinator") != coordinator).then_some(())
            })
            .expect("another coordinator");
            let server = group.member(member).expect("member");
            postgres_r::cluster::status::wait_online(server, PATIENCE)
                .unwrap_or_else(|e| panic!("{e}"));
        }
        ledger.await_progress(100);
    });
    ledger.check(&group);
}

#[test]
fn helpers_that_end_in_order_leave_their_work_to_others() {
    let mut options = options(3);
    options
        .configuration
        .push_str("replication_imessage_buffers = 2MB\n");
    let group = group_with("end-helpers", options, LEDGER);
    let ledger = Ledger::default();
    with_writers(&group, &ledger, || {
        let server = group.member(2).expect("member");
        for _ in 0..10 {
            ledger.await_progress(30);
            server
                .execute(
                    "postgres",
                    "ending the helpers",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'replication helper'",
                )
                .unwrap_or_else(|e| panic!("{e}"));
        }
        ledger.await_progress(100);
    });
    ledger.check(&group);
}

#[test]
fn an_error_between_the_commit_turn_and_the_commit_record_is_a_crash() {
    let group = group(
        "error-in-turn",
        3,
        "CREATE EXTENSION injection_points; CREATE TABLE t (id int4 PRIMARY KEY);",
    );
    let mut client = group.client(1);
    client
        .batch_execute(
            "SELECT injection_points_set_local();
             SELECT injection_points_attach('replication-commit-turn', 'error');",
        )
        .expect("attach");
    client
        .batch_execute("INSERT INTO t VALUES (1)")
        .expect_err("the turn ends in an error");
    // The error may come a moment before the end of the session.
    wait_for(PATIENCE, || {
        let _ = client.batch_execute("");
        client.is_closed().then_some(())
    })
    .expect("the session goes down with its server");
    let server = group.member(1).expect("member");
    postgres_r::cluster::status::wait_online(server, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    // The group had certified it, so it is there, and what comes after it too.
    group.execute(1, "INSERT INTO t VALUES (2)");
    for server in &group.servers {
        group.await_value(server, "SELECT count(*) FROM t", 2);
    }
    group.assert_identical();
}

#[test]
fn a_session_whose_part_is_lost_with_its_coordinator_is_told_so() {
    let group = group(
        "half-lost",
        3,
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t VALUES (1, 0);",
    );
    let server = group.member(1).expect("member");
    let signal = |pid: i32, signal: Signal| kill(Pid::from_raw(pid), signal).expect("signal");
    let await_one = |sql: &str| {
        wait_for(PATIENCE, || {
            query_one::<i64>(server, "postgres", sql)
                .ok()
                .filter(|n| *n > 0)
        })
        .expect(sql)
    };
    // A helper of member 1 waits for a session that can't hear, so nothing behind it has its turn.
    let mut deaf = group.client(1);
    let pid: i32 = deaf
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("pid")
        .get(0);
    deaf.batch_execute("BEGIN; SELECT * FROM t FOR UPDATE")
        .expect("lock");
    signal(pid, Signal::SIGSTOP);
    group.execute(2, "UPDATE t SET v = 1");
    await_one(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'replication helper' AND wait_event_type = 'Lock'",
    );
    let mut client = group.client(1);
    client
        .batch_execute("CREATE TEMP TABLE mine (v int4)")
        .expect("temporary table");
    let session = std::thread::spawn(move || {
        let outcome = client.batch_execute(
            "BEGIN; INSERT INTO mine VALUES (1); INSERT INTO t VALUES (2, 0); COMMIT",
        );
        (client, outcome)
    });
    await_one("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ReplicationCommitTurn'");
    let coordinator: i32 = query_one(
        server,
        "postgres",
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'replication coordinator'",
    )
    .unwrap_or_else(|e| panic!("{e}"));
    signal(coordinator, Signal::SIGTERM);
    await_one(&format!(
        "SELECT 1 - count(*) FROM pg_stat_activity WHERE pid = {coordinator}"
    ));
    signal(pid, Signal::SIGCONT);
    let (mut client, outcome) = session.join().expect("session");
    let error = outcome.expect_err("its temporary row is lost");
    let db = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(db.code().code(), "08007", "{db:?}");
    assert!(
        db.detail()
            .is_some_and(|d| d.contains("committed on all members")),
        "{db:?}"
    );
    let count = |client: &mut postgres::Client, sql: &str| {
        client.query_one(sql, &[]).expect(sql).get::<_, i64>(0)
    };
    assert_eq!(count(&mut client, "SELECT count(*) FROM mine"), 0);
    postgres_r::cluster::status::wait_online(server, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    group.assert_identical();
    assert_eq!(count(&mut client, "SELECT count(*) FROM t WHERE id = 2"), 1);
    client
        .batch_execute("INSERT INTO t VALUES (3, 0)")
        .expect("the session goes on");
    drop(deaf);
    group.assert_identical();
}
