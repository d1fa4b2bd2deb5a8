//! Statements: START and STOP REPLICATION, and what a replicated database refuses.

use super::backend::HeldInterrupts;
use super::guard::{self, PgError, Result};
use super::relation;
use super::sequence::{self, Tuple};
use super::starting::{self, Stage, Starting};
use super::{coordinator, guc, latch, shmem, subscription, sys};
use crate::ids::Gid;
use crate::imsg::message::{ToCoordinator, ToWorker};
use crate::imsg::ranges::Ranges;
use crate::imsg::{Control, ProcSlot, SlotNo, wake};
use crate::limits::GROUP_NAME_BYTES_MAX;
use crate::worker::channel;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::atomic::Ordering;
use std::time::Duration;

mod maintenance;
mod refuse;
mod suitable;

pub use refuse::{catalog, database, foreign, install as install_refusals, prepare};

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_is_superuser() -> bool;
    fn pgr_shim_wal_is_minimal() -> bool;
    fn pgr_shim_not_in_block(top_level: bool, statement: *const c_char, edata: Edata) -> c_int;
    fn pgr_shim_database_oid(name: *const c_char, out: *mut u32, edata: Edata) -> c_int;
    fn pgr_shim_system_sql(sql: *const c_char, edata: Edata) -> c_int;
    fn pgr_shim_next_transaction(edata: Edata) -> c_int;
    fn pgr_shim_wait_for_transactions(edata: Edata) -> c_int;
    fn pgr_shim_flush_all_wal(edata: Edata) -> c_int;
    fn pgr_shim_strong_random(out: *mut u64) -> bool;
    fn pgr_shim_process_lives(pid: c_int) -> bool;
}

/// How often START and STOP look for an answer without having been woken.
const POLL: Duration = Duration::from_millis(200);

const VIEWS: [&CStr; 4] = [
    c"CREATE OR REPLACE VIEW pg_catalog.pg_stat_replication_group AS SELECT * FROM pg_catalog.pg_stat_get_replication_group()",
    c"CREATE OR REPLACE VIEW pg_catalog.pg_stat_replication_members AS SELECT * FROM pg_catalog.pg_stat_get_replication_members()",
    c"CREATE OR REPLACE VIEW pg_catalog.pg_stat_replication_open_transactions AS SELECT * FROM pg_catalog.pg_stat_get_replication_open_transactions()",
    c"CREATE OR REPLACE VIEW pg_catalog.pg_stat_replication_conflicts AS SELECT s.relid, n.nspname AS schemaname, c.relname, s.local_victims, s.certification_failures, s.below_floor, s.replays, s.retries, s.stats_reset FROM pg_catalog.pg_stat_get_replication_conflicts() s LEFT JOIN pg_catalog.pg_class c ON c.oid = s.relid LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace",
];

