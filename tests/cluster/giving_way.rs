//! Local transactions in the way of ordered ones, whatever they are at: they give way while their
//! clients are silent, and are counted.

use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure};
use bytes::BytesMut;
use postgres::error::SqlState;
use postgres::{Client, Error};
use postgres_protocol::message::frontend;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::wait_for;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;

/// Twenty rows; a table without any; one whose index takes a lock that certification does not know of;
/// one whose index waits for the advisory lock 77 when maintenance builds it.
const TABLES: &str = "
    CREATE EXTENSION injection_points;
    CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i;
    CREATE TABLE c (id int4 PRIMARY KEY);
    CREATE SCHEMA s; CREATE TABLE s.certified (id int4 PRIMARY KEY, v int4); INSERT INTO s.certified VALUES (1, 0), (2, 0);
    CREATE FUNCTION locked(int4) RETURNS int4 IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN $1; END';
    CREATE TABLE s.replayed (id int4 PRIMARY KEY, v int4); CREATE INDEX ON s.replayed (locked(v));
    CREATE FUNCTION held(int4) RETURNS int4 IMMUTABLE LANGUAGE plpgsql AS
        'BEGIN IF current_setting(''application_name'') = ''maintenance'' THEN PERFORM pg_advisory_xact_lock(77); END IF; RETURN $1; END';
    CREATE TABLE m (id int4 PRIMARY KEY, v int4); INSERT INTO m VALUES (1, 0); CREATE INDEX held ON m (held(v));";

fn lost(error: &Error) -> String {
    assert!(is_serialization_failure(error), "{error:?}");
    let detail = error.as_db_error().and_then(|e| e.detail());
    let detail = detail.unwrap_or_default().to_owned();
    assert!(
        detail.contains("member 2") && detail.contains("table \""),
        "{detail}"
    );
    detail
}

/// Changes rows on member 2 and waits until the others have that, so whoever held them has given way.
fn change_elsewhere(group: &TestGroup, sql: &str) {
    group.execute(2, sql);
    group
        .wait_in_step(PATIENCE)
        .unwrap_or_else(|e| panic!("nobody gives way to {sql}: {e}"));
}

fn update(id: i32) -> String {
    format!("UPDATE t SET v = v + 1 WHERE id = {id}")
}

/// A session of member 1 that runs this by itself.
fn start(group: &TestGroup, sql: &str) -> JoinHandle<(Client, Result<(), Error>)> {
    let (mut client, sql) = (group.client(1), sql.to_owned());
    std::thread::spawn(move || {
        let outcome = client.batch_execute(&sql);
        (client, outcome)
    })
}

fn await_on_first(group: &TestGroup, sql: &str, wanted: i64) {
    group.await_value(group.member(1).expect("member"), sql, wanted);
}

/// Waits until so many client sessions of member 1 wait for this.
fn await_waiting(group: &TestGroup, event: &str, wanted: i64) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = '{event}'"
    );
    await_on_first(group, &sql, wanted);
}

/// (victims, certification failures, below the floor, replays, retries) by relation.
fn conflicts(group: &TestGroup, number: usize) -> Vec<(Option<String>, [i64; 5])> {
    let sql = "SELECT schemaname || '.' || relname, local_victims, certification_failures, below_floor, replays, retries
                 FROM pg_stat_replication_conflicts
                WHERE relid IS NOT DISTINCT FROM to_regclass(schemaname || '.' || relname) AND stats_reset > pg_postmaster_start_time() - interval '1 min'
                ORDER BY 1";
    let rows = group.client(number).query(sql, &[]).expect("conflicts");
    let counts = |r: &postgres::Row| std::array::from_fn(|i| r.get(i + 1));
    rows.iter().map(|r| (r.get(0), counts(r))).collect()
}

