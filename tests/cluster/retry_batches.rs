//! `replication_retry` for batches of the extended query protocol, message by message.

use crate::retry::{TABLES, change_elsewhere, retries};
use crate::support::{TestGroup, group};
use crate::wire::Answer::{Bound, Closed, Parsed, Ready, Suspended};
use crate::wire::{Answer, Session, complete, lost};
use postgres::Client;
use std::thread::JoinHandle;

/// A session of member 1 that retries, and another that lets it through the gate.
struct Scene {
    group: TestGroup,
    session: Session,
    key: Client,
}

fn scene(name: &str) -> Scene {
    let group = group(name, 2, TABLES);
    let mut session = Session::connect(&group, 1);
    session
        .query("SET replication_retry = 2")
        .expect(&[complete("SET"), Ready('I')]);
    let key = group.client(1);
    Scene {
        group,
        session,
        key,
    }
}

impl Scene {
    fn await_on_first(&self, what: &str) {
        let first = self.group.member(1).expect("member");
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND {what}"
        );
        self.group.await_value(first, &sql, 1);
    }

    fn await_event(&self, event: &str) {
        self.await_on_first(&format!("wait_event = '{event}'"));
    }

    fn lock(&mut self) {
        let locked = self.key.batch_execute("SELECT pg_advisory_lock(77)");
        locked.expect("lock");
    }

    fn open(&mut self) {
        let unlocked = self.key.batch_execute("SELECT pg_advisory_unlock(77)");
        unlocked.expect("unlock");
    }

    fn change_elsewhere(&self, id: i32) {
        change_elsewhere(&self.group, id);
    }

    /// What was sent waits at the gate, loses the row there, and passes it when it is there again.
    fn lose_at_the_gate(&mut self, id: i32) {
        self.await_event("advisory");
        self.change_elsewhere(id);
        self.await_event("advisory");
        self.open();
    }

    /// What was sent has changed a row, and the client goes on after it has lost that.
    fn lose_in_between(&mut self, id: i32) {
        self.await_on_first("backend_xid IS NOT NULL AND wait_event = 'ClientRead'");
        self.change_elsewhere(id);
    }

    fn cancel(&self, event: &str) {
        self.await_event(event);
        self.group.execute(
            1,
            &format!(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = '{event}'"
            ),
        );
    }

    /// From here on what changes row 1 loses when it is certified, against what is not visible before
    /// [`Scene::let_on`].
    fn hold_back(&self) -> JoinHandle<()> {
        let mut first = self.group.client(1);
        first
            .batch_execute(
                "SELECT injection_points_set_local(); SELECT injection_points_attach('replication-commit-visible', 'wait')",
            )
            .expect("attach");
        let (_, v) = self.outcome(20);
        let update = "UPDATE t SET v = v + 1 WHERE id = 20";
        let held = std::thread::spawn(move || first.batch_execute(update).expect("update"));
        self.await_event("replication-commit-visible");
        let second = self.group.member(2).expect("member");
        let there = "SELECT v::int8 FROM t WHERE id = 20";
        self.group.await_value(second, there, i64::from(v) + 1);
        let both = "UPDATE t SET v = v WHERE id = 20; UPDATE t SET v = 100 WHERE id = 1";
        self.group.execute(2, both);
        held
    }

    fn let_on(&self, held: JoinHandle<()>) {
        let sql = "SELECT injection_points_wakeup('replication-commit-visible')";
        self.group.execute(1, sql);
        held.join().expect("it is visible");
    }

    /// How often something was retried on member 1, and what a row holds.
    fn outcome(&self, id: i32) -> (i64, i32) {
        let sql = "SELECT v FROM t WHERE id = $1";
        let row = self.group.client(1).query_one(sql, &[&id]);
        (retries(&self.group, 1), row.expect("a row").get(0))
    }

    /// Nothing more is answered than was asked for.
    fn assert_in_step(&mut self) {
        self.session
            .query("SELECT 1")
            .expect(&[complete("SELECT 1"), Ready('I')]);
        self.group.assert_identical();
    }
}

