//! Changesets for tests.
#![forbid(unsafe_code)]

use crate::changeset::Key;
use crate::changeset::decode::HEADER_BYTES;
use crate::ids::{Gid, GroupId, Incarnation, MemberId};

/// A changeset with these keys, and `rows` behind them.
pub fn changeset(
    group: GroupId,
    origin: MemberId,
    incarnation: Incarnation,
    snapshot: Gid,
    flags: u16,
    keys: &[Key],
    rows: &[u8],
) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    out[6..8].copy_from_slice(&flags.to_le_bytes());
    out[8..16].copy_from_slice(&group.0.to_le_bytes());
    out[16..18].copy_from_slice(&origin.0.to_le_bytes());
    out[20..24].copy_from_slice(&incarnation.0.to_le_bytes());
    out[32..40].copy_from_slice(&snapshot.0.to_le_bytes());
    out[72..76].copy_from_slice(&(keys.len() as u32).to_le_bytes());
    for key in keys {
        out.extend_from_slice(&key.hash.to_le_bytes());
        out.extend_from_slice(&key.since.0.to_le_bytes());
        out.extend_from_slice(&key.relation.to_le_bytes());
        out.extend_from_slice(&[key.mode as u8, key.flags, 0, 0]);
    }
    out.extend_from_slice(rows);
    out
}
