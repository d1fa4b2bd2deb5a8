//! Large transactions of other members that helpers begin to apply before their changesets come.
//!
//! Nothing here is replicated, and no verdict depends on it: a helper that has begun early has no GID,
//! gives way to everybody, and may give up at any time. Then its transaction is begun anew once it is twice
//! as long, so that what is done in vain stays in proportion, or is applied as any other when its changeset
//! has passed. What its origin takes back ends it too; then it is begun anew as soon as it is as long as all that
//! was done in vain, at once as a rule, and its origin waits for that. A transaction is named by the position of
//! its first fragment.

use super::dispatch::{Dispatch, Helper};
use super::event::{Early, Effect, GcsCommand};
use super::open::{Fragments, Place};
use crate::changeset::fragment::Counted;
use crate::ids::{Gid, MemberId};
use crate::limits::EARLY_KEPT_MAX;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// A fragment that was ordered.
#[derive(Debug)]
struct Recent {
    number: u32,
    base: Gid,
    bytes: Bytes,
}

/// What one helper is at.
#[derive(Debug)]
struct Begun {
    helper: u32,
    origin: MemberId,
    /// What the helper was given of those that count.
    given: Vec<Counted>,
    /// The helper waits for the next, which is not ordered yet.
    waits: bool,
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
    /// ... for its origin has taken back some of what it was given.
    taken_back: bool,
}

/// What helpers gave up.
#[derive(Clone, Copy, Debug, Default)]
struct GivenUp {
    /// Fragments that were applied in vain.
    in_vain: u32,
    /// It may be begun again when so many are ordered.
    again: u32,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub struct Begins {
    begun: BTreeMap<u64, Begun>,
    given_up: BTreeMap<u64, GivenUp>,
    /// Positions of fragments that are being read: of which transaction, which that is for its helper, and
    /// how far it counts.
    reading: BTreeMap<u64, (u64, u32, Counted)>,
}

impl Begins {
    /// A helper has begun with this.
    pub(super) fn is_begun(&self, gid: Gid) -> bool {
        self.begun.values().any(|b| b.gid == Some(gid))
    }
}

impl Dispatch {
    /// A fragment of another member's transaction was ordered, the last of these. It goes to the helper
    /// that waits for it; or, if one `may_begin`, a helper begins, as long as half of them are left for other work.
    /// Whoever has begun is to be told of each.
    pub fn early_fragment(
        &mut self,
        origin: MemberId,
        fragments: &Fragments,
        base: Gid,
        bytes: Bytes,
        may_begin: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(first) = fragments.first() else {
            return;
        };
        let counted = &fragments.counted;
        let ordered = fragments.places.len() as u32;
        let number = ordered - 1;
        if !self.early.begun.contains_key(&first) {
            let ordinary = self.helpers.len() - 1;
            let free = |h: &usize| matches!(self.helpers[*h], Helper::Free);
            let helper = (1..=ordinary).rev().find(free).filter(|_| may_begin);
            let Some(helper) = helper else {
                return;
            };
            let again = self.early.given_up.get(&first).map(|g| g.again);
            if self.early.begun.len() >= ordinary / 2 || again.is_some_and(|a| ordered < a) {
                return;
            }
            self.early_begin(helper as u32, first, origin, ordered, again.is_some(), out);
        }
        let Some(begun) = self.early.begun.get_mut(&first) else {
            return;
        };
        begun.ordered = ordered;
        if begun.ended {
            return;
        }
        if !counted.starts_with(&begun.given) {
            begun.ended = true;
            begun.taken_back = true;
            out.push(early(begun.helper, first, Early::End));
            return;
        }
        let (nth, last) = match counted.last() {
            Some(last) if last.number == number => (counted.len() - 1, *last),
            // It has no entries.
            _ => return,
        };
        if begun.waits {
            debug_assert_eq!(nth, begun.given.len(), "what it waits for");
            begun.waits = false;
            begun.give(nth as u32, last, first, base, bytes, out);
            return;
        }
        if begun.recent.len() == EARLY_KEPT_MAX {
            begun.recent.pop_front();
        }
        begun.recent.push_back(Recent {
            number,
            base,
            bytes,
        });
    }