/// ALTER DATABASE `name` START REPLICATION IN GROUP `group` [USING `gcs`].
///
/// The group is formed when no transaction is left that was not captured from its beginning. An error
/// or a cancel before that leaves nothing behind; after it there is none.
pub fn start(name: &CStr, group: &CStr, gcs: Option<&CStr>, top_level: bool) -> Result<()> {
    let statement = c"ALTER DATABASE ... START REPLICATION";
    privileged("start")?;
    not_in_block(top_level, statement)?;
    let database = current_database(name, "starts")?;
    let configured = guc::gcs().ok_or_else(|| {
        PgError::new("55000", "this server is not configured for replication")
            .hint("Set \"replication_gcs\" in postgresql.conf, for example to 'egcs:listen=127.0.0.1:7001', and restart the server.")
    })?;
    if let Some(using) = gcs.map(CStr::to_string_lossy).filter(|u| *u != configured) {
        return Err(PgError::new("0A000", format!("this server's group communication is \"{configured}\", not \"{using}\""))
            .hint("Set \"replication_gcs\" in postgresql.conf and restart the server, or leave out USING."));
    }
    // SAFETY: reads a setting.
    if unsafe { pgr_shim_wal_is_minimal() } {
        return Err(PgError::new(
            "55000",
            "replication needs \"wal_level\" to be \"replica\" or \"logical\"",
        )
        .detail("New members copy this server with a base backup.")
        .hint("Set \"wal_level\" in postgresql.conf and restart the server."));
    }
    let group = group.to_string_lossy().into_owned();
    if group.len() > GROUP_NAME_BYTES_MAX || group.is_empty() {
        return Err(PgError::new(
            "42622",
            format!("\"{group}\" is not a name for a group"),
        ));
    }
    // Again below; this is for an early answer.
    suitable::check()?;
    suitable::check_prepared()?;

    let claim = Claim::take()?;
    let control = shmem::shared().control();
    if control.database.load(Ordering::SeqCst) != 0 {
        let other = control.group_name.get();
        return Err(PgError::new(
            "0A000",
            format!("this server is a member of replication group \"{other}\" already"),
        )
        .detail("A server replicates one database.")
        .hint("ALTER DATABASE ... STOP REPLICATION ends its membership."));
    }
    for view in VIEWS {
        // SAFETY: a C string; the session is in its database and in a transaction.
        guard::call0(|e| unsafe { pgr_shim_system_sql(view.as_ptr(), e) })?;
    }
    let mut id = 0;
    // SAFETY: a place for eight bytes.
    if !unsafe { pgr_shim_strong_random(&raw mut id) } || id == 0 {
        return Err(PgError::new(
            "58000",
            "could not get random bytes for the group's id",
        ));
    }
    // What was done so far belongs to what the group begins with; and from here on no snapshot of
    // this session's, which CREATE INDEX CONCURRENTLY would wait for.
    // SAFETY: not in a transaction block; nothing of the transaction is used any more.
    guard::call0(|e| unsafe { pgr_shim_next_transaction(e) })?;
    while starting::stage() != Stage::None || coordinator::is_busy() {
        latch::sleep_interruptible(Some(POLL), sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY)?;
    }
    control.group_id.store(id, Ordering::Relaxed);
    control.group_name.set(&group);
    // What is captured refers to them.
    for turn in [&control.logged, &control.visible] {
        turn.start(Gid::ZERO);
    }
    control.recovered_gid.store(0, Ordering::Relaxed);
    sequence::with_ranges(Ranges::clear);
    let starting = Starting::begin(database)?;
    // Also for those that are prepared by now.
    // SAFETY: the transaction holds no lock that another one could wait for.
    guard::call0(|e| unsafe { pgr_shim_wait_for_transactions(e) })?;
    suitable::check()?;
    settle_sequences()?;
    starting.close()?;
    // The log of the group does not have what was committed without it.
    // SAFETY: writes WAL.
    guard::call0(|e| unsafe { pgr_shim_flush_all_wal(e) })?;
    // The coordinator answers at once, and a cancel could no more be obeyed.
    let _held = HeldInterrupts::new();
    claim.request(ToCoordinator::StartGroup, "start replication")
}

/// From here on a sequence's tuple says where the sequence is, also after a crash and in a copy of this
/// server: nobody who writes WAL ahead is left.
fn settle_sequences() -> Result<()> {
    for oid in sequence::permanent()? {
        let mode = sys::AccessShareLock as c_int;
        let Some(rel) = relation::open(oid, mode)? else {
            continue;
        };
        loop {
            let found = sequence::read(rel)?;
            let settled = Tuple::new(found.state(), 0);
            if found.is_settled() || sequence::write(rel, Some(found), settled)? {
                break;
            }
        }
        relation::close(rel, mode)?;
    }
    Ok(())
}

/// ALTER DATABASE `name` STOP REPLICATION: this server leaves its group; the database stays, as an
/// ordinary one.
pub fn stop(name: &CStr, top_level: bool) -> Result<()> {
    privileged("stop")?;
    not_in_block(top_level, c"ALTER DATABASE ... STOP REPLICATION")?;
    let mut database = 0;
    let at = &raw mut database;
    // SAFETY: a C string and a place for the answer.
    guard::call0(|e| unsafe { pgr_shim_database_oid(name.as_ptr(), at, e) })?;
    let replicated = shmem::try_shared().map_or(0, |s| s.control().database.load(Ordering::SeqCst));
    if replicated == 0 || replicated != database {
        return Err(PgError::new(
            "55000",
            format!("database \"{}\" is not replicated", name.to_string_lossy()),
        ));
    }
    let claim = Claim::take()?;
    if !is_alone() {
        // On disk before anybody runs them in this server's place: it may crash once it has left.
        subscription::give_up(database)?;
        // SAFETY: not in a transaction block; nothing of the transaction is used any more.
        guard::call0(|e| unsafe { pgr_shim_next_transaction(e) })?;
        // SAFETY: writes WAL.
        guard::call0(|e| unsafe { pgr_shim_flush_all_wal(e) })?;
    }
    claim.request(ToCoordinator::StopGroup, "stop replication")
}

