//! TRUNCATE on one member empties the table on all.

use crate::support::{PATIENCE, TestGroup, group, group_with, options};
use postgres::error::SqlState;

const TABLES: &str = "
CREATE TABLE t (id int4 PRIMARY KEY, v text); CREATE INDEX t_lower ON t (lower(v)); CREATE INDEX ON t USING hash (v);
CREATE TABLE child (id int4 PRIMARY KEY, t int4 REFERENCES t);
CREATE TABLE parts (id int4, b int4, PRIMARY KEY (id, b)) PARTITION BY LIST (b);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1) PARTITION BY RANGE (id); CREATE TABLE parts_1a PARTITION OF parts_1 DEFAULT;
CREATE TABLE parts_child (id int4 PRIMARY KEY, p int4, b int4, FOREIGN KEY (p, b) REFERENCES parts);
CREATE TABLE base (id int4 PRIMARY KEY); CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base);
CREATE TABLE keyless (v int4); CREATE UNLOGGED TABLE u (v int4);
CREATE TABLE log (what text, member int4);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO log VALUES (TG_WHEN || ' ' || TG_LEVEL, current_setting('port')::int4); RETURN NULL; END $$;
CREATE TRIGGER before BEFORE TRUNCATE ON child EXECUTE FUNCTION note(); CREATE TRIGGER after AFTER TRUNCATE ON child EXECUTE FUNCTION note();
";

fn fill(group: &TestGroup, member: usize) {
    group.execute(
        member,
        "INSERT INTO t SELECT i, repeat(md5(i::text), 200) || i FROM generate_series(1, 50) i; INSERT INTO child SELECT i, i FROM generate_series(1, 20) i;
         INSERT INTO parts SELECT i, i % 2 FROM generate_series(1, 20) i; INSERT INTO parts_child SELECT i, i, i % 2 FROM generate_series(1, 5) i;
         INSERT INTO base SELECT i FROM generate_series(1, 5) i; INSERT INTO derived SELECT i + 10 FROM generate_series(1, 5) i;
         INSERT INTO keyless SELECT 1 FROM generate_series(1, 10);",
    );
    group.wait_in_step(PATIENCE).expect("in step");
}

/// Rows of a member, those of a table that is left out not among them.
fn rows(group: &TestGroup, but: &str) -> u64 {
    let all = group.assert_identical();
    let sql = format!("SELECT count(*) FROM {but}");
    let left_out: i64 = group.client(1).query_one(&sql, &[]).expect("count").get(0);
    all - left_out as u64
}

#[test]
fn restart_identity_restarts_sequences_for_all_members() {
    let group = group(
        "truncate-restart",
        3,
        "CREATE TABLE ids (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n serial, v int4);",
    );
    let add = |member: usize| -> (i64, i32) {
        let sql = "INSERT INTO ids (v) VALUES (0) RETURNING id, n";
        let row = group.client(member).query_one(sql, &[]).expect("insert");
        (row.get(0), row.get(1))
    };
    for member in 1..=3 {
        add(member);
    }
    group.wait_in_step(PATIENCE).expect("in step");
    group.execute(
        2,
        "BEGIN; TRUNCATE ids RESTART IDENTITY; INSERT INTO ids (v) VALUES (1); ROLLBACK",
    );
    let (id, n) = add(2);
    assert!(id > 3 && n > 3, "a restart that was rolled back: {id}, {n}");
    group.wait_in_step(PATIENCE).expect("in step");
    group.execute(
        3,
        "BEGIN; TRUNCATE ids RESTART IDENTITY; INSERT INTO ids (v) VALUES (1), (2); COMMIT",
    );
    group.wait_in_step(PATIENCE).expect("in step");
    let mut seen = vec![(1, 1), (2, 2)];
    for member in [1, 2, 3, 1] {
        let new = add(member);
        assert!(!seen.contains(&new), "{new:?} once more");
        seen.push(new);
    }
    assert_eq!(seen[2], (3, 3), "the next values of all");
    group.assert_identical();
}

/// Everything is empty again.
const EMPTY: &str = "TRUNCATE t, child, parts, parts_child, base, derived, keyless, log";

#[test]
fn truncate_is_applied_as_it_was_run() {
    let group = group("truncate", 3, TABLES);
    let parts: [fn(&TestGroup); 4] = [
        triggers_of_truncate_fire_where_it_runs,
        rows_that_are_copied_in_frozen_arrive,
        what_truncate_reaches_is_empty_on_all_members,
        a_member_that_was_away_truncates_when_it_is_back,
    ];
    for part in parts {
        part(&group);
        group.execute(1, &format!("{EMPTY}; TRUNCATE log"));
        group.wait_in_step(PATIENCE).expect("in step");
    }
}

