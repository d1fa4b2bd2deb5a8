//! A server in memory: commits in GID order, as PostgreSQL would behind the commit gate.

use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::encode::Builder;
use postgres_r::changeset::header::Header;
use postgres_r::changeset::key::KEY_UNIQUE;
use postgres_r::changeset::tuple::TupleBytes;
use postgres_r::changeset::{Key, LockMode};
use postgres_r::coordinator::io::peers::Notice;
use postgres_r::coordinator::message::ENVELOPE_BYTES;
use postgres_r::coordinator::run::Host;
use postgres_r::coordinator::{Early, Event, Outcome, Stats};
use postgres_r::gcs::View;
use postgres_r::group_state::GroupState;
use postgres_r::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use postgres_r::imsg::wanted::Detail;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Helpers beside number 0.
pub const HELPERS: u32 = 2;
const WORKER: u32 = 7;

/// A committed transaction: its position, who made it, and its name there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub gid: Gid,
    pub origin: MemberId,
    pub xid: u64,
}

/// What is certified and waits for its turn to commit.
struct Ready {
    origin: MemberId,
    xid: u64,
    helper: Option<u32>,
}

pub struct Server {
    group: GroupId,
    me: MemberId,
    incarnation: Incarnation,
    /// Survives a crash.
    pub data: Vec<Row>,
    recovered: Gid,
    ready: BTreeMap<Gid, Ready>,
    events: VecDeque<Event>,
    /// Own transactions that wait for their verdict.
    pub waiting: BTreeMap<u64, u64>,
    pub outcomes: Vec<Outcome>,
    pub state: GroupState,
    pub failed: Option<String>,
    pub view: View,
    pub leads: bool,
    pub notices: Vec<Notice>,
    pub stop: bool,
    /// Commits nothing, as if a lock were in the way.
    pub held: bool,
    next: u64,
    sleeping: bool,
    event: Rc<EventFd>,
}

/// A server, shared by its loop and the test.
#[derive(Clone)]
pub struct Shared(pub Rc<RefCell<Server>>);

impl Shared {
    pub fn new(group: GroupId, me: MemberId, incarnation: Incarnation, data: Vec<Row>) -> Shared {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        let helpers = (0..=HELPERS).map(|helper| Event::HelperReady { helper });
        Shared(Rc::new(RefCell::new(Server {
            group,
            me,
            incarnation,
            recovered: data.last().map_or(Gid::ZERO, |row| row.gid),
            data,
            ready: BTreeMap::new(),
            events: helpers.collect(),
            waiting: BTreeMap::new(),
            outcomes: Vec::new(),
            state: GroupState::Off,
            failed: None,
            view: View::default(),
            leads: false,
            notices: Vec::new(),
            stop: false,
            held: false,
            next: 1,
            sleeping: false,
            event: Rc::new(event),
        })))
    }

    /// A transaction that writes under a key of its own.
    pub fn commit(&self, payload: usize) {
        let unique = {
            let s = self.0.borrow();
            u64::from(s.me.0) << 48 | u64::from(s.incarnation.0) << 32 | s.next
        };
        self.commit_key(unique, payload);
    }

    /// A transaction that writes under this key.
    pub fn commit_key(&self, hash: u64, payload: usize) {
        let mut s = self.0.borrow_mut();
        let ticket = s.next;
        s.next += 1;
        let mut message = vec![0; ENVELOPE_BYTES];
        message.extend_from_slice(&s.changeset(ticket, hash, payload));
        let event = Event::Multicast {
            worker: WORKER,
            ticket,
            message,
        };
        s.events.push_back(event);
        s.waiting.insert(ticket, ticket);
        if s.sleeping {
            s.event.write(1).unwrap();
        }
    }
}

impl Server {
    /// What a crash can't take: the WAL is flushed now and then.
    pub fn flushed(&self) -> Gid {
        Gid(self.last_committed().0 / 32 * 32).max(self.recovered)
    }

    pub fn last_committed(&self) -> Gid {
        self.data.last().map_or(Gid::ZERO, |row| row.gid)
    }

    /// Nothing of its own is on its way.
    pub fn idle(&self) -> bool {
        self.waiting.is_empty() && self.events.is_empty()
    }

