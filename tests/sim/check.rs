//! What must be true of a whole group, kept apart from the code that has to make it true.
//!
//! It sees deliveries, digests, commits and what clients were told, never the state of the code
//! under test. It plays the history on rows of its own, where each change states what it expects.

use crate::database::row_value_hash;
use crate::model::{self, Change, Counted, Row, Table};
use crate::reference::Reference;
use bytes::Bytes;
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::fragment::{self, FragmentsOf};
use postgres_r::coordinator::message::{self, Message};
use postgres_r::gcs::{Delivery, View};
use postgres_r::ids::{Gid, Incarnation, MemberId, MessageId};
use postgres_r::limits::HELPER_RUN_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// What a client knows of its transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Committed(Gid),
    Aborted,
    Unknown,
}

#[derive(Default)]
pub struct Checker {
    reference: Reference,
    /// By position: the message and its checksum.
    order: Vec<(MessageId, u64)>,
    /// By position: GID and digest after the verdict.
    verdicts: Vec<(Gid, u64)>,
    messages: BTreeSet<MessageId>,
    /// By GID: transaction and state hash after it.
    history: Vec<(u64, u64)>,
    xids: BTreeMap<u64, Gid>,
    rows: BTreeMap<Row, u64>,
    hash: u64,
    told: BTreeMap<u64, Told>,
    checkpoints: BTreeMap<u64, u64>,
    promised: Vec<u64>,
    /// Fragments whose changeset has not come, by member, life, slot and ticket.
    ahead: BTreeMap<(MemberId, Incarnation, FragmentsOf), Vec<Option<Bytes>>>,
    /// How many fragments transactions had sent.
    sent: BTreeMap<u64, usize>,
    /// Transactions that sent fragments and passed.
    pub large: usize,
    /// GIDs of those.
    large_gids: BTreeSet<Gid>,
    /// Changesets that passed and were compressed.
    pub compressed: usize,
    /// Fragments that were.
    pub compressed_ahead: usize,
    /// What is visible on each member.
    visible: BTreeMap<MemberId, Gid>,
    /// Changesets that a member committed together with others.
    pub together: u64,
    /// Highest GID that a client was told of.
    acknowledged: Gid,
}

impl Checker {
    pub fn new(keys_max: usize) -> Checker {
        let rows: BTreeMap<Row, u64> = model::initial().into_iter().collect();
        Checker {
            hash: rows.iter().fold(0, |h, (r, v)| h ^ row_value_hash(*r, *v)),
            rows,
            reference: Reference::new(keys_max),
            ..Checker::default()
        }
    }

    /// Total order: the same message at the same position everywhere, each message once.
    pub fn delivered(&mut self, by: MemberId, d: &Delivery) {
        let at = d.seq as usize - 1;
        let this = (d.id, crc(&d.payload));
        match self.order.get(at) {
            Some(known) => assert_eq!(*known, this, "{by} delivers another message at {}", d.seq),
            None => {
                assert_eq!(
                    at,
                    self.order.len(),
                    "{by} delivers position {} before any other did",
                    d.seq
                );
                assert!(
                    self.messages.insert(d.id),
                    "message {} is delivered twice",
                    d.id
                );
                self.order.push(this);
            }
        }
    }

    /// A membership, at its place in the order. Who delivers what follows it says so before.
    pub fn view(&mut self, view: &View) {
        if view.seq == self.verdicts.len() as u64 {
            let is_member = |id: MemberId| view.members.iter().any(|m| m.id == id);
            self.reference.members(is_member);
        }
    }

    /// Verdicts: the same after the same delivery everywhere.
    pub fn verdict(&mut self, by: MemberId, d: &Delivery, gid: Gid, digest: u64) {
        let at = d.seq as usize - 1;
        match self.verdicts.get(at) {
            Some(known) => {
                assert_eq!(
                    *known,
                    (gid, digest),
                    "{by} has another verdict at {}",
                    d.seq
                );
            }
            None => {
                self.verdicts.push((gid, digest));
                let last = self.history.len() as u64;
                assert!(gid.0 == last || gid.0 == last + 1, "GID {gid} after {last}");
                let passed = (gid.0 > last).then_some(gid);
                match message::parse(&d.payload) {
                    Ok(Message::Changeset(report, bytes)) => {
                        self.reference.reported(report.low);
                        let (xid, fragments, mut changes) = model::decode(&bytes);
                        let parsed = Changeset::parse(&bytes).expect("a changeset");
                        if let Some(list) = parsed.fragments() {
                            let ahead = self.end_ahead(d.id, list.of);
                            let parts = ahead.as_deref().unwrap_or_default();
                            if self.sent.get(&xid) == Some(&parts.len())
                                && let Some(said) = said(parts)
                            {
                                assert_eq!(said, fragments, "what counts of transaction {xid}");
                            }
                            let Some(first) = self.gather(ahead, &fragments) else {
                                assert_eq!(passed, None, "a part of GID {gid} is not there");
                                return;
                            };
                            changes.splice(..0, first);
                            self.large += usize::from(passed.is_some());
                            self.large_gids.extend(passed);
                        }
                        self.reference.judge(&bytes, passed);
                        if passed.is_some() {
                            self.compressed += usize::from(parsed.is_compressed());
                            self.extend(gid, xid, changes);
                        }
                    }
                    Ok(Message::Fragment(report, head, bytes)) if passed.is_none() => {
                        self.reference.reported(report.low);
                        let came = bytes.len() - fragment::FRAGMENT_HEADER_BYTES;
                        self.compressed_ahead += usize::from(came < head.bytes as usize);
                        self.ahead(d.id, head.of, head.number, bytes);
                    }
                    Ok(Message::Drop(report, of)) if passed.is_none() => {
                        self.reference.reported(report.low);
                        self.end_ahead(d.id, of);
                    }
                    Ok(Message::Status(report, _)) if passed.is_none() => {
                        self.reference.reported(report.low);
                    }
                    Ok(Message::Reserve(report, relations)) if passed.is_none() => {
                        self.reference.reported(report.low);
                        self.reference.reserve(d.id.member, relations, d.seq);
                    }
                    Ok(Message::Release(report, member, position)) if passed.is_none() => {
                        self.reference.reported(report.low);
                        self.reference.release(member, position);
                    }
                    other => assert!(passed.is_none(), "{other:?} has GID {gid}"),
                }
            }
        }
    }

