//! Little-endian fields in and out of byte strings; every length is checked before it is used.

use bytes::{Buf, Bytes};
use std::fmt;

/// A byte string does not hold what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodecError {
    /// It ends within a field.
    Short,
    /// A length or a count is beyond its bound.
    TooLong,
    /// A field has a value that nothing writes.
    Value,
    /// Bytes are left over.
    Trailing,
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "ends within a field",
            Self::TooLong => "has a length beyond its bound",
            Self::Value => "has a field with an unknown value",
            Self::Trailing => "has bytes left over",
        })
    }
}

impl std::error::Error for CodecError {}

/// Takes fields off the front of a byte string; longer parts are shared, not copied.
pub struct Fields(Bytes);

impl Fields {
    /// Reads `bytes` from its beginning.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Bytes not yet taken.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    fn need(&self, n: usize) -> Result<(), CodecError> {
        if self.0.len() < n {
            Err(CodecError::Short)
        } else {
            Ok(())
        }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        self.need(2)?;
        Ok(self.0.get_u16_le())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, CodecError> {
        self.need(16)?;
        Ok(self.0.get_u128_le())
    }

    /// A truth value, 0 or 1.
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Value),
        }
    }

    /// A length of four bytes, at most `max`, and that many bytes.
    pub fn bytes(&mut self, max: usize) -> Result<Bytes, CodecError> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(CodecError::TooLong);
        }
        self.need(len)?;
        Ok(self.0.split_to(len))
    }

    /// As [`Fields::bytes`], as UTF-8.
    pub fn string(&mut self, max: usize) -> Result<String, CodecError> {
        let bytes = self.bytes(max)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| CodecError::Value)
    }

    /// A count of four bytes, at most `max`, of items that take at least `each` bytes.
    pub fn count(&mut self, max: usize, each: usize) -> Result<usize, CodecError> {
        let n = self.u32()? as usize;
        if n > max {
            return Err(CodecError::TooLong);
        }
        self.need(n.saturating_mul(each))?;
        Ok(n)
    }

    /// All that is left.
    pub fn rest(self) -> Bytes {
        self.0
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), CodecError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing)
        }
    }
}

/// Appends a length of four bytes and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("callers bound what they encode");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a count of four bytes.
pub fn put_count(out: &mut Vec<u8>, n: usize) {
    let n = u32::try_from(n).expect("callers bound what they encode");
    out.extend_from_slice(&n.to_le_bytes());
}
