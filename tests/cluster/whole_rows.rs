//! Tables in which nothing but all that a row holds names it.

use crate::support::{PATIENCE, TestGroup, group, until_committed};
use postgres_r::cluster::group::query_one;

/// `name` is a table of columns `a` and `b` in each of these.
const TABLES: &str = "
CREATE TABLE plain (a int4, b text);
CREATE TABLE whole (a int4, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE nothing (a int4, b text); ALTER TABLE nothing REPLICA IDENTITY NOTHING; CREATE INDEX ON nothing (a, b);
CREATE TABLE later (id uuid PRIMARY KEY DEFERRABLE DEFAULT gen_random_uuid(), a int4, b text);
CREATE TABLE hashed (a int4, b text); CREATE INDEX ON hashed USING hash (b);
CREATE TABLE partial (a int4, b text); CREATE UNIQUE INDEX ON partial (a) WHERE b = 'u'; CREATE INDEX ON partial (lower(b));
CREATE TABLE nullable (a int4 UNIQUE, b text); INSERT INTO nullable SELECT i, 'old' FROM generate_series(-9, -1) i;
CREATE TABLE maybe (a int4, b text, CONSTRAINT valid NOT NULL a); ALTER TABLE maybe DROP CONSTRAINT valid; INSERT INTO maybe VALUES (NULL, 'old'), (NULL, 'old');
ALTER TABLE maybe ADD CONSTRAINT later NOT NULL a NOT VALID; CREATE UNIQUE INDEX maybe_a ON maybe (a); ALTER TABLE maybe REPLICA IDENTITY USING INDEX maybe_a;
CREATE TABLE listed (a int4, b text) PARTITION BY LIST (b); CREATE TABLE listed_x PARTITION OF listed FOR VALUES IN ('x'); CREATE TABLE listed_r PARTITION OF listed DEFAULT;
";

/// Two columns with values that only unlike tables can hold twice.
fn ways(table: &str, k: i32) -> String {
    let twice = if ["nullable", "maybe"].contains(&table) {
        "i"
    } else {
        "i % 5"
    };
    format!(
        "INSERT INTO {table} (a, b) SELECT {k} + {twice}, 'x' FROM generate_series(1, 40) i;
         INSERT INTO {table} (a, b) SELECT {k} + 100 + i, NULL FROM generate_series(1, 4) i;
         DELETE FROM {table} WHERE ctid IN (SELECT min(ctid) FROM {table} WHERE b = 'x' GROUP BY tableoid, a % 5);
         UPDATE {table} SET b = 'y' WHERE ctid IN (SELECT min(ctid) FROM {table} WHERE b = 'x' GROUP BY tableoid, a);
         UPDATE {table} SET b = b || '!' WHERE b = 'y' AND a % 2 = 0;
         UPDATE {table} SET a = -a WHERE b IS NULL AND a > 0;
         UPDATE {table} SET b = b WHERE a % 3 = 0;
         DELETE FROM {table} WHERE b = 'old' AND a IS NOT DISTINCT FROM -{k} / 1000;"
    )
}

#[test]
fn of_equal_rows_exactly_one_goes_whichever_index_there_is() {
    let group = group("whole-rows", 3, TABLES);
    let tables = [
        "plain", "whole", "nothing", "later", "hashed", "partial", "nullable", "maybe", "listed",
    ];
    for (round, member) in (1..).zip([1, 2, 3, 2]) {
        for table in tables {
            group.execute(member, &ways(table, round * 1000));
        }
        // One of two rows that are null where their identity would be.
        group.execute(
            member,
            "DELETE FROM maybe WHERE ctid = (SELECT min(ctid) FROM maybe WHERE a IS NULL)",
        );
        group.wait_in_step(PATIENCE).expect("in step");
        group.assert_identical();
    }
    for table in tables {
        group.execute(3, &format!("DELETE FROM {table}"));
    }
    assert_eq!(group.assert_identical(), 0);
}

/// The same rows lie otherwise on each member: compressed or not, elsewhere or not, with a short header
/// or a long one, with what is left of a dropped column, and without one that was added.
#[test]
fn a_row_is_known_however_it_is_stored() {
    let group = group(
        "stored",
        2,
        "CREATE TABLE t (a int4, gone text, b text, c text, d numeric); ALTER TABLE t ALTER c SET STORAGE EXTERNAL;
         CREATE TABLE source (v text); INSERT INTO source VALUES (repeat('abc', 30000));
         CREATE TABLE other (v text); ALTER TABLE other ALTER v SET STORAGE EXTERNAL; INSERT INTO other SELECT v FROM source;
         INSERT INTO t SELECT i, 'gone ' || i, v, v, i / 7.0 FROM generate_series(1, 6) i, other;
         INSERT INTO t SELECT i, 'gone', repeat('k', i * 20), 'short', 1.0 FROM generate_series(1, 30) i;
         ALTER TABLE t DROP gone; ALTER TABLE t ADD e text DEFAULT 'added', ADD f int8 NOT NULL DEFAULT 7;
         CREATE INDEX ON t (d);",
    );
    let member = group.member(2).expect("member");
    let here = |sql: &str| member.execute(&group.database, sql, sql);
    // Written anew here: in line what was not, the dropped column gone, the added ones stored.
    here("VACUUM FULL t").unwrap_or_else(|e| panic!("{e}"));
    let rows = || {
        let sql = "SELECT count(*) FROM t";
        query_one::<i64>(member, &group.database, sql).unwrap_or_else(|e| panic!("{e}"))
    };
    assert_eq!(rows(), 36);
    for from in [1, 2] {
        group.execute(
            from,
            &format!(
                "UPDATE t SET e = 'changed ' || a WHERE a = {from} AND length(b) > 1000;
                 UPDATE t SET d = 1.00 WHERE a = 10 + {from};
                 DELETE FROM t WHERE a = 2 + {from};
                 INSERT INTO t SELECT 50, v, v, 1.0 FROM source; INSERT INTO t SELECT 50, v, v, 1.0 FROM other;
                 DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t WHERE a = 50);
                 UPDATE t SET f = 8 WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 50);"
            ),
        );
        group.wait_in_step(PATIENCE).expect("in step");
        group.assert_identical();
    }
    // 1.0 and 1.00 are equal and not the same.
    group.execute(1, "DELETE FROM t WHERE d::text = '1.00'");
    assert_eq!(group.assert_identical(), 32 + 2);
    group.execute(2, "DELETE FROM t");
    assert_eq!(group.assert_identical(), 2);
}

