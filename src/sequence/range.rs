//! Which values come next: the arithmetic of nextval.

/// Where a sequence stands: its tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// `last_value`: the last value that was handed out, or else the first to be.
    pub last: i64,
    /// `is_called`: it was handed out.
    pub called: bool,
}

/// How it goes on, as pg_sequence says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// From one value to the next, not 0.
    pub increment: i64,
    /// The lowest value.
    pub min: i64,
    /// The highest value.
    pub max: i64,
    /// It begins anew at the other end.
    pub cycle: bool,
}

/// Values in a row: at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first.
    pub first: i64,
    /// From one to the next.
    pub step: i64,
    /// How many.
    pub count: u64,
}

impl Range {
    /// The last of them.
    #[must_use]
    pub fn last(self) -> i64 {
        let last = i128::from(self.first) + i128::from(self.step) * i128::from(self.count - 1);
        i64::try_from(last).expect("all of a range lies within its sequence")
    }

    /// Both as one, if one of them goes on where the other ends.
    #[must_use]
    pub fn join(self, other: Range) -> Option<Range> {
        let follows = |a: Range, b: Range| a.last().checked_add(a.step) == Some(b.first);
        let first = if self.step != other.step {
            return None;
        } else if follows(self, other) {
            self.first
        } else if follows(other, self) {
            other.first
        } else {
            return None;
        };
        Some(Range {
            first,
            step: self.step,
            count: self.count.checked_add(other.count)?,
        })
    }

    /// What is left without the first.
    #[must_use]
    pub fn rest(self) -> Option<Range> {
        (self.count > 1).then(|| Range {
            first: self.first + self.step,
            step: self.step,
            count: self.count - 1,
        })
    }
}

/// The next values, `want` of them at most, and where the sequence stands then; `None` at its end.
/// Values up to a limit come alone: a cycle begins with a range of its own.
///
/// # Panics
/// If no value is wanted.
#[must_use]
pub fn advance(state: State, rule: Rule, want: u32) -> Option<(Range, State)> {
    assert!(want > 0, "who wants no value does not ask");
    let first = if state.called {
        next(state.last, rule)?
    } else {
        state.last
    };
    let way = if rule.increment > 0 {
        i128::from(rule.max) - i128::from(first)
    } else {
        i128::from(first) - i128::from(rule.min)
    };
    let more = (way / i128::from(rule.increment).abs()).max(0);
    let more = u64::try_from(more).unwrap_or(u64::MAX);
    let range = Range {
        first,
        step: rule.increment,
        count: more.min(u64::from(want) - 1) + 1,
    };
    let state = State {
        last: range.last(),
        called: true,
    };
    Some((range, state))
}

