//! All connections of this member: the listening socket, the members that it dials, those that
//! dial it, and servers that ask to join. Between two members at most one connection is up.

use super::backend::{Backend, ConnId, Op, Outcome, Token};
use super::conn::{Arrived, Closed, Conn};
use super::dial::Dials;
use super::net;
use super::nonce::Nonces;
use crate::gcs::egcs::auth::{Handshake, Local};
use crate::gcs::{Input, View};
use crate::ids::{Incarnation, MemberId};
use crate::limits::HALF_OPEN_MAX;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;

/// Something about a connection that is worth a line in the server's log.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// A member is connected.
    Up(MemberId),
    /// A member's connection ended, and why.
    Down(MemberId, String),
    /// Someone was refused before it was known who it is.
    Refused(String),
}

/// Notices kept at most; a flood of strangers must not fill memory or the server's log.
const NOTICES_MAX: usize = 16;

/// See the module's text.
pub struct Peers {
    local: Local,
    nonces: Nonces,
    listener: Rc<TcpListener>,
    /// An accept is under way.
    accepting: bool,
    /// The last accept failed: the next begins after a tick.
    accept_pause: bool,
    conns: BTreeMap<ConnId, Conn>,
    next: ConnId,
    /// The connection of each member that is up.
    up: BTreeMap<MemberId, ConnId>,
    /// Connections that were accepted and are not authenticated, oldest first.
    half_open: VecDeque<ConnId>,
    /// Connections of servers that ask to join, oldest first.
    joining: VecDeque<ConnId>,
    dials: Dials,
    /// Newest life seen of each member; former ones are refused.
    lives: BTreeMap<MemberId, Incarnation>,
    notices: Vec<Notice>,
}

impl Peers {
    /// Listens on an address.
    ///
    /// # Errors
    /// The address can't be had, or the system has no randomness.
    pub fn new(local: Local, listen: SocketAddr, backend: &dyn Backend) -> io::Result<Peers> {
        let listener = Rc::new(net::listen(listen, backend.nonblocking_sockets())?);
        Ok(Peers {
            dials: Dials::new(local.member),
            local,
            nonces: Nonces::new()?,
            listener,
            accepting: false,
            accept_pause: false,
            conns: BTreeMap::new(),
            next: 1,
            up: BTreeMap::new(),
            half_open: VecDeque::new(),
            joining: VecDeque::new(),
            lives: BTreeMap::new(),
            notices: Vec::new(),
        })
    }

    /// Whether a member's connection is up.
    pub fn connected(&self, member: MemberId) -> bool {
        self.up.contains_key(&member)
    }

    /// Takes the membership over.
    pub fn set_view(&mut self, view: &View) {
        self.dials.set_view(view);
    }

    /// What happened since the last call, for the server's log.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Queues a frame for a member; without a connection it is dropped.
    pub fn send(
        &mut self,
        to: MemberId,
        bytes: Bytes,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        if let Some(&id) = self.up.get(&to) {
            self.send_on(id, bytes, backend, inputs);
        }
    }

    /// Queues the answer to a server that asked to join.
    pub fn reply(
        &mut self,
        id: ConnId,
        bytes: Bytes,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        if self.joining.contains(&id) {
            self.send_on(id, bytes, backend, inputs);
        }
    }

    fn send_on(
        &mut self,
        id: ConnId,
        bytes: Bytes,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        let conn = self.conns.get_mut(&id).expect("a connection that is up");
        if let Err(why) = conn.send(bytes) {
            self.close(id, &why, backend, inputs);
        }
    }

    /// Begins what can be begun on all connections. Called once a turn, so that the frames of a
    /// turn go out together.
    pub fn drive(&mut self, backend: &mut dyn Backend) {
        if !self.accepting && !self.accept_pause {
            self.accepting = true;
            let listener = self.listener.clone();
            backend.submit(Token::Listener, Op::Accept { listener });
        }
        for conn in self.conns.values_mut() {
            conn.drive(backend);
        }
    }

    /// An operation of a connection or of the listening socket has ended.
    pub fn completed(
        &mut self,
        token: Token,
        outcome: Outcome,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        let (id, result) = match (token, outcome) {
            (Token::Listener, Outcome::Accepted(result)) => {
                self.accepting = false;
                match result {
                    Ok(stream) => self.accepted(stream, backend, inputs),
                    // The other end has gone already, or descriptors are short: it passes.
                    Err(_) => self.accept_pause = true,
                }
                return;
            }
            (Token::Dial(id), Outcome::Connected(result)) => {
                (id, self.conns.get_mut(&id).map(|c| c.connected(result)))
            }
            (Token::Send(id), Outcome::Sent(result)) => {
                (id, self.conns.get_mut(&id).map(|c| c.sent(result)))
            }
            (Token::Recv(id), Outcome::Received { buf, result }) => {
                let mut arrived = Vec::new();
                let lives = &self.lives;
                let known = |m: MemberId| lives.get(&m).copied().unwrap_or_default();
                let conn = self.conns.get_mut(&id);
                let end = conn.map(|c| c.received(buf, result, &known, &mut arrived));
                for what in arrived {
                    self.arrived(id, what, backend, inputs);
                }
                (id, end)
            }
            (token, outcome) => unreachable!("{token:?} ended with {outcome:?}"),
        };
        // Without a connection it was closed before this operation ended.
        if let Some(Err(why)) = result {
            self.close(id, &why, backend, inputs);
        }
    }

