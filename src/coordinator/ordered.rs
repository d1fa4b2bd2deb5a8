//! What the total order brings: deliveries and their verdicts, views, checkpoints, recovery.

use super::dispatch::{Content, Work};
use super::event::{Effect, GcsCommand, Outcome};
use super::ledger::{Abandoning, Ahead, Own, OwnWorker, Passed};
use super::message::{self, Message, MessageError};
use super::open::Fragments;
use super::replicated::Replicated;
use super::step::Coordinator;
use crate::capture::read_set::searched;
use crate::certifier::Verdict;
use crate::changeset::decode::Changeset;
use crate::changeset::header::{
    FLAG_AWAITED, FLAG_DETACHED, FLAG_LOCAL_EFFECTS, FLAG_RESERVED, ISOLATION_SERIALIZABLE,
};
use crate::gcs::{self, Delivery};
use crate::group_state::GroupState;
use crate::ids::{Gid, MessageId};
use bytes::Bytes;

impl Coordinator {
    /// The next event of the engine.
    pub(super) fn gcs(&mut self, event: gcs::Event, out: &mut Vec<Effect>) {
        self.waiting.engine_refuses(false);
        match event {
            gcs::Event::Deliver(delivery) => self.deliver(delivery, out),
            gcs::Event::View(view) => {
                // An engine also tells where it stands when it starts; only a view of this very
                // position is an event of the order.
                if view.seq == self.replicated.seq {
                    self.end_of_entry(out);
                    self.last_index = 0;
                    self.replicated.view(&view);
                }
                self.view = view.clone();
                out.push(Effect::SetView(view));
            }
            gcs::Event::Primary(primary) => {
                self.opening.primary(primary);
                if primary {
                    self.offer_held(out);
                }
            }
            gcs::Event::CaughtUp => self.caught_up(out),
            gcs::Event::Restore { seq, gid, state } => self.restore(seq, gid, &state, out),
            gcs::Event::Removed => self.left(out),
            gcs::Event::Fatal(reason) => self.fail(reason, out),
        }
    }

    fn deliver(&mut self, delivery: Delivery, out: &mut Vec<Effect>) {
        if delivery.index != self.last_index {
            self.end_of_entry(out);
            self.last_index = delivery.index;
        }
        let (seq, before) = (delivery.seq, self.replicated.seq);
        if seq != before + 1 {
            return self.fail(
                format!("delivery {seq} follows {before}: the order has a gap"),
                out,
            );
        }
        self.replicated.delivered(&delivery);
        let id = delivery.id;
        let mut own = None;
        if (id.member, id.incarnation) == (self.config.me, self.config.incarnation) {
            own = self.ledger.delivered(id.number);
            let wrong = match &own {
                Some(own) if own.payload() == &delivery.payload => None,
                Some(_) => Some("with other content: a copy of this server may be at work"),
                None => Some("out of its turn"),
            };
            if let Some(how) = wrong {
                return self.fail(format!("own message {id} was delivered {how}"), out);
            }
        }
        match message::parse(&delivery.payload) {
            Ok(Message::Changeset(report, bytes)) => {
                self.changeset(&delivery, bytes, own.and_then(Own::into_worker), out);
                self.replicated.report(id.member, report);
            }
            Ok(Message::Status(report, point)) => {
                self.replicated.report(id.member, report);
                if self
                    .replicated
                    .vote(id.member, point)
                    .contains(&self.config.me)
                {
                    let gid = self.replicated.last_gid();
                    let reason =
                        format!("this member's verdicts up to GID {gid} differ from the group's");
                    return self.fail(reason, out);
                }
            }
            Ok(Message::Reserve(report, relations)) => {
                self.replicated.report(id.member, report);
                self.replicated.reserve(id.member, relations);
                if own.is_some() {
                    self.reserving.delivered();
                    self.release_own();
                }
            }
            Ok(Message::Fragment(report, head, bytes)) => {
                self.replicated.report(id.member, report);
                let kept = self.replicated.fragment(&delivery, head);
                let fragments = self.replicated.fragments(id, head.of).filter(|_| kept);
                let first = fragments.and_then(Fragments::first);
                if let Some(fragments) = fragments
                    && id.member != self.config.me
                {
                    let (base, may_begin) = (report.committed, self.state == GroupState::Online);
                    self.dispatch
                        .early_fragment(id.member, fragments, base, bytes, may_begin, out);
                }
                if let Some(Ahead::Fragment(ticket)) = own.and_then(|own| own.ahead()) {
                    match first {
                        Some(first) => self.pace(first, ticket, head.number + 1, out),
                        None => self.verdict(Some(ticket), Outcome::Fragment { kept }, out),
                    }
                }
            }
            Ok(Message::Drop(report, of)) => {
                self.replicated.report(id.member, report);
                self.replicated.drop_fragments(id, of);
            }
            Ok(Message::Applied(report, first, fragments)) => {
                self.replicated.report(id.member, report);
                self.early_applied(id.member, first, fragments, out);
            }
            Ok(Message::Release(report, member, position)) => {
                self.replicated.report(id.member, report);
                self.replicated.release(member, position);
            }
            Err(error @ MessageError::Version(_)) => {
                let reason =
                    format!("the group log has a {error}: it was written by another build");
                return self.fail(reason, out);
            }
            // The same bytes everywhere, so every member passes over it.
            Err(MessageError::Length(_) | MessageError::Kind(_)) => {}
        }
        if (id.member, id.incarnation) == (self.config.me, self.config.incarnation) {
            self.serve_readers(id.number, out);
        }
        if self.state == GroupState::Online {
            // The engine has room again for what it refused.
            self.offer_held(out);
        }
    }

