//! Workers of subscriptions.

use crate::pg::guard::boundary_nofail;
use crate::pg::subscription;

#[unsafe(no_mangle)]
extern "C" fn pgr_runs_subscriptions(database: u32) -> bool {
    boundary_nofail(|| subscription::are_run_here(database))
}
