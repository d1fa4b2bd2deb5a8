//! The group log.

/// One record of the log.
#[derive(Debug)]
pub struct Record;
