//! What a SERIALIZABLE transaction of a replicated database reads: from searches to keys.
//!
//! On one server PostgreSQL watches for dangerous structures of conflicts between transactions that
//! it runs itself (predicate.c). A group can't, for they run on several; it certifies that
//! what a writing transaction has read is still so at its place in the order. So predicate.c is left
//! out of it, and its searches are taken down here.

use super::change::{whole, with_scratch};
use super::range::SEARCH;
use super::read_set::ReadSet;
use super::relation::{self, FIRST_NORMAL_OID, Kind, Relation};
use super::search::{self, Sought};
use super::transaction as captured;
use crate::changeset::{Key, LockMode};
use crate::export;
use crate::pg::guard::{PgError, Result};
use crate::pg::heap;
use crate::pg::relation::{Handle, Tuple};
use crate::pg::search::{self as pg_search, ScanKeys};
use crate::pg::starting::{self, Stage};
use crate::pg::{backend, relation as pg_relation, sys, transaction};
use crate::worker::channel::control;
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;

/// How the current transaction's snapshot was taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Snapshot {
    /// No SERIALIZABLE one, or by predicate.c, or by one that changes nothing.
    Other,
    /// What it shows is known, and what is read of it is taken down.
    Tracked,
    /// It is that of another transaction.
    Imported,
    /// Of a transaction that changes nothing, and so is at its place in the order by its snapshot
    /// alone. It may still notify.
    ReadOnly,
}

