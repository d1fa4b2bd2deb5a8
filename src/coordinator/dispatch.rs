//! Which helper applies which changeset, and when.
//!
//! Work leaves the queue in GID order only. A busy ordinary helper therefore waits only for lower
//! GIDs, which are with helpers or with workers. When one of those workers gives up, its changeset
//! comes in below what the helpers hold; all of them may then wait for it. So helper 0 takes only
//! a GID whose predecessors are all committed: it never waits, and so the next GID to commit
//! always finds a helper.
//!
//! When more waits than there are helpers, one gets several small changesets that follow each other
//! in the queue, and may commit those of consecutive GIDs together. So small ones that are only in the
//! log are read while helpers are busy.

use super::early::Begins;
use super::event::{Effect, GcsCommand};
use super::open::Place;
use crate::gcs::Delivery;
use crate::ids::{Gid, MemberId, MessageId};
use crate::limits::{HELPER_ATTEMPTS_MAX, HELPER_RUN_BYTES, HELPER_RUN_MAX, HELPERS_MAX};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A certified changeset that a helper has to commit.
#[derive(Clone, Debug)]
pub struct Work {
    /// Highest lower GID with a conflicting key.
    pub depends_on: Gid,
    /// Who made it.
    pub origin: MemberId,
    /// The changeset.
    pub content: Content,
    /// Where its fragments are that went ahead. They are read when a helper asks.
    pub fragments: Vec<Place>,
    /// The worker that waits to hear of it: (slot, ticket).
    pub replay_for: Option<(u32, u64)>,
    /// Helpers that failed on it so far.
    pub attempts: u32,
    /// Tick before which it is not tried again: what was short may be there again later.
    pub not_before: u64,
}

impl Work {
    /// It may be given to a helper together with others.
    fn is_one_of_many(&self) -> bool {
        self.attempts == 0 && self.fragments.is_empty() && self.replay_for.is_none()
    }
}

struct Room {
    changesets: usize,
    bytes: usize,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Memory(Bytes),
    /// Only in the group log, at this delivery, with so many bytes; `asked` once it is being read.
    Log {
        bytes: usize,
        seq: u64,
        index: u64,
        id: MessageId,
        asked: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Helper {
    /// Not started, or gone.
    Absent,
    Free,
    /// Has begun a transaction whose changeset is not here; see [`super::early`].
    Early(u64),
    /// In the order in which it was given them.
    Busy(Vec<Gid>),
}

/// What a finished GID was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The worker to tell.
    pub replay_for: Option<(u32, u64)>,
}

const RUNNING: &str = "a busy helper's work is in `running`";

/// Queue and helpers.
#[derive(Debug)]
pub struct Dispatch {
    queue: BTreeMap<Gid, Work>,
    running: BTreeMap<Gid, Work>,
    pub(super) helpers: Vec<Helper>,
    pub(super) early: Begins,
    bytes: usize,
    bytes_max: usize,
    ticks: u64,
    /// Queued changesets that are only in the log and not being read.
    unread: usize,
    /// Positions of queued work in the log, while it has to be read.
    reading: BTreeMap<u64, Gid>,
    /// Positions of fragments that are being read: for which helper, and what it asked for.
    reading_fragments: BTreeMap<u64, (u32, Gid, u32)>,
}

impl Dispatch {
    /// `helpers` ordinary ones and number 0; `bytes_max` bytes wait in memory.
    pub fn new(helpers: u32, bytes_max: usize) -> Dispatch {
        assert!(helpers >= 1, "changesets of other members need a helper");
        assert!(helpers as usize <= HELPERS_MAX);
        Dispatch {
            queue: BTreeMap::new(),
            running: BTreeMap::new(),
            helpers: vec![Helper::Absent; helpers as usize + 1],
            early: Begins::default(),
            bytes: 0,
            bytes_max,
            ticks: 0,
            unread: 0,
            reading: BTreeMap::new(),
            reading_fragments: BTreeMap::new(),
        }
    }

    /// Changesets wait for a helper.
    pub fn work_waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Changesets queued or in a helper.
    pub fn len(&self) -> usize {
        self.queue.len() + self.running.len()
    }

    /// Bytes that wait in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues a delivered changeset. What exceeds the memory bound is left in the log.
    pub fn push(&mut self, gid: Gid, mut work: Work, delivery: &Delivery) {
        if let Content::Memory(bytes) = &work.content
            && self.bytes + bytes.len() > self.bytes_max
            && !self.queue.is_empty()
        {
            work.content = Content::Log {
                bytes: bytes.len(),
                seq: delivery.seq,
                index: delivery.index,
                id: delivery.id,
                asked: false,
            };
            self.unread += 1;
        }
        self.enqueue(gid, work);
    }

