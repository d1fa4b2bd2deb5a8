//! A client session and the backend behind it: row locks, changeset, commit, and what it becomes.

use crate::database::{Database, Owner};
use crate::model::{
    self, COUNTERS, Change, Counted, MIRRORS, PARENTS, Row, Table, UNIQUE_VALUES, child_entries,
    mirrored, relation_hash, row, row_hash, unique_hash, unranged_hash,
};
use crate::rng::Rng;
use crate::scenario::Plant;
use postgres_r::capture::range::{ENTRY, SEARCH};
use postgres_r::capture::read_set::ReadSet;
use postgres_r::changeset::encode::{Builder, Mark, Taken};
use postgres_r::changeset::fragment::{FragmentsOf, fragment_header};
use postgres_r::changeset::header::ISOLATION_SERIALIZABLE;
use postgres_r::changeset::key::{KEY_LOCK_ONLY, KEY_READ, KEY_RELATION, KEY_UNIQUE};
use postgres_r::changeset::{Key, LockMode};
use postgres_r::ids::Gid;
use postgres_r::imsg::wanted::Detail;
use std::collections::BTreeSet;

/// A statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statement {
    Increment(u32),
    InsertUnique(u32, u64),
    DeleteUnique(Row, u64),
    InsertParent(u32),
    DeleteParent(u32),
    InsertChild(u32, u32),
    DeleteChild(Row, u64),
    /// SELECT a counter FOR SHARE, write it down.
    Mirror(u32, u32),
    /// The same without a lock, at SERIALIZABLE.
    Glance(u32, u32),
    /// Count children by an index, at SERIALIZABLE, write it down.
    Census(u32, Counted),
}

/// One lock that a statement takes and the key that it becomes.
struct Lock {
    hash: u64,
    mode: LockMode,
    flags: u8,
    relation: u32,
}

/// How far a statement has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tried {
    /// Someone else holds a lock.
    Waits,
    /// Locks are held, checks and writes follow.
    Locked,
    Done,
    /// A constraint says no.
    Failed,
}

#[derive(Debug)]
pub struct Transaction {
    pub xid: u64,
    pub statements_left: u64,
    pub current: Option<(Statement, bool)>,
    pub changes: Vec<Change>,
    /// The first of them as a changeset, and how many.
    pub builder: Builder<Vec<u8>>,
    pushed: usize,
    /// Sends entries ahead of its commit.
    pub large: bool,
    /// Fragments that it has sent.
    pub sent: usize,
    pub keys: Vec<Key>,
    locks: Vec<(u64, LockMode)>,
    pub tries: u32,
    /// Lowest `since` of its keys.
    pub since_low: Gid,
    pub local_effects: bool,
    /// As in the changeset's header.
    pub isolation: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Idle,
    Running,
    /// Multicast, holding its locks.
    Multicast,
    /// Certified, waiting for its turn.
    Passed(Gid),
    /// Multicast, rolled back for someone else; its outcome is still to be learned.
    RolledBack,
}

pub struct Session {
    pub slot: u32,
    pub phase: Phase,
    pub ticket: u64,
    /// GID of its certified transaction: the coordinator publishes it with the verdict, before any
    /// later changeset reaches a helper, though the session itself hears of it later.
    pub published: Option<Gid>,
    pub transaction: Option<Transaction>,
    /// Relations are reserved for it, or will be; nothing has ended that yet.
    pub reserves: bool,
}

impl Session {
    pub fn new(slot: u32) -> Session {
        Session {
            slot,
            phase: Phase::Idle,
            ticket: 0,
            published: None,
            transaction: None,
            reserves: false,
        }
    }

    pub fn owner(&self) -> Owner {
        Owner::Session(self.slot)
    }

    pub fn begin(&mut self, xid: u64, rng: &mut Rng, db: &Database, large: u64) {
        self.phase = Phase::Running;
        self.ticket += 1;
        self.published = None;
        self.transaction = Some(Transaction {
            xid,
            statements_left: rng.between(1, 4),
            current: None,
            changes: Vec::new(),
            builder: Builder::new(Vec::new(), Vec::new()),
            pushed: 0,
            large: rng.per_mille(large),
            sent: 0,
            keys: Vec::new(),
            locks: Vec::new(),
            tries: 0,
            since_low: db.committed,
            local_effects: rng.per_mille(50),
            isolation: 1,
        });
    }
}

