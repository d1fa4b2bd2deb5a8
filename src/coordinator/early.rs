//! Large transactions of other members that helpers begin to apply before their changesets come.
//!
//! Nothing here is replicated, and no verdict depends on it: a helper that has begun early has no GID,
//! gives way to everybody, and may give up at any time. Then its transaction is begun anew once it is twice
//! as long, so that what is done in vain stays in proportion, or is applied as any other when its changeset
//! has passed. A transaction is named by the position of its first fragment.

use super::dispatch::{Dispatch, Helper};
use super::event::{Early, Effect, GcsCommand};
use super::open::Place;
use crate::ids::{Gid, MemberId};
use crate::limits::EARLY_KEPT_MAX;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// A fragment that was ordered.
#[derive(Debug)]
struct Recent {
    nth: u32,
    base: Gid,
    bytes: Bytes,
}

/// What one helper is at.
#[derive(Debug)]
struct Begun {
    helper: u32,
    /// The helper waits for this fragment, which is not ordered yet.
    wanted: Option<u32>,
    /// How many were ordered.
    ordered: u32,
    /// It was begun anew, or had to wait, and is not near the last yet: the origin does not wait for that.
    behind: bool,
    /// The last of them, so that who keeps up need not read the log.
    recent: VecDeque<Recent>,
    /// Its changeset has passed.
    gid: Option<Gid>,
    /// The helper was told to stop.
    ended: bool,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub struct Begins {
    begun: BTreeMap<u64, Begun>,
    /// Helpers gave up on these, which may be begun again when so many fragments are ordered.
    given_up: BTreeMap<u64, u32>,
    /// Positions of fragments that are being read: of which transaction, and which.
    reading: BTreeMap<u64, (u64, u32)>,
}

impl Begins {
    /// A helper has begun with this.
    pub(super) fn is_begun(&self, gid: Gid) -> bool {
        self.begun.values().any(|b| b.gid == Some(gid))
    }
}

impl Dispatch {
    /// A fragment of another member's transaction was ordered, the last of these. It goes to the helper
    /// that waits for it; or a helper begins, as long as half of them are left for other work.
    pub fn early_fragment(
        &mut self,
        origin: MemberId,
        places: &[Place],
        base: Gid,
        bytes: Bytes,
        out: &mut Vec<Effect>,
    ) {
        let (Some(first), nth) = (places.first(), places.len() as u32 - 1) else {
            return;
        };
        let first = first.seq;
        let ordered = places.len() as u32;
        if !self.early.begun.contains_key(&first) {
            let ordinary = self.helpers.len() - 1;
            let free = |h: &usize| matches!(self.helpers[*h], Helper::Free);
            let helper = (1..=ordinary).rev().find(free);
            let Some(helper) = helper else {
                return;
            };
            let again = self.early.given_up.get(&first).copied();
            if self.early.begun.len() >= ordinary / 2 || again.is_some_and(|a| ordered < a) {
                return;
            }
            self.helpers[helper] = Helper::Early(first);
            let helper = helper as u32;
            self.early.begun.insert(
                first,
                Begun {
                    helper,
                    wanted: None,
                    ordered,
                    behind: again.is_some(),
                    recent: VecDeque::new(),
                    gid: None,
                    ended: false,
                },
            );
            out.push(early(helper, first, Early::Begin { origin }));
        }
        let Some(begun) = self.early.begun.get_mut(&first) else {
            return;
        };
        begun.ordered = ordered;
        if begun.wanted == Some(nth) {
            begun.wanted = None;
            let fragment = Early::Fragment { nth, base, bytes };
            out.push(early(begun.helper, first, fragment));
            return;
        }
        if begun.recent.len() == EARLY_KEPT_MAX {
            begun.recent.pop_front();
        }
        begun.recent.push_back(Recent { nth, base, bytes });
    }

