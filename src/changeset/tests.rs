use super::decode::{Changeset, DecodeError};
use super::encode::Builder;
use super::entry::{Entry, SequenceChange, Source};
use super::header::{CHECKSUM, FLAG_LOCAL_EFFECTS, Header};
use super::key::{
    BEFORE_FIRST, KEY_FLAGS, KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_RELATION, KEY_UNIQUE, Key, LockMode,
};
use super::sink::{Full, Sink};
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use crate::capture::hash::{KeyHash, What};
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use crate::limits::CHANGESET_KEYS_MAX;
use proptest::prelude::*;

pub(super) fn header() -> Header {
    Header {
        flags: FLAG_LOCAL_EFFECTS,
        group: GroupId(0x1122_3344_5566_7788),
        origin: MemberId(2),
        incarnation: Incarnation(7),
        isolation: 1,
        xid: 0x1_0000_0301,
        snapshot_gid: Gid(41),
        commit_ts: -5,
        database: Oid(16384),
    }
}

/// Bytes of [`header`]: what has a fixed size, and seven numbers (of up to 127 bytes of keys).
const HEADER_BYTES: usize = 22 + 1 + 1 + 1 + 5 + 1 + 3 + 1;

fn whole(builder: Builder<Vec<u8>>) -> Vec<u8> {
    let (head, keys, entries) = builder.finish(header());
    [head.to_vec(), keys, entries].concat()
}

/// The same bytes with a right checksum.
pub(super) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes[CHECKSUM.end..]).to_le_bytes();
    bytes[CHECKSUM].copy_from_slice(&crc);
    bytes
}

/// The bytes that a builder makes of what these say: the same, or they should have been refused.
pub(super) fn rebuilt(c: &Changeset<'_>) -> Vec<u8> {
    let mut keys = Vec::new();
    let mut before = BEFORE_FIRST;
    for key in c.keys() {
        let (bytes, len) = key.encode(&before);
        keys.extend_from_slice(&bytes[..len]);
        before = key;
    }
    // Every relation is opened when it is asked for.
    let mut b = Builder::bounded(keys, Vec::new(), 0, 0);
    let opened = c.open().expect("whole");
    for entry in opened.entries() {
        let room = match entry.expect("whole") {
            Entry::Relation {
                oid,
                fingerprint,
                natts,
            } => b.relation(oid, fingerprint, natts),
            Entry::Insert(row) => b.insert(&row),
            Entry::Update {
                identity,
                changed,
                new,
            } => b.update(&identity, changed, &new),
            Entry::Delete(identity) => b.delete(&identity),
            Entry::Batch(rows) => b.batch(rows),
            Entry::Leave(identity) => b.leave(&identity),
            Entry::Truncate(oids) => b.truncate(&oids.map(|oid| oid.0).collect::<Vec<_>>()),
            Entry::Notify { channel, payload } => b.notify(channel, payload),
            Entry::LargeObject { oid, owner, acl } => b.large_object(oid, owner, acl),
            Entry::LargeObjectGone(oid) => b.large_object_gone(oid),
            Entry::Sequence { oid, change } => b.sequence(oid, change),
            Entry::Source(source) => b.source(source),
            Entry::Fragments(_) => unreachable!("none was sent"),
        };
        room.expect("room");
    }
    let (head, keys, entries) = b.finish(*c.header());
    [head.to_vec(), keys, entries].concat()
}

/// What is read is what would be written. (Lists of fragments have no numbers but of a fixed size.)
fn refused_or_canonical(bytes: &[u8]) {
    if let Ok(c) = Changeset::parse(bytes)
        && c.fragments().is_none()
    {
        assert_eq!(rebuilt(&c), bytes);
    }
}

pub(super) fn row<'a>(natts: u16, bitmap: Option<&'a [u8]>, data: &'a [u8]) -> TupleBytes<'a> {
    TupleBytes {
        natts,
        bitmap,
        data,
    }
}

