//! From Raft's `Ready` to outputs: what to write, what to send now and what when it is durable,
//! what to deliver.

use super::log::{Checkpoint, EntryKind, HardState, Record};
use super::node::{CatchUp, Life, Node, RETRY_TICKS, Then, Waiting};
use super::outbox::Offered;
use super::recover::Mark;
use super::store;
use super::wire::{self, Change, Frame};
use crate::gcs::{Event, Output};
use crate::ids::{Gid, MemberId, MessageId};
use crate::limits::PIPELINE_ENTRIES_MAX;
use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot};

impl Node {
    /// Lets Raft and the queues produce everything that follows from the inputs so far.
    pub(super) fn pump(&mut self) {
        while self.life == Life::Running {
            self.send_own();
            self.propose();
            self.announce();
            self.ask_position();
            if !self.raft.has_ready() || !self.preload() {
                break;
            }
            self.ready();
        }
        let log = &self.raft.raft.raft_log;
        let upto = log.applied.min(log.persisted);
        self.raft.mut_store().trim(upto);
    }

    /// Own messages go to the leader, all of them when it is a new one.
    fn send_own(&mut self) {
        let to = (self.raft.raft.term, self.raft.raft.leader_id);
        if to.1 == 0 {
            return;
        }
        if self.sent_to != to {
            self.sent_to = to;
            self.outbox.rewind(0);
            if self.is_leader() {
                self.proposals.begin(self.order.seen());
            }
        }
        let incarnation = self.config.incarnation;
        while let Some((first, payloads)) = self.outbox.take() {
            if let Some(leader) = self.other_leader() {
                let frame = Frame::Forward {
                    incarnation,
                    first,
                    payloads,
                };
                self.send(leader, &frame);
                continue;
            }
            for (number, payload) in (first..).zip(payloads) {
                let id = MessageId {
                    member: self.config.me,
                    incarnation,
                    number,
                };
                if self.proposals.offer(id, payload) == Offered::Full {
                    // Room comes with the next delivery; the ticks send it again.
                    return;
                }
            }
        }
    }

    /// A lone message goes at once; with an entry on its way, messages gather.
    fn propose(&mut self) {
        while self.is_leader() && !self.proposals.is_empty() {
            let log = &self.raft.raft.raft_log;
            let under_way = log.last_index() - log.committed;
            if under_way >= PIPELINE_ENTRIES_MAX || self.raft.raft.lead_transferee.is_some() {
                return;
            }
            let data = wire::encode_batch(&self.proposals.take());
            if self.raft.propose(Vec::new(), data).is_err() {
                // Not taken, so as good as lost: begin again from what was delivered.
                self.sent_to = (0, 0);
                return;
            }
            self.announced = self.raft.raft.raft_log.committed;
        }
    }

    /// Followers learn with the next entry what is committed; at once if none follows.
    fn announce(&mut self) {
        let committed = self.raft.raft.raft_log.committed;
        if self.is_leader() && committed > self.announced {
            self.announced = committed;
            self.raft.raft.bcast_append();
        }
    }

    /// Learns the position that the group had committed when this member started.
    fn ask_position(&mut self) {
        let CatchUp::Asking(asked) = self.catching_up else {
            return;
        };
        let now = self.ticks;
        if asked.is_some_and(|t| now < t + RETRY_TICKS) || !self.is_primary() {
            return;
        }
        self.catching_up = CatchUp::Asking(Some(now));
        let mut context = self.this_life();
        context.extend_from_slice(&(now as u64).to_le_bytes());
        self.raft.read_index(context);
    }

    /// What its questions for the position begin with.
    fn this_life(&self) -> Vec<u8> {
        let mut name = Vec::with_capacity(14);
        name.extend_from_slice(&self.config.me.0.to_le_bytes());
        name.extend_from_slice(&self.config.incarnation.0.to_le_bytes());
        name
    }

    /// What Raft is about to deliver must be readable.
    fn preload(&mut self) -> bool {
        if self
            .waiting
            .iter()
            .any(|w| matches!(w.then, Then::Restore(..)))
        {
            return true;
        }
        let log = &self.raft.raft.raft_log;
        let next = self.order.index() + 1;
        if next > log.committed.min(log.persisted) || next < log.first_index() {
            return true;
        }
        match self.raft.store().preload(next) {
            Ok(()) => true,
            Err(e) => {
                self.fail(format!("cannot read the group log: {e}"));
                false
            }
        }
    }

