//! A large transaction that is applied before its changeset comes, fragment by fragment, so that little
//! is left to do when its turn comes.
//!
//! Until then it has no place in the order, and gives way to everybody: it waits for no lock that another
//! transaction holds, and who waits for one of its rows, or for a relation that it has truncated, gets it at
//! the next pause. It then rolls back, and is applied as any other at its turn, as it is when anything goes
//! wrong; or it is begun anew, as it is when something that it did was rolled back at the origin. So it is in
//! no circle of waits, and what it does early is right: a transaction that certification puts before it, and
//! that meets it, finds it gone.

use super::helper::{self, Helper, next, send};
use super::job::{self, apply_entries, change_sequences, damaged, open_fragment};
use super::rows::Applier;
use super::truncate::{Early, lock_early};
use crate::changeset::compress::Opened;
use crate::changeset::decode::{Changeset, DecodeError};
use crate::changeset::entry::Entry;
use crate::changeset::fragment::{Counted, fragment_head};
use crate::ids::Gid;
use crate::imsg::message::{Job, ToCoordinator, ToHelper};
use crate::pg::guard::{PgError, Result};
use crate::pg::heap::internal;
use crate::pg::source::Assumed;
use crate::pg::victim::Cause;
use crate::pg::{latch, locks, sys, transaction};
use crate::worker::channel::{set_phase, slot};
use crate::worker::phase::Phase;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often one that waits looks whether somebody waits for it.
const LOOK_AROUND: Duration = Duration::from_millis(50);

thread_local! {
    static EARLY: Cell<bool> = const { Cell::new(false) };
}

/// What comes for a transaction that was begun early.
enum Came {
    /// What it asked for.
    Fragment(Fragment),
    /// Its changeset has passed.
    Turn(Job),
    /// It does not commit.
    End,
    /// Nothing for a while.
    Nothing,
}

/// A fragment that is to be applied.
struct Fragment {
    /// To be visible before.
    base: Gid,
    opened: Opened<'static>,
    counted: Counted,
    /// Relations that it truncates.
    truncates: Vec<u32>,
}

/// The current transaction is applied early: an error if it meets a lock of another.
pub fn check_may_wait() -> Result<()> {
    if EARLY.get() {
        Err(gives_way())
    } else {
        Ok(())
    }
}

fn gives_way() -> PgError {
    internal("a transaction without a place in the order gives way")
}

impl Helper {
    /// Applies the transaction whose first fragment has this position, and commits it if its turn comes.
    pub(super) fn early(&mut self, first: u64) -> Result<()> {
        let mut turn = None;
        EARLY.set(true);
        let done = self.try_early(first, &mut turn);
        EARLY.set(false);
        job::set_current(None);
        if let (Ok(true), Some(job)) = (&done, &turn) {
            return self.committed(std::iter::once(job));
        }
        self.roll_back()?;
        match turn {
            Some(job) => self.apply(job),
            None => send(ToCoordinator::EarlyEnded { first }),
        }
    }

