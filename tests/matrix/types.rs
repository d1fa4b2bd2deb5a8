//! Types and what is done to their values: `types.txt`.

use crate::cell::Cell;
use postgres::Client;
use postgres::error::SqlState;
use std::fmt::Write as _;

/// Kinds of tables that a type has.
const PLAIN: &str = "plain";
const INDEXED: &str = "indexed";
const KEY: &str = "key";
const UNIQUE: &str = "unique";

/// A type of `types.txt`.
pub struct Type {
    pub name: String,
    /// For names of tables.
    slug: String,
    values: Vec<String>,
    key: bool,
    /// Definition and probe of each.
    indexes: Vec<(String, String)>,
}

/// An operation on every table.
pub struct Operation {
    pub name: &'static str,
    /// On which of the tables.
    on: &'static [&'static str],
    sql: &'static [&'static str],
}

const ALL: &[&str] = &[PLAIN, INDEXED, KEY, UNIQUE];
const FREE: &[&str] = &[PLAIN, INDEXED];
const DISTINCT: &[&str] = &[KEY, UNIQUE];

/// In this order. {v} is the view of the values with their numbers n, {n} how many there are.
pub const OPERATIONS: &[Operation] = &[
    operation(
        "insert",
        FREE,
        &["INSERT INTO {t} (id, v, w) SELECT n, v, 0 FROM {v}"],
    ),
    operation(
        "insert",
        &[KEY],
        &["INSERT INTO {t} (id, v, w) SELECT n, v, 0 FROM {v} WHERE n < {n} AND v IS NOT NULL"],
    ),
    operation(
        "insert",
        &[UNIQUE],
        &["INSERT INTO {t} (id, v, w) SELECT n, v, 0 FROM {v} WHERE n < {n}"],
    ),
    operation(
        "update of another column",
        ALL,
        &["UPDATE {t} SET w = w + 1 WHERE id > 0"],
    ),
    operation(
        "update of it",
        FREE,
        &["UPDATE {t} SET v = (SELECT v FROM {v} WHERE n = (id + 1) % ({n} + 1))"],
    ),
    operation(
        "update of it",
        DISTINCT,
        &["UPDATE {t} SET v = (SELECT v FROM {v} WHERE n = {n}) WHERE id = 1"],
    ),
    operation("update to the same", ALL, &["UPDATE {t} SET v = v, w = w"]),
    operation(
        "update to null and back",
        FREE,
        &[
            "UPDATE {t} SET v = NULL WHERE id = 2",
            "UPDATE {t} SET v = (SELECT v FROM {v} WHERE n = 1), w = 9 WHERE id = 2",
        ],
    ),
    operation(
        "copy text",
        ALL,
        &[
            "COPY {t} TO '{file}'",
            "DELETE FROM {t}",
            "COPY {t} FROM '{file}'",
        ],
    ),
    operation(
        "copy csv",
        ALL,
        &[
            "COPY {t} TO '{file}' (FORMAT csv)",
            "DELETE FROM {t}",
            "COPY {t} FROM '{file}' (FORMAT csv)",
        ],
    ),
    operation(
        "copy binary",
        ALL,
        &[
            "COPY {t} TO '{file}' (FORMAT binary)",
            "DELETE FROM {t}",
            "COPY {t} FROM '{file}' (FORMAT binary)",
        ],
    ),
    operation("delete", ALL, &["DELETE FROM {t} WHERE id = 1"]),
];

const fn operation(
    name: &'static str,
    on: &'static [&'static str],
    sql: &'static [&'static str],
) -> Operation {
    Operation { name, on, sql }
}

/// Reads `types.txt`: types, and the names of those that servers with these options of configure have not.
pub fn read(configured: &str) -> (Vec<Type>, Vec<String>) {
    let mut types: Vec<Type> = Vec::new();
    let mut left_out = Vec::new();
    let mut there = true;
    for line in include_str!("types.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some(field) = line.strip_prefix("    ") else {
            if !there {
                left_out.extend(types.pop().map(|t| t.name));
            }
            there = true;
            types.push(Type::new(types.len(), line));
            continue;
        };
        let one = types.last_mut().expect("a type");
        match field.split_once(": ") {
            Some(("values", values)) => {
                one.values = values.split(" ;; ").map(str::to_owned).collect()
            }
            Some(("index", index)) => one.index(index),
            Some(("needs", option)) => there = configured.contains(option),
            _ => {
                assert_eq!(field, "key", "{}", one.name);
                one.key = true;
            }
        }
    }
    if !there {
        left_out.extend(types.pop().map(|t| t.name));
    }
    (types, left_out)
}

