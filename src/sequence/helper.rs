//! Changes of sequences that the group has ordered, done to ours.

use super::range;
use crate::changeset::entry::SequenceChange;
use crate::changeset::header::Header;
use crate::ids::{Gid, Oid};
use crate::imsg::SlotNo;
use crate::imsg::ranges::Answer;
use crate::pg::guard::Result;
use crate::pg::heap::internal;
use crate::pg::relation::{self, Handle};
use crate::pg::sequence::{self, Tuple, with_ranges};
use crate::pg::{latch, shmem, sys};
use crate::worker::channel::control;
use std::sync::atomic::Ordering;

/// Does a change of the changeset with this header and GID, in the current transaction. What it
/// writes stays if that is rolled back: it is done again with it, and comes to the same then.
pub fn apply(oid: Oid, change: SequenceChange, header: &Header, gid: Gid) -> Result<()> {
    // As nextval: who has restarted the sequence, and is committed, has told us of its new storage before
    // it gives up the lock.
    let Some(rel) = relation::open(oid.0, sys::RowExclusiveLock as i32)? else {
        return Err(internal(format!("sequence {oid} does not exist here")));
    };
    match change {
        SequenceChange::Set { last, called } => {
            let state = range::State { last, called };
            sequence::write(rel, None, Tuple::new(state, 0))?;
            with_ranges(|ranges| ranges.forget(oid.0, gid));
        }
        SequenceChange::Take { want, slot, ticket } => {
            if let Some(answer) = take(rel, want, gid)?
                && is_ours(header)
            {
                give(oid, want, SlotNo(slot), ticket, answer);
            }
        }
    }
    relation::close(rel, 0)
}

/// Hands out the next values; `None` if this was done before, by an earlier attempt or before a crash.
fn take(rel: Handle, want: u32, gid: Gid) -> Result<Option<Answer>> {
    let found = sequence::read(rel)?;
    let tag = tag(gid);
    if found.tag() == tag {
        return Ok(None);
    }
    let (rule, _) = sequence::rule(relation::oid(rel))?;
    let Some((values, state)) = range::advance(found.state(), rule, want) else {
        return Ok(Some(Answer::Ended));
    };
    if !sequence::write(rel, Some(found), Tuple::new(state, tag))? {
        return Err(internal("a sequence has moved out of its turn"));
    }
    Ok(Some(Answer::Values(gid, values)))
}

/// Names a GID in a sequence's tuple. That two with the same name follow each other is made up for:
/// the second is passed over on all members alike, and who asked for values asks again.
fn tag(gid: Gid) -> u32 {
    (gid.0 % u64::from(u32::MAX)) as u32 + 1
}

/// Values of an earlier life of this member may have been handed out before it ended.
fn is_ours(header: &Header) -> bool {
    u32::from(header.origin.0) == control().member.load(Ordering::Relaxed)
        && header.incarnation.0 == control().incarnation.load(Ordering::SeqCst)
}

/// To the session that asked, or else to any of this member's.
fn give(oid: Oid, want: u32, who: SlotNo, ticket: u64, answer: Answer) {
    let Some(slot) = shmem::shared().slots().get(who.0 as usize) else {
        return;
    };
    with_ranges(|ranges| {
        if !slot.grant.give(ticket, answer)
            && let Answer::Values(gid, values) = answer
            // A single value would come after later ones.
            && want > 1
        {
            ranges.keep(oid.0, gid, values);
        }
    });
    latch::wake(who);
}
