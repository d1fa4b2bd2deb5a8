//! Updates that follow each other are put into the heap many at a time: the pages are such as PostgreSQL makes
//! them, WAL makes the same of them again, and whoever has a row locked is waited for or asked to go as ever.

use crate::support::{PATIENCE, TestGroup, check_trees, group_with, options};
use nix::sys::signal::Signal;
use postgres::Client;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::{Server, StopMode};

const ROWS: i64 = 3000;

const TABLES: &str = "
CREATE EXTENSION amcheck; CREATE EXTENSION pg_walinspect;
CREATE TABLE tiny (id int4 PRIMARY KEY, n int4);
CREATE TABLE half (id int4 PRIMARY KEY, n int4, t text) WITH (fillfactor = 50);
CREATE TABLE summed (id int4 PRIMARY KEY, n int4, m int4) WITH (fillfactor = 40);
CREATE INDEX ON summed USING brin (n) WITH (pages_per_range = 1);
CREATE INDEX ON summed (m);
CREATE TABLE mixed (id int8 PRIMARY KEY, n int4, t text, doc text STORAGE EXTERNAL);
CREATE TABLE sized (id int4 PRIMARY KEY, a text, u uuid, b int8, c text, n numeric);
CREATE TABLE child (id int4 PRIMARY KEY, tiny int4 REFERENCES tiny);
INSERT INTO tiny SELECT i, 0 FROM generate_series(1, 3000) i;
INSERT INTO half SELECT i, 0, 'row ' || i FROM generate_series(1, 3000) i;
INSERT INTO summed SELECT i, i, i FROM generate_series(1, 3000) i;
INSERT INTO mixed SELECT i, 0, repeat('x', i % 50), CASE WHEN i % 200 = 0 THEN repeat(md5(i::text), 300) END
    FROM generate_series(1, 3000) i;
INSERT INTO sized SELECT i, CASE i % 7 WHEN 0 THEN NULL ELSE md5(i::text) END, gen_random_uuid(), i, repeat(i::text, 1 + i % 70), i
    FROM generate_series(1, 3000) i;
-- Rows that are shorter than their table.
ALTER TABLE sized ADD COLUMN added int4 DEFAULT 7, ADD COLUMN word text DEFAULT 'word';
";

/// Pages of tables (not of indexes) that went to WAL as a whole since `from`, without a record of a change.
const WHOLE_PAGES: &str = "SELECT count(*) FROM pg_get_wal_block_info('{from}', pg_current_wal_insert_lsn())
    WHERE record_type = 'FPI' AND relfilenode IN (SELECT relfilenode FROM pg_class WHERE relkind = 'r')";

fn value<T: for<'a> postgres::types::FromSql<'a>>(server: &Server, sql: &str) -> T {
    query_one(server, "app", sql).unwrap_or_else(|e| panic!("{e}"))
}

fn position(server: &Server) -> String {
    value(server, "SELECT pg_current_wal_insert_lsn()::text")
}

fn whole_pages(server: &Server, from: &str) -> i64 {
    // Only what is flushed can be read.
    server
        .execute("app", "checkpoint", "CHECKPOINT")
        .unwrap_or_else(|e| panic!("{e}"));
    value(server, &WHOLE_PAGES.replace("{from}", from))
}

fn run(client: &mut Client, statement: &str) {
    client
        .batch_execute(statement)
        .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
}

/// What a heap holds is sound, and so are its indexes.
fn check_heaps(server: &Server) {
    let found: Option<String> = value(
        server,
        "SELECT string_agg(c.relname || ': ' || v::text, E'\\n') FROM pg_class c, LATERAL verify_heapam(c.oid) v
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace",
    );
    assert_eq!(found, None, "member {}", server.number);
    check_trees(server);
}

fn in_step(group: &TestGroup) {
    group.wait_in_step(PATIENCE).expect("in step");
    assert!(group.assert_identical() >= 4 * ROWS as u64);
    for server in group.running() {
        check_heaps(server);
    }
}

