//! Relations and indexes: opening, what their catalogs say, values of index columns.

use super::guard::{self, Result};
use super::sys;
use crate::capture::hash::Digest;
use crate::capture::layout::Attr;
use std::ffi::{CStr, c_char, c_int};

/// `PgrAttribute` of shim_heap.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct PgrAttribute {
    typid: u32,
    typmod: i32,
    len: i16,
    align: c_char,
    by_value: bool,
    dropped: bool,
}

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_attribute(rel: Handle, i: c_int, out: *mut PgrAttribute);
    fn pgr_shim_relation_open(oid: u32, mode: c_int, out: *mut sys::Relation, e: Edata) -> c_int;
    fn pgr_shim_relation_close(rel: Handle, mode: c_int, e: Edata) -> c_int;
    fn pgr_shim_identity_index(rel: Handle, out: *mut u32, e: Edata) -> c_int;
    fn pgr_shim_index_list(rel: Handle, out: *mut *mut sys::List, e: Edata) -> c_int;
    fn pgr_shim_index_definition(rel: Handle, out: *mut *mut c_char, e: Edata) -> c_int;
    fn pgr_shim_index_hash(
        index: Handle,
        column: c_int,
        typid: u32,
        out: *mut *mut sys::FmgrInfo,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_index_search(
        index: Handle,
        column: c_int,
        strategy: *mut u16,
        proc_: *mut u32,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_index_info(index: Handle, out: *mut Info, e: Edata) -> c_int;
    fn pgr_shim_lock_relation(oid: u32, mode: c_int, e: Edata) -> c_int;
    fn pgr_shim_relation_name(oid: u32, out: *mut *mut c_char, e: Edata) -> c_int;
    fn pgr_shim_relation_kind(
        oid: u32,
        persistence: *mut c_char,
        kind: *mut c_char,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_inheritors(oid: u32, out: *mut *mut sys::List, e: Edata) -> c_int;
    fn pgr_shim_on_relcache(callback: sys::RelcacheCallbackFunction, e: Edata) -> c_int;
}

/// An open relation or index. Valid while it is open; who opened it closes it, or the end of the
/// transaction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Handle(sys::Relation);

impl Handle {
    /// One that PostgreSQL has open.
    ///
    /// # Safety
    /// It is open, and stays so as long as the handle is used.
    #[must_use]
    pub unsafe fn from_raw(relation: sys::Relation) -> Handle {
        Handle(relation)
    }
}

/// What FormIndexDatum and index_insert know of an index; valid as long as its memory context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Info(pub(super) *mut sys::IndexInfo);

/// A tuple in memory of its owner: a buffer that is pinned, a slot, or a memory context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Tuple(pub(super) sys::HeapTuple);

impl Tuple {
    /// One that PostgreSQL has.
    ///
    /// # Safety
    /// It is a heap tuple that stays in place as long as this, or its row, is used.
    #[must_use]
    pub unsafe fn from_raw(tuple: sys::HeapTuple) -> Tuple {
        Tuple(tuple)
    }

    /// Its length, with its header.
    #[must_use]
    pub fn bytes(self) -> usize {
        // SAFETY: a live tuple.
        unsafe { (*self.0).t_len as usize }
    }

    /// Where it lies in the heap; set once it is there.
    #[must_use]
    pub fn tid(self) -> sys::ItemPointerData {
        // SAFETY: a live tuple.
        unsafe { (*self.0).t_self }
    }
}

/// One column, as far as the layout of rows and keys depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its storage.
    pub attr: Attr,
    /// Type, 0 for a dropped column.
    pub typid: u32,
    /// Type modifier.
    pub typmod: i32,
}

/// Opens a relation or index by OID and takes `mode` (0: the caller has a lock); `None` if it
/// doesn't exist (any more).
pub fn open(oid: u32, mode: i32) -> Result<Option<Handle>> {
    let mut out: sys::Relation = std::ptr::null_mut();
    // SAFETY: all pointers are to live locals.
    guard::call0(|e| unsafe { pgr_shim_relation_open(oid, mode, &raw mut out, e) })?;
    Ok((!out.is_null()).then_some(Handle(out)))
}

/// Locks a relation until the end of the transaction, and processes pending invalidations.
pub fn lock(oid: u32, mode: i32) -> Result<()> {
    // SAFETY: plain integers.
    guard::call0(|e| unsafe { pgr_shim_lock_relation(oid, mode, e) })
}

/// Closes it; with mode 0 the lock stays until the end of the transaction.
pub fn close(rel: Handle, mode: i32) -> Result<()> {
    // SAFETY: the caller opened it.
    guard::call0(|e| unsafe { pgr_shim_relation_close(rel, mode, e) })
}

/// OID of an open relation.
#[must_use]
pub fn oid(rel: Handle) -> u32 {
    // SAFETY: an open relation's descriptor.
    unsafe { (*rel.0).rd_id }
}

/// Name of an open relation, for messages.
#[must_use]
pub fn name(rel: Handle) -> String {
    // SAFETY: rd_rel is set for every open relation; relname is NUL terminated.
    unsafe {
        CStr::from_ptr((*(*rel.0).rd_rel).relname.data.as_ptr())
            .to_string_lossy()
            .into_owned()
    }
}

/// Name of any relation, for messages; `None` if it can't be looked up.
#[must_use]
pub fn name_of(oid: u32) -> Option<String> {
    let mut out: *mut c_char = std::ptr::null_mut();
    // SAFETY: writes to a live local.
    guard::call0(|e| unsafe { pgr_shim_relation_name(oid, &raw mut out, e) }).ok()?;
    if out.is_null() {
        return None;
    }
    // SAFETY: a NUL terminated string, palloc'd in the current context.
    Some(
        unsafe { CStr::from_ptr(out) }
            .to_string_lossy()
            .into_owned(),
    )
}

/// The `pg_class` row of an open relation.
#[must_use]
pub fn form<'a>(rel: Handle) -> &'a sys::FormData_pg_class {
    // SAFETY: rd_rel is set for every open relation and lives as long as it is open.
    unsafe { &*(*rel.0).rd_rel }
}

/// The `pg_index` row of an open index.
#[must_use]
pub fn index_form<'a>(index: Handle) -> &'a sys::FormData_pg_index {
    // SAFETY: rd_index is set for every open index and lives as long as it is open.
    unsafe { &*(*index.0).rd_index }
}

/// Columns of an open relation or index, dropped ones included.
#[must_use]
pub fn columns(rel: Handle) -> Vec<Column> {
    // SAFETY: rd_att is set for every open relation.
    let natts = unsafe { (*(*rel.0).rd_att).natts };
    (0..natts)
        .map(|i| {
            // SAFETY: integers only; the shim fills it for an i below natts.
            let mut a: PgrAttribute = unsafe { std::mem::zeroed() };
            // SAFETY: see above.
            unsafe { pgr_shim_attribute(rel, i, &raw mut a) };
            let align = match a.align as u8 {
                b'd' => 8,
                b'i' => 4,
                b's' => 2,
                _ => 1,
            };
            let attr = Attr {
                len: a.len,
                align,
                by_value: a.by_value,
                dropped: a.dropped,
            };
            Column {
                attr,
                typid: a.typid,
                typmod: a.typmod,
            }
        })
        .collect()
}

/// Digest of all that a row's bytes depend on.
#[must_use]
pub fn fingerprint(columns: &[Column]) -> u64 {
    let mut digest = Digest::new().number(columns.len() as u64);
    for (i, c) in columns.iter().enumerate() {
        digest = digest
            .number(i as u64)
            .number(u64::from(c.typid))
            .number(u64::from(c.typmod as u32))
            .number(u64::from(c.attr.len as u16))
            .number(u64::from(c.attr.align))
            .number(u64::from(c.attr.by_value) | u64::from(c.attr.dropped) << 1);
    }
    digest.finish()
}

/// The index that names rows, at the origin and where changes are applied: what REPLICA IDENTITY
/// USING INDEX says, or else the primary key, if it is checked at once.
pub fn identity_index(rel: Handle) -> Result<Option<u32>> {
    let mut out = 0;
    // SAFETY: an open relation.
    guard::call0(|e| unsafe { pgr_shim_identity_index(rel, &raw mut out, e) })?;
    Ok((out != 0).then_some(out))
}

/// OIDs of a relation's indexes, in OID order.
pub fn indexes(rel: Handle) -> Result<Vec<u32>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: an open relation.
    guard::call0(|e| unsafe { pgr_shim_index_list(rel, &raw mut list, e) })?;
    // SAFETY: the answer is a list of OIDs.
    Ok(unsafe { oids(list) })
}

