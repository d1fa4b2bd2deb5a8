//! Messages on their way into the total order: a member's own until they are delivered, and those
//! of all members at the leader until they are proposed.

use crate::ids::{Incarnation, MemberId, MessageId};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, IN_FLIGHT_MAX, OUTBOX_BYTES_MAX, PROPOSALS_BYTES_MAX,
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// This member's messages that are not delivered yet, by number.
#[derive(Debug)]
pub struct Outbox {
    /// Number of the oldest.
    first: u64,
    items: VecDeque<Bytes>,
    bytes: usize,
    /// Number of the next to send; those before were sent to the present leader.
    next: u64,
}

impl Default for Outbox {
    /// Empty, before number 1.
    fn default() -> Self {
        Self {
            first: 1,
            items: VecDeque::new(),
            bytes: 0,
            next: 1,
        }
    }
}

impl Outbox {
    /// Whether one more of this size fits.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.items.len() < IN_FLIGHT_MAX
            && (self.items.is_empty() || self.bytes + bytes <= OUTBOX_BYTES_MAX)
    }

    /// Takes a message and returns its number.
    pub fn push(&mut self, payload: Bytes) -> u64 {
        self.bytes += payload.len();
        self.items.push_back(payload);
        self.first + self.items.len() as u64 - 1
    }

    /// Everything up to this number was delivered.
    pub fn delivered(&mut self, number: u64) {
        while self.first <= number {
            let gone = self.items.pop_front().map_or(0, |p| p.len());
            self.bytes -= gone;
            self.first += 1;
        }
        self.next = self.next.max(self.first);
    }

    /// Nothing waits for delivery.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Sends again from this number on, or from the oldest.
    pub fn rewind(&mut self, number: u64) {
        self.next = number.clamp(self.first, self.next);
    }

    /// The next messages to send, at most a batch, and the number of the first.
    pub fn take(&mut self) -> Option<(u64, Vec<Bytes>)> {
        let first = self.next;
        let skip = usize::try_from(first - self.first).expect("fits memory");
        let mut batch = Vec::new();
        let mut bytes = 0;
        for p in self.items.iter().skip(skip).take(BATCH_MESSAGES_MAX) {
            bytes += p.len();
            if !batch.is_empty() && bytes > BATCH_BYTES_MAX {
                break;
            }
            batch.push(p.clone());
        }
        self.next += batch.len() as u64;
        (!batch.is_empty()).then_some((first, batch))
    }
}

/// What a leader has been asked to put into the log.
#[derive(Debug, Default)]
pub struct Proposals {
    queue: VecDeque<(MessageId, Bytes)>,
    bytes: usize,
    /// Last message taken of each member.
    last: BTreeMap<MemberId, (Incarnation, u64)>,
}

/// What became of a message that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// Queued.
    Taken,
    /// Was taken before.
    Known,
    /// Messages before it are missing; this number is expected.
    Gap(u64),
    /// No room; as if it had been lost.
    Full,
}

impl Proposals {
    /// A new leader starts from what it has delivered; origins send again what is missing.
    pub fn begin(&mut self, seen: &BTreeMap<MemberId, (Incarnation, u64)>) {
        *self = Self {
            last: seen.clone(),
            ..Self::default()
        };
    }

    /// Offers a message.
    pub fn offer(&mut self, id: MessageId, payload: Bytes) -> Offered {
        let expected = match self.last.get(&id.member) {
            Some(&(life, number)) if life == id.incarnation => number + 1,
            Some(&(life, _)) if life > id.incarnation => return Offered::Known,
            _ => 1,
        };
        if id.number < expected {
            return Offered::Known;
        }
        if id.number > expected {
            return Offered::Gap(expected);
        }
        if !self.queue.is_empty() && self.bytes + payload.len() > PROPOSALS_BYTES_MAX {
            return Offered::Full;
        }
        self.last.insert(id.member, (id.incarnation, id.number));
        self.bytes += payload.len();
        self.queue.push_back((id, payload));
        Offered::Taken
    }

    /// A message was delivered, perhaps one that an earlier leader had proposed.
    pub fn delivered(&mut self, id: MessageId) {
        let seen = (id.incarnation, id.number);
        let last = self.last.entry(id.member).or_insert(seen);
        *last = seen.max(*last);
    }

    /// Nothing to propose.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The messages of the next entry.
    pub fn take(&mut self) -> Vec<(MessageId, Bytes)> {
        let mut batch: Vec<(MessageId, Bytes)> = Vec::new();
        let mut bytes = 0;
        while let Some((_, payload)) = self.queue.front() {
            bytes += payload.len();
            let full = batch.len() == BATCH_MESSAGES_MAX || bytes > BATCH_BYTES_MAX;
            if full && !batch.is_empty() {
                break;
            }
            self.bytes -= payload.len();
            batch.extend(self.queue.pop_front());
        }
        batch
    }
}
