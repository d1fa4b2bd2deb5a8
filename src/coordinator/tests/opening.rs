//! When the group opens and closes here.

use super::bench::*;
use crate::coordinator::{Effect, Event, Outcome};
use crate::gcs::{self, Refused, View};
use crate::group_state::GroupState;

#[test]
fn opens_when_all_that_was_ordered_is_committed_here() {
    let mut b = Bench::new(config(0));
    b.step(Event::HelperReady { helper: 1 });
    b.gcs(gcs::Event::View(two_voters(0)));
    b.deliver_other(0, 100);
    b.gcs(gcs::Event::Primary(true));
    assert_eq!(b.applies(), [(1, 1, 0)]);
    b.write(7, 1, 50);
    assert_eq!(b.verdicts(), [(7, 1, Outcome::NotPrimary)], "closed");
    b.gcs(gcs::Event::CaughtUp);
    b.deliver_other(0, 101);
    assert_eq!(b.state(), GroupState::Recovering);
    b.committed(1);
    assert_eq!(b.state(), GroupState::Online, "GID 2 came later");
}

#[test]
fn a_joiner_opens_as_a_voter() {
    let mut joining = config(0);
    joining.joining = true;
    let mut b = Bench::new(joining);
    let mut view = two_voters(0);
    view.members[0].voter = false;
    b.gcs(gcs::Event::View(view.clone()));
    b.gcs(gcs::Event::Primary(true));
    b.gcs(gcs::Event::CaughtUp);
    assert_eq!(b.state(), GroupState::Joining);
    view.members[0].voter = true;
    b.gcs(gcs::Event::View(view));
    assert_eq!(b.state(), GroupState::Online);
}

#[test]
fn a_change_of_leader_only_takes_longer() {
    let mut b = Bench::online();
    b.gcs(gcs::Event::Primary(false));
    b.refuse = Some(Refused::NotPrimary);
    b.write(7, 1, 100);
    b.ticks(PACE.quorum_ticks - 1);
    assert_eq!((b.state(), b.verdicts().len()), (GroupState::Online, 0));
    b.refuse = None;
    b.gcs(gcs::Event::Primary(true));
    b.deliver_own();
    assert!(matches!(b.verdicts()[..], [(7, 1, Outcome::Pass { .. })]));
}

#[test]
fn without_a_majority_writes_are_refused_until_it_is_back() {
    let mut b = Bench::online();
    b.write(6, 1, 99);
    b.gcs(gcs::Event::Primary(false));
    b.refuse = Some(Refused::NotPrimary);
    b.write(7, 1, 100);
    b.ticks(PACE.quorum_ticks);
    assert_eq!(b.state(), GroupState::NoQuorum);
    assert_eq!(
        b.verdicts(),
        [(7, 1, Outcome::NotPrimary)],
        "what was sent has no verdict yet"
    );
    b.write(7, 2, 100);
    assert_eq!(b.verdicts(), [(7, 2, Outcome::NotPrimary)]);
    b.refuse = None;
    b.gcs(gcs::Event::Primary(true));
    assert_eq!(b.state(), GroupState::Online);
    b.deliver_own();
    assert!(matches!(b.verdicts()[..], [(6, 1, Outcome::Pass { .. })]));
}

#[test]
fn members_are_shown_as_they_reported() {
    let mut b = Bench::online();
    let gid = crate::ids::Gid;
    let report = crate::coordinator::message::Report {
        low: gid(0),
        committed: gid(5),
        flushed: gid(4),
    };
    b.deliver_status(OTHER, report, Default::default());
    let stats = b.core.stats();
    assert_eq!(stats.members.len(), 2);
    let other = &stats.members[1];
    assert_eq!(
        (other.info.id, other.last_committed, other.flushed),
        (OTHER, gid(5), gid(4))
    );
}

#[test]
fn a_view_is_passed_on() {
    let mut b = Bench::online();
    let alone = View {
        seq: 0,
        members: vec![two_voters(0).members[0].clone()],
    };
    b.gcs(gcs::Event::View(alone.clone()));
    assert!(matches!(&b.effects[..], [Effect::SetView(view)] if *view == alone));
}
