//! A group grows and shrinks while it works.

use crate::support::{PATIENCE, Stop, group};
use postgres_r::cluster::server::wait_for;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn members_join_under_load() {
    let mut group = group(
        "join",
        1,
        "CREATE TABLE t (id int8 PRIMARY KEY, v int8); INSERT INTO t SELECT i, 0 FROM generate_series(1, 200) i;",
    );
    let stop = AtomicBool::new(false);
    let url = group.member(1).expect("member").url(&group.database);
    std::thread::scope(|scope| {
        for writer in 0..3i64 {
            let (stop, url) = (&stop, &url);
            scope.spawn(move || {
                let mut client = postgres::Client::connect(url, postgres::NoTls).expect("connect");
                let mut i = 0;
                while !stop.load(Ordering::Relaxed) {
                    i += 1;
                    client
                        .execute(
                            "UPDATE t SET v = v + 1 WHERE id = $1",
                            &[&(i % 60 + writer * 60 + 1)],
                        )
                        .expect("update");
                    client
                        .execute(
                            "INSERT INTO t VALUES ($1, $2)",
                            &[&((writer + 1) * 1_000_000 + i), &i],
                        )
                        .expect("insert");
                }
            });
        }
        let _stop = Stop(&stop);
        let joined = (0..2).try_for_each(|_| group.join(&mut |_| {}).map(drop));
        joined.unwrap_or_else(|e| panic!("{e}"));
    });
    assert!(group.assert_identical() > 200);
    assert_eq!((group.state(3).members, group.state(3).voters), (3, 3));
    // The new ones write as well, and the oldest can go.
    group.execute(3, "INSERT INTO t VALUES (-3, 3)");
    group.execute(2, "INSERT INTO t VALUES (-2, 2)");
    group.assert_identical();
    group
        .member(1)
        .expect("member")
        .kill()
        .unwrap_or_else(|e| panic!("{e}"));
    group.execute(2, "UPDATE t SET v = 4 WHERE id = -3");
    group.start(1);
    group.assert_identical();
}

#[test]
fn a_member_without_majority_reads_but_refuses_writes_until_it_is_back() {
    let group = group(
        "majority",
        3,
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t VALUES (1, 0);",
    );
    group.execute(1, "UPDATE t SET v = 1 WHERE id = 1");
    group.wait_in_step(PATIENCE).expect("in step");
    for number in [2, 3] {
        group
            .member(number)
            .expect("member")
            .kill()
            .unwrap_or_else(|e| panic!("{e}"));
    }
    let start = std::time::Instant::now();
    wait_for(PATIENCE, || {
        (group.state(1).state == "no_quorum").then_some(())
    })
    .expect("it notices");
    println!(
        "without majority noticed after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let mut client = group.client(1);
    assert_eq!(
        client
            .query_one("SELECT v FROM t", &[])
            .expect("reads go on")
            .get::<_, i32>(0),
        1
    );
    let error = client
        .batch_execute("UPDATE t SET v = 2 WHERE id = 1")
        .expect_err("no majority");
    let db = error.as_db_error().expect("an answer");
    assert!(
        db.detail().is_some_and(|d| d.contains("majority")) && db.hint().is_some(),
        "{db:?}"
    );
    assert_eq!(
        client
            .query_one("SELECT v FROM t", &[])
            .expect("reads go on")
            .get::<_, i32>(0),
        1
    );
    let error = client
        .batch_execute("SET replication_consistency = before; SELECT v FROM t")
        .expect_err("nobody knows what the others have acknowledged");
    let db = error.as_db_error().expect("an answer");
    assert_eq!(db.code().code(), "57P03", "{db:?}");
    assert!(db.hint().is_some_and(|h| h.contains("eventual")), "{db:?}");
    client
        .batch_execute("RESET replication_consistency")
        .expect("reset");
    group.start_quietly(2);
    let start = std::time::Instant::now();
    wait_for(PATIENCE, || {
        client.batch_execute("UPDATE t SET v = 3 WHERE id = 1").ok()
    })
    .expect("it goes on by itself");
    println!(
        "writes went on after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    group.start(3);
    // A majority needs its log, not its database.
    group.await_online(2);
    group.assert_identical();
}

#[test]
fn a_copy_is_closed_to_clients_until_it_has_joined() {
    let mut group = group("closed", 1, "CREATE TABLE t (id int4 PRIMARY KEY);");
    let copy = group
        .prepare_join(&mut |_| {})
        .unwrap_or_else(|e| panic!("{e}"));
    // The only member that could take it in is away.
    group
        .member(1)
        .expect("member")
        .stop(postgres_r::cluster::server::StopMode::Fast)
        .unwrap_or_else(|e| panic!("{e}"));
    copy.start(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    let error = copy
        .connect(&group.database)
        .err()
        .expect("it has not joined");
    assert!(error.cause.contains("57P03"), "{error}");
    group.start(1);
    postgres_r::cluster::status::wait_online(&copy, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    group.execute(2, "INSERT INTO t VALUES (2)");
    group.assert_identical();
}

#[test]
fn a_member_that_stops_replication_leaves_the_others_at_work() {
    let group = group("leave", 3, "CREATE TABLE t (id int4 PRIMARY KEY);");
    group.execute(3, "INSERT INTO t VALUES (3)");
    group.execute(3, "ALTER DATABASE app STOP REPLICATION");
    group.execute(1, "INSERT INTO t VALUES (1)");
    group.execute(2, "INSERT INTO t VALUES (2)");
    wait_for(PATIENCE, || (group.state(1).members == 2).then_some(())).expect("two are left");
    group.execute(3, "CREATE TABLE own (a int4)");
    let count: i64 = group
        .client(3)
        .query_one("SELECT count(*) FROM t", &[])
        .expect("count")
        .get(0);
    assert_eq!(count, 1, "what the others did later is not here");
    let count: i64 = group
        .client(1)
        .query_one("SELECT count(*) FROM t", &[])
        .expect("count")
        .get(0);
    assert_eq!(count, 3);
}