#[test]
fn conflicts_are_counted_by_kind_and_relation_where_they_were_lost() {
    let group = group("conflicts", 3, TABLES);
    let on = |name: &str, counts| (Some(name.to_owned()), counts);
    assert_eq!(conflicts(&group, 1), []);

    for id in [1, 2] {
        let mut idle = group.client(1);
        idle.batch_execute(&format!("BEGIN; {}", update(id)))
            .expect("update");
        change_elsewhere(&group, &update(id));
        lost(&idle.batch_execute("COMMIT").expect_err("it has lost"));
    }
    assert_eq!(conflicts(&group, 1), [on("public.t", [2, 0, 0, 0, 0])]);

    // Member 1 holds back what it has committed, and with it what depends on that, while what its
    // own clients do goes to the group.
    let behind = |first: &str, elsewhere: &str, here: &str| {
        let mut session = group.client(1);
        session
            .batch_execute(
                "SELECT injection_points_set_local(); SELECT injection_points_attach('replication-commit-visible', 'wait')",
            )
            .expect("attach");
        let first = first.to_owned();
        let held = std::thread::spawn(move || session.batch_execute(&first));
        await_waiting(&group, "replication-commit-visible", 1);
        group.execute(2, elsewhere);
        let local = start(&group, here);
        let answered = || local.is_finished().then_some(());
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'ReplicationCommitTurn'";
        let first = group.member(1).expect("member");
        wait_for(PATIENCE, || {
            answered()
                .or_else(|| (query_one::<i64>(first, "postgres", waiting).ok()? == 1).then_some(()))
        })
        .expect("a verdict");
        group.execute(
            1,
            "SELECT injection_points_wakeup('replication-commit-visible')",
        );
        held.join().expect("session").expect("the first");
        local.join().expect("session").1
    };
    let outcome = behind(
        "UPDATE s.certified SET v = 1 WHERE id = 1",
        "UPDATE s.certified SET v = 2",
        "UPDATE s.certified SET v = 3 WHERE id = 2",
    );
    lost(&outcome.expect_err("another was ordered first"));
    group.wait_in_step(PATIENCE).expect("in step");
    let so_far = [
        on("public.t", [2, 0, 0, 0, 0]),
        on("s.certified", [0, 1, 0, 0, 0]),
    ];
    assert_eq!(conflicts(&group, 1), so_far);

    // The index lets nobody else in until the second has committed, and so, by the order, not the first.
    let outcome = behind(
        "UPDATE s.certified SET v = 4 WHERE id = 1",
        "UPDATE s.certified SET v = 5 WHERE id = 1; INSERT INTO s.replayed VALUES (1, 1)",
        "INSERT INTO s.replayed VALUES (2, 2)",
    );
    outcome.expect("it is committed by a helper");
    let rows: i64 = group
        .client(1)
        .query_one("SELECT count(*) FROM s.replayed", &[])
        .expect("count")
        .get(0);
    assert_eq!(rows, 2, "what was answered with COMMIT is there");
    group.assert_identical();
    let [t, certified] = so_far;
    let all = [t, certified, on("s.replayed", [0, 0, 0, 1, 0])];
    assert_eq!(conflicts(&group, 1), all);
    for other in [2, 3] {
        assert_eq!(conflicts(&group, other), [], "member {other}");
    }
}

