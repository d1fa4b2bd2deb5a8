//! The server round the coordinator's loop: queues of the other processes, pool, helpers, views.

use super::guard::{self, PgError, Result};
use super::{elog, helpers::Helpers, latch, shmem, sys};
use crate::changeset::encode::Sink;
use crate::coordinator::io::peers::Notice;
use crate::coordinator::message::ENVELOPE_BYTES;
use crate::coordinator::run::Host;
use crate::coordinator::{Event, Outcome, Stats};
use crate::gcs::View;
use crate::group_state::GroupState;
use crate::ids::{Gid, MemberId};
use crate::imsg::members::MemberRow;
use crate::imsg::message::{ToCoordinator, ToHelper, ToWorker};
use crate::imsg::queue::Words;
use crate::imsg::{Chain, ChainWriter, Class, Control, Shared, SlotNo, since, wake};
use crate::limits::POOL_BLOCK_BYTES;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_wal_flushed() -> u64;
    fn pgr_shim_take_reload() -> bool;
    fn pgr_shim_reload(edata: *mut *mut sys::ErrorData) -> std::ffi::c_int;
    fn pgr_shim_shutdown_requested() -> bool;
}

/// A changeset on its way to a helper that has found no memory yet.
struct Waiting {
    helper: u32,
    gid: Gid,
    depends_on: Gid,
    origin: MemberId,
    changeset: Bytes,
}

/// See the module's text. One for each life of the member.
pub struct PgHost {
    shared: Shared,
    me: SlotNo,
    helpers: Helpers,
    /// Answers for slots whose queue was full.
    answers: VecDeque<(SlotNo, Words)>,
    /// Changesets for helpers while the pool is full, in order.
    waiting: VecDeque<Waiting>,
    /// Flushed once WAL is flushed up to the second.
    flushing: Option<(Gid, u64)>,
    flushed: Gid,
    /// Positions as the core knows them: last committed, flushed, low.
    reported: (Gid, Gid, Gid),
    members: Vec<MemberRow>,
    /// Slot of the session that runs START or STOP REPLICATION and waits.
    command: Option<SlotNo>,
    stopping: bool,
    /// Why the member can't go on, if that was found out here.
    broken: Option<String>,
    /// Why this process can't go on; the member can, in the next one.
    interrupted: Option<PgError>,
}

impl PgHost {
    /// A host for a member whose data has every GID up to `recovered`, in flushed WAL; `command`
    /// is who waits for it to be online.
    #[must_use]
    pub fn new(recovered: Gid, helpers: u32, command: Option<SlotNo>) -> PgHost {
        let shared = shmem::shared();
        let mut helpers = Helpers::new(helpers);
        if shared.control().database.load(Ordering::SeqCst) != 0 {
            helpers.begin();
        }
        PgHost {
            shared,
            me: shmem::my_slot(),
            helpers,
            answers: VecDeque::new(),
            waiting: VecDeque::new(),
            flushing: None,
            flushed: recovered,
            reported: (recovered, Gid::ZERO, recovered),
            members: Vec::new(),
            command,
            stopping: false,
            broken: None,
            interrupted: None,
        }
    }

    /// Who waits for START or STOP and got no answer yet.
    pub fn take_command(&mut self) -> Option<SlotNo> {
        self.command.take()
    }

    /// Why the member can't go on, if that was found out here.
    pub fn take_broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    /// The error that ended the loop, if one did.
    pub fn take_interrupted(&mut self) -> Option<PgError> {
        self.interrupted.take()
    }

