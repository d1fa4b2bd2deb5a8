//! What members say to each other, and what entries carry, as bytes. Raft's messages are written
//! and read here field by field: no parser of a library sees what came from a peer.

use super::codec::{CodecError, Fields, put_bytes, put_count};
use super::log::{Checkpoint, Entry, Member};
use super::store;
use crate::ids::{Incarnation, MemberId, MessageId};
use crate::limits::{
    BATCH_MESSAGES_MAX, CHECKPOINT_BYTES_MAX, FRAME_PART_BYTES, FRAME_WHOLE_BYTES_MAX,
    LOG_RECORD_BYTES_MAX,
};
use bytes::{Bytes, BytesMut};
use raft::eraftpb::{Message, MessageType};

/// Context of a heartbeat or a vote.
const CONTEXT_BYTES_MAX: usize = 64;
const ENTRIES_MAX: usize = 1 << 20;
/// Bytes of a join request or its answer.
const JOIN_BYTES_MAX: usize = 64 << 10;

/// One message from member to member.
#[derive(Clone, PartialEq, Debug)]
pub enum Frame {
    /// Raft's own. Sender and receiver are those of the connection.
    Raft(Box<Message>),
    /// Messages for the total order, from their origin to the leader.
    Forward {
        /// Of the origin's life.
        incarnation: Incarnation,
        /// Number of the first.
        first: u64,
        /// Consecutive messages.
        payloads: Vec<Bytes>,
    },
    /// From the leader to an origin: go on from this number.
    Gap {
        /// Life that it speaks of.
        incarnation: Incarnation,
        /// Number that it expects.
        next: u64,
    },
    /// A request to join, handed on to the leader.
    Join {
        /// The sender's name for it.
        connection: u64,
        /// A [`super::members::JoinRequest`].
        request: Bytes,
    },
    /// The leader refuses it.
    JoinReply {
        /// As in [`Frame::Join`].
        connection: u64,
        /// A [`super::members::JoinReply`].
        reply: Bytes,
    },
    /// To the leader: drop this member.
    Remove(MemberId),
    /// To a server that was dropped and doesn't know.
    Gone,
}

impl Frame {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Raft(m) => {
                out.push(1);
                encode_raft(m, out);
            }
            Self::Forward {
                incarnation,
                first,
                payloads,
            } => {
                out.push(2);
                out.extend_from_slice(&incarnation.0.to_le_bytes());
                out.extend_from_slice(&first.to_le_bytes());
                put_count(out, payloads.len());
                for p in payloads {
                    put_bytes(out, p);
                }
            }
            Self::Gap { incarnation, next } => {
                out.push(3);
                out.extend_from_slice(&incarnation.0.to_le_bytes());
                out.extend_from_slice(&next.to_le_bytes());
            }
            Self::Join {
                connection,
                request,
            } => {
                out.push(4);
                out.extend_from_slice(&connection.to_le_bytes());
                put_bytes(out, request);
            }
            Self::JoinReply { connection, reply } => {
                out.push(5);
                out.extend_from_slice(&connection.to_le_bytes());
                put_bytes(out, reply);
            }
            Self::Remove(member) => {
                out.push(6);
                out.extend_from_slice(&member.0.to_le_bytes());
            }
            Self::Gone => out.push(7),
        }
    }

    /// Reads what a peer sent.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut f = Fields::new(bytes);
        let frame = match f.u8()? {
            1 => Self::Raft(Box::new(decode_raft(&mut f)?)),
            2 => Self::Forward {
                incarnation: Incarnation(f.u32()?),
                first: f.u64()?,
                payloads: {
                    let n = f.count(BATCH_MESSAGES_MAX, 4)?;
                    (0..n)
                        .map(|_| f.bytes(LOG_RECORD_BYTES_MAX))
                        .collect::<Result<_, _>>()?
                },
            },
            3 => Self::Gap {
                incarnation: Incarnation(f.u32()?),
                next: f.u64()?,
            },
            4 => Self::Join {
                connection: f.u64()?,
                request: f.bytes(JOIN_BYTES_MAX)?,
            },
            5 => Self::JoinReply {
                connection: f.u64()?,
                reply: f.bytes(JOIN_BYTES_MAX)?,
            },
            6 => Self::Remove(MemberId(f.u16()?)),
            7 => Self::Gone,
            _ => return Err(CodecError::Value),
        };
        f.end()?;
        Ok(frame)
    }
}

