//! The coordinator's loop: what completes goes to the engine, what the engine orders goes to the
//! core, what the core decides is carried out; then it sleeps, in one place.
//!
//! It knows nothing of PostgreSQL: that is behind [`Host`].

use super::io::backend::{Backend, Completion, Op, Outcome as Done, Token};
use super::io::log::{LogFailure, LogFiles};
use super::io::peers::{Notice, Peers};
use super::io::reread::Reread;
use super::{Coordinator, Early, Effect, Event, GcsCommand, Outcome, Stats};
use crate::gcs::{self, Gcs, Input, Output, TICK_MS, View};
use crate::group_state::GroupState;
use crate::ids::{Gid, MemberId};
use crate::imsg::wanted::Detail;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The server round the coordinator. Every method returns without waiting.
pub trait Host {
    /// Becomes readable when another process has something for the coordinator that sleeps.
    ///
    /// # Errors
    /// Out of descriptors.
    fn wake_fd(&self) -> io::Result<OwnedFd>;
    /// [`Host::wake_fd`] was readable: make it unreadable.
    fn woken(&mut self);
    /// Says that the loop is about to sleep (so that senders write the eventfd), then looks once
    /// more: `false` if something is there, and the loop does not sleep. `work_waits`: there is work
    /// for which there was no helper, so a helper that is done has to say so at once.
    fn prepare_to_sleep(&mut self, work_waits: bool) -> bool;
    /// The loop is awake: senders need not write.
    fn awake(&mut self);
    /// Appends what workers, helpers and the server have for the core, in their order, and a fresh
    /// [`Event::Progress`] before what the core wants one for.
    fn collect(&mut self, out: &mut VecDeque<Event>);
    /// The server's own interrupts; `false` if the coordinator is to end.
    fn go_on(&mut self) -> bool;
    /// A verdict for a worker.
    fn verdict(&mut self, worker: u32, ticket: u64, outcome: Outcome);
    /// Work for a helper.
    fn apply(&mut self, helper: u32, gid: Gid, depends_on: Gid, origin: MemberId, changeset: Bytes);
    /// See [`Effect::Searched`].
    fn searched(&mut self, relation: u32, detail: Detail);
    /// A fragment that a helper asked for.
    fn fragment(&mut self, helper: u32, gid: Gid, nth: u32, fragment: Bytes);
    /// See [`Effect::Early`].
    fn early(&mut self, helper: u32, first: u64, what: Early);
    /// The group's state on this server moved.
    fn state(&mut self, state: GroupState);
    /// The membership moved.
    fn view(&mut self, view: &View);
    /// Whether this member leads ([`Gcs::leads`]): said before each [`Host::state`] and with each tick.
    fn leads(&mut self, leads: bool);
    /// This member can't go on, and why.
    fn failed(&mut self, reason: &str);
    /// A connection came up, went, or was refused.
    fn notice(&mut self, notice: &Notice);
    /// A tick has passed; what the statistics views show now.
    fn tick(&mut self, stats: &Stats, connected: &dyn Fn(MemberId) -> bool);
}

/// How the loop ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The host asked for it; the member comes back.
    Stopped,
    /// The member left the group in order.
    Left,
    /// The member can't go on; the host was told why.
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Stopped => f.write_str("stopped"),
            End::Left => f.write_str("left the group"),
            End::Failed(why) => f.write_str(why),
        }
    }
}

/// Ticks that an orderly end waits for the log's writes and for what is on its way to peers.
const LAST_TICKS: u32 = 30;

/// Everything that the loop runs; [`super::io::start`] makes it.
pub struct Parts<G> {
    /// The engine.
    pub gcs: G,
    /// The core.
    pub core: Coordinator,
    /// Sockets, files, time.
    pub backend: Box<dyn Backend>,
    /// Connections.
    pub peers: Peers,
    /// The group log's end.
    pub log: LogFiles,
    /// The rest of the group log.
    pub reread: Reread,
}

/// The loop.
pub struct Loop<H, G> {
    host: H,
    gcs: G,
    core: Coordinator,
    backend: Box<dyn Backend>,
    peers: Peers,
    log: LogFiles,
    reread: Reread,
    wake: Rc<OwnedFd>,
    /// [`Token::Wake`] is under way.
    wake_armed: bool,
    next_tick: Instant,
    end: Option<End>,
    // What is on its way within a turn; empty between turns except `events`.
    completions: Vec<Completion>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    events: VecDeque<Event>,
    effects: Vec<Effect>,
}

