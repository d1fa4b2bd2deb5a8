//! What must be equal on all members for a changeset, a row's bytes and a key's hash to mean the same.

use super::message::VERSION;

/// It as a text, which members compare whole: of a server with these patches and these versions of the
/// libraries of collations.
#[must_use]
pub fn fingerprint(patches: &str, libc: &str, icu: &str) -> String {
    of_format(VERSION, patches, libc, icu)
}

fn of_format(version: u8, patches: &str, libc: &str, icu: &str) -> String {
    format!(
        "postgres_r {} format {version} patches {patches} {} {}-endian, collations of libc {libc}, ICU {icu}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        if cfg!(target_endian = "little") {
            "little"
        } else {
            "big"
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcs::egcs::auth::{AuthError, Handshake, Local, NONCE_BYTES, kind};
    use crate::ids::{GroupId, Incarnation, MemberId};
    use crate::limits::SECRET_BYTES;

    /// What the second of two members says to the first's attempt to connect.
    fn meet(first: &str, second: &str) -> Option<AuthError> {
        let local = |member, fingerprint| Local {
            group: GroupId(1),
            member: MemberId(member),
            incarnation: Incarnation(1),
            kind: kind(fingerprint),
            secret: [5; SECRET_BYTES],
        };
        let (_, hello) = Handshake::dial(local(1, first), MemberId(2), [1; NONCE_BYTES]);
        let mut second = Handshake::accept(local(2, second), [2; NONCE_BYTES]);
        second.take(&hello, &|_| Incarnation(1)).err()
    }

    #[test]
    fn members_whose_changesets_have_other_formats_do_not_meet() {
        let of = |version| of_format(version, "a", "2.36", "72");
        assert_eq!(fingerprint("a", "2.36", "72"), of(VERSION));
        assert_eq!(meet(&of(VERSION), &of(VERSION)), None);
        for other in [VERSION - 1, VERSION + 1] {
            assert_eq!(meet(&of(VERSION), &of(other)), Some(AuthError::Kind));
        }
    }
}
