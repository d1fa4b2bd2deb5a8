//! The edge to PostgreSQL. See `README.md` beside this file.

pub mod elog;
pub mod guard;
pub mod sys;