/// Keys of every form: with and without a relation and `since` of their own, flags that are rare, and hashes
/// that say no more than the relation.
fn example_keys() -> Vec<Key> {
    let key = |hash, relation, since, mode, flags| Key {
        hash,
        since: Gid(since),
        relation,
        mode,
        flags,
    };
    let of_relation = |what| KeyHash::new(16390, what).finish();
    let [writer, locker] = [What::Relation, What::Locks].map(of_relation);
    vec![
        key(writer, 16390, 40, LockMode::KeyShare, KEY_RELATION),
        key(1, 16390, 40, LockMode::Update, 0),
        key(2, 16390, 40, LockMode::Update, KEY_UNIQUE),
        key(3, 16400, 38, LockMode::KeyShare, KEY_LOCK_ONLY),
        key(4, 16400, 38, LockMode::Update, KEY_UNIQUE | KEY_FROM_SINCE),
        key(
            locker,
            16390,
            41,
            LockMode::KeyShare,
            KEY_RELATION | KEY_LOCK_ONLY,
        ),
    ]
}
/// Bytes of each of them.
const KEYS_BYTES: [usize; 6] = [1 + 3 + 1, 1 + 8, 1 + 8, 1 + 1 + 1 + 8, 1 + 1 + 8, 1 + 1 + 1];

pub(super) fn example() -> Vec<u8> {
    let mut b = Builder::new(Vec::new(), Vec::new());
    for key in example_keys() {
        b.key(key).expect("room");
    }
    b.relation(Oid(16390), 0xfeed_beef, 3).expect("room");
    b.insert(&row(3, None, b"\x01\0\0\0\x09abc")).expect("room");
    b.relation(Oid(16400), 0xdead, 2).expect("room");
    b.update(
        &row(1, None, b"\x05\0\0\0"),
        Bitmap(&[0b10]),
        &row(2, Some(&[0b10]), b"\x0bnew!"),
    )
    .expect("room");
    b.relation(Oid(16390), 0xfeed_beef, 3).expect("room");
    b.delete(&row(1, None, b"\x07\0\0\0")).expect("room");
    b.batch(
        [
            row(2, Some(&[0b01]), b"\x01\0\0\0"),
            row(2, None, b"\x02\0\0\0\x05x"),
        ]
        .into_iter(),
    )
    .expect("room");
    whole(b)
}

/// A transaction that does nothing else than to notify.
fn notifications() -> Vec<u8> {
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.notify(c"news", c"first").expect("room");
    b.notify(c"news", c"").expect("room");
    whole(b)
}

/// One with and one without an ACL, one that is gone.
fn large_objects() -> Vec<u8> {
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.large_object(Oid(16500), c"owner", Some(b"owner=rw/owner\0=r/owner\0"))
        .expect("room");
    b.large_object(Oid(16501), c"owner", None).expect("room");
    b.large_object_gone(Oid(16502)).expect("room");
    whole(b)
}

pub(super) const SOURCE: Source<'static> = Source {
    name: c"pg_16400",
    lsn: 0x1_6b37_4d48,
    timestamp: -7,
};

/// A row that came from a publisher.
fn sourced() -> Vec<u8> {
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.relation(Oid(16390), 0xfeed_beef, 3).expect("room");
    b.insert(&row(1, None, b"\x01\0\0\0")).expect("room");
    b.source(SOURCE).expect("room");
    whole(b)
}

#[test]
fn a_source_is_said_once_and_has_a_name() {
    let bytes = sourced();
    let c = Changeset::parse(&bytes).expect("whole");
    assert_eq!(c.source(), Some(SOURCE));
    let opened = c.open().expect("whole");
    assert_eq!(opened.entries().last(), Some(Ok(Entry::Source(SOURCE))));
    let of_clients = example();
    let of_clients = Changeset::parse(&of_clients).expect("whole");
    assert_eq!(of_clients.source(), None);

    let mut b = Builder::new(Vec::new(), Vec::new());
    b.source(SOURCE).expect("room");
    let once = whole(b);
    assert_eq!(broken(&once, 1, 0), DecodeError::Entry(0), "no name");
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.source(SOURCE).expect("room");
    b.source(SOURCE).expect("room");
    let twice = whole(b);
    let error = Changeset::parse(&twice).map(|_| ()).expect_err("two");
    assert_eq!(error, DecodeError::Length);
}

