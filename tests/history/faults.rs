//! What is done to members while clients work: killed, paused, cut off. Each lasts for some progress
//! of the others, not for some time, so that it matters on a slow machine as on a fast one.

use crate::PATIENCE;
use crate::load::Load;
use crate::members::Group;
use crate::rng::Rng;
use nix::sys::signal::Signal;
use postgres_r::cluster::group::query_one;
use postgres_r::cluster::server::wait_for;
use postgres_r::cluster::{ClusterError, Server, network, status};
use std::collections::BTreeMap;
use std::fmt;

/// What happens to one member.
#[derive(Clone, Copy)]
enum Fault {
    Kill,
    Pause,
    Cut,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Pause => "pause",
            Fault::Cut => "cut",
        }
    }
}

const KILL_ALL: &str = "kill of all";

/// Most commits for which a fault lasts.
const MANY: u64 = 800;
/// The same when one member is left, on which only reads commit.
const FEW: u64 = 60;
/// The same when whoever writes waits for the member.
const HARDLY_ANY: u64 = 16;

pub struct Faults<'a> {
    group: &'a Group,
    members: Vec<&'a Server>,
    load: &'a Load<'a>,
    rng: Rng,
    cuts: bool,
    done: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.done.iter().map(|(what, n)| format!("{n} x {what}"));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

impl<'a> Faults<'a> {
    pub fn new(group: &'a Group, load: &'a Load<'a>, cuts: bool) -> Faults<'a> {
        Faults {
            group,
            members: group.servers.iter().collect(),
            load,
            rng: load.rng("faults", 0),
            cuts,
            done: BTreeMap::new(),
        }
    }

    /// So many times every kind of fault, each time on any member. Once is the short run, which has no
    /// time for restarts of the whole group and for two faults at a time.
    pub fn rounds(&mut self, rounds: u32) {
        let long = rounds > 1;
        for _ in 0..rounds {
            let mut left = self.kinds();
            while !left.is_empty() {
                let fault = left.swap_remove(self.rng.below(left.len() as u64) as usize);
                let member = self.rng.pick(&self.members);
                self.go_on(MANY);
                let twice = long && self.load.level().reads_alone() && self.rng.per_mille(400);
                self.strike(fault, member, twice).unwrap_or_else(|e| {
                    panic!("{} of member {}: {e}", fault.name(), member.number)
                });
            }
            if long {
                self.go_on(MANY);
                self.kill_all()
                    .unwrap_or_else(|e| panic!("{KILL_ALL}: {e}"));
            }
        }
        self.go_on(MANY);
    }

    /// Faults of one member.
    fn kinds(&self) -> Vec<Fault> {
        let mut kinds = vec![Fault::Kill, Fault::Pause];
        if self.cuts {
            kinds.push(Fault::Cut);
        }
        kinds
    }

    /// Waits for some progress, of which there always is some: any member that is left reads.
    fn go_on(&mut self, most: u64) {
        let commits = self.rng.between(most / 16, most);
        self.load.await_progress(commits);
    }

    /// A fault from its begin to its end, with another one of another member within it.
    fn strike(&mut self, fault: Fault, member: &Server, twice: bool) -> Result<(), ClusterError> {
        self.begin(fault, member)?;
        if self.load.level().writes_without_all() {
            self.go_on(MANY);
        } else {
            self.go_on(HARDLY_ANY);
        }
        if twice {
            let others = self.others(member);
            let other = self.rng.pick(&others);
            let fault = self.rng.pick(&self.kinds());
            self.begin(fault, other)?;
            // Who is left misses the majority too.
            let mut left = others.iter().filter(|m| m.number != other.number);
            left.try_for_each(|m| self.give_up_waiting(m))?;
            self.go_on(FEW);
            self.end(fault, other)?;
        }
        self.end(fault, member)
    }

    fn begin(&mut self, fault: Fault, member: &Server) -> Result<(), ClusterError> {
        self.begins(fault.name(), member);
        match fault {
            Fault::Kill => member.kill(),
            Fault::Pause => member.signal_all(Signal::SIGSTOP),
            Fault::Cut => {
                network::cut(self.group, member)?;
                // Half of the cuts may end before anybody has noticed.
                if self.rng.per_mille(500) {
                    self.give_up_waiting(member)?;
                }
                Ok(())
            }
        }
    }

    fn end(&self, fault: Fault, member: &Server) -> Result<(), ClusterError> {
        self.ends(fault.name(), member);
        match fault {
            Fault::Kill => member.start(PATIENCE)?,
            Fault::Pause => member.signal_all(Signal::SIGCONT)?,
            Fault::Cut => network::heal(member)?,
        }
        status::wait_online(member, PATIENCE)
    }

    /// Counts it, and notes it in the history.
    fn begins(&mut self, what: &'static str, member: &Server) {
        *self.done.entry(what).or_default() += 1;
        self.load.recorder().fault(what, member.number);
    }

    fn ends(&self, what: &str, member: &Server) {
        let what = format!("end of {what}");
        self.load.recorder().fault(&what, member.number);
    }

    fn others(&self, member: &Server) -> Vec<&'a Server> {
        let other = |s: &&Server| s.number != member.number;
        self.members.iter().copied().filter(other).collect()
    }

    /// All at once. The others start when the first already waits for them.
    fn kill_all(&mut self) -> Result<(), ClusterError> {
        let first = self.rng.pick(&self.members);
        self.begins(KILL_ALL, first);
        std::thread::scope(|scope| {
            let kills: Vec<_> = self
                .members
                .iter()
                .map(|m| scope.spawn(|| m.kill()))
                .collect();
            kills
                .into_iter()
                .try_for_each(|kill| kill.join().expect("a kill"))
        })?;
        first.start(PATIENCE)?;
        let others = self.others(first);
        others
            .iter()
            .try_for_each(|member| member.start(PATIENCE))?;
        self.ends(KILL_ALL, first);
        let mut members = self.members.iter();
        members.try_for_each(|member| status::wait_online(member, PATIENCE))
    }

    /// Clients of a member that knows that it has no majority cancel what they wait for: a COMMIT that
    /// was sent before ends with an unknown outcome.
    fn give_up_waiting(&self, server: &Server) -> Result<(), ClusterError> {
        let alone = || {
            status::group_state(server)
                .is_ok_and(|g| g.state == "no_quorum")
                .then_some(())
        };
        wait_for(PATIENCE, alone).ok_or_else(|| {
            ClusterError::on(server, "waiting until it misses the others", "it does not")
        })?;
        let cancel = format!(
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND datname = '{}'",
            self.group.database
        );
        query_one::<i64>(server, "postgres", &cancel).map(drop)
    }
}
