//! Addresses of peers, as people write them (`host:port`), as socket addresses.
//!
//! Numbers need no looking up. Names do, and the system's resolver blocks for seconds when a name
//! server is away, which would cost this member its leadership. So a name is looked up by a thread
//! that lives for that one question, with all signals blocked; it touches nothing of the server.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

/// A question under way or answered.
#[derive(Debug)]
pub enum Lookup {
    /// The answer, at once.
    Known(io::Result<SocketAddr>),
    /// Ask [`Lookup::poll`] later.
    Running(Receiver<io::Result<SocketAddr>>),
}

impl Lookup {
    /// Begins to look an address up.
    pub fn start(address: &str) -> Lookup {
        if let Ok(known) = address.parse() {
            return Lookup::Known(Ok(known));
        }
        let (answer, receiver) = channel();
        let address = address.to_owned();
        let mut before = SigSet::empty();
        // A new thread has the mask of the one that starts it.
        let masked = pthread_sigmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut before),
        );
        let started = masked.map_err(io::Error::from).and_then(|()| {
            let look = move || {
                // Nobody waits any more: then nobody needs the answer.
                let _ = answer.send(first(&address));
            };
            thread::Builder::new()
                .name("pgr resolver".into())
                .spawn(look)
        });
        let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        assert!(restored.is_ok(), "a mask that was set can be set again");
        match started {
            Ok(_) => Lookup::Running(receiver),
            Err(e) => Lookup::Known(Err(e)),
        }
    }

    /// The answer, once there is one.
    pub fn poll(self) -> Result<io::Result<SocketAddr>, Lookup> {
        match self {
            Lookup::Known(answer) => Ok(answer),
            Lookup::Running(receiver) => match receiver.try_recv() {
                Ok(answer) => Ok(answer),
                Err(TryRecvError::Empty) => Err(Lookup::Running(receiver)),
                Err(TryRecvError::Disconnected) => Ok(Err(io::Error::other("the resolver died"))),
            },
        }
    }
}

/// Looks up and waits: for start-up, where nothing else is to be done.
///
/// # Errors
/// There is no such name, or no `:port`.
pub fn first(address: &str) -> io::Result<SocketAddr> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    address.to_socket_addrs()?.next().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn numbers_are_known_and_names_are_looked_up_aside() {
        let known = Lookup::start("127.0.0.1:7001").poll().unwrap().unwrap();
        assert_eq!(known, "127.0.0.1:7001".parse().unwrap());
        for (address, good) in [("localhost:7001", true), ("no port here", false)] {
            let mut lookup = Lookup::start(address);
            let deadline = Instant::now() + Duration::from_secs(20);
            let answer = loop {
                match lookup.poll() {
                    Ok(answer) => break answer,
                    Err(again) => lookup = again,
                }
                assert!(Instant::now() < deadline);
                thread::yield_now();
            };
            assert_eq!(answer.is_ok(), good, "{address}");
        }
        assert_eq!(SigSet::thread_get_mask().unwrap(), SigSet::empty());
    }
}
