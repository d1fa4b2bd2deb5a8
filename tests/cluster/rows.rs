//! Every covered statement, from every member, ends the same everywhere.

use crate::support::{Stop, TestGroup, group};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TYPES: &str = "
CREATE TABLE kinds (
  id int8 PRIMARY KEY, a bool, b int2, c int4, d float4, e float8, f numeric, g text, h varchar(20), i char(5),
  j bytea, k date, l time, m timestamptz, n interval, o uuid, p json, q jsonb, r int4[], s text[], t numeric(12,3)[], u \"char\", v name, w inet);
CREATE TABLE big (id int4 PRIMARY KEY, packed text, plain text, note text);
ALTER TABLE big ALTER plain SET STORAGE EXTERNAL;
CREATE TABLE two (a int4, b text, c int4, PRIMARY KEY (a, b));
CREATE TABLE parts (id int4, region text, v int4, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parts_n PARTITION OF parts FOR VALUES IN ('n');
CREATE TABLE parts_s PARTITION OF parts FOR VALUES IN ('s');
CREATE TABLE identity (x int4 NOT NULL, y text);
CREATE UNIQUE INDEX identity_x ON identity (x);
ALTER TABLE identity REPLICA IDENTITY USING INDEX identity_x;
CREATE TABLE heaped (v int4);
CREATE TABLE indexed (id int4 PRIMARY KEY, name text, score int4);
CREATE UNIQUE INDEX ON indexed (lower(name));
CREATE INDEX ON indexed (score) WHERE score > 10;
";

#[test]
fn every_covered_statement_ends_the_same_on_all_members() {
    let group = group("rows", 3, TYPES);
    // From each member in turn, with keys of its own.
    for member in 1..=3 {
        let k = member * 1000;
        group.execute(
            member,
            &format!(
                "INSERT INTO kinds SELECT {k} + i, i % 2 = 0, i, i * 100000, i / 3.0, i / 7.0, (i || '.' || repeat('7', i))::numeric, 'text ' || i,
                   'var' || i, 'c' || i % 10, decode(md5(i::text), 'hex'), date '2020-01-01' + i, time '00:00' + i * interval '1 minute',
                   timestamptz '2021-05-05 05:05:05+00' + i * interval '1 hour', i * interval '1 day 1 second', md5(i::text)::uuid,
                   json_build_object('i', i), jsonb_build_object('i', i, 'l', jsonb_build_array(i, 'x', null)), ARRAY[i, null, i + 1], ARRAY['a', 'b' || i],
                   ARRAY[i / 3.0, null], 'z', 'n' || i, ('10.0.0.' || i)::inet FROM generate_series(1, 50) i;
                 INSERT INTO kinds (id) VALUES ({k} + 99);
                 UPDATE kinds SET g = g || '!', r[2] = 5, q = NULL WHERE id BETWEEN {k} + 10 AND {k} + 20;
                 UPDATE kinds SET id = id + 500 WHERE id BETWEEN {k} + 21 AND {k} + 25;
                 UPDATE kinds SET a = a WHERE id = {k} + 1;
                 DELETE FROM kinds WHERE id BETWEEN {k} + 30 AND {k} + 40;
                 INSERT INTO big SELECT {k} + i, repeat('abc', 20000), (SELECT string_agg(md5(({k} * i + j)::text), '') FROM generate_series(1, 300) j), 'n' FROM generate_series(1, 5) i;
                 UPDATE big SET note = 'changed' WHERE id = {k} + 1;
                 UPDATE big SET packed = repeat('xyz', 30000) WHERE id = {k} + 2;
                 INSERT INTO big SELECT id + 100, packed, plain, note FROM big WHERE id BETWEEN {k} + 1 AND {k} + 5;
                 INSERT INTO two SELECT {k}, 'b' || i, i FROM generate_series(1, 20) i;
                 UPDATE two SET c = c * 2 WHERE a = {k};
                 DELETE FROM two WHERE a = {k} AND b = 'b3';
                 INSERT INTO parts SELECT {k} + i, CASE WHEN i % 2 = 0 THEN 'n' ELSE 's' END, i FROM generate_series(1, 20) i;
                 UPDATE parts SET region = 'n' WHERE id = {k} + 1;
                 UPDATE parts SET v = v + 1 WHERE id > {k};
                 INSERT INTO identity SELECT {k} + i, 'y' FROM generate_series(1, 10) i;
                 UPDATE identity SET y = 'z' WHERE x = {k} + 3;
                 DELETE FROM identity WHERE x = {k} + 4;
                 INSERT INTO heaped SELECT i % 3 FROM generate_series(1, 30) i;
                 INSERT INTO indexed SELECT {k} + i, 'Name' || {k} + i, i FROM generate_series(1, 30) i;
                 UPDATE indexed SET score = score + 9, name = upper(name) WHERE id > {k} + 20;
                 INSERT INTO indexed VALUES ({k} + 1, 'x', 0) ON CONFLICT (id) DO UPDATE SET score = 77;
                 INSERT INTO indexed VALUES ({k} + 2, 'x', 0) ON CONFLICT DO NOTHING;"
            ),
        );
        let target = group
            .wait_in_step(crate::support::PATIENCE)
            .expect("in step");
        assert!(target > 0);
    }
    assert_eq!(group.assert_identical(), 474);
    // What arrived can be found through every index of every member.
    for member in 1..=3 {
        let mut client = group.client(member);
        client
            .batch_execute("SET enable_seqscan = off")
            .expect("set");
        let one = |client: &mut postgres::Client, sql: &str| {
            client.query_one(sql, &[]).expect(sql).get::<_, i64>(0)
        };
        assert_eq!(
            one(
                &mut client,
                "SELECT count(*) FROM indexed WHERE lower(name) = 'name3025'"
            ),
            1
        );
        assert_eq!(
            one(
                &mut client,
                "SELECT count(*) FROM indexed WHERE score > 10 AND score = 77"
            ),
            3
        );
        assert_eq!(
            one(
                &mut client,
                "SELECT count(*) FROM parts_n WHERE region = 'n'"
            ),
            33
        );
    }
}

#[test]
fn what_is_compressed_travels_compressed() {
    use std::io::Write;
    let group = group(
        "compressed",
        2,
        "CREATE TABLE big (id int4 PRIMARY KEY, packed text, note text);",
    );
    // In line it takes little more than a needle; out of line, the part that can't be compressed too.
    let long = "repeat('needle-', 2000)";
    let out_of_line = "(SELECT string_agg(md5(j::text), '') FROM generate_series(1, 200) j) || repeat('needle-', 2000)";
    group.execute(
        1,
        &format!(
            "INSERT INTO big VALUES (1, {long}), (2, {long}), (3, {out_of_line}), (4, '');
             UPDATE big SET packed = {long} WHERE id = 4;
             UPDATE big SET packed = packed || 'x' WHERE id = 1;
             UPDATE big SET packed = {out_of_line} WHERE id = 2;
             INSERT INTO big VALUES (5, {long}) ON CONFLICT (id) DO NOTHING;
             INSERT INTO big VALUES (5, {out_of_line}) ON CONFLICT (id) DO UPDATE SET packed = excluded.packed;
             INSERT INTO big SELECT id + 10, packed FROM big;
             UPDATE big SET note = 'kept' WHERE id > 10;"
        ),
    );
    let mut client = group.client(1);
    let mut copy = client.copy_in("COPY big FROM STDIN").expect("copy");
    for id in 21..=40 {
        writeln!(copy, "{id}\t{}\t", "needle-".repeat(2000)).expect("write");
    }
    copy.finish().expect("finish");
    assert_eq!(group.assert_identical(), 30);
    // As it is stored at the origin, so elsewhere.
    let stored = |member| -> Vec<(i32, i32, Option<String>)> {
        let sql =
            "SELECT id, pg_column_size(packed), pg_column_compression(packed) FROM big ORDER BY id";
        let rows = group.client(member).query(sql, &[]).expect(sql);
        rows.iter()
            .map(|r| (r.get(0), r.get(1), r.get(2)))
            .collect()
    };
    assert_eq!(stored(1), stored(2));
    let log = group.member(2).expect("member").data.join("pg_group/log");
    let mut needles = 0;
    for segment in std::fs::read_dir(log).expect("group log") {
        let bytes = std::fs::read(segment.expect("segment").path()).expect("read");
        needles += bytes.windows(7).filter(|w| *w == b"needle-").count();
    }
    assert!((1..200).contains(&needles), "{needles} in the group log");
}

#[test]
fn what_one_transaction_did_is_there_and_nothing_else() {
    let group = group(
        "rows-of-one",
        3,
        "CREATE TABLE own (id int4 PRIMARY KEY, v int4); INSERT INTO own SELECT i, 0 FROM generate_series(1, 9) i;
         CREATE TABLE kept (id int4 PRIMARY KEY, v int4); CREATE TABLE copied (id int4 PRIMARY KEY, v text); CREATE INDEX ON copied (v);",
    );
    rows_copied_in_arrive_everywhere(&group);
    a_transaction_that_changes_its_own_rows_again_ends_the_same(&group);
    a_rollback_to_a_savepoint_removes_exactly_its_rows(&group);
}

fn rows_copied_in_arrive_everywhere(group: &TestGroup) {
    use std::io::Write;
    for member in 1..=3 {
        let mut client = group.client(member);
        let mut copy = client.copy_in("COPY copied FROM STDIN").expect("copy");
        for i in 0..5000 {
            writeln!(copy, "{}\trow {i} of {member}", member * 10_000 + i).expect("write");
        }
        assert_eq!(copy.finish().expect("finish"), 5000);
    }
    assert_eq!(group.assert_identical(), 15_009);
}

fn a_transaction_that_changes_its_own_rows_again_ends_the_same(group: &TestGroup) {
    group.execute(
        2,
        "BEGIN;
         UPDATE own SET v = 1 WHERE id = 1; UPDATE own SET v = v + 1 WHERE id <= 2; UPDATE own SET v = v + 1 WHERE id = 1;
         UPDATE own SET id = 103 WHERE id = 3; UPDATE own SET id = 3, v = 4 WHERE id = 4; UPDATE own SET v = v + 1 WHERE id = 3;
         DELETE FROM own WHERE id = 5; INSERT INTO own VALUES (5, 50); UPDATE own SET v = v + 1 WHERE id = 5;
         INSERT INTO own VALUES (10, 0), (11, 0); UPDATE own SET v = 7 WHERE id IN (6, 10); DELETE FROM own WHERE id = 11;
         UPDATE own SET v = 1 WHERE id = 7; DELETE FROM own WHERE id = 7; INSERT INTO own VALUES (7, 70); DELETE FROM own WHERE id = 7;
         COMMIT;",
    );
    group.assert_identical();
    let rows: String = group
        .client(3)
        .query_one(
            "SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM own",
            &[],
        )
        .expect("rows")
        .get(0);
    assert_eq!(rows, "1:3 2:1 3:5 5:51 6:7 8:0 9:0 10:7 103:0");
}

/// What is applied between them goes through commands of its own.
#[test]
fn a_row_that_is_changed_before_and_after_something_else_ends_the_same() {
    let tables =
        "CREATE TABLE t (id int4 PRIMARY KEY, n int4); INSERT INTO t VALUES (1, 0), (2, 0);
                  CREATE TABLE whole (n int4); INSERT INTO whole VALUES (0), (0);
                  CREATE TABLE emptied (v int4); CREATE SEQUENCE s; SELECT lo_create(4000000001);";
    let group = group("between", 2, tables);
    for between in [
        "TRUNCATE emptied",
        "ALTER SEQUENCE s RESTART 5",
        "ALTER LARGE OBJECT 4000000001 OWNER TO pg_monitor",
        "SELECT lo_from_bytea(0, 'x')",
    ] {
        // Each by itself: the search for one row lets the snapshot of the helper show all of them.
        for update in [
            "UPDATE t SET n = n + 1 WHERE id = 1",
            "UPDATE whole SET n = n + 1",
        ] {
            let sql = format!("BEGIN; {update}; {between}; {update}; {update}; COMMIT");
            group.execute(1, &sql);
        }
    }
    group.assert_identical();
}

fn a_rollback_to_a_savepoint_removes_exactly_its_rows(group: &TestGroup) {
    group.execute(
        1,
        "INSERT INTO kept SELECT i, 0 FROM generate_series(1, 10) i",
    );
    group
        .wait_in_step(crate::support::PATIENCE)
        .expect("in step");
    group.execute(
        2,
        "BEGIN; INSERT INTO kept VALUES (100, 1);
         SAVEPOINT a; INSERT INTO kept VALUES (101, 1); UPDATE kept SET v = 5 WHERE id = 1;
         SAVEPOINT b; DELETE FROM kept WHERE id = 2; ROLLBACK TO b; UPDATE kept SET v = 6 WHERE id = 3;
         RELEASE b; ROLLBACK TO a; INSERT INTO kept VALUES (102, 1);
         SAVEPOINT c; SAVEPOINT d; UPDATE kept SET v = 7 WHERE id = 4; RELEASE d; RELEASE c;
         COMMIT;
         DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN INSERT INTO kept VALUES (1000 + i, i); IF i % 2 = 0 THEN RAISE 'x'; END IF; EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$;",
    );
    group.assert_identical();
    for member in 1..=3 {
        let mut client = group.client(member);
        let row = client
            .query_one("SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FILTER (WHERE id < 1000), count(*) FILTER (WHERE id > 1000) FROM kept", &[])
            .expect("query");
        assert_eq!(
            row.get::<_, &str>(0),
            "1:0 2:0 3:0 4:7 5:0 6:0 7:0 8:0 9:0 10:0 100:1 102:1"
        );
        assert_eq!(row.get::<_, i64>(1), 100);
    }
}

#[test]
fn helpers_bear_invalidations_in_the_middle_of_a_transaction() {
    let group = group(
        "analyze",
        2,
        "CREATE TABLE a (id int4 PRIMARY KEY, v int4); CREATE INDEX ON a (v);
         CREATE TABLE b (id int4 PRIMARY KEY, v int4); CREATE INDEX ON b (v);
         CREATE TABLE c (id int4 PRIMARY KEY, v int4); CREATE INDEX ON c (v);
         INSERT INTO a SELECT i, i FROM generate_series(1, 50) i;
         INSERT INTO b SELECT * FROM a; INSERT INTO c SELECT * FROM a;",
    );
    let sessions = [
        "ANALYZE a; ANALYZE b; ANALYZE c",
        "CREATE TEMP TABLE x (i int4); DROP TABLE x",
        "CREATE TEMP TABLE y (i int4); DROP TABLE y",
    ];
    while_running(&group, 2, &sessions, || {
        let mut client = group.client(1);
        for i in 0..600 {
            let row = i % 50 + 1;
            client
                .batch_execute(&format!(
                    "BEGIN; UPDATE a SET v = v + 50 WHERE id = {row}; UPDATE b SET v = v + 50 WHERE id = {row};
                     UPDATE c SET v = v + 50 WHERE id = {row}; UPDATE a SET v = v + 1 WHERE id = {row}; COMMIT"
                ))
                .expect("update");
        }
    });
    group.assert_identical();
}

/// Does `work` while sessions of a member repeat a text of statements each, of which none may fail.
fn while_running(group: &TestGroup, member: usize, sessions: &[&str], work: impl FnOnce()) {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for sql in sessions {
            scope.spawn(move || {
                let mut client = group.client(member);
                while !stop.load(Ordering::Relaxed) {
                    for statement in sql.split(';') {
                        client
                            .batch_execute(statement)
                            .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
                    }
                }
            });
        }
        let _stop = Stop(stop);
        work();
    });
}

