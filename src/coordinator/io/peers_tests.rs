//! Members on loopback, on both backends, in one thread; the tests say when a tick passes.

use super::*;
use crate::coordinator::io::backend::{Choice, Completion, open};
use crate::gcs::MemberInfo;
use crate::gcs::egcs::auth::{FRAME_HEADER_BYTES, NONCE_BYTES, Session};
use crate::ids::GroupId;
use crate::limits::{HANDSHAKE_TICKS, SECRET_BYTES, SILENCE_TICKS};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

struct End {
    peers: Peers,
    backend: Box<dyn Backend>,
    inputs: Vec<Input>,
    notices: Vec<Notice>,
}

fn local(member: u16, incarnation: u32) -> Local {
    Local {
        group: GroupId(5),
        member: MemberId(member),
        incarnation: Incarnation(incarnation),
        kind: 1,
        secret: [9; SECRET_BYTES],
    }
}

impl End {
    fn new(local: Local, choice: Choice) -> End {
        let (backend, _) = open(choice).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        End::on(local, any, backend)
    }

    fn on(local: Local, listen: SocketAddr, backend: Box<dyn Backend>) -> End {
        let peers = Peers::new(local, listen, &*backend).unwrap();
        End {
            peers,
            backend,
            inputs: Vec::new(),
            notices: Vec::new(),
        }
    }

    fn address(&self) -> SocketAddr {
        self.peers.listener.local_addr().unwrap()
    }

    fn turn(&mut self) {
        self.peers.drive(&mut *self.backend);
        let mut done: Vec<Completion> = Vec::new();
        self.backend
            .wait(Duration::from_millis(1), &mut done)
            .unwrap();
        for c in done {
            self.peers
                .completed(c.token, c.outcome, &mut *self.backend, &mut self.inputs);
        }
        self.notices.extend(self.peers.notices());
    }

    fn tick(&mut self) {
        self.peers.tick(&mut *self.backend, &mut self.inputs);
    }

    fn send(&mut self, to: u16, bytes: impl Into<Bytes>) {
        self.peers.send(
            MemberId(to),
            bytes.into(),
            &mut *self.backend,
            &mut self.inputs,
        );
    }

    fn frames(&self, from: u16) -> Vec<&Bytes> {
        let of = |i: &'_ Input| matches!(i, Input::Frame { from: f, .. } if f.0 == from);
        self.inputs
            .iter()
            .filter(|i| of(i))
            .map(|i| match i {
                Input::Frame { bytes, .. } => bytes,
                _ => unreachable!(),
            })
            .collect()
    }

    fn ups(&self, of: u16) -> usize {
        self.inputs
            .iter()
            .filter(|i| matches!(i, Input::PeerUp(m) if m.0 == of))
            .count()
    }

    fn downs(&self, of: u16) -> usize {
        self.inputs
            .iter()
            .filter(|i| matches!(i, Input::PeerDown(m) if m.0 == of))
            .count()
    }
}

fn each(body: fn(Choice)) {
    body(Choice::Poll);
    match open(Choice::Uring) {
        Ok(_) => body(Choice::Uring),
        Err(e) => eprintln!("io_uring can't be had here ({e}): only poll was tested"),
    }
}

fn group(n: u16, choice: Choice) -> Vec<End> {
    let mut ends: Vec<End> = (1..=n).map(|m| End::new(local(m, 1), choice)).collect();
    introduce(&mut ends);
    ends
}

fn introduce(ends: &mut [End]) {
    let members = ends.iter().map(|e| MemberInfo {
        id: e.peers.local.member,
        address: e.address().to_string(),
        voter: true,
    });
    let view = View {
        seq: 1,
        members: members.collect(),
    };
    for end in ends {
        end.peers.set_view(&view);
    }
}

