//! LISTEN and NOTIFY: listeners on every member hear the same, in commit order, once.

use crate::support::{PATIENCE, TestGroup, group_with, options, until_committed};
use postgres::Client;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres_r::cluster::server::wait_for;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Each fills a page of the queue.
const PAGE: &str = "repeat('x', 7900)";

/// The smallest queue that there is.
fn start(name: &str) -> TestGroup {
    let mut options = options(3);
    options
        .configuration
        .push_str("max_notify_queue_pages = 64\n");
    group_with(
        name,
        options,
        "CREATE TABLE t (id int4 PRIMARY KEY, n int4 NOT NULL); INSERT INTO t VALUES (0, 0);",
    )
}

fn listener(group: &TestGroup, number: usize) -> Client {
    let mut client = group.client(number);
    client.batch_execute("LISTEN news").expect("LISTEN");
    client
}

/// The next `n` notifications: payloads and sending processes.
fn heard(client: &mut Client, n: usize) -> Vec<(String, i32)> {
    let mut notifications = client.notifications();
    let next = notifications.timeout_iter(PATIENCE).take(n);
    let heard = next
        .map(|n| Ok((n.payload().to_owned(), n.process_id())))
        .collect::<Vec<_>>();
    let heard = heard.expect("a connection");
    assert_eq!(heard.len(), n, "{heard:?}");
    heard
}

fn payloads(client: &mut Client, n: usize) -> Vec<String> {
    let heard = heard(client, n);
    heard.into_iter().map(|(payload, _)| payload).collect()
}

fn pid(client: &mut Client) -> i32 {
    let row = client.query_one("SELECT pg_backend_pid()", &[]);
    row.expect("pid").get(0)
}

#[test]
fn all_listeners_hear_what_was_committed_in_its_order_and_once() {
    let group = start("notify");
    let mut listeners: Vec<Client> = (1..=3).map(|i| listener(&group, i)).collect();

    // Those that fail certification are not heard, and the others in the order of the counter.
    let each = 20;
    thread::scope(|scope| {
        for number in 1..=3 {
            let group = &group;
            scope.spawn(move || {
                let mut client = group.client(number);
                for _ in 0..each {
                    until_committed(&mut client, |t| {
                        t.batch_execute(
                            "WITH c AS (UPDATE t SET n = n + 1 WHERE id = 0 RETURNING n)
                             SELECT pg_notify('news', n::text) FROM c",
                        )
                    })
                    .expect("committed");
                }
            });
        }
    });
    let wanted: Vec<String> = (1..=3 * each).map(|n| n.to_string()).collect();
    for client in &mut listeners {
        assert_eq!(payloads(client, wanted.len()), wanted);
    }

    // What was rolled back and duplicates are not heard; nor is anything in another database.
    let mut elsewhere = group
        .member(2)
        .expect("member")
        .connect("postgres")
        .expect("connect");
    elsewhere.batch_execute("LISTEN news").expect("LISTEN");
    let mut client = group.client(1);
    let sender = pid(&mut client);
    let before = group.state(1).last_committed_gid;
    for sql in [
        "BEGIN; NOTIFY news, 'a'; NOTIFY news, 'a'; SAVEPOINT s; NOTIFY news, 'lost'; ROLLBACK TO s;
         NOTIFY news, 'b'; SAVEPOINT s; NOTIFY news, 'a'; NOTIFY news; RELEASE s; COMMIT",
        "BEGIN; NOTIFY news, 'lost'; ROLLBACK",
        "DO $$ BEGIN FOR i IN 1..3 LOOP
           PERFORM pg_notify('news', 'do ' || i);
           IF i = 2 THEN ROLLBACK; ELSE COMMIT; END IF;
         END LOOP; END $$",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT * FROM t; NOTIFY news, 'read'; COMMIT",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM t; NOTIFY news, 'serializable'; COMMIT",
    ] {
        client.batch_execute(sql).expect(sql);
    }
    let wanted = ["a", "b", "", "do 1", "do 3", "read", "serializable"];
    for (i, client) in listeners.iter_mut().enumerate() {
        // What was sent on another member comes from no process of this one.
        let sender = if i == 0 { sender } else { 0 };
        let wanted: Vec<_> = wanted.map(|p| (p.to_owned(), sender)).into();
        assert_eq!(heard(client, wanted.len()), wanted);
    }
    let after = group.state(1).last_committed_gid;
    assert_eq!(after - before, 5, "a transaction each");
    elsewhere
        .batch_execute("NOTIFY news, 'here'")
        .expect("NOTIFY");
    assert_eq!(payloads(&mut elsewhere, 1), ["here"]);

    // To oneself, in the transaction that begins to listen; the others hear nothing of that channel.
    let own = pid(&mut client);
    client
        .batch_execute("BEGIN; LISTEN other; NOTIFY other, 'self'; NOTIFY news, 'end'; COMMIT")
        .expect("LISTEN and NOTIFY");
    assert_eq!(heard(&mut client, 1), [("self".to_owned(), own)]);
    for client in &mut listeners {
        assert_eq!(payloads(client, 1), ["end"]);
    }

    another_database_holds_the_lock(&group, &mut listeners);
    group.assert_identical();
}

