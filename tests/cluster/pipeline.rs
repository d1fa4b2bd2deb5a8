//! Victims whose clients speak the extended protocol, message by message: what they hear, and in
//! which state their sessions are.

use crate::support::{PATIENCE, TestGroup, group};
use crate::wire::Answer::{Bound, Closed, Parsed, Ready};
use crate::wire::{Answer, Session, complete, lost};
use std::time::Duration;

/// Three members with a table of ten rows.
fn ten_rows(name: &str) -> TestGroup {
    group(
        name,
        3,
        "CREATE TABLE t (id int4 PRIMARY KEY, v int4); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i;",
    )
}

/// Changes a row on member 2 and waits until the others have it: a local transaction that held the
/// row has given way.
fn change_elsewhere(group: &TestGroup, id: i32) {
    // What member 1 committed before must not be newer than this change's snapshot.
    group
        .wait_in_step(PATIENCE)
        .expect("member 2 has applied what member 1 committed");
    group.execute(2, &format!("UPDATE t SET v = 100 WHERE id = {id}"));
    group
        .wait_in_step(PATIENCE)
        .expect("the holder of the row gives way");
}

fn update(id: i32) -> String {
    format!("UPDATE t SET v = v + 1 WHERE id = {id}")
}

/// Nothing of the session's transaction is left, and the session works.
fn assert_usable(group: &TestGroup, session: &mut Session, id: i32) {
    let seen: i64 = group
        .client(1)
        .query_one(
            "SELECT count(*) FROM t WHERE id > 10 OR v NOT IN (0, 100)",
            &[],
        )
        .expect("count")
        .get(0);
    assert_eq!(seen, 0, "something of the victim was committed");
    session
        .run(&format!("UPDATE t SET v = 0 WHERE id = {id}"))
        .sync()
        .expect(&[Parsed, Bound, complete("UPDATE 1"), Ready('I')]);
    session
        .query("SELECT 1")
        .expect(&[complete("SELECT 1"), Ready('I')]);
}

#[test]
fn a_victim_in_a_pipeline_hears_of_it_once_and_opens_no_block() {
    let group = ten_rows("pipeline");
    let mut session = Session::connect(&group, 1);
    session
        .parse("more", "INSERT INTO t VALUES (11, 0)")
        .sync()
        .expect(&[Parsed, Ready('I')]);

    // More of the same transaction follows.
    session
        .run(&update(1))
        .flush()
        .expect(&[Parsed, Bound, complete("UPDATE 1")]);
    change_elsewhere(&group, 1);
    session
        .bind("more")
        .execute()
        .sync()
        .expect(&[lost(), Ready('I')]);
    assert!(session.detail.contains("member 2"), "{}", session.detail);
    assert_usable(&group, &mut session, 1);

    // The same when several commands have made it an implicit block.
    session.run(&update(2)).run(&update(3)).flush().expect(&[
        Parsed,
        Bound,
        complete("UPDATE 1"),
        Parsed,
        Bound,
        complete("UPDATE 1"),
    ]);
    change_elsewhere(&group, 3);
    session
        .bind("more")
        .execute()
        .sync()
        .expect(&[lost(), Ready('I')]);
    assert_usable(&group, &mut session, 3);

    // Only its end follows.
    for commands in [vec![update(4)], vec![update(5), update(4)]] {
        for command in commands {
            session
                .run(&command)
                .flush()
                .expect(&[Parsed, Bound, complete("UPDATE 1")]);
        }
        change_elsewhere(&group, 4);
        session.sync().expect(&[lost(), Ready('I')]);
        assert_usable(&group, &mut session, 4);
    }

    // A simple query ends the batch.
    session
        .run(&update(6))
        .flush()
        .expect(&[Parsed, Bound, complete("UPDATE 1")]);
    change_elsewhere(&group, 6);
    session.query("SELECT 1").expect(&[lost(), Ready('I')]);
    assert_usable(&group, &mut session, 6);
    group.assert_identical();
}

#[test]
fn a_victim_in_a_batch_of_a_block_hears_of_it_until_it_rolls_back() {
    let group = ten_rows("batch");
    let mut session = Session::connect(&group, 1);
    let begin = |session: &mut Session, id| {
        session
            .query("BEGIN")
            .expect(&[complete("BEGIN"), Ready('T')]);
        session
            .run(&update(id))
            .sync()
            .expect(&[Parsed, Bound, complete("UPDATE 1"), Ready('T')]);
    };
    let roll_back = |session: &mut Session, id| {
        session.query("SELECT 1").expect(&[lost(), Ready('E')]);
        session
            .run("ROLLBACK")
            .sync()
            .expect(&[Parsed, Bound, complete("ROLLBACK"), Ready('I')]);
        assert_usable(&group, session, id);
    };

    // Its portal is gone when it is executed.
    begin(&mut session, 1);
    session
        .parse("", "INSERT INTO t VALUES (11, 0)")
        .bind("")
        .flush()
        .expect(&[Parsed, Bound]);
    change_elsewhere(&group, 1);
    session.execute().sync().expect(&[lost(), Ready('E')]);
    assert!(session.detail.contains("member 2"), "{}", session.detail);
    roll_back(&mut session, 1);

    // Only the end of the batch follows.
    begin(&mut session, 2);
    session
        .run("INSERT INTO t VALUES (11, 0)")
        .flush()
        .expect(&[Parsed, Bound, complete("INSERT 0 1")]);
    change_elsewhere(&group, 2);
    session.sync().expect(&[lost(), Ready('E')]);
    roll_back(&mut session, 2);

    // COMMIT is in the batch.
    begin(&mut session, 3);
    session
        .parse("", "COMMIT")
        .bind("")
        .flush()
        .expect(&[Parsed, Bound]);
    change_elsewhere(&group, 3);
    session.execute().sync().expect(&[lost(), Ready('E')]);
    roll_back(&mut session, 3);

    // Drivers do not read what a batch is answered that only closes a statement.
    begin(&mut session, 4);
    session.close("").flush().expect(&[Closed]);
    change_elsewhere(&group, 4);
    session.sync().expect(&[lost(), Ready('E')]);
    session
        .run("INSERT INTO t VALUES (11, 0)")
        .sync()
        .expect(&[lost(), Ready('E')]);
    roll_back(&mut session, 4);
    group.assert_identical();
}

