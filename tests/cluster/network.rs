//! A cut network, made of drop rules in a network namespace of the test's own.

use crate::support::{PATIENCE, TestGroup, group_with, options};
use nix::sched::{CloneFlags, unshare};
use postgres_r::cluster::server::wait_for;
use std::process::Command;

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Puts this thread, and what it starts, in a network of its own. Only root may.
fn own_network() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make a network namespace");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    tool("ip", &["link", "set", "lo", "up"]);
    true
}

/// Drops all group traffic from and to one member.
fn cut(group: &TestGroup, number: usize) {
    let server = group.member(number).expect("member");
    // Every member listens on a loopback address of its own and dials from it.
    let address = group.group_address(server);
    let address = address.split(':').next().expect("host");
    tool("nft", &["add", "table", "inet", "cut"]);
    tool(
        "nft",
        &[
            "add",
            "chain",
            "inet",
            "cut",
            "in",
            "{ type filter hook input priority 0; }",
        ],
    );
    // Clients come from and go to 127.0.0.1, whatever member they talk to.
    for side in ["saddr", "daddr"] {
        for port in ["sport", "dport"] {
            let ports = format!("{}-{}", group.port + 2000, group.port + 2010);
            tool(
                "nft",
                &[
                    "add", "rule", "inet", "cut", "in", "ip", side, address, "tcp", port, &ports,
                    "drop",
                ],
            );
        }
    }
}

fn heal() {
    tool("nft", &["delete", "table", "inet", "cut"]);
}

#[test]
fn a_member_cut_off_refuses_writes_and_catches_up_when_the_cut_heals() {
    if !own_network() {
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
        cut(&group, victim);
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
        heal();
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