/// A transaction of another database is in the middle of its commit, with PostgreSQL's lock of all
/// who notify.
fn another_database_holds_the_lock(group: &TestGroup, listeners: &mut [Client]) {
    let server = group.member(1).expect("member");
    // Statement by statement: ALTER SYSTEM runs in no transaction block.
    let configure = |names: &str| {
        let mut client = server.connect("postgres").expect("connect");
        for sql in [
            "SET synchronous_commit = local",
            &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"),
            "SELECT pg_reload_conf()",
        ] {
            client.batch_execute(sql).expect(sql);
        }
    };
    configure("nobody");
    let mut holder = server.connect("postgres").expect("connect");
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    // Until one waits: processes read their configuration in their own time.
    let held = thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            let sql = "CREATE TABLE made (a int); DROP TABLE made; NOTIFY news, 'postgres'";
            holder.batch_execute(sql).expect("committed");
        }
    });
    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                  WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND l.objid = 0
                    AND l.granted AND a.wait_event = 'SyncRep'";
    group.await_value(server, waits, 1);
    group.execute(2, "NOTIFY news, 'of 2'");
    group.execute(1, "NOTIFY news, 'of 1'");
    for client in listeners {
        assert_eq!(payloads(client, 2), ["of 2", "of 1"]);
    }
    over.store(true, Ordering::Relaxed);
    configure("");
    held.join().expect("no panic");
}

#[test]
fn a_full_queue_is_an_error_where_it_is_sent_and_ends_who_does_not_read_elsewhere() {
    let group = start("notify-full");
    let mut client = group.client(1);
    let mut lazy = listener(&group, 2);
    lazy.batch_execute("BEGIN; SELECT 1").expect("BEGIN");
    let mut reader = listener(&group, 3);
    let reads = thread::spawn(move || payloads(&mut reader, 100).len());
    for i in 0..100 {
        client
            .batch_execute(&format!("SELECT pg_notify('news', {PAGE} || {i})"))
            .expect("NOTIFY");
    }
    assert_eq!(reads.join().expect("no panic"), 100);
    group.wait_in_step(PATIENCE).expect("in step");
    let error = lazy.batch_execute("SELECT 1").expect_err("its session");
    assert!(
        error.code() == Some(&SqlState::ADMIN_SHUTDOWN) || error.is_closed(),
        "{error:?}"
    );
    let log = group.member(2).expect("member").log_tail(200);
    assert!(log.contains("the NOTIFY queue is full"), "{log}");

    // On its own member the sender fails, as on one server, and all that it did.
    let mut lazy = listener(&group, 1);
    lazy.batch_execute("BEGIN; SELECT 1").expect("BEGIN");
    let failed = (1..100).find_map(|i| {
        let sql = format!(
            "BEGIN; INSERT INTO t VALUES ({i}, 1); SELECT pg_notify('news', {PAGE}); COMMIT"
        );
        client.batch_execute(&sql).err().map(|error| (i, error))
    });
    let (i, error) = failed.expect("more than fit");
    assert_eq!(
        error.code(),
        Some(&SqlState::PROGRAM_LIMIT_EXCEEDED),
        "{error:?}"
    );
    let rows = client
        .query_one("SELECT count(*) FROM t", &[])
        .expect("count");
    assert_eq!(
        rows.get::<_, i64>(0),
        i64::from(i),
        "with the one from before"
    );
    lazy.batch_execute("COMMIT").expect("it was not ended");
    let works = || client.batch_execute("NOTIFY news").ok();
    wait_for(PATIENCE, works).expect("the queue was read");
    drop(lazy);
    group.assert_identical();
}
