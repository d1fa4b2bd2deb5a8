//! Changesets and fragments that are compressed, beside others that are not.

use crate::support::{TestGroup, changesets, group, is_serialization_failure, until_committed};
use bytes::Bytes;
use postgres::Client;
use postgres::error::SqlState;
use postgres_r::changeset::decode::Changeset;
use postgres_r::cluster::server::StopMode;
use postgres_r::limits::COMPRESSED_FROM_BYTES;

const SCHEMA: &str = "
    CREATE TABLE wide (id int4 PRIMARY KEY, c1 int8, c2 int8, c3 int8, d1 text, d2 text, e timestamptz, f numeric, g uuid);
    CREATE TABLE toasted (id int4 PRIMARY KEY, n int4, doc text STORAGE EXTERNAL);
    CREATE TABLE big (id int4 PRIMARY KEY, v text NOT NULL);
    CREATE TABLE small (id int4 PRIMARY KEY, v int8 NOT NULL);
    INSERT INTO small SELECT i, 0 FROM generate_series(1, 50) i;";

fn session(group: &TestGroup, member: usize, compression: &str) -> Client {
    group.client_with(member, "replication_compression", compression)
}

/// Changes rows of one kind, beginning with a key. Of two large ones at a time one may have to begin again: their keys
/// are those of the whole table.
fn change(client: &mut Client, kind: &str, from: i32) {
    let sql = match kind {
        "wide" => format!(
            "INSERT INTO wide SELECT i, i, i, i, 'a' || i, 'b' || i, now(), i / 7.0, '00000000-0000-0000-0000-000000000000'
             FROM generate_series({from}, {from} + 99) i"
        ),
        "toasted" => format!(
            "INSERT INTO toasted SELECT i, 0, repeat(md5(i::text), 300) FROM generate_series({from}, {from} + 9) i"
        ),
        // What no method makes shorter.
        "random" => format!(
            "INSERT INTO toasted SELECT i, 1, (SELECT string_agg(gen_random_uuid()::text, '') FROM generate_series(i, i + 200))
             FROM generate_series({from} + 5000, {from} + 5009) i"
        ),
        "updated" => format!(
            "UPDATE wide SET d1 = 'changed ' || id, c2 = c2 + 1 WHERE id BETWEEN {from} AND {from} + 99;
             DELETE FROM wide WHERE id BETWEEN {from} AND {from} + 99 AND id % 3 = 0"
        ),
        "large" => format!(
            "BEGIN; SET LOCAL replication_changeset_memory = '64kB';
             INSERT INTO big SELECT i, 'row ' || i FROM generate_series({from}, {from} + 19999) i;
             SAVEPOINT a;
             INSERT INTO big SELECT i, 'never' FROM generate_series({from} + 20000, {from} + 39999) i;
             ROLLBACK TO a;
             INSERT INTO big SELECT i, 'row ' || i FROM generate_series({from} + 20000, {from} + 49999) i;
             UPDATE big SET v = 'changed' WHERE id BETWEEN {from} AND {from} + 49999 AND id % 3 = 0;
             COMMIT"
        ),
        _ => unreachable!("{kind}"),
    };
    while let Err(error) = client.batch_execute(&sql) {
        assert!(
            kind == "large" && is_serialization_failure(&error),
            "{error:?}"
        );
        client.batch_execute("ROLLBACK").expect("rollback");
    }
}

/// Bytes that a member sends for that.
fn bytes_of(group: &TestGroup, member: usize, compression: &str, kind: &str, from: i32) -> u64 {
    let mut client = session(group, member, compression);
    let before = group.state(member).changeset_bytes;
    change(&mut client, kind, from);
    group.state(member).changeset_bytes - before
}

/// How many changesets of all members were compressed; not one that has few bytes without.
fn compressed(group: &TestGroup) -> usize {
    let is_compressed = |bytes: &Bytes| {
        let changeset = Changeset::parse(bytes).expect("whole");
        let opened = changeset.open().expect("whole");
        let compressed = changeset.is_compressed();
        assert!(!compressed || opened.bytes().len() >= COMPRESSED_FROM_BYTES);
        compressed
    };
    let all = changesets(group, 1);
    all.into_iter().filter(is_compressed).count()
}

