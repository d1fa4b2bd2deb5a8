//! What a group is for this server: one word in shared memory and in `pg_stat_replication_group`.

/// State of the group on this server. Whoever moves it goes through [`GroupState::to`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum GroupState {
    /// No database of this server is replicated.
    #[default]
    Off = 0,
    /// Started with a log of its own; certifies and applies what it missed. Closed to clients.
    Recovering = 1,
    /// A copy that is not yet a voter, or catches up for the first time. Closed to clients.
    Joining = 2,
    /// Serves reads and writes.
    Online = 3,
    /// Serves reads; a commit that writes is refused until a majority is back.
    NoQuorum = 4,
    /// Stopped for a reason that a person has to see; this copy takes no part any more.
    Failed = 5,
    /// Left the group in order.
    Left = 6,
}

impl GroupState {
    /// All of them.
    pub const ALL: [GroupState; 7] = [
        Self::Off,
        Self::Recovering,
        Self::Joining,
        Self::Online,
        Self::NoQuorum,
        Self::Failed,
        Self::Left,
    ];

    /// The state behind a word of shared memory.
    #[must_use]
    pub fn from_u32(word: u32) -> Option<GroupState> {
        Self::ALL.into_iter().find(|s| *s as u32 == word)
    }

    /// The name in the statistics views.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Recovering => "recovering",
            Self::Joining => "joining",
            Self::Online => "online",
            Self::NoQuorum => "no_quorum",
            Self::Failed => "failed",
            Self::Left => "left",
        }
    }

    /// The transition table.
    #[must_use]
    pub const fn can_become(self, next: GroupState) -> bool {
        use GroupState::{Failed, Joining, Left, NoQuorum, Off, Online, Recovering};
        matches!(
            (self, next),
            (Off, Recovering | Joining)
                | (Recovering | Joining, Online | Failed | Left)
                | (Online, NoQuorum | Failed | Left)
                | (NoQuorum, Online | Failed | Left)
                | (Failed | Left, Off)
        )
    }

    /// The next state, checked against the table in release builds too.
    #[must_use]
    #[track_caller]
    pub fn to(self, next: GroupState) -> GroupState {
        assert!(
            self.can_become(next),
            "group state {self:?} can't become {next:?}"
        );
        next
    }
}
