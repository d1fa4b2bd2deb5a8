//! Reservations: relations that for a while only one member may write.
//!
//! A long transaction against a stream of short ones of other members loses each time, for one of them
//! is always ordered before it. So a session that has lost often enough has its member reserve the
//! relations: an event of the order, after which changesets of other members that write them, or lock
//! rows of them, fail, until the transaction that it is for is ordered, or is over.
//!
//! Nobody can starve the group with it: a member has one reservation at a time; it ends after
//! [`RESERVATION_ENTRIES`] changesets of others at the latest; the member's next one is granted only
//! when others have had as many changesets judged again as during the last; and none is granted on a
//! relation that another member has.

use crate::changeset::Key;
use crate::changeset::key::{KEY_READ, KEY_RELATION};
use crate::ids::MemberId;
use crate::limits::{RESERVATION_ENTRIES, RESERVED_RELATIONS_MAX};
use std::collections::BTreeMap;

/// What a member has reserved, or how long it may not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// It has these.
    Holds {
        /// Ascending; a few.
        relations: Vec<u32>,
        /// Names the reservation: its position in the order.
        position: u64,
        /// Changesets of others that were judged meanwhile.
        seen: u32,
    },
    /// Others come first.
    Rests {
        /// Changesets of others that are still to be judged.
        left: u32,
    },
}

/// Those of all members.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Reservations {
    turns: BTreeMap<MemberId, Turn>,
}

impl Reservations {
    /// A member asks for relations. All are granted, or none is.
    pub fn reserve(&mut self, member: MemberId, relations: &[u32], position: u64) {
        let mut wanted = relations.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let fits = (1..=RESERVED_RELATIONS_MAX).contains(&wanted.len());
        let taken = wanted.iter().any(|r| self.holder(*r).is_some());
        if !fits || taken || self.turns.contains_key(&member) {
            return;
        }
        let turn = Turn::Holds {
            relations: wanted,
            position,
            seen: 0,
        };
        self.turns.insert(member, turn);
    }

    /// The member's reservation of this position is over. Another one is not.
    pub fn release(&mut self, member: MemberId, position: u64) {
        if self.position(member) == Some(position) {
            self.end(member);
        }
    }

    /// The member's reservation is over, whichever it is.
    pub fn end(&mut self, member: MemberId) {
        if let Some(Turn::Holds { seen, .. }) = self.turns.get(&member) {
            self.rest(member, *seen);
        }
    }

    /// The member is gone.
    pub fn forget(&mut self, member: MemberId) {
        self.turns.remove(&member);
    }

    /// Where in the order the member's reservation is, if it has one.
    pub fn position(&self, member: MemberId) -> Option<u64> {
        match self.turns.get(&member)? {
            Turn::Holds { position, .. } => Some(*position),
            Turn::Rests { .. } => None,
        }
    }

    /// Members that have one, and its position.
    pub fn held(&self) -> impl Iterator<Item = (MemberId, u64)> {
        let members = self.turns.keys();
        members.filter_map(|m| self.position(*m).map(|at| (*m, at)))
    }

    /// Who keeps a member from using this key.
    pub fn refuses(&self, origin: MemberId, key: &Key) -> Option<MemberId> {
        // Who only read them is in nobody's way.
        if self.turns.is_empty() || key.flags & (KEY_RELATION | KEY_READ) != KEY_RELATION {
            return None;
        }
        self.keeps_out(origin, key.relation)
    }

    /// Who keeps a member from using this relation.
    pub fn keeps_out(&self, member: MemberId, relation: u32) -> Option<MemberId> {
        self.holder(relation).filter(|holder| *holder != member)
    }

    /// A changeset of this member was judged.
    pub fn judged(&mut self, origin: MemberId) {
        if self.turns.is_empty() {
            return;
        }
        let mut over = Vec::new();
        for (member, turn) in self.turns.iter_mut().filter(|(m, _)| **m != origin) {
            match turn {
                Turn::Holds { seen, .. } => {
                    *seen += 1;
                    if *seen >= RESERVATION_ENTRIES {
                        over.push((*member, *seen));
                    }
                }
                Turn::Rests { left } => {
                    *left -= 1;
                    if *left == 0 {
                        over.push((*member, 0));
                    }
                }
            }
        }
        for (member, rest) in over {
            self.rest(member, rest);
        }
    }

    /// The turns, by member.
    pub fn turns(&self) -> &BTreeMap<MemberId, Turn> {
        &self.turns
    }

    /// Those of a checkpoint; `None` if they break a rule.
    pub fn from_turns(turns: Vec<(MemberId, Turn)>) -> Option<Reservations> {
        let mut all = Reservations::default();
        for (member, turn) in turns {
            let last = all.turns.last_key_value();
            let sound = last.is_none_or(|(before, _)| *before < member)
                && match &turn {
                    Turn::Rests { left } => (1..=RESERVATION_ENTRIES).contains(left),
                    Turn::Holds {
                        relations, seen, ..
                    } => {
                        *seen < RESERVATION_ENTRIES
                            && (1..=RESERVED_RELATIONS_MAX).contains(&relations.len())
                            && relations.is_sorted_by(|a, b| a < b)
                            && relations.iter().all(|r| all.holder(*r).is_none())
                    }
                };
            if !sound {
                return None;
            }
            all.turns.insert(member, turn);
        }
        Some(all)
    }

    fn rest(&mut self, member: MemberId, left: u32) {
        if left == 0 {
            self.turns.remove(&member);
        } else {
            self.turns.insert(member, Turn::Rests { left });
        }
    }

    fn holder(&self, relation: u32) -> Option<MemberId> {
        let has = |turn: &Turn| match turn {
            Turn::Holds { relations, .. } => relations.contains(&relation),
            Turn::Rests { .. } => false,
        };
        let found = self.turns.iter().find(|(_, turn)| has(turn));
        found.map(|(member, _)| *member)
    }
}
