//! What a helper is at work on.

use super::rows::{Applier, Change};
use super::tables::BATCH_ROWS;
use super::updates::Update;
use super::whole_rows::Run;
use crate::changeset::compress::Opened;
use crate::changeset::decode::{Changeset, DecodeError};
use crate::changeset::entry::{Entries, Entry, SequenceChange};
use crate::changeset::fragment::{self, Counted};
use crate::changeset::header::Header;
use crate::changeset::tuple::TupleBytes;
use crate::ids::{Gid, Oid};
use crate::pg::guard::Result;
use crate::pg::heap::{Context, internal};
use crate::pg::victim::Cause;
use crate::pg::{large_object, notify, transaction};
use crate::sequence::helper as sequence;
use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<Option<Cause>> = const { Cell::new(None) };
    /// The first of those that are committed together with it.
    static FIRST: Cell<Option<Gid>> = const { Cell::new(None) };
}

/// What this helper is at work on now.
pub fn current() -> Option<Cause> {
    CURRENT.get()
}

/// Says what this helper is at work on; `None` when it is done.
pub fn set_current(cause: Option<Cause>) {
    CURRENT.set(cause);
}

/// The first and the last position of what is committed when the current one is done.
pub fn positions() -> Option<(Gid, Gid)> {
    let last = CURRENT.get()?.gid;
    Some((FIRST.get().unwrap_or(last), last))
}

/// What follows is committed together, `first` being the first of it; `None` when that is over.
pub fn set_first(first: Option<Gid>) {
    FIRST.set(first);
}

/// Whether what is being applied is committed together with others.
pub(super) fn are_several() -> bool {
    FIRST.get().is_some()
}

/// Says which relation it is about.
pub(super) fn set_relation(relation: u32) {
    if let Some(cause) = CURRENT.get() {
        CURRENT.set(Some(Cause { relation, ..cause }));
    }
}

/// Does all entries of the changeset with this GID in the transaction that has just begun. `fetch`
/// brings the nth of those that went ahead.
pub fn apply(
    changeset: &Changeset<'_>,
    gid: Gid,
    applier: &mut Applier<'_>,
    mut fetch: impl FnMut(u32) -> Result<Vec<u8>>,
) -> Result<()> {
    // A commit record carries the GID, and only a transaction with an id writes one.
    transaction::xid()?;
    let position = Some((changeset.header(), gid));
    if let Some(list) = changeset.fragments() {
        for (nth, counted) in (0..).zip(list.counted()) {
            let opened = open_fragment(fetch(nth)?, counted)?;
            apply_entries(opened.entries(), applier, position)?;
        }
    }
    apply_entries(open(changeset)?.entries(), applier, position)
}

/// The entries of a changeset.
pub(super) fn open<'a>(changeset: &Changeset<'a>) -> Result<Opened<'a>> {
    changeset.open().map_err(|e| damaged(&e))
}

/// The entries of a fragment, as far as they count.
pub(super) fn open_fragment(fragment: Vec<u8>, counted: Counted) -> Result<Opened<'static>> {
    fragment::open(fragment, counted).map_err(|e| damaged(&e))
}

/// Changes the sequences whose changes had to wait, in their order. Nothing else of the transaction looks at
/// them.
pub(super) fn change_sequences(applier: &mut Applier<'_>, position: (&Header, Gid)) -> Result<()> {
    for (oid, change) in std::mem::take(&mut applier.sequences) {
        change_sequence(oid, change, applier, position)?;
    }
    Ok(())
}

fn change_sequence(
    oid: Oid,
    change: SequenceChange,
    applier: &mut Applier<'_>,
    (header, gid): (&Header, Gid),
) -> Result<()> {
    set_relation(oid.0);
    sequence::apply(oid, change, header, gid)?;
    applier.catch_up()
}

/// Entries that open their relation, of a changeset with this header at this position; while it is not known,
/// changes of sequences are kept for [`change_sequences`].
pub(super) fn apply_entries(
    entries: Entries<'_>,
    applier: &mut Applier<'_>,
    position: Option<(&Header, Gid)>,
) -> Result<()> {
    let mut doing = Doing::default();
    doing.apply(entries, applier, position)?;
    doing.finish(applier)
}

/// Entries that are being done, of one changeset after the other.
#[derive(Default)]
pub(super) struct Doing<'c> {
    relation: u32,
    /// Changes of rows without an identity that are still to be done.
    run: Run<'c>,
    /// Rows inserted one after the other go to the heap together, and those updated; there is never some of
    /// both.
    inserts: Vec<TupleBytes<'c>>,
    updates: Vec<Update<'c>>,
}

