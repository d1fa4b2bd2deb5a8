//! What the group log says: its records, how they are written as bytes, and what a server that
//! starts again makes of them. How records lie in files is [`super::segment`]'s matter.

use super::codec::{CodecError, Fields, put_bytes, put_count};
use crate::ids::{Gid, Incarnation, MemberId};
use crate::limits::{ADDRESS_BYTES_MAX, CHECKPOINT_BYTES_MAX, LOG_RECORD_BYTES_MAX, MEMBERS_MAX};
use bytes::Bytes;

pub use super::inspect::inspect;

/// One record of the log. Each is written and read whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// An entry. It supersedes every earlier entry with its index or a higher one.
    Entry(Entry),
    /// Raft's term, vote and commit index; supersedes the one before.
    HardState(HardState),
    /// The state above, as of a position that this log has reached.
    Checkpoint(Checkpoint),
    /// A checkpoint of another member, together with the hard state that goes with it. It
    /// supersedes everything before it: the log goes on after the checkpoint's index.
    Restore(Checkpoint, HardState),
}

/// An entry of the replicated log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Position, from 1 on without gaps.
    pub index: u64,
    /// Of the leader that proposed it.
    pub term: u64,
    /// What the data is.
    pub kind: EntryKind,
    /// A batch of messages, or a membership change; empty in a new leader's first entry.
    pub data: Bytes,
}

/// What an entry carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// Messages.
    Batch,
    /// A membership change.
    Change,
}

/// What Raft must not forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// Newest term seen.
    pub term: u64,
    /// Voted for in that term, 0 for nobody.
    pub vote: u64,
    /// Entries known to be committed.
    pub commit: u64,
}

/// Everything that a member needs to go on after a position of the total order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint {
    /// Entries up to here are contained.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Messages of entry `index + 1` that are contained too.
    pub skip: u32,
    /// Messages delivered.
    pub seq: u64,
    /// Last GID of the state.
    pub gid: Gid,
    /// Number that the next member gets.
    pub next_member: u16,
    /// Sorted by number.
    pub members: Vec<Member>,
    /// The member to whom this checkpoint was sent, if it was added only at a later position:
    /// Raft wants to see it in the configuration already.
    pub guest: Option<Member>,
    /// Last message accepted of each member, sorted by member.
    pub seen: Vec<Seen>,
    /// What the layer above wants back.
    pub state: Bytes,
}

/// A member in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its number.
    pub id: MemberId,
    /// Votes, else learns.
    pub voter: bool,
    /// Chosen by the joiner, so that asking twice joins once.
    pub nonce: u128,
    /// GID of the copy that it joined with.
    pub gid: Gid,
    /// `host:port`.
    pub address: String,
}

/// The last message of a member that was accepted into the total order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Whose.
    pub member: MemberId,
    /// Of which life.
    pub incarnation: Incarnation,
    /// Its number.
    pub number: u64,
}

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const CHECKPOINT: u8 = 3;
const RESTORE: u8 = 4;

impl Record {
    /// Tells apart what the payload holds; stands in the record's header.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Entry(_) => ENTRY,
            Self::HardState(_) => HARD_STATE,
            Self::Checkpoint(_) => CHECKPOINT,
            Self::Restore(..) => RESTORE,
        }
    }

    /// Appends the payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Entry(e) => e.encode(out),
            Self::HardState(h) => h.encode(out),
            Self::Checkpoint(c) => c.encode(out),
            Self::Restore(c, h) => {
                h.encode(out);
                c.encode(out);
            }
        }
    }

    /// Bytes that [`Record::encode`] appends, or a little more.
    pub fn size_hint(&self) -> usize {
        match self {
            Self::Entry(e) => 32 + e.data.len(),
            Self::HardState(_) => 24,
            Self::Checkpoint(c) | Self::Restore(c, _) => c.size_hint() + 24,
        }
    }

    /// Reads a payload of this kind.
    pub fn decode(kind: u8, payload: Bytes) -> Result<Self, CodecError> {
        let mut f = Fields::new(payload);
        let record = match kind {
            ENTRY => Self::Entry(Entry::decode(&mut f)?),
            HARD_STATE => Self::HardState(HardState::decode(&mut f)?),
            CHECKPOINT => Self::Checkpoint(Checkpoint::decode(&mut f)?),
            RESTORE => {
                let h = HardState::decode(&mut f)?;
                Self::Restore(Checkpoint::decode(&mut f)?, h)
            }
            _ => return Err(CodecError::Value),
        };
        f.end()?;
        Ok(record)
    }
}

