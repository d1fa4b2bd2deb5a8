//! egcs.
pub mod log;
