//! The messages that coordinators multicast to each other: codec, no policy.
//!
//! All kinds open with an envelope of [`ENVELOPE_BYTES`] (little endian): kind u8, version u8,
//! six zero bytes, then the sender's [`Report`] as three u64. A changeset follows as it is; a
//! status is followed by digest GID u64 and digest u64; a reservation by its relations, u32 each, as
//! many as there can be, 0 behind the last; a release by the member u64 and the reservation's position
//! in the order u64. A fragment follows its envelope as [`crate::changeset::fragment`] has it; a drop is
//! followed by whose fragments (worker u32, ticket u64) are not needed; a word of how many fragments were
//! applied early by the position of the transaction's first u64 and their number u64.

use crate::changeset;
use crate::changeset::fragment::{FRAGMENTS_OF_BYTES, FragmentHead, FragmentsOf, fragment_head};
use crate::ids::{Gid, MemberId};
use crate::limits::RESERVED_RELATIONS_MAX;
use bytes::Bytes;
use std::fmt;

/// Bytes in front of every message.
pub const ENVELOPE_BYTES: usize = 32;
/// Bytes of a whole status message.
pub const STATUS_BYTES: usize = ENVELOPE_BYTES + 16;

/// Of these messages and of all that they carry: fragments have none of their own.
pub const VERSION: u8 = changeset::header::VERSION;
const KIND_CHANGESET: u8 = 1;
const KIND_STATUS: u8 = 2;
const KIND_RESERVE: u8 = 3;
const KIND_RELEASE: u8 = 4;
const KIND_FRAGMENT: u8 = 5;
const KIND_DROP: u8 = 6;
const KIND_APPLIED: u8 = 7;

const RESERVE_BYTES: usize = ENVELOPE_BYTES + 4 * RESERVED_RELATIONS_MAX;
const RELEASE_BYTES: usize = ENVELOPE_BYTES + 16;
const APPLIED_BYTES: usize = ENVELOPE_BYTES + 16;
const DROP_BYTES: usize = ENVELOPE_BYTES + FRAGMENTS_OF_BYTES;

/// Relations to be reserved; 0 is none.
pub type Relations = [u32; RESERVED_RELATIONS_MAX];

/// Where a member stands, as it says itself. Each value only rises over a member's lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Lowest GID that any window of its transactions can still reach.
    pub low: Gid,
    /// Visible there.
    pub committed: Gid,
    /// In its flushed WAL.
    pub flushed: Gid,
}

/// The running digest of all verdicts, just after the one that gave out `gid`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DigestPoint {
    /// A multiple of [`super::Pace::digest_gids`]; 0 says nothing.
    pub gid: Gid,
    /// The digest there.
    pub digest: u64,
}

/// A decoded message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A transaction.
    Changeset(Report, Bytes),
    /// Positions alone.
    Status(Report, DigestPoint),
    /// The sender is to write these relations, and no other member.
    Reserve(Report, Relations),
    /// A member's reservation, made at this position of the order, is over.
    Release(Report, MemberId, u64),
    /// Entries of a transaction whose changeset follows later: what they say of themselves, all of it.
    Fragment(Report, FragmentHead, Bytes),
    /// No changeset follows these fragments.
    Drop(Report, FragmentsOf),
    /// The sender has applied so many fragments of the transaction whose first has this position.
    Applied(Report, u64, u32),
}

/// Bytes that are no message. The same on every member, so the message is passed over alike; but for one
/// of another version, which others may be able to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageError {
    /// Shorter than its kind needs, or longer.
    Length(usize),
    /// Of another version.
    Version(u8),
    /// No such kind.
    Kind(u8),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(n) => write!(f, "group message of {n} bytes"),
            Self::Version(v) => write!(
                f,
                "group message of version {v}, this server knows {VERSION}"
            ),
            Self::Kind(k) => write!(f, "group message of unknown kind {k}"),
        }
    }
}

impl std::error::Error for MessageError {}

/// Writes the envelope of a changeset into the room in front of it.
///
/// # Panics
/// If the message is shorter than an envelope.
pub fn seal_changeset(message: &mut [u8], report: Report) {
    envelope(&mut message[..ENVELOPE_BYTES], KIND_CHANGESET, report);
}

/// Writes the envelope of a fragment into the room in front of it.
///
/// # Panics
/// If the message is shorter than an envelope.
pub fn seal_fragment(message: &mut [u8], report: Report) {
    envelope(&mut message[..ENVELOPE_BYTES], KIND_FRAGMENT, report);
}