#[test]
fn large_objects_are_read_back() {
    let bytes = large_objects();
    let c = Changeset::parse(&bytes).expect("whole");
    let opened = c.open().expect("whole");
    let seen: Vec<Entry<'_>> = opened.entries().map(|e| e.expect("whole")).collect();
    let owner = c"owner";
    let acl = Some(&b"owner=rw/owner\0=r/owner\0"[..]);
    let wanted = [
        Entry::LargeObject {
            oid: Oid(16500),
            owner,
            acl,
        },
        Entry::LargeObject {
            oid: Oid(16501),
            owner,
            acl: None,
        },
        Entry::LargeObjectGone(Oid(16502)),
    ];
    assert_eq!(seen, wanted);

    let length = 1 + 3 + 1 + "owner".len() + 1 + 1 + acl.map_or(0, <[u8]>::len);
    for (at, byte) in [(4, 3), (11, 100), (length - 1, 1)] {
        let error = broken(&bytes, at, byte);
        assert_eq!(error, DecodeError::Entry(0), "byte {at}");
    }
}

/// What is wrong with a changeset without keys whose entries have another byte there.
fn broken(bytes: &[u8], at: usize, byte: u8) -> DecodeError {
    let mut bytes = bytes.to_vec();
    bytes[HEADER_BYTES + at] = byte;
    let parsed = Changeset::parse(&sealed(bytes)).map(|_| ());
    parsed.expect_err("wrong")
}

#[test]
fn notifications_need_no_relation_and_a_channel() {
    let bytes = notifications();
    let c = Changeset::parse(&bytes).expect("whole");
    assert_eq!(c.keys().count(), 0, "nothing to certify");
    let opened = c.open().expect("whole");
    let seen: Vec<Entry<'_>> = opened.entries().map(|e| e.expect("whole")).collect();
    let wanted = [c"first", c""].map(|payload| Entry::Notify {
        channel: c"news",
        payload,
    });
    assert_eq!(seen, wanted);

    assert_eq!(broken(&bytes, 1, 0), DecodeError::Entry(0), "no channel");
    let last = bytes.len() - HEADER_BYTES - 1;
    assert_eq!(broken(&bytes, last, 1), DecodeError::Entry(12), "no end");
}

/// The bytes never change without a new version. To write them anew after a change of version:
/// `UPDATE=1 cargo test golden`.
#[test]
fn golden_bytes() {
    golden("changeset", &example());
    golden("notify", &notifications());
    golden("large_object", &large_objects());
    golden("source", &sourced());
}

pub(super) fn golden_path(name: &str) -> String {
    format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        let bytes: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
        bytes.join(" ") + "\n"
    };
    bytes.chunks(16).map(line).collect()
}

fn golden(name: &str, bytes: &[u8]) {
    let (path, hex) = (golden_path(name), hex(bytes));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &hex).expect("write the golden file");
    }
    assert_eq!(
        std::fs::read_to_string(&path).expect("the golden file"),
        hex
    );
}

#[test]
fn what_was_built_is_read_back() {
    let bytes = example();
    let c = Changeset::parse(&bytes).expect("whole");
    assert_eq!(*c.header(), header());
    assert_eq!(c.keys().collect::<Vec<_>>(), example_keys());
    let opened = c.open().expect("whole");
    let entries: Vec<Entry<'_>> = opened.entries().map(|e| e.expect("whole")).collect();
    assert_eq!(
        entries[0],
        Entry::Relation {
            oid: Oid(16390),
            fingerprint: 0xfeed_beef,
            natts: 3
        }
    );
    assert_eq!(
        entries[1],
        Entry::Insert(row(3, None, b"\x01\0\0\0\x09abc"))
    );
    let Entry::Update {
        identity,
        changed,
        new,
    } = entries[3]
    else {
        panic!("{:?}", entries[3])
    };
    assert_eq!(
        (identity.data, changed.has(0), changed.has(1), new.data),
        (&b"\x05\0\0\0"[..], false, true, &b"\x0bnew!"[..])
    );
    let Entry::Batch(rows) = entries[6] else {
        panic!("{:?}", entries[6])
    };
    assert_eq!(rows.map(|r| r.data.len()).collect::<Vec<_>>(), [4, 6]);
}

const TAKE: SequenceChange = SequenceChange::Take {
    want: 32,
    slot: 0x0102,
    ticket: 0x4000_0000_0000_0005,
};
const SET: SequenceChange = SequenceChange::Set {
    last: -2,
    called: true,
};

