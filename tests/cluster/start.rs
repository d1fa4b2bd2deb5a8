//! START REPLICATION: what it waits for, what it refuses, and that it leaves nothing behind when it
//! fails.

use crate::support::{PATIENCE, Stop, TestGroup, group_with, options, scale};
use postgres::error::SqlState;
use postgres_r::cluster::server::wait_for;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

const START: &str = "ALTER DATABASE app START REPLICATION IN GROUP app";

/// A server that could start replication, and whose database holds what `init` makes.
fn ordinary(name: &str, init: &str) -> TestGroup {
    configured(name, "", init)
}

fn configured(name: &str, configuration: &str, init: &str) -> TestGroup {
    let mut options = options(1);
    options.configuration.push_str(configuration);
    let group = group_with(name, options, init);
    group.execute(1, "ALTER DATABASE app STOP REPLICATION");
    group
}

impl TestGroup {
    fn is_formed(&self) -> bool {
        let sql = "SELECT FROM pg_stat_get_replication_group()";
        !self.client(1).query(sql, &[]).expect("state").is_empty()
    }

    /// The database takes DDL: nothing is captured or refused.
    fn assert_ordinary(&self) {
        assert!(!self.is_formed());
        let mut client = self.client(1);
        let ddl = client.batch_execute("CREATE TABLE ddl (a int4); DROP TABLE ddl");
        ddl.expect("an ordinary database takes DDL");
    }

    fn begin(&self, sql: &str) -> postgres::Client {
        let mut client = self.client(1);
        client
            .batch_execute(&format!("BEGIN; {sql}"))
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        client
    }

    fn refuses(&self, sql: &str) {
        let error = self.client(1).batch_execute(sql).expect_err(sql);
        assert_eq!(
            error.code(),
            Some(&SqlState::FEATURE_NOT_SUPPORTED),
            "{sql}: {error:?}"
        );
    }
}

/// A statement in a session of its own.
struct Running {
    pid: i32,
    end: JoinHandle<Result<(), postgres::Error>>,
}

impl Running {
    /// Returns when it waits for a lock of this kind.
    fn until_it_waits(group: &TestGroup, sql: &'static str, lock: &str) -> Running {
        let mut client = group.client(1);
        let pid = client
            .query_one("SELECT pg_backend_pid()", &[])
            .expect("pid")
            .get(0);
        let end = std::thread::spawn(move || client.batch_execute(sql));
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock' AND wait_event = '{lock}'"
        );
        group.await_value(group.member(1).expect("member"), &waits, 1);
        Running { pid, end }
    }

    fn end(self) -> Result<(), postgres::Error> {
        self.end.join().expect("its thread")
    }
}

#[test]
fn start_waits_for_all_that_it_does_not_capture() {
    let mut group = ordinary(
        "start",
        "CREATE TABLE t (id int4 PRIMARY KEY); CREATE TABLE w (id int4 PRIMARY KEY); CREATE SEQUENCE s;",
    );
    let mut idle = group.client(1);
    let mut writer = group.begin("INSERT INTO w VALUES (1)");
    // The ALTER TABLE has been let through, and gets its XID later.
    let mut reader = group.begin("SELECT FROM t");
    let alter = Running::until_it_waits(&group, "ALTER TABLE t ADD COLUMN late int4", "relation");
    let start = Running::until_it_waits(&group, START, "virtualxid");
    assert!(!group.is_formed(), "uncaptured writers are at work");

    // What begins now is captured, and commits without a group, or with one once it is there.
    idle.batch_execute("CREATE TABLE x (a int4)")
        .expect_err("a captured transaction");
    idle.batch_execute("INSERT INTO w VALUES (2)")
        .expect("an ordinary commit");
    group.refuses("CREATE TABLE x (a int4)");
    group.execute(1, "SELECT nextval('s')");
    let mut late = group.begin("INSERT INTO w VALUES (3)");

    writer
        .batch_execute("INSERT INTO w VALUES (4); COMMIT")
        .expect("an ordinary commit");
    assert!(!group.is_formed(), "the ALTER TABLE still waits");
    reader.batch_execute("COMMIT").expect("commit");
    alter.end().expect("ALTER TABLE began before START");
    start.end().expect("START");
    assert_eq!(group.state(1).last_committed_gid, 0);
    late.batch_execute("COMMIT").expect("a replicated commit");
    assert_eq!(group.state(1).last_committed_gid, 1);
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    group.execute(2, "INSERT INTO t (id, late) VALUES (1, 1)");
    assert_eq!(group.assert_identical(), 5);
}

