//! Runs a specification at all its levels and placements, and says where it is not met.

use crate::expectation::Outcome;
use crate::members::Members;
use crate::placement::Placement;
use crate::run::run;
use crate::spec::{Level, Permutation, Spec};
use std::fmt::Write;

/// A specification is given up after so many runs that went wrong.
const ENOUGH: usize = 3;

/// The number of runs; or what went wrong.
pub fn test(spec: &Spec, members: &mut Members<'_>) -> Result<usize, String> {
    members.clean()?;
    let (mut runs, mut wrong, mut complaint) = (0, 0, String::new());
    for permutation in &spec.permutations {
        let mut seen = vec![false; permutation.expectations.len()];
        for &level in &spec.levels {
            for placement in &spec.placements {
                runs += 1;
                if let Err(error) = once(spec, permutation, level, placement, members, &mut seen) {
                    let _ = writeln!(complaint, "{error}");
                    wrong += 1;
                    if wrong == ENOUGH {
                        return Err(complaint);
                    }
                    if let Err(error) = members.clean() {
                        return Err(complaint + &error);
                    }
                }
            }
        }
        for (line, seen) in permutation.expectations.iter().zip(seen) {
            if line.must_be_seen && !seen && wrong == 0 {
                let (name, line) = (&spec.name, line.line);
                let _ = writeln!(complaint, "{name}:{line}: no run ended so");
            }
        }
    }
    members.clean()?;
    if complaint.is_empty() {
        Ok(runs)
    } else {
        Err(complaint)
    }
}

/// One run, and whether it ended as a line says that is about it; `seen` notes which do.
fn once(
    spec: &Spec,
    permutation: &Permutation,
    level: Level,
    placement: &Placement,
    members: &mut Members<'_>,
    seen: &mut [bool],
) -> Result<(), String> {
    let report = run(spec, permutation, level, placement, members);
    let place = format!(
        "{}:{} {} at {placement}",
        spec.name,
        permutation.line,
        level.setting()
    );
    let problem = match report.outcome {
        Ok(outcome) => {
            if std::env::var_os("PGR_TEST_SHOW").is_some() {
                println!("# {place}: {}\n{}", told(&outcome), report.transcript);
            }
            let mut met = false;
            for (line, seen) in permutation.expectations.iter().zip(seen) {
                if line.applies(level, placement) && line.is_met(&outcome) {
                    met = true;
                    *seen = true;
                }
            }
            if met {
                return Ok(());
            }
            format!("no line allows {}", told(&outcome))
        }
        Err(problem) => problem,
    };
    Err(format!("{place}: {problem}\n{}", report.transcript))
}

fn told(outcome: &Outcome) -> String {
    let terms = outcome.iter().map(|(name, value)| {
        if value.contains(char::is_whitespace) {
            format!("{name}=\"{value}\"")
        } else {
            format!("{name}={value}")
        }
    });
    terms.collect::<Vec<_>>().join(" ")
}
