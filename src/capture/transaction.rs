//! The changeset of the current transaction, under construction in imessage memory.

use super::hash::{Digest, KeyHash, What};
use super::marks::{Cuts, Marks, Place};
use super::relation::Relation;
use super::{prepare, read, table_mode, trigger};
use crate::changeset::encode::{Builder, Mark};
use crate::changeset::entry::{SequenceChange, Source};
use crate::changeset::sink::Full;
use crate::changeset::{Key, LockMode};
use crate::export;
use crate::ids::{Gid, Oid};
use crate::imsg::{ChainWriter, Class, since};
use crate::limits::{CHANGESET_BYTES_MAX, CHANGESET_KEYS_MAX, FRAGMENT_BYTES, POOL_BLOCK_BYTES};
use crate::pg::guard::{PgError, Result, boundary, boundary_nofail};
use crate::pg::source::CATALOG;
use crate::pg::{guc, shmem, sys, transaction};
use crate::worker::{self, channel, fragments, victim};
use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;

/// Over imessage memory.
pub type ChainBuilder = Builder<ChainWriter<'static>>;

/// How a key is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyUse {
    /// How strongly.
    pub mode: LockMode,
    /// `KEY_*` bits.
    pub flags: u8,
}

struct State {
    builder: Option<ChainBuilder>,
    marks: Marks<Mark>,
    cuts: Cuts,
    local_effects: bool,
}

thread_local! {
    /// Borrowed only for moments in which nothing of PostgreSQL runs.
    static STATE: ManuallyDrop<RefCell<State>> = const {
        ManuallyDrop::new(RefCell::new(State {
            builder: None,
            marks: Marks::new(),
            cuts: Cuts::new(),
            local_effects: false,
        }))
    };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Blocks of imessage memory for changesets under construction; counted once.
    static BLOCKS: OnceCell<u32> = const { OnceCell::new() };
    /// The transaction (local id) that [`announce`] announced last.
    static ANNOUNCED: Cell<u32> = const { Cell::new(0) };
}

fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    STATE.with(|state| f(&mut state.borrow_mut()))
}

/// Whether a key that was once the last, or among those before, is still there.
pub fn keeps(place: Place) -> bool {
    with(|state| state.cuts.keeps(place))
}

/// That of the key that was just appended.
pub fn place() -> Place {
    with(|state| {
        let keys = state.builder.as_ref().map_or(0, |b| b.counts().0);
        state.cuts.place(keys)
    })
}

/// Keys so far.
pub fn keys_count() -> u32 {
    with(|state| state.builder.as_ref().map_or(0, |b| b.counts().0))
}

/// Before anything is captured: begins a changeset if there is none, and marks where the current
/// subtransaction begins in it.
pub fn enter() -> Result<()> {
    if with(|state| state.builder.is_none()) {
        start()?;
    }
    relieve()?;
    let current = transaction::current_subtransaction();
    with(|state| {
        let State { builder, marks, .. } = state;
        if let Some(builder) = builder {
            marks.before_capture(current, || builder.mark());
        }
    });
    Ok(())
}

fn sink() -> ChainWriter<'static> {
    ChainWriter::new(shmem::shared().pool(), Class::Local, shmem::my_slot())
}

/// If what is captured takes too much memory, sends entries ahead, and has relations stand for keys.
/// Waits, and serves interrupts: not while anything is locked for a moment only.
fn relieve() -> Result<()> {
    let limit = changeset_memory();
    let (entries, keys) = with(|state| {
        let builder = state.builder.as_ref();
        builder.map_or((false, false), |b| {
            let (keys, entries) = (b.keys_bytes(), b.entries_bytes());
            let (large, keys_count) = (b.has_fragments(), b.counts().0 as usize);
            let entries_max = if large {
                limit.min(FRAGMENT_BYTES)
            } else {
                limit
            };
            (
                entries > entries_max,
                b.has_many_keys() && (large || keys > limit || keys_count > CHANGESET_KEYS_MAX / 2),
            )
        })
    });
    if keys {
        coarsen()?;
    }
    if fragments::are_left() || entries && fragments::has_group() {
        fragments::send()?;
        if entries {
            send_ahead()?;
        }
    }
    Ok(())
}

fn coarsen() -> Result<()> {
    with(|state| match &mut state.builder {
        Some(builder) => {
            let bytes = builder.total_bytes();
            builder.coarsen(sink()).map_err(|Full| no_memory(bytes))
        }
        None => Ok(()),
    })
}

fn send_ahead() -> Result<()> {
    let taken = with(|state| {
        let State { builder, marks, .. } = state;
        builder
            .as_mut()
            .map(|b| b.take_entries(sink(), marks.open()))
    });
    if let Some(taken) = taken {
        fragments::put(taken);
    }
    fragments::send()
}

