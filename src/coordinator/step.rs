//! The coordinator's core: one event in, effects out. It does no I/O and reads no clock.
#![forbid(unsafe_code)]

use super::dispatch::{Content, Dispatch, Work};
use super::event::{Config, Effect, Event, GcsCommand, MemberStats, Outcome, Stats};
use super::ledger::{Abandoned, Ledger, Passed, Ticket};
use super::message::{self, DigestPoint, ENVELOPE_BYTES, Message, Report};
use super::opening::Opening;
use super::replicated::Replicated;
use crate::certifier::Verdict;
use crate::changeset::decode::{Changeset, FLAG_LOCAL_EFFECTS};
use crate::gcs::{self, Delivery, MemberInfo, Refused, View};
use crate::group_state::GroupState;
use crate::ids::{Gid, MessageId};
use crate::limits::IN_FLIGHT_MAX;
use bytes::Bytes;

/// The core. One for each group of a server.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    state: GroupState,
    failure: Option<String>,
    /// Function of the total order.
    replicated: Replicated,
    /// Log entry of the last delivery; 0 before the first.
    last_index: u64,
    /// Own multicasts.
    ledger: Ledger,
    /// Changesets for helpers.
    dispatch: Dispatch,
    /// When the group opens and closes to writers.
    opening: Opening,
    /// This member's positions.
    progress: Report,
    /// What the last own message said, and the ticks since.
    reported: (Report, DigestPoint),
    quiet_ticks: u32,
    /// Last [`GcsCommand::Stable`].
    stable: (Gid, Gid),
    view: View,
    stopping: bool,
    remove_sent: bool,
    counts: Stats,
}

impl Coordinator {
    /// A core at the beginning of a life, before anything was delivered. The engine's first event
    /// may be a [`gcs::Event::Restore`]; without one the log is read from its genesis.
    #[must_use]
    pub fn new(config: Config) -> Coordinator {
        let state = if config.joining {
            GroupState::Joining
        } else {
            GroupState::Recovering
        };
        Coordinator {
            state: GroupState::Off.to(state),
            failure: None,
            replicated: Replicated::genesis(&config.pace),
            last_index: 0,
            ledger: Ledger::default(),
            dispatch: Dispatch::new(config.helpers, config.pace.queue_bytes),
            opening: Opening::new(config.pace.quorum_ticks),
            progress: Report {
                low: config.recovered,
                committed: config.recovered,
                flushed: Gid::ZERO,
            },
            reported: Default::default(),
            quiet_ticks: 0,
            stable: Default::default(),
            view: View::default(),
            stopping: false,
            remove_sent: false,
            counts: Stats::default(),
            config,
        }
    }

    /// State of the group on this server.
    #[must_use]
    pub fn state(&self) -> GroupState {
        self.state
    }

    /// Running digest of all verdicts, and the last GID given out.
    #[must_use]
    pub fn digest(&self) -> (Gid, u64) {
        (self.replicated.last_gid(), self.replicated.digest())
    }

