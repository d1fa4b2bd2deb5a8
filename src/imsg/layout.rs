//! What lies where in shared memory, and who may write it.

use super::conflicts::Conflicts;
use super::dependents::Dependents;
use super::members::{MemberTable, OpenTable, Text};
use super::pool::{BlockMeta, FreeLists, Pool};
use super::queue::Ring;
use super::ranges::{Grant, Ranges};
use super::readers::Readers;
use super::since;
use super::sync::{AtomicU32, AtomicU64};
use super::turn::Turn;
use super::wanted::Wanted;
use crate::limits::{HELPER_RUN_MAX, POOL_BLOCK_BYTES};
use std::mem::{align_of, size_of};

/// Number of a process of the server: PostgreSQL's `ProcNumber`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotNo(pub u32);

/// Messages a ring holds. A worker has at most two under way, a helper its jobs.
pub const RING: usize = 16;
const _: () = assert!(RING > HELPER_RUN_MAX + 2);

/// The group on this server. One a server.
///
/// "written by the coordinator" means: by it alone, relaxed unless said otherwise, read by anybody.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Control {
    /// Turn for commit records.
    pub logged: Turn,
    /// Turn for visibility; what has passed is `last_committed_gid`.
    pub visible: Turn,
    /// Helpers that wait for a GID to become visible.
    pub dependents: Dependents,
    /// Sessions that wait for a GID to become visible.
    pub readers: Readers,
    /// A `GroupState`. Written by the coordinator (release), and by START before there is one.
    pub state: AtomicU32,
    /// Rises with every change of `state` or `database`; processes look here for news.
    pub epoch: AtomicU32,
    /// OID of the replicated database, 0 for none. Written at start, START and STOP.
    pub database: AtomicU32,
    /// This member's number. Written with `state`.
    pub member: AtomicU32,
    /// Its incarnation. Written with `state`.
    pub incarnation: AtomicU32,
    /// Random name of the group. Written with `state`.
    pub group_id: AtomicU64,
    /// GID that this copy's WAL held when recovery ended. Written by the startup process.
    pub recovered_gid: AtomicU64,
    /// Every GID up to here has its commit record on this server's disk. Written by the coordinator.
    pub flushed_gid: AtomicU64,
    /// Last GID certified here. Written by the coordinator.
    pub ordered_gid: AtomicU64,
    /// Changesets waiting for a helper, or in one. Written by the coordinator.
    pub apply_queue: AtomicU32,
    /// Own multicasts without a verdict. Written by the coordinator.
    pub in_flight: AtomicU32,
    /// 1 while the coordinator sleeps or is about to. See `wake.rs`.
    pub coordinator_sleeping: AtomicU32,
    /// 1 while the coordinator sleeps though there is work for which it had no helper. See `wake.rs`.
    pub work_waits: AtomicU32,
    /// The eventfd (all ones for none). Written by the postmaster, before any fork.
    pub wake_fd: AtomicU32,
    /// 1 while this member runs the subscriptions of its database, for it leads and is open. Written by the
    /// coordinator (sequentially consistent).
    pub runs_subscriptions: AtomicU32,
    /// Slot + 1 of the coordinator, 0 while there is none. Written by the coordinator (release).
    pub coordinator_slot: AtomicU32,
    /// The group's name. Written at start and START.
    pub group_name: Text,
    /// Why the group failed on this server. Written by the coordinator before `state`.
    pub failure: Text,
    /// Members, for the statistics view. Written by the coordinator.
    pub members: MemberTable,
    /// Large transactions, for the statistics view. Written by the coordinator.
    pub open_transactions: OpenTable,
    /// What happened, since the server started. Added to by anybody.
    pub counters: Counters,
    /// Of these, conflicts by relation.
    pub conflicts: Conflicts,
    /// What SERIALIZABLE transactions search, for those who write it.
    pub wanted: Wanted,
    /// Values of sequences for this member. Under a lock of its own; see `ranges.rs`.
    pub ranges: Ranges,
}

/// Statistics.
#[repr(C)]
#[derive(Debug)]
pub struct Counters {
    /// Own transactions committed through the group.
    pub commits: AtomicU64,
    /// Transactions of others applied.
    pub applied: AtomicU64,
    /// Own transactions whose changeset a helper applied.
    pub replays: AtomicU64,
    /// Times that a helper failed.
    pub helper_errors: AtomicU64,
    /// Times that a trigger failed where a change of another member was applied.
    pub trigger_errors: AtomicU64,
    /// Bytes of own changesets and of the fragments ahead of them.
    pub changeset_bytes: AtomicU64,
}

