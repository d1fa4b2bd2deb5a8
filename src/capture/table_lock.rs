//! Locks of whole tables: those of LOCK TABLE, and those under which rows are changed and locked.

use super::hash::KeyHash;
use super::relation::FIRST_NORMAL_OID;
use super::table_mode::{self, ACCESS_EXCLUSIVE, ROW_EXCLUSIVE, ROW_SHARE, TableKey};
use super::transaction;
use crate::ids::Gid;
use crate::pg::backend;
use crate::pg::guard::Result;
use crate::pg::relation;
use crate::pg::transaction::{in_vacuum, local_id};
use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::ManuallyDrop;

/// When the current transaction was given its locks, as `last_committed_gid` right after that.
#[derive(Default)]
struct Granted {
    /// Which transaction's (local id); what is left of another is void.
    transaction: u32,
    at: HashMap<(u32, i32), Gid>,
}

thread_local! {
    static GRANTED: ManuallyDrop<RefCell<Option<Granted>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

/// A lock in this mode, ROW SHARE, ROW EXCLUSIVE or ACCESS EXCLUSIVE, was granted that the transaction
/// did not have. The statement that wants it takes its snapshot later. After a savepoint's rollback has
/// given a lock back its next grant replaces this one.
pub fn granted(relation: u32, mode: i32) -> Result<()> {
    // VACUUM locks indexes in this way, for long, and writes nothing. What triggers lock in a helper is
    // for its own server.
    if relation < FIRST_NORMAL_OID || in_vacuum() || backend::is_helper() {
        return Ok(());
    }
    // Maintenance locks so too, for long, and has no windows. TRUNCATE is announced by its first key: if
    // the floor has passed its lock by then, it fails.
    if mode != ACCESS_EXCLUSIVE {
        transaction::announce()?;
    }
    let (now, transaction) = (transaction::now(), local_id());
    GRANTED.with(|granted| {
        let mut granted = granted.borrow_mut();
        let granted = granted.get_or_insert_default();
        if granted.transaction != transaction {
            granted.transaction = transaction;
            granted.at.clear();
        }
        granted.at.insert((relation, mode), now);
    });
    Ok(())
}

/// Visits what the transaction has locked to change rows, with its indexes.
pub fn each_granted(mut visit: impl FnMut(u32)) {
    GRANTED.with(|granted| {
        let granted = granted.borrow();
        let granted = granted.iter().filter(|g| g.transaction == local_id());
        let locks = granted.flat_map(|g| g.at.keys());
        for (relation, _) in locks.filter(|(_, mode)| *mode == ROW_EXCLUSIVE) {
            visit(*relation);
        }
    });
}

/// `since` of a lock in this mode that the transaction holds.
fn since(relation: u32, mode: i32) -> Gid {
    GRANTED
        .with(|granted| {
            let granted = granted.borrow();
            let granted = granted.as_ref()?;
            let current = granted.transaction == local_id();
            granted
                .at
                .get(&(relation, mode))
                .filter(|_| current)
                .copied()
        })
        .unwrap_or_else(transaction::now)
}

/// Rows of this relation are changed; `how`: with a key of `table_mode`.
pub fn writes(relation: u32, how: TableKey) -> Result<()> {
    key(relation, how, since(relation, ROW_EXCLUSIVE))
}

/// Rows of this relation are locked.
pub fn locks_rows(relation: u32) -> Result<()> {
    key(relation, table_mode::ROW_LOCKER, since(relation, ROW_SHARE))
}

/// LOCK TABLE has locked this relation; `children`: those below it follow.
pub fn locked(relation: u32, mode: i32, children: bool) -> Result<()> {
    let keys = table_mode::keys(mode);
    if keys.is_empty() || relation < FIRST_NORMAL_OID || backend::is_helper() {
        return Ok(());
    }
    let (persistence, kind) = relation::persistence_and_kind(relation)?;
    // What others do to an unlogged or temporary table, they do on their own member.
    if persistence != b'p' {
        return Ok(());
    }
    transaction::enter()?;
    append(relation, mode, keys)?;
    // Rows have the keys of the partitions that they are in, also for who came to them from here.
    if !children && kind == b'p' {
        let partitions = relation::inheritors(relation)?;
        for partition in partitions.into_iter().filter(|p| *p != relation) {
            append(partition, mode, keys)?;
        }
    }
    Ok(())
}

fn append(relation: u32, mode: i32, keys: &[TableKey]) -> Result<()> {
    let since = since(relation, mode);
    keys.iter().try_for_each(|k| key(relation, *k, since))
}

fn key(relation: u32, (what, mode, flags): TableKey, since: Gid) -> Result<()> {
    let hash = KeyHash::new(relation, what).finish();
    transaction::key_since(relation, hash, transaction::KeyUse { mode, flags }, since)
}