    fn ready(&mut self) {
        let mut rd = self.raft.ready();
        let at_once = rd.take_messages();
        if let Some(hs) = rd.hs() {
            self.hard_state = HardState {
                term: hs.term,
                vote: hs.vote,
                commit: hs.commit,
            };
        }
        let (now, logged) = (self.hard_state, self.hard_state_logged);
        let new_term = (now.term, now.vote) != (logged.term, logged.vote);
        // A leader's appends may go out ahead of its disk, but not ahead of its own vote: it could
        // lead the same term again and propose otherwise. A lone voter leads before it is durable.
        if new_term || self.durable < self.term_ticket {
            // A late heartbeat is worth nothing; all else is bounded by what Raft has under way.
            let lasting = |m: &Message| m.get_msg_type() != MessageType::MsgHeartbeat;
            self.held.extend(at_once.into_iter().filter(lasting));
        } else {
            for m in at_once {
                self.send_raft(m);
            }
        }
        let mut records = Vec::new();
        let mut then = Then::Nothing;
        if !rd.snapshot().is_empty() {
            match self.install(rd.snapshot()) {
                Some((checkpoint, mark)) => {
                    self.hard_state_logged = self.hard_state_at(checkpoint.index);
                    records.push(Record::Restore(checkpoint.clone(), self.hard_state_logged));
                    then = Then::Restore(Box::new(checkpoint), mark);
                }
                None => return,
            }
        }
        let entries = rd.take_entries();
        if entries.is_empty() && rd.must_sync() {
            self.log_hard_state(self.hard_state.commit, &mut records);
        }
        self.raft.mut_store().append(&entries);
        // The commit index never needs a write of its own, but entries never go without it: a
        // member that has a membership change must know that all before are committed. It covers
        // nothing that follows it: torn there, the log still has what that supersedes.
        for (i, e) in entries.iter().enumerate() {
            if i == 0 || e.get_entry_type() != EntryType::EntryNormal {
                self.log_hard_state(e.index - 1, &mut records);
            }
            records.push(Record::Entry(store::from_raft(e)));
        }

        let number = rd.number();
        let messages = rd.take_persisted_messages();
        let committed = rd.take_committed_entries();
        for state in rd.take_read_states() {
            // One that was meant for an earlier life may be of before what that life delivered.
            if state.request_ctx.starts_with(&self.this_life()) {
                self.position_known(state.index);
            }
        }
        if records.is_empty() && self.durable == self.ticket {
            self.raft.advance_append_async(rd);
            self.raft.on_persist_ready(number);
            for m in messages {
                self.send_raft(m);
            }
        } else {
            // With nothing to write, what it says still rests on what is being written.
            let ticket = if records.is_empty() {
                self.ticket
            } else {
                self.append(records)
            };
            if new_term {
                self.term_ticket = ticket;
            }
            self.raft.advance_append_async(rd);
            self.waiting.push_back(Waiting {
                ticket,
                ready: number,
                messages,
                then,
            });
        }
        for entry in committed {
            self.deliver(&entry);
            if self.life != Life::Running {
                return;
            }
        }
        if self.order.index() > self.raft.raft.raft_log.applied {
            self.raft.advance_apply_to(self.order.index());
        }
        if self
            .catching_up_to()
            .is_some_and(|i| i <= self.order.index())
        {
            self.catching_up = CatchUp::Done;
            self.emit(Event::CaughtUp);
        }
    }

    /// The hard state as a log that ends with this entry may have it.
    fn hard_state_at(&self, index: u64) -> HardState {
        HardState {
            commit: self.hard_state.commit.min(index),
            ..self.hard_state
        }
    }

    fn log_hard_state(&mut self, index: u64, records: &mut Vec<Record>) {
        let state = self.hard_state_at(index);
        if state != self.hard_state_logged {
            records.push(Record::HardState(state));
            self.hard_state_logged = state;
        }
    }

    fn catching_up_to(&self) -> Option<u64> {
        match self.catching_up {
            CatchUp::Until(index) => Some(index),
            CatchUp::Asking(_) | CatchUp::Done => None,
        }
    }

    fn position_known(&mut self, index: u64) {
        if let CatchUp::Asking(_) = self.catching_up {
            self.catching_up = CatchUp::Until(index);
        }
    }

