//! Compressed entries say what they said before, and damaged ones are errors.

use super::compress::{BLOCK_BYTES, can_be_blocks, compress, decompress};
use super::decode::{Changeset, DecodeError};
use super::encode::Builder;
use super::fragment::{
    Counted, FRAGMENT_HEADER_BYTES, FragmentHead, FragmentsOf, fragment_header, open,
};
use super::header::{CHECKSUM, FLAG_BLOCKS};
use super::tests::{Small, example, golden_path, header, rebuilt, row, sealed, with_every_byte};
use super::tuple::{Bitmap, TupleBytes};
use super::varint::{self, VARINT_BYTES_MAX};
use crate::ids::Oid;
use crate::limits::CHANGESET_BYTES_MAX;
use proptest::prelude::*;

/// Where a header has its flags, in the bits above the isolation level.
const MODE: usize = 22;
const BLOCKS_BIT: u8 = (FLAG_BLOCKS as u8) << 2;

/// Some rows of every kind, each with `data`.
fn rows(data: &[u8], count: u64) -> Builder<Vec<u8>> {
    let mut b = Builder::new(Vec::new(), Vec::new());
    b.relation(Oid(16390), 0xfeed_beef, 3).expect("room");
    let rows: Vec<Vec<u8>> = (0..count)
        .map(|number| [&number.to_le_bytes()[..], data].concat())
        .collect();
    for row_data in &rows {
        let whole = row(3, None, row_data);
        b.insert(&whole).expect("room");
        b.update(&row(1, None, data), Bitmap(&[0b101]), &whole)
            .expect("room");
        b.delete(&whole).expect("room");
        b.leave(&row(2, Some(&[1]), row_data)).expect("room");
    }
    b.batch(rows.iter().map(|data| row(3, None, data)))
        .expect("room");
    b
}

fn compressed(builder: Builder<Vec<u8>>) -> Vec<u8> {
    let (head, keys, entries) = builder.finish_compressed(header());
    [head.to_vec(), keys, entries].concat()
}

fn whole(builder: Builder<Vec<u8>>) -> Vec<u8> {
    let (head, keys, entries) = builder.finish(header());
    [head.to_vec(), keys, entries].concat()
}

fn is_compressed(changeset: &[u8]) -> bool {
    changeset[MODE] & BLOCKS_BIT != 0
}

fn blocks(entries: &Vec<u8>) -> Option<Vec<u8>> {
    compress(entries, 0..entries.len(), Vec::new())
}

/// A changeset of no keys whose entries are these bytes, called blocks of so many.
fn of_blocks(entries: usize, blocks: &[u8]) -> Vec<u8> {
    let mut number = [0; VARINT_BYTES_MAX];
    let len = varint::write(entries as u64, &mut number);
    let behind = [&number[..len], blocks].concat();
    let mut bytes = whole(Builder::new(Vec::new(), behind));
    bytes[MODE] |= BLOCKS_BIT;
    sealed(bytes)
}

