//! Real servers: groups of the patched PostgreSQL, written to from all sides, killed and compared.
//!
//! `PGR_BINDIR` names the programs (`make test` sets it to the build with assertions).

mod capture;
mod conflicts;
mod consistency;
mod crash;
mod fairness;
mod giving_way;
mod group;
mod large;
mod load;
mod locks;
mod network;
mod order;
mod pipeline;
mod refused;
mod retry;
mod rows;
mod savepoints;
mod start;
mod support;
