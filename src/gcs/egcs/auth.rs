//! Who is at the other end of a connection, and that nobody in between changes what it says.
//!
//! ```text
//! dialer → acceptor   Hello: who, to whom, which life, of what kind, nonce
//! dialer ← acceptor   Hello likewise, proof over both
//! dialer → acceptor   proof over both
//! then each frame     length, counter, MAC | payload
//! ```
//!
//! Proofs are keyed with the group's secret, frames with a key for this connection and direction
//! that both nonces go into. A frame counter that is not the next one ends the connection, so
//! nothing is replayed, reordered or left out. Nothing is encrypted.

use crate::ids::{GroupId, Incarnation, MemberId};
use crate::limits::{FRAME_BYTES_MAX, SECRET_BYTES};
use std::fmt;

/// Bytes of a nonce, fresh from the system's randomness for each connection.
pub const NONCE_BYTES: usize = 32;
/// Bytes before each frame's payload.
pub const FRAME_HEADER_BYTES: usize = 4 + 8 + MAC_BYTES;
const MAC_BYTES: usize = 32;
const HELLO_BYTES: usize = 8 + 8 + 2 + 2 + 4 + 8 + NONCE_BYTES;
const MAGIC: u64 = 0x3148_5455_4150_4745;

/// This end of a connection.
#[derive(Clone)]
pub struct Local {
    /// The group.
    pub group: GroupId,
    /// This member, 0 for a server that wants to become one.
    pub member: MemberId,
    /// Its life.
    pub incarnation: Incarnation,
    /// [`super::Config::fingerprint`], hashed by [`kind`].
    pub kind: u64,
    /// The group's secret.
    pub secret: [u8; SECRET_BYTES],
}

/// A fingerprint as it travels in each handshake.
#[must_use]
pub fn kind(fingerprint: &str) -> u64 {
    let hash = blake3::hash(fingerprint.as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
    u64::from_le_bytes(*first)
}

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthError {
    /// The other end speaks another protocol.
    Protocol,
    /// It belongs to another group.
    Group,
    /// It is not the member that was dialed, or dials another one.
    Member,
    /// It is a former life of a member.
    Incarnation,
    /// It is a member, and was built or runs in a way that may give other results.
    Kind,
    /// It does not know the group's secret.
    Secret,
    /// A frame is longer than any may be.
    TooLong,
    /// A frame was repeated, left out or moved.
    Sequence,
    /// A frame was changed.
    Mac,
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "the other end does not speak this protocol",
            Self::Group => "the other end belongs to another group",
            Self::Member => "the other end is not the expected member",
            Self::Incarnation => "the other end is a former life of its member",
            Self::Kind => {
                "the other member is not of this server's kind: all members need the same build of \
                 the server and the same versions of the collation libraries"
            }
            Self::Secret => "the other end does not know the group's secret",
            Self::TooLong => "a frame is too long",
            Self::Sequence => "a frame was repeated, left out or moved",
            Self::Mac => "a frame was changed on its way",
        })
    }
}

impl std::error::Error for AuthError {}

/// An authenticated connection.
pub struct Session {
    /// Who is at the other end; 0 for a server that asks to join.
    pub peer: MemberId,
    /// Its life.
    pub incarnation: Incarnation,
    /// For frames to it.
    pub sealer: Sealer,
    /// For frames from it.
    pub opener: Opener,
}

/// What a message of the handshake leads to.
pub struct Progress {
    /// To be sent, if not empty.
    pub reply: Vec<u8>,
    /// The handshake is complete (after the reply has been sent).
    pub session: Option<Session>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Awaits {
    /// Acceptor: the dialer's hello.
    Hello,
    /// Dialer: the acceptor's hello and proof.
    HelloAndProof,
    /// Acceptor: the dialer's proof.
    Proof,
    /// Over, well or badly.
    Nothing,
}

/// One end of a handshake.
pub struct Handshake {
    local: Local,
    awaits: Awaits,
    /// Whom the dialer wants, 0 for anyone.
    wanted: MemberId,
    nonce: [u8; NONCE_BYTES],
    /// Both hellos, the dialer's first.
    transcript: Vec<u8>,
    peer: (MemberId, Incarnation),
}

struct Hello {
    group: GroupId,
    from: MemberId,
    to: MemberId,
    incarnation: Incarnation,
    kind: u64,
}

impl Handshake {
    /// Dials a member, or whoever answers (0). Returns what is to be sent first.
    pub fn dial(local: Local, wanted: MemberId, nonce: [u8; NONCE_BYTES]) -> (Self, Vec<u8>) {
        let mut h = Self {
            local,
            awaits: Awaits::HelloAndProof,
            wanted,
            nonce,
            transcript: Vec::with_capacity(2 * HELLO_BYTES),
            peer: (MemberId(0), Incarnation(0)),
        };
        let hello = h.hello(wanted);
        h.transcript.extend_from_slice(&hello);
        (h, hello)
    }

