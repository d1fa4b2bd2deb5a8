//! The edge to PostgreSQL. See `README.md` beside this file.

pub mod backend;
pub mod bgworker;
pub mod commit_gid;
pub mod coordinator;
pub mod ddl;
pub mod elog;
pub mod errors;
pub mod guard;
pub mod guard_test;
pub mod guc;
pub mod heap;
pub mod helpers;
pub mod host;
pub mod large_object;
pub mod latch;
pub mod locks;
pub mod log_dir;
pub mod notify;
pub mod outbox;
pub mod owner;
pub mod positions;
pub mod prepared;
pub mod query;
pub mod relation;
pub mod scan;
pub mod search;
pub mod sequence;
pub mod shmem;
pub mod source;
pub mod starting;
pub mod stat;
pub mod subscription;
pub mod sys;
pub mod text;
pub mod transaction;
pub mod trigger;
pub mod tuple;
pub mod version;
pub mod victim;

/// Which patch series the library was built for.
pub mod patchset {
    include!(concat!(env!("OUT_DIR"), "/patchset.rs"));
}
