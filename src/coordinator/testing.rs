//! Changesets for tests.

use crate::changeset::Key;
use crate::changeset::encode::Builder;
use crate::changeset::header::Header;
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};

/// A changeset with these keys and no rows.
pub fn changeset(
    group: GroupId,
    origin: MemberId,
    incarnation: Incarnation,
    snapshot: Gid,
    flags: u16,
    keys: &[Key],
) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new(), Vec::new());
    for key in keys {
        builder.key(*key).expect("a Vec is never full");
    }
    let (header, keys, entries) = builder.finish(Header {
        flags,
        group,
        origin,
        incarnation,
        isolation: 1,
        xid: 1000,
        snapshot_gid: snapshot,
        commit_ts: 0,
        database: Oid(5),
    });
    [&header[..], &keys, &entries].concat()
}
