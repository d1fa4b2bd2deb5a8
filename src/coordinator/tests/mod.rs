//! One core, fed by hand.

mod bench;
mod dispatching;
mod ending;
mod opening;
mod recovering;
mod reserving;
mod verdicts;
mod waiting;
