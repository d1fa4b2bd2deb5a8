//! Large objects beside their pages: owner and privileges, by the names of roles.

use super::guard::{self, Result};
use super::relation::{Handle, Tuple};
use super::sys;
use std::ffi::{CStr, CString, c_char, c_int};

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_large_object(
        rel: Handle,
        tuple: Tuple,
        owner: *mut *const c_char,
        items: *mut *const c_char,
        bytes: *mut usize,
        has_acl: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_large_object_set(
        oid: u32,
        owner: *const c_char,
        items: *const c_char,
        bytes: usize,
        has_acl: bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_large_object_gone(oid: u32, e: Edata) -> c_int;
}

/// Their pages, by object and number; rows like others.
pub const PAGES: u32 = sys::LargeObjectRelationId;
/// Their index.
pub const PAGES_INDEX: u32 = sys::LargeObjectLOidPNIndexId;
/// Which there are, with owner and privileges.
pub const METADATA: u32 = sys::LargeObjectMetadataRelationId;

/// A row of [`METADATA`].
pub struct Described {
    /// Name of the owner.
    pub owner: CString,
    /// Items of the ACL as texts, one after the other, each with its NUL; none if it has no ACL.
    pub acl: Option<Vec<u8>>,
}

/// What a row of [`METADATA`] says.
pub fn describe(rel: Handle, tuple: Tuple) -> Result<Described> {
    let (mut owner, mut items, mut bytes, mut has_acl) =
        (std::ptr::null(), std::ptr::null(), 0, false);
    // SAFETY: an open relation and a row of it; writes to live locals.
    guard::call0(|e| unsafe {
        pgr_shim_large_object(
            rel,
            tuple,
            &raw mut owner,
            &raw mut items,
            &raw mut bytes,
            &raw mut has_acl,
            e,
        )
    })?;
    // SAFETY: a C string and so many bytes in the current memory context.
    let (owner, items) = unsafe {
        (
            CStr::from_ptr(owner).to_owned(),
            std::slice::from_raw_parts(items.cast::<u8>(), bytes),
        )
    };
    let acl = has_acl.then(|| items.to_vec());
    Ok(Described { owner, acl })
}

/// Makes a large object, or gives it another owner and other privileges; `acl` as in [`Described`].
pub fn set(oid: u32, owner: &CStr, acl: Option<&[u8]>) -> Result<()> {
    let items = acl.unwrap_or_default();
    // SAFETY: a C string, and so many bytes that are C strings, which is what a changeset holds.
    guard::call0(|e| unsafe {
        pgr_shim_large_object_set(
            oid,
            owner.as_ptr(),
            items.as_ptr().cast(),
            items.len(),
            acl.is_some(),
            e,
        )
    })
}

/// Drops a large object, but for its pages.
pub fn gone(oid: u32) -> Result<()> {
    // SAFETY: no pointers.
    guard::call0(|e| unsafe { pgr_shim_large_object_gone(oid, e) })
}
