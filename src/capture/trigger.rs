//! What a transaction does in triggers that fire where it is applied as well: there it is not done by the
//! changeset, and need not be.

use crate::pg::guard::PgError;
use std::cell::Cell;

thread_local! {
    /// A helper that does the transaction in its session's place calls what runs now as well.
    static REDONE: Cell<bool> = const { Cell::new(false) };
}

/// Whether what happens now happens again where a helper does the transaction in its session's place.
pub fn is_redone() -> bool {
    REDONE.get()
}

/// Sets that; what it was.
pub fn set_redone(redone: bool) -> bool {
    REDONE.replace(redone)
}

/// A trigger that a helper has called is about to change something that is replicated.
pub fn refused(what: &str) -> PgError {
    PgError::new(
        "0A000",
        format!("cannot {what} in a trigger where a change of another member is applied"),
    )
    .detail("What the trigger does on the member on which the transaction runs is replicated.")
    .hint("Look at the setting session_replication_role, or change an unlogged table.")
}

/// The same for rows of a table.
pub fn refused_table(name: &str) -> PgError {
    refused(&format!("change table \"{name}\""))
}
