//! Reservations of relations, for fairness: which session of this member has the member's, and which
//! of any member have to end.
//!
//! What a reservation does is a function of the order (`certifier/reservation.rs`). Here is what puts
//! it there: a session's wish; its end, unless a changeset brings it; and the end of one that has
//! lasted for too long, since its member may be gone. Each is a message of its own.

use super::event::{Effect, GcsCommand, Outcome};
use super::ledger::Ticket;
use super::message::{self, Relations};
use super::step::Coordinator;
use crate::group_state::GroupState;
use crate::ids::MemberId;
use crate::limits::RESERVATION_TICKS;
use std::collections::{BTreeMap, VecDeque};

/// A message to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Reserve(Ticket, Relations),
    Release(MemberId, u64),
}

/// What this member wants with reservations.
#[derive(Debug, Default)]
pub struct Reserving {
    /// One after the other; only the first is ever on offer.
    wishes: VecDeque<Wish>,
    /// The offer of the first.
    offered: Option<u64>,
    /// Slot of the session that this member's reservation is for.
    session: Option<u32>,
    /// Its wish has no place in the order yet.
    undelivered: bool,
    /// Sessions that want to change what another member has reserved.
    kept_out: Vec<(u32, Ticket)>,
    /// Ticks since a reservation was first seen here.
    ages: BTreeMap<(MemberId, u64), u32>,
}

impl Reserving {
    /// A changeset with its member's reservation was judged; if it is ours, that of this worker.
    pub fn used(&mut self, who: Option<Ticket>) {
        if who.is_some_and(|(worker, _)| self.session == Some(worker)) {
            self.session = None;
        }
    }

    /// An own reservation has its place in the order, or will not be heard of.
    pub fn delivered(&mut self) {
        self.undelivered = false;
    }

    /// The engine took the message. Who waits for its delivery.
    pub fn sent(&mut self, token: u64) -> Option<Ticket> {
        match self.take(token)? {
            Wish::Reserve(who, _) => Some(who),
            Wish::Release(..) => None,
        }
    }

    /// The engine did not take the message: it is offered again.
    pub fn not_sent(&mut self, token: u64) {
        if self.offered == Some(token) {
            self.offered = None;
        }
    }

    fn take(&mut self, token: u64) -> Option<Wish> {
        self.offered.take_if(|offered| *offered == token)?;
        self.wishes.pop_front()
    }

    fn wish(&mut self, wish: Wish) {
        if !self.wishes.contains(&wish) {
            self.wishes.push_back(wish);
        }
    }
}

impl Coordinator {
    /// A session wants relations for its member alone.
    pub(super) fn reserve(&mut self, who: Ticket, relations: Relations, out: &mut Vec<Effect>) {
        let busy = self.reserving.undelivered || self.own_reservation().is_some();
        if self.state != GroupState::Online || self.stopping || busy {
            return self.verdict(Some(who), Outcome::NotPrimary, out);
        }
        self.reserving.session = Some(who.0);
        self.reserving.undelivered = true;
        self.reserving.wish(Wish::Reserve(who, relations));
    }

    /// A session's transaction is over, without a changeset that ends its reservation.
    pub(super) fn release(&mut self, worker: u32, out: &mut Vec<Effect>) {
        let reserving = &mut self.reserving;
        if reserving.session != Some(worker) {
            return;
        }
        reserving.session = None;
        // An offer is answered before any other event: what is still here was not sent.
        let unsent = |wish: &Wish| matches!(wish, Wish::Reserve(..));
        if let Some(at) = reserving.wishes.iter().position(unsent)
            && let Some(Wish::Reserve(who, _)) = reserving.wishes.remove(at)
        {
            reserving.undelivered = false;
            self.verdict(Some(who), Outcome::NotPrimary, out);
        }
        self.release_own();
    }

    /// A session wants to change a relation that another member had reserved when it tried.
    pub(super) fn await_free(&mut self, who: Ticket, relation: u32, out: &mut Vec<Effect>) {
        if self.state != GroupState::Online || self.stopping {
            return self.verdict(Some(who), Outcome::NotPrimary, out);
        }
        self.reserving.kept_out.push((relation, who));
    }

    /// Lets those go on in whose way nobody is any more.
    pub(super) fn serve_kept_out(&mut self, out: &mut Vec<Effect>) {
        if self.reserving.kept_out.is_empty() {
            return;
        }
        let (me, gid) = (self.config.me, self.replicated.last_gid());
        let waiting = std::mem::take(&mut self.reserving.kept_out);
        for (relation, who) in waiting {
            if self.replicated.is_kept_out(me, relation) {
                self.reserving.kept_out.push((relation, who));
            } else {
                self.verdict(Some(who), Outcome::Reached { gid }, out);
            }
        }
    }

    /// Ends this member's reservation if there is one that nobody here has.
    pub(super) fn release_own(&mut self) {
        if self.reserving.session.is_none()
            && !self.reserving.undelivered
            && let Some(position) = self.own_reservation()
        {
            self.reserving.wish(Wish::Release(self.config.me, position));
        }
    }

    fn own_reservation(&self) -> Option<u64> {
        let mut all = self.replicated.reservations();
        all.find(|(member, _)| *member == self.config.me)
            .map(|(_, position)| position)
    }

    /// One that lasts is ended by whoever sees it first; the order tells who that was.
    pub(super) fn end_old_reservations(&mut self) {
        let held: Vec<_> = self.replicated.reservations().collect();
        let ages = &mut self.reserving.ages;
        ages.retain(|key, _| held.contains(key));
        if self.state != GroupState::Online {
            return;
        }
        for key in held {
            let age = self.reserving.ages.entry(key).or_default();
            *age += 1;
            if age.is_multiple_of(RESERVATION_TICKS) {
                self.reserving.wish(Wish::Release(key.0, key.1));
            }
        }
        self.release_own();
    }

    /// Sends the next message of these.
    pub(super) fn serve_reserving(&mut self, out: &mut Vec<Effect>) {
        let Some(wish) = self.reserving.wishes.front().copied() else {
            return;
        };
        let may_send = !self.waiting.is_refused() && self.opening.may_send();
        if self.reserving.offered.is_some() || !may_send || self.ledger.status_out() {
            return;
        }
        self.reported.0 = self.progress;
        self.quiet_ticks = 0;
        let payload = match wish {
            Wish::Reserve(_, relations) => message::reserve(self.progress, relations),
            Wish::Release(member, position) => message::release(self.progress, member, position),
        };
        let (token, payload) = self.ledger.offer_status(payload);
        self.reserving.offered = Some(token);
        out.push(Effect::Gcs(GcsCommand::Multicast { token, payload }));
    }

    /// No order for anybody from here on.
    pub(super) fn refuse_reserving(&mut self, out: &mut Vec<Effect>) {
        let wishes = std::mem::take(&mut self.reserving.wishes);
        self.reserving.offered = None;
        self.reserving.session = None;
        self.reserving.undelivered = false;
        let refused = wishes.into_iter().filter_map(|wish| match wish {
            Wish::Reserve(who, _) => Some(who),
            Wish::Release(..) => None,
        });
        let kept_out = std::mem::take(&mut self.reserving.kept_out);
        for who in refused.chain(kept_out.into_iter().map(|(_, who)| who)) {
            self.verdict(Some(who), Outcome::NotPrimary, out);
        }
    }
}
