//! Helpers: apply in parallel as dependencies allow, and the commit gate.

use crate::database::Owner;
use crate::model::{self, Change, Row, Table};
use crate::scenario::Plant;
use crate::server::Server;
use crate::world::Context;
use postgres_r::changeset::fragment::Counted;
use postgres_r::coordinator::{Early, Event};
use postgres_r::ids::Gid;
use std::collections::VecDeque;

/// A helper process.
pub struct Helper {
    number: u32,
    /// At work on the first.
    jobs: VecDeque<Job>,
    /// The last that it has committed and not said so.
    unreported: Option<Gid>,
}

struct Job {
    gid: Gid,
    depends_on: Gid,
    changes: Vec<Change>,
    /// Fragments that it waits for, in front of the other changes.
    fragments: VecDeque<(u32, Counted)>,
    /// Of the changeset itself.
    rest: Vec<Change>,
    applied: usize,
}

impl Helper {
    pub fn new(number: u32) -> Helper {
        Helper {
            number,
            jobs: VecDeque::new(),
            unreported: None,
        }
    }

    /// Work; the fragment that it needs first, if any.
    pub fn give(&mut self, gid: Gid, depends_on: Gid, changeset: &[u8]) -> Option<u32> {
        let last = self.jobs.back().map_or(Gid::ZERO, |job| job.gid);
        assert!(
            last < gid,
            "helper {} is at GID {last} and gets GID {gid}",
            self.number
        );
        let (_, fragments, rest) = model::decode(changeset);
        let mut job = Job {
            gid,
            depends_on,
            changes: Vec::new(),
            fragments: (0..).zip(fragments).collect(),
            rest,
            applied: 0,
        };
        let wants = job.wants();
        self.jobs.push_back(job);
        wants
    }

    /// What it is told of a transaction that it may begin early, of which it only takes the fragments;
    /// which it wants then. `None`: it stops.
    pub fn early(&self, first: u64, what: &Early) -> Option<u32> {
        assert!(
            self.jobs.is_empty(),
            "helper {} is busy and is told of {first}: {what:?}",
            self.number
        );
        match what {
            Early::Begin { .. } => Some(0),
            Early::Fragment { nth, .. } => Some(nth + 1),
            Early::End => None,
        }
    }

    /// A fragment that it asked for, perhaps when it was at something else; the next that it needs.
    pub fn fragment(&mut self, gid: Gid, nth: u32, fragment: &[u8]) -> Option<u32> {
        let job = self.jobs.iter_mut().find(|job| job.gid == gid)?;
        if let Some((_, counted)) = job.fragments.pop_front_if(|f| f.0 == nth) {
            job.changes
                .extend(model::decode_fragment(fragment, counted));
        }
        job.wants()
    }

    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    fn owner(&self) -> Owner {
        Owner::Helper(self.number)
    }
}

impl Job {
    /// The next fragment that is missing. When none is, the changes are whole.
    fn wants(&mut self) -> Option<u32> {
        if self.fragments.is_empty() {
            self.changes.append(&mut self.rest);
        }
        self.fragments.front().map(|f| f.0)
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
        let Some(job) = helper.jobs.front_mut() else {
            return;
        };
        let gid = job.gid;
        if !job.fragments.is_empty() {
            return;
        }
        if self.db.committed < job.depends_on && ctx.scenario.plant != Plant::NoDependencies {
            return self.wake_helper(ctx, number, 5);
        }
        if ctx.rng.per_mille(ctx.scenario.helper_failures) && ctx.may_fail(self.site, gid) {
            helper.jobs.pop_front();
            self.db.unlock(owner);
            ctx.trace(|| format!("{me} helper {number} fails on GID {gid}"));
            let (jobs, reason) = (&mut helper.jobs, "out of memory".to_string());
            let unreported = helper.unreported.take();
            let fails = ctx.rng.per_mille(500);
            let helper = number;
            if fails {
                if !jobs.is_empty() {
                    self.wake_helper(ctx, number, 2);
                }
                if let Some(gid) = unreported {
                    let applied = Event::HelperApplied { helper, gid };
                    self.tell_coordinator(ctx, 1000 + number, applied);
                }
                let failed = Event::HelperFailed {
                    helper,
                    gid,
                    fatal: false,
                    reason,
                };
                return self.tell_coordinator(ctx, 1000 + number, failed);
            }
            jobs.clear();
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
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        let job = helper.jobs.pop_front();
        let changes = job.map(|job| job.changes).unwrap_or_default();
        let more = !helper.jobs.is_empty();
        // What was committed together is reported once.
        let reports = !more || ctx.rng.per_mille(500);
        helper.unreported = (!reports).then_some(gid);
        self.commit(ctx, gid, &changes, owner);
        if more {
            self.wake_helper(ctx, number, 2);
        }
        if reports {
            let applied = Event::HelperApplied {
                helper: number,
                gid,
            };
            self.tell_coordinator(ctx, 1000 + number, applied);
        }
    }

    fn job(&mut self, number: u32) -> Option<&mut Job> {
        let helpers = &mut self.running.as_mut()?.helpers;
        helpers[number as usize].jobs.front_mut()
    }

    pub fn commit(&mut self, ctx: &mut Context, gid: Gid, changes: &[Change], owner: Owner) {
        self.db.commit(gid, changes);
        self.db.unlock(owner);
        let me = self.me();
        ctx.trace(|| format!("{me} commits GID {gid} by {owner:?}"));
        ctx.check.state(me, gid, self.db.hash());
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
