//! Subscriptions that feed a replicated database: one member runs them, another goes on when it is gone, and
//! every transaction of the publisher is in the group once.

use crate::support::{
    PATIENCE, Stop, TestGroup, group_with, is_serialization_failure, options, scale,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres_r::cluster::server::{StopMode, wait_for};
use postgres_r::cluster::{Server, network};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const TABLES: &str = "CREATE TABLE keyed (id int8 PRIMARY KEY, note text);
    CREATE TABLE plain (a int8, note text);
    CREATE TABLE log (n int8);
    CREATE TABLE hot (id int4 PRIMARY KEY, v int8, w int8 DEFAULT 0) WITH (fillfactor = 50);
    CREATE TABLE mark (id int8 PRIMARY KEY);";

/// The server outside, and the group that subscribes there.
struct Fed {
    // Dropped first: a publisher that is stopped waits for nobody then.
    group: TestGroup,
    publisher: TestGroup,
    marks: AtomicI64,
}

/// A server that publishes what is in [`TABLES`] and `contents`.
fn publisher(name: &str, contents: &str) -> TestGroup {
    let mut options = options(1);
    options.configuration.push_str(
        "wal_level = logical\nlogical_decoding_work_mem = 64kB\nwal_sender_timeout = 3s\n",
    );
    let init = format!(
        "{TABLES} ALTER TABLE plain REPLICA IDENTITY FULL;
         CREATE PUBLICATION p FOR TABLE keyed, plain, log, mark, hot (id, v); {contents}"
    );
    let publisher = group_with(&format!("{name}-publisher"), options, &init);
    publisher.execute(1, "ALTER DATABASE app STOP REPLICATION");
    publisher
}

/// Both, when the group has what was published before.
fn fed(name: &str, with: &str, contents: &str) -> Fed {
    let publisher = publisher(name, contents);
    let mut options = options(1);
    options
        .configuration
        .push_str("wal_retrieve_retry_interval = 500ms\nreplication_changeset_memory = '64kB'\n");
    // Without a group yet.
    let mut group = group_with(name, options, TABLES);
    group.execute(1, "ALTER DATABASE app STOP REPLICATION");
    let url = publisher.member(1).expect("publisher").url("app");
    group.execute(
        1,
        &format!("CREATE SUBSCRIPTION s CONNECTION '{url}' PUBLICATION p WITH ({with})"),
    );
    let unready = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
    group.await_value(group.member(1).expect("member"), unready, 0);
    group.execute(1, "ALTER DATABASE app START REPLICATION IN GROUP app");
    for _ in 2..=3 {
        group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    }
    let fed = Fed {
        group,
        publisher,
        marks: AtomicI64::new(0),
    };
    fed.catch_up();
    fed
}

fn text(server: &Server, sql: &str) -> Option<String> {
    let mut client = server.connect("app").ok()?;
    client.query_one(sql, &[]).ok()?.get(0)
}

const WORKERS: &str = "SELECT count(*)::text FROM pg_stat_subscription WHERE worker_type = 'apply' AND pid IS NOT NULL";

const COORDINATOR: &str = "replication coordinator";
const HELPER: &str = "replication helper";
const APPLY_WORKER: &str = "logical replication apply worker";

/// The processes of a kind that a member has, once it has one.
fn processes(server: &Server, kind: &str) -> Vec<Pid> {
    let sql = format!(
        "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type = '{kind}'"
    );
    let pids = wait_for(PATIENCE, || text(server, &sql)).expect(kind);
    let pid = |p: &str| Pid::from_raw(p.parse().expect("a number"));
    pids.split(' ').map(pid).collect()
}

fn signal(pid: &Pid, signal: Signal) {
    kill(*pid, signal).expect("the process is there");
}

/// Goes on when dropped, also by a panic: a server with a process that is stopped does not end.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Stopped {
        signal(&pid, Signal::SIGSTOP);
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
    Stop,
}

impl Fed {
    /// The members that run beside this one.
    fn others(&self, number: usize) -> impl Iterator<Item = &Server> {
        self.group.running().filter(move |s| s.number != number)
    }

