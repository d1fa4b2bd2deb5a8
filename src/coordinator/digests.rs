//! Do all members derive the same verdicts? Every so many GIDs each reports its running digest,
//! and since the reports are part of the total order, all members judge them alike:
//! a point is decided once a majority of the voters agree on a digest, or all members have
//! reported, or [`DIGEST_DECIDE_MESSAGES`] after the first difference; then the digest with the
//! most reports wins, and of equals the one that the lowest-numbered member reported. Whoever
//! reported another one, then or later, leaves.

use super::message::DigestPoint;
use crate::ids::{Gid, MemberId};
use crate::limits::{DIGEST_DECIDE_MESSAGES, DIGEST_POINTS_MAX};
use std::collections::BTreeMap;

/// Reports on the newest points.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Digests {
    points: BTreeMap<Gid, Point>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Point {
    votes: BTreeMap<MemberId, u64>,
    /// Delivery that first differed; 0 when none has.
    differs_at: u64,
    winner: Option<u64>,
}

impl Digests {
    /// Counts a report that was delivered at `seq` while `members` (with: is a voter) made up the
    /// group. Returns those that reported wrong digests as far as decided now, in order.
    pub fn report(
        &mut self,
        seq: u64,
        from: MemberId,
        point: DigestPoint,
        members: &BTreeMap<MemberId, bool>,
    ) -> Vec<MemberId> {
        let mut wrong = Vec::new();
        let forgotten = self.points.len() == DIGEST_POINTS_MAX
            && self
                .points
                .first_key_value()
                .is_some_and(|(oldest, _)| point.gid < *oldest);
        if point.gid > Gid::ZERO && members.contains_key(&from) && !forgotten {
            let p = self.points.entry(point.gid).or_default();
            p.votes.insert(from, point.digest);
            if p.differs_at == 0 && p.votes.values().any(|d| *d != point.digest) {
                p.differs_at = seq;
            }
        }
        for p in self.points.values_mut() {
            p.decide(seq, members);
            if let Some(winner) = p.winner {
                wrong.extend(
                    p.votes
                        .iter()
                        .filter(|(_, d)| **d != winner)
                        .map(|(m, _)| *m),
                );
            }
        }
        while self.points.len() > DIGEST_POINTS_MAX {
            self.points.pop_first();
        }
        wrong.sort_unstable();
        wrong.dedup();
        wrong
    }

    /// Little endian: count u32, then each point: GID, differs_at, winner flag and winner, votes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.points.len() as u32).to_le_bytes());
        for (gid, p) in &self.points {
            for word in [
                gid.0,
                p.differs_at,
                u64::from(p.winner.is_some()),
                p.winner.unwrap_or(0),
            ] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&(p.votes.len() as u32).to_le_bytes());
            for (member, digest) in &p.votes {
                out.extend_from_slice(&u64::from(member.0).to_le_bytes());
                out.extend_from_slice(&digest.to_le_bytes());
            }
        }
    }

    /// Undoes [`Digests::encode`]; None when it can't be.
    pub fn decode(from: &mut super::replicated::Reader<'_>) -> Option<Digests> {
        let mut points = BTreeMap::new();
        for _ in 0..from.u32()? {
            let gid = Gid(from.u64()?);
            let differs_at = from.u64()?;
            let has_winner = from.u64()? != 0;
            let winner = Some(from.u64()?).filter(|_| has_winner);
            let mut votes = BTreeMap::new();
            for _ in 0..from.u32()? {
                let member = MemberId(u16::try_from(from.u64()?).ok()?);
                votes.insert(member, from.u64()?);
            }
            points.insert(
                gid,
                Point {
                    votes,
                    differs_at,
                    winner,
                },
            );
        }
        Some(Digests { points })
    }
}

impl Point {
    fn decide(&mut self, seq: u64, members: &BTreeMap<MemberId, bool>) {
        if self.winner.is_some() {
            return;
        }
        let voters = members.values().filter(|v| **v).count();
        let support = |digest: u64, voters_only: bool| {
            let agree = |(m, d): &(&MemberId, &u64)| {
                **d == digest && (!voters_only || members.get(m).is_some_and(|voter| *voter))
            };
            self.votes.iter().filter(agree).count()
        };
        let majority = self
            .votes
            .values()
            .copied()
            .find(|d| support(*d, true) * 2 > voters);
        let all = members.keys().all(|m| self.votes.contains_key(m));
        let late = self.differs_at > 0 && seq >= self.differs_at + DIGEST_DECIDE_MESSAGES;
        self.winner = majority.or_else(|| {
            // Votes are in member order, so the first of the best is the lowest-numbered member's.
            let best = self
                .votes
                .values()
                .map(|d| support(*d, false))
                .max()
                .filter(|_| all || late)?;
            self.votes
                .values()
                .copied()
                .find(|d| support(*d, false) == best)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u16) -> BTreeMap<MemberId, bool> {
        (1..=n).map(|m| (MemberId(m), true)).collect()
    }

    fn at(digest: u64) -> DigestPoint {
        DigestPoint {
            gid: Gid(64),
            digest,
        }
    }

    #[test]
    fn the_minority_leaves_whatever_the_order_of_reports() {
        for order in [[1u16, 2, 3], [2, 1, 3], [2, 3, 1], [1, 3, 2]] {
            let mut digests = Digests::default();
            let mut wrong = Vec::new();
            for (seq, m) in order.into_iter().enumerate() {
                // Member 1 is the one that is wrong.
                wrong = digests.report(
                    seq as u64 + 1,
                    MemberId(m),
                    at(if m == 1 { 666 } else { 7 }),
                    &group(3),
                );
            }
            assert_eq!(wrong, [MemberId(1)], "{order:?}");
        }
    }

    #[test]
    fn of_two_the_lower_number_stays() {
        let mut digests = Digests::default();
        assert!(digests.report(1, MemberId(2), at(7), &group(2)).is_empty());
        assert_eq!(
            digests.report(2, MemberId(1), at(8), &group(2)),
            [MemberId(2)]
        );
    }

    #[test]
    fn a_difference_is_decided_though_a_member_stays_silent() {
        let mut digests = Digests::default();
        assert!(digests.report(1, MemberId(1), at(7), &group(4)).is_empty());
        assert!(digests.report(2, MemberId(2), at(8), &group(4)).is_empty());
        let quiet = DigestPoint::default();
        assert!(
            digests
                .report(1 + DIGEST_DECIDE_MESSAGES, MemberId(1), quiet, &group(4))
                .is_empty()
        );
        assert_eq!(
            digests.report(2 + DIGEST_DECIDE_MESSAGES, MemberId(1), quiet, &group(4)),
            [MemberId(2)]
        );
    }

    #[test]
    fn who_reports_a_wrong_digest_late_is_found() {
        let mut digests = Digests::default();
        digests.report(1, MemberId(1), at(7), &group(3));
        digests.report(2, MemberId(2), at(7), &group(3));
        assert_eq!(
            digests.report(900, MemberId(3), at(8), &group(3)),
            [MemberId(3)]
        );
    }
}
