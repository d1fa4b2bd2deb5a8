//! Pace of this member's large transactions: not far ahead of the members that apply them early, so that
//! those have little left to do when the changeset comes.
//!
//! Members say in the order how many fragments they have applied, and a worker hears of its fragments only
//! as the slowest has them. No more than pace: who says nothing for a while is not waited for, and a message
//! that is lost costs no more than that.

use super::event::{Effect, GcsCommand, Outcome};
use super::ledger::Ticket;
use super::message;
use super::step::Coordinator;
use crate::ids::MemberId;
use crate::limits::PACE_TICKS;
use std::collections::BTreeMap;

/// Says that a member does not apply the transaction early, or no more.
const NOT_EARLY: u32 = u32::MAX;

#[derive(Debug)]
struct Paced {
    ticket: Ticket,
    /// Fragments in the order, and those that the worker has heard of.
    ordered: u32,
    told: u32,
    /// Members that apply it: how many fragments they have, and the ticks since they said so.
    members: BTreeMap<MemberId, (u32, u32)>,
}

impl Paced {
    /// How many more fragments the worker may hear of.
    fn due(&mut self) -> u32 {
        let slowest = self.members.values().map(|(applied, _)| *applied).min();
        let due = slowest.map_or(self.ordered, |s| self.ordered.min(s));
        let more = due.saturating_sub(self.told);
        self.told += more;
        more
    }
}

/// This member's transactions, by the positions of their first fragments.
#[derive(Debug, Default)]
pub struct Pacing(BTreeMap<u64, Paced>);

impl Coordinator {
    /// Fragments of a worker's transaction are in the order, so many by now.
    pub(super) fn pace(&mut self, first: u64, ticket: Ticket, ordered: u32, out: &mut Vec<Effect>) {
        let paced = self.pacing.0.entry(first).or_insert_with(|| Paced {
            ticket,
            ordered,
            told: 0,
            members: BTreeMap::new(),
        });
        paced.ordered = ordered;
        self.go_on(first, out);
    }

    /// A member has applied so many fragments of a transaction.
    pub(super) fn early_applied(
        &mut self,
        member: MemberId,
        first: u64,
        applied: u32,
        out: &mut Vec<Effect>,
    ) {
        if let Some(paced) = self.pacing.0.get_mut(&first) {
            if applied == NOT_EARLY {
                paced.members.remove(&member);
            } else {
                paced.members.insert(member, (applied, 0));
            }
            self.go_on(first, out);
        }
    }

    fn go_on(&mut self, first: u64, out: &mut Vec<Effect>) {
        let Some(paced) = self.pacing.0.get_mut(&first) else {
            return;
        };
        let (ticket, due) = (paced.ticket, paced.due());
        for _ in 0..due {
            self.verdict(Some(ticket), Outcome::Fragment { kept: true }, out);
        }
    }

    /// A tick passed.
    pub(super) fn pace_tick(&mut self, out: &mut Vec<Effect>) {
        let firsts: Vec<u64> = self.pacing.0.keys().copied().collect();
        for first in firsts {
            let Some(paced) = self.pacing.0.get_mut(&first) else {
                continue;
            };
            if paced.told < paced.ordered {
                paced.members.retain(|_, (_, ticks)| {
                    *ticks += 1;
                    *ticks <= PACE_TICKS
                });
            }
            self.go_on(first, out);
        }
    }

    /// Transactions that are over wait for nobody.
    pub(super) fn pace_settle(&mut self, out: &mut Vec<Effect>) {
        let replicated = &self.replicated;
        let over = |first: &u64| replicated.begun_at(*first).is_none();
        let over: Vec<u64> = self.pacing.0.keys().copied().filter(over).collect();
        for first in over {
            if let Some(paced) = self.pacing.0.get_mut(&first) {
                paced.members.clear();
            }
            self.go_on(first, out);
            self.pacing.0.remove(&first);
        }
    }

    /// Tells the group how many fragments of a transaction a helper here has; `None`: it is not to be waited
    /// for.
    pub(super) fn say_applied(&mut self, first: u64, applied: Option<u32>, out: &mut Vec<Effect>) {
        if self.opening.may_send() {
            let applied = applied.unwrap_or(NOT_EARLY);
            let payload = message::applied(self.progress, first, applied);
            let (token, payload) = self.ledger.offer_status(payload);
            out.push(Effect::Gcs(GcsCommand::Multicast { token, payload }));
        }
    }
}
