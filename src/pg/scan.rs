//! Looking for rows: by equality in an index, from its root or from where the last was, or in all of a table.

use super::guard::{self, Result};
use super::heap::{Slot, Snapshot};
use super::relation::{self, Handle};
use super::sys;
use std::ffi::c_int;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_scan_begin(
        heap: Handle,
        index: Handle,
        snapshot: Snapshot,
        nkeys: c_int,
        out: *mut sys::IndexScanDesc,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_scan_key(
        key: *mut sys::ScanKeyData,
        column: c_int,
        strategy: u16,
        proc_: u32,
        collation: u32,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_scan_find(
        scan: sys::IndexScanDesc,
        snapshot: Snapshot,
        keys: *mut sys::ScanKeyData,
        nkeys: c_int,
        slot: Slot,
        found: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_scan_next(
        scan: sys::IndexScanDesc,
        slot: Slot,
        found: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_scan_rest(scan: sys::IndexScanDesc, e: Edata) -> c_int;
    fn pgr_shim_finger_new(
        heap: Handle,
        index: Handle,
        out: *mut *mut FingerState,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_finger_find(
        finger: *mut FingerState,
        snapshot: Snapshot,
        values: *const sys::Datum,
        slot: Slot,
        out: *mut c_int,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_finger_rest(finger: *mut FingerState, e: Edata) -> c_int;
    fn pgr_shim_table_scan_begin(
        rel: Handle,
        snapshot: Snapshot,
        first_block: u32,
        out: *mut sys::TableScanDesc,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_table_scan_next(
        scan: sys::TableScanDesc,
        slot: Slot,
        found: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_table_scan_end(scan: sys::TableScanDesc, e: Edata) -> c_int;
}

/// A search for rows by equality, kept open for the next one.
pub struct Search {
    scan: sys::IndexScanDesc,
    keys: Vec<sys::ScanKeyData>,
}

impl Search {
    /// In `index` of `heap`, which stay open as long as this.
    pub fn begin(heap: Handle, index: Handle, nkeys: usize, snapshot: Snapshot) -> Result<Search> {
        let mut keys = Vec::with_capacity(nkeys);
        for column in 0..nkeys {
            let (strategy, function) = relation::index_search(index, column)?;
            let collation = relation::index_collation(index, column);
            // SAFETY: a plain C structure, which the shim fills.
            let mut key: sys::ScanKeyData = unsafe { std::mem::zeroed() };
            // SAFETY: see above.
            guard::call0(|e| unsafe {
                pgr_shim_scan_key(
                    &raw mut key,
                    column as c_int,
                    strategy,
                    function,
                    collation,
                    e,
                )
            })?;
            keys.push(key);
        }
        let mut scan = std::ptr::null_mut();
        // SAFETY: open relations and a live snapshot.
        guard::call0(|e| unsafe {
            pgr_shim_scan_begin(heap, index, snapshot, nkeys as c_int, &raw mut scan, e)
        })?;
        Ok(Search { scan, keys })
    }

    /// Brings a row with these values into a buffered slot, as `snapshot` sees it. Nulls are looked
    /// for only where the index can.
    pub fn find(
        &mut self,
        values: &[Option<sys::Datum>],
        snapshot: Snapshot,
        slot: Slot,
    ) -> Result<bool> {
        for (key, value) in self.keys.iter_mut().zip(values) {
            key.sk_argument = value.unwrap_or_default();
            key.sk_flags = match value {
                Some(_) => 0,
                None => (sys::SK_ISNULL | sys::SK_SEARCHNULL) as c_int,
            };
        }
        let mut found = false;
        // SAFETY: the scan is open; `values` outlive the call.
        guard::call0(|e| unsafe {
            pgr_shim_scan_find(
                self.scan,
                snapshot,
                self.keys.as_mut_ptr(),
                self.keys.len() as c_int,
                slot,
                &raw mut found,
                e,
            )
        })?;
        Ok(found)
    }

    /// The next row after that of `find`, whose values and snapshot are still there.
    pub fn next(&mut self, slot: Slot) -> Result<bool> {
        let mut found = false;
        // SAFETY: the scan is open, the slot alive.
        guard::call0(|e| unsafe { pgr_shim_scan_next(self.scan, slot, &raw mut found, e) })?;
        Ok(found)
    }

    /// Lets go of all buffers, until the next find(); the slot is empty.
    pub fn rest(&self) -> Result<()> {
        // SAFETY: the scan is open.
        guard::call0(|e| unsafe { pgr_shim_scan_rest(self.scan, e) })
    }
}

/// `PgrFinger` of shim_btree.c.
enum FingerState {}

/// A search for a row by all columns of a B-tree, none of them null, that begins where the last one
/// ended. It lives in the memory context in which it was made.
pub struct Finger(*mut FingerState);

impl Finger {
    /// In `index` of `heap`, which stay open as long as this; `None` if it takes a [`Search`].
    pub fn new(heap: Handle, index: Handle) -> Result<Option<Finger>> {
        if relation::form(index).relam != sys::BTREE_AM_OID {
            return Ok(None);
        }
        let mut out = std::ptr::null_mut();
        // SAFETY: open relations.
        guard::call0(|e| unsafe { pgr_shim_finger_new(heap, index, &raw mut out, e) })?;
        Ok((!out.is_null()).then_some(Finger(out)))
    }

    /// Brings the row with these values into a buffered slot, as `snapshot` sees it; `None` if it takes
    /// a [`Search`] to tell.
    pub fn find(
        &mut self,
        values: &[Option<sys::Datum>],
        snapshot: Snapshot,
        slot: Slot,
    ) -> Result<Option<bool>> {
        let mut datums = [0; sys::INDEX_MAX_KEYS as usize];
        for (datum, value) in datums.iter_mut().zip(values) {
            let Some(value) = value else {
                return Ok(None);
            };
            *datum = *value;
        }
        let mut found = 0;
        // SAFETY: room for a value of each column of any index; what they point to outlives the call.
        guard::call0(|e| unsafe {
            pgr_shim_finger_find(self.0, snapshot, datums.as_ptr(), slot, &raw mut found, e)
        })?;
        Ok((found >= 0).then_some(found > 0))
    }

    /// Lets go of all buffers, until the next find(); the slot is empty.
    pub fn rest(&self) -> Result<()> {
        // SAFETY: it lives.
        guard::call0(|e| unsafe { pgr_shim_finger_rest(self.0, e) })
    }
}

/// A scan of a whole table. After an error the end of the transaction gives back what it holds.
pub struct TableScan(sys::TableScanDesc);

impl TableScan {
    /// From this block on, then from the first one up to it. In the current memory context.
    pub fn begin(rel: Handle, snapshot: Snapshot, first_block: u32) -> Result<TableScan> {
        let mut scan = std::ptr::null_mut();
        // SAFETY: an open relation and a live snapshot.
        guard::call0(|e| unsafe {
            pgr_shim_table_scan_begin(rel, snapshot, first_block, &raw mut scan, e)
        })?;
        Ok(TableScan(scan))
    }

    /// Brings the next row into a buffered slot; false if there is none.
    pub fn next(&mut self, slot: Slot) -> Result<bool> {
        let mut found = false;
        // SAFETY: the scan is open, the slot alive.
        guard::call0(|e| unsafe { pgr_shim_table_scan_next(self.0, slot, &raw mut found, e) })?;
        Ok(found)
    }

    /// Ends it.
    pub fn end(self) -> Result<()> {
        // SAFETY: the scan is open, and used no more.
        guard::call0(|e| unsafe { pgr_shim_table_scan_end(self.0, e) })
    }
}