/// Whether this server is all that is left of its group, as far as it knows.
fn is_alone() -> bool {
    let control = shmem::shared().control();
    let me = control.member.load(Ordering::Relaxed);
    control
        .members
        .get()
        .iter()
        .map(|m| u32::from(m.id.0))
        .eq([me])
}

fn privileged(verb: &str) -> Result<()> {
    // SAFETY: reads the state of this session.
    if unsafe { pgr_shim_is_superuser() } {
        return Ok(());
    }
    Err(
        PgError::new("42501", format!("permission denied to {verb} replication"))
            .detail(format!("Only a superuser may {verb} replication.")),
    )
}

fn not_in_block(top_level: bool, statement: &CStr) -> Result<()> {
    // SAFETY: a C string.
    guard::call0(|e| unsafe { pgr_shim_not_in_block(top_level, statement.as_ptr(), e) })
}

/// OID of the database `name`, which must be the session's.
fn current_database(name: &CStr, verb: &str) -> Result<u32> {
    let mut oid = 0;
    let at = &raw mut oid;
    // SAFETY: a C string and a place for the answer.
    guard::call0(|e| unsafe { pgr_shim_database_oid(name.as_ptr(), at, e) })?;
    // SAFETY: a variable of the process.
    if oid == unsafe { sys::MyDatabaseId } {
        return Ok(oid);
    }
    let name = name.to_string_lossy();
    Err(PgError::new(
        "0A000",
        format!("replication of a database {verb} from a session in it"),
    )
    .hint(format!(
        "Connect to database \"{name}\" and run the statement there."
    )))
}

fn failed(control: &Control, what: &str) -> PgError {
    let reason = control.failure.get();
    PgError::new("58000", format!("could not {what}: {reason}"))
}

/// The right of one session at a time to change this server's membership. Held in shared memory
/// by PID, given back on drop; a holder that died without that is found dead by the next one.
struct Claim {
    slot: SlotNo,
}

impl Claim {
    fn take() -> Result<Claim> {
        let owner = &shmem::server().command_pid;
        // SAFETY: a variable of the process.
        let me = unsafe { sys::MyProcPid }.cast_unsigned();
        let mut held_by = 0;
        while let Err(other) =
            owner.compare_exchange(held_by, me, Ordering::SeqCst, Ordering::SeqCst)
        {
            // SAFETY: asks the kernel about a PID.
            if other != 0 && unsafe { pgr_shim_process_lives(other.cast_signed()) } {
                return Err(PgError::new(
                    "55006",
                    "another session is starting or stopping replication",
                ));
            }
            held_by = other;
        }
        Ok(Claim {
            slot: shmem::my_slot(),
        })
    }

    fn queues(&self) -> &'static ProcSlot {
        shmem::shared().slot(self.slot)
    }

    /// Sends a request to the coordinator and waits for its answer.
    fn request(&self, message: ToCoordinator, what: &str) -> Result<()> {
        let shared = shmem::shared();
        let control = shared.control();
        if control.coordinator_slot.load(Ordering::Acquire) == 0 {
            return Err(PgError::new(
                "57P03",
                format!("could not {what}: the coordinator is not running"),
            )
            .hint("The server's log says why; it is started again by itself."));
        }
        channel::attach(false)?;
        self.queues()
            .requests_up
            .push(message.into())
            .map_err(|_| {
                PgError::new(
                    "53000",
                    format!("could not {what}: the coordinator does not take requests"),
                )
            })?;
        wake::notify(shared, self.slot);
        let started_on = control.coordinator_slot.load(Ordering::Acquire);
        loop {
            if let Some(words) = self.queues().replies_down.pop() {
                match ToWorker::try_from(words) {
                    Ok(ToWorker::Done) => return Ok(()),
                    Ok(ToWorker::Failed) => return Err(failed(control, what)),
                    // Late answers for transactions that this session gave up.
                    _ => continue,
                }
            }
            if control.coordinator_slot.load(Ordering::Acquire) != started_on {
                return Err(PgError::new("57P03", format!("could not {what}: the coordinator has ended"))
                    .hint("The server's log says why. See pg_stat_get_replication_group() for what it did before."));
            }
            latch::sleep_interruptible(Some(POLL), sys::WAIT_EVENT_REPLICATION_COORDINATOR_REPLY)?;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        shmem::server().command_pid.store(0, Ordering::SeqCst);
    }
}

/// The C string behind a pointer that may be null.
///
/// # Safety
/// `text` is null or a C string that lives as long as the answer is used.
#[must_use]
pub unsafe fn optional<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: by the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// For messages that go through C.
#[must_use]
pub fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}
