//! Settings. PostgreSQL's tables point at the variables here.

use super::guard::{self, Result};
use super::sys;
use crate::gcs::options;
use std::ffi::{CStr, CString, c_char, c_int};
use std::time::Duration;

/// `replication_gcs`.
#[unsafe(no_mangle)]
pub static mut replication_gcs: *mut c_char = std::ptr::null_mut();
/// `replication_helpers`.
#[unsafe(no_mangle)]
pub static mut replication_helpers: c_int = 4;
/// `replication_imessage_buffers`, in blocks.
#[unsafe(no_mangle)]
pub static mut replication_imessage_buffers: c_int = 8192;
/// `replication_log_keep_size`, in MB.
#[unsafe(no_mangle)]
pub static mut replication_log_keep_size: c_int = 1024;
/// `replication_insecure_network`.
#[unsafe(no_mangle)]
pub static mut replication_insecure_network: bool = false;

/// `replication_max_apply_delay`, in ms.
#[unsafe(no_mangle)]
pub static mut replication_max_apply_delay: c_int = 30_000;
/// `replication_changeset_memory`, in kB.
#[unsafe(no_mangle)]
pub static mut replication_changeset_memory: c_int = 16 << 10;
/// `replication_compression`: 1 for lz4, 0 for off.
#[unsafe(no_mangle)]
pub static mut replication_compression: c_int = 1;
/// `replication_retry`.
#[unsafe(no_mangle)]
pub static mut replication_retry: c_int = 0;

/// `replication_sequence_range`.
#[unsafe(no_mangle)]
pub static mut replication_sequence_range: c_int = 32;

/// `replication_consistency`: 1 for before, 2 for after, both or none.
#[unsafe(no_mangle)]
pub static mut replication_consistency: c_int = 0;

unsafe extern "C" {
    fn pgr_shim_take_reload() -> bool;
    fn pgr_shim_reload(e: *mut *mut sys::ErrorData) -> c_int;
    fn pgr_shim_guc_refuse(detail: *const c_char, hint: *const c_char);
}

/// `replication_gcs`; `None` when it is empty, which keeps the server out of groups.
#[must_use]
pub fn gcs() -> Option<String> {
    // SAFETY: the server's processes have one thread that reads and writes settings; the value
    // is a C string or null.
    let value = unsafe { replication_gcs };
    if value.is_null() {
        return None;
    }
    // SAFETY: see above.
    let text = unsafe { CStr::from_ptr(value) }
        .to_string_lossy()
        .into_owned();
    (!text.is_empty()).then_some(text)
}

/// `replication_helpers`.
#[must_use]
pub fn helpers() -> u32 {
    // SAFETY: as in `gcs`.
    unsafe { replication_helpers }.cast_unsigned()
}

/// `replication_imessage_buffers` in bytes.
#[must_use]
pub fn pool_bytes() -> usize {
    // SAFETY: as in `gcs`.
    let blocks = unsafe { replication_imessage_buffers };
    blocks as usize * sys::BLCKSZ as usize
}

/// `replication_log_keep_size` in bytes.
#[must_use]
pub fn log_keep_bytes() -> u64 {
    // SAFETY: as in `gcs`.
    let megabytes = unsafe { replication_log_keep_size };
    u64::from(megabytes.cast_unsigned()) << 20
}

/// `replication_insecure_network`.
#[must_use]
pub fn insecure_network() -> bool {
    // SAFETY: as in `gcs`.
    unsafe { replication_insecure_network }
}

/// `replication_max_apply_delay`; `None` for no limit.
#[must_use]
pub fn max_apply_delay() -> Option<Duration> {
    // SAFETY: as in `gcs`.
    let ms = unsafe { replication_max_apply_delay };
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// `replication_retry`.
#[must_use]
pub fn retries() -> u32 {
    // SAFETY: as in `gcs`.
    unsafe { replication_retry }.cast_unsigned()
}

/// `replication_sequence_range`, at least 1.
#[must_use]
pub fn sequence_range() -> u32 {
    // SAFETY: as in `gcs`.
    unsafe { replication_sequence_range }.cast_unsigned()
}

/// `replication_changeset_memory` in bytes.
#[must_use]
pub fn changeset_memory() -> usize {
    // SAFETY: as in `gcs`.
    let kilobytes = unsafe { replication_changeset_memory };
    (kilobytes.cast_unsigned() as usize) << 10
}

/// Whether what transactions of this session changed is compressed.
#[must_use]
pub fn compresses() -> bool {
    // SAFETY: as in `gcs`.
    unsafe { replication_compression != 0 }
}

/// Reads the configuration anew if the postmaster asked for that (SIGHUP).
pub fn reload_if_asked() -> Result<()> {
    // SAFETY: a flag of this process.
    if unsafe { pgr_shim_take_reload() } {
        // SAFETY: no arguments.
        guard::call0(|e| unsafe { pgr_shim_reload(e) })?;
    }
    Ok(())
}

/// Whether transactions of this session begin with all that the group has acknowledged.
#[must_use]
pub fn consistent_before() -> bool {
    // SAFETY: as in `gcs`.
    unsafe { replication_consistency & 1 != 0 }
}

/// Whether commits of this session return when all members show them.
#[must_use]
pub fn consistent_after() -> bool {
    // SAFETY: as in `gcs`.
    unsafe { replication_consistency & 2 != 0 }
}

/// Whether `value` is a `replication_gcs`; tells the user what is wrong with it if not.
#[must_use]
pub fn check_gcs(value: &str) -> bool {
    match options::parse(value) {
        Ok(_) => true,
        Err(wrong) => {
            let detail = CString::new(wrong.to_string().replace('\0', "?")).unwrap_or_default();
            let hint =
                CString::new(format!("Write it as in: {}", options::EXAMPLE)).unwrap_or_default();
            // SAFETY: C strings; called in a check hook.
            unsafe { pgr_shim_guc_refuse(detail.as_ptr(), hint.as_ptr()) };
            false
        }
    }
}
