//! What capture must know of a relation, worked out once and kept until its definition changes.

use super::hash::{Digest, KeyHash, NULL_VALUE, VALUE_SEED, What};
use super::image::{self, Values};
use super::layout::{Attr, Span};
use super::marks::Place;
use super::range::Image;
use crate::pg::guard::Result;
use crate::pg::heap::{self, Context};
use crate::pg::large_object::{METADATA, PAGES};
use crate::pg::relation::{self, Column, Handle, HashProc, Info};
use crate::pg::search;
use crate::pg::sys;
use crate::pg::tuple;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::rc::Rc;

/// OIDs below belong to what initdb made (`FirstNormalObjectId`); of that only large objects are
/// replicated.
pub const FIRST_NORMAL_OID: u32 = 16384;

/// What a change of a relation means for replication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Rows are captured.
    Replicated,
    /// Temporary: the transaction has an effect that its changeset doesn't carry.
    Local,
    /// The same, of a table that other sessions see.
    Unlogged,
    /// Nothing that other members would see by its rows: catalogs, TOAST tables, materialized
    /// views, the new heap of a rewrite.
    Ignored,
}

/// A relation as capture sees it.
pub struct Relation {
    /// Its OID.
    pub oid: u32,
    /// Its name, for messages.
    pub name: String,
    /// Whether its rows are captured.
    pub kind: Kind,
    /// Storage of its columns.
    pub attrs: Vec<Attr>,
    /// Of the row layout; the same on all members or apply refuses.
    pub fingerprint: u64,
    /// Columns (from 0) that name its rows; without any all that a row holds names it.
    pub identity_columns: Vec<u16>,
    /// The index over them, 0 for none.
    pub identity_index: u32,
    /// How they make a key; without it (no hash function) the relation is `exclusive`.
    identity: Option<Columns>,
    /// Its unique indexes but the identity.
    pub uniques: Vec<Unique>,
    /// Its indexes of which parts can be searched.
    pub sorted: Vec<Sorted>,
    /// Some constraint can't be told by a hash (exclusion, no hash function), so that writers of
    /// the relation exclude each other.
    pub exclusive: bool,
    /// ... and apply would not meet what it forbids (exclusion, deferrable).
    pub unmet: bool,
    /// Where the relation's key was last appended.
    pub intent: Cell<Place>,
    /// Where the key was that says that entries come to its indexes, or that not all is said of them.
    pub comer: Cell<Place>,
    /// See `comer`.
    pub unranged: Cell<Place>,
    /// Where the key was that says that rows are locked.
    pub row_intent: Cell<Place>,
    /// Where the key was that has changes of rows without an identity applied after all before them.
    pub order: Cell<Place>,
    valid: Cell<bool>,
    /// Owns what `Unique::Computed` points to.
    _context: Option<Context>,
}

/// Columns whose values make a key.
pub struct Columns(Vec<KeyColumn>);

#[derive(Clone, Copy)]
struct KeyColumn {
    /// From 0.
    attribute: u16,
    hash: HashProc,
    collation: u32,
}

/// A unique index other than the identity.
pub struct Unique {
    /// Its OID on this member.
    pub index: u32,
    /// Of its definition.
    pub digest: u64,
    /// Checked at once, or at the end of the statement or transaction.
    pub deferrable: bool,
    /// Null equals null.
    pub nulls_not_distinct: bool,
    /// Where its values come from.
    pub source: Source,
}

/// An index whose entries a search can name by the values of leading columns, and by a range of the
/// next.
pub struct Sorted {
    /// Its OID on this member.
    pub index: u32,
    /// Of its definition.
    pub digest: u64,
    /// Its leading columns as far as they can be hashed.
    pub source: Source,
    /// The table's columns (from 0) in it, whether they can be hashed or not.
    pub columns: Vec<u16>,
    /// For each of them, the integers that it is sorted by.
    pub integers: Vec<Option<Image>>,
    /// So many of them, at most, name entries together: entries of a unique index have keys of their
    /// own.
    pub prefix: usize,
}

