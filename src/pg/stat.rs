//! Rows of `pg_stat_replication_group`, `pg_stat_replication_members`, `pg_stat_replication_conflicts` and
//! `pg_stat_replication_open_transactions`.

use super::guard::{self, Result};
use super::{shmem, sys, text};
use crate::group_state::GroupState;
use crate::ids::Gid;
use crate::imsg::Control;
use crate::imsg::conflicts::Kind;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

unsafe extern "C" {
    fn pgr_shim_rows_begin(
        call: sys::FunctionCallInfo,
        out: *mut *mut c_void,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_rows_add(
        call: sys::FunctionCallInfo,
        state: *mut c_void,
        values: *const *const c_char,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_database_name(
        oid: u32,
        out: *mut *const c_char,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
}

/// Result of a set-returning function, built row by row from the text of its columns.
struct Rows {
    call: sys::FunctionCallInfo,
    state: *mut c_void,
}

impl Rows {
    /// # Safety
    /// `call` is what a set-returning function was called with.
    unsafe fn begin(call: sys::FunctionCallInfo) -> Result<Rows> {
        // SAFETY: by the caller.
        let state = guard::call(ptr::null_mut(), |out, e| unsafe {
            pgr_shim_rows_begin(call, out, e)
        })?;
        Ok(Rows { call, state })
    }

    fn add(&mut self, columns: &[Option<String>]) -> Result<()> {
        let texts: Vec<Option<CString>> = columns
            .iter()
            .map(|c| {
                c.as_ref()
                    .map(|t| CString::new(t.replace('\0', "?")).unwrap_or_default())
            })
            .collect();
        let values: Vec<*const c_char> = texts
            .iter()
            .map(|t| t.as_ref().map_or(ptr::null(), |t| t.as_ptr()))
            .collect();
        // SAFETY: one C string or null for each column of the function, alive during the call.
        guard::call0(|e| unsafe { pgr_shim_rows_add(self.call, self.state, values.as_ptr(), e) })
    }
}

fn null() -> sys::Datum {
    0
}

fn some(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

fn database_name(oid: u32) -> Result<Option<String>> {
    // SAFETY: the answer is null or a C string that lives in the current memory context.
    let name = guard::call(ptr::null(), |out, e| unsafe {
        pgr_shim_database_name(oid, out, e)
    })?;
    if name.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, see above.
    let text = unsafe { std::ffi::CStr::from_ptr(name) };
    Ok(Some(text.to_string_lossy().into_owned()))
}

/// Begins a result, which stays empty without a group.
///
/// # Safety
/// `call` is what the SQL function was called with.
unsafe fn begin(call: sys::FunctionCallInfo) -> Result<Option<(Rows, &'static Control)>> {
    // SAFETY: by the caller.
    let rows = unsafe { Rows::begin(call) }?;
    let control = shmem::try_shared().map(|shared| shared.control());
    Ok(control
        .filter(|c| c.database.load(Relaxed) != 0)
        .map(|c| (rows, c)))
}

/// One row for the group of this server, none without one.
///
/// # Safety
/// `call` is what the SQL function was called with.
pub unsafe fn group(call: sys::FunctionCallInfo) -> Result<sys::Datum> {
    // SAFETY: by the caller.
    let Some((mut rows, c)) = unsafe { begin(call) }? else {
        return Ok(null());
    };
    let database = c.database.load(Relaxed);
    let state = GroupState::from_u32(c.state.load(Relaxed)).unwrap_or_default();
    let failure = Some(c.failure.get()).filter(|f| state == GroupState::Failed && !f.is_empty());
    let members = c.members.get();
    let n = &c.counters;
    // What is committed is ordered, though the coordinator may not have had the time to say so.
    let committed = c.visible.passed();
    let ordered = Gid(c.ordered_gid.load(Relaxed)).max(committed);
    rows.add(&[
        some(c.group_name.get()),
        database_name(database)?,
        some(state.name()),
        some(c.member.load(Relaxed)),
        some(c.incarnation.load(Relaxed)),
        some(committed),
        some(ordered),
        some(c.flushed_gid.load(Relaxed)),
        some(c.apply_queue.load(Relaxed)),
        some(c.in_flight.load(Relaxed)),
        some(members.len()),
        some(members.iter().filter(|m| m.voter).count()),
        some(n.commits.load(Relaxed)),
        some(n.applied.load(Relaxed)),
        some(c.conflicts.total(Kind::Certification) + c.conflicts.total(Kind::BelowFloor)),
        some(c.conflicts.total(Kind::Victim)),
        some(n.replays.load(Relaxed)),
        some(n.helper_errors.load(Relaxed)),
        some(n.trigger_errors.load(Relaxed)),
        some(n.changeset_bytes.load(Relaxed)),
        failure,
    ])?;
    Ok(null())
}

/// One row a member of the group, by number.
///
/// # Safety
/// `call` is what the SQL function was called with.
pub unsafe fn members(call: sys::FunctionCallInfo) -> Result<sys::Datum> {
    // SAFETY: by the caller.
    let Some((mut rows, c)) = unsafe { begin(call) }? else {
        return Ok(null());
    };
    let me = c.member.load(Relaxed);
    for m in c.members.get() {
        rows.add(&[
            some(m.id),
            some(&m.address),
            some(if m.voter { "voter" } else { "learner" }),
            some(u32::from(m.id.0) == me),
            some(m.connected),
            some(m.last_committed),
            some(m.flushed),
        ])?;
    }
    Ok(null())
}

/// One row a large transaction of any member that is open.
///
/// # Safety
/// `call` is what the SQL function was called with.
pub unsafe fn open_transactions(call: sys::FunctionCallInfo) -> Result<sys::Datum> {
    // SAFETY: by the caller.
    let Some((mut rows, c)) = unsafe { begin(call) }? else {
        return Ok(null());
    };
    for t in c.open_transactions.get() {
        rows.add(&[some(t.member), some(t.fragments), some(t.bytes)])?;
    }
    Ok(null())
}

/// One row a relation with conflicts; one without a relation for all others.
///
/// # Safety
/// `call` is what the SQL function was called with.
pub unsafe fn conflicts(call: sys::FunctionCallInfo) -> Result<sys::Datum> {
    // SAFETY: by the caller.
    let Some((mut rows, c)) = unsafe { begin(call) }? else {
        return Ok(null());
    };
    let began = c.conflicts.began.load(Relaxed).cast_signed();
    for (relation, counts) in c.conflicts.rows() {
        let mut columns = vec![(relation != 0).then(|| relation.to_string())];
        columns.extend(counts.iter().map(some));
        columns.push(some(text::timestamp(began)));
        rows.add(&columns)?;
    }
    Ok(null())
}
