//! A helper's process: takes a changeset, applies it in a transaction, commits at its turn.

use super::job;
use super::rows::Applier;
use super::run::gather;
use super::tables::Tables;
use crate::capture::transaction::watch_transactions;
use crate::changeset::decode::Changeset;
use crate::ids::Gid;
use crate::imsg::message::{Job, ToCoordinator, ToHelper};
use crate::imsg::{Chain, Pool};
use crate::pg::guard::{self, Result};
use crate::pg::heap::{Context, internal};
use crate::pg::source::Assumed;
use crate::pg::victim::Cause;
use crate::pg::{backend, elog, guc, latch, notify, prepared, shmem, sys, transaction};
use crate::worker::channel::{self, control, set_phase, slot};
use crate::worker::phase::Phase;
use crate::worker::{gate, victim};
use std::cell::Cell;
use std::sync::atomic::Ordering;

thread_local! {
    /// Which helper this is.
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

/// Entry of helper `number`, 0 being the one that is kept for the next GID to commit.
pub fn main(number: u32) -> Result<()> {
    guard::install_panic_hook();
    let database = control().database.load(Ordering::SeqCst);
    if database == 0 {
        return Ok(());
    }
    backend::start_helper(database)?;
    channel::attach(true)?;
    watch_transactions()?;
    prepared::roll_back_copied()?;
    NUMBER.set(number);
    let mut helper = Helper {
        tables: Tables::new()?,
        memory: Context::scratch(c"pgr helper")?,
        bytes: Vec::new(),
    };
    send(ToCoordinator::HelperReady { helper: number })?;
    // Taken from the queue in search of something else.
    let mut instead = None;
    loop {
        guc::reload_if_asked()?;
        match instead.take().or_else(next) {
            Some(ToHelper::Apply(job)) => {
                let (given, other) = gather(job);
                instead = other;
                helper.apply_given(given)?;
            }
            Some(ToHelper::EarlyBegin { first, .. }) => helper.early(first)?,
            // Of an attempt that was given up.
            Some(
                ToHelper::Fragment { fragment, .. } | ToHelper::EarlyFragment { fragment, .. },
            ) => discard(fragment),
            Some(ToHelper::EarlyEnd { .. }) => {}
            None => latch::sleep_interruptible(None, sys::WAIT_EVENT_REPLICATION_HELPER_MAIN)?,
        }
    }
}

pub(super) fn next() -> Option<ToHelper> {
    loop {
        if let Ok(message) = ToHelper::try_from(slot().requests_down.pop()?) {
            return Some(message);
        }
    }
}

/// A helper says one thing of each of its jobs, so its queue has room.
pub(super) fn send(message: ToCoordinator) -> Result<()> {
    channel::reply(message).map_err(|_| internal("the coordinator does not take messages"))
}

/// Done. The coordinator, if it sleeps, need not know before there is more to do.
fn applied(gid: Gid) -> Result<()> {
    channel::report(ToCoordinator::Applied { gid })
        .map_err(|_| internal("the coordinator does not take messages"))
}

/// See the head of the file.
pub struct Helper {
    pub(super) tables: Tables,
    pub(super) memory: Context,
    /// The changeset in one piece.
    pub(super) bytes: Vec<u8>,
}

impl Helper {
    /// Applies the changeset in `bytes`, and says what became of it.
    pub(super) fn apply(&mut self, job: Job) -> Result<()> {
        if is_committed(&job) {
            return applied(job.gid);
        }
        wait_for(job.depends_on, || Ok(()))?;
        let cause = cause(&job);
        let done = loop {
            let kept = !self.tables.is_empty();
            job::set_current(Some(cause));
            let done = self.attempt(&job);
            job::set_current(None);
            let Err(error) = done else { break Ok(()) };
            // One with a lower GID needed what we held; we begin anew behind it.
            let gave_way = error.sqlstate() == "40001" && victim::is_wanted();
            let report = (error.sqlstate(), error.message());
            self.roll_back()?;
            if is_committed(&job) {
                break Ok(());
            }
            // No lock holds what was kept open since an earlier transaction: an index may have been
            // replaced meanwhile. Once all of it is opened anew, that is no reason any more.
            if !gave_way && !kept {
                break Err(report);
            }
        };
        match done {
            Ok(()) => self.committed(std::iter::once(&job)),
            Err((sqlstate, message)) => {
                control()
                    .counters
                    .helper_errors
                    .fetch_add(1, Ordering::Relaxed);
                elog::log(
                    sys::WARNING,
                    &format!(
                        "could not apply transaction {} of member {}: {message} ({sqlstate})",
                        job.gid, job.origin
                    ),
                );
                send(ToCoordinator::HelperFailed {
                    gid: job.gid,
                    sqlstate: guard::pack_sqlstate(&sqlstate),
                })
            }
        }
    }

    /// Says that these are done, which were committed together.
    pub(super) fn committed<'j>(&mut self, jobs: impl Iterator<Item = &'j Job>) -> Result<()> {
        let (control, mut last) = (control(), Gid::ZERO);
        for job in jobs {
            if u32::from(job.origin.0) != control.member.load(Ordering::Relaxed) {
                control.counters.applied.fetch_add(1, Ordering::Relaxed);
            }
            last = job.gid;
        }
        applied(last)?;
        transaction::report_statistics()
    }

    /// A transaction at this position begins.
    pub(super) fn begin(&mut self, job: &Job) -> Result<Applier<'_>> {
        let snapshot = transaction::begin()?;
        let slot = slot();
        slot.ticket
            .store(transaction::local_id().into(), Ordering::SeqCst);
        slot.gid.store(job.gid.0, Ordering::SeqCst);
        set_phase(Phase::Certified);
        Ok(Applier::new(&mut self.tables, &self.memory, snapshot))
    }

    /// Rolls the transaction back.
    pub(super) fn roll_back(&mut self) -> Result<()> {
        let settled = self.tables.settle_files();
        transaction::abort()?;
        self.tables.forget()?;
        settled
    }

    fn attempt(&mut self, job: &Job) -> Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let done = self.attempt_with(job, &bytes);
        self.bytes = bytes;
        done
    }

    fn attempt_with(&mut self, job: &Job, bytes: &[u8]) -> Result<()> {
        let changeset = Changeset::parse(bytes).map_err(|e| job::damaged(&e))?;
        let mut applier = self.begin(job)?;
        let _assumed = changeset.source().map(Assumed::new).transpose()?;
        job::apply(&changeset, job.gid, &mut applier, |nth| fetch(job.gid, nth))?;
        applier.finish()?;
        transaction::commit()
    }
}

