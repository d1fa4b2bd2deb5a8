//! Every function that the patched server calls, as `src/include/replication/postgres_r.h` in the
//! patched tree declares them. Each is a thin shell: [`guard::boundary`](crate::pg::guard::boundary)
//! round one call of the part of the library that does the work.
#![allow(clippy::missing_safety_doc)] // The header there states the contracts.

mod capture;
mod commit;
mod consistency;
mod ddl;
mod helper;
mod notify;
mod read;
mod retry;
mod sequence;
mod server;
mod stat;
mod subscription;
mod trigger;
mod version;
mod victim;
mod wal;

pub use server::{enabled, refresh_if_new};
