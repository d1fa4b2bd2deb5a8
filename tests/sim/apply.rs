//! Helpers at work, as `src/apply` has them: in parallel as dependencies allow, several changesets in one
//! transaction, and the commit gate.

use crate::database::Owner;
use crate::helper::Attempt;
use crate::model::{Change, Row, Table, unkeyed_lock};
use crate::scenario::Plant;
use crate::server::Server;
use crate::world::Context;
use postgres_r::changeset::LockMode;
use postgres_r::coordinator::Event;
use postgres_r::ids::Gid;

impl Server {
    /// A helper's next move.
    pub fn helper_turn(&mut self, ctx: &mut Context, number: u32) {
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &running.helpers[number as usize];
        let Some(first) = helper.jobs.front() else {
            return;
        };
        if !first.fragments.is_empty() {
            return;
        }
        if ctx.now < self.helpers_stall && !ctx.healed {
            let delay = self.helpers_stall - ctx.now;
            return self.wake_helper(ctx, number, delay);
        }
        let gid = first.gid;
        let Some(attempt) = &helper.attempt else {
            return self.begin(ctx, number);
        };
        if ctx.rng.per_mille(ctx.scenario.helper_failures) && ctx.may_fail(self.site, gid) {
            return self.helper_fails(ctx, number);
        }
        let gives_up = attempt.length > 1 && ctx.rng.per_mille(ctx.scenario.gives_up);
        if attempt.is_wanted || gives_up {
            return self.roll_back(ctx, number);
        }
        if attempt.at < attempt.length {
            self.apply_next(ctx, number);
        } else {
            self.commit_turn(ctx, number);
        }
    }

    /// A transaction begins. One that is for a single changeset does so when all that this depends on
    /// is visible; one for several waits as it comes to each.
    fn begin(&mut self, ctx: &mut Context, number: u32) {
        let (me, committed) = (self.me(), self.db.committed);
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        if helper.alone == 0 {
            let mut length = helper.length() as u64;
            // It may have found only some of them when it looked.
            if ctx.rng.per_mille(300) {
                length = ctx.rng.between(1, length);
            }
            if length > 1 {
                let (first, last) = (helper.jobs[0].gid, helper.jobs[length as usize - 1].gid);
                ctx.trace(|| {
                    format!("{me} helper {number} applies GIDs {first} to {last} together")
                });
            }
            helper.alone = usize::from(length == 1);
            helper.attempt = (length > 1).then(|| Attempt::new(length as usize, committed));
        }
        if helper.alone > 0 {
            let waits = committed < helper.jobs[0].depends_on;
            if waits && ctx.scenario.plant != Plant::NoDependencies {
                return self.wake_helper(ctx, number, 5);
            }
            helper.attempt = Some(Attempt::new(1, committed));
        }
        self.wake_helper(ctx, number, 1);
    }