/// Where an index's values come from.
pub enum Source {
    /// Straight from the row.
    Columns(Columns),
    /// Expressions or a predicate: PostgreSQL computes them.
    Computed {
        /// What FormIndexDatum needs, in the relation's context.
        info: Info,
        /// Hash and collation of each key column.
        columns: Vec<(HashProc, u32)>,
    },
}

impl Source {
    /// How the values of each column are hashed.
    pub fn hashes(&self) -> Vec<(HashProc, u32)> {
        match self {
            Source::Columns(columns) => columns.hashes().collect(),
            Source::Computed { columns, .. } => columns.clone(),
        }
    }
}

impl Columns {
    /// Key of these columns' values; `None` if one is null and nulls are distinct.
    pub fn key(
        &self,
        hash: KeyHash,
        attrs: &[Attr],
        spans: &[Span],
        data: &[u8],
        nulls_not_distinct: bool,
    ) -> Result<Option<u64>> {
        let mut hash = hash;
        for column in &self.0 {
            let i = usize::from(column.attribute);
            hash = match spans[i].of(data) {
                Some(bytes) => {
                    let datum = tuple::datum(attrs[i], bytes);
                    hash.add(heap::hash(
                        column.hash,
                        column.collation,
                        datum,
                        VALUE_SEED,
                    )?)
                }
                None if nulls_not_distinct => hash.add(NULL_VALUE),
                None => return Ok(None),
            };
        }
        Ok(Some(hash.finish()))
    }

    /// How the values of each are hashed.
    pub fn hashes(&self) -> impl ExactSizeIterator<Item = (HashProc, u32)> {
        self.0.iter().map(|c| (c.hash, c.collation))
    }

    /// The values, `None` for null.
    pub fn values(
        &self,
        attrs: &[Attr],
        spans: &[Span],
        data: &[u8],
    ) -> impl Iterator<Item = Option<sys::Datum>> {
        self.0.iter().map(|column| {
            let i = usize::from(column.attribute);
            let bytes = spans[i].of(data)?;
            Some(tuple::datum(attrs[i], bytes))
        })
    }

    /// Whether one of them is among the changed ones.
    #[must_use]
    pub fn any(&self, changed: &[bool]) -> bool {
        self.0.iter().any(|c| changed[usize::from(c.attribute)])
    }
}

impl Relation {
    /// Key of the relation itself.
    #[must_use]
    pub fn own_key(&self) -> u64 {
        KeyHash::new(self.oid, What::Relation).finish()
    }

    /// How the values of the identity make a key.
    #[must_use]
    pub fn identity(&self) -> Option<&Columns> {
        self.identity.as_ref()
    }

    /// Rows are named by all that they hold.
    #[must_use]
    pub fn is_keyless(&self) -> bool {
        self.identity_columns.is_empty()
    }

    /// Key of a row that is changed or locked: of its identity, or of all rows that hold the same.
    /// `None` if the identity has no hash.
    pub fn changed_key(&self, spans: &[Span], data: &[u8]) -> Result<Option<u64>> {
        if !self.is_keyless() {
            return self.row_key(spans, data);
        }
        let row = Values { spans, data };
        let image = image::digest(Digest::new(), &self.attrs, row, usize::MAX, heap::flat)?;
        let key = KeyHash::new(self.oid, What::Image).add(image);
        Ok(Some(key.finish()))
    }

    /// Key of a row's identity; `None` if the relation has none.
    pub fn row_key(&self, spans: &[Span], data: &[u8]) -> Result<Option<u64>> {
        match &self.identity {
            // Identity columns are NOT NULL.
            Some(columns) => columns.key(
                KeyHash::new(self.oid, What::Row),
                &self.attrs,
                spans,
                data,
                true,
            ),
            None => Ok(None),
        }
    }
}

/// Never dropped: what it points to in PostgreSQL's memory goes with the process.
type Forever<T> = ManuallyDrop<RefCell<T>>;

