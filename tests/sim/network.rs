//! Connections between servers: ordered, cut, blocked, replaced; and the way into the group.

use crate::world::{Happening, JOIN_ANSWER_TICKS, World};
use bytes::Bytes;
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
            let delay = ctx.rng.between(0, ctx.scenario.net_delay_max);
            let epoch = link.epoch;
            let (number, at) = link.way(from, site).send(ctx.now + delay);
            let frame = Happening::Frame {
                way: (from, site),
                epoch,
                number,
                from: sender,
                bytes,
            };
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
                    self.connect(a, b);
                }
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let link = self.links.entry((a, b)).or_default();
        link.begin(self.ctx.now);
        let epoch = link.epoch;
        for way in [(a, b), (b, a)] {
            self.tell_peer(way, epoch, true, self.ctx.now);
        }
    }

    /// A connection breaks. Some of what is under way still arrives, in both directions.
    pub fn disconnect(&mut self, a: usize, b: usize) {
        self.break_up(a, b, true);
    }

    fn break_up(&mut self, a: usize, b: usize, some_arrive: bool) {
        let Some(link) = self.links.get_mut(&(a.min(b), a.max(b))) else {
            return;
        };
        if !std::mem::take(&mut link.up) {
            return;
        }
        let epoch = link.epoch;
        let ends = [(a, b), (b, a)].map(|(from, to)| {
            let way = link.way(from, to);
            let arrive = if some_arrive {
                self.ctx.rng.below(way.under_way() + 1)
            } else {
                0
            };
            ((from, to), way.end(arrive, self.ctx.now))
        });
        for (way, at) in ends {
            self.tell_peer(way, epoch, false, at);
        }
    }

    /// Nobody is there any more to whom something could arrive.
    pub fn close_all(&mut self, site: usize) {
        for other in 0..self.servers.len() {
            if other == site {
                continue;
            }
            self.disconnect(site, other);
            let link = self.links.entry((site.min(other), site.max(other)));
            link.or_default().way(other, site).open = false;
        }
    }

    fn tell_peer(&mut self, way: (usize, usize), epoch: u64, up: bool, at: u64) {
        let what = Happening::Peer {
            way,
            life: self.servers[way.1].life,
            epoch,
            peer: self.servers[way.0].me(),
            up,
        };
        self.ctx.at(at, what);
    }

    /// A server sees a connection begin or end.
    pub fn peer(&mut self, way: (usize, usize), epoch: u64, peer: MemberId, up: bool) {
        let (from, to) = way;
        let link = self.links.entry((from.min(to), from.max(to))).or_default();
        let way = link.way(from, to);
        if way.epoch != epoch {
            return;
        }
        if std::mem::replace(&mut way.open, up) {
            self.servers[to].input(&mut self.ctx, Input::PeerDown(peer));
        }
        if up {
            self.servers[to].input(&mut self.ctx, Input::PeerUp(peer));
        }
    }

    pub fn frame(
        &mut self,
        way: (usize, usize),
        epoch: u64,
        number: u64,
        from: MemberId,
        bytes: Bytes,
    ) {
        let (a, b) = way;
        let link = self.links.entry((a.min(b), a.max(b))).or_default();
        if link.way(a, b).arrives(epoch, number) && !self.blocked.contains(&way) {
            self.servers[b].input(&mut self.ctx, Input::Frame { from, bytes });
        }
    }

    pub fn heal(&mut self) {
        let blocked = std::mem::take(&mut self.blocked);
        // What was lost in between breaks the stream.
        for (a, b) in blocked {
            self.break_up(a, b, false);
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
