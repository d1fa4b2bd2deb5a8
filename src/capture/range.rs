//! Ranges of integers as buckets. Pure.
//!
//! A writer names the bucket of its value at each level, from buckets of 16 values up to sixteenths
//! of the type; a reader names buckets, of any levels, that cover what it searches. So whatever it
//! could have found has a bucket in common with it.

use super::hash::KeyHash;
use crate::changeset::LockMode;

/// Each level has buckets so many bits wider than the one below; at level 0 they would be values.
const LEVEL_BITS: u32 = 4;

/// What a writer says of an entry that comes to an index, and a reader of a search. Writers don't
/// exclude each other.
pub const ENTRY: LockMode = LockMode::Share;
/// See [`ENTRY`].
pub const SEARCH: LockMode = LockMode::NoKeyUpdate;
const _: () = assert!(SEARCH.conflicts(ENTRY) && !ENTRY.conflicts(ENTRY));

/// A type whose values are integers, in the same order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Image {
    /// Signed, of so many bytes.
    Signed(u32),
    /// Unsigned, of four bytes.
    Unsigned,
}

/// A part of a type's values: level, and which of its buckets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bucket(pub u32, pub i64);

impl Bucket {
    /// Its key among entries whose columns before it have the same values.
    #[must_use]
    pub const fn key(self, prefix: KeyHash) -> u64 {
        prefix.add(self.0 as u64).add(self.1 as u64).finish()
    }
}

impl Image {
    /// From how the shim says it: bytes, negative for unsigned; `None` for other types.
    #[must_use]
    pub const fn from_bytes(bytes: i32) -> Option<Image> {
        match bytes {
            2 | 4 | 8 => Some(Image::Signed(bytes as u32)),
            -4 => Some(Image::Unsigned),
            _ => None,
        }
    }

    /// The integer that a by-value datum of the type is.
    #[must_use]
    pub const fn of(self, datum: usize) -> i64 {
        match self {
            Image::Signed(2) => datum as i16 as i64,
            Image::Signed(4) => datum as i32 as i64,
            Image::Signed(_) => datum as i64,
            Image::Unsigned => datum as u32 as i64,
        }
    }

    /// The coarsest level, which has 16 buckets.
    const fn top(self) -> u32 {
        let bytes = match self {
            Image::Signed(bytes) => bytes,
            Image::Unsigned => 4,
        };
        bytes * 8 / LEVEL_BITS - 1
    }

    /// The buckets in which a value is, one a level.
    pub fn buckets(self, value: i64) -> impl Iterator<Item = Bucket> {
        (1..=self.top()).map(move |level| Bucket(level, value >> (level * LEVEL_BITS)))
    }

    /// At most so many buckets (32 or more) that have all values from `low` to `high`, both included
    /// and of the type, and as few others as that allows.
    #[must_use]
    pub fn cover(self, low: i64, high: i64, most: usize) -> Vec<Bucket> {
        let covers = (1..=self.top()).map(|finest| self.cover_from(finest, low, high));
        covers
            .into_iter()
            .find(|cover| cover.len() <= most)
            .expect("the coarsest level has 16 buckets")
    }