    /// A helper wants a fragment of what it began early; `place`: where it is, if it is ordered. Whether
    /// the origin is to hear how far it is.
    pub fn early_wanted(
        &mut self,
        helper: u32,
        first: u64,
        nth: u32,
        place: Option<Place>,
        out: &mut Vec<Effect>,
    ) -> bool {
        if !self.is_early(helper, first) {
            return false;
        }
        let Some(begun) = self.early.begun.get_mut(&first) else {
            return false;
        };
        begun.recent.retain(|r| r.nth >= nth);
        if let Some(Recent { nth, base, bytes }) = begun.recent.pop_front_if(|r| r.nth == nth) {
            out.push(early(helper, first, Early::Fragment { nth, base, bytes }));
        } else if let Some(Place { seq, index, id }) = place {
            self.early.reading.insert(seq, (first, nth));
            out.push(Effect::Gcs(GcsCommand::Read { seq, index, id }));
        } else {
            begun.wanted = Some(nth);
        }
        begun.behind &= begun.ordered.saturating_sub(nth) > EARLY_KEPT_MAX as u32;
        !begun.behind
    }

    /// A helper can't go on for now. Whether the origin is to hear that it need not wait.
    pub fn early_waits(&mut self, helper: u32, first: u64) -> bool {
        let is_early = self.is_early(helper, first);
        if is_early && let Some(begun) = self.early.begun.get_mut(&first) {
            return !std::mem::replace(&mut begun.behind, true);
        }
        false
    }

    /// A fragment was read from the log.
    pub fn early_read(&mut self, seq: u64, base: Gid, bytes: Bytes, out: &mut Vec<Effect>) {
        if let Some((first, nth)) = self.early.reading.remove(&seq)
            && let Some(begun) = self.early.begun.get(&first)
        {
            let fragment = Early::Fragment { nth, base, bytes };
            out.push(early(begun.helper, first, fragment));
        }
    }

    /// A helper has rolled back what it began early, and is free: false if it has its work by now.
    pub fn early_ended(&mut self, helper: u32, first: u64) -> bool {
        let is_early = self.is_early(helper, first);
        if is_early {
            self.helpers[helper as usize] = Helper::Free;
            self.early_forget(first);
        }
        is_early
    }

    /// Whoever was at it is not any more.
    pub(super) fn early_forget(&mut self, first: u64) {
        if let Some(begun) = self.early.begun.remove(&first) {
            let again = begun.ordered.saturating_mul(2);
            self.early.given_up.insert(first, again);
        }
    }

    /// The changeset of a transaction has passed: the helper that began it early gets it at its turn.
    pub fn early_passed(&mut self, first: u64, gid: Gid) {
        if let Some(begun) = self.early.begun.get_mut(&first) {
            begun.gid = Some(gid);
        }
    }

    /// The helper that has begun with this, and is at it for all that is known.
    pub(super) fn early_helper(&self, gid: Gid) -> Option<u32> {
        let mut begun = self.early.begun.values();
        begun.find(|b| b.gid == Some(gid)).map(|b| b.helper)
    }

    /// The helper gets it to commit.
    pub(super) fn early_taken(&mut self, gid: Gid) {
        self.early.begun.retain(|_, b| b.gid != Some(gid));
    }

    /// Stops those whose transactions are over without having passed; `is_open` tells.
    pub fn early_settle(&mut self, is_open: impl Fn(u64) -> bool, out: &mut Vec<Effect>) {
        for (&first, begun) in &mut self.early.begun {
            if begun.gid.is_none() && !begun.ended && !is_open(first) {
                begun.ended = true;
                out.push(early(begun.helper, first, Early::End));
            }
        }
        self.early.given_up.retain(|first, _| is_open(*first));
    }

    fn is_early(&self, helper: u32, first: u64) -> bool {
        matches!(self.helpers[helper as usize], Helper::Early(at) if at == first)
    }
}

fn early(helper: u32, first: u64, what: Early) -> Effect {
    Effect::Early {
        helper,
        first,
        what,
    }
}
