//! What is applied.

/// Made before anything is replicated.
pub const SCHEMA: &str = "
    CREATE TABLE narrow (id int4 PRIMARY KEY, n int4 NOT NULL, t text);
    CREATE TABLE copied (id int4 PRIMARY KEY, n int4 NOT NULL, t text);
    CREATE TABLE wide (id int4 PRIMARY KEY, c1 int8, c2 int8, c3 int8, c4 int8, c5 int8, c6 int8, c7 int8, c8 int8,
        d1 text, d2 text, d3 text, d4 text, d5 text, d6 text, d7 text, d8 text,
        e1 timestamptz, e2 timestamptz, e3 numeric, e4 numeric, f1 float8, f2 float8, f3 bool, f4 uuid);
    CREATE TABLE toasted (id int4 PRIMARY KEY, n int4 NOT NULL, doc text STORAGE EXTERNAL);
    CREATE TABLE indexed (id int4 PRIMARY KEY, a int4, b int4, c text);
    CREATE INDEX ON indexed (a); CREATE INDEX ON indexed (b); CREATE INDEX ON indexed (c);
    CREATE TABLE branches (bid int4 PRIMARY KEY, bbalance int4, filler char(88));
    CREATE TABLE tellers (tid int4 PRIMARY KEY, bid int4, tbalance int4, filler char(84));
    CREATE TABLE accounts (aid int4 PRIMARY KEY, bid int4, abalance int4, filler char(84));
    CREATE TABLE history (tid int4, bid int4, aid int4, delta int4, mtime timestamp, filler char(22));";

/// A kind of change, done to rows of consecutive keys, so many in a transaction.
pub struct Case {
    /// For the report.
    pub name: &'static str,
    /// What is changed: later cases of a table need the earlier ones.
    pub table: &'static str,
    /// Statements before it, which are not measured.
    pub before: &'static str,
    /// Rows a transaction.
    pub rows: u32,
    /// Of [`Size::rows`], the part that is changed: one in so many.
    pub part: u32,
    pub change: Change,
}

/// How rows are changed.
#[derive(Clone, Copy)]
pub enum Change {
    /// A statement in which {from} and {to} stand for keys.
    Statement(&'static str),
    /// COPY into `copied`.
    Copy,
}

/// In the order in which they are run: later ones change what earlier ones have inserted.
pub const CASES: &[Case] = &[
    Case {
        name: "insert",
        table: "narrow",
        before: "",
        rows: 100,
        part: 1,
        change: Change::Statement(
            "INSERT INTO narrow SELECT i, 0, 'row ' || i FROM generate_series({from}, {to}) i",
        ),
    },
    Case {
        name: "update",
        table: "narrow",
        before: "",
        rows: 100,
        part: 1,
        change: Change::Statement("UPDATE narrow SET n = n + 1 WHERE id BETWEEN {from} AND {to}"),
    },
    Case {
        name: "delete",
        table: "narrow",
        before: "",
        rows: 100,
        part: 1,
        change: Change::Statement("DELETE FROM narrow WHERE id BETWEEN {from} AND {to}"),
    },
    Case {
        name: "one row",
        table: "narrow",
        before: "",
        rows: 1,
        part: 10,
        change: Change::Statement("INSERT INTO narrow VALUES ({from}, 0, 'row')"),
    },
    Case {
        name: "copy",
        table: "copied",
        before: "",
        rows: 1000,
        part: 1,
        change: Change::Copy,
    },
    Case {
        name: "wide insert",
        table: "wide",
        before: "",
        rows: 100,
        part: 4,
        change: Change::Statement(
            "INSERT INTO wide SELECT i, i, i, i, i, i, i, i, i, 'a' || i, 'b' || i, 'c' || i, 'd' || i, 'e' || i, 'f' || i, 'g' || i, 'h' || i,
             now(), now(), i, i / 7.0, i, i / 7.0, true, '00000000-0000-0000-0000-000000000000' FROM generate_series({from}, {to}) i",
        ),
    },
    Case {
        name: "wide update",
        table: "wide",
        before: "",
        rows: 100,
        part: 4,
        change: Change::Statement("UPDATE wide SET c1 = c1 + 1 WHERE id BETWEEN {from} AND {to}"),
    },
    Case {
        name: "toast insert",
        table: "toasted",
        before: "",
        rows: 100,
        part: 20,
        change: Change::Statement(
            "INSERT INTO toasted SELECT i, 0, repeat(md5(i::text), 300) FROM generate_series({from}, {to}) i",
        ),
    },
    Case {
        name: "toast kept",
        table: "toasted",
        before: "",
        rows: 100,
        part: 20,
        change: Change::Statement("UPDATE toasted SET n = n + 1 WHERE id BETWEEN {from} AND {to}"),
    },
    Case {
        name: "4 indexes",
        table: "indexed",
        before: "",
        rows: 100,
        part: 2,
        change: Change::Statement(
            "INSERT INTO indexed SELECT i, i * 7919 % 100003, i % 1000, md5(i::text) FROM generate_series({from}, {to}) i",
        ),
    },
    Case {
        name: "4 updated",
        table: "indexed",
        before: "",
        rows: 100,
        part: 2,
        change: Change::Statement("UPDATE indexed SET a = a + 1 WHERE id BETWEEN {from} AND {to}"),
    },
    // A row is a transaction of pgbench's here, of four changes.
    Case {
        name: "tpcb",
        table: "accounts",
        before: "INSERT INTO branches SELECT i, 0 FROM generate_series(1, 10) i;
            INSERT INTO tellers SELECT i, (i - 1) / 10 + 1, 0 FROM generate_series(1, 100) i;
            INSERT INTO accounts SELECT i, i % 10 + 1, 0, '' FROM generate_series(1, 100000) i;",
        rows: 1,
        part: 10,
        change: Change::Statement(
            "BEGIN;
            UPDATE accounts SET abalance = abalance + {from} WHERE aid = {from} * 7919 % 100000 + 1;
            SELECT abalance FROM accounts WHERE aid = {from} * 7919 % 100000 + 1;
            UPDATE tellers SET tbalance = tbalance + {from} WHERE tid = {from} % 100 + 1;
            UPDATE branches SET bbalance = bbalance + {from} WHERE bid = {from} % 10 + 1;
            INSERT INTO history (tid, bid, aid, delta, mtime)
                VALUES ({from} % 100 + 1, {from} % 10 + 1, {from} * 7919 % 100000 + 1, {from}, CURRENT_TIMESTAMP);
            END",
        ),
    },
];

impl Case {
    /// Does it to about so many rows; returns to how many.
    pub fn run(&self, client: &mut postgres::Client, size: u32) -> u64 {
        let transactions = (size / self.part / self.rows).max(1);
        for i in 0..transactions {
            let (from, to) = (i * self.rows + 1, (i + 1) * self.rows);
            match self.change {
                Change::Statement(sql) => {
                    let sql = sql
                        .replace("{from}", &from.to_string())
                        .replace("{to}", &to.to_string());
                    client.batch_execute(&sql).expect(self.name);
                }
                Change::Copy => copy(client, from, to),
            }
        }
        u64::from(transactions * self.rows)
    }
}

fn copy(client: &mut postgres::Client, from: u32, to: u32) {
    use std::io::Write;
    let mut rows = client.copy_in("COPY copied FROM STDIN").expect("COPY");
    for i in from..=to {
        writeln!(rows, "{i}\t0\trow {i}").expect("row");
    }
    rows.finish().expect("COPY");
}
