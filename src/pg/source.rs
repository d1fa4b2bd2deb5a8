//! The source of a transaction that another system committed first: PostgreSQL's replication origins.

use super::guard::{self, Result};
use super::sys;
use crate::changeset::entry::Source;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_source_name(node: u16, out: *mut *const c_char, e: Edata) -> c_int;
    fn pgr_shim_source_progress() -> u64;
    fn pgr_shim_is_logical_worker() -> bool;
    fn pgr_shim_source_assume(name: *const c_char, e: Edata) -> c_int;
}

/// The catalog of sources.
pub const CATALOG: u32 = sys::ReplicationOriginRelationId;

thread_local! {
    /// The session's origin while its transaction is rolled back though it commits elsewhere.
    static ASIDE: Cell<u16> = const { Cell::new(0) };
}

/// What the current transaction is about to commit as.
pub struct Current {
    name: CString,
    lsn: u64,
    timestamp: i64,
}

impl Current {
    /// For the changeset.
    pub fn source(&self) -> Source<'_> {
        Source {
            name: &self.name,
            lsn: self.lsn,
            timestamp: self.timestamp,
        }
    }

    /// Whether this server has all of the source up to there by now, from whomever.
    pub fn is_here(&self) -> bool {
        self.lsn != 0 && progress() >= self.lsn
    }
}

/// Where the current transaction came from, if its session has a replication origin.
pub fn current() -> Result<Option<Current>> {
    // SAFETY: variables of this process.
    let (node, lsn, timestamp) = unsafe {
        (
            sys::replorigin_session_origin,
            sys::replorigin_session_origin_lsn,
            sys::replorigin_session_origin_timestamp,
        )
    };
    if [sys::InvalidRepOriginId, sys::DoNotReplicateId].contains(&u32::from(node)) {
        return Ok(None);
    }
    // SAFETY: writes to a live local.
    let name = guard::call(std::ptr::null(), |out, e| unsafe {
        pgr_shim_source_name(node, out, e)
    })?;
    // SAFETY: a C string in the current memory context.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    Ok(Some(Current {
        name,
        lsn,
        timestamp,
    }))
}

/// How far everything of the session's source is here. The session has set one up.
#[must_use]
pub fn progress() -> u64 {
    // SAFETY: by the caller there is a state to be read.
    unsafe { pgr_shim_source_progress() }
}

/// Whether this process applies for a subscription what its publisher sends.
#[must_use]
pub fn is_subscriber() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pgr_shim_is_logical_worker() }
}

/// A rollback is no progress: the local work of a transaction is undone that a helper commits.
pub fn set_aside() {
    // SAFETY: a variable of this process.
    unsafe {
        ASIDE.set(sys::replorigin_session_origin);
        sys::replorigin_session_origin = sys::InvalidRepOriginId as u16;
    }
}

/// After [`set_aside`]: that is done.
pub fn restore() {
    // SAFETY: a variable of this process.
    unsafe { sys::replorigin_session_origin = ASIDE.replace(0) };
}

/// While it lives, what this helper writes and commits is of a source. It must be dropped before a
/// rollback, which would count as progress.
pub struct Assumed;

impl Assumed {
    /// In a transaction. Raises what would be an error at its commit.
    pub fn new(source: Source<'_>) -> Result<Assumed> {
        let name = source.name.as_ptr();
        // SAFETY: a C string.
        guard::call0(|e| unsafe { pgr_shim_source_assume(name, e) })?;
        let assumed = Assumed;
        assumed.advance(source);
        Ok(assumed)
    }

    /// The commit is to say this position of the source.
    pub fn advance(&self, source: Source<'_>) {
        // SAFETY: variables of this process.
        unsafe {
            sys::replorigin_session_origin_lsn = source.lsn;
            sys::replorigin_session_origin_timestamp = source.timestamp;
        }
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        // SAFETY: variables of this process. What was set up stays so until the next one.
        unsafe {
            sys::replorigin_session_origin = sys::InvalidRepOriginId as u16;
            sys::replorigin_session_origin_lsn = 0;
            sys::replorigin_session_origin_timestamp = 0;
        }
    }
}