    /// Certifies a delivered changeset and sends it on its way: to the own worker that multicast
    /// it and waits, or else to a helper.
    fn changeset(
        &mut self,
        delivery: &Delivery,
        bytes: Bytes,
        own: Option<OwnWorker>,
        out: &mut Vec<Effect>,
    ) {
        let ticket = own.as_ref().map(|own| own.ticket);
        let (origin, digest_gids) = (delivery.id.member, self.config.pace.digest_gids);
        // A sender checks before it sends; what does not decode gets no GID on any member. Only rows that are
        // compressed are not looked at before they are applied.
        let Some(changeset) = self.open(&bytes, delivery.id) else {
            return self.verdict(ticket, Outcome::Malformed, out);
        };
        let mut begun = None;
        let fragments = match changeset.fragments() {
            None => Vec::new(),
            Some(list) => {
                let all = self.replicated.fragments(delivery.id, list.of);
                begun = all.and_then(Fragments::first);
                match self.replicated.close(delivery.id, list) {
                    Some(fragments) => fragments,
                    // The order says so, to every member.
                    None => return self.verdict(ticket, Outcome::FragmentsLost, out),
                }
            }
        };
        let header = changeset.header();
        if header.isolation == ISOLATION_SERIALIZABLE {
            // Before the verdict: one that fails for such writers is to pass the next time.
            out.extend(changeset.keys().filter_map(|key| {
                let (relation, detail) = (key.relation, searched(&key)?);
                Some(Effect::Searched { relation, detail })
            }));
        }
        let local_effects = header.flags & FLAG_LOCAL_EFFECTS != 0;
        let detached = header.flags & FLAG_DETACHED != 0;
        let verdict =
            self.replicated
                .certify(origin, header.snapshot_gid, changeset.keys(), digest_gids);
        if header.flags & FLAG_RESERVED != 0 {
            self.replicated.reservation_used(origin);
            self.reserving.used(ticket);
        }
        let (gid, depends_on) = match verdict {
            Verdict::Pass { gid, depends_on } => (gid, depends_on),
            failed => {
                self.counts.certification_failures += u64::from(own.is_some());
                let outcome = match failed {
                    Verdict::Conflict {
                        relation,
                        gid,
                        origin,
                    } => Outcome::Conflict {
                        relation,
                        gid,
                        origin,
                    },
                    Verdict::Reserved { relation, member } => {
                        Outcome::Reserved { relation, member }
                    }
                    _ => Outcome::BelowFloor,
                };
                return self.verdict(ticket, outcome, out);
            }
        };
        if header.flags & FLAG_AWAITED != 0 && origin != self.config.me {
            self.waiting.want(gid);
        }
        if gid <= self.config.recovered {
            return;
        }
        self.counts.passed += u64::from(own.is_some());
        match own {
            Some(OwnWorker {
                ticket,
                abandoned: None,
            }) if !detached => {
                self.ledger.pass(
                    gid,
                    Passed {
                        ticket,
                        changeset: bytes,
                        depends_on,
                        origin,
                        local_effects,
                        fragments,
                    },
                );
                self.verdict(Some(ticket), Outcome::Pass { gid }, out);
            }
            Some(OwnWorker {
                abandoned: Some(Abandoning::SessionGoesOn),
                ..
            }) if local_effects => {
                self.cannot_replay(gid, out);
            }
            _ => {
                if detached {
                    self.verdict(ticket, Outcome::Reached { gid }, out);
                }
                let content = Content::Memory(bytes);
                let work = Work {
                    depends_on,
                    origin,
                    content,
                    fragments,
                    replay_for: ticket.filter(|_| !detached),
                    attempts: 0,
                    not_before: 0,
                };
                if let Some(first) = begun {
                    self.dispatch.early_passed(first, gid);
                }
                self.dispatch.push(gid, work, delivery);
            }
        }
    }

