//! Shared memory for changesets: blocks that are built into chains and handed over by reference.
//!
//! A block is free, a process's, or on its way in a message. What is on its way is nobody's: not
//! even the end of the process that is to get it gives it back, for the message is still there, and
//! whoever takes it out of the queue has the chain. Each sending has a number of its own, so a
//! message that is found late does not name blocks that have gone on to others.

use super::layout::{Shared, SlotNo};
use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::changeset::sink::{Full, Sink};
use crate::limits::POOL_BLOCK_BYTES;
use std::marker::PhantomData;

/// No block.
pub const NIL: u32 = u32::MAX;

/// Whom memory is kept for. Each class has blocks of its own, so that changesets under construction
/// can never starve those that are to be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Class {
    /// Changesets of local transactions.
    Local = 0,
    /// Changesets of others, on the way to a helper.
    Apply = 1,
}

/// Who has a block: slot + 1, or all ones in these bits for a message, with the number of the
/// sending above them; 0 while it is free.
type Owner = u64;

/// PostgreSQL has at most 2^18 processes.
const OWNER_BITS: u32 = 20;
const IN_MESSAGE: Owner = (1 << OWNER_BITS) - 1;

fn owned_by(slot: SlotNo) -> Owner {
    Owner::from(slot.0) + 1
}

/// Blocks linked in order, as it travels in a message. Whoever holds it last frees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Chain {
    /// First block, or [`NIL`].
    pub head: u32,
    /// Last block.
    pub tail: u32,
    /// Bytes in all of them.
    pub len: u32,
    /// Blocks.
    pub blocks: u32,
    /// Who has them, as each of them says. If it says something else, this is a message that came
    /// too late, and the blocks are none of its reader's business.
    pub owner: u64,
}

impl Chain {
    /// Nothing.
    pub const EMPTY: Chain = Chain {
        head: NIL,
        tail: NIL,
        len: 0,
        blocks: 0,
        owner: 0,
    };
}

/// What is known of a block.
#[repr(C)]
#[derive(Debug)]
pub struct BlockMeta {
    /// Next block of the chain or of the free list. Written by the owner, or by whoever frees it.
    next: AtomicU32,
    /// Who has it. Changed by compare-and-swap from what is expected there, so that of those who
    /// think that they may free a block, one does; a taker writes it, while nobody else can.
    owner: AtomicU64,
    /// Bytes used. Written by the owner.
    used: AtomicU32,
    /// Class; written once.
    class: AtomicU32,
}

impl BlockMeta {
    fn new(class: Class) -> Self {
        Self {
            next: AtomicU32::new(NIL),
            owner: AtomicU64::new(0),
            used: AtomicU32::new(0),
            class: AtomicU32::new(class as u32),
        }
    }
}

/// Heads of the free lists.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct FreeLists {
    /// Tag (upper half, one more with every change, against ABA) and first free block, by class.
    heads: [AtomicU64; 2],
    /// Free blocks, by class: statistics, and a quick no.
    free: [AtomicU32; 2],
    /// Number of the last sending.
    sendings: AtomicU64,
}

impl FreeLists {
    pub(super) fn new() -> Self {
        Self {
            heads: [AtomicU64::new(NIL.into()), AtomicU64::new(NIL.into())],
            free: [AtomicU32::new(0), AtomicU32::new(0)],
            sendings: AtomicU64::new(0),
        }
    }

    /// Free blocks of a class.
    pub fn free(&self, class: Class) -> u32 {
        self.free[class as usize].load(Ordering::Relaxed)
    }

