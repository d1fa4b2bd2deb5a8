//! nextval and setval in a session, and sequences that its transaction restarts.

use super::range::{self, Rule, State};
use crate::capture::hash::{KeyHash, What};
use crate::capture::transaction::{self as captured, KeyUse};
use crate::changeset::encode::Builder;
use crate::changeset::entry::SequenceChange;
use crate::changeset::header::{FLAG_AWAITED, FLAG_DETACHED};
use crate::changeset::key::KEY_BLIND;
use crate::changeset::{Key, LockMode};
use crate::group_state::GroupState;
use crate::ids::{Gid, Oid};
use crate::imsg::message::{ToCoordinator, ToWorker};
use crate::imsg::ranges::{Answer, Ranges};
use crate::imsg::{ChainWriter, Class};
use crate::pg::guard::{PgError, Result};
use crate::pg::relation::{self, Handle};
use crate::pg::sequence::{self, Tuple, with_ranges};
use crate::pg::{backend, guc, latch, shmem, sys, transaction};
use crate::worker::channel::{self, control, set_phase, slot};
use crate::worker::commit::{self, state};
use crate::worker::consistency;
use crate::worker::gate::LOOK_AROUND;
use crate::worker::phase::Phase;
use std::cell::RefCell;
use std::ffi::c_char;
use std::mem::ManuallyDrop;

thread_local! {
    /// Sequences that the transaction gave new storage, also if that was rolled back since.
    static RESTARTED: ManuallyDrop<RefCell<Vec<u32>>> = const {
        ManuallyDrop::new(RefCell::new(Vec::new()))
    };
}

/// The next value of an open permanent sequence.
pub fn nextval(rel: Handle) -> Result<i64> {
    refuse_helpers("nextval")?;
    let oid = relation::oid(rel);
    if sequence::is_new(rel) {
        return take_here(rel);
    }
    loop {
        if let Some(value) = with_ranges(|ranges| ranges.next(oid)) {
            return Ok(value);
        }
        if let Some(value) = without_group(|| take_here(rel))? {
            return Ok(value);
        }
        let (rule, cache) = sequence::rule(oid)?;
        let cache = u32::try_from(cache).unwrap_or(u32::MAX);
        match take(oid, cache.max(guc::sequence_range()))? {
            Taken::Value(value) => return Ok(value),
            Taken::Ended => return Err(ended(rel, rule)),
            Taken::Lost => {}
        }
    }
}

/// Sets an open permanent sequence to a value within its limits.
pub fn setval(rel: Handle, to: State) -> Result<()> {
    refuse_helpers("setval")?;
    if sequence::is_new(rel) {
        return set_here(rel, to);
    }
    if without_group(|| set_here(rel, to))?.is_some() {
        return Ok(());
    }
    let State { last, called } = to;
    let change = SequenceChange::Set { last, called };
    let ticket = with_ranges(Ranges::ticket);
    let sent = send(relation::oid(rel), change, ticket)?;
    let gid = loop {
        if let Some(gid) = sent.ordered()? {
            break gid;
        }
        if !sent.is_same_life() {
            return Err(unknown(rel));
        }
        sleep()?;
    };
    if !consistency::await_visible(gid)? {
        return Err(unknown(rel));
    }
    if guc::consistent_after() {
        consistency::await_shown(gid);
    }
    Ok(())
}

/// The transaction has given an open sequence new storage: what it goes on from is part of what the
/// transaction does.
pub fn restarted(rel: Handle) -> Result<()> {
    if relation::form(rel).relpersistence != PERMANENT {
        return Ok(());
    }
    refuse_helpers("RESTART")?;
    capture(rel)?;
    let oid = relation::oid(rel);
    RESTARTED.with(|all| {
        let mut all = all.borrow_mut();
        if !all.contains(&oid) {
            all.push(oid);
        }
    });
    Ok(())
}

