//! What the coordinator's loop costs without PostgreSQL: 1 KB changesets through a member (and
//! through three in one thread) on real files and sockets, from hand-over to commit in order.
//! `cargo bench --bench loop`; a short run is part of the tests.

#[allow(dead_code)] // the tests need more of it
#[path = "../../tests/loop/cluster.rs"]
mod cluster;
#[allow(dead_code)]
#[path = "../../tests/loop/server.rs"]
mod server;

use cluster::Cluster;
use postgres_r::coordinator::io::backend::{Choice, open};
use std::time::{Duration, Instant};

const PAYLOAD_BYTES: usize = 1024;
const IN_FLIGHT: usize = 256;

fn main() {
    // `cargo test --benches` passes no --bench.
    let quick = !std::env::args().any(|a| a == "--bench");
    let (singles, time) = if quick {
        (20, Duration::from_millis(50))
    } else {
        (3000, Duration::from_secs(3))
    };
    println!("backend   members   p50 µs   p99 µs   messages/s ({IN_FLIGHT} in flight a member)");
    for choice in [Choice::Poll, Choice::Uring] {
        let Ok((backend, _)) = open(choice) else {
            println!("io_uring can't be had here");
            continue;
        };
        for members in [1, 3] {
            let mut cluster = Cluster::new(choice);
            for from in 1..members {
                cluster.grow(from - 1);
            }
            let (p50, p99) = latency(&mut cluster, singles);
            let rate = throughput(&mut cluster, time);
            println!(
                "{:<9} {members:>7} {p50:>8} {p99:>8} {rate:>12}",
                backend.name()
            );
        }
    }
}

/// Microseconds until a transaction of the first member is committed there, one at a time.
fn latency(cluster: &mut Cluster, n: usize) -> (u128, u128) {
    let mut times: Vec<u128> = (0..n)
        .map(|_| {
            let start = Instant::now();
            let before = cluster.server(0, |s| s.data.len());
            cluster.members[0].server.commit(PAYLOAD_BYTES);
            cluster.until("it is committed", |c| {
                c.server(0, |s| s.data.len()) > before
            });
            start.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    (times[n / 2], times[n * 99 / 100])
}

/// Transactions a second, with many of each member in flight.
fn throughput(cluster: &mut Cluster, time: Duration) -> u128 {
    let before = cluster.settle();
    let start = Instant::now();
    while start.elapsed() < time {
        for member in &cluster.members {
            let room = IN_FLIGHT - member.server.0.borrow().waiting.len();
            for _ in 0..room {
                member.server.commit(PAYLOAD_BYTES);
            }
        }
        cluster.turn();
    }
    let n = (cluster.settle() - before) as u128;
    n * 1_000_000 / start.elapsed().as_micros()
}
