//! What a transaction does, written down as it does it. See `README.md` beside this file.

pub mod hash;
pub mod image;
pub mod layout;
pub mod marks;
pub mod range;
pub mod read_set;
pub mod table_mode;

#[cfg(feature = "server")]
pub mod change;
#[cfg(feature = "server")]
pub mod entries;
#[cfg(feature = "server")]
pub mod large_object;
#[cfg(feature = "server")]
pub mod notify;
#[cfg(feature = "server")]
pub mod prepare;
#[cfg(feature = "server")]
pub mod read;
#[cfg(feature = "server")]
pub mod relation;
#[cfg(feature = "server")]
pub mod search;
#[cfg(feature = "server")]
pub mod table_lock;
#[cfg(feature = "server")]
pub mod transaction;
#[cfg(feature = "server")]
pub mod trigger;
#[cfg(feature = "server")]
pub mod truncate;
