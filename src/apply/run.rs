//! Changesets of consecutive GIDs that one helper was given, applied in one transaction: each commit has a
//! price of its own, which a member that is behind pays once for several.
//!
//! Its commit record carries the last GID, and all become visible together, so every snapshot is still a
//! prefix of the order. Only what is the same in one transaction as in several is done so: changes of
//! rows, without triggers. If anything goes wrong, each is applied by itself.

use super::helper::{self, Helper, cause, next};
use super::job::{self, Doing, damaged};
use super::tables::Tables;
use crate::changeset::decode::{Changeset, Entry};
use crate::imsg::message::{Job, ToHelper};
use crate::limits::HELPER_RUN_MAX;
use crate::pg::guard::Result;
use crate::pg::transaction;

/// The first job, those behind it that the queue has and that follow each other, each with its changeset,
/// and what the queue had instead of another.
pub(super) fn gather(first: Job) -> (Vec<(Job, Vec<u8>)>, Option<ToHelper>) {
    let (mut run, mut job) = (Vec::new(), first);
    loop {
        let mut bytes = Vec::new();
        // If not, it was meant for another, long ago.
        if helper::take(&job, &mut bytes) {
            run.push((job, bytes));
        }
        match next() {
            Some(ToHelper::Apply(following))
                if following.gid == job.gid.next() && run.len() < HELPER_RUN_MAX =>
            {
                job = following;
            }
            other => return (run, other),
        }
    }
}

impl Helper {
    /// Applies all of a run, together if that can be.
    pub(super) fn apply_run(&mut self, run: Vec<(Job, Vec<u8>)>) -> Result<()> {
        if run.len() > 1 {
            let done = self.try_together(&run);
            job::set_current(None);
            job::set_first(None);
            if let Ok(true) = done {
                return self.committed(run.iter().map(|(job, _)| job));
            }
            transaction::abort()?;
            if done.is_err() {
                self.tables.forget()?;
            }
        }
        for (job, bytes) in run {
            self.bytes = bytes;
            self.apply(job)?;
        }
        Ok(())
    }

    /// Whether all are committed; else all that was done is to be rolled back.
    fn try_together(&mut self, run: &[(Job, Vec<u8>)]) -> Result<bool> {
        let mut changesets = Vec::with_capacity(run.len());
        for (_, bytes) in run {
            changesets.push(Changeset::parse(bytes).map_err(|e| damaged(&e))?);
        }
        let (first, _) = &run[0];
        helper::wait_for(first.depends_on, || Ok(()))?;
        let mut applier = self.begin(first)?;
        for changeset in &changesets {
            if !is_plain(changeset, applier.tables)? {
                return Ok(false);
            }
        }
        transaction::xid()?;
        let mut doing = Doing::default();
        job::set_first(Some(first.gid));
        for ((job, _), changeset) in run.iter().zip(&changesets) {
            job::set_current(Some(cause(job)));
            if job.depends_on < first.gid && !helper::is_visible(job.depends_on) {
                helper::wait_for(job.depends_on, || Ok(()))?;
                applier.resume()?;
            }
            let position = Some((changeset.header(), job.gid));
            doing.apply(changeset.entries(), &mut applier, position)?;
        }
        doing.finish(&mut applier)?;
        applier.finish()?;
        transaction::commit()?;
        Ok(true)
    }
}

/// Whether a changeset has only changes of rows of tables without triggers that fire here.
fn is_plain(changeset: &Changeset<'_>, tables: &mut Tables) -> Result<bool> {
    for entry in changeset.entries() {
        match entry.map_err(|e| damaged(&e))? {
            Entry::Relation { oid, .. } if tables.get(oid.0)?.has_triggers => return Ok(false),
            Entry::Relation { .. }
            | Entry::Insert(_)
            | Entry::Batch(_)
            | Entry::Update { .. }
            | Entry::Delete(_)
            | Entry::Leave(_) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
