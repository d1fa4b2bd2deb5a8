//! Sessions that ask for more than a prefix of the history: readers that want everything that the
//! group acknowledged before they began, and writers that want all members to show what they
//! committed.
//!
//! A reader's barrier is a message of this member: whatever was acknowledged anywhere when the
//! message was sent has a lower place in the order than the message. Any own message serves, and
//! one serves all readers that came before it was sent.

use super::event::{Effect, GcsCommand, Outcome};
use super::ledger::Ticket;
use super::message;
use super::step::Coordinator;
use crate::group_state::GroupState;
use crate::ids::Gid;
use std::collections::{BTreeMap, VecDeque};

/// Who waits.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The lowest own message that serves the reader, ascending.
    readers: VecDeque<(u64, Ticket)>,
    /// What all other members must show.
    writers: BTreeMap<Gid, Vec<Ticket>>,
    /// What sessions of other members wait for this one to show, and it has not reported; ascending.
    wanted: VecDeque<Gid>,
    /// The engine took no message when it was last asked; it is asked again when something moved.
    refused: bool,
}

impl Waiting {
    /// A certified transaction of another member is to be reported once it is committed here.
    pub fn want(&mut self, gid: Gid) {
        self.wanted.push_back(gid);
    }

    /// Own message `number` was delivered: the readers that it serves.
    pub fn delivered(&mut self, number: u64) -> Vec<Ticket> {
        let served = self.readers.partition_point(|(need, _)| *need <= number);
        self.readers.drain(..served).map(|(_, who)| who).collect()
    }

    /// Whether the engine took the last message.
    pub fn engine_refuses(&mut self, refuses: bool) {
        self.refused = refuses;
    }

    /// Whether it did not.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Own message `number`, which is the last one, was sent for this reader.
    pub fn sent_for(&mut self, number: u64, who: Ticket) {
        self.readers.push_back((number, who));
    }

    /// The order goes on from a checkpoint that may cover what was sent: it serves nobody any more.
    pub fn restored(&mut self, last_sent: u64) {
        for (need, _) in &mut self.readers {
            *need = last_sent + 1;
        }
    }

    /// All other members show everything up to `gid`: the writers that waited for no more.
    fn shown(&mut self, gid: Gid) -> Vec<Ticket> {
        let later = self.writers.split_off(&gid.next());
        let served = std::mem::replace(&mut self.writers, later);
        served.into_values().flatten().collect()
    }
}

impl Coordinator {
    /// A reader wants everything that is acknowledged now.
    pub(super) fn await_order(&mut self, who: Ticket, out: &mut Vec<Effect>) {
        if self.state != GroupState::Online || self.stopping {
            return self.verdict(Some(who), Outcome::NotPrimary, out);
        }
        let need = self.ledger.last_sent() + 1;
        self.waiting.readers.push_back((need, who));
    }

    /// A writer wants `gid`, which it committed, to be visible on all members.
    pub(super) fn await_shown(&mut self, who: Ticket, gid: Gid) {
        self.waiting.writers.entry(gid).or_default().push(who);
    }

    /// Own message `number` was delivered.
    pub(super) fn serve_readers(&mut self, number: u64, out: &mut Vec<Effect>) {
        let gid = self.replicated.last_gid();
        for who in self.waiting.delivered(number) {
            self.verdict(Some(who), Outcome::Reached { gid }, out);
        }
    }

    /// Answers writers, sends what readers or other members' writers wait for.
    pub(super) fn serve_waiting(&mut self, out: &mut Vec<Effect>) {
        if !self.waiting.writers.is_empty() {
            let gid = self.replicated.shown_beside(self.config.me);
            let gid = gid.unwrap_or(self.progress.committed);
            for who in self.waiting.shown(gid) {
                self.verdict(Some(who), Outcome::Reached { gid }, out);
            }
        }
        let barrier = match self.waiting.readers.back() {
            Some((need, _)) => self.ledger.last_sent() < *need,
            None => false,
        };
        let reported = self.reported.0.committed;
        let wanted = &mut self.waiting.wanted;
        wanted.drain(..wanted.partition_point(|gid| *gid <= reported));
        let report = (wanted.front()).is_some_and(|gid| *gid <= self.progress.committed);
        let may_send = !self.waiting.refused && self.opening.may_send();
        if (barrier || report) && may_send && !self.ledger.status_out() {
            self.send_status(out);
        }
    }

    /// Positions of this member, as a message of its own.
    pub(super) fn send_status(&mut self, out: &mut Vec<Effect>) {
        let now = (self.progress, self.replicated.point());
        self.reported = now;
        self.quiet_ticks = 0;
        let (token, payload) = self.ledger.offer_status(message::status(now.0, now.1));
        out.push(Effect::Gcs(GcsCommand::Multicast { token, payload }));
    }

    /// Whether another member waits for what is not committed here yet.
    pub(super) fn commits_awaited(&self) -> bool {
        let last = self.waiting.wanted.back();
        last.is_some_and(|gid| *gid > self.progress.committed)
    }

    /// No order for readers from here on.
    pub(super) fn refuse_readers(&mut self, out: &mut Vec<Effect>) {
        self.refuse_reserving(out);
        for (_, who) in std::mem::take(&mut self.waiting.readers) {
            self.verdict(Some(who), Outcome::NotPrimary, out);
        }
    }

    /// This member hears nothing of the others from here on.
    pub(super) fn refuse_writers(&mut self, out: &mut Vec<Effect>) {
        for who in std::mem::take(&mut self.waiting.writers)
            .into_values()
            .flatten()
        {
            self.verdict(Some(who), Outcome::NotPrimary, out);
        }
    }
}
