//! A local transaction that is in the way of one that the group has ordered.
//!
//! The request lies in the process's slot, with the local transaction id that it is meant for; the
//! signal only says "look". A transaction that is over, or that has been multicast, is not hit.

use super::channel::{self, control, slot};
use super::commit::serialization;
use super::fairness;
use super::phase::Phase;
use super::retry;
use crate::capture::relation::described;
use crate::capture::transaction::watch_transactions;
use crate::ids::Gid;
use crate::imsg::conflicts::Kind;
use crate::pg::guard::{PgError, Result};
use crate::pg::{backend, latch, shmem, transaction};
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int};
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;

thread_local! {
    /// DETAIL of the error that the session's next command or message gets, NUL terminated, if it was
    /// idle when it lost.
    static DETAIL: ManuallyDrop<RefCell<Vec<u8>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    /// Transaction (local id) that was told to abort, until it has ended at all levels.
    static DOOMED: Cell<u32> = const { Cell::new(0) };
}

/// Signal handler: look when interrupts are served.
pub fn requested() {
    backend::want_interrupt();
}

/// Whether somebody wants the current transaction to give way.
pub fn is_wanted() -> bool {
    let wanted = slot().victim_ticket.load(Ordering::Acquire);
    wanted != 0 && wanted == u64::from(transaction::local_id())
}

/// Serves the interrupt.
pub fn serve() -> Result<()> {
    backend::clear_interrupt();
    let id = transaction::local_id();
    if id == 0 || !is_wanted() && DOOMED.get() != id {
        return Ok(());
    }
    if channel::phase() != Phase::Open && !backend::is_helper() {
        // Its verdict decides, or its commit turn.
        return Ok(());
    }
    if !backend::holds_transaction() {
        return Ok(());
    }
    if !backend::is_idle() && !backend::can_abort() {
        backend::want_interrupt();
        return Ok(());
    }
    if DOOMED.replace(id) != id && !backend::is_helper() {
        let relation = slot().victim_relation.load(Ordering::Relaxed);
        fairness::lost(relation);
        control().conflicts.count(relation, Kind::Victim);
    }
    watch_transactions()?;
    let slot = slot();
    retry::lost(
        slot.victim_relation.load(Ordering::Relaxed),
        Gid(slot.victim_gid.load(Ordering::Relaxed)),
    );
    if backend::is_idle() {
        let detail = describe();
        let failed_block = backend::abort_block()?;
        remember(&detail);
        // An answer within a batch may go unread, as that to a driver's Close does: the failed block
        // says it again to each of its commands.
        backend::set_victim(failed_block);
        // What the client sends next may rely on what is gone: portals, or the implicit transaction.
        backend::set_untold(backend::is_in_batch() || !failed_block);
        return Ok(());
    }
    backend::lock_error_cleanup();
    Err(serialization().detail(describe()))
}

/// Serves the interrupt while COPY FROM STDIN waits for a message of its client. An error can be
/// raised there only as long as nothing of the message has been read, that is where the read has
/// blocked; before and after a read, the latch sees to it that the next one blocks only to come here.
pub fn serve_in_copy(blocked: bool) -> Result<()> {
    if blocked {
        backend::between_messages(serve)
    } else {
        latch::wake(shmem::my_slot());
        Ok(())
    }
}

/// An inner level is rolled back; the outer ones of a doomed transaction still hold locks.
pub fn subtransaction_aborted() {
    if DOOMED.get() != 0 && DOOMED.get() == transaction::local_id() {
        backend::want_interrupt();
    }
}

/// The transaction has ended at all levels.
pub fn ended() {
    DOOMED.set(0);
}

/// DETAIL for commands of a failed transaction that nobody was told of; valid until the next call
/// that changes it.
pub fn detail() -> *const c_char {
    DETAIL.with(|d| {
        if d.borrow().is_empty() {
            c"".as_ptr()
        } else {
            d.borrow().as_ptr().cast()
        }
    })
}

/// A message was read from the client of a transaction that was aborted behind its back: its answer,
/// unless the protocol has none for it (then the next message gets it).
pub fn tell(message: c_int) -> Result<()> {
    // End of file; Terminate; CopyData, CopyDone and CopyFail outside of COPY.
    let is_unanswered = |byte: u8| matches!(byte, b'X' | b'd' | b'c' | b'f');
    if u8::try_from(message).map_or(true, is_unanswered) {
        return Ok(());
    }
    backend::set_untold(false);
    Err(lost())
}

/// The error for who was idle when it lost.
pub fn lost() -> PgError {
    let text = DETAIL.with(|d| String::from_utf8_lossy(&d.borrow()).into_owned());
    serialization().detail(text.trim_end_matches('\0'))
}

fn remember(detail: &str) {
    let mut text = detail.replace('\0', "?").into_bytes();
    text.push(0);
    DETAIL.with(|d| *d.borrow_mut() = text);
}

fn describe() -> String {
    let slot = slot();
    let relation = slot.victim_relation.load(Ordering::Relaxed);
    let origin = slot.victim_origin.load(Ordering::Relaxed);
    let gid = slot.victim_gid.load(Ordering::Relaxed);
    format!(
        "A transaction of member {origin} (GID {gid}) needed a lock that this one held on {}.",
        described(relation)
    )
}
