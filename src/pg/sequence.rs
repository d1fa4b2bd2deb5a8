//! Sequences: their tuples, their rules, and the lock round the values that this server has of them.

use super::guard::{self, Result};
use super::relation::{self, Handle};
use super::{shmem, sys};
use crate::imsg::ranges::Ranges;
use crate::sequence::range::{Rule, State};
use std::ffi::c_int;

/// `PgrSequence` of shim_sequence.h.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    last_value: i64,
    tag: u32,
    is_called: bool,
    logged_ahead: bool,
}

/// `PgrSequenceRule` of shim_sequence.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct PgrSequenceRule {
    increment: i64,
    min: i64,
    max: i64,
    cache: i64,
    cycle: bool,
}

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_ranges_lock();
    fn pgr_shim_ranges_unlock();
    fn pgr_shim_sequence_read(rel: Handle, out: *mut Tuple, e: Edata) -> c_int;
    fn pgr_shim_sequence_write(
        rel: Handle,
        expected: *const Tuple,
        new: *const Tuple,
        done: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_sequence_rule(oid: u32, out: *mut PgrSequenceRule, e: Edata) -> c_int;
    fn pgr_shim_sequence_is_new(rel: Handle) -> bool;
    fn pgr_shim_permanent_sequences(out: *mut *mut sys::List, e: Edata) -> c_int;
}

impl Tuple {
    /// A sequence that stands there. `tag` names the change of the group that brought it there, 0 if
    /// it need not be known.
    #[must_use]
    pub fn new(state: State, tag: u32) -> Tuple {
        Tuple {
            last_value: state.last,
            tag,
            is_called: state.called,
            logged_ahead: false,
        }
    }

    /// Where the sequence stands.
    #[must_use]
    pub fn state(self) -> State {
        State {
            last: self.last_value,
            called: self.is_called,
        }
    }

    /// See [`Tuple::new`].
    #[must_use]
    pub fn tag(self) -> u32 {
        self.tag
    }

    /// It is in WAL as it is, and nothing of an earlier group is left in it.
    #[must_use]
    pub fn is_settled(self) -> bool {
        !self.logged_ahead && self.tag == 0
    }
}

/// Does something with the values that this server has. `body` calls nothing of PostgreSQL's.
pub fn with_ranges<T>(body: impl FnOnce(&Ranges) -> T) -> T {
    /// Releases the lock, also when `body` panics.
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: taken below by this process.
            unsafe { pgr_shim_ranges_unlock() };
        }
    }
    let ranges = &shmem::shared().control().ranges;
    // SAFETY: the process has a PGPROC, and takes no other lock while it holds this one.
    unsafe { pgr_shim_ranges_lock() };
    let _release = Release;
    body(ranges)
}

/// The tuple of an open sequence.
pub fn read(rel: Handle) -> Result<Tuple> {
    // SAFETY: an open relation; whether it is a sequence is looked at.
    guard::call(
        Tuple::new(
            State {
                last: 0,
                called: false,
            },
            0,
        ),
        |out, e| unsafe { pgr_shim_sequence_read(rel, out, e) },
    )
}

/// Replaces it, at once and for all to see; false if it is not as `expected`.
pub fn write(rel: Handle, expected: Option<Tuple>, new: Tuple) -> Result<bool> {
    let expected = expected
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: as in `read`; the tuples are live locals.
    guard::call(false, |out, e| unsafe {
        pgr_shim_sequence_write(rel, expected, &raw const new, out, e)
    })
}

/// How a sequence goes on, and its CACHE.
pub fn rule(oid: u32) -> Result<(Rule, i64)> {
    let nothing = PgrSequenceRule {
        increment: 0,
        min: 0,
        max: 0,
        cache: 0,
        cycle: false,
    };
    // SAFETY: looks into a system cache.
    let found = guard::call(nothing, |out, e| unsafe {
        pgr_shim_sequence_rule(oid, out, e)
    })?;
    let PgrSequenceRule {
        increment,
        min,
        max,
        cache,
        cycle,
    } = found;
    let rule = Rule {
        increment,
        min,
        max,
        cycle,
    };
    Ok((rule, cache))
}

/// Whether its storage was made in the current transaction, which alone sees it.
#[must_use]
pub fn is_new(rel: Handle) -> bool {
    // SAFETY: an open relation.
    unsafe { pgr_shim_sequence_is_new(rel) }
}

/// OIDs of the permanent sequences of this database.
pub fn permanent() -> Result<Vec<u32>> {
    // SAFETY: reads a catalog.
    let list = guard::call(std::ptr::null_mut(), |out, e| unsafe {
        pgr_shim_permanent_sequences(out, e)
    })?;
    // SAFETY: the answer is a list of OIDs.
    Ok(unsafe { relation::oids(list) })
}