/// The transaction commits: it may have taken values of what it restarted, also where a savepoint was
/// rolled back.
pub fn before_commit() -> Result<()> {
    for oid in RESTARTED.with(|all| all.borrow().clone()) {
        let Some(rel) = relation::open(oid, sys::AccessShareLock as i32)? else {
            continue;
        };
        if sequence::is_new(rel) {
            capture(rel)?;
        }
        relation::close(rel, 0)?;
    }
    Ok(())
}

/// It commits at this GID.
pub fn certified(gid: Gid) {
    RESTARTED.with(|all| {
        for oid in &*all.borrow() {
            with_ranges(|ranges| ranges.forget(*oid, gid));
        }
    });
}

/// The transaction is over.
pub fn transaction_ended() {
    RESTARTED.with(|all| all.borrow_mut().clear());
}

/// A value of storage that is this session's alone, or of a database without a group.
fn take_here(rel: Handle) -> Result<i64> {
    let (rule, _) = sequence::rule(relation::oid(rel))?;
    transaction::xid()?;
    loop {
        let found = sequence::read(rel)?;
        let Some((values, state)) = range::advance(found.state(), rule, 1) else {
            return Err(ended(rel, rule));
        };
        if sequence::write(rel, Some(found), Tuple::new(state, 0))? {
            return Ok(values.first);
        }
    }
}

fn set_here(rel: Handle, to: State) -> Result<()> {
    transaction::xid()?;
    sequence::write(rel, None, Tuple::new(to, 0)).map(|_| ())
}

/// Does something to a sequence if its database has no group, as a commit that START waits for.
fn without_group<T>(work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    captured::watch_transactions()?;
    channel::attach(false)?;
    if commit::has_group()? {
        return Ok(None);
    }
    let done = work();
    set_phase(Phase::Open);
    done.map(Some)
}

/// What comes of asking the group.
enum Taken {
    /// The next value of all that this member has.
    Value(i64),
    /// There is none.
    Ended,
    /// The answer went with a process, or with an earlier life of this member.
    Lost,
}

/// Asks the group for the next values, and keeps for others what is left of the answer.
fn take(oid: u32, want: u32) -> Result<Taken> {
    let grant = &slot().grant;
    let ticket = with_ranges(|ranges| {
        let ticket = ranges.ticket();
        grant.wait(ticket);
        ticket
    });
    let _waiting = Waiting {
        oid,
        alone: want == 1,
    };
    let change = SequenceChange::Take {
        want,
        slot: shmem::my_slot().0,
        ticket,
    };
    let sent = send(oid, change, ticket)?;
    let mut ordered = None;
    loop {
        // In this order: there is an answer before the GID is visible, or none.
        let visible = ordered.is_some_and(|gid| control().visible.passed() >= gid);
        if grant.is_answered() || visible {
            break;
        }
        if ordered.is_none() {
            ordered = sent.ordered()?;
            if ordered.is_some() {
                continue;
            }
        }
        match state() {
            Some(GroupState::Online) if sent.is_same_life() => sleep()?,
            Some(GroupState::Online) => return Ok(Taken::Lost),
            state => return Err(commit::closed(state)),
        }
    }
    Ok(with_ranges(|ranges| match grant.end() {
        Some(Answer::Values(_, values)) if want == 1 => Taken::Value(values.first),
        Some(Answer::Values(gid, values)) => {
            ranges.keep(oid, gid, values);
            // Unless the sequence was set meanwhile.
            Taken::Value(ranges.next(oid).unwrap_or(values.first))
        }
        // Others of this member may have left some.
        Some(Answer::Ended) => ranges.next(oid).map_or(Taken::Ended, Taken::Value),
        None => Taken::Lost,
    }))
}

/// A session that waits for values, until this is dropped: others get what came too late.
struct Waiting {
    oid: u32,
    /// It asked for a single value, which nobody may get after later ones.
    alone: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let &mut Waiting { oid, alone } = self;
        with_ranges(|ranges| {
            if let Some(Answer::Values(gid, values)) = slot().grant.end()
                && !alone
            {
                ranges.keep(oid, gid, values);
            }
        });
    }
}

