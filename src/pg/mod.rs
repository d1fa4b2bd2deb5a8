//! The edge to PostgreSQL. See `README.md` beside this file.

pub mod backend;
pub mod elog;
pub mod guard;
pub mod heap;
pub mod owner;
pub mod relation;
pub mod sys;
pub mod transaction;
pub mod tuple;
pub mod victim;

/// Which patch series the library was built for.
pub mod patchset {
    include!(concat!(env!("OUT_DIR"), "/patchset.rs"));
}
