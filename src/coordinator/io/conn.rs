//! One connection: from dialling or accepting, through the handshake, to frames both ways.
//!
//! Memory is taken as bytes arrive, never as they are announced: before the handshake is done the
//! other end can make this one hold a message of the handshake at most, after it one frame. What
//! waits to be sent is bounded by [`SEND_QUEUE_BYTES_MAX`].

use super::backend::{Backend, ConnId, Op, Token};
use super::gather::PIECES_MAX;
use crate::gcs::egcs::auth::{AuthError, FRAME_HEADER_BYTES, FrameHeader, Handshake, Session};
use crate::ids::{Incarnation, MemberId};
use crate::limits::{HANDSHAKE_TICKS, KEEPALIVE_TICKS, SEND_QUEUE_BYTES_MAX, SILENCE_TICKS};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;

/// Bytes received at once.
const RECV_BYTES: usize = 64 << 10;
/// A payload up to here is copied, so that a short one does not keep a long buffer in memory.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Why a connection ended.
#[derive(Debug)]
pub enum Closed {
    /// The other end closed it.
    End,
    /// The system says so.
    Io(io::Error),
    /// What came is not what an honest peer sends.
    Auth(AuthError),
    /// Nothing came for [`SILENCE_TICKS`], or the handshake took [`HANDSHAKE_TICKS`].
    Silence,
    /// The other end does not take what is sent.
    Full,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::End => f.write_str("the other end closed the connection"),
            Closed::Io(e) => e.fmt(f),
            Closed::Auth(e) => e.fmt(f),
            Closed::Silence => f.write_str("the other end was silent for too long"),
            Closed::Full => f.write_str("the other end takes too little"),
        }
    }
}

impl From<AuthError> for Closed {
    fn from(e: AuthError) -> Closed {
        Closed::Auth(e)
    }
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The other end has shown that it knows the secret: [`Conn::peer`] says who it is.
    Authenticated,
    /// A frame of an authenticated peer.
    Frame(Bytes),
}

enum Stage {
    Shaking(Box<Handshake>),
    Up(Box<Session>),
}

/// One connection.
pub struct Conn {
    id: ConnId,
    socket: Rc<TcpStream>,
    /// The socket is; until then nothing is sent or received.
    connected: bool,
    stage: Stage,
    dialled: Option<MemberId>,
    inbox: BytesMut,
    outbox: VecDeque<Bytes>,
    /// Bytes in the outbox, and under way to the kernel.
    out_bytes: usize,
    /// Bytes under way to the kernel: if there are any, an operation has them.
    sending: usize,
    /// See [`SEND_QUEUE_BYTES_MAX`].
    out_bytes_max: usize,
    /// The receive buffer, while no operation has it.
    buf: Option<Vec<u8>>,
    /// Ticks since the connection was begun, until it is up; then since anything came.
    silent: u32,
    /// Ticks since anything was sent.
    idle: u32,
}

impl Conn {
    /// Dials a member. The socket is not connected yet; `hello` is what the handshake says first.
    pub fn dial(
        id: ConnId,
        socket: Rc<TcpStream>,
        address: SocketAddr,
        member: MemberId,
        (handshake, hello): (Handshake, Vec<u8>),
        backend: &mut dyn Backend,
    ) -> Conn {
        let op = Op::Connect {
            socket: socket.clone(),
            address,
        };
        backend.submit(Token::Dial(id), op);
        let mut conn = Conn::new(id, socket, handshake);
        conn.dialled = Some(member);
        conn.push(hello.into());
        conn
    }

    /// Was dialled.
    pub fn accepted(id: ConnId, socket: Rc<TcpStream>, handshake: Handshake) -> Conn {
        let mut conn = Conn::new(id, socket, handshake);
        conn.connected = true;
        conn
    }

    fn new(id: ConnId, socket: Rc<TcpStream>, handshake: Handshake) -> Conn {
        Conn {
            id,
            socket,
            connected: false,
            stage: Stage::Shaking(Box::new(handshake)),
            dialled: None,
            inbox: BytesMut::new(),
            outbox: VecDeque::new(),
            out_bytes: 0,
            sending: 0,
            out_bytes_max: SEND_QUEUE_BYTES_MAX,
            buf: Some(vec![0; RECV_BYTES]),
            silent: 0,
            idle: 0,
        }
    }

    /// Who is at the other end, once that is certain; member 0 is a server that asks to join.
    pub fn peer(&self) -> Option<(MemberId, Incarnation)> {
        match &self.stage {
            Stage::Up(session) => Some((session.peer, session.incarnation)),
            Stage::Shaking(_) => None,
        }
    }

    /// The member that this end dialled; `None` if the other end dialled.
    pub fn dialled(&self) -> Option<MemberId> {
        self.dialled
    }

    /// The connect has ended.
    pub fn connected(&mut self, result: io::Result<()>) -> Result<(), Closed> {
        result.map_err(Closed::Io)?;
        self.connected = true;
        Ok(())
    }

