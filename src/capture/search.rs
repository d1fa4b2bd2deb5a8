//! From a search in an index to the keys that whatever it could find has.

use super::hash::{KeyHash, NULL_VALUE, VALUE_SEED, What};
use super::relation::{Relation, Sorted};
use crate::changeset::LockMode;
use crate::imsg::wanted::Detail;
use crate::limits::READ_POINTS_MAX;
use crate::pg::guard::Result;
use crate::pg::heap;
use crate::pg::relation::HashProc;
use crate::pg::search::{Search, Searched};
use crate::pg::sys;

/// Fewest keys that can cover a range.
const COVER_MIN: usize = 32;

/// What a search looks for.
pub enum Sought {
    /// Nothing that there can be.
    Nothing,
    /// Entries of a unique index, which all writers name, and what of them it reads.
    Points(Vec<u64>, LockMode),
    /// Entries of an index, which writers name that go to this detail.
    Entries(Vec<u64>, Detail),
    /// More than keys can say.
    Whole,
}

/// What a search of an index of this relation looks for.
pub fn sought(relation: &Relation, index: u32, search: &Search<'_>) -> Result<Sought> {
    let Search { columns, range } = search;
    // Few integers are a list of values.
    let list: Vec<sys::Datum> = match *range {
        Some((low, high)) if high.abs_diff(low) < READ_POINTS_MAX as u64 => {
            (low..=high).map(|value| value as sys::Datum).collect()
        }
        _ => Vec::new(),
    };
    let mut listed = columns.clone();
    if !list.is_empty() {
        listed.push(Searched {
            values: &list,
            hash: None,
        });
    }
    if let Some(entries) = entries(relation, index).filter(|e| e.hashes.len() <= listed.len()) {
        let start = KeyHash::new(relation.oid, entries.what);
        if let Some(keys) = combined(start, &entries.hashes, &listed, READ_POINTS_MAX)? {
            return Ok(Sought::Points(finished(keys), entries.mode));
        }
    }
    let Some(sorted) = (relation.sorted.iter())
        .find(|s| s.index == index)
        .filter(|_| !relation.exclusive)
    else {
        return Ok(Sought::Whole);
    };
    if list.is_empty() || sorted.prefix < listed.len() {
        if let Some(keys) = ranged(relation, sorted, search)? {
            return Ok(Sought::Entries(keys, Detail::Ranges));
        }
        listed.truncate(columns.len());
    }
    // Of what would be too many keys, those of fewer columns.
    let hashes = sorted.source.hashes();
    let start = KeyHash::new(relation.oid, What::Prefix(sorted.digest));
    for n in (1..=sorted.prefix.min(listed.len())).rev() {
        if let Some(keys) = combined(start, &hashes[..n], &listed[..n], READ_POINTS_MAX)? {
            return Ok(Sought::Entries(finished(keys), Detail::Prefixes));
        }
    }
    Ok(Sought::Whole)
}

/// The range of a column behind equal ones, as buckets; `None` if it is not sorted by integers, or
/// if there would be too many.
fn ranged(relation: &Relation, sorted: &Sorted, search: &Search<'_>) -> Result<Option<Vec<u64>>> {
    let n = search.columns.len();
    let (Some((low, high)), Some(Some(image))) = (search.range, sorted.integers.get(n)) else {
        return Ok(None);
    };
    let start = KeyHash::new(relation.oid, What::Bucket(sorted.digest));
    let (hashes, most) = (sorted.source.hashes(), READ_POINTS_MAX / COVER_MIN);
    let Some(prefixes) = combined(start, &hashes[..n], &search.columns, most)? else {
        return Ok(None);
    };
    let cover = image.cover(low, high, READ_POINTS_MAX / prefixes.len());
    let keys = prefixes
        .iter()
        .flat_map(|prefix| cover.iter().map(|bucket| bucket.key(*prefix)));
    Ok(Some(keys.collect()))
}

/// Keys of all combinations of these columns' values, if they are not too many.
fn combined(
    start: KeyHash,
    hashes: &[(HashProc, u32)],
    columns: &[Searched<'_>],
    most: usize,
) -> Result<Option<Vec<KeyHash>>> {
    let mut keys = vec![start];
    for ((hash, collation), column) in hashes.iter().zip(columns) {
        if keys.len() * column.values.len() > most {
            return Ok(None);
        }
        let mut longer = Vec::with_capacity(keys.len() * column.values.len());
        for value in column.values {
            let hash = column.hash.unwrap_or(*hash);
            let value = heap::hash(hash, *collation, *value, VALUE_SEED)?;
            longer.extend(keys.iter().map(|key| key.add(value)));
        }
        keys = longer;
    }
    Ok(Some(keys))
}

fn finished(keys: Vec<KeyHash>) -> Vec<u64> {
    keys.into_iter().map(KeyHash::finish).collect()
}

/// How a unique index tells entries apart.
struct Entries {
    what: What,
    hashes: Vec<(HashProc, u32)>,
    /// What of such an entry a search has read.
    mode: LockMode,
}

/// `None` if its entries have no keys of their own.
fn entries(relation: &Relation, index: u32) -> Option<Entries> {
    if let Some(columns) = relation
        .identity()
        .filter(|_| index == relation.identity_index)
    {
        return Some(Entries {
            what: What::Row,
            hashes: columns.hashes().collect(),
            mode: LockMode::Share,
        });
    }
    let unique = relation.uniques.iter().find(|u| u.index == index)?;
    Some(Entries {
        what: What::Unique(unique.digest),
        hashes: unique.source.hashes(),
        // That it is there or not; the rows that are found count by themselves.
        mode: LockMode::KeyShare,
    })
}

/// Key of an entry of a unique index; `None` if it has none of its own.
pub fn entry(
    relation: &Relation,
    index: u32,
    values: &[sys::Datum],
    nulls: &[bool],
) -> Result<Option<u64>> {
    let Some(entries) = entries(relation, index) else {
        return Ok(None);
    };
    let mut key = KeyHash::new(relation.oid, entries.what);
    for ((hash, collation), (value, null)) in
        entries.hashes.into_iter().zip(values.iter().zip(nulls))
    {
        key = key.add(if *null {
            NULL_VALUE
        } else {
            heap::hash(hash, collation, *value, VALUE_SEED)?
        });
    }
    Ok(Some(key.finish()))
}
