//! COMMIT of a transaction that changed replicated rows: multicast, verdict, commit turn.

use super::channel::{self, control, set_phase, slot};
use super::gate::{self, LOOK_AROUND};
use super::phase::Phase;
use super::{consistency, fairness, fragments, retry, victim};
use crate::capture::read;
use crate::capture::relation::described;
use crate::capture::transaction::{self as captured, ChainBuilder, Pending};
use crate::changeset::entry::Source;
use crate::changeset::header::{FLAG_AWAITED, FLAG_LOCAL_EFFECTS, FLAG_RESERVED, Header};
use crate::changeset::sink::Sink;
use crate::group_state::GroupState;
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use crate::imsg::conflicts::Kind;
use crate::imsg::message::{ToCoordinator, ToWorker};
use crate::imsg::{Chain, ChainWriter, Class};
use crate::limits::{CHANGESET_BYTES_MAX, COMPRESSED_FROM_BYTES};
use crate::pg::guard::{self, PgError, Result};
use crate::pg::source::{self, Current};
use crate::pg::starting::{self, Stage};
use crate::pg::{backend, elog, guc, latch, notify, shmem, sys, transaction};
use crate::sequence::session;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

thread_local! {
    /// A helper commits this GID in our place.
    static REPLACED: Cell<Gid> = const { Cell::new(Gid::ZERO) };
    /// ... and what only this session had of it is lost.
    static LOCAL_LOST: Cell<bool> = const { Cell::new(false) };
}

/// The last step of a transaction that may fail. True: it commits now, its turn has come (or it
/// needs none). False: its local work is to be rolled back, a helper commits it.
pub fn pre_commit() -> Result<bool> {
    session::before_commit()?;
    let Some(mut pending) = captured::take() else {
        read::check_uncaptured()?;
        return Ok(true);
    };
    // From here on this transaction is no victim but by its verdict.
    guard::check_interrupts()?;
    if !has_group()? {
        read::check_alone()?;
        notify::queue_alone()?;
        return Ok(true);
    }
    read::check_grouped()?;
    pending.add_reads()?;
    let source = source::current()?;
    if let Some(source) = &source {
        pending.add_source(source.source())?;
    }
    let coarse = pending.complete()?;
    if let Some(gid) = fairness::ask_for(&coarse)? {
        consistency::await_visible(gid)?;
    }
    let local_effects = pending.local_effects || transaction::used_temporary_objects();
    let _held = backend::HeldInterrupts::new();
    let sent = multicast(pending, local_effects, source.as_ref())?;
    let gid = wait_verdict(&sent)?;
    fairness::won();
    slot().gid.store(gid.0, Ordering::SeqCst);
    set_phase(Phase::Certified);
    session::certified(gid);
    if guc::consistent_after() {
        consistency::await_shown(gid);
    }
    let commits = wait_turn(gid, &sent, local_effects);
    if !commits {
        source::set_aside();
    }
    Ok(commits)
}

/// Whether the database has a group by now; one that is about to be formed is waited for. Without
/// one the transaction commits as any other, in a phase that START waits for.
pub fn has_group() -> Result<bool> {
    loop {
        // Before the look: START either sees the phase or has its stage seen.
        set_phase(Phase::Local);
        // The stage before the database, which is set before it ends.
        let stage = starting::stage();
        if control().database.load(Ordering::SeqCst) == backend::database() {
            set_phase(Phase::Open);
            if stage != Stage::Forming {
                return Ok(true);
            }
        } else if matches!(stage, Stage::None | Stage::Capturing) {
            return Ok(false);
        }
        set_phase(Phase::Open);
        latch::sleep_interruptible(
            Some(LOOK_AROUND),
            sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY,
        )?;
    }
}

/// Waits until a helper has committed what [`pre_commit`] returned false for.
pub fn replay_wait() -> Result<()> {
    source::restore();
    let gid = REPLACED.replace(Gid::ZERO);
    let local_lost = LOCAL_LOST.take();
    while control().visible.passed() < gid {
        if backend::is_interrupted() || is_over() {
            return Err(unknown());
        }
        // Nobody sets our latch: the place for it in the turn is that of the next transaction.
        latch::sleep(
            Some(Duration::from_millis(10)),
            sys::WAIT_EVENT_REPLICATION_COMMIT_TURN,
        );
    }
    control().counters.commits.fetch_add(1, Ordering::Relaxed);
    if local_lost { Err(half_lost()) } else { Ok(()) }
}

