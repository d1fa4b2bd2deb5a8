//! A session that loses again and again: it has its member reserve the relations on which it lost, before
//! its next transaction takes its first snapshot. From there on nobody can be ordered before it there.

use super::channel;
use super::consistency;
use crate::capture::table_lock;
use crate::capture::transaction::watch_transactions;
use crate::ids::Gid;
use crate::imsg::message::ToCoordinator;
use crate::limits::{LOSSES_BEFORE_RESERVATION, RESERVED_RELATIONS_MAX};
use crate::pg::guard::Result;
use crate::pg::{backend, transaction};
use std::cell::Cell;

/// What became of the session's transactions so far.
#[derive(Clone, Copy, Default)]
struct Record {
    /// Transactions in a row that lost, without one that changed something and committed.
    losses: u32,
    /// On what, latest first; 0 is nothing.
    relations: [u32; RESERVED_RELATIONS_MAX],
    /// The transaction (local id) that lost last.
    lost: u32,
    /// The transaction (local id) that has asked for a reservation.
    asked: u32,
    /// It may have one, and no changeset will end that.
    holds: bool,
}

thread_local! {
    static RECORD: Cell<Record> = Cell::new(Record::default());
}

/// The current transaction has lost on this relation against one of another member.
pub fn lost(relation: u32) {
    let mut record = RECORD.get();
    let id = transaction::local_id();
    if record.lost != id {
        record.lost = id;
        record.losses = record.losses.saturating_add(1);
    }
    if relation != 0 && !record.relations.contains(&relation) {
        record.relations.rotate_right(1);
        record.relations[0] = relation;
    }
    RECORD.set(record);
    backend::set_reserves(record.losses >= LOSSES_BEFORE_RESERVATION);
}

/// The current transaction has found no place, for another member has reserved what it changed. That is
/// no loss: the other lost more often.
pub fn refused() {
    let mut record = RECORD.get();
    record.lost = transaction::local_id();
    RECORD.set(record);
}

/// The current transaction fails with 40001, for whatever reason; if it is not known yet, it is a row
/// that has changed since its snapshot, of one of the tables that it has locked for that.
pub fn overtaken() {
    let id = transaction::local_id();
    if id == 0 || RECORD.get().lost == id || !transaction::has_one_snapshot() {
        return;
    }
    table_lock::each_granted(lost);
}

/// Whether the transaction that begins asks for a reservation.
pub fn wants() -> bool {
    let record = RECORD.get();
    record.losses >= LOSSES_BEFORE_RESERVATION
        && record.relations[0] != 0
        && record.asked != transaction::local_id()
        && !transaction::is_read_only()
}

/// Asks for it: the GID up to which the transaction must see everything, if there was an answer. Without
/// a group there is none, and the transaction goes on as any other.
pub fn ask() -> Result<Option<Gid>> {
    watch_transactions()?;
    let mut record = RECORD.get();
    record.asked = transaction::local_id();
    record.holds = true;
    RECORD.set(record);
    let relations = record.relations;
    consistency::ask(|ticket| ToCoordinator::Reserve { ticket, relations })
}

/// The transaction is about to be multicast, with keys of these relations as a whole: whatever another
/// member changed in them meanwhile would be in its way, so this member has them reserved until it is
/// judged. The GID that its snapshot must have, if there was an answer.
pub fn ask_for(relations: &[u32]) -> Result<Option<Gid>> {
    let mut record = RECORD.get();
    let mut wanted = [0; RESERVED_RELATIONS_MAX];
    if record.holds || relations.is_empty() || relations.len() > wanted.len() {
        return Ok(None);
    }
    wanted[..relations.len()].copy_from_slice(relations);
    record.holds = true;
    RECORD.set(record);
    let relations = wanted;
    let answer = consistency::ask(|ticket| ToCoordinator::Reserve { ticket, relations })?;
    if answer.is_none() {
        // The member may have one for another session, which this changeset must not end.
        used();
        let _ = channel::request(ToCoordinator::Release);
    }
    Ok(answer)
}

/// Whether the changeset of this transaction is what a reservation is for.
pub fn holds() -> bool {
    RECORD.get().holds
}

/// The changeset has its place in the order, and with that the reservation ends.
pub fn used() {
    let record = RECORD.get();
    RECORD.set(Record {
        holds: false,
        ..record
    });
}

/// The transaction has changed something and commits.
pub fn won() {
    RECORD.set(Record::default());
    backend::set_reserves(false);
}

/// The transaction is over.
pub fn ended() {
    let mut record = RECORD.get();
    if record.holds {
        // A full queue: other members end it in a while.
        let _ = channel::request(ToCoordinator::Release);
    }
    record.holds = false;
    // What it was for has not come to an end by losing: the next one must lose first.
    if record.asked != 0 && record.lost != record.asked {
        record.losses = record.losses.min(LOSSES_BEFORE_RESERVATION - 1);
        backend::set_reserves(false);
    }
    record.asked = 0;
    RECORD.set(record);
}