    /// Something was received. `known` gives the newest life known of a member. What arrived is
    /// appended to `out`, also that before an error.
    pub fn received(
        &mut self,
        buf: Vec<u8>,
        result: io::Result<usize>,
        known: &dyn Fn(MemberId) -> Incarnation,
        out: &mut Vec<Arrived>,
    ) -> Result<(), Closed> {
        let n = result.map_err(Closed::Io)?;
        if n == 0 {
            return Err(Closed::End);
        }
        self.inbox.extend_from_slice(&buf[..n]);
        self.buf = Some(buf);
        loop {
            match &mut self.stage {
                Stage::Shaking(handshake) => {
                    if self.inbox.len() < handshake.wants() {
                        return Ok(());
                    }
                    let message = self.inbox.split_to(handshake.wants());
                    let progress = handshake.take(&message, known)?;
                    if !progress.reply.is_empty() {
                        self.push(progress.reply.into());
                    }
                    if let Some(session) = progress.session {
                        self.stage = Stage::Up(Box::new(session));
                        out.push(Arrived::Authenticated);
                    }
                }
                Stage::Up(session) => {
                    self.silent = 0;
                    let Some(header) = self.inbox.first_chunk() else {
                        return Ok(());
                    };
                    let header: FrameHeader = *header;
                    let len = session.opener.length(&header)?;
                    if self.inbox.len() - FRAME_HEADER_BYTES < len {
                        return Ok(());
                    }
                    self.inbox.advance(FRAME_HEADER_BYTES);
                    let payload = take_front(&mut self.inbox, len);
                    session.opener.open(&header, &payload)?;
                    // An empty one only shows that the other end lives.
                    if len > 0 {
                        out.push(Arrived::Frame(payload));
                    }
                }
            }
        }
    }

    /// Queues a frame for an authenticated peer; [`Conn::drive`] sends it.
    pub fn send(&mut self, payload: Bytes) -> Result<(), Closed> {
        let Stage::Up(session) = &mut self.stage else {
            unreachable!("frames are for authenticated peers")
        };
        let header = session.sealer.seal(&payload);
        if payload.len() <= COPY_BYTES_MAX {
            self.push(Bytes::from([&header[..], &payload].concat()));
        } else {
            self.push(Bytes::copy_from_slice(&header));
            self.push(payload);
        }
        if self.out_bytes > self.out_bytes_max {
            return Err(Closed::Full);
        }
        Ok(())
    }

    fn push(&mut self, bytes: Bytes) {
        self.out_bytes += bytes.len();
        self.outbox.push_back(bytes);
    }

    /// Begins what can be begun: to receive, and to send what is queued.
    pub fn drive(&mut self, backend: &mut dyn Backend) {
        if !self.connected {
            return;
        }
        if let Some(buf) = self.buf.take() {
            let socket = self.socket.clone();
            backend.submit(Token::Recv(self.id), Op::Recv { socket, buf });
        }
        if self.sending == 0 && !self.outbox.is_empty() {
            let n = self.outbox.len().min(PIECES_MAX);
            let data: Vec<Bytes> = self.outbox.drain(..n).collect();
            self.sending = data.iter().map(Bytes::len).sum();
            self.idle = 0;
            let socket = self.socket.clone();
            backend.submit(Token::Send(self.id), Op::Send { socket, data });
        }
    }

    /// A send has ended.
    pub fn sent(&mut self, result: io::Result<()>) -> Result<(), Closed> {
        self.out_bytes -= std::mem::take(&mut self.sending);
        result.map_err(Closed::Io)
    }

    /// Lowers the bound of the send queue.
    #[cfg(test)]
    pub fn bound_queue(&mut self, bytes: usize) {
        self.out_bytes_max = bytes;
    }

    /// Everything that was queued is with the kernel.
    pub fn flushed(&self) -> bool {
        self.out_bytes == 0
    }

    /// A tick has passed.
    pub fn tick(&mut self) -> Result<(), Closed> {
        self.silent += 1;
        self.idle += 1;
        let up = matches!(self.stage, Stage::Up(_));
        if self.silent > if up { SILENCE_TICKS } else { HANDSHAKE_TICKS } {
            return Err(Closed::Silence);
        }
        if up && self.idle >= KEEPALIVE_TICKS && self.flushed() {
            self.send(Bytes::new())?;
        }
        Ok(())
    }

    /// Ends the connection. What operations still hold lives until they complete; the connection's
    /// number means nothing any more then.
    pub fn close(self, backend: &mut dyn Backend) {
        // Fails if the other end was faster.
        let _ = self.socket.shutdown(Shutdown::Both);
        if !self.connected {
            backend.cancel(Token::Dial(self.id));
        }
        if self.buf.is_none() {
            backend.cancel(Token::Recv(self.id));
        }
        if self.sending > 0 {
            backend.cancel(Token::Send(self.id));
        }
    }
}

fn take_front(inbox: &mut BytesMut, len: usize) -> Bytes {
    if len <= COPY_BYTES_MAX {
        let payload = Bytes::copy_from_slice(&inbox[..len]);
        inbox.advance(len);
        payload
    } else {
        inbox.split_to(len).freeze()
    }
}