    fn pop(&self, class: Class, meta: &[BlockMeta]) -> Option<u32> {
        let head = &self.heads[class as usize];
        let mut seen = head.load(Ordering::Acquire);
        loop {
            let block = seen as u32;
            // Checked, so that a damaged list can't lead outside.
            let next = meta.get(block as usize)?.next.load(Ordering::Relaxed);
            let new = tagged(seen, next);
            // Acquire pairs with the release of the push: `next` was that push's.
            match head.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.free[class as usize].fetch_sub(1, Ordering::Relaxed);
                    return Some(block);
                }
                Err(now) => seen = now,
            }
        }
    }

    fn push(&self, class: Class, meta: &[BlockMeta], block: u32) {
        let head = &self.heads[class as usize];
        self.free[class as usize].fetch_add(1, Ordering::Relaxed);
        let mut seen = head.load(Ordering::Relaxed);
        loop {
            meta[block as usize]
                .next
                .store(seen as u32, Ordering::Relaxed);
            let new = tagged(seen, block);
            match head.compare_exchange_weak(seen, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

fn tagged(seen: u64, block: u32) -> u64 {
    ((seen >> 32).wrapping_add(1) << 32) | u64::from(block)
}

/// Handle to the pool.
#[derive(Clone, Copy, Debug)]
pub struct Pool<'a> {
    meta: &'a [BlockMeta],
    lists: &'a FreeLists,
    data: *mut u8,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> Pool<'a> {
    /// # Safety
    /// `data` has [`POOL_BLOCK_BYTES`] for each of `meta`, and lives as long as `'a`.
    pub(super) unsafe fn new(meta: &'a [BlockMeta], lists: &'a FreeLists, data: *mut u8) -> Self {
        Self {
            meta,
            lists,
            data,
            _memory: PhantomData,
        }
    }

    /// Puts all blocks on the free lists, the first `apply` of them in that class. Once, before
    /// anybody else has the pool; `init` writes a fresh [`BlockMeta`].
    pub(super) fn fresh_meta(block: u32, apply: u32) -> BlockMeta {
        BlockMeta::new(if block < apply {
            Class::Apply
        } else {
            Class::Local
        })
    }

    pub(super) fn fill_lists(&self) {
        for block in (0..self.meta.len() as u32).rev() {
            self.lists.push(self.class(block), self.meta, block);
        }
    }

    fn class(&self, block: u32) -> Class {
        if self.meta[block as usize].class.load(Ordering::Relaxed) == Class::Apply as u32 {
            Class::Apply
        } else {
            Class::Local
        }
    }

    /// Free blocks of a class.
    pub fn free_blocks(&self, class: Class) -> u32 {
        self.lists.free(class)
    }

    /// Blocks of a class, free or not.
    pub fn total_blocks(&self, class: Class) -> u32 {
        (0..self.meta.len() as u32)
            .filter(|b| self.class(*b) == class)
            .count() as u32
    }

    fn take(&self, class: Class, owner: SlotNo) -> Option<u32> {
        let block = self.lists.pop(class, self.meta)?;
        let meta = &self.meta[block as usize];
        meta.owner.store(owned_by(owner), Ordering::Relaxed);
        meta.used.store(0, Ordering::Relaxed);
        meta.next.store(NIL, Ordering::Relaxed);
        Some(block)
    }

    /// Gives a block another owner, or none; false if it is not `from`'s.
    fn pass(&self, block: u32, from: Owner, to: Owner) -> bool {
        from != 0
            && self.meta.get(block as usize).is_some_and(|meta| {
                // What `from` did with the block comes before what the next owner does.
                let (done, not) = (Ordering::AcqRel, Ordering::Relaxed);
                meta.owner.compare_exchange(from, to, done, not).is_ok()
            })
    }

    fn give_back(&self, block: u32, from: Owner) -> bool {
        let was_its = self.pass(block, from, 0);
        if was_its {
            self.lists.push(self.class(block), self.meta, block);
        }
        was_its
    }

    /// Frees a chain, as far as it still is what it says: of several who try, one does it.
    pub fn free(&self, chain: Chain) {
        for block in self.blocks(chain) {
            if !self.give_back(block, chain.owner) {
                return;
            }
        }
    }

    /// Makes the caller's chain nobody's, before it is sent: who takes the message out of its queue
    /// owns what this returns, or frees it.
    #[must_use]
    pub fn post(&self, chain: Chain) -> Chain {
        let number = self.lists.sendings.fetch_add(1, Ordering::Relaxed) + 1;
        self.pass_on(chain, number << OWNER_BITS | IN_MESSAGE)
            .expect("a chain of the caller's")
    }

    /// Makes a chain that came in a message the caller's; `None` if somebody else has it or freed it.
    #[must_use]
    pub fn accept(&self, chain: Chain, me: SlotNo) -> Option<Chain> {
        self.pass_on(chain, chain.owner & !IN_MESSAGE | owned_by(me))
    }

    /// Whoever has the first block may do as he likes with the others.
    fn pass_on(&self, chain: Chain, to: Owner) -> Option<Chain> {
        for (i, block) in self.blocks(chain).enumerate() {
            if !self.pass(block, chain.owner, to) {
                assert!(i == 0, "a chain has one owner");
                return None;
            }
        }
        Some(Chain { owner: to, ..chain })
    }

    /// Frees all that a process had which ends now; only that process itself calls it.
    pub fn reclaim(&self, owner: SlotNo) -> u32 {
        self.give_back_all(|_, has| has & IN_MESSAGE == owned_by(owner))
    }

    /// Frees all blocks of a class. Nobody may be left who reads one; messages may.
    pub fn clear(&self, class: Class) -> u32 {
        self.give_back_all(|block, _| self.class(block) == class)
    }

    fn give_back_all(&self, which: impl Fn(u32, Owner) -> bool) -> u32 {
        let mut count = 0;
        for (block, meta) in (0..).zip(self.meta) {
            let has = meta.owner.load(Ordering::Relaxed);
            if which(block, has) && self.give_back(block, has) {
                count += 1;
            }
        }
        count
    }

    /// One chain of two, without copying. Both were the caller's.
    #[must_use]
    pub fn concat(&self, first: Chain, second: Chain) -> Chain {
        if first.blocks == 0 {
            return second;
        }
        if second.blocks == 0 {
            return first;
        }
        debug_assert_eq!(first.owner, second.owner, "one owner");
        self.meta[first.tail as usize]
            .next
            .store(second.head, Ordering::Relaxed);
        Chain {
            head: first.head,
            tail: second.tail,
            len: first.len + second.len,
            blocks: first.blocks + second.blocks,
            owner: first.owner,
        }
    }

    /// The bytes of a chain that the caller owns, in pieces.
    pub fn pieces(&self, chain: Chain) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let pool = *self;
        self.blocks(chain).map(move |block| {
            let used = pool.meta[block as usize].used.load(Ordering::Relaxed) as usize;
            // SAFETY: the block lies inside the pool, its owner is the caller, who does not write it
            // while it holds the slice (writing goes through ChainWriter, which owns its chain).
            unsafe { std::slice::from_raw_parts(pool.block(block), used.min(POOL_BLOCK_BYTES)) }
        })
    }

    /// All bytes of a chain, copied once.
    #[must_use]
    pub fn copy(&self, chain: Chain) -> Vec<u8> {
        let mut out = Vec::with_capacity(chain.len as usize);
        for piece in self.pieces(chain) {
            out.extend_from_slice(piece);
        }
        out
    }

    /// Blocks of a chain in order; as many as it says and no more, whatever the links say.
    fn blocks(&self, chain: Chain) -> impl Iterator<Item = u32> + use<'a> {
        let meta = self.meta;
        let mut next = chain.head;
        (0..chain.blocks).map_while(move |_| {
            let block = next;
            next = meta.get(block as usize)?.next.load(Ordering::Relaxed);
            Some(block)
        })
    }

    fn block(&self, block: u32) -> *mut u8 {
        assert!((block as usize) < self.meta.len(), "a block of the pool");
        // SAFETY: inside the data area (contract of `new`).
        unsafe { self.data.add(block as usize * POOL_BLOCK_BYTES) }
    }
}

