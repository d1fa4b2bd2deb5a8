//! Growing and shrinking: joins on their way to the leader, learners that become voters, members
//! that are dropped. One change at a time is in the log.

use super::log::Member;
use super::members::{JoinReply, JoinRequest};
use super::node::{Node, RETRY_TICKS};
use super::ready::conf_change;
use super::wire::{Change, Frame};
use crate::gcs::Output;
use crate::ids::MemberId;
use crate::limits::{HALF_OPEN_MAX, IN_STEP_ENTRIES_MAX, MEMBERS_MAX};
use bytes::Bytes;
use raft::ProgressState;
use raft::eraftpb::ConfChangeType;

/// Ticks after which a join without an answer is to be tried elsewhere.
const JOIN_TICKS: usize = 20 * RETRY_TICKS;

impl Node {
    /// A server asks to join; the answer comes when the membership change is delivered here.
    pub(super) fn join(&mut self, connection: u64, request: Bytes) {
        let refusal = match JoinRequest::decode(request.clone()) {
            Err(e) => Some(JoinReply::Refused(format!("the request to join {e}"))),
            Ok(_) if self.joins.len() >= HALF_OPEN_MAX => {
                Some(JoinReply::Retry("too many servers are joining".into()))
            }
            Ok(_) => None,
        };
        if let Some(reply) = refusal {
            return self.answer(connection, &reply);
        }
        self.joins.insert(connection, (request, 0));
        self.answer_joins();
        self.push_join(connection);
    }

    fn answer(&mut self, connection: u64, reply: &JoinReply) {
        self.joins.remove(&connection);
        self.out.push(Output::JoinReply {
            connection,
            bytes: reply.encode(),
        });
    }

    /// Answers those who are members now.
    pub(super) fn answer_joins(&mut self) {
        let mut answers = Vec::new();
        for (&connection, (request, _)) in &self.joins {
            let nonce = JoinRequest::decode(request.clone()).map(|r| r.nonce);
            let members = self.order.members();
            if let Some(m) = members.values().find(|m| Ok(m.nonce) == nonce) {
                let reply = JoinReply::Accepted {
                    member: m.id,
                    members: members.values().cloned().collect(),
                };
                answers.push((connection, reply));
            }
        }
        for (connection, reply) in answers {
            self.answer(connection, &reply);
        }
    }

    /// The leader's answer to what was handed on. A retry is this member's own to make.
    pub(super) fn join_refused(&mut self, connection: u64, reply: Bytes) {
        if let Ok(reply @ JoinReply::Refused(_)) = JoinReply::decode(reply)
            && self.joins.contains_key(&connection)
        {
            self.answer(connection, &reply);
        }
    }

    pub(super) fn retry_joins(&mut self) {
        let connections: Vec<u64> = self.joins.keys().copied().collect();
        for connection in connections {
            let age = self.joins.get_mut(&connection).map(|(_, age)| {
                *age += RETRY_TICKS;
                *age
            });
            if age.is_some_and(|age| age > JOIN_TICKS) {
                let reply = JoinReply::Retry("no majority of the group answered in time".into());
                self.answer(connection, &reply);
            } else {
                self.push_join(connection);
            }
        }
    }

    fn push_join(&mut self, connection: u64) {
        let Some((request, _)) = self.joins.get(&connection) else {
            return;
        };
        let request = request.clone();
        if self.is_leader() {
            if let Err(reply @ JoinReply::Refused(_)) = self.consider_join(request) {
                self.answer(connection, &reply);
            }
        } else if let Some(leader) = self.other_leader() {
            let frame = Frame::Join {
                connection,
                request,
            };
            self.send(leader, &frame);
        }
    }