/// Where a local transaction stands, for those whose way it is in (`ProcSlot::phase`).
pub mod phase {
    /// Not certified; told to abort when it is in the way.
    pub const OPEN: u32 = 0;
    /// With the group; its own verdict decides.
    pub const SENT: u32 = 1;
    /// Has its GID (`ProcSlot::gid`), as every helper at work has.
    pub const CERTIFIED: u32 = 2;
    /// Commits without the group, which is not formed yet or no more.
    pub const LOCAL: u32 = 3;
}

/// One process of the server.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct ProcSlot {
    /// Written by the process: 1 while it takes part (its queues are reset when it begins), 2 as a helper.
    pub role: AtomicU32,
    /// Where its transaction stands (`phase`). Written by the process (sequentially consistent).
    pub phase: AtomicU32,
    /// GID that it commits. Written by the process before `phase`.
    pub gid: AtomicU64,
    /// GID of the transaction `passed_ticket`, which may not have seen its verdict yet. Both written
    /// by the coordinator, this one first.
    pub passed_gid: AtomicU64,
    /// See `passed_gid`.
    pub passed_ticket: AtomicU64,
    /// Which of its transactions; rises. Written by the process, before anything else of the transaction.
    pub ticket: AtomicU64,
    /// The GID that it waits to see, 0 for none. Written by the process; see `readers.rs`.
    pub wants_gid: AtomicU64,
    /// Lowest `since` of its transaction. Written by the process; see `since.rs`.
    pub since_low: AtomicU64,
    /// The transaction that was told to abort: its ticket, 0 for none. Written by helpers after the
    /// three words below (release); taken by the process.
    pub victim_ticket: AtomicU64,
    /// For which GID.
    pub victim_gid: AtomicU64,
    /// Of which member.
    pub victim_origin: AtomicU32,
    /// In which relation, 0 if unknown.
    pub victim_relation: AtomicU32,
    /// The transaction that does not give way, though it was told to: its ticket. It has passed, and its
    /// session has part of its effects. Written by the process (relaxed).
    pub stays_ticket: AtomicU64,
    /// 1 while a maintenance command runs, which may hold its locks for a time. Written by the process
    /// (relaxed).
    pub maintenance: AtomicU32,
    /// Values of a sequence that it waits for. Under the lock of `Control::ranges`.
    pub grant: Grant,
    /// To the coordinator: requests and replies apart, so that neither blocks the other.
    pub requests_up: Ring<RING>,
    /// See `requests_up`.
    pub replies_up: Ring<RING>,
    /// From the coordinator.
    pub requests_down: Ring<RING>,
    /// See `requests_down`.
    pub replies_down: Ring<RING>,
}

impl ProcSlot {
    fn new() -> Self {
        Self {
            role: AtomicU32::new(0),
            phase: AtomicU32::new(phase::OPEN),
            gid: AtomicU64::new(0),
            passed_gid: AtomicU64::new(0),
            passed_ticket: AtomicU64::new(0),
            ticket: AtomicU64::new(0),
            since_low: AtomicU64::new(since::NONE),
            wants_gid: AtomicU64::new(0),
            victim_ticket: AtomicU64::new(0),
            victim_gid: AtomicU64::new(0),
            victim_origin: AtomicU32::new(0),
            victim_relation: AtomicU32::new(0),
            stays_ticket: AtomicU64::new(0),
            maintenance: AtomicU32::new(0),
            grant: Grant::new(),
            requests_up: Ring::new(),
            replies_up: Ring::new(),
            requests_down: Ring::new(),
            replies_down: Ring::new(),
        }
    }
}

