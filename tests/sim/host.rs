//! The loop round one server's engine and coordinator: what goes in, and what comes out carried out.
//! It keeps the contract of the real one (`src/coordinator/README.md`).

use crate::scenario::Plant;
use crate::server::{Server, lane};
use crate::session::{Phase, Session};
use crate::world::{Context, Happening};
use bytes::Bytes;
use postgres_r::coordinator::{Effect, Event, GcsCommand, Outcome};
use postgres_r::gcs::egcs::disk::Disk;
use postgres_r::gcs::egcs::members::JoinReply;
use postgres_r::gcs::egcs::{recover, segment};
use postgres_r::gcs::{self, Gcs, Input, Output};
use postgres_r::group_state::GroupState;
use postgres_r::ids::Gid;
use postgres_r::imsg::wanted::Detail;
use std::collections::VecDeque;

impl Server {
    pub fn input(&mut self, ctx: &mut Context, input: Input) {
        if let Some(running) = &mut self.running {
            running.node.step(input);
            self.settle(ctx);
        }
    }

    /// An event from this server's own processes; a fresh position goes before it.
    pub fn event(&mut self, ctx: &mut Context, event: Event) {
        if let Event::HelperApplied { helper, gid } = event {
            assert!(
                gid <= self.db.committed,
                "{}: helper {helper} reports GID {gid}, which is not committed",
                self.me()
            );
        }
        self.tell_progress(ctx);
        self.step(ctx, event);
        self.settle(ctx);
    }

    pub fn tell_progress(&mut self, ctx: &mut Context) {
        let Some(running) = &mut self.running else {
            return;
        };
        let committed = self.db.committed;
        let lows = running
            .sessions
            .iter()
            .filter_map(|s| s.transaction.as_ref().map(|t| t.since_low));
        let progress = (
            committed,
            self.db.flushed,
            lows.min().unwrap_or(committed).min(committed),
        );
        if std::mem::replace(&mut running.progress, progress) != progress {
            let (last_committed, flushed, low) = progress;
            self.step(
                ctx,
                Event::Progress {
                    last_committed,
                    flushed,
                    low,
                },
            );
        }
    }

