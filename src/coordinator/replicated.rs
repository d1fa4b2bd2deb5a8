//! The state that is a function of the total order alone: equal on all members after the same
//! delivery, byte for byte in its encoding. Nothing of one member's own reaches it.

use super::digests::Digests;
use super::event::Pace;
use super::message::{DigestPoint, Relations, Report};
use super::open::{Bounds, Fragments, Open, OpenStats, Place};
use crate::certifier::{self, Certifier, Verdict};
use crate::changeset::Key;
use crate::changeset::fragment::{FragmentHead, FragmentList, FragmentsOf};
use crate::gcs::{Delivery, View};
use crate::ids::{Gid, MemberId, MessageId};
use std::collections::BTreeMap;

const MAGIC: u32 = 0x5047_5243;
const VERSION: u32 = 1;

/// Certification state, members' reports and digest votes after a delivery.
#[derive(Debug)]
pub struct Replicated {
    /// Last delivery in it.
    pub seq: u64,
    /// Delivery at which the newest checkpoint was taken, and its size.
    checkpoint: (u64, u64),
    /// Bytes delivered since.
    since_checkpoint: u64,
    certifier: Certifier,
    members: BTreeMap<MemberId, Standing>,
    digests: Digests,
    /// Digest at the newest GID at which digests are compared.
    point: DigestPoint,
    /// Empty at a checkpoint.
    open: Open,
    bounds: Bounds,
}

/// A member in the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Counts in majorities.
    pub voter: bool,
    /// As it last reported.
    pub report: Report,
}

impl Replicated {
    /// Before the first delivery of a group.
    pub fn genesis(pace: &Pace) -> Replicated {
        Replicated {
            seq: 0,
            checkpoint: (0, 0),
            since_checkpoint: 0,
            certifier: Certifier::new(certifier::Config {
                keys_max: pace.keys_max,
            }),
            members: BTreeMap::new(),
            digests: Digests::default(),
            point: DigestPoint::default(),
            open: Open::default(),
            bounds: pace.open,
        }
    }

    /// The next delivery.
    pub fn delivered(&mut self, delivery: &Delivery) {
        self.seq += 1;
        self.since_checkpoint += delivery.payload.len() as u64;
        self.open
            .delivered(delivery.id, self.since_checkpoint, &self.bounds);
    }

    /// A delivered fragment; whether it is kept for its changeset.
    pub fn fragment(&mut self, delivery: &Delivery, head: FragmentHead) -> bool {
        let bytes = self.since_checkpoint;
        self.open.fragment(delivery, head, bytes, &self.bounds)
    }

    /// The fragments of an open transaction.
    pub fn fragments(&self, id: MessageId, of: FragmentsOf) -> Option<&Fragments> {
        self.open.fragments(id, of)
    }

    /// The same, of the one whose first fragment has this position.
    pub fn begun_at(&self, first: u64) -> Option<&Fragments> {
        self.open.begun_at(first)
    }

    /// A delivered end of fragments.
    pub fn drop_fragments(&mut self, id: MessageId, of: FragmentsOf) {
        self.open.end(id, of);
    }

    /// The fragments of a delivered changeset; `None` if they were not all kept.
    pub fn close(&mut self, id: MessageId, list: FragmentList<'_>) -> Option<Vec<Place>> {
        self.open.close(id, list)
    }

    /// The transactions whose fragments wait for their changesets.
    pub fn open(&self) -> Vec<OpenStats> {
        self.open.stats()
    }

    /// Whether a checkpoint should be taken at the next end of an entry: after some messages, and
    /// as many bytes of them as the one before had, so that checkpoints never are most of the log;
    /// and not while fragments wait for their changesets, which who begins there would lack.
    pub fn checkpoint_due(&self, messages: u64) -> bool {
        let (seq, bytes) = self.checkpoint;
        self.seq - seq >= messages && self.since_checkpoint >= bytes && self.open.is_empty()
    }

    /// Takes a checkpoint.
    pub fn checkpoint(&mut self) -> Vec<u8> {
        let state = self.encode();
        self.checkpoint = (self.seq, state.len() as u64);
        self.since_checkpoint = 0;
        state
    }

    /// Last GID given out.
    pub fn last_gid(&self) -> Gid {
        self.certifier.last_gid()
    }

    /// The members and how they stand.
    pub fn members(&self) -> &BTreeMap<MemberId, Standing> {
        &self.members
    }

    /// Digest at the newest point of comparison.
    pub fn point(&self) -> DigestPoint {
        self.point
    }

    /// Running digest of all verdicts.
    pub fn digest(&self) -> u64 {
        self.certifier.digest()
    }

    /// What every member has in its flushed WAL, as far as reported. A member that has not
    /// reported yet holds it at 0.
    pub fn flushed_by_all(&self) -> Gid {
        self.members
            .values()
            .map(|m| m.report.flushed)
            .min()
            .unwrap_or(Gid::ZERO)
    }

    /// What every voter but `me` shows, as far as reported; `None` if there is no other.
    pub fn shown_beside(&self, me: MemberId) -> Option<Gid> {
        let others = self.members.iter().filter(|(id, m)| **id != me && m.voter);
        others.map(|(_, m)| m.report.committed).min()
    }

