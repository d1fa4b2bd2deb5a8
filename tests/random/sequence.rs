//! Random sequences, of their own and of columns.

use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// A sequence.
pub struct Sequence {
    pub name: String,
    /// It is only taken from: no value may come twice.
    pub once: bool,
    start: i64,
    increment: i64,
    min: i64,
    max: i64,
    cycles: bool,
}

impl Sequence {
    /// A sequence of a column of `t`, wide enough for all that comes.
    pub fn of_column(rng: &mut Rng, table: &str) -> Sequence {
        let increment = rng.pick(&[1, 1, 7, -1, -3]);
        let (min, max) = (-2_000_000_000, 2_000_000_000);
        Sequence {
            name: format!("{table}_s_seq"),
            once: rng.per_mille(600),
            start: rng.pick(&[1, 100, -50]),
            increment,
            min,
            max,
            cycles: false,
        }
    }

    /// The sequence of a `serial` column.
    pub fn serial(rng: &mut Rng, table: &str) -> Sequence {
        Sequence {
            start: 1,
            increment: 1,
            min: 1,
            max: i64::from(i32::MAX),
            ..Sequence::of_column(rng, table)
        }
    }

    /// A sequence of its own; some come to their end.
    pub fn alone(rng: &mut Rng, number: u64) -> Sequence {
        let increment = rng.pick(&[1, 1, 2, -1, -5]);
        let (min, max) = rng.pick(&[
            (1, i64::MAX),
            (i64::MIN, -1),
            (1, 32767),
            (-700, 800),
            (3, 40),
        ]);
        let once = rng.per_mille(600);
        Sequence {
            name: format!("q{number}"),
            once,
            start: if increment > 0 {
                min.max(-100)
            } else {
                max.min(500)
            },
            increment,
            min,
            max,
            cycles: !once && rng.per_mille(500),
        }
    }

    /// What stands behind CREATE SEQUENCE … or in the parentheses of an identity column.
    pub fn options(&self, rng: &mut Rng) -> String {
        format!(
            "INCREMENT BY {} MINVALUE {} MAXVALUE {} START {} CACHE {}{}",
            self.increment,
            self.min,
            self.max,
            self.start,
            rng.pick(&[1, 1, 5]),
            if self.cycles { " CYCLE" } else { "" }
        )
    }

    /// The smallest type that has room for it.
    pub fn typ(&self) -> &'static str {
        if self.min >= i64::from(i16::MIN) && self.max <= i64::from(i16::MAX) {
            "int2"
        } else if self.min >= i64::from(i32::MIN) && self.max <= i64::from(i32::MAX) {
            "int4"
        } else {
            "int8"
        }
    }

    /// A value that it can be set to, not far from where it starts.
    pub fn value(&self, rng: &mut Rng) -> i64 {
        let step = rng.below(60) as i64 * self.increment;
        self.start.saturating_add(step).clamp(self.min, self.max)
    }

    /// A statement about it; `identity` are table and column that it is the identity of.
    pub fn statement(&self, rng: &mut Rng, identity: Option<&str>) -> String {
        let q = &self.name;
        match rng.below(if self.once { 6 } else { 10 }) {
            0 => format!("SELECT nextval('{q}') AS {q}"),
            1 | 2 => format!(
                "SELECT nextval('{q}') AS {q} FROM generate_series(1, {})",
                rng.between(1, 50)
            ),
            3 => format!(
                "SELECT nextval('{q}') AS {q}, currval('{q}') = lastval() AS holds FROM generate_series(1, 3)"
            ),
            4 => format!("SELECT currval('{q}'), lastval()"),
            5 => format!("SELECT last_value, is_called FROM {q}"),
            6 | 7 => format!(
                "SELECT setval('{q}', {}, {})",
                self.value(rng),
                rng.pick(&["true", "false"])
            ),
            n => {
                let with = if n == 8 {
                    String::new()
                } else {
                    format!(" WITH {}", self.value(rng))
                };
                match identity {
                    Some(column) if rng.per_mille(500) => {
                        format!("ALTER TABLE {column} RESTART{with}")
                    }
                    _ => format!("ALTER SEQUENCE {q} RESTART{with}"),
                }
            }
        }
    }
}

/// Values that were handed out, to whomever, of sequences that are only taken from.
#[derive(Default)]
pub struct Taken(BTreeMap<String, BTreeSet<i64>>);

impl Taken {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// Another value; panics if it can't have been handed out, or was before.
    pub fn add(&mut self, sequence: &Sequence, value: i64) {
        let q = &sequence.name;
        let within = (sequence.min..=sequence.max).contains(&value);
        assert!(within, "{q} never has {value}");
        if sequence.once {
            let far = i128::from(value) - i128::from(sequence.start);
            assert_eq!(
                far % i128::from(sequence.increment),
                0,
                "{q} never has {value}"
            );
            let first = self.0.entry(q.clone()).or_default().insert(value);
            assert!(first, "{q}: {value} was handed out twice");
        }
    }
}
