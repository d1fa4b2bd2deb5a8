//! `replication_consistency`: a transaction that sees all that the group acknowledged before it
//! began, and a commit that returns when all members show it.

use super::channel::{self, control, slot};
use super::commit::{closed, is_over, serialization, state};
use super::fairness;
use super::gate::LOOK_AROUND;
use super::retry;
use crate::group_state::GroupState;
use crate::ids::Gid;
use crate::imsg::message::{ToCoordinator, ToWorker};
use crate::pg::guard::{PgError, Result};
use crate::pg::starting::{self, Stage};
use crate::pg::{backend, elog, guc, latch, source, sys};
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// No transaction has a number this high.
const WAITS: u64 = 1 << 63;

thread_local! {
    static LAST_WAIT: Cell<u64> = const { Cell::new(WAITS) };
    /// What this session committed and waits to be shown everywhere.
    static AWAITED: Cell<Gid> = const { Cell::new(Gid::ZERO) };
}

/// A transaction of the replicated database is about to take its first snapshot, or locks of tables
/// that come before it.
pub fn before_snapshot() -> Result<()> {
    let reserves = fairness::wants();
    if !(guc::consistent_before() || reserves || retry::is_another()) || !backend::is_client() {
        return Ok(());
    }
    // Before START has come to its end nothing was acknowledged by a group. The stage is looked at
    // before the database, which is set before it ends.
    if starting::stage() != Stage::None
        || control().database.load(Ordering::SeqCst) != backend::database()
    {
        return Ok(());
    }
    channel::attach(false)?;
    if let Some(gid) = retry::winner()? {
        // Of a group that is over it hears by itself.
        await_visible(gid)?;
    }
    let reserved = if reserves { fairness::ask()? } else { None };
    let gid = match reserved {
        Some(gid) => gid,
        None if !guc::consistent_before() => return Ok(()),
        None => ask(|ticket| ToCoordinator::AwaitOrder { ticket })?.ok_or_else(unordered)?,
    };
    if await_visible(gid)? {
        Ok(())
    } else {
        Err(unordered())
    }
}

/// A subscription's worker begins, at `start` of its source (0: that is not known yet). All that the
/// publisher was told of must be here: it won't send that again, and what it sends rests on it.
pub fn before_subscription(start: u64) -> Result<()> {
    if starting::stage() != Stage::None
        || control().database.load(Ordering::SeqCst) != backend::database()
    {
        return Ok(());
    }
    channel::attach(false)?;
    let gid = ask(|ticket| ToCoordinator::AwaitOrder { ticket })?.ok_or_else(|| closed(state()))?;
    if !await_visible(gid)? {
        return Err(closed(state()));
    }
    if start != 0 && source::progress() > start {
        return Err(serialization().detail(
            "Another member has applied more of the subscription since its worker began here.",
        ));
    }
    Ok(())
}

/// Waits until a GID is visible here; false if the group is over before that. A transaction that
/// holds what others wait for can be told to abort meanwhile, by an interrupt.
pub fn await_visible(gid: Gid) -> Result<bool> {
    let (readers, wants) = (&control().readers, &slot().wants_gid);
    let mut there = readers.wait(wants, gid, &control().visible);
    let _wait = Waiting;
    while !there {
        latch::sleep_interruptible(Some(LOOK_AROUND), sys::WAIT_EVENT_REPLICATION_CONSISTENCY)?;
        if is_over() {
            return Ok(false);
        }
        there = control().visible.passed() >= gid;
    }
    Ok(true)
}

/// Asks for a message of this member in the order: the highest GID that can have been acknowledged when
/// it was sent. `None` if there is no order now.
pub fn ask(question: impl FnOnce(u64) -> ToCoordinator) -> Result<Option<Gid>> {
    let wanted = next_wait();
    let is_open = || state() == Some(GroupState::Online) && channel::has_coordinator();
    if !is_open() || channel::request(question(wanted)).is_err() {
        return Ok(None);
    }
    loop {
        match channel::receive() {
            Some(ToWorker::Reached { ticket, gid }) if ticket == wanted => return Ok(Some(gid)),
            Some(ToWorker::NotPrimary { ticket }) if ticket == wanted => return Ok(None),
            Some(_) => {}
            None if !is_open() => return Ok(None),
            None => {
                let event = sys::WAIT_EVENT_REPLICATION_CONSISTENCY;
                latch::sleep_interruptible(Some(LOOK_AROUND), event)?;
            }
        }
    }
}

/// The transaction that now commits at `gid` is to be shown everywhere before its client hears of
/// it.
pub fn await_shown(gid: Gid) {
    AWAITED.set(gid);
    backend::set_awaits_shown(true);
}

/// The transaction is over, and nothing of it is held any more. Raises nothing: it is committed.
pub fn after_commit() {
    backend::set_awaits_shown(false);
    let (gid, wanted) = (AWAITED.replace(Gid::ZERO), next_wait());
    let message = ToCoordinator::AwaitShown {
        ticket: wanted,
        gid,
    };
    let mut asked = channel::has_coordinator() && channel::request(message).is_ok();
    while asked {
        match channel::receive() {
            Some(ToWorker::Reached { ticket, .. }) if ticket == wanted => return,
            Some(ToWorker::NotPrimary { ticket }) if ticket == wanted => asked = false,
            Some(_) => {}
            None if backend::is_interrupted() || is_over() || !channel::has_coordinator() => {
                asked = false;
            }
            None => latch::sleep(Some(LOOK_AROUND), sys::WAIT_EVENT_REPLICATION_CONSISTENCY),
        }
    }
    // As for a synchronous standby: the cancel has had its effect, a termination goes on.
    backend::forget_cancel();
    elog::log(
        sys::WARNING,
        "the transaction is committed, but some members of the replication group may not show it yet",
    );
}

/// A wait of [`await_visible`] is over, however it ends.
struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        leave();
    }
}

/// This process waits for nothing to become visible.
pub fn leave() {
    if slot().wants_gid.load(Ordering::Relaxed) != 0 {
        control().readers.done(&slot().wants_gid);
    }
}

fn next_wait() -> u64 {
    LAST_WAIT.set(LAST_WAIT.get() + 1);
    LAST_WAIT.get()
}

fn unordered() -> PgError {
    let message = "cannot tell what the replication group has committed";
    let state = state().map_or("unknown", GroupState::name);
    PgError::new("57P03", message)
        .detail(format!(
            "The state of the replication group on this member is \"{state}\"."
        ))
        .hint("Set \"replication_consistency\" to \"eventual\" to read what this member has.")
}