#[test]
fn golden_bytes_of_sequence_entries() {
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.sequence(Oid(16390), TAKE).expect("room");
    b.sequence(Oid(16390), SET).expect("room");
    #[rustfmt::skip]
    assert_eq!(b.into_sinks().1, [
        8, 134, 128, 1, 1, 32, 130, 2, 5, 0, 0, 0, 0, 0, 0, 64,
        8, 134, 128, 1, 2, 254, 255, 255, 255, 255, 255, 255, 255, 1,
    ]);
}

#[test]
fn a_sequence_needs_no_relation_and_leaves_the_current_one() {
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.sequence(Oid(7), TAKE).expect("room");
    b.relation(Oid(1), 2, 3).expect("room");
    b.sequence(Oid(7), SET).expect("room");
    b.insert(&row(3, None, b"x")).expect("room");
    let bytes = whole(b);
    let c = Changeset::parse(&bytes).expect("whole");
    let opened = c.open().expect("whole");
    let entries: Vec<Entry<'_>> = opened.entries().map(|e| e.expect("whole")).collect();
    let oid = Oid(7);
    assert_eq!(entries[0], Entry::Sequence { oid, change: TAKE });
    assert_eq!(entries[2], Entry::Sequence { oid, change: SET });
    assert_eq!(entries[3], Entry::Insert(row(3, None, b"x")));
}

#[test]
fn a_broken_sequence_entry_is_an_error() {
    let with = |change, at: usize, byte| {
        let mut b = Builder::new(Vec::new(), Vec::new());
        b.sequence(Oid(7), change).expect("room");
        let mut bytes = whole(b);
        bytes[HEADER_BYTES + at] = byte;
        Changeset::parse(&sealed(bytes)).map(|_| ())
    };
    assert_eq!(with(TAKE, 3, 31), Ok(()));
    assert_eq!(with(TAKE, 3, 0), Err(DecodeError::Entry(0)), "no values");
    assert_eq!(with(TAKE, 2, 3), Err(DecodeError::Entry(0)), "no such kind");
    assert_eq!(with(SET, 11, 0), Ok(()));
    assert_eq!(with(SET, 11, 2), Err(DecodeError::Entry(0)), "no boolean");
}

