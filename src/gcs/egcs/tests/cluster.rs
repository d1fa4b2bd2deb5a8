//! A group in memory: the production engine, a network that loses, doubles and reorders, disks
//! that lose what was not synced, and a checker of what was delivered.

use super::checker::state;
use crate::gcs::egcs::log::Checkpoint;
use crate::gcs::egcs::mem_disk::MemDisk;
use crate::gcs::egcs::members::{JoinReply, JoinRequest};
use crate::gcs::egcs::reader::DiskReader;
use crate::gcs::egcs::recover::{self, LogError, Recovered};
use crate::gcs::egcs::writer::{Step, Writer};
use crate::gcs::egcs::{Config, Node};
use crate::gcs::{Gcs, Input, Output, View};
use crate::ids::{Gid, GroupId, Incarnation, MemberId, MessageId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const GROUP: GroupId = GroupId(0x5eed);

/// splitmix64
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, per_cent: u64) -> bool {
        self.below(100) < per_cent
    }
}

/// Faults of the network, in per cent.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub loss: u64,
    pub doubling: u64,
    pub reorder: bool,
}

/// The layer above: every message passes and gets the next GID, so GID and position are one.
#[derive(Default)]
pub struct App {
    /// Position and running hash.
    pub seq: u64,
    pub hash: u64,
    /// GIDs that are in its data for certain.
    pub flushed: u64,
    pub primary: bool,
    pub caught_up: bool,
    pub removed: bool,
    pub fatal: Option<String>,
    pub view: View,
    /// Highest entry of which something was delivered.
    pub index: u64,
}

pub struct Server {
    pub id: MemberId,
    pub disk: MemDisk,
    pub node: Option<Node>,
    pub incarnation: u32,
    pub app: App,
    writer: Option<Writer>,
    steps: VecDeque<(u64, Vec<Step>)>,
    /// Last GID of the copy that it began with.
    pub base: Gid,
    /// It has caught up once.
    pub was_level: bool,
}

#[derive(Default)]
pub struct Cluster {
    pub servers: BTreeMap<MemberId, Server>,
    pub net: VecDeque<(MemberId, MemberId, Bytes)>,
    pub faults: Faults,
    pub cut: BTreeSet<(MemberId, MemberId)>,
    pub rng: Option<Rng>,
    pub replies: BTreeMap<u64, JoinReply>,
    pub checkpoint_every: u64,
    /// Bytes of a checkpoint's state, at least.
    pub state_bytes: usize,
    pub keep_bytes: u64,
    pub segment_bytes: u64,
    /// Position by position: message, and the running hash after it.
    pub history: Vec<(MessageId, u64)>,
    pub seen: BTreeSet<MessageId>,
    pub last: BTreeMap<MemberId, (Incarnation, u64)>,
    /// Own messages that their origin saw delivered.
    pub acknowledged: u64,
    pub taken: u64,
    /// Servers that the layer above takes out of the group.
    pub removals: BTreeSet<MemberId>,
}

pub fn id(n: u16) -> MemberId {
    MemberId(n)
}

impl Cluster {
    /// A group of one.
    pub fn new(seed: u64) -> Self {
        let mut c = Self {
            rng: Some(Rng(seed)),
            checkpoint_every: 50,
            keep_bytes: 1 << 30,
            segment_bytes: 64 << 10,
            ..Self::default()
        };
        let disk = MemDisk::new();
        let birth = Checkpoint::birth(id(1), "host1:1", Gid(0), state(0, 0));
        recover::create(&disk, GROUP, id(1), birth).unwrap();
        c.add_server(id(1), disk, Gid(0));
        c.start(id(1));
        c.run(5);
        c
    }

    /// A group of `n` voters.
    pub fn of(seed: u64, n: u16) -> Self {
        let mut c = Self::new(seed);
        for i in 2..=n {
            assert_eq!(c.join(id(1), u128::from(i)), id(i));
        }
        c.run_until("all vote", |c| {
            let all = c.servers.values();
            all.clone().all(|s| {
                s.app.view.members.iter().filter(|m| m.voter).count() == usize::from(n)
                    && s.app.caught_up
                    && s.app.primary
            })
        });
        c
    }

    pub fn random(&mut self) -> &mut Rng {
        self.rng.as_mut().unwrap()
    }

    fn add_server(&mut self, id: MemberId, disk: MemDisk, base: Gid) {
        let server = Server {
            id,
            disk,
            node: None,
            incarnation: 0,
            app: App {
                flushed: base.0,
                ..App::default()
            },
            writer: None,
            steps: VecDeque::new(),
            base,
            was_level: false,
        };
        self.servers.insert(id, server);
    }

    /// A server whose request to join was accepted starts.
    pub fn admit(&mut self, member: MemberId, gid: Gid) {
        let disk = MemDisk::new();
        recover::create_empty(&disk, GROUP, member).unwrap();
        self.add_server(member, disk, gid);
        self.start(member);
    }