    /// Waits for a dialer.
    pub fn accept(local: Local, nonce: [u8; NONCE_BYTES]) -> Self {
        Self {
            local,
            awaits: Awaits::Hello,
            wanted: MemberId(0),
            nonce,
            transcript: Vec::with_capacity(2 * HELLO_BYTES),
            peer: (MemberId(0), Incarnation(0)),
        }
    }

    /// Exact length of the next message of the other end.
    pub fn wants(&self) -> usize {
        match self.awaits {
            Awaits::Hello => HELLO_BYTES,
            Awaits::HelloAndProof => HELLO_BYTES + MAC_BYTES,
            Awaits::Proof => MAC_BYTES,
            Awaits::Nothing => 0,
        }
    }

    /// Takes the other end's message of [`Handshake::wants`] bytes. `known` gives the newest life
    /// that this server knows of a member. After an error the connection is to be closed.
    pub fn take(
        &mut self,
        message: &[u8],
        known: &dyn Fn(MemberId) -> Incarnation,
    ) -> Result<Progress, AuthError> {
        let awaits = std::mem::replace(&mut self.awaits, Awaits::Nothing);
        let (hello, proof) = match awaits {
            Awaits::Hello => (Some(message), None),
            Awaits::HelloAndProof => {
                let (hello, proof) = message
                    .split_at_checked(HELLO_BYTES)
                    .ok_or(AuthError::Protocol)?;
                (Some(hello), Some(proof))
            }
            Awaits::Proof => (None, Some(message)),
            Awaits::Nothing => return Err(AuthError::Protocol),
        };
        if let Some(bytes) = hello {
            let hello = Hello::decode(bytes)?;
            self.check(&hello, awaits, known)?;
            self.peer = (hello.from, hello.incarnation);
            self.transcript.extend_from_slice(bytes);
        }
        match awaits {
            Awaits::Hello => {
                let mut reply = self.hello(self.peer.0);
                self.transcript.extend_from_slice(&reply);
                reply.extend_from_slice(self.proof("acceptor").as_bytes());
                self.awaits = Awaits::Proof;
                Ok(Progress {
                    reply,
                    session: None,
                })
            }
            Awaits::HelloAndProof => {
                self.verify("acceptor", proof)?;
                Ok(Progress {
                    reply: self.proof("dialer").as_bytes().to_vec(),
                    session: Some(self.session("dialer", "acceptor")),
                })
            }
            Awaits::Proof | Awaits::Nothing => {
                self.verify("dialer", proof)?;
                Ok(Progress {
                    reply: Vec::new(),
                    session: Some(self.session("acceptor", "dialer")),
                })
            }
        }
    }

    fn hello(&self, to: MemberId) -> Vec<u8> {
        let mut out = Vec::with_capacity(HELLO_BYTES + MAC_BYTES);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&self.local.group.0.to_le_bytes());
        out.extend_from_slice(&self.local.member.0.to_le_bytes());
        out.extend_from_slice(&to.0.to_le_bytes());
        out.extend_from_slice(&self.local.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.local.kind.to_le_bytes());
        out.extend_from_slice(&self.nonce);
        out
    }

    fn check(
        &self,
        hello: &Hello,
        awaits: Awaits,
        known: &dyn Fn(MemberId) -> Incarnation,
    ) -> Result<(), AuthError> {
        let me = self.local.member;
        if hello.group != self.local.group {
            return Err(AuthError::Group);
        }
        let addressed = match awaits {
            Awaits::Hello => hello.to == me || hello.to.0 == 0,
            _ => {
                let right = self.wanted.0 == 0 || hello.from == self.wanted;
                hello.to == me && right && hello.from.0 != 0
            }
        };
        // Two servers that are no members have nothing to say to each other.
        if !addressed || hello.from == me {
            return Err(AuthError::Member);
        }
        if hello.from.0 != 0 && hello.incarnation < known(hello.from) {
            return Err(AuthError::Incarnation);
        }
        // A server that is no member yet is told what differs when it asks to become one.
        let members = hello.from.0 != 0 && me.0 != 0;
        if members && hello.kind != self.local.kind {
            return Err(AuthError::Kind);
        }
        Ok(())
    }

    fn mac(&self, purpose: &str) -> blake3::Hash {
        let mut h = blake3::Hasher::new_keyed(&self.local.secret);
        h.update(&(purpose.len() as u64).to_le_bytes());
        h.update(purpose.as_bytes());
        h.update(&self.transcript);
        h.finalize()
    }

