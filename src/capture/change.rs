//! From a change of a row to its keys and its entry in the changeset.

use super::entries;
use super::hash::{KeyHash, NULL_VALUE, VALUE_SEED, What};
use super::layout::{self, Span, Writer};
use super::read;
use super::relation::{self, Kind, Relation, Source, Unique};
use super::table_lock;
use super::table_mode::{COMER, WRITER};
use super::transaction::{self, KeyUse};
use super::trigger;
use crate::changeset::LockMode;
use crate::changeset::key::{KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_ORDER, KEY_RELATION, KEY_UNIQUE};
use crate::changeset::tuple::{Bitmap, TupleBytes};
use crate::ids::Oid;
use crate::imsg::wanted::Detail;
use crate::pg::backend;
use crate::pg::guard::{PgError, Result};
use crate::pg::heap::{self, Context, Executor, internal};
use crate::pg::large_object::{self, METADATA};
use crate::pg::relation::{Handle, Info, Tuple};
use crate::pg::sys;
use crate::pg::tuple::{self, Row};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::rc::Rc;

/// Working memory of one capture, used again for the next.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) old: Vec<Span>,
    new: Vec<Span>,
    /// Of the new row before any value of it was compressed or went out of line.
    original: Vec<Span>,
    changed: Vec<bool>,
    /// The same as bits.
    changed_bits: Vec<u8>,
    identity: Writer,
    row: Writer,
    /// For values that PostgreSQL computes or detoasts.
    memory: Option<Context>,
}

thread_local! {
    /// Taken out while in use: an index expression that itself writes finds another one.
    static SCRATCH: Cell<Option<ManuallyDrop<Box<Scratch>>>> = const { Cell::new(None) };
}

/// Runs `f` with working memory, and with CurrentMemoryContext one that is reset.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> Result<T>) -> Result<T> {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let memory = match scratch.memory.take() {
        Some(memory) => memory,
        None => Context::scratch(c"pgr capture")?,
    };
    memory.reset();
    let result = memory.within(|| f(&mut scratch));
    if result.is_ok() {
        memory.reset();
    } // else the error's text lies in it until it is thrown
    scratch.memory = Some(memory);
    SCRATCH.set(Some(scratch));
    result
}

/// Whether rows of `rel` are captured; the relation then, with its key in the writeset. `new`: entries
/// come to all of its indexes.
fn begin(rel: Handle, new: bool) -> Result<Option<Rc<Relation>>> {
    let relation = relation::lookup(rel)?;
    match relation.kind {
        Kind::Ignored => return Ok(None),
        Kind::Local | Kind::Unlogged => {
            let unlogged = relation.kind == Kind::Unlogged;
            if unlogged && read::is_tracked() {
                return Err(unjudged(&relation.name));
            }
            if !(unlogged && trigger::is_redone()) {
                transaction::local_effect()?;
            }
            return Ok(None);
        }
        // In a trigger.
        Kind::Replicated if backend::is_helper() => {
            return Err(trigger::refused_table(&relation.name));
        }
        Kind::Replicated => {}
    }
    transaction::enter()?;
    if !transaction::keeps(relation.intent.get()) {
        let comer =
            new && entries::may_come(&relation) && entries::detail(&relation) == Detail::Some;
        let how = if comer { COMER } else { WRITER };
        table_lock::writes(relation.oid, how)?;
        if relation.exclusive {
            let mode = LockMode::Update;
            let since = if relation.unmet { KEY_FROM_SINCE } else { 0 };
            let flags = KEY_RELATION | since;
            transaction::key(relation.oid, relation.own_key(), KeyUse { mode, flags })?;
        }
        relation.intent.set(transaction::place());
        if comer {
            relation.comer.set(transaction::place());
        }
    }
    Ok(Some(relation))
}

/// A row is about to be named by all that it holds: where the change is applied, all rows that came
/// before must be there to be found.
fn order(relation: &Relation) -> Result<()> {
    if relation.is_keyless() && !transaction::keeps(relation.order.get()) {
        let (mode, flags) = (LockMode::Update, KEY_RELATION | KEY_ORDER);
        transaction::key(relation.oid, relation.own_key(), KeyUse { mode, flags })?;
        relation.order.set(transaction::place());
    }
    Ok(())
}

const WRITE: KeyUse = KeyUse {
    mode: LockMode::Update,
    flags: 0,
};

/// A row was inserted: as it lies in the heap, and as it was before values of it were compressed or went
/// out of line.
pub fn insert(rel: Handle, stored: Tuple, original: Tuple) -> Result<()> {
    insert_many(rel, 1, |_| stored, |_| Ok(original))
}

