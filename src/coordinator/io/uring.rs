//! The io_uring backend: everything in one ring, one system call a turn of the loop.
//!
//! # Who owns memory while the kernel uses it
//!
//! Every operation has a [`Slot`] in [`Uring::slots`] from before its entry is pushed until all of
//! its completions have arrived. The slot owns the descriptor (shared), the buffers, and what
//! describes them to the kernel (address, io vectors, message header), each in memory of its own on
//! the heap, so that it stays where it is when the table of slots grows. Nothing takes a slot out
//! earlier: [`Backend::cancel`] only asks the kernel, and the ring's end waits for all slots, or
//! leaks them.

use super::backend::{Backend, Completion, Flush, Op, Outcome, Token};
use super::gather::{Gather, PIECES_MAX};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// Entries of the submission queue; an operation that finds it full submits it first.
const ENTRIES: u32 = 256;
/// A completion that nobody waits for (of a cancellation).
const NOBODY: u64 = u64::MAX;
/// Low bit of the user data: the completion is that of the linked sync.
const SYNC: u64 = 1;
/// At the end, turns of [`LAST_WAIT`] that the kernel gets to give back what it holds.
const LAST_WAITS: u32 = 50;
const LAST_WAIT: Duration = Duration::from_millis(100);

enum Work {
    Accept(Rc<TcpListener>),
    Connect {
        socket: Rc<TcpStream>,
        address: Box<SockaddrStorage>,
    },
    Recv {
        socket: Rc<TcpStream>,
        buf: Vec<u8>,
    },
    Send {
        socket: Rc<TcpStream>,
        data: Gather,
        iov: Vec<libc::iovec>,
        header: Box<libc::msghdr>,
    },
    Write(Write),
    Readable(Rc<OwnedFd>),
}

struct Write {
    file: Rc<File>,
    offset: u64,
    data: Gather,
    iov: Vec<libc::iovec>,
    flush: Flush,
    /// Result of the write, then of the sync, of the present round.
    written: Option<i32>,
    synced: Option<i32>,
}

struct Slot {
    token: Token,
    work: Work,
    /// Completions that are still to come; the slot stays until there is none.
    pending: u32,
}

/// See the module's text.
pub struct Uring {
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    done: Vec<Completion>,
}

impl Uring {
    /// # Errors
    /// The kernel or the container has no io_uring, or one that lacks what is used here.
    pub fn new() -> io::Result<Uring> {
        let ring = build()?;
        check(&ring)?;
        Ok(Uring {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            done: Vec::new(),
        })
    }
}

impl Backend for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn nonblocking_sockets(&self) -> bool {
        // The kernel would hand EAGAIN through instead of waiting by itself.
        false
    }

    fn submit(&mut self, token: Token, op: Op) {
        let work = match op {
            Op::Accept { listener } => Work::Accept(listener),
            Op::Connect { socket, address } => Work::Connect {
                socket,
                address: Box::new(SockaddrStorage::from(address)),
            },
            Op::Recv { socket, buf } => Work::Recv { socket, buf },
            Op::Send { socket, data } => {
                let (data, iov) = (Gather::new(data), Vec::new());
                Work::Send {
                    socket,
                    data,
                    iov,
                    header: Box::new(empty_header()),
                }
            }
            Op::Write {
                file,
                offset,
                data,
                flush,
            } => {
                let (data, iov) = (Gather::new(data), Vec::new());
                Work::Write(Write {
                    file,
                    offset,
                    data,
                    iov,
                    flush,
                    written: None,
                    synced: None,
                })
            }
            Op::Readable { fd } => Work::Readable(fd),
        };
        let slot = Slot {
            token,
            work,
            pending: 0,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = Some(slot);
                at
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        };
        self.start(at);
    }

    fn cancel(&mut self, token: Token) {
        let at = self
            .slots
            .iter()
            .position(|s| s.as_ref().is_some_and(|s| s.token == token));
        if let Some(at) = at {
            self.push(&[cancel_entry(at)]);
        }
    }

    fn wait(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        self.reap();
        let timeout = if self.done.is_empty() {
            timeout
        } else {
            Duration::ZERO
        };
        let time = Timespec::from(timeout);
        match self
            .ring
            .submitter()
            .submit_with_args(1, &SubmitArgs::new().timespec(&time))
        {
            Ok(_) => {}
            Err(e) if transient(&e) => {}
            Err(e) => return Err(e),
        }
        self.reap();
        out.append(&mut self.done);
        Ok(())
    }
}

