//! What comes in: connections, frames of peers, and word that writes are durable.

use super::node::{Node, Peer, Then, message_bytes_max};
use super::order::Order;
use super::outbox::Offered;
use super::wire::Frame;
use crate::ids::{Incarnation, MemberId, MessageId};
use crate::limits::MEMBERS_MAX;
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

impl Node {
    pub(super) fn peer_up(&mut self, id: MemberId) {
        let peer = self.peers.entry(id).or_default();
        *peer = Peer {
            up: true,
            ..Peer::default()
        };
        if self.order.is_gone(id) {
            self.send(id, &Frame::Gone);
        } else if self.other_leader() == Some(id) {
            self.outbox.rewind(0);
        }
    }

    pub(super) fn peer_down(&mut self, id: MemberId) {
        self.peers.insert(id, Peer::default());
        if self.is_leader() {
            let id = u64::from(id.0);
            self.raft.report_unreachable(id);
            self.raft.report_snapshot(id, raft::SnapshotStatus::Failure);
        }
    }

    pub(super) fn frame(&mut self, from: MemberId, bytes: Bytes) {
        if from.0 == 0 || from == self.config.me {
            return;
        }
        if self.peers.len() > 4 * MEMBERS_MAX && !self.peers.contains_key(&from) {
            return;
        }
        let gone = self.order.is_gone(from);
        let peer = self.peers.entry(from).or_default();
        if gone {
            if !std::mem::replace(&mut peer.told, true) {
                self.send(from, &Frame::Gone);
            }
            return;
        }
        // What does not parse is dropped: a peer that sends it gets no further than by silence.
        let Ok(Some(frame)) = peer.assembly.take(bytes) else {
            return;
        };
        match frame {
            Frame::Raft(m) => self.raft_message(from, *m),
            Frame::Forward {
                incarnation,
                first,
                payloads,
            } => self.forwarded(from, incarnation, first, payloads),
            Frame::Gap { incarnation, next } => {
                if incarnation == self.config.incarnation && self.other_leader() == Some(from) {
                    self.outbox.rewind(next);
                }
            }
            Frame::Join {
                connection,
                request,
            } => {
                if self.is_leader()
                    && let Err(reply) = self.consider_join(request)
                {
                    let reply = reply.encode();
                    self.send(from, &Frame::JoinReply { connection, reply });
                }
            }
            Frame::JoinReply { connection, reply } => self.join_refused(connection, reply),
            Frame::Remove(member) => {
                if self.is_leader() {
                    self.removals.insert(member);
                    self.retry_removals();
                }
            }
            Frame::Gone => self.removed(),
        }
    }

    fn raft_message(&mut self, from: MemberId, mut m: Message) {
        m.from = u64::from(from.0);
        m.to = u64::from(self.config.me.0);
        let log = &self.raft.raft.raft_log;
        let (term, last, committed) = (self.raft.raft.term, log.last_index(), log.committed);
        let from_leader = matches!(
            m.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
        );
        match m.get_msg_type() {
            MessageType::MsgHeartbeat if m.term >= term && m.commit > last => {
                return self.lost(m.commit);
            }
            MessageType::MsgAppend if m.term >= term && m.commit_term > last => {
                return self.lost(m.commit_term);
            }
            MessageType::MsgAppend if m.term >= term => {
                let conflict = m
                    .entries
                    .iter()
                    .take_while(|e| e.index <= committed)
                    .find(|e| log.term(e.index).is_ok_and(|t| t != 0 && t != e.term));
                if let Some(e) = conflict {
                    let index = e.index;
                    return self.fail(format!(
                        "the group's entry {index} differs from the one that was committed here"
                    ));
                }
            }
            MessageType::MsgAppendResponse if !m.reject && m.index > last => return,
            // A leader's hand-over starts an election at once.
            MessageType::MsgTimeoutNow if !self.may_campaign() => return,
            _ => {}
        }
        if from_leader && m.term >= term {
            self.silence = 0;
        }
        // An error says that the message is of no use now, as after a change of leader.
        let _ = self.raft.step(m);
    }

    /// The leader knows from this member that it had the entry on stable storage.
    fn lost(&mut self, index: u64) {
        let last = self.raft.raft.raft_log.last_index();
        self.fail(format!(
            "the group log here ends at entry {last}, but had entry {index} before: it lost \
             entries that it had acknowledged"
        ));
    }

    fn forwarded(
        &mut self,
        from: MemberId,
        incarnation: Incarnation,
        first: u64,
        payloads: Vec<Bytes>,
    ) {
        if !self.is_leader() || !self.order.members().contains_key(&from) {
            return;
        }
        for (number, payload) in (first..).zip(payloads) {
            if payload.len() > message_bytes_max() {
                return;
            }
            let id = MessageId {
                member: from,
                incarnation,
                number,
            };
            match self.proposals.offer(id, payload) {
                Offered::Taken | Offered::Known => {}
                Offered::Full => return,
                Offered::Gap(next) => {
                    let peer = self.peers.entry(from).or_default();
                    if !std::mem::replace(&mut peer.told, true) {
                        self.send(from, &Frame::Gap { incarnation, next });
                    }
                    return;
                }
            }
        }
    }

    pub(super) fn made_durable(&mut self, ticket: u64) {
        self.durable = self.durable.max(ticket);
        if self.durable >= self.term_ticket {
            for m in std::mem::take(&mut self.held) {
                self.send_raft(m);
            }
        }
        while self
            .waiting
            .front()
            .is_some_and(|w| w.ticket <= self.durable)
        {
            let w = self.waiting.pop_front().expect("just seen");
            if w.ready != 0 {
                self.raft.on_persist_ready(w.ready);
            }
            for m in w.messages {
                self.send_raft(m);
            }
            match w.then {
                Then::Nothing => {}
                Then::Mark(mark) => {
                    self.raft.mut_store().add_mark(mark);
                }
                Then::Restore(checkpoint, mark) => {
                    self.raft.mut_store().add_mark(mark);
                    self.raft.advance_apply_to(checkpoint.index);
                    self.order = Order::new(&checkpoint);
                    self.restored(*checkpoint);
                }
            }
        }
    }
}
