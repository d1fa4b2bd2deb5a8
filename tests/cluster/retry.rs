//! `replication_retry`: single statements that lost are run again, and nobody hears of it.

use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure};
use postgres::error::SqlState;
use postgres::{Client, Error, SimpleQueryMessage};
use postgres_r::cluster::server::wait_for;
use std::process::Stdio;
use std::thread::JoinHandle;

/// A counter, rows, and a function that waits until nobody has the advisory lock 77.
pub const TABLES: &str = "
    CREATE EXTENSION injection_points;
    CREATE TABLE n (id int4 PRIMARY KEY, n int8); INSERT INTO n VALUES (1, 0);
    CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i;
    CREATE FUNCTION gate() RETURNS text LANGUAGE sql AS 'SELECT ''through'' FROM pg_advisory_xact_lock(77)';
    CREATE FUNCTION noisy_gate() RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''here''; RETURN gate(); END';";

/// How often statements of a member were retried.
pub fn retries(group: &TestGroup, number: usize) -> i64 {
    let sql = "SELECT coalesce(sum(retries), 0)::int8 FROM pg_stat_replication_conflicts";
    let row = group.client(number).query_one(sql, &[]);
    row.expect("retries").get(0)
}

/// Changes a row of `t` on member 2, for which who holds it on member 1 gives way.
pub fn change_elsewhere(group: &TestGroup, id: i32) {
    group.execute(2, &format!("UPDATE t SET v = 100 WHERE id = {id}"));
    group
        .wait_in_step(PATIENCE)
        .expect("the holder of the row gives way");
}

/// Two sessions of each member count at once, until `enough` by what they have done and how often
/// they lost. Returns both sums.
fn count_up(group: &TestGroup, retry: u32, enough: impl Fn(i64, i64) -> bool + Sync) -> (i64, i64) {
    std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..6)
            .map(|i| {
                let mut client = group.client(i % 3 + 1);
                let enough = &enough;
                scope.spawn(move || {
                    let set = format!("SET replication_retry = {retry}");
                    client.batch_execute(&set).expect("set");
                    let (mut done, mut lost) = (0, 0);
                    while !enough(done, lost) {
                        // Half of them speak the extended protocol.
                        let outcome = if i < 3 {
                            client.batch_execute("UPDATE n SET n = n + 1 WHERE id = 1")
                        } else {
                            let sql = "UPDATE n SET n = n + $1 WHERE id = $2";
                            client.execute(sql, &[&1_i64, &1_i32]).map(|_| ())
                        };
                        match outcome {
                            Ok(()) => done += 1,
                            Err(e) if is_serialization_failure(&e) => lost += 1,
                            Err(e) => panic!("{e:?}"),
                        }
                    }
                    (done, lost)
                })
            })
            .collect();
        let outcomes = sessions.into_iter().map(|s| s.join().expect("session"));
        outcomes.fold((0, 0), |(a, b), (done, lost)| (a + done, b + lost))
    })
}

#[test]
fn a_counter_from_all_members_is_right_without_an_error() {
    let group = group("retry", 3, TABLES);
    let value = || -> i64 {
        group.assert_identical();
        let row = group.client(2).query_one("SELECT n FROM n", &[]);
        row.expect("n").get(0)
    };
    let (done, lost) = count_up(&group, 0, |done, lost| done + lost >= 50);
    assert!(lost > 0, "nobody was in the way of {done}");
    assert_eq!(value(), done);
    assert_eq!((1..=3).map(|m| retries(&group, m)).sum::<i64>(), 0);
    let (more, lost) = count_up(&group, 1_000_000, |done, lost| done + lost >= 50);
    assert_eq!((more, lost), (300, 0));
    assert_eq!(value(), done + more);
    let retried = || (1..=3).map(|m| retries(&group, m)).sum::<i64>();
    let mut so_far = retried();
    assert!(so_far > 0);
    for (round, mode) in (1..).zip(["extended", "prepared"]) {
        pgbench(&group, mode);
        assert_eq!(value(), done + more + 180 * round);
        let now = retried();
        assert!(now > so_far, "nobody was in the way of {mode}");
        so_far = now;
    }
}

