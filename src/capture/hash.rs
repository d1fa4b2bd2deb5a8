//! From key values to the 64 bits that the certifier compares.
//!
//! Equal keys must hash alike on every member, so nothing of one server (index OIDs, pointers,
//! random seeds) is mixed in. Unequal keys that meet cost an abort, never a wrong answer.

/// Seed of the types' extended hash functions. Part of the format: the same on all members.
pub const VALUE_SEED: u64 = 0x5067_5f72;
/// Stands for a null under NULLS NOT DISTINCT.
pub const NULL_VALUE: u64 = 0x9ae1_6a3b_2f90_404f;

/// What of a relation a key names; mixed into the hash so that kinds never meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The relation itself, as its writers see it.
    Relation,
    /// Locks of the whole relation, and of any of its rows.
    Locks,
    /// A row, by its identity.
    Row,
    /// An entry of a unique index, by the digest of the index's definition.
    Unique(u64),
    /// Entries of a relation's indexes whose ranges a writer does not name.
    Unranged,
    /// Entries of an index, by the digest of its definition, with these values of leading columns.
    Prefix(u64),
    /// The same, and a bucket of values of the column that follows.
    Bucket(u64),
    /// All rows of a table without an identity that hold the same.
    Image,
    /// The values of a sequence.
    Sequence,
}

/// Collects a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash(u64);

impl KeyHash {
    /// Starts the key of a relation, a row or an index entry.
    #[must_use]
    pub const fn new(relation: u32, what: What) -> KeyHash {
        let (kind, digest) = match what {
            What::Relation => (1, 0),
            What::Row => (2, 0),
            What::Unique(digest) => (3, digest),
            What::Locks => (4, 0),
            What::Unranged => (5, 0),
            What::Prefix(digest) => (6, digest),
            What::Bucket(digest) => (7, digest),
            What::Image => (8, 0),
            What::Sequence => (9, 0),
        };
        KeyHash(kind).add(relation as u64).add(digest)
    }

    /// Mixes one value's hash in; the order counts.
    #[must_use]
    pub const fn add(self, value: u64) -> KeyHash {
        KeyHash(mix(self
            .0
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23)
            ^ value))
    }

    /// The key's hash.
    #[must_use]
    pub const fn finish(self) -> u64 {
        mix(self.0 ^ 0x2545_f491_4f6c_dd1d)
    }
}

/// Digest of bytes, for definitions and fingerprints.
#[derive(Clone, Copy, Debug)]
pub struct Digest(KeyHash);

impl Digest {
    /// Of nothing.
    #[must_use]
    pub const fn new() -> Digest {
        Digest(KeyHash(0))
    }

    /// Adds a number.
    #[must_use]
    pub const fn number(self, n: u64) -> Digest {
        Digest(self.0.add(n))
    }

    /// Adds bytes with their length.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Digest {
        let mut digest = self.number(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            digest = digest.number(u64::from_le_bytes(word));
        }
        digest
    }

    /// The digest.
    #[must_use]
    pub const fn finish(self) -> u64 {
        self.0.finish()
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

/// A bijection of 64 bits in which every input bit reaches every output bit (two rounds of
/// multiply and shift, as in the finalizers of the splitmix family).
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn kinds_relations_values_and_their_order_are_told_apart() {
        let mut seen = HashSet::new();
        for relation in 0..50 {
            let kinds = [
                What::Relation,
                What::Locks,
                What::Row,
                What::Unique(0),
                What::Unique(1),
                What::Unranged,
                What::Prefix(0),
                What::Bucket(0),
                What::Image,
                What::Sequence,
            ];
            for what in kinds {
                for a in 0..20 {
                    for b in 0..20 {
                        let hash = KeyHash::new(relation, what).add(a).add(b).finish();
                        assert!(seen.insert(hash), "{relation} {what:?} {a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn golden_hashes_hold_so_that_members_of_two_builds_agree() {
        assert_eq!(
            KeyHash::new(16384, What::Relation).finish(),
            GOLDEN_RELATION
        );
        assert_eq!(KeyHash::new(16384, What::Locks).finish(), GOLDEN_LOCKS);
        assert_eq!(
            KeyHash::new(16384, What::Sequence).finish(),
            GOLDEN_SEQUENCE
        );
        assert_eq!(KeyHash::new(16384, What::Row).add(42).finish(), GOLDEN_ROW);
        assert_eq!(Digest::new().bytes(b"a definition").finish(), GOLDEN_DIGEST);
    }

    const GOLDEN_RELATION: u64 = 0x9912_9937_780a_a450;
    const GOLDEN_LOCKS: u64 = 0xe2d9_cedc_42aa_5a57;
    const GOLDEN_SEQUENCE: u64 = 0xee1a_9945_b7ed_d35e;
    const GOLDEN_ROW: u64 = 0x8aeb_bdb8_ca5d_c073;
    const GOLDEN_DIGEST: u64 = 0xcdc8_3ed8_c337_6c3c;
}
