//! One sequence for the whole group: no value twice, whoever asks for it, and where it was set everybody
//! goes on from there.

use crate::support::{
    PATIENCE, Stop, TestGroup, group, group_with, is_serialization_failure, options,
};
use postgres::Client;
use postgres::error::SqlState;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::wait_for;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

fn configured(name: &str, members: usize, configuration: &str, init: &str) -> TestGroup {
    let mut options = options(members);
    options.configuration.push_str(configuration);
    group_with(name, options, init)
}

fn value(client: &mut Client, sql: &str) -> Result<i64, postgres::Error> {
    Ok(client.query_one(sql, &[])?.get(0))
}

fn nextval(client: &mut Client, sequence: &str) -> i64 {
    value(client, &format!("SELECT nextval('{sequence}')")).expect("nextval")
}

fn some(client: &mut Client, sequence: &str, count: usize) -> Vec<i64> {
    (0..count).map(|_| nextval(client, sequence)).collect()
}

fn code(result: Result<i64, postgres::Error>) -> Option<SqlState> {
    result.expect_err("an error").code().cloned()
}

/// What all members say of a sequence, which is the same.
fn state(group: &TestGroup, sequence: &str) -> (i64, bool) {
    group.wait_in_step(PATIENCE).expect("in step");
    let sql = format!("SELECT last_value, is_called FROM {sequence}");
    let mut states = group.running().map(|server| {
        let row = group
            .client(server.number)
            .query_one(&sql, &[])
            .expect("state");
        (row.get(0), row.get(1))
    });
    let first = states.next().expect("a member");
    assert!(states.all(|s| s == first), "{sequence} differs");
    first
}

#[test]
fn no_value_is_handed_out_twice() {
    let group = group(
        "sequences",
        3,
        "CREATE TABLE a (id serial PRIMARY KEY, k text UNIQUE, n int4 DEFAULT 0);
         CREATE TABLE b (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int4);
         CREATE SEQUENCE c CACHE 7;
         CREATE TABLE d (id int8 PRIMARY KEY DEFAULT nextval('c'), v int4);",
    );
    std::thread::scope(|scope| {
        for worker in 0..9 {
            let group = &group;
            scope.spawn(move || {
                let mut client = group.client(worker % 3 + 1);
                for i in 0..5 {
                    client
                        .batch_execute(&format!(
                            "INSERT INTO a (k) VALUES ('{worker}.{i}');
                             INSERT INTO a (k) VALUES ('{worker}.{i}'), ('{worker}.{i}.x') ON CONFLICT (k) DO UPDATE SET n = a.n + 1;
                             INSERT INTO b (v) SELECT g FROM generate_series(1, 20) g;
                             BEGIN; INSERT INTO d (v) VALUES (1); SAVEPOINT s; INSERT INTO d (v) VALUES (2); ROLLBACK TO s;
                             INSERT INTO d (v) VALUES (3); COMMIT"
                        ))
                        .expect("inserts");
                    let mut copy = client.copy_in("COPY b (v) FROM STDIN").expect("copy");
                    copy.write_all("7\n".repeat(15).as_bytes()).expect("rows");
                    copy.finish().expect("copied");
                }
            });
        }
    });
    assert_eq!(group.assert_identical(), 45 * (2 + 35 + 2));
    for sequence in ["a_id_seq", "b_id_seq", "c"] {
        state(&group, sequence);
    }
    let conflicts = "SELECT coalesce(sum(local_victims + certification_failures), 0)::int8 FROM pg_stat_replication_conflicts";
    assert_eq!(
        value(&mut group.client(1), conflicts).expect("conflicts"),
        0
    );
}

