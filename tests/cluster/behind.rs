//! A member that is behind applies what waits together, and ends as the others.

use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure};
use nix::sys::signal::Signal;
use postgres_r::cluster::group::query_one;
use std::time::Duration;

const TABLES: &str = "
CREATE TABLE t (id int4 PRIMARY KEY, n int4, k int4 UNIQUE);
CREATE TABLE keyless (v int4); ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE watched (id int4 PRIMARY KEY, n int4);
CREATE UNLOGGED TABLE seen (id int4, n int4, others int8);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.seen VALUES (NEW.id, NEW.n, (SELECT count(*) FROM public.watched)); RETURN NULL; END $$;
CREATE TRIGGER see AFTER INSERT OR UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION see();
ALTER TABLE watched ENABLE ALWAYS TRIGGER see;
INSERT INTO t SELECT i, 0, i FROM generate_series(1, 20) i;
";

/// Stops member 2 while `work` runs, then lets it catch up; how many transactions its processes committed
/// for those that the order brought.
fn behind(group: &TestGroup, work: impl FnOnce()) -> (i64, i64) {
    let server = group.member(2).expect("member");
    group.wait_in_step(PATIENCE).expect("in step");
    let applied = || -> i64 {
        query_one(
            server,
            "postgres",
            "SELECT last_committed_gid::int8 FROM pg_stat_get_replication_group()",
        )
        .unwrap_or_else(|e| panic!("{e}"))
    };
    let written = || -> i64 {
        query_one(
            server,
            "postgres",
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8",
        )
        .unwrap_or_else(|e| panic!("{e}"))
    };
    let before = (applied(), written());
    let signal = |signal| server.signal_all(signal).unwrap_or_else(|e| panic!("{e}"));
    signal(Signal::SIGSTOP);
    work();
    signal(Signal::SIGCONT);
    group.wait_in_step(PATIENCE).expect("in step");
    (applied() - before.0, written() - before.1)
}

#[test]
fn what_waits_is_applied_together_and_ends_the_same() {
    let group = group("behind", 3, TABLES);
    let mut client = group.client(1);
    let (transactions, local) = behind(&group, || {
        for i in 0..100 {
            let statements = [
                // The same rows again and again, and rows that come and go.
                format!("UPDATE t SET n = n + 1 WHERE id = {} OR id = 3", i % 5 + 1),
                format!("INSERT INTO t VALUES ({0}, 0, {0})", 1000 + i),
                format!("UPDATE t SET n = 7, k = -k WHERE id = {}", 1000 + i),
                format!("DELETE FROM t WHERE id = {} AND id % 3 = 0", 1000 + i),
                // A key that goes from one row to another.
                format!(
                    "BEGIN; UPDATE t SET k = NULL WHERE k = 11; UPDATE t SET k = 11 WHERE id = {}; COMMIT",
                    11 + i % 2
                ),
                "INSERT INTO keyless VALUES (1), (1), (2)".into(),
                "UPDATE keyless SET v = 3 WHERE ctid = (SELECT min(ctid) FROM keyless WHERE v = 1)"
                    .into(),
                "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE v = 2)"
                    .into(),
            ];
            for statement in statements {
                client
                    .batch_execute(&statement)
                    .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
            }
        }
    });
    assert!(group.assert_identical() > 200);
    assert!(transactions > 700, "{transactions}");
    // Not one by one; how many together depends on who was faster. Those that were given up count twice.
    assert!(local < transactions / 2, "{local} of {transactions}");
}

#[test]
fn what_counts_by_itself_is_applied_by_itself() {
    let group = group("behind-alone", 3, TABLES);
    let mut listener = group.client(2);
    listener.batch_execute("LISTEN news").expect("LISTEN");
    let mut client = group.client(1);
    behind(&group, || {
        for i in 0..40 {
            for statement in [
                format!("INSERT INTO t VALUES ({0}, 0, {0})", 2000 + i),
                format!("INSERT INTO watched VALUES ({i}, 0)"),
                "NOTIFY news, 'the same'".into(),
                format!("UPDATE watched SET n = n + 1 WHERE id = {}", i / 2),
                format!("UPDATE t SET n = n + 1 WHERE id = {}", 2000 + i),
            ] {
                client
                    .batch_execute(&statement)
                    .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
            }
        }
    });
    group.assert_identical();
    // Each trigger saw what was committed before its transaction, and no more.
    let seen = |number: usize| -> String {
        let sql = "SELECT string_agg(concat_ws(' ', id, n, others), ',' ORDER BY others, n, id) FROM seen";
        query_one(group.member(number).expect("member"), &group.database, sql)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    assert_eq!(seen(2), seen(1));
    assert_eq!(seen(2).split(',').count(), 80);
    // As many notifications as transactions that sent one.
    let mut heard = 0;
    let mut notifications = listener.notifications();
    let mut incoming = notifications.timeout_iter(Duration::from_secs(5));
    while heard < 40
        && postgres::fallible_iterator::FallibleIterator::next(&mut incoming)
            .expect("notification")
            .is_some()
    {
        heard += 1;
    }
    assert_eq!(heard, 40);
}

#[test]
fn who_holds_a_lock_that_what_waits_needs_gives_way() {
    let group = group("behind-locked", 3, TABLES);
    let mut holder = group.client(2);
    holder
        .batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE")
        .expect("lock");
    let mut client = group.client(1);
    behind(&group, || {
        for i in 0..60 {
            let statement = format!("INSERT INTO t VALUES ({0}, 0, {0})", 3000 + i);
            client.batch_execute(&statement).expect("insert");
        }
    });
    let error = holder.batch_execute("SELECT 1").err();
    assert!(error.is_some_and(|e| is_serialization_failure(&e)));
    group.assert_identical();
}