/// What is built in: each is in `types.txt` or can be no column. Arrays are there with types that they are of.
pub fn check_all(
    client: &mut Client,
    types: &[Type],
    left_out: &[String],
    note: &mut dyn FnMut(Result<(), String>),
) {
    let named = types.iter().map(Type::plain_name);
    let named: Vec<&str> = named.chain(left_out.iter().map(String::as_str)).collect();
    let sql = "SELECT format_type(t.oid, NULL) FROM pg_type t
        WHERE oid < 16384 AND typtype IN ('b', 'd', 'm', 'p', 'r') AND oid <> ALL (SELECT to_regtype(n) FROM unnest($1::text[]) n WHERE to_regtype(n) IS NOT NULL)
            AND (typtype = 'p' OR NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)) ORDER BY 1";
    let others = client
        .query(sql, &[&named])
        .unwrap_or_else(|e| panic!("{e:?}"));
    assert!(!others.is_empty(), "PostgreSQL has pseudo-types");
    for row in others {
        let name: String = row.get(0);
        let made = client.batch_execute(&format!("BEGIN; CREATE TABLE types.tried (a {name})"));
        let _ = client.batch_execute("ROLLBACK");
        note(match made {
            Err(e) if e.code() == Some(&SqlState::INVALID_TABLE_DEFINITION) => Ok(()),
            Err(e) => Err(format!("a column of type {name}: {e:?}")),
            Ok(()) => Err(format!("{name} can be a column and is not in types.txt")),
        });
    }
    // What indexes by default is tried with each of the types by itself that it is for.
    let kinds = types
        .iter()
        .flat_map(|t| t.methods().map(move |m| (t.plain_name(), m)));
    let (of, methods): (Vec<&str>, Vec<&str>) = kinds.unzip();
    let sql = "SELECT amname || ' of ' || format_type(t.oid, NULL) FROM pg_opclass c JOIN pg_am a ON a.oid = opcmethod JOIN pg_type t ON t.oid = opcintype
        WHERE opcdefault AND c.oid < 16384 AND typtype = 'b'
            AND NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) x (n, m) WHERE to_regtype(n) = t.oid AND m = amname)";
    let missing = client.query(sql, &[&of, &methods]);
    for row in missing.unwrap_or_else(|e| panic!("{e:?}")) {
        let kind: String = row.get(0);
        note(Err(format!("{kind}: there is no such index in types.txt")));
    }
}

impl Type {
    fn new(number: usize, name: &str) -> Type {
        let word: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        // Two types may have one word; one table is a value of regclass.
        let slug = if name == "regclass" {
            word
        } else {
            format!("{word}_{number}")
        };
        Type {
            name: name.to_owned(),
            slug,
            values: Vec::new(),
            key: false,
            indexes: Vec::new(),
        }
    }

    /// Of its indexes.
    fn methods(&self) -> impl Iterator<Item = &str> {
        let named = self.indexes.iter().filter_map(|(index, _)| {
            let (method, _) = index.strip_prefix("USING ")?.split_once(' ')?;
            Some(method)
        });
        named.chain(self.key.then_some("btree"))
    }

    /// A column's type may come with a collation, a cast can't have one.
    fn plain_name(&self) -> &str {
        let name = self.name.split(" COLLATE ").next();
        name.unwrap_or(&self.name)
    }

    fn index(&mut self, text: &str) {
        let (method, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (class, probe) = match rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            Some((class, probe)) => (class, probe.trim()),
            None => ("", rest),
        };
        let probe = if probe.is_empty() { "v = X" } else { probe };
        self.indexes
            .push((format!("USING {method} (v {class})"), probe.to_owned()));
    }

