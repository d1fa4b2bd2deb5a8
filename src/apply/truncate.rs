//! TRUNCATE where it is applied.

use super::rows::Applier;
use crate::pg::guard::Result;
use crate::pg::heap::{self, internal};
use crate::pg::locks::{self, Exclusive};
use crate::pg::relation::{self, Handle};
use crate::pg::sys;
use crate::pg::trigger::{self, When};

/// Whether relations can be truncated by a transaction that has no place in the order yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Early {
    /// They are locked.
    Locked,
    /// Somebody is in the way. None is locked that was not before.
    Busy,
    /// Triggers fire: only at the transaction's turn.
    AtTurn,
}

impl Applier<'_> {
    /// Truncates relations together.
    pub fn truncate(&mut self, relations: &[u32]) -> Result<()> {
        self.tables.replace_files()?;
        let mut has_triggers = false;
        for oid in relations {
            let fires = |rel| trigger::is_fired(rel, true);
            has_triggers |= with_open(*oid, sys::AccessExclusiveLock as i32, fires)?;
        }
        if has_triggers {
            self.take_turn()?;
            self.fire_truncate(relations, When::Before)?;
        }
        heap::truncate(relations)?;
        self.catch_up()?;
        if has_triggers {
            self.fire_truncate(relations, When::After)?;
        }
        Ok(())
    }
}

/// Locks relations that are to be truncated, as TRUNCATE does, all of them or none. Waits for nobody: who
/// waits for such a lock holds up everybody who comes after.
pub fn lock_early(relations: &[u32]) -> Result<Early> {
    let mut locked = Exclusive::default();
    let outcome = lock_all(relations, &mut locked)?;
    if outcome != Early::Locked {
        locked.give_back()?;
    }
    Ok(outcome)
}

fn lock_all(relations: &[u32], locked: &mut Exclusive) -> Result<Early> {
    // A standby of this member learns of each lock that is taken, and not that it was given back.
    for oid in relations {
        if !locks::is_free(*oid)? {
            return Ok(Early::Busy);
        }
    }
    for oid in relations {
        if !locked.add(*oid)? {
            return Ok(Early::Busy);
        }
        let (fires, toast) = with_open(*oid, 0, |rel| {
            (
                trigger::is_fired(rel, true),
                relation::form(rel).reltoastrelid,
            )
        })?;
        if fires {
            return Ok(Early::AtTurn);
        }
        // Its table of long values, which maintenance may be at by itself.
        if toast != 0 && !locked.add(toast)? {
            return Ok(Early::Busy);
        }
    }
    Ok(Early::Locked)
}

/// Looks at a relation under a lock in this mode (0: there is one), which stays.
fn with_open<T>(oid: u32, mode: i32, look: impl FnOnce(Handle) -> T) -> Result<T> {
    let rel = relation::open(oid, mode)?
        .ok_or_else(|| internal(format!("relation {oid} does not exist here")))?;
    let found = look(rel);
    relation::close(rel, 0)?;
    Ok(found)
}
