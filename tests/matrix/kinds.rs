//! Kinds of tables and the statements that run on them: `tables.sql`, `statements.sql`.

use crate::cell::Cell;
use crate::script::{self, Section, Statement};
use std::fmt::Write as _;

/// Ids of a statement.
const IDS: usize = 10;
/// Of those, rows that are there.
const FILLED: usize = 5;

/// A kind of table.
pub struct Kind {
    pub name: String,
    /// Where it and what belongs to it is.
    pub schema: String,
    /// Values may differ from those on one server.
    pub apart: bool,
    /// Its rows are of one member, and of one session if it is temporary.
    pub local: bool,
    pub temporary: bool,
    key: String,
    role: Option<String>,
    definitions: Vec<Statement>,
    fills: Vec<String>,
}

/// A statement of `statements.sql`.
pub struct Case {
    pub name: String,
    /// It runs when all the others have run.
    pub last: bool,
    before: Vec<Statement>,
    run: Vec<Statement>,
    only: Option<String>,
    number: usize,
}

/// Both files.
pub struct Kinds {
    pub kinds: Vec<Kind>,
    pub cases: Vec<Case>,
}

impl Kinds {
    /// Reads them.
    pub fn read() -> Kinds {
        let marks = ["key", "role", "fill", "apart", "unlogged", "temporary"];
        let sections = script::parse(include_str!("tables.sql"), &["table"], &marks);
        let wanted = std::env::var("TABLE").unwrap_or_default();
        let tried = sections.iter().filter(|s| s.name.contains(&wanted));
        let kinds = tried.enumerate().map(|(n, s)| kind(n, s));
        let marks = ["before", "run", "only", "final"];
        let begins = ["statement", "each"];
        let sections = script::parse(include_str!("statements.sql"), &begins, &marks);
        let mut cases = Vec::new();
        let mut number = 0;
        for section in &sections {
            if section.word == "statement" {
                number += 1;
                let run = match section.part("run") {
                    run if run.is_empty() => section
                        .statements
                        .clone()
                        .into_iter()
                        .map(|s| s.1)
                        .collect(),
                    run => run,
                };
                cases.push(case(section, section.name.clone(), number, run));
            } else {
                for (_, statement) in &section.statements {
                    let name = format!("{}: {}", section.name, statement.sql);
                    cases.push(case(section, name, 0, vec![statement.clone()]));
                }
            }
        }
        Kinds {
            kinds: kinds.collect(),
            cases,
        }
    }

    /// SQL that makes all of it.
    pub fn init(&self) -> String {
        let numbers = self.cases.iter().map(|c| c.number).max().unwrap_or(0);
        let mut sql = format!(
            "CREATE FUNCTION matrix.ids() RETURNS SETOF int4 LANGUAGE sql AS 'SELECT n * {IDS} + i FROM generate_series(1, {numbers}) n, generate_series(1, {FILLED}) i';\n"
        );
        for kind in &self.kinds {
            let usual = "INSERT INTO {t} (id, a, b) SELECT i, i % 5, 'b' || i FROM matrix.ids() i"
                .to_owned();
            let fills = if kind.fills.is_empty() {
                vec![usual]
            } else {
                kind.fills.clone()
            };
            let _ = writeln!(
                sql,
                "BEGIN; CREATE SCHEMA {0}; GRANT ALL ON SCHEMA {0} TO limited;",
                kind.schema
            );
            if !kind.temporary {
                for statement in &kind.definitions {
                    let _ = writeln!(sql, "{};", kind.text(&statement.sql, 0));
                }
                for fill in fills {
                    let _ = writeln!(sql, "{};", kind.text(&fill, 0));
                }
            }
            for case in self.cases.iter().filter(|c| c.runs_on(kind)) {
                for statement in &case.before {
                    let _ = writeln!(sql, "{};", kind.text(&statement.sql, case.number));
                }
            }
            sql.push_str("COMMIT;\n");
        }
        sql
    }

