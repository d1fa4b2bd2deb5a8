//! Tests of the engine as a whole; `cluster` has the group in memory that they share.

mod checker;
mod cluster;
mod faults;
mod group;
mod segments;
mod wire;