impl Entry {
    /// Appends index, term, kind and data.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.term.to_le_bytes());
        out.push(match self.kind {
            EntryKind::Batch => 0,
            EntryKind::Change => 1,
        });
        put_bytes(out, &self.data);
    }

    /// Reads what [`Entry::encode`] wrote.
    pub fn decode(f: &mut Fields) -> Result<Self, CodecError> {
        Ok(Self {
            index: f.u64()?,
            term: f.u64()?,
            kind: match f.u8()? {
                0 => EntryKind::Batch,
                1 => EntryKind::Change,
                _ => return Err(CodecError::Value),
            },
            data: f.bytes(LOG_RECORD_BYTES_MAX)?,
        })
    }
}

impl HardState {
    fn encode(&self, out: &mut Vec<u8>) {
        for v in [self.term, self.vote, self.commit] {
            out.extend_from_slice(&v.to_le_bytes());
        }
    }

    fn decode(f: &mut Fields) -> Result<Self, CodecError> {
        Ok(Self {
            term: f.u64()?,
            vote: f.u64()?,
            commit: f.u64()?,
        })
    }
}

impl Checkpoint {
    /// The beginning of a group: its one member votes, and nothing has happened.
    pub fn birth(member: MemberId, address: &str, gid: Gid, state: Bytes) -> Self {
        Self {
            index: 1,
            term: 1,
            gid,
            next_member: member.0 + 1,
            members: vec![Member {
                id: member,
                voter: true,
                nonce: 0,
                gid,
                address: address.to_owned(),
            }],
            state,
            ..Self::default()
        }
    }

    fn size_hint(&self) -> usize {
        let members = self.members.iter().chain(&self.guest);
        let members: usize = members.map(|m| 64 + m.address.len()).sum();
        64 + members + self.seen.len() * 16 + self.state.len()
    }

    /// Appends all fields; a pure function of the value, so equal on all members.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.size_hint());
        for v in [self.index, self.term, self.seq, self.gid.0] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.skip.to_le_bytes());
        out.extend_from_slice(&self.next_member.to_le_bytes());
        put_count(out, self.members.len());
        for m in &self.members {
            m.encode(out);
        }
        put_count(out, self.guest.iter().len());
        if let Some(m) = &self.guest {
            m.encode(out);
        }
        put_count(out, self.seen.len());
        for s in &self.seen {
            out.extend_from_slice(&s.member.0.to_le_bytes());
            out.extend_from_slice(&s.incarnation.0.to_le_bytes());
            out.extend_from_slice(&s.number.to_le_bytes());
        }
        put_bytes(out, &self.state);
    }

    /// Reads what [`Checkpoint::encode`] wrote.
    pub fn decode(f: &mut Fields) -> Result<Self, CodecError> {
        let (index, term, seq, gid) = (f.u64()?, f.u64()?, f.u64()?, Gid(f.u64()?));
        let (skip, next_member) = (f.u32()?, f.u16()?);
        let n = f.count(MEMBERS_MAX, 31)?;
        let members = (0..n)
            .map(|_| Member::decode(f))
            .collect::<Result<Vec<_>, _>>()?;
        let guest = match f.count(1, 31)? {
            0 => None,
            _ => Some(Member::decode(f)?),
        };
        let n = f.count(usize::from(u16::MAX), 14)?;
        let seen = (0..n)
            .map(|_| {
                Ok(Seen {
                    member: MemberId(f.u16()?),
                    incarnation: Incarnation(f.u32()?),
                    number: f.u64()?,
                })
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        if !members.is_sorted_by(|a, b| a.id < b.id)
            || !seen.is_sorted_by(|a, b| a.member < b.member)
        {
            return Err(CodecError::Value);
        }
        let state = f.bytes(CHECKPOINT_BYTES_MAX)?;
        Ok(Self {
            index,
            term,
            skip,
            seq,
            gid,
            next_member,
            members,
            guest,
            seen,
            state,
        })
    }
}

impl Member {
    /// Appends all fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.push(u8::from(self.voter));
        out.extend_from_slice(&self.nonce.to_le_bytes());
        out.extend_from_slice(&self.gid.0.to_le_bytes());
        put_bytes(out, self.address.as_bytes());
    }

    /// Reads what [`Member::encode`] wrote.
    pub fn decode(f: &mut Fields) -> Result<Self, CodecError> {
        Ok(Self {
            id: MemberId(f.u16()?),
            voter: f.bool()?,
            nonce: f.u128()?,
            gid: Gid(f.u64()?),
            address: f.string(ADDRESS_BYTES_MAX)?,
        })
    }
}
