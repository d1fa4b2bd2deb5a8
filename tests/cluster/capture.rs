//! What is captured of a transaction, and what of it can't be.

use crate::support::{PATIENCE, TestGroup, changesets, group};
use bytes::Bytes;
use postgres::Client;
use postgres::error::SqlState;
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::header::FLAG_LOCAL_EFFECTS;

/// Changesets in a member's log that say that they have local effects, and all of them.
fn local_effects(group: &TestGroup, number: usize) -> (usize, usize) {
    let all = changesets(group, number);
    let flags = |bytes: &Bytes| Changeset::parse(bytes).expect("whole").header().flags;
    let local = all.iter().filter(|c| flags(c) & FLAG_LOCAL_EFFECTS != 0);
    (local.count(), all.len())
}

#[test]
fn a_local_effect_marks_its_own_transaction_only() {
    let group = group(
        "local-effects",
        1,
        "CREATE TABLE t (id int4 PRIMARY KEY); CREATE UNLOGGED TABLE u (id int4);",
    );
    let mut client = group.client(1);
    let mut run = |sql: &str| client.batch_execute(sql).expect(sql);
    run("INSERT INTO u VALUES (1)");
    run("INSERT INTO t VALUES (1)");
    assert_eq!(local_effects(&group, 1), (0, 1));
    run("BEGIN; INSERT INTO u VALUES (2); INSERT INTO t VALUES (2); COMMIT");
    run("BEGIN; INSERT INTO u VALUES (3); ROLLBACK");
    run("INSERT INTO t VALUES (3)");
    assert_eq!(local_effects(&group, 1), (1, 3));
}

/// The statement is refused, with a hint; returns that.
fn refused(client: &mut Client, sql: &str) -> String {
    let error = client.batch_execute(sql).expect_err(sql);
    let db = error
        .as_db_error()
        .unwrap_or_else(|| panic!("{sql}: {error:?}"));
    assert_eq!(*db.code(), SqlState::FEATURE_NOT_SUPPORTED, "{sql}: {db:?}");
    let hint = db
        .hint()
        .unwrap_or_else(|| panic!("{sql} has no HINT: {db:?}"));
    hint.to_owned()
}

#[test]
fn a_primary_key_names_rows_whatever_the_replica_identity_says() {
    let group = group(
        "identity",
        2,
        "CREATE TABLE whole (id int4 PRIMARY KEY, v int4); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE nothing (id int4 PRIMARY KEY, v int4); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE dropped (id int4 PRIMARY KEY, x int4 NOT NULL, v int4); CREATE UNIQUE INDEX dropped_x ON dropped (x);
         ALTER TABLE dropped REPLICA IDENTITY USING INDEX dropped_x; DROP INDEX dropped_x;",
    );
    for (member, k) in [(1, 0), (2, 100)] {
        for (table, columns) in [
            ("whole", "id, v"),
            ("nothing", "id, v"),
            ("dropped", "id, x, v"),
        ] {
            let values = if table == "dropped" {
                "i, i, 0"
            } else {
                "i, 0"
            };
            group.execute(
                member,
                &format!(
                    "INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series({k} + 1, {k} + 9) i; UPDATE {table} SET v = 7 WHERE id = {k} + 2;
                     UPDATE {table} SET id = {k} + 50 WHERE id = {k} + 3; DELETE FROM {table} WHERE id = {k} + 4; SELECT * FROM {table} FOR UPDATE;"
                ),
            );
        }
        group.wait_in_step(PATIENCE).expect("in step");
    }
    assert_eq!(group.assert_identical(), 48);
}

#[test]
fn foreign_tables_are_not_changed_from_a_replicated_database() {
    let options = crate::support::options(1);
    let port = options.port;
    let group = crate::support::group_with(
        "foreign",
        options,
        &format!(
            "CREATE EXTENSION postgres_fdw; CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t VALUES (0, 0);
             CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
             CREATE USER MAPPING FOR PUBLIC SERVER other OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE f (id int4, v int4) SERVER other OPTIONS (table_name 'far');
             CREATE TABLE parts (id int4, v int4) PARTITION BY RANGE (id); CREATE TABLE parts_near PARTITION OF parts FOR VALUES FROM (0) TO (100); ALTER TABLE parts_near ADD PRIMARY KEY (id);
             CREATE FOREIGN TABLE parts_far PARTITION OF parts FOR VALUES FROM (100) TO (200) SERVER other OPTIONS (table_name 'far');"
        ),
    );
    let mut far = group
        .member(1)
        .expect("member")
        .connect("postgres")
        .unwrap_or_else(|e| panic!("{e}"));
    far.batch_execute(
        "CREATE TABLE far (id int4, v int4); INSERT INTO far VALUES (1, 1), (150, 1)",
    )
    .expect("far");
    let mut client = group.client(1);
    client
        .batch_execute("INSERT INTO parts VALUES (1, 0)")
        .expect("a near row");
    for sql in [
        "INSERT INTO f VALUES (2, 2)",
        "UPDATE f SET v = 2",
        "UPDATE f SET v = random()",
        "DELETE FROM f",
        "WITH w AS (DELETE FROM f RETURNING v) INSERT INTO t SELECT 5, v FROM w",
        "INSERT INTO parts VALUES (2, 1), (101, 1)",
        "UPDATE parts SET v = 2",
        "UPDATE parts SET id = 101 WHERE id = 1",
        "BEGIN; UPDATE t SET v = 1; INSERT INTO f VALUES (3, 3); COMMIT",
        "PREPARE p AS DELETE FROM f; EXECUTE p",
    ] {
        let hint = refused(&mut client, sql);
        assert!(hint.contains("not replicated"), "{sql}: {hint}");
        let _ = client.batch_execute("ROLLBACK; DEALLOCATE ALL");
    }
    for table in ["f", "parts"] {
        let sql = format!("COPY {table} FROM PROGRAM 'echo 102,1' (FORMAT csv)");
        refused(&mut client, &sql);
    }
    let sum =
        |client: &mut Client, sql: &str| client.query_one(sql, &[]).expect(sql).get::<_, i64>(0);
    assert_eq!(
        sum(&mut far, "SELECT sum(v) * 10 + count(*) FROM far"),
        22,
        "nothing reached the other server"
    );
    assert_eq!(
        sum(&mut client, "SELECT sum(v) FROM f"),
        2,
        "it can be read"
    );
    assert_eq!(sum(&mut client, "SELECT sum(v) FROM t"), 0);
    client
        .batch_execute("BEGIN; SELECT * FROM f FOR UPDATE; UPDATE t SET v = 1; COMMIT")
        .expect("reading with a change here");
}

#[test]
fn what_is_committed_is_shown_as_ordered() {
    let group = group("shown", 1, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let mut client = group.client(1);
    for i in 0..50 {
        client
            .batch_execute(&format!("INSERT INTO t VALUES ({i})"))
            .expect("insert");
        let row = client
            .query_one(
                "SELECT last_committed_gid, last_ordered_gid FROM pg_stat_replication_group",
                &[],
            )
            .expect("view");
        let (committed, ordered) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        assert!(
            ordered >= committed,
            "{ordered} is ordered and {committed} committed"
        );
    }
}
