//! What goes wrong.

use crate::server::Server;
use crate::world::{Happening, World};
use postgres_r::coordinator::Event;
use postgres_r::group_state::GroupState;

/// Servers that there ever are.
const SERVERS_MAX: usize = 7;

impl World {
    pub fn schedule_fault(&mut self) {
        let every = self.ctx.scenario.fault_every;
        if every > 0 {
            let delay = self.ctx.rng.between(1, 2 * every);
            self.ctx.later(delay, Happening::Fault);
        }
    }

    pub fn fault(&mut self) {
        let f = self.ctx.scenario.faults.clone();
        let weights = [
            f.crash,
            f.crash_all,
            f.partition,
            f.cut,
            f.pause,
            f.kill_session,
            f.join,
            f.stop,
            f.fail_sync,
            f.stall_helpers,
        ];
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut at = self.ctx.rng.below(total);
        let kind = weights.iter().position(|w| {
            let here = at < *w;
            at = at.saturating_sub(*w);
            here
        });
        let n = self.servers.len() as u64;
        let site = self.ctx.rng.below(n) as usize;
        match kind {
            Some(0) => self.crash(site),
            Some(1) => (0..self.servers.len()).for_each(|site| self.crash(site)),
            Some(2) => self.partition(),
            Some(3) => {
                let other = self.ctx.rng.below(n) as usize;
                if site != other {
                    self.ctx
                        .trace(|| format!("cut between sites {site} and {other}"));
                    self.disconnect(site, other);
                }
            }
            Some(4) => {
                let until = self.ctx.now + self.ctx.rng.between(50, 4000);
                self.ctx
                    .trace(|| format!("site {site} stands still until {until}"));
                let pause = self.paused.entry(site).or_default();
                pause.until = until.max(pause.until);
                self.ctx.at(until, Happening::GoOn { site });
            }
            Some(5) => {
                let slot = self.ctx.rng.below(self.ctx.scenario.sessions.into()) as u32;
                self.servers[site].kill_session(&mut self.ctx, slot);
            }
            Some(6) => self.copy_and_join(),
            Some(7) => self.stop(site),
            _ if self.servers[site].running.is_none() => {}
            Some(9) => {
                let until = self.ctx.now + self.ctx.rng.between(100, 5000);
                self.ctx
                    .trace(|| format!("helpers of site {site} stand still until {until}"));
                self.servers[site].helpers_stall = until;
            }
            _ => {
                self.ctx
                    .trace(|| format!("the next sync of site {site} fails"));
                self.servers[site].disk.fail_sync(true);
            }
        }
    }

    pub fn crash(&mut self, site: usize) {
        let power_fails = self.ctx.rng.per_mille(700);
        self.end(site, power_fails);
        self.start_later(site);
    }

    fn start_later(&mut self, site: usize) {
        let delay = self.ctx.rng.between(10, 5000);
        self.ctx.later(delay, Happening::Start { site });
    }

    /// Its log can't be written or read: the process ends, and is started again.
    pub fn log_failed(&mut self, site: usize) {
        self.end(site, false);
        self.start_later(site);
    }

    pub fn end(&mut self, site: usize, power_fails: bool) {
        self.close_all(site);
        let missed = self.paused.remove(&site).map_or(Vec::new(), |p| p.missed);
        self.servers[site].crash(&mut self.ctx, power_fails);
        // Some of it is not about the life that ended.
        for what in missed {
            self.ctx.at(self.ctx.now, what);
        }
    }

    /// Some can't reach others, in both directions or in one.
    pub fn partition(&mut self) {
        self.heal();
        let one_way = self.ctx.rng.per_mille(300);
        let sides: Vec<bool> = self
            .servers
            .iter()
            .map(|_| self.ctx.rng.per_mille(400))
            .collect();
        self.ctx
            .trace(|| format!("partition {sides:?}, one way: {one_way}"));
        for a in 0..sides.len() {
            for b in 0..sides.len() {
                if sides[a] && !sides[b] {
                    self.blocked.insert((a, b));
                    if !one_way {
                        self.blocked.insert((b, a));
                    }
                }
            }
        }
        let delay = self.ctx.rng.between(100, 6000);
        self.ctx.later(delay, Happening::Heal);
    }

    /// A new server with a copy of a member's data.
    pub fn copy_and_join(&mut self) {
        let from = self.ctx.rng.below(self.servers.len() as u64) as usize;
        if self.servers.len() >= SERVERS_MAX || self.servers[from].state() != GroupState::Online {
            return;
        }
        let site = self.servers.len();
        let copy = Server::new(site, None, self.servers[from].db.copy());
        self.ctx.trace(|| {
            format!(
                "site {site} is a copy of site {from} at GID {}",
                copy.db.committed
            )
        });
        self.servers.push(copy);
        self.ctx.later(10, Happening::AskToJoin { site, life: 0 });
    }

    /// Its log can't be caught up with any more: it is emptied, and joins as a new copy.
    pub fn copy_again(&mut self, site: usize, life: u64) {
        let online = |s: &&Server| s.state() == GroupState::Online;
        let Some(from) = self.servers.iter().find(online) else {
            return self.ctx.later(300, Happening::CopyAgain { site, life });
        };
        let life = life + 1;
        let mut copy = Server::new(site, None, from.db.copy());
        (copy.life, copy.nonce) = (life, u128::from(self.ctx.rng.next()));
        self.ctx
            .trace(|| format!("site {site} is a new copy, GID {}", copy.db.committed));
        self.servers[site] = copy;
        self.ctx.later(10, Happening::AskToJoin { site, life });
    }

    /// STOP REPLICATION on one member, not the last one: the group would end with it.
    pub fn stop(&mut self, site: usize) {
        let Some(running) = &self.servers[site].running else {
            return;
        };
        let stats = running.core.stats();
        let voters = stats.members.iter().filter(|m| m.info.voter).count();
        if stats.state == GroupState::Online && self.stopped.is_none() && voters > 1 {
            self.ctx.trace(|| format!("site {site} is told to leave"));
            self.stopped = Some(site);
            self.servers[site].event(&mut self.ctx, Event::StopGroup);
        }
    }
    pub fn go_on(&mut self, site: usize) {
        let Some(pause) = self.paused.get(&site) else {
            return;
        };
        if pause.until > self.ctx.now {
            let until = pause.until;
            return self.ctx.at(until, Happening::GoOn { site });
        }
        let missed = self.paused.remove(&site).map_or(Vec::new(), |p| p.missed);
        for what in missed {
            self.happen_to_the_living(what);
        }
    }
}