impl<'c> Doing<'c> {
    /// See [`apply_entries`]. What can be done together with what follows is left.
    pub fn apply(
        &mut self,
        entries: Entries<'c>,
        applier: &mut Applier<'_>,
        position: Option<(&Header, Gid)>,
    ) -> Result<()> {
        for entry in entries {
            let entry = entry.map_err(|e| damaged(&e))?;
            match entry {
                Entry::Insert(row) => {
                    self.update(applier)?;
                    self.inserts.push(row);
                    if self.inserts.len() == BATCH_ROWS {
                        self.insert(applier)?;
                    }
                }
                Entry::Update {
                    identity,
                    changed,
                    new,
                } => {
                    self.insert(applier)?;
                    self.updates.push(Update {
                        identity,
                        changed,
                        new,
                    });
                    if self.updates.len() == BATCH_ROWS {
                        self.update(applier)?;
                    }
                }
                // Said again by the next changeset.
                Entry::Relation {
                    oid,
                    fingerprint,
                    natts,
                } if oid.0 == self.relation => {
                    set_relation(oid.0);
                    applier.relation(oid.0, fingerprint, natts)?;
                }
                entry => self.do_entry(entry, applier, position)?,
            }
        }
        Ok(())
    }

    fn do_entry(
        &mut self,
        entry: Entry<'c>,
        applier: &mut Applier<'_>,
        position: Option<(&Header, Gid)>,
    ) -> Result<()> {
        self.insert(applier)?;
        self.update(applier)?;
        let (memory, relation) = (applier.memory, self.relation);
        match entry {
            Entry::Insert(_) | Entry::Update { .. } | Entry::Fragments(_) | Entry::Source(_) => {
                Ok(())
            }
            Entry::Relation {
                oid,
                fingerprint,
                natts,
            } => {
                applier.finish_run(&mut self.run)?;
                self.relation = oid.0;
                set_relation(oid.0);
                applier.relation(oid.0, fingerprint, natts)
            }
            Entry::Batch(rows) => {
                applier.finish_run(&mut self.run)?;
                applier.insert(relation, rows)
            }
            Entry::Delete(identity) => {
                let change = Change::Delete { leaves: false };
                applier.change(relation, identity, change, &mut self.run)
            }
            Entry::Leave(identity) => {
                let change = Change::Delete { leaves: true };
                applier.change(relation, identity, change, &mut self.run)
            }
            Entry::Truncate(relations) => {
                let relations: Vec<u32> = relations.map(|oid| oid.0).collect();
                applier.finish_run(&mut self.run)?;
                set_relation(relations[0]);
                applier.truncate(&relations)?;
                set_relation(relation);
                Ok(())
            }
            Entry::Notify { channel, payload } => notify::notify(channel, payload),
            Entry::LargeObject { oid, owner, acl } => {
                beside_rows(memory, relation, || large_object::set(oid.0, owner, acl))?;
                applier.catch_up()
            }
            Entry::LargeObjectGone(oid) => {
                beside_rows(memory, relation, || large_object::gone(oid.0))?;
                applier.catch_up()
            }
            Entry::Sequence { oid, change } => {
                match position {
                    Some(position) => change_sequence(oid, change, applier, position)?,
                    None => applier.sequences.push((oid, change)),
                }
                set_relation(relation);
                Ok(())
            }
        }
    }

    /// Inserts the rows that wait.
    fn insert(&mut self, applier: &mut Applier<'_>) -> Result<()> {
        if self.inserts.is_empty() {
            return Ok(());
        }
        set_relation(self.relation);
        applier.finish_run(&mut self.run)?;
        applier.insert(self.relation, self.inserts.drain(..))
    }

    /// Updates the rows that wait.
    fn update(&mut self, applier: &mut Applier<'_>) -> Result<()> {
        if self.updates.is_empty() {
            return Ok(());
        }
        set_relation(self.relation);
        applier.update(self.relation, &self.updates, &mut self.run)?;
        self.updates.clear();
        Ok(())
    }

    /// Does what was left.
    pub fn finish(&mut self, applier: &mut Applier<'_>) -> Result<()> {
        self.insert(applier)?;
        self.update(applier)?;
        applier.finish_run(&mut self.run)
    }
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