#[test]
fn ranges_of_one_are_one_order_without_gaps() {
    let group = configured(
        "sequence-order",
        3,
        "replication_sequence_range = 1\n",
        "CREATE SEQUENCE s",
    );
    let mut clients: Vec<Client> = (1..=3).map(|n| group.client(n)).collect();
    for round in 0..3 {
        for (i, client) in clients.iter_mut().enumerate() {
            assert_eq!(nextval(client, "s"), round * 3 + i as i64 + 1);
        }
    }
    let seen = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let (group, seen) = (&group, &seen);
            scope.spawn(move || {
                let mine = some(&mut group.client(worker % 3 + 1), "s", 20);
                assert!(mine.is_sorted(), "{mine:?}");
                seen.lock().expect("lock").extend(mine);
            });
        }
    });
    let seen = seen.into_inner().expect("lock");
    assert!(seen.iter().copied().eq(10..130), "{seen:?}");
    assert_eq!(state(&group, "s"), (129, true));
    // From now on each takes as many as it wants, which the others pass over.
    for server in group.running() {
        server
            .configure("replication_sequence_range = 10")
            .expect("configure");
        group.execute(server.number, "SELECT pg_reload_conf()");
    }
    let ten = "SHOW replication_sequence_range";
    for client in &mut clients {
        let shows = || {
            (client
                .query_one(ten, &[])
                .expect("show")
                .get::<_, String>(0)
                == "10")
                .then_some(())
        };
        wait_for(PATIENCE, shows).expect("the setting");
    }
    let firsts: Vec<i64> = clients.iter_mut().map(|c| nextval(c, "s")).collect();
    assert_eq!(firsts, [130, 140, 150]);
    assert_eq!(
        some(&mut clients[0], "s", 10),
        [131, 132, 133, 134, 135, 136, 137, 138, 139, 160]
    );
}

#[test]
fn where_a_sequence_was_set_everybody_goes_on() {
    let group = group(
        "setval",
        3,
        "CREATE SEQUENCE s MAXVALUE 100000; CREATE TABLE t (id int4 PRIMARY KEY);",
    );
    let mut clients: Vec<Client> = (1..=3).map(|n| group.client(n)).collect();
    for client in &mut clients {
        nextval(client, "s");
    }
    assert_eq!(state(&group, "s"), (96, true));
    assert_eq!(
        value(&mut clients[1], "SELECT setval('s', 1000)").expect("setval"),
        1000
    );
    // Here at once, elsewhere when it is there; and it is not part of a transaction.
    assert_eq!(nextval(&mut clients[1], "s"), 1001);
    assert_eq!(state(&group, "s"), (1032, true));
    assert_eq!(
        [nextval(&mut clients[0], "s"), nextval(&mut clients[2], "s")],
        [1033, 1065]
    );
    clients[0]
        .batch_execute("BEGIN; INSERT INTO t VALUES (1); SELECT setval('s', 5, false); ROLLBACK")
        .expect("rolled back");
    assert_eq!(state(&group, "s"), (5, false));
    assert_eq!(
        [nextval(&mut clients[2], "s"), nextval(&mut clients[0], "s")],
        [5, 37]
    );
    clients[0]
        .batch_execute("SET replication_consistency = after; SELECT setval('s', 2000)")
        .expect("shown everywhere");
    assert_eq!(nextval(&mut clients[2], "s"), 2001);
    assert_eq!(nextval(&mut clients[1], "s"), 2033);
    assert_eq!(nextval(&mut clients[0], "s"), 2065);
    let beyond = value(&mut clients[0], "SELECT setval('s', 100001)");
    assert_eq!(code(beyond), Some(SqlState::NUMERIC_VALUE_OUT_OF_RANGE));
    for sql in ["SELECT setval('s', 1)", "SELECT nextval('s')"] {
        let mut transaction = clients[0]
            .build_transaction()
            .read_only(true)
            .start()
            .expect("begin");
        let refused = transaction.query_one(sql, &[]).expect_err(sql);
        assert_eq!(
            refused.code(),
            Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            "{sql}"
        );
    }
    group.assert_identical();
}

#[test]
fn limits_hold_and_all_values_within_are_handed_out() {
    let group = group(
        "sequence-limits",
        2,
        "CREATE SEQUENCE up MAXVALUE 50; CREATE SEQUENCE down INCREMENT -3 MINVALUE -100 MAXVALUE 10 START 10;
         CREATE SEQUENCE wheel MINVALUE 3 MAXVALUE 7 START 5 CYCLE; CREATE SEQUENCE small AS int2 START 32766;
         CREATE SEQUENCE edge START 9223372036854775806; CREATE SEQUENCE wide CACHE 100;",
    );
    let mut clients: Vec<Client> = (1..=2).map(|n| group.client(n)).collect();
    // From both in turn, until both have come to the end.
    let mut all = |sequence: &str| {
        let mut values = Vec::new();
        for i in 0.. {
            match value(
                &mut clients[i % 2],
                &format!("SELECT nextval('{sequence}')"),
            ) {
                Ok(value) => values.push(value),
                Err(error) => {
                    assert_eq!(
                        error.code(),
                        Some(&SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED)
                    );
                    break;
                }
            }
        }
        let rest = format!("SELECT nextval('{sequence}')");
        for client in &mut clients {
            while let Ok(value) = value(client, &rest) {
                values.push(value);
            }
        }
        values.sort_unstable();
        values
    };
    assert_eq!(all("up"), (1..=50).collect::<Vec<_>>());
    assert_eq!(all("down"), (-98..=10).step_by(3).collect::<Vec<_>>());
    assert_eq!(all("small"), [32766, 32767]);
    assert_eq!(all("edge"), [i64::MAX - 1, i64::MAX]);
    let error = clients[1]
        .batch_execute("SELECT nextval('down')")
        .expect_err("the end");
    let message = error.as_db_error().expect("of the server").message();
    assert_eq!(
        message,
        "nextval: reached minimum value of sequence \"down\" (-100)"
    );
    // What is left before the end is one member's, then the wheel turns for whoever comes.
    assert_eq!(some(&mut clients[0], "wheel", 4), [5, 6, 7, 3]);
    assert_eq!(some(&mut clients[1], "wheel", 6), [3, 4, 5, 6, 7, 3]);
    assert_eq!(nextval(&mut clients[0], "wide"), 1);
    assert_eq!(nextval(&mut clients[1], "wide"), 101);
    assert_eq!(state(&group, "wide"), (200, true));
    group.assert_identical();
}

