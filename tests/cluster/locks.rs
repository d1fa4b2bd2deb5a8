//! LOCK TABLE as a mutual exclusion over all members.

use crate::support::{PATIENCE, TestGroup, group, scale, until_committed};
use postgres::{Error, Transaction};

/// Of each of two sessions a member.
const TURNS: i32 = 20;

/// Has two sessions a member do `work` to its ends; how often they had to try again.
fn compete(
    group: &TestGroup,
    work: impl Fn(&mut Transaction<'_>, i32, i32) -> Result<(), Error> + Sync,
) -> u32 {
    std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..6)
            .map(|session: i32| {
                let (mut client, work) = (group.client(session as usize % 3 + 1), &work);
                scope.spawn(move || {
                    (0..TURNS * scale() as i32)
                        .map(|turn| {
                            until_committed(&mut client, |t| work(t, session, turn))
                                .unwrap_or_else(|e| panic!("session {session}: {e:?}"))
                        })
                        .sum::<u32>()
                })
            })
            .collect();
        let sessions = sessions.into_iter();
        sessions.map(|s| s.join().expect("session")).sum()
    })
}

/// Nothing but the locks keeps a number from being given twice: the key holds the session.
#[test]
fn numbers_given_under_a_lock_of_the_table_are_given_once_and_leave_no_gap() {
    let group = group(
        "lock-table",
        3,
        "CREATE TABLE ticket (n int4 NOT NULL, session int4, turn int4, PRIMARY KEY (session, turn)); INSERT INTO ticket VALUES (0, -1, -1);
         CREATE TABLE mutex (); CREATE TABLE guarded (n int4 NOT NULL, session int4, turn int4, PRIMARY KEY (session, turn)); INSERT INTO guarded VALUES (0, -1, -1);",
    );
    let take = |lock: &'static str, table: &'static str| {
        let tries = compete(&group, |t, session, turn| {
            t.batch_execute(lock)?;
            let sql = format!("INSERT INTO {table} SELECT max(n) + 1, $1, $2 FROM {table}");
            t.execute(&sql, &[&session, &turn]).map(drop)
        });
        assert!(tries > 0, "{lock}: the sessions did not compete");
        let wanted = i64::from(6 * TURNS * scale() as i32);
        for member in 1..=3 {
            let server = group.member(member).expect("member");
            let sql = format!(
                "SELECT CASE WHEN count(DISTINCT n) = count(*) THEN max(n)::int8 ELSE -1 END FROM {table}"
            );
            group.await_value(server, &sql, wanted);
        }
    };
    take("LOCK TABLE ticket IN EXCLUSIVE MODE", "ticket");
    // Another table is the mutex, so that nothing of the lock is met when changes are applied.
    take("LOCK TABLE mutex IN SHARE UPDATE EXCLUSIVE MODE", "guarded");
    group.wait_in_step(PATIENCE).expect("in step");
    group.assert_identical();
}

/// A lock is refused by no table of the session's own, and is none of the group's there.
#[test]
fn locks_of_temporary_and_unlogged_tables_are_of_one_session_and_one_member() {
    let group = group(
        "lock-local",
        2,
        "CREATE TABLE t (id int4 PRIMARY KEY); CREATE UNLOGGED TABLE u (a int4);",
    );
    let lock = |member: usize, id: i32| {
        let mut client = group.client(member);
        client
            .batch_execute(&format!(
                "CREATE TEMP TABLE tmp (a int4); BEGIN; LOCK TABLE tmp, u; INSERT INTO t VALUES ({id})"
            ))
            .expect("locked");
        client
    };
    let (mut first, mut second) = (lock(1, 1), lock(2, 2));
    first.batch_execute("COMMIT").expect("no conflict");
    second.batch_execute("COMMIT").expect("no conflict");
    group.assert_identical();
}