const GATED: &str = "UPDATE t SET v = v + $1 WHERE id = $2 RETURNING v, $3::text, gate()";

/// Binary values for it.
fn values(id: i32) -> [Vec<u8>; 3] {
    let number = |n: i32| n.to_be_bytes().to_vec();
    [number(1), number(id), b"by reference".to_vec()]
}

fn bind_gated(session: &mut Session, portal: &str, name: &str, id: i32) {
    let values = values(id);
    let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    session.bind_values(portal, name, &values);
}

fn gated_row() -> Vec<Vec<Vec<u8>>> {
    let v = 101_i32.to_be_bytes().to_vec();
    vec![vec![v, b"by reference".to_vec(), b"through".to_vec()]]
}

#[test]
fn a_batch_that_lost_is_answered_as_if_it_had_not() {
    let mut s = scene("batches");
    // An unnamed statement, described.
    s.lock();
    s.session.parse("", GATED);
    bind_gated(&mut s.session, "", "", 1);
    s.session.describe(b'P', "").execute().sync().send();
    s.lose_at_the_gate(1);
    let updated = complete("UPDATE 1");
    s.session.expect(&[Parsed, Bound, updated, Ready('I')]);
    assert_eq!(s.session.rows, gated_row());
    assert_eq!(s.outcome(1), (1, 101));

    // A named one, whose Parse was answered before; a portal of which not all rows are asked for.
    s.lock();
    s.session
        .parse("named", GATED)
        .describe(b'S', "named")
        .flush()
        .expect(&[Parsed]);
    bind_gated(&mut s.session, "p", "named", 2);
    s.session.execute_portal("p", 1).close_portal("p").sync();
    s.session.send();
    s.lose_at_the_gate(2);
    s.session.expect(&[Bound, Suspended, Closed, Ready('I')]);
    assert_eq!(s.session.rows, gated_row());
    assert_eq!(s.outcome(2), (2, 101));

    // Another batch has been sent behind it, of which nothing is lost.
    s.lock();
    bind_gated(&mut s.session, "", "named", 3);
    s.session.execute().sync();
    s.session.run("UPDATE t SET v = 7 WHERE id = 4").sync();
    s.session.send();
    s.lose_at_the_gate(3);
    s.session.expect(&[
        Bound,
        complete("UPDATE 1"),
        Ready('I'),
        Parsed,
        Bound,
        complete("UPDATE 1"),
        Ready('I'),
    ]);
    assert_eq!((s.outcome(3), s.outcome(4)), ((3, 101), (3, 7)));

    // Its client is silent when it loses, and then ends it.
    s.session.run("UPDATE t SET v = v + 1 WHERE id = 5").send();
    s.lose_in_between(5);
    s.session
        .sync()
        .expect(&[Parsed, Bound, complete("UPDATE 1"), Ready('I')]);
    assert_eq!(s.outcome(5), (4, 101));

    // It loses when it commits, twice; the second time to a transaction that met it as it ran again.
    let held = s.hold_back();
    bind_gated(&mut s.session, "", "named", 1);
    s.session.execute().sync().send();
    s.await_event("ReplicationConsistency");
    s.lock();
    s.let_on(held);
    s.lose_at_the_gate(1);
    s.session.expect(&[Bound, complete("UPDATE 1"), Ready('I')]);
    assert_eq!(s.session.rows, gated_row());
    assert_eq!(s.outcome(1), (6, 101));
    s.assert_in_step();
}

