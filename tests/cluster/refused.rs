//! What is not covered yet is refused at the origin, and what must work works.

use crate::support::group;
use postgres::error::SqlState;
use std::io::Write;

const REFUSED: &[&str] = &[
    "CREATE TABLE x (a int)",
    "CREATE TABLE x AS SELECT 1 a",
    "SELECT 1 a INTO x",
    "ALTER TABLE t ADD COLUMN z int",
    "DROP TABLE t",
    "CREATE INDEX ON t (v)",
    "CREATE VIEW x AS SELECT 1",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA x",
    "CREATE ROLE x",
    "GRANT SELECT ON t TO public",
    "COMMENT ON TABLE t IS 'x'",
    "REFRESH MATERIALIZED VIEW mv",
    "TRUNCATE t",
    "SELECT nextval('s')",
    "SELECT setval('s', 5)",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
    "NOTIFY x",
    "SELECT pg_notify('x', 'y')",
    "LOCK TABLE t IN SHARE MODE",
    "LOCK TABLE t",
    "BEGIN; INSERT INTO t VALUES (50, 1); PREPARE TRANSACTION 'x'",
    "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t VALUES (51, 1); COMMIT",
    "UPDATE keyless SET v = 1",
    "DELETE FROM keyless",
    "DO $$ BEGIN CREATE TABLE x (a int); END $$",
    "DO $$ BEGIN EXECUTE 'TRUNCATE t'; END $$",
];

/// Each in a session of its own, statement by statement, since VACUUM and CHECKPOINT run in no
/// transaction block.
const ALLOWED: &[&[&str]] = &[
    &[
        "CREATE TEMP TABLE tmp (a int PRIMARY KEY)",
        "INSERT INTO tmp VALUES (1)",
        "CREATE INDEX ON tmp (a)",
        "UPDATE tmp SET a = 2",
        "TRUNCATE tmp",
        "ALTER TABLE tmp ADD b int",
        "DROP TABLE tmp",
    ],
    &[
        "CREATE TEMP TABLE tmp2 AS SELECT * FROM t",
        "DELETE FROM tmp2",
    ],
    &["CREATE TEMP SEQUENCE ts", "SELECT nextval('ts')"],
    &[
        "SET work_mem = '8MB'",
        "RESET work_mem",
        "SHOW replication_gcs",
    ],
    &["VACUUM t"],
    &["VACUUM FULL t"],
    &["ANALYZE"],
    &["CHECKPOINT"],
    &["REINDEX TABLE t"],
    &["EXPLAIN ANALYZE SELECT * FROM t"],
    &["PREPARE p AS SELECT 1", "EXECUTE p", "DEALLOCATE p"],
    &[
        "BEGIN",
        "DECLARE k CURSOR FOR SELECT * FROM t",
        "FETCH k",
        "COMMIT",
    ],
    &[
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "SELECT * FROM t",
        "COMMIT",
    ],
    &["BEGIN", "LOCK TABLE t IN ROW EXCLUSIVE MODE", "COMMIT"],
    &["LISTEN x", "UNLISTEN x"],
    &["INSERT INTO keyless VALUES (3)"],
    &[
        "INSERT INTO t VALUES (60, 1)",
        "DELETE FROM t WHERE id = 60",
    ],
    &["INSERT INTO unlogged VALUES (1)"],
    &["DO $$ BEGIN PERFORM 1; END $$"],
];

