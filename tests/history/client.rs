//! One transaction on one session, and what may be said of its outcome.

use crate::level::Level;
use crate::recorder::Outcome;
use crate::wire::{Answer, Failure, Session};
use crate::workload::Step;

/// Runs a transaction; false if the session is of no more use.
pub fn transact(session: &mut Session, level: Level, steps: &[Step]) -> (Outcome, bool) {
    match body(session, level, steps) {
        Ok(reads) => commit(session, reads),
        // No COMMIT was sent, so there are no effects.
        Err(Failure::Refused(sqlstate)) => (Outcome::Aborted(sqlstate), roll_back(session)),
        Err(Failure::Ended(why) | Failure::Lost(why)) => (Outcome::Aborted(why), false),
    }
}

fn body(
    session: &mut Session,
    level: Level,
    steps: &[Step],
) -> Result<Vec<Option<Vec<u64>>>, Failure> {
    session.query(level.begin())?;
    steps.iter().map(|step| run(session, step)).collect()
}

fn run(session: &mut Session, step: &Step) -> Result<Option<Vec<u64>>, Failure> {
    match *step {
        Step::Read { key, locks } => {
            let locks = if locks { " FOR UPDATE" } else { "" };
            let sql = format!("SELECT elements FROM list WHERE key = {key}{locks}");
            Ok(Some(elements(&session.query(&sql)?)))
        }
        Step::Append {
            key,
            element,
            upsert,
        } => {
            let update = format!("elements = list.elements || {element}");
            if !upsert {
                let sql = format!("UPDATE list SET {update} WHERE key = {key}");
                if session.query(&sql)?.tag != "UPDATE 0" {
                    return Ok(None);
                }
            }
            session.query(&format!(
                "INSERT INTO list VALUES ({key}, '{{{element}}}') ON CONFLICT (key) DO UPDATE SET {update}"
            ))?;
            Ok(None)
        }
    }
}

/// The list of a row; a list without row is empty.
fn elements(answer: &Answer) -> Vec<u64> {
    let text = answer.column.first().map_or("{}", String::as_str);
    let inner = text.trim_start_matches('{').trim_end_matches('}');
    inner
        .split(',')
        .filter(|e| !e.is_empty())
        .map(|e| e.parse().expect("an array of integers"))
        .collect()
}

fn commit(session: &mut Session, reads: Vec<Option<Vec<u64>>>) -> (Outcome, bool) {
    match session.query("COMMIT") {
        Ok(answer) if answer.tag == "COMMIT" => (Outcome::Committed(reads), true),
        Ok(answer) => (Outcome::Aborted(answer.tag), true),
        Err(Failure::Refused(sqlstate)) if says_unknown(&sqlstate) => {
            (Outcome::Unknown(sqlstate), roll_back(session))
        }
        Err(Failure::Refused(sqlstate)) => (Outcome::Aborted(sqlstate), roll_back(session)),
        // A session may end before the commit or after it.
        Err(Failure::Ended(why) | Failure::Lost(why)) => (Outcome::Unknown(why), false),
    }
}

/// Class 08 (08007: transaction resolution unknown) and 40003 (statement completion unknown).
fn says_unknown(sqlstate: &str) -> bool {
    sqlstate.starts_with("08") || sqlstate == "40003"
}

/// After an error the block may still be open.
fn roll_back(session: &mut Session) -> bool {
    session.query("ROLLBACK").is_ok()
}