    fn publish(&self, sql: &str) {
        self.publisher.execute(1, sql);
    }

    fn publishing(&self) -> &Server {
        self.publisher.member(1).expect("publisher")
    }

    /// Waits until all members that run have what was published so far.
    fn catch_up(&self) {
        let id = self.marks.fetch_add(1, Ordering::Relaxed);
        self.publish(&format!("INSERT INTO mark VALUES ({id})"));
        for server in self.group.running() {
            let sql = format!("SELECT count(*) FROM mark WHERE id = {id}");
            self.group.await_value(server, &sql, 1);
        }
    }

    /// The member that runs the subscription; waits until it is exactly one.
    fn runner(&self) -> usize {
        let running = wait_for(PATIENCE, || {
            let workers = self.group.running().map(|s| (s.number, text(s, WORKERS)));
            let running: Vec<usize> = workers
                .filter(|(_, workers)| workers.as_deref() == Some("1"))
                .map(|(number, _)| number)
                .collect();
            (running.len() == 1).then(|| running[0])
        });
        running.expect("one member runs the subscription")
    }

    /// All members have what is published, no more and no less, and know as much of where they are.
    fn assert_equal(&self, tables: &[&str]) {
        self.catch_up();
        self.group.assert_identical();
        for table in tables {
            let sql = format!(
                "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text)), '') FROM {table} t"
            );
            let wanted = text(self.publishing(), &sql);
            for server in self.group.running() {
                let number = server.number;
                assert_eq!(text(server, &sql), wanted, "{table} on member {number}");
            }
        }
        let sql = "SELECT string_agg(external_id || ' ' || remote_lsn, ',' ORDER BY external_id) FROM pg_replication_origin_status WHERE remote_lsn <> '0/0'";
        let known: Vec<_> = self.group.running().map(|s| text(s, sql)).collect();
        assert!(known[0].is_some(), "a position");
        assert!(known.iter().all(|k| *k == known[0]), "{known:?}");
    }

    /// Waits until this member has received some more of what [`Fed::write`] writes.
    fn await_progress(&self, server: &Server) {
        let sql = "SELECT count(*)::text FROM log";
        let count = || text(server, sql).and_then(|c| c.parse::<u64>().ok());
        let before = wait_for(PATIENCE, count).expect("it answers");
        let wanted = before + 20 * u64::from(scale());
        let more = wait_for(PATIENCE, || count().filter(|now| *now >= wanted));
        assert!(more.is_some(), "member {} receives more", server.number);
    }

    /// Publishes small transactions until told to stop.
    fn write(&self, stop: &AtomicBool) {
        let mut client = self.publisher.client(1);
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            let sql = format!(
                "BEGIN; INSERT INTO log VALUES ({n}); INSERT INTO keyed VALUES ({n} + 1000000, 'x');
                 UPDATE hot SET v = v + 1 WHERE id = {n} % 3 + 1; DELETE FROM keyed WHERE id = {n} + 999990; COMMIT"
            );
            client.batch_execute(&sql).expect("it publishes");
        }
    }
}

const HOT: &str = "INSERT INTO hot SELECT i, 0, 0 FROM generate_series(1, 3) i;";