    fn enqueue(&mut self, gid: Gid, work: Work) {
        if let Content::Memory(bytes) = &work.content {
            self.bytes += bytes.len();
        }
        let old = self.queue.insert(gid, work);
        assert!(
            old.is_none() && !self.running.contains_key(&gid),
            "GID {gid} dispatched twice"
        );
    }

    /// A changeset of this member's own that its worker does not commit any more.
    pub fn replay(&mut self, gid: Gid, work: Work) {
        self.enqueue(gid, work);
    }

    /// The bytes of work that was left in the log.
    pub fn loaded(&mut self, seq: u64, changeset: Bytes) {
        let Some(gid) = self.reading.remove(&seq) else {
            return;
        };
        if let Some(work) = self.queue.get_mut(&gid) {
            self.bytes += changeset.len();
            work.content = Content::Memory(changeset);
        }
    }

    fn is_busy(&self, helper: u32, gid: Gid) -> bool {
        matches!(&self.helpers[helper as usize], Helper::Busy(gids) if gids.contains(&gid))
    }

    /// A helper wants the `nth` fragment of what it is at work on. Its process may be gone by now.
    pub fn fragment_wanted(&mut self, helper: u32, gid: Gid, nth: u32, out: &mut Vec<Effect>) {
        if !self.is_busy(helper, gid) {
            return;
        }
        let fragments = self.running.get(&gid).map(|work| &work.fragments);
        let Some(place) = fragments.and_then(|f| f.get(nth as usize)) else {
            panic!("helper {helper} wants fragment {nth} of GID {gid}, which has none");
        };
        self.reading_fragments.insert(place.seq, (helper, gid, nth));
        out.push(Effect::Gcs(GcsCommand::Read {
            seq: place.seq,
            index: place.index,
            id: place.id,
        }));
    }

    /// A fragment was read; for nobody if its helper has gone on to something else.
    pub fn fragment_read(&mut self, seq: u64, fragment: Bytes, out: &mut Vec<Effect>) {
        if let Some((helper, gid, nth)) = self.reading_fragments.remove(&seq)
            && self.is_busy(helper, gid)
        {
            out.push(Effect::Fragment {
                helper,
                gid,
                nth,
                fragment,
            });
        }
    }

    /// A helper is up and free.
    pub fn ready(&mut self, helper: u32) {
        let slot = &mut self.helpers[helper as usize];
        assert!(
            !matches!(slot, Helper::Busy(_) | Helper::Early(_)),
            "helper {helper} says that it is free, but it is busy"
        );
        *slot = Helper::Free;
    }

    /// A helper has committed `gid`, and all of lower GIDs that it was given.
    pub fn applied(&mut self, helper: u32, gid: Gid) -> Vec<(Gid, Applied)> {
        let done = self.take(helper, gid, |given| given <= gid);
        done.into_iter().map(|gid| self.finished(gid)).collect()
    }

    /// A helper could not commit `gid`; Err when there is no point in another try.
    pub fn failed(&mut self, helper: u32, gid: Gid, fatal: bool) -> Result<(), u32> {
        self.take(helper, gid, |given| given == gid);
        self.again(gid, fatal)
    }

    /// A helper process is gone. `last_committed` tells with what of its work it was done. Others get
    /// the rest, each by itself, for any may be to blame; the first is what it was at, as far as is known.
    /// Err when there is no point in that.
    pub fn gone(
        &mut self,
        helper: u32,
        last_committed: Gid,
    ) -> Result<Vec<(Gid, Applied)>, (Gid, u32)> {
        match std::mem::replace(&mut self.helpers[helper as usize], Helper::Absent) {
            Helper::Busy(gids) => {
                let (done, left): (Vec<Gid>, Vec<Gid>) =
                    gids.into_iter().partition(|gid| *gid <= last_committed);
                let mut left = left.into_iter();
                if let Some(gid) = left.next() {
                    self.again(gid, false).map_err(|attempts| (gid, attempts))?;
                }
                for gid in left {
                    let mut work = self.running.remove(&gid).expect(RUNNING);
                    work.attempts = work.attempts.max(1);
                    self.enqueue(gid, work);
                }
                Ok(done.into_iter().map(|gid| self.finished(gid)).collect())
            }
            Helper::Early(first) => {
                self.early_forget(first);
                Ok(Vec::new())
            }
            Helper::Absent | Helper::Free => Ok(Vec::new()),
        }
    }

