//! The coordinator's core: one event in, effects out. It does no I/O and reads no clock.

use super::dispatch::{Applied, Dispatch};
use super::event::{Config, Effect, Event, GcsCommand, MemberStats, Outcome, Stats};
use super::ledger::{Ledger, Ticket};
use super::message::{self, DigestPoint, Message, Report};
use super::opening::Opening;
use super::pace::Pacing;
use super::replicated::Replicated;
use super::reserving::Reserving;
use super::waiting::Waiting;
use crate::gcs::{MemberInfo, View};
use crate::group_state::GroupState;
use crate::ids::Gid;
use bytes::Bytes;

/// The core. One for each group of a server.
#[derive(Debug)]
pub struct Coordinator {
    pub(super) config: Config,
    pub(super) state: GroupState,
    pub(super) failure: Option<String>,
    /// Function of the total order.
    pub(super) replicated: Replicated,
    /// Log entry of the last delivery; 0 before the first.
    pub(super) last_index: u64,
    /// Own multicasts.
    pub(super) ledger: Ledger,
    /// Changesets for helpers.
    pub(super) dispatch: Dispatch,
    /// Sessions that want more than a prefix.
    pub(super) waiting: Waiting,
    /// Reservations of this member, and those that have to end.
    pub(super) reserving: Reserving,
    /// Own transactions that others apply early.
    pub(super) pacing: Pacing,
    /// When the group opens and closes to writers.
    pub(super) opening: Opening,
    /// This member's positions.
    pub(super) progress: Report,
    /// What the last own message said, and the ticks since.
    pub(super) reported: (Report, DigestPoint),
    pub(super) quiet_ticks: u32,
    /// Last [`GcsCommand::Stable`].
    pub(super) stable: (Gid, Gid),
    pub(super) view: View,
    pub(super) stopping: bool,
    pub(super) remove_sent: bool,
    pub(super) counts: Stats,
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
            waiting: Waiting::default(),
            reserving: Reserving::default(),
            pacing: Pacing::default(),
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

