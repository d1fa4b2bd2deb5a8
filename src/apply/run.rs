//! Changesets of consecutive GIDs that one helper was given, applied in one transaction: each commit has a
//! price of its own, which a member that is behind pays once for several.
//!
//! Its commit record carries the last GID, and all become visible together, so every snapshot is still a
//! prefix of the order. Only what is the same in one transaction as in several is done so: changes of
//! rows, without triggers, of one source or of none. If anything goes wrong, each is applied by itself.

use super::helper::{self, Helper, cause, next};
use super::job::{self, Doing};
use crate::changeset::compress::Opened;
use crate::changeset::decode::Changeset;
use crate::ids::Gid;
use crate::imsg::message::{Job, ToHelper};
use crate::pg::guard::Result;
use crate::pg::source::Assumed;
use crate::pg::{elog, sys, transaction};
use std::collections::VecDeque;

/// A changeset to be applied, and its bytes.
pub(super) type Given = (Job, Vec<u8>);

/// All that the queue has for this helper, beginning with `first`, and what it had instead of another. They
/// are taken at once: as long as they are in shared memory, a lower GID may find no room there.
pub(super) fn gather(first: Job) -> (VecDeque<Given>, Option<ToHelper>) {
    let (mut given, mut job) = (VecDeque::new(), first);
    loop {
        let mut bytes = Vec::new();
        // If not, it was meant for another, long ago.
        if helper::take(&job, &mut bytes) {
            given.push_back((job, bytes));
        }
        match next() {
            Some(ToHelper::Apply(following)) => job = following,
            other => return (given, other),
        }
    }
}

impl Helper {
    /// Applies what was given, together what can be.
    pub(super) fn apply_given(&mut self, mut given: VecDeque<Given>) -> Result<()> {
        while !given.is_empty() {
            let (length, done) = match &together(&given)[..] {
                run @ [_, _, ..] => (run.len(), self.apply_together(run)?),
                _ => (1, false),
            };
            for (job, bytes) in given.drain(..length).filter(|_| !done) {
                self.bytes = bytes;
                self.apply(job)?;
            }
        }
        Ok(())
    }

    /// Whether all are committed; else nothing is.
    fn apply_together(&mut self, run: &[(Job, Changeset)]) -> Result<bool> {
        let ((first, _), (last, _)) = (&run[0], &run[run.len() - 1]);
        job::set_first(Some(first.gid));
        let done = self.try_together(run);
        job::set_current(None);
        job::set_first(None);
        let Err(error) = done else {
            self.committed(run.iter().map(|(job, _)| job))?;
            return Ok(true);
        };
        let (first, last) = (first.gid, last.gid);
        elog::log(
            sys::DEBUG1,
            &format!("transactions {first} to {last} are applied one by one: {error}"),
        );
        self.roll_back()?;
        Ok(false)
    }

    fn try_together(&mut self, run: &[(Job, Changeset)]) -> Result<()> {
        let first = run[0].0;
        let opened = run.iter().map(|(_, changeset)| job::open(changeset));
        let opened: Vec<Opened> = opened.collect::<Result<_>>()?;
        let mut shown = helper::shown();
        let mut applier = self.begin(&first)?;
        transaction::xid()?;
        let mut assumed: Option<Assumed> = None;
        let mut doing = Doing::default();
        for ((job, changeset), opened) in run.iter().zip(&opened) {
            job::set_current(Some(cause(job)));
            // It depends on more than the highest, of which others may be before the run.
            let depends_on = job.depends_on.min(Gid(first.gid.0 - 1));
            if depends_on > shown {
                applier.pause()?;
                helper::wait_for(depends_on, || Ok(()))?;
                shown = helper::shown();
                applier.resume()?;
            }
            // The last one's position is that of all.
            match (&assumed, changeset.source()) {
                (_, None) => {}
                (None, Some(source)) => assumed = Some(Assumed::new(source)?),
                (Some(assumed), Some(source)) => assumed.advance(source),
            }
            let position = Some((changeset.header(), job.gid));
            doing.apply(opened.entries(), &mut applier, position)?;
        }
        doing.finish(&mut applier)?;
        applier.finish()?;
        transaction::commit()
    }
}

/// Those of these, from the first on, that may be applied together: of consecutive GIDs, with only changes
/// of rows, of one source or of none. One by itself is not looked at.
fn together(given: &VecDeque<Given>) -> Vec<(Job, Changeset<'_>)> {
    let mut run: Vec<(Job, Changeset)> = Vec::new();
    if given.len() == 1 {
        return run;
    }
    let mut source = None;
    for (job, bytes) in given {
        if run
            .last()
            .is_some_and(|(last, _)| job.gid != last.gid.next())
        {
            break;
        }
        let Ok(changeset) = Changeset::parse(bytes) else {
            break;
        };
        let name = changeset.source().map(|s| s.name);
        if !changeset.has_only_rows() || *source.get_or_insert(name) != name {
            break;
        }
        run.push((*job, changeset));
    }
    run
}
