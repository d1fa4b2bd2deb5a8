//! When may writers write: after this member has caught up with the order, and while a majority
//! follows a leader that it knows. A short loss (a change of leader) is waited for, so that
//! commits only take longer; after [`Pace::quorum_ticks`](super::Pace) they are refused.

use crate::ids::Gid;

/// See the module.
#[derive(Debug)]
pub struct Opening {
    quorum_ticks: u32,
    /// Last GID that was ordered when everything the group had committed was delivered here.
    target: Option<Gid>,
    primary: bool,
    lost_ticks: u32,
}

impl Opening {
    /// Closed, without a majority.
    pub fn new(quorum_ticks: u32) -> Opening {
        Opening {
            quorum_ticks,
            target: None,
            primary: false,
            lost_ticks: 0,
        }
    }

    /// The engine's word on the majority.
    pub fn primary(&mut self, primary: bool) {
        self.primary = primary;
        self.lost_ticks = 0;
    }

    /// All that the group had committed is delivered, up to `ordered`.
    pub fn caught_up(&mut self, ordered: Gid) {
        self.target = Some(ordered);
    }

    /// A tick passed; true when the majority has been missing for long enough.
    pub fn tick(&mut self) -> bool {
        if self.primary {
            return false;
        }
        self.lost_ticks = self.lost_ticks.saturating_add(1);
        self.lost_ticks >= self.quorum_ticks
    }

    /// All that was ordered before is committed here too, and there is a majority.
    pub fn opens(&self, last_committed: Gid) -> bool {
        self.primary && self.target.is_some_and(|target| last_committed >= target)
    }

    /// Reports of this member reach the order.
    pub fn may_send(&self) -> bool {
        self.primary && self.target.is_some()
    }
}