/// `n` rows were inserted, likewise.
pub fn insert_many(
    rel: Handle,
    n: usize,
    stored: impl Fn(usize) -> Tuple,
    original: impl Fn(usize) -> Result<Tuple>,
) -> Result<()> {
    let Some(relation) = begin(rel, true)? else {
        return Ok(());
    };
    for i in 0..n {
        with_scratch(|s| insert_row(rel, &relation, stored(i), || original(i), s))?;
    }
    Ok(())
}

fn insert_row(
    rel: Handle,
    relation: &Relation,
    tuple: Tuple,
    original: impl FnOnce() -> Result<Tuple>,
    s: &mut Scratch,
) -> Result<()> {
    let (tuple, row) = whole(rel, relation, tuple, &mut s.new)?;
    if let Some(key) = relation.row_key(&s.new, row.data)? {
        transaction::key(relation.oid, key, WRITE)?;
    }
    for unique in &relation.uniques {
        if let Some(key) = unique_key(rel, relation, unique, tuple, &s.new, row.data)? {
            transaction::key(relation.oid, key, unique_use(unique))?;
        }
    }
    if relation.oid == METADATA {
        return large_object(rel, tuple, row.data);
    }
    entries::come(rel, relation, tuple, (&s.new, row.data), None)?;
    let bytes = if row.external {
        s.changed.clear();
        s.changed.resize(relation.attrs.len(), true);
        write_changed(rel, relation, row, original, s)?;
        TupleBytes {
            natts: row.natts as u16,
            bitmap: s.row.bitmap(),
            data: s.row.data(),
        }
    } else {
        TupleBytes {
            natts: row.natts as u16,
            bitmap: row.bitmap,
            data: row.data,
        }
    };
    transaction::entries(relation, |b| b.insert(&bytes))
}

/// A row was updated; see [`insert`] for `new` and `original`. `key_intact`: no column that a foreign key
/// could refer to has changed.
pub fn update(
    rel: Handle,
    old: Tuple,
    new: Tuple,
    original: Tuple,
    key_intact: bool,
) -> Result<()> {
    let Some(relation) = begin(rel, false)? else {
        return Ok(());
    };
    order(&relation)?;
    with_scratch(|s| update_row(rel, &relation, old, (new, original), key_intact, s))
}

fn update_row(
    rel: Handle,
    relation: &Relation,
    old: Tuple,
    (new, original): (Tuple, Tuple),
    key_intact: bool,
    s: &mut Scratch,
) -> Result<()> {
    let (old, old_row) = whole(rel, relation, old, &mut s.old)?;
    let (new, new_row) = whole(rel, relation, new, &mut s.new)?;
    s.changed.clear();
    s.changed.extend(
        s.old
            .iter()
            .zip(&s.new)
            .map(|(o, n)| o.of(old_row.data) != n.of(new_row.data)),
    );
    s.changed_bits.clear();
    s.changed_bits.extend(s.changed.chunks(8).map(|eight| {
        eight
            .iter()
            .enumerate()
            .fold(0, |bits, (i, c)| bits | u8::from(*c) << i)
    }));

    // Keys: the row under its old and, if that changed, its new identity ...
    let identity_changed = relation
        .identity_columns
        .iter()
        .any(|c| s.changed[usize::from(*c)]);
    // Without an identity the row has another name from here on, and who locked it by the old one
    // would not be met by who deletes it.
    let mode = if key_intact && !identity_changed && !relation.is_keyless() {
        LockMode::NoKeyUpdate
    } else {
        LockMode::Update
    };
    let row_use = KeyUse { mode, flags: 0 };
    if let Some(key) = relation.changed_key(&s.old, old_row.data)? {
        transaction::key(relation.oid, key, row_use)?;
    }
    if identity_changed && let Some(key) = relation.row_key(&s.new, new_row.data)? {
        transaction::key(relation.oid, key, row_use)?;
    }
    // ... and every unique entry that went or came.
    for unique in &relation.uniques {
        if let Source::Columns(columns) = &unique.source
            && !columns.any(&s.changed)
        {
            continue;
        }
        let before = unique_key(rel, relation, unique, old, &s.old, old_row.data)?;
        let after = unique_key(rel, relation, unique, new, &s.new, new_row.data)?;
        if before != after {
            for key in [before, after].into_iter().flatten() {
                transaction::key(relation.oid, key, unique_use(unique))?;
            }
        }
    }
    // Searches that found the row before go by its identity; others, by the entries that come.
    entries::come(rel, relation, new, (&s.new, new_row.data), Some(&s.changed))?;

    if relation.oid == METADATA {
        return large_object(rel, new, new_row.data);
    }
    write_identity(relation, &mut s.identity, &s.old, old_row.data)?;
    write_changed(rel, relation, new_row, || Ok(original), s)?;
    let natts = relation.attrs.len() as u16;
    let identity = TupleBytes {
        natts,
        bitmap: s.identity.bitmap(),
        data: s.identity.data(),
    };
    let values = TupleBytes {
        natts,
        bitmap: s.row.bitmap(),
        data: s.row.data(),
    };
    transaction::entries(relation, |b| {
        b.update(&identity, Bitmap(&s.changed_bits), &values)
    })
}