    /// A tick has passed: dials, keeps alive, gives up.
    pub fn tick(&mut self, backend: &mut dyn Backend, inputs: &mut Vec<Input>) {
        self.accept_pause = false;
        let mut ended = Vec::new();
        for (id, conn) in &mut self.conns {
            if let Err(why) = conn.tick() {
                ended.push((*id, why));
            }
        }
        for (id, why) in ended {
            self.close(id, &why, backend, inputs);
        }
        let mut now = Vec::new();
        self.dials.tick(&mut now);
        for (member, address) in now {
            if self.dial(member, address, backend).is_err() {
                self.dials.failed(member);
            }
        }
    }

    /// Ends all connections.
    pub fn close_all(&mut self, backend: &mut dyn Backend) {
        for (_, conn) in std::mem::take(&mut self.conns) {
            conn.close(backend);
        }
        self.up.clear();
        self.half_open.clear();
        self.joining.clear();
        if self.accepting {
            backend.cancel(Token::Listener);
        }
    }

    /// Whether everything that was queued is with the kernel.
    pub fn flushed(&self) -> bool {
        self.conns
            .values()
            .all(|c| c.peer().is_none() || c.flushed())
    }

    fn dial(
        &mut self,
        member: MemberId,
        address: SocketAddr,
        backend: &mut dyn Backend,
    ) -> io::Result<()> {
        let socket = Rc::new(net::unconnected(
            address,
            self.listener.local_addr()?,
            backend.nonblocking_sockets(),
        )?);
        let shake = Handshake::dial(self.local.clone(), member, self.nonces.fresh()?);
        let id = self.number();
        let conn = Conn::dial(id, socket, address, member, shake, backend);
        self.conns.insert(id, conn);
        Ok(())
    }

    fn accepted(&mut self, stream: TcpStream, backend: &mut dyn Backend, inputs: &mut Vec<Input>) {
        let prepared = net::prepare(&stream, backend.nonblocking_sockets());
        let Ok(nonce) = prepared.and_then(|()| self.nonces.fresh()) else {
            return;
        };
        // Who floods must be faster than an honest peer's handshake to keep it out.
        bound(&mut self.half_open, HALF_OPEN_MAX - 1)
            .into_iter()
            .for_each(|id| self.close(id, &Closed::Full, backend, inputs));
        let id = self.number();
        let handshake = Handshake::accept(self.local.clone(), nonce);
        self.conns
            .insert(id, Conn::accepted(id, Rc::new(stream), handshake));
        self.half_open.push_back(id);
    }

    fn number(&mut self) -> ConnId {
        self.next += 1;
        self.next - 1
    }

    fn arrived(
        &mut self,
        id: ConnId,
        what: Arrived,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        // A connection that lost against another in this very turn says nothing any more.
        let Some((peer, incarnation)) = self.conns.get(&id).and_then(Conn::peer) else {
            return;
        };
        match what {
            Arrived::Authenticated => self.authenticated(id, peer, incarnation, backend, inputs),
            Arrived::Frame(bytes) if peer.0 == 0 => inputs.push(Input::Join {
                connection: id,
                bytes,
            }),
            Arrived::Frame(bytes) => inputs.push(Input::Frame { from: peer, bytes }),
        }
    }

    fn authenticated(
        &mut self,
        id: ConnId,
        peer: MemberId,
        incarnation: Incarnation,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        self.half_open.retain(|h| *h != id);
        if peer.0 == 0 {
            bound(&mut self.joining, HALF_OPEN_MAX - 1)
                .into_iter()
                .for_each(|old| self.close(old, &Closed::Full, backend, inputs));
            self.joining.push_back(id);
            return;
        }
        if let Some(&old) = self.up.get(&peer) {
            let newer_life = self
                .lives
                .get(&peer)
                .is_none_or(|known| *known < incarnation);
            if !newer_life && !self.replaces(id, old) {
                return self.close(id, &Closed::End, backend, inputs);
            }
            self.close(old, &Closed::End, backend, inputs);
        }
        self.lives.insert(peer, incarnation);
        self.up.insert(peer, id);
        self.dials.up(peer);
        inputs.push(Input::PeerUp(peer));
        self.note(Notice::Up(peer));
    }

    /// Which of two connections of the same peer stays must be the same on both ends, whatever the
    /// order in which they see them: the one that the lower number dialled; of two that the same
    /// end dialled, the later, since that end has given the earlier one up.
    fn replaces(&self, new: ConnId, old: ConnId) -> bool {
        let dialled_here = |id| self.conns.get(&id).is_some_and(|c| c.dialled().is_some());
        let (new_here, old_here) = (dialled_here(new), dialled_here(old));
        if new_here == old_here {
            return true;
        }
        let peer = self.conns.get(&new).and_then(Conn::peer);
        let lower_here = peer.is_some_and(|(peer, _)| self.local.member < peer);
        new_here == lower_here
    }

    fn close(
        &mut self,
        id: ConnId,
        why: &Closed,
        backend: &mut dyn Backend,
        inputs: &mut Vec<Input>,
    ) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        self.half_open.retain(|h| *h != id);
        self.joining.retain(|j| *j != id);
        let peer = conn.peer().map(|(peer, _)| peer);
        let was_up = peer.filter(|p| self.up.get(p) == Some(&id));
        if let Some(peer) = was_up {
            self.up.remove(&peer);
            self.dials.down(peer);
            inputs.push(Input::PeerDown(peer));
            self.note(Notice::Down(peer, why.to_string()));
        } else if let Some(member) = conn.dialled() {
            self.dials.failed(member);
        }
        if let (None, Closed::Auth(e)) = (peer, why) {
            self.note(Notice::Refused(e.to_string()));
        }
        conn.close(backend);
    }

    fn note(&mut self, notice: Notice) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(notice);
        }
    }
}

/// Takes the oldest out until at most `max` are left.
fn bound(ids: &mut VecDeque<ConnId>, max: usize) -> Vec<ConnId> {
    let over = ids.len().saturating_sub(max);
    ids.drain(..over).collect()
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
