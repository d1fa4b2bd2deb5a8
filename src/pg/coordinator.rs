//! The coordinator's process: from its start over the lives of its member to its end.
//!
//! A life of the member begins when nothing of an earlier one is left on this server: no helper,
//! no transaction between multicast and commit. So the GID that is visible then is exact, and the
//! group's log says what comes after it.

use super::guard::{self, PgError, Result};
use super::host::{self, PgHost};
use super::starting::{self, Stage};
use super::{elog, guc, helpers, latch, prepared, shmem, subscription, sys};
use crate::coordinator::Pace;
use crate::coordinator::io::backend::Choice;
use crate::coordinator::io::start::{self, Site, Started};
use crate::coordinator::io::{join, resolve, secret};
use crate::coordinator::kind;
use crate::coordinator::run::{End, Loop};
use crate::gcs::options::{self, Options};
use crate::group_file::{self, State};
use crate::group_state::GroupState;
use crate::ids::{Gid, GroupId, Oid};
use crate::imsg::layout::phase;
use crate::imsg::message::{ToCoordinator, ToWorker};
use crate::imsg::{Class, Control, SlotNo, wake};
use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::Duration;

unsafe extern "C" {
    fn pgr_shim_coordinator_begin(edata: *mut *mut sys::ErrorData) -> c_int;
    fn pgr_shim_shutdown_requested() -> bool;
    fn pgr_shim_wal_flush(upto: u64, edata: *mut *mut sys::ErrorData) -> c_int;
    fn pgr_shim_collation_version(
        provider: c_char,
        locale: *const c_char,
        out: *mut *const c_char,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_on_exit(
        callback: extern "C" fn(c_int, sys::Datum),
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
}

/// Role of the coordinator in `ProcSlot::role`.
const ROLE: u32 = 3;
/// Role of a helper.
const ROLE_HELPER: u32 = 2;
/// Folder of what belongs to this server as a member.
pub const DIR: &str = "pg_group";
/// How often an idle coordinator, and one that waits for others to end, looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// Body of the process. Comes back when it is to end.
pub fn main() -> Result<()> {
    // SAFETY: once, at the start of a background worker.
    guard::call0(|e| unsafe { pgr_shim_coordinator_begin(e) })?;
    guard::install_panic_hook();
    elog::install_tracing();
    // SAFETY: the callback may run at any time until shared memory is gone.
    guard::call0(|e| unsafe { pgr_shim_on_exit(on_exit, e) })?;
    let control = shmem::shared().control();
    shmem::shared()
        .slot(shmem::my_slot())
        .role
        .store(ROLE, Ordering::SeqCst);
    control
        .coordinator_slot
        .store(shmem::my_slot().0 + 1, Ordering::SeqCst);
    if starting::stage() == Stage::Forming {
        // The coordinator before this one ended in the middle of it.
        unform(control)?;
    }
    while !ending() {
        if control.database.load(Ordering::SeqCst) == 0 {
            idle(control)?;
        } else {
            live(control, None)?;
        }
    }
    Ok(())
}

fn ending() -> bool {
    // SAFETY: a flag of this process.
    unsafe { pgr_shim_shutdown_requested() }
}

/// The process ends: nobody gets an answer any more, and helpers end too.
extern "C" fn on_exit(_code: c_int, _argument: sys::Datum) {
    guard::boundary_nofail(|| {
        let control = shmem::shared().control();
        control.coordinator_slot.store(0, Ordering::SeqCst);
        subscription::run(false);
        helpers::stop_all();
        let state = GroupState::from_u32(control.state.load(Ordering::SeqCst)).unwrap_or_default();
        if matches!(
            state,
            GroupState::Online | GroupState::NoQuorum | GroupState::Joining
        ) {
            // The next coordinator begins a new life of the member.
            host::announce(GroupState::Recovering);
        }
        shmem::shared()
            .slot(shmem::my_slot())
            .role
            .store(0, Ordering::SeqCst);
        shmem::shared().pool().reclaim(shmem::my_slot());
    });
}

/// What sessions ask for while the member does not live. `Some`: START REPLICATION.
fn requests(control: &Control) -> Option<SlotNo> {
    let shared = shmem::shared();
    // All of them, for who said something to an earlier coordinator is not marked any more.
    wake::take_dirty(shared, |_| ());
    let mut start = None;
    for (from, slot) in (0..).map(SlotNo).zip(shared.slots()) {
        while slot.replies_up.pop().is_some() {}
        while let Some(words) = slot.requests_up.pop() {
            match ToCoordinator::try_from(words) {
                Ok(ToCoordinator::StartGroup)
                    if start.is_none() && control.database.load(Ordering::SeqCst) == 0 =>
                {
                    start = Some(from);
                }
                // It was asked again before this process began.
                Ok(ToCoordinator::StartGroup) if start == Some(from) => {}
                Ok(ToCoordinator::StartGroup) => {
                    refuse(from, "this server is a member of a group already")
                }
                Ok(ToCoordinator::StopGroup) => match abandon_membership(control) {
                    Ok(()) => answer(from, ToWorker::Done),
                    Err(e) => refuse(from, &e.to_string()),
                },
                Ok(ToCoordinator::Multicast { ticket, changeset }) => {
                    shared.pool().free(changeset);
                    answer(from, ToWorker::NotPrimary { ticket });
                }
                Ok(
                    ToCoordinator::AwaitOrder { ticket }
                    | ToCoordinator::AwaitShown { ticket, .. }
                    | ToCoordinator::AwaitFree { ticket, .. }
                    | ToCoordinator::Reserve { ticket, .. },
                ) => answer(from, ToWorker::NotPrimary { ticket }),
                _ => {}
            }
        }
    }
    start
}

fn answer(to: SlotNo, message: ToWorker) {
    // A session that asks has room in its queue: it waits for this one answer.
    let _ = shmem::shared().slot(to).replies_down.push(message.into());
    latch::wake(to);
}

fn refuse(to: SlotNo, reason: &str) {
    shmem::shared().control().failure.set(reason);
    answer(to, ToWorker::Failed);
}

/// No database is replicated: waits for START REPLICATION.
fn idle(control: &Control) -> Result<()> {
    loop {
        host::serve_interrupts()?;
        if ending() {
            return Ok(());
        }
        if let Some(session) = requests(control) {
            return form(control, session);
        }
        latch::sleep(
            Some(LOOK_AROUND),
            sys::WAIT_EVENT_REPLICATION_COORDINATOR_MAIN,
        );
    }
}

/// The member is no more, for good or until a person acts: only STOP REPLICATION is of use.
fn rest(control: &Control) -> Result<()> {
    while control.database.load(Ordering::SeqCst) != 0 && !ending() {
        host::serve_interrupts()?;
        requests(control);
        latch::sleep(
            Some(LOOK_AROUND),
            sys::WAIT_EVENT_REPLICATION_COORDINATOR_MAIN,
        );
    }
    Ok(())
}

/// START REPLICATION: forms a group of one.
fn form(control: &Control, session: SlotNo) -> Result<()> {
    if !starting::take() {
        refuse(session, "the statement was cancelled");
        return Ok(());
    }
    let group = GroupId(control.group_id.load(Ordering::Relaxed));
    let database = Oid(starting::database());
    let formed = site(true).and_then(|site| {
        // What an attempt left that did not come as far as the state file.
        start::forget(&site).map_err(|e| e.to_string())?;
        start::bootstrap(&site, group, Gid::ZERO).map_err(|e| e.to_string())?;
        // From the file on this server is a member, so it is written last.
        let state = State {
            group,
            name: control.group_name.get(),
            database,
            gid: Gid::ZERO,
        };
        shmem::with_state_lock(|| state.write(Path::new(shmem::DATA_DIR)))
            .map_err(|e| format!("could not write file \"{}\": {e}", group_file::NAME))
    });
    if let Err(reason) = formed {
        starting::end();
        refuse(session, &reason);
        return Ok(());
    }
    host::announce(GroupState::Recovering);
    live(control, Some(session))
}

/// START REPLICATION did not come to its end: leaves nothing of a group that has not begun.
fn unform(control: &Control) -> Result<()> {
    if control.database.load(Ordering::SeqCst) == 0 {
        abandon_membership(control)?;
    }
    starting::end();
    Ok(())
}

/// One life of the member, and what follows from its end.
fn live(control: &Control, command: Option<SlotNo>) -> Result<()> {
    match GroupState::from_u32(control.state.load(Ordering::SeqCst)) {
        Some(GroupState::Recovering | GroupState::Joining) => {}
        // It ended, and this process was started again.
        _ => return rest(control),
    }
    quiesce()?;
    let recovered = control.visible.passed();
    control.logged.start(recovered);
    let lsn = shmem::server().logged_lsn.load(Ordering::Relaxed);
    if lsn != 0 {
        // SAFETY: the end of a record that was inserted.
        guard::call0(|e| unsafe { pgr_shim_wal_flush(lsn, e) })?;
    }
    let mut waiting = command;
    let mut interrupted = None;
    let end = catch_unwind(AssertUnwindSafe(|| {
        begin_and_run(control, recovered, &mut waiting, &mut interrupted)
    }));
    let end = end.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!(
            "the coordinator panicked: {}",
            text.unwrap_or_default()
        ))
    });
    subscription::run(false);
    helpers::stop_all();
    if starting::stage() == Stage::Forming {
        unform(control)?;
        if let (Some(session), Ok(End::Failed(reason)) | Err(reason)) = (command, &end) {
            refuse(session, reason);
        }
        return interrupted.map_or(Ok(()), Err);
    }
    if let Some(error) = interrupted {
        return Err(error);
    }
    match end {
        Ok(End::Stopped) => Ok(()),
        Ok(End::Left) => {
            let left = abandon_membership(control);
            if let Some(session) = waiting {
                match &left {
                    Ok(()) => answer(session, ToWorker::Done),
                    Err(e) => refuse(session, &e.to_string()),
                }
            }
            left
        }
        Ok(End::Failed(reason)) | Err(reason) => {
            failed(control, &reason);
            if let Some(session) = waiting {
                answer(session, ToWorker::Failed);
            }
            rest(control)
        }
    }
}

