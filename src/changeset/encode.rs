//! Builds a changeset while its transaction runs.

use super::compress::compress;
use super::decode::open_blocks;
use super::entry::{
    ENTRY_BATCH, ENTRY_DELETE, ENTRY_FRAGMENTS, ENTRY_INSERT, ENTRY_LARGE_OBJECT, ENTRY_LEAVE,
    ENTRY_NOTIFY, ENTRY_RELATION, ENTRY_SEQUENCE, ENTRY_SOURCE, ENTRY_TRUNCATE, ENTRY_UPDATE, GONE,
    SEQUENCE_SET, SEQUENCE_TAKE, SequenceChange, Source, WITH_ACL, WITHOUT_ACL,
};
use super::fragment::{Counted, FragmentHead, FragmentsOf};
use super::header::{CHECKSUM, HEADER_BYTES_MAX, Header, HeaderBytes};
use super::key::{
    BEFORE_FIRST, KEY_BLIND, KEY_FLAGS, KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_READ, KEY_RELATION, Key,
    Keys,
};
use super::pen::Pen;
use super::sink::{Full, Sink, copy_from};
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use super::varint::{self, VARINT_BYTES_MAX};
use crate::ids::{Gid, Oid};
use crate::limits::{CHANGESET_BYTES_MAX, FRAGMENT_BYTES, FRAGMENT_PART_BYTES, KEYS_EXACT_MAX};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ops::Range;

/// What rows belong to: OID, fingerprint of the row layout, attributes.
type Relation = (Oid, u64, u16);

/// A state to which a builder can go back: the start of a subtransaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    keys_bytes: usize,
    keys_count: u32,
    last_key: Key,
    /// How often keys had been coarsened.
    coarsened: u32,
    /// Bytes of all entries that count, those in fragments too.
    at: u64,
    /// Entries, those that were taken out too.
    entries_count: u64,
    has_others: bool,
    relation: Option<Relation>,
}

/// What stands for the keys of a relation of which there were too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Coarse {
    /// Lowest `since` of those that were written.
    pub written: Option<Gid>,
    /// ... of those that were only locked.
    pub locked: Option<Gid>,
    /// ... of those that count from it ([`KEY_FROM_SINCE`]).
    pub from_since: Option<Gid>,
}

impl Coarse {
    fn add(&mut self, key: &Key) {
        let lower = |since: &mut Option<Gid>| {
            *since = Some(since.map_or(key.since, |s| s.min(key.since)));
        };
        if key.flags & KEY_LOCK_ONLY != 0 {
            lower(&mut self.locked);
        } else {
            lower(&mut self.written);
        }
        if key.flags & KEY_FROM_SINCE != 0 {
            lower(&mut self.from_since);
        }
    }
}

/// Whether the keys of a relation can stand for this one.
fn is_of_row(key: &Key) -> bool {
    key.flags & (KEY_RELATION | KEY_READ | KEY_BLIND) == 0
}

/// Where entries can be cut into fragments: what follows opens its relation.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Bytes and entries before it.
    at: usize,
    entries: u32,
}

/// Entries that were taken out, to be sent ahead.
#[derive(Debug)]
pub struct Taken<S> {
    /// All of them.
    pub entries: S,
    /// Where each fragment ends.
    pub ends: Vec<usize>,
    /// Number of the first.
    pub first: u32,
    /// What the first follows: see [`FragmentHead::after`](super::fragment::FragmentHead::after). Each other one
    /// follows all of the one before it.
    pub after: Option<Counted>,
}

impl<S> Taken<S> {
    /// What a fragment (from 0) says of itself, and where its entries are.
    #[must_use]
    pub fn fragment(&self, nth: usize, of: FragmentsOf) -> (FragmentHead, Range<usize>) {
        let start = |nth: usize| nth.checked_sub(1).map_or(0, |before| self.ends[before]);
        let number = self.first + nth as u32;
        let whole = |before: usize| Counted {
            number: number - 1,
            bytes: (self.ends[before] - start(before)) as u32,
        };
        let after = nth.checked_sub(1).map_or(self.after, |b| Some(whole(b)));
        let range = start(nth)..self.ends[nth];
        let head = FragmentHead {
            of,
            number,
            after,
            bytes: range.len() as u32,
        };
        (head, range)
    }
}