    pub fn step(&mut self, ctx: &mut Context, event: Event) {
        let Some(running) = &mut self.running else {
            return;
        };
        let mut effects = Vec::new();
        running.core.step(event, &mut effects);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let Some(running) = &mut self.running else {
                return;
            };
            if let Effect::Gcs(GcsCommand::Multicast { token, payload }) = effect {
                let result = running.node.multicast(payload);
                let mut more = Vec::new();
                running.core.step(Event::Sent { token, result }, &mut more);
                effects.extend(more);
            } else {
                self.carry_out(ctx, effect);
            }
        }
    }

    fn carry_out(&mut self, ctx: &mut Context, effect: Effect) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        match effect {
            Effect::Gcs(GcsCommand::Multicast { .. }) => unreachable!("done by the caller"),
            Effect::Gcs(GcsCommand::Checkpoint { seq, gid, state }) => {
                ctx.check.checkpoint(me, seq, &state);
                running.node.checkpoint(seq, gid, state);
            }
            Effect::Gcs(GcsCommand::Stable { own, all }) => running.node.stable(own, all),
            Effect::Gcs(GcsCommand::Remove(member)) => running.node.remove(member),
            Effect::Gcs(GcsCommand::Read { seq, .. }) => {
                let payload = running
                    .log
                    .get(&seq)
                    .cloned()
                    .ok_or_else(|| "not there".to_string());
                self.tell_coordinator(ctx, 999, Event::LogRead { seq, payload });
            }
            Effect::Verdict {
                worker,
                ticket,
                outcome,
            } => {
                let session = &mut running.sessions[worker as usize];
                if let Outcome::Pass { gid } = outcome
                    && session.ticket == ticket
                {
                    session.published = Some(gid);
                }
                let delay = ctx.rng.between(0, 3);
                let at = lane(&mut running.lanes, (false, worker), ctx.now + delay);
                let (site, life) = (self.site, self.life);
                ctx.at(
                    at,
                    Happening::Verdict {
                        site,
                        life,
                        slot: worker,
                        ticket,
                        outcome,
                    },
                );
            }
            Effect::Apply {
                helper,
                gid,
                depends_on,
                changeset,
                ..
            } => {
                ctx.trace(|| format!("{me} helper {helper} gets GID {gid} after {depends_on}"));
                let committing = |s: &Session| {
                    s.published == Some(gid)
                        && matches!(s.phase, Phase::Multicast | Phase::Passed(_))
                };
                assert!(
                    !running.sessions.iter().any(committing),
                    "{me} helper {helper} gets GID {gid}, which is with its session"
                );
                let to = &mut running.helpers[helper as usize];
                let was_idle = to.is_idle();
                match to.give(gid, depends_on, &changeset) {
                    Some(nth) => self.want_fragment(ctx, helper, gid, nth),
                    None if was_idle => self.wake_helper(ctx, helper, 2),
                    None => {}
                }
            }
            Effect::Searched { detail, .. } => {
                // Now and then it is forgotten.
                self.db.wanted = if ctx.rng.per_mille(50) {
                    Detail::Some
                } else {
                    detail.max(self.db.wanted)
                };
            }
            Effect::Fragment {
                helper,
                gid,
                nth,
                fragment,
            } => match running.helpers[helper as usize].fragment(gid, nth, &fragment) {
                None => self.wake_helper(ctx, helper, 2),
                Some(nth) => self.want_fragment(ctx, helper, gid, nth),
            },
            Effect::Early {
                helper,
                first,
                what,
            } => {
                let gives_up = ctx.rng.per_mille(100);
                let nth = running.helpers[helper as usize].early(first, &what);
                let Some(nth) = nth.filter(|_| !gives_up) else {
                    let event = Event::EarlyEnded { helper, first };
                    return self.tell_coordinator(ctx, 1000 + helper, event);
                };
                // Somebody is in its way, for a while or until its turn.
                let waits = ctx.rng.per_mille(100);
                if waits {
                    let event = Event::EarlyWaits { helper, first };
                    self.tell_coordinator(ctx, 1000 + helper, event);
                }
                if !waits || ctx.rng.per_mille(500) {
                    let event = Event::EarlyWanted { helper, first, nth };
                    self.tell_coordinator(ctx, 1000 + helper, event);
                }
            }
            Effect::SetState(state) => {
                ctx.trace(|| format!("{me} is {state:?}"));
                if state == GroupState::Online {
                    self.joined = true;
                }
                if state == GroupState::Left {
                    self.left = true;
                }
            }
            Effect::SetView(view) => {
                ctx.check.view(&view);
                ctx.trace(|| {
                    format!(
                        "{me} has view {:?} at {}",
                        view.members
                            .iter()
                            .map(|m| (m.id.0, m.voter))
                            .collect::<Vec<_>>(),
                        view.seq
                    )
                });
            }
            Effect::Fail(reason) if ctx.scenario.may_outdate() && is_outdated(&reason) => {
                ctx.trace(|| format!("{me} failed: {reason}"));
                ctx.outdated.push(self.site);
            }
            Effect::Fail(reason) => panic!("{me} failed: {reason}"),
        }
    }

    fn want_fragment(&mut self, ctx: &mut Context, helper: u32, gid: Gid, nth: u32) {
        let event = Event::FragmentWanted { helper, gid, nth };
        self.tell_coordinator(ctx, 1000 + helper, event);
    }

    /// Lets engine and coordinator do all that follows.
    pub fn settle(&mut self, ctx: &mut Context) {
        loop {
            let Some(running) = &mut self.running else {
                return;
            };
            let mut outputs = Vec::new();
            running.node.drain(&mut outputs);
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.output(ctx, output);
            }
        }
        if self.left {
            self.stop_for_good(ctx);
        }
    }

    fn output(&mut self, ctx: &mut Context, output: Output) {
        let (site, life) = (self.site, self.life);
        let Some(running) = &mut self.running else {
            return;
        };
        match output {
            Output::Send { to, bytes } => ctx.sends.push((site, to, bytes)),
            Output::Append { ticket, records } => {
                let mut steps = Vec::new();
                running.writer.append(ticket, &records, &mut steps);
                running.steps.push_back((ticket, steps));
                if ctx.scenario.plant == Plant::DeliverBeforeDisk {
                    running.node.step(Input::Durable { ticket });
                }
                if running.steps.len() == 1 {
                    let delay = ctx.disk_delay();
                    ctx.later(delay, Happening::Disk { site, life });
                }
            }
            Output::Compact { first_index } => {
                for number in running.writer.compact(first_index) {
                    self.disk
                        .remove(&segment::file_name(number))
                        .expect("a simulated disk");
                    self.disk.sync_dir().expect("a simulated disk");
                }
            }
            Output::JoinReply { connection, bytes } => {
                let reply = JoinReply::decode(bytes).expect("a reply");
                ctx.join_replies.push((connection, reply));
            }
            Output::Event(event) => self.gcs_event(ctx, event),
        }
    }

    fn gcs_event(&mut self, ctx: &mut Context, event: gcs::Event) {
        let me = self.me();
        let gcs::Event::Deliver(delivery) = &event else {
            return self.step(ctx, Event::Gcs(event));
        };
        let mut delivery = delivery.clone();
        if self.state() == GroupState::Failed {
            return;
        }
        ctx.check.delivered(me, &delivery);
        if let Some(running) = &mut self.running {
            running.log.insert(delivery.seq, delivery.payload.clone());
        }
        if ctx.scenario.plant == Plant::WrongVerdict
            && self.site == 0
            && delivery.id.member != me
            && delivery.seq.is_multiple_of(7)
        {
            delivery.payload = Bytes::from_static(b"something else");
        }
        self.step_checked(ctx, &delivery);
    }

    fn step_checked(&mut self, ctx: &mut Context, delivery: &gcs::Delivery) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let mut effects = Vec::new();
        let event = Event::Gcs(gcs::Event::Deliver(delivery.clone()));
        running.core.step(event, &mut effects);
        let (gid, digest) = running.core.digest();
        ctx.check.verdict(me, delivery, gid, digest);
        ctx.trace(|| {
            format!(
                "{me} delivers {} as {}, GID {gid}",
                delivery.id, delivery.seq
            )
        });
        for effect in effects {
            match effect {
                Effect::Gcs(GcsCommand::Multicast { token, payload }) => {
                    let Some(running) = &mut self.running else {
                        return;
                    };
                    let result = running.node.multicast(payload);
                    self.step(ctx, Event::Sent { token, result });
                }
                effect => self.carry_out(ctx, effect),
            }
        }
    }

    /// The disk has done the oldest append.
    pub fn disk_done(&mut self, ctx: &mut Context) {
        let (site, life) = (self.site, self.life);
        let Some(running) = &mut self.running else {
            return;
        };
        let mut ticket = None;
        // One sync may cover several.
        for _ in 0..ctx.rng.between(1, 4) {
            let Some((t, steps)) = running.steps.pop_front() else {
                break;
            };
            if let Err(error) = recover::perform(&self.disk, &steps) {
                ctx.trace(|| format!("site {site} stops: {error}"));
                running.steps.clear();
                return ctx.log_failed.push(site);
            }
            running.writer.durable(t);
            ticket = Some(t);
        }
        if !running.steps.is_empty() {
            let delay = ctx.disk_delay();
            ctx.later(delay, Happening::Disk { site, life });
        }
        if let Some(ticket) = ticket
            && ctx.scenario.plant != Plant::DeliverBeforeDisk
        {
            self.input(ctx, Input::Durable { ticket });
        }
    }
}

/// The data lacks what the others' logs do not have any more.
fn is_outdated(reason: &str) -> bool {
    reason.contains("needs a new copy") || reason.contains("lagged beyond")
}
