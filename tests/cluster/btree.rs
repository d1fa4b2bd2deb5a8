//! What is applied puts entries into B-trees many at a time: the trees are those that PostgreSQL itself
//! would accept, and WAL makes the same of them again.

use crate::support::{PATIENCE, TestGroup, check_trees, group_with, options};

const TABLES: &str = "
CREATE EXTENSION amcheck;
CREATE TABLE shapes (id int8 PRIMARY KEY, a int4, b int4, c text, d text COLLATE \"und-x-icu\", e numeric, f int4);
CREATE INDEX ON shapes (a);
CREATE INDEX ON shapes (a) WITH (deduplicate_items = off);
CREATE INDEX ON shapes (b DESC NULLS LAST);
CREATE INDEX ON shapes (b NULLS FIRST, a DESC) INCLUDE (e);
CREATE INDEX ON shapes (c) WITH (fillfactor = 50);
CREATE INDEX ON shapes (d, b);
CREATE UNIQUE INDEX ON shapes (f);
CREATE UNIQUE INDEX ON shapes (e DESC, id) NULLS NOT DISTINCT;
CREATE INDEX ON shapes (a) WHERE b > 5;
CREATE INDEX ON shapes (abs(a));
CREATE TABLE later (id int4 PRIMARY KEY, n int4 UNIQUE DEFERRABLE);
CREATE TABLE composed (x text, y int4, z int4, PRIMARY KEY (x, y));
";

/// A row numbered `i`: `a` scattered, `b` of few values and null at times, `c` long, `f` mostly null.
const ROW: &str = "i, (i % 100003) * 7919 % 100003, CASE WHEN i % 11 = 0 THEN NULL ELSE i % 10 END, repeat(md5((i % 500)::text), 12) || i,
    chr(65 + i % 50) || i, (i % 700) / 3.0, CASE WHEN i % 5 = 0 THEN i END";

fn work(group: &TestGroup, member: usize) {
    let base = member as i64 * 1_000_000;
    let rows = |from: i64, to: i64, order: &str| {
        format!(
            "INSERT INTO shapes SELECT {ROW} FROM (SELECT {base} + i AS i FROM generate_series({from}, {to}) i ORDER BY {order}) s;"
        )
    };
    let [first, last] = [base, base + 999_999].map(|i| i.to_string());
    let own = format!("id BETWEEN {first} AND {last}");
    let statements = [
        rows(1, 1000, "i"),
        rows(2001, 3000, "i DESC"),
        // Between the others.
        rows(1001, 2000, "md5(i::text)"),
        // New versions with the same keys, and with others.
        format!("UPDATE shapes SET a = a + 1 WHERE {own} AND id % 3 = 0"),
        format!("UPDATE shapes SET a = a - 1, c = c || 'x' WHERE {own} AND id % 4 = 0"),
        format!(
            "UPDATE shapes SET b = NULL, e = NULL WHERE {own} AND id % 7 = 0;
             UPDATE shapes SET e = id WHERE {own} AND id % 7 = 0 AND id % 2 = 0"
        ),
        // Unique keys that move among the rows; more than once.
        format!(
            "UPDATE shapes SET f = -f WHERE {own} AND f > 0;
             UPDATE shapes SET f = -f WHERE {own} AND f < 0;
             UPDATE shapes SET f = f + 1 WHERE {own} AND f % 3 = 0"
        ),
        // The same rows come, change, go and come again.
        format!(
            "DELETE FROM shapes WHERE {own} AND id % 5 = 1;
             INSERT INTO shapes SELECT {ROW} FROM (SELECT {base} + i AS i FROM generate_series(1, 3000) i WHERE ({base} + i) % 5 = 1) s;
             UPDATE shapes SET a = 7, d = 'same' WHERE {own} AND id % 5 = 1;
             UPDATE shapes SET a = 8 WHERE {own} AND id % 10 = 1;
             DELETE FROM shapes WHERE {own} AND id % 20 = 1"
        ),
        // Many equal keys.
        format!("UPDATE shapes SET a = 5 WHERE {own} AND id % 2 = 0"),
        format!("UPDATE shapes SET a = 5, b = 5 WHERE {own} AND id % 9 = 0"),
        // Identities change, down so that none meets another.
        format!("UPDATE shapes SET id = id + 500000 WHERE {own} AND id % 6 = 0"),
        format!(
            "INSERT INTO later SELECT {base} + i, {base} + i FROM generate_series(1, 1000) i;
             UPDATE later SET n = n + 1 WHERE id BETWEEN {first} AND {last};
             UPDATE later SET n = {base} + 1001 - (n - {base}) WHERE id BETWEEN {first} AND {last}"
        ),
        format!(
            "INSERT INTO composed SELECT 'key ' || i % 10, {base} + i, i FROM generate_series(1, 2000) i;
             UPDATE composed SET z = z + 1 WHERE y BETWEEN {first} AND {last};
             UPDATE composed SET x = x || '!' WHERE y BETWEEN {first} AND {last} AND z % 3 = 0;
             DELETE FROM composed WHERE y BETWEEN {first} AND {last} AND z % 4 = 0"
        ),
    ];
    let mut client = group.client(member);
    for statement in &statements {
        client
            .batch_execute(statement)
            .unwrap_or_else(|e| panic!("member {member}: {statement}: {e:?}"));
    }
    // Transactions of a few rows.
    for i in 0..100 {
        let id = base + 20_000 + i * 3;
        let statement = format!(
            "INSERT INTO shapes SELECT {ROW} FROM (SELECT {id} + i AS i FROM generate_series(0, 2) i) s;
             UPDATE shapes SET a = a + 1 WHERE id IN ({id}, {base} + 1 + {i} * 11)"
        );
        client
            .batch_execute(&statement)
            .unwrap_or_else(|e| panic!("member {member}: {statement}: {e:?}"));
    }
}

#[test]
fn trees_are_sound_on_all_members_and_after_a_crash() {
    let mut options = options(3);
    // Redo compares each page that it makes with the one that was.
    options
        .configuration
        .push_str("wal_consistency_checking = 'all'\n");
    let group = group_with("btree", options, TABLES);
    std::thread::scope(|scope| {
        for member in 1..=3 {
            let group = &group;
            scope.spawn(move || work(group, member));
        }
    });
    assert!(group.assert_identical() > 8_000);
    for member in 1..=3 {
        assert_eq!(check_trees(group.member(member).expect("member")), 14);
    }
    let server = group.member(2).expect("member");
    server.kill().unwrap_or_else(|e| panic!("{e}"));
    group.start(2);
    group.await_online(2);
    group.wait_in_step(PATIENCE).expect("in step");
    group.assert_identical();
    assert_eq!(check_trees(server), 14);
}
