//! The backends of one server: statements, COMMIT, and what becomes of it.

use crate::check::Told;
use crate::database::{Database, Owner};
use crate::model::{self, Outgoing, Table};
use crate::scenario::Plant;
use crate::server::Server;
use crate::session::{Phase, Statement, Transaction, Tried};
use crate::world::Context;
use postgres_r::changeset::encode::{Builder, Mark};
use postgres_r::changeset::fragment::FragmentsOf;
use postgres_r::changeset::header::{FLAG_AWAITED, FLAG_LOCAL_EFFECTS, FLAG_RESERVED};
use postgres_r::changeset::key::KEY_READ;
use postgres_r::coordinator::message::{ENVELOPE_BYTES, Relations};
use postgres_r::coordinator::{Event, Outcome};
use postgres_r::group_state::GroupState;
use postgres_r::ids::{Gid, Incarnation};

/// Tries for a lock before a client gives up (lock_timeout), which also ends local deadlocks.
const LOCK_TRIES: u32 = 12;

/// Tickets of reads; transactions have lower ones.
const FIRST_READ: u64 = 1 << 63;

impl Server {
    /// A session's next move.
    pub fn session_turn(&mut self, ctx: &mut Context, slot: u32) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let state = running.core.state();
        let session = &mut running.sessions[slot as usize];
        let owner = session.owner();
        match session.phase {
            Phase::Idle => {
                if ctx.rng.per_mille(200) {
                    self.read(ctx, slot);
                }
                let Some(running) = &mut self.running else {
                    return;
                };
                let session = &mut running.sessions[slot as usize];
                let open = matches!(state, GroupState::Online | GroupState::NoQuorum);
                // A healed group is not loaded more than it takes to see that each member serves.
                let wanted = !(ctx.healed && ctx.served.contains(&self.site));
                if open
                    && wanted
                    && let Some(xid) = ctx.next_xid()
                {
                    session.begin(xid, &mut ctx.rng, &self.db, ctx.scenario.large);
                    ctx.trace(|| format!("{me} session {slot} begins {xid}"));
                    if ctx.rng.per_mille(40) {
                        self.reserve(ctx, slot);
                    }
                    return self.wake_session(ctx, slot, 5);
                }
                // Clients come back when there is something to do.
                if !ctx.clients_done {
                    self.wake_session(ctx, slot, 100);
                }
            }
            Phase::Running => self.statement_turn(ctx, slot),
            Phase::Passed(gid) if self.db.committed.next() == gid => {
                session.phase = Phase::Idle;
                let t = session.transaction.take().expect("it passed");
                self.commit(ctx, (gid, gid), &t.changes, owner);
                ctx.check.told(t.xid, Told::Committed(gid));
                ctx.served.insert(self.site);
                self.wake_session(ctx, slot, ctx.scenario.think_max);
            }
            Phase::Passed(_) => self.wake_session(ctx, slot, 3),
            // Their next move comes with a verdict.
            Phase::Multicast | Phase::RolledBack => {}
        }
    }

    /// A read of all that is acknowledged, beside what the session does.
    fn read(&mut self, ctx: &mut Context, slot: u32) {
        let Some(running) = &mut self.running else {
            return;
        };
        let ticket = FIRST_READ + ctx.rng.next() % FIRST_READ;
        running.readers.insert(ticket, ctx.check.acknowledged());
        let worker = slot;
        self.tell_coordinator(ctx, slot, Event::AwaitOrder { worker, ticket });
    }

    /// Wishes for relations that only this member writes until the transaction is over. It doesn't wait
    /// for them: what it gains is not what is tested, but that all members agree.
    fn reserve(&mut self, ctx: &mut Context, slot: u32) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.sessions[slot as usize].reserves = true;
        let ticket = FIRST_READ + ctx.rng.next() % FIRST_READ;
        running.readers.insert(ticket, ctx.check.acknowledged());
        let mut relations = Relations::default();
        for relation in &mut relations[..ctx.rng.between(1, 2) as usize] {
            *relation = ctx.rng.pick(&Table::ALL).oid();
        }
        let event = Event::Reserve {
            worker: slot,
            ticket,
            relations,
        };
        self.tell_coordinator(ctx, slot, event);
    }

    /// A transaction is over and was not multicast.
    fn release(&mut self, ctx: &mut Context, slot: u32) {
        let Some(running) = &mut self.running else {
            return;
        };
        if std::mem::take(&mut running.sessions[slot as usize].reserves) {
            self.tell_coordinator(ctx, slot, Event::Release { worker: slot });
        }
    }

    fn statement_turn(&mut self, ctx: &mut Context, slot: u32) {
        let plant = ctx.scenario.plant;
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        let owner = session.owner();
        let t = session.transaction.as_mut().expect("it runs");
        let Some((statement, locked)) = t.current else {
            if t.statements_left > 0 {
                t.statements_left -= 1;
                t.current = Some((Statement::random(&mut ctx.rng, &self.db), false));
                t.tries = 0;
                return self.wake_session(ctx, slot, 3);
            }
            if t.changes.is_empty() {
                return self.abort(ctx, slot);
            }
            return self.multicast(ctx, slot);
        };
        // What a helper could not do in its place is not in the way of others by such a lock.
        let takes = ctx.scenario.unkeyed_locks && !t.local_effects && ctx.rng.per_mille(200);
        let unkeyed = takes.then(|| {
            let table = ctx.rng.pick(&Table::ALL);
            model::unkeyed_lock(model::row(table, ctx.rng.below(2) as u32))
        });
        let tried = if locked {
            t.execute(&self.db, statement, plant)
        } else {
            t.lock(&mut self.db, owner, statement, unkeyed, plant)
        };
        match tried {
            Tried::Waits => {
                t.tries += 1;
                if t.tries > LOCK_TRIES {
                    return self.abort(ctx, slot);
                }
            }
            Tried::Locked => t.current = Some((statement, true)),
            Tried::Done => {
                t.current = None;
                // A savepoint: the next statement is taken back.
                if ctx.rng.per_mille(100) {
                    let mark = t.mark();
                    let other = Statement::random(&mut ctx.rng, &self.db);
                    let locked = t.lock(&mut self.db, owner, other, None, plant) == Tried::Locked;
                    if locked {
                        t.execute(&self.db, other, plant);
                    }
                    let ahead = t.large && ctx.rng.per_mille(500);
                    if ahead {
                        self.send_ahead(ctx, slot, Some(mark.3));
                    }
                    let t = self.transaction(slot);
                    t.0.rollback_to(mark, t.1, owner);
                }
                if self.transaction(slot).0.large && ctx.rng.per_mille(600) {
                    self.send_ahead(ctx, slot, None);
                }
            }
            Tried::Failed => return self.abort(ctx, slot),
        }
        self.wake_session(ctx, slot, 10);
    }

    fn transaction(&mut self, slot: u32) -> (&mut Transaction, &mut Database) {
        let running = self.running.as_mut().expect("it runs");
        let session = &mut running.sessions[slot as usize];
        let transaction = session.transaction.as_mut().expect("it runs");
        (transaction, &mut self.db)
    }

    /// What a large transaction has changed so far travels ahead of its commit, but for a little that may be
    /// rolled back to `open`.
    fn send_ahead(&mut self, ctx: &mut Context, slot: u32, open: Option<Mark>) {
        let running = self.running.as_mut().expect("it runs");
        let session = &mut running.sessions[slot as usize];
        let (worker, ticket) = (slot, session.ticket);
        let t = session.transaction.as_mut().expect("it runs");
        let fragments = t.fragments(FragmentsOf { worker, ticket }, open, ENVELOPE_BYTES);
        ctx.trace(|| format!("session {slot} sends {} fragments ahead", fragments.len()));
        self.send_fragments(ctx, (worker, ticket), fragments);
    }

    fn send_fragments(
        &mut self,
        ctx: &mut Context,
        (worker, ticket): (u32, u64),
        fragments: Vec<Vec<u8>>,
    ) {
        for message in fragments {
            let event = Event::Fragment {
                worker,
                ticket,
                message,
            };
            self.tell_coordinator(ctx, worker, event);
        }
    }

    /// A transaction is over and was not multicast: no changeset follows its fragments.
    fn drop_ahead(&mut self, ctx: &mut Context, worker: u32, ticket: u64, t: &Transaction) {
        if t.builder.has_fragments() {
            self.tell_coordinator(ctx, worker, Event::DropFragments { worker, ticket });
        }
    }

    /// ROLLBACK, or the end of a transaction that wrote nothing.
    fn abort(&mut self, ctx: &mut Context, slot: u32) {
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        session.phase = Phase::Idle;
        let ticket = session.ticket;
        if let Some(t) = session.transaction.take() {
            ctx.check.told(t.xid, Told::Aborted);
            self.drop_ahead(ctx, slot, ticket, &t);
        }
        self.db.unlock(Owner::Session(slot));
        self.release(ctx, slot);
        self.wake_session(ctx, slot, ctx.scenario.think_max);
    }

    /// COMMIT: the changeset goes to the coordinator.
    pub fn multicast(&mut self, ctx: &mut Context, slot: u32) {
        let (me, incarnation) = (self.me(), Incarnation(self.incarnation));
        let snapshot = self.db.committed;
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        session.phase = Phase::Multicast;
        let ticket = session.ticket;
        let t = session.transaction.as_mut().expect("a transaction commits");
        if ctx.scenario.plant == Plant::LateSince {
            let locked = t.keys.iter_mut().filter(|k| k.flags & KEY_READ == 0);
            locked.for_each(|k| k.since = snapshot);
        }
        t.push();
        let of = FragmentsOf {
            worker: slot,
            ticket,
        };
        let correction = t.correction(of, ENVELOPE_BYTES);
        let empty = Builder::new(Vec::new(), Vec::new());
        let message = model::encode(
            ENVELOPE_BYTES,
            std::mem::replace(&mut t.builder, empty),
            &Outgoing {
                origin: me,
                incarnation,
                snapshot,
                flags: u16::from(t.local_effects) * FLAG_LOCAL_EFFECTS
                    + u16::from(std::mem::take(&mut session.reserves)) * FLAG_RESERVED
                    + u16::from(ctx.rng.per_mille(200)) * FLAG_AWAITED,
                isolation: t.isolation,
                xid: t.xid,
                keys: &t.keys,
                of,
            },
        );
        let xid = t.xid;
        ctx.check.sent(xid, t.sent);
        ctx.trace(|| format!("{me} session {slot} multicasts {xid}, snapshot {snapshot}"));
        if ctx.scenario.plant == Plant::EarlyAnswer {
            ctx.check.promised(xid);
        }
        self.send_fragments(ctx, (slot, ticket), correction);
        self.tell_coordinator(
            ctx,
            slot,
            Event::Multicast {
                worker: slot,
                ticket,
                message,
            },
        );
    }

    /// A session has a lock that a helper needs; `keyed` if certification knows of it.
    ///
    /// A local transaction is waited for if its GID is lower, or it has none yet and was multicast: then
    /// some don't wait for their verdicts, roll back, and learn of their outcome later. Any other is
    /// aborted.
    pub fn make_way(&mut self, ctx: &mut Context, slot: u32, for_gid: Gid, keyed: bool) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        let xid = session.transaction.as_ref().map_or(0, |t| t.xid);
        if session.published.is_some_and(|gid| gid < for_gid) {
            // A row that it only locked: it is not in the changeset, so nothing else depends on it.
            return;
        }
        let is_with_the_group = session.phase == Phase::Multicast && session.published.is_none();
        if is_with_the_group && !ctx.rng.per_mille(10) {
            // Its verdict decides.
            return;
        }
        ctx.trace(|| {
            format!(
                "{me} session {slot}, {:?}, gives way to GID {for_gid}: {xid}",
                session.phase
            )
        });
        match session.phase {
            Phase::Running => {
                session.phase = Phase::Idle;
                let ticket = session.ticket;
                if let Some(t) = session.transaction.take() {
                    self.drop_ahead(ctx, slot, ticket, &t);
                }
                ctx.check.told(xid, Told::Aborted);
                self.wake_session(ctx, slot, ctx.scenario.think_max);
            }
            Phase::Passed(gid) if keyed => panic!(
                "{me}: {xid} passed as GID {gid} and is in the way of GID {for_gid}: certification did not see it"
            ),
            Phase::Multicast | Phase::Passed(_) => {
                session.phase = Phase::RolledBack;
                let ticket = session.ticket;
                self.tell_coordinator(
                    ctx,
                    slot,
                    Event::Abandon {
                        worker: slot,
                        ticket,
                        gone: false,
                    },
                );
            }
            Phase::Idle | Phase::RolledBack => unreachable!("it holds no locks"),
        }
        self.db.unlock(Owner::Session(slot));
        self.release(ctx, slot);
    }

    /// The client goes away, or an administrator ends the session.
    pub fn kill_session(&mut self, ctx: &mut Context, slot: u32) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        let Some(t) = session.transaction.take() else {
            return;
        };
        let (ticket, phase) = (session.ticket, session.phase);
        ctx.trace(|| format!("{me} session {slot} is killed in {phase:?}: {}", t.xid));
        session.phase = Phase::Idle;
        let told = if phase == Phase::Running {
            Told::Aborted
        } else {
            Told::Unknown
        };
        ctx.check.told(t.xid, told);
        self.db.unlock(Owner::Session(slot));
        self.release(ctx, slot);
        if phase == Phase::Running {
            self.drop_ahead(ctx, slot, ticket, &t);
        } else {
            self.tell_coordinator(
                ctx,
                slot,
                Event::Abandon {
                    worker: slot,
                    ticket,
                    gone: true,
                },
            );
        }
        self.wake_session(ctx, slot, 50);
    }

    /// Without a majority some clients cancel a COMMIT that waits. Its outcome stays open for them
    /// (08007), and their locks go.
    pub fn impatient_clients(&mut self, ctx: &mut Context) {
        let (me, state) = (self.me(), self.state());
        for slot in 0..ctx.scenario.sessions {
            let Some(running) = &mut self.running else {
                return;
            };
            let session = &mut running.sessions[slot as usize];
            let waits = matches!(session.phase, Phase::Multicast | Phase::RolledBack);
            if state != GroupState::NoQuorum || !waits || !ctx.rng.per_mille(100) {
                continue;
            }
            let Some(t) = session.transaction.take() else {
                continue;
            };
            ctx.trace(|| format!("{me} session {slot} cancels {}", t.xid));
            session.phase = Phase::Idle;
            let ticket = session.ticket;
            ctx.check.told(t.xid, Told::Unknown);
            self.db.unlock(Owner::Session(slot));
            // What only the session has can't be replayed while it goes on: it ends instead.
            let gone = t.local_effects;
            self.tell_coordinator(
                ctx,
                slot,
                Event::Abandon {
                    worker: slot,
                    ticket,
                    gone,
                },
            );
            self.wake_session(ctx, slot, ctx.scenario.think_max);
        }
    }

    /// What became of a multicast.
    pub fn verdict(&mut self, ctx: &mut Context, slot: u32, ticket: u64, outcome: Outcome) {
        let Some(running) = &mut self.running else {
            return;
        };
        if let Some(acknowledged) = running.readers.remove(&ticket) {
            match outcome {
                Outcome::Reached { gid } => assert!(
                    gid >= acknowledged,
                    "a read at GID {gid} misses what was acknowledged, GID {acknowledged}"
                ),
                other => assert_eq!(other, Outcome::NotPrimary),
            }
            return;
        }
        let session = &mut running.sessions[slot as usize];
        let Some(t) = session
            .transaction
            .as_ref()
            .filter(|_| session.ticket == ticket)
        else {
            return;
        };
        let xid = t.xid;
        let told = match (session.phase, outcome) {
            // One that was not kept is found out at the commit.
            (_, Outcome::Fragment { .. }) => return,
            (Phase::Multicast, Outcome::Pass { gid }) => {
                session.phase = Phase::Passed(gid);
                return self.wake_session(ctx, slot, 2);
            }
            // It had rolled back by then; a helper commits it.
            (Phase::RolledBack, Outcome::Pass { .. }) => return,
            (Phase::RolledBack, Outcome::Replayed { gid }) => Told::Committed(gid),
            (
                _,
                Outcome::Conflict { .. }
                | Outcome::BelowFloor
                | Outcome::Reserved { .. }
                | Outcome::FragmentsLost
                | Outcome::NotPrimary
                | Outcome::Busy
                | Outcome::Withdrawn,
            ) => Told::Aborted,
            (_, Outcome::Unknown) => Told::Unknown,
            (phase, outcome) => panic!("{outcome:?} for a transaction in {phase:?}"),
        };
        ctx.trace(|| format!("site {} session {slot}: {xid} is {outcome:?}", self.site));
        session.phase = Phase::Idle;
        session.transaction = None;
        self.db.unlock(Owner::Session(slot));
        ctx.check.told(xid, told);
        if matches!(told, Told::Committed(_)) {
            ctx.served.insert(self.site);
        }
        self.wake_session(ctx, slot, ctx.scenario.think_max);
    }
}