/// The messages of Raft that members exchange, in the order of their numbers on the wire.
const TYPES: [MessageType; 13] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Whether a message of Raft is one that members exchange.
pub fn is_sent(m: &Message) -> bool {
    TYPES.contains(&m.get_msg_type())
}

fn encode_raft(m: &Message, out: &mut Vec<u8>) {
    let ty = TYPES.iter().position(|t| *t == m.get_msg_type());
    out.push(ty.expect("only messages that are sent") as u8);
    out.push(u8::from(m.reject));
    for v in [
        m.term,
        m.log_term,
        m.index,
        m.commit,
        m.commit_term,
        m.reject_hint,
    ] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    put_bytes(out, &m.context);
    if is_read(m.get_msg_type()) {
        put_bytes(out, m.entries.first().map_or(&[], |e| &e.data));
        return;
    }
    put_count(out, m.entries.len());
    for e in m.entries.iter() {
        store::from_raft(e).encode(out);
    }
    put_bytes(out, &m.get_snapshot().data);
}

fn is_read(ty: MessageType) -> bool {
    matches!(
        ty,
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp
    )
}

/// Reads a message and checks what Raft takes for granted.
fn decode_raft(f: &mut Fields) -> Result<Message, CodecError> {
    let ty = *TYPES.get(usize::from(f.u8()?)).ok_or(CodecError::Value)?;
    let mut m = Message::default();
    m.set_msg_type(ty);
    m.reject = f.bool()?;
    m.term = f.u64()?;
    m.log_term = f.u64()?;
    m.index = f.u64()?;
    m.commit = f.u64()?;
    m.commit_term = f.u64()?;
    m.reject_hint = f.u64()?;
    m.context = f.bytes(CONTEXT_BYTES_MAX)?;
    // A term of 0 would pass for a message of this member itself.
    if (m.term == 0) != (ty == MessageType::MsgReadIndex) {
        return Err(CodecError::Value);
    }
    let limit = u64::MAX >> 1;
    if [m.term, m.log_term, m.index, m.commit, m.reject_hint]
        .iter()
        .any(|v| *v > limit)
    {
        return Err(CodecError::Value);
    }
    if is_read(ty) {
        let e = raft::eraftpb::Entry {
            data: f.bytes(CONTEXT_BYTES_MAX)?,
            ..Default::default()
        };
        m.set_entries(vec![e].into());
        return Ok(m);
    }
    let n = f.count(ENTRIES_MAX, 21)?;
    if n > 0 && ty != MessageType::MsgAppend {
        return Err(CodecError::Value);
    }
    let mut entries = Vec::with_capacity(n);
    let (mut index, mut term) = (m.index, m.log_term);
    for _ in 0..n {
        let e = Entry::decode(f)?;
        if e.index != index + 1 || e.term < term || e.term > m.term {
            return Err(CodecError::Value);
        }
        (index, term) = (e.index, e.term);
        entries.push(store::to_raft(&e));
    }
    m.set_entries(entries.into());
    let data = f.bytes(CHECKPOINT_BYTES_MAX + LOG_RECORD_BYTES_MAX)?;
    match (ty == MessageType::MsgSnapshot, data.is_empty()) {
        (true, false) => {
            let mut fields = Fields::new(data.clone());
            let checkpoint = Checkpoint::decode(&mut fields)?;
            fields.end()?;
            if checkpoint.index == 0 || checkpoint.term == 0 || checkpoint.term > m.term {
                return Err(CodecError::Value);
            }
            let mut snapshot = raft::eraftpb::Snapshot {
                data,
                ..Default::default()
            };
            let meta = snapshot.mut_metadata();
            meta.index = checkpoint.index;
            meta.term = checkpoint.term;
            meta.set_conf_state(store::conf_state(&checkpoint));
            m.set_snapshot(snapshot);
        }
        (false, true) => {}
        _ => return Err(CodecError::Value),
    }
    Ok(m)
}

/// The data of an entry that carries messages.
pub fn encode_batch(messages: &[(MessageId, Bytes)]) -> Vec<u8> {
    let bytes: usize = messages.iter().map(|(_, p)| p.len() + 18).sum();
    let mut out = Vec::with_capacity(4 + bytes);
    put_count(&mut out, messages.len());
    for (id, payload) in messages {
        out.extend_from_slice(&id.member.0.to_le_bytes());
        out.extend_from_slice(&id.incarnation.0.to_le_bytes());
        out.extend_from_slice(&id.number.to_le_bytes());
        put_bytes(&mut out, payload);
    }
    out
}

