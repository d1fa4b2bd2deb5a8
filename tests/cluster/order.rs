//! Commits become visible in one order on every member.

use crate::support::{PATIENCE, group};
use nix::sys::signal::Signal;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::wait_for;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn readers_on_all_members_see_commits_in_one_order() {
    let group = group(
        "order",
        3,
        "CREATE EXTENSION injection_points; CREATE TABLE t (id int4 PRIMARY KEY);",
    );
    let seen = |number: usize| -> Vec<i32> {
        let rows = group
            .client(number)
            .query("SELECT id FROM t ORDER BY id", &[]);
        rows.expect("read").iter().map(|r| r.get(0)).collect()
    };
    let waiting = |event: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}'");
        let server = group.member(1).expect("member");
        wait_for(PATIENCE, || {
            postgres_r::cluster::group::query_one::<i64>(server, "postgres", &sql)
                .ok()
                .filter(|n| *n > 0)
        })
        .unwrap_or_else(|| panic!("nobody waits in {event}"));
    };
    // On member 1 the first commit is durable, and held before it becomes visible.
    let mut first = group.client(1);
    first
        .batch_execute(
            "SELECT injection_points_set_local();
             SELECT injection_points_attach('replication-commit-visible', 'wait');",
        )
        .expect("attach");
    let held = std::thread::spawn(move || {
        first
            .batch_execute("INSERT INTO t VALUES (1)")
            .expect("insert");
        first
    });
    waiting("replication-commit-visible");
    // Everywhere else both are there, in their order, while member 1 shows neither: the second is
    // behind the first.
    group.execute(2, "INSERT INTO t VALUES (2)");
    waiting("ReplicationCommitTurn");
    for number in [2, 3] {
        let mut states = Vec::new();
        wait_for(PATIENCE, || {
            states.push(seen(number));
            (states.last().map(Vec::len) == Some(2)).then_some(())
        })
        .unwrap_or_else(|| panic!("member {number} shows only {:?}", states.last()));
        assert!(
            states
                .iter()
                .all(|s| [&[][..], &[1], &[1, 2]].contains(&&s[..])),
            "member {number}: {states:?}"
        );
    }
    for _ in 0..20 {
        assert_eq!(
            seen(1),
            [],
            "the first is not visible, so the second is not either"
        );
    }
    group.execute(
        1,
        "SELECT injection_points_wakeup('replication-commit-visible')",
    );
    drop(held.join().expect("the first session"));
    wait_for(PATIENCE, || {
        let now = seen(1);
        assert!([&[][..], &[1], &[1, 2]].contains(&&now[..]), "{now:?}");
        (now.len() == 2).then_some(())
    })
    .expect("both are visible");
    group.assert_identical();
}

#[test]
fn a_missing_synchronous_standby_does_not_stop_the_group() {
    let group = group("syncrep", 2, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let second = group.member(2).expect("member");
    group.execute(2, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    group.execute(2, "SELECT pg_reload_conf()");
    group.await_value(
        second,
        "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting = 'nobody'",
        1,
    );
    let mut client = group.client(2);
    // The checkpointer tells backends that there is somebody to wait for.
    group.execute(2, "CHECKPOINT");
    let answered = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&answered);
    let commit = std::thread::spawn(move || {
        client
            .batch_execute("INSERT INTO t VALUES (1)")
            .expect("insert");
        answer.store(true, Ordering::Relaxed);
    });
    let waited = wait_for(PATIENCE, || answered.load(Ordering::Relaxed).then_some(()));
    assert!(waited.is_some(), "a commit waits for a standby");
    commit.join().expect("commit");
    group.execute(1, "INSERT INTO t VALUES (2)");
    group.await_value(second, "SELECT count(*) FROM t", 2);
}

#[test]
fn a_commit_that_waits_for_a_majority_does_not_stop_the_rest_of_the_server() {
    let group = group("barrier", 2, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let first = group.member(1).expect("member");
    first
        .execute(
            "postgres",
            "making another database",
            "CREATE DATABASE other",
        )
        .unwrap_or_else(|e| panic!("{e}"));
    let second = group.member(2).expect("member");
    second.signal_all(Signal::SIGSTOP).expect("pause");
    let mut client = group.client(1);
    let commit = std::thread::spawn(move || client.batch_execute("INSERT INTO t VALUES (1)"));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ReplicationVerdict'";
    wait_for(PATIENCE, || {
        query_one::<i64>(first, "postgres", waiting)
            .ok()
            .filter(|n| *n == 1)
    })
    .expect("the commit waits");
    let dropped = first.connect("postgres").and_then(|mut c| {
        c.batch_execute("SET statement_timeout = '120s'")
            .and_then(|()| c.batch_execute("DROP DATABASE other"))
            .map_err(|e| postgres_r::cluster::ClusterError::new("dropping", e))
    });
    second.signal_all(Signal::SIGCONT).expect("go on");
    dropped.unwrap_or_else(|e| panic!("{e}"));
    commit.join().expect("session").expect("commit");
    group.assert_identical();
}
