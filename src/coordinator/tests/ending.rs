//! Stop, removal, failure.

use super::bench::*;
use crate::coordinator::{Effect, Event, GcsCommand, Outcome};
use crate::gcs::{self, Refused, View};
use crate::group_state::GroupState;

fn asks_to_leave(b: &Bench) -> bool {
    b.effects
        .iter()
        .any(|e| matches!(e, Effect::Gcs(GcsCommand::Remove(ME))))
}

#[test]
fn a_stop_ends_what_is_in_flight_and_then_leaves() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.step(Event::StopGroup);
    b.write(8, 1, 101);
    assert_eq!(b.verdicts(), [(8, 1, Outcome::NotPrimary)]);
    b.deliver_own();
    assert!(!asks_to_leave(&b), "GID 1 is not committed");
    b.committed(1);
    assert!(asks_to_leave(&b));
    b.effects.clear();
    b.ticks(1);
    assert!(!asks_to_leave(&b), "once");
    b.gcs(gcs::Event::Removed);
    assert_eq!(b.state(), GroupState::Left);
}

#[test]
fn the_last_member_just_stops() {
    let mut b = Bench::online();
    b.gcs(gcs::Event::View(View {
        seq: 0,
        members: vec![two_voters(0).members[0].clone()],
    }));
    b.step(Event::StopGroup);
    assert!(!asks_to_leave(&b));
    assert_eq!(b.state(), GroupState::Left);
}

#[test]
fn what_was_sent_has_no_answer_after_a_failure() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.refuse = Some(Refused::NotPrimary);
    b.write(8, 1, 101);
    b.gcs(gcs::Event::Fatal("disk gone".into()));
    assert_eq!(b.failure(), "disk gone");
    assert_eq!(
        b.verdicts(),
        [(8, 1, Outcome::NotPrimary), (7, 1, Outcome::Unknown)]
    );
    b.write(9, 1, 102);
    assert_eq!(b.verdicts(), [(9, 1, Outcome::NotPrimary)]);
    b.effects.clear();
    b.ticks(100);
    b.gcs(gcs::Event::Primary(true));
    b.step(Event::HelperReady { helper: 1 });
    assert!(b.effects.is_empty(), "nothing follows the end");
}

#[test]
fn states_follow_their_table() {
    use GroupState::*;
    assert_eq!(
        GroupState::ALL.map(|s| GroupState::from_u32(s as u32)),
        GroupState::ALL.map(Some)
    );
    assert_eq!(GroupState::from_u32(99), None);
    for end in [Failed, Left] {
        for next in GroupState::ALL {
            assert_eq!(end.can_become(next), next == Off, "{end:?} to {next:?}");
        }
    }
    assert!(std::panic::catch_unwind(|| Recovering.to(NoQuorum)).is_err());
}
