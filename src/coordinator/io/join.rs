//! How a copy becomes a member: it asks the seeds, one after the other, until one says yes or
//! never. There is nothing else for it to do, so this waits where it stands, a tick at a time.

use super::nonce::Nonces;
use super::resolve;
use super::start::{Site, StartError};
use crate::gcs::TICK_MS;
use crate::gcs::egcs::auth::{FRAME_HEADER_BYTES, FrameHeader, Handshake, Local, Session, kind};
use crate::gcs::egcs::members::{Identity, JoinReply, JoinRequest};
use crate::gcs::egcs::recover;
use crate::ids::{Gid, GroupId, Incarnation, MemberId};
use crate::limits::KEEPALIVE_TICKS;
use bytes::Bytes;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(TICK_MS);
/// Ticks that a seed may take to be connected, and to answer in the handshake.
const CONNECT_TICKS: u32 = 10;
/// Ticks that a seed may take to answer the request; it gives up by itself after fewer.
const ANSWER_TICKS: u32 = 300;
/// Ticks between two rounds over the seeds.
const PAUSE_TICKS: u32 = 5;

/// The server did not become a member.
#[derive(Debug)]
pub enum JoinError {
    /// Never with this copy or this build, and why.
    Refused(String),
    /// It was told to stop.
    Stopped,
    /// Its own files.
    Start(StartError),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Refused(why) => write!(f, "the group refused this server: {why}"),
            JoinError::Stopped => f.write_str("stopped while joining"),
            JoinError::Start(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}

impl<E: Into<StartError>> From<E> for JoinError {
    fn from(e: E) -> JoinError {
        JoinError::Start(e.into())
    }
}

/// Makes this server, whose copy has every GID of the group up to `gid`, a member. It then comes
/// to life by [`restart`](super::start::restart). An attempt that was cut short goes on under the
/// same nonce, so that it never becomes two members.
///
/// `go_on` is called about every tick, with the reason why the last seed did not help when there is
/// a new one; it returns `false` to end the attempt.
pub fn join(
    site: &Site,
    seeds: &[String],
    group: GroupId,
    gid: Gid,
    go_on: &mut dyn FnMut(Option<&str>) -> bool,
) -> Result<MemberId, JoinError> {
    let random = |e| StartError::Io("read randomness".into(), e);
    let disk = site.disk()?;
    let mut nonces = Nonces::new().map_err(random)?;
    let known = Identity::load(&disk)?.filter(|i| i.group == group);
    let mut identity = match known {
        Some(member) if member.member.0 != 0 => return Ok(member.member),
        // What was asked for at another address is asked for no more.
        Some(asking) if asking.address == site.address => asking,
        _ => {
            let nonce = nonces.number().map_err(random)?;
            let (member, incarnation) = (MemberId(0), Incarnation(0));
            Identity {
                group,
                member,
                incarnation,
                nonce,
                address: site.address.clone(),
            }
        }
    };
    // Before anyone hears of the nonce.
    identity.store(&disk)?;
    let request = JoinRequest {
        group,
        nonce: identity.nonce,
        gid,
        address: site.address.clone(),
        fingerprint: site.fingerprint.clone(),
    };
    let local = Local {
        group,
        member: MemberId(0),
        incarnation: Incarnation(0),
        kind: kind(&site.fingerprint),
        secret: site.secret,
    };
    let mut asking = Asking {
        local,
        nonces,
        request: request.encode(),
        go_on,
    };
    loop {
        for seed in seeds {
            match asking.ask(seed) {
                Ok(JoinReply::Accepted { member, .. }) => {
                    recover::create_empty(&site.fresh_log()?, group, member)?;
                    identity.member = member;
                    identity.store(&disk)?;
                    return Ok(member);
                }
                Ok(JoinReply::Refused(why)) => return Err(JoinError::Refused(why)),
                Ok(JoinReply::Retry(why)) => asking.report(&format!("{seed}: {why}"))?,
                Err(Ask::Stopped) => return Err(JoinError::Stopped),
                Err(Ask::Failed(e)) => asking.report(&format!("{seed}: {e}"))?,
            }
        }
        for _ in 0..PAUSE_TICKS {
            std::thread::sleep(TICK);
            asking.tick().map_err(|_| JoinError::Stopped)?;
        }
    }
}

/// Why a seed gave no answer.
enum Ask {
    Failed(io::Error),
    Stopped,
}

impl From<io::Error> for Ask {
    fn from(e: io::Error) -> Ask {
        Ask::Failed(e)
    }
}

struct Asking<'a> {
    local: Local,
    nonces: Nonces,
    request: Bytes,
    go_on: &'a mut dyn FnMut(Option<&str>) -> bool,
}

