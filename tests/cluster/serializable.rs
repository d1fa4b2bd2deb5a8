//! SERIALIZABLE transactions that search by parts of indexes, and who writes there meanwhile.

use crate::support::{TestGroup, group, is_serialization_failure};
use postgres::Error;

const TABLES: &str = "CREATE TABLE visit (id int4 PRIMARY KEY, who int4, at int8);
     CREATE INDEX ON visit (who);
     CREATE INDEX ON visit (at);
     CREATE TABLE other (id int4 PRIMARY KEY, v int8 NOT NULL);
     INSERT INTO other VALUES (1, 0);";

/// On member 1: searches, has member 2 write, writes elsewhere, commits.
fn search_and_write(group: &TestGroup, search: &str, meanwhile: &str) -> Result<(), Error> {
    let mut client = group.client(1);
    client.batch_execute("SET enable_seqscan = off; BEGIN ISOLATION LEVEL SERIALIZABLE")?;
    client.batch_execute(search)?;
    group.execute(2, meanwhile);
    client.batch_execute("UPDATE other SET v = v + 1; COMMIT")
}

/// Until member 2 has seen all that member 1 has sent.
fn in_step(group: &TestGroup) {
    let mut client = group.client(1);
    let row = client.query_one("UPDATE other SET v = v + 1 RETURNING v", &[]);
    let v: i64 = row.expect("update").get(0);
    let member = group.member(2).expect("member");
    group.await_value(member, "SELECT v FROM other", v);
}

#[test]
fn members_learn_what_others_search_and_are_in_their_way_no_more() {
    let group = group("searched", 2, TABLES);
    let mut id = 0;
    let mut insert = |who: i32, at: i64| {
        id += 1;
        format!("INSERT INTO visit VALUES ({id}, {who}, {at})")
    };
    let failed = |outcome: Result<(), Error>| {
        is_serialization_failure(&outcome.expect_err("it was overtaken"))
    };

    // What member 2 does not name is in the way of all searches, until it has seen one.
    let who = "SELECT FROM visit WHERE who = 1";
    assert!(failed(search_and_write(&group, who, &insert(2, 0))));
    in_step(&group);
    search_and_write(&group, who, &insert(3, 0)).expect("nobody of that kind came");
    assert!(failed(search_and_write(&group, who, &insert(1, 0))));

    // Ranges are another kind of search.
    let at = "SELECT FROM visit WHERE at BETWEEN 1000 AND 9999";
    assert!(failed(search_and_write(&group, at, &insert(5, 0))));
    in_step(&group);
    search_and_write(&group, at, &insert(6, 20_000)).expect("nobody of that time came");
    assert!(failed(search_and_write(&group, at, &insert(7, 5000))));
    search_and_write(&group, who, &insert(8, 5000)).expect("and nobody of that kind");

    // One that brings very many does not name them all.
    let many = "INSERT INTO visit SELECT i, 100, 100000 FROM generate_series(1000, 9000) i";
    assert!(failed(search_and_write(&group, who, many)));
    group.assert_identical();
}