/// Builds a chain; the sink of a changeset under construction. Dropped unfinished, it frees it.
#[derive(Debug)]
pub struct ChainWriter<'a> {
    pool: Pool<'a>,
    class: Class,
    owner: SlotNo,
    /// All blocks but the last are full.
    blocks: Vec<u32>,
    len: usize,
}

impl<'a> ChainWriter<'a> {
    /// An empty chain.
    #[must_use]
    pub fn new(pool: Pool<'a>, class: Class, owner: SlotNo) -> Self {
        Self {
            pool,
            class,
            owner,
            blocks: Vec::new(),
            len: 0,
        }
    }

    /// Ends it. The chain is the caller's, to send or to free.
    #[must_use]
    pub fn finish(mut self) -> Chain {
        let blocks = std::mem::take(&mut self.blocks);
        let (Some(head), Some(tail)) = (blocks.first(), blocks.last()) else {
            return Chain::EMPTY;
        };
        Chain {
            head: *head,
            tail: *tail,
            len: self.len as u32,
            blocks: blocks.len() as u32,
            owner: owned_by(self.owner),
        }
    }

    fn give_back(&self, block: u32) {
        self.pool.give_back(block, owned_by(self.owner));
    }

    fn cut(&mut self, keep: usize) {
        for block in self.blocks.split_off(keep) {
            self.give_back(block);
        }
    }

