//! This member's own multicasts, from a worker's hand-over to its commit.
//!
//! `held → offered → sent → passed → committed`: held here until the engine takes it, offered to
//! it within one turn, sent and waiting for its place in the order, passed and waiting for its
//! commit turn.

use super::open::Place as Fragment;
use crate::ids::{Gid, MemberId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// A worker's multicast: (process slot, ticket).
pub type Ticket = (u32, u64);

/// One message of this member.
#[derive(Clone, Debug)]
pub struct Own {
    /// Whose; None is a status message or of fragments.
    worker: Option<OwnWorker>,
    /// A fragment, or the end of some.
    ahead: Option<Ahead>,
    /// Sealed message.
    payload: Bytes,
}

/// What a worker sends ahead of its changeset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// Of this transaction.
    Fragment(Ticket),
    /// No more of it.
    Drop(Ticket),
}

/// Who is to hear that a message was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// Who multicast this.
    Changeset(Ticket),
    /// Whose transaction sent a fragment ahead.
    Fragment(Ticket),
}

/// Who multicast a changeset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnWorker {
    /// Its name.
    pub ticket: Ticket,
    /// It gave up after the message was sent.
    pub abandoned: Option<Abandoning>,
}

/// How a worker gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abandoning {
    /// Rolled back.
    SessionGoesOn,
    /// Ended; what its session held ended with it.
    SessionEnds,
}

impl Own {
    /// The worker, unless it is a status message.
    pub fn into_worker(self) -> Option<OwnWorker> {
        self.worker
    }

    /// As it was sent.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What it is, if it went ahead of a changeset.
    pub fn ahead(&self) -> Option<Ahead> {
        self.ahead
    }

    fn ticket(&self) -> Option<Ticket> {
        self.worker.map(|w| w.ticket)
    }

    /// Has its turn among what is held; a status message has not.
    fn queues(&self) -> bool {
        self.worker.is_some() || self.ahead.is_some()
    }

    /// Who is told if it is not sent.
    fn asker(&self) -> Option<Asker> {
        match self.ahead {
            Some(Ahead::Fragment(ticket)) => Some(Asker::Fragment(ticket)),
            _ => self.ticket().map(Asker::Changeset),
        }
    }
}

/// A changeset between verdict and commit.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Whose.
    pub ticket: Ticket,
    /// The changeset.
    pub changeset: Bytes,
    /// Highest lower GID with a conflicting key.
    pub depends_on: Gid,
    /// Itself.
    pub origin: MemberId,
    /// Carries effects that only its session can have.
    pub local_effects: bool,
    /// Where its fragments are.
    pub fragments: Vec<Fragment>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Held,
    Sent(u64),
    Passed(Gid),
}

/// What an abandoned multicast was.
#[derive(Debug)]
pub enum Abandoned {
    /// Not known any more: verdict given and committed, or refused.
    Over,
    /// It never left.
    Unsent,
    /// Its verdict will tell.
    Sent,
    /// A helper has to commit it.
    Passed(Gid, Passed),
}

/// The table.
#[derive(Debug, Default)]
pub struct Ledger {
    places: BTreeMap<Ticket, Place>,
    held: VecDeque<Own>,
    offered: BTreeMap<u64, Own>,
    sent: VecDeque<(u64, Own)>,
    passed: BTreeMap<Gid, Passed>,
    last_token: u64,
    last_sent: u64,
    status_out: bool,
}

impl Ledger {
    /// Own changesets without a verdict.
    pub fn in_flight(&self) -> usize {
        self.places.len() - self.passed.len()
    }

    /// Neither sent nor held nor waiting for a turn.
    pub fn is_idle(&self) -> bool {
        self.places.is_empty()
    }

    /// Something of a worker's is sent and not delivered.
    pub fn awaits_delivery(&self) -> bool {
        self.in_flight() > 0 || self.sent.iter().any(|(_, own)| own.queues())
    }

    /// Number of the last own message that the engine took.
    pub fn last_sent(&self) -> u64 {
        self.last_sent
    }

    /// The order goes on from a checkpoint: a status message that it covers is not delivered.
    pub fn restored(&mut self) {
        self.status_out = false;
    }

    /// A status message of ours has not been delivered yet.
    pub fn status_out(&self) -> bool {
        self.status_out
    }

    /// Takes a worker's message to be offered in its turn.
    pub fn hold(&mut self, ticket: Ticket, payload: Bytes) {
        let old = self.places.insert(ticket, Place::Held);
        assert!(
            old.is_none(),
            "worker {} used ticket {} twice",
            ticket.0,
            ticket.1
        );
        self.held.push_back(Own {
            worker: Some(OwnWorker {
                ticket,
                abandoned: None,
            }),
            ahead: None,
            payload,
        });
    }

    /// Takes what goes ahead of a worker's changeset, to be offered in its turn.
    pub fn hold_ahead(&mut self, what: Ahead, payload: Bytes) {
        self.held.push_back(Own {
            worker: None,
            ahead: Some(what),
            payload,
        });
    }

