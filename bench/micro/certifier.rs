//! How many keys the certifier judges, enters and purges a second of CPU time (so that a busy machine
//! matters less), and how many are read out of changesets: `cargo bench --bench certifier`.
//!
//! Without `--bench` (as `cargo test --benches` runs it) it does a small round, so that it can't rot.

use nix::time::{ClockId, clock_gettime};
use postgres_r::capture::hash::{KeyHash, What};
use postgres_r::certifier::{Certifier, Config, Verdict};
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::encode::Builder;
use postgres_r::changeset::header::Header;
use postgres_r::changeset::key::KEY_RELATION;
use postgres_r::changeset::{Key, LockMode};
use postgres_r::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use postgres_r::limits::CERTIFIER_KEYS_MAX;
use std::hint::black_box;
use std::time::Duration;

const KEYS_EACH: u64 = 8;

/// SplitMix64: hashes without structure, the same in every run.
fn hash(number: u64) -> u64 {
    let x = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// CPU time of this thread.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("Linux has this clock")
        .into()
}

fn key(number: u64, since: Gid) -> Key {
    Key {
        hash: hash(number),
        since,
        relation: 1,
        mode: LockMode::Update,
        flags: 0,
    }
}

/// Certifies until `warm` keys are retained, then `count` keys with the floor following.
/// Returns the time of the second part and the certifier.
fn run(warm: u64, count: u64) -> (Duration, Certifier) {
    let mut certifier = Certifier::new(Config {
        keys_max: CERTIFIER_KEYS_MAX,
    });
    certifier.member_added(MemberId(1), Gid::ZERO);
    let lag = warm / KEYS_EACH;
    let changesets = lag + count / KEYS_EACH;
    let mut start = cpu();
    for number in 0..changesets {
        let last = certifier.last_gid();
        if number >= lag {
            if number == lag {
                start = cpu();
            }
            if number % 16 == 0 {
                certifier.report_low(MemberId(1), Gid(last.0 - lag));
            }
        }
        let keys = (0..KEYS_EACH).map(|k| key(number * KEYS_EACH + k, last));
        let verdict = certifier.certify(MemberId(1), last, keys);
        assert!(matches!(black_box(verdict), Verdict::Pass { .. }));
    }
    (cpu() - start, certifier)
}

/// A changeset of one that writes rows of a relation, without the rows.
fn changeset() -> Vec<u8> {
    let mut builder = Builder::new(Vec::new(), Vec::new());
    let since = Gid(1_000_000);
    let writer = Key {
        hash: KeyHash::new(1, What::Relation).finish(),
        mode: LockMode::KeyShare,
        flags: KEY_RELATION,
        ..key(0, since)
    };
    builder.key(writer).expect("a Vec is never full");
    for number in 1..KEYS_EACH {
        let key = key(number, since);
        builder.key(key).expect("a Vec is never full");
    }
    let (header, keys, entries) = builder.finish(Header {
        flags: 0,
        group: GroupId(1),
        origin: MemberId(1),
        incarnation: Incarnation(1),
        isolation: 1,
        xid: 1_000_000,
        snapshot_gid: since,
        commit_ts: 1,
        database: Oid(16384),
    });
    [&header[..], &keys, &entries].concat()
}

/// Time to read about so many keys, as who is handed a changeset to certify does.
fn read(count: u64) -> Duration {
    let bytes = changeset();
    let start = cpu();
    for _ in 0..count / KEYS_EACH {
        let changeset = Changeset::parse(black_box(&bytes)).expect("its own changeset");
        black_box(changeset.keys().fold(0, |sum, key| sum ^ key.hash));
    }
    cpu() - start
}

/// Resident memory of this process, in MB.
fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: f64 = pages
        .split(' ')
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number");
    pages * 4096.0 / 1e6
}

/// Lets so many transactions be in flight and then purges them, again and again: what is resident
/// after each round.
fn rounds(transactions: u64) -> Vec<f64> {
    const KEYS: u64 = 3;
    let mut certifier = Certifier::new(Config {
        keys_max: ((KEYS + 1) * transactions) as usize,
    });
    certifier.member_added(MemberId(1), Gid::ZERO);
    (0..5)
        .map(|round| {
            let start = certifier.last_gid();
            for number in 0..transactions {
                let number = round * transactions + number;
                let keys = (0..KEYS).map(|k| key(number * KEYS + k, start));
                let verdict = certifier.certify(MemberId(1), start, keys);
                assert!(matches!(black_box(verdict), Verdict::Pass { .. }));
            }
            assert_eq!(certifier.retained(), (KEYS + 1) * transactions);
            certifier.report_low(MemberId(1), certifier.last_gid());
            assert_eq!(certifier.retained(), 0);
            resident()
        })
        .collect()
}

fn main() {
    let full = std::env::args().any(|arg| arg == "--bench");
    let (sizes, count) = if full {
        (&[10_000, 100_000, 1_000_000, 3_600_000][..], 4_000_000)
    } else {
        (&[1_000][..], 4_000)
    };
    let transactions = if full { 1_000_000 } else { 1_000 };
    println!(
        "{transactions:>9} transactions in flight, then purged, MB resident after each round:"
    );
    println!("{:>9} {:.0?}", "", rounds(transactions));
    let rate = count as f64 / read(count).as_secs_f64() / 1e6;
    println!("{KEYS_EACH:>9} keys a changeset, read: {rate:6.2} million keys/s");
    for &warm in sizes {
        let (elapsed, certifier) = run(warm, count);
        let rate = count as f64 / elapsed.as_secs_f64() / 1e6;
        println!("{warm:>9} keys retained: {rate:6.2} million keys/s");
        let start = cpu();
        let mut bytes = Vec::new();
        certifier.encode(&mut bytes);
        let encoding = cpu() - start;
        let start = cpu();
        let config = Config {
            keys_max: CERTIFIER_KEYS_MAX,
        };
        let decoded = Certifier::decode(config, &bytes).expect("its own checkpoint");
        assert_eq!(decoded.digest(), certifier.digest());
        println!(
            "{:>9} checkpoint of {:.1} MB: written in {:.1} ms, read in {:.1} ms",
            "",
            bytes.len() as f64 / 1e6,
            encoding.as_secs_f64() * 1e3,
            (cpu() - start).as_secs_f64() * 1e3
        );
    }
}