/// Updates of everything, of parts, and of the same rows again.
fn work(client: &mut Client) {
    let statements = [
        // The pages are all-visible, and full but for `half`.
        "UPDATE tiny SET n = n + 1".to_string(),
        "UPDATE half SET n = n + 1".into(),
        "UPDATE summed SET n = n + 1; UPDATE summed SET m = m + 1 WHERE id % 2 = 0".into(),
        "UPDATE mixed SET n = n + 1; UPDATE mixed SET t = t || 'y' WHERE id % 3 = 0".into(),
        // Now dead rows are among them, and pointers without rows.
        "UPDATE tiny SET n = n + 1; UPDATE tiny SET n = n + 1; UPDATE half SET n = n + 1; UPDATE half SET t = t || '!'".into(),
        // Rows of earlier statements, rows of its own, and what a savepoint takes back.
        "BEGIN; UPDATE tiny SET n = n + 1; UPDATE tiny SET n = n * 2 WHERE id % 2 = 0;
         INSERT INTO tiny SELECT i, 0 FROM generate_series(10001, 10500) i; UPDATE tiny SET n = 5 WHERE id > 9900;
         SAVEPOINT a; UPDATE tiny SET n = -1; ROLLBACK TO a; UPDATE tiny SET n = n + 1; COMMIT".into(),
        // Identities move on, the last first; then a name is another row's.
        "UPDATE tiny SET id = id + 20000 WHERE id > 10000".into(),
        "BEGIN; DO $$ BEGIN FOR i IN REVERSE 2000..1 LOOP UPDATE tiny SET id = id + 1 WHERE id = i + 30000; END LOOP; END $$;
         UPDATE tiny SET n = n + 7 WHERE id > 30000; COMMIT".into(),
        // Values out of line come and go.
        "UPDATE mixed SET doc = CASE WHEN id % 300 = 0 THEN repeat(md5(id::text), 200) ELSE doc END WHERE id % 100 = 0;
         UPDATE mixed SET doc = NULL, n = n - 1 WHERE id % 400 = 0; UPDATE mixed SET n = n + 1 WHERE id % 50 < 40".into(),
        // Values that are as long as before, short ones and long ones, longer ones, and nulls.
        "UPDATE sized SET a = reverse(a), u = gen_random_uuid(); UPDATE sized SET c = translate(c, '12', '21'), b = -b;
         UPDATE sized SET b = NULL, n = n + 10 WHERE id % 5 = 0; UPDATE sized SET b = id, a = coalesce(a, 'a') WHERE id % 3 = 0;
         UPDATE sized SET added = added + 1 WHERE id % 2 = 0; UPDATE sized SET word = 'drow', c = c || '0' WHERE id % 4 < 2;
         UPDATE sized SET c = repeat('x', 126) WHERE id % 9 = 0; UPDATE sized SET c = repeat('y', 127) WHERE id % 9 < 2;
         UPDATE sized SET c = repeat('z', 127) WHERE id % 9 = 1".into(),
        // Many small ones.
        "DO $$ BEGIN FOR i IN 0..29 LOOP UPDATE half SET n = n + 1 WHERE id BETWEEN i * 100 + 1 AND i * 100 + 100; COMMIT; END LOOP; END $$".into(),
        "DELETE FROM tiny WHERE id > 10000".into(),
    ];
    for statement in &statements {
        run(client, statement);
    }
}

#[test]
fn pages_are_sound_on_all_members_and_after_a_crash() {
    let mut options = options(3);
    // Redo compares each page that it makes with the one that was; and what was written is read again.
    options.configuration.push_str(
        "wal_consistency_checking = 'all'\nautovacuum = off\nmax_wal_size = 4GB\nwal_keep_size = 4GB\n",
    );
    let group = group_with("updates", options, TABLES);
    let member = |number| group.member(number).expect("member");
    // What is to be decoded has its records.
    run(
        &mut group.client(3),
        "ALTER SYSTEM SET wal_level = 'logical'",
    );
    member(3)
        .stop(StopMode::Fast)
        .unwrap_or_else(|e| panic!("{e}"));
    group.start(3);
    group.await_online(3);
    let slot = "SELECT pg_create_logical_replication_slot('decoded', 'test_decoding')::text";
    let _: String = value(member(3), slot);
    for number in 1..=3 {
        run(&mut group.client(number), "VACUUM");
    }
    let from = [2, 3].map(|number| position(member(number)));
    work(&mut group.client(1));
    in_step(&group);
    assert!(whole_pages(member(2), &from[0]) > 50);
    assert_eq!(whole_pages(member(3), &from[1]), 0);
    let hot: i64 = value(
        member(2),
        "SELECT pg_stat_get_tuples_hot_updated('half'::regclass)",
    );
    assert!(hot > ROWS, "{hot} HOT updates");
    let decoded: i64 = value(
        member(3),
        "SELECT count(*) FROM pg_logical_slot_get_changes('decoded', NULL, NULL) WHERE data LIKE 'table public.half: UPDATE:%'",
    );
    assert_eq!(decoded, 4 * ROWS);
    run(
        &mut group.client(3),
        "SELECT pg_drop_replication_slot('decoded')",
    );

    member(2).kill().unwrap_or_else(|e| panic!("{e}"));
    group.start(2);
    group.await_online(2);
    work(&mut group.client(3));
    in_step(&group);
}