fn what_truncate_reaches_is_empty_on_all_members(group: &TestGroup) {
    let steps = [
        ("TRUNCATE keyless", 105),
        ("TRUNCATE t CASCADE", 45),
        ("TRUNCATE t, child, parts, parts_child, u, keyless", 10),
        ("TRUNCATE parts CASCADE", 90),
        ("TRUNCATE base", 105),
        ("TRUNCATE ONLY base", 110),
        ("TRUNCATE parts_child, parts_1", 100),
        (
            "CREATE TEMP TABLE tmp (v int4); TRUNCATE tmp, keyless, u RESTART IDENTITY",
            105,
        ),
        ("BEGIN; TRUNCATE t, child; ROLLBACK", 115),
        (
            "BEGIN; SAVEPOINT s; TRUNCATE t, child; INSERT INTO t VALUES (1, 'a'); ROLLBACK TO s; TRUNCATE keyless; COMMIT",
            105,
        ),
        (
            "BEGIN; INSERT INTO t VALUES (99, 'gone'); TRUNCATE t, child; INSERT INTO t VALUES (1, 'one'), (2, 'two'); UPDATE t SET v = 'three' WHERE id = 2; DELETE FROM t WHERE id = 1;
             TRUNCATE keyless; INSERT INTO keyless VALUES (5); COMMIT",
            115 - 50 - 20 - 10 + 2,
        ),
    ];
    for (i, (sql, left)) in steps.into_iter().enumerate() {
        let member = i % 3 + 1;
        fill(group, member);
        group.execute(member % 3 + 1, sql);
        assert_eq!(rows(group, "log"), left, "{sql}");
        group.execute(
            member,
            "TRUNCATE t, child, parts, parts_child, base, derived, keyless",
        );
        group.wait_in_step(PATIENCE).expect("in step");
    }
    assert_eq!(rows(group, "log"), 0);
    // What comes afterwards is found through every index.
    fill(group, 2);
    group.assert_identical();
    for member in 1..=3 {
        let mut client = group.client(member);
        client
            .batch_execute("SET enable_seqscan = off")
            .expect("set");
        let sql = "SELECT count(*) FROM t a JOIN t b ON lower(a.v) = lower(b.v) WHERE a.id = 7";
        let found: i64 = client.query_one(sql, &[]).expect(sql).get(0);
        assert_eq!(found, 1);
        let sql = "SELECT bool_and(pg_relation_size(c.oid) < 4 * pg_relation_size('t')) FROM pg_class c WHERE relname = 't_lower'";
        assert!(client.query_one(sql, &[]).expect(sql).get::<_, bool>(0));
    }
}

fn triggers_of_truncate_fire_where_it_runs(group: &TestGroup) {
    for member in 1..=3 {
        group.execute(member, "TRUNCATE child");
        group.wait_in_step(PATIENCE).expect("in step");
    }
    assert_eq!(group.assert_identical(), 6);
    let sql =
        "SELECT string_agg(n::text, ' ') FROM (SELECT count(*) n FROM log GROUP BY what, member) x";
    let counts: String = group.client(2).query_one(sql, &[]).expect(sql).get(0);
    assert_eq!(counts, "1 1 1 1 1 1");
}

fn a_member_that_was_away_truncates_when_it_is_back(group: &TestGroup) {
    fill(group, 1);
    let away = group.member(3).expect("member");
    away.kill().unwrap_or_else(|e| panic!("{e}"));
    group.execute(
        1,
        "TRUNCATE t CASCADE; INSERT INTO t VALUES (7, 'seven'); TRUNCATE keyless; INSERT INTO keyless VALUES (1), (1)",
    );
    group.start(3);
    group.execute(3, "INSERT INTO child VALUES (1, 7); TRUNCATE parts CASCADE");
    assert_eq!(rows(group, "log"), 1 + 2 + 1 + 10);
}

fn rows_that_are_copied_in_frozen_arrive(group: &TestGroup) {
    use std::io::Write;
    fill(group, 1);
    let mut client = group.client(2);
    let mut t = client.transaction().expect("begin");
    t.batch_execute("TRUNCATE keyless").expect("truncate");
    let mut copy = t
        .copy_in("COPY keyless FROM STDIN WITH (FREEZE)")
        .expect("copy");
    for i in 0..1000 {
        writeln!(copy, "{}", i % 10).expect("write");
    }
    copy.finish().expect("finish");
    t.commit().expect("commit");
    group.wait_in_step(PATIENCE).expect("in step");
    group.execute(1, "DELETE FROM keyless WHERE v = 3");
    assert_eq!(rows(group, "log"), 105 + 900);
}

#[test]
fn a_foreign_table_is_not_truncated() {
    let group = group(
        "truncate-foreign",
        1,
        "CREATE EXTENSION postgres_fdw; CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw; CREATE TABLE t (id int4 PRIMARY KEY); INSERT INTO t VALUES (1);
         CREATE FOREIGN TABLE f (id int4) SERVER other;",
    );
    let error = group.client(1).batch_execute("TRUNCATE t, f");
    let error = error.expect_err("a foreign table");
    let code = error.code();
    assert_eq!(code, Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error:?}");
    assert_eq!(group.assert_identical(), 1);
}

/// What was applied is decoded as what ran here.
#[test]
fn a_publication_of_a_member_has_what_others_changed() {
    let mut options = options(2);
    options.configuration.push_str("wal_level = logical\n");
    let group = group_with(
        "publication",
        options,
        "CREATE TABLE t (id int4 PRIMARY KEY, v text); CREATE TABLE whole (v int4); ALTER TABLE whole REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR ALL TABLES;",
    );
    let mut client = group.client(2);
    let slot = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    client.batch_execute(slot).expect("slot");
    group.execute(
        1,
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'); UPDATE t SET v = 'c' WHERE id = 1; DELETE FROM t WHERE id = 2; TRUNCATE t;
         INSERT INTO whole VALUES (1), (1); DELETE FROM whole WHERE ctid = '(0,1)'",
    );
    group.wait_in_step(PATIENCE).expect("in step");
    let sql = "SELECT string_agg(kind, '') FROM (SELECT chr(get_byte(data, 0)) kind
               FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')) x WHERE kind IN ('I', 'U', 'D', 'T')";
    let kinds: String = client.query_one(sql, &[]).expect(sql).get(0);
    assert_eq!(kinds, "IIUDTIID");
    group.assert_identical();
}