thread_local! {
    static SNAPSHOT: Cell<Snapshot> = const { Cell::new(Snapshot::Other) };
    /// Borrowed only for moments in which nothing of PostgreSQL runs.
    static READS: ManuallyDrop<RefCell<Option<ReadSet>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

/// A SERIALIZABLE transaction is about to take its snapshot. False: predicate.c serves it, for there
/// is no group (yet).
pub fn begin(imported: bool) -> Result<bool> {
    // The stage before the database, which is set before it ends.
    if starting::stage() != Stage::None
        || control().database.load(Ordering::SeqCst) != backend::database()
    {
        return Ok(false);
    }
    if transaction::is_read_only() {
        captured::watch_transactions()?;
        SNAPSHOT.set(Snapshot::ReadOnly);
        return Ok(true);
    }
    captured::announce()?;
    if imported {
        SNAPSHOT.set(Snapshot::Imported);
        return Ok(true);
    }
    // Before the snapshot: it shows all up to there, and perhaps more.
    let since = captured::now();
    READS.with(|reads| *reads.borrow_mut() = Some(ReadSet::new(since)));
    SNAPSHOT.set(Snapshot::Tracked);
    backend::set_reads(true);
    Ok(true)
}

/// Whether reads of the current transaction are taken down.
pub fn is_tracked() -> bool {
    SNAPSHOT.get() == Snapshot::Tracked
}

/// The transaction is over.
pub fn discard() {
    SNAPSHOT.set(Snapshot::Other);
    READS.with(|reads| *reads.borrow_mut() = None);
    backend::set_reads(false);
    backend::set_unread(0);
}

/// A subtransaction was rolled back, and with it any check that was under way. What it had read
/// stays: who rolled it back knows it.
pub fn subtransaction_aborted() {
    backend::set_unread(0);
}

/// The keys of all that was read.
pub fn take() -> Vec<Key> {
    READS.with(|reads| {
        reads
            .borrow_mut()
            .take()
            .map_or_else(Vec::new, |r| r.keys().collect())
    })
}

fn with<T>(f: impl FnOnce(&mut ReadSet) -> T) -> Option<T> {
    READS.with(|reads| reads.borrow_mut().as_mut().map(f))
}

/* ---------------- what the transaction may do ---------------- */

/// Before the transaction changes anything.
pub fn check_snapshot() -> Result<()> {
    if SNAPSHOT.get() == Snapshot::Imported {
        return Err(PgError::new(
            "0A000",
            "cannot write or lock rows in a SERIALIZABLE transaction with an imported snapshot in a replicated database",
        )
        .hint("Use REPEATABLE READ, or take a snapshot of its own."));
    }
    Ok(())
}

/// COMMIT of a transaction of which nothing was captured.
pub fn check_uncaptured() -> Result<()> {
    if is_tracked() && !export::enabled() && transaction::has_xid() {
        return Err(moved());
    }
    Ok(())
}

/// COMMIT without a group.
pub fn check_alone() -> Result<()> {
    if is_tracked() { Err(moved()) } else { Ok(()) }
}

/// COMMIT with a group.
pub fn check_grouped() -> Result<()> {
    let known = matches!(SNAPSHOT.get(), Snapshot::Tracked | Snapshot::ReadOnly);
    if transaction::is_serializable() && !known {
        return Err(moved());
    }
    Ok(())
}

/// Nobody has watched all that it read.
fn moved() -> PgError {
    PgError::new(
        "40001",
        "could not serialize access because replication of the database began or ended",
    )
    .hint("The transaction might succeed if retried.")
}

/* ---------------- what it reads ---------------- */

/// A table is read from one end to the other.
pub fn table(rel: Handle) -> Result<()> {
    let oid = pg_relation::oid(rel);
    if is_known(oid) {
        return Ok(());
    }
    let relation = relation::lookup(rel)?;
    if relation.kind == Kind::Replicated {
        with(|reads| reads.whole(oid, relation.own_key()));
    }
    Ok(())
}

/// Whether it counts which rows of a table are found.
pub fn counts_rows(rel: Handle) -> bool {
    !is_known(pg_relation::oid(rel))
}

/// A row was found.
pub fn row(rel: Handle, row: Tuple) -> Result<()> {
    let oid = pg_relation::oid(rel);
    if is_known(oid) {
        return Ok(());
    }
    let relation = relation::lookup(rel)?;
    if relation.kind != Kind::Replicated {
        return Ok(());
    }
    let key = with_scratch(|s| {
        let (_, row) = whole(rel, &relation, row, &mut s.old)?;
        relation.row_key(&s.old, row.data)
    })?;
    add(&relation, key.as_slice(), LockMode::Share);
    Ok(())
}

/// An index scan begins, or begins anew: it may find what its keys allow, there or not.
pub fn index(index: Handle, keys: ScanKeys) -> Result<()> {
    let table = pg_relation::index_form(index).indrelid;
    if is_known(table) {
        return Ok(());
    }
    let relation = of_index(index)?;
    if relation.kind != Kind::Replicated {
        return Ok(());
    }
    let sought = with_scratch(|_| match pg_search::searched(index, keys)? {
        None => Ok(Sought::Nothing),
        Some(search) => search::sought(&relation, pg_relation::oid(index), &search),
    })?;
    match sought {
        Sought::Nothing => {}
        Sought::Points(points, mode) => points.iter().for_each(|key| add(&relation, &[*key], mode)),
        Sought::Entries(keys, detail) => {
            let (oid, own) = (relation.oid, relation.own_key());
            with(|reads| reads.entries(oid, own, detail));
            control().wanted.want(oid, detail, captured::now());
            add(&relation, &keys, SEARCH);
        }
        Sought::Whole => add(&relation, &[], LockMode::Share),
    }
    Ok(())
}

/// A row could not be inserted, or was not, because one with these values is in a unique index: that
/// it is there was read. If the transaction had looked for it before and has come after its snapshot,
/// that is what it fails for, as on one server: it may succeed if retried.
pub fn duplicate(
    rel: Handle,
    index: Handle,
    tid: Option<sys::ItemPointerData>,
    values: &[sys::Datum],
    nulls: &[bool],
) -> Result<()> {
    let relation = relation::lookup(rel)?;
    if relation.kind != Kind::Replicated {
        return Ok(());
    }
    let index = pg_relation::oid(index);
    let key = with_scratch(|_| search::entry(&relation, index, values, nulls))?;
    let looked = with(|reads| reads.covers(relation.oid, key)) == Some(true);
    if looked
        && let Some(tid) = tid
        && pg_search::is_newer(rel, tid)?
    {
        return Err(overtaken(&relation));
    }
    // Whatever leaves the value there may happen.
    add(&relation, key.as_slice(), LockMode::KeyShare);
    Ok(())
}

/// The transaction is doomed: what it has read is not so any more.
fn overtaken(relation: &Relation) -> PgError {
    PgError::new(
        "40001",
        "could not serialize access due to read/write dependencies among transactions",
    )
    .detail(format!(
        "A row that this transaction had not found was inserted into table \"{}\" meanwhile.",
        relation.name
    ))
    .hint("The transaction might succeed if retried.")
}

/// Nothing more need be said of a relation.
fn is_known(oid: u32) -> bool {
    oid < FIRST_NORMAL_OID
        || oid == backend::unread()
        || with(|reads| reads.has_whole(oid)) != Some(false)
}

/// The table of an index that is being searched.
fn of_index(index: Handle) -> Result<std::rc::Rc<Relation>> {
    let table = pg_relation::index_form(index).indrelid;
    // Who searches the index holds a lock on both.
    let rel = pg_relation::open(table, 0)?
        .ok_or_else(|| heap::internal(format!("index of a missing relation {table}")))?;
    let relation = relation::lookup(rel)?;
    pg_relation::close(rel, 0)?;
    Ok(relation)
}

/// Keys that were read; without any, the whole relation.
fn add(relation: &Relation, keys: &[u64], mode: LockMode) {
    let (oid, own) = (relation.oid, relation.own_key());
    with(|reads| {
        if keys.is_empty() {
            reads.whole(oid, own);
        }
        for key in keys {
            reads.key(oid, own, *key, mode);
        }
    });
}
