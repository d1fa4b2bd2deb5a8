//! Large objects are the same on all members: pages, owners, privileges.

use crate::support::{PATIENCE, TestGroup, group, is_serialization_failure};
use postgres::Client;
use postgres_r::cluster::verify;
use std::collections::BTreeSet;
use std::thread;

/// What belongs to a large object in other catalogs.
const BESIDE: &str = "SELECT (SELECT count(*) FROM pg_description WHERE classoid = 'pg_largeobject'::regclass AND objoid = $1)
                           + (SELECT count(*) FROM pg_shdepend WHERE classid = 'pg_largeobject'::regclass AND objid = $1)";

fn beside(client: &mut Client, oid: u32) -> i64 {
    client.query_one(BESIDE, &[&oid]).expect("counts").get(0)
}

fn owner(client: &mut Client, oid: u32) -> String {
    let sql = "SELECT lomowner::regrole::text FROM pg_largeobject_metadata WHERE oid = $1";
    client.query_one(sql, &[&oid]).expect("its owner").get(0)
}

#[test]
fn large_objects_are_the_same_on_all_members() {
    let group = group(
        "large-objects",
        3,
        "CREATE ROLE bob; CREATE ROLE al;
         SELECT lo_from_bytea(4001, 'before'); COMMENT ON LARGE OBJECT 4001 IS 'x'; ALTER LARGE OBJECT 4001 OWNER TO bob;",
    );
    let mut clients: Vec<Client> = (1..=3).map(|i| group.client(i)).collect();

    // One that was there before, with all that belongs to it.
    for client in &mut clients {
        assert_eq!(beside(client, 4001), 2);
    }
    group.execute(2, "SELECT lo_put(4001, 3, 'ehind')");
    group.assert_identical();
    let text = clients[2].query_one("SELECT lo_get(4001)", &[]);
    assert_eq!(text.expect("lo_get").get::<_, &[u8]>(0), b"befehind");
    group.execute(3, "SELECT lo_unlink(4001)");
    group.assert_identical();
    for client in &mut clients {
        assert_eq!(beside(client, 4001), 0);
    }

    chosen_by_all_at_once(&group);
    written(&group);
    owned(&group, &mut clients);
    of_two_writers_one_fails(&group, &mut clients);
    restored(&group);
}

/// Members choose OIDs that don't collide.
fn chosen_by_all_at_once(group: &TestGroup) {
    let each = |number: usize| {
        let mut client = group.client(number);
        let chosen = (0..20_u8).map(|i| {
            let sql = "SELECT lo_from_bytea(0, $1)";
            let bytes = vec![i; 5000];
            let row = client.query_one(sql, &[&bytes]).expect("no conflict");
            row.get::<_, u32>(0)
        });
        chosen.collect::<Vec<_>>()
    };
    let all: Vec<u32> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=3).map(|n| scope.spawn(move || each(n))).collect();
        let chosen = threads.into_iter().map(|t| t.join().expect("no panic"));
        chosen.flatten().collect()
    });
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 60, "{all:?}");
    // Three pages each, and itself.
    assert_eq!(group.assert_identical(), 60 * 4);
}

/// Pages that are new, changed, cut, missing in between; what was rolled back.
fn written(group: &TestGroup) {
    // Each works on what another member did before.
    let then = |number, sql| {
        group.wait_in_step(PATIENCE).expect("in step");
        group.execute(number, sql);
    };
    // 131072 is INV_WRITE, 262144 INV_READ.
    then(
        1,
        "BEGIN; SELECT lo_create(5001); SELECT lo_open(5001, 131072);
         SELECT lowrite(0, convert_to(repeat('a', 5000), 'UTF8'));
         SAVEPOINT s; SELECT lowrite(0, 'lost'); ROLLBACK TO s; RELEASE s; COMMIT",
    );
    then(2, "SELECT lo_put(5001, 1000000, 'far')");
    then(
        3,
        "SELECT lo_put(5001, 2000, convert_to(repeat('b', 100), 'UTF8'))",
    );
    then(
        1,
        "BEGIN; SELECT lo_open(5001, 131072 | 262144); SELECT lo_truncate64(0, 999000); COMMIT",
    );
    then(
        2,
        "BEGIN; SELECT lo_unlink(5001); SELECT lo_create(5002); ROLLBACK",
    );
    then(
        3,
        "SELECT lo_import('PG_VERSION', 5003); SELECT lo_export(5001, '/dev/null')",
    );
    group.assert_identical();
    let sql = "SELECT length(lo_get(5001)), encode(lo_get(5001, 1999, 102), 'escape'), encode(lo_get(5003), 'escape')";
    for number in 1..=3 {
        let row = group.client(number).query_one(sql, &[]).expect("lo_get");
        assert_eq!(row.get::<_, i32>(0), 999_000);
        assert_eq!(row.get::<_, String>(1), format!("a{}a", "b".repeat(100)));
        assert_eq!(row.get::<_, String>(2), "18\n");
    }
}

