//! What may come of a permutation.

use crate::placement::Placement;
use crate::spec::Level;
use std::collections::BTreeMap;

/// What came of a run: of each session, each step, `final` and `waiting`.
pub type Outcome = BTreeMap<String, String>;

/// Which runs a line is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    Level(Level),
    /// `rr`: REPEATABLE READ, and what has its snapshots.
    Snapshot,
    /// All sessions on one member.
    One,
    /// Not all on one.
    Apart,
    /// `s1+s2`: these two on one member.
    Together(usize, usize),
    /// `s1/s2`: these two on different ones.
    Separate(usize, usize),
}

/// An `expect` or `allow` line.
#[derive(Debug)]
pub struct Expectation {
    pub line: usize,
    /// `expect`: a run must end so. `allow`: it may.
    pub must_be_seen: bool,
    pub conditions: Vec<Condition>,
    pub terms: Vec<(String, String)>,
}

impl Expectation {
    /// Whether the line is about such a run.
    pub fn applies(&self, level: Level, placement: &Placement) -> bool {
        self.conditions.iter().all(|condition| match *condition {
            Condition::Level(wanted) => wanted == level,
            Condition::Snapshot => level != Level::ReadCommitted,
            Condition::One => placement.is_one(),
            Condition::Apart => !placement.is_one(),
            Condition::Together(a, b) => placement.together(a, b),
            Condition::Separate(a, b) => !placement.together(a, b),
        })
    }

    /// Whether a run ended as the line says.
    pub fn is_met(&self, outcome: &Outcome) -> bool {
        let said = |name: &str| outcome.get(name).map(String::as_str);
        self.terms
            .iter()
            .all(|(name, value)| said(name) == Some(value))
    }
}
