//! What capture and apply do with rows: values, slots, the heap's own operations, index entries
//! and searches.

use super::guard::{self, PgError, Result};
use super::relation::{Handle, HashProc, Info, Tuple};
use super::sys;
use std::ffi::{CStr, c_int};

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_hash(
        proc_: *mut sys::FmgrInfo,
        collation: u32,
        value: sys::Datum,
        seed: u64,
        out: *mut u64,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_detoast(value: *mut sys::varlena, out: *mut *mut sys::varlena, e: Edata) -> c_int;
    fn pgr_shim_flat(value: *mut sys::varlena, out: *mut *mut sys::varlena, e: Edata) -> c_int;
    fn pgr_shim_expand_tuple(tuple: Tuple, rel: Handle, out: *mut Tuple, e: Edata) -> c_int;
    fn pgr_shim_slot_tuple(slot: Slot, out: *mut Tuple, e: Edata) -> c_int;
    fn pgr_shim_index_values(
        info: Info,
        slot: Slot,
        estate: *mut sys::EState,
        values: *mut sys::Datum,
        nulls: *mut bool,
        satisfied: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_estate_new(out: *mut *mut sys::EState, e: Edata) -> c_int;
    fn pgr_shim_estate_free(estate: *mut sys::EState, e: Edata) -> c_int;
    fn pgr_shim_index_info_reset(info: Info);
    fn pgr_shim_slot_new(rel: Handle, out: *mut Slot, e: Edata) -> c_int;
    fn pgr_shim_slot_new_buffered(rel: Handle, out: *mut Slot, e: Edata) -> c_int;
    fn pgr_shim_slot_drop(slot: Slot, e: Edata) -> c_int;
    fn pgr_shim_slot_store(slot: Slot, tuple: Tuple, e: Edata) -> c_int;
    fn pgr_shim_slot_clear(slot: Slot, e: Edata) -> c_int;
    fn pgr_shim_heap_insert(rel: Handle, tuple: Tuple, cid: u32, e: Edata) -> c_int;
    fn pgr_shim_heap_multi_insert(
        rel: Handle,
        slots: *mut Slot,
        n: c_int,
        cid: u32,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_heap_delete(
        rel: Handle,
        tid: *mut sys::ItemPointerData,
        cid: u32,
        leaves: bool,
        result: *mut sys::TM_Result,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_modify_tuple(
        tuple: Tuple,
        rel: Handle,
        values: *mut sys::Datum,
        nulls: *mut bool,
        replace: *mut bool,
        out: *mut Tuple,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_heap_update_many(
        rel: Handle,
        old: *mut sys::ItemPointerData,
        new: *const Tuple,
        n: c_int,
        cid: u32,
        changed: *const bool,
        natts: c_int,
        indexes: *mut sys::TU_UpdateIndexes,
        done: *mut c_int,
        result: *mut sys::TM_Result,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_truncate(relations: *const u32, n: c_int, e: Edata) -> c_int;
    fn pgr_shim_fetch(
        rel: Handle,
        tid: *mut sys::ItemPointerData,
        slot: Slot,
        found: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_index_insert(
        index: Handle,
        values: *mut sys::Datum,
        nulls: *mut bool,
        tid: *mut sys::ItemPointerData,
        heap: Handle,
        check: sys::IndexUniqueCheck,
        unchanged: bool,
        info: Info,
        unique: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_btree_insert(
        index: Handle,
        heap: Handle,
        info: Info,
        slots: *const Slot,
        n: c_int,
        check: sys::IndexUniqueCheck,
        unchanged: bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_index_insert_done(index: Handle, info: Info, e: Edata) -> c_int;
    fn pgr_shim_become_owner(rel: Handle, saved: *mut User, e: Edata) -> c_int;
    fn pgr_shim_become_self(saved: *const User, e: Edata) -> c_int;
    fn pgr_shim_context_new(
        under_cache: bool,
        name: *const std::ffi::c_char,
        out: *mut sys::MemoryContext,
        e: Edata,
    ) -> c_int;
}

/// A tuple table slot; valid until it is dropped by whoever made it, or with its context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Slot(pub(super) *mut sys::TupleTableSlot);

impl Slot {
    /// One that PostgreSQL has.
    ///
    /// # Safety
    /// It lives as long as this is used.
    #[must_use]
    pub unsafe fn from_raw(slot: *mut sys::TupleTableSlot) -> Slot {
        Slot(slot)
    }
}

/// What a transaction sees. Valid until the transaction ends, or takes another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Snapshot(pub(super) sys::Snapshot);

/// An error that should never be.
pub fn internal(message: impl Into<String>) -> PgError {
    PgError::new("XX000", message)
}

/* ---------------- memory ---------------- */

/// A memory context of ours; deleted with all that is in it when this is dropped.
pub struct Context(sys::MemoryContext);

impl Context {
    /// Under CacheMemoryContext, which lives as long as the process. `name` must be a constant.
    pub fn under_cache(name: &'static CStr) -> Result<Context> {
        Self::new(true, name)
    }

    /// Under TopMemoryContext: working memory that is reset after each use.
    pub fn scratch(name: &'static CStr) -> Result<Context> {
        Self::new(false, name)
    }

    fn new(under_cache: bool, name: &'static CStr) -> Result<Context> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `name` is static, as MemoryContextCreate wants it.
        guard::call0(|e| unsafe {
            pgr_shim_context_new(under_cache, name.as_ptr(), &raw mut out, e)
        })?;
        Ok(Context(out))
    }

    /// Runs `f` with this as CurrentMemoryContext.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: only this process's main thread touches the variable; `f` doesn't unwind past
        // it, as every call inside is guarded.
        unsafe {
            let old = sys::CurrentMemoryContext;
            sys::CurrentMemoryContext = self.0;
            let result = f();
            sys::CurrentMemoryContext = old;
            result
        }
    }

    /// Frees all that is in it.
    pub fn reset(&self) {
        // SAFETY: a live context; freeing doesn't raise.
        unsafe { sys::MemoryContextReset(self.0) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: a live context that nobody else deletes; freeing doesn't raise.
        unsafe { sys::MemoryContextDelete(self.0) }
    }
}

/* ---------------- values ---------------- */

/// A value's hash, by its type's extended hash function.
pub fn hash(function: HashProc, collation: u32, value: sys::Datum, seed: u64) -> Result<u64> {
    let mut out = 0;
    // SAFETY: the function lives in the type cache; `value` is of its type.
    guard::call0(|e| unsafe {
        pgr_shim_hash(function.0, collation, value, seed, &raw mut out, e)
    })?;
    Ok(out)
}

/// A value that was stored out of line, in line (compressed if it was): its bytes, in the current
/// memory context.
pub fn detoast<'a>(pointer: &[u8]) -> Result<&'a [u8]> {
    let mut out = std::ptr::null_mut();
    // SAFETY: `pointer` is a whole varlena; detoasting doesn't write to it.
    guard::call0(|e| unsafe {
        pgr_shim_detoast(pointer.as_ptr().cast_mut().cast(), &raw mut out, e)
    })?;
    // SAFETY: a varlena in line with a four-byte header; the length comes from it.
    unsafe {
        let head = std::slice::from_raw_parts(out.cast::<u8>(), 4);
        let len = crate::capture::layout::varlena_len(head).unwrap_or(4);
        Ok(std::slice::from_raw_parts(out.cast::<u8>(), len))
    }
}

/// What a value holds, however it is stored, without its header; in the current memory context.
pub fn flat(value: &[u8]) -> Result<&[u8]> {
    let mut out = std::ptr::null_mut();
    // SAFETY: `value` is a whole varlena; detoasting doesn't write to it.
    guard::call0(|e| unsafe { pgr_shim_flat(value.as_ptr().cast_mut().cast(), &raw mut out, e) })?;
    // SAFETY: a varlena with a four-byte header, neither compressed nor elsewhere; the length comes
    // from the header.
    unsafe {
        let head = std::slice::from_raw_parts(out.cast::<u8>(), 4);
        let len = crate::capture::layout::varlena_len(head).unwrap_or(4);
        Ok(std::slice::from_raw_parts(out.cast::<u8>().add(4), len - 4))
    }
}

/// The row with the columns that its table got after it was written.
pub fn expand(tuple: Tuple, rel: Handle) -> Result<Tuple> {
    let mut out = Tuple(std::ptr::null_mut());
    // SAFETY: a tuple of this relation.
    guard::call0(|e| unsafe { pgr_shim_expand_tuple(tuple, rel, &raw mut out, e) })?;
    Ok(out)
}

/// A slot's row as a heap tuple that the slot keeps.
pub fn slot_tuple(slot: Slot) -> Result<Tuple> {
    let mut out = Tuple(std::ptr::null_mut());
    // SAFETY: a live slot.
    guard::call0(|e| unsafe { pgr_shim_slot_tuple(slot, &raw mut out, e) })?;
    Ok(out)
}

/// Executor state, for expressions and predicates of indexes.
pub struct Executor(*mut sys::EState);

impl Executor {
    /// In the current memory context.
    pub fn new() -> Result<Executor> {
        let mut out = std::ptr::null_mut();
        // SAFETY: a plain constructor.
        guard::call0(|e| unsafe { pgr_shim_estate_new(&raw mut out, e) })?;
        Ok(Executor(out))
    }

    /// Frees it; `infos` are all the index information that was used with it.
    pub fn free(self, infos: impl Iterator<Item = Info>) -> Result<()> {
        for info in infos {
            // SAFETY: live index information.
            unsafe { pgr_shim_index_info_reset(info) };
        }
        // SAFETY: made by new(), used no more.
        guard::call0(|e| unsafe { pgr_shim_estate_free(self.0, e) })
    }

    fn raw(executor: Option<&Executor>) -> *mut sys::EState {
        executor.map_or(std::ptr::null_mut(), |x| x.0)
    }
}

/// Values of one index entry.
pub struct IndexValues {
    /// One for each column of the index.
    pub values: [sys::Datum; sys::INDEX_MAX_KEYS as usize],
    /// Which of them are null.
    pub nulls: [bool; sys::INDEX_MAX_KEYS as usize],
}

/// What an index says of the row in `slot`; `None` if the row doesn't meet its predicate.
/// An index with expressions or a predicate needs an executor.
pub fn index_values(
    info: Info,
    slot: Slot,
    executor: Option<&Executor>,
) -> Result<Option<IndexValues>> {
    let mut out = IndexValues {
        values: [0; sys::INDEX_MAX_KEYS as usize],
        nulls: [false; sys::INDEX_MAX_KEYS as usize],
    };
    let mut satisfied = false;
    // SAFETY: the arrays have room for any index.
    guard::call0(|e| unsafe {
        pgr_shim_index_values(
            info,
            slot,
            Executor::raw(executor),
            out.values.as_mut_ptr(),
            out.nulls.as_mut_ptr(),
            &raw mut satisfied,
            e,
        )
    })?;
    Ok(satisfied.then_some(out))
}

/// Whether an index has expressions or a predicate.
#[must_use]
pub fn is_computed(info: Info) -> bool {
    // SAFETY: live index information.
    unsafe { !(*info.0).ii_Expressions.is_null() || !(*info.0).ii_Predicate.is_null() }
}

/// Whether an index only summarizes blocks (BRIN).
#[must_use]
pub fn is_summarizing(info: Info) -> bool {
    // SAFETY: live index information.
    unsafe { (*info.0).ii_Summarizing }
}

/* ---------------- slots ---------------- */

/// A slot for heap tuples in memory.
pub fn slot_new(rel: Handle) -> Result<Slot> {
    let mut out = Slot(std::ptr::null_mut());
    // SAFETY: an open relation.
    guard::call0(|e| unsafe { pgr_shim_slot_new(rel, &raw mut out, e) })?;
    Ok(out)
}

/// A slot for tuples in buffers.
pub fn slot_new_buffered(rel: Handle) -> Result<Slot> {
    let mut out = Slot(std::ptr::null_mut());
    // SAFETY: an open relation.
    guard::call0(|e| unsafe { pgr_shim_slot_new_buffered(rel, &raw mut out, e) })?;
    Ok(out)
}

/// Frees a slot.
pub fn slot_drop(slot: Slot) -> Result<()> {
    // SAFETY: a slot of slot_new, used no more.
    guard::call0(|e| unsafe { pgr_shim_slot_drop(slot, e) })
}

/// Lets a slot point to a tuple, which stays the caller's.
pub fn slot_store(slot: Slot, tuple: Tuple) -> Result<()> {
    // SAFETY: the tuple outlives the slot's use of it.
    guard::call0(|e| unsafe { pgr_shim_slot_store(slot, tuple, e) })
}

/// Empties a slot.
pub fn slot_clear(slot: Slot) -> Result<()> {
    // SAFETY: a live slot.
    guard::call0(|e| unsafe { pgr_shim_slot_clear(slot, e) })
}

/// Where the row in a slot lies.
#[must_use]
pub fn slot_tid(slot: Slot) -> sys::ItemPointerData {
    // SAFETY: a live slot.
    unsafe { (*slot.0).tts_tid }
}

/* ---------------- the heap ---------------- */

/// Inserts a row; its place is in `t_self` then.
pub fn insert(rel: Handle, tuple: Tuple, cid: u32) -> Result<()> {
    // SAFETY: a tuple of this relation in writable memory.
    guard::call0(|e| unsafe { pgr_shim_heap_insert(rel, tuple, cid, e) })
}

/// Inserts many rows; their places are in the slots then.
pub fn insert_many(rel: Handle, slots: &mut [Slot], cid: u32) -> Result<()> {
    // SAFETY: as many live slots as said.
    guard::call0(|e| unsafe {
        pgr_shim_heap_multi_insert(rel, slots.as_mut_ptr(), slots.len() as c_int, cid, e)
    })
}

/// How an update or delete went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Somebody else changed or deleted the row meanwhile, and committed.
    Moved,
    /// This transaction changed or deleted it, after what its snapshot shows.
    Own,
}

/// Which indexes an update needs entries in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Indexes {
    /// None (a HOT update).
    None,
    /// All.
    All,
    /// Those that summarize blocks.
    Summarizing,
}

fn outcome(result: sys::TM_Result) -> Result<Outcome> {
    match result {
        sys::TM_Ok => Ok(Outcome::Done),
        sys::TM_Updated | sys::TM_Deleted => Ok(Outcome::Moved),
        sys::TM_SelfModified => Ok(Outcome::Own),
        other => Err(internal(format!("row can't be changed: TM_Result {other}"))),
    }
}

fn needed(indexes: sys::TU_UpdateIndexes) -> Indexes {
    match indexes {
        sys::TU_All => Indexes::All,
        sys::TU_Summarizing => Indexes::Summarizing,
        _ => Indexes::None,
    }
}

/// How updates of many rows went.
pub struct Updated {
    /// For each that was done, the first ones, which indexes it needs entries in.
    pub indexes: Vec<Indexes>,
    /// `Done` if all are, or why the next one was not.
    pub outcome: Outcome,
}

/// Replaces the rows at `old` by `new`, in order; waits for those who have them locked. In all of them the
/// same columns have `changed`. Works in the current memory context.
pub fn update_many(
    rel: Handle,
    old: &mut [sys::ItemPointerData],
    new: &[Tuple],
    cid: u32,
    changed: &[bool],
) -> Result<Updated> {
    assert_eq!(old.len(), new.len());
    let mut indexes = vec![sys::TU_None; new.len()];
    let (mut done, mut result) = (0, sys::TM_Ok);
    // SAFETY: tuples of this relation in writable memory, as many as places and answers; a flag for each
    // column.
    guard::call0(|e| unsafe {
        pgr_shim_heap_update_many(
            rel,
            old.as_mut_ptr(),
            new.as_ptr(),
            new.len() as c_int,
            cid,
            changed.as_ptr(),
            changed.len() as c_int,
            indexes.as_mut_ptr(),
            &raw mut done,
            &raw mut result,
            e,
        )
    })?;
    let done = indexes.into_iter().take(done as usize);
    Ok(Updated {
        indexes: done.map(needed).collect(),
        outcome: outcome(result)?,
    })
}

/// Deletes the row at `tid`; waits for those who have it locked. If it `leaves` for another
/// partition, those who wait for it are told.
pub fn delete(
    rel: Handle,
    mut tid: sys::ItemPointerData,
    cid: u32,
    leaves: bool,
) -> Result<Outcome> {
    let mut result = sys::TM_Ok;
    // SAFETY: an open relation.
    guard::call0(|e| unsafe {
        pgr_shim_heap_delete(rel, &raw mut tid, cid, leaves, &raw mut result, e)
    })?;
    outcome(result)
}

/// A copy of a row with some columns replaced, in the current memory context.
pub fn modify(
    tuple: Tuple,
    rel: Handle,
    values: &mut [sys::Datum],
    nulls: &mut [bool],
    replace: &mut [bool],
) -> Result<Tuple> {
    let mut out = Tuple(std::ptr::null_mut());
    // SAFETY: the caller's slices have an element for each column.
    guard::call0(|e| unsafe {
        pgr_shim_modify_tuple(
            tuple,
            rel,
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
            replace.as_mut_ptr(),
            &raw mut out,
            e,
        )
    })?;
    Ok(out)
}

/// Truncates relations together, under ACCESS EXCLUSIVE locks. Nobody in this process has them open.
pub fn truncate(relations: &[u32]) -> Result<()> {
    // SAFETY: as many OIDs as said.
    guard::call0(|e| unsafe { pgr_shim_truncate(relations.as_ptr(), relations.len() as c_int, e) })
}

/// Brings the row at `tid`, committed or not, into a buffered slot; false if there is none.
pub fn fetch(rel: Handle, mut tid: sys::ItemPointerData, slot: Slot) -> Result<bool> {
    let mut found = false;
    // SAFETY: an open relation and a live slot.
    guard::call0(|e| unsafe { pgr_shim_fetch(rel, &raw mut tid, slot, &raw mut found, e) })?;
    Ok(found)
}

/* ---------------- indexes ---------------- */

/// How strictly a new index entry is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UniqueCheck {
    /// Not at all.
    No,
    /// At once.
    Now,
    /// Later; false is returned if there may be a duplicate.
    Later,
    /// The entry exists: the check that was put off.
    Existing,
}

impl UniqueCheck {
    fn raw(self) -> sys::IndexUniqueCheck {
        match self {
            UniqueCheck::No => sys::UNIQUE_CHECK_NO,
            UniqueCheck::Now => sys::UNIQUE_CHECK_YES,
            UniqueCheck::Later => sys::UNIQUE_CHECK_PARTIAL,
            UniqueCheck::Existing => sys::UNIQUE_CHECK_EXISTING,
        }
    }
}

/// Puts an entry into an index. With `unchanged` the row had the same key before. False: there may be a duplicate (only with `Later`).
pub fn index_insert(
    index: Handle,
    entry: &mut IndexValues,
    mut tid: sys::ItemPointerData,
    heap: Handle,
    check: UniqueCheck,
    unchanged: bool,
    info: Info,
) -> Result<bool> {
    let mut unique = false;
    // SAFETY: the arrays have room for any index.
    guard::call0(|e| unsafe {
        pgr_shim_index_insert(
            index,
            entry.values.as_mut_ptr(),
            entry.nulls.as_mut_ptr(),
            &raw mut tid,
            heap,
            check.raw(),
            unchanged,
            info,
            &raw mut unique,
            e,
        )
    })?;
    Ok(unique)
}

/// Puts entries of the rows in these slots into a B-tree without expressions and predicate, checked at
/// once or (`No`) where no other row can have these keys. Works in the current memory context.
pub fn btree_insert(
    index: Handle,
    slots: &[Slot],
    heap: Handle,
    check: UniqueCheck,
    unchanged: bool,
    info: Info,
) -> Result<()> {
    // SAFETY: as many live slots as said; an open index of the open table.
    guard::call0(|e| unsafe {
        pgr_shim_btree_insert(
            index,
            heap,
            info,
            slots.as_ptr(),
            slots.len() as c_int,
            check.raw(),
            unchanged,
            e,
        )
    })
}

/// After the last index_insert of a transaction: some access methods keep buffers from one to the
/// next.
pub fn index_insert_done(index: Handle, info: Info) -> Result<()> {
    // SAFETY: an open index and its information.
    guard::call0(|e| unsafe { pgr_shim_index_insert_done(index, info, e) })
}

/* ---------------- a table's owner ---------------- */

/// `PgrUser` of shim_heap.h.
#[repr(C)]
struct User {
    user: u32,
    context: c_int,
    guc_level: c_int,
}

/// Runs `f` as the owner of `rel`, in a restricted context with a fixed search_path: what `f`
/// computes may call functions that the owner wrote. After an error the end of the transaction
/// restores who we are.
pub fn as_owner<T>(rel: Handle, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut saved = User {
        user: 0,
        context: 0,
        guc_level: 0,
    };
    // SAFETY: an open relation.
    guard::call0(|e| unsafe { pgr_shim_become_owner(rel, &raw mut saved, e) })?;
    let result = f()?;
    // SAFETY: `saved` is from just before.
    guard::call0(|e| unsafe { pgr_shim_become_self(&raw const saved, e) })?;
    Ok(result)
}