    fn room(&self) -> usize {
        self.blocks.len() * POOL_BLOCK_BYTES - self.len
    }
}

impl Drop for ChainWriter<'_> {
    fn drop(&mut self) {
        for block in &self.blocks {
            self.give_back(*block);
        }
    }
}

impl Sink for ChainWriter<'_> {
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Full> {
        let before = self.blocks.len();
        while self.room() < bytes.len() {
            let Some(block) = self.pool.take(self.class, self.owner) else {
                self.cut(before);
                return Err(Full);
            };
            if let Some(last) = self.blocks.last() {
                self.pool.meta[*last as usize]
                    .next
                    .store(block, Ordering::Relaxed);
            }
            self.blocks.push(block);
        }
        while !bytes.is_empty() {
            let (block, at) = (
                self.blocks[self.len / POOL_BLOCK_BYTES],
                self.len % POOL_BLOCK_BYTES,
            );
            let count = bytes.len().min(POOL_BLOCK_BYTES - at);
            // SAFETY: at + count lies inside the block, which this writer owns alone.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pool.block(block).add(at), count)
            };
            self.pool.meta[block as usize]
                .used
                .store((at + count) as u32, Ordering::Relaxed);
            self.len += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "only shorter");
        let keep = len.div_ceil(POOL_BLOCK_BYTES);
        self.cut(keep);
        if let Some(last) = self.blocks.last() {
            let meta = &self.pool.meta[*last as usize];
            meta.next.store(NIL, Ordering::Relaxed);
            meta.used.store(
                (len - (keep - 1) * POOL_BLOCK_BYTES) as u32,
                Ordering::Relaxed,
            );
        }
        self.len = len;
    }

    fn replace(&mut self, bytes: &[u8]) {
        self.truncate(bytes.len());
        self.len = 0;
        let replaced = self.append(bytes);
        replaced.expect("its own blocks have room for them");
    }

    fn each(&self, visit: &mut dyn FnMut(&[u8])) {
        for block in &self.blocks {
            let used = self.pool.meta[*block as usize].used.load(Ordering::Relaxed) as usize;
            // SAFETY: as in `Pool::pieces`; `&self` keeps the writer from writing.
            visit(unsafe { std::slice::from_raw_parts(self.pool.block(*block), used) });
        }
    }
}

impl Shared {
    /// The pool of this shared memory.
    #[must_use]
    pub fn pool(self) -> Pool<'static> {
        self.pool_parts(|meta, lists, data| {
            // SAFETY: `layout` laid them out for each other; shared memory outlives the process.
            unsafe { Pool::new(meta, lists, data) }
        })
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;
    use crate::imsg::layout::tests::Region;

    fn bytes(count: usize, seed: u8) -> Vec<u8> {
        (0..count)
            .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
            .collect()
    }

    #[test]
    fn a_chain_holds_what_was_written_and_gives_every_block_back() {
        let region = Region::new(4, 40);
        let pool = region.shared().pool();
        let total = pool.free_blocks(Class::Local);
        let mut writer = ChainWriter::new(pool, Class::Local, SlotNo(1));
        let mut model = Vec::new();
        for (i, count) in [1, 7, POOL_BLOCK_BYTES, 3 * POOL_BLOCK_BYTES + 5, 0, 100]
            .into_iter()
            .enumerate()
        {
            writer.append(&bytes(count, i as u8)).expect("room");
            model.extend(bytes(count, i as u8));
        }
        assert_eq!(writer.len(), model.len());
        for cut in [model.len() - 1, 2 * POOL_BLOCK_BYTES, POOL_BLOCK_BYTES + 3] {
            writer.truncate(cut);
            model.truncate(cut);
            writer.append(b"tail").expect("room");
            model.extend(b"tail");
        }
        let first = writer.finish();
        assert_eq!(pool.copy(first), model);
        let mut second = ChainWriter::new(pool, Class::Local, SlotNo(1));
        second
            .append(&bytes(POOL_BLOCK_BYTES + 1, 9))
            .expect("room");
        let both = pool.concat(first, second.finish());
        model.extend(bytes(POOL_BLOCK_BYTES + 1, 9));
        assert_eq!(pool.copy(both), model);
        pool.free(both);
        assert_eq!(pool.free_blocks(Class::Local), total);
        let mut dropped = ChainWriter::new(pool, Class::Local, SlotNo(1));
        dropped.append(&bytes(50_000, 1)).expect("room");
        dropped.truncate(0);
        dropped.append(b"x").expect("room");
        drop(dropped);
        assert_eq!(pool.free_blocks(Class::Local), total);
    }

