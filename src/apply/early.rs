//! A large transaction that is applied before its changeset comes, fragment by fragment, so that little
//! is left to do when its turn comes.
//!
//! Until then it has no place in the order, and gives way to everybody: it waits for no lock that
//! another transaction holds, and who waits for one of its rows gets it at the next pause. It then rolls
//! back, and is applied as any other at its turn, as it is when anything goes wrong, or when something
//! that it did was rolled back at the origin. So it is in no circle of waits, and what it does early is
//! right: a transaction that certification puts before it, and that meets it, finds it gone.

use super::helper::{self, Helper, next, send};
use super::job::{self, apply_entries, damaged};
use super::rows::Applier;
use crate::changeset::decode::{Changeset, Entries, Entry};
use crate::changeset::fragment::{Counted, FRAGMENT_HEADER_BYTES, fragment_entries};
use crate::ids::Gid;
use crate::imsg::message::{Job, ToCoordinator, ToHelper};
use crate::pg::guard::{PgError, Result};
use crate::pg::heap::internal;
use crate::pg::source::Assumed;
use crate::pg::victim::Cause;
use crate::pg::{latch, sys, transaction};
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
    Fragment {
        base: Gid,
        bytes: Vec<u8>,
    },
    /// Its changeset has passed.
    Turn(Job),
    /// It does not commit.
    End,
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
        transaction::abort()?;
        self.tables.forget()?;
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
        // What comes next can only be done at its turn.
        let mut pauses = false;
        let job = loop {
            if !pauses {
                let nth = applied.len() as u32;
                send(ToCoordinator::EarlyWanted { first, nth })?;
            }
            match wait(first, applied.len() as u32)? {
                Came::End => return Ok(false),
                Came::Turn(job) => break job,
                Came::Fragment { base, bytes } => {
                    let counted = all_of(applied.len() as u32, &bytes);
                    let entries = fragment_entries(&bytes, counted).map_err(|e| damaged(&e))?;
                    if !may_be_early(entries.clone())? {
                        pauses = true;
                        // The origin need not wait.
                        let nth = u32::MAX;
                        send(ToCoordinator::EarlyWanted { first, nth })?;
                        continue;
                    }
                    helper::wait_for(base, give_way_if_awaited)?;
                    applier.resume()?;
                    apply_entries(entries, &mut applier, None)?;
                    applier.pause()?;
                    applied.push(counted);
                }
            }
        };
        if !helper::take(&job, &mut self.bytes) {
            return Ok(false);
        }
        *turn = Some(job);
        let changeset = Changeset::parse(&self.bytes).map_err(|e| damaged(&e))?;
        let list = changeset.fragments().filter(|list| {
            // What was rolled back to a savepoint does not count.
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
        let position = Some((changeset.header(), job.gid));
        for (nth, counted) in (0..).zip(list.counted()).skip(applied.len()) {
            let bytes = helper::fetch(job.gid, nth)?;
            let entries = fragment_entries(&bytes, counted).map_err(|e| damaged(&e))?;
            apply_entries(entries, &mut applier, position)?;
        }
        apply_entries(changeset.entries(), &mut applier, position)?;
        applier.finish()?;
        transaction::commit()?;
        Ok(true)
    }
}

/// The next that comes, `nth` being the fragment that was asked for.
fn wait(first: u64, nth: u32) -> Result<Came> {
    let wanted = (first, nth);
    loop {
        give_way_if_awaited()?;
        match next() {
            Some(ToHelper::EarlyFragment {
                first,
                nth,
                base,
                fragment,
            }) => {
                if let Some(bytes) = helper::copy(fragment)
                    && (first, nth) == wanted
                {
                    return Ok(Came::Fragment { base, bytes });
                }
            }
            Some(ToHelper::Apply(job)) => return Ok(Came::Turn(job)),
            Some(ToHelper::EarlyEnd { first }) if first == wanted.0 => return Ok(Came::End),
            // Of what this helper was at before.
            Some(ToHelper::EarlyEnd { .. } | ToHelper::EarlyBegin { .. } | ToHelper::Quit) => {}
            Some(ToHelper::Fragment { fragment, .. }) => helper::discard(fragment),
            None => {
                let event = sys::WAIT_EVENT_REPLICATION_HELPER_MAIN;
                latch::sleep_interruptible(Some(LOOK_AROUND), event)?;
            }
        }
    }
}

fn give_way_if_awaited() -> Result<()> {
    if transaction::is_awaited()? {
        Err(gives_way())
    } else {
        Ok(())
    }
}

/// The whole fragment.
fn all_of(number: u32, fragment: &[u8]) -> Counted {
    let bytes = fragment.len().saturating_sub(FRAGMENT_HEADER_BYTES) as u32;
    Counted { number, bytes }
}

/// Whether these are only what a rollback undoes, what needs no GID, and what keeps nobody out of more than
/// rows (and of dropping the owner of a large object).
fn may_be_early(entries: Entries<'_>) -> Result<bool> {
    for entry in entries {
        let entry = entry.map_err(|e| damaged(&e))?;
        if matches!(entry, Entry::Truncate(_) | Entry::Sequence { .. }) {
            return Ok(false);
        }
    }
    Ok(true)
}