#[test]
fn a_weaker_key_behind_a_stronger_one_is_left_out_until_a_rollback() {
    let mut b = Builder::new(Vec::new(), Vec::new());
    let key = |since, mode| Key {
        hash: 9,
        since: Gid(since),
        relation: 1,
        mode,
        flags: 0,
    };
    b.key(key(5, LockMode::NoKeyUpdate)).expect("room");
    let mark = b.mark();
    b.key(key(6, LockMode::NoKeyUpdate)).expect("room");
    b.key(key(6, LockMode::KeyShare)).expect("room");
    assert_eq!(b.counts().0, 1);
    b.key(key(4, LockMode::NoKeyUpdate)).expect("room");
    b.key(key(6, LockMode::Update)).expect("room");
    assert_eq!(b.counts().0, 3);
    b.rollback(mark);
    b.key(key(6, LockMode::Update)).expect("room");
    assert_eq!(b.counts().0, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Relation(u32),
    Insert(Vec<u8>),
    Delete(Vec<u8>),
    Leave(Vec<u8>),
    Update(Vec<u8>, u8),
    Batch(Vec<Vec<u8>>),
    Truncate(Vec<u32>),
    Notify(u8),
    Sequence(i64),
    Key(u64),
    Mark,
    Rollback(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let data = || prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::vec(
        prop_oneof![
            (1..4u32).prop_map(Step::Relation),
            data().prop_map(Step::Insert),
            data().prop_map(Step::Delete),
            data().prop_map(Step::Leave),
            (data(), 0..3u8).prop_map(|(d, how)| Step::Update(d, how)),
            prop::collection::vec(data(), 0..4).prop_map(Step::Batch),
            prop::collection::vec(any::<u32>(), 1..4).prop_map(Step::Truncate),
            any::<u8>().prop_map(Step::Notify),
            any::<i64>().prop_map(Step::Sequence),
            any::<u64>().prop_map(Step::Key),
            Just(Step::Mark),
            any::<prop::sample::Index>().prop_map(|i| Step::Rollback(i.index(1000))),
        ],
        0..60,
    )
}

/// A sink with room for so many bytes.
#[derive(Debug)]
pub(super) struct Small(pub Vec<u8>, pub usize);

impl Sink for Small {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if self.0.len() + bytes.len() > self.1 {
            return Err(Full);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
    fn replace(&mut self, bytes: &[u8]) {
        self.0.replace(bytes);
    }
    fn each(&self, visit: &mut dyn FnMut(&[u8])) {
        // In pieces, as from shared memory.
        self.0.chunks(7).for_each(visit);
    }
}

#[test]
fn half_an_entry_stays_when_memory_ends() {
    for room in 0..200 {
        let mut b = Builder::new(Small(Vec::new(), room), Small(Vec::new(), room));
        let long = [7; 30];
        let rows = || [row(9, Some(&[1, 0]), &long), row(3, None, &long)];
        let (mut entries, mut keys) = (0, 0);
        if b.relation(Oid(1), 2, 9).is_ok() {
            entries += 1;
            entries += u32::from(b.insert(&rows()[0]).is_ok());
            let update = b.update(&rows()[1], Bitmap(&[3, 0]), &rows()[0]);
            entries += u32::from(update.is_ok());
            entries += u32::from(b.batch(rows().into_iter()).is_ok());
            entries += u32::from(b.truncate(&[5, 6, 7]).is_ok());
            entries += u32::from(b.delete(&row(1, None, b"x")).is_ok());
        }
        for hash in 0..9 {
            let key = Key {
                hash,
                since: Gid(1),
                relation: 1,
                mode: LockMode::Update,
                flags: 0,
            };
            keys += u32::from(b.key(key).is_ok());
        }
        assert_eq!(b.counts(), (keys, entries));
        let (head, first, second) = b.finish(header());
        let bytes = [head.to_vec(), first.0, second.0].concat();
        let c = Changeset::parse(&bytes).expect("what was accepted is whole");
        let opened = c.open().expect("whole");
        assert_eq!(opened.entries().count() as u32, entries);
        assert_eq!(c.keys().count() as u32, keys);
    }
}

#[test]
fn a_relation_whose_layout_changed_is_not_opened_again() {
    let mut b = Builder::new(Vec::new(), Vec::new());
    for (fingerprint, natts) in [(1, 2), (1, 2), (5, 3)] {
        b.relation(Oid(1), fingerprint, natts).expect("room");
        b.insert(&row(natts, None, b"x")).expect("room");
    }
    assert_eq!(b.counts().1, 5);
    let mark = b.mark();
    b.relation(Oid(2), 1, 1).expect("room");
    b.rollback(mark);
    b.relation(Oid(2), 1, 1).expect("room");
    b.insert(&row(1, None, b"x")).expect("room");
    let bytes = whole(b);
    let c = Changeset::parse(&bytes).expect("whole");
    let opened = c.open().expect("whole");
    assert_eq!(opened.entries().count(), 7);
}

/// One that shares some of all that it says with others.
fn some_key(number: u64) -> Key {
    let relation = [1, 2, 16_400, u32::MAX][(number & 3) as usize];
    let key = Key {
        hash: number,
        since: Gid([0, 1, 1 << 40, u64::MAX][(number >> 2 & 3) as usize]),
        relation,
        mode: LockMode::ALL[(number >> 4 & 3) as usize],
        flags: (number >> 6) as u8 & KEY_FLAGS,
    };
    if number >> 14 & 1 == 0 {
        return key;
    }
    // Nothing but a relation goes into it.
    let relation = (number >> 32) as u32;
    let what = [What::Relation, What::Locks, What::Row][(number >> 15) as usize % 3];
    Key {
        hash: KeyHash::new(relation, what).finish(),
        relation,
        ..key
    }
}

/// Attributes of the relations of [`Step`].
fn natts(relation: u32) -> u16 {
    [4, 8, 20][relation as usize - 1]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is left after marks and rollbacks is what was built without the parts rolled back.
    #[test]
    fn rollbacks_leave_exactly_the_rest(steps in steps()) {
        let mut b = Builder::new(Vec::new(), Vec::new());
        // The model: what should be there, as (relation, data) and keys.
        let (mut relation, mut rows, mut keys) = (0, Vec::<(u32, Vec<u8>)>::new(), Vec::<Key>::new());
        let mut marks = Vec::new();
        for step in steps {
            if relation == 0 && matches!(step, Step::Insert(_) | Step::Delete(_) | Step::Leave(_) | Step::Update(..) | Step::Batch(_)) {
                continue;
            }
            match step {
                Step::Relation(r) => { b.relation(Oid(r), 7, natts(r)).unwrap(); relation = r; }
                Step::Insert(d) => { b.insert(&row(4, None, &d)).unwrap(); rows.push((relation, d)); }
                Step::Delete(d) => { b.delete(&row(1, Some(&[1]), &d)).unwrap(); rows.push((relation, d)); }
                Step::Leave(d) => { b.leave(&row(1, Some(&[1]), &d)).unwrap(); rows.push((relation, d)); }
                Step::Update(d, how) => {
                    let n = natts(relation);
                    let (bits, others) = (vec![0xa5; bitmap_bytes(n)], vec![0x24; bitmap_bytes(n)]);
                    let bitmap = [None, Some(&bits[..]), Some(&others[..])][usize::from(how)];
                    b.update(&row(1, None, b"id"), Bitmap(&bits), &row(n, bitmap, &d)).unwrap();
                    rows.push((relation, [&d, bitmap.unwrap_or(&[]), &bits].concat()));
                }
                Step::Batch(all) => {
                    b.batch(all.iter().map(|d| row(4, None, d)).collect::<Vec<_>>().into_iter()).unwrap();
                    rows.extend(all.into_iter().map(|d| (relation, d)));
                }
                Step::Truncate(oids) => {
                    b.truncate(&oids).unwrap();
                    rows.push((relation, oids.into_iter().flat_map(u32::to_le_bytes).collect()));
                }
                Step::Notify(n) => {
                    let payload = std::ffi::CString::new(n.to_string()).unwrap();
                    b.notify(c"channel", &payload).unwrap();
                    rows.push((relation, payload.into_bytes()));
                }
                Step::Sequence(last) => {
                    b.sequence(Oid(9), SequenceChange::Set { last, called: false }).unwrap();
                    rows.push((9, last.to_le_bytes().to_vec()));
                }
                Step::Key(hash) => {
                    b.key(some_key(hash)).unwrap();
                    keys.push(some_key(hash));
                }
                Step::Mark => marks.push((b.mark(), relation, rows.len(), keys.len())),
                Step::Rollback(i) => if !marks.is_empty() {
                    marks.truncate(i % marks.len() + 1);
                    let (mark, r, n, k) = marks.pop().unwrap();
                    b.rollback(mark);
                    relation = r;
                    rows.truncate(n);
                    keys.truncate(k);
                }
            }
        }
        let bytes = whole(b);
        let c = Changeset::parse(&bytes).unwrap();
        let mut seen = Vec::new();
        let mut current = 0;
        let opened = c.open().expect("whole");
        for entry in opened.entries() {
            match entry.unwrap() {
                Entry::Relation { oid, .. } => current = oid.0,
                Entry::Insert(t) | Entry::Delete(t) | Entry::Leave(t) => seen.push((current, t.data.to_vec())),
                Entry::Update { new, changed, .. } => {
                    prop_assert_eq!(new.natts, natts(current));
                    seen.push((current, [new.data, new.bitmap.unwrap_or(&[]), changed.0].concat()));
                }
                Entry::Truncate(oids) => {
                    seen.push((current, oids.flat_map(|o| o.0.to_le_bytes()).collect()));
                }
                Entry::Fragments(_) => unreachable!("none was sent"),
                Entry::Batch(rows) => seen.extend(rows.map(|t| (current, t.data.to_vec()))),
                Entry::LargeObject { .. } | Entry::LargeObjectGone(_) | Entry::Source(_) => unreachable!("none was built"),
                Entry::Notify { payload, .. } => seen.push((current, payload.to_bytes().to_vec())),
                Entry::Sequence { oid, change: SequenceChange::Set { last, .. } } => seen.push((oid.0, last.to_le_bytes().to_vec())),
                Entry::Sequence { .. } => unreachable!("none was taken"),
            }
        }
        prop_assert_eq!(seen, rows);
        keys.dedup();
        let mut got: Vec<Key> = c.keys().collect();
        got.dedup();
        prop_assert_eq!(got, keys);
        prop_assert_eq!(rebuilt(&c), bytes);
    }

    /// Bytes that came over a network can be anything.
    #[test]
    fn damage_is_an_error_and_never_a_panic(at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<prop::sample::Index>()) {
        let good = example();
        let mut bad = good.clone();
        let at = at.index(bad.len());
        bad[at] ^= flip;
        prop_assert!(Changeset::parse(&bad).is_err());
        prop_assert!(Changeset::parse(&good[..cut.index(good.len())]).is_err());
        // With a right checksum the structure is checked all the same.
        refused_or_canonical(&sealed(bad));
    }

    #[test]
    fn any_header_is_read_back(
        flags in 0..16u16, group: u64, origin: u16, life: u32, isolation in 0..4u8,
        xid: u64, snapshot: u64, commit_ts: i64, database: u32, keys in 0..300u64,
    ) {
        let header = Header {
            flags,
            group: GroupId(group),
            origin: MemberId(origin),
            incarnation: Incarnation(life),
            isolation,
            xid,
            snapshot_gid: Gid(snapshot),
            commit_ts,
            database: Oid(database),
        };
        let mut b = Builder::new(Vec::new(), Vec::new());
        for hash in 0..keys {
            b.key(Key { hash, ..BEFORE_FIRST }).unwrap();
        }
        let at_most = b.total_bytes();
        let (head, keys, entries) = b.finish(header);
        let bytes = [head.to_vec(), keys, entries].concat();
        prop_assert!(bytes.len() <= at_most);
        let c = Changeset::parse(&bytes).unwrap();
        prop_assert_eq!(*c.header(), header);
        prop_assert_eq!(rebuilt(&c), bytes);
    }

    /// Bytes behind a right header: as the writeset and entries of a changeset.
    #[test]
    fn what_is_read_is_what_would_be_written(
        keys in prop::collection::vec(prop_oneof![3 => 0..4u8, 1 => any::<u8>()], 0..40),
        entries in prop::collection::vec(prop_oneof![3 => 0..14u8, 1 => any::<u8>()], 0..40),
    ) {
        refused_or_canonical(&whole(Builder::new(keys.clone(), Vec::new())));
        let opened = [&[1, 9][..], &[7; 8], &[3], &entries].concat();
        refused_or_canonical(&whole(Builder::new(Vec::new(), opened.clone())));
        refused_or_canonical(&whole(Builder::new(keys, opened)));
    }

    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Changeset::parse(&bytes).is_err());
    }
}

#[test]
fn no_byte_can_be_said_in_two_ways() {
    for good in [example(), notifications(), large_objects(), sourced()] {
        with_every_byte(&good, refused_or_canonical);
    }
}

/// Visits a changeset with any one byte of it replaced by any, with a right checksum.
pub(super) fn with_every_byte(good: &[u8], visit: impl Fn(&[u8])) {
    for at in CHECKSUM.end..good.len() {
        for byte in 0..=u8::MAX {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            visit(&sealed(bytes));
        }
    }
}

#[test]
fn a_key_in_another_form_is_refused() {
    let parse = |bytes: &[u8]| {
        let keys = whole(Builder::new(bytes.to_vec(), Vec::new()));
        Changeset::parse(&keys).map(|c| c.keys().count())
    };
    const HASH: [u8; 8] = [9; 8];
    let writer = KeyHash::new(0, What::Relation).finish().to_le_bytes();
    type Pieces<'a> = &'a [&'a [u8]];
    let forms: [(&str, Pieces<'_>, Pieces<'_>); 9] = [
        (
            "a common flag",
            &[&[0x0b], &HASH],
            &[&[0x1f, KEY_UNIQUE], &HASH],
        ),
        (
            "flags that none has",
            &[&[0x1f, 9], &HASH],
            &[&[0x1f, 128], &HASH],
        ),
        ("no difference", &[&[0x23, 2], &HASH], &[&[0x23, 0], &HASH]),
        (
            "a relation below 0",
            &[&[0x23, 2], &HASH],
            &[&[0x23, 1], &HASH],
        ),
        (
            "no difference of since",
            &[&[0x43, 2], &HASH],
            &[&[0x43, 0], &HASH],
        ),
        (
            "a long number",
            &[&[0x43, 2], &HASH],
            &[&[0x43, 0x82, 0], &HASH],
        ),
        ("its relation's hash", &[&[4], &HASH], &[&[4], &writer]),
        ("no hash, no relation", &[&[0x84]], &[&[0x80]]),
        ("cut off", &[&[0x43, 2], &HASH], &[&[0x43, 2], &HASH[1..]]),
    ];
    for (form, right, wrong) in forms {
        assert_eq!(parse(&right.concat()), Ok(1), "{form}");
        assert_eq!(parse(&wrong.concat()), Err(DecodeError::Key), "{form}");
    }
}

#[test]
fn an_update_whose_new_row_has_the_bitmap_of_what_changed_does_not_say_it_twice() {
    let bytes = |bitmap: Option<&[u8]>| {
        let mut b = Builder::new(Vec::new(), Vec::new());
        b.relation(Oid(1), 2, 9).expect("room");
        let new = row(9, bitmap, b"new");
        b.update(&row(9, Some(&[1, 0]), b"id"), Bitmap(&[6, 0]), &new)
            .expect("room");
        let bytes = whole(b);
        let c = Changeset::parse(&bytes).expect("whole");
        let opened = c.open().expect("whole");
        let Some(Ok(Entry::Update { new: read, .. })) = opened.entries().last() else {
            panic!("no update")
        };
        assert_eq!(read, new);
        bytes[HEADER_BYTES + 11..].to_vec()
    };
    let identity = [&[3, 2 << 2 | 1, 1, 0][..], b"id", &[6, 0]].concat();
    assert_eq!(
        bytes(Some(&[6, 0])),
        [&identity[..], &[3 << 2 | 2], b"new"].concat()
    );
    assert_eq!(
        bytes(Some(&[2, 0])),
        [&identity[..], &[3 << 2 | 1, 2, 0], b"new"].concat()
    );
    assert_eq!(bytes(None), [&identity[..], &[3 << 2], b"new"].concat());
}

#[test]
fn versions_and_kinds_that_are_unknown_are_named() {
    let fixed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = example();
        change(&mut bytes);
        let parsed = Changeset::parse(&sealed(bytes)).map(|_| ());
        parsed.expect_err("wrong")
    };
    assert_eq!(fixed(&|b| b[0] = b'P'), DecodeError::Magic);
    assert_eq!(fixed(&|b| b[1] = 2), DecodeError::Version(2));
    // A flag that there is not, a longer number, more bytes of keys than there are.
    let keys_bytes = HEADER_BYTES - 1;
    let no_flag = fixed(&|b| {
        b[22] |= 128;
        b.insert(23, 1);
    });
    assert_eq!(no_flag, DecodeError::Header);
    assert_eq!(fixed(&|b| b[keys_bytes - 1] = 0), DecodeError::Header);
    let too_few = fixed(&|b| {
        b.truncate(100);
        b[keys_bytes] = 127;
    });
    assert_eq!(too_few, DecodeError::Length);
    assert_eq!(fixed(&|b| b.truncate(keys_bytes)), DecodeError::Header);
    // The last key is cut off; or there is more behind it, which is none.
    assert_eq!(fixed(&|b| b[keys_bytes] -= 1), DecodeError::Key);
    assert_eq!(fixed(&|b| b[keys_bytes] += 1), DecodeError::Key);
    let entries = HEADER_BYTES + KEYS_BYTES.iter().sum::<usize>();
    assert_eq!(fixed(&|b| b[entries] = 99), DecodeError::Kind(99, 0));
    // The first row without its relation; a row with as many attributes as its relation, said once more.
    let no_relation = fixed(&|b| drop(b.drain(entries..entries + 13)));
    assert_eq!(no_relation, DecodeError::Entry(0));
    let said_twice = fixed(&|b| {
        b[entries + 14] |= 2;
        b.insert(entries + 15, 3);
    });
    assert_eq!(said_twice, DecodeError::Entry(13));
}

#[test]
fn a_writeset_of_too_many_keys_is_refused() {
    let writeset = |count: usize| {
        // As before, with the hash of its relation.
        let keys = vec![0x84; count];
        let bytes = whole(Builder::new(keys, Vec::new()));
        Changeset::parse(&bytes).map(|c| c.keys().count())
    };
    assert_eq!(writeset(CHANGESET_KEYS_MAX), Ok(CHANGESET_KEYS_MAX));
    assert_eq!(writeset(CHANGESET_KEYS_MAX + 1), Err(DecodeError::TooBig));
}
