//! `replication_retry`: a single statement that lost against another member is run again, and its
//! client does not hear of it.
//!
//! It may be, if it is all that its transaction does, sees what was committed before it began
//! (READ COMMITTED), and nothing of its answer has left. Its messages are then read again, after which
//! those of the client follow: what lost before its Sync was read may lose again with it. It begins
//! anew when what it lost against is visible here, for before that it would lose again.

use super::batch::{Batch, Kept};
use super::channel::control;
use super::consistency;
use crate::ids::Gid;
use crate::imsg::conflicts::Kind;
use crate::imsg::message::ToCoordinator;
use crate::pg::guard::Result;
use crate::pg::query::{self, Mark, Message};
use crate::pg::{backend, guc, transaction};
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;

/// What a transaction lost against.
#[derive(Clone, Copy)]
enum Winner {
    /// What has this GID.
    At(Gid),
    /// A reservation of the relation, which is not over yet.
    Holder,
}

/// The query that runs.
struct Query {
    messages: Batch,
    /// Where its answer begins.
    mark: Mark,
    tries: u32,
}

thread_local! {
    static QUERY: ManuallyDrop<RefCell<Query>> = const {
        let mark = Mark { sends: 0, end: 0 };
        ManuallyDrop::new(RefCell::new(Query { messages: Batch::new(), mark, tries: 0 }))
    };
    /// In which relation the current transaction lost, and against what.
    static LOST: Cell<Option<(u32, Winner)>> = const { Cell::new(None) };
    /// The same of the transaction that is tried again.
    static AWAITED: Cell<Option<(u32, Winner)>> = const { Cell::new(None) };
}

fn with<T>(f: impl FnOnce(&mut Query) -> T) -> T {
    QUERY.with(|query| f(&mut query.borrow_mut()))
}

/// A message was read from the client.
pub fn keep(kind: u8, body: &[u8]) {
    with(|query| {
        if !backend::is_in_batch() {
            query.messages.clear();
        }
        if query::in_block() {
            query.messages.spoil();
        }
        match query.messages.keep(kind, body) {
            Kept::First => {
                query.mark = query::mark();
                query.tries = 0;
                await_winner(None);
            }
            Kept::No | Kept::More => {}
            Kept::Spoilt => query::set_may_retry(false),
        }
    });
}

/// A query is about to run. `single`: it is one statement that changes nothing but by its transaction.
pub fn begin(single: bool) {
    LOST.set(None);
    query::set_may_retry(single && with(|query| query.messages.is_kept()));
}

/// The current transaction lost against a GID in a relation; that is about to be raised.
pub fn lost(relation: u32, gid: Gid) {
    LOST.set(Some((relation, Winner::At(gid))));
}

/// The current transaction changed a relation that another member has reserved; that is about to be
/// raised.
pub fn refused(relation: u32) {
    LOST.set(Some((relation, Winner::Holder)));
}

/// An error was caught: whether its query begins anew instead.
pub fn is_wanted() -> bool {
    let Some((relation, winner)) = LOST.take() else {
        return false;
    };
    let wanted = with(|query| {
        let wanted = query.tries < guc::retries()
            && query::is_serialization_failure()
            && transaction::is_read_committed()
            && !backend::is_interrupted()
            && query::take_back(query.mark);
        if wanted {
            query.tries += 1;
            query.messages.rewind();
        }
        wanted
    });
    if wanted {
        control().conflicts.count(relation, Kind::Retry);
        query::set_repeats(true);
        await_winner(Some((relation, winner)));
    }
    wanted
}

/// The type of the message that is read again next.
pub fn next_kind() -> u8 {
    with(|query| query.messages.next().expect("a message is left").0)
}

/// Its body.
pub fn read_next(into: &mut Message) -> Result<()> {
    with(|query| {
        let (_, body) = query.messages.next().expect("a message is left");
        let read = query::append(into, body);
        // Whatever came of it, it is not read once more.
        query.messages.advance();
        query::set_repeats(query.messages.next().is_some());
        read
    })
}

fn await_winner(winner: Option<(u32, Winner)>) {
    AWAITED.set(winner);
    backend::set_awaits_winner(winner.is_some());
}

/// Whether the transaction that begins is another try.
pub fn is_another() -> bool {
    AWAITED.get().is_some()
}

/// The GID up to which it must see everything so as not to lose again, once that is known; `None` if
/// nobody can say.
pub fn winner() -> Result<Option<Gid>> {
    let awaited = AWAITED.get();
    await_winner(None);
    match awaited {
        None => Ok(None),
        Some((_, Winner::At(gid))) => Ok(Some(gid)),
        Some((relation, Winner::Holder)) => {
            consistency::ask(|ticket| ToCoordinator::AwaitFree { ticket, relation })
        }
    }
}