    /// Takes out fragments that are held.
    pub fn withdraw_ahead(&mut self, ticket: Ticket) {
        self.held
            .retain(|own| own.ahead != Some(Ahead::Fragment(ticket)));
    }

    /// The next message to offer to the engine, oldest first; the one after it when this one was
    /// taken.
    pub fn offer(&mut self) -> Option<(u64, Bytes)> {
        if self.offered.values().any(Own::queues) {
            return None;
        }
        let own = self.held.pop_front()?;
        Some(self.offer_own(own))
    }

    /// A status message jumps the queue: it is lost without harm.
    pub fn offer_status(&mut self, payload: Bytes) -> (u64, Bytes) {
        self.status_out = true;
        self.offer_own(Own {
            worker: None,
            ahead: None,
            payload,
        })
    }

    fn offer_own(&mut self, own: Own) -> (u64, Bytes) {
        self.last_token += 1;
        let payload = own.payload.clone();
        self.offered.insert(self.last_token, own);
        (self.last_token, payload)
    }

    /// The engine took it under this number.
    pub fn sent(&mut self, token: u64, number: u64) {
        let own = self
            .offered
            .remove(&token)
            .expect("the engine answers each offer once");
        assert!(
            self.sent.back().is_none_or(|(last, _)| *last < number),
            "message numbers must rise"
        );
        if let Some(ticket) = own.ticket() {
            self.places.insert(ticket, Place::Sent(number));
        }
        self.last_sent = number;
        self.sent.push_back((number, own));
    }

    /// The engine did not take it now: it is held again, before those that came later.
    pub fn hold_again(&mut self, token: u64) {
        let own = self
            .offered
            .remove(&token)
            .expect("the engine answers each offer once");
        if own.queues() {
            self.held.push_front(own);
        } else {
            self.status_out = false;
        }
    }

    /// The engine will never take it.
    pub fn drop_offer(&mut self, token: u64) -> Option<Asker> {
        let own = self
            .offered
            .remove(&token)
            .expect("the engine answers each offer once");
        self.forget(&own);
        own.asker()
    }

    fn forget(&mut self, own: &Own) {
        match own.ticket() {
            Some(ticket) => {
                self.places.remove(&ticket);
            }
            None if own.queues() => {}
            None => self.status_out = false,
        }
    }

    /// Takes out all that is held, but for what ends fragments that were sent.
    pub fn refuse_held(&mut self) -> Vec<Asker> {
        let (stay, go) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|own| matches!(own.ahead, Some(Ahead::Drop(_))));
        self.held = stay;
        let go: VecDeque<Own> = go;
        go.iter().for_each(|own| self.forget(own));
        go.iter().filter_map(Own::asker).collect()
    }

    /// Takes out all whose verdict will never be known here.
    pub fn forget_sent(&mut self) -> Vec<Ticket> {
        let tickets: Vec<Ticket> = self
            .sent
            .drain(..)
            .filter_map(|(_, own)| own.ticket())
            .collect();
        for ticket in &tickets {
            self.places.remove(ticket);
        }
        tickets
    }

    /// An own message of this life was delivered: the oldest sent one, or the engine broke its
    /// promise (None). Only status messages may be missing before it: a checkpoint that was
    /// restored covered them.
    pub fn delivered(&mut self, number: u64) -> Option<Own> {
        while let Some((skipped, own)) = self.sent.front()
            && *skipped < number
            && !own.queues()
        {
            self.sent.pop_front();
            self.status_out = false;
        }
        if self.sent.front()?.0 != number {
            return None;
        }
        let (_, own) = self.sent.pop_front()?;
        self.forget(&own);
        Some(own)
    }

    /// It has its turn, and its worker commits it.
    pub fn pass(&mut self, gid: Gid, passed: Passed) {
        self.places.insert(passed.ticket, Place::Passed(gid));
        self.passed.insert(gid, passed);
    }

    /// Everything up to this GID is committed here.
    pub fn committed(&mut self, gid: Gid) {
        while let Some(first) = self.passed.first_entry().filter(|e| *e.key() <= gid) {
            let passed = first.remove();
            self.places.remove(&passed.ticket);
        }
    }

    /// A worker does not commit its multicast any more.
    pub fn abandon(&mut self, ticket: Ticket, how: Abandoning) -> Abandoned {
        match self.places.get(&ticket) {
            None => Abandoned::Over,
            Some(Place::Held) => {
                self.places.remove(&ticket);
                self.held.retain(|own| own.ticket() != Some(ticket));
                Abandoned::Unsent
            }
            Some(&Place::Sent(number)) => {
                let at = self
                    .sent
                    .binary_search_by_key(&number, |(n, _)| *n)
                    .expect("a sent message");
                let worker = self.sent[at].1.worker.as_mut().expect("a worker's message");
                if worker.abandoned != Some(Abandoning::SessionEnds) {
                    worker.abandoned = Some(how);
                }
                Abandoned::Sent
            }
            Some(&Place::Passed(gid)) => {
                self.places.remove(&ticket);
                Abandoned::Passed(gid, self.passed.remove(&gid).expect("a passed changeset"))
            }
        }
    }
}