/// For whom others give way.
pub(super) fn cause(job: &Job) -> Cause {
    Cause {
        gid: job.gid,
        origin: job.origin,
        relation: 0,
    }
}

/// The order up to which all is visible.
pub(super) fn shown() -> Gid {
    control().visible.passed()
}

/// Waits until a GID is visible. If a transaction is under way, one before it that is in need of what
/// this one holds ends the wait with an error; so does one of `look`, which is called now and then.
pub(super) fn wait_for(gid: Gid, look: impl Fn() -> Result<()>) -> Result<()> {
    let (control, number) = (control(), NUMBER.get());
    if shown() >= gid {
        return Ok(());
    }
    let (me, dependents) = (shmem::my_slot().0, &control.dependents);
    let mut result = Ok(());
    while result.is_ok() && !dependents.wait(number, me, gid, &control.visible) {
        let event = sys::WAIT_EVENT_REPLICATION_DEPENDENCY;
        result = look().and_then(|()| latch::sleep_interruptible(Some(gate::LOOK_AROUND), event));
    }
    dependents.done(number);
    result
}

/// Takes the changeset of a job over, into memory that was used before; false if it is not this process's.
pub(super) fn take(job: &Job, bytes: &mut Vec<u8>) -> bool {
    received(job.changeset, |pool, chain| {
        bytes.clear();
        for piece in pool.pieces(chain) {
            bytes.extend_from_slice(piece);
        }
    })
    .is_some()
}

/// The bytes of a chain that was sent here.
pub(super) fn copy(chain: Chain) -> Option<Vec<u8>> {
    received(chain, |pool, chain| pool.copy(chain))
}

/// Reads a chain that was sent here, and gives it back.
fn received<T>(chain: Chain, read: impl FnOnce(&Pool<'_>, Chain) -> T) -> Option<T> {
    let pool = shmem::shared().pool();
    let chain = pool.accept(chain, shmem::my_slot())?;
    let read = read(&pool, chain);
    pool.free(chain);
    Some(read)
}

/// Gives back, unread, a chain that was sent here.
pub(super) fn discard(chain: Chain) {
    shmem::shared().pool().free(chain);
}

/// Has the coordinator read a fragment of what is being applied from the group log.
pub(super) fn fetch(gid: Gid, nth: u32) -> Result<Vec<u8>> {
    send(ToCoordinator::FragmentWanted { gid, nth })?;
    let wanted = (gid, nth);
    loop {
        match next() {
            Some(ToHelper::Fragment { gid, nth, fragment }) => {
                if let Some(bytes) = copy(fragment)
                    && (gid, nth) == wanted
                {
                    return Ok(bytes);
                }
            }
            // Of what was begun early.
            Some(ToHelper::EarlyFragment { fragment, .. }) => discard(fragment),
            Some(_) => return Err(internal("the coordinator sent other work meanwhile")),
            None => latch::sleep_interruptible(None, sys::WAIT_EVENT_REPLICATION_HELPER_MAIN)?,
        }
    }
}

/// The worker that was to be replaced has reached its turn after all.
pub(super) fn is_committed(job: &Job) -> bool {
    shown() >= job.gid
}

/// A helper's last step before its commit record.
pub fn pre_commit() -> Result<bool> {
    let Some((first, last)) = job::positions() else {
        return Ok(true);
    };
    while !gate::is_turn(&control().logged, first) {
        if control().logged.passed() >= first {
            return Err(internal(format!(
                "transaction {first} is committed already"
            )));
        }
        let event = sys::WAIT_EVENT_REPLICATION_COMMIT_TURN;
        latch::sleep_interruptible(Some(gate::LOOK_AROUND), event)?;
    }
    notify::queue_ordered()?;
    gate::enter(first, last);
    Ok(true)
}