/// The end of fragments that no changeset follows.
#[must_use]
pub fn drop_fragments(report: Report, of: FragmentsOf) -> Bytes {
    let mut out = vec![0; ENVELOPE_BYTES];
    envelope(&mut out, KIND_DROP, report);
    out.extend_from_slice(&of.encode());
    Bytes::from(out)
}

/// How many fragments were applied early, of the transaction whose first has this position.
#[must_use]
pub fn applied(report: Report, first: u64, fragments: u32) -> Bytes {
    let mut out = vec![0; APPLIED_BYTES];
    envelope(&mut out[..ENVELOPE_BYTES], KIND_APPLIED, report);
    put(&mut out, ENVELOPE_BYTES, first);
    put(&mut out, ENVELOPE_BYTES + 8, fragments.into());
    Bytes::from(out)
}

/// A status message.
#[must_use]
pub fn status(report: Report, point: DigestPoint) -> Bytes {
    let mut out = vec![0; STATUS_BYTES];
    envelope(&mut out[..ENVELOPE_BYTES], KIND_STATUS, report);
    put(&mut out, ENVELOPE_BYTES, point.gid.0);
    put(&mut out, ENVELOPE_BYTES + 8, point.digest);
    Bytes::from(out)
}

/// A reservation.
#[must_use]
pub fn reserve(report: Report, relations: Relations) -> Bytes {
    let mut out = vec![0; ENVELOPE_BYTES];
    envelope(&mut out, KIND_RESERVE, report);
    out.extend(relations.iter().flat_map(|r| r.to_le_bytes()));
    Bytes::from(out)
}

/// The end of a reservation.
#[must_use]
pub fn release(report: Report, member: MemberId, position: u64) -> Bytes {
    let mut out = vec![0; RELEASE_BYTES];
    envelope(&mut out[..ENVELOPE_BYTES], KIND_RELEASE, report);
    put(&mut out, ENVELOPE_BYTES, member.0.into());
    put(&mut out, ENVELOPE_BYTES + 8, position);
    Bytes::from(out)
}