#[test]
fn a_session_knows_its_own_last_value() {
    let group = group(
        "currval",
        2,
        "CREATE SEQUENCE s; CREATE TABLE t (id serial PRIMARY KEY, v int4);",
    );
    let (mut one, mut other) = (group.client(1), group.client(1));
    let undefined = Some(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    assert_eq!(code(value(&mut one, "SELECT currval('s')")), undefined);
    assert_eq!(code(value(&mut one, "SELECT lastval()")), undefined);
    assert_eq!(
        [
            nextval(&mut one, "s"),
            nextval(&mut other, "s"),
            nextval(&mut one, "s")
        ],
        [1, 2, 3]
    );
    assert_eq!(value(&mut one, "SELECT currval('s')").expect("currval"), 3);
    assert_eq!(value(&mut other, "SELECT lastval()").expect("lastval"), 2);
    let id = one
        .query_one("INSERT INTO t (v) VALUES (1) RETURNING id", &[])
        .expect("insert");
    assert_eq!(
        value(&mut one, "SELECT lastval()").expect("lastval"),
        i64::from(id.get::<_, i32>(0))
    );
    // What others set is not the session's last value, nor is what is yet to come.
    group.execute(2, "SELECT setval('s', 50)");
    assert_eq!(value(&mut one, "SELECT currval('s')").expect("currval"), 3);
    assert_eq!(
        value(&mut one, "SELECT setval('s', 70, false)").expect("setval"),
        70
    );
    assert_eq!(value(&mut one, "SELECT currval('s')").expect("currval"), 3);
    assert_eq!(
        value(&mut one, "SELECT setval('s', 80)").expect("setval"),
        80
    );
    assert_eq!(value(&mut one, "SELECT currval('s')").expect("currval"), 80);
    one.batch_execute("DISCARD SEQUENCES").expect("discard");
    assert_eq!(code(value(&mut one, "SELECT currval('s')")), undefined);
    assert_eq!(nextval(&mut one, "s"), 81);
}

#[test]
fn a_restart_is_part_of_its_transaction() {
    let group = group(
        "restart",
        2,
        "CREATE SEQUENCE s START 100; CREATE TABLE t (id int8 GENERATED BY DEFAULT AS IDENTITY, v int4, PRIMARY KEY (id, v));",
    );
    let (mut one, mut two) = (group.client(1), group.client(2));
    assert_eq!([nextval(&mut one, "s"), nextval(&mut two, "s")], [100, 132]);
    one.batch_execute("BEGIN; ALTER SEQUENCE s RESTART WITH 7")
        .expect("restart");
    assert_eq!(some(&mut one, "s", 2), [7, 8]);
    assert_eq!(nextval(&mut two, "s"), 133, "nobody sees it yet");
    one.batch_execute("ROLLBACK").expect("rollback");
    assert_eq!(nextval(&mut one, "s"), 101);
    assert_eq!(state(&group, "s"), (163, true));
    // With values taken from it, of which some were rolled back: they are gone all the same.
    one.batch_execute("BEGIN; INSERT INTO t VALUES (1, 0); ALTER SEQUENCE s RESTART")
        .expect("restart");
    assert_eq!(nextval(&mut one, "s"), 100);
    one.batch_execute("SAVEPOINT a").expect("savepoint");
    assert_eq!(some(&mut one, "s", 2), [101, 102]);
    one.batch_execute("ROLLBACK TO a; SAVEPOINT b; ALTER SEQUENCE s RESTART WITH 1000; SELECT nextval('s'); ROLLBACK TO b; COMMIT")
        .expect("commit");
    assert_eq!(state(&group, "s"), (102, true));
    assert_eq!([nextval(&mut two, "s"), nextval(&mut one, "s")], [103, 135]);
    // One that was only restarted in a savepoint that was rolled back goes on as it was.
    one.batch_execute(
        "BEGIN; SAVEPOINT a; ALTER SEQUENCE s RESTART; ROLLBACK TO a; INSERT INTO t VALUES (2, 0)",
    )
    .expect("rolled back");
    assert_eq!(nextval(&mut one, "s"), 136);
    one.batch_execute("COMMIT").expect("commit");
    assert_eq!(state(&group, "s"), (166, true));
    // By itself, and of an identity column.
    one.batch_execute("ALTER SEQUENCE s RESTART WITH 500; ALTER TABLE t ALTER id RESTART WITH 30")
        .expect("restart");
    assert_eq!(
        (state(&group, "s"), state(&group, "t_id_seq")),
        ((500, false), (30, false))
    );
    assert_eq!(nextval(&mut two, "s"), 500);
    two.batch_execute("INSERT INTO t (v) VALUES (1)")
        .expect("insert");
    assert_eq!(
        value(&mut one, "SELECT nextval('t_id_seq')").expect("nextval"),
        62
    );
    // setval of what the transaction has restarted goes with it.
    one.batch_execute("BEGIN; ALTER SEQUENCE s RESTART; SELECT setval('s', 900); ROLLBACK")
        .expect("rollback");
    assert_eq!(nextval(&mut two, "s"), 501);
    one.batch_execute("BEGIN; ALTER SEQUENCE s RESTART; SELECT setval('s', 900); COMMIT")
        .expect("commit");
    assert_eq!(state(&group, "s"), (900, true));
    for sql in [
        "ALTER SEQUENCE s INCREMENT 2",
        "ALTER SEQUENCE s RESTART CACHE 5",
        "ALTER SEQUENCE s OWNED BY t.v",
        "DROP SEQUENCE s",
    ] {
        let error = one.batch_execute(sql).expect_err(sql);
        assert_eq!(
            error.code(),
            Some(&SqlState::FEATURE_NOT_SUPPORTED),
            "{sql}"
        );
    }
    assert_eq!(group.assert_identical(), 3);
}

/// Takes values of a member as long as it answers, and again when it is back; all of them were handed out.
fn take_until(group: &TestGroup, number: usize, stop: &AtomicBool, seen: &Mutex<Vec<i64>>) {
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let server = group.member(number).expect("member");
        let Some(open) = client.as_mut() else {
            client = server.connect(&group.database).ok();
            continue;
        };
        match value(open, "SELECT nextval('s')") {
            Ok(value) => seen.lock().expect("lock").push(value),
            Err(_) => client = None,
        }
    }
}

