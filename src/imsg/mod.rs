//! Messages between the processes of one server, in shared memory. See `README.md`.

pub mod conflicts;
pub mod dependents;
pub mod layout;
pub mod members;
pub mod message;
pub mod pool;
pub mod queue;
pub mod ranges;
pub mod readers;
pub mod since;
mod sync;
pub mod turn;
pub mod wake;
pub mod wanted;

pub use layout::{Control, ProcSlot, Shape, Shared, SlotNo};
pub use pool::{Chain, ChainWriter, Class, Pool};