impl Control {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            logged: Turn::new(),
            visible: Turn::new(),
            dependents: Dependents::new(),
            readers: Readers::new(),
            state: AtomicU32::new(0),
            epoch: AtomicU32::new(1),
            database: AtomicU32::new(0),
            member: AtomicU32::new(0),
            incarnation: AtomicU32::new(0),
            group_id: zero(),
            recovered_gid: zero(),
            flushed_gid: zero(),
            ordered_gid: zero(),
            apply_queue: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            coordinator_sleeping: AtomicU32::new(0),
            work_waits: AtomicU32::new(0),
            wake_fd: AtomicU32::new(u32::MAX),
            runs_subscriptions: AtomicU32::new(0),
            coordinator_slot: AtomicU32::new(0),
            group_name: Text::new(),
            failure: Text::new(),
            members: MemberTable::new(),
            open_transactions: OpenTable::new(),
            counters: Counters {
                commits: zero(),
                applied: zero(),
                replays: zero(),
                helper_errors: zero(),
                trigger_errors: zero(),
                changeset_bytes: zero(),
            },
            conflicts: Conflicts::new(),
            wanted: Wanted::new(),
            ranges: Ranges::new(),
        }
    }
}

/// How much of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Shape {
    /// Process slots: PostgreSQL's MaxBackends and auxiliary processes.
    pub slots: u32,
    /// Blocks of the pool.
    pub blocks: u32,
    /// Of them, kept for changesets on the way to helpers.
    pub apply_blocks: u32,
}

impl Shape {
    /// The shape for so many processes and bytes of pool. Half of the pool is kept for apply.
    #[must_use]
    pub fn new(slots: u32, pool_bytes: usize) -> Shape {
        let blocks = u32::try_from(pool_bytes / POOL_BLOCK_BYTES)
            .unwrap_or(u32::MAX / 2)
            .max(16);
        Shape {
            slots,
            blocks,
            apply_blocks: blocks / 2,
        }
    }

    fn offsets(self) -> Offsets {
        let mut at = 0usize;
        let mut place = |size: usize, align: usize| {
            let start = at.next_multiple_of(align.max(64));
            at = start + size;
            start
        };
        let control = place(size_of::<Control>(), align_of::<Control>());
        let slots = place(
            size_of::<ProcSlot>() * self.slots as usize,
            align_of::<ProcSlot>(),
        );
        let dirty = place(8 * self.dirty_words(), 8);
        let lists = place(size_of::<FreeLists>(), align_of::<FreeLists>());
        let meta = place(
            size_of::<BlockMeta>() * self.blocks as usize,
            align_of::<BlockMeta>(),
        );
        let data = place(POOL_BLOCK_BYTES * self.blocks as usize, 4096);
        Offsets {
            control,
            slots,
            dirty,
            lists,
            meta,
            data,
            end: at,
        }
    }

    fn dirty_words(self) -> usize {
        (self.slots as usize).div_ceil(64)
    }

    /// Bytes of shared memory, page alignment of its start not counted.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.offsets().end
    }
}

#[derive(Clone, Copy, Debug)]
struct Offsets {
    control: usize,
    slots: usize,
    dirty: usize,
    lists: usize,
    meta: usize,
    data: usize,
    end: usize,
}

/// Handle to the shared memory, the same in every process.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    base: *mut u8,
    shape: Shape,
    offsets: Offsets,
}