#[test]
fn nothing_that_a_session_does_keeps_it_in_the_way() {
    let group = group("giving-way", 3, TABLES);
    // A handler that catches everything, around the lock and behind it.
    let functions = [
        format!(
            "DO $$ BEGIN {}; LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$",
            update(1)
        ),
        format!(
            "DO $$ BEGIN {}; BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN OTHERS THEN PERFORM pg_sleep(600); END; END $$",
            update(1)
        ),
    ];
    for function in &functions {
        let running = start(&group, function);
        await_waiting(&group, "PgSleep", 1);
        change_elsewhere(&group, &update(1));
        let (mut client, outcome) = running.join().expect("session");
        lost(&outcome.expect_err("it has lost"));
        client.batch_execute(&update(1)).expect("it is usable");
    }
    // It waits for a lock; what its savepoints hold counts too.
    let mut holder = group.client(1);
    let hold = format!("BEGIN; {}; SELECT pg_advisory_lock(7)", update(3));
    holder.batch_execute(&hold).expect("hold");
    for (wait, event) in [
        (update(3), "transactionid"),
        ("SELECT pg_advisory_xact_lock(7)".into(), "advisory"),
    ] {
        let sql = format!(
            "BEGIN; SAVEPOINT s; {}; RELEASE s; SELECT pg_advisory_lock(8), pg_advisory_xact_lock(9); {wait}",
            update(2)
        );
        let waiting = start(&group, &sql);
        await_waiting(&group, event, 1);
        change_elsewhere(&group, &update(2));
        let (mut client, outcome) = waiting.join().expect("session");
        lost(&outcome.expect_err("it has lost"));
        // As at any abort: the session's advisory locks stay, those of its transaction do not.
        await_on_first(
            &group,
            "SELECT sum(objid::int8)::int8 FROM pg_locks WHERE locktype = 'advisory' AND objid IN (8, 9) AND granted",
            8,
        );
        client
            .batch_execute("ROLLBACK; SELECT pg_advisory_unlock(8)")
            .expect("it is usable");
    }
    holder
        .batch_execute("COMMIT")
        .expect("nobody needed what it holds");
    // One cursor outlives the transaction that made it, and the next transaction; the other has none.
    let mut client = group.client(1);
    client
        .batch_execute("DECLARE old CURSOR WITH HOLD FOR SELECT id FROM t WHERE id < 4 ORDER BY id")
        .expect("a cursor");
    client
        .batch_execute(&format!(
            "BEGIN; DECLARE new CURSOR WITH HOLD FOR SELECT id FROM t; FETCH old; FETCH new; {}",
            update(4)
        ))
        .expect("another");
    change_elsewhere(&group, &update(4));
    lost(&client.batch_execute("FETCH new").expect_err("it has lost"));
    client.batch_execute("ROLLBACK").expect("rollback");
    let next: i32 = client.query_one("FETCH old", &[]).expect("fetch").get(0);
    assert_eq!(next, 2);
    let gone = client.batch_execute("FETCH new").expect_err("it is gone");
    assert_eq!(gone.code(), Some(&SqlState::INVALID_CURSOR_NAME));
    // Several hold one row.
    let mut lockers: Vec<Client> = (0..3).map(|_| group.client(1)).collect();
    for (client, mode) in lockers.iter_mut().zip(["KEY SHARE", "SHARE", "SHARE"]) {
        let lock = format!("BEGIN; SELECT FROM t WHERE id = 5 FOR {mode}");
        client.batch_execute(&lock).expect("lock");
    }
    change_elsewhere(&group, "DELETE FROM t WHERE id = 5");
    for client in &mut lockers {
        lost(&client.batch_execute("COMMIT").expect_err("it has lost"));
        client.batch_execute("SELECT 1").expect("it is usable");
    }
    group.assert_identical();
}

#[test]
fn a_copy_that_waits_for_its_client_gives_way() {
    let group = group("copy", 3, TABLES);
    // In a block, for what was done before; and by itself, for its own rows.
    for (begin, elsewhere, end, answer) in [
        (
            format!("BEGIN; {}", update(1)),
            update(1),
            "ROLLBACK".to_owned(),
            "ROLLBACK",
        ),
        (
            "SELECT 1".to_owned(),
            "INSERT INTO c VALUES (1)".to_owned(),
            update(2),
            "UPDATE 1",
        ),
    ] {
        let mut stream = silent(&group, |bytes| {
            query(&begin, bytes);
            query("COPY c FROM STDIN", bytes);
            // More than what COPY collects before it inserts.
            let rows: String = (1..=5000).map(|i| format!("{i}\n")).collect();
            let data = frontend::CopyData::new(rows.as_bytes()).expect("CopyData");
            data.write(bytes);
        });
        await_on_first(
            &group,
            "SELECT count(*) FROM pg_stat_progress_copy JOIN pg_stat_activity USING (pid) WHERE tuples_processed > 4000 AND wait_event = 'ClientRead'",
            1,
        );
        change_elsewhere(&group, &elsewhere);
        let mut bytes = BytesMut::new();
        frontend::copy_done(&mut bytes);
        query(&end, &mut bytes);
        frontend::terminate(&mut bytes);
        stream.write_all(&bytes).expect("send");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("answers");
        let said = String::from_utf8_lossy(&said);
        for word in ["C40001\0", "member 2", answer] {
            assert!(said.contains(word), "no {word} in {said}");
        }
        assert!(!said.contains("FATAL"), "{said}");
    }
    group.assert_identical();
    let count = group.client(3).query_one("SELECT count(*) FROM c", &[]);
    assert_eq!(count.expect("count").get::<_, i64>(0), 1);
}