    /// The leader proposes the membership change, if it can now.
    pub(super) fn consider_join(&mut self, request: Bytes) -> Result<(), JoinReply> {
        let refuse = |why: String| Err(JoinReply::Refused(why));
        let request = match JoinRequest::decode(request) {
            Ok(r) => r,
            Err(e) => return refuse(format!("the request to join {e}")),
        };
        let members = self.order.members();
        if request.group != self.config.group {
            return refuse("the copy belongs to another group".into());
        }
        if request.fingerprint != self.config.fingerprint {
            return refuse(format!(
                "the server is not of the members' kind: it is \"{}\", they are \"{}\"",
                request.fingerprint, self.config.fingerprint
            ));
        }
        if members.values().any(|m| m.nonce == request.nonce) {
            return Ok(());
        }
        if request.nonce == 0 || !request.address.contains(':') {
            return refuse("the request to join has no address".into());
        }
        if self.raft.store().mark_for(request.gid).is_none() {
            return refuse(format!(
                "the copy ends at GID {}, and the group log does not reach back to it; take a new \
                 copy",
                request.gid
            ));
        }
        if let Some(old) = members.values().find(|m| m.address == request.address) {
            let id = old.id;
            let alive = id == self.config.me || self.peers.get(&id).is_some_and(|p| p.up);
            if alive {
                return refuse(format!(
                    "member {id} is connected and has the address \"{}\"",
                    request.address
                ));
            }
            // That server lost its place: it comes back as a new member.
            self.removals.insert(id);
            self.retry_removals();
            return Err(JoinReply::Retry(format!("member {id} is being dropped")));
        }
        let number = self.order.next_member();
        if members.len() >= MEMBERS_MAX || number == u16::MAX {
            return refuse(format!("the group has {} members already", members.len()));
        }
        let change = Change::Add(Member {
            id: MemberId(number),
            voter: false,
            nonce: request.nonce,
            gid: request.gid,
            address: request.address,
        });
        if self.propose_change(&change) {
            Ok(())
        } else {
            let why = "another membership change is under way";
            Err(JoinReply::Retry(why.into()))
        }
    }

    /// Proposes a change unless another is under way.
    fn propose_change(&mut self, change: &Change) -> bool {
        let (kind, id) = match change {
            Change::Add(m) => (ConfChangeType::AddLearnerNode, m.id),
            Change::Promote(id) => (ConfChangeType::AddNode, *id),
            Change::Remove(id) => (ConfChangeType::RemoveNode, *id),
            Change::Demote(id) => (ConfChangeType::AddLearnerNode, *id),
        };
        // Before an entry of its own term is committed, a leader may not know of all changes.
        let r = &self.raft.raft;
        if r.has_pending_conf() || !r.commit_to_current_term() || r.lead_transferee.is_some() {
            return false;
        }
        let proposed = self
            .raft
            .propose_conf_change(change.encode(), conf_change(kind, id));
        proposed.is_ok()
    }

    /// A learner that is in step votes from now on.
    pub(super) fn promote(&mut self) {
        if !self.is_leader() || self.raft.raft.has_pending_conf() {
            return;
        }
        let committed = self.raft.raft.raft_log.committed;
        let in_step = self.order.members().values().find(|m| {
            let progress = self.raft.raft.prs().get(u64::from(m.id.0));
            !m.voter
                && !self.removals.contains(&m.id)
                && progress.is_some_and(|p| {
                    p.state == ProgressState::Replicate
                        && p.matched > 0
                        && p.matched + IN_STEP_ENTRIES_MAX >= committed
                })
        });
        if let Some(id) = in_step.map(|m| m.id) {
            self.propose_change(&Change::Promote(id));
        }
    }

    /// Drops the members that are to go: the leader proposes it, others tell the leader.
    pub(super) fn retry_removals(&mut self) {
        let members = self.order.members();
        self.removals.retain(|id| members.contains_key(id));
        let Some(&id) = self.removals.first() else {
            return;
        };
        let others = members.values().filter(|m| m.voter && m.id != id).count();
        let lone = members.get(&id).is_some_and(|m| m.voter) && others == 0;
        if lone {
            // Nobody is left to go on with; the group ends with this member.
            self.removals.remove(&id);
            if id == self.config.me {
                self.removed();
            }
        } else if !self.is_leader() {
            if let Some(leader) = self.other_leader() {
                let wanted: Vec<MemberId> = self.removals.iter().copied().collect();
                for id in wanted {
                    self.send(leader, &Frame::Remove(id));
                }
            }
        } else if id == self.config.me {
            self.hand_over();
        } else if members.get(&id).is_some_and(|m| m.voter) {
            self.propose_change(&Change::Demote(id));
        } else {
            self.propose_change(&Change::Remove(id));
        }
    }

    /// A leader that is to go lets the voter that is furthest lead.
    fn hand_over(&mut self) {
        let me = self.config.me;
        let prs = self.raft.raft.prs();
        let voters = self
            .order
            .members()
            .values()
            .filter(|m| m.voter && m.id != me);
        let best = voters
            .map(|m| u64::from(m.id.0))
            .max_by_key(|&id| (prs.get(id).map_or(0, |p| p.matched), std::cmp::Reverse(id)));
        if let Some(id) = best {
            self.raft.transfer_leader(id);
        }
    }
}
