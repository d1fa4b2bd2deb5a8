//! Entries of a large transaction that travel ahead of its changeset, in messages of their own.
//!
//! Each fragment can be read alone: it opens its relation. Which of them count, and how many bytes of
//! each, the changeset says at its end. So that those who apply them before it comes need not do all of it
//! anew then, each fragment says how far the ones before it count.

use super::compress::{self, Opened, can_be_blocks};
use super::decode::DecodeError;
use std::borrow::Cow;

/// Whose fragments they are, within a member's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FragmentsOf {
    /// Process slot: it runs one transaction at a time.
    pub worker: u32,
    /// The transaction among those of the slot.
    pub ticket: u64,
}

/// Bytes of [`FragmentsOf`] in an entry and in front of a fragment.
pub const FRAGMENTS_OF_BYTES: usize = 12;
/// Bytes in front of a fragment's entries: whose, number u32, the last before it that counts (all 0 if
/// none does), bytes of entries u32, CRC32 u32 of all with this field 0. What follows are blocks of these entries
/// if it is shorter.
pub const FRAGMENT_HEADER_BYTES: usize = FRAGMENTS_OF_BYTES + 4 + COUNTED_BYTES + 4 + 4;
/// Bytes of a [`Counted`]: number u32, bytes u32.
pub const COUNTED_BYTES: usize = 8;

/// What a fragment says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentHead {
    /// Whose.
    pub of: FragmentsOf,
    /// Its number.
    pub number: u32,
    /// The last of those before it that counts by now, and how far; `None` if none does.
    pub after: Option<Counted>,
    /// Of its entries, before they were compressed.
    pub bytes: u32,
}

/// A fragment, as far as it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// From 0 in the order in which they were sent.
    pub number: u32,
    /// Bytes of its entries that count, not 0.
    pub bytes: u32,
}

impl Counted {
    pub(super) fn encode(self) -> [u8; COUNTED_BYTES] {
        let mut out = [0; COUNTED_BYTES];
        out[..4].copy_from_slice(&self.number.to_le_bytes());
        out[4..].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    fn decode(b: [u8; COUNTED_BYTES]) -> Counted {
        let [n0, n1, n2, n3, b0, b1, b2, b3] = b;
        Counted {
            number: u32::from_le_bytes([n0, n1, n2, n3]),
            bytes: u32::from_le_bytes([b0, b1, b2, b3]),
        }
    }
}

impl FragmentsOf {
    /// As bytes: worker u32, ticket u64, little endian.
    #[must_use]
    pub fn encode(self) -> [u8; FRAGMENTS_OF_BYTES] {
        let mut out = [0; FRAGMENTS_OF_BYTES];
        out[..4].copy_from_slice(&self.worker.to_le_bytes());
        out[4..].copy_from_slice(&self.ticket.to_le_bytes());
        out
    }

    /// Undoes [`FragmentsOf::encode`].
    #[must_use]
    pub fn decode(b: &[u8; FRAGMENTS_OF_BYTES]) -> FragmentsOf {
        let [w0, w1, w2, w3, ticket @ ..] = *b;
        FragmentsOf {
            worker: u32::from_le_bytes([w0, w1, w2, w3]),
            ticket: u64::from_le_bytes(ticket),
        }
    }
}

/// The list of a changeset's fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentList<'a> {
    /// Whose.
    pub of: FragmentsOf,
    /// [`COUNTED_BYTES`] each.
    pub(super) counted: &'a [u8],
}

impl<'a> FragmentList<'a> {
    /// Those that count, in their order.
    pub fn counted(&self) -> impl Iterator<Item = Counted> + use<'a> {
        let all = self.counted.as_chunks::<COUNTED_BYTES>().0;
        all.iter().map(|b| Counted::decode(*b))
    }
}

/// What stands in front of these entries, or of their blocks.
#[must_use]
pub fn fragment_header(head: FragmentHead, rest: &[u8]) -> [u8; FRAGMENT_HEADER_BYTES] {
    let FragmentHead {
        of,
        number,
        after,
        bytes,
    } = head;
    let mut out = [0; FRAGMENT_HEADER_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&of.encode());
    put(&number.to_le_bytes());
    put(&after.map_or([0; COUNTED_BYTES], Counted::encode));
    put(&bytes.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&out);
    crc.update(rest);
    out[FRAGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.finalize().to_le_bytes());
    out
}

/// What this fragment says of itself; `None` if that contradicts its length.
#[must_use]
pub fn fragment_head(fragment: &[u8]) -> Option<FragmentHead> {
    let (header, rest) = fragment.split_first_chunk::<FRAGMENT_HEADER_BYTES>()?;
    let of = FragmentsOf::decode(header.first_chunk()?);
    let numbers = &header[FRAGMENTS_OF_BYTES..];
    let after = Counted::decode(*numbers[4..].first_chunk()?);
    let bytes = u32::from_le_bytes(*numbers[4 + COUNTED_BYTES..].first_chunk()?);
    let entries = bytes as usize;
    let whole = rest.len() == entries || can_be_blocks(rest.len(), entries);
    whole.then_some(FragmentHead {
        of,
        number: u32::from_le_bytes(*numbers.first_chunk()?),
        after: (after.bytes > 0).then_some(after),
        bytes,
    })
}

/// A fragment comes to those that count so far. Those that do not any more go; one without entries is only there
/// to say so. False if what it follows is not among them.
#[must_use]
pub fn count(list: &mut Vec<Counted>, head: FragmentHead) -> bool {
    let left = match head.after {
        None => 0,
        Some(last) => match list.binary_search_by_key(&last.number, |c| c.number) {
            Ok(at) if last.bytes <= list[at].bytes => {
                list[at] = last;
                at + 1
            }
            _ => return false,
        },
    };
    list.truncate(left);
    let FragmentHead { number, bytes, .. } = head;
    if bytes > 0 {
        list.push(Counted { number, bytes });
    }
    true
}

/// The entries of a fragment that count, if it is whole. Takes memory for those that were compressed.
pub fn open<'a>(
    fragment: impl Into<Cow<'a, [u8]>>,
    counted: Counted,
) -> Result<Opened<'a>, DecodeError> {
    let fragment = fragment.into();
    let head = fragment_head(&fragment).ok_or(DecodeError::Length)?;
    let (header, rest) = fragment.split_at(FRAGMENT_HEADER_BYTES);
    if fragment_header(head, rest) != *header {
        return Err(DecodeError::Checksum);
    }
    if head.number != counted.number || head.bytes < counted.bytes {
        return Err(DecodeError::Length);
    }
    let (bytes, counting) = (head.bytes as usize, counted.bytes as usize);
    if rest.len() < bytes {
        let entries = compress::decompress(rest, bytes)?;
        return Ok(Opened::new(Cow::Owned(entries), 0..counting));
    }
    let range = FRAGMENT_HEADER_BYTES..FRAGMENT_HEADER_BYTES + counting;
    Ok(Opened::new(fragment, range))
}