/// What was sent.
struct Sent {
    ticket: u64,
    incarnation: u32,
}

fn multicast(pending: Pending, local_effects: bool, source: Option<&Current>) -> Result<Sent> {
    if state() != Some(GroupState::Online) || !channel::has_coordinator() {
        return Err(closed(state()));
    }
    let mut flags = 0;
    if local_effects {
        flags |= FLAG_LOCAL_EFFECTS;
    }
    if guc::consistent_after() {
        flags |= FLAG_AWAITED;
    }
    if fairness::holds() {
        flags |= FLAG_RESERVED;
    }
    // All locks are held and nothing of the transaction is left to run.
    let header = header(flags, transaction::xid()?);
    // After the snapshot GID: what is committed here later than that, it meets in certification.
    if let Some(source) = source.filter(|s| source::is_subscriber() && s.is_here()) {
        return Err(applied_already(source.source()));
    }
    let incarnation = header.incarnation.0;
    let changeset = finish(pending.builder, header)?;
    send(changeset)?;
    count_sent(changeset.len);
    Ok(Sent {
        ticket: channel::ticket(),
        incarnation,
    })
}

/// So many bytes were handed to the coordinator: a changeset, or a fragment.
pub fn count_sent(bytes: u32) {
    let sent = &control().counters.changeset_bytes;
    sent.fetch_add(bytes.into(), Ordering::Relaxed);
}

/// The header of a changeset that is multicast now, of the transaction with this id.
pub fn header(flags: u16, xid: u64) -> Header {
    let control = control();
    Header {
        flags,
        group: GroupId(control.group_id.load(Ordering::Relaxed)),
        origin: MemberId(control.member.load(Ordering::Relaxed) as u16),
        incarnation: Incarnation(control.incarnation.load(Ordering::SeqCst)),
        isolation: transaction::isolation(),
        xid,
        snapshot_gid: control.visible.passed(),
        commit_ts: backend::now(),
        database: Oid(backend::database()),
    }
}

/// The changeset in one chain of blocks.
pub fn finish(builder: ChainBuilder, header: Header) -> Result<Chain> {
    let bytes = builder.total_bytes();
    if bytes > CHANGESET_BYTES_MAX {
        return Err(captured::too_large(bytes));
    }
    let pool = shmem::shared().pool();
    let mut first = ChainWriter::new(pool, Class::Local, shmem::my_slot());
    let (head, keys, entries) = if compresses(builder.entries_bytes()) {
        builder.finish_compressed(header)
    } else {
        builder.finish(header)
    };
    first
        .append(&head)
        .map_err(|_| captured::no_memory(bytes))?;
    Ok(pool.concat(pool.concat(first.finish(), keys.finish()), entries.finish()))
}

/// Whether this session compresses so many bytes of entries.
pub fn compresses(bytes: usize) -> bool {
    bytes >= COMPRESSED_FROM_BYTES && guc::compresses()
}

fn send(changeset: Chain) -> Result<()> {
    let pool = shmem::shared().pool();
    while channel::receive().is_some() {} // answers to earlier transactions that gave up
    let changeset = pool.post(changeset);
    set_phase(Phase::Multicast);
    let ticket = channel::ticket();
    if channel::request(ToCoordinator::Multicast { ticket, changeset }).is_err() {
        set_phase(Phase::Open);
        pool.free(changeset);
        return Err(busy());
    }
    Ok(())
}

