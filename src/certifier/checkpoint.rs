//! The state of certification as bytes, the same on every member that has seen the same order.
#![forbid(unsafe_code)]

use super::index::{CLASSES, Class, Index};
use super::{Certifier, Config};
use crate::ids::{Gid, MemberId};
use std::fmt;

const VERSION: u32 = 1;

/// These bytes are no checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointError {
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damaged checkpoint of certification: {}", self.what)
    }
}

impl std::error::Error for CheckpointError {}

fn damaged(what: &'static str) -> CheckpointError {
    CheckpointError { what }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(damaged("it is cut off"))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.take().map(u64::from_le_bytes)
    }
    fn gid(&mut self) -> Result<Gid, CheckpointError> {
        self.u64().map(Gid)
    }
    /// A count of things that take so many bytes each at least.
    fn count(&mut self, bytes: usize) -> Result<usize, CheckpointError> {
        let count = usize::try_from(self.u64()?).map_err(|_| damaged("a count is too large"))?;
        if count > self.0.len() / bytes {
            Err(damaged("a count is too large"))
        } else {
            Ok(count)
        }
    }
}

impl Certifier {
    /// Appends the whole state to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |value: u64| out.extend_from_slice(&value.to_le_bytes());
        put(VERSION.into());
        for gid in [self.last, self.floor, self.forced] {
            put(gid.0);
        }
        put(self.digest);
        put(self.lows.len() as u64);
        for (member, low) in &self.lows {
            put(member.0.into());
            put(low.0);
        }
        put(self.origins.len() as u64);
        for member in &self.origins {
            out.extend_from_slice(&member.0.to_le_bytes());
        }
        let keys = self.index.sorted();
        out.extend_from_slice(&(keys.len() as u64).to_le_bytes());
        for (hash, held) in keys {
            out.extend_from_slice(&hash.to_le_bytes());
            out.push(held.len() as u8);
            for (class, gid) in held {
                out.push(class.number());
                out.extend_from_slice(&gid.0.to_le_bytes());
            }
        }
    }

    /// Reads what [`Certifier::encode`] wrote, all of it.
    pub fn decode(config: Config, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let mut r = Reader(bytes);
        if r.u64()? != u64::from(VERSION) {
            return Err(damaged("unknown version"));
        }
        let mut c = Certifier::new(config);
        (c.last, c.floor, c.forced) = (r.gid()?, r.gid()?, r.gid()?);
        if c.floor > c.last || c.forced > c.floor || c.last.0 >> 59 != 0 {
            return Err(damaged("its GIDs contradict each other"));
        }
        c.digest = r.u64()?;
        for _ in 0..r.count(16)? {
            let member = u16::try_from(r.u64()?).map_err(|_| damaged("a member number"))?;
            c.lows.insert(MemberId(member), r.gid()?);
        }
        let origins = r.count(2)?;
        if origins as u64 != c.last.0 - c.floor.0 {
            return Err(damaged("its origins do not fit its GIDs"));
        }
        for _ in 0..origins {
            c.origins.push_back(MemberId(u16::from_le_bytes(r.take()?)));
        }
        let count = r.count(18)?;
        let mut keys = Vec::with_capacity(count);
        let mut before = None;
        for _ in 0..count {
            let hash = r.u64()?;
            if before >= Some(hash) {
                return Err(damaged("its keys are not sorted"));
            }
            before = Some(hash);
            let [classes] = r.take()?;
            if classes == 0 || classes as usize > CLASSES {
                return Err(damaged("a key is held in no known way"));
            }
            let mut held = Vec::with_capacity(classes.into());
            for _ in 0..classes {
                let [number] = r.take()?;
                let class =
                    Class::from_u8(number).ok_or(damaged("a key is held in no known way"))?;
                let gid = r.gid()?;
                if gid == Gid::ZERO || gid > c.last {
                    return Err(damaged("a key's GID"));
                }
                held.push((class, gid));
            }
            keys.push((hash, held));
        }
        if !r.0.is_empty() {
            return Err(damaged("there is something behind its end"));
        }
        c.index = Index::restore(keys);
        Ok(c)
    }
}
