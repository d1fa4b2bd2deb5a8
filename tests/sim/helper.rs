//! A helper's process: what it was given, and what it is at.

use crate::database::Owner;
use crate::model::{self, Change};
use postgres_r::changeset::fragment::Counted;
use postgres_r::coordinator::Early;
use postgres_r::ids::Gid;
use postgres_r::limits::HELPER_RUN_MAX;
use std::collections::VecDeque;

/// A helper process.
pub struct Helper {
    number: u32,
    /// What it was given and has not committed.
    pub jobs: VecDeque<Job>,
    pub attempt: Option<Attempt>,
    /// Of its jobs, from the first on, this many are applied one by one.
    pub alone: usize,
    /// Fragments that it has of what it has begun early.
    early: u32,
}

/// A changeset to be applied.
pub struct Job {
    pub gid: Gid,
    pub depends_on: Gid,
    pub changes: Vec<Change>,
    /// Fragments that it waits for, in front of the other changes.
    pub fragments: VecDeque<(u32, Counted)>,
    /// Of the changeset itself.
    rest: Vec<Change>,
    has_only_rows: bool,
}

/// A transaction that is under way.
pub struct Attempt {
    /// It commits this many of the helper's jobs, from the first on.
    pub length: usize,
    /// It is at work on this one of them.
    pub at: usize,
    /// Changes of that one which are done.
    pub applied: usize,
    /// What its snapshot shows.
    pub shown: Gid,
    /// Somebody with a lower GID needs what it has locked.
    pub is_wanted: bool,
}

impl Helper {
    pub fn new(number: u32) -> Helper {
        Helper {
            number,
            jobs: VecDeque::new(),
            attempt: None,
            alone: 0,
            early: 0,
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
        assert!(
            self.jobs.len() < HELPER_RUN_MAX && (self.number > 0 || self.jobs.is_empty()),
            "helper {} gets more than it may",
            self.number
        );
        let (_, fragments, rest) = model::decode(changeset);
        let mut job = Job {
            gid,
            depends_on,
            changes: Vec::new(),
            has_only_rows: fragments.is_empty(),
            fragments: (0..).zip(fragments).collect(),
            rest,
        };
        assert!(
            job.has_only_rows && self.jobs.iter().all(|job| job.has_only_rows)
                || self.jobs.is_empty(),
            "helper {} gets GID {gid} and something else, and waits for fragments of one",
            self.number
        );
        let wants = job.wants();
        self.jobs.push_back(job);
        wants
    }

    /// What it is told of a transaction that it may begin early, of which it only takes and reads the
    /// fragments; which it wants then. `None`: it stops.
    pub fn early(&mut self, first: u64, what: &Early) -> Option<u32> {
        assert!(
            self.jobs.is_empty(),
            "helper {} is busy and is told of {first}: {what:?}",
            self.number
        );
        match what {
            Early::Begin { .. } => {
                self.early = 0;
                Some(0)
            }
            Early::Fragment {
                nth,
                counted,
                bytes,
                ..
            } => {
                assert_eq!(
                    *nth, self.early,
                    "helper {} did not ask for it",
                    self.number
                );
                self.early += 1;
                model::decode_fragment(bytes, *counted);
                Some(nth + 1)
            }
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

    pub fn owner(&self) -> Owner {
        Owner::Helper(self.number)
    }

    /// How many of its jobs, from the first on, may be applied together: those of consecutive GIDs that
    /// have only changes of rows (`src/apply/run.rs`).
    pub fn length(&self) -> usize {
        let mut length = 0;
        for job in &self.jobs {
            let follows = length == 0 || job.gid == self.jobs[length - 1].gid.next();
            if !job.has_only_rows || !follows {
                break;
            }
            length += 1;
        }
        length.max(1)
    }

    /// The first and the last GID of the transaction that is under way; the first is its place when
    /// others meet it.
    pub fn positions(&self) -> Option<(Gid, Gid)> {
        let attempt = self.attempt.as_ref()?;
        Some((self.jobs[0].gid, self.jobs[attempt.length - 1].gid))
    }

    /// What the transaction that is under way has done so far.
    pub fn done(&self) -> Vec<Change> {
        let Some(attempt) = &self.attempt else {
            return Vec::new();
        };
        let whole = self.jobs.iter().take(attempt.at);
        let mut done: Vec<Change> = whole.flat_map(|job| job.changes.clone()).collect();
        if attempt.at < attempt.length {
            done.extend(&self.jobs[attempt.at].changes[..attempt.applied]);
        }
        done
    }

    /// Its process ends, and another begins.
    pub fn end(&mut self) {
        *self = Helper::new(self.number);
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
