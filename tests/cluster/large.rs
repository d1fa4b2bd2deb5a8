//! Transactions whose changes go ahead of their commit, among small ones.

use crate::support::{
    Stop, TestGroup, changesets, group, is_serialization_failure, until_committed,
};
use bytes::Bytes;
use postgres::Client;
use postgres::error::SqlState;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const SCHEMA: &str = "CREATE TABLE big (id int4 PRIMARY KEY, v text NOT NULL);
     CREATE TABLE small (id int4 PRIMARY KEY, v int8 NOT NULL);
     INSERT INTO small SELECT i, 0 FROM generate_series(1, 50) i;
     INSERT INTO big SELECT -i, 'there before' FROM generate_series(1, 1000) i;";

/// A session that keeps as little as may be in memory.
pub fn large(group: &TestGroup, member: usize) -> Client {
    let mut client = group.client(member);
    client
        .batch_execute("SET replication_changeset_memory = '64kB'")
        .expect("set");
    client
}

pub fn insert(from: u32, to: u32) -> String {
    format!("INSERT INTO big SELECT i, 'row ' || i FROM generate_series({from}, {to}) i")
}

/// Small transactions on a member until `stop`; counts them.
fn load(group: &TestGroup, member: usize, stop: &AtomicBool, done: &AtomicU64) {
    let mut client = group.client(member);
    let mut id = member as i32;
    while !stop.load(Ordering::Relaxed) {
        id = (id * 7 + 3) % 50;
        until_committed(&mut client, |t| {
            t.execute("UPDATE small SET v = v + 1 WHERE id = $1", &[&(id + 1)])
                .map(drop)
        })
        .expect("a small transaction");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// As many rows as wanted, the same everywhere.
pub fn check(group: &TestGroup, rows: i64) {
    for server in group.running() {
        group.await_value(server, "SELECT count(*) FROM big WHERE id > 0", rows);
    }
    group.assert_identical();
}

#[test]
fn a_large_transaction_may_hold_changes_of_every_kind() {
    let group = group(
        "large-kinds",
        3,
        "CREATE TABLE numbered (id serial PRIMARY KEY, v text);
         CREATE TABLE keyless (v int4, w text); INSERT INTO keyless SELECT i % 1000, 'x' FROM generate_series(1, 20000) i;
         CREATE TABLE emptied (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int4); INSERT INTO emptied (v) VALUES (1), (2);",
    );
    let mut client = large(&group, 1);
    std::thread::scope(|scope| {
        // They take values of the same sequence meanwhile.
        for member in [2, 3] {
            let mut small = group.client(member);
            scope.spawn(move || {
                for _ in 0..50 {
                    small
                        .batch_execute("INSERT INTO numbered (v) VALUES ('small')")
                        .expect("nobody is in its way");
                }
            });
        }
        for sql in [
            "BEGIN",
            "INSERT INTO numbered (v) SELECT repeat('y', 20) FROM generate_series(1, 20000)",
            "SAVEPOINT a; UPDATE keyless SET v = v + 1 WHERE v < 500; ROLLBACK TO a",
            "DELETE FROM keyless WHERE v < 300",
            "UPDATE keyless SET w = 'changed' WHERE v >= 900",
            "TRUNCATE emptied RESTART IDENTITY",
            "INSERT INTO emptied (v) SELECT 1 FROM generate_series(1, 10000)",
            "SELECT lo_from_bytea(4711, decode(repeat('7a', 100000), 'hex'))",
            "NOTIFY news, 'of a large one'",
        ] {
            client.batch_execute(sql).expect(sql);
        }
    });
    client
        .batch_execute("COMMIT")
        .expect("nobody is in its way");
    group.assert_identical();
    let row = group
        .client(3)
        .query_one(
            "SELECT (SELECT count(DISTINCT id) FROM numbered), (SELECT count(*) FROM keyless), (SELECT count(*) FROM keyless WHERE w = 'changed'),
             (SELECT min(id) || ' ' || count(*) FROM emptied), length(lo_get(4711))",
            &[],
        )
        .expect("counts");
    assert_eq!(row.get::<_, i64>(0), 20100);
    assert_eq!((row.get::<_, i64>(1), row.get::<_, i64>(2)), (14000, 2000));
    assert_eq!(row.get::<_, String>(3), "1 10000");
    assert_eq!(row.get::<_, i32>(4), 100_000);
}

#[test]
fn a_large_transaction_commits_as_a_whole_among_small_ones() {
    let group = group("large", 3, SCHEMA);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for member in 1..=3 {
            let (group, stop, done) = (&group, &stop, &done);
            scope.spawn(move || load(group, member, stop, done));
        }
        let mut client = large(&group, 1);
        client.batch_execute("BEGIN").expect("begin");
        client.batch_execute(&insert(1, 60_000)).expect("rows");
        client.batch_execute("SAVEPOINT a").expect("savepoint");
        client.batch_execute(&insert(60_001, 90_000)).expect("rows");
        client
            .batch_execute(
                "ROLLBACK TO a; UPDATE big SET v = 'changed' WHERE id % 3 = 0; SAVEPOINT b",
            )
            .expect("rollback");
        client
            .batch_execute(&insert(60_001, 100_000))
            .expect("rows");
        client
            .batch_execute(
                "RELEASE b; SAVEPOINT c; DELETE FROM big; ROLLBACK TO c;
                            DELETE FROM big WHERE id % 5 = 0 AND id > 0",
            )
            .expect("changes");
        let before = done.load(Ordering::Relaxed);
        assert!(before > 0, "small transactions go on");
        client.batch_execute("COMMIT").expect("commit");
    });
    check(&group, 80_000);
    // Keys of relations, a list of fragments and what was left.
    let largest = changesets(&group, 2).iter().map(Bytes::len).max();
    let largest = largest.expect("changesets");
    assert!(largest < 100_000, "a changeset of {largest} bytes");
}