/// Lets all run until something holds.
fn until(ends: &mut [End], what: &str, holds: impl Fn(&[End]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds(ends) {
        assert!(Instant::now() < deadline, "never: {what}");
        ends.iter_mut().for_each(End::turn);
    }
}

fn connect_all(ends: &mut [End]) {
    ends.iter_mut().for_each(End::tick);
    until(ends, "all are connected", |ends| {
        ends.iter().all(|e| e.peers.up.len() == ends.len() - 1)
    });
}

/// A hand-made peer on a blocking socket.
struct Stranger {
    stream: TcpStream,
    session: Session,
}

impl Stranger {
    fn dial(local: Local, end: &mut End) -> Result<Stranger, io::Error> {
        let mut stream = TcpStream::connect(end.address())?;
        stream.set_nonblocking(true)?;
        let (mut shake, hello) = Handshake::dial(local, MemberId(0), [4; NONCE_BYTES]);
        stream.write_all(&hello)?;
        let mut reply = vec![0; shake.wants()];
        read(&mut stream, &mut reply, end)?;
        let lives = |_| Incarnation(0);
        let progress = shake.take(&reply, &lives).map_err(io::Error::other)?;
        stream.write_all(&progress.reply)?;
        let session = progress
            .session
            .expect("the dialler's handshake has one step");
        Ok(Stranger { stream, session })
    }

    fn frame(&mut self, payload: &[u8]) -> Vec<u8> {
        let header = self.session.sealer.seal(payload);
        [&header[..], payload].concat()
    }
}

/// Reads while the other end runs in the same thread.
fn read(stream: &mut TcpStream, mut buf: &mut [u8], end: &mut End) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !buf.is_empty() {
        assert!(Instant::now() < deadline, "nothing came");
        end.turn();
        match stream.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = &mut buf[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[test]
fn members_connect_once_and_frames_keep_their_order() {
    each(|choice| {
        let mut ends = group(3, choice);
        connect_all(&mut ends);
        let big = Bytes::from(vec![7; 5 << 20]);
        for i in 0..200u16 {
            for (from, to) in [(0, 2), (0, 3), (1, 1), (1, 3), (2, 1), (2, 2)] {
                ends[from].send(to, i.to_le_bytes().to_vec());
            }
            if i == 100 {
                ends[0].send(2, big.clone());
            }
        }
        until(&mut ends, "all frames came", |ends| {
            ends[1].frames(1).len() == 201
                && ends
                    .iter()
                    .all(|e| e.frames(1).len() + e.frames(2).len() + e.frames(3).len() >= 400)
        });
        let small: Vec<u16> = ends[1]
            .frames(1)
            .iter()
            .filter(|f| f.len() == 2)
            .map(|f| u16::from_le_bytes([f[0], f[1]]))
            .collect();
        assert_eq!(small, (0..200).collect::<Vec<u16>>());
        assert_eq!(ends[1].frames(1)[101], &big);
        for end in &ends {
            assert_eq!(end.peers.conns.len(), 2, "one connection a peer");
            assert!(end.inputs.iter().all(|i| !matches!(i, Input::PeerDown(_))));
        }
    });
}

#[test]
fn when_both_dial_one_connection_stays() {
    each(|choice| {
        let mut ends = group(2, choice);
        // Both at once: the head start has passed on the higher one, too.
        for _ in 0..11 {
            ends[1].tick();
        }
        ends[0].tick();
        assert!(ends.iter().all(|e| e.peers.conns.len() == 1));
        until(&mut ends, "one is left", |ends| {
            ends.iter()
                .all(|e| e.peers.up.len() == 1 && e.peers.conns.len() == 1)
        });
        ends[0].send(2, &b"hello"[..]);
        ends[1].send(1, &b"there"[..]);
        until(&mut ends, "it works both ways", |ends| {
            ends[0].frames(2).len() == 1 && ends[1].frames(1).len() == 1
        });
        let conn = ends[0].peers.conns.values().next().unwrap();
        assert_eq!(conn.dialled(), Some(MemberId(2)), "the lower one's");
    });
}

#[test]
fn a_wrong_secret_gets_nowhere() {
    each(|choice| {
        let mut wrong = local(2, 1);
        wrong.secret[0] ^= 1;
        let mut ends = vec![End::new(local(1, 1), choice), End::new(wrong, choice)];
        introduce(&mut ends);
        for _ in 0..40 {
            ends.iter_mut().for_each(End::tick);
            ends.iter_mut().for_each(End::turn);
        }
        until(&mut ends, "both dialled", |ends| {
            ends.iter().all(|e| !e.notices.is_empty())
        });
        let secret = "the other end does not know the group's secret";
        for end in &ends {
            assert!(end.inputs.is_empty(), "{:?}", end.inputs);
            let said = |n: &Notice| matches!(n, Notice::Refused(why) if why == secret);
            assert!(end.notices.iter().all(said), "{:?}", end.notices);
        }
    });
}

#[test]
fn changed_and_repeated_frames_end_the_connection() {
    each(|choice| {
        for forge in [
            (|f: &mut Vec<u8>| f[FRAME_HEADER_BYTES] ^= 1) as fn(&mut Vec<u8>),
            |f| f.extend_from_within(..),
            |f| f[..4].copy_from_slice(&u32::MAX.to_le_bytes()),
        ] {
            let mut end = End::new(local(1, 1), choice);
            let mut stranger = Stranger::dial(local(2, 1), &mut end).unwrap();
            let good = stranger.frame(b"good");
            let mut bad = stranger.frame(b"bad");
            forge(&mut bad);
            stranger.stream.write_all(&good).unwrap();
            stranger.stream.write_all(&bad).unwrap();
            let mut ends = [end];
            until(&mut ends, "it is dropped", |e| e[0].downs(2) == 1);
            let frames = ends[0].frames(2);
            assert_eq!(frames[0], &b"good"[..]);
            assert!(frames[1..].iter().all(|f| &f[..] == b"bad") && frames.len() <= 2);
            assert_eq!(ends[0].peers.conns.len(), 0);
        }
    });
}

#[test]
fn a_flood_of_strangers_is_bounded_and_members_still_connect() {
    each(|choice| {
        let mut ends = group(2, choice);
        let mut flood = Vec::new();
        for i in 0..100 {
            flood.push(TcpStream::connect(ends[1].address()).unwrap());
            if i % 10 == 0 {
                ends[1].turn();
            }
            assert!(ends[1].peers.conns.len() <= HALF_OPEN_MAX);
        }
        connect_all(&mut ends);
        assert!(ends[1].peers.half_open.len() <= HALF_OPEN_MAX);
        // They say nothing, so they go.
        for _ in 0..=HANDSHAKE_TICKS {
            ends[1].tick();
        }
        assert_eq!(ends[1].peers.half_open.len(), 0);
        drop(flood);
    });
}

#[test]
fn servers_that_ask_to_join_get_their_answer() {
    each(|choice| {
        let mut end = End::new(local(1, 1), choice);
        let mut joiner = Stranger::dial(local(0, 0), &mut end).unwrap();
        let request = joiner.frame(b"please");
        joiner.stream.write_all(&request).unwrap();
        let mut ends = [end];
        until(&mut ends, "the request is there", |e| {
            !e[0].inputs.is_empty()
        });
        let [mut end] = ends;
        let Input::Join { connection, bytes } = &end.inputs[0] else {
            panic!("{:?}", end.inputs)
        };
        assert_eq!(&bytes[..], b"please");
        let connection = *connection;
        let answer = Bytes::from_static(b"welcome");
        end.peers
            .reply(connection, answer, &mut *end.backend, &mut end.inputs);
        let mut reply = vec![0; FRAME_HEADER_BYTES + 7];
        read(&mut joiner.stream, &mut reply, &mut end).unwrap();
        let (header, payload) = reply.split_first_chunk().unwrap();
        joiner.session.opener.open(header, payload).unwrap();
        assert_eq!(payload, b"welcome");
        // It is no member: nothing can be sent to it as one, and its silence ends it.
        assert!(!end.peers.connected(MemberId(0)));
        for _ in 0..=SILENCE_TICKS {
            end.tick();
        }
        assert_eq!(end.peers.conns.len(), 0);
    });
}

#[test]
fn a_new_life_takes_over_and_a_former_one_is_refused() {
    each(|choice| {
        let mut end = End::new(local(1, 1), choice);
        let third = Stranger::dial(local(2, 3), &mut end).unwrap();
        let mut ends = [end];
        until(&mut ends, "the third life is up", |e| e[0].ups(2) == 1);
        let [mut end] = ends;
        let fourth = Stranger::dial(local(2, 4), &mut end).unwrap();
        let mut ends = [end];
        until(&mut ends, "the fourth life is up", |e| e[0].ups(2) == 2);
        let [mut end] = ends;
        assert_eq!((end.downs(2), end.peers.conns.len()), (1, 1));
        assert!(Stranger::dial(local(2, 3), &mut end).is_err());
        assert_eq!((end.downs(2), end.peers.conns.len()), (1, 1));
        drop((third, fourth));
    });
}

#[test]
fn silence_ends_a_connection_and_life_signs_keep_it() {
    each(|choice| {
        let mut ends = group(2, choice);
        connect_all(&mut ends);
        for _ in 0..3 * SILENCE_TICKS {
            ends.iter_mut().for_each(End::tick);
            // Both turn until what the tick sent has arrived.
            for _ in 0..4 {
                ends.iter_mut().for_each(End::turn);
            }
        }
        assert!(ends.iter().all(|e| e.peers.up.len() == 1));
        assert_eq!((ends[0].downs(2), ends[1].downs(1)), (0, 0));
        for _ in 0..=SILENCE_TICKS {
            ends[0].tick();
        }
        assert_eq!(ends[0].downs(2), 1);
        until(&mut ends, "the other notices", |e| e[1].downs(1) == 1);
    });
}

#[test]
fn who_does_not_read_is_dropped() {
    each(|choice| {
        let mut end = End::new(local(1, 1), choice);
        let stranger = Stranger::dial(local(2, 1), &mut end).unwrap();
        let mut ends = [end];
        until(&mut ends, "it is up", |e| e[0].ups(2) == 1);
        let [mut end] = ends;
        end.peers
            .conns
            .values_mut()
            .for_each(|c| c.bound_queue(32 << 20));
        for _ in 0..64 {
            end.send(2, vec![0; 1 << 20]);
            end.turn();
        }
        assert_eq!((end.downs(2), end.peers.conns.len()), (1, 0));
        drop(stranger);
    });
}
