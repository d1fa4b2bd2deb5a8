//! Small tables that one process writes and any may read whole: a sequence lock over words.

use super::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::ids::{Gid, MemberId};
use crate::limits::{MEMBERS_MAX, OPEN_TRANSACTIONS_MAX};

const TEXT_WORDS: usize = 32;

/// Bytes that a [`Text`] holds; longer ones are cut at a character.
pub const TEXT_BYTES: usize = TEXT_WORDS * 8;

/// Words that change together. One writer; readers try again when it was at work meanwhile.
#[repr(C)]
#[derive(Debug)]
struct Words<const N: usize> {
    /// Odd while the writer is at work. Written by the writer only.
    sequence: AtomicU32,
    words: [AtomicU64; N],
}

impl<const N: usize> Words<N> {
    fn new() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn store(&self, new: &[u64]) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self
            .words
            .iter()
            .zip(new.iter().chain(std::iter::repeat(&0)))
        {
            word.store(*value, Ordering::Relaxed);
        }
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    fn load(&self) -> [u64; N] {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let words = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return words;
            }
            std::hint::spin_loop();
        }
    }
}

/// A short text.
#[repr(C)]
#[derive(Debug)]
pub struct Text(Words<TEXT_WORDS>);

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

impl Text {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self(Words::new())
    }

    /// Replaces it; only the one writer calls this.
    pub fn set(&self, text: &str) {
        self.0.store(&pack(text, TEXT_BYTES));
    }

    /// What it says now.
    #[must_use]
    pub fn get(&self) -> String {
        unpack(&self.0.load())
    }
}

fn pack(text: &str, bytes_max: usize) -> Vec<u64> {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.as_bytes()[..end]
        .chunks(8)
        .map(|c| {
            let mut word = [0; 8];
            word[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(word)
        })
        .collect()
}

fn unpack(words: &[u64]) -> String {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .take_while(|b| *b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A member as the statistics view shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberRow {
    /// Number.
    pub id: MemberId,
    /// Counts in majorities.
    pub voter: bool,
    /// This member has a connection to it (or is it).
    pub connected: bool,
    /// As it last reported.
    pub last_committed: Gid,
    /// As it last reported.
    pub flushed: Gid,
    /// Where it listens.
    pub address: String,
}

const ROW_WORDS: usize = 11;
const ADDRESS_BYTES: usize = (ROW_WORDS - 3) * 8;

/// The members of the group.
#[repr(C)]
#[derive(Debug)]
pub struct MemberTable(Words<{ MEMBERS_MAX * ROW_WORDS + 1 }>);

impl Default for MemberTable {
    fn default() -> Self {
        Self::new()
    }
}

impl MemberTable {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self(Words::new())
    }

    /// Replaces it; only the one writer calls this.
    pub fn set(&self, rows: &[MemberRow]) {
        let rows = &rows[..rows.len().min(MEMBERS_MAX)];
        let mut words = vec![rows.len() as u64];
        for row in rows {
            words.push(
                u64::from(row.id.0) | u64::from(row.voter) << 16 | u64::from(row.connected) << 17,
            );
            words.push(row.last_committed.0);
            words.push(row.flushed.0);
            let mut address = pack(&row.address, ADDRESS_BYTES);
            address.resize(ADDRESS_BYTES / 8, 0);
            words.extend(address);
        }
        self.0.store(&words);
    }

    /// The rows now.
    #[must_use]
    pub fn get(&self) -> Vec<MemberRow> {
        let words = self.0.load();
        let count = (words[0] as usize).min(MEMBERS_MAX);
        words[1..]
            .chunks_exact(ROW_WORDS)
            .take(count)
            .map(|w| MemberRow {
                id: MemberId(w[0] as u16),
                voter: w[0] & 1 << 16 != 0,
                connected: w[0] & 1 << 17 != 0,
                last_committed: Gid(w[1]),
                flushed: Gid(w[2]),
                address: unpack(&w[3..]),
            })
            .collect()
    }
}

/// A large transaction whose changes travel ahead of its COMMIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenRow {
    /// On which it runs.
    pub member: MemberId,
    /// Of it that were ordered.
    pub fragments: u64,
    /// Of these.
    pub bytes: u64,
}

const OPEN_WORDS: usize = 3;

/// The large transactions of all members that are open.
#[repr(C)]
#[derive(Debug)]
pub struct OpenTable(Words<{ OPEN_TRANSACTIONS_MAX * OPEN_WORDS + 1 }>);

impl Default for OpenTable {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenTable {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self(Words::new())
    }

    /// Replaces it; only the one writer calls this.
    pub fn set(&self, rows: &[OpenRow]) {
        let rows = &rows[..rows.len().min(OPEN_TRANSACTIONS_MAX)];
        let mut words = vec![rows.len() as u64];
        for row in rows {
            words.extend([u64::from(row.member.0), row.fragments, row.bytes]);
        }
        self.0.store(&words);
    }

    /// The rows now.
    #[must_use]
    pub fn get(&self) -> Vec<OpenRow> {
        let words = self.0.load();
        let count = (words[0] as usize).min(OPEN_TRANSACTIONS_MAX);
        words[1..]
            .chunks_exact(OPEN_WORDS)
            .take(count)
            .map(|w| OpenRow {
                member: MemberId(w[0] as u16),
                fragments: w[1],
                bytes: w[2],
            })
            .collect()
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    #[test]
    fn open_transactions_are_read_back() {
        let table = OpenTable::new();
        assert_eq!(table.get(), []);
        let row = |i: usize| OpenRow {
            member: MemberId(i as u16),
            fragments: 7,
            bytes: u64::MAX - i as u64,
        };
        let rows: Vec<OpenRow> = (0..=OPEN_TRANSACTIONS_MAX).map(row).collect();
        table.set(&rows);
        assert_eq!(table.get(), rows[..OPEN_TRANSACTIONS_MAX]);
        table.set(&rows[..1]);
        assert_eq!(table.get(), rows[..1]);
    }

    #[test]
    fn what_is_set_is_read_back() {
        let text = Text::new();
        assert_eq!(text.get(), "");
        text.set("group ä");
        assert_eq!(text.get(), "group ä");
        text.set(&"ä".repeat(200));
        assert_eq!(text.get(), "ä".repeat(128));
        text.set("x");
        assert_eq!(text.get(), "x");
        let table = MemberTable::new();
        let row = |i: u16| MemberRow {
            id: MemberId(i),
            voter: i.is_multiple_of(2),
            connected: i.is_multiple_of(3),
            last_committed: Gid(i.into()),
            flushed: Gid(7),
            address: format!("127.0.0.1:{i}"),
        };
        let rows: Vec<MemberRow> = (1..=MEMBERS_MAX as u16).map(row).collect();
        table.set(&rows);
        assert_eq!(table.get(), rows);
        table.set(&rows[..1]);
        assert_eq!(table.get(), rows[..1]);
    }
}
