//! PREPARE TRANSACTION: which transactions may be prepared, and with what locks.
//!
//! A prepared transaction can be told nothing, and lasts: no helper may ever have to wait for it. So one
//! that has changed or locked anything that is replicated is refused. One that has read it gives back the
//! locks under which it did: it can do nothing more than end, so there is nothing that they could protect.

use super::read;
use super::relation::FIRST_NORMAL_OID;
use super::table_mode::{ACCESS_SHARE, ROW_EXCLUSIVE};
use super::transaction::{self, Extent};
use crate::pg::ddl;
use crate::pg::guard::{PgError, Result};
use crate::pg::large_object::{PAGES, PAGES_INDEX};
use crate::pg::locks::{self, RelationLock};
use crate::pg::relation;

/// The transaction is about to be prepared: nothing of it is left to run.
pub fn check() -> Result<()> {
    read::check_uncaptured()?;
    match transaction::extent() {
        Extent::Changes => return Err(refused("changed data that is replicated")),
        Extent::Locks => return Err(refused("locked data that is replicated")),
        Extent::Nothing => {}
    }
    let mut given_back = Vec::new();
    for lock in locks::of_relations()? {
        let Some(weak) = weak_modes(lock)? else {
            continue;
        };
        for mode in lock.modes() {
            if mode > weak {
                return Err(refused(&strong(lock.relation)?));
            }
            given_back.push((lock, mode));
        }
    }
    given_back
        .into_iter()
        .try_for_each(|(lock, mode)| locks::release(lock, mode))
}

/// Up to which mode a lock protects nothing, since nothing was captured; `None` for what is this server's
/// own, which helpers wait for in triggers only, and not for long.
fn weak_modes(lock: RelationLock) -> Result<Option<i32>> {
    // Who reads a large object locks these as if to write.
    if [PAGES, PAGES_INDEX].contains(&lock.relation) {
        return Ok(Some(ROW_EXCLUSIVE));
    }
    // Rows of other catalogs may be locked, and are not captured.
    if lock.database == 0 || lock.relation < FIRST_NORMAL_OID {
        return Ok(Some(ACCESS_SHARE));
    }
    Ok(match relation::persistence_and_kind(lock.relation)? {
        // Its values are captured with no transaction; this lock says that there were some.
        (b'p', b'S') => Some(ACCESS_SHARE),
        (b'p', _) => Some(ROW_EXCLUSIVE),
        _ => None,
    })
}

fn strong(relation: u32) -> Result<String> {
    let name = relation::name_of(relation).unwrap_or_default();
    Ok(match relation::persistence_and_kind(relation)? {
        (_, b'S') => format!("used sequence \"{name}\""),
        _ => format!("locked relation \"{name}\""),
    })
}

fn refused(what: &str) -> PgError {
    ddl::prepare(what)
}
