//! What a transaction did: the bytes that travel. See `README.md` beside this file.
//!
//! Layout: header, then the writeset ([`Key`]s), then the entries.

pub mod compress;
#[cfg(test)]
mod compress_tests;
pub mod decode;
pub mod encode;
pub mod entry;
pub mod fragment;
#[cfg(test)]
mod fragment_tests;
pub mod header;
pub mod key;
mod pen;
pub mod sink;
#[cfg(test)]
mod tests;
pub mod tuple;
pub mod varint;

pub use key::{Key, LockMode};