/// OIDs of the relations below one, which are not locked, and its own.
pub fn inheritors(oid: u32) -> Result<Vec<u32>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: writes to a live local.
    guard::call0(|e| unsafe { pgr_shim_inheritors(oid, &raw mut list, e) })?;
    // SAFETY: the answer is a list of OIDs.
    Ok(unsafe { oids(list) })
}

/// The OIDs in a list.
///
/// # Safety
/// Null, or a list of OIDs in memory of the current context, which frees it.
pub unsafe fn oids(list: *const sys::List) -> Vec<u32> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: by the caller; it has `length` cells.
    unsafe {
        let cells = std::slice::from_raw_parts((*list).elements, (*list).length as usize);
        cells.iter().map(|c| c.oid_value).collect()
    }
}

/// The relations of a list that PostgreSQL has.
///
/// # Safety
/// Null, or a list of relations that are open as long as these are used.
#[must_use]
pub unsafe fn list(list: *const sys::List) -> Vec<Handle> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: by the caller; it has `length` cells.
    unsafe {
        let cells = std::slice::from_raw_parts((*list).elements, (*list).length as usize);
        cells.iter().map(|c| Handle(c.ptr_value.cast())).collect()
    }
}

/// `relpersistence` and `relkind` of a relation; zeros if there is none.
pub fn persistence_and_kind(oid: u32) -> Result<(u8, u8)> {
    let (mut persistence, mut kind) = (0, 0);
    // SAFETY: writes to live locals.
    guard::call0(|e| unsafe {
        pgr_shim_relation_kind(oid, &raw mut persistence, &raw mut kind, e)
    })?;
    Ok((persistence as u8, kind as u8))
}