    /// A transaction has sent so many fragments, and is about to send its changeset.
    pub fn sent(&mut self, xid: u64, fragments: usize) {
        self.sent.insert(xid, fragments);
    }

    /// A part of a transaction; what its slot did before is over.
    fn ahead(&mut self, id: MessageId, of: FragmentsOf, number: u32, bytes: Bytes) {
        self.ahead.retain(|(member, life, other), _| {
            *member != id.member
                || *life == id.incarnation && other.worker != of.worker
                || *other == of
        });
        let parts = self
            .ahead
            .entry((id.member, id.incarnation, of))
            .or_default();
        parts.resize(parts.len().max(number as usize + 1), None);
        parts[number as usize] = Some(bytes);
    }

    fn end_ahead(&mut self, id: MessageId, of: FragmentsOf) -> Option<Vec<Option<Bytes>>> {
        self.ahead.remove(&(id.member, id.incarnation, of))
    }

    /// The changes of fragments, if they and all before the last of them are there.
    fn gather(
        &self,
        parts: Option<Vec<Option<Bytes>>>,
        counted: &[fragment::Counted],
    ) -> Option<Vec<Change>> {
        let parts: Vec<Bytes> = parts?.into_iter().collect::<Option<_>>()?;
        let mut changes = Vec::new();
        for counted in counted {
            let part = parts.get(counted.number as usize)?;
            changes.extend(model::decode_fragment(part, *counted));
        }
        Some(changes)
    }

    /// The history grows by a transaction that must be right where it stands.
    fn extend(&mut self, gid: Gid, xid: u64, changes: Vec<Change>) {
        assert!(
            self.xids.insert(xid, gid).is_none(),
            "transaction {xid} is in the history twice"
        );
        for change in changes {
            self.allowed(gid, change);
            let (row, new) = match change {
                Change::Put(row, value) => (row, Some(value)),
                Change::Delete(row, _) => (row, None),
            };
            let old = match new {
                Some(value) => self.rows.insert(row, value),
                None => self.rows.remove(&row),
            };
            for value in old.into_iter().chain(new) {
                self.hash ^= row_value_hash(row, value);
            }
        }
        self.history.push((xid, self.hash));
    }

    fn allowed(&self, gid: Gid, change: Change) {
        let has = |table, id: u64| self.rows.get(&model::row(table, id as u32)).copied();
        match change {
            Change::Put(row, value) => {
                let old = self.rows.get(&row).copied();
                match row.table {
                    Table::Counter => {
                        assert_eq!(old, Some(value - 1), "GID {gid} loses an update of {row:?}");
                    }
                    Table::Mirror if Counted::of(value).is_some() => {
                        let (counted, children) = Counted::of(value).expect("a census");
                        let rows = self.rows.iter().filter(|(r, _)| r.table == Table::Child);
                        let now = rows
                            .filter(|(r, parent)| counted.has(r.id, **parent))
                            .count();
                        assert_eq!(
                            children, now as u64,
                            "GID {gid}: {row:?} has what was read, {counted:?}"
                        );
                    }
                    Table::Mirror => {
                        let read = has(Table::Counter, value >> 48).expect("counters stay");
                        assert_eq!(
                            value & 0xffff_ffff,
                            read,
                            "GID {gid}: {row:?} mirrors what was locked or read"
                        );
                    }
                    Table::Unique => {
                        let rows = self.rows.iter().filter(|(r, _)| r.table == Table::Unique);
                        assert!(
                            !rows.into_iter().any(|(_, v)| *v == value),
                            "GID {gid}: duplicate {value}"
                        );
                        assert_eq!(old, None, "GID {gid}: duplicate {row:?}");
                    }
                    Table::Parent => assert_eq!(old, None, "GID {gid}: duplicate {row:?}"),
                    Table::Child => {
                        assert_eq!(old, None, "GID {gid}: duplicate {row:?}");
                        assert!(
                            has(Table::Parent, value).is_some(),
                            "GID {gid}: orphan {row:?} of {value}"
                        );
                    }
                }
            }
            Change::Delete(row, value) => {
                assert_eq!(
                    self.rows.get(&row),
                    Some(&value),
                    "GID {gid} deletes {row:?}"
                );
                if row.table == Table::Parent {
                    let mut children = self.rows.iter().filter(|(r, _)| r.table == Table::Child);
                    assert!(
                        !children.any(|(_, p)| *p == u64::from(row.id)),
                        "GID {gid} leaves orphans of {row:?}"
                    );
                }
            }
        }
    }

