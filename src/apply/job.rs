//! What a helper is at work on.

use super::rows::Applier;
use super::tables::{BATCH_ROWS, Tables};
use crate::changeset::decode::{Changeset, DecodeError, Entries, Entry};
use crate::changeset::fragment::fragment_entries;
use crate::ids::{Gid, MemberId};
use crate::imsg::Chain;
use crate::pg::guard::Result;
use crate::pg::heap::{Context, Snapshot, internal};
use crate::pg::transaction;
use crate::pg::victim::Cause;
use std::cell::Cell;

/// A changeset to apply.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Its position.
    pub gid: Gid,
    /// What must be visible before it begins.
    pub depends_on: Gid,
    /// Where it came from.
    pub origin: MemberId,
    /// Its bytes; the helper's to free.
    pub changeset: Chain,
}

thread_local! {
    static CURRENT: Cell<Option<Cause>> = const { Cell::new(None) };
}

/// What this helper is at work on now.
pub fn current() -> Option<Cause> {
    CURRENT.get()
}

/// Says what this helper is at work on; `None` when it is done.
pub fn set_current(cause: Option<Cause>) {
    CURRENT.set(cause);
}

fn set_relation(relation: u32) {
    if let Some(cause) = CURRENT.get() {
        CURRENT.set(Some(Cause { relation, ..cause }));
    }
}

/// Does all entries of a changeset in the current transaction. `fragment` brings the nth of those that
/// went ahead.
pub fn apply(
    changeset: &Changeset<'_>,
    snapshot: Snapshot,
    tables: &mut Tables,
    memory: &Context,
    mut fragment: impl FnMut(u32) -> Result<Vec<u8>>,
) -> Result<()> {
    // A commit record carries the GID, and only a transaction with an id writes one.
    transaction::xid()?;
    let mut applier = Applier::new(tables, memory, snapshot);
    if let Some(list) = changeset.fragments() {
        for (nth, counted) in (0..).zip(list.counted()) {
            let bytes = fragment(nth)?;
            let entries = fragment_entries(&bytes, counted).map_err(|e| damaged(&e))?;
            apply_entries(entries, &mut applier)?;
        }
    }
    apply_entries(changeset.entries(), &mut applier)?;
    applier.finish()
}

/// Entries that open their relation.
fn apply_entries(entries: Entries<'_>, applier: &mut Applier<'_>) -> Result<()> {
    let mut relation = 0;
    // Rows inserted one after the other go to the heap together.
    let mut inserts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| damaged(&e))?;
        if let Entry::Insert(row) = entry {
            inserts.push(row);
            if inserts.len() < BATCH_ROWS {
                continue;
            }
        }
        if !inserts.is_empty() {
            applier.insert(relation, inserts.drain(..))?;
        }
        match entry {
            Entry::Insert(_) | Entry::Fragments(_) => {}
            Entry::Relation {
                oid,
                fingerprint,
                natts,
            } => {
                relation = oid.0;
                set_relation(relation);
                applier.relation(relation, fingerprint, natts)?;
            }
            Entry::Batch(rows) => applier.insert(relation, rows)?,
            Entry::Update {
                identity,
                changed,
                new,
            } => {
                applier.update(relation, &identity, |i| changed.has(i), &new)?;
            }
            Entry::Delete(identity) => applier.delete(relation, &identity, false)?,
            Entry::Leave(identity) => applier.delete(relation, &identity, true)?,
        }
    }
    if !inserts.is_empty() {
        applier.insert(relation, inserts.drain(..))?;
    }
    Ok(())
}

/// A changeset that the group delivered, and that is not one.
pub fn damaged(e: &DecodeError) -> crate::pg::guard::PgError {
    internal(format!("changeset is damaged: {e}"))
}
