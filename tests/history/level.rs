//! What transactions ask for, and what is promised of them.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}
use Isolation::{ReadCommitted, RepeatableRead, Serializable};

/// An isolation level, and whether snapshots have all that was acknowledged anywhere before
/// (`replication_consistency`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub isolation: Isolation,
    pub before: bool,
}

impl Level {
    /// The consistency models, by adya's names, of which a history of this level may break none. A
    /// process of the history is a session, which stays on one member.
    pub fn promised(self) -> &'static str {
        match (self.isolation, self.before) {
            (ReadCommitted, false) => "read-committed,strong-session-read-committed",
            (ReadCommitted, true) => "strong-read-committed",
            (RepeatableRead, false) => "snapshot-isolation,strong-session-snapshot-isolation",
            (RepeatableRead, true) => "strong-snapshot-isolation",
            (Serializable, false) => "serializable,strong-session-serializable",
            (Serializable, true) => "strict-serializable",
        }
    }

    /// Whether a member without a majority serves reads.
    pub fn reads_alone(self) -> bool {
        !self.before
    }

    /// What a session is opened with, as `psql` takes it from PGOPTIONS.
    pub fn options(self) -> &'static str {
        if self.before {
            "-c replication_consistency=before"
        } else {
            ""
        }
    }

    pub fn begin(self) -> &'static str {
        match self.isolation {
            ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.isolation {
            ReadCommitted => "read-committed",
            RepeatableRead => "repeatable-read",
            Serializable => "serializable",
        })?;
        f.write_str(if self.before { "-before" } else { "" })
    }
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Level, String> {
        let isolations = [ReadCommitted, RepeatableRead, Serializable];
        let levels =
            isolations.map(|isolation| [false, true].map(|before| Level { isolation, before }));
        let named = levels
            .into_iter()
            .flatten()
            .find(|level| level.to_string() == text);
        named.ok_or_else(|| format!("{text} is not a level, as repeatable-read-before is"))
    }
}

/// `HISTORY_LEVELS`, or what the short run has time for.
pub fn chosen() -> Vec<Level> {
    let text = std::env::var("HISTORY_LEVELS")
        .unwrap_or_else(|_| "serializable,repeatable-read,read-committed".into());
    let parse = |name: &str| {
        name.trim()
            .parse()
            .unwrap_or_else(|e| panic!("HISTORY_LEVELS: {e}"))
    };
    text.split(',').map(parse).collect()
}
