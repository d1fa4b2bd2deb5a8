//! Helper processes: started, watched and started again by the coordinator.

use super::{elog, guard, sys};
use crate::imsg::SlotNo;
use std::ffi::c_int;

unsafe extern "C" {
    fn pgr_shim_start_helper(
        number: u32,
        started: *mut bool,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_helper_ended(number: u32) -> bool;
    fn pgr_shim_stop_helpers();
}

/// Ticks before a helper that ended is started again; doubled each time it ends without having
/// been ready.
const PAUSE_TICKS: u32 = 5;
/// The longest such pause.
const PAUSE_TICKS_MAX: u32 = 600;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// To be started when so many ticks have passed.
    Due(u32),
    /// Asked of the postmaster.
    Starting,
    /// At work in this slot.
    Ready(SlotNo),
}

impl Life {
    /// The transition table.
    fn allows(self, next: Life) -> bool {
        matches!(
            (self, next),
            (Life::Due(_), Life::Due(_) | Life::Starting)
                | (Life::Starting, Life::Ready(_) | Life::Due(_))
                | (Life::Ready(_), Life::Due(_))
        )
    }
}

struct Helper {
    life: Life,
    pause: u32,
}

impl Helper {
    fn become_(&mut self, next: Life) {
        assert!(
            self.life.allows(next),
            "a helper can't go from {:?} to {next:?}",
            self.life
        );
        self.life = next;
    }
}

/// All of them, by number; 0 is the one kept for the next GID to commit.
pub struct Helpers {
    helpers: Vec<Helper>,
    begun: bool,
    /// Found to have ended at the last tick.
    ended: Vec<u32>,
}

impl Helpers {
    /// `ordinary` helpers and number 0. None is started before the first tick.
    #[must_use]
    pub fn new(ordinary: u32) -> Helpers {
        let helpers = (0..=ordinary)
            .map(|_| Helper {
                life: Life::Due(0),
                pause: PAUSE_TICKS,
            })
            .collect();
        Helpers {
            helpers,
            begun: false,
            ended: Vec::new(),
        }
    }

    /// Starts what can be started now. Called when there is a database to work in.
    pub fn begin(&mut self) {
        self.begun = true;
        self.start_due();
    }

    /// A tick has passed.
    pub fn tick(&mut self) {
        for helper in &mut self.helpers {
            if let Life::Due(ticks) = helper.life {
                helper.life = Life::Due(ticks.saturating_sub(1));
            }
        }
        for (number, helper) in self.helpers.iter().enumerate() {
            if matches!(helper.life, Life::Due(_)) {
                continue;
            }
            // SAFETY: reads what the postmaster says of a worker of ours.
            if unsafe { pgr_shim_helper_ended(number as u32) } {
                self.ended.push(number as u32);
            }
        }
        if self.begun {
            self.start_due();
        }
    }

    fn start_due(&mut self) {
        for (number, helper) in self.helpers.iter_mut().enumerate() {
            if helper.life != Life::Due(0) {
                continue;
            }
            // SAFETY: the coordinator is a process that may register workers; numbers are bounded
            // by the setting's limit.
            let started = guard::call(false, |out, e| unsafe {
                pgr_shim_start_helper(number as u32, out, e)
            });
            match started {
                Ok(true) => helper.become_(Life::Starting),
                // No slot is free yet: one whose process has just ended comes back soon.
                Ok(false) => helper.become_(Life::Due(PAUSE_TICKS)),
                Err(e) => {
                    elog::log(
                        sys::WARNING,
                        &format!("could not start replication helper {number}: {e}"),
                    );
                    helper.become_(Life::Due(PAUSE_TICKS_MAX));
                }
            }
        }
    }

    /// A helper says that it is ready in a slot; false if nobody started one of that number.
    pub fn ready(&mut self, number: u32, slot: SlotNo) -> bool {
        match self.helpers.get_mut(number as usize) {
            Some(helper) if helper.life == Life::Starting => {
                helper.become_(Life::Ready(slot));
                helper.pause = PAUSE_TICKS;
                true
            }
            _ => false,
        }
    }

    /// Where a helper works.
    #[must_use]
    pub fn slot(&self, number: u32) -> Option<SlotNo> {
        match self.helpers.get(number as usize)?.life {
            Life::Ready(slot) => Some(slot),
            _ => None,
        }
    }

    /// Which helper works in a slot.
    #[must_use]
    pub fn number(&self, slot: SlotNo) -> Option<u32> {
        let at = self
            .helpers
            .iter()
            .position(|h| h.life == Life::Ready(slot))?;
        u32::try_from(at).ok()
    }

    /// A helper has ended; true if it was ready.
    pub fn gone(&mut self, number: u32) -> bool {
        let helper = &mut self.helpers[number as usize];
        let was_ready = match helper.life {
            Life::Due(_) => return false,
            Life::Starting => false,
            Life::Ready(_) => true,
        };
        helper.become_(Life::Due(helper.pause));
        helper.pause = (helper.pause * 2).min(PAUSE_TICKS_MAX);
        was_ready
    }

    /// Helpers whose process has ended, however that came; each is told once.
    pub fn take_ended(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.ended)
    }
}

/// Tells all helpers that this process has started to end. Raises nothing.
pub fn stop_all() {
    // SAFETY: handles of workers that this process has started.
    unsafe { pgr_shim_stop_helpers() };
}
