//! The plain backend: poll(2), sockets in non-blocking mode, file writes done on the spot.
//!
//! It is for kernels and containers without io_uring. A log write stops the loop for the time of
//! its fdatasync; group commit is then what arrived meanwhile.

use super::backend::{Backend, Completion, Flush, Op, Outcome, Token};
use super::gather::Gather;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, sendmsg};
use nix::sys::time::TimeSpec;
use nix::sys::uio::pwritev;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// An operation that waits for its descriptor.
enum Work {
    Accept(Rc<TcpListener>),
    Connect(Rc<TcpStream>),
    Recv(Rc<TcpStream>, Vec<u8>),
    Send(Rc<TcpStream>, Gather),
    Readable(Rc<OwnedFd>),
}

struct FileWrite {
    token: Token,
    file: Rc<File>,
    offset: u64,
    data: Gather,
    flush: Flush,
}

/// See the module's text.
pub struct Poll {
    waiting: Vec<(Token, Work)>,
    writes: VecDeque<FileWrite>,
    done: Vec<Completion>,
}

impl Poll {
    pub fn new() -> Poll {
        Poll {
            waiting: Vec::new(),
            writes: VecDeque::new(),
            done: Vec::new(),
        }
    }
}

impl Backend for Poll {
    fn name(&self) -> &'static str {
        "poll"
    }

    fn nonblocking_sockets(&self) -> bool {
        true
    }

    fn submit(&mut self, token: Token, op: Op) {
        let work = match op {
            Op::Accept { listener } => Work::Accept(listener),
            Op::Recv { socket, buf } => Work::Recv(socket, buf),
            Op::Readable { fd } => Work::Readable(fd),
            Op::Send { socket, data } => Work::Send(socket, Gather::new(data)),
            Op::Connect { socket, address } => {
                match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
                    Err(Errno::EINPROGRESS) => Work::Connect(socket),
                    other => {
                        let outcome = Outcome::Connected(other.map_err(io::Error::from));
                        self.done.push(Completion { token, outcome });
                        return;
                    }
                }
            }
            Op::Write {
                file,
                offset,
                data,
                flush,
            } => {
                let data = Gather::new(data);
                self.writes.push_back(FileWrite {
                    token,
                    file,
                    offset,
                    data,
                    flush,
                });
                return;
            }
        };
        // Usually there is room in the socket's buffer: no need to ask first.
        match if matches!(work, Work::Send(..)) {
            attempt(work)
        } else {
            Err(work)
        } {
            Ok(outcome) => self.done.push(Completion { token, outcome }),
            Err(work) => self.waiting.push((token, work)),
        }
    }

    fn cancel(&mut self, token: Token) {
        let Some(at) = self.waiting.iter().position(|(t, _)| *t == token) else {
            return;
        };
        let (token, work) = self.waiting.swap_remove(at);
        let gone = io::Error::from(Errno::ECANCELED);
        let outcome = match work {
            Work::Accept(_) => Outcome::Accepted(Err(gone)),
            Work::Connect(_) => Outcome::Connected(Err(gone)),
            Work::Recv(_, buf) => Outcome::Received {
                buf,
                result: Err(gone),
            },
            Work::Send(..) => Outcome::Sent(Err(gone)),
            Work::Readable(_) => Outcome::Readable(Err(gone)),
        };
        self.done.push(Completion { token, outcome });
    }

    fn wait(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        while let Some(mut write) = self.writes.pop_front() {
            let outcome = Outcome::Written(write_all(&mut write));
            self.done.push(Completion {
                token: write.token,
                outcome,
            });
        }
        let timeout = if self.done.is_empty() {
            timeout
        } else {
            Duration::ZERO
        };
        let ready = self.poll(timeout)?;
        // From the end, so that removal keeps the places before it.
        for at in ready.into_iter().rev() {
            let (token, work) = self.waiting.swap_remove(at);
            match attempt(work) {
                Ok(outcome) => self.done.push(Completion { token, outcome }),
                Err(work) => self.waiting.push((token, work)),
            }
        }
        out.append(&mut self.done);
        Ok(())
    }
}

impl Poll {
    /// Places in `waiting` whose descriptors have something, ascending.
    fn poll(&self, timeout: Duration) -> io::Result<Vec<usize>> {
        let mut fds: Vec<PollFd> = self
            .waiting
            .iter()
            .map(|(_, work)| interest(work))
            .collect();
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |fd: &PollFd| fd.revents().is_none_or(|r| !r.is_empty());
        Ok(fds
            .iter()
            .enumerate()
            .filter(|(_, fd)| ready(fd))
            .map(|(at, _)| at)
            .collect())
    }
}

fn interest(work: &Work) -> PollFd<'_> {
    let (fd, flags): (BorrowedFd, PollFlags) = match work {
        Work::Accept(listener) => (listener.as_fd(), PollFlags::POLLIN),
        Work::Recv(socket, _) => (socket.as_fd(), PollFlags::POLLIN),
        Work::Readable(fd) => (fd.as_fd(), PollFlags::POLLIN),
        Work::Connect(socket) | Work::Send(socket, _) => (socket.as_fd(), PollFlags::POLLOUT),
    };
    PollFd::new(fd, flags)
}

/// Does what can be done without waiting; `Err` hands back what still has to wait.
fn attempt(work: Work) -> Result<Outcome, Work> {
    match work {
        Work::Accept(listener) => match listener.accept() {
            Ok((stream, _)) => Ok(Outcome::Accepted(Ok(stream))),
            Err(e) if retry(&e) => Err(Work::Accept(listener)),
            Err(e) => Ok(Outcome::Accepted(Err(e))),
        },
        Work::Connect(socket) => Ok(Outcome::Connected(match socket.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(e)) | Err(e) => Err(e),
        })),
        Work::Recv(socket, mut buf) => match (&*socket).read(&mut buf) {
            Err(e) if retry(&e) => Err(Work::Recv(socket, buf)),
            result => Ok(Outcome::Received { buf, result }),
        },
        Work::Send(socket, mut data) => match send_some(&socket, &mut data) {
            Ok(()) if data.left() > 0 => Err(Work::Send(socket, data)),
            result => Ok(Outcome::Sent(result)),
        },
        Work::Readable(_) => Ok(Outcome::Readable(Ok(()))),
    }
}

fn retry(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Sends until the socket takes no more.
fn send_some(socket: &TcpStream, data: &mut Gather) -> io::Result<()> {
    while data.left() > 0 {
        let pieces: Vec<IoSlice> = data.pieces().map(IoSlice::new).collect();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<()>(socket.as_raw_fd(), &pieces, &[], flags, None) {
            Ok(n) => data.advance(n),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn write_all(write: &mut FileWrite) -> io::Result<()> {
    while write.data.left() > 0 {
        let pieces: Vec<IoSlice> = write.data.pieces().map(IoSlice::new).collect();
        let offset = i64::try_from(write.offset).map_err(|_| Errno::EFBIG)?;
        match pwritev(&*write.file, &pieces, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => {
                write.data.advance(n);
                write.offset += n as u64;
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    match write.flush {
        Flush::No => Ok(()),
        Flush::Content => write.file.sync_data(),
        Flush::Whole => write.file.sync_all(),
    }
}