#[test]
fn rows_of_all_kinds_are_sent_in_fewer_bytes_and_are_the_same_everywhere() {
    let group = group("compression", 3, SCHEMA);
    for (kind, of_ten) in [
        ("wide", 5),
        ("toasted", 2),
        ("updated", 9),
        ("large", 8),
        ("random", 11),
    ] {
        let sent = |compression, from| {
            // Both members send both forms.
            [1, 2].map(|member| bytes_of(&group, member, compression, kind, from * member as i32))
        };
        let plain = sent("off", 1_000_000);
        let shorter = sent("lz4", 3_000_000);
        println!("{kind}: {plain:?} bytes, {shorter:?} compressed");
        for (plain, shorter) in plain.into_iter().zip(shorter) {
            assert!(
                shorter * 10 <= plain * of_ten,
                "{kind}: {plain} bytes, {shorter} compressed"
            );
        }
        group.assert_identical();
    }
    for server in group.running() {
        group.await_value(server, "SELECT count(*) FROM big", 4 * 50_000);
        let wrong = "SELECT count(*) FROM big WHERE v <> CASE id % 3 WHEN 0 THEN 'changed' ELSE 'row ' || id END";
        group.await_value(server, wrong, 0);
    }
}

#[test]
fn sessions_of_either_setting_write_side_by_side_while_a_member_is_down() {
    let group = group("compression-mixed", 3, SCHEMA);
    let load = |round: i32| {
        std::thread::scope(|scope| {
            for (number, compression) in (0..).zip(["lz4", "off", "lz4", "off"]) {
                let mut client = session(&group, 1 + number % 2, compression);
                scope.spawn(move || {
                    let from = 100_000 * (round * 4 + number as i32 + 1);
                    for i in 0..10 {
                        change(&mut client, "wide", from + 100 * i);
                        change(&mut client, "toasted", from + 10 * i);
                        if i % 2 == 0 {
                            change(&mut client, "updated", from + 100 * i);
                        }
                        until_committed(&mut client, |t| {
                            t.execute("UPDATE small SET v = v + 1 WHERE id = $1", &[&(i + 1)])
                                .map(drop)
                        })
                        .expect("a small transaction");
                    }
                    change(&mut client, "large", from);
                });
            }
        });
    };
    load(0);
    let third = group.member(3).expect("member");
    third.stop(StopMode::Immediate).expect("stop");
    load(1);
    group.start(3);
    load(2);
    group.assert_identical();
    for server in group.running() {
        group.await_value(server, "SELECT sum(v)::int8 FROM small", 3 * 4 * 10);
    }
    // Of each session that compresses, all of wide and TOASTed rows, and some of the updates.
    let (sessions, count) = (3 * 2, compressed(&group));
    assert!(
        (20 * sessions..=25 * sessions).contains(&count),
        "{count} changesets of {sessions} sessions were compressed"
    );
}

#[test]
fn the_setting_is_one_as_others_are() {
    let group = group(
        "compression-setting",
        1,
        "CREATE TABLE t (id int4 PRIMARY KEY, v text)",
    );
    let mut client = group.client(1);
    let show = |client: &mut Client| -> String {
        let row = client.query_one("SHOW replication_compression", &[]);
        row.expect("show").get(0)
    };
    assert_eq!(show(&mut client), "lz4");
    for (set, shown) in [
        ("off", "off"),
        ("on", "lz4"),
        ("no", "off"),
        ("'LZ4'", "lz4"),
    ] {
        client
            .batch_execute(&format!("SET replication_compression = {set}"))
            .expect(set);
        assert_eq!(show(&mut client), shown, "{set}");
    }
    let error = client.batch_execute("SET replication_compression = zstd");
    let error = error.expect_err("unknown");
    assert_eq!(error.code(), Some(&SqlState::INVALID_PARAMETER_VALUE));
    // Within a transaction what counts is what holds at its end.
    for (from, compression) in [(1, "off"), (1001, "lz4")] {
        client
            .batch_execute(&format!(
                "BEGIN; SET LOCAL replication_compression = {compression};
                 INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series({from}, {from} + 999) i; COMMIT"
            ))
            .expect(compression);
    }
    assert_eq!(compressed(&group), 1);
    for sql in [
        "RESET replication_compression",
        "ALTER SYSTEM SET replication_compression = off",
        "SELECT pg_reload_conf()",
    ] {
        client.batch_execute(sql).expect(sql);
    }
    let server = group.member(1).expect("member");
    group.await_value(
        server,
        "SELECT count(*) FROM pg_settings WHERE name = 'replication_compression' AND setting = 'off' AND context = 'superuser'",
        1,
    );
    client
        .batch_execute("SET ROLE pg_read_all_data")
        .expect("set role");
    let error = client.batch_execute("SET replication_compression = lz4");
    let error = error.expect_err("not a superuser's");
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
}
