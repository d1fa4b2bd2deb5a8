//! Triggers, as trigger.c calls them, and what they may not do in a helper.

use crate::capture::trigger;
use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::{sys, trigger as called};

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_begin_trigger(data: *const sys::TriggerData) -> bool {
    boundary_nofail(|| {
        let outer = trigger::is_redone();
        // SAFETY: what the trigger is about to be called with.
        trigger::set_redone(unsafe { called::is_redone(data, outer) });
        outer
    })
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_end_trigger(outer: bool) {
    boundary_nofail(|| trigger::set_redone(outer));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_refuse_notify() {
    boundary::<()>(|| Err(trigger::refused("NOTIFY")));
}
