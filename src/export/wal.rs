//! The position in the group over checkpoints and crashes.

use crate::group_file::{self, State};
use crate::group_state::GroupState;
use crate::ids::{Gid, GroupId, Oid};
use crate::pg::guard::{self, PgError, Result, boundary};
use crate::pg::{elog, guc, shmem, sys};
use std::ffi::c_int;
use std::path::Path;
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_wal_flush(upto: u64, edata: *mut *mut sys::ErrorData) -> c_int;
}

#[unsafe(no_mangle)]
extern "C" fn pgr_startup() {
    boundary(startup);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_checkpoint() {
    boundary(checkpoint);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_redo_commit(group: u64, gid: u64, end: u64) {
    boundary(|| {
        redo_commit(GroupId(group), Gid(gid), end);
        Ok(())
    });
}

fn startup() -> Result<()> {
    let Some(shared) = shmem::try_shared() else {
        return Ok(());
    };
    let read = State::read(Path::new(shmem::DATA_DIR));
    let found = read.map_err(|e| {
        PgError::new(
            "XX001",
            format!("could not read file \"{}\": {e}", group_file::NAME),
        )
        .hint("Restore this server from a copy of another member.")
    })?;
    let Some(state) = found else { return Ok(()) };
    let control = shared.control();
    control.group_id.store(state.group.0, Ordering::Relaxed);
    control.group_name.set(&state.name);
    recovered(state.gid);
    control
        .state
        .store(GroupState::Recovering as u32, Ordering::Relaxed);
    control.database.store(state.database.0, Ordering::SeqCst);
    control.epoch.fetch_add(1, Ordering::SeqCst);
    if guc::gcs().is_none() {
        let name = &state.name;
        elog::log(
            sys::WARNING,
            &format!(
                "the database of replication group \"{name}\" stays closed: \"replication_gcs\" is not set"
            ),
        );
    }
    Ok(())
}

fn redo_commit(group: GroupId, gid: Gid, end: u64) {
    let Some(shared) = shmem::try_shared() else {
        return;
    };
    // Commits of a group that this server is no longer in leave no trace.
    if shared.control().group_id.load(Ordering::Relaxed) == group.0 {
        // Before the GID, which a restartpoint reads first.
        shmem::server().logged_lsn.store(end, Ordering::Relaxed);
        recovered(gid);
    }
}

/// The data holds every GID up to this one. Only the startup process moves these, and only up.
fn recovered(gid: Gid) {
    let control = shmem::shared().control();
    if gid.0 > control.recovered_gid.load(Ordering::Relaxed) {
        control.recovered_gid.store(gid.0, Ordering::Relaxed);
        control.logged.start(gid);
        control.visible.start(gid);
    }
}

fn checkpoint() -> Result<()> {
    let Some(shared) = shmem::try_shared() else {
        return Ok(());
    };
    let control = shared.control();
    if control.database.load(Ordering::SeqCst) == 0 {
        return Ok(());
    }
    // Every commit record before the redo point has passed its turn: its backend delayed the
    // checkpoint until then. The position in WAL is read after the GID, so it covers it.
    let gid = control.logged.passed();
    let lsn = shmem::server().logged_lsn.load(Ordering::Relaxed);
    if lsn != 0 {
        // The file must not know more than the WAL that survives a crash; nor, in recovery, than a
        // copy of this server replays before it is consistent: there this moves minRecoveryPoint.
        // SAFETY: `lsn` is the end of a record that was inserted or replayed.
        guard::call0(|e| unsafe { pgr_shim_wal_flush(lsn, e) })?;
    }
    shmem::with_state_lock(|| {
        // STOP REPLICATION removes the file under the same lock.
        let database = Oid(control.database.load(Ordering::SeqCst));
        if database == Oid(0) {
            return Ok(());
        }
        let state = State {
            group: GroupId(control.group_id.load(Ordering::Relaxed)),
            name: control.group_name.get(),
            database,
            gid,
        };
        state.write(Path::new(shmem::DATA_DIR))
    })
    .map_err(|e| {
        PgError::new(
            "58030",
            format!("could not write file \"{}\": {e}", group_file::NAME),
        )
    })
}
