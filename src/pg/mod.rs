//! The edge to PostgreSQL. See `README.md` beside this file.

pub mod elog;
pub mod guard;
pub mod guard_test;
pub mod sys;
pub mod text;
pub mod version;

/// Which patch series the library was built for.
pub mod patchset {
    include!(concat!(env!("OUT_DIR"), "/patchset.rs"));
}