    /// Membership as of this point of the order. A new member's windows begin at the floor.
    pub fn view(&mut self, view: &View) {
        let floor = self.certifier.floor();
        let gone: Vec<MemberId> = self
            .members
            .keys()
            .copied()
            .filter(|id| view.members.iter().all(|m| m.id != *id))
            .collect();
        for id in gone {
            self.members.remove(&id);
            self.open.removed(id);
            self.certifier.member_removed(id);
        }
        for member in &view.members {
            let certifier = &mut self.certifier;
            let standing = self.members.entry(member.id).or_insert_with(|| {
                certifier.member_added(member.id, floor);
                Standing {
                    voter: false,
                    report: Report {
                        low: floor,
                        ..Report::default()
                    },
                }
            });
            standing.voter = member.voter;
        }
    }

    /// A delivered changeset's verdict.
    pub fn certify(
        &mut self,
        origin: MemberId,
        snapshot: Gid,
        keys: impl Iterator<Item = Key> + Clone,
        digest_gids: u64,
    ) -> Verdict {
        let verdict = self.certifier.certify(origin, snapshot, keys);
        if let Verdict::Pass { gid, .. } = verdict
            && gid.0.is_multiple_of(digest_gids)
        {
            self.point = DigestPoint {
                gid,
                digest: self.certifier.digest(),
            };
        }
        verdict
    }

    /// The verdict was on what the member's reservation was for.
    pub fn reservation_used(&mut self, member: MemberId) {
        self.certifier.reservation_used(member);
    }

    /// A delivered reservation.
    pub fn reserve(&mut self, member: MemberId, relations: Relations) {
        let relations: Vec<u32> = relations.into_iter().filter(|r| *r != 0).collect();
        self.certifier.reserve(member, &relations, self.seq);
    }

    /// A delivered end of a reservation.
    pub fn release(&mut self, member: MemberId, position: u64) {
        self.certifier.release(member, position);
    }

    /// Members that have reserved something, and the positions at which they did.
    pub fn reservations(&self) -> impl Iterator<Item = (MemberId, u64)> {
        self.certifier.reservations()
    }

    /// Whether a reservation of another member is in the way of this one's changes of the relation.
    pub fn is_kept_out(&self, member: MemberId, relation: u32) -> bool {
        self.certifier.is_kept_out(member, relation)
    }

    /// A delivered report of positions.
    pub fn report(&mut self, from: MemberId, report: Report) {
        let Some(standing) = self.members.get_mut(&from) else {
            return;
        };
        let known = &mut standing.report;
        known.committed = known.committed.max(report.committed);
        known.flushed = known.flushed.max(report.flushed);
        if report.low > known.low {
            known.low = report.low;
            self.certifier.report_low(from, report.low);
        }
    }

    /// A delivered digest; returns the members that are wrong as far as decided.
    pub fn vote(&mut self, from: MemberId, point: DigestPoint) -> Vec<MemberId> {
        let members = self.members.iter().map(|(id, m)| (*id, m.voter)).collect();
        self.digests.report(self.seq, from, point, &members)
    }

    /// All of it, little endian, closed by a CRC32.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        for word in [self.seq, self.point.gid.0, self.point.digest] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&(self.members.len() as u32).to_le_bytes());
        for (id, m) in &self.members {
            let report = [m.report.low.0, m.report.committed.0, m.report.flushed.0];
            for word in [u64::from(id.0), u64::from(m.voter)]
                .into_iter()
                .chain(report)
            {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        self.digests.encode(&mut out);
        let mut certifier = Vec::new();
        self.certifier.encode(&mut certifier);
        out.extend_from_slice(&(certifier.len() as u64).to_le_bytes());
        out.extend_from_slice(&certifier);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Undoes [`Replicated::encode`]; empty bytes are the genesis.
    pub fn decode(state: &[u8], pace: &Pace) -> Result<Replicated, String> {
        if state.is_empty() {
            return Ok(Replicated::genesis(pace));
        }
        let damaged = || "damaged checkpoint".to_string();
        let (body, crc) = state.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err("checkpoint with a wrong checksum".into());
        }
        let mut from = Reader(body);
        if from.u32() != Some(MAGIC) {
            return Err(damaged());
        }
        match from.u32() {
            Some(VERSION) => {}
            other => {
                return Err(format!(
                    "checkpoint of version {other:?}, this server knows {VERSION}"
                ));
            }
        }
        Self::decode_body(&mut from, state.len() as u64, pace).ok_or_else(damaged)?
    }

    fn decode_body(
        from: &mut Reader<'_>,
        size: u64,
        pace: &Pace,
    ) -> Option<Result<Replicated, String>> {
        let seq = from.u64()?;
        let point = DigestPoint {
            gid: Gid(from.u64()?),
            digest: from.u64()?,
        };
        let mut members = BTreeMap::new();
        for _ in 0..from.u32()? {
            let id = MemberId(u16::try_from(from.u64()?).ok()?);
            let voter = from.u64()? != 0;
            let report = Report {
                low: Gid(from.u64()?),
                committed: Gid(from.u64()?),
                flushed: Gid(from.u64()?),
            };
            members.insert(id, Standing { voter, report });
        }
        let digests = Digests::decode(from)?;
        let length = usize::try_from(from.u64()?).ok()?;
        let certifier = from.take(length)?;
        if !from.0.is_empty() {
            return None;
        }
        let config = certifier::Config {
            keys_max: pace.keys_max,
        };
        Some(
            Certifier::decode(config, certifier)
                .map(|certifier| Replicated {
                    seq,
                    checkpoint: (seq, size),
                    since_checkpoint: 0,
                    certifier,
                    members,
                    digests,
                    point,
                    open: Open::default(),
                    bounds: pace.open,
                })
                .map_err(|error| format!("checkpoint: {error}")),
        )
    }
}

/// Takes numbers off the front of bytes.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}
