//! What the coordinator's loop asks of the operating system: a handful of operations, handed over
//! with their buffers, and completions that hand back what is still of use.
//!
//! Two backends answer: io_uring ([`super::uring`]) and plain poll(2) ([`super::poll`]). Both run
//! the same tests; [`open`] picks one.

use super::poll::Poll;
use super::uring::Uring;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Names a connection. Never used again in one process, so a late completion finds nobody.
pub type ConnId = u64;

/// Comes back with an operation's completion. At most one operation a token is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Token {
    /// The eventfd that other processes of this server write.
    Wake,
    /// The listening socket.
    Listener,
    /// Dialling.
    Dial(ConnId),
    /// Receiving.
    Recv(ConnId),
    /// Sending.
    Send(ConnId),
    /// The write (and sync) of the group log.
    Log,
    /// The preparation of the group log's next segment.
    Segment,
    /// The removal of the group log's oldest segment.
    Sweep,
}

/// An operation. It owns (or shares) what it works on until its completion, so that neither a
/// buffer nor a descriptor can go while the kernel still uses it.
#[derive(Debug)]
pub enum Op {
    /// Accept one connection.
    Accept {
        /// A listening socket.
        listener: Rc<TcpListener>,
    },
    /// Connect a fresh socket.
    Connect {
        /// Not yet connected.
        socket: Rc<TcpStream>,
        /// Where to.
        address: SocketAddr,
    },
    /// Receive what there is, at most the buffer's length.
    Recv {
        /// From whom.
        socket: Rc<TcpStream>,
        /// Filled from its start; comes back with the completion.
        buf: Vec<u8>,
    },
    /// Send all of it, in order.
    Send {
        /// To whom.
        socket: Rc<TcpStream>,
        /// What.
        data: Vec<Bytes>,
    },
    /// Write all of it at a place in a file, and then make it durable if asked to.
    Write {
        /// Into what.
        file: Rc<File>,
        /// Where, in bytes.
        offset: u64,
        /// What; may be empty.
        data: Vec<Bytes>,
        /// What is made durable once it is written.
        flush: Flush,
    },
    /// Wait until there is something to read; reads nothing.
    Readable {
        /// Usually an eventfd.
        fd: Rc<OwnedFd>,
    },
}

/// What a write makes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Nothing.
    No,
    /// The file's content (fdatasync).
    Content,
    /// All there is of it (fsync): a file system need not count names as a directory's content.
    Whole,
}

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Op::Accept`].
    Accepted(io::Result<TcpStream>),
    /// Of [`Op::Connect`].
    Connected(io::Result<()>),
    /// Of [`Op::Recv`].
    Received {
        /// The buffer of the operation.
        buf: Vec<u8>,
        /// Bytes received; 0 at the stream's end.
        result: io::Result<usize>,
    },
    /// Of [`Op::Send`]: all was taken by the kernel.
    Sent(io::Result<()>),
    /// Of [`Op::Write`]: all was written, and is durable if that was asked for. After an error
    /// nothing is known about what is on disk; a failed sync must not be tried again.
    Written(io::Result<()>),
    /// Of [`Op::Readable`].
    Readable(io::Result<()>),
}

/// An operation's end.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// How it ended.
    pub outcome: Outcome,
}

/// The operating system as the loop sees it.
pub trait Backend {
    /// `io_uring` or `poll`.
    fn name(&self) -> &'static str;
    /// Whether sockets that it works on must be in non-blocking mode.
    fn nonblocking_sockets(&self) -> bool;
    /// Takes an operation. The kernel may see it only at the next [`Backend::wait`].
    fn submit(&mut self, token: Token, op: Op);
    /// Asks for an operation's early end. It still completes, perhaps successfully.
    fn cancel(&mut self, token: Token);
    /// Hands all that was submitted to the kernel, waits until something completes, the time is
    /// up or a signal arrives, and appends the completions.
    ///
    /// # Errors
    /// Only what makes the backend unusable.
    fn wait(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()>;
}

/// Which backend to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// io_uring if the kernel (or the container round it) allows, else poll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// poll.
    Poll,
}

/// Overrides [`Choice::Auto`]: `io_uring` or `poll`.
pub const BACKEND_ENV: &str = "PGR_IO_BACKEND";

impl Choice {
    /// As [`BACKEND_ENV`] says; anything else is [`Choice::Auto`].
    #[must_use]
    pub fn from_env() -> Choice {
        match std::env::var(BACKEND_ENV).as_deref() {
            Ok("io_uring") => Choice::Uring,
            Ok("poll") => Choice::Poll,
            _ => Choice::Auto,
        }
    }
}

/// Opens a backend, in the process and thread that will use it (after the fork). The second part
/// says why io_uring was passed over, to be logged once.
///
/// # Errors
/// [`Choice::Uring`] was asked for and cannot be had.
pub fn open(choice: Choice) -> io::Result<(Box<dyn Backend>, Option<io::Error>)> {
    match choice {
        Choice::Poll => Ok((Box::new(Poll::new()), None)),
        Choice::Uring => Ok((Box::new(Uring::new()?), None)),
        Choice::Auto => match Uring::new() {
            Ok(ring) => Ok((Box::new(ring), None)),
            Err(why) => Ok((Box::new(Poll::new()), Some(why))),
        },
    }
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
