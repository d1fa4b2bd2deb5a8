//! Real servers: groups of the patched PostgreSQL, written to from all sides, killed and compared.
//!
//! `PGR_BINDIR` names the programs (`make test` sets it to the build with assertions).

mod behind;
mod btree;
mod capture;
mod compression;
mod conflicts;
mod consistency;
mod crash;
mod early;
mod fairness;
mod giving_way;
mod group;
mod large;
mod large_objects;
mod load;
mod locks;
mod network;
mod notify;
mod order;
mod pipeline;
mod refused;
mod reload;
mod retry;
mod retry_batches;
mod rows;
mod savepoints;
mod sequences;
mod serializable;
mod start;
#[path = "../storms/mod.rs"]
#[allow(dead_code, unused_imports)]
mod storms;
mod subscription;
mod support;
mod triggers;
mod truncate;
mod two_phase;
mod updates;
mod whole_rows;
mod wire;
