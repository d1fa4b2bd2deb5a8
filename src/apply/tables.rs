//! Tables that a helper has open: relations, index information, slots and searches, kept over
//! transactions. Only locks are taken anew in each.
//!
//! Everything here is owned by one resource owner and one memory context of the helper. After an
//! error, or when the definition of any of them changed, all of it is dropped at once and opened
//! again as needed: no state is ever repaired.

use crate::capture::layout::Attr;
use crate::pg::guard::Result;
use crate::pg::heap::{self, Context, Executor, Slot, Snapshot, internal};
use crate::pg::owner::Owner;
use crate::pg::relation::{self, Handle, Info};
use crate::pg::scan::{Finger, Search};
use crate::pg::sys;
use crate::pg::trigger::{self, Triggers};
use std::cell::Cell;
use std::collections::BTreeMap;

/// Rows that go to the heap, and to the indexes, together.
pub const BATCH_ROWS: usize = 512;

/// Bytes of rows from which on a batch takes no more.
pub const BATCH_BYTES: usize = 256 * 1024;

/// An index of an open table.
pub struct Index {
    /// Open.
    pub handle: Handle,
    /// For FormIndexDatum and index_insert.
    pub info: Info,
    /// Entries are unique.
    pub unique: bool,
    /// ... at once; else at the end of the transaction.
    pub immediate: bool,
    /// It has expressions or a predicate.
    pub computed: bool,
    /// It only summarizes blocks.
    pub summarizing: bool,
    /// It takes entries of many rows at a time.
    pub many: bool,
    /// Columns (from 0) that its key consists of, if it has no expressions.
    keys: Vec<u16>,
}

impl Index {
    /// Whether a row has the same key as before if only these columns `changed`.
    pub fn keeps_key(&self, changed: &[bool]) -> bool {
        !self.computed && !self.keys.iter().any(|c| changed[usize::from(*c)])
    }
}

/// The index in which rows are looked for.
pub struct Finder {
    /// One of the table's.
    index: Handle,
    /// Columns (from 0) by which it is searched, in its order.
    pub columns: Vec<u16>,
    /// Rows with nulls there can be looked for.
    pub nulls: bool,
}

/// An open table.
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// Open.
    pub handle: Handle,
    /// Storage of its columns.
    pub attrs: Vec<Attr>,
    /// Of the row layout, to be compared with the origin's.
    pub fingerprint: u64,
    /// All of them.
    pub indexes: Vec<Index>,
    /// Rows are named by the columns of `finder`; else by all that they hold.
    pub has_identity: bool,
    /// If any index serves.
    pub finder: Option<Finder>,
    /// The order of changes counts: some index has each checked against the others at once.
    pub is_unique: bool,
    /// Where a row was found last by looking through the whole table.
    pub last_block: u32,
    /// Triggers fire for its rows where they are applied.
    pub has_triggers: bool,
    /// Those, once one was to be fired in the current transaction.
    pub triggers: Option<Triggers>,
    /// Rows about to go to the heap; the first also serves single rows.
    pub slots: Vec<Slot>,
    /// The row that a search found.
    pub found: Slot,
    /// For indexes with expressions or predicates.
    pub executor: Option<Executor>,
    finger: Option<Finger>,
    search: Option<Search>,
    /// Serial number of the transaction that has it locked.
    locked_in: u64,
}

/// All tables that this helper has open.
pub struct Tables {
    open: BTreeMap<u32, Box<Table>>,
    owner: Owner,
    context: Context,
    /// Serial number of the current transaction.
    transaction: u64,
    /// It has given relations new files.
    new_files: bool,
    changes_seen: u64,
}