thread_local! {
    static CACHE: Forever<BTreeMap<u32, Rc<Relation>>> =
        const { ManuallyDrop::new(RefCell::new(BTreeMap::new())) };
    static LAST: Forever<Option<Rc<Relation>>> = const { ManuallyDrop::new(RefCell::new(None)) };
    /// Counts invalidations: one that comes while a relation is worked out spoils it.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// The relation behind an open handle.
pub fn lookup(rel: Handle) -> Result<Rc<Relation>> {
    let oid = relation::oid(rel);
    let last = LAST.with(|last| {
        last.borrow()
            .as_ref()
            .filter(|r| r.oid == oid && r.valid.get())
            .map(Rc::clone)
    });
    if let Some(last) = last {
        return Ok(last);
    }
    let known = CACHE.with(|cache| {
        cache
            .borrow()
            .get(&oid)
            .filter(|r| r.valid.get())
            .map(Rc::clone)
    });
    let found = match known {
        Some(found) => found,
        None => {
            let before = CHANGES.get();
            let built = Rc::new(build(rel)?);
            built.valid.set(CHANGES.get() == before);
            CACHE.with(|cache| cache.borrow_mut().insert(oid, Rc::clone(&built)));
            built
        }
    };
    LAST.with(|last| *last.borrow_mut() = Some(Rc::clone(&found)));
    Ok(found)
}

/// What to call a relation in a message.
#[must_use]
pub fn described(oid: u32) -> String {
    let known = CACHE.with(|cache| cache.borrow().get(&oid).map(|r| r.name.clone()));
    known.or_else(|| relation::name_of(oid)).map_or_else(
        || format!("relation {oid}"),
        |name| format!("table \"{name}\""),
    )
}

/// Relcache callback. Only marks: a relation may be in use right now.
extern "C" fn changed(_arg: sys::Datum, relation: sys::Oid) {
    CHANGES.set(CHANGES.get() + 1);
    CACHE.with(|cache| {
        let cache = cache.borrow();
        if relation == 0 {
            cache.values().for_each(|r| r.valid.set(false));
        } else if let Some(r) = cache.get(&relation) {
            r.valid.set(false);
        }
    });
}

fn build(rel: Handle) -> Result<Relation> {
    if !REGISTERED.get() {
        relation::on_change(Some(changed))?;
        REGISTERED.set(true);
    }
    let form = relation::form(rel);
    let oid = relation::oid(rel);
    let columns = relation::columns(rel);
    let mut built = Relation {
        oid,
        name: relation::name(rel),
        kind: kind(oid, form),
        attrs: columns.iter().map(|c| c.attr).collect(),
        fingerprint: relation::fingerprint(&columns),
        identity_index: 0,
        identity: None,
        identity_columns: Vec::new(),
        uniques: Vec::new(),
        sorted: Vec::new(),
        exclusive: false,
        unmet: false,
        intent: Cell::default(),
        comer: Cell::default(),
        unranged: Cell::default(),
        row_intent: Cell::default(),
        order: Cell::default(),
        valid: Cell::new(true),
        _context: None,
    };
    if built.kind == Kind::Replicated {
        let identity = relation::identity_index(rel)?;
        for index in relation::indexes(rel)? {
            let Some(handle) = relation::open(index, sys::AccessShareLock as i32)? else {
                continue;
            };
            add_index(&mut built, &columns, handle, Some(index) == identity)?;
            relation::close(handle, sys::AccessShareLock as i32)?;
        }
    }
    Ok(built)
}

fn kind(oid: u32, form: &sys::FormData_pg_class) -> Kind {
    let relkind = form.relkind as u8;
    let data = oid >= FIRST_NORMAL_OID || [PAGES, METADATA].contains(&oid);
    if !data || relkind != b'r' || form.relrewrite != 0 {
        Kind::Ignored
    } else {
        match form.relpersistence as u8 {
            b'p' => Kind::Replicated,
            b'u' => Kind::Unlogged,
            _ => Kind::Local,
        }
    }
}

/// Takes an index into account.
fn add_index(rel: &mut Relation, columns: &[Column], index: Handle, identity: bool) -> Result<()> {
    let form = relation::index_form(index);
    let heap_columns = relation::index_columns(index);
    let keys = &heap_columns[..form.indnkeyatts as usize];
    if identity {
        rel.identity_index = relation::oid(index);
        rel.identity_columns = keys.iter().map(|k| *k as u16 - 1).collect();
    }
    if form.indisexclusion {
        (rel.exclusive, rel.unmet) = (true, true);
        return Ok(());
    }
    if !form.indislive || !form.indisunique && !relation::is_sorted(index) {
        return Ok(());
    }
    let own_columns = relation::columns(index);
    let mut hashes = Vec::with_capacity(keys.len());
    for (i, key) in keys.iter().enumerate() {
        // A plain column's index attribute may have another type (name is stored as cstring).
        let typid = if *key > 0 {
            columns[*key as usize - 1].typid
        } else {
            own_columns[i].typid
        };
        match relation::index_hash(index, i, typid)? {
            Some(hash) => hashes.push((hash, relation::index_collation(index, i))),
            None => break,
        }
    }
    if form.indisunique && hashes.len() < keys.len() {
        rel.exclusive = true;
        rel.unmet |= !form.indimmediate;
        return Ok(());
    }
    let definition = relation::index_definition(index)?;
    let all: Vec<u16> = (keys.iter().filter(|k| **k > 0))
        .map(|k| *k as u16 - 1)
        .collect();
    let keys = &keys[..hashes.len()];
    let plain = definition.is_none() && keys.iter().all(|k| *k > 0);
    let key_columns = || {
        let column = |(key, (hash, collation)): (&i16, &(HashProc, u32))| KeyColumn {
            attribute: *key as u16 - 1,
            hash: *hash,
            collation: *collation,
        };
        Columns(keys.iter().zip(&hashes).map(column).collect())
    };
    let digest = digest(index, keys, &hashes, definition.as_deref());
    let mut source = || -> Result<Source> {
        if plain {
            return Ok(Source::Columns(key_columns()));
        }
        let context = match rel._context.take() {
            Some(context) => context,
            None => Context::under_cache(c"pgr relation")?,
        };
        let info = context.within(|| relation::index_info(index))?;
        rel._context = Some(context);
        Ok(Source::Computed {
            info,
            columns: hashes.clone(),
        })
    };
    let integers: Vec<_> = (0..keys.len())
        .map(|i| search::integers(index, i))
        .collect();
    let prefix = keys.len() - usize::from(form.indisunique);
    if prefix > 0 || integers.iter().any(Option::is_some) {
        rel.sorted.push(Sorted {
            index: relation::oid(index),
            digest,
            source: source()?,
            columns: all,
            integers,
            prefix,
        });
    }
    if identity {
        rel.identity = Some(key_columns());
    } else if form.indisunique {
        rel.uniques.push(Unique {
            index: relation::oid(index),
            digest,
            deferrable: !form.indimmediate,
            nulls_not_distinct: form.indnullsnotdistinct,
            source: source()?,
        });
    }
    Ok(())
}

/// Digest of an index's definition. Never its OID: REINDEX CONCURRENTLY changes that on one
/// member only.
fn digest(
    index: Handle,
    keys: &[i16],
    hashes: &[(HashProc, u32)],
    definition: Option<&[u8]>,
) -> u64 {
    let mut digest = Digest::new().number(keys.len() as u64);
    for (i, key) in keys.iter().enumerate() {
        digest = digest
            .number(*key as u64)
            .number(u64::from(relation::index_family(index, i)))
            .number(u64::from(hashes[i].1));
    }
    digest
        .number(u64::from(relation::index_form(index).indnullsnotdistinct))
        .bytes(definition.unwrap_or_default())
        .finish()
}
