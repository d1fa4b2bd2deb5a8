//! Which session is on which member.

use std::fmt;

/// The member of each session, in the order of the sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement(Vec<usize>);

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|member| write!(f, "{member}"))
    }
}

impl Placement {
    /// From a digit a session, `12`.
    pub fn parse(text: &str, sessions: usize) -> Option<Placement> {
        let members: Option<Vec<usize>> = text
            .chars()
            .map(|c| c.to_digit(10).map(|d| d as usize))
            .collect();
        members
            .filter(|m| m.len() == sessions && m.iter().all(|n| (1..=3).contains(n)))
            .map(Placement)
    }

    /// Where a specification of so many sessions runs if it does not say.
    pub fn usual(sessions: usize) -> Vec<Placement> {
        let texts: &[&str] = match sessions {
            1 => &["1", "2", "3"],
            2 => &["11", "12", "13", "21", "23", "31", "32"],
            3 => &[
                "111", "123", "132", "213", "231", "312", "321", "112", "121", "211",
            ],
            _ => &[],
        };
        let parsed = texts.iter().filter_map(|t| Placement::parse(t, sessions));
        parsed.collect()
    }

    /// Member of a session.
    pub fn member(&self, session: usize) -> usize {
        self.0[session]
    }

    /// Whether all sessions are on one member.
    pub fn is_one(&self) -> bool {
        self.0.windows(2).all(|w| w[0] == w[1])
    }

    /// Whether two sessions are on one member.
    pub fn together(&self, a: usize, b: usize) -> bool {
        self.0[a] == self.0[b]
    }
}