impl Statement {
    pub fn random(rng: &mut Rng, db: &Database) -> Statement {
        let fresh = rng.next() as u32;
        let any = |rng: &mut Rng, table| {
            let rows: Vec<(Row, u64)> = db.rows().filter(|(r, _)| r.table == table).collect();
            (!rows.is_empty()).then(|| rng.pick(&rows))
        };
        // Counter 0 is hot.
        let counter = |rng: &mut Rng| {
            if rng.per_mille(600) {
                0
            } else {
                rng.below(COUNTERS.into()) as u32
            }
        };
        let parent = |rng: &mut Rng| rng.below(PARENTS.into()) as u32;
        match rng.below(13) {
            0..=2 => Statement::Increment(counter(rng)),
            3 => Statement::InsertUnique(fresh, rng.below(UNIQUE_VALUES)),
            4 => match any(rng, Table::Unique) {
                Some((row, value)) => Statement::DeleteUnique(row, value),
                None => Statement::InsertUnique(fresh, rng.below(UNIQUE_VALUES)),
            },
            5 => Statement::InsertParent(parent(rng)),
            6 => Statement::DeleteParent(parent(rng)),
            7 => Statement::InsertChild(fresh, parent(rng)),
            8 => match any(rng, Table::Child) {
                Some((row, value)) => Statement::DeleteChild(row, value),
                None => Statement::InsertChild(fresh, parent(rng)),
            },
            9 => Statement::Mirror(rng.below(MIRRORS.into()) as u32, counter(rng)),
            10 => Statement::Glance(rng.below(MIRRORS.into()) as u32, counter(rng)),
            _ => Statement::Census(rng.below(MIRRORS.into()) as u32, Counted::random(rng)),
        }
    }

    fn locks(self) -> Vec<Lock> {
        let write = |row: Row, mode| Lock {
            hash: row_hash(row),
            mode,
            flags: 0,
            relation: row.table.oid(),
        };
        let only = |row: Row, mode| Lock {
            flags: KEY_LOCK_ONLY,
            ..write(row, mode)
        };
        let unique = |value| Lock {
            hash: unique_hash(value),
            mode: LockMode::Update,
            flags: KEY_UNIQUE,
            relation: Table::Unique.oid(),
        };
        match self {
            Self::Increment(c) => vec![write(row(Table::Counter, c), LockMode::NoKeyUpdate)],
            Self::InsertUnique(id, value) => {
                vec![
                    write(row(Table::Unique, id), LockMode::Update),
                    unique(value),
                ]
            }
            Self::DeleteUnique(row, value) => vec![write(row, LockMode::Update), unique(value)],
            Self::InsertParent(p) | Self::DeleteParent(p) => {
                vec![write(row(Table::Parent, p), LockMode::Update)]
            }
            Self::InsertChild(id, p) => vec![
                write(row(Table::Child, id), LockMode::Update),
                only(row(Table::Parent, p), LockMode::KeyShare),
            ],
            Self::DeleteChild(row, _) => vec![write(row, LockMode::Update)],
            Self::Mirror(m, c) => vec![
                only(row(Table::Counter, c), LockMode::Share),
                write(row(Table::Mirror, m), LockMode::NoKeyUpdate),
            ],
            Self::Glance(m, _) | Self::Census(m, _) => {
                vec![write(row(Table::Mirror, m), LockMode::NoKeyUpdate)]
            }
        }
    }
}

