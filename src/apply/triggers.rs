//! Triggers that fire where changes are applied: ENABLE ALWAYS and ENABLE REPLICA ones.
//!
//! The rows are decided: what a trigger returns is not looked at, and its error undoes what it did
//! and nothing else. It may change what is this server's own, but nothing that is replicated.

use super::helper;
use super::job;
use super::rows::Applier;
use crate::ids::Gid;
use crate::pg::guard::{PgError, Result};
use crate::pg::heap::internal;
use crate::pg::relation::{self, Handle};
use crate::pg::trigger::{self, Event, Triggers, When};
use crate::pg::{elog, sys, transaction};
use crate::worker::channel::control;
use crate::worker::commit::serialization;
use crate::worker::victim;
use std::sync::atomic::Ordering;

impl Applier<'_> {
    /// Before the first trigger is fired: waits until all transactions before this one are visible. So
    /// triggers run in the order of commits, see what they see at the origin and no less, and none with a
    /// lower GID is in need of what they lock. Not while a search is open.
    pub(super) fn take_turn(&mut self) -> Result<()> {
        if self.in_order {
            return Ok(());
        }
        // Of several that are committed together none has a turn of its own: each is applied by itself then.
        if job::are_several() {
            return Err(internal("triggers fire"));
        }
        // What is applied early has no place in the order yet, and is given up.
        let cause = job::current().ok_or_else(|| internal("triggers without a transaction"))?;
        helper::wait_for(Gid(cause.gid.0 - 1), || Ok(()))?;
        self.snapshot = transaction::renew_snapshot()?;
        self.in_order = true;
        self.show()
    }

    /// Fires the triggers of a table for one of its rows.
    pub(super) fn fire(&mut self, oid: u32, when: When, event: Event<'_>) -> Result<()> {
        let table = self.tables.get(oid)?;
        let handle = table.handle;
        let triggers = match table.triggers.take() {
            Some(triggers) => triggers,
            None => Triggers::open(handle)?,
        };
        let triggers = self.fire_all(handle, triggers, when, event)?;
        self.tables.get(oid)?.triggers = Some(triggers);
        Ok(())
    }

    /// Fires triggers of TRUNCATE.
    pub(super) fn fire_truncate(&mut self, relations: &[u32], when: When) -> Result<()> {
        for oid in relations {
            let Some(rel) = relation::open(*oid, 0)? else {
                return Err(internal(format!("relation {oid} does not exist here")));
            };
            if trigger::is_fired(rel, true) {
                let triggers = Triggers::open(rel)?;
                self.fire_all(rel, triggers, when, Event::Truncate)?
                    .close()?;
            }
            relation::close(rel, 0)?;
        }
        Ok(())
    }

    fn fire_all(
        &mut self,
        rel: Handle,
        mut triggers: Triggers,
        when: When,
        event: Event<'_>,
    ) -> Result<Triggers> {
        let cause = job::current().ok_or_else(|| internal("triggers without a transaction"))?;
        let replay = u32::from(cause.origin.0) == control().member.load(Ordering::Relaxed);
        self.show()?;
        for n in triggers.fired(event, when, replay) {
            let Some(error) = triggers.fire(n, event, when)? else {
                continue;
            };
            // Not the trigger's: somebody needs what this transaction holds.
            if victim::is_wanted() {
                return Err(serialization());
            }
            let (trigger, name) = triggers.name(n);
            self.failed(trigger, &name, rel, &error);
            triggers.close()?;
            triggers = Triggers::open(rel)?;
        }
        Ok(triggers)
    }

    fn failed(&mut self, trigger: u32, name: &str, rel: Handle, error: &PgError) {
        let counters = &control().counters;
        counters.trigger_errors.fetch_add(1, Ordering::Relaxed);
        // Once a transaction: it may be for each of many rows.
        if let Some(cause) = job::current()
            && self.failed.insert(trigger)
        {
            let message = format!(
                "trigger \"{name}\" of table \"{}\" failed for transaction {} of member {}, and what it did is undone: {error}",
                relation::name(rel),
                cause.gid,
                cause.origin,
            );
            elog::log(sys::WARNING, &message);
        }
    }
}