#[test]
fn what_is_published_is_on_all_members() {
    let contents = format!(
        "{HOT} INSERT INTO keyed SELECT i, 'old' FROM generate_series(1, 100) i;
         INSERT INTO plain SELECT i % 10, 'old' FROM generate_series(1, 50) i;"
    );
    for streaming in ["off", "on", "parallel"] {
        let fed = fed(
            &format!("fed-{streaming}"),
            &format!("streaming = {streaming}"),
            &contents,
        );
        let all = ["keyed", "plain", "log"];
        fed.runner();
        fed.assert_equal(&all);
        fed.publish("INSERT INTO keyed SELECT i, 'new' FROM generate_series(101, 200) i");
        fed.publish("UPDATE keyed SET id = id + 1000, note = note || '!' WHERE id % 7 = 0");
        fed.publish("DELETE FROM keyed WHERE id % 5 = 0; UPDATE plain SET note = 'new' WHERE a < 5; DELETE FROM plain WHERE a = 7");
        fed.publish("BEGIN; SAVEPOINT a; INSERT INTO log VALUES (-1); ROLLBACK TO a; INSERT INTO log VALUES (-2); COMMIT");
        fed.assert_equal(&all);
        // Larger than what a publisher keeps until the commit, and than what a changeset may have in one piece.
        fed.publish("INSERT INTO log SELECT i FROM generate_series(1, 200000) i");
        fed.publish("BEGIN; INSERT INTO log SELECT i FROM generate_series(1, 20000) i; ROLLBACK");
        fed.publish(
            "BEGIN; TRUNCATE keyed; INSERT INTO keyed SELECT i, repeat('y', 100) FROM generate_series(1, 20000) i; COMMIT",
        );
        fed.assert_equal(&all);
        fed.runner();
    }
}

#[test]
fn another_member_goes_on_and_nothing_is_there_twice_or_missing() {
    let fed = fed("fed-faults", "streaming = parallel", HOT);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| fed.write(&stop));
        for fault in [Fault::Kill, Fault::Pause, Fault::Kill, Fault::Stop] {
            let runner = fed.runner();
            let server = fed.group.member(runner).expect("member");
            fed.await_progress(server);
            match fault {
                Fault::Kill => server.kill(),
                Fault::Pause => server.signal_all(Signal::SIGSTOP),
                Fault::Stop => server.stop(StopMode::Fast),
            }
            .unwrap_or_else(|e| panic!("{e}"));
            for other in fed.others(runner) {
                fed.await_progress(other);
            }
            if fault == Fault::Pause {
                let goes_on = server.signal_all(Signal::SIGCONT);
                goes_on.unwrap_or_else(|e| panic!("{e}"));
            } else {
                fed.group.start(runner);
            }
            fed.await_progress(server);
        }
        // The coordinator of the one that runs it.
        let runner = fed.group.member(fed.runner()).expect("member");
        signal(&processes(runner, COORDINATOR)[0], Signal::SIGTERM);
        fed.group.await_online(runner.number);
        fed.await_progress(runner);
    });
    let publisher = fed.publishing();
    let stopped = publisher.stop(StopMode::Fast);
    stopped.unwrap_or_else(|e| panic!("{e}"));
    publisher.start(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    fed.assert_equal(&["keyed", "log"]);
    let v = "SELECT string_agg(v::text, ',' ORDER BY id) FROM hot";
    let member = fed.group.member(1).expect("member");
    assert_eq!(text(member, v), text(fed.publishing(), v));
}

#[test]
fn a_member_that_is_cut_off_lets_go_of_the_publisher() {
    if !network::enter_own().unwrap_or_else(|e| panic!("{e}")) {
        eprintln!("skipped: only root can make a network namespace");
        return;
    }
    let fed = fed("fed-cut", "streaming = on", HOT);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| fed.write(&stop));
        let runner = fed.runner();
        let server = fed.group.member(runner).expect("member");
        fed.await_progress(server);
        network::cut(&fed.group, server).unwrap_or_else(|e| panic!("{e}"));
        for other in fed.others(runner) {
            fed.await_progress(other);
        }
        assert_ne!(fed.runner(), runner);
        network::heal(server).unwrap_or_else(|e| panic!("{e}"));
        fed.await_progress(server);
    });
    fed.assert_equal(&["keyed", "log"]);
}

