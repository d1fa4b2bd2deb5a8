//! `replication_retry`: a single statement that lost against another member is run again, and its
//! client does not hear of it.
//!
//! It may be, if it is all that its transaction does, sees what was committed before it began
//! (READ COMMITTED), and nothing of its answer has left. It begins anew when what it lost against is
//! visible here, for before that it would lose again.

use super::channel::{self, control};
use super::consistency;
use crate::ids::Gid;
use crate::imsg::conflicts::Kind;
use crate::pg::guard::Result;
use crate::pg::query::{self, Mark};
use crate::pg::{backend, guc, transaction};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char};
use std::mem::ManuallyDrop;

struct Query {
    text: CString,
    /// Where its answer begins.
    mark: Mark,
    tries: u32,
}

thread_local! {
    static QUERY: ManuallyDrop<RefCell<Option<Query>>> = const { ManuallyDrop::new(RefCell::new(None)) };
    /// In which relation the query lost, and against which GID.
    static LOST: Cell<Option<(u32, Gid)>> = const { Cell::new(None) };
}

fn with<T>(f: impl FnOnce(&mut Option<Query>) -> T) -> T {
    QUERY.with(|query| f(&mut query.borrow_mut()))
}

/// A simple query was parsed. `single`: it is one statement that changes nothing but by its
/// transaction.
pub fn begin(text: &CStr, single: bool) {
    LOST.set(None);
    let retried = with(|q| q.as_ref().is_some_and(|q| q.text.as_ptr() == text.as_ptr()));
    if !retried {
        let alone = single && !backend::is_in_batch() && !query::in_block();
        let query = alone.then(|| Query {
            text: text.to_owned(),
            mark: query::mark(),
            tries: 0,
        });
        with(|q| *q = query);
    }
    query::set_may_retry(with(|q| q.is_some()));
}

/// The current transaction lost against a GID in a relation; that is about to be raised.
pub fn lost(relation: u32, gid: Gid) {
    LOST.set(Some((relation, gid)));
}

/// An error was caught: whether its query begins anew instead.
pub fn is_wanted() -> bool {
    let Some((relation, _)) = LOST.get() else {
        return false;
    };
    let wanted = with(|q| match q {
        Some(query)
            if query.tries < guc::retries()
                && query::is_serialization_failure()
                && transaction::is_read_committed()
                && !backend::is_interrupted()
                && query::take_back(query.mark) =>
        {
            query.tries += 1;
            true
        }
        _ => false,
    });
    if wanted {
        control().conflicts.count(relation, Kind::Retry);
        query::set_retrying(true);
    }
    wanted
}

/// The query, to be run again now. It lives until another one begins.
pub fn again() -> Result<*const c_char> {
    query::set_retrying(false);
    if let Some((_, gid)) = LOST.take() {
        channel::attach(false)?;
        // Of a group that is over it hears by itself.
        consistency::await_visible(gid)?;
    }
    Ok(with(|q| q.as_ref().expect("a query failed").text.as_ptr()))
}
