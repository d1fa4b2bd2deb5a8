//! One entry of a changeset, done to the heap and the indexes.

use super::tables::{BATCH_BYTES, BATCH_ROWS, Index, Table, Tables};
use super::updates::{Columns, Update};
use super::whole_rows::Run;
use crate::capture::layout::{self, Attr, Span};
use crate::changeset::entry::SequenceChange;
use crate::changeset::tuple::TupleBytes;
use crate::ids::Oid;
use crate::pg::guard::{PgError, Result};
use crate::pg::heap::{self, Context, Indexes, Outcome, Slot, Snapshot, UniqueCheck, internal};
use crate::pg::sys;
use crate::pg::transaction;
use crate::pg::trigger::{self, Event, When};
use crate::pg::tuple::{self, TupleBuffer};
use std::collections::HashSet;

/// How often a row that moved under us is looked for again before it counts as an error: each
/// time needs another transaction that certification should have put after ours.
pub(super) const TRIES_MAX: u32 = 8;

/// What becomes of a row.
#[derive(Clone, Copy)]
pub enum Change<'c> {
    /// The marked columns get the values of `new`.
    Update(Update<'c>),
    /// It goes.
    Delete {
        /// To another partition.
        leaves: bool,
    },
}

/// Applies entries of a changeset within one transaction.
pub struct Applier<'t> {
    pub(super) tables: &'t mut Tables,
    pub(super) snapshot: Snapshot,
    /// Working memory, reset for each entry.
    pub(super) memory: &'t Context,
    /// Something was written that the snapshot doesn't show yet.
    pub(super) written: bool,
    /// Changes of sequences that wait for the transaction's turn.
    pub(super) sequences: Vec<(Oid, SequenceChange)>,
    /// All transactions before this one are visible.
    pub(super) in_order: bool,
    /// Triggers that have failed.
    pub(super) failed: HashSet<u32>,
    pub(super) spans: Vec<Span>,
    pub(super) buffers: Vec<TupleBuffer>,
    values: Vec<Option<sys::Datum>>,
}