impl<S: Sink> Taken<S> {
    /// What stands behind the header of a fragment: its entries, or, if `compresses`, blocks of them where these
    /// are much shorter.
    #[must_use]
    pub fn written(&self, range: Range<usize>, compresses: bool) -> Vec<u8> {
        let blocks = compresses.then(|| compress(&self.entries, range.clone(), Vec::new()));
        blocks.flatten().unwrap_or_else(|| {
            let mut bytes = Vec::with_capacity(range.len());
            self.entries
                .each_of(range, &mut |piece| bytes.extend_from_slice(piece));
            bytes
        })
    }
}

/// How many of the last keys are compared with a new one.
const RECENT_KEYS: usize = 8;

/// A changeset under construction: its writeset and its entries grow side by side.
#[derive(Debug)]
pub struct Builder<S: Sink> {
    keys: S,
    entries: S,
    keys_count: u32,
    /// The last of `keys`.
    last_key: Key,
    entries_count: u32,
    /// Those that were taken out before.
    entries_taken: u64,
    /// Some of the entries are not about rows.
    has_others: bool,
    /// The relation that the next row entry belongs to.
    relation: Option<Relation>,
    recent: [Option<Key>; RECENT_KEYS],
    recent_next: usize,
    /// In their order. The beginning is not among them.
    parts: Vec<Part>,
    /// Entries that have gone ahead, as far as they count, oldest first.
    counted: Vec<Counted>,
    /// Bytes of `counted`.
    ahead: u64,
    /// The last of `counted` as the last fragment, or what it says, has it.
    said: Option<Counted>,
    /// Number of the next fragment.
    next_fragment: u32,
    /// Relations whose keys are too many.
    coarse: BTreeMap<u32, Coarse>,
    coarsened: u32,
    fragment_bytes: usize,
    part_bytes: usize,
    keys_exact_max: usize,
}

impl<S: Sink> Builder<S> {
    /// An empty changeset over two empty sinks.
    pub fn new(keys: S, entries: S) -> Self {
        Self {
            keys,
            entries,
            keys_count: 0,
            last_key: BEFORE_FIRST,
            entries_count: 0,
            entries_taken: 0,
            has_others: false,
            relation: None,
            recent: [None; RECENT_KEYS],
            recent_next: 0,
            parts: Vec::new(),
            counted: Vec::new(),
            ahead: 0,
            said: None,
            next_fragment: 0,
            coarse: BTreeMap::new(),
            coarsened: 0,
            fragment_bytes: FRAGMENT_BYTES,
            part_bytes: FRAGMENT_PART_BYTES,
            keys_exact_max: KEYS_EXACT_MAX,
        }
    }

    /// The same with other bounds.
    #[cfg(test)]
    pub fn bounded(keys: S, entries: S, fragment_bytes: usize, keys_exact_max: usize) -> Self {
        Self {
            fragment_bytes,
            part_bytes: fragment_bytes.div_ceil(8),
            keys_exact_max,
            ..Self::new(keys, entries)
        }
    }

    /// Whether it holds no entry: then there is nothing to send, whatever was locked.
    #[must_use]
    pub fn has_no_entries(&self) -> bool {
        self.entries_count == 0 && self.counted.is_empty()
    }

    /// Whether fragments have gone ahead, counted or not.
    #[must_use]
    pub fn has_fragments(&self) -> bool {
        self.next_fragment > 0
    }

