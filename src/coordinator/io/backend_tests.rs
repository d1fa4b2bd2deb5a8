//! The same tests for both backends.

use super::*;
use crate::coordinator::io::net;
use std::io::Read;
use std::time::Instant;

/// Runs a test body on poll, and on io_uring where it can be had.
fn both(body: fn(&mut dyn Backend)) {
    body(&mut Poll::new());
    match Uring::new() {
        Ok(mut ring) => body(&mut ring),
        Err(e) => eprintln!("io_uring can't be had here ({e}): only poll was tested"),
    }
}

const LONG: Duration = Duration::from_secs(20);

/// Waits until a token's operation completes; other completions are kept in `others`.
fn expect(backend: &mut dyn Backend, token: Token, others: &mut Vec<Completion>) -> Outcome {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(at) = others.iter().position(|c| c.token == token) {
            return others.swap_remove(at).outcome;
        }
        assert!(Instant::now() < deadline, "{token:?} never completed");
        backend.wait(LONG, others).expect("the backend works");
    }
}

fn temp_dir(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("pgr-io-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    dir
}

/// Two connected sockets, made through the backend.
fn pair(backend: &mut dyn Backend) -> (Rc<TcpStream>, Rc<TcpStream>) {
    let nonblocking = backend.nonblocking_sockets();
    let listener = Rc::new(net::listen("127.0.0.1:0".parse().unwrap(), nonblocking).unwrap());
    let address = listener.local_addr().unwrap();
    backend.submit(Token::Listener, Op::Accept { listener });
    let socket = Rc::new(net::unconnected(address, address, nonblocking).unwrap());
    backend.submit(
        Token::Dial(1),
        Op::Connect {
            socket: socket.clone(),
            address,
        },
    );
    let mut others = Vec::new();
    let Outcome::Accepted(Ok(peer)) = expect(backend, Token::Listener, &mut others) else {
        panic!()
    };
    let Outcome::Connected(Ok(())) = expect(backend, Token::Dial(1), &mut others) else {
        panic!()
    };
    net::prepare(&peer, nonblocking).unwrap();
    (socket, Rc::new(peer))
}

#[test]
fn a_megabyte_in_many_pieces_arrives_in_order() {
    both(|backend| {
        let (a, b) = pair(backend);
        // More pieces than one call takes, of all sizes, more bytes than the socket buffers.
        let pieces: Vec<Bytes> = (0..1200usize)
            .map(|i| Bytes::from(vec![(i % 251) as u8; (i * 7) % 4000]))
            .collect();
        let all: Vec<u8> = pieces.concat();
        backend.submit(
            Token::Send(1),
            Op::Send {
                socket: a,
                data: pieces,
            },
        );
        let mut got = Vec::new();
        let mut others = Vec::new();
        let mut buf = vec![0; 65536];
        while got.len() < all.len() {
            backend.submit(
                Token::Recv(2),
                Op::Recv {
                    socket: b.clone(),
                    buf,
                },
            );
            let Outcome::Received { buf: back, result } =
                expect(backend, Token::Recv(2), &mut others)
            else {
                panic!()
            };
            got.extend_from_slice(&back[..result.unwrap()]);
            buf = back;
        }
        assert!(got == all, "bytes differ");
        assert!(matches!(
            expect(backend, Token::Send(1), &mut others),
            Outcome::Sent(Ok(()))
        ));
    });
}

#[test]
fn the_end_of_a_stream_and_a_refused_connect_are_told() {
    both(|backend| {
        let (a, b) = pair(backend);
        let buf = vec![0; 16];
        backend.submit(Token::Recv(1), Op::Recv { socket: a, buf });
        b.shutdown(std::net::Shutdown::Both).unwrap();
        let mut others = Vec::new();
        let Outcome::Received { result, .. } = expect(backend, Token::Recv(1), &mut others) else {
            panic!()
        };
        assert_eq!(result.unwrap(), 0);

        let nonblocking = backend.nonblocking_sockets();
        let unused = net::listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address = unused.local_addr().unwrap();
        drop(unused);
        let socket = Rc::new(net::unconnected(address, address, nonblocking).unwrap());
        backend.submit(Token::Dial(2), Op::Connect { socket, address });
        let Outcome::Connected(result) = expect(backend, Token::Dial(2), &mut others) else {
            panic!()
        };
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn sending_to_a_closed_peer_is_an_error_not_a_signal() {
    both(|backend| {
        let (a, b) = pair(backend);
        drop(b);
        let mut others = Vec::new();
        let deadline = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < deadline);
            let data = vec![Bytes::from_static(&[7; 4096])];
            backend.submit(
                Token::Send(1),
                Op::Send {
                    socket: a.clone(),
                    data,
                },
            );
            let Outcome::Sent(result) = expect(backend, Token::Send(1), &mut others) else {
                panic!()
            };
            if result.is_err() {
                break;
            }
        }
    });
}

#[test]
fn a_cancelled_receive_gives_its_buffer_back() {
    both(|backend| {
        let (a, _b) = pair(backend);
        backend.submit(
            Token::Recv(1),
            Op::Recv {
                socket: a,
                buf: vec![0; 99],
            },
        );
        let mut others = Vec::new();
        backend.wait(Duration::ZERO, &mut others).unwrap();
        assert!(others.is_empty());
        backend.cancel(Token::Recv(1));
        let Outcome::Received { buf, result } = expect(backend, Token::Recv(1), &mut others) else {
            panic!()
        };
        assert_eq!(
            (buf.len(), result.unwrap_err().raw_os_error()),
            (99, Some(libc::ECANCELED))
        );
        // There is nothing to cancel any more, and that is fine.
        backend.cancel(Token::Recv(1));
        backend.wait(Duration::ZERO, &mut others).unwrap();
        assert!(others.is_empty());
    });
}

#[test]
fn a_write_lands_where_it_should_and_long_lists_are_whole() {
    both(|backend| {
        let dir = temp_dir(&format!("write-{}", backend.name()));
        let path = dir.join("file");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let file = Rc::new(file);
        let pieces: Vec<Bytes> = (0..700usize)
            .map(|i| Bytes::from(vec![(i % 256) as u8; i]))
            .collect();
        let all = pieces.concat();
        backend.submit(
            Token::Log,
            Op::Write {
                file: file.clone(),
                offset: 10,
                data: pieces,
                flush: Flush::Content,
            },
        );
        let mut others = Vec::new();
        assert!(matches!(
            expect(backend, Token::Log, &mut others),
            Outcome::Written(Ok(()))
        ));
        let one = vec![Bytes::from_static(b"0123456789")];
        backend.submit(
            Token::Log,
            Op::Write {
                file: file.clone(),
                offset: 0,
                data: one,
                flush: Flush::No,
            },
        );
        assert!(matches!(
            expect(backend, Token::Log, &mut others),
            Outcome::Written(Ok(()))
        ));
        for flush in [Flush::No, Flush::Content, Flush::Whole] {
            backend.submit(
                Token::Log,
                Op::Write {
                    file: file.clone(),
                    offset: 0,
                    data: Vec::new(),
                    flush,
                },
            );
            assert!(matches!(
                expect(backend, Token::Log, &mut others),
                Outcome::Written(Ok(()))
            ));
        }
        let mut got = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut got).unwrap();
        assert_eq!(&got[..10], b"0123456789");
        assert!(got[10..] == all, "bytes differ");
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn a_failed_write_is_reported_not_repeated() {
    both(|backend| {
        let dir = temp_dir(&format!("fail-{}", backend.name()));
        let path = dir.join("file");
        std::fs::write(&path, b"").unwrap();
        let read_only = Rc::new(File::open(&path).unwrap());
        let data = vec![Bytes::from_static(b"x")];
        backend.submit(
            Token::Log,
            Op::Write {
                file: read_only,
                offset: 0,
                data,
                flush: Flush::Content,
            },
        );
        let mut others = Vec::new();
        let Outcome::Written(result) = expect(backend, Token::Log, &mut others) else {
            panic!()
        };
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        // A descriptor that can't be synced: the write goes through, its sync fails.
        let (a, _b) = nix::unistd::pipe().unwrap();
        let pipe = Rc::new(File::from(a));
        backend.submit(
            Token::Log,
            Op::Write {
                file: pipe,
                offset: 0,
                data: Vec::new(),
                flush: Flush::Content,
            },
        );
        let Outcome::Written(result) = expect(backend, Token::Log, &mut others) else {
            panic!()
        };
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn an_eventfd_wakes_and_nothing_else_does() {
    both(|backend| {
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let fd = Rc::new(
            std::os::fd::AsFd::as_fd(&event)
                .try_clone_to_owned()
                .unwrap(),
        );
        backend.submit(Token::Wake, Op::Readable { fd });
        let mut others = Vec::new();
        let start = Instant::now();
        backend
            .wait(Duration::from_millis(30), &mut others)
            .unwrap();
        assert!(others.is_empty() && start.elapsed() >= Duration::from_millis(20));
        event.write(1).unwrap();
        assert!(matches!(
            expect(backend, Token::Wake, &mut others),
            Outcome::Readable(Ok(()))
        ));
    });
}

#[test]
fn more_operations_than_the_ring_has_entries() {
    both(|backend| {
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let fd = Rc::new(
            std::os::fd::AsFd::as_fd(&event)
                .try_clone_to_owned()
                .unwrap(),
        );
        for id in 0..2000 {
            backend.submit(Token::Dial(id), Op::Readable { fd: fd.clone() });
        }
        event.write(1).unwrap();
        let mut done = Vec::new();
        let deadline = Instant::now() + LONG;
        while done.len() < 2000 {
            assert!(Instant::now() < deadline);
            backend.wait(LONG, &mut done).unwrap();
        }
        let mut ids: Vec<u64> = done
            .iter()
            .map(|c| match c.token {
                Token::Dial(id) => id,
                other => panic!("{other:?}"),
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..2000).collect::<Vec<u64>>());
    });
}

#[test]
fn a_backend_ends_with_operations_in_flight() {
    let run = |mut backend: Box<dyn Backend>| {
        let (a, b) = pair(&mut *backend);
        backend.submit(
            Token::Recv(1),
            Op::Recv {
                socket: a.clone(),
                buf: vec![0; 4096],
            },
        );
        let data = vec![Bytes::from(vec![1; 64 << 20])];
        backend.submit(
            Token::Send(1),
            Op::Send {
                socket: a.clone(),
                data,
            },
        );
        backend.wait(Duration::ZERO, &mut Vec::new()).unwrap();
        let start = Instant::now();
        drop(backend);
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "nothing here takes that long to cancel"
        );
        // Nobody but the test holds the socket any more.
        assert_eq!(Rc::strong_count(&a), 1);
        drop(b);
    };
    run(Box::new(Poll::new()));
    if let Ok(ring) = Uring::new() {
        run(Box::new(ring));
    }
}

#[test]
fn the_choice_is_kept() {
    let (poll, why) = open(Choice::Poll).unwrap();
    assert_eq!((poll.name(), why.is_none()), ("poll", true));
    let (any, why) = open(Choice::Auto).unwrap();
    assert_eq!(
        any.name() == "poll",
        why.is_some(),
        "falling back has a reason"
    );
    match open(Choice::Uring) {
        Ok((ring, _)) => assert_eq!(ring.name(), "io_uring"),
        Err(_) => assert_eq!(any.name(), "poll"),
    }
}