    /// Whether there is something to do as soon as a helper is done: changesets for which there was
    /// none, or a commit that another member wants to hear of.
    #[must_use]
    pub fn work_waits(&self) -> bool {
        self.dispatch.work_waits() || self.commits_awaited()
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
            open_transactions: self.replicated.open(),
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
            Event::Fragment {
                worker,
                ticket,
                message,
            } => self.fragment((worker, ticket), message, out),
            Event::DropFragments { worker, ticket } => self.drop_fragments((worker, ticket), out),
            Event::FragmentWanted { helper, gid, nth } => {
                self.dispatch.fragment_wanted(helper, gid, nth, out);
            }
            Event::EarlyWanted { helper, first, nth } => {
                let fragments = self.replicated.begun_at(first);
                let applied = self
                    .dispatch
                    .early_wanted(helper, first, nth, fragments, out);
                if applied.is_some() {
                    self.say_applied(first, applied, out);
                }
            }
            Event::EarlyWaits { helper, first } => {
                if self.dispatch.early_waits(helper, first) {
                    self.say_applied(first, None, out);
                }
            }
            Event::EarlyEnded { helper, first } => {
                let is_open = self.replicated.begun_at(first).is_some();
                if self.dispatch.early_ended(helper, first, is_open, out) {
                    self.say_applied(first, None, out);
                }
            }
            Event::Abandon {
                worker,
                ticket,
                gone,
            } => self.abandon((worker, ticket), gone, out),
            Event::AwaitOrder { worker, ticket } => self.await_order((worker, ticket), out),
            Event::AwaitShown {
                worker,
                ticket,
                gid,
            } => self.await_shown((worker, ticket), gid),
            Event::Reserve {
                worker,
                ticket,
                relations,
            } => self.reserve((worker, ticket), relations, out),
            Event::Release { worker } => self.release(worker, out),
            Event::AwaitFree {
                worker,
                ticket,
                relation,
            } => self.await_free((worker, ticket), relation, out),
            Event::HelperReady { helper } => self.dispatch.ready(helper),
            Event::HelperApplied { helper, gid } => {
                let applied = self.dispatch.applied(helper, gid);
                self.all_applied(applied, out);
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
                    Ok(applied) => self.all_applied(applied, out),
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
        if !matches!(self.state, GroupState::Failed | GroupState::Left) {
            self.settle(out);
        }
    }

    /// What follows from any event: the group opens, helpers get work, a stop goes on.
    fn settle(&mut self, out: &mut Vec<Effect>) {
        let replicated = &self.replicated;
        self.dispatch
            .early_settle(|first| replicated.begun_at(first).is_some(), out);
        self.pace_settle(out);
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
        self.serve_reserving(out);
        self.serve_kept_out(out);
        self.serve_waiting(out);
        if self.stopping {
            self.refuse_held(out);
            self.refuse_readers(out);
            if self.ledger.is_idle() && self.state == GroupState::Online && !self.remove_sent {
                self.leave(out);
            }
        }
    }

    // ---- helpers and positions ----

    fn all_applied(&mut self, applied: Vec<(Gid, Applied)>, out: &mut Vec<Effect>) {
        for (gid, applied) in applied {
            self.applied(gid, applied.replay_for, out);
        }
    }

    pub(super) fn applied(&mut self, gid: Gid, replay_for: Option<Ticket>, out: &mut Vec<Effect>) {
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
        let rises = now.committed >= before.committed && now.flushed >= before.flushed;
        assert!(
            rises && now.low <= now.committed,
            "{now:?} after {before:?}"
        );
        // A transaction that is about to publish its `since` may show a value that it will not
        // use; what was reported once holds.
        self.progress = Report {
            low: now.low.max(before.low),
            ..now
        };
        self.ledger.committed(now.committed);
    }

    fn log_read(&mut self, seq: u64, payload: Result<Bytes, String>, out: &mut Vec<Effect>) {
        match payload.map(|payload| message::parse(&payload)) {
            Ok(Ok(Message::Changeset(_, changeset))) => self.dispatch.loaded(seq, changeset),
            Ok(Ok(Message::Fragment(report, _, fragment))) => {
                let base = report.committed;
                self.dispatch.early_read(seq, base, fragment.clone(), out);
                self.dispatch.fragment_read(seq, fragment, out);
            }
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
        self.waiting.engine_refuses(false);
        self.dispatch.tick();
        self.pace_tick(out);
        if self.opening.tick() && self.state == GroupState::Online {
            self.set_state(GroupState::NoQuorum, out);
            self.refuse_held(out);
            self.refuse_readers(out);
        }
        if self.state == GroupState::Online {
            self.offer_held(out);
        }
        self.end_old_reservations();
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
        self.send_status(out);
    }

    // ---- the end ----

    pub(super) fn leave(&mut self, out: &mut Vec<Effect>) {
        if self.view.members.len() == 1 {
            if self.progress.committed == self.replicated.last_gid() {
                self.left(out);
            }
            return;
        }
        self.remove_sent = true;
        out.push(Effect::Gcs(GcsCommand::Remove(self.config.me)));
    }

    pub(super) fn left(&mut self, out: &mut Vec<Effect>) {
        self.set_state(GroupState::Left, out);
        self.give_up_own(out);
    }

    pub(super) fn fail(&mut self, reason: String, out: &mut Vec<Effect>) {
        self.set_state(GroupState::Failed, out);
        self.failure = Some(reason.clone());
        out.push(Effect::Fail(reason));
        self.give_up_own(out);
    }

    fn give_up_own(&mut self, out: &mut Vec<Effect>) {
        self.refuse_held(out);
        self.refuse_readers(out);
        self.refuse_writers(out);
        for ticket in self.ledger.forget_sent() {
            self.verdict(Some(ticket), Outcome::Unknown, out);
        }
    }

    fn refuse_after_the_end(&mut self, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Multicast { worker, ticket, .. }
            | Event::AwaitOrder { worker, ticket }
            | Event::Reserve { worker, ticket, .. }
            | Event::AwaitFree { worker, ticket, .. }
            | Event::AwaitShown { worker, ticket, .. } => {
                self.verdict(Some((worker, ticket)), Outcome::NotPrimary, out);
            }
            Event::Fragment { worker, ticket, .. } => {
                let outcome = Outcome::Fragment { kept: false };
                self.verdict(Some((worker, ticket)), outcome, out);
            }
            // Offered in the step that ended it: sent or not, nobody will say.
            Event::Sent { token, result } => {
                let asker = self.ledger.drop_offer(token);
                self.refuse(
                    asker,
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

    pub(super) fn set_state(&mut self, next: GroupState, out: &mut Vec<Effect>) {
        self.state = self.state.to(next);
        out.push(Effect::SetState(next));
    }

    pub(super) fn verdict(
        &mut self,
        ticket: Option<Ticket>,
        outcome: Outcome,
        out: &mut Vec<Effect>,
    ) {
        if let Some((worker, ticket)) = ticket {
            out.push(Effect::Verdict {
                worker,
                ticket,
                outcome,
            });
        }
    }
}
