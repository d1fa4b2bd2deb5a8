//! How a member comes to be, and to life again.
//!
//! What belongs to a member lies in one directory: the file `identity`, and `log/`. A log is only
//! used by the identity that names its member number, so the log is made first and the identity
//! last; before that, whatever lies in the log's directory is the remains of an attempt.

use super::backend::{self, Backend, Choice};
use super::log::LogFiles;
use super::nonce::Nonces;
use super::peers::Peers;
use super::reread::Reread;
use crate::coordinator::run::Parts;
use crate::coordinator::{Config as CoreConfig, Coordinator, Pace};
use crate::gcs::egcs::auth::{Local, kind};
use crate::gcs::egcs::disk::{Disk, FileDisk};
use crate::gcs::egcs::log::Checkpoint;
use crate::gcs::egcs::members::{Identity, IdentityError};
use crate::gcs::egcs::reader::DiskReader;
use crate::gcs::egcs::recover::{self, LogError};
use crate::gcs::egcs::{self, Node};
use crate::ids::{Gid, GroupId, Incarnation, MemberId};
use crate::limits::SECRET_BYTES;
use bytes::Bytes;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a member's server says about itself.
#[derive(Clone)]
pub struct Site {
    /// Directory of the member, `pg_group` in the data directory.
    pub dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The same as the other members reach it, `host:port`.
    pub address: String,
    /// The group's secret.
    pub secret: [u8; SECRET_BYTES],
    /// Versions and architecture that must be equal on all members.
    pub fingerprint: String,
    /// Bytes of the group log that are kept for members that lag.
    pub log_keep_bytes: u64,
    /// Helpers that will report to the core.
    pub helpers: u32,
    /// Which backend.
    pub backend: Choice,
    /// How often the core does things; [`Pace::default`] outside of tests.
    pub pace: Pace,
}

