//! Verdicts.
#![forbid(unsafe_code)]
use crate::changeset::Key;
use crate::changeset::key::{KEY_FROM_SINCE, KEY_LOCK_ONLY};
use crate::ids::{Gid, MemberId};
use std::collections::BTreeMap;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Keys retained.
    pub keys_max: usize,
}

/// Of one changeset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Next GID.
    Pass { gid: Gid, depends_on: Gid },
    /// Collided.
    Conflict {
        relation: u32,
        gid: Gid,
        origin: MemberId,
    },
    /// Too old.
    BelowFloor,
}

/// State.
#[derive(Debug)]
pub struct Certifier {
    index: BTreeMap<(u64, u8, bool), (Gid, MemberId)>,
    lows: BTreeMap<MemberId, Gid>,
    last: Gid,
    digest: u64,
}

impl Certifier {
    pub fn new(_config: Config) -> Self {
        Certifier {
            index: BTreeMap::new(),
            lows: BTreeMap::new(),
            last: Gid::ZERO,
            digest: 0,
        }
    }
    pub fn last_gid(&self) -> Gid {
        self.last
    }
    pub fn floor(&self) -> Gid {
        self.lows.values().copied().min().unwrap_or(Gid::ZERO)
    }
    pub fn digest(&self) -> u64 {
        self.digest
    }
    pub fn report_low(&mut self, member: MemberId, low: Gid) {
        self.lows.insert(member, low);
    }
    pub fn member_added(&mut self, member: MemberId, low: Gid) {
        self.lows.insert(member, low);
    }
    pub fn member_removed(&mut self, member: MemberId) {
        self.lows.remove(&member);
    }
    pub fn certify(
        &mut self,
        origin: MemberId,
        snapshot: Gid,
        keys: impl Iterator<Item = Key>,
    ) -> Verdict {
        let keys: Vec<Key> = keys.collect();
        let mut depends_on = Gid::ZERO;
        let mut verdict = None;
        if snapshot < self.floor() {
            verdict = Some(Verdict::BelowFloor);
        }
        for k in &keys {
            for (&(_, mode, lock_only), &(gid, by)) in self
                .index
                .range((k.hash, 0, false)..=(k.hash, u8::MAX, true))
            {
                if !crate::changeset::LockMode::ALL[mode as usize].conflicts(k.mode) {
                    continue;
                }
                depends_on = depends_on.max(gid);
                let bound = if lock_only || k.flags & KEY_FROM_SINCE != 0 {
                    k.since
                } else {
                    snapshot
                };
                if gid > bound && by != origin && verdict.is_none() {
                    verdict = Some(Verdict::Conflict {
                        relation: k.relation,
                        gid,
                        origin: by,
                    });
                }
            }
        }
        if let Some(v) = verdict {
            self.digest = self.digest.rotate_left(5).wrapping_mul(31) ^ 1;
            return v;
        }
        self.last = self.last.next();
        for k in &keys {
            self.index.insert(
                (k.hash, k.mode as u8, k.flags & KEY_LOCK_ONLY != 0),
                (self.last, origin),
            );
        }
        self.digest = self.digest.rotate_left(5).wrapping_mul(31) ^ self.last.0;
        Verdict::Pass {
            gid: self.last,
            depends_on,
        }
    }
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = |x: u64| out.extend_from_slice(&x.to_le_bytes());
        w(self.last.0);
        w(self.digest);
        w(self.lows.len() as u64);
        for (m, l) in &self.lows {
            w(m.0.into());
            w(l.0);
        }
        for ((h, m, l), (g, by)) in &self.index {
            w(*h);
            w((*m).into());
            w((*l).into());
            w(g.0);
            w(by.0.into());
        }
    }
    pub fn decode(_config: Config, bytes: &[u8]) -> Result<Self, String> {
        let w: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
            .collect();
        let n = w[2] as usize;
        Ok(Certifier {
            last: Gid(w[0]),
            digest: w[1],
            lows: w[3..3 + 2 * n]
                .chunks_exact(2)
                .map(|c| (MemberId(c[0] as u16), Gid(c[1])))
                .collect(),
            index: w[3 + 2 * n..]
                .chunks_exact(5)
                .map(|c| {
                    (
                        (c[0], c[1] as u8, c[2] != 0),
                        (Gid(c[3]), MemberId(c[4] as u16)),
                    )
                })
                .collect(),
        })
    }
}
