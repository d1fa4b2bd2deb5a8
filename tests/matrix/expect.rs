//! What is not as usual: `refused.txt`, `fails.txt`. A cell that no line is about ends as it does on one
//! server, without an error.

use crate::cell::Cell;

/// A line of one of the files.
#[derive(Debug)]
pub struct Line {
    /// What it is, for the manual; empty if one server fails as well.
    pub what: String,
    /// SQLSTATE.
    pub code: String,
    statements: Vec<String>,
    tables: Vec<String>,
}

/// Both files.
pub struct Expectations {
    pub refused: Vec<Line>,
    pub fails: Vec<Line>,
}

impl Expectations {
    /// Reads them.
    pub fn read() -> Expectations {
        Expectations {
            refused: lines(include_str!("refused.txt"), true),
            fails: lines(include_str!("fails.txt"), false),
        }
    }

    /// Number of the line of `refused.txt` about a cell.
    pub fn refused(&self, cell: &Cell) -> Option<usize> {
        self.refused.iter().position(|l| l.is_about(cell))
    }

    /// Number of the line of `fails.txt` about a cell.
    pub fn fails(&self, cell: &Cell) -> Option<usize> {
        self.fails.iter().position(|l| l.is_about(cell))
    }
}

impl Line {
    fn is_about(&self, cell: &Cell) -> bool {
        let any = |names: &[String], name: &str| {
            let excluded = names.iter().filter_map(|n| n.strip_prefix('!'));
            let mut excluded = excluded.map(|n| matches(n, name));
            names
                .iter()
                .any(|n| !n.starts_with('!') && matches(n, name))
                && !excluded.any(|x| x)
        };
        any(&self.statements, &cell.statement) && any(&self.tables, &cell.table)
    }
}

/// `WHAT | SQLSTATE | STATEMENTS | TABLES`, or without WHAT.
fn lines(text: &str, described: bool) -> Vec<Line> {
    let lines = text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'));
    let names = |list: &str| list.split(';').map(|n| n.trim().to_owned()).collect();
    lines
        .map(|line| {
            let mut fields: Vec<&str> = line.split(" | ").map(str::trim).collect();
            if !described {
                fields.insert(0, "");
            }
            let [what, code, statements, tables] = fields[..] else {
                panic!("not four fields: {line}");
            };
            Line {
                what: what.into(),
                code: code.into(),
                statements: names(statements),
                tables: names(tables),
            }
        })
        .collect()
}

/// A name, in which each `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|end| {
            (0..=end.len())
                .filter(|i| end.is_char_boundary(*i))
                .any(|i| matches(rest, &end[i..]))
        }),
    }
}
