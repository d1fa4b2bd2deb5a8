//! A cut network.

use crate::support::{PATIENCE, group_with, options};
use postgres_r::cluster::network;
use postgres_r::cluster::server::wait_for;

#[test]
fn a_member_cut_off_refuses_writes_and_catches_up_when_the_cut_heals() {
    if !network::enter_own().unwrap_or_else(|e| panic!("{e}")) {
        eprintln!("skipped: only root can make a network namespace");
        return;
    }
    let group = group_with(
        "cut",
        options(3),
        "CREATE TABLE t (id int8 PRIMARY KEY, v int8); INSERT INTO t SELECT i, 0 FROM generate_series(1, 50) i;",
    );
    for victim in [3, 1] {
        group.execute(victim, "UPDATE t SET v = v + 1");
        group.wait_in_step(PATIENCE).expect("in step");
        let server = group.member(victim).expect("member");
        network::cut(&group, server).unwrap_or_else(|e| panic!("{e}"));
        wait_for(PATIENCE, || {
            (group.state(victim).state == "no_quorum").then_some(())
        })
        .expect("the lone part notices");
        let error = group
            .client(victim)
            .batch_execute("UPDATE t SET v = -1 WHERE id = 1")
            .expect_err("no majority");
        assert!(
            error
                .as_db_error()
                .and_then(|e| e.detail())
                .is_some_and(|d| d.contains("majority")),
            "{error:?}"
        );
        for number in (1..=3).filter(|n| *n != victim) {
            wait_for(PATIENCE, || {
                group
                    .client(number)
                    .batch_execute("UPDATE t SET v = v + 10 WHERE id <= 25")
                    .ok()
            })
            .expect("the majority goes on");
        }
        network::heal(server).unwrap_or_else(|e| panic!("{e}"));
        wait_for(PATIENCE, || {
            group
                .client(victim)
                .batch_execute("UPDATE t SET v = v + 100 WHERE id > 25")
                .ok()
        })
        .expect("it is back");
        assert_eq!(group.assert_identical(), 50);
    }
    let sum: i64 = group
        .client(2)
        .query_one("SELECT sum(v)::int8 FROM t", &[])
        .expect("sum")
        .get(0);
    assert_eq!(sum, 2 * (50 + 2 * 10 * 25 + 100 * 25));
}