    /// What it was at is undone. What could not be done together is done one by one.
    fn roll_back(&mut self, ctx: &mut Context, number: u32) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        self.db.unlock(helper.owner());
        let Some((first, last)) = helper.positions() else {
            return;
        };
        ctx.trace(|| format!("{me} helper {number} rolls GIDs {first} to {last} back"));
        helper.attempt = None;
        if first < last {
            helper.alone = (last.0 - first.0 + 1) as usize;
            if ctx.scenario.plant == Plant::GivenUpIsDone {
                helper.jobs.drain(..std::mem::take(&mut helper.alone));
                let helper = number;
                let applied = Event::HelperApplied { helper, gid: last };
                self.tell_coordinator(ctx, 1000 + number, applied);
            }
        }
        self.wake_helper(ctx, number, 2);
    }

    /// An error, or the end of its process. An error is no reason to speak of while several are applied
    /// together.
    fn helper_fails(&mut self, ctx: &mut Context, number: u32) {
        let me = self.me();
        if ctx.rng.per_mille(500) {
            return self.helper_ends(ctx, number);
        }
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        if helper.attempt.as_ref().is_some_and(|a| a.length > 1) {
            return self.roll_back(ctx, number);
        }
        self.db.unlock(helper.owner());
        helper.attempt = None;
        let Some(job) = helper.jobs.pop_front() else {
            return;
        };
        helper.alone = helper.alone.saturating_sub(1);
        if !helper.jobs.is_empty() {
            self.wake_helper(ctx, number, 2);
        }
        ctx.trace(|| format!("{me} helper {number} fails on GID {}", job.gid));
        let failed = Event::HelperFailed {
            helper: number,
            gid: job.gid,
            fatal: false,
            reason: "out of memory".into(),
        };
        self.tell_coordinator(ctx, 1000 + number, failed);
    }

    fn helper_ends(&mut self, ctx: &mut Context, number: u32) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        ctx.trace(|| format!("{me} helper {number} ends in {:?}", helper.positions()));
        self.db.unlock(helper.owner());
        helper.end();
        let helper = number;
        self.tell_coordinator(ctx, 1000 + number, Event::HelperGone { helper });
        self.tell_coordinator(ctx, 1000 + number, Event::HelperReady { helper });
    }

    /// The next change, behind what it depends on and under its locks.
    fn apply_next(&mut self, ctx: &mut Context, number: u32) {
        let (me, committed) = (self.me(), self.db.committed);
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        let (owner, Some((first, last))) = (helper.owner(), helper.positions()) else {
            return;
        };
        let Some(attempt) = &mut helper.attempt else {
            return;
        };
        let job = &helper.jobs[attempt.at];
        let gid = job.gid;
        let needs = needs(ctx.scenario.plant, first, last, gid, job.depends_on);
        if needs > attempt.shown {
            if needs > committed {
                return self.wake_helper(ctx, number, 5);
            }
            attempt.shown = committed;
        }
        let Some(&change) = job.changes.get(attempt.applied) else {
            (attempt.at, attempt.applied) = (attempt.at + 1, 0);
            return self.wake_helper(ctx, number, 1);
        };
        let shown = attempt.shown;
        for (lock, mode) in change.locks() {
            match self.db.in_the_way(owner, lock, mode).first() {
                None => self.db.lock(owner, lock, mode),
                Some(Owner::Session(slot)) => {
                    let slot = *slot;
                    self.make_way(ctx, slot, gid, true);
                    return self.wake_helper(ctx, number, 2);
                }
                Some(Owner::Helper(other)) => {
                    let theirs = self.positions(*other);
                    panic!(
                        "{me}: helper {number} with GID {gid} of {first} to {last} meets helper {other} with {theirs:?}"
                    )
                }
            }
        }
        if ctx.scenario.unkeyed_locks && !self.takes_unkeyed(ctx, owner, gid, change) {
            return self.wake_helper(ctx, number, 2);
        }
        let earlier = self.running.as_ref().map(|r| &r.helpers[number as usize]);
        let earlier = earlier.map_or(Vec::new(), |helper| helper.done());
        if let Err(why) = applicable(self, &earlier, change) {
            panic!("{me}: helper {number} can't apply {change:?} of GID {gid}: {why}");
        }
        // A version that came after its snapshot would not be found.
        if let Some(since) =
            (self.db.since(change.row())).filter(|_| change.is_of_a_row_that_is_there())
        {
            assert!(
                since <= shown,
                "{me}: helper {number} can't apply {change:?} of GID {gid}: \
                 its snapshot shows GID {shown}, the row is of GID {since}"
            );
        }
        if let Some(running) = &mut self.running
            && let Some(attempt) = &mut running.helpers[number as usize].attempt
        {
            attempt.applied += 1;
        }
        let is_slow = !ctx.healed && ctx.scenario.slow_sites >> self.site & 1 > 0;
        let max = if is_slow { ctx.scenario.apply_max } else { 3 };
        self.wake_helper(ctx, number, max);
    }

    /// A lock that no key stands for, so that nobody waits before he meets the holder: then the one rule
    /// for waiting decides. False: it is not there yet.
    fn takes_unkeyed(&mut self, ctx: &mut Context, owner: Owner, gid: Gid, change: Change) -> bool {
        let (lock, mode) = (unkeyed_lock(change.row()), LockMode::Update);
        let holders = self.db.in_the_way(owner, lock, mode);
        for holder in &holders {
            let other = match *holder {
                Owner::Helper(other) => other,
                Owner::Session(slot) => {
                    self.make_way(ctx, slot, gid, false);
                    continue;
                }
            };
            let theirs = self.positions(other);
            assert!(
                theirs.is_some_and(|theirs| theirs.1 < gid || theirs.0 > gid),
                "the helper of GID {gid} meets {other} with {theirs:?}"
            );
            let lower = theirs.is_some_and(|theirs| theirs.0 < gid);
            if !lower
                && ctx.scenario.plant != Plant::NobodyGivesWay
                && let Some(running) = &mut self.running
                && let Some(attempt) = &mut running.helpers[other as usize].attempt
            {
                attempt.is_wanted = true;
            }
        }
        if holders.is_empty() {
            self.db.lock(owner, lock, mode);
        }
        holders.is_empty()
    }

    fn positions(&self, helper: u32) -> Option<(Gid, Gid)> {
        self.running.as_ref()?.helpers[helper as usize].positions()
    }

    /// All is applied: commits if it is the first GID's turn.
    fn commit_turn(&mut self, ctx: &mut Context, number: u32) {
        let Some((first, last)) = self.positions(number) else {
            return;
        };
        let past_gate = ctx.scenario.plant == Plant::PastGate && first < last;
        if self.db.committed.next() != first && !past_gate {
            return self.wake_helper(ctx, number, 4);
        }
        let Some(running) = &mut self.running else {
            return;
        };
        let helper = &mut running.helpers[number as usize];
        let (owner, changes) = (helper.owner(), helper.done());
        let length = helper.attempt.take().map_or(0, |a| a.length);
        helper.jobs.drain(..length);
        helper.alone = helper.alone.saturating_sub(length);
        let more = !helper.jobs.is_empty();
        self.commit(ctx, (first, last), &changes, owner);
        // The end may come before the report.
        if ctx.rng.per_mille(ctx.scenario.helper_failures / 4) && ctx.may_fail(self.site, last) {
            return self.helper_ends(ctx, number);
        }
        if more {
            self.wake_helper(ctx, number, 2);
        }
        let applied = Event::HelperApplied {
            helper: number,
            gid: last,
        };
        self.tell_coordinator(ctx, 1000 + number, applied);
    }

    /// Commits GIDs from the first to the last at once.
    pub fn commit(
        &mut self,
        ctx: &mut Context,
        (first, last): (Gid, Gid),
        changes: &[Change],
        owner: Owner,
    ) {
        let me = self.me();
        ctx.trace(|| format!("{me} commits GIDs {first} to {last} by {owner:?}"));
        ctx.check.commits(me, first, last);
        self.db.commit(first, last, changes);
        self.db.unlock(owner);
        ctx.check.state(me, last, self.db.hash());
    }
}

impl Attempt {
    fn new(length: usize, shown: Gid) -> Attempt {
        Attempt {
            length,
            at: 0,
            applied: 0,
            shown,
            is_wanted: false,
        }
    }
}

/// What must be visible before the changeset of `gid` is applied by who commits `first` to `last`. It
/// depends on more than the highest, of which others may be before the first.
fn needs(plant: Plant, first: Gid, last: Gid, gid: Gid, depends_on: Gid) -> Gid {
    match plant {
        Plant::NoDependencies => Gid::ZERO,
        Plant::FirstDependenciesOnly if gid > first => Gid::ZERO,
        Plant::HighestDependencyOnly if first < last && depends_on >= first => Gid::ZERO,
        _ => depends_on.min(Gid(first.0 - 1)),
    }
}

/// What heap and indexes would say, after the transaction's own `earlier` changes.
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