#[test]
fn after_a_crash_nothing_is_handed_out_again() {
    let group = configured(
        "sequence-crash",
        3,
        "replication_sequence_range = 3\n",
        "CREATE SEQUENCE s",
    );
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let await_more = || {
        let wanted = seen.lock().expect("lock").len() + 150;
        let more = || (seen.lock().expect("lock").len() >= wanted).then_some(());
        wait_for(PATIENCE, more).expect("values");
    };
    std::thread::scope(|scope| {
        let ends = Stop(&stop);
        for number in [1, 2, 3, 1, 2, 3] {
            let (group, stop, seen) = (&group, &stop, &seen);
            scope.spawn(move || take_until(group, number, stop, seen));
        }
        await_more();
        for number in [2, 3] {
            group.member(number).expect("member").kill().expect("kill");
            await_more();
            group.start(number);
            await_more();
        }
        // All of them, at once.
        for number in 1..=3 {
            group.member(number).expect("member").kill().expect("kill");
        }
        for number in 1..=3 {
            group.start_quietly(number);
        }
        for number in 1..=3 {
            group.await_online(number);
        }
        await_more();
        drop(ends);
    });
    let mut seen = seen.into_inner().expect("lock");
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(all, seen.len(), "values were handed out twice");
    let (last, _) = state(&group, "s");
    assert!(*seen.last().expect("values") <= last);
    group.assert_identical();
}