    fn changeset(&self, xid: u64, hash: u64, payload: usize) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new(), Vec::new());
        let since = self.last_committed();
        let (mode, flags) = (LockMode::Update, KEY_UNIQUE);
        builder
            .key(Key {
                hash,
                since,
                relation: 16384,
                mode,
                flags,
            })
            .unwrap();
        builder.relation(Oid(16384), 1, 1).unwrap();
        let data = vec![xid as u8; payload];
        builder
            .insert(&TupleBytes {
                natts: 1,
                bitmap: None,
                data: &data,
            })
            .unwrap();
        let (header, keys, entries) = builder.finish(Header {
            flags: 0,
            group: self.group,
            origin: self.me,
            incarnation: self.incarnation,
            isolation: 1,
            xid,
            snapshot_gid: since,
            commit_ts: 0,
            database: Oid(5),
        });
        [&header[..], &keys, &entries].concat()
    }

    /// Commits whatever is next.
    fn commit_in_turn(&mut self, out: &mut VecDeque<Event>) {
        let before = self.last_committed();
        while !self.held
            && let Some(ready) = self.ready.remove(&self.last_committed().next())
        {
            let gid = self.last_committed().next();
            let Ready {
                origin,
                xid,
                helper,
            } = ready;
            self.data.push(Row { gid, origin, xid });
            if let Some(helper) = helper {
                out.push_back(Event::HelperApplied { helper, gid });
            }
        }
        let at = self.last_committed();
        if at != before {
            out.push_front(Event::Progress {
                last_committed: at,
                flushed: self.flushed(),
                low: at,
            });
        }
    }

    fn certified(&mut self, gid: Gid, ready: Ready) {
        assert!(
            gid > self.last_committed(),
            "GID {gid} is committed already"
        );
        assert!(
            self.ready.insert(gid, ready).is_none(),
            "GID {gid} was handed out twice"
        );
    }
}

impl Host for Shared {
    fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.0.borrow().event.as_fd().try_clone_to_owned()
    }
    fn woken(&mut self) {
        let _ = self.0.borrow().event.read();
    }
    fn prepare_to_sleep(&mut self, _work_waits: bool) -> bool {
        let mut s = self.0.borrow_mut();
        s.sleeping = true;
        s.events.is_empty() && (s.held || !s.ready.contains_key(&s.last_committed().next()))
    }
    fn awake(&mut self) {
        self.0.borrow_mut().sleeping = false;
    }
    fn collect(&mut self, out: &mut VecDeque<Event>) {
        let mut s = self.0.borrow_mut();
        out.append(&mut s.events);
        let mut committed = VecDeque::new();
        s.commit_in_turn(&mut committed);
        out.append(&mut committed);
    }
    fn go_on(&mut self) -> bool {
        !self.0.borrow().stop
    }
    fn verdict(&mut self, worker: u32, ticket: u64, outcome: Outcome) {
        assert_eq!(worker, WORKER);
        let mut s = self.0.borrow_mut();
        let xid = s.waiting.remove(&ticket).expect("one verdict a ticket");
        s.outcomes.push(outcome);
        if let Outcome::Pass { gid } = outcome {
            let origin = s.me;
            s.certified(
                gid,
                Ready {
                    origin,
                    xid,
                    helper: None,
                },
            );
        }
    }
    fn apply(
        &mut self,
        helper: u32,
        gid: Gid,
        depends_on: Gid,
        origin: MemberId,
        changeset: Bytes,
    ) {
        assert!(depends_on < gid);
        let xid = Changeset::parse(&changeset)
            .expect("what was sent")
            .header()
            .xid;
        self.0.borrow_mut().certified(
            gid,
            Ready {
                origin,
                xid,
                helper: Some(helper),
            },
        );
    }
    fn searched(&mut self, _relation: u32, _detail: Detail) {}
    fn fragment(&mut self, _helper: u32, _gid: Gid, _nth: u32, _fragment: Bytes) {
        unreachable!("nobody asks for one");
    }
    fn early(&mut self, _helper: u32, _first: u64, _what: Early) {
        unreachable!("nobody sends a fragment");
    }
    fn state(&mut self, state: GroupState) {
        self.0.borrow_mut().state = state;
    }
    fn view(&mut self, view: &View) {
        self.0.borrow_mut().view = view.clone();
    }
    fn leads(&mut self, leads: bool) {
        self.0.borrow_mut().leads = leads;
    }
    fn failed(&mut self, reason: &str) {
        self.0.borrow_mut().failed = Some(reason.to_owned());
    }
    fn notice(&mut self, notice: &Notice) {
        let mut s = self.0.borrow_mut();
        match notice {
            Notice::Up(m) => s.notices.push(Notice::Up(*m)),
            Notice::Down(m, why) => s.notices.push(Notice::Down(*m, why.clone())),
            Notice::Refused(why) => s.notices.push(Notice::Refused(why.clone())),
        }
    }
    fn tick(&mut self, stats: &Stats, connected: &dyn Fn(MemberId) -> bool) {
        let s = self.0.borrow();
        assert_eq!(stats.state, s.state);
        assert!(!connected(s.me), "nobody is a peer of itself");
    }
}
