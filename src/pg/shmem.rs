//! Where this process finds the shared memory of the library, and what lies before the imessages.

use super::guard::{self, Result};
use super::{guc, sys};
use crate::group_file;
use crate::imsg::{Shape, Shared, SlotNo};
use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

unsafe extern "C" {
    fn pgr_shim_shmem_init(
        name: *const c_char,
        size: usize,
        out: *mut *mut c_void,
        found: *mut bool,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_process_slots() -> c_int;
    fn pgr_shim_state_lock();
    fn pgr_shim_state_unlock();
}

/// What the server's side of the library shares between processes, beside the imessages.
#[repr(C, align(4096))]
#[derive(Debug, Default)]
pub struct Server {
    /// End of the newest commit record that carries a GID. Written by the holder of the turn for
    /// commit records, or by redo, before it passes the turn (relaxed; the turn orders it).
    pub logged_lsn: AtomicU64,
    /// PID of the backend that runs START or STOP REPLICATION, 0 for none. Claimed by
    /// compare-and-swap; released by its owner or by whoever finds the owner gone.
    pub command_pid: AtomicU32,
    /// How far START REPLICATION has come: a `starting::Stage`. Moved by compare-and-swap, by the
    /// claim's owner up to `Closed`, from there by the coordinator.
    pub start_stage: AtomicU32,
    /// The database that START REPLICATION asks for. Written by the same.
    pub start_database: AtomicU32,
    /// Transactions that were prepared with XIDs before this one came with the copy that has joined, and
    /// are to be rolled back; 0 for none. Set by the coordinator, taken by the first helper.
    pub copied_before: AtomicU64,
}

/// The data directory, which is the working directory of every process of the server.
pub const DATA_DIR: &str = ".";

/// Blocks of the pool of a server that is configured for no group but has the state of one.
const IDLE_POOL_BYTES: usize = 1 << 20;

static BASE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// Where the imessages are, behind [`BASE`]; null without them. Set by the postmaster, before any fork.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);

/// Does this server need shared memory? One that is configured for a group does, and so does one
/// whose data belongs to a group: what happens to that data is kept track of in any case.
fn wanted() -> bool {
    guc::gcs().is_some() || group_file::exists(Path::new(DATA_DIR))
}

fn shape() -> Shape {
    // SAFETY: reads variables that are set before shared memory is sized.
    let slots = unsafe { pgr_shim_process_slots() }.cast_unsigned();
    let pool = if guc::gcs().is_some() {
        guc::pool_bytes()
    } else {
        IDLE_POOL_BYTES
    };
    Shape::new(slots, pool)
}

/// Bytes to reserve.
#[must_use]
pub fn size() -> usize {
    if wanted() {
        size_of::<Server>() + shape().bytes() + 4096
    } else {
        0
    }
}

/// Lays out the shared memory: in the postmaster, at start and after a crash, and in a
/// stand-alone process.
pub fn init() -> Result<()> {
    BASE.store(ptr::null_mut(), Ordering::Relaxed);
    SHARED.store(ptr::null_mut(), Ordering::Relaxed);
    if !wanted() {
        return Ok(());
    }
    let shape = shape();
    let bytes = size();
    let mut found = false;
    let found_at = &raw mut found;
    let start = guard::call(ptr::null_mut(), |out, e| {
        // SAFETY: the name is a C string, the rest are places of this frame and `call`'s.
        unsafe { pgr_shim_shmem_init(c"Postgres-R".as_ptr(), bytes, out, found_at, e) }
    })?;
    let base = start.cast::<u8>();
    let base = base.wrapping_add(base.align_offset(4096));
    // SAFETY: `size` reserved room for both, and 4096 more for the alignment; nobody else uses
    // the memory yet.
    let shared = unsafe {
        base.cast::<Server>().write(Server::default());
        Shared::init(base.add(size_of::<Server>()), shape)
    };
    shared.control().wake_fd.store(
        WAKE_FD.load(Ordering::Relaxed).cast_unsigned(),
        Ordering::Relaxed,
    );
    let began = super::backend::now().cast_unsigned();
    shared
        .control()
        .conflicts
        .began
        .store(began, Ordering::Relaxed);
    BASE.store(base, Ordering::Relaxed);
    // Once a start of the server; it lives as long as the process.
    SHARED.store(Box::into_raw(Box::new(shared)), Ordering::Release);
    Ok(())
}

/// The eventfd that wakes the coordinator; before [`init`].
pub fn set_wake_fd(fd: i32) {
    WAKE_FD.store(fd, Ordering::Relaxed);
}

/// The imessages and the group's state; `None` in a server that takes no part in replication.
#[must_use]
pub fn try_shared() -> Option<Shared> {
    // SAFETY: null or made by `init`, in this process or its parent, and never freed.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }.copied()
}

/// The same where there must be one: behind a test of `pgr_enabled` or in a process of ours.
#[must_use]
pub fn shared() -> Shared {
    try_shared().expect("shared memory of replication exists")
}

/// The server's part, under the same condition as [`shared`].
#[must_use]
pub fn server() -> &'static Server {
    let base = BASE.load(Ordering::Acquire);
    assert!(!base.is_null(), "shared memory of replication exists");
    // SAFETY: `init` laid it out; atomics only.
    unsafe { &*base.cast::<Server>() }
}

/// This process's slot.
#[must_use]
pub fn my_slot() -> SlotNo {
    // SAFETY: a variable of the process, set when it got its PGPROC.
    let number = unsafe { sys::MyProcNumber };
    assert!(number >= 0, "the process has a PGPROC");
    SlotNo(number.cast_unsigned())
}

/// Runs `body` while no other process writes or removes `pg_group.state`.
pub fn with_state_lock<T>(body: impl FnOnce() -> T) -> T {
    /// Releases the lock, also when `body` panics.
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: taken below by this process.
            unsafe { pgr_shim_state_unlock() };
        }
    }
    // SAFETY: the process has a PGPROC; it holds no lock that is ordered behind this one.
    unsafe { pgr_shim_state_lock() };
    let _release = Release;
    body()
}