/// A row was deleted. `leaves`: its new version is inserted into another partition.
pub fn delete(rel: Handle, old: Tuple, leaves: bool) -> Result<()> {
    let Some(relation) = begin(rel, false)? else {
        return Ok(());
    };
    order(&relation)?;
    with_scratch(|s| {
        let (old, row) = whole(rel, &relation, old, &mut s.old)?;
        if let Some(key) = relation.changed_key(&s.old, row.data)? {
            transaction::key(relation.oid, key, WRITE)?;
        }
        for unique in &relation.uniques {
            if let Some(key) = unique_key(rel, &relation, unique, old, &s.old, row.data)? {
                transaction::key(relation.oid, key, unique_use(unique))?;
            }
        }
        if relation.oid == METADATA {
            let oid = large_object_oid(row.data)?;
            return transaction::append(|b| b.large_object_gone(oid));
        }
        write_identity(&relation, &mut s.identity, &s.old, row.data)?;
        let natts = relation.attrs.len() as u16;
        let identity = TupleBytes {
            natts,
            bitmap: s.identity.bitmap(),
            data: s.identity.data(),
        };
        transaction::entries(&relation, |b| {
            if leaves {
                b.leave(&identity)
            } else {
                b.delete(&identity)
            }
        })
    })
}

/// A large object is new, or its owner or privileges have changed: roles are named, since they can have
/// other OIDs on other members.
fn large_object(rel: Handle, tuple: Tuple, data: &[u8]) -> Result<()> {
    let oid = large_object_oid(data)?;
    let described = large_object::describe(rel, tuple)?;
    transaction::append(|b| b.large_object(oid, &described.owner, described.acl.as_deref()))
}

/// Its OID is the first column.
fn large_object_oid(data: &[u8]) -> Result<Oid> {
    let first = data.first_chunk();
    let bytes = first.ok_or_else(|| internal("a large object has no OID"))?;
    Ok(Oid(u32::from_ne_bytes(*bytes)))
}

/// A row was locked, by SELECT FOR ..., a foreign key's check, ON CONFLICT and the like.
pub fn lock(rel: Handle, tuple: Tuple, mode: LockMode) -> Result<()> {
    let relation = relation::lookup(rel)?;
    // What triggers lock in a helper is for its own server.
    if relation.kind != Kind::Replicated || backend::is_helper() {
        return Ok(());
    }
    transaction::enter()?;
    if !transaction::keeps(relation.row_intent.get()) {
        table_lock::locks_rows(relation.oid)?;
        relation.row_intent.set(transaction::place());
    }
    let flags = KEY_LOCK_ONLY;
    with_scratch(|s| {
        let (_, row) = whole(rel, &relation, tuple, &mut s.old)?;
        match relation.changed_key(&s.old, row.data)? {
            Some(key) => transaction::key(relation.oid, key, KeyUse { mode, flags }),
            // Its writers exclude each other by the relation's key.
            None => {
                let flags = flags | KEY_RELATION;
                transaction::key(relation.oid, relation.own_key(), KeyUse { mode, flags })
            }
        }
    })
}

/// The tuple with all columns that the relation has now, its parts, and where its values lie.
pub(super) fn whole<'a>(
    rel: Handle,
    relation: &Relation,
    tuple: Tuple,
    spans: &mut Vec<Span>,
) -> Result<(Tuple, Row<'a>)> {
    // In memory of the caller, in a pinned buffer or in the working memory: all outlast the capture
    // of this change.
    let mut row = tuple::row(tuple);
    let mut tuple = tuple;
    if row.natts < relation.attrs.len() {
        tuple = heap::expand(tuple, rel)?;
        row = tuple::row(tuple);
    }
    layout::walk(&relation.attrs, row.natts, row.bitmap, row.data, spans)
        .map_err(|e| internal(format!("row of relation {}: {e}", relation.oid)))?;
    Ok((tuple, row))
}

/// Appends a value; one that is stored elsewhere is brought in line.
fn push_inline(writer: &mut Writer, attr: layout::Attr, value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(pointer) if layout::is_external(attr, pointer) => {
            writer.push(attr, Some(heap::detoast(pointer)?));
        }
        value => writer.push(attr, value),
    }
    Ok(())
}