    #[test]
    fn local_writers_never_take_what_is_kept_for_apply() {
        let region = Region::new(4, 40);
        let pool = region.shared().pool();
        let kept = pool.free_blocks(Class::Apply);
        assert!(kept > 0);
        let mut writer = ChainWriter::new(pool, Class::Local, SlotNo(0));
        while writer.append(&[7; 1000]).is_ok() {}
        let len = writer.len();
        assert_eq!(writer.append(&[7; 100_000]), Err(Full));
        assert_eq!(writer.len(), len, "what does not fit leaves no trace");
        assert_eq!(pool.free_blocks(Class::Apply), kept);
        let mut apply = ChainWriter::new(pool, Class::Apply, SlotNo(0));
        apply.append(&[7; 1000]).expect("room");
    }

    #[test]
    fn a_dead_process_leaves_nothing_behind() {
        let region = Region::new(4, 40);
        let pool = region.shared().pool();
        let total = pool.free_blocks(Class::Local);
        let mut writer = ChainWriter::new(pool, Class::Local, SlotNo(2));
        writer.append(&[1; 60_000]).expect("room");
        // It never comes to drop it.
        std::mem::forget(writer);
        let mut sent = ChainWriter::new(pool, Class::Local, SlotNo(2));
        sent.append(&[1; 20_000]).expect("room");
        let sent = pool.post(sent.finish());
        let blocks = 60_000_u32.div_ceil(POOL_BLOCK_BYTES as u32);
        assert_eq!(pool.reclaim(SlotNo(2)), blocks);
        // Nor does the end of the one that was to get it give back what a message still names.
        assert_eq!(pool.reclaim(SlotNo(3)), 0);
        let got = pool.accept(sent, SlotNo(4)).expect("nobody else has it");
        assert_eq!(pool.copy(got), [1; 20_000]);
        assert_eq!(pool.reclaim(SlotNo(4)), 3);
        assert_eq!(pool.free_blocks(Class::Local), total);
    }

    /// A chain for each free block.
    fn take_all(pool: Pool<'static>, slot: SlotNo) -> Vec<Chain> {
        let mut chains = Vec::new();
        loop {
            let mut writer = ChainWriter::new(pool, Class::Local, slot);
            if writer.append(&[slot.0 as u8]).is_err() {
                return chains;
            }
            chains.push(writer.finish());
        }
    }

    #[test]
    fn a_message_that_is_found_late_has_no_hold_on_its_blocks() {
        let region = Region::new(6, 40);
        let pool = region.shared().pool();
        let total = pool.free_blocks(Class::Local);
        let send = || {
            let mut writer = ChainWriter::new(pool, Class::Local, SlotNo(1));
            writer.append(&[1; 30_000]).expect("room");
            pool.post(writer.finish())
        };
        // Freed in its first life, accepted and given back, or cleared away.
        let ends: [&dyn Fn(Chain); 3] = [
            &|chain| pool.free(chain),
            &|chain| {
                pool.accept(chain, SlotNo(5)).expect("it is there");
                pool.reclaim(SlotNo(5));
            },
            &|_| {
                pool.clear(Class::Local);
            },
        ];
        for end in ends {
            let late = send();
            end(late);
            // On to others: one that is sent in its turn, and one that had the message.
            let again = send();
            let chains = [take_all(pool, SlotNo(1)), take_all(pool, SlotNo(5))].concat();
            assert_eq!(pool.free_blocks(Class::Local), 0);
            pool.free(late);
            assert_eq!(pool.accept(late, SlotNo(5)), None);
            assert_eq!(pool.free_blocks(Class::Local), 0, "they are others'");
            assert_eq!(take_all(pool, SlotNo(2)), []);
            assert_eq!(pool.copy(again), [1; 30_000]);
            for chain in chains.into_iter().chain([again]) {
                pool.free(chain);
                pool.free(chain);
            }
            assert_eq!(pool.free_blocks(Class::Local), total);
        }
    }