impl<H: Host, G: Gcs> Loop<H, G> {
    /// Tells the host the state that the core begins with.
    ///
    /// # Errors
    /// The host has no eventfd.
    pub fn new(mut host: H, parts: Parts<G>) -> io::Result<Loop<H, G>> {
        let wake = Rc::new(host.wake_fd()?);
        let Parts {
            gcs,
            core,
            backend,
            peers,
            log,
            reread,
        } = parts;
        host.state(core.state());
        Ok(Loop {
            host,
            gcs,
            core,
            backend,
            peers,
            log,
            reread,
            wake,
            wake_armed: false,
            next_tick: Instant::now() + tick(),
            end: None,
            completions: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            events: VecDeque::new(),
            effects: Vec::new(),
        })
    }

    /// Runs until the host wants it to end, or the member does.
    pub fn run(&mut self) -> End {
        loop {
            if let Some(end) = self.turn(tick()) {
                return end;
            }
        }
    }

    /// One turn: everything that is there, then one sleep of at most `sleep_max` (and never beyond
    /// the next tick).
    pub fn turn(&mut self, sleep_max: Duration) -> Option<End> {
        if self.end.is_none() && !self.host.go_on() {
            self.stop();
            self.end = Some(End::Stopped);
        }
        if self.end.is_none() {
            self.tick();
            self.host.collect(&mut self.events);
            self.settle();
            self.peers.drive(&mut *self.backend);
        }
        if self.end.is_none() {
            self.sleep(sleep_max);
        }
        self.end.clone()
    }

    /// The server.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// The core.
    pub fn core(&self) -> &Coordinator {
        &self.core
    }

    /// The engine.
    pub fn gcs(&self) -> &G {
        &self.gcs
    }

    /// Feeds everything to everyone until nobody has anything left to say.
    fn settle(&mut self) {
        loop {
            for input in self.inputs.drain(..) {
                self.gcs.step(input);
            }
            while let Some(event) = self.events.pop_front() {
                self.step(event);
            }
            self.gcs.drain(&mut self.outputs);
            let quiet = self.outputs.is_empty();
            for output in std::mem::take(&mut self.outputs) {
                self.output(output);
            }
            // All that this round wants written goes out as one write.
            match self.log.drive(&mut *self.backend) {
                Ok(Some(ticket)) => self.inputs.push(Input::Durable { ticket }),
                Ok(None) => {}
                Err(e) => self.log_failed(&e),
            }
            let done = quiet && self.inputs.is_empty() && self.events.is_empty();
            if done || self.end.is_some() {
                return;
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Send { to, bytes } => {
                self.peers
                    .send(to, bytes, &mut *self.backend, &mut self.inputs);
            }
            Output::JoinReply { connection, bytes } => {
                self.peers
                    .reply(connection, bytes, &mut *self.backend, &mut self.inputs);
            }
            Output::Append { ticket, records } => self.log.append(ticket, records),
            Output::Compact { first_index } => self.log.compact(first_index),
            Output::Event(event) => {
                if let gcs::Event::View(view) = &event {
                    self.peers.set_view(view);
                }
                self.step(Event::Gcs(event));
            }
        }
    }

    /// Feeds the core an event and carries out what follows from it, in order.
    fn step(&mut self, event: Event) {
        if self.end.is_some() {
            return;
        }
        self.core.step(event, &mut self.effects);
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Gcs(command) => self.command(command),
            Effect::Verdict {
                worker,
                ticket,
                outcome,
            } => self.host.verdict(worker, ticket, outcome),
            Effect::Apply {
                helper,
                gid,
                depends_on,
                origin,
                changeset,
            } => {
                self.host.apply(helper, gid, depends_on, origin, changeset);
            }
            Effect::Searched { relation, detail } => self.host.searched(relation, detail),
            Effect::Fragment {
                helper,
                gid,
                nth,
                fragment,
            } => self.host.fragment(helper, gid, nth, fragment),
            Effect::Early {
                helper,
                first,
                what,
            } => self.host.early(helper, first, what),
            Effect::SetState(state) => {
                self.host.leads(self.gcs.leads());
                self.host.state(state);
                if state == GroupState::Left {
                    self.stop();
                    self.end = Some(End::Left);
                }
            }
            Effect::SetView(view) => self.host.view(&view),
            Effect::Fail(reason) => {
                self.host.failed(&reason);
                self.peers.close_all(&mut *self.backend);
                self.end = Some(End::Failed(reason));
            }
        }
    }