/// Two clients of each member count up thirty times each, and none sees an error.
fn pgbench(group: &TestGroup, mode: &str) {
    let script = group.dir.join("count.sql");
    let sql = "\\set one 1\nUPDATE n SET n = n + :one WHERE id = 1;\n";
    std::fs::write(&script, sql).expect("write the script");
    let children: Vec<_> = (1..=3)
        .map(|number| {
            let server = group.member(number).expect("member");
            let pgbench = server
                .program("pgbench")
                .args([
                    "-n",
                    "-h",
                    "127.0.0.1",
                    "-U",
                    "postgres",
                    "-c",
                    "2",
                    "-t",
                    "30",
                    "-M",
                    mode,
                    "-f",
                ])
                .arg(&script)
                .args(["-p", &server.port.to_string(), &group.database])
                .env("PGOPTIONS", "-c replication_retry=1000000")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            pgbench.expect("pgbench")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("pgbench ends");
        let said = String::from_utf8_lossy(&output.stdout);
        let all = "number of transactions actually processed: 60/60";
        let none = "number of failed transactions: 0 (0.000%)";
        assert!(
            said.contains(all) && said.contains(none),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Runs a query on member 1 that has changed a row and waits at the gate; lets it lose against
/// member 2, and then through the gate.
struct Gate<'a> {
    group: &'a TestGroup,
    key: Client,
}

type Running = JoinHandle<(Client, Result<Vec<SimpleQueryMessage>, Error>)>;

impl Gate<'_> {
    fn start(&mut self, settings: &str, sql: &str) -> Running {
        self.key
            .batch_execute("SELECT pg_advisory_lock(77)")
            .expect("lock");
        let (mut client, sql) = (self.group.client(1), sql.to_owned());
        client.batch_execute(settings).expect("settings");
        let running = std::thread::spawn(move || {
            let outcome = client.simple_query(&sql);
            (client, outcome)
        });
        self.await_waiting();
        running
    }

    fn await_waiting(&self) {
        let first = self.group.member(1).expect("member");
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'advisory'";
        self.group.await_value(first, waiting, 1);
    }

    fn open(&mut self) {
        self.key
            .batch_execute("SELECT pg_advisory_unlock(77)")
            .expect("unlock");
    }
}

#[test]
fn what_a_client_may_have_seen_is_not_retried() {
    let group = group("retried", 3, TABLES);
    let mut gate = Gate {
        group: &group,
        key: group.client(1),
    };
    let retry = "SET replication_retry = 2";
    // A row that lies in the output buffer is taken back.
    let select =
        "SELECT id, v, CASE id WHEN 2 THEN gate() END FROM t WHERE id IN (1, 2) FOR UPDATE";
    let running = gate.start(retry, select);
    change_elsewhere(&group, 1);
    gate.await_waiting();
    gate.open();
    let (_, outcome) = running.join().expect("session");
    let mut rows: Vec<String> = outcome
        .expect("it was retried")
        .iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(format!("{} {}", row.get(0)?, row.get(1)?)),
            _ => None,
        })
        .collect();
    rows.sort();
    assert_eq!(rows, ["1 100", "2 0"], "each once");
    assert_eq!(retries(&group, 1), 1);
    // So often, and no more.
    let running = gate.start(
        retry,
        "UPDATE t SET v = v + 1 WHERE id = 3 RETURNING gate()",
    );
    for _ in 0..2 {
        change_elsewhere(&group, 3);
        gate.await_waiting();
    }
    change_elsewhere(&group, 3);
    let (mut client, outcome) = running.join().expect("session");
    gate.open();
    let error = outcome.expect_err("it has lost three times");
    assert!(is_serialization_failure(&error), "{error:?}");
    client.batch_execute("SELECT 1").expect("it is usable");
    assert_eq!(retries(&group, 1), 3);
    // A cancel ends the retried one as it would have ended the first.
    let running = gate.start(
        retry,
        "UPDATE t SET v = v + 1 WHERE id = 4 RETURNING gate()",
    );
    change_elsewhere(&group, 4);
    gate.await_waiting();
    group.execute(
        1,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'",
    );
    let (_, outcome) = running.join().expect("session");
    gate.open();
    let error = outcome.expect_err("it was cancelled");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
    assert_eq!(retries(&group, 1), 4);
    // Some of the answer has left, there is more than the statement, or it sees one snapshot only.
    let plain = "UPDATE t SET v = v + 1 WHERE id = 5 RETURNING gate()";
    let repeatable = format!("{retry}; SET default_transaction_isolation = 'repeatable read'");
    let block = format!("{retry}; BEGIN");
    let told = "UPDATE t SET v = v + 1 WHERE id = 5 RETURNING noisy_gate()";
    let rows = "SELECT repeat('x', 20000), CASE id WHEN 8 THEN gate() END FROM t WHERE id IN (7, 8) FOR UPDATE";
    let cases = [
        ("SET replication_retry = 0", plain.to_owned()),
        (&block, plain.to_owned()),
        (&repeatable, plain.to_owned()),
        (retry, told.to_owned()),
        (retry, rows.to_owned()),
        (retry, format!("SELECT 1; {plain}")),
        (retry, format!("{plain}; SELECT 1")),
        (
            retry,
            "DO 'BEGIN UPDATE t SET v = 1 WHERE id = 5; PERFORM gate(); END'".to_owned(),
        ),
    ];
    for (settings, sql) in cases {
        let running = gate.start(settings, &sql);
        change_elsewhere(&group, if sql == rows { 7 } else { 5 });
        let ended = wait_for(PATIENCE, || running.is_finished().then_some(()));
        gate.open();
        assert!(ended.is_some(), "{settings}: {sql} goes on");
        let (_, outcome) = running.join().expect("session");
        let error = outcome.expect_err("it has lost");
        assert!(is_serialization_failure(&error), "{sql}: {error:?}");
        assert_eq!(retries(&group, 1), 4, "{settings}: {sql}");
    }
    group.assert_identical();
}
