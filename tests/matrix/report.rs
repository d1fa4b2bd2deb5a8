//! What came of the cells.

use crate::cell::{Cell, Failure, Outcome};
use crate::expect::Expectations;
use std::collections::{BTreeMap, BTreeSet};

/// Most failures that are told of a line.
const SHOWN: usize = 20;

/// Counts and failures by the lines of the output, in their order.
pub struct Report {
    pub expectations: Expectations,
    /// What was said, by the lines of `refused.txt`.
    pub hints: BTreeMap<usize, BTreeSet<String>>,
    fails_seen: BTreeSet<usize>,
    lines: Vec<(String, usize, Vec<String>)>,
    refusals: usize,
}

impl Report {
    /// Nothing has run.
    pub fn new(expectations: Expectations) -> Report {
        Report {
            expectations,
            hints: BTreeMap::new(),
            fails_seen: BTreeSet::new(),
            lines: Vec::new(),
            refusals: 0,
        }
    }

    /// Judges a cell.
    pub fn cell(&mut self, cell: &Cell, group: &Outcome, alone: &Outcome) {
        let verdict = self.verdict(cell, group, alone);
        let verdict = verdict.map_err(|why| {
            format!(
                "{} | {} | {}: {why}",
                group.code(),
                cell.statement,
                cell.table
            )
        });
        self.note(&cell.line, verdict);
    }

    fn verdict(&mut self, cell: &Cell, group: &Outcome, alone: &Outcome) -> Result<(), String> {
        let expected = self.expectations.fails(cell).map(|line| {
            self.fails_seen.insert(line);
            self.expectations.fails[line].code.as_str()
        });
        if let Some(line) = self.expectations.refused(cell) {
            // What fails anyway may be refused before that is found.
            if alone.code() != expected.unwrap_or("ok") {
                return Err(format!("one server does not do it either: {alone}"));
            }
            let code = &self.expectations.refused[line].code;
            return match group {
                Outcome::Failed(Failure {
                    code: found,
                    hint: Some(hint),
                    ..
                }) if found == code => {
                    self.refusals += 1;
                    self.hints.entry(line).or_default().insert(hint.clone());
                    Ok(())
                }
                _ => Err(format!("is not refused: {group}")),
            };
        }
        if alone.code() != expected.unwrap_or("ok") {
            return Err(format!("one server: {alone}; the group: {group}"));
        }
        if group.code() != alone.code()
            || cell.compared && matches!(group, Outcome::Done(_)) && group != alone
        {
            return Err(format!("the group: {group}; one server: {alone}"));
        }
        Ok(())
    }

    /// Counts something that was well, or was not.
    pub fn note(&mut self, line: &str, outcome: Result<(), String>) {
        let at = self
            .lines
            .iter()
            .position(|(l, _, _)| l == line)
            .unwrap_or_else(|| {
                self.lines.push((line.to_owned(), 0, Vec::new()));
                self.lines.len() - 1
            });
        self.lines[at].1 += 1;
        self.lines[at].2.extend(outcome.err());
    }

    /// Something of this name failed.
    pub fn failed(&mut self, line: &str, text: &str) {
        self.note(line, Err(text.to_owned()));
    }

    /// Expectations that no cell met have failed.
    pub fn unused(&mut self) {
        for (n, line) in self.expectations.refused.iter().enumerate() {
            if !self.hints.contains_key(&n) {
                let text = format!("no cell is refused: {}", line.what);
                self.lines.push((text.clone(), 1, vec![text]));
            }
        }
        for n in (0..self.expectations.fails.len()).filter(|n| !self.fails_seen.contains(n)) {
            let text = format!("no cell fails: {:?}", self.expectations.fails[n]);
            self.lines.push((text.clone(), 1, vec![text]));
        }
    }

    /// Writes the lines; how many failed.
    pub fn print(&self) -> usize {
        for (n, (line, cells, failures)) in self.lines.iter().enumerate() {
            let not = if failures.is_empty() { "" } else { "not " };
            println!(
                "{not}ok {} - {} # {cells} cells",
                n + 1,
                line.replace('\n', " ")
            );
            for failure in failures.iter().take(SHOWN) {
                failure.lines().for_each(|l| println!("#   {l}"));
            }
            if failures.len() > SHOWN {
                println!("#   and {} more", failures.len() - SHOWN);
            }
        }
        println!("1..{}", self.lines.len());
        let cells: usize = self.lines.iter().map(|(_, n, _)| n).sum();
        println!("# {cells} cells, {} of them refused", self.refusals);
        self.lines.iter().filter(|(_, _, f)| !f.is_empty()).count()
    }
}