#[test]
fn what_is_not_covered_is_refused_and_the_rest_works() {
    let mut options = crate::support::options(2);
    options
        .configuration
        .push_str("max_prepared_transactions = 5\n");
    let group = crate::support::group_with(
        "refused",
        options,
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i; CREATE TABLE keyless (v int4);
         INSERT INTO keyless VALUES (1); CREATE SEQUENCE s; CREATE MATERIALIZED VIEW mv AS SELECT 1 a; CREATE UNLOGGED TABLE unlogged (a int4);",
    );
    let before = group.state(1).last_committed_gid;
    for sql in REFUSED {
        let mut client = group.client(1);
        let error = client.batch_execute(sql).expect_err(sql);
        let db = error
            .as_db_error()
            .unwrap_or_else(|| panic!("{sql}: {error:?}"));
        assert_eq!(*db.code(), SqlState::FEATURE_NOT_SUPPORTED, "{sql}: {db:?}");
        assert!(
            db.hint().is_some_and(|h| !h.is_empty()),
            "{sql} has no HINT: {db:?}"
        );
    }
    assert_eq!(
        group.state(1).last_committed_gid,
        before,
        "nothing of it was multicast"
    );
    for statements in ALLOWED {
        let mut client = group.client(1);
        for statement in *statements {
            client
                .batch_execute(statement)
                .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
    }
    group.assert_identical();
}

#[test]
fn a_changeset_beyond_the_pool_fails_alone() {
    let mut options = crate::support::options(2);
    options
        .configuration
        .push_str("replication_imessage_buffers = 4MB\n");
    let group = crate::support::group_with(
        "pool",
        options,
        "CREATE TABLE t (id int4 PRIMARY KEY, v text);",
    );
    let mut client = group.client(1);
    let error = client
        .batch_execute(
            "INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i",
        )
        .expect_err("larger than the pool");
    assert_eq!(
        error.code(),
        Some(&SqlState::PROGRAM_LIMIT_EXCEEDED),
        "{error:?}"
    );
    assert!(
        error
            .as_db_error()
            .and_then(|e| e.hint())
            .is_some_and(|h| h.contains("replication_imessage_buffers")),
        "{error:?}"
    );
    // The pool is whole again, also after many rollbacks and a broken COPY.
    for i in 0..50 {
        let _ = client.batch_execute(&format!("BEGIN; INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({i}, 2000) i; ROLLBACK"));
    }
    {
        let mut copy = client.copy_in("COPY t FROM STDIN").expect("copy");
        let _ = writeln!(copy, "1\tx");
    }
    client
        .batch_execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i")
        .expect("there is room again");
    assert_eq!(group.assert_identical(), 5000);
}

#[test]
fn settings_and_commands_are_checked() {
    let group = group("settings", 1, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let mut client = group.client(1);
    for (sql, code) in [
        (
            "ALTER DATABASE app START REPLICATION IN GROUP other",
            SqlState::FEATURE_NOT_SUPPORTED,
        ),
        (
            "ALTER DATABASE postgres START REPLICATION IN GROUP other",
            SqlState::FEATURE_NOT_SUPPORTED,
        ),
        (
            "ALTER DATABASE postgres STOP REPLICATION",
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        ),
        (
            "ALTER SYSTEM SET replication_gcs = 'egcs:listen=nowhere'",
            SqlState::INVALID_PARAMETER_VALUE,
        ),
        (
            "ALTER SYSTEM SET replication_gcs = 'carrier-pigeon:'",
            SqlState::INVALID_PARAMETER_VALUE,
        ),
    ] {
        let error = client.batch_execute(sql).expect_err(sql);
        assert_eq!(error.code(), Some(&code), "{sql}: {error:?}");
    }
    let row = client
        .query_one(
            "SELECT state, member_id, members, voters FROM pg_stat_replication_group",
            &[],
        )
        .expect("view");
    assert_eq!(
        (
            row.get::<_, &str>(0),
            row.get::<_, i32>(1),
            row.get::<_, i32>(2),
            row.get::<_, i32>(3)
        ),
        ("online", 1, 1, 1)
    );
    let row = client
        .query_one(
            "SELECT member_id, role, is_self FROM pg_stat_replication_members",
            &[],
        )
        .expect("view");
    assert_eq!(
        (
            row.get::<_, i32>(0),
            row.get::<_, &str>(1),
            row.get::<_, bool>(2)
        ),
        (1, "voter", true)
    );
    // Afterwards it is an ordinary database again.
    client
        .batch_execute("ALTER DATABASE app STOP REPLICATION")
        .expect("stop");
    drop(client);
    group.execute(
        1,
        "CREATE TABLE x (a int); INSERT INTO x VALUES (1); DROP TABLE x",
    );
}
