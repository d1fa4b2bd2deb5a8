//! The state as bytes: what a restart and a joining member begin with.
//!
//! Little endian: magic u32, version u32, bound u64, last GID u64, floor u64, digest u64, counts of
//! members u64, entries u64 and turns of reservations u64; then the members by number (number u64,
//! low u64), the turns by member (see below), the GIDs above the floor in order (origin u32, count of
//! entries u32), the entries' hashes (u64 each), the entries' slots (a byte each), and the CRC32 of
//! everything before it.
//!
//! A turn: member u64, position u64 (0: it rests), changesets of others seen, or left, u32, count of
//! relations u32, relations (u32 each, as many as a reservation can have, 0 behind the last).
//!
//! It depends on the state alone, not on how far purging has come: members that processed the same
//! order write the same bytes, the one that started from a checkpoint among them.

use super::history::History;
use super::index::{GID_MAX, Index, Slot};
use super::reservation::{Reservations, Turn};
use super::{Certifier, Config};
use crate::ids::{Gid, MemberId};
use crate::limits::RESERVED_RELATIONS_MAX;
use std::collections::BTreeMap;
use std::fmt;

const MAGIC: u32 = u32::from_le_bytes(*b"PGRS");
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 4 + 4 + 7 * 8;
const CRC_BYTES: usize = 4;
const MEMBER_BYTES: usize = 16;
const TURN_BYTES: usize = 24 + 4 * RESERVED_RELATIONS_MAX;
const COMMIT_BYTES: usize = 8;

