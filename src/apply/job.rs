//! What a helper is at work on.

use super::rows::{Applier, Change};
use super::tables::{BATCH_ROWS, Tables};
use super::whole_rows::Run;
use crate::changeset::decode::{Changeset, DecodeError, Entries, Entry, Header};
use crate::changeset::fragment::fragment_entries;
use crate::ids::Gid;
use crate::pg::guard::Result;
use crate::pg::heap::{Context, Snapshot, internal};
use crate::pg::victim::Cause;
use crate::pg::{large_object, notify, transaction};
use crate::sequence::helper as sequence;
use std::cell::Cell;

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

/// Does all entries of the changeset with this GID in the current transaction. `fragment` brings the nth
/// of those that went ahead.
pub fn apply(
    changeset: &Changeset<'_>,
    gid: Gid,
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
            apply_entries(entries, &mut applier, Some((changeset.header(), gid)))?;
        }
    }
    let position = Some((changeset.header(), gid));
    apply_entries(changeset.entries(), &mut applier, position)?;
    applier.finish()
}

/// Entries that open their relation, of a changeset with this header at this position, if it is known.
pub(super) fn apply_entries(
    entries: Entries<'_>,
    applier: &mut Applier<'_>,
    position: Option<(&Header, Gid)>,
) -> Result<()> {
    let memory = applier.memory;
    let mut relation = 0;
    // Changes of rows without an identity that are still to be done.
    let mut run = Run::default();
    // Rows inserted one after the other go to the heap together.
    let mut inserts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| damaged(&e))?;
        if !matches!(entry, Entry::Update { .. }) {
            applier.settle()?;
        }
        if let Entry::Insert(row) = entry {
            inserts.push(row);
            if inserts.len() < BATCH_ROWS {
                continue;
            }
        }
        if !inserts.is_empty() {
            applier.finish_run(&mut run)?;
            applier.insert(relation, inserts.drain(..))?;
        }
        match entry {
            Entry::Insert(_) | Entry::Fragments(_) => {}
            Entry::Relation {
                oid,
                fingerprint,
                natts,
            } => {
                applier.finish_run(&mut run)?;
                relation = oid.0;
                set_relation(relation);
                applier.relation(relation, fingerprint, natts)?;
            }
            Entry::Batch(rows) => {
                applier.finish_run(&mut run)?;
                applier.insert(relation, rows)?;
            }
            Entry::Update {
                identity,
                changed,
                new,
            } => {
                applier.change(
                    relation,
                    identity,
                    Change::Update { changed, new },
                    &mut run,
                )?;
            }
            Entry::Delete(identity) => {
                applier.change(
                    relation,
                    identity,
                    Change::Delete { leaves: false },
                    &mut run,
                )?;
            }
            Entry::Truncate(relations) => {
                let relations: Vec<u32> = relations.iter().map(|oid| oid.0).collect();
                applier.finish_run(&mut run)?;
                set_relation(relations[0]);
                applier.truncate(&relations)?;
                set_relation(relation);
            }
            Entry::Leave(identity) => {
                applier.change(
                    relation,
                    identity,
                    Change::Delete { leaves: true },
                    &mut run,
                )?;
            }
            Entry::Notify { channel, payload } => notify::notify(channel, payload)?,
            Entry::LargeObject { oid, owner, acl } => {
                beside_rows(memory, relation, || large_object::set(oid.0, owner, acl))?;
                applier.catch_up()?;
            }
            Entry::LargeObjectGone(oid) => {
                beside_rows(memory, relation, || large_object::gone(oid.0))?;
                applier.catch_up()?;
            }
            Entry::Sequence { oid, change } => {
                let (header, gid) =
                    position.ok_or_else(|| internal("a sequence is changed out of its turn"))?;
                set_relation(oid.0);
                sequence::apply(oid, change, header, gid)?;
                applier.catch_up()?;
                set_relation(relation);
            }
        }
    }
    applier.finish_run(&mut run)?;
    if !inserts.is_empty() {
        applier.insert(relation, inserts.drain(..))?;
    }
    Ok(())
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
