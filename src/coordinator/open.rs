//! Transactions whose fragments are in the order and whose changesets are not yet.
//!
//! A function of the total order alone. No checkpoint is taken while there are any, so a checkpoint
//! holds none of them, and whoever begins at one is delivered all fragments that are still of use. Its
//! bounds are there so that checkpoints do come: see [`Open::delivered`].

use crate::changeset::fragment::{self, Counted, FragmentHead, FragmentList, FragmentsOf};
use crate::gcs::Delivery;
use crate::ids::{Incarnation, MemberId, MessageId};
use crate::limits::OPEN_TRANSACTIONS_MAX;
use std::collections::BTreeMap;

/// Where a fragment, as far as it counts, is in the group log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Position in the order.
    pub seq: u64,
    /// Its log entry.
    pub index: u64,
    /// The message in it.
    pub id: MessageId,
}

/// Bounds, in bytes of deliveries. The same on every member.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// [`crate::limits::OPEN_ADMIT_BYTES`]
    pub admit: u64,
    /// [`crate::limits::OPEN_BYTES_MAX`]
    pub all: u64,
    /// [`crate::limits::OPEN_SILENT_BYTES`]
    pub silent: u64,
}

/// The fragments of an open transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fragments {
    /// Where they are, by their numbers.
    pub places: Vec<Place>,
    /// Those that count, as far as they do by now.
    pub counted: Vec<Counted>,
}

impl Fragments {
    /// Position of the first, which names the transaction.
    pub fn first(&self) -> Option<u64> {
        self.places.first().map(|place| place.seq)
    }
}

#[derive(Debug)]
struct Transaction {
    incarnation: Incarnation,
    ticket: u64,
    fragments: Fragments,
    bytes: u64,
}

/// An open transaction, for the statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenStats {
    /// On which it runs.
    pub member: MemberId,
    /// That were ordered.
    pub fragments: u64,
    /// Of these.
    pub bytes: u64,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub struct Open {
    /// By the slot that runs it.
    transactions: BTreeMap<(MemberId, u32), Transaction>,
    /// Members that have some, and the bytes that had been delivered when they were last heard of.
    heard: BTreeMap<MemberId, u64>,
}

impl Open {
    /// None is open.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Each of them, by member.
    pub fn stats(&self) -> Vec<OpenStats> {
        let transactions = self.transactions.iter();
        transactions
            .map(|((member, _), t)| OpenStats {
                member: *member,
                fragments: t.fragments.places.len() as u64,
                bytes: t.bytes,
            })
            .collect()
    }

    /// Transactions.
    fn len(&self) -> usize {
        self.transactions.len()
    }

    /// A message came. `bytes` have been delivered since the last checkpoint. Ends what no changeset
    /// will follow: of a former life of the sender, of a member that was silent while much was
    /// ordered, of all when the log has grown too far.
    pub fn delivered(&mut self, id: MessageId, bytes: u64, bounds: &Bounds) {
        if self.is_empty() {
            return;
        }
        if let Some(heard) = self.heard.get_mut(&id.member) {
            *heard = bytes;
        }
        let heard = &self.heard;
        let before = self.transactions.len();
        self.transactions.retain(|(member, _), t| {
            let former = *member == id.member && t.incarnation < id.incarnation;
            let silent = heard.get(member).is_none_or(|h| bytes - h > bounds.silent);
            !former && !silent && bytes <= bounds.all
        });
        if self.transactions.len() < before {
            self.forget_members();
        }
    }

    /// A fragment came; whether it is kept. One that does not follow those before it, or begins when there are too
    /// many, ends its transaction: the changeset will fail.
    pub fn fragment(
        &mut self,
        delivery: &Delivery,
        head: FragmentHead,
        bytes: u64,
        bounds: &Bounds,
    ) -> bool {
        let FragmentHead { of, number, .. } = head;
        let id = delivery.id;
        let key = (id.member, of.worker);
        if number == 0 {
            // What the slot had before is over.
            self.transactions.remove(&key);
            let crowded = bytes > bounds.admit || self.len() >= OPEN_TRANSACTIONS_MAX;
            if self.is_empty() || !crowded {
                let transaction = Transaction {
                    incarnation: id.incarnation,
                    ticket: of.ticket,
                    fragments: Fragments::default(),
                    bytes: 0,
                };
                self.transactions.insert(key, transaction);
                self.heard.insert(id.member, bytes);
            }
        }
        let kept = match self.transactions.get_mut(&key) {
            Some(t) if t.ticket == of.ticket && t.incarnation == id.incarnation => {
                let Fragments { places, counted } = &mut t.fragments;
                let follows = places.len() == number as usize && fragment::count(counted, head);
                if follows {
                    t.bytes += delivery.payload.len() as u64;
                    places.push(Place {
                        seq: delivery.seq,
                        index: delivery.index,
                        id,
                    });
                } else {
                    self.transactions.remove(&key);
                }
                follows
            }
            _ => false,
        };
        self.forget_members();
        kept
    }

    /// Those of an open transaction; none if it is not open.
    pub fn fragments(&self, id: MessageId, of: FragmentsOf) -> Option<&Fragments> {
        let found = self.transactions.get(&(id.member, of.worker));
        found
            .filter(|t| (t.ticket, t.incarnation) == (of.ticket, id.incarnation))
            .map(|t| &t.fragments)
    }

    /// The same, of the one whose first fragment has this position.
    pub fn begun_at(&self, first: u64) -> Option<&Fragments> {
        let mut all = self.transactions.values().map(|t| &t.fragments);
        all.find(|f| f.first() == Some(first))
    }

    /// No changeset follows these, or it is here.
    pub fn end(&mut self, id: MessageId, of: FragmentsOf) -> Option<Vec<Place>> {
        self.fragments(id, of)?;
        let ended = self.transactions.remove(&(id.member, of.worker));
        self.forget_members();
        ended.map(|t| t.fragments.places)
    }

    /// A changeset has come: where its fragments are that count, `None` if some are not kept.
    pub fn close(&mut self, id: MessageId, list: FragmentList<'_>) -> Option<Vec<Place>> {
        let all = self.end(id, list.of)?;
        let place = |number: u32| all.get(number as usize).copied();
        list.counted().map(|c| place(c.number)).collect()
    }

    /// The member is none any more.
    pub fn removed(&mut self, member: MemberId) {
        self.transactions.retain(|(m, _), _| *m != member);
        self.forget_members();
    }

    fn forget_members(&mut self) {
        let transactions = &self.transactions;
        self.heard
            .retain(|m, _| transactions.keys().any(|(member, _)| member == m));
    }
}

#[cfg(test)]
#[path = "tests/open.rs"]
mod tests;
