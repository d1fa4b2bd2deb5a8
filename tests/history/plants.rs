//! Small histories, lawful and not, whose verdicts are known: what the judge overlooks here, or what is
//! lost on the way to it, it would overlook in a real one.

use crate::judge::{Verdict, judge};
use crate::level::{Consistency, Isolation, Level};
use crate::recorder::{Outcome, Recorder};
use crate::workload::Step;

const READ_COMMITTED: Level = Level {
    isolation: Isolation::ReadCommitted,
    consistency: Consistency::Eventual,
};
const REPEATABLE_READ: Level = Level {
    isolation: Isolation::RepeatableRead,
    ..READ_COMMITTED
};
const SERIALIZABLE: Level = Level {
    isolation: Isolation::Serializable,
    ..READ_COMMITTED
};
const BEFORE: Level = Level {
    consistency: Consistency::Before,
    ..REPEATABLE_READ
};

/// A transaction: its session, its steps, and how it ended.
type Transaction = (u64, Vec<Step>, Outcome);

fn append(key: u64, element: u64) -> Step {
    Step::Append {
        key,
        element,
        upsert: false,
    }
}

/// Appends alone, committed.
fn wrote<const N: usize>(session: u64, appends: [(u64, u64); N]) -> Transaction {
    let steps = appends.map(|(key, element)| append(key, element)).into();
    (session, steps, Outcome::Committed(vec![None; N]))
}

/// Reads alone, committed.
fn saw<const N: usize>(session: u64, lists: [(u64, &[u64]); N]) -> Transaction {
    let read = |(key, _)| Step::Read { key, locks: false };
    let reads = lists.map(|(_, list)| Some(list.to_vec())).into();
    let steps = lists.map(read).into();
    (session, steps, Outcome::Committed(reads))
}

/// Reads a list and appends to another, or the same.
fn saw_and_wrote(session: u64, list: (u64, &[u64]), appended: (u64, u64)) -> Transaction {
    let (_, mut steps, _) = saw(session, [list]);
    steps.push(append(appended.0, appended.1));
    let reads = vec![Some(list.1.to_vec()), None];
    (session, steps, Outcome::Committed(reads))
}

/// One append with this outcome.
fn tried(session: u64, appended: (u64, u64), outcome: Outcome) -> Transaction {
    (session, vec![append(appended.0, appended.1)], outcome)
}

fn passes(name: &str, level: Level, history: &[Transaction]) -> bool {
    let path = std::env::temp_dir().join(format!("pgr-history-{name}-{}", std::process::id()));
    let recorder = Recorder::create(&path);
    let sessions = history.iter().map(|t| t.0).max().expect("a transaction");
    let processes: Vec<_> = (0..=sessions).map(|_| recorder.process(1)).collect();
    for (session, steps, outcome) in history {
        let process = processes[*session as usize];
        recorder.invoke(process, steps);
        recorder.complete(process, steps, outcome);
    }
    recorder.finish();
    let verdict = judge(&path, level.promised());
    std::fs::remove_file(&path).expect("remove the history");
    matches!(verdict, Verdict::Right)
}

#[test]
fn a_lost_update_breaks_repeatable_read() {
    let both = |second: &[u64]| {
        [
            saw_and_wrote(1, (1, &[]), (1, 1)),
            saw_and_wrote(2, (1, second), (1, 2)),
            saw(3, [(1, &[1, 2])]),
        ]
    };
    assert!(!passes("lost", REPEATABLE_READ, &both(&[])));
    assert!(passes("kept", REPEATABLE_READ, &both(&[1])));
}

#[test]
fn a_fork_breaks_repeatable_read() {
    let seen = |last: &[u64]| {
        [
            wrote(1, [(1, 1)]),
            wrote(2, [(2, 1)]),
            saw(3, [(1, &[1]), (2, &[])]),
            saw(4, [(1, last), (2, &[1])]),
        ]
    };
    assert!(!passes("fork", REPEATABLE_READ, &seen(&[])));
    assert!(passes("prefix", REPEATABLE_READ, &seen(&[1])));
}

#[test]
fn half_of_a_transaction_breaks_repeatable_read() {
    let seen = |first: &[u64]| [wrote(1, [(1, 1), (2, 1)]), saw(2, [(1, first), (2, &[1])])];
    assert!(!passes("half", REPEATABLE_READ, &seen(&[])));
    assert!(passes("whole", REPEATABLE_READ, &seen(&[1])));
    assert!(passes("half-committed", READ_COMMITTED, &seen(&[])));
}

#[test]
fn a_session_that_does_not_see_its_own_commit_breaks_repeatable_read() {
    let seen_by = |session| {
        [
            wrote(1, [(1, 1)]),
            saw(session, [(1, &[])]),
            saw(3, [(1, &[1])]),
        ]
    };
    assert!(!passes("own", REPEATABLE_READ, &seen_by(1)));
    // A session on another member may be behind, unless it asked not to be.
    assert!(passes("behind", REPEATABLE_READ, &seen_by(2)));
    assert!(!passes("late", BEFORE, &seen_by(2)));
}

#[test]
fn commits_of_a_session_in_another_order_break_each_level() {
    let by = |second| {
        [
            wrote(1, [(1, 1)]),
            wrote(second, [(1, 2)]),
            saw(3, [(1, &[2, 1])]),
        ]
    };
    for level in [REPEATABLE_READ, READ_COMMITTED] {
        assert!(!passes("turned", level, &by(1)), "{level}");
        assert!(passes("others", level, &by(2)), "{level}");
    }
}

#[test]
fn what_an_aborted_transaction_wrote_must_not_be_seen() {
    for level in [REPEATABLE_READ, READ_COMMITTED] {
        let after = |outcome| [tried(1, (1, 1), outcome), saw(2, [(1, &[1])])];
        let aborted = Outcome::Aborted("40001".into());
        assert!(!passes("aborted", level, &after(aborted)), "{level}");
        let unknown = Outcome::Unknown("08007".into());
        assert!(passes("unknown", level, &after(unknown)), "{level}");
    }
}

#[test]
fn two_orders_of_one_list_break_each_level() {
    let seen = |last: &[u64]| {
        [
            wrote(1, [(1, 1)]),
            wrote(2, [(1, 2)]),
            saw(3, [(1, &[1, 2])]),
            saw(4, [(1, last)]),
        ]
    };
    for level in [REPEATABLE_READ, READ_COMMITTED] {
        assert!(!passes("orders", level, &seen(&[2, 1])), "{level}");
        assert!(passes("order", level, &seen(&[1])), "{level}");
    }
}

#[test]
fn write_skew_breaks_serializable_alone() {
    let skew = [
        saw_and_wrote(1, (1, &[]), (2, 1)),
        saw_and_wrote(2, (2, &[]), (1, 1)),
        saw(3, [(1, &[1]), (2, &[1])]),
    ];
    assert!(!passes("skew", SERIALIZABLE, &skew));
    assert!(passes("skew-allowed", REPEATABLE_READ, &skew));
}