/// The value after `last`.
fn next(last: i64, rule: Rule) -> Option<i64> {
    let next = last.checked_add(rule.increment);
    match next.filter(|n| {
        (rule.increment < 0 || *n <= rule.max) && (rule.increment > 0 || *n >= rule.min)
    }) {
        Some(next) => Some(next),
        None if !rule.cycle => None,
        None if rule.increment > 0 => Some(rule.min),
        None => Some(rule.max),
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UP: Rule = Rule {
        increment: 1,
        min: 1,
        max: i64::MAX,
        cycle: false,
    };

    fn at(last: i64, called: bool) -> State {
        State { last, called }
    }

    fn range(first: i64, step: i64, count: u64) -> Range {
        Range { first, step, count }
    }

    #[test]
    fn the_first_value_is_the_one_that_was_set() {
        assert_eq!(
            advance(at(1, false), UP, 32),
            Some((range(1, 1, 32), at(32, true)))
        );
        assert_eq!(
            advance(at(7, true), UP, 3),
            Some((range(8, 1, 3), at(10, true)))
        );
        assert_eq!(
            advance(at(7, false), UP, 1),
            Some((range(7, 1, 1), at(7, true)))
        );
    }

    #[test]
    fn what_is_left_before_the_end_is_handed_out_and_then_nothing() {
        let rule = Rule {
            increment: 3,
            max: 10,
            ..UP
        };
        let (values, state) = advance(at(1, false), rule, 32).expect("values");
        assert_eq!((values, state), (range(1, 3, 4), at(10, true)));
        assert_eq!(advance(state, rule, 1), None);
        let rule = Rule {
            increment: -2,
            min: -5,
            max: -1,
            ..UP
        };
        let (values, state) = advance(at(-1, false), rule, 9).expect("values");
        assert_eq!((values, state), (range(-1, -2, 3), at(-5, true)));
        assert_eq!(advance(state, rule, 1), None);
    }

    #[test]
    fn a_cycle_begins_at_the_other_end_with_a_range_of_its_own() {
        let rule = Rule {
            max: 5,
            cycle: true,
            ..UP
        };
        let (values, state) = advance(at(3, true), rule, 32).expect("values");
        assert_eq!(values, range(4, 1, 2));
        assert_eq!(advance(state, rule, 3), Some((range(1, 1, 3), at(3, true))));
        let down = Rule {
            increment: -1,
            ..rule
        };
        assert_eq!(
            advance(at(1, true), down, 2),
            Some((range(5, -1, 2), at(4, true)))
        );
    }

    #[test]
    fn nothing_overflows_at_the_ends_of_int8() {
        let (min, max) = (i64::MIN, i64::MAX);
        let all = Rule {
            increment: 1,
            min,
            max,
            cycle: false,
        };
        assert_eq!(
            advance(at(max - 1, true), all, 32),
            Some((range(max, 1, 1), at(max, true)))
        );
        assert_eq!(advance(at(max, true), all, 32), None);
        let wide = Rule {
            increment: max,
            ..all
        };
        assert_eq!(
            advance(at(min, false), wide, 9),
            Some((range(min, max, 3), at(max - 1, true)))
        );
        let down = Rule {
            increment: min,
            ..all
        };
        assert_eq!(
            advance(at(max, false), down, 9),
            Some((range(max, min, 2), at(-1, true)))
        );
        assert_eq!(
            advance(
                at(-1, true),
                Rule {
                    cycle: true,
                    ..down
                },
                1
            ),
            Some((range(max, min, 1), at(max, true)))
        );
        assert_eq!(range(min, 1, u64::MAX).last(), max - 1);
    }

    #[test]
    fn a_range_is_used_up_from_its_front() {
        let rest = range(5, -2, 2).rest().expect("another");
        assert_eq!((rest, rest.rest()), (range(3, -2, 1), None));
    }

    #[test]
    fn only_neighbours_with_one_step_join() {
        let joined = |a: Range, b| {
            assert_eq!(a.join(b), b.join(a));
            a.join(b)
        };
        assert_eq!(joined(range(1, 2, 3), range(7, 2, 1)), Some(range(1, 2, 4)));
        assert_eq!(
            joined(range(1, -2, 3), range(-5, -2, 2)),
            Some(range(1, -2, 5))
        );
        assert_eq!(joined(range(1, 2, 3), range(8, 2, 1)), None);
        assert_eq!(joined(range(1, 2, 3), range(7, 1, 1)), None);
        let end = range(i64::MAX, 1, 1);
        assert_eq!(joined(end, range(i64::MIN, 1, 1)), None);
    }

    /// One value, as sequence.c computes it, without its caches.
    fn slow(state: &mut State, rule: Rule) -> Option<i64> {
        if !state.called {
            state.called = true;
            return Some(state.last);
        }
        let (next, inc) = (state.last, rule.increment);
        let over = if inc > 0 {
            rule.max >= 0 && next > rule.max.wrapping_sub(inc)
                || rule.max < 0 && next.wrapping_add(inc) > rule.max
        } else {
            rule.min < 0 && next < rule.min.wrapping_sub(inc)
                || rule.min >= 0 && next.wrapping_add(inc) < rule.min
        };
        state.last = match (over, rule.cycle) {
            (false, _) => next + inc,
            (true, false) => return None,
            (true, true) if inc > 0 => rule.min,
            (true, true) => rule.max,
        };
        Some(state.last)
    }

    /// Bounds near zero, near the ends of int8, or anywhere, with increments to match.
    fn rules() -> impl Strategy<Value = (Rule, i64)> {
        let bound = || {
            prop_oneof![
                -20..20i64,
                (0..20i64).prop_map(|n| i64::MAX - n),
                (0..20i64).prop_map(|n| i64::MIN + n),
                any::<i64>(),
            ]
        };
        let increment = prop_oneof![-5..6i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)];
        (bound(), bound(), increment, any::<bool>(), any::<u64>())
            .prop_filter("a sequence has room and moves", |(a, b, i, ..)| {
                a != b && *i != 0
            })
            .prop_map(|(a, b, increment, cycle, start)| {
                let (min, max) = (a.min(b), a.max(b));
                let width = i128::from(max) - i128::from(min) + 1;
                let start = (i128::from(min) + i128::from(start) % width) as i64;
                (
                    Rule {
                        increment,
                        min,
                        max,
                        cycle,
                    },
                    start,
                )
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Ranges, one behind the other, are the values that PostgreSQL would hand out one by one.
        #[test]
        fn ranges_are_what_single_values_would_be(
            (rule, start) in rules(), called: bool, wants in prop::collection::vec(1..40u32, 1..8),
        ) {
            let (mut state, mut model) = (at(start, called), at(start, called));
            for want in wants {
                match advance(state, rule, want) {
                    None => {
                        prop_assert_eq!(slow(&mut model, rule), None);
                        prop_assert_eq!(advance(state, rule, 1), None);
                    }
                    Some((range, after)) => {
                        prop_assert!((1..=u64::from(want)).contains(&range.count));
                        let mut left = Some(range);
                        while let Some(range) = left {
                            prop_assert_eq!(slow(&mut model, rule), Some(range.first));
                            prop_assert!((rule.min..=rule.max).contains(&range.first));
                            left = range.rest();
                        }
                        prop_assert_eq!((after, range.last()), (model, model.last));
                        state = after;
                    }
                }
            }
        }

        /// A range is cut short only by a limit.
        #[test]
        fn a_short_range_ends_at_the_limit((rule, start) in rules(), want in 1..40u32) {
            let (range, _) = advance(at(start, false), rule, want).expect("its first value");
            if range.count < u64::from(want) {
                prop_assert_eq!(next(range.last(), Rule { cycle: false, ..rule }), None);
            }
        }
    }
}