#[test]
fn a_subscription_gives_way_and_goes_on() {
    let fed = fed("fed-conflicts", "streaming = off", HOT);
    let stop = AtomicBool::new(false);
    let written = AtomicI64::new(0);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| fed.write(&stop));
        for number in 1..=3 {
            let (fed, stop, written) = (&fed, &stop, &written);
            scope.spawn(move || {
                let mut client = fed.group.client(number);
                while !stop.load(Ordering::Relaxed) {
                    match client.batch_execute("UPDATE hot SET w = w + 1 WHERE id = 2") {
                        Ok(()) => drop(written.fetch_add(1, Ordering::Relaxed)),
                        Err(e) if is_serialization_failure(&e) => {}
                        Err(e) => panic!("{e:?}"),
                    }
                }
            });
        }
        let mut lost = || {
            let conflicts = fed.group.running().map(|s| {
                let sql = "SELECT (sum(certification_failures) + sum(local_victims))::int8::text FROM pg_stat_replication_conflicts";
                text(s, sql).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0)
            });
            (conflicts.sum::<u64>() > 20).then_some(())
        };
        wait_for(PATIENCE, &mut lost).expect("they meet");
        for server in fed.group.running() {
            fed.await_progress(server);
        }
    });
    fed.assert_equal(&["keyed", "log"]);
    let member = fed.group.member(1).expect("member");
    let v = "SELECT string_agg(v::text, ',' ORDER BY id) FROM hot";
    assert_eq!(text(member, v), text(fed.publishing(), v));
    let w = text(member, "SELECT sum(w)::text FROM hot");
    assert_eq!(w, Some(written.load(Ordering::Relaxed).to_string()));
}

#[test]
fn who_has_left_the_group_receives_nothing() {
    let fed = fed("fed-leaves", "streaming = on", HOT);
    let state = "SELECT subenabled || ' ' || coalesce(subslotname, 'none') FROM pg_subscription";
    let leave = "ALTER DATABASE app STOP REPLICATION";
    let mut left = Vec::new();
    for members in [2, 1] {
        let runner = fed.runner();
        fed.group.execute(runner, leave);
        let server = fed.group.member(runner).expect("member");
        assert_eq!(text(server, state).as_deref(), Some("false none"));
        left.push(server.clone());
        fed.publish(&format!("INSERT INTO log VALUES ({members})"));
        let sql = format!("SELECT count(*) FROM log WHERE n = {members}");
        let ex = |s: &&Server| !left.iter().any(|l| l.number == s.number);
        for other in fed.group.running().filter(ex) {
            fed.group.await_value(other, &sql, 1);
        }
        for ex in &left {
            assert_eq!(text(ex, WORKERS).as_deref(), Some("0"));
            fed.group.await_value(ex, &sql, 0);
        }
    }
    // The last one keeps it, in its group and without one.
    let last = fed.runner();
    fed.group.execute(last, leave);
    fed.publish("INSERT INTO log VALUES (0)");
    let server = fed.group.member(last).expect("member");
    fed.group
        .await_value(server, "SELECT count(*) FROM log WHERE n = 0", 1);
    assert_eq!(text(server, state).as_deref(), Some("true s"));
    // What the others still have of it leaves the publisher alone.
    fed.group.execute(left[0].number, "DROP SUBSCRIPTION s");
    fed.publish("INSERT INTO log VALUES (-1)");
    fed.group
        .await_value(server, "SELECT count(*) FROM log WHERE n = -1", 1);
}

/// A worker has received a transaction, and stands still while another member takes its part; when it goes
/// on, the transaction is there already.
#[test]
fn a_worker_that_comes_late_applies_nothing_twice() {
    let fed = fed("fed-late", "streaming = off", HOT);
    let runner = fed.runner();
    let server = fed.group.member(runner).expect("member");
    let once = "SELECT count(*) FROM log WHERE n = 7";
    let mut holder = fed.group.client(runner);
    let locked = holder.batch_execute("BEGIN; LOCK TABLE log IN SHARE MODE");
    locked.expect("a lock");
    fed.publish("INSERT INTO log VALUES (7)");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication apply worker' AND wait_event_type = 'Lock'";
    fed.group.await_value(server, waits, 1);
    let worker = Stopped::new(processes(server, APPLY_WORKER)[0]);
    holder.batch_execute("ROLLBACK").expect("given back");
    let coordinator = Stopped::new(processes(server, COORDINATOR)[0]);
    wait_for(PATIENCE, || {
        // As a publisher that hears nothing for long does by itself.
        let end = "SELECT string_agg(pg_terminate_backend(active_pid)::text, ',') FROM pg_replication_slots WHERE active_pid IS NOT NULL";
        text(fed.publishing(), end);
        let there = |s: &Server| text(s, "SELECT count(*)::text FROM log WHERE n = 7");
        fed.others(runner).all(|s| there(s).as_deref() == Some("1")).then_some(())
    })
    .expect("another member applies it");
    drop(coordinator);
    fed.group.await_value(server, once, 1);
    drop(worker);
    let refused = "has applied this transaction of replication origin";
    let logged = || server.log_tail(200).contains(refused).then_some(());
    wait_for(PATIENCE, logged).expect("the worker that comes late is refused");
    fed.assert_equal(&["keyed", "log"]);
    fed.group.await_value(server, once, 1);
}

