//! What time does: elections, and trying again what may have been lost.

use super::node::{Node, RETRY_TICKS};
use super::wire::Frame;
use crate::ids::MemberId;
use crate::limits::ELECTION_TICKS;

/// Ticks without a delivery of an own message after which all are sent again.
const RESEND_TICKS: usize = ELECTION_TICKS;
/// Ticks after which a snapshot that was not acknowledged is sent again.
const SNAPSHOT_TICKS: usize = 30 * ELECTION_TICKS;

impl Node {
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.silence = self.silence.saturating_add(1);
        self.stalled += 1;
        let members = self.order.members();
        self.peers
            .retain(|id, peer| peer.up || members.contains_key(id));
        for peer in self.peers.values_mut() {
            peer.told = false;
        }
        self.tell_gone();
        if self.may_campaign() {
            self.draw_timeout();
            let fired = self.raft.tick();
            if fired && !self.is_leader() {
                self.timeout_for.0 = u64::MAX;
            }
        }
        if self.stalled >= RESEND_TICKS {
            self.stalled = 0;
            self.outbox.rewind(0);
        }
        self.watch_snapshots();
        if self.ticks.is_multiple_of(RETRY_TICKS) {
            self.retry_joins();
            self.retry_removals();
        }
        self.promote();
    }

    /// Members that are removed hear so when they send something. One that has just restarted, and is no voter,
    /// has nothing to send: it is told after a while, in which what was ordered before may reach it.
    fn tell_gone(&mut self) {
        let mut silent = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.up && self.order.is_gone(*id) {
                peer.gone_ticks += 1;
                if peer.gone_ticks.is_multiple_of(ELECTION_TICKS) {
                    silent.push(*id);
                }
            }
        }
        for id in silent {
            self.send(id, &Frame::Gone);
        }
    }

    /// A lone voter becomes leader on the spot, which Raft allows only with all of its log
    /// durable; and Raft looks for membership changes among what is committed and not delivered,
    /// all of it at once, so that should be in memory.
    pub(super) fn may_campaign(&self) -> bool {
        let r = &self.raft.raft;
        let log = &r.raft_log;
        self.is_leader()
            || log.persisted == log.last_index()
                && (log.applied == log.committed || self.raft.store().in_memory(log.applied + 1))
    }

    /// Raft draws election timeouts from the system's randomness; ours replaces it.
    fn draw_timeout(&mut self) {
        let state = (self.raft.raft.term, self.raft.raft.state);
        if self.timeout_for != state {
            self.timeout_for = state;
            // splitmix64
            self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.rng;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            self.timeout = ELECTION_TICKS + (z % ELECTION_TICKS as u64) as usize;
        }
        self.raft.raft.set_randomized_election_timeout(self.timeout);
    }

    /// Raft waits for the answer to a snapshot for ever; a lost one has to be reported.
    fn watch_snapshots(&mut self) {
        if !self.is_leader() {
            return;
        }
        let mut lost = Vec::new();
        for (&id, progress) in self.raft.raft.prs().iter() {
            let Ok(member) = u16::try_from(id).map(MemberId) else {
                continue;
            };
            let peer = self.peers.entry(member).or_default();
            if progress.state != raft::ProgressState::Snapshot {
                peer.snapshot_ticks = 0;
                continue;
            }
            peer.snapshot_ticks += 1;
            if peer.snapshot_ticks >= SNAPSHOT_TICKS {
                peer.snapshot_ticks = 0;
                lost.push(id);
            }
        }
        lost.sort_unstable();
        for id in lost {
            self.raft.report_snapshot(id, raft::SnapshotStatus::Failure);
        }
    }
}