const OPEN: &str = "SELECT count(*) FROM pg_stat_replication_open_transactions";

/// A member has no room for large transactions: those on it fail, and nothing else does. Everybody sees which
/// are open.
fn no_room(group: &TestGroup) {
    let mut here = large(group, 1);
    let mut there = large(group, 2);
    for (client, from, to) in [
        (&mut here, 200_001, 210_000),
        (&mut there, 300_001, 330_000),
    ] {
        client
            .batch_execute(&format!(
                "SET replication_compression = off; BEGIN; {}",
                insert(from, to)
            ))
            .expect("rows");
    }
    // About 15 bytes a row; up to 64 kB of each are not sent yet.
    let both = format!(
        "{OPEN} WHERE member_id = 1 AND fragments > 0 AND bytes BETWEEN 80000 AND 250000
                OR member_id = 2 AND fragments > 4 AND bytes BETWEEN 380000 AND 750000"
    );
    for server in group.running() {
        group.await_value(server, OPEN, 2);
        group.await_value(server, &both, 2);
    }
    group.execute(
        1,
        "SELECT injection_points_attach('replication-log-full', 'notice')",
    );
    let error = here.batch_execute(&insert(210_001, 230_000));
    let error = error.expect_err("no room");
    assert_eq!(error.code(), Some(&SqlState::DISK_FULL), "{error:?}");
    here.batch_execute("ROLLBACK").expect("rollback");
    // Another large one of this member fails as well, small ones don't, nor do those of others.
    let error = here.batch_execute(&insert(210_001, 230_000));
    assert_eq!(
        error.expect_err("no room").code(),
        Some(&SqlState::DISK_FULL)
    );
    here.batch_execute("UPDATE small SET v = v + 1; INSERT INTO big VALUES (200001, 'small')")
        .expect("small");
    there.batch_execute("COMMIT").expect("that of another");
    for server in group.running() {
        group.await_value(server, OPEN, 0);
    }
    group.execute(1, "SELECT injection_points_detach('replication-log-full')");
    here.batch_execute(&insert(210_001, 220_000)).expect("room");
    check(group, 1 + 10_000 + 30_000);
    group.execute(2, "DELETE FROM big WHERE id > 0");
}