impl Uring {
    /// Hands what is left of a slot's work to the kernel.
    fn start(&mut self, at: usize) {
        let slot = self.slots[at].as_mut().expect("started work has a slot");
        assert_eq!(slot.pending, 0, "work was started twice");
        let main = (at as u64) << 1;
        let entry = match &mut slot.work {
            Work::Accept(listener) => {
                let (fd, null) = (Fd(listener.as_raw_fd()), std::ptr::null_mut());
                opcode::Accept::new(fd, null, null.cast())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Work::Connect { socket, address } => {
                opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr(), address.len())
                    .build()
            }
            Work::Recv { socket, buf } => {
                let room = u32::try_from(buf.len()).unwrap_or(u32::MAX);
                opcode::Recv::new(Fd(socket.as_raw_fd()), buf.as_mut_ptr(), room).build()
            }
            Work::Send {
                socket,
                data,
                iov,
                header,
            } => {
                describe(data, iov);
                header.msg_iov = iov.as_mut_ptr();
                header.msg_iovlen = iov.len();
                let flags = libc::MSG_NOSIGNAL.unsigned_abs();
                opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const **header)
                    .flags(flags)
                    .build()
            }
            Work::Readable(fd) => {
                opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN.unsigned_abs().into()).build()
            }
            Work::Write(write) => {
                let entries = write.entries(main);
                slot.pending = entries.len() as u32;
                self.push(&entries);
                return;
            }
        };
        slot.pending = 1;
        self.push(&[entry.user_data(main)]);
    }

    /// Queues entries that belong together (linked ones must reach the kernel in one submission).
    fn push(&mut self, entries: &[Entry]) {
        loop {
            // SAFETY: whatever an entry points to is owned by its slot (see the module's text) and
            // neither moves nor goes before its completion; cancellations point to nothing.
            if unsafe { self.ring.submission().push_multiple(entries) }.is_ok() {
                return;
            }
            // Full: let the kernel take what is there. If it won't because completions have piled
            // up, make room there.
            match self.ring.submitter().submit() {
                Ok(_) => {}
                Err(e) if transient(&e) => self.reap(),
                Err(e) => panic!("io_uring takes no more entries: {e}"),
            }
        }
    }

    /// Takes all completions that have arrived.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            if entry.user_data() != NOBODY {
                self.completed(entry.user_data(), entry.result());
            }
        }
    }

    fn completed(&mut self, user_data: u64, result: i32) {
        let at = usize::try_from(user_data >> 1).expect("our own number");
        let slot = self.slots[at].as_mut().expect("a completion has a slot");
        slot.pending -= 1;
        if let Work::Write(write) = &mut slot.work {
            let which = if user_data & SYNC == 0 {
                &mut write.written
            } else {
                &mut write.synced
            };
            *which = Some(result);
        }
        if slot.pending > 0 {
            return;
        }
        // From here on the kernel has nothing of this slot any more.
        if slot.work.goes_on(result) {
            self.start(at);
            return;
        }
        let slot = self.slots[at].take().expect("just seen");
        self.free.push(at);
        self.done.push(Completion {
            token: slot.token,
            outcome: slot.work.outcome(result),
        });
    }
}

impl Write {
    /// The write of what is left, as far as one call takes it, and linked to it the sync if that
    /// was all.
    fn entries(&mut self, main: u64) -> Vec<Entry> {
        (self.written, self.synced) = (None, None);
        let fd = Fd(self.file.as_raw_fd());
        let mut entries = Vec::with_capacity(2);
        let sync = self.flush != Flush::No && self.data.fits_one_call();
        if self.data.left() > 0 {
            describe(&self.data, &mut self.iov);
            let count = u32::try_from(self.iov.len()).expect("at most PIECES_MAX");
            let write = opcode::Writev::new(fd, self.iov.as_ptr(), count)
                .offset(self.offset)
                .build();
            entries.push(write.user_data(main).flags(if sync {
                Flags::IO_LINK
            } else {
                Flags::empty()
            }));
        }
        if sync {
            let flags = match self.flush {
                Flush::Whole => FsyncFlags::empty(),
                Flush::No | Flush::Content => FsyncFlags::DATASYNC,
            };
            let sync = opcode::Fsync::new(fd).flags(flags).build();
            entries.push(sync.user_data(main | SYNC));
        }
        if entries.is_empty() {
            // Nothing to write and nothing to sync completes like everything else.
            entries.push(opcode::Nop::new().build().user_data(main | SYNC));
        }
        entries
    }

    /// Accounts for a round; whether there is a next one.
    fn goes_on(&mut self) -> bool {
        match self.written {
            Some(n) if n > 0 => {
                let n = usize::try_from(n).expect("positive");
                self.data.advance(n);
                self.offset += n as u64;
                // A short write breaks the link: the sync was cancelled, it has not failed.
                self.data.left() > 0
                    || (self.flush != Flush::No
                        && self.synced.is_none_or(|r| r == -libc::ECANCELED))
            }
            Some(n) => n == -libc::EINTR || n == -libc::EAGAIN,
            None => false,
        }
    }