    fn proof(&self, side: &str) -> blake3::Hash {
        self.mac(&format!("postgres-r proof v1 {side}"))
    }

    fn verify(&self, side: &str, proof: Option<&[u8]>) -> Result<(), AuthError> {
        let proof: [u8; MAC_BYTES] = proof
            .and_then(|p| p.try_into().ok())
            .ok_or(AuthError::Protocol)?;
        // Compares in constant time.
        if self.proof(side) == blake3::Hash::from_bytes(proof) {
            Ok(())
        } else {
            Err(AuthError::Secret)
        }
    }

    fn session(&self, me: &str, other: &str) -> Session {
        let key = |side: &str| *self.mac(&format!("postgres-r frames v1 {side}")).as_bytes();
        Session {
            peer: self.peer.0,
            incarnation: self.peer.1,
            sealer: Sealer {
                key: key(me),
                counter: 0,
            },
            opener: Opener {
                key: key(other),
                counter: 0,
            },
        }
    }
}

impl Hello {
    fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        use super::codec::{CodecError, Fields};
        let parse = || {
            let mut f = Fields::new(bytes::Bytes::copy_from_slice(bytes));
            let magic = f.u64()?;
            let hello = Self {
                group: GroupId(f.u64()?),
                from: MemberId(f.u16()?),
                to: MemberId(f.u16()?),
                incarnation: Incarnation(f.u32()?),
                kind: f.u64()?,
            };
            let whole = magic == MAGIC && f.left() == NONCE_BYTES;
            whole.then_some(hello).ok_or(CodecError::Value)
        };
        parse().map_err(|_| AuthError::Protocol)
    }
}

/// The bytes before a frame's payload.
pub type FrameHeader = [u8; FRAME_HEADER_BYTES];

/// Marks outgoing frames.
pub struct Sealer {
    key: [u8; 32],
    counter: u64,
}

impl Sealer {
    /// The header of the next frame; the payload follows it unchanged.
    pub fn seal(&mut self, payload: &[u8]) -> FrameHeader {
        assert!(payload.len() <= FRAME_BYTES_MAX, "frames are bounded");
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[4..12].copy_from_slice(&self.counter.to_le_bytes());
        let mac = frame_mac(&self.key, &header, payload);
        header[12..].copy_from_slice(mac.as_bytes());
        self.counter += 1;
        header
    }
}

/// Checks incoming frames. After an error the connection is to be closed.
pub struct Opener {
    key: [u8; 32],
    counter: u64,
}

impl Opener {
    /// Length of the payload that follows a header, before memory is taken for it.
    pub fn length(&self, header: &FrameHeader) -> Result<usize, AuthError> {
        let (len, counter) = frame_fields(header);
        if counter != self.counter {
            return Err(AuthError::Sequence);
        }
        if len > FRAME_BYTES_MAX {
            return Err(AuthError::TooLong);
        }
        Ok(len)
    }

    /// Checks a whole frame.
    pub fn open(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), AuthError> {
        if self.length(header)? != payload.len() {
            return Err(AuthError::Mac);
        }
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&header[12..]);
        if frame_mac(&self.key, header, payload) != blake3::Hash::from_bytes(mac) {
            return Err(AuthError::Mac);
        }
        self.counter += 1;
        Ok(())
    }
}

fn frame_fields(header: &FrameHeader) -> (usize, u64) {
    let len = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
    let counter = u64::from_le_bytes(header[4..12].try_into().expect("eight bytes"));
    (len as usize, counter)
}

