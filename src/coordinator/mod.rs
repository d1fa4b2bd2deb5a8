//! Coordinator.

pub mod io;
