//! Servers of a group on one machine: what `pgr`, the cluster tests and the benchmark share.
//!
//! A [`Cluster`] is a folder: `cluster.conf`, `secret`, and for each member I `mI/` (its data
//! directory), `mI.log` and `mI.start`. All of it belongs to an unprivileged account, since
//! PostgreSQL does not run as root.

pub mod account;
pub mod group;
pub mod network;
pub mod server;
pub mod status;
pub mod verify;

pub use account::Account;
pub use group::{Cluster, UpOptions};
pub use server::Server;

use std::fmt;

/// What went wrong, on which member and in which step, with the end of that member's log.
#[derive(Debug)]
pub struct ClusterError {
    /// Member, if the step concerned one.
    pub member: Option<usize>,
    /// What was being done.
    pub step: String,
    /// What came back.
    pub cause: String,
    /// Last lines of the member's log.
    pub log: String,
}

impl ClusterError {
    /// An error that concerns no single member.
    pub fn new(step: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self {
            member: None,
            step: step.into(),
            cause: cause.to_string(),
            log: String::new(),
        }
    }

    /// An error of a step on one server, with the end of its log.
    pub fn on(server: &Server, step: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self {
            member: Some(server.number),
            step: step.into(),
            cause: cause.to_string(),
            log: server.log_tail(30),
        }
    }
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(member) = self.member {
            write!(f, "member {member}: ")?;
        }
        write!(f, "{}: {}", self.step, self.cause.trim_end())?;
        if !self.log.is_empty() {
            write!(f, "\n--- end of its log ---\n{}", self.log)?;
        }
        Ok(())
    }
}

impl std::error::Error for ClusterError {}

/// Result of this module.
pub type Result<T> = std::result::Result<T, ClusterError>;

/// The whole text of an error of a server: message, DETAIL and HINT.
pub(crate) fn db_error(error: &postgres::Error) -> String {
    match error.as_db_error() {
        None => error.to_string(),
        Some(db) => {
            let mut text = format!("{}: {}", db.code().code(), db.message());
            if let Some(detail) = db.detail() {
                text.push_str(&format!(" DETAIL: {detail}"));
            }
            if let Some(hint) = db.hint() {
                text.push_str(&format!(" HINT: {hint}"));
            }
            text
        }
    }
}