/// A scan for each row would take hours.
#[test]
fn many_changes_of_a_large_table_take_few_scans() {
    let group = group(
        "many-rows",
        2,
        "CREATE TABLE t (a int4, b text); CREATE TABLE u (a int4, odd bool); CREATE INDEX ON u (odd);
         CREATE TABLE p (a int4, b int4) PARTITION BY LIST (b); CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 100000) i; INSERT INTO u SELECT i, i % 2 = 1 FROM generate_series(1, 100000) i;
         INSERT INTO p SELECT i, 0 FROM generate_series(1, 20000) i;",
    );
    group.execute(1, "UPDATE t SET b = b || '!' WHERE a % 2 = 0");
    group.execute(2, "UPDATE p SET b = 1");
    // In another order than the rows are stored.
    group.execute(
        1,
        "DO $$ DECLARE r record; BEGIN FOR r IN SELECT ctid FROM t WHERE a > 98000 ORDER BY md5(a::text) LOOP DELETE FROM t WHERE ctid = r.ctid; END LOOP; END $$",
    );
    group.execute(1, "DELETE FROM t; DELETE FROM u");
    assert_eq!(group.assert_identical(), 20_000);
}

/// Sessions of all members take turns with the same rows, of which there are several of each.
#[test]
fn equal_rows_are_never_lost_or_doubled_under_load() {
    let group = group(
        "equal-rows",
        3,
        "CREATE TABLE t (a int4); INSERT INTO t SELECT i % 10 FROM generate_series(1, 100) i;",
    );
    std::thread::scope(|scope| {
        for session in 0..6 {
            let mut client = group.client(session % 3 + 1);
            scope.spawn(move || {
                for turn in 0..15 {
                    // One of the many goes to another value, so that as many stay.
                    let sql = format!(
                        "UPDATE t SET a = (a + {turn} + {session}) % 10 WHERE ctid = (SELECT ctid FROM t WHERE a = {} LIMIT 1 FOR UPDATE SKIP LOCKED)",
                        (turn * 7 + session) % 10
                    );
                    until_committed(&mut client, |t| t.batch_execute(&sql))
                        .unwrap_or_else(|e| panic!("{e:?}"));
                }
            });
        }
    });
    assert_eq!(count(&group), 100);
    assert_eq!(group.assert_identical(), 100);
}

fn count(group: &TestGroup) -> i64 {
    let member = group.member(1).expect("member");
    query_one(member, &group.database, "SELECT count(*) FROM t").unwrap_or_else(|e| panic!("{e}"))
}