/// A change of a sequence that no transaction commits, on its way.
struct Sent {
    ticket: u64,
    incarnation: u32,
}

impl Sent {
    /// Its place in the order, once that is known.
    fn ordered(&self) -> Result<Option<Gid>> {
        while let Some(message) = channel::receive() {
            match message {
                ToWorker::Reached { ticket, gid } if ticket == self.ticket => {
                    return Ok(Some(gid));
                }
                ToWorker::NotPrimary { ticket } if ticket == self.ticket => {
                    return Err(commit::closed(Some(GroupState::NoQuorum)));
                }
                ToWorker::Busy { ticket } if ticket == self.ticket => return Err(commit::busy()),
                _ => {}
            }
        }
        Ok(None)
    }

    fn is_same_life(&self) -> bool {
        commit::is_life(self.incarnation)
    }
}

fn send(oid: u32, change: SequenceChange, ticket: u64) -> Result<Sent> {
    if state() != Some(GroupState::Online) || !channel::has_coordinator() {
        return Err(commit::closed(state()));
    }
    let awaited = guc::consistent_after() && matches!(change, SequenceChange::Set { .. });
    let flags = FLAG_DETACHED | if awaited { FLAG_AWAITED } else { 0 };
    let header = commit::header(flags, 0);
    let sink = || ChainWriter::new(shmem::shared().pool(), Class::Local, shmem::my_slot());
    let mut builder = Builder::new(sink(), sink());
    let key = Key {
        hash: key_hash(oid),
        since: header.snapshot_gid,
        relation: oid,
        mode: USE.mode,
        flags: USE.flags,
    };
    builder
        .key(key)
        .and_then(|()| builder.sequence(Oid(oid), change))
        .map_err(|_| captured::no_memory(builder.total_bytes()))?;
    let incarnation = header.incarnation.0;
    let changeset = commit::finish(builder, header)?;
    let pool = shmem::shared().pool();
    let changeset = pool.post(changeset);
    if channel::request(ToCoordinator::Multicast { ticket, changeset }).is_err() {
        pool.free(changeset);
        return Err(commit::busy());
    }
    commit::count_sent(changeset.len);
    Ok(Sent {
        ticket,
        incarnation,
    })
}

fn sleep() -> Result<()> {
    latch::sleep_interruptible(Some(LOOK_AROUND), sys::WAIT_EVENT_REPLICATION_SEQUENCE)
}

/// `relpersistence`
const PERMANENT: c_char = b'p' as c_char;

/// All that change a sequence come one after the other, and none of them fails for another.
const USE: KeyUse = KeyUse {
    mode: LockMode::Update,
    flags: KEY_BLIND,
};

fn key_hash(oid: u32) -> u64 {
    KeyHash::new(oid, What::Sequence).finish()
}

fn capture(rel: Handle) -> Result<()> {
    let oid = relation::oid(rel);
    let State { last, called } = sequence::read(rel)?.state();
    captured::enter()?;
    captured::key(oid, key_hash(oid), USE)?;
    captured::sequence(oid, SequenceChange::Set { last, called })
}

/// What runs in a helper runs on every member.
fn refuse_helpers(what: &str) -> Result<()> {
    if !backend::is_helper() {
        return Ok(());
    }
    let message = format!("cannot call {what} where changes of another member are applied");
    Err(PgError::new("0A000", message))
}

fn ended(rel: Handle, rule: Rule) -> PgError {
    let (which, limit) = if rule.increment > 0 {
        ("maximum", rule.max)
    } else {
        ("minimum", rule.min)
    };
    let name = relation::name(rel);
    PgError::new(
        "2200H",
        format!("nextval: reached {which} value of sequence \"{name}\" ({limit})"),
    )
}

fn unknown(rel: Handle) -> PgError {
    let name = relation::name(rel);
    PgError::new(
        "08007",
        format!("it is not known whether sequence \"{name}\" was set"),
    )
    .detail("That was sent to the replication group, and no answer can be waited for.")
    .hint("Look at the sequence when the group is back; it is the same on all members.")
}