    /// With no bucket below a level; at each, those that are left beside wider ones.
    fn cover_from(self, finest: u32, low: i64, high: i64) -> Vec<Bucket> {
        const WIDTH: i64 = 1 << LEVEL_BITS;
        let mut cover = Vec::new();
        let (mut low, mut high) = (low >> (finest * LEVEL_BITS), high >> (finest * LEVEL_BITS));
        for level in finest..=self.top() {
            let last = level == self.top();
            while low <= high && (last || low & (WIDTH - 1) != 0) {
                cover.push(Bucket(level, low));
                low += 1;
            }
            while low <= high && high & (WIDTH - 1) != WIDTH - 1 {
                cover.push(Bucket(level, high));
                high -= 1;
            }
            if low > high {
                break;
            }
            (low, high) = (low >> LEVEL_BITS, high >> LEVEL_BITS);
        }
        cover
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const IMAGES: [Image; 4] = [
        Image::Signed(2),
        Image::Signed(4),
        Image::Signed(8),
        Image::Unsigned,
    ];

    fn bounds(image: Image) -> (i64, i64) {
        match image {
            Image::Signed(2) => (i16::MIN.into(), i16::MAX.into()),
            Image::Signed(4) => (i32::MIN.into(), i32::MAX.into()),
            Image::Signed(_) => (i64::MIN, i64::MAX),
            Image::Unsigned => (0, u32::MAX.into()),
        }
    }

    fn meets(image: Image, cover: &[Bucket], value: i64) -> bool {
        image.buckets(value).any(|b| cover.contains(&b))
    }

    #[test]
    fn integers_are_as_wide_as_their_type() {
        assert_eq!(Image::Signed(2).of(0xffff), -1);
        assert_eq!(Image::Signed(4).of(0x1_ffff_ffff), -1);
        assert_eq!(Image::Signed(8).of(usize::MAX), -1);
        assert_eq!(Image::Unsigned.of(usize::MAX), u32::MAX.into());
        assert_eq!(Image::from_bytes(-4), Some(Image::Unsigned));
        assert_eq!(Image::from_bytes(0), None);
    }

    #[test]
    fn a_bound_covers_what_is_on_one_side_of_it_and_a_few_more() {
        for image in IMAGES {
            let (min, max) = bounds(image);
            let cover = image.cover(1000, max, 256);
            assert!(meets(image, &cover, 1000) && meets(image, &cover, max));
            assert!(!meets(image, &cover, 900) && !meets(image, &cover, min));
            assert_eq!(image.cover(min, max, 32).len(), 16);
        }
    }

    #[test]
    fn a_day_is_told_from_others() {
        const DAY: i64 = 86_400_000_000;
        let (image, today) = (Image::Signed(8), 9_000 * DAY);
        let cover = image.cover(today, today + DAY - 1, 256);
        assert!(meets(image, &cover, today) && meets(image, &cover, today + DAY - 1));
        assert!(!meets(image, &cover, today - 1_000_000));
        assert!(!meets(image, &cover, today + DAY + 1_000_000));
    }

    proptest! {
        #[test]
        fn what_a_search_could_find_meets_it(
            which in 0..4usize,
            ends: (i64, i64),
            narrow in 0..64u32,
            picks: [u64; 8],
            most in 32..300usize,
        ) {
            let image = IMAGES[which];
            let (min, max) = bounds(image);
            let (a, b) = (ends.0.clamp(min, max), (ends.0 ^ (ends.1 as u64 >> narrow) as i64).clamp(min, max));
            let (low, high) = (a.min(b), a.max(b));
            let cover = image.cover(low, high, most);
            prop_assert!(cover.len() <= most);
            let different: BTreeSet<_> = cover.iter().collect();
            prop_assert_eq!(different.len(), cover.len());
            let width = high.abs_diff(low);
            let inside = |pick: u64| low.wrapping_add_unsigned(width.checked_add(1).map_or(pick, |n| pick % n));
            for value in picks.map(inside).into_iter().chain([low, high]) {
                prop_assert!((low..=high).contains(&value));
                prop_assert!(meets(image, &cover, value), "{}..{} {}", low, high, value);
            }
        }

        #[test]
        fn few_others_meet_it(which in 0..4usize, low: i64, width in 256..1_000_000i64, beside in 0..1_000_000i64) {
            let image = IMAGES[which];
            let (min, max) = bounds(image);
            let low = low.clamp(min, max - 300);
            let high = low.saturating_add(width).min(max);
            let cover = image.cover(low, high, 256);
            // Within one bucket of the finest level, of 16 values.
            for value in [low.saturating_sub(16 + beside), high.saturating_add(16 + beside)] {
                let other = (min..=max).contains(&value) && !(low..=high).contains(&value) && value.abs_diff(low).min(value.abs_diff(high)) >= 16;
                prop_assert!(!other || !meets(image, &cover, value), "{}..{} {}", low, high, value);
            }
        }
    }
}
