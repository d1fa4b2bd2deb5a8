//! Backends and helpers at work: statements, row locks, apply, the commit gate.

use crate::check::Told;
use crate::database::Owner;
use crate::model::{self, Change, Row, Table};
use crate::scenario::Plant;
use crate::server::Server;
use crate::session::{Phase, Statement, Tried};
use crate::world::Context;
use postgres_r::coordinator::Event;
use postgres_r::group_state::GroupState;
use postgres_r::ids::Gid;

/// Tries for a lock before a client gives up (lock_timeout), which also ends local deadlocks.
const LOCK_TRIES: u32 = 12;

/// A helper process.
pub struct Helper {
    number: u32,
    job: Option<Job>,
}

struct Job {
    gid: Gid,
    depends_on: Gid,
    changes: Vec<Change>,
    applied: usize,
}

impl Helper {
    pub fn new(number: u32) -> Helper {
        Helper { number, job: None }
    }

    pub fn give(&mut self, gid: Gid, depends_on: Gid, changeset: &[u8]) {
        assert!(
            self.job.is_none(),
            "helper {} is busy and gets GID {gid}",
            self.number
        );
        let (_, changes) = model::decode(changeset);
        self.job = Some(Job {
            gid,
            depends_on,
            changes,
            applied: 0,
        });
    }

    pub fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    fn owner(&self) -> Owner {
        Owner::Helper(self.number)
    }
}

impl Server {
    /// A helper's next move.
    pub fn helper_turn(&mut self, ctx: &mut Context, number: u32) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        let owner = helper.owner();
        let Some(job) = &mut helper.job else { return };
        let gid = job.gid;
        if self.db.committed < job.depends_on && ctx.scenario.plant != Plant::NoDependencies {
            return self.wake_helper(ctx, number, 5);
        }
        if ctx.rng.per_mille(ctx.scenario.helper_failures) && ctx.may_fail(self.site, gid) {
            helper.job = None;
            self.db.unlock(owner);
            ctx.trace(|| format!("{me} helper {number} fails on GID {gid}"));
            let (helper, reason) = (number, "out of memory".to_string());
            if ctx.rng.per_mille(500) {
                let failed = Event::HelperFailed {
                    helper,
                    gid,
                    fatal: false,
                    reason,
                };
                return self.tell_coordinator(ctx, 1000 + number, failed);
            }
            self.tell_coordinator(ctx, 1000 + number, Event::HelperGone { helper });
            return self.tell_coordinator(ctx, 1000 + number, Event::HelperReady { helper });
        }
        if let Some(&change) = job.changes.get(job.applied) {
            for (lock, mode) in change.locks() {
                match self.db.in_the_way(owner, lock, mode).first() {
                    None => self.db.lock(owner, lock, mode),
                    Some(Owner::Session(slot)) => {
                        let slot = *slot;
                        self.make_way(ctx, slot, gid);
                        return self.wake_helper(ctx, number, 2);
                    }
                    Some(Owner::Helper(other)) => {
                        panic!("{me}: helper {number} with GID {gid} meets helper {other}")
                    }
                }
            }
            let earlier = self
                .job(number)
                .map_or(Vec::new(), |job| job.changes[..job.applied].to_vec());
            if let Err(why) = applicable(self, &earlier, change) {
                panic!("{me}: helper {number} can't apply {change:?} of GID {gid}: {why}");
            }
            if let Some(job) = self.job(number) {
                job.applied += 1;
            }
            return self.wake_helper(ctx, number, 3);
        }
        if self.db.committed.next() != gid {
            return self.wake_helper(ctx, number, 4);
        }
        let job = self
            .running
            .as_mut()
            .and_then(|r| r.helpers[number as usize].job.take());
        let changes = job.map(|job| job.changes).unwrap_or_default();
        self.commit(ctx, gid, &changes, owner);
        self.tell_coordinator(
            ctx,
            1000 + number,
            Event::HelperApplied {
                helper: number,
                gid,
            },
        );
    }

    fn job(&mut self, number: u32) -> Option<&mut Job> {
        self.running.as_mut()?.helpers[number as usize].job.as_mut()
    }

    fn commit(&mut self, ctx: &mut Context, gid: Gid, changes: &[Change], owner: Owner) {
        self.db.commit(gid, changes);
        self.db.unlock(owner);
        let me = self.me();
        ctx.trace(|| format!("{me} commits GID {gid} by {owner:?}"));
        ctx.check.state(me, gid, self.db.hash());
    }

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
                let open = matches!(state, GroupState::Online | GroupState::NoQuorum);
                // A healed group is not loaded more than it takes to see that each member serves.
                let wanted = !(ctx.healed && ctx.served.contains(&self.site));
                if open
                    && wanted
                    && let Some(xid) = ctx.next_xid()
                {
                    session.begin(xid, &mut ctx.rng, &self.db);
                    ctx.trace(|| format!("{me} session {slot} begins {xid}"));
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
                self.commit(ctx, gid, &t.changes, owner);
                ctx.check.told(t.xid, Told::Committed(gid));
                ctx.served.insert(self.site);
                self.wake_session(ctx, slot, ctx.scenario.think_max);
            }
            Phase::Passed(_) => self.wake_session(ctx, slot, 3),
            // Their next move comes with a verdict.
            Phase::Multicast | Phase::RolledBack => {}
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
        let tried = if locked {
            t.execute(&self.db, statement)
        } else {
            t.lock(&mut self.db, owner, statement, plant)
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
                    if t.lock(&mut self.db, owner, other, plant) == Tried::Locked {
                        t.execute(&self.db, other);
                    }
                    t.rollback_to(mark, &mut self.db, owner);
                }
            }
            Tried::Failed => return self.abort(ctx, slot),
        }
        self.wake_session(ctx, slot, 10);
    }

    /// ROLLBACK, or the end of a transaction that wrote nothing.
    fn abort(&mut self, ctx: &mut Context, slot: u32) {
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        session.phase = Phase::Idle;
        if let Some(t) = session.transaction.take() {
            ctx.check.told(t.xid, Told::Aborted);
        }
        self.db.unlock(Owner::Session(slot));
        self.wake_session(ctx, slot, ctx.scenario.think_max);
    }
}

/// What heap and indexes would say, after the changeset's own `earlier` changes.
fn applicable(server: &Server, earlier: &[Change], change: Change) -> Result<(), String> {
    let db = &server.db;
    let get = |row: Row| match earlier.iter().rev().find(|c| c.row() == row) {
        Some(Change::Put(_, value)) => Some(*value),
        Some(Change::Delete(..)) => None,
        None => db.get(row),
    };
    let (row, value) = match change {
        Change::Put(row, value) => (row, value),
        Change::Delete(row, _) => return get(row).map(|_| ()).ok_or_else(|| "no such row".into()),
    };
    let rows = || {
        earlier
            .iter()
            .map(|c| c.row())
            .chain(db.rows().map(|(row, _)| row))
    };
    match (row.table, get(row)) {
        (Table::Counter | Table::Mirror, Some(_)) => Ok(()),
        (Table::Counter | Table::Mirror, None) => Err("no such row".into()),
        (_, Some(_)) => Err("the key is there".into()),
        (Table::Unique, None) => {
            match rows().find(|r| r.table == Table::Unique && get(*r) == Some(value)) {
                Some(other) => Err(format!("{other:?} has the value")),
                None => Ok(()),
            }
        }
        (Table::Parent | Table::Child, None) => Ok(()),
    }
}
