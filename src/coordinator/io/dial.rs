//! Whom to dial, and when: every member of the view that is not connected, after pauses that grow
//! with each failure. The lower number dials at once; the higher one gives it a head start and
//! then dials too, since the other may not know of it (it was away when this member joined).

use super::resolve::Lookup;
use crate::gcs::View;
use crate::ids::MemberId;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Ticks that the higher number waits for the lower one to dial.
const HEAD_START_TICKS: u32 = 10;
/// Longest pause between two tries, in ticks (before the head start).
const PAUSE_TICKS_MAX: u32 = 32;

/// All members but this one.
pub struct Dials {
    me: MemberId,
    targets: BTreeMap<MemberId, Target>,
}

struct Target {
    address: String,
    state: State,
    /// Tries since the last connection that came up.
    failures: u32,
}

enum State {
    /// Not before this many ticks have passed.
    Pausing(u32),
    /// Its address is being looked up.
    Looking(Lookup),
    /// Dialled; [`Dials::up`] or [`Dials::failed`] follows.
    Dialling,
    Up,
}

impl Dials {
    pub fn new(me: MemberId) -> Dials {
        Dials {
            me,
            targets: BTreeMap::new(),
        }
    }

    /// Takes the membership over. Returns those who are in it no more.
    pub fn set_view(&mut self, view: &View) -> Vec<MemberId> {
        let member = |id: MemberId| view.members.iter().find(|m| m.id == id);
        let gone: Vec<MemberId> = self
            .targets
            .keys()
            .copied()
            .filter(|id| member(*id).is_none())
            .collect();
        for id in &gone {
            self.targets.remove(id);
        }
        for m in view.members.iter().filter(|m| m.id != self.me) {
            let pause = self.pause(m.id, 0);
            let target = self.targets.entry(m.id).or_insert_with(|| Target {
                address: String::new(),
                state: State::Pausing(pause),
                failures: 0,
            });
            target.address.clone_from(&m.address);
        }
        gone
    }

    /// A tick has passed: appends who is to be dialled now, and where.
    pub fn tick(&mut self, now: &mut Vec<(MemberId, SocketAddr)>) {
        let mut failed = Vec::new();
        for (id, target) in &mut self.targets {
            let lookup = match std::mem::replace(&mut target.state, State::Dialling) {
                State::Pausing(0) => Lookup::start(&target.address),
                State::Pausing(ticks) => {
                    target.state = State::Pausing(ticks - 1);
                    continue;
                }
                State::Looking(lookup) => lookup,
                same @ (State::Dialling | State::Up) => {
                    target.state = same;
                    continue;
                }
            };
            match lookup.poll() {
                Ok(Ok(address)) => now.push((*id, address)),
                Ok(Err(_)) => failed.push(*id),
                Err(lookup) => target.state = State::Looking(lookup),
            }
        }
        for id in failed {
            self.failed(id);
        }
    }

    /// A connection to it is up, whoever dialled.
    pub fn up(&mut self, id: MemberId) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.state = State::Up;
            target.failures = 0;
        }
    }

    /// The connection that was up is gone.
    pub fn down(&mut self, id: MemberId) {
        let pause = self.pause(id, 0);
        if let Some(target) = self.targets.get_mut(&id) {
            target.state = State::Pausing(pause);
        }
    }

    /// Dialling led to nothing.
    pub fn failed(&mut self, id: MemberId) {
        let failures = self
            .targets
            .get(&id)
            .map_or(0, |t| t.failures.saturating_add(1));
        let pause = self.pause(id, failures);
        if let Some(target) = self.targets.get_mut(&id)
            && !matches!(target.state, State::Up)
        {
            target.failures = failures;
            target.state = State::Pausing(pause);
        }
    }

    fn pause(&self, id: MemberId, failures: u32) -> u32 {
        let grown = if failures == 0 {
            0
        } else {
            1 << failures.min(PAUSE_TICKS_MAX.ilog2())
        };
        grown + if self.me < id { 0 } else { HEAD_START_TICKS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcs::MemberInfo;

    fn view(ids: &[u16]) -> View {
        let member = |id: &u16| MemberInfo {
            id: MemberId(*id),
            address: format!("127.0.0.1:{}", 7000 + id),
            voter: true,
        };
        View {
            seq: 0,
            members: ids.iter().map(member).collect(),
        }
    }

    /// Ticks until this member is dialled.
    fn ticks_until(dials: &mut Dials, id: u16) -> u32 {
        for tick in 0..100 {
            let mut now = Vec::new();
            dials.tick(&mut now);
            if now
                .iter()
                .any(|(m, a)| *m == MemberId(id) && a.port() == 7000 + id)
            {
                return tick;
            }
        }
        panic!("never dialled");
    }

    #[test]
    fn the_lower_dials_first_and_the_higher_in_the_end() {
        let mut dials = Dials::new(MemberId(2));
        assert!(dials.set_view(&view(&[1, 2, 3])).is_empty());
        assert_eq!(ticks_until(&mut dials, 3), 0);
        assert_eq!(ticks_until(&mut dials, 1), HEAD_START_TICKS - 1);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_over_after_success() {
        let mut dials = Dials::new(MemberId(1));
        dials.set_view(&view(&[1, 2]));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push(ticks_until(&mut dials, 2));
            dials.failed(MemberId(2));
        }
        assert_eq!(pauses, [0, 2, 4, 8, 16, 32, 32]);
        dials.up(MemberId(2));
        // A second try that fails does not undo the one that succeeded.
        dials.failed(MemberId(2));
        let mut now = Vec::new();
        dials.tick(&mut now);
        assert!(now.is_empty());
        dials.down(MemberId(2));
        assert_eq!(ticks_until(&mut dials, 2), 0);
    }

    #[test]
    fn who_left_is_dialled_no_more() {
        let mut dials = Dials::new(MemberId(1));
        dials.set_view(&view(&[1, 2, 3]));
        assert_eq!(dials.set_view(&view(&[1, 3])), [MemberId(2)]);
        let mut now = Vec::new();
        dials.tick(&mut now);
        assert_eq!(now.len(), 1);
    }
}