fn wait_verdict(sent: &Sent) -> Result<Gid> {
    loop {
        match channel::receive() {
            Some(ToWorker::Pass { ticket, gid }) if ticket == sent.ticket => {
                fragments::judged();
                return Ok(gid);
            }
            Some(ToWorker::Conflict {
                ticket,
                relation,
                gid,
                origin,
            }) if ticket == sent.ticket => {
                failed(relation, Kind::Certification);
                fairness::lost(relation);
                retry::lost(relation, gid);
                return Err(lost(relation, gid, origin));
            }
            Some(ToWorker::Reserved {
                ticket,
                relation,
                member,
            }) if ticket == sent.ticket => {
                failed(relation, Kind::Certification);
                fairness::refused();
                retry::refused(relation);
                return Err(reserved(relation, member));
            }
            Some(ToWorker::BelowFloor { ticket }) if ticket == sent.ticket => {
                failed(0, Kind::BelowFloor);
                return Err(too_old());
            }
            Some(ToWorker::NotPrimary { ticket }) if ticket == sent.ticket => {
                return Err(closed(Some(GroupState::NoQuorum)));
            }
            Some(ToWorker::FragmentsLost { ticket }) if ticket == sent.ticket => {
                fragments::judged();
                return Err(fragments::lost());
            }
            Some(ToWorker::Busy { ticket }) if ticket == sent.ticket => return Err(busy()),
            Some(_) => {}
            None => {
                if is_hopeless(sent) {
                    let _ = channel::request(ToCoordinator::Abandon {
                        ticket: sent.ticket,
                    });
                    return Err(unknown());
                }
                latch::sleep(Some(LOOK_AROUND), sys::WAIT_EVENT_REPLICATION_VERDICT);
            }
        }
    }
}

/// The changeset was judged, and not passed.
fn failed(relation: u32, kind: Kind) {
    control().conflicts.count(relation, kind);
    fairness::used();
    fragments::judged();
}

