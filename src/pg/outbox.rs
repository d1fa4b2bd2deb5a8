//! What the coordinator says to workers and helpers: messages whose queue was full, changesets that
//! found no memory yet.

use super::helpers::Helpers;
use super::latch;
use crate::changeset::sink::Sink;
use crate::ids::{Gid, MemberId};
use crate::imsg::layout::RING;
use crate::imsg::message::{Job, ToHelper, ToWorker};
use crate::imsg::turn::Wait;
use crate::imsg::{Chain, ChainWriter, Class, Shared, SlotNo};
use crate::limits::POOL_BLOCK_BYTES;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

/// A changeset for a helper, a fragment of one, or a word without either.
pub struct Work {
    /// Which.
    pub helper: u32,
    /// What it is.
    pub what: What,
    /// All of it.
    pub bytes: Bytes,
}

/// What a helper is sent.
#[derive(Clone, Copy)]
pub enum What {
    /// Header, writeset and entries.
    Changeset {
        /// Position to commit at.
        gid: Gid,
        /// What must be visible before it begins.
        depends_on: Gid,
        /// Where it came from.
        origin: MemberId,
    },
    /// What it asked for.
    Fragment {
        /// Of this.
        gid: Gid,
        /// Which.
        nth: u32,
    },
    /// See [`ToHelper::EarlyFragment`].
    EarlyFragment {
        /// As there.
        first: u64,
        /// As there.
        nth: u32,
        /// As there.
        bytes: u32,
        /// As there.
        base: Gid,
    },
    /// Nothing but this.
    Word(ToHelper),
}

impl What {
    /// The message; `chain` are the bytes.
    fn message(self, chain: Chain) -> ToHelper {
        match self {
            What::Changeset {
                gid,
                depends_on,
                origin,
            } => ToHelper::Apply(Job {
                gid,
                depends_on,
                origin,
                changeset: chain,
            }),
            What::Fragment { gid, nth } => ToHelper::Fragment {
                gid,
                nth,
                fragment: chain,
            },
            What::EarlyFragment {
                first,
                nth,
                bytes,
                base,
            } => ToHelper::EarlyFragment {
                first,
                nth,
                bytes,
                base,
                fragment: chain,
            },
            What::Word(message) => message,
        }
    }
}

/// See the module's text.
pub struct Outbox {
    shared: Shared,
    /// The coordinator's slot: it owns the pool's blocks until they are handed over.
    me: SlotNo,
    answers: VecDeque<(SlotNo, ToWorker)>,
    /// Blocks that the pool has for changesets of other members.
    apply_blocks: usize,
    /// In the order in which they are to be handed over.
    work: VecDeque<Work>,
    /// The last that were handed over, by helper.
    sent: BTreeMap<u32, VecDeque<Chain>>,
}

impl Outbox {
    /// Empty.
    #[must_use]
    pub fn new(shared: Shared, me: SlotNo) -> Outbox {
        Outbox {
            shared,
            me,
            apply_blocks: shared.pool().total_blocks(Class::Apply) as usize,
            answers: VecDeque::new(),
            work: VecDeque::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Answers a worker, now or as soon as its queue has room.
    pub fn answer(&mut self, to: SlotNo, message: ToWorker) {
        self.answers.push_back((to, message));
        self.send_answers();
    }

    /// Tells a worker that its transaction passed. It is woken when its turn comes, by whoever has
    /// the one before, since until then it has nothing to do.
    pub fn pass(&mut self, to: SlotNo, ticket: u64, gid: Gid) {
        let slot = self.shared.slot(to);
        // Whom a helper with a lower GID finds in its way gives way from here on.
        slot.passed_gid.store(gid.0, Ordering::SeqCst);
        slot.passed_ticket.store(ticket, Ordering::SeqCst);
        let message = ToWorker::Pass { ticket, gid };
        if slot.replies_down.push(message.into()).is_err() {
            self.answers.push_back((to, message));
            return;
        }
        if self.shared.control().logged.wait(gid, to.0) != Wait::Registered {
            latch::wake(to);
        }
    }

    /// Tries again what found no room.
    pub fn send_answers(&mut self) {
        for _ in 0..self.answers.len() {
            let Some((to, message)) = self.answers.pop_front() else {
                break;
            };
            if self
                .shared
                .slot(to)
                .replies_down
                .push(message.into())
                .is_err()
            {
                self.answers.push_back((to, message));
            }
            latch::wake(to);
        }
    }

    /// Queues a changeset for a helper; an error if the pool can never hold it.
    pub fn queue(&mut self, work: Work) -> Result<(), String> {
        let blocks = work.bytes.len().div_ceil(POOL_BLOCK_BYTES) + 1;
        if blocks > self.apply_blocks {
            let bytes = work.bytes.len();
            return Err(format!(
                "\"replication_imessage_buffers\" is too small for a changeset of {bytes} bytes that another member made"
            ));
        }
        self.work.push_back(work);
        Ok(())
    }

    /// Work waits here for memory.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// A helper is gone; the core gives its work to another. What it did not come to take is freed.
    pub fn withdraw(&mut self, helper: u32) {
        self.work.retain(|w| w.helper != helper);
        for chain in self.sent.remove(&helper).into_iter().flatten() {
            self.shared.pool().free(chain);
        }
    }

    /// Hands changesets over as long as there is memory. An error is one of the protocol.
    pub fn send_work(&mut self, helpers: &Helpers) -> Result<(), String> {
        // It finds all that it is given at once.
        let mut to_wake = None;
        let done = self.send_all(helpers, &mut to_wake);
        if let Some(slot) = to_wake {
            latch::wake(slot);
        }
        done
    }

    fn send_all(&mut self, helpers: &Helpers, to_wake: &mut Option<SlotNo>) -> Result<(), String> {
        while let Some(next) = self.work.front() {
            let Some(slot) = helpers.slot(next.helper) else {
                // Gone, and about to be withdrawn.
                self.work.pop_front();
                continue;
            };
            let (helper, what) = (next.helper, next.what);
            let (chain, message) = if let What::Word(message) = what {
                (None, message)
            } else {
                let Some(chain) = self.place(&next.bytes) else {
                    break;
                };
                let chain = self.shared.pool().post(chain);
                (Some(chain), what.message(chain))
            };
            let queue = &self.shared.slot(slot).requests_down;
            if queue.push(message.into()).is_err() {
                if let Some(chain) = chain {
                    self.shared.pool().free(chain);
                }
                return Err("the queue of a helper is full: it was given too much".into());
            }
            if let Some(other) = to_wake.replace(slot).filter(|other| *other != slot) {
                latch::wake(other);
            }
            if let Some(chain) = chain {
                let sent = self.sent.entry(helper).or_default();
                sent.push_back(chain);
                if sent.len() > RING {
                    sent.pop_front();
                }
            }
            self.work.pop_front();
        }
        Ok(())
    }

    fn place(&self, changeset: &[u8]) -> Option<Chain> {
        let mut writer = ChainWriter::new(self.shared.pool(), Class::Apply, self.me);
        writer.append(changeset).ok()?;
        Some(writer.finish())
    }
}
