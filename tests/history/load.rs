//! Clients on all members, from all of which one history comes.

use crate::PATIENCE;
use crate::client::transact;
use crate::level::Level;
use crate::recorder::{Outcome, Process, Recorder, Tally};
use crate::rng::{Rng, mix};
use crate::wire::{Failure, Session};
use crate::workload::{Keys, Step};
use postgres_r::cluster::Server;
use postgres_r::cluster::server::wait_for;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Clients that stay with a member, of each member.
const SETTLED: usize = 2;
/// Clients that go from member to member.
const ROAMING: usize = 3;
/// How long those wait for an answer before they turn to another member.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How long any client leaves a member alone that has said that it can't serve it now.
const COURTESY: Duration = Duration::from_millis(100);
const CANNOT_CONNECT_NOW: &str = "57P03";

pub struct Load<'a> {
    servers: &'a [Server],
    database: &'a str,
    level: Level,
    seed: u64,
    keys: Keys,
    recorder: Recorder,
    stop: AtomicBool,
}

/// Tells the clients to stop when it is dropped, also by a panic, which would wait for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Load<'a> {
    pub fn new(
        servers: &'a [Server],
        database: &'a str,
        level: Level,
        seed: u64,
        history: &Path,
    ) -> Load<'a> {
        Load {
            servers,
            database,
            level,
            seed,
            keys: Keys::new(),
            recorder: Recorder::create(history),
            stop: AtomicBool::new(false),
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Runs the clients for as long as `work` does.
    pub fn while_running(&self, work: impl FnOnce()) {
        std::thread::scope(|scope| {
            let settled = self.servers.iter().flat_map(|s| [s; SETTLED]);
            for (i, server) in settled.enumerate() {
                scope.spawn(move || self.settled(server, self.rng("settled", i)));
            }
            for i in 0..ROAMING {
                scope.spawn(move || self.roaming(self.rng("roaming", i)));
            }
            let _stop = Stop(&self.stop);
            work();
        });
    }

    /// Choices that follow from the seed: those of the faults, and of each client.
    pub fn rng(&self, who: &str, number: usize) -> Rng {
        let who = format!("{} {who} {number}", self.level);
        let words: Vec<u64> = who.bytes().map(u64::from).chain([self.seed]).collect();
        Rng::new(mix(&words))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions have committed.
    pub fn await_progress(&self, more: u64) {
        let wanted = self.recorder.tally().committed + more as usize;
        let enough = || (self.recorder.tally().committed >= wanted).then_some(());
        wait_for(PATIENCE, enough)
            .unwrap_or_else(|| panic!("not {wanted} commits in time: {}", self.recorder.tally()));
    }

    /// A client of one member. It comes back to it as the same session: what it saw before the member
    /// failed, it must see again.
    fn settled(&self, server: &Server, mut rng: Rng) {
        let process = self.recorder.process(server.number);
        while let Some((_, mut session)) = self.session(PATIENCE, || server) {
            while self.transaction(&mut session, process, &mut rng) {}
        }
    }

    /// A client that changes the member now and then, and when it is not answered.
    fn roaming(&self, mut rng: Rng) {
        let servers: Vec<&Server> = self.servers.iter().collect();
        while let Some((server, mut session)) = self.session(IMPATIENCE, || rng.pick(&servers)) {
            let process = self.recorder.process(server.number);
            let mut left = rng.between(10, 60);
            while left > 0 && self.transaction(&mut session, process, &mut rng) {
                left -= 1;
            }
        }
    }

    /// A session on the first of these servers that takes it; none when it is time to stop.
    fn session<'s>(
        &self,
        patience: Duration,
        mut next: impl FnMut() -> &'s Server,
    ) -> Option<(&'s Server, Session)> {
        let attempt = || {
            let server = next();
            let session = self.connect(server, patience).ok();
            (self.stopped() || session.is_some()).then_some((server, session))
        };
        let (server, session) = wait_for(PATIENCE, attempt).expect("a server takes clients");
        (!self.stopped()).then_some((server, session?))
    }

    fn connect(&self, server: &Server, patience: Duration) -> Result<Session, Failure> {
        Session::connect(server.port, self.database, self.level.options(), patience)
    }

    /// False when the session is of no more use, or it is time to stop.
    fn transaction(&self, session: &mut Session, process: Process, rng: &mut Rng) -> bool {
        let steps = self.keys.transaction(rng);
        self.recorder.invoke(process, &steps);
        let (outcome, usable) = transact(session, self.level, &steps);
        self.recorder.complete(process, &steps, &outcome);
        if matches!(&outcome, Outcome::Aborted(code) if code == CANNOT_CONNECT_NOW) {
            std::thread::sleep(COURTESY);
        }
        usable && !self.stopped()
    }

    /// Reads every list on a server, as a transaction of the history, when the clients are done.
    /// Without it nobody might have seen the last appends.
    pub fn read_all(&self, server: &Server) -> BTreeSet<(u64, u64)> {
        let mut session = self
            .connect(server, PATIENCE)
            .unwrap_or_else(|e| panic!("member {}: {e:?}", server.number));
        let process = self.recorder.process(server.number);
        let steps = self.keys.read_all();
        self.recorder.invoke(process, &steps);
        let (outcome, _) = transact(&mut session, self.level, &steps);
        self.recorder.complete(process, &steps, &outcome);
        let Outcome::Committed(reads) = outcome else {
            panic!("member {}: {outcome:?}", server.number);
        };
        let lists = steps.iter().zip(reads.into_iter().flatten());
        let elements = lists.flat_map(|(step, list)| match *step {
            Step::Read { key, .. } => list.into_iter().map(|e| (key, e)).collect(),
            Step::Append { .. } => Vec::new(),
        });
        elements.collect()
    }

    /// The judge knows of what was read; an acknowledged append that nobody ever sees again is no
    /// contradiction to it, but it is a loss.
    pub fn assert_acknowledged_is_there(&self, server: &Server) {
        let there = self.read_all(server);
        let acknowledged = self.recorder.acknowledged();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "member {} lost acknowledged appends (key, element): {lost:?}",
            server.number
        );
    }

    pub fn finish(&self) -> Tally {
        self.recorder.finish()
    }
}
