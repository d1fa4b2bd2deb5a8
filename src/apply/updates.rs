//! Updates of rows that follow each other: found one by one, and put into heap and indexes together.

use super::rows::{Applier, Change, TRIES_MAX, check, insert_index_entries, moved};
use super::tables::{BATCH_BYTES, Table};
use super::whole_rows::Run;
use crate::capture::layout::{self, Attr, Span};
use crate::changeset::tuple::{Bitmap, TupleBytes};
use crate::pg::guard::Result;
use crate::pg::heap::{self, Indexes, Outcome};
use crate::pg::relation::Tuple;
use crate::pg::sys;
use crate::pg::transaction;
use crate::pg::tuple::{self, Row, TupleBuffer};

/// An update of a row.
#[derive(Clone, Copy)]
pub struct Update<'c> {
    /// The row, as it was.
    pub identity: TupleBytes<'c>,
    /// Columns that change.
    pub changed: Bitmap<'c>,
    /// Their values; the others are null.
    pub new: TupleBytes<'c>,
}

/// Columns that change, in as many rows as they do.
pub(super) struct Columns {
    pub changed: Vec<bool>,
    values: Vec<sys::Datum>,
    nulls: Vec<bool>,
    /// One behind the last that changes.
    end: usize,
    /// Where the first `end` columns of an old row are.
    old: Vec<Span>,
}

impl Columns {
    /// Of a table with these attributes.
    pub fn of(attrs: &[Attr], changed: Bitmap) -> Columns {
        let changed: Vec<bool> = (0..attrs.len()).map(|i| changed.has(i)).collect();
        Columns {
            end: changed.iter().rposition(|c| *c).map_or(0, |last| last + 1),
            changed,
            values: vec![0; attrs.len()],
            nulls: vec![false; attrs.len()],
            old: Vec::new(),
        }
    }

    /// The new version of a row that an update changes in these columns, in `buffer` or in the current memory
    /// context.
    pub fn replace(
        &mut self,
        table: &Table,
        old: Tuple,
        update: &Update,
        spans: &mut Vec<Span>,
        buffer: &mut TupleBuffer,
    ) -> Result<Tuple> {
        check(&table.attrs, &update.new, spans)?;
        let row = tuple::row(old);
        if self.fit(&table.attrs, &row, update, spans) {
            let tuple = buffer.copy(old);
            let data = buffer.data_mut();
            for i in (0..self.end).filter(|i| self.changed[*i]) {
                if let (Some(to), Some(value)) =
                    (self.old[i].of_mut(data), spans[i].of(update.new.data))
                {
                    to.copy_from_slice(value);
                }
            }
            return Ok(tuple);
        }
        for (i, attr) in table
            .attrs
            .iter()
            .enumerate()
            .filter(|(i, _)| self.changed[*i])
        {
            let value = spans[i].of(update.new.data);
            self.nulls[i] = value.is_none();
            self.values[i] = value.map_or(0, |bytes| tuple::datum(*attr, bytes));
        }
        let (values, nulls) = (&mut self.values, &mut self.nulls);
        heap::modify(old, table.handle, values, nulls, &mut self.changed)
    }

    /// Whether each new value can stand where the old one does, in a row that is as now.
    fn fit(&mut self, attrs: &[Attr], row: &Row, update: &Update, spans: &[Span]) -> bool {
        let old = &mut self.old;
        row.natts == attrs.len()
            && layout::walk(attrs, self.end, row.bitmap, row.data, old).is_ok()
            && (0..self.end).filter(|i| self.changed[*i]).all(|i| {
                let values = old[i].of(row.data).zip(spans[i].of(update.new.data));
                values.is_some_and(|(old, new)| layout::fits(attrs[i], old, new))
            })
    }
}