    /// True when it is committed. Anything else is to be rolled back; if it has its turn by then, that is
    /// in `turn`, and its changeset in `bytes`.
    fn try_early(&mut self, first: u64, turn: &mut Option<Job>) -> Result<bool> {
        let snapshot = transaction::begin()?;
        let ticket = u64::from(transaction::local_id());
        slot().ticket.store(ticket, Ordering::SeqCst);
        transaction::xid()?;
        let mut applier = Applier::new(&mut self.tables, &self.memory, snapshot);
        let mut applied: Vec<Counted> = Vec::new();
        // The next one, while somebody is in the way of what it truncates.
        let mut blocked: Option<Fragment> = None;
        send(ToCoordinator::EarlyWanted { first, nth: 0 })?;
        let job = loop {
            let came = wait(first, applied.len() as u32, blocked.is_some())?;
            let is_new = matches!(came, Came::Fragment(_));
            match came {
                Came::End => return Ok(false),
                Came::Turn(job) => break job,
                Came::Fragment(fragment) => blocked = Some(fragment),
                Came::Nothing => {}
            }
            let Some(fragment) = &blocked else { continue };
            helper::wait_for(fragment.base, give_way_if_awaited)?;
            match lock_early(&fragment.truncates)? {
                Early::Locked => {
                    fragment.apply(&mut applier)?;
                    applied.push(fragment.counted);
                    blocked = None;
                    let nth = applied.len() as u32;
                    send(ToCoordinator::EarlyWanted { first, nth })?;
                }
                Early::Busy if !is_new => {}
                Early::Busy => send(ToCoordinator::EarlyWaits { first })?,
                Early::AtTurn => {
                    blocked = None;
                    send(ToCoordinator::EarlyWaits { first })?;
                }
            }
        };
        if !helper::take(&job, &mut self.bytes) {
            return Ok(false);
        }
        *turn = Some(job);
        let changeset = Changeset::parse(&self.bytes).map_err(|e| damaged(&e))?;
        let list = changeset.fragments().filter(|list| {
            // What was rolled back to a savepoint does not count; all may not have been told.
            list.counted()
                .take(applied.len())
                .eq(applied.iter().copied())
        });
        let Some(list) = list.filter(|_| !helper::is_committed(&job)) else {
            return Ok(false);
        };
        // From here on it has its place: others with a higher one give way.
        EARLY.set(false);
        job::set_current(Some(Cause {
            gid: job.gid,
            origin: job.origin,
            relation: 0,
        }));
        slot().gid.store(job.gid.0, Ordering::SeqCst);
        set_phase(Phase::Certified);
        helper::wait_for(job.depends_on, || Ok(()))?;
        applier.resume()?;
        let _assumed = changeset.source().map(Assumed::new).transpose()?;
        let position = (changeset.header(), job.gid);
        change_sequences(&mut applier, position)?;
        let position = Some(position);
        for (nth, counted) in (0..).zip(list.counted()).skip(applied.len()) {
            let bytes = helper::fetch(job.gid, nth)?;
            let opened = open_fragment(bytes, counted)?;
            apply_entries(opened.entries(), &mut applier, position)?;
        }
        apply_entries(job::open(&changeset)?.entries(), &mut applier, position)?;
        applier.finish()?;
        transaction::commit()?;
        Ok(true)
    }
}

impl Fragment {
    /// So many bytes of its entries count.
    fn new(base: Gid, bytes: Vec<u8>, counting: u32) -> Result<Fragment> {
        let head = fragment_head(&bytes).ok_or_else(|| damaged(&DecodeError::Length))?;
        let counted = Counted {
            number: head.number,
            bytes: counting,
        };
        let opened = open_fragment(bytes, counted)?;
        let mut truncates = Vec::new();
        for entry in opened.entries() {
            if let Entry::Truncate(relations) = entry.map_err(|e| damaged(&e))? {
                truncates.extend(relations.map(|oid| oid.0));
            }
        }
        Ok(Fragment {
            base,
            opened,
            counted,
            truncates,
        })
    }

    fn apply(&self, applier: &mut Applier<'_>) -> Result<()> {
        applier.resume()?;
        apply_entries(self.opened.entries(), applier, None)?;
        applier.pause()
    }
}

/// The next that comes, `nth` being the fragment that was asked for. `looks`: not for long, for there is
/// something to try again.
fn wait(first: u64, nth: u32, looks: bool) -> Result<Came> {
    let wanted = (first, nth);
    let mut looked = false;
    loop {
        give_way_if_awaited()?;
        match next() {
            Some(ToHelper::EarlyFragment {
                first,
                nth,
                bytes: counting,
                base,
                fragment,
            }) => {
                if let Some(bytes) = helper::copy(fragment)
                    && (first, nth) == wanted
                {
                    let fragment = Fragment::new(base, bytes, counting)?;
                    return Ok(Came::Fragment(fragment));
                }
            }
            Some(ToHelper::Apply(job)) => return Ok(Came::Turn(job)),
            Some(ToHelper::EarlyEnd { first }) if first == wanted.0 => return Ok(Came::End),
            // Of what this helper was at before.
            Some(ToHelper::EarlyEnd { .. } | ToHelper::EarlyBegin { .. }) => {}
            Some(ToHelper::Fragment { fragment, .. }) => helper::discard(fragment),
            None if looked && looks => return Ok(Came::Nothing),
            None => {
                let event = sys::WAIT_EVENT_REPLICATION_HELPER_MAIN;
                latch::sleep_interruptible(Some(LOOK_AROUND), event)?;
                looked = true;
            }
        }
    }
}

fn give_way_if_awaited() -> Result<()> {
    if transaction::is_awaited()? || locks::is_exclusive_awaited()? {
        Err(gives_way())
    } else {
        Ok(())
    }
}