fn failed(control: &Control, reason: &str) {
    if control.state.load(Ordering::SeqCst) == GroupState::Failed as u32 {
        return; // The loop has said so.
    }
    control.failure.set(reason);
    host::announce(GroupState::Failed);
    elog::log(
        sys::WARNING,
        &format!("this server takes no part in its replication group: {reason}"),
    );
}

/// Whether another process of this server is at work for a life of the member.
pub fn is_busy() -> bool {
    shmem::shared().slots().iter().any(|s| {
        s.role.load(Ordering::SeqCst) == ROLE_HELPER
            || s.phase.load(Ordering::SeqCst) != phase::OPEN
    })
}

/// Waits until no other process of this server is at work for an earlier life.
fn quiesce() -> Result<()> {
    let shared = shmem::shared();
    while is_busy() && !ending() {
        host::serve_interrupts()?;
        // Multicasts to an earlier life are refused: they were not sent.
        requests(shared.control());
        latch::sleep(
            Some(LOOK_AROUND),
            sys::WAIT_EVENT_REPLICATION_COORDINATOR_MAIN,
        );
    }
    if !ending() {
        requests(shared.control());
        // What an earlier coordinator sent to helpers that did not come to take it.
        shared.pool().clear(Class::Apply);
    }
    Ok(())
}