/// Bytes of entries, or of keys, that stay in memory: at most a quarter of what there is.
fn changeset_memory() -> usize {
    let count = || shmem::shared().pool().total_blocks(Class::Local);
    let blocks = BLOCKS.with(|blocks| *blocks.get_or_init(count)) as usize;
    guc::changeset_memory().min(blocks * POOL_BLOCK_BYTES / 4)
}

fn start() -> Result<()> {
    read::check_snapshot()?;
    announce()?;
    with(|state| {
        state.builder = Some(Builder::new(sink(), sink()));
        state.cuts.begin();
    });
    Ok(())
}

/// Says how far back the windows of the transaction can reach, and which it is. Once a transaction,
/// before the first `since` is read.
pub fn announce() -> Result<()> {
    let id = transaction::local_id();
    if ANNOUNCED.get() == id {
        return Ok(());
    }
    watch_transactions()?;
    channel::attach(false)?;
    let (shared, me) = (shmem::shared(), shmem::my_slot());
    let (control, slot) = (shared.control(), shared.slot(me));
    slot.ticket.store(id.into(), Ordering::SeqCst);
    since::publish(control, slot);
    ANNOUNCED.set(id);
    Ok(())
}

/// `last_committed_gid` now.
pub fn now() -> Gid {
    shmem::shared().control().visible.passed()
}

/// Has us told of the ends of transactions. Once a process.
pub fn watch_transactions() -> Result<()> {
    if !REGISTERED.get() {
        transaction::on_end(Some(on_xact), Some(on_subxact))?;
        REGISTERED.set(true);
    }
    Ok(())
}

/// The transaction has changed something that its changeset doesn't carry; its end forgets that.
pub fn local_effect() -> Result<()> {
    watch_transactions()?;
    with(|state| state.local_effects = true);
    Ok(())
}

/// Appends a key; its `since` is now, when the lock that it stands for is held.
pub fn key(relation: u32, hash: u64, usage: KeyUse) -> Result<()> {
    key_since(relation, hash, usage, now())
}

/// Appends a key whose lock was taken at `since`, in this transaction.
pub fn key_since(relation: u32, hash: u64, usage: KeyUse, since: Gid) -> Result<()> {
    let KeyUse { mode, flags } = usage;
    append(|builder| {
        builder.key(Key {
            hash,
            since,
            relation,
            mode,
            flags,
        })
    })
}

/// Appends entries about rows of `relation`.
pub fn entries(
    relation: &Relation,
    add: impl FnOnce(&mut ChainBuilder) -> std::result::Result<(), Full>,
) -> Result<()> {
    append(|builder| {
        let natts = relation.attrs.len() as u16;
        builder.relation(Oid(relation.oid), relation.fingerprint, natts)?;
        add(builder)
    })
}

/// Appends the entry of relations that were truncated together.
pub fn truncated(relations: &[u32]) -> Result<()> {
    append(|builder| builder.truncate(relations))
}

/// Appends a change of a sequence.
pub fn sequence(oid: u32, change: SequenceChange) -> Result<()> {
    append(|builder| builder.sequence(Oid(oid), change))
}

/// Appends to the changeset, which [`enter`] has begun.
pub(super) fn append(
    add: impl FnOnce(&mut ChainBuilder) -> std::result::Result<(), Full>,
) -> Result<()> {
    with(|state| match &mut state.builder {
        Some(builder) => append_to(builder, add),
        None => unreachable!("enter() comes first"),
    })
}

fn append_to(
    builder: &mut ChainBuilder,
    add: impl FnOnce(&mut ChainBuilder) -> std::result::Result<(), Full>,
) -> Result<()> {
    let result = add(builder);
    let bytes = builder.total_bytes();
    match result {
        Ok(()) if bytes <= CHANGESET_BYTES_MAX => Ok(()),
        Ok(()) => Err(too_large(bytes)),
        Err(Full) => Err(no_memory(bytes)),
    }
}

pub fn too_large(bytes: usize) -> PgError {
    PgError::new("54000", "transaction changes too much to be replicated")
        .detail(format!(
            "Its changeset has {bytes} bytes; the largest has {CHANGESET_BYTES_MAX}."
        ))
        .hint("Split it into several transactions.")
}

pub fn no_memory(bytes: usize) -> PgError {
    let pool = shmem::shared().pool();
    let all = pool.total_blocks(Class::Local) as usize * POOL_BLOCK_BYTES;
    let free = pool.free_blocks(Class::Local) as usize * POOL_BLOCK_BYTES;
    // What was to be appended is not among these: it is larger than what was left.
    if bytes + free >= all / 2 {
        PgError::new("54000", "transaction changes too much to be replicated")
            .detail(format!(
                "A change does not fit beside the {bytes} bytes of others; there are {all} for all transactions."
            ))
            .hint("Make rows smaller, or raise replication_imessage_buffers.")
    } else {
        PgError::new("53200", "out of memory for the changesets of transactions")
            .detail(format!("Of {all} bytes {free} are free."))
            .hint("Try again, or raise replication_imessage_buffers.")
    }
}