    fn command(&mut self, command: GcsCommand) {
        match command {
            GcsCommand::Multicast { token, payload } => {
                let result = self.gcs.multicast(payload);
                self.core
                    .step(Event::Sent { token, result }, &mut self.effects);
            }
            GcsCommand::Checkpoint { seq, gid, state } => self.gcs.checkpoint(seq, gid, state),
            GcsCommand::Stable { own, all } => self.gcs.stable(own, all),
            GcsCommand::Remove(member) => self.gcs.remove(member),
            GcsCommand::Read { seq, index, id } => {
                let payload = self.reread.read(index, id).map_err(|e| e.to_string());
                self.events.push_back(Event::LogRead { seq, payload });
            }
        }
    }

    /// The member leaves: through the core, so that those who wait for an answer get one.
    fn log_failed(&mut self, failure: &LogFailure) {
        self.step(Event::Gcs(gcs::Event::Fatal(failure.to_string())));
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            return;
        }
        // Time in which the process did not run does not count: nobody was silent in it.
        self.next_tick = (self.next_tick + tick()).max(now);
        self.inputs.push(Input::Tick);
        self.events.push_back(Event::Tick);
        self.peers.tick(&mut *self.backend, &mut self.inputs);
        for notice in self.peers.notices() {
            self.host.notice(&notice);
        }
        self.host.leads(self.gcs.leads());
        let peers = &self.peers;
        self.host
            .tick(&self.core.stats(), &|member| peers.connected(member));
    }

    fn sleep(&mut self, sleep_max: Duration) {
        if !self.wake_armed {
            self.wake_armed = true;
            let fd = self.wake.clone();
            self.backend.submit(Token::Wake, Op::Readable { fd });
        }
        let until_tick = self.next_tick.saturating_duration_since(Instant::now());
        let work_waits = self.core.work_waits();
        let idle = self.events.is_empty()
            && self.inputs.is_empty()
            && self.host.prepare_to_sleep(work_waits);
        let timeout = if idle {
            until_tick.min(sleep_max)
        } else {
            Duration::ZERO
        };
        let waited = self.backend.wait(timeout, &mut self.completions);
        self.host.awake();
        if let Err(e) = waited {
            let reason = format!("could not wait for input and output: {e}");
            return self.step(Event::Gcs(gcs::Event::Fatal(reason)));
        }
        self.take_completions();
    }

    fn take_completions(&mut self) {
        for Completion { token, outcome } in std::mem::take(&mut self.completions) {
            match token {
                Token::Wake => {
                    self.wake_armed = false;
                    if let Done::Readable(Ok(())) = outcome {
                        self.host.woken();
                    }
                }
                Token::Log | Token::Segment | Token::Sweep => {
                    if let Err(e) = self.log.completed(token, outcome) {
                        self.log_failed(&e);
                    }
                }
                Token::Listener | Token::Dial(_) | Token::Recv(_) | Token::Send(_) => {
                    self.peers
                        .completed(token, outcome, &mut *self.backend, &mut self.inputs);
                }
            }
        }
    }

    /// Lets what is on its way arrive, for a bounded time, and closes the connections.
    fn stop(&mut self) {
        let deadline = Instant::now() + tick() * LAST_TICKS;
        while (self.log.busy() || !self.peers.flushed()) && Instant::now() < deadline {
            // What was written is durable whether or not anyone is told.
            if self.log.drive(&mut *self.backend).is_err() {
                break;
            }
            self.peers.drive(&mut *self.backend);
            if self.backend.wait(tick(), &mut self.completions).is_err() {
                break;
            }
            self.take_completions();
        }
        self.peers.close_all(&mut *self.backend);
    }
}

fn tick() -> Duration {
    Duration::from_millis(TICK_MS)
}
