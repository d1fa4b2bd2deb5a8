//! Processes of the server: what the postmaster starts, and whom the gate lets in.

use super::guard::{self, PgError, Result};
use super::{ddl, errors, guc, shmem, sys};
use crate::group_state::GroupState;
use std::ffi::c_int;
use std::os::fd::IntoRawFd;
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_register_coordinator(
        restart_seconds: c_int,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_is_client() -> bool;
    fn pgr_shim_in_recovery() -> bool;
}

/// Seconds after which the postmaster starts a coordinator again that ended with an error.
const COORDINATOR_RESTART_SECONDS: c_int = 2;

/// In the postmaster, before it reads shared_preload_libraries: all that later processes inherit.
pub fn postmaster_start() -> Result<()> {
    guard::install_panic_hook();
    if guc::gcs().is_none() {
        return Ok(());
    }
    let wake = nix::sys::eventfd::EventFd::from_value_and_flags(
        0,
        nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC,
    )
    .map_err(|e| PgError::new("58000", format!("could not create an eventfd: {e}")))?;
    // Every process of the server inherits it; it is never closed.
    shmem::set_wake_fd(std::os::fd::OwnedFd::from(wake).into_raw_fd());
    ddl::install_refusals();
    errors::install();
    // SAFETY: in the postmaster, where static workers are registered.
    guard::call0(|e| unsafe { pgr_shim_register_coordinator(COORDINATOR_RESTART_SECONDS, e) })
}

/// Lets this process into its database, or says why not.
pub fn gate() -> Result<()> {
    let Some(shared) = shmem::try_shared() else {
        return Ok(());
    };
    let control = shared.control();
    // SAFETY: variables and state of this process.
    let (mine, client, standby) = unsafe {
        (
            sys::MyDatabaseId,
            pgr_shim_is_client(),
            pgr_shim_in_recovery(),
        )
    };
    if mine == 0 || control.database.load(Ordering::SeqCst) != mine || !client || standby {
        return Ok(());
    }
    let state = GroupState::from_u32(control.state.load(Ordering::SeqCst)).unwrap_or_default();
    let group = control.group_name.get();
    let closed = |why: &str, hint: &str| {
        PgError::new(
            "57P03",
            "the replicated database is not open on this server",
        )
        .detail(format!("{why} replication group \"{group}\"."))
        .hint(hint)
    };
    let other = "Connect to another member of the group.";
    match state {
        GroupState::Online | GroupState::NoQuorum => Ok(()),
        GroupState::Off | GroupState::Recovering if guc::gcs().is_none() => Err(closed(
            "\"replication_gcs\" is not set, and the database belongs to",
            "Set \"replication_gcs\" and restart the server.",
        )),
        GroupState::Off | GroupState::Recovering => Err(closed(
            "It is catching up with",
            "Try again in a moment, or connect to another member of the group.",
        )),
        GroupState::Joining => Err(closed("It is joining", other)),
        GroupState::Left => Err(closed("It is leaving", "Try again in a moment.")),
        GroupState::Failed => {
            let reason = control.failure.get();
            Err(closed(
                &format!("It has failed ({reason}) as a member of"),
                other,
            ))
        }
    }
}