// SAFETY: all access goes through atomics, rings and the pool, which state their own rules.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Lays everything out in fresh memory.
    ///
    /// # Safety
    /// `base` has [`Shape::bytes`] writable bytes aligned to 64 that live as long as the process
    /// and that nobody else uses yet.
    pub unsafe fn init(base: *mut u8, shape: Shape) -> Shared {
        let o = shape.offsets();
        // SAFETY: `offsets` places each part inside the memory, aligned and apart from the others;
        // nobody reads it yet.
        unsafe {
            base.add(o.control).cast::<Control>().write(Control::new());
            for i in 0..shape.slots as usize {
                base.add(o.slots)
                    .cast::<ProcSlot>()
                    .add(i)
                    .write(ProcSlot::new());
            }
            for i in 0..shape.dirty_words() {
                base.add(o.dirty)
                    .cast::<AtomicU64>()
                    .add(i)
                    .write(AtomicU64::new(0));
            }
            base.add(o.lists)
                .cast::<FreeLists>()
                .write(FreeLists::new());
            for i in 0..shape.blocks {
                base.add(o.meta)
                    .cast::<BlockMeta>()
                    .add(i as usize)
                    .write(Pool::fresh_meta(i, shape.apply_blocks));
            }
        }
        // SAFETY: just laid out, by the caller's promise for as long as the process lives.
        let shared = unsafe { Shared::attach(base, shape) };
        shared.pool().fill_lists();
        shared
    }

    /// Finds what [`Shared::init`] laid out with the same shape.
    ///
    /// # Safety
    /// It did so at `base`, in memory that lives as long as this process.
    #[must_use]
    pub unsafe fn attach(base: *mut u8, shape: Shape) -> Shared {
        Shared {
            base,
            shape,
            offsets: shape.offsets(),
        }
    }

    /// The group.
    #[must_use]
    pub fn control(self) -> &'static Control {
        // SAFETY: laid out by `init`, never moved, shared access only.
        unsafe { &*self.base.add(self.offsets.control).cast::<Control>() }
    }

    /// All processes.
    #[must_use]
    pub fn slots(self) -> &'static [ProcSlot] {
        // SAFETY: as in `control`.
        unsafe {
            std::slice::from_raw_parts(
                self.base.add(self.offsets.slots).cast(),
                self.shape.slots as usize,
            )
        }
    }

    /// One process.
    #[must_use]
    pub fn slot(self, number: SlotNo) -> &'static ProcSlot {
        &self.slots()[number.0 as usize]
    }

    /// A bit a slot that has sent something. See `wake.rs`.
    #[must_use]
    pub(super) fn dirty(self) -> &'static [AtomicU64] {
        // SAFETY: as in `control`.
        unsafe {
            std::slice::from_raw_parts(
                self.base.add(self.offsets.dirty).cast(),
                self.shape.dirty_words(),
            )
        }
    }

    pub(super) fn pool_parts<T>(
        self,
        make: impl FnOnce(&'static [BlockMeta], &'static FreeLists, *mut u8) -> T,
    ) -> T {
        let o = self.offsets;
        // SAFETY: as in `control`.
        let (meta, lists) = unsafe {
            (
                std::slice::from_raw_parts(
                    self.base.add(o.meta).cast(),
                    self.shape.blocks as usize,
                ),
                &*self.base.add(o.lists).cast::<FreeLists>(),
            )
        };
        // SAFETY: inside the memory.
        make(meta, lists, unsafe { self.base.add(o.data) })
    }
}

#[cfg(all(test, not(pgr_loom)))]
pub(crate) mod tests {
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    /// Memory for a test.
    pub(crate) struct Region {
        base: *mut u8,
        layout: Layout,
        shared: Shared,
    }

    impl Region {
        /// With so many slots and blocks.
        pub(crate) fn new(slots: u32, blocks: u32) -> Region {
            let shape = Shape::new(slots, blocks as usize * POOL_BLOCK_BYTES);
            let layout = Layout::from_size_align(shape.bytes(), 4096).expect("layout");
            // SAFETY: the size is not 0.
            let base = unsafe { alloc_zeroed(layout) };
            assert!(!base.is_null());
            // SAFETY: fresh memory of the right size; a test keeps the region as long as it uses it.
            let shared = unsafe { Shared::init(base, shape) };
            Region {
                base,
                layout,
                shared,
            }
        }

        pub(crate) fn shared(&self) -> Shared {
            self.shared
        }
    }

    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.base, self.layout) };
        }
    }

    #[test]
    fn parts_do_not_overlap() {
        for slots in [1, 63, 64, 65, 200] {
            let shape = Shape::new(slots, 1 << 20);
            let o = shape.offsets();
            let starts = [o.control, o.slots, o.dirty, o.lists, o.meta, o.data, o.end];
            assert!(starts.windows(2).all(|w| w[0] < w[1]), "{o:?}");
            assert!(o.slots - o.control >= size_of::<Control>());
            assert_eq!(o.end - o.data, shape.blocks as usize * POOL_BLOCK_BYTES);
        }
    }

    #[test]
    fn news_reaches_a_coordinator_that_is_about_to_sleep() {
        use crate::imsg::wake;
        let region = Region::new(130, 16);
        let shared = region.shared();
        assert!(wake::prepare_sleep(shared, false));
        wake::notify(shared, SlotNo(129));
        assert!(!wake::prepare_sleep(shared, false));
        let mut seen = Vec::new();
        wake::take_dirty(shared, |s| seen.push(s));
        assert_eq!(seen, [SlotNo(129)]);
        assert!(wake::prepare_sleep(shared, false));
        wake::end_sleep(shared.control());
    }
}