impl<'t> Applier<'t> {
    /// In a transaction that has just begun.
    pub fn new(tables: &'t mut Tables, memory: &'t Context, snapshot: Snapshot) -> Applier<'t> {
        tables.begin();
        Applier {
            tables,
            snapshot,
            memory,
            written: false,
            sequences: Vec::new(),
            in_order: false,
            failed: HashSet::new(),
            spans: Vec::new(),
            buffers: Vec::new(),
            values: Vec::new(),
        }
    }

    /// The entries that follow are about this relation. Its rows must be laid out as at the origin.
    pub fn relation(&mut self, oid: u32, fingerprint: u64, natts: u16) -> Result<()> {
        let table = self.tables.get(oid)?;
        if table.fingerprint != fingerprint || table.attrs.len() != usize::from(natts) {
            return Err(internal(format!(
                "the columns of relation {oid} differ from those at the origin"
            )));
        }
        if table.has_triggers {
            self.take_turn()?;
        }
        Ok(())
    }

    /// Inserts rows of a relation.
    pub fn insert<'a>(
        &mut self,
        oid: u32,
        rows: impl Iterator<Item = TupleBytes<'a>>,
    ) -> Result<()> {
        let memory = self.memory;
        memory.reset();
        memory.within(|| self.insert_rows(oid, rows))
    }

    fn insert_rows<'a>(
        &mut self,
        oid: u32,
        rows: impl Iterator<Item = TupleBytes<'a>>,
    ) -> Result<()> {
        let mut rows = rows.fuse();
        let has_triggers = self.tables.get(oid)?.has_triggers;
        let together = if has_triggers { 1 } else { BATCH_ROWS };
        loop {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < together && bytes < BATCH_BYTES {
                let Some(row) = rows.next() else { break };
                bytes += row.data.len();
                batch.push(row);
            }
            let n = batch.len();
            if n == 0 {
                return Ok(());
            }
            self.need_buffers(n);
            let table = self.tables.get_with_slots(oid, n)?;
            for (i, row) in batch.iter().enumerate() {
                check(&table.attrs, row, &mut self.spans)?;
                let varwidth = has_varwidth(&table.attrs, &self.spans);
                let tuple = self.buffers[i].form(oid, row.natts, row.bitmap, row.data, varwidth);
                heap::slot_store(table.slots[i], tuple)?;
            }
            let table = if has_triggers {
                let new = Event::Insert(heap::slot_tuple(table.slots[0])?);
                self.fire(oid, When::Before, new)?;
                self.tables.get(oid)?
            } else {
                table
            };
            let cid = transaction::command_id()?;
            self.written = true;
            if n == 1 {
                let tuple = heap::slot_tuple(table.slots[0])?;
                heap::insert(table.handle, tuple, cid)?;
                heap::slot_store(table.slots[0], tuple)?;
                insert_index_entries(table, 1, Indexes::All, None)?;
                if has_triggers {
                    self.fire(oid, When::After, Event::Insert(tuple))?;
                }
            } else {
                heap::insert_many(table.handle, &mut table.slots[..n], cid)?;
                insert_index_entries(table, n, Indexes::All, None)?;
            }
            for slot in &self.tables.get(oid)?.slots[..n] {
                heap::slot_clear(*slot)?;
            }
        }
    }

    /// Changes the row that `identity` names.
    pub fn change<'c>(
        &mut self,
        oid: u32,
        identity: TupleBytes<'c>,
        change: Change<'c>,
        run: &mut Run<'c>,
    ) -> Result<()> {
        if !self.tables.get(oid)?.has_identity {
            return self.change_whole(oid, identity, change, run);
        }
        if self.in_order {
            // A trigger is fired for what the row is now, and once.
            self.show()?;
        }
        let memory = self.memory;
        memory.reset();
        memory.within(|| {
            for _ in 0..TRIES_MAX {
                self.find(oid, &identity)?;
                let outcome = self.change_found(oid, &change)?;
                if outcome == Outcome::Done {
                    return Ok(());
                }
                self.look_again(outcome)?;
            }
            Err(moved(oid))
        })
    }

    /// Has at least so many buffers. Tuples and slots will point into them: none may move until those are done.
    pub(super) fn need_buffers(&mut self, rows: usize) {
        let buffers = rows.max(self.buffers.len());
        self.buffers.resize_with(buffers, TupleBuffer::new);
    }

    /// Changes the row in the table's `found` slot, in working memory.
    pub(super) fn change_found(&mut self, oid: u32, change: &Change) -> Result<Outcome> {
        self.need_buffers(1);
        let table = self.tables.get(oid)?;
        let (found, has_triggers) = (table.found, table.has_triggers);
        let old = heap::slot_tuple(found)?;
        // What triggers are told stays as it is when the heap has changed it.
        let before = if has_triggers {
            trigger::copy(old)?
        } else {
            old
        };
        let tid = old.tid();
        let mut columns;
        let (outcome, event) = match change {
            Change::Delete { leaves } => {
                let (handle, event) = (table.handle, Event::Delete(before));
                if has_triggers {
                    self.fire(oid, When::Before, event)?;
                }
                let cid = transaction::command_id()?;
                (heap::delete(handle, tid, cid, *leaves)?, event)
            }
            Change::Update(update) => {
                columns = Columns::of(&table.attrs, update.changed);
                let buffer = &mut self.buffers[0];
                let tuple = columns.replace(table, old, update, &mut self.spans, buffer)?;
                let event = Event::Update {
                    old: before,
                    new: tuple,
                    changed: &columns.changed,
                };
                if has_triggers {
                    self.fire(oid, When::Before, event)?;
                }
                let (_, outcome) = self.replace(oid, &mut [tid], &[tuple], &columns.changed)?;
                (outcome, event)
            }
        };
        let done = outcome == Outcome::Done;
        self.written |= done;
        if has_triggers && done {
            self.fire(oid, When::After, event)?;
        }
        heap::slot_clear(found)?;
        Ok(outcome)
    }

    /// Something was done in commands of its own. What was written before them must not be as in the
    /// snapshot any more: of a row that an earlier command has changed PostgreSQL does not say so.
    pub fn catch_up(&mut self) -> Result<()> {
        self.show()
    }

    /// There is a pause: holds no buffer meanwhile.
    pub fn pause(&mut self) -> Result<()> {
        self.tables.rest()
    }

    /// Entries follow that are based on what has been committed meanwhile.
    pub fn resume(&mut self) -> Result<()> {
        self.snapshot = transaction::renew_snapshot()?;
        Ok(())
    }

    /// All entries are done.
    pub fn finish(self) -> Result<()> {
        self.tables.rest()?;
        self.tables.settle_files()
    }

    /// Lets the snapshot show what was written so far, here and by triggers.
    pub(super) fn show(&mut self) -> Result<()> {
        self.written = false;
        transaction::next_command()
    }

    /// The same, if something was written here.
    pub(super) fn show_written(&mut self) -> Result<()> {
        if self.written { self.show() } else { Ok(()) }
    }

    /// Brings the row into the table's `found` slot. The snapshot is from after everything that
    /// this changeset depends on became visible, and a snapshot shows exactly one version of a
    /// row, so that a version that moves meanwhile can't be missed.
    ///
    /// What this transaction has written itself is let into the snapshot only when it matters: a row
    /// that is found and that it has not changed is the one.
    fn find(&mut self, oid: u32, identity: &TupleBytes) -> Result<()> {
        if self.find_in_snapshot(oid, identity)? {
            return Ok(());
        }
        self.find_written(oid, identity)
    }

    /// The same for a row that was not in the snapshot so far.
    pub(super) fn find_written(&mut self, oid: u32, identity: &TupleBytes) -> Result<()> {
        if self.written {
            self.show_written()?;
            if self.find_in_snapshot(oid, identity)? {
                return Ok(());
            }
        }
        Err(missing(oid))
    }

    pub(super) fn find_in_snapshot(&mut self, oid: u32, identity: &TupleBytes) -> Result<bool> {
        let table = self.tables.get(oid)?;
        check(&table.attrs, identity, &mut self.spans)?;
        self.values.clear();
        for column in table.finder.iter().flat_map(|f| &f.columns) {
            let i = usize::from(*column);
            let bytes = self.spans[i]
                .of(identity.data)
                .ok_or_else(|| internal(format!("row of relation {oid} named by a null")))?;
            self.values.push(Some(tuple::datum(table.attrs[i], bytes)));
        }
        self.tables.find(oid, &self.values, self.snapshot)
    }

    /// The row that the snapshot shows is changed: by this transaction, or between the snapshot and
    /// now by one that certification puts before it.
    pub(super) fn look_again(&mut self, outcome: Outcome) -> Result<()> {
        if outcome == Outcome::Moved {
            self.snapshot = transaction::renew_snapshot()?;
        }
        self.show_written()
    }
}