/// Heap column (from 1; 0 for an expression) of each column of an index.
#[must_use]
pub fn index_columns(index: Handle) -> Vec<i16> {
    let form = index_form(index);
    // SAFETY: indkey is the last fixed field of pg_index and has indnatts values.
    unsafe { form.indkey.values.as_slice(form.indnatts as usize).to_vec() }
}

/// Collation of a key column of an index.
#[must_use]
pub fn index_collation(index: Handle, column: usize) -> u32 {
    // SAFETY: rd_indcollation has an entry for each key column.
    unsafe { *(*index.0).rd_indcollation.add(column) }
}

/// Whether an index is a B-tree, of which parts can be searched, or a hash index.
#[must_use]
pub fn is_sorted(index: Handle) -> bool {
    matches!(form(index).relam, sys::BTREE_AM_OID | sys::HASH_AM_OID)
}

/// Operator family of a key column of an index.
#[must_use]
pub fn index_family(index: Handle, column: usize) -> u32 {
    // SAFETY: rd_opfamily has an entry for each key column.
    unsafe { *(*index.0).rd_opfamily.add(column) }
}

/// Text of an index's expressions and predicate; `None` if it has neither.
pub fn index_definition(index: Handle) -> Result<Option<Vec<u8>>> {
    let mut out: *mut c_char = std::ptr::null_mut();
    // SAFETY: an open index.
    guard::call0(|e| unsafe { pgr_shim_index_definition(index, &raw mut out, e) })?;
    if out.is_null() {
        return Ok(None);
    }
    // SAFETY: a NUL terminated string, palloc'd in the current context.
    Ok(Some(unsafe { CStr::from_ptr(out) }.to_bytes().to_vec()))
}

/// The hash function that agrees with an index column's equality, `None` if there is none.
pub fn index_hash(index: Handle, column: usize, typid: u32) -> Result<Option<HashProc>> {
    let mut out = std::ptr::null_mut();
    // SAFETY: an open index.
    guard::call0(|e| unsafe {
        pgr_shim_index_hash(index, column as c_int, typid, &raw mut out, e)
    })?;
    Ok((!out.is_null()).then_some(HashProc(out)))
}

/// Strategy and function of an equality search in a column of an index.
pub fn index_search(index: Handle, column: usize) -> Result<(u16, u32)> {
    let (mut strategy, mut function) = (0, 0);
    // SAFETY: an open index.
    guard::call0(|e| unsafe {
        pgr_shim_index_search(
            index,
            column as c_int,
            &raw mut strategy,
            &raw mut function,
            e,
        )
    })?;
    Ok((strategy, function))
}

/// What FormIndexDatum and index_insert need to know of an index, in the current
/// memory context.
pub fn index_info(index: Handle) -> Result<Info> {
    let mut out = Info(std::ptr::null_mut());
    // SAFETY: an open index.
    guard::call0(|e| unsafe { pgr_shim_index_info(index, &raw mut out, e) })?;
    Ok(out)
}

/// A type's extended hash function; the type cache keeps it for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashProc(pub(super) *mut sys::FmgrInfo);

/// Has `callback(0, relation)` called for every change of a relation's definition (0: any).
pub fn on_change(callback: sys::RelcacheCallbackFunction) -> Result<()> {
    // SAFETY: registers a function pointer.
    guard::call0(|e| unsafe { pgr_shim_on_relcache(callback, e) })
}