/// Roles are found by their names.
fn owned(group: &TestGroup, clients: &mut [Client]) {
    for (number, roles) in [
        (1, "CREATE ROLE late"),
        (2, "CREATE ROLE more; CREATE ROLE late"),
    ] {
        let server = group.member(number).expect("member");
        server
            .execute("postgres", "making roles", roles)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    group.execute(
        2,
        "SET ROLE bob; SELECT lo_create(6001); GRANT SELECT ON LARGE OBJECT 6001 TO al, public",
    );
    group.execute(
        1,
        "SET ROLE late; SELECT lo_create(6002); GRANT ALL ON LARGE OBJECT 6002 TO bob",
    );
    group.wait_in_step(PATIENCE).expect("in step");
    for (client, late) in clients.iter_mut().zip(["late", "late", "postgres"]) {
        assert_eq!(owner(client, 6001), "bob");
        assert_eq!(beside(client, 6001), 2);
        assert_eq!(owner(client, 6002), late, "no role of that name");
    }
    let report = verify::verify(group, PATIENCE).expect("verify");
    assert!(!report.differences.is_empty(), "member 3 has another owner");

    group.execute(
        1,
        "ALTER LARGE OBJECT 6002 OWNER TO al; REVOKE ALL ON LARGE OBJECT 6001 FROM al; ALTER LARGE OBJECT 6001 OWNER TO postgres",
    );
    group.assert_identical();
    for client in clients {
        assert_eq!(
            (owner(client, 6001).as_str(), beside(client, 6001)),
            ("postgres", 0)
        );
        assert_eq!(
            (owner(client, 6002).as_str(), beside(client, 6002)),
            ("al", 2)
        );
    }
}

fn of_two_writers_one_fails(group: &TestGroup, clients: &mut [Client]) {
    group.execute(1, "SELECT lo_from_bytea(7001, 'one page')");
    group.wait_in_step(PATIENCE).expect("in step");
    clients[1]
        .batch_execute("BEGIN; SELECT lo_put(7001, 0, 'two')")
        .expect("its own page");
    group.execute(1, "SELECT lo_put(7001, 4, 'side')");
    let lost = clients[1]
        .batch_execute("COMMIT")
        .expect_err("the same page");
    assert!(is_serialization_failure(&lost), "{lost:?}");
    let _ = clients[1].batch_execute("ROLLBACK");
    group.assert_identical();
}

/// A dump's large objects come back under their OIDs.
fn restored(group: &TestGroup) {
    let (first, second) = (
        group.member(1).expect("member"),
        group.member(2).expect("member"),
    );
    let file = first.data.join("dump");
    let file = file.to_str().expect("a name");
    let run = |server: &postgres_r::cluster::Server, program, more: &[&str]| {
        let url = server.url(&group.database);
        let args = [&["-d", url.as_str()], more].concat();
        server
            .run("dump and restore", program, &args)
            .unwrap_or_else(|e| panic!("{e}"));
    };
    run(first, "pg_dump", &["-Fc", "-f", file]);
    let sql = "SELECT string_agg(md5(lo_get(oid)), ',' ORDER BY oid) FROM pg_largeobject_metadata";
    let before: String = group.client(1).query_one(sql, &[]).expect("sums").get(0);
    group.execute(
        1,
        "SELECT count(lo_unlink(oid)) FROM pg_largeobject_metadata",
    );
    assert_eq!(group.assert_identical(), 0);
    run(second, "pg_restore", &["--exit-on-error", file]);
    group.assert_identical();
    for number in 1..=3 {
        let after: String = group
            .client(number)
            .query_one(sql, &[])
            .expect("sums")
            .get(0);
        assert_eq!(after, before);
    }
}