/// A row that certification says is here.
pub(super) fn missing(oid: u32) -> PgError {
    internal(format!(
        "a row of relation {oid} that was changed is not here"
    ))
}

pub(super) fn moved(oid: u32) -> PgError {
    internal(format!(
        "a row of relation {oid} is being changed by others again and again"
    ))
}

/// Finds the values of a row that came from another member.
pub(super) fn check(attrs: &[Attr], row: &TupleBytes, spans: &mut Vec<Span>) -> Result<()> {
    if usize::from(row.natts) != attrs.len() {
        return Err(internal(format!(
            "a row has {} columns instead of {}",
            row.natts,
            attrs.len()
        )));
    }
    layout::walk(attrs, attrs.len(), row.bitmap, row.data, spans)
        .map_err(|e| internal(e.to_string()))?;
    let external = attrs.iter().zip(spans.iter()).any(|(attr, span)| {
        span.of(row.data)
            .is_some_and(|value| layout::is_external(*attr, value))
    });
    if external {
        return Err(internal("a row points to values of another server"));
    }
    Ok(())
}

fn has_varwidth(attrs: &[Attr], spans: &[Span]) -> bool {
    attrs
        .iter()
        .zip(spans)
        .any(|(attr, span)| attr.len < 0 && !span.is_null())
}

/// Gives the rows in the table's first slots, which are in the heap, their index entries; if they are
/// new versions of rows, these columns have `changed`.
pub(super) fn insert_index_entries(
    table: &Table,
    rows: usize,
    which: Indexes,
    changed: Option<&[bool]>,
) -> Result<()> {
    let slots = &table.slots[..rows];
    for index in &table.indexes {
        if which == Indexes::Summarizing && !index.summarizing {
            continue;
        }
        let insert = || insert_into_index(table, index, slots, changed);
        if index.computed {
            heap::as_owner(table.handle, insert)?
        } else {
            insert()?
        }
    }
    Ok(())
}

fn insert_into_index(
    table: &Table,
    index: &Index,
    slots: &[Slot],
    changed: Option<&[bool]>,
) -> Result<()> {
    // A key that was a row's before is nobody else's: whoever wants it waits for the row, or has
    // been told to abort by now.
    let unchanged = changed.is_some_and(|c| index.keeps_key(c));
    // A deferrable constraint was checked at the origin when all of the transaction was done, and
    // certified from that check on; meanwhile two rows may share a key here as they did there.
    let check = match (index.unique && !unchanged, index.immediate) {
        (false, _) => UniqueCheck::No,
        (true, true) => UniqueCheck::Now,
        (true, false) => UniqueCheck::Later,
    };
    let (handle, heap, info) = (index.handle, table.handle, index.info);
    if index.many && slots.len() > 1 && check != UniqueCheck::Later {
        return heap::btree_insert(handle, slots, heap, check, unchanged, info);
    }
    for slot in slots {
        let values = heap::index_values(info, *slot, table.executor.as_ref())?;
        if let Some(mut entry) = values {
            let tid = heap::slot_tid(*slot);
            heap::index_insert(handle, &mut entry, tid, heap, check, unchanged, info)?;
        }
    }
    Ok(())
}
