//! The server round the coordinator's loop: queues of the other processes, pool, helpers, views.

use super::guard::{self, PgError, Result};
use super::helpers::Helpers;
use super::outbox::{Outbox, What, Work};
use super::positions::Positions;
use super::{elog, guc, latch, shmem, starting, subscription, sys};
use crate::coordinator::io::peers::Notice;
use crate::coordinator::message::ENVELOPE_BYTES;
use crate::coordinator::run::Host;
use crate::coordinator::{Early, Event, Outcome, Stats};
use crate::gcs::View;
use crate::group_state::GroupState;
use crate::ids::{Gid, MemberId};
use crate::imsg::members::{MemberRow, OpenRow};
use crate::imsg::message::{ToCoordinator, ToHelper, ToWorker};
use crate::imsg::queue::Words;
use crate::imsg::wanted::Detail;
use crate::imsg::{Chain, Control, Shared, SlotNo, wake};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_postmaster_lives() -> bool;
    fn pgr_shim_exit(code: std::ffi::c_int) -> !;
    fn pgr_shim_shutdown_requested() -> bool;
}

/// See the module's text. One for each life of the member.
pub struct PgHost {
    shared: Shared,
    helpers: Helpers,
    outbox: Outbox,
    positions: Positions,
    members: Vec<MemberRow>,
    open_transactions: Vec<OpenRow>,
    leads: bool,
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
        shared.control().open_transactions.set(&[]);
        PgHost {
            shared,
            helpers,
            outbox: Outbox::new(shared, shmem::my_slot()),
            positions: Positions::new(recovered),
            members: Vec::new(),
            open_transactions: Vec::new(),
            leads: false,
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

    fn answer(&mut self, to: SlotNo, message: ToWorker) {
        self.outbox.answer(to, message);
    }

    fn queue(&mut self, work: Work) {
        if let Err(reason) = self.outbox.queue(work) {
            self.broken = Some(reason);
        }
        self.send_work();
    }

    fn send_work(&mut self) {
        if let Err(reason) = self.outbox.send_work(&self.helpers) {
            self.broken = Some(reason);
        }
    }

    fn push_progress(&mut self, out: &mut VecDeque<Event>) {
        out.push_back(self.positions.report(self.shared));
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
                if let Some(message) = self.take_message(changeset) {
                    out.push_back(Event::Multicast {
                        worker: from.0,
                        ticket,
                        message,
                    });
                }
            }
            ToCoordinator::Fragment { ticket, fragment } => {
                if let Some(message) = self.take_message(fragment) {
                    // Who applies it early waits for all that its rows may be based on.
                    self.push_progress(out);
                    out.push_back(Event::Fragment {
                        worker: from.0,
                        ticket,
                        message,
                    });
                }
            }
            ToCoordinator::DropFragments { ticket } => out.push_back(Event::DropFragments {
                worker: from.0,
                ticket,
            }),
            ToCoordinator::FragmentWanted { gid, nth } => {
                if let Some(helper) = self.helpers.number(from) {
                    out.push_back(Event::FragmentWanted { helper, gid, nth });
                }
            }
            ToCoordinator::EarlyWanted { first, nth } => {
                if let Some(helper) = self.helpers.number(from) {
                    out.push_back(Event::EarlyWanted { helper, first, nth });
                }
            }
            ToCoordinator::EarlyWaits { first } => {
                if let Some(helper) = self.helpers.number(from) {
                    out.push_back(Event::EarlyWaits { helper, first });
                }
            }
            ToCoordinator::EarlyEnded { first } => {
                if let Some(helper) = self.helpers.number(from) {
                    out.push_back(Event::EarlyEnded { helper, first });
                }
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
            ToCoordinator::AwaitOrder { ticket } => {
                out.push_back(Event::AwaitOrder {
                    worker: from.0,
                    ticket,
                });
            }
            ToCoordinator::Reserve { ticket, relations } => {
                out.push_back(Event::Reserve {
                    worker: from.0,
                    ticket,
                    relations,
                });
            }
            ToCoordinator::Release => out.push_back(Event::Release { worker: from.0 }),
            ToCoordinator::AwaitFree { ticket, relation } => {
                out.push_back(Event::AwaitFree {
                    worker: from.0,
                    ticket,
                    relation,
                });
            }
            ToCoordinator::AwaitShown { ticket, gid } => {
                self.push_progress(out);
                out.push_back(Event::AwaitShown {
                    worker: from.0,
                    ticket,
                    gid,
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
                self.answer(from, ToWorker::Failed);
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

    /// The bytes of a worker's chain, behind room for an envelope; `None` if its time is over, and
    /// so its worker's wait.
    fn take_message(&self, chain: Chain) -> Option<Vec<u8>> {
        let pool = self.shared.pool();
        let chain = pool.accept(chain, shmem::my_slot())?;
        let mut message = Vec::with_capacity(ENVELOPE_BYTES + chain.len as usize);
        message.resize(ENVELOPE_BYTES, 0);
        for piece in pool.pieces(chain) {
            message.extend_from_slice(piece);
        }
        pool.free(chain);
        Some(message)
    }

    fn show_members(&mut self, rows: Vec<MemberRow>) {
        if rows != self.members {
            self.control().members.set(&rows);
            self.members = rows;
        }
    }

    fn helper_gone(&mut self, helper: u32, out: &mut VecDeque<Event>) {
        self.outbox.withdraw(helper);
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

    fn prepare_to_sleep(&mut self, work_waits: bool) -> bool {
        // Helpers that are done give memory back.
        wake::prepare_sleep(self.shared, work_waits || self.outbox.has_work())
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
        self.outbox.send_answers();
        self.send_work();
        if self.positions.have_moved(self.shared) {
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
            Outcome::Pass { gid } => return self.outbox.pass(SlotNo(worker), ticket, gid),
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
            Outcome::Reached { gid } => ToWorker::Reached { ticket, gid },
            Outcome::Reserved { relation, member } => ToWorker::Reserved {
                ticket,
                relation,
                member,
            },
            Outcome::BelowFloor => ToWorker::BelowFloor { ticket },
            Outcome::Fragment { kept } => ToWorker::Fragment { ticket, kept },
            Outcome::FragmentsLost => ToWorker::FragmentsLost { ticket },
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
        self.answer(SlotNo(worker), message);
    }

    fn apply(
        &mut self,
        helper: u32,
        gid: Gid,
        depends_on: Gid,
        origin: MemberId,
        changeset: Bytes,
    ) {
        self.queue(Work {
            helper,
            what: What::Changeset {
                gid,
                depends_on,
                origin,
            },
            bytes: changeset,
        });
    }

    fn fragment(&mut self, helper: u32, gid: Gid, nth: u32, fragment: Bytes) {
        self.queue(Work {
            helper,
            what: What::Fragment { gid, nth },
            bytes: fragment,
        });
    }

    fn early(&mut self, helper: u32, first: u64, what: Early) {
        let (what, bytes) = match what {
            Early::Begin { origin } => (
                What::Word(ToHelper::EarlyBegin { first, origin }),
                Bytes::new(),
            ),
            Early::Fragment {
                nth,
                counted,
                base,
                bytes: fragment,
            } => {
                let bytes = counted.bytes;
                (
                    What::EarlyFragment {
                        first,
                        nth,
                        bytes,
                        base,
                    },
                    fragment,
                )
            }
            Early::End => (What::Word(ToHelper::EarlyEnd { first }), Bytes::new()),
        };
        self.queue(Work {
            helper,
            what,
            bytes,
        });
    }

    fn searched(&mut self, relation: u32, detail: Detail) {
        let control = self.control();
        let now = control.visible.passed();
        control.wanted.want(relation, detail, now);
    }

    fn state(&mut self, state: GroupState) {
        // Before a database that begins to be replicated: its workers go on.
        let begins = subscription::run(self.leads && state == GroupState::Online);
        if state == GroupState::Online {
            let control = self.control();
            if control.database.load(Ordering::SeqCst) == 0 {
                control
                    .database
                    .store(starting::database(), Ordering::SeqCst);
            }
            self.helpers.begin();
            announce(state);
            starting::end();
            if let Some(session) = self.command.take() {
                self.answer(session, ToWorker::Done);
            }
        } else {
            announce(state);
        }
        // They would not be let in before.
        if begins {
            subscription::wake_launcher();
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

    fn leads(&mut self, leads: bool) {
        self.leads = leads;
        let open = self.control().state.load(Ordering::SeqCst) == GroupState::Online as u32;
        if subscription::run(leads && open) {
            subscription::wake_launcher();
        }
    }

    fn failed(&mut self, reason: &str) {
        subscription::run(false);
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
        self.positions.tick(self.shared);
        let control = self.control();
        let me = control.member.load(Ordering::Relaxed);
        control
            .ordered_gid
            .store(stats.last_ordered.0, Ordering::Relaxed);
        control
            .flushed_gid
            .store(self.positions.flushed().0, Ordering::Relaxed);
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
        let open: Vec<OpenRow> = (stats.open_transactions.iter())
            .map(|t| OpenRow {
                member: t.member,
                fragments: t.fragments,
                bytes: t.bytes,
            })
            .collect();
        if open != self.open_transactions {
            control.open_transactions.set(&open);
            self.open_transactions = open;
        }
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
                    flushed: if is_self {
                        self.positions.flushed()
                    } else {
                        m.flushed
                    },
                    address: m.info.address.clone(),
                }
            })
            .collect();
        self.show_members(rows);
    }
}

/// Moves the state that all processes of the server go by, and wakes those who may wait on it.
pub fn announce(state: GroupState) {
    let control = shmem::shared().control();
    control.state.store(state as u32, Ordering::SeqCst);
    tell_all();
}

/// Makes all processes of the server look at their membership anew.
pub fn tell_all() {
    let shared = shmem::shared();
    shared.control().epoch.fetch_add(1, Ordering::SeqCst);
    for (i, slot) in shared.slots().iter().enumerate() {
        if slot.role.load(Ordering::SeqCst) != 0 {
            latch::wake(SlotNo(i as u32));
        }
    }
}

/// What the server wants of this process: barriers, a new configuration.
///
/// Does not return when the postmaster is dead: as long as this process lives, no other postmaster
/// can start on the data directory.
pub fn serve_interrupts() -> Result<()> {
    // SAFETY: asks for the state of the parent process.
    if !unsafe { pgr_shim_postmaster_lives() } {
        // SAFETY: the process ends here; what Rust owns ends with it.
        unsafe { pgr_shim_exit(1) }
    }
    guard::check_interrupts()?;
    guc::reload_if_asked()
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
