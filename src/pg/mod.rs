//! The edge to PostgreSQL. See `README.md` beside this file.

pub mod elog;
pub mod guard;
pub mod heap;
pub mod owner;
pub mod relation;
pub mod sys;
pub mod transaction;
pub mod tuple;
pub mod victim;
