//! Reads a changeset, which may come from another member: every length is checked, nothing is
//! copied, no memory is taken for what a length claims.

use super::compress::{self, Opened, can_be_blocks};
use super::entry::{Entries, Entry, Source};
use super::fragment::FragmentList;
use super::header::{Header, MAGIC, VERSION};
use super::key::Keys;
use super::varint;
use crate::limits::{CHANGESET_BYTES_MAX, CHANGESET_KEYS_MAX};
use std::borrow::Cow;
use std::fmt;

/// These bytes are no changeset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Shorter than its own lengths say, or longer.
    Length,
    /// Longer than [`CHANGESET_BYTES_MAX`], or of more keys than [`CHANGESET_KEYS_MAX`].
    TooBig,
    /// Not ours.
    Magic,
    /// Of another version of the format.
    Version(u8),
    /// The checksum does not match.
    Checksum,
    /// The header says what none says, or says it in another way.
    Header,
    /// The same of a key.
    Key,
    /// Compressed entries that are none, or not as many bytes as was said, or not of rows.
    Block,
    /// An entry of an unknown kind, at this byte of the entries.
    Kind(u8, usize),
    /// An entry that is cut off or contradicts itself, at this byte of the entries.
    Entry(usize),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => write!(f, "the changeset's length contradicts its header"),
            Self::TooBig => write!(
                f,
                "the changeset is larger than {CHANGESET_BYTES_MAX} bytes or {CHANGESET_KEYS_MAX} keys"
            ),
            Self::Magic => write!(f, "these bytes are no changeset"),
            Self::Version(v) => write!(
                f,
                "the changeset has format version {v}, this server knows {VERSION}"
            ),
            Self::Checksum => write!(f, "the changeset's checksum does not match"),
            Self::Header => write!(f, "the changeset has a broken header"),
            Self::Key => write!(f, "the changeset has a broken key"),
            Self::Block => write!(f, "the changeset's compressed entries are broken"),
            Self::Kind(kind, at) => write!(
                f,
                "the changeset has an entry of unknown kind {kind} at byte {at}"
            ),
            Self::Entry(at) => write!(f, "the changeset has a broken entry at byte {at}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A changeset whose lengths and checksum are right. Who judges it needs no more; who applies it opens it.
#[derive(Clone, Copy, Debug)]
pub struct Changeset<'a> {
    header: Header,
    keys: &'a [u8],
    entries: Stored<'a>,
    beside: Beside<'a>,
}

/// Entries as they came.
#[derive(Clone, Copy, Debug)]
enum Stored<'a> {
    Plain(&'a [u8]),
    /// Blocks, and how many bytes they are for.
    Blocks(&'a [u8], usize),
}

/// What there is among entries beside rows.
#[derive(Clone, Copy, Debug, Default)]
struct Beside<'a> {
    fragments: Option<FragmentList<'a>>,
    source: Option<Source<'a>>,
    /// Something else.
    other: bool,
}

impl<'a> Beside<'a> {
    /// Goes through all of them.
    fn look(entries: Entries<'a>) -> Result<Beside<'a>, DecodeError> {
        let mut beside = Beside::default();
        for entry in entries {
            if beside.fragments.is_some() {
                return Err(DecodeError::Length);
            }
            match entry? {
                Entry::Fragments(list) => beside.fragments = Some(list),
                Entry::Source(_) if beside.source.is_some() => return Err(DecodeError::Length),
                Entry::Source(source) => beside.source = Some(source),
                Entry::Relation { .. }
                | Entry::Insert(_)
                | Entry::Batch(_)
                | Entry::Update { .. }
                | Entry::Delete(_)
                | Entry::Leave(_) => {}
                _ => beside.other = true,
            }
        }
        Ok(beside)
    }

    fn is_nothing(&self) -> bool {
        self.fragments.is_none() && self.source.is_none() && !self.other
    }
}

impl<'a> Changeset<'a> {
    /// Checks the header, all lengths and the checksum, then each key, and each entry unless they are compressed:
    /// these, whoever opens it does.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > CHANGESET_BYTES_MAX {
            return Err(DecodeError::TooBig);
        }
        let (crc, checked) = match bytes {
            [MAGIC, VERSION, rest @ ..] => rest.split_first_chunk().ok_or(DecodeError::Length)?,
            [MAGIC, version, ..] => return Err(DecodeError::Version(*version)),
            [] | [MAGIC] => return Err(DecodeError::Length),
            _ => return Err(DecodeError::Magic),
        };
        if crc32fast::hash(checked).to_le_bytes() != *crc {
            return Err(DecodeError::Checksum);
        }
        let (header, are_blocks, keys_bytes, rest) =
            Header::decode(checked).ok_or(DecodeError::Header)?;
        if keys_bytes > rest.len() {
            return Err(DecodeError::Length);
        }
        let (keys, entries) = rest.split_at(keys_bytes);
        if Keys::new(keys).check().ok_or(DecodeError::Key)? > CHANGESET_KEYS_MAX {
            return Err(DecodeError::TooBig);
        }
        let (entries, beside) = if are_blocks {
            let blocks = Stored::blocks(entries).ok_or(DecodeError::Block)?;
            (blocks, Beside::default())
        } else {
            let beside = Beside::look(Entries::new(entries))?;
            (Stored::Plain(entries), beside)
        };
        Ok(Changeset {
            header,
            keys,
            entries,
            beside,
        })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The writeset.
    #[must_use]
    pub fn keys(&self) -> Keys<'a> {
        Keys::new(self.keys)
    }

    /// The entries, in the order of execution. None is an error. Takes memory for those that were compressed.
    pub fn open(&self) -> Result<Opened<'a>, DecodeError> {
        let bytes = match self.entries {
            Stored::Plain(entries) => Cow::Borrowed(entries),
            Stored::Blocks(blocks, bytes) => Cow::Owned(open_blocks(blocks, bytes)?),
        };
        let all = 0..bytes.len();
        Ok(Opened::new(bytes, all))
    }

    /// Whether the entries are there as blocks.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        matches!(self.entries, Stored::Blocks(..))
    }

    /// The entries that went ahead, if any did.
    #[must_use]
    pub fn fragments(&self) -> Option<FragmentList<'a>> {
        self.beside.fragments
    }

    /// Whether it is all here, and about rows of relations only.
    #[must_use]
    pub fn has_only_rows(&self) -> bool {
        !self.beside.other && self.beside.fragments.is_none()
    }

    /// Where the transaction came from, if not from a client.
    #[must_use]
    pub fn source(&self) -> Option<Source<'a>> {
        self.beside.source
    }
}

impl<'a> Stored<'a> {
    /// The number and the blocks behind the keys.
    fn blocks(bytes: &'a [u8]) -> Option<Stored<'a>> {
        let (entries, blocks) = varint::read(bytes)?;
        let entries = usize::try_from(entries).ok()?;
        can_be_blocks(blocks.len(), entries).then_some(Stored::Blocks(blocks, entries))
    }
}

/// What a changeset's blocks say: so many bytes of entries, nothing but rows.
pub(super) fn open_blocks(blocks: &[u8], bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let entries = compress::decompress(blocks, bytes)?;
    if Beside::look(Entries::new(&entries))?.is_nothing() {
        Ok(entries)
    } else {
        Err(DecodeError::Block)
    }
}