    fn early_begin(
        &mut self,
        helper: u32,
        first: u64,
        origin: MemberId,
        ordered: u32,
        behind: bool,
        out: &mut Vec<Effect>,
    ) {
        self.helpers[helper as usize] = Helper::Early(first);
        self.early.begun.insert(
            first,
            Begun {
                helper,
                origin,
                given: Vec::new(),
                waits: false,
                ordered,
                behind,
                recent: VecDeque::new(),
                gid: None,
                ended: false,
                taken_back: false,
            },
        );
        out.push(early(helper, first, Early::Begin { origin }));
    }

    /// A helper wants the nth fragment that counts of what it began early, having applied all before. How many
    /// of all it has by now, if the origin is to hear that.
    pub fn early_wanted(
        &mut self,
        helper: u32,
        first: u64,
        nth: u32,
        fragments: Option<&Fragments>,
        out: &mut Vec<Effect>,
    ) -> Option<u32> {
        if !self.is_early(helper, first) {
            return None;
        }
        let goes_on = |b: &&mut Begun| !b.ended && b.given.len() == nth as usize;
        let begun = self.early.begun.get_mut(&first).filter(goes_on)?;
        let wanted = fragments.and_then(|f| {
            let counted = f.counted.get(nth as usize)?;
            Some((*counted, f.places[counted.number as usize]))
        });
        let applied = wanted.map_or(begun.ordered, |(counted, _)| counted.number);
        begun.waits = wanted.is_none();
        if let Some((counted, Place { seq, index, id })) = wanted {
            begun.recent.retain(|r| r.number >= counted.number);
            let recent = begun.recent.pop_front_if(|r| r.number == counted.number);
            if let Some(Recent { base, bytes, .. }) = recent {
                begun.give(nth, counted, first, base, bytes, out);
            } else {
                begun.given.push(counted);
                self.early.reading.insert(seq, (first, nth, counted));
                out.push(Effect::Gcs(GcsCommand::Read { seq, index, id }));
            }
        }
        begun.behind &= begun.ordered.saturating_sub(applied) > EARLY_KEPT_MAX as u32;
        (!begun.behind).then_some(applied)
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
        if let Some((first, nth, counted)) = self.early.reading.remove(&seq)
            && let Some(begun) = self.early.begun.get(&first)
        {
            out.push(begun.fragment(nth, counted, first, base, bytes));
        }
    }

    /// A helper has rolled back what it began early, and is free, or begins anew. True if the origin is to hear
    /// that it need not wait; not if the helper has its work by now. `is_open`: the transaction is not over.
    pub fn early_ended(
        &mut self,
        helper: u32,
        first: u64,
        is_open: bool,
        out: &mut Vec<Effect>,
    ) -> bool {
        if !self.is_early(helper, first) {
            return false;
        }
        self.helpers[helper as usize] = Helper::Free;
        let Some(begun) = self.forget(first) else {
            return true;
        };
        let again = self.early.given_up.get(&first).map_or(0, |g| g.again);
        let anew = begun.taken_back && is_open && begun.ordered >= again;
        if anew {
            self.early_begin(helper, first, begun.origin, begun.ordered, false, out);
        }
        !anew
    }

    /// Whoever was at it is not any more.
    pub(super) fn early_forget(&mut self, first: u64) {
        self.forget(first);
    }

    fn forget(&mut self, first: u64) -> Option<Begun> {
        let begun = self.early.begun.remove(&first)?;
        self.early.reading.retain(|_, read| read.0 != first);
        let given_up = self.early.given_up.entry(first).or_default();
        given_up.in_vain = given_up.in_vain.saturating_add(begun.given.len() as u32);
        given_up.again = if begun.taken_back {
            given_up.in_vain
        } else {
            begun.ordered.saturating_mul(2)
        };
        Some(begun)
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

impl Begun {
    /// Gives the helper what it wants.
    fn give(
        &mut self,
        nth: u32,
        counted: Counted,
        first: u64,
        base: Gid,
        bytes: Bytes,
        out: &mut Vec<Effect>,
    ) {
        self.given.push(counted);
        out.push(self.fragment(nth, counted, first, base, bytes));
    }

    fn fragment(&self, nth: u32, counted: Counted, first: u64, base: Gid, bytes: Bytes) -> Effect {
        let fragment = Early::Fragment {
            nth,
            counted,
            base,
            bytes,
        };
        early(self.helper, first, fragment)
    }
}

fn early(helper: u32, first: u64, what: Early) -> Effect {
    Effect::Early {
        helper,
        first,
        what,
    }
}
