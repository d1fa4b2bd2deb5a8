//! The total order's own state: which messages were accepted, who is a member. It changes only by
//! committed entries, so it is the same on every member at the same position.

use super::log::{Checkpoint, Member, Seen};
use super::wire::Change;
use crate::gcs::{Delivery, MemberInfo, View};
use crate::ids::{Gid, Incarnation, MemberId, MessageId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// State at one position.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct State {
    index: u64,
    term: u64,
    /// Messages of entry `index + 1` that are contained.
    skip: u32,
    seq: u64,
    next_member: u16,
    members: BTreeMap<MemberId, Member>,
    /// See [`Checkpoint::guest`]; no part of the order, so not of what is compared or shown.
    guest: Option<Member>,
    seen: BTreeMap<MemberId, (Incarnation, u64)>,
}

/// What happened since the last checkpoint.
#[derive(Clone, Debug)]
enum Event {
    /// The message at this place of its entry was accepted.
    Accepted(u32, MessageId),
    Change(Change),
    /// An entry ended.
    End(u64, u64),
}

/// The state at the last delivered position, and how it came about from the last checkpoint.
#[derive(Debug, Default)]
pub struct Order {
    now: State,
    base: State,
    since: VecDeque<Event>,
}

impl Order {
    /// At a checkpoint.
    pub fn new(c: &Checkpoint) -> Self {
        let now = State {
            index: c.index,
            term: c.term,
            skip: c.skip,
            seq: c.seq,
            next_member: c.next_member,
            members: c.members.iter().map(|m| (m.id, m.clone())).collect(),
            guest: c.guest.clone(),
            seen: c
                .seen
                .iter()
                .map(|s| (s.member, (s.incarnation, s.number)))
                .collect(),
        };
        Self {
            base: now.clone(),
            now,
            since: VecDeque::new(),
        }
    }

    /// Last entry that is contained.
    pub fn index(&self) -> u64 {
        self.now.index
    }

    /// Messages accepted so far.
    pub fn seq(&self) -> u64 {
        self.now.seq
    }

    /// The members, sorted by number.
    pub fn members(&self) -> &BTreeMap<MemberId, Member> {
        &self.now.members
    }

    /// Number that the next member gets.
    pub fn next_member(&self) -> u16 {
        self.now.next_member
    }

    /// Whether this number was a member's and is not any more; that never changes again.
    pub fn is_gone(&self, id: MemberId) -> bool {
        id.0 < self.now.next_member && !self.now.members.contains_key(&id)
    }

    /// Last accepted message of each member.
    pub fn seen(&self) -> &BTreeMap<MemberId, (Incarnation, u64)> {
        &self.now.seen
    }

    /// The membership for the layer above.
    pub fn view(&self) -> View {
        View {
            seq: self.now.seq,
            members: self
                .now
                .members
                .values()
                .map(|m| MemberInfo {
                    id: m.id,
                    address: m.address.clone(),
                    voter: m.voter,
                })
                .collect(),
        }
    }

    /// The next entry, with messages: those that are accepted, to be delivered in this order.
    pub fn batch(
        &mut self,
        index: u64,
        term: u64,
        messages: Vec<(MessageId, Bytes)>,
    ) -> Vec<Delivery> {
        let skip = self.begin(index);
        let mut out = Vec::with_capacity(messages.len());
        for (at, (id, payload)) in (0u32..).zip(messages) {
            if at < skip || !self.now.accept(id) {
                continue;
            }
            self.since.push_back(Event::Accepted(at, id));
            out.push(Delivery {
                seq: self.now.seq,
                index,
                id,
                payload,
            });
        }
        self.end(index, term);
        out
    }

    /// The next entry, with a membership change that Raft has applied (else `None`).
    pub fn change(&mut self, index: u64, term: u64, change: Option<Change>) {
        self.begin(index);
        if let Some(change) = change {
            self.now.change(&change);
            self.since.push_back(Event::Change(change));
        }
        self.end(index, term);
    }

    fn begin(&mut self, index: u64) -> u32 {
        assert_eq!(index, self.now.index + 1, "entries come in order");
        std::mem::take(&mut self.now.skip)
    }

    fn end(&mut self, index: u64, term: u64) {
        (self.now.index, self.now.term) = (index, term);
        self.since.push_back(Event::End(index, term));
    }

    /// The state after exactly the first `seq` messages, for a checkpoint, which also becomes the
    /// position before which no further checkpoint can be made. `None` if that was before the last
    /// one; asking for what was not delivered yet is a fault of the caller.
    pub fn checkpoint(&mut self, seq: u64, gid: Gid, state: Bytes) -> Option<Checkpoint> {
        assert!(seq <= self.now.seq, "a checkpoint of what was delivered");
        if seq < self.base.seq {
            return None;
        }
        while self.base.seq < seq {
            let event = self.since.pop_front().expect("up to the last delivery");
            self.base.replay(event);
        }
        if let Some(Event::End(..)) = self.since.front() {
            let event = self.since.pop_front().expect("just seen");
            self.base.replay(event);
        }
        let s = &self.base;
        Some(Checkpoint {
            index: s.index,
            term: s.term,
            skip: s.skip,
            seq,
            gid,
            next_member: s.next_member,
            members: s.members.values().cloned().collect(),
            guest: s.guest.clone(),
            seen: s
                .seen
                .iter()
                .map(|(&member, &(incarnation, number))| Seen {
                    member,
                    incarnation,
                    number,
                })
                .collect(),
            state,
        })
    }
}

impl State {
    /// The rule by which every member alike takes a message or drops it: the next number of the
    /// member's present life, or the first of a later one.
    fn accept(&mut self, id: MessageId) -> bool {
        if !self.members.contains_key(&id.member) {
            return false;
        }
        let next = match self.seen.get(&id.member) {
            Some(&(life, number)) if life == id.incarnation => number + 1,
            Some(&(life, _)) if life > id.incarnation => return false,
            _ => 1,
        };
        if id.number != next {
            return false;
        }
        self.seen.insert(id.member, (id.incarnation, id.number));
        self.seq += 1;
        true
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Add(m) => {
                self.next_member = self.next_member.max(m.id.0 + 1);
                self.members.entry(m.id).or_insert_with(|| m.clone());
                self.guest.take_if(|g| g.id == m.id);
            }
            Change::Promote(id) => {
                if let Some(m) = self.members.get_mut(id) {
                    m.voter = true;
                }
            }
            Change::Demote(id) => {
                if let Some(m) = self.members.get_mut(id) {
                    m.voter = false;
                }
            }
            Change::Remove(id) => {
                self.members.remove(id);
                self.seen.remove(id);
            }
        }
    }

    fn replay(&mut self, event: Event) {
        match event {
            Event::Accepted(at, id) => {
                let accepted = self.accept(id);
                assert!(accepted, "accepted once, accepted again");
                self.skip = at + 1;
            }
            Event::Change(change) => self.change(&change),
            Event::End(index, term) => {
                (self.index, self.term, self.skip) = (index, term, 0);
            }
        }
    }
}
