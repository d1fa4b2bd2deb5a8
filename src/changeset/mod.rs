//! What a transaction did: the bytes that travel. See `README.md` beside this file.
//!
//! Layout: [`Header`] (fixed size), then the writeset (`keys_count` of [`Key`]), then the entries.

pub mod decode;
pub mod encode;
pub mod fragment;
#[cfg(test)]
mod fragment_tests;
pub mod key;
#[cfg(test)]
mod tests;
pub mod tuple;

pub use key::{Key, LockMode};