/// What is read is what would be written: everything but the blocks themselves, of which several say the same;
/// and what they say.
fn refused_or_canonical(bytes: &[u8]) {
    let Ok(c) = Changeset::parse(bytes) else {
        return;
    };
    let Ok(opened) = c.open() else { return };
    let mut plain = rebuilt(&c);
    let keys_end = plain.len() - opened.bytes().len();
    assert_eq!(&plain[keys_end..], opened.bytes());
    if is_compressed(bytes) {
        plain[MODE] |= BLOCKS_BIT;
        let (entries, blocks) = varint::read(&bytes[keys_end..]).expect("a number");
        assert_eq!(entries as usize, opened.bytes().len());
        assert!(can_be_blocks(blocks.len(), entries as usize));
    } else {
        assert_eq!(bytes.len(), plain.len());
    }
    assert_eq!(bytes[CHECKSUM.end..keys_end], plain[CHECKSUM.end..keys_end]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compressed_entries_say_the_same(
        data in prop::collection::vec(any::<u8>(), 0..300), count in 0..120u64,
    ) {
        let plain = whole(rows(&data, count));
        let bytes = compressed(rows(&data, count));
        let [c, p] = [&bytes, &plain].map(|bytes| Changeset::parse(bytes).expect("whole"));
        prop_assert_eq!(c.header(), p.header());
        prop_assert_eq!(rebuilt(&c), &plain[..]);
        prop_assert!(c.has_only_rows());
        let (opened, entries) = (c.open().expect("whole"), p.open().expect("whole"));
        prop_assert_eq!(opened.bytes(), entries.bytes());
        if is_compressed(&bytes) {
            // The number in front of them is not counted.
            prop_assert!(bytes.len() <= plain.len() - entries.bytes().len() / 8 + VARINT_BYTES_MAX);
        } else {
            prop_assert!(count < 10);
            prop_assert_eq!(&bytes, &plain);
        }
        refused_or_canonical(&bytes);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic(
        count in 5..40u64,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let good = compressed(rows(b"some of the data of a row", count));
        prop_assert!(is_compressed(&good));
        let mut bad = good.clone();
        for (at, byte) in changes {
            bad[at.index(good.len())] = byte;
        }
        if bad[2..] != good[2..] {
            prop_assert!(Changeset::parse(&bad).is_err());
        }
        refused_or_canonical(&sealed(bad));
        let cut = CHECKSUM.end + cut.index(good.len() - CHECKSUM.end);
        refused_or_canonical(&sealed(good[..cut].to_vec()));
    }

    /// Anything as a block of some bytes of entries.
    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        entries in 0..3000usize,
        block in prop::collection::vec(prop_oneof![any::<u8>(), Just(255), Just(0), 1..20u8], 0..300),
    ) {
        let bytes = of_blocks(entries, &block);
        match Changeset::parse(&bytes) {
            Err(error) => {
                prop_assert_eq!(error, DecodeError::Block);
                prop_assert!(!can_be_blocks(block.len(), entries));
            }
            Ok(_) => refused_or_canonical(&bytes),
        }
        let of = FragmentsOf { worker: 1, ticket: 2 };
        let head = FragmentHead { of, number: 0, after: None, bytes: entries as u32 };
        let fragment = [&fragment_header(head, &block)[..], &block].concat();
        let counted = Counted { number: 0, bytes: entries as u32 };
        if let Ok(opened) = open(&fragment, counted) {
            prop_assert_eq!(opened.bytes().len(), entries);
            let _ = opened.entries().count();
        }
    }
}

#[test]
fn no_byte_leads_to_a_panic() {
    let good = compressed(rows(b"data", 12));
    assert!(is_compressed(&good));
    with_every_byte(&good, refused_or_canonical);
}

#[test]
fn what_others_than_helpers_read_is_never_compressed() {
    type Add = fn(&mut Builder<Vec<u8>>);
    let adds: [Add; 4] = [
        |b| b.truncate(&[1, 2]).expect("room"),
        |b| b.notify(c"news", c"").expect("room"),
        |b| b.large_object_gone(Oid(1)).expect("room"),
        |b| b.source(super::tests::SOURCE).expect("room"),
    ];
    let data = [7; 100];
    assert!(is_compressed(&compressed(rows(&data, 50))));
    for add in adds {
        let with = || {
            let mut b = rows(&data, 50);
            add(&mut b);
            b
        };
        assert_eq!(compressed(with()), whole(with()));
        // Nor is it taken from somebody who does it.
        let entries = with().into_sinks().1;
        let blocks = blocks(&entries).expect("they are much shorter");
        let bytes = of_blocks(entries.len(), &blocks);
        let c = Changeset::parse(&bytes).expect("nobody looks inside");
        assert_eq!(c.source(), None);
        assert_eq!(c.open().map(drop), Err(DecodeError::Block));
    }
    // Nor what goes with fragments, whose list is among the entries; what was taken back does not count.
    let of = FragmentsOf {
        worker: 1,
        ticket: 2,
    };
    let mut ahead = rows(&data, 50);
    let mark = ahead.mark();
    ahead.truncate(&[1]).expect("room");
    ahead.rollback(mark);
    let _ = ahead.take_entries(Vec::new(), []);
    for _ in 0..100 {
        ahead.relation(Oid(1), 1, 1).expect("room");
        ahead.insert(&row(1, None, &data)).expect("room");
    }
    ahead.fragments(of).expect("room");
    assert!(!is_compressed(&compressed(ahead)));
    let mut back = rows(&data, 50);
    let mark = back.mark();
    back.notify(c"news", c"").expect("room");
    back.rollback(mark);
    assert!(is_compressed(&compressed(back)));
    let mut beginning = Builder::new(Vec::new(), Vec::new());
    let mark = beginning.mark();
    beginning.truncate(&[1]).expect("room");
    beginning.rollback(mark);
    beginning.relation(Oid(1), 1, 1).expect("room");
    for _ in 0..100 {
        beginning.insert(&row(1, None, &data)).expect("room");
    }
    assert!(is_compressed(&compressed(beginning)));
}

#[test]
fn damage_inside_of_blocks_is_named() {
    let mut entries = rows(&[7; 100], 50).into_sinks().1;
    // Attributes of the relation, which the first row has too.
    entries[12] = 2;
    let blocks = blocks(&entries).expect("they are much shorter");
    let bytes = of_blocks(entries.len(), &blocks);
    let c = Changeset::parse(&bytes).expect("nobody looks inside");
    assert!(matches!(c.open(), Err(DecodeError::Entry(_))));
}

#[test]
fn blocks_say_as_many_bytes_as_they_are_for() {
    let entries = rows(&[7; 100], 50).into_sinks().1;
    let blocks = blocks(&entries).expect("they are much shorter");
    let open = |bytes: usize, blocks: &[u8]| {
        Changeset::parse(&of_blocks(bytes, blocks)).and_then(|c| c.open().map(drop))
    };
    assert_eq!(open(entries.len(), &blocks), Ok(()));
    for wrong in [entries.len() - 1, entries.len() + 1] {
        assert_eq!(open(wrong, &blocks), Err(DecodeError::Block));
    }
    assert_eq!(open(entries.len(), &blocks[1..]), Err(DecodeError::Block));
    // Before any memory is taken.
    for wrong in [blocks.len() * 255 + 1, usize::MAX, blocks.len() * 9 / 8, 0] {
        let parsed = Changeset::parse(&of_blocks(wrong, &blocks)).map(drop);
        assert_eq!(parsed, Err(DecodeError::Block), "{wrong}");
    }
    assert!(can_be_blocks(1 << 20, CHANGESET_BYTES_MAX));
    assert!(!can_be_blocks(1 << 20, CHANGESET_BYTES_MAX + 1));
    assert!(can_be_blocks(7, 8) && !can_be_blocks(8, 8));
}

#[test]
fn blocks_need_no_more_room_than_entries_had() {
    let mut b = Builder::new(Small(Vec::new(), 0), Small(Vec::new(), 5000));
    let mut count = usize::from(b.relation(Oid(1), 1, 1).is_ok());
    while b.insert(&row(1, None, &[7; 30])).is_ok() {
        count += 1;
    }
    let (head, keys, entries) = b.finish_compressed(header());
    let bytes = [head.to_vec(), keys.0, entries.0].concat();
    assert!(is_compressed(&bytes));
    let c = Changeset::parse(&bytes).expect("whole");
    assert_eq!(c.open().expect("whole").entries().count(), count);
}

#[test]
fn what_does_not_get_shorter_stays() {
    assert!(!is_compressed(&compressed(Builder::new(
        Vec::new(),
        Vec::new()
    ))));
    let few = rows(b"", 0);
    assert!(!is_compressed(&compressed(few)));
    assert!(!is_compressed(&example()));
}

#[test]
fn long_entries_are_several_blocks() {
    for bytes in [
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        3 * BLOCK_BYTES,
    ] {
        let entries: Vec<u8> = (0..bytes).map(|at| (at / 100) as u8).collect();
        let from = [vec![9; 50], entries.clone(), vec![9; 50]].concat();
        // In pieces, behind what is there.
        let there = b"there".to_vec();
        let written = compress(&Small(from, 0), 50..50 + bytes, there);
        assert_eq!(written.is_some(), bytes > 1);
        let Some(written) = written else { continue };
        let blocks = written.strip_prefix(b"there").expect("it stays");
        assert_eq!(decompress(blocks, bytes), Ok(entries));
        for wrong in [&blocks[..blocks.len() - 1], &[blocks, &[0]].concat()] {
            assert_eq!(decompress(wrong, bytes), Err(DecodeError::Block));
        }
    }
}

#[test]
fn what_begins_with_a_block_that_is_not_shorter_is_not_tried_further() {
    // Of each number no other bytes than of those before.
    let noise = (0..).map(|n: u64| blake3::hash(&n.to_le_bytes()));
    let noise: Vec<u8> = noise
        .take(BLOCK_BYTES / 32)
        .flat_map(<[u8; 32]>::from)
        .collect();
    let zeros = vec![0; 4 * BLOCK_BYTES];
    assert!(blocks(&[&zeros[..], &noise].concat()).is_some());
    assert!(blocks(&[&noise[..], &zeros].concat()).is_none());
}

/// Blocks that were written once are read, though another version of the library may write others.
#[test]
fn golden_bytes() {
    for (name, data, count) in [
        ("compressed", &b"data"[..], 5),
        ("several_blocks", &[7; 1000], 20),
    ] {
        let builder = || rows(data, count);
        let bytes = compressed(builder());
        let path = golden_path(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, super::tests::hex(&bytes)).expect("write the golden file");
        }
        let golden: Vec<u8> = std::fs::read_to_string(&path)
            .expect("the golden file")
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
            .collect();
        assert!(is_compressed(&golden));
        let c = Changeset::parse(&golden).expect("whole");
        assert_eq!(rebuilt(&c), whole(builder()));
    }
}

