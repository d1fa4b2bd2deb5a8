//! Entries that come to indexes, named for SERIALIZABLE transactions of any member that look for such.
//!
//! A search counts the rows that it finds by their identity, and those that it does not find by the
//! keys that their entries would have. Who brings entries says either what these keys are, or that
//! some have come (`table_mode::COMER`), which is in the way of every such search of the relation. So
//! what it names is a matter of cost alone, and each writer decides by itself.

use super::change::computed;
use super::hash::{KeyHash, VALUE_SEED, What};
use super::layout::Span;
use super::range::ENTRY;
use super::relation::{Relation, Sorted, Source};
use super::table_lock;
use super::table_mode::{COMER, UNRANGED};
use super::transaction::{self, KeyUse};
use crate::imsg::wanted::Detail;
use crate::limits::ENTRY_KEYS_MAX;
use crate::pg::guard::Result;
use crate::pg::heap;
use crate::pg::relation::{Handle, HashProc, Tuple};
use crate::pg::sys;
use crate::worker::channel::control;

/// Whether anything is to be said of entries that come to its indexes.
pub fn may_come(relation: &Relation) -> bool {
    // Who writes what is exclusive is in the way of all that read it.
    !relation.sorted.is_empty() && !relation.exclusive
}

/// What to say of entries that come now.
pub fn detail(relation: &Relation) -> Detail {
    if transaction::keys_count() > ENTRY_KEYS_MAX {
        return Detail::Some;
    }
    control().wanted.detail(relation.oid, transaction::now())
}

/// A row came to indexes: a new one to all, or one of which these columns have changed. Its values are
/// at these places of its bytes.
pub fn come(
    rel: Handle,
    relation: &Relation,
    row: Tuple,
    values: (&[Span], &[u8]),
    changed: Option<&[bool]>,
) -> Result<()> {
    if !may_come(relation) || transaction::keeps(relation.comer.get()) {
        return Ok(());
    }
    let comes = |sorted: &&Sorted| match (&sorted.source, changed) {
        // Also those that no key names: what they keep out a scan does not fetch.
        (Source::Columns(_), Some(changed)) => {
            (sorted.columns.iter()).any(|column| changed[usize::from(*column)])
        }
        // Which columns these depend on is not known.
        _ => true,
    };
    if !relation.sorted.iter().any(|s| comes(&s)) {
        return Ok(());
    }
    let detail = detail(relation);
    if detail == Detail::Some {
        table_lock::writes(relation.oid, COMER)?;
        relation.comer.set(transaction::place());
        return Ok(());
    }
    if detail == Detail::Prefixes && !transaction::keeps(relation.unranged.get()) {
        table_lock::writes(relation.oid, UNRANGED)?;
        relation.unranged.set(transaction::place());
    }
    for sorted in relation.sorted.iter().filter(comes) {
        let mut namer = Namer::new(relation.oid, sorted, detail);
        match &sorted.source {
            Source::Columns(columns) => {
                let (spans, data) = values;
                let values = columns.values(&relation.attrs, spans, data);
                for (value, hash) in values.zip(columns.hashes()) {
                    if !namer.name(value, hash)? {
                        break;
                    }
                }
            }
            Source::Computed { info, columns } => {
                computed(rel, *info, row, |i, value| match columns.get(i) {
                    Some(hash) => namer.name(value, *hash),
                    None => Ok(false),
                })?;
            }
        }
    }
    Ok(())
}

/// Appends the keys of an entry, column by column.
struct Namer<'a> {
    relation: u32,
    sorted: &'a Sorted,
    detail: Detail,
    column: usize,
    prefix: KeyHash,
    bucket: KeyHash,
}

impl<'a> Namer<'a> {
    fn new(relation: u32, sorted: &'a Sorted, detail: Detail) -> Namer<'a> {
        Namer {
            relation,
            sorted,
            detail,
            column: 0,
            prefix: KeyHash::new(relation, What::Prefix(sorted.digest)),
            bucket: KeyHash::new(relation, What::Bucket(sorted.digest)),
        }
    }

    /// The value of the next column; false if no more are needed, for no search by equality or range
    /// finds null.
    fn name(
        &mut self,
        value: Option<sys::Datum>,
        (function, collation): (HashProc, u32),
    ) -> Result<bool> {
        let Some(value) = value else {
            return Ok(false);
        };
        if self.detail == Detail::Ranges
            && let Some(image) = self.sorted.integers[self.column]
        {
            for bucket in image.buckets(image.of(value)) {
                self.key(bucket.key(self.bucket))?;
            }
        }
        self.column += 1;
        let hash = heap::hash(function, collation, value, VALUE_SEED)?;
        (self.prefix, self.bucket) = (self.prefix.add(hash), self.bucket.add(hash));
        if self.column <= self.sorted.prefix {
            self.key(self.prefix.finish())?;
        }
        Ok(self.column < self.sorted.integers.len())
    }

    fn key(&self, hash: u64) -> Result<()> {
        let (mode, flags) = (ENTRY, 0);
        transaction::key(self.relation, hash, KeyUse { mode, flags })
    }
}