/// How far the transaction reaches into what is replicated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// It has changed nothing and locked nothing, or a rollback has undone that.
    Nothing,
    /// It has locked rows or tables.
    Locks,
    /// It has changed something.
    Changes,
}

/// How far the current transaction does.
pub fn extent() -> Extent {
    with(|state| match &state.builder {
        Some(b) if !b.has_no_entries() => Extent::Changes,
        Some(b) if b.counts().0 > 0 || !b.coarse().is_empty() => Extent::Locks,
        _ => Extent::Nothing,
    })
}

/// A transaction that is to be multicast.
pub struct Pending {
    /// Its changeset.
    pub builder: ChainBuilder,
    /// It has effects that the changeset doesn't carry: nobody can do it in its place.
    pub local_effects: bool,
}

/// The changeset of the transaction, which captures nothing from here on; `None` if it changed
/// nothing.
pub fn take() -> Option<Pending> {
    with(|state| {
        let builder = state.builder.take_if(|b| !b.has_no_entries())?;
        Some(Pending {
            builder,
            local_effects: state.local_effects,
        })
    })
}

impl Pending {
    /// Adds what stands for keys that were too many and entries that went ahead. Sends what is left
    /// of those. Returns the relations whose keys were too many.
    pub fn complete(&mut self) -> Result<Vec<u32>> {
        fragments::send()?;
        if let Some(correction) = self.builder.take_correction(sink()) {
            fragments::put(correction);
        }
        fragments::settle()?;
        let coarse = self.builder.coarse();
        for (relation, coarse) in &coarse {
            for key in table_mode::coarse(*relation, coarse) {
                append_to(&mut self.builder, |b| b.key(key))?;
            }
        }
        if self.builder.has_fragments() {
            append_to(&mut self.builder, |b| b.fragments(fragments::of()))?;
        }
        Ok(coarse.into_iter().map(|c| c.0).collect())
    }

    /// Adds where the transaction came from. No other of that source passes beside it: each has its place
    /// behind the ones that came before it there.
    pub fn add_source(&mut self, source: Source<'_>) -> Result<()> {
        append_to(&mut self.builder, |b| b.source(source))?;
        if source.lsn == 0 {
            return Ok(());
        }
        let name = Digest::new().bytes(source.name.to_bytes()).finish();
        let key = Key {
            hash: KeyHash::new(CATALOG, What::Row).add(name).finish(),
            since: now(),
            relation: CATALOG,
            mode: LockMode::Update,
            flags: 0,
        };
        append_to(&mut self.builder, |b| b.key(key))
    }

    /// Adds what the transaction has read, if it is SERIALIZABLE.
    pub fn add_reads(&mut self) -> Result<()> {
        for key in read::take() {
            append_to(&mut self.builder, |b| b.key(key))?;
        }
        Ok(())
    }
}

/// The end of a transaction or subtransaction, as xact.h has the events.
extern "C" fn on_xact(event: sys::XactEvent, _arg: *mut c_void) {
    if event == sys::XACT_EVENT_PRE_PREPARE && (export::enabled() || extent() != Extent::Nothing) {
        boundary(prepare::check);
    }
    // Once it is prepared, nothing of it is this session's.
    let ends = [
        sys::XACT_EVENT_COMMIT,
        sys::XACT_EVENT_ABORT,
        sys::XACT_EVENT_PREPARE,
    ];
    if ends.contains(&event) {
        boundary_nofail(|| {
            discard();
            read::discard();
            worker::ended();
        });
    }
}

/// Forgets what was captured, and gives its memory back.
pub fn discard() {
    let builder = with(|state| {
        state.marks.clear();
        state.local_effects = false;
        state.builder.take()
    });
    drop(builder);
    trigger::set_redone(false);
    fragments::end();
}

extern "C" fn on_subxact(
    event: sys::SubXactEvent,
    ended: sys::SubTransactionId,
    parent: sys::SubTransactionId,
    _arg: *mut c_void,
) {
    boundary_nofail(|| match event {
        sys::SUBXACT_EVENT_COMMIT_SUB => with(|state| state.marks.released(ended, parent)),
        sys::SUBXACT_EVENT_ABORT_SUB => {
            with(|state| {
                if let Some(mark) = state.marks.rolled_back(ended)
                    && let Some(builder) = &mut state.builder
                {
                    builder.rollback(mark);
                    state.cuts.cut(builder.counts().0);
                }
            });
            read::subtransaction_aborted();
            victim::subtransaction_aborted();
        }
        _ => {}
    });
}
