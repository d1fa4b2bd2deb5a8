//! Which transactions are tried: reads of lists and appends to them, chosen at random.

use crate::rng::Rng;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lists that are in use at a time: few, so that transactions meet.
const HOT: u64 = 12;
/// Appends to a list until another takes its place, so that reads stay short.
const LENGTH: u64 = 32;
/// Most steps of a transaction.
const STEPS: u64 = 4;

/// What a transaction does in one statement.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Append {
        key: u64,
        element: u64,
        /// INSERT … ON CONFLICT DO UPDATE, else UPDATE where the row is there.
        upsert: bool,
    },
    Read {
        key: u64,
        /// FOR UPDATE.
        locks: bool,
    },
}

/// The lists of a run and the elements that they were given.
pub struct Keys {
    appends: [AtomicU64; HOT as usize],
}

impl Keys {
    pub fn new() -> Keys {
        Keys {
            appends: [const { AtomicU64::new(0) }; HOT as usize],
        }
    }

    /// The steps of one transaction; no element is ever given out twice for a key.
    pub fn transaction(&self, rng: &mut Rng) -> Vec<Step> {
        let steps = rng.between(1, STEPS);
        (0..steps).map(|_| self.step(rng)).collect()
    }

    fn step(&self, rng: &mut Rng) -> Step {
        let slot = rng.below(HOT);
        let appends = &self.appends[slot as usize];
        if rng.per_mille(500) {
            let count = appends.fetch_add(1, Ordering::Relaxed);
            Step::Append {
                key: key(slot, count),
                element: count % LENGTH + 1,
                upsert: rng.per_mille(300),
            }
        } else {
            Step::Read {
                key: key(slot, appends.load(Ordering::Relaxed)),
                locks: rng.per_mille(100),
            }
        }
    }

    /// A transaction that reads every list that was ever in use.
    pub fn read_all(&self) -> Vec<Step> {
        let all = (0..HOT).flat_map(|slot| {
            let count = self.appends[slot as usize].load(Ordering::Relaxed);
            (0..=count / LENGTH).map(move |turn| turn * HOT + slot)
        });
        all.map(|key| Step::Read { key, locks: false }).collect()
    }
}

/// The list that takes the next append of a slot after so many.
fn key(slot: u64, count: u64) -> u64 {
    count / LENGTH * HOT + slot
}
