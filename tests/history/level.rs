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

/// `replication_consistency`. (`after` alone is not here: two readers may see one commit, whose
/// acknowledgement is still to come, and then not.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Eventual,
    /// Snapshots have all that was acknowledged anywhere before.
    Before,
    /// The same, and a commit is acknowledged when all members show it.
    BeforeAndAfter,
}
use Consistency::{Before, BeforeAndAfter, Eventual};

/// What transactions of a history ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub isolation: Isolation,
    pub consistency: Consistency,
}

impl Level {
    /// The consistency models, by adya's names, of which a history of this level may break none. A
    /// process of the history is a session, which stays on one member.
    pub fn promised(self) -> &'static str {
        match (self.isolation, self.consistency == Eventual) {
            (ReadCommitted, true) => "read-committed,strong-session-read-committed",
            (ReadCommitted, false) => "strong-read-committed",
            (RepeatableRead, true) => "snapshot-isolation,strong-session-snapshot-isolation",
            (RepeatableRead, false) => "strong-snapshot-isolation",
            (Serializable, true) => "serializable,strong-session-serializable",
            (Serializable, false) => "strict-serializable",
        }
    }

    /// Whether a member without a majority serves reads.
    pub fn reads_alone(self) -> bool {
        self.consistency == Eventual
    }

    /// Whether writers go on while a member is down.
    pub fn writes_without_all(self) -> bool {
        self.consistency != BeforeAndAfter
    }

    /// What a session is opened with, as `psql` takes it from PGOPTIONS.
    pub fn options(self) -> &'static str {
        match self.consistency {
            Eventual => "",
            Before => "-c replication_consistency=before",
            BeforeAndAfter => "-c replication_consistency=before_and_after",
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
        f.write_str(match self.consistency {
            Eventual => "",
            Before => "-before",
            BeforeAndAfter => "-before-and-after",
        })
    }
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Level, String> {
        let isolations = [ReadCommitted, RepeatableRead, Serializable];
        let levels = isolations.map(|isolation| {
            [Eventual, Before, BeforeAndAfter].map(|consistency| Level {
                isolation,
                consistency,
            })
        });
        let named = levels
            .into_iter()
            .flatten()
            .find(|level| level.to_string() == text);
        named.ok_or_else(|| format!("{text} is not a level, as repeatable-read-before is"))
    }
}

/// `HISTORY_LEVELS`, or what the short run has time for.
pub fn chosen() -> Vec<Level> {
    let text = std::env::var("HISTORY_LEVELS").unwrap_or_else(|_| {
        "serializable,repeatable-read,read-committed,serializable-before-and-after".into()
    });
    let parse = |name: &str| {
        name.trim()
            .parse()
            .unwrap_or_else(|e| panic!("HISTORY_LEVELS: {e}"))
    };
    text.split(',').map(parse).collect()
}
