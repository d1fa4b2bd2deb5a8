//! Values of SQL type `text`, in and out of functions.

use super::guard::{self, Result};
use super::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

unsafe extern "C" {
    fn pgr_shim_text(
        text: *const c_char,
        out: *mut sys::Datum,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_text_argument(
        call: sys::FunctionCallInfo,
        number: c_int,
        out: *mut *const c_char,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
}

/// A value in the current memory context.
pub fn datum(text: &str) -> Result<sys::Datum> {
    let text = CString::new(text.replace('\0', "?")).expect("no NUL is left");
    // SAFETY: a C string that outlives the call.
    guard::call(0, |out, e| unsafe { pgr_shim_text(text.as_ptr(), out, e) })
}

/// Argument `number` (from 0) of a strict function that takes `text` there.
///
/// # Safety
/// `call` is what PostgreSQL called the function with.
pub unsafe fn argument(call: sys::FunctionCallInfo, number: usize) -> Result<String> {
    // SAFETY: the caller's; the catalog gives the argument that type.
    let text = guard::call(ptr::null(), |out, e| unsafe {
        pgr_shim_text_argument(call, number as c_int, out, e)
    })?;
    // SAFETY: the shim made a C string in the current memory context.
    Ok(unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned())
}

/// A point in time (microseconds since 2000-01-01 UTC), as the session shows it.
#[must_use]
pub fn timestamp(at: i64) -> String {
    // SAFETY: answers with a C string in a buffer of its own, and raises nothing.
    let text = unsafe { CStr::from_ptr(sys::timestamptz_to_str(at)) };
    text.to_string_lossy().into_owned()
}