/// The messages of an entry.
pub fn decode_batch(data: Bytes) -> Result<Vec<(MessageId, Bytes)>, CodecError> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let mut f = Fields::new(data);
    let n = f.count(BATCH_MESSAGES_MAX, 18)?;
    let mut messages = Vec::with_capacity(n);
    for _ in 0..n {
        let id = MessageId {
            member: MemberId(f.u16()?),
            incarnation: Incarnation(f.u32()?),
            number: f.u64()?,
        };
        messages.push((id, f.bytes(LOG_RECORD_BYTES_MAX)?));
    }
    f.end()?;
    Ok(messages)
}

/// A membership change, one at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new member, which learns first.
    Add(Member),
    /// A learner votes from now on.
    Promote(MemberId),
    /// A member leaves. A voter is demoted first.
    Remove(MemberId),
    /// A voter that is to leave votes no longer. Entries after this one need no vote of it, and
    /// who has one of them knows that; so the others never need it again once it is gone.
    Demote(MemberId),
}

impl Change {
    /// The data of the entry.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Add(m) => {
                out.push(1);
                m.encode(&mut out);
            }
            Self::Promote(m) => {
                out.push(2);
                out.extend_from_slice(&m.0.to_le_bytes());
            }
            Self::Remove(m) => {
                out.push(3);
                out.extend_from_slice(&m.0.to_le_bytes());
            }
            Self::Demote(m) => {
                out.push(4);
                out.extend_from_slice(&m.0.to_le_bytes());
            }
        }
        out
    }

    /// From the data of an entry.
    pub fn decode(data: Bytes) -> Result<Self, CodecError> {
        let mut f = Fields::new(data);
        let change = match f.u8()? {
            1 => Self::Add(Member::decode(&mut f)?),
            2 => Self::Promote(MemberId(f.u16()?)),
            3 => Self::Remove(MemberId(f.u16()?)),
            4 => Self::Demote(MemberId(f.u16()?)),
            _ => return Err(CodecError::Value),
        };
        f.end()?;
        Ok(change)
    }
}

const WHOLE: u8 = 0;
const PART: u8 = 1;

/// Turns a frame into pieces of at most [`FRAME_PART_BYTES`] plus a few.
pub fn pieces(frame: &Frame, number: u32) -> Vec<Bytes> {
    let mut out = vec![WHOLE];
    frame.encode(&mut out);
    if out.len() <= FRAME_PART_BYTES {
        return vec![out.into()];
    }
    let parts = (out.len() - 1).div_ceil(FRAME_PART_BYTES);
    out[1..]
        .chunks(FRAME_PART_BYTES)
        .enumerate()
        .map(|(i, chunk)| {
            let mut piece = Vec::with_capacity(13 + chunk.len());
            piece.push(PART);
            for v in [number, i as u32, parts as u32] {
                piece.extend_from_slice(&v.to_le_bytes());
            }
            piece.extend_from_slice(chunk);
            piece.into()
        })
        .collect()
}

/// Puts the pieces of one peer together. Any that is lost costs the whole message.
#[derive(Debug, Default)]
pub struct Assembly {
    number: u32,
    next: u32,
    parts: u32,
    bytes: BytesMut,
}

impl Assembly {
    /// Takes a piece; the frame when it is complete.
    pub fn take(&mut self, piece: Bytes) -> Result<Option<Frame>, CodecError> {
        let mut f = Fields::new(piece);
        match f.u8()? {
            WHOLE => Frame::decode(f.rest()).map(Some),
            PART => {
                let (number, part, parts) = (f.u32()?, f.u32()?, f.u32()?);
                let chunk = f.rest();
                if part >= parts
                    || parts as usize > FRAME_WHOLE_BYTES_MAX / FRAME_PART_BYTES
                    || chunk.len() > FRAME_PART_BYTES
                {
                    return Err(CodecError::Value);
                }
                if part == 0 {
                    *self = Self {
                        number,
                        next: 0,
                        parts,
                        bytes: BytesMut::new(),
                    };
                }
                if (number, part, parts) != (self.number, self.next, self.parts) {
                    *self = Self::default();
                    return Ok(None);
                }
                self.bytes.extend_from_slice(&chunk);
                self.next += 1;
                if self.next < parts {
                    return Ok(None);
                }
                let whole = std::mem::take(self).bytes.freeze();
                Frame::decode(whole).map(Some)
            }
            _ => Err(CodecError::Value),
        }
    }
}
