//! A helper that has to wait for a lock, and those who hold it.

use super::{early, job};
use crate::export;
use crate::imsg::{ProcSlot, SlotNo};
use crate::pg::guard::{PgError, Result};
use crate::pg::victim::{self, Local};
use crate::pg::{guc, shmem, sys};
use crate::worker::rule::{self, Action};
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Milliseconds after which the holders are looked at again.
const LOOK_AGAIN_MS: i32 = 100;
/// How long a transaction that was told to abort may take before its session is ended: it does not
/// serve interrupts, for it is blocked writing to a client that does not read, or in the middle of
/// a message.
const GRACE: Duration = Duration::from_secs(5);

/// Somebody in the way.
#[derive(Clone, Copy)]
struct Met {
    who: Local,
    since: Instant,
    told: Option<Instant>,
}

thread_local! {
    /// Those who are in the way, while this helper waits for a lock.
    static MET: RefCell<Vec<Met>> = const { RefCell::new(Vec::new()) };
}

/// Tells those in the way to abort, and sees to it that this is done again while we wait: another
/// holder can come in our way without waking us.
pub fn look(tag: &sys::LOCKTAG, mode: i32) -> Result<()> {
    let kind = u32::from(tag.locktag_type);
    // Held for moments only, never to the end of a transaction.
    if matches!(
        kind,
        sys::LOCKTAG_RELATION_EXTEND | sys::LOCKTAG_DATABASE_FROZEN_IDS | sys::LOCKTAG_PAGE
    ) {
        return Ok(());
    }
    early::check_may_wait()?;
    let Some(cause) = job::current() else {
        return Ok(());
    };
    let in_trigger = export::enabled();
    // Whoever has it may keep it beyond all transactions.
    if in_trigger && kind == sys::LOCKTAG_ADVISORY {
        return Err(unavailable("an advisory lock that it needs is taken"));
    }
    guc::reload_if_asked()?;
    let now = Instant::now();
    let blockers = victim::blockers(tag, mode)?;
    // Nothing that is replicated is with it, so it may take any time.
    if in_trigger && blockers.prepared {
        return Err(unavailable(
            "a prepared transaction has a lock that it needs",
        ));
    }
    let mut met = MET.take();
    met.retain(|m| blockers.running.contains(&m.who));
    for who in blockers.running {
        if who.process.cast_unsigned() == shmem::my_slot().0 || met.iter().any(|m| m.who == who) {
            continue;
        }
        met.push(Met {
            who,
            since: now,
            told: None,
        });
    }
    for blocker in &mut met {
        let slot = shmem::shared().slot(SlotNo(blocker.who.process.cast_unsigned()));
        if in_trigger && slot.stays_ticket.load(Ordering::Relaxed) == u64::from(blocker.who.id) {
            return Err(unavailable(
                "a transaction that is to be committed later has a lock that it needs",
            ));
        }
        if rule::action(slot, blocker.who.id, cause.gid) == Action::Wait
            || has_time(blocker, slot, now)
        {
            continue;
        }
        let pid = victim::tell(slot, blocker.who, cause)?;
        let told = *blocker.told.get_or_insert(now);
        if let Some(pid) = pid
            && now - told > GRACE
        {
            victim::terminate(pid);
        }
    }
    MET.set(met);
    victim::look_again_in(LOOK_AGAIN_MS)
}

/// A trigger waits for what it can't get while its transaction is not over.
fn unavailable(why: &str) -> PgError {
    PgError::new("55P03", format!("trigger can't go on: {why}"))
}

/// Whether the blocker is maintenance, and may go on for now.
fn has_time(blocker: &Met, slot: &ProcSlot, now: Instant) -> bool {
    (slot.maintenance.load(Ordering::Relaxed) != 0 || victim::is_autovacuum(blocker.who))
        && guc::max_apply_delay().is_none_or(|delay| now - blocker.since < delay)
}
