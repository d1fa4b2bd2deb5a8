//! Workers of subscriptions.

use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::subscription;
use crate::worker::consistency;

#[unsafe(no_mangle)]
extern "C" fn pgr_runs_subscriptions(database: u32) -> bool {
    boundary_nofail(|| subscription::are_run_here(database))
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_subscription_begins(start: u64) {
    boundary(|| consistency::before_subscription(start));
}