    fn tables(&self) -> &'static [&'static str] {
        match (self.key, self.indexes.is_empty()) {
            (true, _) => ALL,
            (false, false) => FREE,
            (false, true) => &[PLAIN],
        }
    }

    /// Indexes with their probes: those that are named, and what a B-tree can be.
    fn all_indexes(&self) -> Vec<(String, String)> {
        let mut all = self.indexes.clone();
        if self.key {
            for (index, probe) in [
                ("(v)", "v = X"),
                ("(v) WHERE w >= 0", "v = X AND w >= 0"),
                (
                    "((w + 1), (CASE WHEN w >= 0 THEN v END))",
                    "w + 1 = 2 AND CASE WHEN w >= 0 THEN v END = X",
                ),
                ("(w, id) INCLUDE (v)", "w = 1 AND v = X"),
            ] {
                all.push((index.to_owned(), probe.to_owned()));
            }
        }
        all
    }

    /// How the cells of a table are called.
    fn title(&self, table: &str) -> String {
        format!("{} {table}", self.name)
    }

    fn relation(&self, table: &str) -> String {
        format!("types.{}_{table}", self.slug)
    }

    /// SQL that makes its tables.
    pub fn init(&self) -> String {
        let (name, values) = (&self.name, format!("types.{}_values", self.slug));
        let cast = self.plain_name();
        let value = |v: &String| format!("CAST({v} AS {cast})");
        let rows: Vec<String> = self
            .values
            .iter()
            .enumerate()
            .map(|(n, v)| format!("({}, {})", n + 1, value(v)))
            .collect();
        let mut sql = String::from("BEGIN;\n");
        for table in self.tables() {
            let t = self.relation(table);
            let _ = match *table {
                KEY => writeln!(
                    sql,
                    "CREATE TABLE {t} (v {name} PRIMARY KEY, id int4, w int4);"
                ),
                UNIQUE => writeln!(
                    sql,
                    "CREATE TABLE {t} (v {name} UNIQUE NULLS NOT DISTINCT, id int4 PRIMARY KEY, w int4);"
                ),
                _ => writeln!(
                    sql,
                    "CREATE TABLE {t} (id int4 PRIMARY KEY, v {name}, w int4);"
                ),
            };
            if *table == INDEXED {
                for (n, (index, _)) in self.all_indexes().iter().enumerate() {
                    let _ = writeln!(sql, "CREATE INDEX {}_{n} ON {t} {index};", self.slug);
                }
            }
        }
        // After the tables: a value of regclass is one of them.
        let _ = writeln!(
            sql,
            "CREATE VIEW {values} (n, v) AS VALUES {}, (0, NULL); COMMIT;",
            rows.join(", ")
        );
        sql
    }

    /// Where to look for each value by each index: table, index, condition.
    pub fn probes(&self) -> Vec<(String, String, String)> {
        let mut probes = Vec::new();
        let name = self.plain_name();
        for value in &self.values {
            let value = format!("CAST({value} AS {name})");
            if self.tables().contains(&INDEXED) {
                for (n, (_, probe)) in self.all_indexes().iter().enumerate() {
                    let index = format!("{}_{n}", self.slug);
                    probes.push((self.relation(INDEXED), index, replace_word(probe, &value)));
                }
            }
            for table in [KEY, UNIQUE].into_iter().filter(|_| self.key) {
                let suffix = if table == KEY { "pkey" } else { "v_key" };
                let t = self.relation(table);
                let index = format!("{}_{suffix}", t.trim_start_matches("types."));
                probes.push((t, index, format!("v = {value}")));
            }
        }
        probes
    }

    /// The cells of an operation; `number` is the type's.
    pub fn cells(
        &self,
        number: usize,
        operation: &Operation,
        turn: usize,
        directory: &str,
    ) -> Vec<Cell> {
        let tables = self.tables().iter().filter(|t| operation.on.contains(t));
        let cell = |table: &&str| {
            let t = self.relation(table);
            let text = |sql: &&str| {
                sql.replace("{t}", &t)
                    .replace("{v}", &format!("types.{}_values", self.slug))
                    .replace("{n}", &self.values.len().to_string())
                    .replace("{file}", &format!("{directory}/{t}"))
            };
            Cell {
                statement: operation.name.into(),
                table: self.title(table),
                line: format!("type {}", self.name),
                lane: number,
                member: (number + turn) % 3 + 1,
                before: Vec::new(),
                run: operation.sql.iter().map(text).collect(),
                compared: true,
            }
        };
        tables.map(cell).collect()
    }
}

/// The probe with the value in place of X.
fn replace_word(probe: &str, value: &str) -> String {
    let words = probe.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(|w| match w.strip_prefix('X') {
            Some(rest) if !rest.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
                format!("{value}{rest}")
            }
            _ => w.to_owned(),
        })
        .collect()
}
