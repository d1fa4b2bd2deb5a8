//! PREPARE TRANSACTION: refused where it would keep anything that is replicated, as ever where it does not.

use crate::support::{PATIENCE, TestGroup, group_with, options};
use postgres::Client;
use postgres::error::SqlState;
use postgres_r::cluster::server::{StopMode, wait_for};

const TABLES: &str = "
CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i;
CREATE TABLE parts (id int4) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT;
CREATE VIEW seen AS SELECT * FROM t; CREATE SEQUENCE numbers; SELECT nextval('numbers');
CREATE UNLOGGED TABLE u (id int4 PRIMARY KEY, v int4); CREATE UNLOGGED SEQUENCE own;
CREATE UNLOGGED TABLE late (id int4);
CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (NEW.id, 0); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER change AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION change();
SELECT lo_from_bytea(4001, 'before');
";

/// Of the large object in [`TABLES`].
const LARGE_OBJECT_ROWS: u64 = 2;

fn group(name: &str, members: usize, init: &str) -> TestGroup {
    let mut options = options(members);
    options
        .configuration
        .push_str("max_prepared_transactions = 50\n");
    group_with(name, options, init)
}

fn value(client: &mut Client, sql: &str) -> i64 {
    let row = client.query_one(sql, &[]);
    row.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

fn run(client: &mut Client, sql: &str) {
    let done = client.batch_execute(sql);
    done.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

const PREPARED: &str = "SELECT count(*) FROM pg_prepared_xacts";

/// Each changes, or locks, something that is replicated.
const REFUSED: &[&str] = &[
    "INSERT INTO t VALUES (20, 0)",
    "UPDATE t SET v = 1 WHERE id = 1",
    "DELETE FROM t WHERE id = 1",
    "MERGE INTO t USING (VALUES (1)) AS s (id) ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = 1",
    "TRUNCATE t",
    "TRUNCATE parts",
    "INSERT INTO u VALUES (20, 0); INSERT INTO parts VALUES (1)",
    "SAVEPOINT s; INSERT INTO t VALUES (20, 0); RELEASE s",
    "SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; UPDATE t SET v = 1 WHERE id = 1",
    "INSERT INTO late VALUES (20)",
    "WITH gone AS (DELETE FROM t WHERE id = 1 RETURNING id) INSERT INTO u SELECT id FROM gone",
    "SELECT FROM t WHERE id = 1 FOR UPDATE",
    "SELECT FROM t WHERE id = 1 FOR KEY SHARE",
    "SELECT FROM pg_largeobject WHERE loid = 4001 FOR UPDATE",
    "SELECT FROM pg_class WHERE relname = 't' FOR UPDATE",
    "SELECT nextval('numbers')",
    "SAVEPOINT s; SELECT nextval('numbers'); ROLLBACK TO s",
    "SELECT setval('numbers', 10)",
    "ALTER SEQUENCE numbers RESTART",
    "SELECT lo_create(0)",
    "SELECT lo_put(4001, 0, 'after')",
    "SELECT lo_unlink(4001)",
    "LOCK TABLE t IN ROW SHARE MODE",
    "LOCK TABLE t IN ROW EXCLUSIVE MODE",
    "LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE",
    "LOCK TABLE t IN SHARE MODE",
    "LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE",
    "LOCK TABLE t IN EXCLUSIVE MODE",
    "LOCK TABLE t IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE ONLY parts IN EXCLUSIVE MODE",
    "LOCK TABLE seen IN EXCLUSIVE MODE",
    "LOCK TABLE pg_class IN SHARE MODE",
    "ANALYZE t",
];

#[test]
fn what_is_replicated_is_not_prepared() {
    let group = group("prepare-refused", 2, TABLES);
    let mut client = group.client(1);
    let numbers = "SELECT last_value FROM numbers";
    for sql in REFUSED {
        for level in ["READ COMMITTED", "SERIALIZABLE"] {
            // Refused before there is anything to prepare.
            if level == "SERIALIZABLE" && (sql.contains("INTO u") || sql.contains("INTO late")) {
                continue;
            }
            run(
                &mut client,
                &format!("BEGIN ISOLATION LEVEL {level}; {sql}"),
            );
            let error = client
                .batch_execute("PREPARE TRANSACTION 'x'")
                .expect_err(sql);
            let db = error.as_db_error().expect("an answer of the server");
            assert_eq!(*db.code(), SqlState::FEATURE_NOT_SUPPORTED, "{sql}: {db:?}");
            assert!(
                db.hint().is_some_and(|h| h.contains("Use COMMIT")),
                "{sql}: {db:?}"
            );
            assert_eq!(value(&mut client, PREPARED), 0, "{sql}");
            // The session goes on with nothing of it.
            run(&mut client, "UPDATE t SET v = v + 1 WHERE id = 10");
        }
    }
    let updates = value(&mut client, "SELECT v::int8 FROM t WHERE id = 10");
    assert_eq!(updates as usize, REFUSED.len() * 2 - 3);
    // PostgreSQL itself does not prepare these.
    for sql in ["NOTIFY n", "LISTEN n", "CREATE TEMP TABLE mine (a int4)"] {
        run(&mut client, &format!("BEGIN; {sql}"));
        let error = client.batch_execute("PREPARE TRANSACTION 'x'");
        let error = error.expect_err(sql);
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
    }
    assert_eq!(group.assert_identical(), 10 + LARGE_OBJECT_ROWS);
    for member in 1..=2 {
        let mut client = group.client(member);
        assert_eq!(value(&mut client, "SELECT count(*) FROM u"), 0);
        let pages = "SELECT count(*) FROM pg_largeobject WHERE data = 'before'";
        assert_eq!(value(&mut client, pages), 1);
        assert!(value(&mut client, numbers) >= 1);
    }
}

/// Each leaves what is replicated as it is; and how many rows it adds to `u`.
const ALLOWED: &[(&str, i64)] = &[
    ("", 0),
    ("SELECT 1", 0),
    ("SELECT count(*) FROM t; SELECT FROM t WHERE id = 1", 0),
    (
        "SET LOCAL enable_seqscan = off; SELECT FROM t WHERE id = 1; SELECT FROM t WHERE id = 2",
        0,
    ),
    ("SELECT count(*) FROM seen JOIN parts USING (id)", 0),
    (
        "SAVEPOINT s; SELECT count(*) FROM t; RELEASE s; SELECT count(*) FROM t",
        0,
    ),
    (
        "SET LOCAL enable_seqscan = off; DECLARE c CURSOR FOR SELECT v FROM t WHERE id > 1; FETCH 3 FROM c; SAVEPOINT s; DECLARE d CURSOR FOR SELECT v FROM t WHERE id > 1; FETCH FROM d",
        0,
    ),
    ("LOCK TABLE t IN ACCESS SHARE MODE", 0),
    (
        "UPDATE t SET v = 1 WHERE id = 0; DELETE FROM t WHERE id = 0",
        0,
    ),
    ("SELECT FROM t WHERE id = 0 FOR UPDATE", 0),
    ("INSERT INTO t SELECT id, 0 FROM t WHERE false", 0),
    (
        "SAVEPOINT s; INSERT INTO t VALUES (0, 0); UPDATE t SET v = 1; ROLLBACK TO s",
        0,
    ),
    ("SAVEPOINT s; LOCK TABLE t; TRUNCATE t; ROLLBACK TO s", 0),
    ("SAVEPOINT s; SELECT FROM t FOR UPDATE; ROLLBACK TO s", 0),
    (
        "DO $$ BEGIN INSERT INTO t VALUES (0, 0), (1 / 0, 0); EXCEPTION WHEN division_by_zero THEN END $$",
        0,
    ),
    (
        "SELECT lo_get(4001); SELECT loread(lo_open(4001, 262144), 3)",
        0,
    ),
    ("SELECT count(*) FROM pg_class, pg_roles", 0),
    ("SELECT nextval('own'), lastval()", 0),
    ("SELECT pg_advisory_xact_lock(1)", 0),
    ("INSERT INTO u VALUES (nextval('own'), 0)", 1),
    ("INSERT INTO u SELECT nextval('own'), v FROM t", 10),
    (
        "SAVEPOINT s; INSERT INTO u VALUES (nextval('own'), 0); RELEASE s; SAVEPOINT s; INSERT INTO t VALUES (0, 0); ROLLBACK TO s",
        1,
    ),
    ("COPY u FROM PROGRAM 'echo 999,0' (FORMAT csv)", 1),
    ("UPDATE u SET v = 1; SELECT FROM u FOR UPDATE; ANALYZE u", 0),
    ("LOCK TABLE u", 0),
    ("TRUNCATE u", 0),
];

#[test]
fn what_is_not_replicated_is_prepared_as_ever() {
    let group = group("prepare-allowed", 2, TABLES);
    let mut client = group.client(1);
    let mut other = group.client(2);
    let rows = "SELECT count(*) FROM u";
    let mut gids = 0;
    for (sql, adds) in ALLOWED {
        for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
            if level == "SERIALIZABLE" && sql.contains(" u") {
                continue;
            }
            for end in ["COMMIT", "ROLLBACK"] {
                let before = value(&mut client, rows);
                run(
                    &mut client,
                    &format!("BEGIN ISOLATION LEVEL {level}; {sql}; PREPARE TRANSACTION 'x'"),
                );
                assert_eq!(value(&mut client, PREPARED), 1, "{sql}");
                // The same session at once; a lock that excludes all others; and changes of rows.
                run(
                    &mut client,
                    "BEGIN; INSERT INTO t VALUES (11, 0); SELECT count(*) FROM t; COMMIT",
                );
                group.wait_in_step(PATIENCE).expect(sql);
                run(
                    &mut other,
                    "TRUNCATE parts, t; INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i; SELECT lo_put(4001, 0, 'behind')",
                );
                gids += 2;
                group.wait_in_step(PATIENCE).expect(sql);
                assert_eq!(group.state(1).last_committed_gid, gids, "{sql}");
                assert_eq!(value(&mut client, PREPARED), 1, "{sql}");
                run(&mut group.client(1), &format!("{end} PREPARED 'x'"));
                assert_eq!(value(&mut client, PREPARED), 0, "{sql}");
                let added = if end == "COMMIT" { *adds } else { 0 };
                let wanted = if *sql == "TRUNCATE u" && end == "COMMIT" {
                    0
                } else {
                    before + added
                };
                assert_eq!(value(&mut client, rows), wanted, "{level}: {sql}: {end}");
                if sql.contains("999") {
                    run(&mut client, "DELETE FROM u WHERE id = 999");
                }
            }
        }
    }
    group.wait_in_step(PATIENCE).expect("in step");
    for member in 1..=2 {
        // It ends with no place in the order.
        assert_eq!(group.state(member).last_committed_gid, gids);
    }
    assert_eq!(group.assert_identical(), 10 + LARGE_OBJECT_ROWS);
}

#[test]
fn a_prepared_transaction_outlives_its_server() {
    let group = group("prepare-restart", 3, TABLES);
    let mut client = group.client(1);
    for gid in ["a", "b", "c", "d"] {
        let sql = format!(
            "BEGIN; INSERT INTO u VALUES (ascii('{gid}'), 0); SELECT count(*) FROM t; PREPARE TRANSACTION '{gid}'"
        );
        run(&mut client, &sql);
    }
    drop(client);
    let member = group.member(1).expect("member");
    let rows = "SELECT count(*) FROM u";
    for (i, clean) in [true, false].into_iter().enumerate() {
        if clean {
            member.stop(StopMode::Fast).expect("stop");
        } else {
            member.kill().expect("kill");
        }
        // What comes meanwhile needs the table for itself.
        let anew = "TRUNCATE t; INSERT INTO t VALUES (1, 0), (2, 0), (3, 0)";
        let again = || group.client(2).batch_execute(anew).ok();
        wait_for(PATIENCE, again).expect("the others go on");
        group.start(1);
        let mut client = group.client(1);
        assert_eq!(value(&mut client, PREPARED), 4 - 2 * i as i64);
        let [one, other] = [["a", "b"], ["c", "d"]][i];
        run(&mut client, &format!("COMMIT PREPARED '{one}'"));
        run(&mut client, &format!("ROLLBACK PREPARED '{other}'"));
        // After a crash nothing is left of an unlogged table.
        assert_eq!(value(&mut client, rows), i64::from(clean), "clean: {clean}");
        run(&mut client, "INSERT INTO t VALUES (4, 0)");
        for sql in [
            "BEGIN; INSERT INTO u VALUES (1, 0); PREPARE TRANSACTION 'e'",
            "COMMIT PREPARED 'e'",
            "DELETE FROM u WHERE id = 1",
        ] {
            run(&mut client, sql);
        }
        group.wait_in_step(PATIENCE).expect("in step");
        assert_eq!(group.assert_identical(), 4 + LARGE_OBJECT_ROWS);
    }
}

/// A table with a trigger that needs a row of another, which each member has for itself.
const COUNTED: &str = "
CREATE TABLE t (id int4 PRIMARY KEY);
CREATE UNLOGGED TABLE counter (n int4); INSERT INTO counter VALUES (0);
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE public.counter SET n = n + 1; RETURN NULL; END $$;
CREATE TRIGGER counted AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION count_it();
ALTER TABLE t ENABLE ALWAYS TRIGGER counted;
";

#[test]
fn a_trigger_does_not_wait_for_a_prepared_transaction() {
    let group = group("prepare-trigger", 2, COUNTED);
    let (one, two) = (1, 2);
    // A copy has an unlogged table without its rows.
    run(
        &mut group.client(two),
        "TRUNCATE counter; INSERT INTO counter VALUES (0)",
    );
    let member = group.member(two).expect("member");
    let counter = |member: usize| value(&mut group.client(member), "SELECT n::int8 FROM counter");
    let mut inserted = 0;
    let mut insert = || {
        inserted += 1;
        run(
            &mut group.client(one),
            &format!("INSERT INTO t VALUES ({inserted})"),
        );
        group.wait_in_step(PATIENCE).expect("in step");
    };
    let mut errors = 0;
    for (taken, restarts) in [
        ("UPDATE counter SET n = 100", false),
        ("SELECT FROM counter FOR SHARE", false),
        ("LOCK TABLE counter IN SHARE MODE", false),
        ("UPDATE counter SET n = 100", true),
    ] {
        let before = counter(two);
        run(
            &mut group.client(two),
            &format!("BEGIN; {taken}; PREPARE TRANSACTION 'x'"),
        );
        if restarts {
            member.stop(StopMode::Fast).expect("stop");
            group.start(two);
            errors = 0;
        }
        // Somebody of this server waits for it, with the row's place in the queue.
        let waiter = std::thread::spawn({
            let mut client = group.client(two);
            move || client.batch_execute("UPDATE counter SET n = n + 1000")
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%1000'";
        group.await_value(member, waits, 1);
        insert();
        errors += 1;
        assert_eq!(group.state(two).trigger_errors, errors, "{taken}");
        let told = || {
            member
                .log_tail(400)
                .contains("a prepared transaction has a lock that it needs")
                .then_some(())
        };
        wait_for(PATIENCE, told).expect("the failure is logged");
        run(&mut group.client(two), "ROLLBACK PREPARED 'x'");
        let waited = waiter.join().expect("its thread").is_ok();
        let wanted = before + if waited { 1000 } else { 0 };
        assert_eq!(counter(two), wanted, "{taken}");
        insert();
        assert_eq!(counter(two), wanted + 1, "{taken}");
    }
    assert_eq!(group.state(one).trigger_errors, 0);
    assert_eq!(group.state(two).trigger_errors, errors);
    assert_eq!(counter(one), 8);
    assert_eq!(group.assert_identical(), 8);
}

#[test]
fn a_copy_has_no_prepared_transactions_of_its_provider() {
    let mut group = group("prepare-copy", 1, TABLES);
    run(
        &mut group.client(1),
        "BEGIN; INSERT INTO u VALUES (1, 0); SELECT count(*) FROM t; PREPARE TRANSACTION 'x'",
    );
    let mut other = group
        .member(1)
        .expect("member")
        .connect("postgres")
        .unwrap_or_else(|e| panic!("{e}"));
    run(
        &mut other,
        "CREATE TABLE other (a int4); BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'other'",
    );
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    let copy = group.member(2).expect("member");
    // That of a database that is not replicated is its owner's.
    group.await_value(copy, PREPARED, 1);
    run(
        &mut group.client(2),
        "BEGIN; INSERT INTO u VALUES (2, 0); PREPARE TRANSACTION 'x'",
    );
    run(
        &mut group.client(2),
        "TRUNCATE t; INSERT INTO t VALUES (1, 0)",
    );
    assert_eq!(value(&mut group.client(1), PREPARED), 2);
    for member in 1..=2 {
        let mut client = group.client(member);
        run(&mut client, "COMMIT PREPARED 'x'");
        assert_eq!(value(&mut client, "SELECT count(*) FROM u"), 1);
    }
    assert_eq!(group.assert_identical(), 1 + LARGE_OBJECT_ROWS);
}