fn begin_and_run(
    control: &Control,
    recovered: Gid,
    waiting: &mut Option<SlotNo>,
    interrupted: &mut Option<PgError>,
) -> std::result::Result<End, String> {
    let site = site(false)?;
    let group = GroupId(control.group_id.load(Ordering::Relaxed));
    let identity = site.identity().map_err(|e| e.to_string())?;
    let identity = identity.filter(|i| i.member.0 != 0);
    if identity.is_none() {
        host::announce(GroupState::Joining);
        let Some(()) = join_group(control, &site, group, recovered)? else {
            return Ok(End::Stopped);
        };
        prepared::copied();
    } else if identity.is_some_and(|i| i.group != group) {
        return Err(format!(
            "folder \"{DIR}\" belongs to another group than file \"{}\"",
            group_file::NAME
        ));
    }
    let Started {
        parts,
        identity,
        no_uring,
    } = start::restart(&site, recovered).map_err(|e| e.to_string())?;
    if let Some(why) = no_uring {
        elog::log(
            sys::LOG,
            &format!("replication group: using poll, because io_uring is not available: {why}"),
        );
    }
    control
        .member
        .store(identity.member.0.into(), Ordering::SeqCst);
    control
        .incarnation
        .store(identity.incarnation.0, Ordering::SeqCst);
    host::announce(parts.core.state());
    if !configured()?.listen.is_loopback() {
        elog::log(
            sys::WARNING,
            "traffic between the members of the replication group is authenticated but not encrypted",
        );
    }
    let host = PgHost::new(recovered, guc::helpers(), waiting.take());
    let mut main_loop = Loop::new(host, parts)
        .map_err(|e| format!("could not start the coordinator's loop: {e}"))?;
    let end = main_loop.run();
    *waiting = main_loop.host().take_command();
    *interrupted = main_loop.host().take_interrupted();
    match main_loop.host().take_broken() {
        Some(reason) => Err(reason),
        None => Ok(end),
    }
}