    fn control(&self) -> &'static Control {
        self.shared.control()
    }

    fn answer(&mut self, to: SlotNo, words: Words) {
        self.answers.push_back((to, words));
        self.send_answers();
    }

    fn send_answers(&mut self) {
        for _ in 0..self.answers.len() {
            let Some((to, words)) = self.answers.pop_front() else {
                break;
            };
            if self.shared.slot(to).replies_down.push(words).is_err() {
                self.answers.push_back((to, words));
            }
            latch::wake(to);
        }
    }

    /// Hands changesets over as long as there is memory.
    fn send_work(&mut self) {
        while let Some(next) = self.waiting.front() {
            let Some(slot) = self.helpers.slot(next.helper) else {
                // It is gone; the core learns so, and gives the work to another.
                self.waiting.pop_front();
                continue;
            };
            let Some(chain) = self.place(&next.changeset) else {
                return;
            };
            let (gid, depends_on, origin) = (next.gid, next.depends_on, next.origin);
            self.shared.pool().hand_over(chain, slot);
            let work = ToHelper::Apply {
                gid,
                depends_on,
                origin,
                changeset: chain,
            };
            if self
                .shared
                .slot(slot)
                .requests_down
                .push(work.into())
                .is_err()
            {
                // A helper has one thing to do at a time.
                self.shared.pool().free(chain);
                self.broken = Some("a helper's queue is full".into());
                return;
            }
            latch::wake(slot);
            self.waiting.pop_front();
        }
    }

    fn place(&self, changeset: &[u8]) -> Option<Chain> {
        let mut writer = ChainWriter::new(self.shared.pool(), Class::Apply, self.me);
        writer.append(changeset).ok()?;
        Some(writer.finish())
    }

    fn progress(&mut self) -> (Gid, Gid, Gid) {
        // What is committed first: see `since::low`.
        let low = since::low(self.control(), self.shared.slots().iter());
        let committed = self.control().visible.passed();
        (committed, self.flushed_gid(), low)
    }

    /// Every GID up to the answer has its commit record in flushed WAL.
    fn flushed_gid(&mut self) -> Gid {
        // SAFETY: reads the state of the server.
        let wal = unsafe { pgr_shim_wal_flushed() };
        if let Some((gid, lsn)) = self.flushing.filter(|(_, lsn)| *lsn <= wal) {
            self.flushed = gid;
            self.flushing = None;
            let _ = lsn;
        }
        if self.flushing.is_none() {
            // The GID first: the position, read later, covers it.
            let gid = self.control().logged.passed();
            let lsn = shmem::server().logged_lsn.load(Ordering::Relaxed);
            if gid > self.flushed {
                self.flushing = Some((gid, lsn));
            }
        }
        self.flushed
    }

    fn push_progress(&mut self, out: &mut VecDeque<Event>) {
        let now = self.progress();
        self.reported = now;
        let (last_committed, flushed, low) = now;
        out.push_back(Event::Progress {
            last_committed,
            flushed,
            low,
        });
    }

    fn drain(&mut self, from: SlotNo, out: &mut VecDeque<Event>) {
        let slot = self.shared.slot(from);
        // Replies first: a helper's result must not wait behind its next request.
        while let Some(words) = slot.replies_up.pop() {
            self.take(from, words, out);
        }
        while let Some(words) = slot.requests_up.pop() {
            self.take(from, words, out);
        }
    }

    fn take(&mut self, from: SlotNo, words: Words, out: &mut VecDeque<Event>) {
        let Ok(message) = ToCoordinator::try_from(words) else {
            self.broken = Some(format!("process slot {} sent damaged words", from.0));
            return;
        };
        match message {
            ToCoordinator::Multicast { ticket, changeset } => {
                let pool = self.shared.pool();
                let mut message = Vec::with_capacity(ENVELOPE_BYTES + changeset.len as usize);
                message.resize(ENVELOPE_BYTES, 0);
                for piece in pool.pieces(changeset) {
                    message.extend_from_slice(piece);
                }
                pool.free(changeset);
                out.push_back(Event::Multicast {
                    worker: from.0,
                    ticket,
                    message,
                });
            }
            ToCoordinator::Abandon { ticket } => {
                self.push_progress(out);
                // Whoever abandons has rolled back, and with it all that only its session had.
                out.push_back(Event::Abandon {
                    worker: from.0,
                    ticket,
                    gone: true,
                });
            }
            ToCoordinator::HelperReady { helper } => {
                if self.helpers.ready(helper, from) {
                    out.push_back(Event::HelperReady { helper });
                }
            }
            ToCoordinator::Applied { gid } => {
                if let Some(helper) = self.helpers.number(from) {
                    self.push_progress(out);
                    out.push_back(Event::HelperApplied { helper, gid });
                }
            }
            ToCoordinator::HelperFailed { gid, sqlstate } => {
                if let Some(helper) = self.helpers.number(from) {
                    let code = unpack_sqlstate(sqlstate);
                    let fatal = is_fatal(&code);
                    let reason = format!("SQLSTATE {code}, see this server's log");
                    out.push_back(Event::HelperFailed {
                        helper,
                        gid,
                        fatal,
                        reason,
                    });
                }
            }
            ToCoordinator::HelperGone => {
                if let Some(helper) = self.helpers.number(from) {
                    self.helper_gone(helper, out);
                }
            }
            ToCoordinator::StartGroup => {
                self.control()
                    .failure
                    .set("this server is a member of a group already");
                self.answer(from, ToWorker::Failed.into());
            }
            ToCoordinator::StopGroup => {
                self.command = Some(from);
                if !self.stopping {
                    self.stopping = true;
                    out.push_back(Event::StopGroup);
                }
            }
        }
    }

    fn show_members(&mut self, rows: Vec<MemberRow>) {
        if rows != self.members {
            self.control().members.set(&rows);
            self.members = rows;
        }
    }

    fn helper_gone(&mut self, helper: u32, out: &mut VecDeque<Event>) {
        self.waiting.retain(|w| w.helper != helper);
        if self.helpers.gone(helper) {
            self.push_progress(out);
            out.push_back(Event::HelperGone { helper });
        }
    }
}