/// What tools do by SQL: of two members that go on with one origin at a time one fails, no position goes
/// back, and origins that a member does not know are made there.
#[test]
fn origins_of_sessions_are_replicated() {
    let mut options = options(3);
    options.configuration.push_str("wal_level = logical\n");
    let group = group_with("origins", options, "CREATE TABLE log (n int8);");
    let status = "SELECT external_id || ' ' || remote_lsn FROM pg_replication_origin_status";
    let begin = |member: usize, lsn: &str, n: u32| {
        let mut client = group.client(member);
        let sql = format!(
            "SELECT pg_replication_origin_session_setup('x'); BEGIN;
             SELECT pg_replication_origin_xact_setup('{lsn}', now()); INSERT INTO log VALUES ({n})"
        );
        client.batch_execute(&sql).expect("it begins");
        client
    };
    let await_status = |wanted: &str| {
        for server in group.running() {
            let seen = || text(server, status).filter(|s| s == wanted);
            let last = wait_for(PATIENCE, seen);
            assert!(last.is_some(), "{wanted}: {:?}", text(server, status));
        }
    };
    group.execute(1, "SELECT pg_replication_origin_create('x')");
    // What a helper writes is of the origin, for those who decode it.
    let slot = "SELECT pg_create_logical_replication_slot('d', 'test_decoding')";
    group.execute(2, slot);
    begin(1, "0/100", 1).batch_execute("COMMIT").expect("first");
    await_status("x 0/100");
    group.execute(1, "INSERT INTO log VALUES (0)");
    group.wait_in_step(PATIENCE).expect("in step");
    // Decoded is what is on disk.
    group.execute(2, "CHECKPOINT");
    for (only_local, rows) in [(0, "2"), (1, "1")] {
        let sql = format!(
            "SELECT count(*)::text FROM pg_logical_slot_peek_changes('d', NULL, NULL, 'only-local', '{only_local}') WHERE data LIKE 'table%'"
        );
        let member = group.member(2).expect("member");
        assert_eq!(text(member, &sql).as_deref(), Some(rows), "{sql}");
    }
    let (mut second, mut third) = (begin(2, "0/200", 2), begin(3, "0/200", 2));
    let helpers: Vec<Stopped> = processes(group.member(3).expect("member"), HELPER)
        .into_iter()
        .map(Stopped::new)
        .collect();
    second.batch_execute("COMMIT").expect("it is first");
    let late = std::thread::spawn(move || third.batch_execute("COMMIT"));
    // It would wait for its turn, if it passed.
    wait_for(PATIENCE, || late.is_finished().then_some(()));
    drop(helpers);
    let lost = late.join().expect("no panic");
    let lost = lost.expect_err("it did not see the other");
    assert!(is_serialization_failure(&lost), "{lost:?}");
    await_status("x 0/200");
    drop(second);
    begin(1, "0/180", 3)
        .batch_execute("COMMIT")
        .expect("an older one");
    await_status("x 0/200");
    assert_eq!(group.assert_identical(), 4);
    await_status("x 0/200");
    // It is in WAL, and in the group's log.
    for server in group.running() {
        server.kill().unwrap_or_else(|e| panic!("{e}"));
    }
    (1..=3).for_each(|number| group.start_quietly(number));
    (1..=3).for_each(|number| group.await_online(number));
    await_status("x 0/200");
}