    /// For the statistics views.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let unreported = Default::default();
        let standing =
            |m: &MemberInfo| *self.replicated.members().get(&m.id).unwrap_or(&unreported);
        Stats {
            state: self.state,
            failure: self.failure.clone(),
            last_ordered: self.replicated.last_gid(),
            apply_queue: self.dispatch.len(),
            apply_queue_bytes: self.dispatch.bytes(),
            in_flight: self.ledger.in_flight(),
            members: (self.view.members.iter())
                .map(|m| {
                    let Report {
                        low,
                        committed,
                        flushed,
                    } = standing(m).report;
                    MemberStats {
                        info: m.clone(),
                        last_committed: committed,
                        flushed,
                        low,
                    }
                })
                .collect(),
            ..self.counts.clone()
        }
    }

    /// One event in, effects out, to be carried out in their order.
    ///
    /// # Panics
    /// On a breach of the contract by the caller (a helper that reports what it was not given, a
    /// ticket used twice).
    pub fn step(&mut self, event: Event, out: &mut Vec<Effect>) {
        if matches!(self.state, GroupState::Failed | GroupState::Left) {
            self.refuse_after_the_end(event, out);
            return;
        }
        match event {
            Event::Gcs(event) => self.gcs(event, out),
            Event::Sent { token, result } => self.sent(token, result, out),
            Event::Multicast {
                worker,
                ticket,
                message,
            } => self.multicast((worker, ticket), message, out),
            Event::Abandon {
                worker,
                ticket,
                gone,
            } => self.abandon((worker, ticket), gone, out),
            Event::HelperReady { helper } => self.dispatch.ready(helper),
            Event::HelperApplied { helper, gid } => {
                let applied = self.dispatch.applied(helper, gid);
                self.applied(gid, applied.replay_for, out);
            }
            Event::HelperFailed {
                helper,
                gid,
                fatal,
                reason,
            } => {
                self.counts.helper_errors += 1;
                if let Err(attempts) = self.dispatch.failed(helper, gid, fatal) {
                    self.fail(
                        format!("GID {gid} can't be applied after {attempts} attempts: {reason}"),
                        out,
                    );
                }
            }
            Event::HelperGone { helper } => {
                match self.dispatch.gone(helper, self.progress.committed) {
                    Ok(None) => {}
                    Ok(Some((gid, applied))) => self.applied(gid, applied.replay_for, out),
                    Err((gid, attempts)) => {
                        self.counts.helper_errors += 1;
                        self.fail(
                            format!("helpers ended {attempts} times while they applied GID {gid}"),
                            out,
                        );
                    }
                }
            }
            Event::Progress {
                last_committed,
                flushed,
                low,
            } => {
                self.progress(Report {
                    low,
                    committed: last_committed,
                    flushed,
                });
            }
            Event::LogRead { seq, payload } => self.log_read(seq, payload, out),
            Event::Tick => self.tick(out),
            Event::StopGroup => self.stopping = true,
        }
        if self.state != GroupState::Failed {
            self.settle(out);
        }
    }

    /// What follows from any event: the group opens, helpers get work, a stop goes on.
    fn settle(&mut self, out: &mut Vec<Effect>) {
        self.dispatch.run(self.progress.committed, out);
        let voter = self
            .view
            .members
            .iter()
            .any(|m| m.id == self.config.me && m.voter);
        if voter && self.opening.opens(self.progress.committed) && self.state != GroupState::Online
        {
            self.set_state(GroupState::Online, out);
            self.offer_held(out);
        }
        if self.stopping {
            self.refuse_held(out);
            if self.ledger.is_idle() && self.state == GroupState::Online && !self.remove_sent {
                self.leave(out);
            }
        }
    }

    // ---- the total order ----

    fn gcs(&mut self, event: gcs::Event, out: &mut Vec<Effect>) {
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
            gcs::Event::Restore { seq, state } => self.restore(seq, &state, out),
            gcs::Event::Removed => self.left(out),
            gcs::Event::Fatal(reason) => self.fail(reason, out),
        }
    }

    fn deliver(&mut self, delivery: Delivery, out: &mut Vec<Effect>) {
        if delivery.index != self.last_index {
            self.end_of_entry(out);
            self.last_index = delivery.index;
        }
        if delivery.seq != self.replicated.seq + 1 {
            let seq = self.replicated.seq;
            return self.fail(
                format!(
                    "delivery {} follows delivery {seq}: the order has a gap",
                    delivery.seq
                ),
                out,
            );
        }
        self.replicated.seq = delivery.seq;
        let own = delivery.id.member == self.config.me
            && delivery.id.incarnation == self.config.incarnation;
        let own = if own {
            match self.ledger.delivered(delivery.id.number) {
                Some(own) => Some(own),
                None => {
                    let id = delivery.id;
                    return self.fail(
                        format!("own message {id} was delivered out of its turn"),
                        out,
                    );
                }
            }
        } else {
            None
        };
        match message::parse(&delivery.payload) {
            Ok(Message::Changeset(report, bytes)) => {
                let ticket = own.and_then(|own| own.ticket.map(|t| (t, own.abandoned)));
                self.changeset(&delivery, bytes, ticket, out);
                self.replicated.report(delivery.id.member, report);
            }
            Ok(Message::Status(report, point)) => {
                self.replicated.report(delivery.id.member, report);
                if self
                    .replicated
                    .vote(delivery.id.member, point)
                    .contains(&self.config.me)
                {
                    let gid = point.gid;
                    self.fail(
                        format!(
                            "this member's verdicts differ from the group's, seen at GID {gid}"
                        ),
                        out,
                    );
                }
            }
            // The same bytes everywhere, so every member passes over it.
            Err(_) => {}
        }
        if !self.ledger.is_idle() && self.state == GroupState::Online {
            self.offer_held(out);
        }
    }

    /// Certifies a delivered changeset and sends it on its way. `ticket`: the own worker that
    /// multicast it, and whether it gave up since.
    fn changeset(
        &mut self,
        delivery: &Delivery,
        bytes: Bytes,
        ticket: Option<(Ticket, Option<bool>)>,
        out: &mut Vec<Effect>,
    ) {
        let origin = delivery.id.member;
        // A sender checks before it sends; what does not decode gets no GID on any member.
        let Some((snapshot, local_effects)) = self.open(&bytes, delivery.id) else {
            return self.verdict(ticket.map(|t| t.0), Outcome::Malformed, out);
        };
        let changeset = Changeset::parse(&bytes).expect("opened just now");
        let verdict = self.replicated.certify(
            origin,
            snapshot,
            changeset.keys(),
            self.config.pace.digest_gids,
        );
        let (gid, depends_on) = match verdict {
            Verdict::Pass { gid, depends_on } => (gid, depends_on),
            Verdict::Conflict {
                relation,
                gid,
                origin,
            } => {
                self.counts.certification_failures += u64::from(ticket.is_some());
                return self.verdict(
                    ticket.map(|t| t.0),
                    Outcome::Conflict {
                        relation,
                        gid,
                        origin,
                    },
                    out,
                );
            }
            Verdict::BelowFloor => {
                self.counts.certification_failures += u64::from(ticket.is_some());
                return self.verdict(ticket.map(|t| t.0), Outcome::BelowFloor, out);
            }
        };
        if gid <= self.config.recovered {
            return;
        }
        let mut work = Work {
            depends_on,
            origin,
            content: Content::Memory(bytes.clone()),
            replay_for: None,
            attempts: 0,
        };
        match ticket {
            None => self.dispatch.push(gid, work, delivery.seq, delivery.index),
            Some((ticket, None)) => {
                self.counts.passed += 1;
                self.ledger.pass(
                    gid,
                    Passed {
                        ticket,
                        changeset: bytes,
                        depends_on,
                        origin,
                        local_effects,
                    },
                );
                self.verdict(Some(ticket), Outcome::Pass { gid }, out);
            }
            Some((ticket, Some(gone))) => {
                self.counts.passed += 1;
                if local_effects && !gone {
                    return self.cannot_replay(gid, out);
                }
                work.replay_for = Some(ticket);
                self.dispatch.push(gid, work, delivery.seq, delivery.index);
            }
        }
    }

    /// Snapshot GID and LOCAL_EFFECTS of a changeset, if it is whole and of this message's sender.
    fn open(&self, bytes: &[u8], id: MessageId) -> Option<(Gid, bool)> {
        let changeset = Changeset::parse(bytes).ok()?;
        let header = changeset.header();
        let fits = header.group == self.config.group
            && header.origin == id.member
            && header.incarnation == id.incarnation;
        fits.then_some((header.snapshot_gid, header.flags & FLAG_LOCAL_EFFECTS != 0))
    }

    /// Checkpoints are due at the first end of a log entry after a fixed number of deliveries, so
    /// they lie at the same positions on every member.
    fn end_of_entry(&mut self, out: &mut Vec<Effect>) {
        let seq = self.replicated.seq;
        let due = seq - self.replicated.checkpoint_seq >= self.config.pace.checkpoint_messages;
        if self.last_index == 0 || !due {
            return;
        }
        self.replicated.checkpoint_seq = seq;
        let (gid, state) = (
            self.replicated.last_gid(),
            Bytes::from(self.replicated.encode()),
        );
        out.push(Effect::Gcs(GcsCommand::Checkpoint { seq, gid, state }));
    }

    // ---- recovery ----

    fn restore(&mut self, seq: u64, state: &[u8], out: &mut Vec<Effect>) {
        let restored = match Replicated::decode(state, &self.config.pace) {
            Ok(restored) if restored.seq == seq => restored,
            Ok(restored) => {
                let wrong = restored.seq;
                return self.fail(
                    format!("checkpoint at delivery {seq} says that it is at {wrong}"),
                    out,
                );
            }
            Err(error) => return self.fail(error, out),
        };
        let (mine, theirs) = (
            self.config.recovered.max(self.replicated.last_gid()),
            restored.last_gid(),
        );
        if theirs > mine {
            return self.fail(
                format!(
                    "the group's oldest retained checkpoint is at GID {theirs}, but this copy has only GID {mine}: \
                     it needs a new copy of the data"
                ),
                out,
            );
        }
        if self.ledger.in_flight() > 0 {
            return self.fail(
                "lagged beyond the group's log while transactions were in flight".into(),
                out,
            );
        }
        self.replicated = restored;
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

    // ---- own multicasts ----

    fn multicast(&mut self, ticket: Ticket, mut message: Vec<u8>, out: &mut Vec<Effect>) {
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

    /// Offers all that is held to the engine; what it refuses for now comes back to be held.
    fn offer_held(&mut self, out: &mut Vec<Effect>) {
        while let Some((token, payload)) = self.ledger.offer() {
            out.push(Effect::Gcs(GcsCommand::Multicast { token, payload }));
        }
    }

    fn sent(&mut self, token: u64, result: Result<MessageId, Refused>, out: &mut Vec<Effect>) {
        match result {
            Ok(id) => {
                debug_assert_eq!(
                    (id.member, id.incarnation),
                    (self.config.me, self.config.incarnation)
                );
                self.ledger.sent(token, id.number);
            }
            // It may pass before the group is given up for lost: see `Opening`.
            Err(Refused::Busy | Refused::NotPrimary) => self.ledger.hold_again(token),
            Err(Refused::TooBig) => {
                let ticket = self.ledger.drop_offer(token);
                self.verdict(ticket, Outcome::TooBig, out);
            }
        }
    }

    fn refuse_held(&mut self, out: &mut Vec<Effect>) {
        for ticket in self.ledger.refuse_held() {
            self.verdict(Some(ticket), Outcome::NotPrimary, out);
        }
    }

    fn abandon(&mut self, ticket: Ticket, gone: bool, out: &mut Vec<Effect>) {
        match self.ledger.abandon(ticket, gone) {
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
                    ..
                } = passed;
                let content = Content::Memory(changeset);
                self.dispatch.replay(
                    gid,
                    Work {
                        depends_on,
                        origin,
                        content,
                        replay_for: Some(ticket),
                        attempts: 0,
                    },
                );
            }
        }
    }

    fn cannot_replay(&mut self, gid: Gid, out: &mut Vec<Effect>) {
        self.fail(
            format!("GID {gid} was rolled back here after it was certified, and has effects that only its session had"),
            out,
        );
    }

    // ---- helpers and positions ----

    fn applied(&mut self, gid: Gid, replay_for: Option<Ticket>, out: &mut Vec<Effect>) {
        match replay_for {
            None => self.counts.applied += 1,
            Some(ticket) => {
                self.counts.replays += 1;
                self.verdict(Some(ticket), Outcome::Replayed { gid }, out);
            }
        }
    }

    fn progress(&mut self, now: Report) {
        let before = self.progress;
        assert!(
            now.committed >= before.committed && now.flushed >= before.flushed,
            "{now:?} after {before:?}"
        );
        assert!(
            now.low <= now.committed && now.flushed <= now.committed,
            "{now:?}"
        );
        self.progress = Report {
            low: now.low.max(before.low),
            ..now
        };
        self.ledger.committed(now.committed);
    }

    fn log_read(&mut self, seq: u64, payload: Result<Bytes, String>, out: &mut Vec<Effect>) {
        match payload.map(|payload| message::parse(&payload)) {
            Ok(Ok(Message::Changeset(_, changeset))) => self.dispatch.loaded(seq, changeset),
            Ok(_) => self.fail(
                format!("delivery {seq} reads differently from the log"),
                out,
            ),
            Err(error) => self.fail(
                format!("delivery {seq} can't be read from the log: {error}"),
                out,
            ),
        }
    }

    fn tick(&mut self, out: &mut Vec<Effect>) {
        if self.opening.tick() && self.state == GroupState::Online {
            self.set_state(GroupState::NoQuorum, out);
            self.refuse_held(out);
        }
        if self.state == GroupState::Online {
            self.offer_held(out);
        }
        self.report_when_quiet(out);
        let stable = (self.progress.flushed, self.replicated.flushed_by_all());
        if stable != self.stable {
            self.stable = stable;
            out.push(Effect::Gcs(GcsCommand::Stable {
                own: stable.0,
                all: stable.1,
            }));
        }
    }

    /// Positions travel with every changeset; a member without any to send reports what moved.
    fn report_when_quiet(&mut self, out: &mut Vec<Effect>) {
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        let now = (self.progress, self.replicated.point());
        let due = now.1 != self.reported.1 || self.quiet_ticks >= self.config.pace.status_ticks;
        if now == self.reported || !due || !self.opening.may_send() || self.ledger.status_out() {
            return;
        }
        self.reported = now;
        self.quiet_ticks = 0;
        let (token, payload) = self.ledger.offer_status(message::status(now.0, now.1));
        out.push(Effect::Gcs(GcsCommand::Multicast { token, payload }));
    }

    // ---- the end ----

    fn leave(&mut self, out: &mut Vec<Effect>) {
        if self.view.members.len() == 1 {
            if self.progress.committed == self.replicated.last_gid() {
                self.left(out);
            }
            return;
        }
        self.remove_sent = true;
        out.push(Effect::Gcs(GcsCommand::Remove(self.config.me)));
    }

    fn left(&mut self, out: &mut Vec<Effect>) {
        self.set_state(GroupState::Left, out);
        self.give_up_own(out);
    }

    fn fail(&mut self, reason: String, out: &mut Vec<Effect>) {
        self.set_state(GroupState::Failed, out);
        self.failure = Some(reason.clone());
        out.push(Effect::Fail(reason));
        self.give_up_own(out);
    }

    fn give_up_own(&mut self, out: &mut Vec<Effect>) {
        self.refuse_held(out);
        for ticket in self.ledger.forget_sent() {
            self.verdict(Some(ticket), Outcome::Unknown, out);
        }
    }

    fn refuse_after_the_end(&mut self, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Multicast { worker, ticket, .. } => {
                self.verdict(Some((worker, ticket)), Outcome::NotPrimary, out);
            }
            // Offered in the step that ended it: sent or not, nobody will say.
            Event::Sent { token, result } => {
                let ticket = self.ledger.drop_offer(token);
                self.verdict(
                    ticket,
                    if result.is_ok() {
                        Outcome::Unknown
                    } else {
                        Outcome::NotPrimary
                    },
                    out,
                );
            }
            _ => {}
        }
    }

    // ---- small ----

    fn set_state(&mut self, next: GroupState, out: &mut Vec<Effect>) {
        self.state = self.state.to(next);
        out.push(Effect::SetState(next));
    }

    fn verdict(&mut self, ticket: Option<Ticket>, outcome: Outcome, out: &mut Vec<Effect>) {
        if let Some((worker, ticket)) = ticket {
            out.push(Effect::Verdict {
                worker,
                ticket,
                outcome,
            });
        }
    }
}