#[test]
fn without_a_majority_there_are_the_values_that_are_here() {
    let group = configured(
        "sequence-quorum",
        3,
        "replication_sequence_range = 3\n",
        "CREATE SEQUENCE s",
    );
    let mut client = group.client(1);
    assert_eq!(nextval(&mut client, "s"), 1);
    for number in [2, 3] {
        group.member(number).expect("member").kill().expect("kill");
    }
    wait_for(PATIENCE, || {
        (group.state(1).state == "no_quorum").then_some(())
    })
    .expect("no majority");
    assert_eq!(some(&mut client, "s", 2), [2, 3]);
    for sql in ["SELECT nextval('s')", "SELECT setval('s', 1)"] {
        assert_eq!(
            code(value(&mut client, sql)),
            Some(SqlState::CANNOT_CONNECT_NOW),
            "{sql}"
        );
    }
    for number in [2, 3] {
        group.start_quietly(number);
    }
    for number in 1..=3 {
        group.await_online(number);
    }
    assert_eq!(nextval(&mut client, "s"), 4);
    group.assert_identical();
}

#[test]
fn who_waits_for_values_gives_way_and_can_be_cancelled() {
    let group = group(
        "sequence-wait",
        2,
        "CREATE EXTENSION injection_points; CREATE SEQUENCE s; CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t VALUES (1, 0);",
    );
    let waiting = |event: &str| {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE wait_event = '{event}'");
        let server = group.member(1).expect("member");
        wait_for(PATIENCE, || query_one::<i32>(server, "postgres", &sql).ok())
            .unwrap_or_else(|| panic!("nobody waits in {event}"))
    };
    let asks = |begin: &'static str| {
        let mut client = group.client(1);
        client.batch_execute(begin).expect("begin");
        std::thread::spawn(move || value(&mut client, "SELECT nextval('s')"))
    };
    // On member 1 a setval comes to its turn and is not visible: what follows it waits for it.
    group.execute(
        1,
        "SELECT injection_points_attach('replication-commit-visible', 'wait')",
    );
    group.execute(2, "SELECT setval('s', 10)");
    waiting("replication-commit-visible");
    let cancelled = asks("BEGIN");
    let pid = waiting("ReplicationSequence");
    group.execute(1, &format!("SELECT pg_cancel_backend({pid})"));
    assert_eq!(
        code(cancelled.join().expect("its thread")),
        Some(SqlState::QUERY_CANCELED)
    );
    let victim = asks("BEGIN; UPDATE t SET v = 1");
    waiting("ReplicationSequence");
    group.execute(2, "UPDATE t SET v = 2");
    let error = victim
        .join()
        .expect("its thread")
        .expect_err("it gives way");
    assert!(is_serialization_failure(&error), "{error:?}");
    group.execute(
        1,
        "SELECT injection_points_detach('replication-commit-visible');
         SELECT injection_points_wakeup('replication-commit-visible')",
    );
    // What those two asked for is this member's.
    group.wait_in_step(PATIENCE).expect("in step");
    assert_eq!(state(&group, "s"), (74, true));
    assert_eq!(some(&mut group.client(1), "s", 2), [11, 12]);
    group.assert_identical();
}

#[test]
fn replication_starts_with_sequences_as_they_are() {
    let mut group = group_with(
        "sequence-start",
        options(1),
        "CREATE SEQUENCE used; SELECT nextval('used') FROM generate_series(1, 5); CREATE SEQUENCE cached CACHE 10; CREATE SEQUENCE fresh START 7",
    );
    group.execute(1, "ALTER DATABASE app STOP REPLICATION");
    let mut client = group.client(1);
    assert_eq!(
        [nextval(&mut client, "used"), nextval(&mut client, "cached")],
        [6, 1]
    );
    group.execute(1, "ALTER DATABASE app START REPLICATION IN GROUP app");
    // What WAL had said beyond that is not true any more.
    group.member(1).expect("member").kill().expect("kill");
    group.start(1);
    group.join(&mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(state(&group, "used"), (6, true));
    assert_eq!(state(&group, "cached"), (10, true));
    assert_eq!(state(&group, "fresh"), (7, false));
    let (mut one, mut two) = (group.client(1), group.client(2));
    assert_eq!(
        [nextval(&mut one, "used"), nextval(&mut two, "used")],
        [7, 39]
    );
    assert_eq!(
        [nextval(&mut two, "fresh"), nextval(&mut one, "fresh")],
        [7, 39]
    );
    group.assert_identical();
    // An ordinary database goes on behind what was handed out.
    group.execute(1, "ALTER DATABASE app STOP REPLICATION");
    assert_eq!(nextval(&mut group.client(1), "used"), 71);
}