impl Transaction {
    /// Takes the statement's locks, all or none, and one that becomes no key.
    pub fn lock(
        &mut self,
        db: &mut Database,
        me: Owner,
        statement: Statement,
        unkeyed: Option<u64>,
        plant: Plant,
    ) -> Tried {
        let locks = statement.locks();
        let unkeyed = unkeyed.map(|hash| (hash, LockMode::Update));
        let all = locks.iter().map(|l| (l.hash, l.mode)).chain(unkeyed);
        if all
            .into_iter()
            .any(|(lock, mode)| !db.in_the_way(me, lock, mode).is_empty())
        {
            return Tried::Waits;
        }
        if let Some((lock, mode)) = unkeyed {
            if !self.locks.contains(&(lock, mode)) {
                self.locks.push((lock, mode));
            }
            db.lock(me, lock, mode);
        }
        for l in locks {
            if !self.locks.contains(&(l.hash, l.mode)) {
                self.locks.push((l.hash, l.mode));
            }
            db.lock(me, l.hash, l.mode);
            let key = Key {
                hash: l.hash,
                since: db.committed,
                relation: l.relation,
                mode: l.mode,
                flags: l.flags,
            };
            let left_out = match plant {
                Plant::NoLockOnlyKeys => l.flags & KEY_LOCK_ONLY != 0,
                Plant::NoUniqueKeys => l.flags & KEY_UNIQUE != 0,
                _ => false,
            };
            if !left_out {
                self.keys.push(key);
            }
        }
        Tried::Locked
    }

    /// Checks what the statement needs, under its locks, and writes.
    pub fn execute(&mut self, db: &Database, statement: Statement, plant: Plant) -> Tried {
        let change = match statement {
            Statement::Increment(c) => {
                let row = row(Table::Counter, c);
                self.read(db, row).map(|value| Change::Put(row, value + 1))
            }
            Statement::InsertUnique(id, value) => (!self.any(db, Table::Unique, value))
                .then_some(Change::Put(row(Table::Unique, id), value)),
            Statement::DeleteUnique(row, value) | Statement::DeleteChild(row, value) => {
                (self.read(db, row) == Some(value)).then_some(Change::Delete(row, value))
            }
            Statement::InsertParent(p) => {
                let row = row(Table::Parent, p);
                self.read(db, row).is_none().then_some(Change::Put(row, 0))
            }
            Statement::DeleteParent(p) => {
                let row = row(Table::Parent, p);
                let free =
                    self.read(db, row).is_some() && !self.any(db, Table::Child, u64::from(p));
                free.then_some(Change::Delete(row, 0))
            }
            Statement::InsertChild(id, p) => (self.read(db, row(Table::Parent, p)))
                .map(|_| Change::Put(row(Table::Child, id), u64::from(p))),
            Statement::Mirror(m, c) | Statement::Glance(m, c) => (self
                .read(db, row(Table::Counter, c)))
            .map(|value| Change::Put(row(Table::Mirror, m), mirrored(c, value))),
            Statement::Census(m, counted) => {
                let children = self.children(db, counted);
                let value = counted.counted(children.len() as u64);
                if plant != Plant::NoReadKeys {
                    self.read_children(db, counted, &children);
                }
                Some(Change::Put(row(Table::Mirror, m), value))
            }
        };
        let Some(change) = change else {
            return Tried::Failed;
        };
        if let Statement::Glance(_, c) = statement
            && plant != Plant::NoReadKeys
        {
            let read = row(Table::Counter, c);
            self.keys.push(Key {
                hash: row_hash(read),
                since: db.committed,
                relation: read.table.oid(),
                mode: LockMode::Share,
                flags: KEY_READ,
            });
        }
        let mut mode = LockMode::KeyShare;
        if let Statement::InsertChild(id, p) = statement
            && plant != Plant::NoEntryKeys
        {
            if db.wanted == Detail::Some {
                mode = ENTRY;
            }
            self.name_child(db, id, p.into());
        }
        self.keys.push(Key {
            hash: relation_hash(change.row().table),
            since: db.committed,
            relation: change.row().table.oid(),
            mode,
            flags: KEY_RELATION,
        });
        self.changes.push(change);
        Tried::Done
    }

    /// Says which child has come, as exactly as its member wants it.
    fn name_child(&mut self, db: &Database, id: u32, parent: u64) {
        let key = |hash, flags| Key {
            hash,
            since: db.committed,
            relation: Table::Child.oid(),
            mode: ENTRY,
            flags,
        };
        if db.wanted == Detail::Prefixes {
            self.keys.push(key(unranged_hash(), KEY_RELATION));
        }
        let entries = child_entries(id, parent, db.wanted);
        self.keys.extend(entries.into_iter().map(|e| key(e, 0)));
    }

