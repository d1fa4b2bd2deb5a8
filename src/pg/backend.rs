//! What a process of the server can be asked of its session, and told.

use super::guard::{self, Result};
use super::sys;
use std::ffi::c_int;

unsafe extern "C" {
    fn pgr_shim_abort_block(failed_block: *mut bool, e: *mut *mut sys::ErrorData) -> c_int;
    fn pgr_shim_lock_error_cleanup();
    fn pgr_shim_holds_transaction() -> bool;
    fn pgr_shim_helper_start(database: u32, e: *mut *mut sys::ErrorData) -> c_int;
}

/// Has interrupts served, `serve` of victims among them. May be called in a signal handler.
pub fn want_interrupt() {
    // SAFETY: flags of this process, of a type that a signal handler may write.
    unsafe {
        sys::pgr_abort_pending = 1;
        sys::InterruptPending = 1;
    }
}

/// The interrupt is being served.
pub fn clear_interrupt() {
    // SAFETY: a flag of this process.
    unsafe { sys::pgr_abort_pending = 0 };
}

/// Whether this process applies changesets.
#[must_use]
pub fn is_helper() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_is_helper }
}

/// Whether a command could be cancelled here: not in the middle of a message from the client.
#[must_use]
pub fn can_abort() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::QueryCancelHoldoffCount == 0 }
}

/// Whether the session waits for its client's next command.
#[must_use]
pub fn is_idle() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::DoingCommandRead }
}

/// Runs `serve` where an error loses nothing of the protocol, though COPY FROM STDIN is about to read
/// a message: nothing of that has been read.
pub fn between_messages(serve: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: variables and a flag of this process, as COPY set them before its read.
    unsafe {
        sys::pgr_between_messages = false;
        sys::pq_endmsgread();
        sys::QueryCancelHoldoffCount -= 1;
    }
    serve()?;
    // SAFETY: as above; the read goes on.
    unsafe {
        sys::QueryCancelHoldoffCount += 1;
        sys::pq_startmsgread();
        sys::pgr_between_messages = true;
    }
    Ok(())
}

/// Whether there is a transaction, at any level, that has not been rolled back yet.
#[must_use]
pub fn holds_transaction() -> bool {
    // SAFETY: reads the state of this process.
    unsafe { pgr_shim_holds_transaction() }
}

/// Whether the client is in the middle of a batch of messages: what it waits for is not the answer
/// to the next one alone.
#[must_use]
pub fn is_in_batch() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_in_batch }
}

/// Rolls the transaction back at all levels; a block that the client has begun stays, as a failed
/// one. Whether there is such a block.
pub fn abort_block() -> Result<bool> {
    // SAFETY: the session is idle.
    guard::call(false, |block, e| unsafe { pgr_shim_abort_block(block, e) })
}

/// Leaves the queue of a lock that this process waits for, as before any error.
pub fn lock_error_cleanup() {
    // SAFETY: may be called whether it waits or not; raises nothing.
    unsafe { pgr_shim_lock_error_cleanup() };
}

/// The current, failed transaction lost against one of another member, and nobody was told.
pub fn set_victim(victim: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_victim = victim };
}

/// The current transaction, of which nothing is left, lost against one of another member: the client
/// is to hear of it in answer to the next message.
pub fn set_untold(untold: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_victim_untold = untold };
}

/// Makes this background worker a helper of a database: signals, connection as the bootstrap
/// superuser, settings that no database, role or configuration file changes.
pub fn start_helper(database: u32) -> Result<()> {
    // SAFETY: a variable of this process: what it does is not captured.
    unsafe { sys::pgr_is_helper = true };
    // SAFETY: once, in a background worker that has no connection yet.
    guard::call0(|e| unsafe { pgr_shim_helper_start(database, e) })
}

/// The database of this process, 0 if it has none.
#[must_use]
pub fn database() -> u32 {
    // SAFETY: a variable of this process.
    unsafe { sys::MyDatabaseId }
}

/// The time, microseconds since 2000-01-01 UTC.
#[must_use]
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { sys::GetCurrentTimestamp() }
}

/// Whether somebody wants this process to stop what it does.
#[must_use]
pub fn is_interrupted() -> bool {
    // SAFETY: flags of this process, set by signal handlers.
    unsafe { sys::QueryCancelPending != 0 || sys::ProcDiePending != 0 }
}

/// The request to cancel has nothing left to cancel.
pub fn forget_cancel() {
    // SAFETY: a flag of this process, of a type that a signal handler may write.
    unsafe { sys::QueryCancelPending = 0 };
}

/// Whether this process serves a client.
#[must_use]
pub fn is_client() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::MyBackendType == sys::B_BACKEND }
}

/// [`crate::worker::consistency::before_snapshot`] is to be called before the session's next snapshot.
pub fn set_reserves(reserves: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_reserves = reserves };
}

/// The same, for another try of a transaction that lost.
pub fn set_awaits_winner(awaits: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_awaits_winner = awaits };
}

/// [`crate::worker::consistency::after_commit`] is to be called when the transaction is over.
pub fn set_awaits_shown(awaits: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_awaits_shown = awaits };
}

/// What the current transaction reads is to be taken down ([`crate::capture::read`]).
pub fn set_reads(reads: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_reads = reads };
}

/// The table whose reads don't count now, 0 for none.
#[must_use]
pub fn unread() -> u32 {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_unread }
}

/// Sets what [`unread`] says.
pub fn set_unread(table: u32) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_unread = table };
}

/// Holds back cancel and termination (`HOLD_INTERRUPTS`); gives them back when dropped.
pub struct HeldInterrupts(u32);

impl HeldInterrupts {
    /// From here on.
    #[expect(clippy::new_without_default, reason = "it is an act, not a value")]
    #[must_use]
    pub fn new() -> HeldInterrupts {
        // SAFETY: a counter of this process.
        unsafe {
            let before = sys::InterruptHoldoffCount;
            sys::InterruptHoldoffCount = before + 1;
            HeldInterrupts(before)
        }
    }
}

impl Drop for HeldInterrupts {
    fn drop(&mut self) {
        // SAFETY: `RESUME_INTERRUPTS`; an error in between may have set it to 0.
        unsafe { sys::InterruptHoldoffCount = self.0 };
    }
}
