//! This member's own multicasts: taken, offered to the engine, refused, abandoned.

use super::dispatch::{Content, Work};
use super::event::{Effect, GcsCommand, Outcome};
use super::ledger::{Abandoned, Abandoning, Ahead, Asker, Passed, Ticket};
use super::message::{self, ENVELOPE_BYTES};
use super::step::Coordinator;
use crate::changeset::fragment::{FragmentsOf, fragment_head};
use crate::gcs::Refused;
use crate::group_state::GroupState;
use crate::ids::{Gid, MessageId};
use crate::limits::IN_FLIGHT_MAX;
use bytes::Bytes;

impl Coordinator {
    /// A worker hands over its changeset.
    pub(super) fn multicast(
        &mut self,
        ticket: Ticket,
        mut message: Vec<u8>,
        out: &mut Vec<Effect>,
    ) {
        if self.state != GroupState::Online || self.stopping {
            return self.verdict(Some(ticket), Outcome::NotPrimary, out);
        }
        if self.ledger.in_flight() >= IN_FLIGHT_MAX {
            return self.verdict(Some(ticket), Outcome::Busy, out);
        }
        let sender = MessageId {
            member: self.config.me,
            incarnation: self.config.incarnation,
            number: 0,
        };
        if message.len() < ENVELOPE_BYTES || self.open(&message[ENVELOPE_BYTES..], sender).is_none()
        {
            return self.verdict(Some(ticket), Outcome::Malformed, out);
        }
        message::seal_changeset(&mut message, self.progress);
        self.reported.0 = self.progress;
        self.quiet_ticks = 0;
        self.ledger.hold(ticket, Bytes::from(message));
        self.offer_held(out);
    }

    /// A worker hands over a fragment of a transaction that goes on.
    pub(super) fn fragment(&mut self, ticket: Ticket, mut message: Vec<u8>, out: &mut Vec<Effect>) {
        let head = message.get(ENVELOPE_BYTES..).and_then(fragment_head);
        let is_its = head.is_some_and(|h| (h.of.worker, h.of.ticket) == ticket);
        if self.state != GroupState::Online || self.stopping || !is_its {
            return self.verdict(Some(ticket), Outcome::Fragment { kept: false }, out);
        }
        message::seal_fragment(&mut message, self.progress);
        self.reported.0 = self.progress;
        self.quiet_ticks = 0;
        let what = Ahead::Fragment(ticket);
        self.ledger.hold_ahead(what, Bytes::from(message));
        self.offer_held(out);
    }

    /// No changeset follows a worker's fragments. Said behind those that were sent.
    pub(super) fn drop_fragments(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
        self.ledger.withdraw_ahead(ticket);
        let (worker, ticket) = ticket;
        let of = FragmentsOf { worker, ticket };
        let payload = message::drop_fragments(self.progress, of);
        self.ledger
            .hold_ahead(Ahead::Drop((worker, ticket)), payload);
        if self.state == GroupState::Online {
            self.offer_held(out);
        }
    }

    /// Offers the first of what is held to the engine; the next follows when it has taken it.
    pub(super) fn offer_held(&mut self, out: &mut Vec<Effect>) {
        if let Some((token, payload)) = self.ledger.offer() {
            out.push(Effect::Gcs(GcsCommand::Multicast { token, payload }));
        }
    }

    /// The engine's answer to an offer.
    pub(super) fn sent(
        &mut self,
        token: u64,
        result: Result<MessageId, Refused>,
        out: &mut Vec<Effect>,
    ) {
        match result {
            Ok(id) => {
                debug_assert_eq!(
                    (id.member, id.incarnation),
                    (self.config.me, self.config.incarnation)
                );
                self.ledger.sent(token, id.number);
                if let Some(who) = self.reserving.sent(token) {
                    self.waiting.sent_for(id.number, who);
                }
                self.offer_held(out);
            }
            // It may pass before the group is given up for lost: see `Opening`.
            Err(Refused::Busy | Refused::NotPrimary) => {
                self.ledger.hold_again(token);
                self.reserving.not_sent(token);
                self.waiting.engine_refuses(true);
            }
            Err(Refused::TooBig) => {
                let asker = self.ledger.drop_offer(token);
                self.refuse(asker, Outcome::TooBig, out);
            }
        }
    }

    /// Nothing of what is held was sent: a definite no to its workers.
    pub(super) fn refuse_held(&mut self, out: &mut Vec<Effect>) {
        for asker in self.ledger.refuse_held() {
            self.refuse(Some(asker), Outcome::NotPrimary, out);
        }
    }

    /// A message was not sent, for the reason that `outcome` gives to who multicast a changeset.
    pub(super) fn refuse(&mut self, asker: Option<Asker>, outcome: Outcome, out: &mut Vec<Effect>) {
        match asker {
            Some(Asker::Changeset(ticket)) => self.verdict(Some(ticket), outcome, out),
            Some(Asker::Fragment(ticket)) => {
                self.verdict(Some(ticket), Outcome::Fragment { kept: false }, out);
            }
            None => {}
        }
    }

    /// A worker does not commit its multicast any more.
    pub(super) fn abandon(&mut self, ticket: Ticket, gone: bool, out: &mut Vec<Effect>) {
        let how = if gone {
            Abandoning::SessionEnds
        } else {
            Abandoning::SessionGoesOn
        };
        match self.ledger.abandon(ticket, how) {
            Abandoned::Over | Abandoned::Sent => {}
            Abandoned::Unsent => self.verdict(Some(ticket), Outcome::Withdrawn, out),
            Abandoned::Passed(gid, passed) if passed.local_effects && !gone => {
                self.ledger.pass(gid, passed);
                self.cannot_replay(gid, out);
            }
            Abandoned::Passed(gid, passed) => {
                let Passed {
                    changeset,
                    depends_on,
                    origin,
                    fragments,
                    ..
                } = passed;
                let content = Content::Memory(changeset);
                let work = Work {
                    depends_on,
                    origin,
                    content,
                    fragments,
                    replay_for: Some(ticket),
                    attempts: 0,
                    not_before: 0,
                };
                self.dispatch.replay(gid, work);
            }
        }
    }

    /// The rule of [`FLAG_LOCAL_EFFECTS`](crate::changeset::header::FLAG_LOCAL_EFFECTS).
    pub(super) fn cannot_replay(&mut self, gid: Gid, out: &mut Vec<Effect>) {
        let reason = format!(
            "GID {gid} was rolled back here after it was certified, but it has effects that only its session had"
        );
        self.fail(reason, out);
    }
}