    /// A member starts with what its database has.
    pub fn starts(&mut self, by: MemberId, gid: Gid, hash: u64) {
        self.visible.insert(by, gid);
        self.state(by, gid, hash);
    }

    /// Commits: without a gap, each GID once. Several at once are few, and have only changes of rows.
    pub fn commits(&mut self, by: MemberId, first: Gid, last: Gid) {
        let before = self.visible.insert(by, last).unwrap_or_default();
        assert!(
            before.next() == first && first <= last,
            "{by} commits GIDs {first} to {last} after {before}: its order has a gap"
        );
        if first < last {
            let together = last.0 - first.0 + 1;
            let large = self.large_gids.range(first..=last).next();
            assert!(
                together <= HELPER_RUN_MAX as u64 && large.is_none(),
                "{by} commits GIDs {first} to {last} together"
            );
            self.together += together;
        }
    }

    /// States: the same at the same GID everywhere. What a member commits together has one state, the last.
    pub fn state(&self, by: MemberId, gid: Gid, hash: u64) {
        let expected = match gid.0 {
            0 => return,
            n => self.history.get(n as usize - 1).map(|h| h.1),
        };
        assert_eq!(Some(hash), expected, "{by} has another state at GID {gid}");
    }

    /// Checkpoints: the same bytes at the same position everywhere.
    pub fn checkpoint(&mut self, by: MemberId, seq: u64, state: &[u8]) {
        let this = crc(state);
        let known = *self.checkpoints.entry(seq).or_insert(this);
        assert_eq!(known, this, "{by} has another checkpoint at {seq}");
    }

    /// A client is told how its transaction ended; once.
    pub fn told(&mut self, xid: u64, told: Told) {
        let before = self.told.insert(xid, told);
        assert_eq!(before, None, "transaction {xid} ends twice");
        if let Told::Committed(gid) = told {
            self.acknowledged = self.acknowledged.max(gid);
            assert_eq!(
                self.xids.get(&xid),
                Some(&gid),
                "transaction {xid} is acknowledged at GID {gid}"
            );
        }
    }

    /// What a read that begins now must see.
    pub fn acknowledged(&self) -> Gid {
        self.acknowledged
    }

    /// A client was told that its transaction has committed, wherever it stands.
    pub fn promised(&mut self, xid: u64) {
        self.promised.push(xid);
    }

    /// Nothing acknowledged is lost, and nothing refused came to be.
    pub fn end(&self) {
        for xid in &self.promised {
            assert!(self.xids.contains_key(xid), "transaction {xid} is lost");
        }
        for (xid, told) in &self.told {
            match (told, self.xids.get(xid)) {
                (Told::Committed(gid), at) => {
                    assert_eq!(at, Some(gid), "transaction {xid} is lost")
                }
                (Told::Aborted, at) => {
                    assert_eq!(at, None, "transaction {xid} was refused and is there")
                }
                (Told::Unknown, _) => {}
            }
        }
    }

    pub fn last_seq(&self) -> u64 {
        self.order.len() as u64
    }

    pub fn last_gid(&self) -> Gid {
        Gid(self.history.len() as u64)
    }

    pub fn committed(&self) -> usize {
        self.told
            .values()
            .filter(|t| matches!(t, Told::Committed(_)))
            .count()
    }
}

fn crc(bytes: &[u8]) -> u64 {
    let half = bytes.len() / 2;
    u64::from(crc32fast::hash(bytes)) << 32 | u64::from(crc32fast::hash(&bytes[half..]))
}

/// Those that count, as the parts themselves say before their changeset comes; `None` if not all are there.
fn said(parts: &[Option<Bytes>]) -> Option<Vec<fragment::Counted>> {
    let mut list: Vec<fragment::Counted> = Vec::new();
    for part in parts {
        let part = part.as_ref()?;
        let head = fragment::fragment_head(part).expect("a fragment");
        list.retain(|c| head.after.is_some_and(|after| c.number <= after.number));
        if let (Some(last), Some(after)) = (list.last_mut(), head.after) {
            assert!(last.number == after.number && last.bytes >= after.bytes);
            *last = after;
        }
        let fragment::FragmentHead { number, bytes, .. } = head;
        list.extend((bytes > 0).then_some(fragment::Counted { number, bytes }));
    }
    Some(list)
}