    /// Children that a census finds.
    fn children(&self, db: &Database, counted: Counted) -> BTreeSet<Row> {
        let own = self.changes.iter().map(|c| c.row());
        let rows = own.chain(db.rows().map(|(row, _)| row));
        rows.filter(|row| row.table == Table::Child)
            .filter(|row| (self.read(db, *row)).is_some_and(|p| counted.has(row.id, p)))
            .collect()
    }

    /// Takes down the search of a census and what it found.
    fn read_children(&mut self, db: &Database, counted: Counted, found: &BTreeSet<Row>) {
        let mut set = ReadSet::new(db.committed);
        let (oid, own) = (Table::Child.oid(), relation_hash(Table::Child));
        let (keys, detail) = counted.search();
        set.entries(oid, own, detail);
        keys.into_iter().for_each(|k| set.key(oid, own, k, SEARCH));
        for row in found {
            set.key(oid, own, row_hash(*row), LockMode::Share);
        }
        self.keys.extend(set.keys());
        self.isolation = ISOLATION_SERIALIZABLE;
    }

    /// What it sees: its own writes, else what is committed.
    fn read(&self, db: &Database, row: Row) -> Option<u64> {
        match self.changes.iter().rev().find(|c| c.row() == row) {
            Some(Change::Put(_, value)) => Some(*value),
            Some(Change::Delete(..)) => None,
            None => db.get(row),
        }
    }

    fn any(&self, db: &Database, table: Table, value: u64) -> bool {
        let own = self.changes.iter().map(|c| c.row());
        let committed = db.rows().filter(|(_, v)| *v == value).map(|(row, _)| row);
        own.chain(committed)
            .any(|row| row.table == table && self.read(db, row) == Some(value))
    }

    /// Brings the changeset up to date.
    pub fn push(&mut self) {
        model::push(&mut self.builder, &self.changes[self.pushed..]);
        self.pushed = self.changes.len();
    }

    /// Where a subtransaction begins.
    pub fn mark(&mut self) -> (usize, usize, usize, Mark) {
        self.push();
        let (changes, keys) = (self.changes.len(), self.keys.len());
        (changes, keys, self.locks.len(), self.builder.mark())
    }

    /// All changes so far as fragments, behind `room` free bytes; what may be rolled back to `open` stays if that
    /// is less than half.
    pub fn fragments(&mut self, of: FragmentsOf, open: Option<Mark>, room: usize) -> Vec<Vec<u8>> {
        self.push();
        let taken = self.builder.take_entries(Vec::new(), open);
        self.sent = taken.first as usize + taken.ends.len();
        messages(&taken, of, room)
    }

    /// At its end: a word, if some that went ahead were taken back since the last.
    pub fn correction(&mut self, of: FragmentsOf, room: usize) -> Vec<Vec<u8>> {
        let correction = self.builder.take_correction(Vec::new());
        correction.map_or(Vec::new(), |taken| {
            self.sent += 1;
            messages(&taken, of, room)
        })
    }

    /// ROLLBACK TO SAVEPOINT: changes, keys and the locks that it took go.
    pub fn rollback_to(&mut self, mark: (usize, usize, usize, Mark), db: &mut Database, me: Owner) {
        self.changes.truncate(mark.0);
        self.builder.rollback(mark.3);
        self.pushed = self.pushed.min(mark.0);
        self.keys.truncate(mark.1);
        for (lock, mode) in self.locks.drain(mark.2..) {
            db.unlock_one(me, lock, mode);
        }
    }
}

fn messages(taken: &Taken<Vec<u8>>, of: FragmentsOf, room: usize) -> Vec<Vec<u8>> {
    let message = |nth| {
        let (head, range) = taken.fragment(nth, of);
        let part = taken.written(range, head.number % 2 == 0);
        [&vec![0xee; room][..], &fragment_header(head, &part), &part].concat()
    };
    (0..taken.ends.len()).map(message).collect()
}