#[test]
fn a_victim_between_batches_hears_of_it_in_the_next() {
    let group = ten_rows("idle");
    let mut session = Session::connect(&group, 1);
    let begin = |session: &mut Session, id| {
        session.run("BEGIN").run(&update(id)).sync().expect(&[
            Parsed,
            Bound,
            complete("BEGIN"),
            Parsed,
            Bound,
            complete("UPDATE 1"),
            Ready('T'),
        ]);
        change_elsewhere(&group, id);
    };

    begin(&mut session, 1);
    session
        .run("INSERT INTO t VALUES (11, 0)")
        .sync()
        .expect(&[lost(), Ready('E')]);
    assert!(session.detail.contains("member 2"), "{}", session.detail);
    session
        .query("ROLLBACK")
        .expect(&[complete("ROLLBACK"), Ready('I')]);
    assert_usable(&group, &mut session, 1);

    // A COMMIT must not look like one.
    begin(&mut session, 2);
    session
        .run("COMMIT")
        .sync()
        .expect(&[Parsed, Bound, lost(), Ready('I')]);
    assert_usable(&group, &mut session, 2);
    begin(&mut session, 3);
    session.query("COMMIT").expect(&[lost(), Ready('I')]);
    assert_usable(&group, &mut session, 3);

    // Its savepoints are gone; a program that has not heard of it may ask for one.
    session
        .query(&format!("BEGIN; SAVEPOINT s; {}", update(4)))
        .expect(&[
            complete("BEGIN"),
            complete("SAVEPOINT"),
            complete("UPDATE 1"),
            Ready('T'),
        ]);
    change_elsewhere(&group, 4);
    for command in ["ROLLBACK TO s", "RELEASE s", "SAVEPOINT s", "SELECT 1"] {
        session.query(command).expect(&[lost(), Ready('E')]);
        assert!(session.detail.contains("member 2"), "{}", session.detail);
    }
    session
        .query("ROLLBACK")
        .expect(&[complete("ROLLBACK"), Ready('I')]);

    // The next block fails for a reason of its own.
    session.query("BEGIN; SELECT 1 / 0").expect(&[
        complete("BEGIN"),
        Answer::Error("22012".into()),
        Ready('E'),
    ]);
    session
        .query("SELECT 1")
        .expect(&[Answer::Error("25P02".into()), Ready('E')]);
    session
        .query("COMMIT")
        .expect(&[complete("ROLLBACK"), Ready('I')]);
    assert_usable(&group, &mut session, 4);
    group.assert_identical();
}

#[test]
fn a_victim_that_hears_of_something_else_first_goes_on() {
    let group = ten_rows("other-errors");
    let mut session = Session::connect(&group, 1);

    // The batch has failed within a savepoint; what lies outside of it still holds the row.
    session
        .query("BEGIN")
        .expect(&[complete("BEGIN"), Ready('T')]);
    session
        .query(&format!("{}; SAVEPOINT s", update(1)))
        .expect(&[complete("UPDATE 1"), complete("SAVEPOINT"), Ready('T')]);
    session
        .run("SELECT 1 / 0")
        .flush()
        .expect(&[Parsed, Answer::Error("22012".into())]);
    change_elsewhere(&group, 1);
    session.sync().expect(&[Ready('E')]);
    session.query("SELECT 1").expect(&[lost(), Ready('E')]);
    session
        .query("ROLLBACK")
        .expect(&[complete("ROLLBACK"), Ready('I')]);
    assert_usable(&group, &mut session, 1);

    // The timeout of the command whose Parse was the last message is found before the next message
    // is looked at; the next transaction is another one.
    session
        .query("SET statement_timeout = '3s'")
        .expect(&[complete("SET"), Ready('I')]);
    session
        .run(&update(2))
        .parse("", "SELECT 1")
        .flush()
        .expect(&[Parsed, Bound, complete("UPDATE 1"), Parsed]);
    change_elsewhere(&group, 2);
    std::thread::sleep(Duration::from_millis(3100));
    session
        .sync()
        .expect(&[Answer::Error("57014".into()), Ready('I')]);
    session
        .query("RESET statement_timeout")
        .expect(&[complete("RESET"), Ready('I')]);
    assert_usable(&group, &mut session, 2);

    // A simple query in a batch leaves the implicit block open.
    session.run(&update(3)).query("SELECT 1").expect(&[
        Parsed,
        Bound,
        complete("UPDATE 1"),
        complete("SELECT 1"),
        Ready('T'),
    ]);
    change_elsewhere(&group, 3);
    session
        .query("INSERT INTO t VALUES (11, 0)")
        .expect(&[lost(), Ready('I')]);
    assert_usable(&group, &mut session, 3);
    group.assert_identical();
}