    /// A changeset, if it is whole and of this message's sender.
    pub(super) fn open<'a>(&self, bytes: &'a [u8], id: MessageId) -> Option<Changeset<'a>> {
        let changeset = Changeset::parse(bytes).ok()?;
        let header = changeset.header();
        let sender = (header.group, header.origin, header.incarnation);
        (sender == (self.config.group, id.member, id.incarnation)).then_some(changeset)
    }

    /// Checkpoints are due at ends of log entries, by what was delivered since the one before, so
    /// they lie at the same positions on every member.
    fn end_of_entry(&mut self, out: &mut Vec<Effect>) {
        let due = self.config.pace.checkpoint_messages;
        if self.last_index == 0 || !self.replicated.checkpoint_due(due) {
            return;
        }
        let (seq, gid) = (self.replicated.seq, self.replicated.last_gid());
        let state = Bytes::from(self.replicated.checkpoint());
        out.push(Effect::Gcs(GcsCommand::Checkpoint { seq, gid, state }));
    }

    /// The order goes on from a checkpoint, which must not contain what this copy lacks.
    fn restore(&mut self, seq: u64, gid: Gid, state: &[u8], out: &mut Vec<Effect>) {
        let restored = match Replicated::decode(state, &self.config.pace) {
            Ok(restored) => restored,
            Err(error) => return self.fail(error, out),
        };
        if (restored.seq, restored.last_gid()) != (seq, gid) {
            let (s, g) = (restored.seq, restored.last_gid());
            let reason =
                format!("the checkpoint of position {seq}, GID {gid} is of position {s}, GID {g}");
            return self.fail(reason, out);
        }
        let mine = self.config.recovered.max(self.replicated.last_gid());
        if gid > mine {
            let reason = format!(
                "the group's oldest retained checkpoint is at GID {gid}, but this copy has only GID {mine}: \
                 it needs a new copy of the data"
            );
            return self.fail(reason, out);
        }
        if self.ledger.awaits_delivery() {
            let reason =
                "this member lagged beyond the group's log while transactions were in flight";
            return self.fail(reason.into(), out);
        }
        self.replicated = restored;
        self.ledger.restored();
        self.waiting.restored(self.ledger.last_sent());
        self.reserving.delivered();
        self.last_index = 0;
    }

    fn caught_up(&mut self, out: &mut Vec<Effect>) {
        let (ordered, recovered) = (self.replicated.last_gid(), self.config.recovered);
        if ordered < recovered {
            return self.fail(
                format!(
                    "this copy has GID {recovered}, but the group's order ends at GID {ordered}: \
                     its data is of another history"
                ),
                out,
            );
        }
        self.opening.caught_up(ordered);
    }
}