    /// Keys and entries so far, without those that have gone ahead.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (self.keys_count, self.entries_count)
    }

    /// Bytes of the keys.
    #[must_use]
    pub fn keys_bytes(&self) -> usize {
        self.keys.len()
    }

    /// Bytes of the entries that have not gone ahead.
    #[must_use]
    pub fn entries_bytes(&self) -> usize {
        self.entries.len()
    }

    /// Most bytes of the finished changeset if it ended here. The caller keeps it within
    /// [`CHANGESET_BYTES_MAX`], since it knows what to tell the user beyond.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        HEADER_BYTES_MAX + self.keys.len() + self.entries.len()
    }

    /// Rows that follow belong to this relation. `fingerprint` is that of its row layout, which the
    /// other members compare with theirs. Costs nothing if it is the relation of the last row.
    pub fn relation(&mut self, oid: Oid, fingerprint: u64, natts: u16) -> Result<(), Full> {
        let relation = Some((oid, fingerprint, natts));
        let start = self.parts.last().map_or(0, |part| part.at);
        let part = Part {
            at: self.entries.len(),
            entries: self.entries_count,
        };
        let part_ends = part.at - start >= self.part_bytes;
        if self.relation == relation && !part_ends {
            return Ok(());
        }
        self.entry(ENTRY_RELATION, |pen| {
            pen.varints([oid.0.into()])?;
            pen.put(&fingerprint.to_le_bytes())?;
            pen.varints([natts.into()])
        })?;
        if part_ends {
            self.parts.push(part);
        }
        self.relation = relation;
        Ok(())
    }

    /// A new row of the current relation.
    pub fn insert(&mut self, row: &TupleBytes<'_>) -> Result<(), Full> {
        let natts = self.natts();
        self.entry(ENTRY_INSERT, |pen| pen.tuple(row, natts))
    }

    /// A changed row: what named it before, which columns changed, and their new values.
    ///
    /// `new` has all attributes of the relation; the unchanged ones are null in it.
    pub fn update(
        &mut self,
        identity: &TupleBytes<'_>,
        changed: Bitmap<'_>,
        new: &TupleBytes<'_>,
    ) -> Result<(), Full> {
        let natts = self.natts();
        assert_eq!(new.natts, natts, "all attributes of the relation");
        assert_eq!(
            changed.0.len(),
            bitmap_bytes(natts),
            "a bit for each attribute"
        );
        self.entry(ENTRY_UPDATE, |pen| {
            pen.tuple(identity, natts)?;
            pen.put(changed.0)?;
            pen.changed_tuple(new, changed)
        })
    }

    /// A row that is gone.
    pub fn delete(&mut self, identity: &TupleBytes<'_>) -> Result<(), Full> {
        let natts = self.natts();
        self.entry(ENTRY_DELETE, |pen| pen.tuple(identity, natts))
    }

    /// A row that goes to another partition, where it is inserted.
    pub fn leave(&mut self, identity: &TupleBytes<'_>) -> Result<(), Full> {
        let natts = self.natts();
        self.entry(ENTRY_LEAVE, |pen| pen.tuple(identity, natts))
    }

    /// Many new rows of the current relation.
    pub fn batch<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = TupleBytes<'a>>,
    ) -> Result<(), Full> {
        let natts = self.natts();
        let count = rows.len();
        self.entry(ENTRY_BATCH, |pen| {
            pen.varints([count as u64])?;
            let mut written = 0;
            for row in rows {
                pen.tuple(&row, natts)?;
                written += 1;
            }
            assert_eq!(written, count, "as many rows as were announced");
            Ok(())
        })
    }

    /// Relations that were truncated, all at once. Rows that follow belong to the relation of those
    /// before.
    pub fn truncate(&mut self, relations: &[u32]) -> Result<(), Full> {
        assert!(!relations.is_empty(), "something was truncated");
        self.entry(ENTRY_TRUNCATE, |pen| {
            pen.varints([relations.len() as u64])?;
            relations
                .iter()
                .try_for_each(|oid| pen.varints([(*oid).into()]))
        })
    }

    /// A notification.
    pub fn notify(&mut self, channel: &CStr, payload: &CStr) -> Result<(), Full> {
        assert!(!channel.is_empty(), "a channel has a name");
        self.entry(ENTRY_NOTIFY, |pen| {
            pen.put(channel.to_bytes_with_nul())?;
            pen.put(payload.to_bytes_with_nul())
        })
    }

    /// A large object beside its pages: its owner's name, and the items of its ACL as texts, one after
    /// the other, each with its NUL; `None` if it has no ACL.
    pub fn large_object(&mut self, oid: Oid, owner: &CStr, acl: Option<&[u8]>) -> Result<(), Full> {
        assert!(
            acl.is_none_or(|a| a.last().is_none_or(|b| *b == 0)),
            "C strings"
        );
        let state = if acl.is_some() { WITH_ACL } else { WITHOUT_ACL };
        self.entry(ENTRY_LARGE_OBJECT, |pen| {
            pen.varints([oid.0.into()])?;
            pen.put(&[state])?;
            pen.put(owner.to_bytes_with_nul())?;
            match acl {
                None => Ok(()),
                Some(acl) => {
                    pen.varints([acl.len() as u64])?;
                    pen.put(acl)
                }
            }
        })
    }

    /// A change of a sequence. The current relation stays.
    pub fn sequence(&mut self, oid: Oid, change: SequenceChange) -> Result<(), Full> {
        let wanted = !matches!(change, SequenceChange::Take { want: 0, .. });
        assert!(wanted, "who takes no values does not ask");
        self.entry(ENTRY_SEQUENCE, |pen| {
            pen.varints([oid.0.into()])?;
            match change {
                SequenceChange::Take { want, slot, ticket } => {
                    pen.put(&[SEQUENCE_TAKE])?;
                    pen.varints([want.into(), slot.into()])?;
                    pen.put(&ticket.to_le_bytes())
                }
                SequenceChange::Set { last, called } => {
                    pen.put(&[SEQUENCE_SET])?;
                    pen.put(&last.to_le_bytes())?;
                    pen.put(&[called.into()])
                }
            }
        })
    }

    /// Where the transaction came from. At most once.
    pub fn source(&mut self, source: Source<'_>) -> Result<(), Full> {
        assert!(!source.name.is_empty(), "a source has a name");
        self.entry(ENTRY_SOURCE, |pen| {
            pen.put(source.name.to_bytes_with_nul())?;
            pen.put(&source.lsn.to_le_bytes())?;
            pen.put(&source.timestamp.to_le_bytes())
        })
    }

    /// A large object is gone; its pages go by themselves.
    pub fn large_object_gone(&mut self, oid: Oid) -> Result<(), Full> {
        self.entry(ENTRY_LARGE_OBJECT, |pen| {
            pen.varints([oid.0.into()])?;
            pen.put(&[GONE])
        })
    }

    /// A key of the writeset. One that says nothing beyond one of the last few is left out.
    pub fn key(&mut self, key: Key) -> Result<(), Full> {
        if is_of_row(&key)
            && let Some(coarse) = self.coarse.get_mut(&key.relation)
        {
            coarse.add(&key);
            return Ok(());
        }
        let covered = |old: &Key| {
            old.hash == key.hash
                && old.flags == key.flags
                && old.mode >= key.mode
                && old.since <= key.since
        };
        if self.recent.iter().flatten().any(covered) {
            return Ok(());
        }
        assert_eq!(key.flags & !KEY_FLAGS, 0, "flags of a key");
        append_key(&mut self.keys, &mut self.last_key, key)?;
        self.keys_count += 1;
        self.recent[self.recent_next] = Some(key);
        self.recent_next = (self.recent_next + 1) % RECENT_KEYS;
        Ok(())
    }

    /// Where it ends now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            keys_bytes: self.keys.len(),
            keys_count: self.keys_count,
            last_key: self.last_key,
            coarsened: self.coarsened,
            at: self.ahead + self.entries.len() as u64,
            entries_count: self.entries_taken + u64::from(self.entries_count),
            has_others: self.has_others,
            relation: self.relation,
        }
    }

    /// Takes back everything since a mark; of keys that were coarsened since, nothing: more keys
    /// than needed cost at most an abort.
    pub fn rollback(&mut self, mark: Mark) {
        if mark.coarsened == self.coarsened {
            assert!(mark.keys_bytes <= self.keys.len(), "a mark of the past");
            self.keys.truncate(mark.keys_bytes);
            self.keys_count = mark.keys_count;
            self.last_key = mark.last_key;
        }
        // Some of them may be gone.
        self.recent = [None; RECENT_KEYS];
        self.has_others = mark.has_others;
        if mark.at > self.ahead {
            let len = (mark.at - self.ahead) as usize;
            assert!(len <= self.entries.len(), "a mark of the past");
            self.entries.truncate(len);
            self.parts.retain(|part| part.at < len);
            self.entries_count = (mark.entries_count - self.entries_taken) as u32;
            self.relation = mark.relation;
        } else {
            // What follows is a fragment of its own.
            self.entries.truncate(0);
            self.parts.clear();
            self.entries_count = 0;
            self.relation = None;
            while let Some(last) = self.counted.last_mut().filter(|_| self.ahead > mark.at) {
                let less = u64::from(last.bytes).min(self.ahead - mark.at);
                last.bytes -= less as u32;
                self.ahead -= less;
                if last.bytes == 0 {
                    self.counted.pop();
                }
            }
        }
    }

    /// Takes out entries, to be sent ahead. They count unless they are rolled back. Those behind one of the
    /// marks in `open`, which come outermost first, can still be: they stay, in `fresh`, as far as at least half
    /// of all goes.
    pub fn take_entries(&mut self, mut fresh: S, open: impl IntoIterator<Item = Mark>) -> Taken<S> {
        let all = Part {
            at: self.entries.len(),
            entries: self.entries_count,
        };
        let kept_from = self.part_before(open);
        let cut = kept_from.filter(|part| copy_from(&self.entries, part.at, &mut fresh).is_ok());
        let cut = cut.unwrap_or(all);
        self.entries.truncate(cut.at);
        let entries = std::mem::replace(&mut self.entries, fresh);
        let mut parts = std::mem::take(&mut self.parts);
        let rest = parts.split_off(parts.partition_point(|part| part.at < cut.at));
        let begun = rest.iter().filter(|part| part.at > cut.at);
        self.parts.extend(begun.map(|part| Part {
            at: part.at - cut.at,
            entries: part.entries - cut.entries,
        }));
        let ends = self.ends(&parts, cut.at);
        let (first, after) = (self.next_fragment, self.counted.last().copied());
        let mut start = 0;
        for end in &ends {
            let bytes = (end - start) as u32;
            let number = self.next_fragment;
            self.counted.push(Counted { number, bytes });
            self.next_fragment += 1;
            start = *end;
        }
        if !ends.is_empty() {
            self.said = self.counted.last().copied();
        }
        self.ahead += cut.at as u64;
        self.entries_taken += u64::from(cut.entries);
        self.entries_count -= cut.entries;
        if self.entries_count == 0 {
            self.relation = None;
        }
        Taken {
            entries,
            ends,
            first,
            after,
        }
    }

    /// A fragment without entries, if a rollback has taken back some that went ahead and none has said so
    /// since.
    pub fn take_correction(&mut self, empty: S) -> Option<Taken<S>> {
        let after = self.counted.last().copied();
        if after == self.said {
            return None;
        }
        self.said = after;
        let first = self.next_fragment;
        self.next_fragment += 1;
        Some(Taken {
            entries: empty,
            ends: vec![0],
            first,
            after,
        })
    }

    /// Where the last part begins of which nothing lies behind the first of these marks that leaves half
    /// of all before it.
    fn part_before(&self, open: impl IntoIterator<Item = Mark>) -> Option<Part> {
        let len = self.entries.len();
        open.into_iter().find_map(|mark| {
            let behind = mark.at.checked_sub(self.ahead)? as usize;
            let before = self.parts.partition_point(|part| part.at <= behind);
            let last = self.parts[..before].last().copied();
            last.filter(|part| part.at >= len.div_ceil(2) && behind < len)
        })
    }

    /// Where the fragments end into which so many bytes with these parts are cut: as few as may be.
    fn ends(&self, parts: &[Part], bytes: usize) -> Vec<usize> {
        let mut ends = Vec::new();
        let (mut start, mut last) = (0, 0);
        for at in parts.iter().map(|part| part.at).chain([bytes]) {
            if at - start > self.fragment_bytes && last > start {
                ends.push(last);
                start = last;
            }
            last = at;
        }
        if last > start {
            ends.push(last);
        }
        ends
    }

    /// Says which of the fragments that went ahead count, and whose they are; the last entry.
    pub fn fragments(&mut self, of: FragmentsOf) -> Result<(), Full> {
        let counted = std::mem::take(&mut self.counted);
        let written = self.entry(ENTRY_FRAGMENTS, |pen| {
            pen.put(&of.encode())?;
            pen.put(&(counted.len() as u32).to_le_bytes())?;
            counted.iter().try_for_each(|c| pen.put(&c.encode()))
        });
        self.counted = counted;
        written
    }

    /// Whether there are so many keys that [`Builder::coarsen`] is due.
    #[must_use]
    pub fn has_many_keys(&self) -> bool {
        self.keys_count as usize > self.keys_exact_max
    }

    /// Says every key once; if there still are many, has single entries stand for all keys of
    /// relations, those with the most keys first. The keys that stay go to `fresh`.
    pub fn coarsen(&mut self, mut fresh: S) -> Result<(), Full> {
        let mut exact: BTreeMap<(u32, u64, u8, u8), Key> = BTreeMap::new();
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        let mut bytes = Vec::with_capacity(self.keys.len());
        self.keys.each(&mut |piece| bytes.extend_from_slice(piece));
        for key in Keys::new(&bytes) {
            let name = (key.relation, key.hash, key.mode as u8, key.flags);
            let known = exact.entry(name).or_insert_with(|| {
                if is_of_row(&key) {
                    *counts.entry(key.relation).or_default() += 1;
                }
                key
            });
            known.since = known.since.min(key.since);
        }
        let mut left = exact.len();
        let mut added = Vec::new();
        while left > self.keys_exact_max / 2
            && let Some((relation, count)) =
                counts.iter().map(|(r, n)| (*r, *n)).max_by_key(|c| c.1)
        {
            counts.remove(&relation);
            added.push(relation);
            left -= count;
        }
        let mut coarse = self.coarse.clone();
        let (mut count, mut last) = (0, BEFORE_FIRST);
        for key in exact.values() {
            if is_of_row(key) && added.contains(&key.relation) {
                coarse.entry(key.relation).or_default().add(key);
            } else {
                append_key(&mut fresh, &mut last, *key)?;
                count += 1;
            }
        }
        self.keys_count = count;
        self.last_key = last;
        self.keys = fresh;
        self.coarse = coarse;
        self.coarsened += 1;
        self.recent = [None; RECENT_KEYS];
        Ok(())
    }

    /// Relations whose keys are to be stood for, which [`Builder::coarsen`] has left out.
    #[must_use]
    pub fn coarse(&self) -> Vec<(u32, Coarse)> {
        self.coarse.iter().map(|(r, c)| (*r, *c)).collect()
    }

    /// Ends it: `header` as bytes, with the checksum, and the sinks. The changeset is the header's bytes,
    /// then those of the first sink, then of the second.
    pub fn finish(self, header: Header) -> (HeaderBytes, S, S) {
        self.end(header, false)
    }

    /// The same, with the entries as blocks, if they are only rows and blocks are much shorter. Nobody looks at them
    /// again before they are applied.
    pub fn finish_compressed(mut self, header: Header) -> (HeaderBytes, S, S) {
        let only_rows = !self.has_others;
        let blocks = only_rows.then(|| blocks(&self.entries)).flatten();
        if let Some(blocks) = &blocks {
            self.entries.replace(blocks);
        }
        self.end(header, blocks.is_some())
    }

    fn end(self, header: Header, are_blocks: bool) -> (HeaderBytes, S, S) {
        let bytes = self.total_bytes();
        assert!(bytes <= CHANGESET_BYTES_MAX, "a changeset of {bytes} bytes");
        let mut header = header.encode(are_blocks, self.keys.len() as u32);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[CHECKSUM.end..]);
        self.keys.each(&mut |b| crc.update(b));
        self.entries.each(&mut |b| crc.update(b));
        header.seal(crc.finalize());
        (header, self.keys, self.entries)
    }

    /// The two sinks of a changeset that is given up.
    pub fn into_sinks(self) -> (S, S) {
        (self.keys, self.entries)
    }

    /// Appends an entry, or nothing.
    fn entry(
        &mut self,
        kind: u8,
        write: impl FnOnce(&mut Pen<'_, S>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let start = self.entries.len();
        let mut pen = Pen {
            sink: &mut self.entries,
        };
        let written = pen.put(&[kind]).and_then(|()| write(&mut pen));
        match written {
            Ok(()) => {
                self.entries_count += 1;
                self.has_others |= !matches!(kind, ENTRY_RELATION..=ENTRY_LEAVE);
            }
            Err(Full) => self.entries.truncate(start),
        }
        written
    }

    fn natts(&self) -> u16 {
        self.relation.expect("a row entry follows its relation").2
    }
}

/// Entries as blocks, behind how many bytes they are.
fn blocks<S: Sink>(entries: &S) -> Option<Vec<u8>> {
    let mut number = [0; VARINT_BYTES_MAX];
    let len = varint::write(entries.len() as u64, &mut number);
    let blocks = compress(entries, 0..entries.len(), number[..len].to_vec())?;
    debug_assert_eq!(open_blocks(&blocks[len..], entries.len()).err(), None);
    Some(blocks)
}

/// Appends a key to others, of which `last` is the last.
fn append_key<S: Sink>(keys: &mut S, last: &mut Key, key: Key) -> Result<(), Full> {
    let (bytes, len) = key.encode(last);
    keys.append(&bytes[..len])?;
    *last = key;
    Ok(())
}
