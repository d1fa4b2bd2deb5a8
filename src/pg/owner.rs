//! A resource owner that outlives transactions.

use super::guard::{self, Result};
use super::sys;
use std::ffi::c_int;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_owner_new(out: *mut sys::ResourceOwner, e: Edata) -> c_int;
    fn pgr_shim_owner_free(owner: sys::ResourceOwner, e: Edata) -> c_int;
}

/// Owns relations and tuple descriptors that stay open from transaction to transaction. It must
/// never come to own locks or buffer pins, which end with a transaction.
pub struct Owner(sys::ResourceOwner);

impl Owner {
    /// Owns nothing yet.
    pub fn new() -> Result<Owner> {
        Ok(Owner(make()?))
    }

    /// Runs `f` so that what it opens is owned by this.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: only this process's main thread touches the variable; every call in `f` is
        // guarded, so nothing jumps past the second assignment.
        unsafe {
            let old = sys::CurrentResourceOwner;
            sys::CurrentResourceOwner = self.0;
            let result = f();
            sys::CurrentResourceOwner = old;
            result
        }
    }

    /// Gives back all that it owns, in the middle of a transaction too.
    pub fn renew(&mut self) -> Result<()> {
        let old = std::mem::replace(&mut self.0, make()?);
        // SAFETY: nobody else has it.
        guard::call0(|e| unsafe { pgr_shim_owner_free(old, e) })
    }
}

fn make() -> Result<sys::ResourceOwner> {
    let mut out = std::ptr::null_mut();
    // SAFETY: a plain constructor.
    guard::call0(|e| unsafe { pgr_shim_owner_new(&raw mut out, e) })?;
    Ok(out)
}