#[test]
fn a_group_is_formed_under_load() {
    let mut group = configured(
        "storm",
        "replication_consistency = before_and_after\n",
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i;",
    );
    let mut total = 0;
    for round in 0..3 * scale() {
        if round > 0 {
            group.execute(1, "ALTER DATABASE app STOP REPLICATION");
        }
        let stop = AtomicBool::new(false);
        let written = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let guard = Stop(&stop);
            for writer in 0..4 {
                let (group, stop, written) = (&group, &stop, &written);
                scope.spawn(move || {
                    let mut client = group.client(1);
                    let update = format!("UPDATE t SET v = v + 1 WHERE id % 4 = {writer}");
                    while !stop.load(Ordering::Relaxed) {
                        client.batch_execute(&update).expect("no commit fails");
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let more = |than: u32| {
                wait_for(PATIENCE, || {
                    (written.load(Ordering::Relaxed) > than).then_some(())
                })
                .expect("writers go on");
            };
            more(20);
            group.execute(1, START);
            more(written.load(Ordering::Relaxed) + 20);
            drop(guard);
        });
        total += written.load(Ordering::Relaxed);
        let updates = "SELECT sum(v) / 25 FROM t";
        let member = group.member(1).expect("member");
        group.await_value(member, updates, total.into());
    }
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(group.assert_identical(), 100);
}

#[test]
fn a_start_that_ends_early_leaves_nothing_behind() {
    let mut group = ordinary("cancel", "CREATE TABLE t (id int4 PRIMARY KEY, v int4);");
    for end in ["pg_cancel_backend", "pg_terminate_backend"] {
        let mut writer = group.begin("INSERT INTO t VALUES (1)");
        let start = Running::until_it_waits(&group, START, "virtualxid");
        let mut captured = group.begin("INSERT INTO t VALUES (2)");
        group.refuses("CREATE TABLE x (a int4)");
        let pid = start.pid;
        let sql = format!("SELECT {end}({pid})");
        group.execute(1, &sql);
        start.end().expect_err(end);
        let gone =
            format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'");
        group.await_value(group.member(1).expect("member"), &gone, 0);
        group.assert_ordinary();
        for (client, table) in [(&mut writer, "one"), (&mut captured, "two")] {
            client.batch_execute("COMMIT").expect("an ordinary commit");
            client
                .batch_execute(&format!(
                    "CREATE TABLE {table} (a int4); DROP TABLE {table}"
                ))
                .expect("DDL in a session that was captured for a while");
        }
        group.execute(1, "DELETE FROM t");
    }

    // What a transaction makes that began before is seen, however late it commits.
    let mut maker = group.begin("CREATE UNLOGGED TABLE u (id int4 REFERENCES t)");
    let start = Running::until_it_waits(&group, START, "virtualxid");
    maker.batch_execute("COMMIT").expect("an ordinary commit");
    let error = start
        .end()
        .expect_err("an unlogged table refers to another");
    assert_eq!(
        error.code(),
        Some(&SqlState::FEATURE_NOT_SUPPORTED),
        "{error:?}"
    );
    group.assert_ordinary();
    group.execute(1, "DROP TABLE u");

    // The coordinator can't form the group.
    let member = group.member(1).expect("member");
    let busy = TcpListener::bind(group.group_address(member)).expect("the port of the group");
    let error = group.client(1).batch_execute(START).expect_err("no port");
    assert_eq!(error.code(), Some(&SqlState::SYSTEM_ERROR), "{error:?}");
    group.assert_ordinary();
    drop(busy);

    group.execute(1, START);
    group.execute(1, "INSERT INTO t VALUES (3, 3)");
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(group.assert_identical(), 1);
}

#[test]
fn start_refuses_what_would_not_be_replicated() {
    let group = configured(
        "unfit",
        "max_prepared_transactions = 5\n",
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t VALUES (1, 1), (2, 1);",
    );
    let unfit = SqlState::FEATURE_NOT_SUPPORTED;
    let not_now = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
    for (make, unmake, code) in [
        (
            "CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE, two_phase = true)",
            "DROP SUBSCRIPTION s",
            &unfit,
        ),
        (
            "CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE, disable_on_error = true)",
            "DROP SUBSCRIPTION s",
            &unfit,
        ),
        (
            "CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE);
             ALTER SUBSCRIPTION s SKIP (lsn = '0/1234')",
            "DROP SUBSCRIPTION s",
            &not_now,
        ),
        (
            "CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE);
             SET allow_system_table_mods = on;
             INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) SELECT oid, 't'::regclass, 'i' FROM pg_subscription",
            "DROP SUBSCRIPTION s",
            &not_now,
        ),
        (
            "CREATE UNLOGGED TABLE u (id int4 REFERENCES t)",
            "DROP TABLE u",
            &unfit,
        ),
        (
            "CREATE TABLE p (id int4) PARTITION BY LIST (id); CREATE UNLOGGED TABLE u PARTITION OF p DEFAULT",
            "DROP TABLE p",
            &unfit,
        ),
        (
            "CREATE UNLOGGED TABLE u () INHERITS (t)",
            "DROP TABLE u",
            &unfit,
        ),
        (
            "CREATE TRIGGER a AFTER UPDATE ON t REFERENCING NEW TABLE AS n FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
             ALTER TABLE t ENABLE REPLICA TRIGGER a",
            "DROP TRIGGER a ON t",
            &unfit,
        ),
        (
            "BEGIN; UPDATE t SET v = v WHERE id = 1; PREPARE TRANSACTION 'x'",
            "ROLLBACK PREPARED 'x'",
            &not_now,
        ),
    ] {
        group.execute(1, make);
        assert_refused(&group, make, code);
        group.execute(1, unmake);
    }
    let concurrently = "CREATE UNIQUE INDEX CONCURRENTLY i ON t (v)";
    let unique = group.client(1).batch_execute(concurrently);
    unique.expect_err("v is not unique");
    assert_refused(&group, concurrently, &not_now);
    group.execute(1, "DROP INDEX i");
    // By the extended protocol, too.
    group.client(1).execute(START, &[]).expect("START");
    assert!(group.is_formed());
}

#[test]
fn start_waits_for_prepared_transactions_or_names_them() {
    let mut group = configured(
        "start-prepared",
        "max_prepared_transactions = 5\n",
        "CREATE TABLE t (id int4 PRIMARY KEY); CREATE UNLOGGED TABLE u (id int4 PRIMARY KEY);",
    );
    for (row, gid) in [(1, "x"), (2, "it''s")] {
        let sql = format!("BEGIN; INSERT INTO t VALUES ({row}); PREPARE TRANSACTION '{gid}'");
        group.execute(1, &sql);
    }
    let error = group.client(1).batch_execute(START).expect_err("prepared");
    let db = error.as_db_error().expect("an answer");
    assert_eq!(*db.code(), SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    let detail = db.detail().expect("a detail");
    assert!(detail.ends_with("There are 'it''s', 'x'."), "{detail}");
    let hint = db.hint().expect("a hint");
    assert!(hint.contains("ROLLBACK PREPARED"), "{hint}");
    group.assert_ordinary();
    group.execute(1, "COMMIT PREPARED 'x'");
    group.execute(1, "ROLLBACK PREPARED 'it''s'");

    // One that has begun before is prepared while START waits for it.
    let mut writer = group.begin("INSERT INTO t VALUES (10)");
    let start = Running::until_it_waits(&group, START, "virtualxid");
    // Of those that begin now it is known what they change.
    let mut captured = group.begin("INSERT INTO u VALUES (1)");
    captured
        .batch_execute("PREPARE TRANSACTION 'captured'")
        .expect("nothing that will be replicated");
    group.refuses("BEGIN; INSERT INTO t VALUES (11); PREPARE TRANSACTION 'y'");
    writer
        .batch_execute("PREPARE TRANSACTION 'x'")
        .expect("it is not captured");
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {} AND wait_event = 'transactionid'",
        start.pid
    );
    group.await_value(group.member(1).expect("member"), &waits, 1);
    assert!(!group.is_formed(), "a prepared transaction is not captured");
    group.execute(1, "COMMIT PREPARED 'x'");
    start.end().expect("START");
    group.execute(1, "INSERT INTO t VALUES (12)");
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    // 1, 10 and 12.
    assert_eq!(group.assert_identical(), 3);
    group.execute(1, "COMMIT PREPARED 'captured'");
    group.execute(2, "TRUNCATE t");
    assert_eq!(group.assert_identical(), 0);
}

fn assert_refused(group: &TestGroup, made: &str, code: &SqlState) {
    let error = group.client(1).batch_execute(START).expect_err(made);
    let db = error
        .as_db_error()
        .unwrap_or_else(|| panic!("{made}: {error:?}"));
    assert_eq!(db.code(), code, "{made}: {db:?}");
    assert!(
        db.detail().is_some() && db.hint().is_some(),
        "{made}: {db:?}"
    );
    group.assert_ordinary();
}