thread_local! {
    /// Counts changes of relations' definitions.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// Relcache callback.
extern "C" fn changed(_arg: sys::Datum, _relation: sys::Oid) {
    CHANGES.set(CHANGES.get() + 1);
}

impl Tables {
    /// Nothing open yet. Once a process.
    pub fn new() -> Result<Tables> {
        relation::on_change(Some(changed))?;
        Ok(Tables {
            open: BTreeMap::new(),
            owner: Owner::new()?,
            context: Context::under_cache(c"pgr helper tables")?,
            transaction: 0,
            new_files: false,
            changes_seen: CHANGES.get(),
        })
    }

    /// Nothing is kept from earlier transactions.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A transaction has begun: locks are to be taken anew.
    pub fn begin(&mut self) {
        self.transaction += 1;
        self.new_files = false;
    }

    /// The current transaction is about to give relations new files, and those of their indexes, which nobody
    /// may have open.
    pub fn replace_files(&mut self) -> Result<()> {
        self.rest()?;
        self.new_files = true;
        self.forget()
    }

    /// Before the end of a transaction, which settles which files relations have: nobody may have those open
    /// that got new ones.
    pub fn settle_files(&mut self) -> Result<()> {
        if self.new_files {
            self.forget()
        } else {
            Ok(())
        }
    }

    /// The table, open and locked until the end of the transaction.
    pub fn get(&mut self, oid: u32) -> Result<&mut Table> {
        // Locking processes invalidations, so the definition is looked at after it.
        if self
            .open
            .get(&oid)
            .is_none_or(|t| t.locked_in != self.transaction)
        {
            relation::lock(oid, sys::RowExclusiveLock as i32)?;
            if CHANGES.get() != self.changes_seen {
                // What this transaction has used already keeps its meaning: it is locked.
                self.rest()?;
                self.forget()?;
            }
        }
        if !self.open.contains_key(&oid) {
            let table = self.open(oid)?;
            self.open.insert(oid, Box::new(table));
        }
        let transaction = self.transaction;
        let table = self
            .open
            .get_mut(&oid)
            .ok_or_else(|| internal("table is gone"))?;
        table.locked_in = transaction;
        Ok(table)
    }

    /// Opens a table that is locked.
    fn open(&self, oid: u32) -> Result<Table> {
        let keep = |f: &dyn Fn() -> Result<Option<Handle>>| self.owner.within(f);
        let handle = keep(&|| relation::open(oid, 0))?
            .ok_or_else(|| internal(format!("relation {oid} does not exist here")))?;
        let mut indexes = Vec::new();
        for index in relation::indexes(handle)? {
            // The lock is the transaction's. Without one, in later transactions, the index can
            // still not go away while the table is locked.
            relation::lock(index, sys::RowExclusiveLock as i32)?;
            indexes.extend(keep(&|| relation::open(index, 0))?.map(|handle| (index, handle)));
        }
        self.owner
            .within(|| self.context.within(|| describe(oid, handle, indexes)))
    }

    /// As [`Tables::get`], with at least `n` slots.
    pub fn get_with_slots(&mut self, oid: u32, n: usize) -> Result<&mut Table> {
        if self.get(oid)?.slots.len() < n {
            let (owner, context) = (&self.owner, &self.context);
            if let Some(table) = self.open.get_mut(&oid) {
                while table.slots.len() < n {
                    let handle = table.handle;
                    let slot = owner.within(|| context.within(|| heap::slot_new(handle)))?;
                    table.slots.push(slot);
                }
            }
        }
        self.get(oid)
    }

    /// Finds a row with these values in the columns of the table's `finder`, as `snapshot` sees it,
    /// into the table's `found` slot.
    pub fn find(
        &mut self,
        oid: u32,
        values: &[Option<sys::Datum>],
        snapshot: Snapshot,
    ) -> Result<bool> {
        let Some(table) = self.open.get_mut(&oid) else {
            return Err(internal("search in a table that is not open"));
        };
        let found = table.found;
        if let Some(finger) = &mut table.finger
            && let Some(answer) = finger.find(values, snapshot, found)?
        {
            return Ok(answer);
        }
        let search = match &mut table.search {
            Some(search) => search,
            none => {
                let Some(finder) = &table.finder else {
                    return Err(internal("search in a table without an index for it"));
                };
                let (handle, index, nkeys) = (table.handle, finder.index, finder.columns.len());
                none.insert(self.owner.within(|| {
                    self.context
                        .within(|| Search::begin(handle, index, nkeys, snapshot))
                })?)
            }
        };
        // What a search allocates as it goes lives as long as the search.
        self.context.within(|| search.find(values, snapshot, found))
    }

    /// The next row after that of `find`.
    pub fn find_next(&mut self, oid: u32) -> Result<bool> {
        let table = self.open.get_mut(&oid);
        let Some((found, search)) = table.and_then(|t| Some((t.found, t.search.as_mut()?))) else {
            return Err(internal("a search goes on that did not begin"));
        };
        self.context.within(|| search.next(found))
    }

    /// Before the end of a transaction: lets go of all buffers.
    pub fn rest(&mut self) -> Result<()> {
        for table in self
            .open
            .values_mut()
            .filter(|t| t.locked_in == self.transaction)
        {
            heap::slot_clear(table.slots[0])?;
            if let Some(triggers) = table.triggers.take() {
                triggers.close()?;
            }
            heap::slot_clear(table.found)?;
            if let Some(finger) = &table.finger {
                finger.rest()?;
            }
            if let Some(search) = &table.search {
                search.rest()?;
            }
            for index in &table.indexes {
                heap::index_insert_done(index.handle, index.info)?;
            }
        }
        Ok(())
    }

    /// Closes everything; after an error, or when something changed.
    pub fn forget(&mut self) -> Result<()> {
        self.changes_seen = CHANGES.get();
        self.open.clear();
        self.owner.renew()?;
        self.context.reset();
        Ok(())
    }
}

/// What is kept of a table and its indexes, all of them open.
fn describe(oid: u32, handle: Handle, indexes: Vec<(u32, Handle)>) -> Result<Table> {
    let columns = relation::columns(handle);
    let identity = relation::identity_index(handle)?;
    let mut table = Table {
        oid,
        handle,
        attrs: columns.iter().map(|c| c.attr).collect(),
        fingerprint: relation::fingerprint(&columns),
        indexes: Vec::new(),
        has_identity: identity.is_some(),
        finder: None,
        is_unique: false,
        last_block: 0,
        has_triggers: trigger::is_fired(handle, false),
        triggers: None,
        slots: vec![heap::slot_new(handle)?],
        found: heap::slot_new_buffered(handle)?,
        executor: None,
        finger: None,
        search: None,
        locked_in: 0,
    };
    let mut best = (false, 0);
    for (index_oid, index) in indexes {
        let form = relation::index_form(index);
        if !form.indisready {
            relation::close(index, 0)?;
            continue;
        }
        let info = relation::index_info(index)?;
        let computed = heap::is_computed(info);
        // Of those that serve rows without an identity, the one that tells most of them apart.
        let rank = (form.indisunique, form.indnkeyatts);
        if Some(index_oid) == identity
            || identity.is_none() && rank > best && !computed && finds_rows(index)
        {
            best = rank;
            table.finder = Some(finder(index));
        }
        if Some(index_oid) == identity {
            table.finger = Finger::new(handle, index)?;
        }
        table.is_unique |= form.indisunique && form.indimmediate;
        if computed && table.executor.is_none() {
            table.executor = Some(Executor::new()?);
        }
        let is_btree = relation::form(index).relam == sys::BTREE_AM_OID;
        table.indexes.push(Index {
            handle: index,
            info,
            many: is_btree && !computed,
            keys: key_columns(index),
            unique: form.indisunique,
            immediate: form.indimmediate,
            computed,
            summarizing: heap::is_summarizing(info),
        });
    }
    Ok(table)
}

/// Columns (from 0) of an index's key that are not expressions.
fn key_columns(index: Handle) -> Vec<u16> {
    let columns = relation::index_columns(index);
    let keys = &columns[..relation::index_form(index).indnkeyatts as usize];
    keys.iter()
        .filter_map(|k| u16::try_from(*k).ok()?.checked_sub(1))
        .collect()
}

fn finder(index: Handle) -> Finder {
    Finder {
        index,
        columns: key_columns(index),
        nulls: relation::form(index).relam == sys::BTREE_AM_OID,
    }
}

/// Whether every row that the snapshot of a helper shows can be found in an index by equality of its
/// columns, all of which are the table's.
fn finds_rows(index: Handle) -> bool {
    let form = relation::index_form(index);
    form.indisvalid
        && !form.indcheckxmin
        && [sys::BTREE_AM_OID, sys::HASH_AM_OID].contains(&relation::form(index).relam)
}