impl Host for PgHost {
    fn wake_fd(&self) -> io::Result<OwnedFd> {
        let fd = self.control().wake_fd.load(Ordering::Relaxed).cast_signed();
        assert!(fd >= 0, "the postmaster made an eventfd");
        // SAFETY: the postmaster opened it and no process closes it.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
    }

    fn woken(&mut self) {
        let fd = self.control().wake_fd.load(Ordering::Relaxed).cast_signed();
        // SAFETY: as in `wake_fd`.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // It is not blocking; nothing to read is as good.
        let _ = nix::unistd::read(fd, &mut [0; 8]);
    }

    fn prepare_to_sleep(&mut self) -> bool {
        wake::prepare_sleep(self.shared)
    }

    fn awake(&mut self) {
        wake::end_sleep(self.control());
    }

    fn collect(&mut self, out: &mut VecDeque<Event>) {
        let mut spoke = Vec::new();
        wake::take_dirty(self.shared, |slot| spoke.push(slot));
        for slot in spoke {
            self.drain(slot, out);
        }
        for helper in self.helpers.take_ended() {
            self.helper_gone(helper, out);
        }
        self.send_answers();
        self.send_work();
        if self.progress() != self.reported {
            self.push_progress(out);
        }
    }

    fn go_on(&mut self) -> bool {
        // SAFETY: a flag of this process.
        if unsafe { pgr_shim_shutdown_requested() } || self.broken.is_some() {
            return false;
        }
        if let Err(e) = serve_interrupts() {
            self.interrupted = Some(e);
            return false;
        }
        true
    }

    fn verdict(&mut self, worker: u32, ticket: u64, outcome: Outcome) {
        let message = match outcome {
            Outcome::Pass { gid } => ToWorker::Pass { ticket, gid },
            Outcome::Conflict {
                relation,
                gid,
                origin,
            } => ToWorker::Conflict {
                ticket,
                relation,
                gid,
                origin,
            },
            Outcome::BelowFloor => ToWorker::BelowFloor { ticket },
            Outcome::NotPrimary => ToWorker::NotPrimary { ticket },
            Outcome::Busy => ToWorker::Busy { ticket },
            Outcome::TooBig | Outcome::Malformed => {
                elog::log(
                    sys::WARNING,
                    &format!("a changeset was refused before it was sent: {outcome:?}"),
                );
                ToWorker::NotPrimary { ticket }
            }
            // Nobody waits for these: the worker has rolled back, looks at the turn, or learns
            // from the group's state that there will be no answer.
            Outcome::Withdrawn | Outcome::Replayed { .. } | Outcome::Unknown => return,
        };
        self.answer(SlotNo(worker), message.into());
    }

    fn apply(
        &mut self,
        helper: u32,
        gid: Gid,
        depends_on: Gid,
        origin: MemberId,
        changeset: Bytes,
    ) {
        let blocks = changeset.len().div_ceil(POOL_BLOCK_BYTES) + 1;
        if blocks > self.shared.pool().total_blocks(Class::Apply) as usize {
            let bytes = changeset.len();
            self.broken = Some(format!(
                "\"replication_imessage_buffers\" is too small for a changeset of {bytes} bytes that another member made"
            ));
            return;
        }
        self.waiting.push_back(Waiting {
            helper,
            gid,
            depends_on,
            origin,
            changeset,
        });
        self.send_work();
    }

    fn state(&mut self, state: GroupState) {
        if state == GroupState::Online {
            self.helpers.begin();
            let control = self.control();
            if control.database.load(Ordering::SeqCst) == 0 {
                // The group was just formed: from here on transactions are captured.
                let database = shmem::server().start_database.load(Ordering::SeqCst);
                control.database.store(database, Ordering::SeqCst);
            }
            announce(state);
            if let Some(session) = self.command.take() {
                self.answer(session, ToWorker::Done.into());
            }
        } else {
            announce(state);
        }
        elog::log(
            sys::LOG,
            &format!(
                "replication group \"{}\": {}",
                self.control().group_name.get(),
                state.name()
            ),
        );
    }

