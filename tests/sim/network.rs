//! Connections between servers: ordered, cut, blocked, replaced; and the way into the group.

use crate::world::{Happening, JOIN_ANSWER_TICKS, World};
use postgres_r::gcs::egcs::members::JoinReply;
use postgres_r::gcs::{Input, TICK_MS};
use postgres_r::ids::MemberId;

impl World {
    pub fn site_of(&self, member: MemberId) -> Option<usize> {
        self.servers.iter().position(|s| s.member == Some(member))
    }

    /// Frames on their way; nothing for whom there is no connection.
    pub fn route(&mut self) {
        for (from, to, bytes) in std::mem::take(&mut self.ctx.sends) {
            let Some(site) = self.site_of(to) else {
                continue;
            };
            let sender = self.servers[from].me();
            let Some(link) = self.links.get_mut(&(from.min(site), from.max(site))) else {
                continue;
            };
            let ctx = &mut self.ctx;
            if !link.up
                || ctx
                    .rng
                    .per_mille(if !ctx.healed { ctx.scenario.loss } else { 0 })
            {
                continue;
            }
            let last = &mut link.last[usize::from(from > site)];
            *last = (*last).max(ctx.now + ctx.rng.between(0, ctx.scenario.net_delay_max));
            let frame = Happening::Frame {
                link: (from, site),
                epoch: link.epoch,
                from: sender,
                bytes,
            };
            let at = *last;
            ctx.at(at, frame);
        }
        for (connection, reply) in std::mem::take(&mut self.ctx.join_replies) {
            self.join_answer(connection, reply);
        }
    }

    pub fn connect_all(&mut self) {
        for a in 0..self.servers.len() {
            for b in a + 1..self.servers.len() {
                let (one, other) = (&self.servers[a], &self.servers[b]);
                let possible = one.running.is_some()
                    && other.running.is_some()
                    && !self.blocked.contains(&(a, b))
                    && !self.blocked.contains(&(b, a))
                    && !self.paused.contains_key(&a)
                    && !self.paused.contains_key(&b);
                let up = self.links.entry((a, b)).or_default().up;
                // Now and then a second connection replaces one that is up.
                if possible && (!up || !self.ctx.healed && self.ctx.rng.per_mille(2)) {
                    self.connect(a, b, true);
                }
            }
        }
    }

    pub fn connect(&mut self, a: usize, b: usize, up: bool) {
        let link = self.links.entry((a.min(b), a.max(b))).or_default();
        if !up && !link.up {
            return;
        }
        link.up = up;
        link.epoch += 1;
        link.last = [self.ctx.now; 2];
        for (site, peer) in [(a, b), (b, a)] {
            let life = self.servers[site].life;
            let peer = self.servers[peer].me();
            self.ctx.at(
                self.ctx.now,
                Happening::Peer {
                    site,
                    life,
                    peer,
                    up,
                },
            );
        }
    }

    pub fn heal(&mut self) {
        let blocked = std::mem::take(&mut self.blocked);
        // What was lost in between breaks the stream.
        for (a, b) in blocked {
            self.connect(a, b, false);
        }
    }

    /// One member at a time; a member answers, or says itself that it could not in time.
    pub fn ask_to_join(&mut self, site: usize, life: u64) {
        if self.servers[site].member.is_some() {
            return;
        }
        let to = self.ctx.rng.below(self.servers.len() as u64) as usize;
        let bytes = self.servers[site].join_request().encode();
        let connection = life << 8 | site as u64;
        let listens = to != site && self.servers[to].running.is_some();
        let patience = if listens {
            JOIN_ANSWER_TICKS * TICK_MS
        } else {
            100
        };
        if listens {
            self.servers[to].input(&mut self.ctx, Input::Join { connection, bytes });
        }
        self.ctx
            .later(patience, Happening::AskToJoin { site, life });
    }

    pub fn join_answer(&mut self, connection: u64, reply: JoinReply) {
        let (site, life) = ((connection & 0xff) as usize, connection >> 8);
        let server = &mut self.servers[site];
        if server.life != life || server.member.is_some() {
            return;
        }
        match reply {
            JoinReply::Accepted { member, .. } => server.accepted(&mut self.ctx, member),
            JoinReply::Retry(_) => {}
            JoinReply::Refused(why) if self.ctx.scenario.may_outdate() => {
                self.ctx.trace(|| format!("site {site} is refused: {why}"));
                self.ctx.later(100, Happening::CopyAgain { site, life });
            }
            JoinReply::Refused(why) => panic!("site {site} is refused: {why}"),
        }
    }
}