/// True when it is our turn, false when a helper commits in our place.
fn wait_turn(gid: Gid, sent: &Sent, local_effects: bool) -> bool {
    // Once it has, for good: some of its notifications may be queued.
    let mut has_failed = false;
    loop {
        if !has_failed && gate::is_turn(&control().logged, gid) {
            if queues_notifications() {
                gate::enter(gid, gid);
                control().counters.commits.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            has_failed = true;
        }
        // The next coordinator finds our changeset in the log, as that of a worker that is gone, and
        // begins when no worker is left that its predecessor knew.
        if !is_same_life(sent) {
            REPLACED.set(gid);
            LOCAL_LOST.set(local_effects);
            control().conflicts.count(0, Kind::Replay);
            set_phase(Phase::Replaced);
            return false;
        }
        // Somebody with a lower GID waits for our locks, by something that certification does not
        // see. What a helper can't do in our place is not in such a way, but for that of a trigger, which
        // gives up. Or this member has no room for what was ordered, which is for helpers to deal with.
        if has_failed || victim::is_wanted() && !local_effects {
            let abandon = ToCoordinator::Abandon {
                ticket: sent.ticket,
            };
            if channel::request(abandon).is_ok() {
                REPLACED.set(gid);
                LOCAL_LOST.set(local_effects);
                let relation = slot().victim_relation.load(Ordering::Relaxed);
                control().conflicts.count(relation, Kind::Replay);
                set_phase(Phase::Replaced);
                return false;
            }
        }
        if victim::is_wanted() && local_effects {
            slot().stays_ticket.store(sent.ticket, Ordering::Relaxed);
        }
        latch::sleep(Some(LOOK_AROUND), sys::WAIT_EVENT_REPLICATION_COMMIT_TURN);
    }
}

/// Puts the notifications of the transaction where those who listen here find them. Before the commit
/// record, after which nothing may fail; until the transaction is visible, nobody reads them.
fn queues_notifications() -> bool {
    let queued = notify::queue_ordered();
    if let Err(error) = &queued {
        let message = format!("could not queue notifications: {error}");
        elog::log(sys::LOG_SERVER_ONLY, &message);
    }
    queued.is_ok()
}

/// Whether there may never be a verdict, and somebody wants to go or nobody is left to tell. What a
/// subscription receives another member can receive as well, once this one lets go of the publisher.
fn is_hopeless(sent: &Sent) -> bool {
    let may_go = || backend::is_interrupted() || source::is_subscriber();
    !is_same_life(sent) || state() == Some(GroupState::NoQuorum) && may_go()
}

/// Whether the member still is what it was when the changeset was sent; another life of it knows
/// nothing of what was handed to the one before.
fn is_same_life(sent: &Sent) -> bool {
    is_life(sent.incarnation)
}

/// Whether the member still lives this life of its.
pub fn is_life(incarnation: u32) -> bool {
    matches!(state(), Some(GroupState::Online | GroupState::NoQuorum))
        && control().incarnation.load(Ordering::SeqCst) == incarnation
}

/// Whether this member takes no further part.
pub fn is_over() -> bool {
    matches!(
        state(),
        None | Some(GroupState::Off | GroupState::Failed | GroupState::Left)
    )
}

/// State of the group on this server.
pub fn state() -> Option<GroupState> {
    GroupState::from_u32(control().state.load(Ordering::SeqCst))
}

fn lost(relation: u32, gid: Gid, origin: MemberId) -> PgError {
    let what = if transaction::is_serializable() {
        "data that this one had read or changed,"
    } else {
        "the same data"
    };
    let own = origin.0 == control().member.load(Ordering::Relaxed) as u16;
    could_not_serialize(match own {
        // Of two that write the same one waits for the other here.
        true if transaction::is_serializable() => "read/write dependencies among transactions",
        true => "concurrent update",
        false => ON_ANOTHER_MEMBER,
    })
    .detail(format!(
        "A transaction of member {origin} (GID {gid}) concurrently changed {what} of {}.",
        described(relation)
    ))
}

/// Not counted as a loss: who made the reservation has lost more often.
fn reserved(relation: u32, member: MemberId) -> PgError {
    serialization().detail(format!(
        "{} is reserved by member {member} for a transaction that lost several times.",
        capitalized(&described(relation))
    ))
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// What a victim gets, whether it lost here or in certification.
pub fn serialization() -> PgError {
    could_not_serialize(ON_ANOTHER_MEMBER)
}

/// The worker of the subscription that ran elsewhere has come as far, and this one did not know yet.
fn applied_already(source: Source<'_>) -> PgError {
    serialization().detail(format!(
        "Another member has applied this transaction of replication origin \"{}\", or a later one.",
        source.name.to_string_lossy()
    ))
}

const ON_ANOTHER_MEMBER: &str = "concurrent update on another member";

fn could_not_serialize(why: &str) -> PgError {
    PgError::new("40001", format!("could not serialize access due to {why}"))
        .hint("The transaction might succeed if retried.")
}

fn too_old() -> PgError {
    PgError::new(
        "40001",
        "could not serialize access: the transaction ran for too long",
    )
    .detail("The group no longer remembers all changes since it began.")
    .hint("The transaction might succeed if retried.")
}

/// Too much is under way.
pub fn busy() -> PgError {
    PgError::new(
        "53000",
        "too many transactions of this member are waiting for the group",
    )
    .hint("Retry the transaction; consider fewer connections.")
}

fn unknown() -> PgError {
    PgError::new(
        "08007",
        "it is not known whether the transaction is committed",
    )
    .detail("It was sent to the replication group, and no answer can be waited for.")
    .hint("Check its effects when the group is back; it is either there on all members or on none.")
}

/// Neither "committed" nor "failed" would be true.
fn half_lost() -> PgError {
    PgError::new(
        "08007",
        "the transaction is committed, but without its effects on this session",
    )
    .detail("Its replicated changes are committed on all members. What it did to temporary and unlogged tables, to settings, cursors and channels was rolled back, because the coordinator ended meanwhile.")
    .hint("Don't run it again as a whole.")
}

/// A write where the group takes none now.
pub fn closed(state: Option<GroupState>) -> PgError {
    let error = PgError::new("57P03", "cannot commit writes of a replicated database now");
    match state {
        Some(GroupState::NoQuorum) => error
            .detail("This member does not reach a majority of the members of its replication group.")
            .hint("Reads work. Writes work again when a majority is back, or on a member that has one."),
        Some(state) => error
            .detail(format!("The state of the replication group on this member is \"{}\".", state.name()))
            .hint("See pg_stat_replication_group and this server's log."),
        None => error,
    }
}