    fn view(&mut self, view: &View) {
        let me = self.control().member.load(Ordering::Relaxed);
        // Until the next tick says more.
        let known = |id| self.members.iter().find(|m| m.id == id).cloned();
        let rows: Vec<MemberRow> = view
            .members
            .iter()
            .map(|m| MemberRow {
                id: m.id,
                voter: m.voter,
                connected: known(m.id).map_or(u32::from(m.id.0) == me, |k| k.connected),
                last_committed: known(m.id).map_or(Gid::ZERO, |k| k.last_committed),
                flushed: known(m.id).map_or(Gid::ZERO, |k| k.flushed),
                address: m.address.clone(),
            })
            .collect();
        self.show_members(rows);
        let members: Vec<String> = view
            .members
            .iter()
            .map(|m| {
                format!(
                    "{} at {}{}",
                    m.id,
                    m.address,
                    if m.voter { "" } else { " (learner)" }
                )
            })
            .collect();
        elog::log(
            sys::LOG,
            &format!("members of the replication group: {}", members.join(", ")),
        );
    }

    fn failed(&mut self, reason: &str) {
        self.control().failure.set(reason);
        announce(GroupState::Failed);
        elog::log(
            sys::WARNING,
            &format!("this server takes no further part in its replication group: {reason}"),
        );
    }

    fn notice(&mut self, notice: &Notice) {
        let text = match notice {
            Notice::Up(m) => format!("connected with member {m}"),
            Notice::Down(m, why) => format!("lost the connection with member {m}: {why}"),
            Notice::Refused(why) => format!("refused a connection: {why}"),
        };
        elog::log(sys::LOG, &format!("replication group: {text}"));
    }

    fn tick(&mut self, stats: &Stats, connected: &dyn Fn(MemberId) -> bool) {
        self.helpers.tick();
        let control = self.control();
        let me = control.member.load(Ordering::Relaxed);
        control
            .ordered_gid
            .store(stats.last_ordered.0, Ordering::Relaxed);
        control.flushed_gid.store(self.flushed.0, Ordering::Relaxed);
        control
            .apply_queue
            .store(count(stats.apply_queue), Ordering::Relaxed);
        control
            .in_flight
            .store(count(stats.in_flight), Ordering::Relaxed);
        control
            .counters
            .replays
            .store(stats.replays, Ordering::Relaxed);
        let rows: Vec<MemberRow> = stats
            .members
            .iter()
            .map(|m| {
                let is_self = u32::from(m.info.id.0) == me;
                MemberRow {
                    id: m.info.id,
                    voter: m.info.voter,
                    connected: is_self || connected(m.info.id),
                    // Its own it knows better than the last report said.
                    last_committed: if is_self {
                        control.visible.passed()
                    } else {
                        m.last_committed
                    },
                    flushed: if is_self { self.flushed } else { m.flushed },
                    address: m.info.address.clone(),
                }
            })
            .collect();
        self.show_members(rows);
    }
}

/// Moves the state that all processes of the server go by, and wakes those who may wait on it.
pub fn announce(state: GroupState) {
    let shared = shmem::shared();
    let control = shared.control();
    control.state.store(state as u32, Ordering::SeqCst);
    control.epoch.fetch_add(1, Ordering::SeqCst);
    for (i, slot) in shared.slots().iter().enumerate() {
        if slot.role.load(Ordering::SeqCst) != 0 {
            latch::wake(SlotNo(i as u32));
        }
    }
}

/// What the server wants of this process: barriers, a new configuration.
pub fn serve_interrupts() -> Result<()> {
    guard::check_interrupts()?;
    // SAFETY: a flag of this process.
    if unsafe { pgr_shim_take_reload() } {
        // SAFETY: outside of transactions, as every auxiliary loop does it.
        guard::call0(|e| unsafe { pgr_shim_reload(e) })?;
    }
    Ok(())
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// An SQLSTATE of `MAKE_SQLSTATE`.
fn unpack_sqlstate(mut packed: u32) -> String {
    (0..5)
        .map(|_| {
            let c = char::from((packed & 0x3f) as u8 + b'0');
            packed >>= 6;
            c
        })
        .collect()
}

/// Damaged data does not get better by another try; everything else may.
fn is_fatal(sqlstate: &str) -> bool {
    matches!(sqlstate, "XX001" | "XX002")
}
