//! Entries of a large transaction on their way ahead of its COMMIT, with flow control: few are without a
//! place in the order at any time, so that memory stays flat here and transactions of others come
//! in between.

use super::channel::{self, control};
use super::commit::{self, closed};
use super::gate::LOOK_AROUND;
use crate::changeset::encode::Taken;
use crate::changeset::fragment::{FRAGMENT_HEADER_BYTES, FragmentsOf, fragment_header};
use crate::changeset::sink::Sink;
use crate::group_state::GroupState;
use crate::imsg::message::ToCoordinator;
use crate::imsg::{ChainWriter, Class};
use crate::limits::{FRAGMENTS_AHEAD, LOG_RESERVE_BYTES};
use crate::pg::guard::{PgError, Result};
use crate::pg::{backend, latch, log_dir, shmem, sys};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;

/// Of the current transaction, from its first fragment on.
struct Ahead {
    of: FragmentsOf,
    /// Life of the member in which it began: no other knows of it.
    incarnation: u32,
    /// Taken from the changeset and not sent yet.
    rest: Option<Rest>,
    /// Sent, and without a place in the order.
    unordered: u32,
    /// The group does not keep them.
    lost: bool,
    /// The order has judged the changeset, and with it the fragments end.
    judged: bool,
}

/// Entries, to be sent fragment by fragment. An interrupt leaves what is still to be sent.
struct Rest {
    taken: Taken<ChainWriter<'static>>,
    /// Those that are sent.
    sent: usize,
    /// The next one's bytes, if the coordinator had no room for them.
    next: Option<Vec<u8>>,
}