#[test]
fn a_retried_batch_that_fails_answers_its_sync_once() {
    let mut s = scene("cancelled");
    let canceled = || Answer::Error("57014".into());
    s.session
        .parse("named", GATED)
        .sync()
        .expect(&[Parsed, Ready('I')]);
    let send = |session: &mut Session| {
        bind_gated(session, "", "named", 1);
        session.execute().sync().send();
    };
    // Its Sync was read before; it is cancelled before it runs again, and as it does.
    let held = s.hold_back();
    send(&mut s.session);
    s.cancel("ReplicationConsistency");
    s.session.expect(&[canceled(), Ready('I')]);
    s.let_on(held);
    s.assert_in_step();
    let held = s.hold_back();
    send(&mut s.session);
    s.await_event("ReplicationConsistency");
    s.lock();
    s.let_on(held);
    s.cancel("advisory");
    s.session.expect(&[Bound, canceled(), Ready('I')]);
    s.open();
    s.assert_in_step();
    // Its Sync was not read yet.
    s.lock();
    send(&mut s.session);
    s.await_event("advisory");
    s.change_elsewhere(1);
    s.cancel("advisory");
    s.session.expect(&[Bound, canceled(), Ready('I')]);
    s.open();
    s.assert_in_step();
    // The time limit of the second try covers what it waits for.
    s.session
        .query("SET statement_timeout = '2s'")
        .expect(&[complete("SET"), Ready('I')]);
    let held = s.hold_back();
    send(&mut s.session);
    s.session.expect(&[canceled(), Ready('I')]);
    s.let_on(held);
    s.session
        .query("RESET statement_timeout")
        .expect(&[complete("RESET"), Ready('I')]);
    s.assert_in_step();
    assert_eq!(s.outcome(1), (4, 100));
    // So often, and no more.
    s.lock();
    send(&mut s.session);
    for _ in 0..3 {
        s.await_event("advisory");
        s.change_elsewhere(1);
    }
    s.session.expect(&[Bound, lost(), Ready('I')]);
    s.open();
    assert_eq!(s.outcome(1), (6, 100));
    s.assert_in_step();
}

#[test]
fn a_batch_that_does_more_or_was_answered_is_not_retried() {
    let mut s = scene("unretried");
    let update = |id| format!("UPDATE t SET v = v + 1 WHERE id = {id}");
    let updated = || complete("UPDATE 1");
    // Two statements; the second may rely on what the first has answered.
    s.session.run(&update(1)).run(&update(2)).send();
    s.lose_in_between(2);
    s.session.sync().expect(&[
        Parsed,
        Bound,
        updated(),
        Parsed,
        Bound,
        updated(),
        lost(),
        Ready('I'),
    ]);
    // The answer has left.
    s.session
        .run(&update(1))
        .flush()
        .expect(&[Parsed, Bound, updated()]);
    s.lose_in_between(1);
    s.session.sync().expect(&[lost(), Ready('I')]);
    // The statement is gone.
    s.session.run(&update(1)).parse("", "SELECT 1").send();
    s.lose_in_between(1);
    s.session
        .sync()
        .expect(&[Parsed, Bound, updated(), Parsed, lost(), Ready('I')]);
    // Not a statement of the kind; a block; one snapshot.
    let call = "DO 'BEGIN UPDATE t SET v = 1 WHERE id = 1; END'";
    s.session.run(call).send();
    s.lose_in_between(1);
    s.session
        .sync()
        .expect(&[Parsed, Bound, complete("DO"), lost(), Ready('I')]);
    s.session
        .query("BEGIN")
        .expect(&[complete("BEGIN"), Ready('T')]);
    s.session.run(&update(1)).send();
    s.lose_in_between(1);
    s.session
        .sync()
        .expect(&[Parsed, Bound, updated(), lost(), Ready('E')]);
    s.session
        .query("ROLLBACK; SET default_transaction_isolation = 'repeatable read'")
        .expect(&[complete("ROLLBACK"), complete("SET"), Ready('I')]);
    s.session.run(&update(1)).send();
    s.lose_in_between(1);
    s.session
        .sync()
        .expect(&[Parsed, Bound, updated(), lost(), Ready('I')]);
    assert_eq!(s.outcome(1), (0, 100));
    s.assert_in_step();
}
