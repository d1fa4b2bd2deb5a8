//! START REPLICATION before there is a group: what the server's other processes go by.
//!
//! The group begins with what is committed in the database, and everything else must come to it as a
//! changeset. So transactions are captured before it is formed, and it is formed when none is left
//! that was not captured from its beginning. Until then their commits are those of an ordinary
//! database; while the last of these finish, and the group is formed, further ones wait.

use super::guard::Result;
use super::{host, latch, shmem, sys, transaction};
use crate::imsg::layout::phase;
use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How far START has come (`Server::start_stage`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Stage {
    /// None is under way.
    None = 0,
    /// New transactions of the database are captured; their commits need no group.
    Capturing = 1,
    /// Their commits wait for the group.
    Closed = 2,
    /// The coordinator forms it: START can't be withdrawn any more.
    Forming = 3,
}

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// How often START looks whether the last commits without a group have ended.
const LOOK_AROUND: Duration = Duration::from_millis(10);

/// How far START has come.
#[must_use]
pub fn stage() -> Stage {
    match shmem::server().start_stage.load(Ordering::SeqCst) {
        0 => Stage::None,
        1 => Stage::Capturing,
        2 => Stage::Closed,
        3 => Stage::Forming,
        other => unreachable!("no stage of START REPLICATION is {other}"),
    }
}

/// The database whose transactions are captured before it has a group, 0 for none.
#[must_use]
pub fn database() -> u32 {
    shmem::server().start_database.load(Ordering::SeqCst)
}

/// START in this session, until the coordinator takes it over; withdrawn when dropped before.
#[must_use]
pub struct Starting(());

impl Starting {
    /// From here on transactions of `database` that begin, or get their XID, are captured. The
    /// session holds the claim.
    pub fn begin(database: u32) -> Result<Starting> {
        // A terminated session drops nothing.
        if !WATCHED.replace(true) {
            transaction::before_exit(on_exit)?;
        }
        let server = shmem::server();
        server.start_database.store(database, Ordering::SeqCst);
        assert!(
            step(Stage::None, Stage::Capturing),
            "the claim's owner is alone"
        );
        host::tell_all();
        Ok(Starting(()))
    }

    /// From here on commits wait for the group. Returns when those that do not have ended.
    pub fn close(&self) -> Result<()> {
        assert!(
            step(Stage::Capturing, Stage::Closed),
            "the claim's owner is alone"
        );
        let slots = shmem::shared().slots();
        while slots
            .iter()
            .any(|s| s.phase.load(Ordering::SeqCst) == phase::LOCAL)
        {
            latch::sleep_interruptible(
                Some(LOOK_AROUND),
                sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY,
            )?;
        }
        Ok(())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        withdraw();
    }
}

/// Of the session that holds the claim. Does nothing once the coordinator has taken START over.
fn withdraw() {
    if step(Stage::Capturing, Stage::None) || step(Stage::Closed, Stage::None) {
        shmem::server().start_database.store(0, Ordering::SeqCst);
        host::tell_all();
    }
}

extern "C" fn on_exit(_code: c_int, _argument: sys::Datum) {
    super::guard::boundary_nofail(|| {
        // SAFETY: a variable of the process.
        let me = unsafe { sys::MyProcPid }.cast_unsigned();
        if shmem::server().command_pid.load(Ordering::SeqCst) == me {
            withdraw();
        }
    });
}

/// The coordinator takes START over; false if it was withdrawn.
#[must_use]
pub fn take() -> bool {
    step(Stage::Closed, Stage::Forming)
}

/// The coordinator has formed the group, or leaves nothing of it behind.
pub fn end() {
    if stage() == Stage::Forming {
        // In the opposite order of that in which others look: there is always one that says it.
        let server = shmem::server();
        server.start_database.store(0, Ordering::SeqCst);
        assert!(
            step(Stage::Forming, Stage::None),
            "the coordinator is alone"
        );
        host::tell_all();
    }
}

fn step(from: Stage, to: Stage) -> bool {
    shmem::server()
        .start_stage
        .compare_exchange(from as u32, to as u32, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}