    /// Takes `gid`, which this helper is at work on, and whatever else `is_meant` away from it.
    fn take(&mut self, helper: u32, gid: Gid, is_meant: impl Fn(Gid) -> bool) -> Vec<Gid> {
        let slot = &mut self.helpers[helper as usize];
        let gids = match slot {
            Helper::Busy(gids) if gids.contains(&gid) => gids,
            other => panic!("helper {helper} reports GID {gid}, but it is {other:?}"),
        };
        let taken = gids.extract_if(.., |given| is_meant(*given)).collect();
        if gids.is_empty() {
            *slot = Helper::Free;
        }
        taken
    }

    fn finished(&mut self, gid: Gid) -> (Gid, Applied) {
        let work = self.running.remove(&gid).expect(RUNNING);
        let replay_for = work.replay_for;
        (gid, Applied { replay_for })
    }

    fn again(&mut self, gid: Gid, fatal: bool) -> Result<(), u32> {
        let mut work = self.running.remove(&gid).expect(RUNNING);
        work.attempts += 1;
        if fatal || work.attempts >= HELPER_ATTEMPTS_MAX {
            return Err(work.attempts);
        }
        work.not_before = self.ticks + (1 << (work.attempts - 1));
        self.enqueue(gid, work);
        Ok(())
    }

    /// A tick passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// Hands out what can be handed out.
    pub fn run(&mut self, last_committed: Gid, out: &mut Vec<Effect>) {
        let mut read_at_least = 0;
        while let Some((&gid, work)) = self.queue.first_key_value() {
            if work.not_before > self.ticks {
                break;
            }
            let early = self.early_helper(gid);
            let free = || self.free_helper(gid, work.attempts, last_committed);
            let Some(helper) = early.or_else(free) else {
                break;
            };
            if let Content::Log { .. } = work.content {
                read_at_least = self.helpers.len();
                break;
            }
            let mut room = self.room(helper);
            let mut given = Vec::new();
            while let Some(entry) = self.queue.first_entry() {
                let (gid, work) = (*entry.key(), entry.get());
                let Content::Memory(changeset) = &work.content else {
                    break;
                };
                let alone = !work.is_one_of_many() || self.early.is_begun(gid);
                if !given.is_empty() && (alone || changeset.len() > room.bytes) {
                    break;
                }
                room.bytes = room.bytes.saturating_sub(changeset.len());
                self.bytes -= changeset.len();
                out.push(Effect::Apply {
                    helper,
                    gid,
                    depends_on: work.depends_on,
                    origin: work.origin,
                    changeset: changeset.clone(),
                });
                self.running.insert(gid, entry.remove());
                self.early_taken(gid);
                given.push(gid);
                if alone || given.len() >= room.changesets {
                    break;
                }
            }
            self.helpers[helper as usize] = Helper::Busy(given);
        }
        if self.unread > 0 {
            self.read_ahead(read_at_least, out);
        }
    }

    /// How much a free helper is given.
    fn room(&self, helper: u32) -> Room {
        let ordinary = self.helpers.len() - 1;
        let share = self.queue.len().div_ceil(ordinary);
        Room {
            changesets: if helper == 0 {
                1
            } else {
                share.min(HELPER_RUN_MAX)
            },
            bytes: HELPER_RUN_BYTES,
        }
    }

    /// An ordinary helper (each try begins with another), or number 0 for the next to commit.
    fn free_helper(&self, gid: Gid, attempts: u32, last_committed: Gid) -> Option<u32> {
        let ordinary = self.helpers.len() - 1;
        (0..ordinary)
            .map(|i| 1 + (i + attempts as usize) % ordinary)
            .chain((gid == last_committed.next()).then_some(0))
            .find(|&h| matches!(self.helpers[h], Helper::Free))
            .map(|h| h as u32)
    }

    /// Asks for the changesets at the head of the queue that are only in the log: for what all helpers are
    /// given at once, as far as there is room in memory, and for those among the first `at_least`.
    fn read_ahead(&mut self, at_least: usize, out: &mut Vec<Effect>) {
        let ordinary = self.helpers.len() - 1;
        let room = self.bytes_max.min(ordinary * HELPER_RUN_BYTES);
        let head = self.queue.iter_mut().take(ordinary * HELPER_RUN_MAX);
        let mut bytes_so_far = 0;
        for (nth, (&gid, work)) in head.enumerate() {
            bytes_so_far += match &work.content {
                Content::Memory(changeset) => changeset.len(),
                Content::Log { bytes, .. } => *bytes,
            };
            if nth >= at_least && bytes_so_far > room {
                break;
            }
            if let Content::Log {
                seq,
                index,
                id,
                asked: asked @ false,
                ..
            } = &mut work.content
            {
                *asked = true;
                self.unread -= 1;
                self.reading.insert(*seq, gid);
                out.push(Effect::Gcs(GcsCommand::Read {
                    seq: *seq,
                    index: *index,
                    id: *id,
                }));
            }
        }
    }
}