impl Asking<'_> {
    fn report(&mut self, problem: &str) -> Result<(), JoinError> {
        if (self.go_on)(Some(problem)) {
            Ok(())
        } else {
            Err(JoinError::Stopped)
        }
    }

    fn tick(&mut self) -> Result<(), Ask> {
        if (self.go_on)(None) {
            Ok(())
        } else {
            Err(Ask::Stopped)
        }
    }

    fn ask(&mut self, seed: &str) -> Result<JoinReply, Ask> {
        self.tick()?;
        let address = resolve::first(seed)?;
        let mut stream = TcpStream::connect_timeout(&address, TICK * CONNECT_TICKS)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK * CONNECT_TICKS))?;
        let mut session = self.shake(&mut stream)?;
        send(&mut stream, &mut session, &self.request.clone())?;
        loop {
            let mut header: FrameHeader = [0; FRAME_HEADER_BYTES];
            self.read(&mut stream, &mut header, ANSWER_TICKS, Some(&mut session))?;
            let len = session.opener.length(&header).map_err(io::Error::other)?;
            // An answer names all members at most: far less than a frame may have.
            let mut payload = vec![0; len.min(ANSWER_BYTES_MAX)];
            self.read(&mut stream, &mut payload, CONNECT_TICKS, None)?;
            session
                .opener
                .open(&header, &payload)
                .map_err(io::Error::other)?;
            if !payload.is_empty() {
                let reply = JoinReply::decode(payload.into());
                return Ok(reply.map_err(|e| io::Error::other(e.to_string()))?);
            }
        }
    }

    fn shake(&mut self, stream: &mut TcpStream) -> Result<Session, Ask> {
        let nonce = self.nonces.fresh()?;
        let (mut handshake, hello) = Handshake::dial(self.local.clone(), MemberId(0), nonce);
        stream.write_all(&hello)?;
        loop {
            let mut message = vec![0; handshake.wants()];
            self.read(stream, &mut message, CONNECT_TICKS, None)?;
            // A seed's former life would be one that does not know what its next one knows.
            let progress = handshake
                .take(&message, &|_| Incarnation(0))
                .map_err(io::Error::other)?;
            stream.write_all(&progress.reply)?;
            if let Some(session) = progress.session {
                return Ok(session);
            }
        }
    }

    /// Fills the buffer, and shows the other end that this one lives while it waits.
    fn read(
        &mut self,
        stream: &mut TcpStream,
        mut buf: &mut [u8],
        ticks: u32,
        mut session: Option<&mut Session>,
    ) -> Result<(), Ask> {
        let mut waited = 0;
        while !buf.is_empty() {
            match stream.read(buf) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(n) => buf = &mut buf[n..],
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    waited += 1;
                    if waited > ticks {
                        return Err(io::Error::from(ErrorKind::TimedOut).into());
                    }
                    if let Some(session) = &mut session
                        && waited % KEEPALIVE_TICKS == 0
                    {
                        send(stream, session, &[])?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
            self.tick()?;
        }
        Ok(())
    }
}

/// Bytes of an answer: [`crate::limits::MEMBERS_MAX`] members with their addresses fit well.
const ANSWER_BYTES_MAX: usize = 64 << 10;

fn send(stream: &mut TcpStream, session: &mut Session, payload: &[u8]) -> io::Result<()> {
    let header = session.sealer.seal(payload);
    stream.write_all(&[&header[..], payload].concat())
}
