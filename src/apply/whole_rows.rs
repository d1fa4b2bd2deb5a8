//! Changes of rows that nothing names but all that they hold.
//!
//! Of equal rows any is as good as another: what counts is how many there are. So changes of one table
//! that follow each other are gathered to a run, and done in the order in which a scan meets their
//! rows: one scan of the table for all of them, or where an index serves, one of each part of it. A run
//! ends before a change of a row that the run itself may bring forth.

use super::rows::{Applier, Change, TRIES_MAX, check, missing, moved};
use super::tables::Table;
use super::updates::Update;
use crate::capture::hash::Digest;
use crate::capture::image::{self, Values};
use crate::capture::layout::{self, Attr, Span};
use crate::changeset::tuple::TupleBytes;
use crate::pg::guard::Result;
use crate::pg::heap::{self, Outcome, Slot, internal};
use crate::pg::scan::TableScan;
use crate::pg::sys::Datum;
use crate::pg::tuple::{self, TupleBuffer};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Bytes of a value beyond which only its length tells rows apart at first: most that are longer are
/// compressed or stored elsewhere, and a scan should not read them.
const WHOLE_MAX: usize = 2000;

/// Changes that follow each other, of rows of one table.
#[derive(Default)]
pub struct Run<'c> {
    relation: u32,
    /// The row before, and what becomes of it.
    changes: Vec<(TupleBytes<'c>, Change<'c>)>,
    /// Marks of the rows that these changes leave behind.
    results: HashSet<u64>,
}

/// What of a run is still to be done, by the marks of the rows.
type Left = HashMap<u64, VecDeque<usize>>;

/// Equal rows have equal marks.
fn mark<'a>(attrs: &[Attr], row: Values<'a>) -> Result<u64> {
    image::digest(Digest::new(), attrs, row, WHOLE_MAX, heap::flat)
}

impl Applier<'_> {
    /// A change of a row of a table without an identity.
    pub(super) fn change_whole<'c>(
        &mut self,
        oid: u32,
        old: TupleBytes<'c>,
        change: Change<'c>,
        run: &mut Run<'c>,
    ) -> Result<()> {
        let memory = self.memory;
        memory.reset();
        let (table, mut spans) = (self.tables.get(oid)?, Vec::new());
        check(&table.attrs, &old, &mut spans)?;
        let before = Values {
            spans: &spans,
            data: old.data,
        };
        let found = memory.within(|| mark(&table.attrs, before))?;
        let result = match &change {
            Change::Update(_) => Some(memory.within(|| after(table, before, &change))?),
            Change::Delete { .. } => None,
        };
        let in_order = table.is_unique && result.is_some();
        if run.relation != oid || run.results.contains(&found) || in_order {
            self.finish_run(run)?;
        }
        run.relation = oid;
        run.changes.push((old, change));
        run.results.extend(result);
        if in_order {
            self.finish_run(run)
        } else {
            Ok(())
        }
    }

    /// Does what has been gathered.
    pub fn finish_run(&mut self, run: &mut Run<'_>) -> Result<()> {
        if run.changes.is_empty() {
            return Ok(());
        }
        let run = std::mem::take(run);
        let oid = run.relation;
        self.show_written()?;
        // Parts of the index, by the values that are looked for, in the order of the changes.
        let mut parts: BTreeMap<Vec<Option<&[u8]>>, Vec<usize>> = BTreeMap::new();
        for (at, (old, _)) in run.changes.iter().enumerate() {
            let values = sought(self.tables.get(oid)?, old)?.unwrap_or_default();
            parts.entry(values).or_default().push(at);
        }
        for (values, changes) in parts {
            self.do_part(&run, &values, changes)?;
        }
        Ok(())
    }

    /// Does those changes of a run whose rows have these values in the columns of the index, or
    /// without values any.
    fn do_part(
        &mut self,
        run: &Run<'_>,
        values: &[Option<&[u8]>],
        changes: Vec<usize>,
    ) -> Result<()> {
        let (oid, memory) = (run.relation, self.memory);
        // A row with these values, where they are aligned.
        let mut buffer = TupleBuffer::new();
        let first = &run.changes[changes[0]].0;
        let mut spans = Vec::new();
        let table = self.tables.get(oid)?;
        check(&table.attrs, first, &mut spans)?;
        let aligned = buffer.form(oid, first.natts, first.bitmap, first.data, true);
        let aligned = tuple::row(aligned).data;
        let datums: Vec<_> = if values.is_empty() {
            Vec::new()
        } else {
            let columns = table
                .finder
                .as_ref()
                .map_or(&[][..], |f| f.columns.as_slice());
            let column = |c: &u16| {
                let i = usize::from(*c);
                let value = spans[i].of(aligned);
                value.map(|bytes| tuple::datum(table.attrs[i], bytes))
            };
            columns.iter().map(column).collect()
        };
        let mut left = Left::new();
        for at in changes {
            let old = &run.changes[at].0;
            let row = values_of(self.tables.get(oid)?, old, &mut spans)?;
            memory.reset();
            let mark = memory.within(|| mark(&self.tables.get(oid)?.attrs, row))?;
            left.entry(mark).or_default().push_back(at);
        }
        for _ in 0..TRIES_MAX {
            let moved = if datums.is_empty() {
                self.look_through_table(run, &mut left)?
            } else {
                self.look_through_index(run, &datums, &mut left)?
            };
            if left.is_empty() {
                return Ok(());
            }
            if !moved {
                return Err(missing(oid));
            }
            self.look_again(Outcome::Moved)?;
        }
        Err(moved(oid))
    }

    /// Changes the rows that an index has under these values; whether one moved meanwhile.
    fn look_through_index(
        &mut self,
        run: &Run<'_>,
        values: &[Option<Datum>],
        left: &mut Left,
    ) -> Result<bool> {
        let mut any_moved = false;
        let mut found = self.tables.find(run.relation, values, self.snapshot)?;
        while found {
            any_moved |= self.meet(run, left)? == Some(Outcome::Moved);
            found = !left.is_empty() && self.tables.find_next(run.relation)?;
        }
        Ok(any_moved)
    }

    /// The same in the whole table, from where a row was found last.
    fn look_through_table(&mut self, run: &Run<'_>, left: &mut Left) -> Result<bool> {
        let table = self.tables.get(run.relation)?;
        let (slot, mut any_moved) = (table.found, false);
        let mut scan = TableScan::begin(table.handle, self.snapshot, table.last_block)?;
        while !left.is_empty() && scan.next(slot)? {
            let block = heap::slot_tid(slot).ip_blkid;
            let outcome = self.meet(run, left)?;
            any_moved |= outcome == Some(Outcome::Moved);
            if outcome == Some(Outcome::Done) {
                let table = self.tables.get(run.relation)?;
                table.last_block = u32::from(block.bi_hi) << 16 | u32::from(block.bi_lo);
            }
        }
        heap::slot_clear(slot)?;
        scan.end()?;
        Ok(any_moved)
    }

    /// A scan has met the row in the table's `found` slot: does what is to be done to one like it.
    fn meet(&mut self, run: &Run<'_>, left: &mut Left) -> Result<Option<Outcome>> {
        let memory = self.memory;
        memory.reset();
        memory.within(|| {
            let table = self.tables.get(run.relation)?;
            let mut spans = Vec::new();
            let row = found_row(table, table.found, &mut spans)?;
            let mark = mark(&table.attrs, row)?;
            let Some(waiting) = left.get_mut(&mark) else {
                return Ok(None);
            };
            let mut theirs = Vec::new();
            let mut which = None;
            for (n, at) in waiting.iter().enumerate() {
                let old = values_of(table, &run.changes[*at].0, &mut theirs)?;
                if image::same(&table.attrs, row, old, heap::flat)? {
                    which = Some(n);
                    break;
                }
            }
            let Some(n) = which else {
                return Ok(None);
            };
            let outcome = self.change_found(run.relation, &run.changes[waiting[n]].1)?;
            if outcome == Outcome::Done {
                waiting.remove(n);
                if waiting.is_empty() {
                    left.remove(&mark);
                }
            }
            Ok(Some(outcome))
        })
    }
}