#[test]
fn a_fragment_is_opened_as_far_as_it_counts() {
    let of = FragmentsOf {
        worker: 1,
        ticket: 2,
    };
    let mut b = Builder::new(Vec::new(), Vec::new());
    let insert = |b: &mut Builder<Vec<u8>>| {
        b.relation(Oid(1), 1, 1).expect("room");
        let data = [7; 30];
        let row: TupleBytes<'_> = row(1, None, &data);
        for _ in 0..100 {
            b.insert(&row).expect("room");
        }
    };
    insert(&mut b);
    let part = b.entries_bytes();
    insert(&mut b);
    let taken = b.take_entries(Vec::new(), []);
    let (head, range) = taken.fragment(0, of);
    let blocks = compress(&taken.entries, range, Vec::new()).expect("they are much shorter");
    let fragment = [&fragment_header(head, &blocks)[..], &blocks].concat();
    let opened = |bytes: usize| {
        let counted = Counted {
            number: 0,
            bytes: bytes as u32,
        };
        open(&fragment, counted).map(|opened| opened.entries().count())
    };
    assert_eq!(opened(part), Ok(101));
    assert_eq!(opened(taken.entries.len()), Ok(201));
    assert_eq!(opened(taken.entries.len() + 1), Err(DecodeError::Length));
    // With a right checksum, a broken block.
    let cut = &blocks[..blocks.len() - 1];
    let broken = [&fragment_header(head, cut)[..], cut].concat();
    let counted = Counted {
        number: 0,
        bytes: part as u32,
    };
    assert_eq!(open(&broken, counted).map(drop), Err(DecodeError::Block));
    assert_eq!(
        open(&fragment[..FRAGMENT_HEADER_BYTES], counted).map(drop),
        Err(DecodeError::Length)
    );
}