/// Writes the columns of a new row that have changed, the others as nulls. `original` is asked for only if
/// a value is out of line.
fn write_changed(
    rel: Handle,
    relation: &Relation,
    row: Row<'_>,
    original: impl FnOnce() -> Result<Tuple>,
    s: &mut Scratch,
) -> Result<()> {
    let original = if row.external {
        Some(whole(rel, relation, original()?, &mut s.original)?.1)
    } else {
        None
    };
    s.row.clear();
    for (i, attr) in relation.attrs.iter().enumerate() {
        if s.changed[i] {
            let before = original.and_then(|o| s.original[i].of(o.data));
            push_new(&mut s.row, *attr, s.new[i].of(row.data), before)?;
        } else {
            s.row.push(*attr, None);
        }
    }
    Ok(())
}

/// Appends a value of a new row, as it is stored: nobody needs to compress it again. One that went out of
/// line is taken from the row `before`, unless it was compressed on its way.
fn push_new(
    writer: &mut Writer,
    attr: layout::Attr,
    stored: Option<&[u8]>,
    before: Option<&[u8]>,
) -> Result<()> {
    let external = stored.filter(|s| layout::is_external(attr, s));
    let before = before.filter(|b| !layout::is_external(attr, b));
    match (external, before) {
        (Some(pointer), Some(before))
            if layout::is_compressed(before) || !layout::is_compressed(pointer) =>
        {
            writer.push(attr, Some(before));
            Ok(())
        }
        _ => push_inline(writer, attr, stored),
    }
}

/// The row with nothing but its identity, which other members look for by equality: a null there
/// names nothing. Without an identity, all that it holds.
fn write_identity(
    relation: &Relation,
    writer: &mut Writer,
    spans: &[Span],
    data: &[u8],
) -> Result<()> {
    writer.clear();
    for (i, attr) in relation.attrs.iter().enumerate() {
        let named = if relation.is_keyless() {
            !attr.dropped
        } else {
            relation.identity_columns.contains(&(i as u16))
        };
        if named && !relation.is_keyless() && spans[i].is_null() {
            let name = &relation.name;
            return Err(internal(format!(
                "null in the identity of table \"{name}\""
            )));
        }
        push_inline(writer, *attr, if named { spans[i].of(data) } else { None })?;
    }
    Ok(())
}

fn unique_use(unique: &Unique) -> KeyUse {
    let since = if unique.deferrable { KEY_FROM_SINCE } else { 0 };
    KeyUse {
        mode: LockMode::Update,
        flags: KEY_UNIQUE | since,
    }
}

/// Key of a row in a unique index; `None` if it has no entry there that could conflict.
fn unique_key(
    rel: Handle,
    relation: &Relation,
    unique: &Unique,
    tuple: Tuple,
    spans: &[Span],
    data: &[u8],
) -> Result<Option<u64>> {
    let hash = KeyHash::new(relation.oid, What::Unique(unique.digest));
    let (info, columns) = match &unique.source {
        Source::Columns(columns) => {
            return columns.key(
                hash,
                &relation.attrs,
                spans,
                data,
                unique.nulls_not_distinct,
            );
        }
        Source::Computed { info, columns } => (*info, columns),
    };
    let mut hash = Some(hash);
    computed(rel, info, tuple, |i, value| {
        let (Some(so_far), Some((function, collation))) = (hash, columns.get(i)) else {
            return Ok(false);
        };
        hash = match value {
            Some(value) => Some(so_far.add(heap::hash(*function, *collation, value, VALUE_SEED)?)),
            None => unique.nulls_not_distinct.then(|| so_far.add(NULL_VALUE)),
        };
        Ok(true)
    })
    .map(|is_there| hash.filter(|_| is_there).map(KeyHash::finish))
}

/// Visits the values, `None` for null, of the entry that a row has in an index with expressions or a
/// predicate, until `visit` says that it is enough. False if the row has no entry.
pub(super) fn computed(
    rel: Handle,
    info: Info,
    tuple: Tuple,
    mut visit: impl FnMut(usize, Option<sys::Datum>) -> Result<bool>,
) -> Result<bool> {
    let slot = heap::slot_new(rel)?;
    heap::slot_store(slot, tuple)?;
    let executor = Executor::new()?;
    let entry = heap::index_values(info, slot, Some(&executor))?;
    if let Some(entry) = &entry {
        let mut i = 0;
        while i < entry.values.len() && visit(i, (!entry.nulls[i]).then_some(entry.values[i]))? {
            i += 1;
        }
    }
    executor.free(std::iter::once(info))?;
    heap::slot_drop(slot)?;
    Ok(entry.is_some())
}

/// What unlogged tables hold is of one member, and no key of theirs is certified.
pub(super) fn unjudged(name: &str) -> PgError {
    PgError::new(
        "0A000",
        format!("cannot change unlogged table \"{name}\" in a SERIALIZABLE transaction of a replicated database"),
    )
    .hint("Use REPEATABLE READ, or a table that is replicated.")
}
