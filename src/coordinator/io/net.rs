//! Sockets as the backends want them.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

/// Listens (with SO_REUSEADDR, so that a restarted member gets its address back at once).
///
/// # Errors
/// The address is taken or is not ours.
pub fn listen(address: SocketAddr, nonblocking: bool) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(nonblocking)?;
    Ok(listener)
}

/// A socket that is to be connected to `address`. It comes from the address that this member listens
/// on, `own`, if that is one address of the same family, so that a firewall can tell members apart.
///
/// # Errors
/// Out of descriptors or memory, or `own` is gone.
pub fn unconnected(
    address: SocketAddr,
    own: SocketAddr,
    nonblocking: bool,
) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if own.is_ipv4() == address.is_ipv4() && !own.ip().is_unspecified() {
        bind(
            fd.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(own.ip(), 0)),
        )?;
    }
    let stream = TcpStream::from(fd);
    prepare(&stream, nonblocking)?;
    Ok(stream)
}

/// Options of every connection: frames go out at once.
///
/// # Errors
/// The socket is gone.
pub fn prepare(stream: &TcpStream, nonblocking: bool) -> io::Result<()> {
    stream.set_nonblocking(nonblocking)?;
    stream.set_nodelay(true)
}
