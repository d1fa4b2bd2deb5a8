//! pgbench and other loads on all members at the same time.

use crate::support::{TestGroup, group, group_with, options, scale, until_committed};
use std::process::Stdio;

/// pgbench on each of the given members at once; every client must end well.
pub fn pgbench(group: &TestGroup, members: &[usize], seconds: u32, arguments: &[&str]) {
    let children: Vec<_> = members
        .iter()
        .map(|number| {
            let server = group.member(*number).expect("member");
            let child = server
                .program("pgbench")
                .args([
                    "-n",
                    "-T",
                    &seconds.to_string(),
                    "--max-tries=0",
                    "-h",
                    "127.0.0.1",
                    "-U",
                    "postgres",
                ])
                .args(["-p", &server.port.to_string()])
                .args(arguments)
                .arg(&group.database)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("pgbench");
            (*number, child)
        })
        .collect();
    for (number, child) in children {
        let output = child.wait_with_output().expect("pgbench ends");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.status.success(),
            "pgbench on member {number}: {text}"
        );
        assert!(
            !text.contains("number of transactions actually processed: 0"),
            "pgbench on member {number} did nothing: {text}"
        );
    }
}

#[test]
fn pgbench_on_all_members_ends_identical() {
    let mut options = options(3);
    options.pgbench_scale = Some(1);
    let group = group_with("pgbench", options, "");
    pgbench(&group, &[1, 2, 3], 8 * scale(), &["-c", "4"]);
    pgbench(&group, &[1, 2, 3], 5, &["-c", "4", "-N", "-M", "prepared"]);
    assert!(group.assert_identical() > 100_000);
    // TPC-B's own invariant, on each member.
    for member in 1..=3 {
        let mut client = group.client(member);
        let row = client
            .query_one(
                "SELECT (SELECT sum(abalance) FROM pgbench_accounts)::int8, (SELECT sum(delta) FROM pgbench_history)::int8, (SELECT count(*) FROM pgbench_history)",
                &[],
            )
            .expect("sums");
        assert_eq!(
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            "member {member}"
        );
        assert!(row.get::<_, i64>(2) > 0);
    }
}

#[test]
fn a_hot_row_updated_from_all_members_counts_exactly() {
    const EACH: i64 = 150;
    let group = group(
        "hotrow",
        3,
        "CREATE TABLE hot (id int4 PRIMARY KEY, n int8); INSERT INTO hot VALUES (1, 0);",
    );
    let retries: u32 = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=3)
            .flat_map(|member| (0..2).map(move |_| member))
            .map(|member| {
                let mut client = group.client(member);
                scope.spawn(move || {
                    let mut retries = 0;
                    for _ in 0..EACH {
                        retries += until_committed(&mut client, |t| {
                            t.execute("UPDATE hot SET n = n + 1 WHERE id = 1", &[])
                                .map(drop)
                        })
                        .expect("only conflicts");
                    }
                    retries
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().expect("worker")).sum()
    });
    group.assert_identical();
    for member in 1..=3 {
        let n: i64 = group
            .client(member)
            .query_one("SELECT n FROM hot", &[])
            .expect("n")
            .get(0);
        assert_eq!(n, 6 * EACH, "member {member}, after {retries} retries");
    }
}