    fn result(&self) -> io::Result<()> {
        match (self.written, self.synced) {
            (Some(0), _) => Err(ErrorKind::WriteZero.into()),
            (Some(n), _) if n < 0 => Err(io::Error::from_raw_os_error(-n)),
            (_, Some(n)) if n < 0 => Err(io::Error::from_raw_os_error(-n)),
            _ => Ok(()),
        }
    }
}

impl Work {
    /// Whether the operation needs another round, which is then prepared.
    fn goes_on(&mut self, result: i32) -> bool {
        match self {
            Work::Write(write) => write.goes_on(),
            Work::Send { data, .. } if result > 0 => {
                data.advance(usize::try_from(result).expect("positive"));
                data.left() > 0
            }
            // Interrupted, not refused. (A connect can't be begun twice.)
            Work::Connect { .. } => false,
            _ => result == -libc::EINTR || result == -libc::EAGAIN,
        }
    }

    fn outcome(self, result: i32) -> Outcome {
        let checked = if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            Ok(result.unsigned_abs() as usize)
        };
        match self {
            Work::Accept(_) => Outcome::Accepted(checked.map(|_| {
                // SAFETY: a successful accept returns a fresh descriptor that nobody else knows.
                let fd = unsafe { OwnedFd::from_raw_fd(result) };
                TcpStream::from(fd)
            })),
            Work::Connect { .. } => Outcome::Connected(checked.map(drop)),
            Work::Recv { buf, .. } => Outcome::Received {
                buf,
                result: checked,
            },
            Work::Send { .. } => Outcome::Sent(checked.map(drop)),
            Work::Write(write) => Outcome::Written(write.result()),
            Work::Readable(_) => Outcome::Readable(checked.map(drop)),
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for at in 0..self.slots.len() {
            if self.slots[at].is_some() {
                self.push(&[cancel_entry(at)]);
            }
        }
        let mut ignored = Vec::new();
        for _ in 0..LAST_WAITS {
            if self.slots.iter().all(Option::is_none) {
                return;
            }
            if self.wait(LAST_WAIT, &mut ignored).is_err() {
                break;
            }
            ignored.clear();
        }
        // The kernel still holds on to something (a device that does not answer): better lost than
        // written to after it was freed.
        std::mem::forget(std::mem::take(&mut self.slots));
    }
}

/// The newest way to run a ring that the kernel knows, down to the plain one.
fn build() -> io::Result<IoUring> {
    let mut newest = IoUring::builder();
    newest
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all();
    let mut plain = IoUring::builder();
    plain.dontfork();
    match newest.build(ENTRIES) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => plain.build(ENTRIES),
        other => other,
    }
}

/// Kernels older than 5.11, and rings with operations forbidden, are left to the other backend.
fn check(ring: &IoUring) -> io::Result<()> {
    let lacking = |what: &str| {
        Err(io::Error::new(
            ErrorKind::Unsupported,
            format!("io_uring lacks {what}"),
        ))
    };
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() || !params.is_feature_fast_poll()
    {
        return lacking("timeouts, kept completions or fast poll");
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        (opcode::Accept::CODE, "accept"),
        (opcode::Connect::CODE, "connect"),
        (opcode::Recv::CODE, "recv"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::Writev::CODE, "writev"),
        (opcode::Fsync::CODE, "fsync"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
        (opcode::Nop::CODE, "nop"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => lacking(name),
        None => Ok(()),
    }
}

fn cancel_entry(at: usize) -> Entry {
    opcode::AsyncCancel::new((at as u64) << 1)
        .build()
        .user_data(NOBODY)
}

/// Io vectors of what is left, as far as one call takes it.
fn describe(data: &Gather, iov: &mut Vec<libc::iovec>) {
    iov.clear();
    iov.reserve_exact(PIECES_MAX.min(data.pieces().count()));
    for piece in data.pieces() {
        // The kernel only reads through it.
        iov.push(libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        });
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: a msghdr is integers and pointers, for which zero is a value (nothing, nowhere).
    unsafe { std::mem::zeroed() }
}

/// The time is up, a signal came, or the kernel wants completions taken first.
fn transient(e: &io::Error) -> bool {
    [Errno::ETIME, Errno::EINTR, Errno::EBUSY, Errno::EAGAIN]
        .iter()
        .any(|n| e.raw_os_error() == Some(*n as i32))
}
