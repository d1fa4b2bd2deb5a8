//! Savepoints: what is rolled back to one was never there, on no member and in no changeset.

use crate::support::{changesets, group};
use postgres::Client;
use postgres_r::changeset::decode::Changeset;
use std::collections::BTreeMap;

/// Memory of a session's process that it shares with nobody.
fn memory_kb(client: &mut Client) -> i64 {
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("pid")
        .get(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .expect("RssAnon");
    let number = line.trim().strip_suffix(" kB").expect("kB");
    number.parse().expect("a number")
}

/// Iterations from one number to another; those that `fails` says are rolled back.
fn iterate(client: &mut Client, from: i32, to: i32, fails: &str) {
    client
        .batch_execute(&format!(
            "DO $$ BEGIN FOR i IN {from}..{to} LOOP BEGIN
               INSERT INTO t VALUES (i, 'inserted');
               UPDATE u SET v = v + 1 WHERE id = i;
               PERFORM 1 / (CASE WHEN {fails} THEN 0 ELSE 1 END);
             EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$"
        ))
        .expect("a loop");
}

#[test]
fn a_loop_of_100000_exception_blocks_takes_no_memory_for_what_it_rolled_back() {
    let group = group(
        "exceptions",
        3,
        "CREATE TABLE t (id int4 PRIMARY KEY, v text); CREATE TABLE u (id int4 PRIMARY KEY, v int4 NOT NULL);
         INSERT INTO u SELECT i, 0 FROM generate_series(1, 200000) i;",
    );
    let mut client = group.client(1);
    // All but one are rolled back.
    iterate(&mut client, 100_001, 200_000, "i < 200000");
    let sent = changesets(&group, 1);
    assert_eq!(sent.len(), 1, "one transaction");
    assert!(sent[0].len() < 500, "{} bytes for two rows", sent[0].len());
    client
        .batch_execute("DELETE FROM t; UPDATE u SET v = 0 WHERE v > 0; BEGIN")
        .expect("begin");
    iterate(&mut client, 1, 10_000, "i % 2 = 0");
    let before = memory_kb(&mut client);
    iterate(&mut client, 10_001, 100_000, "i % 2 = 0");
    let growth = memory_kb(&mut client) - before;
    client.batch_execute("COMMIT").expect("commit");
    println!("memory grew by {growth} kB");
    let most = changesets(&group, 1)
        .iter()
        .map(|bytes| Changeset::parse(bytes).expect("whole").keys().count())
        .max();
    // A key a row, and a few of the tables.
    assert!(
        most.is_some_and(|keys| (100_000..100_020).contains(&keys)),
        "{most:?} keys of 100,000 rows"
    );
    assert!(
        growth < 4 << 10,
        "{growth} kB more after 90,000 more iterations"
    );
    let sql = "SELECT (SELECT count(*) FROM t WHERE id % 2 = 1) * 1000000 + (SELECT sum(v) FROM u WHERE id % 2 = 1)
               - (SELECT count(*) FROM t WHERE id % 2 = 0) - (SELECT sum(v) FROM u WHERE id % 2 = 0)";
    for member in 1..=3 {
        let server = group.member(member).expect("member");
        group.await_value(server, &format!("SELECT ({sql})::int8"), 50_000_050_000);
    }
    group.assert_identical();
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

type Rows = BTreeMap<i32, i32>;

/// A transaction, and what its table must hold.
struct Model {
    rows: Rows,
    /// Open savepoints: name, and the rows when it was set.
    savepoints: Vec<(u64, Rows)>,
    names: u64,
}

impl Model {
    /// The next statement; what it does to the table is done here as well.
    fn step(&mut self, random: &mut Random) -> String {
        let (id, v) = (random.below(30) as i32, random.below(1000) as i32);
        match random.below(16) {
            0..=3 => {
                self.names += 1;
                self.savepoints.push((self.names, self.rows.clone()));
                format!("SAVEPOINT s{}", self.names)
            }
            4 | 5 if !self.savepoints.is_empty() => {
                let at = random.below(self.savepoints.len() as u64) as usize;
                let name = self.savepoints[at].0;
                self.savepoints.truncate(at);
                format!("RELEASE s{name}")
            }
            6..=8 if !self.savepoints.is_empty() => {
                let at = random.below(self.savepoints.len() as u64) as usize;
                self.savepoints.truncate(at + 1);
                let (name, rows) = &self.savepoints[at];
                self.rows = rows.clone();
                format!("ROLLBACK TO s{name}")
            }
            9 => format!("SELECT 1 FROM r WHERE id = {id} FOR UPDATE"),
            10 => "LOCK TABLE r IN SHARE ROW EXCLUSIVE MODE".into(),
            11 => {
                self.rows.remove(&id);
                format!("DELETE FROM r WHERE id = {id}")
            }
            12 | 13 => {
                self.rows.entry(id).and_modify(|old| *old = v);
                format!("UPDATE r SET v = {v} WHERE id = {id}")
            }
            14 => {
                // A savepoint within the statement, which is rolled back.
                format!(
                    "DO $$ BEGIN INSERT INTO r VALUES ({id}, {v}); RAISE SQLSTATE 'PGR00'; EXCEPTION WHEN SQLSTATE 'PGR00' OR unique_violation THEN NULL; END $$"
                )
            }
            _ => {
                self.rows.insert(id, v);
                format!("INSERT INTO r VALUES ({id}, {v}) ON CONFLICT (id) DO UPDATE SET v = {v}")
            }
        }
    }
}

fn found(client: &mut Client) -> Rows {
    let rows = client.query("SELECT id, v FROM r", &[]).expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn random_savepoints_leave_on_all_members_what_a_model_says() {
    let seed = std::env::var("PGR_TEST_SEED").map_or(20_261_123, |s| s.parse().expect("a seed"));
    let group = group(
        "savepoints",
        3,
        "CREATE TABLE r (id int4 PRIMARY KEY, v int4 NOT NULL); CREATE UNIQUE INDEX ON r ((id + 1), v);",
    );
    let mut random = Random(seed);
    let mut client = group.client(1);
    let mut rows = Rows::new();
    for transaction in 0..100 {
        let mut model = Model {
            rows,
            savepoints: Vec::new(),
            names: 0,
        };
        let mut statements = vec!["BEGIN".to_owned()];
        for _ in 0..random.below(60) {
            statements.push(model.step(&mut random));
        }
        statements.push("COMMIT".into());
        for statement in &statements {
            client.batch_execute(statement).unwrap_or_else(|e| {
                panic!(
                    "seed {seed}, transaction {transaction}: {statement}: {e:?}\n{statements:#?}"
                )
            });
        }
        rows = model.rows;
        assert_eq!(
            found(&mut client),
            rows,
            "seed {seed}, transaction {transaction}: {statements:#?}"
        );
    }
    assert!(
        rows.len() > 3,
        "the transactions left too little to compare"
    );
    group.assert_identical();
    for member in 2..=3 {
        assert_eq!(found(&mut group.client(member)), rows, "seed {seed}");
    }
}

#[test]
fn a_session_that_did_maintenance_has_savepoints() {
    let group = group("maintenance", 1, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let mut client = group.client(1);
    for sql in [
        "VACUUM t",
        "BEGIN; SAVEPOINT s; INSERT INTO t VALUES (1); ROLLBACK TO s; COMMIT",
        "REINDEX TABLE t",
        "DO $$ BEGIN INSERT INTO t VALUES (2); PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN INSERT INTO t VALUES (3); END $$",
    ] {
        client
            .batch_execute(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    assert_eq!(group.assert_identical(), 1);
}