/// Decodes a delivered payload; the changeset stays a slice of it.
pub fn parse(payload: &Bytes) -> Result<Message, MessageError> {
    if payload.len() < ENVELOPE_BYTES {
        return Err(MessageError::Length(payload.len()));
    }
    if payload[1] != VERSION {
        return Err(MessageError::Version(payload[1]));
    }
    let report = Report {
        low: Gid(get(payload, 8)),
        committed: Gid(get(payload, 16)),
        flushed: Gid(get(payload, 24)),
    };
    match payload[0] {
        KIND_CHANGESET => Ok(Message::Changeset(report, payload.slice(ENVELOPE_BYTES..))),
        KIND_STATUS if payload.len() == STATUS_BYTES => {
            let point = DigestPoint {
                gid: Gid(get(payload, ENVELOPE_BYTES)),
                digest: get(payload, ENVELOPE_BYTES + 8),
            };
            Ok(Message::Status(report, point))
        }
        KIND_RESERVE if payload.len() == RESERVE_BYTES => {
            let mut relations = Relations::default();
            for (relation, bytes) in relations
                .iter_mut()
                .zip(payload[ENVELOPE_BYTES..].chunks(4))
            {
                *relation = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            Ok(Message::Reserve(report, relations))
        }
        // A number that no member has releases nothing.
        KIND_RELEASE if payload.len() == RELEASE_BYTES => {
            let member = u16::try_from(get(payload, ENVELOPE_BYTES)).unwrap_or(u16::MAX);
            let position = get(payload, ENVELOPE_BYTES + 8);
            Ok(Message::Release(report, MemberId(member), position))
        }
        KIND_FRAGMENT => {
            let fragment = payload.slice(ENVELOPE_BYTES..);
            let head = fragment_head(&fragment).ok_or(MessageError::Length(payload.len()))?;
            Ok(Message::Fragment(report, head, fragment))
        }
        KIND_DROP if payload.len() == DROP_BYTES => {
            let mut of = [0; FRAGMENTS_OF_BYTES];
            of.copy_from_slice(&payload[ENVELOPE_BYTES..]);
            Ok(Message::Drop(report, FragmentsOf::decode(&of)))
        }
        KIND_APPLIED if payload.len() == APPLIED_BYTES => {
            let fragments = get(payload, ENVELOPE_BYTES + 8);
            let fragments = u32::try_from(fragments).unwrap_or(u32::MAX);
            Ok(Message::Applied(
                report,
                get(payload, ENVELOPE_BYTES),
                fragments,
            ))
        }
        KIND_STATUS | KIND_RESERVE | KIND_RELEASE | KIND_DROP | KIND_APPLIED => {
            Err(MessageError::Length(payload.len()))
        }
        kind => Err(MessageError::Kind(kind)),
    }
}

fn envelope(out: &mut [u8], kind: u8, report: Report) {
    out.fill(0);
    out[0] = kind;
    out[1] = VERSION;
    put(out, 8, report.low.0);
    put(out, 16, report.committed.0);
    put(out, 24, report.flushed.0);
}

fn put(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPORT: Report = Report {
        low: Gid(0x0102),
        committed: Gid(0x0304),
        flushed: Gid(0x0506),
    };

    #[test]
    fn golden_bytes_of_a_status() {
        let bytes = status(
            REPORT,
            DigestPoint {
                gid: Gid(64),
                digest: 0x1122_3344_5566_7788,
            },
        );
        #[rustfmt::skip]
        let golden: [u8; STATUS_BYTES] = [
            2, 4, 0, 0, 0, 0, 0, 0,
            2, 1, 0, 0, 0, 0, 0, 0,
            4, 3, 0, 0, 0, 0, 0, 0,
            6, 5, 0, 0, 0, 0, 0, 0,
            64, 0, 0, 0, 0, 0, 0, 0,
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
        ];
        assert_eq!(&bytes[..], &golden);
    }

    #[test]
    fn golden_bytes_of_a_reservation_and_its_end() {
        let relations = [1, 2, 3, 4, 5, 6, 7, 0x0102_0304];
        let bytes = reserve(REPORT, relations);
        assert_eq!(bytes.len(), RESERVE_BYTES);
        assert_eq!(bytes[..2], [3, 4]);
        #[rustfmt::skip]
        assert_eq!(&bytes[ENVELOPE_BYTES..], &[
            1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0,
            5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1,
        ]);
        assert_eq!(parse(&bytes), Ok(Message::Reserve(REPORT, relations)));
        let bytes = release(REPORT, MemberId(5), 0x0102);
        assert_eq!(bytes[..2], [4, 4]);
        #[rustfmt::skip]
        assert_eq!(&bytes[ENVELOPE_BYTES..], &[
            5, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0,
        ]);
        let expected = Message::Release(REPORT, MemberId(5), 0x0102);
        assert_eq!(parse(&bytes), Ok(expected));
        let short = bytes.slice(..RELEASE_BYTES - 1);
        assert_eq!(parse(&short), Err(MessageError::Length(RELEASE_BYTES - 1)));
    }

    #[test]
    fn golden_bytes_of_what_was_applied_early() {
        let bytes = applied(REPORT, 0x0102, 3);
        assert_eq!(bytes[..2], [7, 4]);
        let golden = [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes[ENVELOPE_BYTES..], golden);
        assert_eq!(parse(&bytes), Ok(Message::Applied(REPORT, 0x0102, 3)));
    }

    #[test]
    fn a_changeset_comes_back_as_a_slice() {
        let mut message = vec![0xaa; ENVELOPE_BYTES];
        message.extend_from_slice(b"rows");
        seal_changeset(&mut message, REPORT);
        let payload = Bytes::from(message);
        let Ok(Message::Changeset(report, bytes)) = parse(&payload) else {
            panic!("not a changeset")
        };
        assert_eq!((report, &bytes[..]), (REPORT, &b"rows"[..]));
        assert_eq!(bytes.as_ptr(), payload[ENVELOPE_BYTES..].as_ptr());
    }

    #[test]
    fn what_is_no_message_says_why() {
        assert_eq!(
            parse(&Bytes::from_static(b"short")),
            Err(MessageError::Length(5))
        );
        let mut bytes = status(REPORT, DigestPoint::default()).to_vec();
        bytes.push(0);
        assert_eq!(
            parse(&Bytes::from(bytes.clone())),
            Err(MessageError::Length(STATUS_BYTES + 1))
        );
        bytes[0] = 9;
        assert_eq!(
            parse(&Bytes::from(bytes.clone())),
            Err(MessageError::Kind(9))
        );
        bytes[1] = 2;
        assert_eq!(parse(&Bytes::from(bytes)), Err(MessageError::Version(2)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&Bytes::from(bytes));
        }

        #[test]
        fn status_round_trip(a: u64, b: u64, c: u64, gid: u64, digest: u64) {
            let report = Report { low: Gid(a), committed: Gid(b), flushed: Gid(c) };
            let point = DigestPoint { gid: Gid(gid), digest };
            prop_assert_eq!(parse(&status(report, point)), Ok(Message::Status(report, point)));
        }
    }
}
