//! Those who are in the way of a helper: who they are, and telling them.

use super::guard::{self, Result};
use super::sys;
use crate::ids::{Gid, MemberId};
use crate::imsg::ProcSlot;
use std::ffi::c_int;
use std::sync::atomic::Ordering;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_lock_conflicts(
        tag: *const sys::LOCKTAG,
        mode: c_int,
        out: *mut *mut sys::VirtualTransactionId,
        n: *mut c_int,
        prepared: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_signal_victim(vxid: sys::VirtualTransactionId, pid: *mut c_int, e: Edata) -> c_int;
    fn pgr_shim_look_again_in(milliseconds: c_int, e: Edata) -> c_int;
    fn pgr_shim_terminate(pid: c_int);
    fn pgr_shim_is_autovacuum(process: c_int) -> bool;
}

/// A transaction that runs in a process of this server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    /// The process's number.
    pub process: i32,
    /// Which of its transactions.
    pub id: u32,
}

impl Local {
    fn vxid(self) -> sys::VirtualTransactionId {
        sys::VirtualTransactionId {
            procNumber: self.process,
            localTransactionId: self.id,
        }
    }
}

/// For whom somebody has to give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cause {
    /// Its position.
    pub gid: Gid,
    /// Where it came from.
    pub origin: MemberId,
    /// What it is at work on, 0 if unknown.
    pub relation: u32,
}

/// Those that hold what a lock conflicts with.
pub struct Blockers {
    /// Transactions that run.
    pub running: Vec<Local>,
    /// Whether there is a prepared transaction among them, which nobody can tell anything.
    pub prepared: bool,
}

/// Transactions that hold what a lock of this mode conflicts with.
pub fn blockers(tag: &sys::LOCKTAG, mode: i32) -> Result<Blockers> {
    let (mut list, mut n, mut prepared) = (std::ptr::null_mut(), 0, false);
    // SAFETY: a lock tag of the lock manager; the answer is palloc'd.
    guard::call0(|e| unsafe {
        pgr_shim_lock_conflicts(tag, mode, &raw mut list, &raw mut n, &raw mut prepared, e)
    })?;
    // SAFETY: n entries, as the lock manager says.
    let found = unsafe { std::slice::from_raw_parts(list, n as usize) };
    let local = found.iter().map(|v| Local {
        process: v.procNumber,
        id: v.localTransactionId,
    });
    let running = local.collect();
    // SAFETY: palloc'd by the lock manager for its caller.
    unsafe { sys::pfree(list.cast()) };
    Ok(Blockers { running, prepared })
}

/// Asks a transaction to abort; its process's id, or `None` if it is over.
pub fn tell(slot: &ProcSlot, victim: Local, cause: Cause) -> Result<Option<i32>> {
    slot.victim_gid.store(cause.gid.0, Ordering::Relaxed);
    slot.victim_origin
        .store(cause.origin.0.into(), Ordering::Relaxed);
    slot.victim_relation
        .store(cause.relation, Ordering::Relaxed);
    slot.victim_ticket
        .store(victim.id.into(), Ordering::Release);
    let mut pid = 0;
    // SAFETY: finds the process by what it runs, under the lock of the process array.
    guard::call0(|e| unsafe { pgr_shim_signal_victim(victim.vxid(), &raw mut pid, e) })?;
    Ok((pid != 0).then_some(pid))
}

/// Whether it is an autovacuum worker, which gives way by itself where it holds a strong lock.
#[must_use]
pub fn is_autovacuum(local: Local) -> bool {
    // SAFETY: reads a flag of a process slot, by its number.
    unsafe { pgr_shim_is_autovacuum(local.process) }
}

/// Has this process's latch set after a while, so that a wait for a lock looks again who is in the
/// way: another holder can come without waking us.
pub fn look_again_in(milliseconds: i32) -> Result<()> {
    // SAFETY: a timer of this process.
    guard::call0(|e| unsafe { pgr_shim_look_again_in(milliseconds, e) })
}

/// Ends a process that can't answer: it is blocked writing to, or reading from, its client.
pub fn terminate(pid: i32) {
    // SAFETY: sends SIGTERM, which backends handle.
    unsafe { pgr_shim_terminate(pid) };
}