#[test]
fn who_has_some_of_the_rows_locked_keeps_what_is_his() {
    let group = group_with("updates-locks", options(3), TABLES);
    // References keep updates of other columns from nothing.
    let mut referring = group.client(2);
    run(
        &mut referring,
        "BEGIN; INSERT INTO child SELECT i, i FROM generate_series(1, 3000, 50) i",
    );
    // Who changes one of the rows has lost.
    let mut losing = group.client(2);
    run(
        &mut losing,
        "BEGIN; UPDATE half SET n = 100 WHERE id IN (2000, 2001)",
    );
    let mut client = group.client(1);
    run(
        &mut client,
        "BEGIN; UPDATE tiny SET n = n + 1; UPDATE half SET n = n + 1; COMMIT",
    );
    let two = group.member(2).expect("member");
    group.await_value(two, "SELECT count(*) FROM half WHERE n = 1", ROWS);
    group.await_value(two, "SELECT count(*) FROM tiny WHERE n = 1", ROWS);
    run(&mut referring, "COMMIT");
    losing
        .batch_execute("COMMIT")
        .expect_err("another has changed the row");
    // Rows that were referred to, by one that is gone and by one that is there.
    run(
        &mut referring,
        "BEGIN; INSERT INTO child SELECT i + 1, i FROM generate_series(1, 3000, 50) i; ROLLBACK;
         BEGIN; SELECT FROM tiny WHERE id % 60 = 0 FOR KEY SHARE",
    );
    run(&mut client, "UPDATE tiny SET n = n + 1");
    group.await_value(two, "SELECT count(*) FROM tiny WHERE n = 2", ROWS);
    run(&mut referring, "COMMIT");
    in_step(&group);
}

/// In one transaction, and in small ones that a member which is behind applies together.
#[test]
fn a_row_that_is_updated_again_has_one_version() {
    let group = group_with(
        "updates-again",
        options(3),
        &format!(
            "{TABLES} CREATE TABLE counter (id int4 PRIMARY KEY, n int4, t text); INSERT INTO counter SELECT i, 0, repeat('x', 20) FROM generate_series(1, 50) i;
             CREATE TABLE moving (id int4 PRIMARY KEY, n int4, t text); INSERT INTO moving SELECT i, i, repeat('x', 20) FROM generate_series(1, 100) i;
             CREATE TABLE whole (id int4 PRIMARY KEY, n int4, t text) WITH (fillfactor = 40);
             CREATE FUNCTION sum_of(whole) RETURNS int4 LANGUAGE sql IMMUTABLE AS 'SELECT $1.id + $1.n';
             INSERT INTO whole SELECT i, 0, repeat('x', 20) FROM generate_series(1, 3000) i; CREATE INDEX ON whole (sum_of(whole));
             CREATE TABLE great (id int4 PRIMARY KEY, n int4, a text STORAGE EXTERNAL, b text); INSERT INTO great SELECT i, 0, 'a', 'b' FROM generate_series(1, 300) i;"
        ),
    );
    let two = group.member(2).expect("member");
    let statements = [
        "DO $$ BEGIN FOR i IN 1..100 LOOP UPDATE counter SET n = n + 1 WHERE id = 1; END LOOP; END $$",
        "BEGIN; UPDATE counter SET n = n + 1; UPDATE counter SET n = n + 1; UPDATE counter SET n = n + 1; COMMIT",
        "DO $$ BEGIN FOR i IN 1..3 LOOP UPDATE counter SET n = n + 1 WHERE id BETWEEN 10 AND 49; UPDATE counter SET n = n + 1 WHERE id = 20; END LOOP; END $$",
        // A name goes from row to row.
        "DO $$ BEGIN FOR i IN REVERSE 100..1 LOOP UPDATE moving SET id = id + 1 WHERE id = i; END LOOP;
         UPDATE moving SET id = id + 1000 WHERE id = 51; UPDATE moving SET id = 51 WHERE id = 52; UPDATE moving SET id = id + 2000 WHERE id = 51; END $$",
        "UPDATE whole SET n = n + 1",
        // Longer than a page before they are put elsewhere.
        "UPDATE great SET a = (SELECT string_agg(md5((id * 1000 + i)::text), '') FROM generate_series(1, 400) i) WHERE id = 1",
        "UPDATE great SET b = (SELECT string_agg(md5((id * 1000 + i)::text), '') FROM generate_series(1, 300) i) WHERE id <= 100",
        "UPDATE great SET n = n + 1; UPDATE great SET n = n + 1, a = repeat(md5(id::text), 60)",
    ];
    let mut client = group.client(1);
    for statement in statements {
        run(&mut client, statement);
    }
    two.signal_all(Signal::SIGSTOP).expect("stop");
    for i in 0..600 {
        run(
            &mut client,
            &format!("UPDATE counter SET n = n + 1 WHERE id IN (1, {})", i % 3),
        );
    }
    two.signal_all(Signal::SIGCONT).expect("go on");
    group.wait_in_step(PATIENCE).expect("in step");
    group.assert_identical();
    for server in group.running() {
        check_heaps(server);
        for (sql, wanted) in [
            ("SELECT count(*) FROM counter", 50),
            ("SELECT n::int8 FROM counter WHERE id = 1", 703),
            ("SELECT count(*) FROM moving", 100),
            ("SELECT count(*) FROM whole WHERE n = 1", 3000),
            (
                "SET enable_seqscan = off; SELECT count(*) FROM whole w WHERE sum_of(w) BETWEEN 2 AND 3001",
                3000,
            ),
        ] {
            let (before, sql) = sql.rsplit_once("; ").unwrap_or(("", sql));
            let mut client = server.connect("app").unwrap_or_else(|e| panic!("{e}"));
            run(&mut client, before);
            let found: i64 = client
                .query_one(sql, &[])
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"))
                .get(0);
            assert_eq!(found, wanted, "{sql} on member {}", server.number);
        }
    }
}
