//! What a helper is at work on.

use super::rows::{Applier, Change};
use super::tables::{BATCH_ROWS, Tables};
use crate::changeset::decode::{Changeset, DecodeError, Entry};
use crate::ids::{Gid, MemberId};
use crate::imsg::Chain;
use crate::pg::guard::Result;
use crate::pg::heap::{Context, Snapshot, internal};
use crate::pg::victim::Cause;
use crate::pg::{large_object, notify, transaction};
use crate::sequence::helper as sequence;
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

/// Does all entries of the changeset with this GID in the current transaction.
pub fn apply(
    changeset: &Changeset<'_>,
    gid: Gid,
    snapshot: Snapshot,
    tables: &mut Tables,
    memory: &Context,
) -> Result<()> {
    // A commit record carries the GID, and only a transaction with an id writes one.
    transaction::xid()?;
    let mut applier = Applier::new(tables, memory, snapshot);
    let mut relation = 0;
    // Rows inserted one after the other go to the heap together.
    let mut inserts = Vec::new();
    for entry in changeset.entries() {
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
            Entry::Insert(_) => {}
            Entry::Relation {
                oid,
                fingerprint,
                natts,
            } => {
                applier.finish_run()?;
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
                applier.change(relation, identity, Change::Update { changed, new })?;
            }
            Entry::Delete(identity) => {
                applier.change(relation, identity, Change::Delete { leaves: false })?;
            }
            Entry::Truncate(relations) => {
                let relations: Vec<u32> = relations.iter().map(|oid| oid.0).collect();
                applier.finish_run()?;
                set_relation(relations[0]);
                applier.truncate(&relations)?;
                set_relation(relation);
            }
            Entry::Leave(identity) => {
                applier.change(relation, identity, Change::Delete { leaves: true })?;
            }
            Entry::Notify { channel, payload } => notify::notify(channel, payload)?,
            Entry::LargeObject { oid, owner, acl } => {
                beside_rows(memory, relation, || large_object::set(oid.0, owner, acl))?;
            }
            Entry::LargeObjectGone(oid) => {
                beside_rows(memory, relation, || large_object::gone(oid.0))?;
            }
            Entry::Sequence { oid, change } => {
                set_relation(oid.0);
                sequence::apply(oid, change, changeset.header(), gid)?;
                set_relation(relation);
            }
        }
    }
    if !inserts.is_empty() {
        applier.insert(relation, inserts.drain(..))?;
    }
    applier.finish()
}

/// Something about a large object, between rows of a relation.
fn beside_rows(memory: &Context, relation: u32, f: impl FnOnce() -> Result<()>) -> Result<()> {
    set_relation(large_object::METADATA);
    memory.reset();
    memory.within(f)?;
    set_relation(relation);
    Ok(())
}

/// A changeset that the group delivered, and that is not one.
pub fn damaged(e: &DecodeError) -> crate::pg::guard::PgError {
    internal(format!("changeset is damaged: {e}"))
}