fn frame_mac(key: &[u8; 32], header: &FrameHeader, payload: &[u8]) -> blake3::Hash {
    let mut h = blake3::Hasher::new_keyed(key);
    h.update(&header[..12]);
    h.update(payload);
    h.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(member: u16, incarnation: u32) -> Local {
        Local {
            group: GroupId(9),
            member: MemberId(member),
            incarnation: Incarnation(incarnation),
            kind: kind("a build"),
            secret: [3; SECRET_BYTES],
        }
    }

    fn none(_: MemberId) -> Incarnation {
        Incarnation(0)
    }

    fn shake(dialer: Local, wanted: u16, acceptor: Local) -> Result<(Session, Session), AuthError> {
        let (mut d, hello) = Handshake::dial(dialer, MemberId(wanted), [1; NONCE_BYTES]);
        let mut a = Handshake::accept(acceptor, [2; NONCE_BYTES]);
        assert_eq!(hello.len(), a.wants());
        let reply = a.take(&hello, &none)?.reply;
        assert_eq!(reply.len(), d.wants());
        let Progress { reply, session } = d.take(&reply, &none)?;
        assert_eq!(reply.len(), a.wants());
        let other = a.take(&reply, &none)?.session;
        Ok((session.unwrap(), other.unwrap()))
    }

    #[test]
    fn members_and_joiners_connect() {
        for (from, wanted) in [(1, 2), (1, 0), (0, 0), (0, 2)] {
            let (mut d, mut a) = shake(local(from, 4), wanted, local(2, 7)).unwrap();
            assert_eq!((a.peer, a.incarnation), (MemberId(from), Incarnation(4)));
            assert_eq!((d.peer, d.incarnation), (MemberId(2), Incarnation(7)));
            for payload in [&b"one"[..], b"", b"three"] {
                let header = d.sealer.seal(payload);
                assert_eq!(a.opener.length(&header), Ok(payload.len()));
                a.opener.open(&header, payload).unwrap();
                let header = a.sealer.seal(payload);
                d.opener.open(&header, payload).unwrap();
            }
        }
    }

    #[test]
    fn strangers_are_refused() {
        let refused = |d: Local, wanted, a: Local| shake(d, wanted, a).err().unwrap();
        let mut other = local(1, 1);
        other.group = GroupId(8);
        assert_eq!(refused(other, 2, local(2, 1)), AuthError::Group);
        let mut other = local(1, 1);
        other.secret[31] ^= 1;
        assert_eq!(refused(other, 2, local(2, 1)), AuthError::Secret);
        assert_eq!(refused(local(1, 1), 3, local(2, 1)), AuthError::Member);
        assert_eq!(refused(local(2, 1), 0, local(2, 1)), AuthError::Member);
        assert_eq!(refused(local(0, 0), 0, local(0, 0)), AuthError::Member);
    }

    #[test]
    fn members_of_another_kind_are_refused_and_servers_that_ask_to_join_are_heard() {
        let other = |member| Local {
            kind: kind("another build"),
            ..local(member, 1)
        };
        for (dialer, acceptor) in [(other(1), local(2, 1)), (local(1, 1), other(2))] {
            let refused = shake(dialer, 2, acceptor).err();
            assert_eq!(refused, Some(AuthError::Kind));
        }
        assert!(shake(other(0), 2, local(2, 1)).is_ok());
    }

    #[test]
    fn dialer_without_the_secret_is_refused_by_the_acceptor() {
        let mut wrong = local(1, 1);
        wrong.secret = [4; SECRET_BYTES];
        let (_, hello) = Handshake::dial(wrong, MemberId(2), [1; NONCE_BYTES]);
        let mut a = Handshake::accept(local(2, 1), [2; NONCE_BYTES]);
        let reply = a.take(&hello, &none).unwrap().reply;
        // Sending the acceptor's own proof back does not help.
        let echo = a.take(&reply[HELLO_BYTES..], &none);
        assert_eq!(echo.err(), Some(AuthError::Secret));
        assert_eq!(a.wants(), 0);
    }

    #[test]
    fn former_lives_are_refused() {
        let (_, hello) = Handshake::dial(local(1, 4), MemberId(2), [1; NONCE_BYTES]);
        let mut a = Handshake::accept(local(2, 1), [2; NONCE_BYTES]);
        let result = a.take(&hello, &|_| Incarnation(5));
        assert_eq!(result.err(), Some(AuthError::Incarnation));
    }

    #[test]
    fn handshake_recorded_earlier_is_refused() {
        let (mut d, hello) = Handshake::dial(local(1, 1), MemberId(2), [1; NONCE_BYTES]);
        let mut a = Handshake::accept(local(2, 1), [2; NONCE_BYTES]);
        let reply = a.take(&hello, &none).unwrap().reply;
        let proof = d.take(&reply, &none).unwrap().reply;
        let mut later = Handshake::accept(local(2, 1), [5; NONCE_BYTES]);
        later.take(&hello, &none).unwrap();
        let replayed = later.take(&proof, &none);
        assert_eq!(replayed.err(), Some(AuthError::Secret));
    }

    #[test]
    fn frames_changed_repeated_left_out_or_reflected_are_refused() {
        let (mut d, mut a) = shake(local(1, 1), 2, local(2, 1)).unwrap();
        let first = d.sealer.seal(b"first");
        let second = d.sealer.seal(b"second");
        assert_eq!(a.opener.open(&second, b"second"), Err(AuthError::Sequence));
        assert_eq!(a.opener.open(&first, b"firsT"), Err(AuthError::Mac));
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut changed = first;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(a.opener.open(&changed, b"first").is_err(), "bit {bit}");
        }
        assert_eq!(d.opener.open(&first, b"first"), Err(AuthError::Mac));
        a.opener.open(&first, b"first").unwrap();
        assert_eq!(a.opener.open(&first, b"first"), Err(AuthError::Sequence));
        let mut long = second;
        long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(a.opener.length(&long), Err(AuthError::TooLong));
    }
}
