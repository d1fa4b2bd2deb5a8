//! Strings that a collation holds equal, under unique indexes of types that carry one: each is taken once.

use super::{Session, Storm};
use postgres::error::SqlState;
use postgres::{Error, Transaction};

pub struct Collations;

/// With how a value is written.
const TABLES: [(&str, &str); 7] = [
    ("of_name", "'?'"),
    ("of_text", "'?'"),
    ("of_char", "'?'"),
    ("of_label", "'?'"),
    ("of_array", "ARRAY['?']::name[]"),
    ("of_pair", "ROW(1, '?')::pair"),
    ("of_span", "span('?', '?', '[]')"),
];

impl Storm for Collations {
    fn name(&self) -> &'static str {
        "collations"
    }

    fn tables(&self) -> &'static str {
        "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TYPE pair AS (a int4, b name COLLATE ci); CREATE TYPE span AS RANGE (subtype = name, collation = ci);
         CREATE DOMAIN label AS name;
         CREATE TABLE of_name (k name COLLATE ci PRIMARY KEY); CREATE TABLE of_text (k text COLLATE ci PRIMARY KEY);
         CREATE TABLE of_char (k char(9) COLLATE ci PRIMARY KEY); CREATE TABLE of_label (k label COLLATE ci PRIMARY KEY);
         CREATE TABLE of_array (k name[] COLLATE ci PRIMARY KEY); CREATE TABLE of_pair (k pair PRIMARY KEY);
         CREATE TABLE of_span (k span PRIMARY KEY);"
    }

    fn rows(&self) -> String {
        String::new()
    }

    fn expected(&self) -> &'static [SqlState] {
        &[SqlState::UNIQUE_VIOLATION]
    }

    fn transact(&self, session: &mut Session) -> Result<bool, Error> {
        let (table, value) = TABLES[session.below(TABLES.len() as i32) as usize];
        let text = ["Foo", "foo", "FOO", "fOO"][session.below(4) as usize];
        let sql = if session.below(3) == 0 {
            format!("DELETE FROM {table}")
        } else {
            format!("INSERT INTO {table} VALUES ({})", value.replace('?', text))
        };
        Ok(session.client.execute(&sql, &[])? > 0)
    }

    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error> {
        for (table, _) in TABLES {
            let sql = format!("SELECT count(*) FROM {table}");
            let rows: i64 = snapshot.query_one(&sql, &[])?.get(0);
            if rows > 1 {
                return Ok(Some(format!("{rows} equal rows in {table}")));
            }
        }
        Ok(None)
    }
}
