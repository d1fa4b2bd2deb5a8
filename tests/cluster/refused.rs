//! What is not covered yet is refused at the origin, and what must work works.

use crate::support::{PATIENCE, group};
use postgres::error::SqlState;
use postgres_r::cluster::server::wait_for;
use std::io::Write;

const REFUSED: &[&str] = &[
    "CREATE TABLE x (a int)",
    "CREATE TABLE x AS SELECT 1 a",
    "SELECT 1 a INTO x",
    "CREATE UNLOGGED TABLE x (id int4 REFERENCES t)",
    "ALTER TABLE unlogged ADD FOREIGN KEY (a) REFERENCES t",
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
    "UPDATE pg_largeobject SET pageno = 1",
    "COMMENT ON LARGE OBJECT 1 IS 'x'",
    "ALTER SEQUENCE s MAXVALUE 1000",
    "UPDATE pg_class SET reltuples = 1 WHERE relname = 't'",
    "DELETE FROM pg_description",
    "COPY pg_description FROM PROGRAM 'true'",
    "SET allow_system_table_mods = on; INSERT INTO pg_enum VALUES (1, 1, 1, 'x')",
    "UPDATE information_schema.sql_features SET comments = 'x'",
    "CREATE SUBSCRIPTION x CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE)",
    "ALTER SUBSCRIPTION x ENABLE",
    "DROP SUBSCRIPTION x",
    "ALTER DATABASE app CONNECTION LIMIT 50",
    "ALTER DATABASE app ALLOW_CONNECTIONS true",
    "ALTER DATABASE app SET work_mem = '8MB'",
    "ALTER DATABASE app RENAME TO other",
    "ALTER DATABASE app REFRESH COLLATION VERSION",
    "BEGIN; REINDEX TABLE t",
    "DO $$ BEGIN REINDEX TABLE t; END $$",
    "DO $$ BEGIN EXECUTE 'CLUSTER t USING t_pkey'; END $$",
    "CREATE TEMP TABLE tmp (a int); GRANT SELECT ON tmp, t TO public",
    "COMMENT ON COLUMN t.v IS 'x'",
    "COMMENT ON DATABASE app IS 'x'",
    "BEGIN; INSERT INTO t VALUES (50, 1); PREPARE TRANSACTION 'x'",
    "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO unlogged VALUES (51); COMMIT",
    "BEGIN ISOLATION LEVEL SERIALIZABLE; TRUNCATE unlogged; COMMIT",
    "DO $$ BEGIN CREATE TABLE x (a int); END $$",
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
    &[
        "CREATE TEMP SEQUENCE ts",
        "SELECT nextval('ts')",
        "ALTER SEQUENCE ts RESTART INCREMENT 2",
    ],
    &[
        "CREATE TEMP TABLE tmp3 (LIKE described INCLUDING ALL)",
        "INSERT INTO tmp3 (v) VALUES (1)",
        "COMMENT ON TABLE tmp3 IS 'x'",
        "COMMENT ON COLUMN tmp3.v IS 'x'",
        "GRANT SELECT ON tmp3 TO public",
        "REVOKE SELECT ON tmp3 FROM public",
        "CREATE TRIGGER tr BEFORE UPDATE ON tmp3 FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "COMMENT ON TRIGGER tr ON tmp3 IS 'x'",
        "DROP TRIGGER tr ON tmp3",
    ],
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
    &["CLUSTER t USING t_pkey"],
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
    &["BEGIN", "LOCK TABLE t, keyless, unlogged NOWAIT", "COMMIT"],
    &["LISTEN x", "UNLISTEN x"],
    &[
        "INSERT INTO keyless VALUES (3)",
        "UPDATE keyless SET v = 4",
        "TRUNCATE keyless RESTART IDENTITY",
    ],
    &[
        "CREATE TEMP TABLE tmp4 (a serial)",
        "TRUNCATE tmp4 RESTART IDENTITY",
    ],
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
         INSERT INTO keyless VALUES (1); CREATE SEQUENCE s; CREATE MATERIALIZED VIEW mv AS SELECT 1 a; CREATE UNLOGGED TABLE unlogged (a int4);
         CREATE TABLE described (id int4 GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v int4 CHECK (v > 0), w int4 DEFAULT 2);
         COMMENT ON COLUMN described.v IS 'x'; CREATE INDEX ON described (w); CREATE STATISTICS described_stats ON v, w FROM described;",
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
fn a_row_beyond_the_pool_fails_alone() {
    let mut options = crate::support::options(2);
    options
        .configuration
        .push_str("replication_imessage_buffers = 4MB\n");
    let group = crate::support::group_with(
        "pool",
        options,
        "CREATE TABLE t (id int4 PRIMARY KEY, v text STORAGE EXTERNAL);",
    );
    let mut client = group.client(1);
    let error = client
        .batch_execute("INSERT INTO t VALUES (1, repeat('x', 6000000))")
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

/// A subscription that START could not see, because somebody moved it here later: its worker
/// truncates and prepares where no statement is.
#[test]
fn nothing_slips_past_by_another_way_than_statements() {
    let mut options = crate::support::options(1);
    options
        .configuration
        .push_str("max_prepared_transactions = 5\nwal_level = logical\n");
    let tables = "CREATE TABLE truncated (id int4 PRIMARY KEY); CREATE TABLE prepared (id int4 PRIMARY KEY);";
    let mut group = crate::support::group_with("logical", options, tables);
    group.execute(1, "ALTER DATABASE app STOP REPLICATION");
    let member = group.member(1).expect("member").clone();
    let elsewhere = |sql: &str| {
        let done = member.execute("postgres", sql, sql);
        done.unwrap_or_else(|e| panic!("{e}"));
    };
    elsewhere(tables);
    for table in ["truncated", "prepared"] {
        elsewhere(&format!("CREATE PUBLICATION {table} FOR TABLE {table}"));
        elsewhere(&format!(
            "SELECT pg_create_logical_replication_slot('{table}', 'pgoutput', false, true)"
        ));
        elsewhere(&format!(
            "CREATE SUBSCRIPTION {table} CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=postgres' PUBLICATION {table}
             WITH (connect = false, slot_name = '{table}', create_slot = false, enabled = false, two_phase = true)",
            member.port
        ));
        group.execute(1, &format!(
            "SET allow_system_table_mods = on; INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)
             SELECT oid, '{table}'::regclass, 'r' FROM pg_subscription WHERE subname = '{table}'"
        ));
    }
    group.execute(1, "ALTER DATABASE app START REPLICATION IN GROUP app");
    elsewhere(
        "UPDATE pg_subscription SET subenabled = true, subtwophasestate = 'e', subdbid = (SELECT oid FROM pg_database WHERE datname = 'app')",
    );
    elsewhere("SELECT pg_reload_conf()"); // wakes the launcher of their workers

    // Rows that they write are replicated as any others.
    for table in ["truncated", "prepared"] {
        elsewhere(&format!("INSERT INTO {table} VALUES (1)"));
        let count = format!("SELECT count(*) FROM {table}");
        group.await_value(&member, &count, 1);
    }
    elsewhere("TRUNCATE truncated");
    elsewhere("BEGIN; INSERT INTO prepared VALUES (2); PREPARE TRANSACTION 'x'");
    let refusal = "cannot PREPARE a transaction that has changed data that is replicated";
    let logged = || member.log_tail(400).contains(refusal).then_some(());
    wait_for(PATIENCE, logged).unwrap_or_else(|| panic!("nobody was told: {refusal}"));
    group.await_value(&member, "SELECT count(*) FROM truncated", 0);
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(group.assert_identical(), 1);
    elsewhere("ROLLBACK PREPARED 'x'");
}

#[test]
fn a_replicated_database_is_not_dropped() {
    let group = group("drop", 1, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let member = group.member(1).expect("member");
    let mut client = member.connect("postgres").unwrap_or_else(|e| panic!("{e}"));
    for sql in ["DROP DATABASE app", "DROP DATABASE app WITH (FORCE)"] {
        let error = client.batch_execute(sql).expect_err(sql);
        let db = error.as_db_error().expect("an answer");
        assert_eq!(*db.code(), SqlState::OBJECT_IN_USE, "{db:?}");
        let hint = db.hint().expect("a hint");
        assert!(hint.contains("STOP REPLICATION"), "{hint}");
    }
    client
        .batch_execute("ALTER DATABASE app STOP REPLICATION")
        .expect("stop");
    client.batch_execute("DROP DATABASE app").expect("drop");
}