    /// Ticks while every disk stands still.
    pub fn run_without_disk(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick_all();
            while self.pass_one() {}
        }
    }

    pub fn try_start(&mut self, id: MemberId) -> Result<(), LogError> {
        let seed = self.random().next();
        let keep_bytes = self.keep_bytes;
        let segment_bytes = self.segment_bytes;
        let s = self.servers.get_mut(&id).unwrap();
        assert!(s.node.is_none());
        let (recovered, mut writer) = recover::recover(&s.disk, GROUP, id)?;
        assert!(
            recovered.last_index >= s.app.index,
            "{id}: the log ends at {} and {} was delivered",
            recovered.last_index,
            s.app.index
        );
        s.incarnation += 1;
        let config = Config {
            group: GROUP,
            me: id,
            incarnation: Incarnation(s.incarnation),
            recovered: Gid(s.app.flushed.max(s.base.0)),
            fingerprint: "test".into(),
            keep_bytes,
            seed,
        };
        let reader = Box::new(DiskReader::new(s.disk.clone(), GROUP, id));
        s.node = Some(Node::new(config, recovered, reader).unwrap());
        writer.set_segment_bytes(segment_bytes);
        s.writer = Some(writer);
        s.steps.clear();
        s.app = App {
            flushed: s.app.flushed,
            index: s.app.index,
            ..App::default()
        };
        for other in self.up() {
            if other != id {
                self.connect(id, other);
            }
        }
        self.drain(id);
        Ok(())
    }

    pub fn start(&mut self, id: MemberId) {
        self.try_start(id).unwrap();
    }

    pub fn up(&self) -> Vec<MemberId> {
        let up = self.servers.values().filter(|s| s.node.is_some());
        up.map(|s| s.id).collect()
    }

    pub fn connect(&mut self, a: MemberId, b: MemberId) {
        for (x, y) in [(a, b), (b, a)] {
            self.step(x, Input::PeerUp(y));
        }
    }

    /// kill -9 and power failure in one.
    pub fn crash(&mut self, id: MemberId) {
        let mut rng = self.rng.take().unwrap();
        let s = self.servers.get_mut(&id).unwrap();
        // Some of the planned operations had been begun.
        let begun = rng.below(3);
        for _ in 0..begun {
            if let Some((_, steps)) = s.steps.pop_front() {
                let n = usize::try_from(rng.below(steps.len() as u64 + 1)).unwrap();
                recover::perform(&s.disk, &steps[..n]).unwrap();
                if n < steps.len() {
                    break;
                }
            }
        }
        self.rng = Some(rng);
        self.lose_power(id);
    }

    /// A power failure before any of the planned operations had begun.
    pub fn lose_power(&mut self, id: MemberId) {
        let mut rng = self.rng.take().unwrap();
        let s = self.servers.get_mut(&id).unwrap();
        s.node = None;
        s.steps.clear();
        s.disk.crash(&mut || rng.next());
        // Its data keeps at least what was flushed, at most what was delivered.
        if s.app.seq > s.app.flushed {
            s.app.flushed += rng.below(s.app.seq - s.app.flushed + 1);
        }
        self.rng = Some(rng);
        self.net.retain(|(_, to, _)| *to != id);
        for other in self.up() {
            self.step(other, Input::PeerDown(id));
        }
    }

    /// What a server's log would hold after this many bytes of its planned writes; none if they are
    /// not as many.
    pub fn torn(&self, id: MemberId, mut bytes: usize) -> Option<Recovered> {
        let server = &self.servers[&id];
        let disk = server.disk.snapshot();
        for step in server.steps.iter().flat_map(|(_, steps)| steps) {
            let mut step = step.clone();
            let mut whole = true;
            if let Step::Write { bytes: written, .. } = &mut step {
                whole = written.len() <= bytes;
                written.truncate(bytes);
                bytes -= written.len();
            }
            recover::perform(&disk, &[step]).unwrap();
            if !whole {
                return Some(recover::recover(&disk, GROUP, id).unwrap().0);
            }
        }
        None
    }

    pub fn step(&mut self, id: MemberId, input: Input) {
        if let Some(node) = self.servers.get_mut(&id).and_then(|s| s.node.as_mut()) {
            node.step(input);
            self.drain(id);
        }
    }

    pub fn multicast(&mut self, id: MemberId, payload: Bytes) -> Option<MessageId> {
        let node = self.servers.get_mut(&id)?.node.as_mut()?;
        let taken = node.multicast(payload).ok();
        self.taken += u64::from(taken.is_some());
        self.drain(id);
        taken
    }

    pub fn tick_all(&mut self) {
        for id in self.up() {
            self.step(id, Input::Tick);
        }
    }

    /// Lets a server's disk finish its oldest write.
    pub fn flush(&mut self, id: MemberId) {
        let Some(s) = self.servers.get_mut(&id).filter(|s| s.node.is_some()) else {
            return;
        };
        if let Some((ticket, steps)) = s.steps.pop_front() {
            recover::perform(&s.disk, &steps).unwrap();
            s.writer.as_mut().unwrap().durable(ticket);
            self.step(id, Input::Durable { ticket });
        }
    }

    /// Moves one message of the network.
    pub fn pass_one(&mut self) -> bool {
        if self.net.is_empty() {
            return false;
        }
        let n = self.net.len() as u64;
        let faults = self.faults;
        let at = if faults.reorder {
            self.random().below(n.min(20))
        } else {
            0
        };
        let (from, to, bytes) = self.net.remove(at as usize).unwrap();
        if self.random().chance(faults.doubling) {
            self.net.push_back((from, to, bytes.clone()));
        }
        if !self.random().chance(faults.loss) && !self.cut.contains(&(from, to)) {
            self.step(to, Input::Frame { from, bytes });
        }
        true
    }

    /// A tick, and everything that follows from it.
    pub fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick_all();
            self.settle();
        }
    }

    fn has_writes(&self, id: MemberId) -> bool {
        let server = self.servers.get(&id);
        server.is_some_and(|s| s.node.is_some() && !s.steps.is_empty())
    }

    pub fn settle(&mut self) {
        loop {
            let mut busy = self.pass_one();
            for id in self.up() {
                while self.has_writes(id) {
                    self.flush(id);
                    busy = true;
                }
            }
            if !busy {
                break;
            }
        }
    }

    pub fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if done(self) {
                return;
            }
            self.run(1);
        }
        let states: Vec<_> = self
            .servers
            .values()
            .map(|s| (s.id, s.app.seq, s.app.primary, s.app.fatal.clone()))
            .collect();
        panic!("never: {what}; {} ordered, {states:?}", self.history.len());
    }

    pub fn leader(&self) -> Option<MemberId> {
        let mut up = self.servers.values();
        up.find(|s| {
            s.node
                .as_ref()
                .is_some_and(|n| n.is_leader() && n.is_primary())
        })
        .map(|s| s.id)
    }

    /// All that run have delivered everything.
    pub fn level(&self) -> bool {
        let n = self.history.len() as u64;
        let mut up = self.servers.values().filter(|s| s.node.is_some());
        up.all(|s| s.app.seq == n && s.app.caught_up)
    }

    /// A copy of a provider's data asks it to join, and starts.
    pub fn join(&mut self, provider: MemberId, nonce: u128) -> MemberId {
        let gid = Gid(self.servers[&provider].app.seq);
        self.join_with(provider, nonce, gid).unwrap()
    }

    pub fn join_with(
        &mut self,
        provider: MemberId,
        nonce: u128,
        gid: Gid,
    ) -> Result<MemberId, JoinReply> {
        let request = JoinRequest {
            group: GROUP,
            nonce,
            gid,
            address: format!("host{nonce}:1"),
            fingerprint: "test".into(),
        };
        for attempt in 0..50 {
            let connection = (nonce as u64) << 8 | attempt;
            let bytes = request.encode();
            self.step(provider, Input::Join { connection, bytes });
            for _ in 0..200 {
                if self.replies.contains_key(&connection) {
                    break;
                }
                self.run(1);
            }
            match self.replies.remove(&connection) {
                Some(JoinReply::Accepted { member, .. }) => {
                    self.admit(member, gid);
                    return Ok(member);
                }
                Some(JoinReply::Retry(_)) => {}
                Some(refused) => return Err(refused),
                None => panic!("no answer"),
            }
        }
        panic!("never accepted");
    }

    pub fn drain(&mut self, id: MemberId) {
        self.outputs(id);
        while let Some(gone) = self.removals.pop_first() {
            self.servers.remove(&gone);
            for s in self.servers.values_mut() {
                if let Some(node) = s.node.as_mut() {
                    node.remove(gone);
                }
            }
        }
    }

    fn outputs(&mut self, id: MemberId) {
        let mut out = Vec::new();
        let s = self.servers.get_mut(&id).unwrap();
        let Some(node) = s.node.as_mut() else { return };
        node.drain(&mut out);
        for output in out {
            match output {
                Output::Send { to, bytes } => self.net.push_back((id, to, bytes)),
                Output::Append { ticket, records } => {
                    let s = self.servers.get_mut(&id).unwrap();
                    let mut steps = Vec::new();
                    let writer = s.writer.as_mut().unwrap();
                    writer.append(ticket, &records, &mut steps);
                    s.steps.push_back((ticket, steps));
                }
                Output::Compact { first_index } => {
                    use crate::gcs::egcs::{disk::Disk, segment};
                    let s = self.servers.get_mut(&id).unwrap();
                    for n in s.writer.as_mut().unwrap().compact(first_index) {
                        s.disk.remove(&segment::file_name(n)).unwrap();
                        s.disk.sync_dir().unwrap();
                    }
                }
                Output::JoinReply { connection, bytes } => {
                    self.replies
                        .insert(connection, JoinReply::decode(bytes).unwrap());
                }
                Output::Event(event) => self.event(id, event),
            }
        }
    }
}