#[test]
fn what_does_not_commit_leaves_nothing() {
    let group = group(
        "large-ends",
        3,
        &format!("CREATE EXTENSION injection_points; {SCHEMA}"),
    );
    no_room(&group);
    let mut client = large(&group, 1);
    client
        .batch_execute(&format!("BEGIN; {}; ROLLBACK", insert(1, 30_000)))
        .expect("rollback");
    // The same session goes on, in the same slot.
    client.batch_execute(&insert(1, 30_000)).expect("commit");

    // A statement that is cancelled in a savepoint costs no more than that.
    client
        .batch_execute(&format!("BEGIN; {}; SAVEPOINT a", insert(30_001, 40_000)))
        .expect("rows");
    client
        .batch_execute("SET LOCAL statement_timeout = '200ms'")
        .expect("set");
    let slow = "INSERT INTO big SELECT i, 'late' FROM generate_series(40001, 50000) i
                UNION ALL SELECT 50001, pg_sleep(60)::text";
    let error = client.batch_execute(slow).expect_err("a timeout");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
    client
        .batch_execute("ROLLBACK TO a; COMMIT")
        .expect("commit");
    check(&group, 40_000);

    // The worker ends in the middle.
    let mut client = large(&group, 2);
    client
        .batch_execute(&format!("BEGIN; {}", insert(40_001, 70_000)))
        .expect("rows");
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("pid")
        .get(0);
    group.execute(2, &format!("SELECT pg_terminate_backend({pid}, 10000)"));
    // Another member wins on a row of it.
    let mut loser = large(&group, 2);
    loser
        .batch_execute(&format!(
            "BEGIN; UPDATE big SET v = 'lost' WHERE id = 1; {}",
            insert(40_001, 60_000)
        ))
        .expect("rows");
    group.execute(3, "UPDATE big SET v = 'won' WHERE id = 1");
    let error = loser
        .batch_execute("SELECT pg_sleep(5); COMMIT")
        .expect_err("it lost");
    assert!(is_serialization_failure(&error), "{error:?}");
    check(&group, 40_000);
}

#[test]
fn servers_are_killed_while_a_large_transaction_is_open_and_applied() {
    let mut group = group("large-kill", 3, SCHEMA);
    let mut client = large(&group, 1);
    client
        .batch_execute(&format!("BEGIN; {}", insert(1, 30_000)))
        .expect("rows");
    group.member(1).expect("member").kill().expect("kill");
    drop(client);
    // Its rows are free for others at once.
    let mut client = large(&group, 2);
    client
        .batch_execute(&format!("BEGIN; {}", insert(1, 50_000)))
        .expect("rows");
    group.start(1);
    // A server joins in the middle.
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    client
        .batch_execute(&insert(50_001, 100_000))
        .expect("rows");
    client.batch_execute("COMMIT").expect("commit");
    // All of it is applied anew.
    group.member(3).expect("member").kill().expect("kill");
    group.start(3);
    check(&group, 100_000);
}

/// Private memory of the largest process of all servers.
fn largest_process_kb(group: &TestGroup) -> u64 {
    let pids = group.running().flat_map(|server| server.processes());
    let private = |pid: String| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    pids.filter_map(|pid| private(pid.to_string()))
        .max()
        .unwrap_or(0)
}

/// `PGR_LARGE_ROWS` rows of 400 bytes in one transaction, 2 million without it.
#[test]
#[ignore = "minutes: cargo test --features cli --test cluster -- --ignored memory_is_flat"]
fn memory_is_flat_however_large_the_transaction() {
    let rows: u32 = std::env::var("PGR_LARGE_ROWS").map_or(2_000_000, |v| {
        v.parse().expect("PGR_LARGE_ROWS is a number")
    });
    let group = group("large-memory", 3, SCHEMA);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = std::time::Instant::now();
    let (largest, longest) = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let (group, stop, done) = (&group, &stop, &done);
        scope.spawn(move || load(group, 2, stop, done));
        let sampler = scope.spawn(move || {
            let mut largest = 0;
            let (mut last, mut since) = (0, std::time::Instant::now());
            let mut longest = since.elapsed();
            while !stop.load(Ordering::Relaxed) {
                largest = largest.max(largest_process_kb(group));
                let now = done.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, std::time::Instant::now());
                }
                longest = longest.max(since.elapsed());
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            (largest, longest)
        });
        let mut client = group.client(1);
        client.batch_execute("BEGIN").expect("begin");
        client
            .batch_execute(&format!(
                "INSERT INTO big SELECT i, repeat(md5(i::text), 12) FROM generate_series(1, {rows}) i"
            ))
            .expect("rows");
        println!("{rows} rows sent after {:.1?}", begin.elapsed());
        client.batch_execute("COMMIT").expect("commit");
        println!("committed after {:.1?}", begin.elapsed());
        stop.store(true, Ordering::Relaxed);
        sampler.join().expect("the sampler")
    });
    for server in group.running() {
        group.await_value(server, "SELECT count(*) FROM big WHERE id > 0", rows.into());
    }
    println!(
        "applied after {:.1?}; largest process {largest} kB; {} small transactions, longest pause {longest:.1?}",
        begin.elapsed(),
        done.load(Ordering::Relaxed)
    );
    assert!(largest < 200 << 10, "a process had {largest} kB of its own");
}