/// A copy becomes a member. `None`: the process is to end.
fn join_group(
    control: &Control,
    site: &Site,
    group: GroupId,
    recovered: Gid,
) -> std::result::Result<Option<()>, String> {
    let options = configured()?;
    let seeds: Vec<String> = options.seeds.iter().map(ToString::to_string).collect();
    if seeds.is_empty() {
        return Err(
            "this copy has not joined its group, and \"replication_gcs\" has no seeds to ask"
                .into(),
        );
    }
    let mut broken = None;
    let mut last = String::new();
    let joined = join::join(site, &seeds, group, recovered, &mut |news| {
        if let Some(problem) = news.filter(|p| *p != last) {
            elog::log(
                sys::LOG,
                &format!("replication group: could not join yet: {problem}"),
            );
            problem.clone_into(&mut last);
        }
        requests(control);
        if let Err(e) = host::serve_interrupts() {
            broken = Some(e.to_string());
        }
        broken.is_none() && !ending() && control.database.load(Ordering::SeqCst) != 0
    });
    match joined {
        Ok(member) => {
            elog::log(
                sys::LOG,
                &format!("joined the replication group as member {member}"),
            );
            Ok(Some(()))
        }
        Err(join::JoinError::Stopped) => broken.map_or(Ok(None), Err),
        Err(e) => Err(e.to_string()),
    }
}

/// This server belongs to no group any more; its database is an ordinary one.
fn abandon_membership(control: &Control) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| {
        PgError::new(
            "58030",
            format!("could not remove what belonged to the group: {e}"),
        )
    };
    shmem::with_state_lock(|| {
        group_file::remove(Path::new(shmem::DATA_DIR)).map_err(|e| failed(&e))?;
        control.database.store(0, Ordering::SeqCst);
        Ok::<_, PgError>(())
    })?;
    host::announce(GroupState::Off);
    // Those that it still has are its own now.
    subscription::wake_launcher();
    control.members.set(&[]);
    control.open_transactions.set(&[]);
    control.group_id.store(0, Ordering::Relaxed);
    let site = site(false).map_err(|e| failed(&e))?;
    start::forget(&site).map_err(|e| failed(&e))
}

fn configured() -> std::result::Result<Options, String> {
    let value = guc::gcs().unwrap_or_default();
    options::parse(&value)
        .map_err(|e| e.to_string())?
        .ok_or_else(|| "\"replication_gcs\" is not set".to_owned())
}

/// What this server says about itself to its group.
fn site(make_secret: bool) -> std::result::Result<Site, String> {
    let options = configured()?;
    if !options.listen.is_loopback() && !guc::insecure_network() {
        return Err(format!(
            "address {} is not on the loopback interface, and traffic is not encrypted: set \"replication_insecure_network\" if the network is safe",
            options.listen
        ));
    }
    let address = options.listen.to_string();
    let listen =
        resolve::first(&address).map_err(|e| format!("could not find address {address}: {e}"))?;
    let file = PathBuf::from(&options.secret);
    let unusable = |e: secret::SecretError| {
        format!(
            "could not use the group's secret in file \"{}\": {e}",
            file.display()
        )
    };
    if make_secret && !file.exists() {
        secret::create(&file).map_err(unusable)?;
    }
    Ok(Site {
        dir: Path::new(shmem::DATA_DIR).join(DIR),
        listen,
        address,
        secret: secret::load(&file).map_err(unusable)?,
        fingerprint: kind::fingerprint(
            super::patchset::PATCHSET,
            &collation_version('c', c"en_US.UTF-8")?,
            &collation_version('i', c"und")?,
        ),
        log_keep_bytes: guc::log_keep_bytes(),
        helpers: guc::helpers(),
        backend: Choice::from_env(),
        pace: Pace::default(),
    })
}

/// Version of a library of collations: a locale's order may change with it, and so the equality of
/// keys under non-deterministic ones and what partial and expression indexes hold. Not that of one
/// locale: a database has many.
fn collation_version(provider: char, locale: &CStr) -> std::result::Result<String, String> {
    // SAFETY: a C string that outlives the call.
    let version = guard::call(ptr::null(), |out, e| unsafe {
        pgr_shim_collation_version(provider as c_char, locale.as_ptr(), out, e)
    });
    let version = version.map_err(|e| format!("could not learn the version of collations: {e}"))?;
    if version.is_null() {
        return Ok("none".into());
    }
    // SAFETY: a C string in the current memory context.
    Ok(unsafe { CStr::from_ptr(version) }
        .to_string_lossy()
        .into_owned())
}
