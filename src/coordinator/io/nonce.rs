//! Fresh nonces from the system's randomness.

use crate::gcs::egcs::auth::NONCE_BYTES;
use std::fs::File;
use std::io::{self, Read};

/// The open device, so that a shortage of descriptors can't keep a handshake from being fresh.
pub struct Nonces(File);

impl Nonces {
    /// # Errors
    /// There is no such device.
    pub fn new() -> io::Result<Nonces> {
        File::open("/dev/urandom").map(Nonces)
    }

    /// A nonce of a handshake.
    ///
    /// # Errors
    /// The device can't be read.
    pub fn fresh(&mut self) -> io::Result<[u8; NONCE_BYTES]> {
        let mut nonce = [0; NONCE_BYTES];
        self.0.read_exact(&mut nonce)?;
        Ok(nonce)
    }

    /// A number that is never 0 (of an attempt to join, of a group, of an election's jitter).
    ///
    /// # Errors
    /// The device can't be read.
    pub fn number(&mut self) -> io::Result<u128> {
        let mut bytes = [0; 16];
        self.0.read_exact(&mut bytes)?;
        Ok(u128::from_le_bytes(bytes).max(1))
    }
}