impl Applier<'_> {
    /// Updates rows of a relation, one after the other. Those without an identity are left to `run`.
    pub fn update<'c>(
        &mut self,
        oid: u32,
        updates: &[Update<'c>],
        run: &mut Run<'c>,
    ) -> Result<()> {
        let table = self.tables.get(oid)?;
        if table.has_triggers || !table.has_identity {
            return updates
                .iter()
                .try_for_each(|u| self.change(oid, u.identity, Change::Update(*u), run));
        }
        let (memory, mut left, mut tries) = (self.memory, updates, 0);
        while !left.is_empty() {
            memory.reset();
            let done = memory.within(|| self.update_together(oid, left))?;
            left = &left[done..];
            tries = if done == 0 { tries + 1 } else { 0 };
            if tries == TRIES_MAX {
                return Err(moved(oid));
            }
        }
        Ok(())
    }

    /// Updates the first of these rows, and those that follow as far as the same columns change and they
    /// can be done together; returns how many. 0: the first is to be looked for again.
    fn update_together(&mut self, oid: u32, updates: &[Update]) -> Result<usize> {
        if self.in_order {
            self.show()?;
        }
        let changed = updates[0].changed;
        let mut columns = Columns::of(&self.tables.get(oid)?.attrs, changed);
        let (mut old, mut new, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut highest, mut again) = (0, false);
        self.need_buffers(updates.len());
        for update in updates {
            if update.changed != changed || bytes >= BATCH_BYTES {
                break;
            }
            if !self.find_in_snapshot(oid, &update.identity)? {
                // Perhaps an earlier one brings it forth.
                if !old.is_empty() {
                    break;
                }
                self.find_written(oid, &update.identity)?;
            }
            let table = self.tables.get(oid)?;
            let found = heap::slot_tuple(table.found)?;
            // What was found is what an earlier one changes: the snapshot is to show that first.
            let at = place(&found.tid());
            again = at <= highest && old.iter().any(|tid| place(tid) == at);
            if again {
                break;
            }
            highest = highest.max(at);
            let buffer = &mut self.buffers[old.len()];
            let tuple = columns.replace(table, found, update, &mut self.spans, buffer)?;
            bytes += tuple.bytes();
            old.push(found.tid());
            new.push(tuple);
        }
        heap::slot_clear(self.tables.get(oid)?.found)?;
        let (done, outcome) = self.replace(oid, &mut old, &new, &columns.changed)?;
        if outcome != Outcome::Done {
            self.look_again(outcome)?;
        } else if again {
            self.show_written()?;
        }
        Ok(done)
    }

    /// Replaces the rows at `old` by `new`, in order, in the heap and the indexes; how many, the first ones,
    /// and `Done` or why the next one was not.
    pub(super) fn replace(
        &mut self,
        oid: u32,
        old: &mut [sys::ItemPointerData],
        new: &[Tuple],
        changed: &[bool],
    ) -> Result<(usize, Outcome)> {
        let table = self.tables.get_with_slots(oid, new.len())?;
        let cid = transaction::command_id()?;
        let updated = heap::update_many(table.handle, old, new, cid, changed)?;
        let done = updated.indexes.len();
        self.written |= done > 0;
        // Entries come before anybody looks for these rows: the snapshot does not show them yet.
        for which in [Indexes::All, Indexes::Summarizing] {
            let of_these = updated.indexes.iter().zip(new);
            let mut rows = 0;
            for (_, tuple) in of_these.filter(|(w, _)| **w == which) {
                heap::slot_store(table.slots[rows], *tuple)?;
                rows += 1;
            }
            if rows > 0 {
                insert_index_entries(table, rows, which, Some(changed))?;
            }
            for slot in &table.slots[..rows] {
                heap::slot_clear(*slot)?;
            }
        }
        Ok((done, updated.outcome))
    }
}

/// The place of a row as a number, ascending as in the heap, and never 0.
fn place(tid: &sys::ItemPointerData) -> u64 {
    let block = &tid.ip_blkid;
    u64::from(block.bi_hi) << 32 | u64::from(block.bi_lo) << 16 | u64::from(tid.ip_posid)
}
