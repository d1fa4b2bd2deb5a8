//! The edge to PostgreSQL. See `README.md` beside this file.

pub mod backend;
pub mod bgworker;
pub mod ddl;
pub mod elog;
pub mod guard;
pub mod guc;
pub mod heap;
pub mod latch;
pub mod owner;
pub mod relation;
pub mod shmem;
pub mod stat;
pub mod state_file;
pub mod sys;
pub mod transaction;
pub mod tuple;
pub mod victim;
pub mod guard_test;
pub mod text;
pub mod version;

/// Which patch series the library was built for.
pub mod patchset {
    include!(concat!(env!("OUT_DIR"), "/patchset.rs"));
}