/// The values by which a row is looked for in the table's index; `None` if none serves.
fn sought<'c>(table: &Table, row: &TupleBytes<'c>) -> Result<Option<Vec<Option<&'c [u8]>>>> {
    let Some(finder) = &table.finder else {
        return Ok(None);
    };
    let mut spans = Vec::new();
    check(&table.attrs, row, &mut spans)?;
    let columns = finder.columns.iter();
    let values: Vec<_> = columns
        .map(|c| spans[usize::from(*c)].of(row.data))
        .collect();
    let serves = finder.nulls || values.iter().all(Option::is_some);
    Ok(serves.then_some(values))
}

/// Where the values of a row lie that came from another member.
fn values_of<'a>(
    table: &Table,
    row: &TupleBytes<'a>,
    spans: &'a mut Vec<Span>,
) -> Result<Values<'a>> {
    check(&table.attrs, row, spans)?;
    let data = row.data;
    Ok(Values { spans, data })
}

/// The row in a slot, with all columns that its table has now.
fn found_row<'a>(table: &Table, slot: Slot, spans: &'a mut Vec<Span>) -> Result<Values<'a>> {
    let mut row = tuple::row(heap::slot_tuple(slot)?);
    if row.natts < table.attrs.len() {
        row = tuple::row(heap::expand(heap::slot_tuple(slot)?, table.handle)?);
    }
    layout::walk(&table.attrs, row.natts, row.bitmap, row.data, spans)
        .map_err(|e| internal(format!("row of relation {}: {e}", table.oid)))?;
    let data = row.data;
    Ok(Values { spans, data })
}

/// Mark of the row that an update leaves behind.
fn after(table: &Table, before: Values, change: &Change) -> Result<u64> {
    let Change::Update(Update { changed, new, .. }) = change else {
        return Ok(0);
    };
    let mut spans = Vec::new();
    check(&table.attrs, new, &mut spans)?;
    let mut writer = layout::Writer::new();
    for (i, attr) in table.attrs.iter().enumerate() {
        writer.push(
            *attr,
            if changed.has(i) {
                spans[i].of(new.data)
            } else {
                before.spans[i].of(before.data)
            },
        );
    }
    let natts = table.attrs.len();
    layout::walk(
        &table.attrs,
        natts,
        writer.bitmap(),
        writer.data(),
        &mut spans,
    )
    .map_err(|e| internal(e.to_string()))?;
    let row = Values {
        spans: &spans,
        data: writer.data(),
    };
    mark(&table.attrs, row)
}
