//! Statements.

use crate::pg::guard::boundary;
use crate::pg::relation::{self, Handle};
use crate::pg::{ddl, sys};
use std::ffi::{CStr, c_char};

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_start_replication(
    name: *const c_char,
    group: *const c_char,
    gcs: *const c_char,
    top_level: bool,
) {
    // SAFETY: PostgreSQL passes C strings; only `gcs` may be null.
    let (name, group, gcs) = unsafe {
        (
            CStr::from_ptr(name),
            CStr::from_ptr(group),
            ddl::optional(gcs),
        )
    };
    boundary(|| ddl::start(name, group, gcs, top_level));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_stop_replication(name: *const c_char, top_level: bool) {
    // SAFETY: PostgreSQL passes a C string.
    let name = unsafe { CStr::from_ptr(name) };
    boundary(|| ddl::stop(name, top_level));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_refuse_database(oid: u32, name: *const c_char) {
    // SAFETY: PostgreSQL passes a C string.
    let name = unsafe { CStr::from_ptr(name) };
    boundary(|| ddl::database(oid, name));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_refuse_foreign(rel: sys::Relation) {
    boundary(|| {
        // SAFETY: PostgreSQL passes an open relation.
        let rel = unsafe { Handle::from_raw(rel) };
        ddl::foreign(&relation::name(rel))
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_refuse_catalog(rel: sys::Relation) {
    // SAFETY: PostgreSQL passes an open relation.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary(|| ddl::catalog(relation::oid(rel), &relation::name(rel)));
}