    /// Takes another member's checkpoint; its record carries the hard state with it, so that the
    /// log never shows one without the other.
    fn install(&mut self, snapshot: &Snapshot) -> Option<(Checkpoint, Mark)> {
        let mut fields = super::codec::Fields::new(snapshot.data.clone());
        let checkpoint = match Checkpoint::decode(&mut fields) {
            Ok(c) if c.index == snapshot.get_metadata().index => c,
            _ => {
                self.fail("a checkpoint of another member cannot be read");
                return None;
            }
        };
        let mark = Mark {
            index: checkpoint.index,
            term: checkpoint.term,
            gid: checkpoint.gid,
            log_bytes: self.log_bytes,
        };
        self.raft.mut_store().restore(&checkpoint);
        Some((checkpoint, mark))
    }

    /// An entry that is committed and durable here.
    fn deliver(&mut self, entry: &Entry) {
        let ours = store::from_raft(entry);
        match ours.kind {
            EntryKind::Batch => match wire::decode_batch(ours.data) {
                Ok(messages) => self.deliver_batch(entry.index, entry.term, messages),
                Err(e) => self.fail(format!("entry {} of the group log {e}", entry.index)),
            },
            EntryKind::Change => match Change::decode(ours.data) {
                Ok(change) => self.deliver_change(entry.index, entry.term, change),
                Err(e) => self.fail(format!("entry {} of the group log {e}", entry.index)),
            },
        }
    }

    fn deliver_batch(&mut self, index: u64, term: u64, messages: Vec<(MessageId, Bytes)>) {
        let me = (self.config.me, self.config.incarnation);
        for delivery in self.order.batch(index, term, messages) {
            let id = delivery.id;
            if (id.member, id.incarnation) == me {
                self.outbox.delivered(id.number);
                self.stalled = 0;
            }
            self.proposals.delivered(id);
            self.emit(Event::Deliver(delivery));
        }
    }

    fn deliver_change(&mut self, index: u64, term: u64, change: Change) {
        let (kind, id) = match &change {
            Change::Add(m) => (ConfChangeType::AddLearnerNode, m.id),
            Change::Promote(id) => (ConfChangeType::AddNode, *id),
            Change::Remove(id) => (ConfChangeType::RemoveNode, *id),
            Change::Demote(id) => (ConfChangeType::AddLearnerNode, *id),
        };
        // What makes no sense in the membership as of here changes nothing, on all members alike.
        let known = self.order.members().contains_key(&id);
        let sensible = match &change {
            Change::Add(m) => !known && m.id.0 >= self.order.next_member(),
            Change::Promote(_) | Change::Remove(_) | Change::Demote(_) => known,
        };
        let applied = sensible && self.raft.apply_conf_change(&conf_change(kind, id)).is_ok();
        self.order
            .change(index, term, applied.then(|| change.clone()));
        if !applied {
            return;
        }
        self.membership_changed();
        match change {
            Change::Add(_) => self.answer_joins(),
            Change::Promote(_) => {}
            Change::Demote(_) => self.retry_removals(),
            Change::Remove(id) => {
                self.removals.remove(&id);
                if id == self.config.me {
                    self.removed();
                }
            }
        }
    }

    /// Cuts the log. Kept are always the checkpoint that this member would restart from and what
    /// follows it; for members that lag, as much as `keep_bytes` allows; and half of that even
    /// when no member needs it, for servers that copy data now and join later.
    pub(super) fn compact(&mut self, own: Gid, all: Gid) {
        let marks = self.raft.store().marks();
        let fits = |bytes: u64| {
            let oldest = marks
                .iter()
                .find(|m| self.log_bytes - m.log_bytes.min(self.log_bytes) <= bytes);
            oldest.or(marks.back()).copied()
        };
        let newest = |gid: Gid| marks.iter().rev().find(|m| m.gid <= gid).copied();
        let (Some(restart), Some(most), Some(half)) = (
            newest(own),
            fits(self.config.keep_bytes),
            fits(self.config.keep_bytes / 2),
        ) else {
            return;
        };
        let lagging = newest(own.min(all))
            .or(marks.front().copied())
            .unwrap_or(restart);
        let wanted = lagging.index.min(half.index).max(most.index);
        let cut = restart.index.min(wanted);
        let Some(mark) = marks.iter().find(|m| m.index == cut).copied() else {
            return;
        };
        if Some(&mark) != marks.front() {
            self.raft.mut_store().compact(mark);
            self.out.push(Output::Compact {
                first_index: mark.index + 1,
            });
        }
    }
}

/// A membership change as Raft knows it.
pub(super) fn conf_change(kind: ConfChangeType, id: MemberId) -> ConfChange {
    let mut cc = ConfChange::default();
    cc.set_change_type(kind);
    cc.node_id = u64::from(id.0);
    cc
}
