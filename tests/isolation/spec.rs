//! A specification: sessions of steps, the orders in which they run, and what may come of each.

use crate::expectation::Expectation;
use crate::placement::Placement;

/// An isolation level of the sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Level {
    /// By its name in a specification.
    pub fn named(name: &str) -> Option<Level> {
        match name {
            "rc" => Some(Level::ReadCommitted),
            "rr" => Some(Level::RepeatableRead),
            "serializable" => Some(Level::Serializable),
            _ => None,
        }
    }

    /// As `default_transaction_isolation` takes it.
    pub fn setting(self) -> &'static str {
        match self {
            Level::ReadCommitted => "read committed",
            Level::RepeatableRead => "repeatable read",
            Level::Serializable => "serializable",
        }
    }
}

/// A connection of its own, to the member where a placement puts it.
#[derive(Default, Debug)]
pub struct Session {
    pub name: String,
    pub setup: Option<String>,
    pub teardown: Option<String>,
}

/// SQL that is sent at once.
#[derive(Debug)]
pub struct Step {
    pub name: String,
    /// Index of its session.
    pub session: usize,
    pub sql: String,
}

/// What a permutation does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// Sends a step and waits until it ends, or waits for a lock.
    Step(usize),
    /// Sends a step and goes on: `name(*)`.
    Send(usize),
    /// Waits until every member has committed what any has: `wait`.
    Wait,
}

impl Move {
    /// The step that it sends.
    pub fn step(self) -> Option<usize> {
        match self {
            Move::Step(step) | Move::Send(step) => Some(step),
            Move::Wait => None,
        }
    }
}

/// One order of steps.
#[derive(Debug)]
pub struct Permutation {
    pub line: usize,
    /// `race`: no waits but those that are written.
    pub race: bool,
    pub moves: Vec<Move>,
    pub expectations: Vec<Expectation>,
}

/// A specification.
#[derive(Default, Debug)]
pub struct Spec {
    pub name: String,
    pub levels: Vec<Level>,
    pub placements: Vec<Placement>,
    pub setup: Vec<String>,
    pub teardown: Vec<String>,
    /// The query whose answer is called `final`.
    pub last: Option<String>,
    pub sessions: Vec<Session>,
    pub steps: Vec<Step>,
    pub permutations: Vec<Permutation>,
}

impl Spec {
    pub fn session_named(&self, name: &str) -> Option<usize> {
        self.sessions.iter().position(|s| s.name == name)
    }

    pub fn step_named(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|s| s.name == name)
    }
}