    /// Cells of a batch of cases; `kind` is the table's number.
    pub fn cells(&self, cases: &[&Case], directory: &str) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (n, kind) in self.kinds.iter().enumerate() {
            for case in cases.iter().filter(|c| c.runs_on(kind)) {
                let text = |sql: &str| {
                    kind.text(sql, case.number).replace(
                        "{file}",
                        &format!("{directory}/{}_{}", kind.schema, case.number),
                    )
                };
                // The crate's COPY FROM STDIN is lost if the server refuses it before it reads.
                let statement = |s: &Statement| {
                    let Some(rows) = &s.rows else {
                        return text(&s.sql);
                    };
                    let file = text("{file}.rows");
                    std::fs::write(&file, text(rows)).expect("write the rows of a COPY");
                    text(&s.sql).replace("STDIN", &format!("'{file}'"))
                };
                // Rows of an unlogged table are not in a copy of its server.
                let home = if kind.local { 0 } else { n + case.number };
                cells.push(Cell {
                    statement: case.name.clone(),
                    table: kind.name.clone(),
                    line: case.name.clone(),
                    lane: kind.lane(n),
                    member: home % 3 + 1,
                    before: kind.role.iter().map(|r| format!("SET ROLE {r}")).collect(),
                    run: case.run.iter().map(statement).collect(),
                    compared: !kind.apart,
                });
            }
        }
        cells
    }
}

impl Kind {
    /// Of the kind of this number. DISCARD ALL, which runs on the first kind, takes a session's temporary tables.
    pub fn lane(&self, number: usize) -> usize {
        if self.temporary { 1 } else { number }
    }

    /// SQL that makes a temporary one in a session.
    pub fn temporary_init(&self) -> String {
        let fill = "INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM matrix.ids() i";
        let definitions = self.definitions.iter().map(|s| s.sql.as_str());
        let all: Vec<String> = definitions
            .chain([fill])
            .map(|sql| self.text(sql, 0))
            .collect();
        all.join(";")
    }

    /// Its rows, for those of one member.
    pub fn contents(&self) -> String {
        self.text("SELECT x::text FROM {t} x ORDER BY 1", 0)
    }

    fn text(&self, sql: &str, number: usize) -> String {
        let schema = &self.schema;
        // A temporary table has no schema that could be named.
        let table = if self.temporary {
            "t".into()
        } else {
            format!("{schema}.t")
        };
        let mut text = sql
            .replace("{t}", &table)
            .replace("{s}", schema)
            .replace("{i}", "t")
            .replace("{f}", &format!("{schema}.f{number}"))
            .replace("{rows}", "matrix.ids()")
            .replace("{key}", &self.key);
        for i in 1..IDS {
            text = text.replace(&format!("{{{i}}}"), &(number * IDS + i).to_string());
        }
        text
    }
}

impl Case {
    fn runs_on(&self, kind: &Kind) -> bool {
        self.only.as_ref().is_none_or(|only| *only == kind.name)
    }
}

fn kind(number: usize, section: &Section) -> Kind {
    let has = |word| section.values(word).next().is_some();
    Kind {
        name: section.name.clone(),
        schema: format!("k{number:02}"),
        apart: has("apart"),
        local: has("unlogged") || has("temporary"),
        temporary: has("temporary"),
        key: section.values("key").next().unwrap_or("id").to_owned(),
        role: section.values("role").next().map(str::to_owned),
        definitions: section.statements.iter().map(|(_, s)| s.clone()).collect(),
        fills: section.values("fill").map(str::to_owned).collect(),
    }
}

fn case(section: &Section, name: String, number: usize, run: Vec<Statement>) -> Case {
    Case {
        name,
        last: section.values("final").next().is_some(),
        before: section.part("before"),
        run,
        only: section.values("only").next().map(str::to_owned),
        number,
    }
}