    #[test]
    fn many_threads_share_the_free_list() {
        let region = Region::new(4, 40);
        let pool = region.shared().pool();
        let total = pool.free_blocks(Class::Local);
        let shared = region.shared();
        std::thread::scope(|scope| {
            for t in 0..4u32 {
                scope.spawn(move || {
                    let pool = shared.pool();
                    for i in 0..if cfg!(miri) { 20 } else { 5000 } {
                        let mut writer = ChainWriter::new(pool, Class::Local, SlotNo(t));
                        if writer.append(&bytes(10_000, t as u8)).is_ok() && i % 2 == 0 {
                            let chain = writer.finish();
                            assert_eq!(pool.copy(chain), bytes(10_000, t as u8));
                            pool.free(chain);
                        }
                    }
                });
            }
        });
        assert_eq!(pool.free_blocks(Class::Local), total);
    }
}

#[cfg(all(test, pgr_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn a_block_is_given_to_one_taker() {
        loom::model(|| {
            let meta: Arc<[BlockMeta; 2]> =
                Arc::new([BlockMeta::new(Class::Local), BlockMeta::new(Class::Local)]);
            let lists = Arc::new(FreeLists::new());
            for b in 0..2 {
                lists.push(Class::Local, &meta[..], b);
            }
            let work = |meta: &[BlockMeta], lists: &FreeLists| {
                let Some(b) = lists.pop(Class::Local, meta) else {
                    return;
                };
                assert_eq!(
                    meta[b as usize].owner.swap(1, Ordering::AcqRel),
                    0,
                    "two takers of one block"
                );
                meta[b as usize].owner.store(0, Ordering::Release);
                lists.push(Class::Local, meta, b);
            };
            let other = {
                let (meta, lists) = (Arc::clone(&meta), Arc::clone(&lists));
                loom::thread::spawn(move || work(&meta[..], &lists))
            };
            work(&meta[..], &lists);
            other.join().unwrap();
            assert_eq!(lists.free(Class::Local), 2);
        });
    }

    #[test]
    fn of_those_who_find_a_message_one_has_its_blocks() {
        loom::model(|| {
            let meta: Arc<[BlockMeta; 2]> =
                Arc::new([BlockMeta::new(Class::Local), BlockMeta::new(Class::Local)]);
            let lists = Arc::new(FreeLists::new());
            let pool = |meta: &'static [BlockMeta], lists: &'static FreeLists| {
                // SAFETY: nobody looks at the data.
                unsafe { Pool::new(meta, lists, std::ptr::null_mut()) }
            };
            // SAFETY: the model joins its threads before it drops them.
            let (m, l): (&'static [BlockMeta], &'static FreeLists) =
                unsafe { (&*(&raw const meta[..]), &*Arc::as_ptr(&lists)) };
            let owner = 1 << OWNER_BITS | IN_MESSAGE;
            m[0].next.store(1, Ordering::Relaxed);
            for block in m {
                block.owner.store(owner, Ordering::Relaxed);
            }
            let chain = Chain {
                head: 0,
                tail: 1,
                len: 2,
                blocks: 2,
                owner,
            };
            let other = loom::thread::spawn(move || {
                pool(m, l).free(chain);
            });
            if let Some(mine) = pool(m, l).accept(chain, SlotNo(7)) {
                pool(m, l).free(mine);
            }
            other.join().unwrap();
            assert_eq!(lists.free(Class::Local), 2);
            for block in m {
                assert_eq!(block.owner.load(Ordering::Relaxed), 0);
            }
            let all = [0; 3].map(|_| l.pop(Class::Local, m));
            assert!(matches!(all, [Some(a), Some(b), None] if a != b), "{all:?}");
        });
    }
}