#[test]
fn what_computed_indexes_need_of_memory_is_given_back_row_by_row() {
    let group = group(
        "expressions",
        2,
        "CREATE TABLE t (id int4 PRIMARY KEY, v text);
         CREATE INDEX ON t (length(repeat(v, 10000)));
         CREATE INDEX ON t (id) WHERE length(repeat(v, 10000)) > 5;",
    );
    // 10 kB for each index and row: 400 MB in all.
    for i in 0..4 {
        group.execute(
            1,
            &format!(
                "INSERT INTO t SELECT i, 'x' FROM generate_series({i} * 5000, {i} * 5000 + 4999) i"
            ),
        );
    }
    assert_eq!(group.assert_identical(), 20_000);
    let rows = group
        .client(2)
        .query(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'replication helper'",
            &[],
        )
        .expect("helpers");
    assert!(!rows.is_empty());
    for row in rows {
        let pid: i32 = row.get(0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let anonymous: u64 = status
            .lines()
            .find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"))
            .and_then(|n| n.parse().ok())
            .expect("RssAnon");
        assert!(anonymous < 50_000, "a helper has {anonymous} kB");
    }
}

#[test]
fn helpers_bear_indexes_that_are_made_anew_beside_them() {
    let group = group(
        "reindex",
        2,
        "CREATE TABLE a (id int4 PRIMARY KEY, v int4); CREATE INDEX a_v ON a (v);
         INSERT INTO a SELECT i, i FROM generate_series(1, 50) i;",
    );
    let sessions = ["REINDEX INDEX CONCURRENTLY a_v; REINDEX TABLE CONCURRENTLY a"];
    while_running(&group, 2, &sessions, || {
        let mut client = group.client(1);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            client
                .batch_execute("UPDATE a SET v = v + 50 WHERE id % 10 = 3")
                .expect("update");
        }
    });
    group.assert_identical();
}
