//! A connection between two servers. Its two ends do not see it end at the same time: what has
//! arrived in a system's buffers is read before the end is, also when its sender is gone.

use std::collections::VecDeque;

#[derive(Default)]
pub struct Link {
    pub up: bool,
    /// Counts the connections that there were.
    pub epoch: u64,
    /// From the lower site to the higher, and back.
    ways: [Way; 2],
}

impl Link {
    pub fn way(&mut self, from: usize, to: usize) -> &mut Way {
        &mut self.ways[usize::from(from > to)]
    }

    /// A connection begins; what is under way on the one before is lost.
    pub fn begin(&mut self, now: u64) {
        self.up = true;
        self.epoch += 1;
        for way in &mut self.ways {
            *way = Way {
                open: way.open,
                epoch: self.epoch,
                upto: u64::MAX,
                last: now,
                ..Way::default()
            };
        }
    }
}

/// One direction, and what its receiver sees.
#[derive(Default)]
pub struct Way {
    /// The receiver has seen a connection begin and not end.
    pub open: bool,
    pub epoch: u64,
    /// Frames up to this number arrive.
    upto: u64,
    sent: u64,
    /// When the last one arrives: a connection keeps its order.
    last: u64,
    /// Number and time of those under way.
    flight: VecDeque<(u64, u64)>,
}

impl Way {
    /// Number and time of the next frame.
    pub fn send(&mut self, at: u64) -> (u64, u64) {
        self.sent += 1;
        self.last = self.last.max(at);
        self.flight.push_back((self.sent, self.last));
        (self.sent, self.last)
    }

    /// Whether a frame arrives that is due now.
    pub fn arrives(&mut self, epoch: u64, number: u64) -> bool {
        if epoch != self.epoch {
            return false;
        }
        while self.flight.front().is_some_and(|f| f.0 <= number) {
            self.flight.pop_front();
        }
        self.open && number <= self.upto
    }

    pub fn under_way(&self) -> u64 {
        self.flight.len() as u64
    }

    /// Of the frames under way, this many still arrive; then, at the time given back, the receiver
    /// sees the end.
    pub fn end(&mut self, arrive: u64, now: u64) -> u64 {
        self.flight.truncate(arrive as usize);
        let (upto, at) = self.flight.back().copied().unwrap_or((0, now));
        self.upto = upto;
        at
    }
}