thread_local! {
    static AHEAD: ManuallyDrop<RefCell<Option<Ahead>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
    /// Transactions whose end the coordinator could not be told yet.
    static UNTOLD: ManuallyDrop<RefCell<Vec<u64>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

fn with<T>(f: impl FnOnce(&mut Option<Ahead>) -> T) -> T {
    AHEAD.with(|ahead| f(&mut ahead.borrow_mut()))
}

/// Whether there is a group to send them to. Before it is formed, changesets stay in memory.
pub fn has_group() -> bool {
    control().database.load(Ordering::SeqCst) == backend::database()
        && commit::state() == Some(GroupState::Online)
        && channel::has_coordinator()
}

/// Whose fragments those of the current transaction are.
pub fn of() -> FragmentsOf {
    FragmentsOf {
        worker: shmem::my_slot().0,
        ticket: channel::ticket(),
    }
}

/// Whether some wait to be sent.
pub fn are_left() -> bool {
    with(|ahead| ahead.as_ref().is_some_and(|a| a.rest.is_some()))
}

/// Takes entries over; [`send`] follows. None may be left.
pub fn put(taken: Taken<ChainWriter<'static>>) {
    let incarnation = control().incarnation.load(Ordering::SeqCst);
    with(|ahead| {
        let ahead = ahead.get_or_insert_with(|| Ahead {
            of: of(),
            incarnation,
            rest: None,
            unordered: 0,
            lost: false,
            judged: false,
        });
        assert!(ahead.rest.is_none(), "fragments are sent in their order");
        ahead.rest = Some(Rest {
            taken,
            sent: 0,
            next: None,
        });
    });
}

/// Sends what is left, as fast as it is ordered. Serves interrupts.
pub fn send() -> Result<()> {
    while are_left() {
        look()?;
        if with(|ahead| {
            ahead
                .as_ref()
                .is_some_and(|a| a.unordered >= FRAGMENTS_AHEAD)
        }) {
            let event = sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY;
            latch::sleep_interruptible(Some(LOOK_AROUND), event)?;
            continue;
        }
        send_next()?;
    }
    look()
}

/// Waits until all that was sent has its place in the order, and those who apply it early have it: what
/// is left for them to do at the commit is what others wait for. Serves interrupts.
pub fn settle() -> Result<()> {
    send()?;
    while with(|ahead| ahead.as_ref().is_some_and(|a| a.unordered > 0)) {
        let event = sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY;
        latch::sleep_interruptible(Some(LOOK_AROUND), event)?;
        look()?;
    }
    Ok(())
}

/// A fragment of this transaction has a place in the order. `kept`: and the group keeps it.
pub fn ordered(ticket: u64, kept: bool) {
    with(|ahead| {
        if let Some(ahead) = ahead.as_mut().filter(|a| a.of.ticket == ticket) {
            ahead.unordered -= 1;
            ahead.lost |= !kept;
        }
    });
}

/// Takes answers; an error if the transaction cannot be committed any more.
fn look() -> Result<()> {
    // All others are about waits that are over.
    while channel::receive().is_some() {}
    let incarnation = control().incarnation.load(Ordering::SeqCst);
    match with(|a| a.as_ref().map(|a| a.lost || a.incarnation != incarnation)) {
        None => Ok(()),
        _ if !has_group() => Err(closed(commit::state())),
        Some(true) => Err(lost()),
        Some(false) => Ok(()),
    }
}

fn send_next() -> Result<()> {
    let (shared, me) = (shmem::shared(), shmem::my_slot());
    let pool = shared.pool();
    let (ticket, head, rest) = with(|ahead| {
        let ahead = ahead.as_mut()?;
        let rest = ahead.rest.as_mut()?;
        let (head, range) = rest.taken.fragment(rest.sent, ahead.of);
        let bytes = rest.next.take().unwrap_or_else(|| {
            let compresses = commit::compresses(range.len());
            rest.taken.written(range, compresses)
        });
        Some((ahead.of.ticket, head, bytes))
    })
    .expect("a fragment is left");
    let bytes = FRAGMENT_HEADER_BYTES + rest.len();
    if !fits_on_disk(log_dir::free_bytes(), bytes) {
        return Err(disk_full());
    }
    let mut writer = ChainWriter::new(pool, Class::Local, me);
    writer
        .append(&fragment_header(head, &rest))
        .and_then(|()| writer.append(&rest))
        .map_err(|_| crate::capture::transaction::no_memory(bytes))?;
    let fragment = pool.post(writer.finish());
    if channel::request(ToCoordinator::Fragment { ticket, fragment }).is_err() {
        // It takes what is there before it sleeps.
        pool.free(fragment);
        with(|ahead| {
            if let Some(waiting) = ahead.as_mut().and_then(|a| a.rest.as_mut()) {
                waiting.next = Some(rest);
            }
        });
        let event = sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY;
        return latch::sleep_interruptible(Some(LOOK_AROUND), event);
    }
    commit::count_sent(bytes as u32);
    with(|ahead| {
        let Some(ahead) = ahead else { return };
        ahead.unordered += 1;
        ahead.rest = ahead.rest.take().and_then(|mut rest| {
            rest.sent += 1;
            (rest.sent < rest.taken.ends.len()).then_some(rest)
        });
    });
    Ok(())
}

/// The order has judged the changeset that they belong to.
pub fn judged() {
    with(|ahead| {
        if let Some(ahead) = ahead {
            ahead.judged = true;
        }
    });
}

/// The transaction is over. If no changeset follows, the group is told. Raises nothing.
pub fn end() {
    if let Some(ahead) = with(Option::take)
        && !ahead.judged
    {
        UNTOLD.with(|untold| untold.borrow_mut().push(ahead.of.ticket));
    }
    UNTOLD.with(|untold| {
        // What the queue has no room for the slot's next fragments or the member's next life imply.
        untold.borrow_mut().retain(|&ticket| {
            channel::has_coordinator()
                && channel::request(ToCoordinator::DropFragments { ticket }).is_err()
        });
    });
}

/// Whether a fragment may be written: the rest is for others. `None`: nobody knows.
fn fits_on_disk(free: Option<u64>, bytes: usize) -> bool {
    free.is_none_or(|free| free >= LOG_RESERVE_BYTES + bytes as u64)
}

/// The group did not keep what went ahead.
pub fn lost() -> PgError {
    PgError::new("40001", "could not serialize access: the group lost a part of the transaction")
        .detail("The group did not keep what this large transaction had sent ahead of its commit.")
        .hint("Retry it when no other large transaction has been open for long, and the member reaches a majority.")
}

fn disk_full() -> PgError {
    PgError::new("53100", "no room for a large transaction in the group log")
        .detail(format!(
            "What is left of the disk, {} MB, is kept for other transactions.",
            LOG_RESERVE_BYTES >> 20
        ))
        .hint("Free disk space, or split the transaction.")
}
