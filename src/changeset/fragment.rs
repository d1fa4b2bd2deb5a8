//! Entries of a large transaction that travel ahead of its changeset, in messages of their own.
//!
//! Each fragment can be read alone: it opens its relation. Which of them count, and how many bytes of
//! each, the changeset says at its end, so that a savepoint's rollback needs no message.

use super::decode::{DecodeError, Entries};

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
/// Bytes in front of a fragment's entries: whose, number u32, CRC32 u32 of all with this field 0.
pub const FRAGMENT_HEADER_BYTES: usize = FRAGMENTS_OF_BYTES + 8;
/// Bytes of a [`Counted`].
pub const COUNTED_BYTES: usize = 8;

/// A fragment, as far as it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// From 0 in the order in which they were sent.
    pub number: u32,
    /// Bytes of its entries that count.
    pub bytes: u32,
}

impl Counted {
    pub(super) fn encode(self) -> [u8; COUNTED_BYTES] {
        let mut out = [0; COUNTED_BYTES];
        out[..4].copy_from_slice(&self.number.to_le_bytes());
        out[4..].copy_from_slice(&self.bytes.to_le_bytes());
        out
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
        self.counted.as_chunks::<COUNTED_BYTES>().0.iter().map(|b| {
            let [n0, n1, n2, n3, b0, b1, b2, b3] = *b;
            Counted {
                number: u32::from_le_bytes([n0, n1, n2, n3]),
                bytes: u32::from_le_bytes([b0, b1, b2, b3]),
            }
        })
    }
}

/// What stands in front of these entries as fragment `number`.
#[must_use]
pub fn fragment_header<'a>(
    of: FragmentsOf,
    number: u32,
    entries: impl Iterator<Item = &'a [u8]>,
) -> [u8; FRAGMENT_HEADER_BYTES] {
    let mut out = [0; FRAGMENT_HEADER_BYTES];
    out[..FRAGMENTS_OF_BYTES].copy_from_slice(&of.encode());
    out[FRAGMENTS_OF_BYTES..FRAGMENTS_OF_BYTES + 4].copy_from_slice(&number.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&out);
    entries.for_each(|piece| crc.update(piece));
    out[FRAGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.finalize().to_le_bytes());
    out
}

/// Whose fragment this is, and its number; `None` if it is too short for one.
#[must_use]
pub fn fragment_name(fragment: &[u8]) -> Option<(FragmentsOf, u32)> {
    let of = FragmentsOf::decode(fragment.first_chunk()?);
    let number = *fragment[FRAGMENTS_OF_BYTES..].first_chunk()?;
    (fragment.len() >= FRAGMENT_HEADER_BYTES).then_some((of, u32::from_le_bytes(number)))
}

/// The entries of a fragment that count, if it is whole.
pub fn fragment_entries(fragment: &[u8], counted: Counted) -> Result<Entries<'_>, DecodeError> {
    let (of, number) = fragment_name(fragment).ok_or(DecodeError::Length)?;
    let (header, entries) = fragment.split_at(FRAGMENT_HEADER_BYTES);
    if fragment_header(of, number, std::iter::once(entries)) != *header {
        return Err(DecodeError::Checksum);
    }
    let counting = entries.get(..counted.bytes as usize);
    match counting.filter(|_| number == counted.number) {
        Some(entries) => Ok(Entries::new(entries)),
        None => Err(DecodeError::Length),
    }
}
