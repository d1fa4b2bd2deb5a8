//! Newtypes for what is counted and named all over the crate.

use std::fmt;

macro_rules! id {
    ($(#[$m:meta])* $name:ident, $inner:ty) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Position of a transaction in the group's total order; the same on every member. 0 stands
    /// before the first transaction.
    Gid, u64
);
id!(
    /// Number of a member in its group, from 1 on. Never used again after the member left.
    MemberId, u16
);
id!(
    /// Counts the starts of one member; durable before the member sends anything.
    Incarnation, u32
);
id!(
    /// Random name of a group, so that two groups that a DBA named alike never mix.
    GroupId, u64
);
id!(
    /// An object identifier of PostgreSQL.
    Oid, u32
);

impl Gid {
    /// Before the first transaction.
    pub const ZERO: Gid = Gid(0);

    /// The next position.
    #[must_use]
    pub const fn next(self) -> Gid {
        Gid(self.0 + 1)
    }
}

/// Names a multicast message for ever: the `number`-th message of one incarnation of a member.
/// Numbers count from 1 without gaps and are delivered in that order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MessageId {
    /// Who sent it.
    pub member: MemberId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// The how many-th message of that life, from 1.
    pub number: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.member, self.incarnation, self.number)
    }
}
