//! What makes a server a member: its identity file, and how a server asks to join.

use super::codec::{CodecError, Fields, put_bytes, put_count};
use super::disk::Disk;
use super::log::Member;
use crate::ids::{Gid, GroupId, Incarnation, MemberId};
use crate::limits::{ADDRESS_BYTES_MAX, MEMBERS_MAX};
use bytes::Bytes;
use std::fmt;
use std::io;

/// Name of the identity's file.
pub const IDENTITY_FILE: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const MAGIC: u64 = 0x3144_4947_5250_4745;
/// Without the address.
const IDENTITY_BYTES: usize = 8 + 8 + 2 + 2 + 4 + 16 + 4 + 4;
const IDENTITY_BYTES_MAX: usize = IDENTITY_BYTES + ADDRESS_BYTES_MAX;
/// Bytes of a fingerprint or of a refusal.
const TEXT_BYTES_MAX: usize = 1024;

/// Who this server is in its group. It belongs to the server and its log: a copy of the data
/// directory leaves it out, and without the log it must not be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The group.
    pub group: GroupId,
    /// The member's number; 0 while it has asked for one and not yet got it.
    pub member: MemberId,
    /// Counts the starts.
    pub incarnation: Incarnation,
    /// Random; names this attempt to join.
    pub nonce: u128,
    /// Where the group reaches it, `host:port`.
    pub address: String,
}

/// The identity cannot be used.
#[derive(Debug)]
pub enum IdentityError {
    /// The file cannot be read or written.
    Io(io::Error),
    /// The file has other content than was written.
    Damaged,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "file \"{IDENTITY_FILE}\": {e}"),
            Self::Damaged => write!(f, "file \"{IDENTITY_FILE}\" is damaged"),
        }
    }
}

impl std::error::Error for IdentityError {}

impl From<io::Error> for IdentityError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl Identity {
    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(IDENTITY_BYTES);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&self.member.0.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.nonce.to_le_bytes());
        put_bytes(&mut out, self.address.as_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file's content.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if *crc != crc32fast::hash(body).to_le_bytes() {
            return None;
        }
        let mut f = Fields::new(Bytes::copy_from_slice(body));
        if f.u64().ok()? != MAGIC {
            return None;
        }
        let (group, member) = (GroupId(f.u64().ok()?), MemberId(f.u16().ok()?));
        f.u16().ok()?;
        let identity = Self {
            group,
            member,
            incarnation: Incarnation(f.u32().ok()?),
            nonce: f.u128().ok()?,
            address: f.string(ADDRESS_BYTES_MAX).ok()?,
        };
        (f.left() == 0).then_some(identity)
    }

    /// Reads the identity; `None` for a server that has none.
    pub fn load(disk: &impl Disk) -> Result<Option<Self>, IdentityError> {
        if !disk.list()?.iter().any(|n| n == IDENTITY_FILE) {
            return Ok(None);
        }
        let bytes = disk.read(IDENTITY_FILE, 0, IDENTITY_BYTES_MAX + 1)?;
        Self::decode(&bytes).map(Some).ok_or(IdentityError::Damaged)
    }

    /// Makes the identity durable: either the old one is there after a crash, or this one.
    pub fn store(&self, disk: &impl Disk) -> Result<(), IdentityError> {
        let bytes = self.encode();
        disk.create(IDENTITY_NEW, bytes.len() as u64)?;
        disk.write_at(IDENTITY_NEW, 0, &bytes)?;
        disk.sync(IDENTITY_NEW)?;
        disk.rename(IDENTITY_NEW, IDENTITY_FILE)?;
        disk.sync_dir()?;
        Ok(())
    }

    /// Begins the next life of this member, durably, before it says anything to anyone.
    pub fn next_life(&mut self, disk: &impl Disk) -> Result<(), IdentityError> {
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        self.store(disk)
    }
}

/// A server with a copy of the data asks for a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinRequest {
    /// The group of the copy.
    pub group: GroupId,
    /// From its identity file, durable there before it asks.
    pub nonce: u128,
    /// The copy has every GID up to here.
    pub gid: Gid,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Versions and architecture that must be equal on all members.
    pub fingerprint: String,
}

/// What it is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinReply {
    /// It is a member, and learns.
    Accepted {
        /// Its number.
        member: MemberId,
        /// All members, itself too.
        members: Vec<Member>,
    },
    /// Never with this copy or this build.
    Refused(String),
    /// Not now; ask again, or ask another member.
    Retry(String),
}

impl JoinRequest {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&self.nonce.to_le_bytes());
        out.extend_from_slice(&self.gid.0.to_le_bytes());
        put_bytes(&mut out, self.address.as_bytes());
        put_bytes(&mut out, self.fingerprint.as_bytes());
        out.into()
    }

    /// From bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut f = Fields::new(bytes);
        let request = Self {
            group: GroupId(f.u64()?),
            nonce: f.u128()?,
            gid: Gid(f.u64()?),
            address: f.string(ADDRESS_BYTES_MAX)?,
            fingerprint: f.string(TEXT_BYTES_MAX)?,
        };
        f.end()?;
        Ok(request)
    }
}

impl JoinReply {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Accepted { member, members } => {
                out.push(0);
                out.extend_from_slice(&member.0.to_le_bytes());
                put_count(&mut out, members.len());
                for m in members {
                    m.encode(&mut out);
                }
            }
            Self::Refused(why) => {
                out.push(1);
                put_bytes(&mut out, bounded(why).as_bytes());
            }
            Self::Retry(why) => {
                out.push(2);
                put_bytes(&mut out, bounded(why).as_bytes());
            }
        }
        out.into()
    }

    /// From bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut f = Fields::new(bytes);
        let reply = match f.u8()? {
            0 => {
                let member = MemberId(f.u16()?);
                let n = f.count(MEMBERS_MAX, 31)?;
                let members = (0..n)
                    .map(|_| Member::decode(&mut f))
                    .collect::<Result<_, _>>()?;
                Self::Accepted { member, members }
            }
            1 => Self::Refused(f.string(TEXT_BYTES_MAX)?),
            2 => Self::Retry(f.string(TEXT_BYTES_MAX)?),
            _ => return Err(CodecError::Value),
        };
        f.end()?;
        Ok(reply)
    }
}

/// At most the bytes that a reader accepts, cut between characters.
fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}