/// These bytes are no state of certification that this server can go on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Not ours, or the length or the checksum is wrong.
    Damaged,
    /// Of another version of the format.
    Version(u32),
    /// Made under this bound, which is part of what members agree on, and not under ours.
    Bound(u64),
    /// The checksum is right and the contents contradict each other: what does so.
    Inconsistent(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => write!(f, "the certification state is damaged"),
            Self::Version(version) => write!(
                f,
                "the certification state has format version {version}, this server knows {VERSION}"
            ),
            Self::Bound(bound) => write!(
                f,
                "the certification state was made under a bound of {bound} keys, not this server's"
            ),
            Self::Inconsistent(what) => {
                write!(f, "the certification state contradicts itself: {what}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

impl Certifier {
    /// Appends the state to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let hashes = self.history.hashes_above(self.floor);
        let gids = self.last_gid().0 - self.floor.0;
        out.reserve(
            HEAD_BYTES
                + self.lows.len() * MEMBER_BYTES
                + self.reservations.turns().len() * TURN_BYTES
                + gids as usize * COMMIT_BYTES
                + hashes.len() * 9
                + CRC_BYTES,
        );
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        for word in [
            self.config.keys_max as u64,
            self.last_gid().0,
            self.floor.0,
            self.digest,
            self.lows.len() as u64,
            hashes.len() as u64,
            self.reservations.turns().len() as u64,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for (member, low) in &self.lows {
            out.extend_from_slice(&u64::from(member.0).to_le_bytes());
            out.extend_from_slice(&low.0.to_le_bytes());
        }
        for (member, turn) in self.reservations.turns() {
            encode_turn(*member, turn, out);
        }
        for (origin, count) in self.history.commits_above(self.floor) {
            let count = u32::try_from(count).expect("a changeset is smaller than 4 GiB");
            out.extend_from_slice(&u32::from(origin.0).to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        hashes.for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
        let slots = self.history.slots_above(self.floor);
        out.extend(slots.map(Slot::byte));
        let crc = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Undoes [`Certifier::encode`]. Takes no memory beyond a small multiple of `bytes`.
    pub fn decode(config: Config, bytes: &[u8]) -> Result<Self, DecodeError> {
        use DecodeError::{Bound, Damaged, Inconsistent, Version};

        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(Damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(Damaged);
        }
        let mut input = Input(body);
        if input.u32()? != MAGIC {
            return Err(Damaged);
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(Version(version));
        }
        let bound = input.u64()?;
        if bound != config.keys_max as u64 {
            return Err(Bound(bound));
        }
        let last = Gid(input.u64()?);
        let floor = Gid(input.u64()?);
        let digest = input.u64()?;
        let members = input.u64()?;
        let entries = input.u64()?;
        let turns = input.u64()?;
        if floor > last || last > GID_MAX {
            return Err(Inconsistent("floor and last GID"));
        }
        let gids = last.0 - floor.0;
        if gids.saturating_add(entries) > bound {
            return Err(Inconsistent("more is retained than the bound allows"));
        }

        let mut lows = BTreeMap::new();
        let members = input.rows::<MEMBER_BYTES>(members)?;
        for mut row in members.map(Input) {
            let member =
                u16::try_from(row.u64()?).map_err(|_| Inconsistent("the number of a member"))?;
            let low = Gid(row.u64()?);
            if low > last {
                return Err(Inconsistent("a member reported more than there is"));
            }
            if lows
                .last_key_value()
                .is_some_and(|(before, _)| *before >= MemberId(member))
            {
                return Err(Inconsistent("members out of order"));
            }
            lows.insert(MemberId(member), low);
        }
        if lows.values().min().is_some_and(|low| *low > floor) {
            return Err(Inconsistent("the floor is below all reports"));
        }

        let turns = input.rows::<TURN_BYTES>(turns)?;
        let turns = turns
            .map(|row| decode_turn(Input(row)))
            .collect::<Result<_, _>>()?;
        let reservations =
            Reservations::from_turns(turns).ok_or(Inconsistent("the reservations"))?;

        let commits = input.rows::<COMMIT_BYTES>(gids)?;
        let mut hashes = input.rows::<8>(entries)?;
        let mut slots = input.rows::<1>(entries)?;
        if !input.0.is_empty() {
            return Err(Damaged);
        }
        let mut history = History::new(floor);
        let mut index = Index::with_capacity(entries as usize);
        for mut row in commits.map(Input) {
            let origin =
                u16::try_from(row.u32()?).map_err(|_| Inconsistent("the number of an origin"))?;
            let count = row.u32()?;
            let gid = history.last().next();
            for _ in 0..count {
                let (Some(hash), Some([slot])) = (hashes.next(), slots.next()) else {
                    return Err(Inconsistent("fewer entries than the GIDs have"));
                };
                let hash = Input(hash).u64()?;
                let slot = Slot::from_byte(*slot).ok_or(Inconsistent("a slot"))?;
                if !index.set(hash, slot, gid) {
                    return Err(Inconsistent("an entry twice under one GID"));
                }
                history.push(hash, slot);
            }
            history.close(MemberId(origin));
        }
        if hashes.next().is_some() {
            return Err(Inconsistent("more entries than the GIDs have"));
        }
        Ok(Self {
            config,
            floor,
            lows,
            digest,
            history,
            index,
            reservations,
            pending: Vec::new(),
        })
    }
}

fn encode_turn(member: MemberId, turn: &Turn, out: &mut Vec<u8>) {
    let (relations, position, count) = match turn {
        Turn::Holds {
            relations,
            position,
            seen,
        } => (&relations[..], *position, *seen),
        Turn::Rests { left } => (&[][..], 0, *left),
    };
    out.extend_from_slice(&u64::from(member.0).to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&(relations.len() as u32).to_le_bytes());
    for i in 0..RESERVED_RELATIONS_MAX {
        let relation = relations.get(i).copied().unwrap_or(0);
        out.extend_from_slice(&relation.to_le_bytes());
    }
}

fn decode_turn(mut row: Input<'_>) -> Result<(MemberId, Turn), DecodeError> {
    let wrong = DecodeError::Inconsistent("a reservation");
    let member = u16::try_from(row.u64()?).map_err(|_| wrong)?;
    let (position, count) = (row.u64()?, row.u32()?);
    let length = row.u32()? as usize;
    let mut relations = Vec::new();
    for i in 0..RESERVED_RELATIONS_MAX {
        match row.u32()? {
            relation if i < length => relations.push(relation),
            0 => {}
            _ => return Err(wrong),
        }
    }
    let turn = match (position, relations.len() == length) {
        (0, true) if length == 0 => Turn::Rests { left: count },
        (1.., true) => Turn::Holds {
            relations,
            position,
            seen: count,
        },
        _ => return Err(wrong),
    };
    Ok((MemberId(member), turn))
}

/// Takes from the front, never beyond the end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Damaged)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    /// The next `count` rows of `N` bytes each, which must all be there.
    fn rows<const N: usize>(
        &mut self,
        count: u64,
    ) -> Result<std::slice::ChunksExact<'a, u8>, DecodeError> {
        let bytes = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(N))
            .ok_or(DecodeError::Damaged)?;
        let (rows, rest) = self.0.split_at_checked(bytes).ok_or(DecodeError::Damaged)?;
        self.0 = rest;
        Ok(rows.chunks_exact(N))
    }
}