fn query(sql: &str, bytes: &mut BytesMut) {
    frontend::query(sql, bytes).expect("Query");
}

/// A client that sends what it is told to and is silent then.
fn silent(group: &TestGroup, messages: impl FnOnce(&mut BytesMut)) -> TcpStream {
    let server = group.member(1).expect("member");
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut bytes = BytesMut::new();
    let parameters = [("user", "postgres"), ("database", group.database.as_str())];
    frontend::startup_message(parameters, &mut bytes).expect("startup");
    messages(&mut bytes);
    stream.write_all(&bytes).expect("send");
    stream
}

#[test]
fn a_session_in_the_middle_of_a_message_is_ended() {
    let group = group("ended", 3, TABLES);
    // Half of a message.
    let mut stream = silent(&group, |bytes| {
        query(&format!("BEGIN; {}", update(1)), bytes);
        query("COPY c FROM STDIN", bytes);
        bytes.extend_from_slice(b"d\x00\x00\x01\x007\n");
    });
    await_on_first(
        &group,
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY c%' AND wait_event = 'ClientRead'",
        1,
    );
    change_elsewhere(&group, &update(1));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the end");
    assert!(
        answer.windows(5).any(|w| w == b"57P01"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    group.assert_identical();
}

#[test]
fn a_session_whose_client_does_not_read_is_ended() {
    let group = group("unread", 3, TABLES);
    // More than the buffers of both sides hold.
    let rows = "SELECT repeat('x', 1000000) FROM t, generate_series(1, 1000)";
    let streams = [
        vec![format!("{rows} WHERE id = 1 FOR UPDATE OF t")],
        vec![
            format!("BEGIN; {}", update(2)),
            format!("COPY ({rows}) TO STDOUT"),
        ],
    ]
    .map(|commands| {
        silent(&group, |bytes| {
            for sql in commands {
                query(&sql, bytes);
            }
        })
    });
    await_waiting(&group, "ClientWrite", 2);
    let first = group.member(1).expect("member");
    let blocked = "SELECT array_agg(pid) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
    let blocked: Vec<i32> = query_one(first, &group.database, blocked).expect("their processes");
    // Two transactions, for each of which somebody else is in the way.
    change_elsewhere(&group, &format!("{}; COMMIT; {}", update(1), update(2)));
    group.assert_identical();
    let log = first.log_tail(60);
    for pid in blocked {
        let ended = |line: &&str| line.contains(&format!("[{pid}]")) && line.contains("FATAL:");
        assert!(log.lines().any(|line| ended(&line)), "{pid}: {log}");
    }
    // Until here they were open, and nobody has read from them.
    drop(streams);
}

#[test]
fn cycles_of_local_sessions_and_helpers_come_apart() {
    let group = group("cycles", 3, TABLES);
    let hold = |id| {
        let mut client = group.client(1);
        let sql = format!("SET deadlock_timeout = '100ms'; BEGIN; {}", update(id));
        client.batch_execute(&sql).expect("hold");
        client
    };
    let then = |mut client: Client, id| {
        std::thread::spawn(move || {
            let outcome = client.batch_execute(&update(id));
            (client, outcome)
        })
    };
    // A waits for B; a helper needs what both have, or what B has and A is the next to get.
    for wanted in ["1, 2", "2"] {
        let (a, mut b) = (hold(1), hold(2));
        let a = then(a, 2);
        await_waiting(&group, "transactionid", 1);
        change_elsewhere(
            &group,
            &format!("UPDATE t SET v = v + 1 WHERE id IN ({wanted})"),
        );
        lost(&b.batch_execute("COMMIT").expect_err("B has lost"));
        let (mut a, outcome) = a.join().expect("A");
        lost(&outcome.expect_err("A has lost"));
        a.batch_execute("ROLLBACK").expect("it is usable");
    }
    // A helper has what A waits for, and needs what B has, which waits for A.
    let (a, b) = (hold(3), hold(4));
    let mut gate = group.client(1);
    gate.batch_execute(&format!("BEGIN; {}", update(6)))
        .expect("hold");
    let b = then(b, 3);
    await_waiting(&group, "transactionid", 1);
    let a = then(a, 6);
    await_waiting(&group, "transactionid", 2);
    change_elsewhere(
        &group,
        "UPDATE t SET v = v + 1 WHERE id = 5; UPDATE t SET v = v + 1 WHERE id = 4; UPDATE t SET v = v + 1 WHERE id = 3",
    );
    for session in [a, b] {
        let (mut client, outcome) = session.join().expect("session");
        lost(&outcome.expect_err("it has lost"));
        client.batch_execute("ROLLBACK").expect("it is usable");
    }
    gate.batch_execute("COMMIT")
        .expect("nobody needed what it holds");
    // Among themselves they have PostgreSQL's deadlock detector.
    let (a, b) = (hold(7), hold(8));
    let (a, b) = (then(a, 8), then(b, 7));
    let outcomes = [a, b].map(|s| s.join().expect("session").1);
    let deadlocks = outcomes.iter().filter_map(|o| o.as_ref().err()?.code());
    assert_eq!(
        deadlocks.collect::<Vec<_>>(),
        [&SqlState::T_R_DEADLOCK_DETECTED],
        "{outcomes:?}"
    );
    group.assert_identical();
}

#[test]
fn maintenance_is_given_time() {
    let group = group("maintenance", 3, TABLES);
    let first = group.member(1).expect("member");
    let set = |delay: &str| {
        group.execute(
            1,
            &format!("ALTER SYSTEM SET replication_max_apply_delay = '{delay}'"),
        );
        group.execute(1, "SELECT pg_reload_conf()");
    };
    let mut gate = group.client(1);
    let commands = ["REINDEX TABLE m", "VACUUM FULL m", "CLUSTER m USING m_pkey"];
    for command in commands {
        set("-1");
        gate.batch_execute("SELECT pg_advisory_lock(77)")
            .expect("lock");
        let mut client = group.client(1);
        client
            .batch_execute("SET application_name = 'maintenance'")
            .expect("set");
        let maintenance = std::thread::spawn(move || {
            let outcome = client.batch_execute(command);
            (client, outcome)
        });
        await_waiting(&group, "advisory", 1);
        group.execute(2, "UPDATE m SET v = v + 1");
        // Anybody else would be gone.
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND now() - waitstart > interval '1s'";
        wait_for(PATIENCE, || {
            query_one::<i64>(first, &group.database, waits)
                .ok()
                .filter(|n| *n == 1)
        })
        .expect("a helper waits");
        assert!(!maintenance.is_finished(), "{command} was given no time");
        set("0");
        group.wait_in_step(PATIENCE).expect("its time is over");
        let (mut client, outcome) = maintenance.join().expect("session");
        lost(&outcome.expect_err("it was aborted"));
        gate.batch_execute("SELECT pg_advisory_unlock(77)")
            .expect("unlock");
        // What it holds from now on is that of an ordinary session.
        set("-1");
        client
            .batch_execute("BEGIN; UPDATE m SET v = v + 1")
            .expect("it is usable");
        change_elsewhere(&group, "UPDATE m SET v = v + 1");
        lost(&client.batch_execute("COMMIT").expect_err("it has lost"));
        client.batch_execute(command).expect("there is time enough");
    }
    group.assert_identical();
}
