//! The commit of a transaction, as xact.c goes through it.

use crate::apply::helper;
use crate::ids::Gid;
use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::{backend, commit_gid, latch, sys};
use crate::worker::{commit, gate};

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_commit_gid: sys::xl_xact_repl_gid = sys::xl_xact_repl_gid {
    group_id: 0,
    gid: 0,
};

#[unsafe(no_mangle)]
extern "C" fn pgr_do_pre_commit() -> bool {
    boundary(|| {
        let commits = if backend::is_helper() {
            helper::pre_commit()
        } else {
            commit::pre_commit()
        }?;
        if commit_gid::get() != Gid::ZERO {
            // What goes wrong from here to the commit record must not end in a rollback.
            latch::fail_point(c"replication-commit-turn")?;
        }
        Ok(commits)
    })
}

#[unsafe(no_mangle)]
extern "C" fn pgr_replay_wait() {
    boundary(commit::replay_wait);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_commit_logged(end: u64) {
    boundary_nofail(|| gate::logged(end));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_commit_visible_wait() {
    boundary_nofail(gate::wait_visible);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_commit_visible_done() {
    boundary_nofail(gate::visible);
}
