//! Triggers that a helper fires.

use super::guard::{self, PgError, Result};
use super::relation::{Handle, Tuple};
use super::sys;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_has_triggers(rel: Handle, truncate: bool) -> bool;
    fn pgr_shim_triggers_open(rel: Handle, out: *mut *mut c_void, e: Edata) -> c_int;
    fn pgr_shim_triggers_close(triggers: *mut c_void, e: Edata) -> c_int;
    fn pgr_shim_triggers_count(triggers: *const c_void) -> c_int;
    fn pgr_shim_trigger_oid(triggers: *const c_void, n: c_int) -> u32;
    fn pgr_shim_trigger_name(triggers: *const c_void, n: c_int) -> *const c_char;
    fn pgr_shim_trigger_is_for(triggers: *const c_void, n: c_int, event: u32, replay: bool)
    -> bool;
    fn pgr_shim_trigger_fire(
        triggers: *mut c_void,
        n: c_int,
        event: u32,
        old: sys::HeapTuple,
        new: sys::HeapTuple,
        changed: *const bool,
        failure: Edata,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_copy_tuple(tuple: Tuple, out: *mut Tuple, e: Edata) -> c_int;
    fn pgr_shim_is_redone(data: *const sys::TriggerData, outer: bool) -> bool;
}

/// Before or after what it is fired for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// Before.
    Before,
    /// After.
    After,
}

/// What triggers are fired for.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A row comes.
    Insert(Tuple),
    /// A row gets a new version, in which these columns differ.
    Update {
        /// As it was.
        old: Tuple,
        /// As it will be.
        new: Tuple,
        /// One for each column.
        changed: &'a [bool],
    },
    /// A row goes.
    Delete(Tuple),
    /// The table is emptied.
    Truncate,
}

impl Event<'_> {
    fn bits(self, when: When) -> u32 {
        let (operation, level) = match self {
            Event::Insert(_) => (sys::TRIGGER_EVENT_INSERT, sys::TRIGGER_EVENT_ROW),
            Event::Update { .. } => (sys::TRIGGER_EVENT_UPDATE, sys::TRIGGER_EVENT_ROW),
            Event::Delete(_) => (sys::TRIGGER_EVENT_DELETE, sys::TRIGGER_EVENT_ROW),
            Event::Truncate => (sys::TRIGGER_EVENT_TRUNCATE, 0),
        };
        let when = match when {
            When::Before => sys::TRIGGER_EVENT_BEFORE,
            When::After => sys::TRIGGER_EVENT_AFTER,
        };
        operation | level | when
    }
}

/// Whether an open relation has triggers of rows, or of TRUNCATE, that fire where changes are applied.
#[must_use]
pub fn is_fired(rel: Handle, truncate: bool) -> bool {
    // SAFETY: an open relation; nothing is allocated.
    unsafe { pgr_shim_has_triggers(rel, truncate) }
}

/// The triggers of an open relation, as it is now. Goes with the transaction if it is not closed.
pub struct Triggers(*mut c_void);

impl Triggers {
    /// In a transaction, at its top level.
    pub fn open(rel: Handle) -> Result<Triggers> {
        // SAFETY: an open relation, which stays open.
        let triggers = guard::call(ptr::null_mut(), |out, e| unsafe {
            pgr_shim_triggers_open(rel, out, e)
        })?;
        Ok(Triggers(triggers))
    }

    /// In the same transaction.
    pub fn close(self) -> Result<()> {
        // SAFETY: made by open(), used no more.
        guard::call0(|e| unsafe { pgr_shim_triggers_close(self.0, e) })
    }

    /// Those to be fired, in their order. `replay`: the transaction has already run on this server.
    pub fn fired(
        &self,
        event: Event<'_>,
        when: When,
        replay: bool,
    ) -> impl Iterator<Item = i32> + use<> {
        let (triggers, event) = (self.0, event.bits(when));
        // SAFETY: live triggers.
        let count = unsafe { pgr_shim_triggers_count(triggers) };
        // SAFETY: live triggers, and `n` is below their number.
        (0..count).filter(move |n| unsafe { pgr_shim_trigger_is_for(triggers, *n, event, replay) })
    }

    /// OID and name of one.
    #[must_use]
    pub fn name(&self, n: i32) -> (u32, String) {
        // SAFETY: live triggers; `n` is from fired().
        let (oid, name) = unsafe {
            (
                pgr_shim_trigger_oid(self.0, n),
                CStr::from_ptr(pgr_shim_trigger_name(self.0, n)),
            )
        };
        (oid, name.to_string_lossy().into_owned())
    }

    /// Fires one, in a subtransaction and as the table's owner. The error with which it failed, after
    /// which these triggers must be opened anew.
    pub fn fire(&self, n: i32, event: Event<'_>, when: When) -> Result<Option<PgError>> {
        let bits = event.bits(when);
        let (old, new, changed) = match event {
            Event::Insert(new) => (ptr::null_mut(), new.0, ptr::null()),
            Event::Update { old, new, changed } => (old.0, new.0, changed.as_ptr()),
            Event::Delete(old) => (old.0, ptr::null_mut(), ptr::null()),
            Event::Truncate => (ptr::null_mut(), ptr::null_mut(), ptr::null()),
        };
        // SAFETY: tuples of the relation, and a flag for each of its columns, alive during the call.
        let failure = guard::call(ptr::null_mut(), |out, e| unsafe {
            pgr_shim_trigger_fire(self.0, n, bits, old, new, changed, out, e)
        })?;
        // SAFETY: null, or a copy in the current memory context.
        Ok((!failure.is_null()).then(|| unsafe { PgError::caught(failure) }))
    }
}

/// A copy of a row in the current memory context.
pub fn copy(tuple: Tuple) -> Result<Tuple> {
    let mut out = Tuple(ptr::null_mut());
    // SAFETY: a live tuple.
    guard::call0(|e| unsafe { pgr_shim_copy_tuple(tuple, &raw mut out, e) })?;
    Ok(out)
}

/// Whether a helper that redoes the transaction calls this trigger, and what it is called in, again.
///
/// # Safety
/// `data` is what PostgreSQL is about to call a trigger with.
#[must_use]
pub unsafe fn is_redone(data: *const sys::TriggerData, outer: bool) -> bool {
    // SAFETY: by the caller; nothing is allocated.
    unsafe { pgr_shim_is_redone(data, outer) }
}
