//! Start of the server and of its processes, settings, the gate.

use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::{bgworker, coordinator, guc, shmem, starting, sys, transaction};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::Ordering;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_enabled: bool = false;

/// What `pgr_epoch` points at in a server without replication.
static NO_EPOCH: u32 = 0;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_epoch: *const u32 = &raw const NO_EPOCH;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_epoch_seen: u32 = 0;

unsafe extern "C" {
    static pgr_is_helper: bool;
    fn pgr_shim_in_recovery() -> bool;
    fn pgr_shim_exit(code: c_int) -> !;
}

/// Are this process's changes captured?
#[must_use]
pub fn enabled() -> bool {
    // SAFETY: a variable of the process, which has one thread.
    unsafe { pgr_enabled }
}

fn derive() {
    let Some(shared) = shmem::try_shared() else {
        return;
    };
    let control = shared.control();
    // The epoch first: what changes after it makes the next look come here again.
    let epoch = control.epoch.load(Ordering::SeqCst);
    // This before the other: START passes the database on without a gap.
    let starting = starting::database();
    let database = control.database.load(Ordering::SeqCst);
    // SAFETY: variables of the process, which has one thread.
    unsafe {
        // A helper sets it while it calls a trigger.
        if !pgr_is_helper {
            pgr_enabled = sys::MyDatabaseId != 0
                && (database == sys::MyDatabaseId || starting == sys::MyDatabaseId)
                && !pgr_shim_in_recovery();
        }
        pgr_epoch_seen = epoch;
    }
}

/// Derives [`enabled`] anew, unless the transaction has an XID: it is captured as a whole or not.
pub fn refresh() {
    if !transaction::has_xid() {
        derive();
    }
}

/// The same if something has changed since the last time.
pub fn refresh_if_new() {
    // SAFETY: a variable of the process, and what it points at is never unmapped.
    let new = unsafe { pgr_epoch.read_volatile() != pgr_epoch_seen };
    if new {
        refresh();
    }
}

#[unsafe(no_mangle)]
extern "C" fn pgr_refresh() {
    boundary_nofail(refresh);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_xid_assigned() {
    // START REPLICATION first moves the epoch and then waits for the transactions of the database:
    // it either finds this one, or has its epoch seen here.
    boundary_nofail(derive);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_postmaster_start() {
    boundary(bgworker::postmaster_start);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_shmem_size() -> usize {
    boundary(|| Ok(shmem::size()))
}

#[unsafe(no_mangle)]
extern "C" fn pgr_shmem_init() {
    boundary(|| {
        shmem::init()?;
        let epoch = shmem::try_shared().map_or(&raw const NO_EPOCH, |s| {
            s.control().epoch.as_ptr().cast_const()
        });
        // SAFETY: a variable of the process, which has one thread.
        unsafe { pgr_epoch = epoch };
        Ok(())
    });
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)] // PostgreSQL names background workers so.
extern "C" fn PgrCoordinatorMain(_argument: sys::Datum) {
    boundary(coordinator::main);
    // 1: the postmaster starts it again, unless it is shutting down itself.
    // SAFETY: nothing of Rust is alive here; before_shmem_exit callbacks run.
    unsafe { pgr_shim_exit(1) }
}

#[unsafe(no_mangle)]
extern "C" fn pgr_backend_gate() {
    boundary(|| {
        refresh();
        bgworker::gate()
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_check_gcs(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: u32,
) -> bool {
    boundary_nofail(|| {
        // SAFETY: the settings code passes a C string.
        let text = unsafe { CStr::from_ptr(*value) }.to_string_lossy();
        guc::check_gcs(&text)
    })
}
