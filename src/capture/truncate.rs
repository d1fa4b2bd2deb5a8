//! TRUNCATE: its locks, as those of LOCK TABLE, and which relations, when all have been truncated.

use super::change::unjudged;
use super::hash::{KeyHash, What};
use super::read;
use super::relation::FIRST_NORMAL_OID;
use super::transaction::{self, KeyUse};
use super::{table_lock, table_mode, trigger};
use crate::changeset::LockMode;
use crate::changeset::key::KEY_RELATION;
use crate::pg::guard::Result;
use crate::pg::relation::{self, Handle};
use crate::pg::{backend, ddl};

/// A relation is locked and about to be truncated.
pub fn begins(rel: Handle) -> Result<()> {
    if relation::form(rel).relkind as u8 == b'f' {
        return ddl::foreign(&relation::name(rel));
    }
    if backend::is_helper() {
        let permanent = relation::form(rel).relpersistence as u8 == b'p';
        return if permanent {
            Err(trigger::refused_table(&relation::name(rel)))
        } else {
            Ok(())
        };
    }
    table_lock::locked(relation::oid(rel), table_mode::ACCESS_EXCLUSIVE, true)
}

/// TRUNCATE has done these, partitioned tables and their partitions among them.
pub fn truncated(relations: impl Iterator<Item = Handle>) -> Result<()> {
    if backend::is_helper() {
        return Ok(());
    }
    let mut oids = Vec::new();
    for rel in relations {
        let oid = relation::oid(rel);
        match relation::form(rel).relpersistence as u8 {
            _ if oid < FIRST_NORMAL_OID => {}
            b'p' => oids.push(oid),
            persistence => {
                if persistence == b'u' && read::is_tracked() {
                    return Err(unjudged(&relation::name(rel)));
                }
                transaction::local_effect()?;
            }
        }
    }
    if oids.is_empty() {
        return Ok(());
    }
    transaction::enter()?;
    // Who writes rows of them, or has read any, is not ordered behind without having seen this.
    let (mode, flags) = (LockMode::Update, KEY_RELATION);
    for oid in &oids {
        let hash = KeyHash::new(*oid, What::Relation).finish();
        transaction::key(*oid, hash, KeyUse { mode, flags })?;
    }
    transaction::truncated(&oids)
}