/// A member can't start.
#[derive(Debug)]
pub enum StartError {
    /// Its identity can't be used.
    Identity(IdentityError),
    /// It has none, or has not joined yet.
    Stranger,
    /// The group reaches this member at another address than the one that is configured: it was
    /// moved, or this is a copy and the member itself may be at work there.
    Moved(MemberId, String),
    /// Its log can't be used.
    Log(LogError),
    /// The engine does not start from it.
    Engine(egcs::StartError),
    /// Something else of the system; what was tried.
    Io(String, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Identity(e) => e.fmt(f),
            StartError::Stranger => f.write_str("this server is no member of a group"),
            StartError::Moved(member, known) => write!(
                f,
                "member {member} of the group listens at {known}, but another address is configured: \
                 set it back, or if this is a copy of that server's directory, remove it and let a \
                 new server join"
            ),
            StartError::Log(e) => e.fmt(f),
            StartError::Engine(e) => e.fmt(f),
            StartError::Io(what, e) => write!(f, "could not {what}: {e}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<IdentityError> for StartError {
    fn from(e: IdentityError) -> StartError {
        StartError::Identity(e)
    }
}

impl From<LogError> for StartError {
    fn from(e: LogError) -> StartError {
        StartError::Log(e)
    }
}

impl Site {
    /// Who this server is so far.
    pub fn identity(&self) -> Result<Option<Identity>, StartError> {
        if !self.dir.is_dir() {
            return Ok(None);
        }
        Ok(Identity::load(&FileDisk::open(&self.dir))?)
    }

    /// The directory of the member, made if it is not there.
    pub(super) fn disk(&self) -> Result<FileDisk, StartError> {
        let made = FileDisk::create_dir(&self.dir);
        made.map_err(|e| StartError::Io(format!("make directory {}", self.dir.display()), e))
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The log's directory, empty.
    pub(super) fn fresh_log(&self) -> Result<FileDisk, StartError> {
        let empty = || {
            let disk = FileDisk::create_dir(self.log_dir())?;
            for name in disk.list()? {
                disk.remove(&name)?;
            }
            disk.sync_dir()?;
            Ok(disk)
        };
        empty().map_err(|e| StartError::Io("empty the group log's directory".into(), e))
    }
}

/// Forms a group of one: this server is its member 1, and its data is as of `gid`. It comes to life
/// by [`restart`].
pub fn bootstrap(site: &Site, group: GroupId, gid: Gid) -> Result<(), StartError> {
    let disk = site.disk()?;
    if Identity::load(&disk)?.is_some() {
        let why = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(StartError::Io(
            "form a group, this server has an identity".into(),
            why,
        ));
    }
    let member = MemberId(1);
    let birth = Checkpoint::birth(member, &site.address, gid, Bytes::new());
    recover::create(&site.fresh_log()?, group, member, birth)?;
    let identity = Identity {
        group,
        member,
        incarnation: Incarnation(0),
        nonce: 0,
        address: site.address.clone(),
    };
    identity.store(&disk)?;
    Ok(())
}

/// A member that is ready for its loop.
pub struct Started {
    /// For [`crate::coordinator::run::Loop::new`].
    pub parts: Parts<Node>,
    /// Who it is; its incarnation has just begun.
    pub identity: Identity,
    /// Why io_uring was passed over, to be said once.
    pub no_uring: Option<io::Error>,
}

/// Begins the next life of a member, durably, from its log. Its data has every GID up to
/// `recovered`. To be called in the process and thread that runs the loop.
pub fn restart(site: &Site, recovered: Gid) -> Result<Started, StartError> {
    let disk = site.disk()?;
    let identity = Identity::load(&disk)?.filter(|i| i.member.0 != 0);
    let mut identity = identity.ok_or(StartError::Stranger)?;
    let (group, me) = (identity.group, identity.member);
    if identity.address != site.address {
        return Err(StartError::Moved(me, identity.address));
    }
    let log_dir = site.log_dir();
    let (found, writer) = recover::recover(&FileDisk::open(&log_dir), group, me)?;
    identity.next_life(&disk)?;

    let io = |what: &'static str| move |e| StartError::Io(what.into(), e);
    let seed = Nonces::new()
        .and_then(|mut n| n.number())
        .map_err(io("read randomness"))?;
    let config = egcs::Config {
        group,
        me,
        incarnation: identity.incarnation,
        recovered,
        fingerprint: site.fingerprint.clone(),
        keep_bytes: site.log_keep_bytes,
        seed: seed as u64,
    };
    let reader = DiskReader::new(FileDisk::open(&log_dir), group, me);
    let joining = !voted(&reader, &found, me);
    let gcs = Node::new(config, found, Box::new(reader)).map_err(StartError::Engine)?;

    let core = Coordinator::new(CoreConfig {
        me,
        incarnation: identity.incarnation,
        group,
        recovered,
        helpers: site.helpers,
        joining,
        pace: site.pace,
    });
    let (backend, no_uring) = backend::open(site.backend).map_err(io("set io_uring up"))?;
    let local = Local {
        group,
        member: me,
        incarnation: identity.incarnation,
        kind: kind(&site.fingerprint),
        secret: site.secret,
    };
    let parts = Parts {
        gcs,
        core,
        peers: listen(local, site.listen, &*backend)?,
        backend,
        log: LogFiles::open(&log_dir, writer).map_err(io("open the group log's directory"))?,
        reread: Reread::new(&log_dir, group, me),
    };
    Ok(Started {
        parts,
        identity,
        no_uring,
    })
}

fn listen(local: Local, address: SocketAddr, backend: &dyn Backend) -> Result<Peers, StartError> {
    let failed = |e| StartError::Io(format!("listen on {address}"), e);
    Peers::new(local, address, backend).map_err(failed)
}

/// Whether the newest checkpoint says that this member votes. If it began to vote after that, it
/// will learn so from the log, and so loses nothing by calling itself joining.
fn voted(reader: &dyn egcs::reader::LogReader, found: &recover::Recovered, me: MemberId) -> bool {
    let newest = found
        .marks
        .last()
        .and_then(|mark| reader.checkpoint(*mark).ok());
    newest.is_some_and(|c| c.members.iter().any(|m| m.id == me && m.voter))
}

/// Ends a membership for good, after the member left its group: without its identity the log means
/// nothing any more.
pub fn forget(site: &Site) -> Result<(), StartError> {
    let disk = site.disk()?;
    let failed = |e| StartError::Io("remove the identity".into(), e);
    if Identity::load(&disk)?.is_some() {
        disk.remove(egcs::members::IDENTITY_FILE).map_err(failed)?;
        disk.sync_dir().map_err(failed)?;
    }
    site.fresh_log().map(drop)
}
