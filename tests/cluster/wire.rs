//! A client that speaks the protocol itself, message by message.

use crate::support::{PATIENCE, TestGroup};
use bytes::{BufMut, BytesMut};
use postgres::fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;

/// What a server answers, as far as it matters here. Rows are in [`Session::rows`].
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Parsed,
    Bound,
    Closed,
    /// There may be more rows than were asked for.
    Suspended,
    /// The command's tag.
    Complete(String),
    /// The SQLSTATE.
    Error(String),
    /// The state of the transaction: `I`dle, in `T`ransaction, or failed (`E`).
    Ready(char),
}
use Answer::{Bound, Closed, Parsed, Ready, Suspended};

pub fn complete(tag: &str) -> Answer {
    Answer::Complete(tag.into())
}

/// The answer to a victim.
pub fn lost() -> Answer {
    Answer::Error("40001".into())
}

/// A client that decides itself which message it sends when.
pub struct Session {
    stream: TcpStream,
    unsent: BytesMut,
    unread: BytesMut,
    /// DETAIL of the last error.
    pub detail: String,
    /// Rows among what was answered last.
    pub rows: Vec<Vec<Vec<u8>>>,
}

impl Session {
    pub fn connect(group: &TestGroup, number: usize) -> Session {
        let server = group.member(number).expect("member");
        let stream = TcpStream::connect(("127.0.0.1", server.port)).expect("connect");
        stream.set_nodelay(true).expect("no delay");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("set a timeout");
        let mut session = Session {
            stream,
            unsent: BytesMut::new(),
            unread: BytesMut::new(),
            detail: String::new(),
            rows: Vec::new(),
        };
        let parameters = [
            ("user", "postgres"),
            ("database", group.database.as_str()),
            ("client_encoding", "UTF8"),
        ];
        frontend::startup_message(parameters, &mut session.unsent).expect("startup");
        session.expect(&[Ready('I')]);
        session
    }

    pub fn parse(&mut self, name: &str, sql: &str) -> &mut Session {
        frontend::parse(name, sql, [], &mut self.unsent).expect("Parse");
        self
    }

    pub fn bind(&mut self, name: &str) -> &mut Session {
        self.bind_values("", name, &[])
    }

    /// Values and results are binary.
    pub fn bind_values(&mut self, portal: &str, name: &str, values: &[&[u8]]) -> &mut Session {
        let value = |value: &[u8], to: &mut BytesMut| {
            to.put_slice(value);
            Ok(IsNull::No)
        };
        let values = values.iter().copied();
        let bound = frontend::bind(portal, name, [1], values, value, [1], &mut self.unsent);
        assert!(bound.is_ok(), "Bind");
        self
    }

    /// A portal (`P`) or a statement (`S`).
    pub fn describe(&mut self, kind: u8, name: &str) -> &mut Session {
        frontend::describe(kind, name, &mut self.unsent).expect("Describe");
        self
    }

    pub fn execute(&mut self) -> &mut Session {
        self.execute_portal("", 0)
    }

    /// So many rows at most, 0 for all.
    pub fn execute_portal(&mut self, portal: &str, rows: i32) -> &mut Session {
        frontend::execute(portal, rows, &mut self.unsent).expect("Execute");
        self
    }

    /// A statement.
    pub fn close(&mut self, name: &str) -> &mut Session {
        frontend::close(b'S', name, &mut self.unsent).expect("Close");
        self
    }

    pub fn close_portal(&mut self, name: &str) -> &mut Session {
        frontend::close(b'P', name, &mut self.unsent).expect("Close");
        self
    }

    /// Parse, Bind and Execute.
    pub fn run(&mut self, sql: &str) -> &mut Session {
        self.parse("", sql).bind("").execute()
    }

    pub fn sync(&mut self) -> &mut Session {
        frontend::sync(&mut self.unsent);
        self
    }

    pub fn flush(&mut self) -> &mut Session {
        frontend::flush(&mut self.unsent);
        self
    }

    pub fn query(&mut self, sql: &str) -> &mut Session {
        frontend::query(sql, &mut self.unsent).expect("Query");
        self
    }

    /// Sends what was made.
    pub fn send(&mut self) {
        self.stream.write_all(&self.unsent).expect("send");
        self.unsent.clear();
    }

    /// Sends what was made, and asserts that exactly this is answered.
    pub fn expect(&mut self, wanted: &[Answer]) {
        self.send();
        self.rows.clear();
        let mut answers = Vec::new();
        while answers.len() < wanted.len() {
            answers.push(self.answer());
            let last = answers.len() - 1;
            assert_eq!(answers[last], wanted[last], "{answers:?}, {}", self.detail);
        }
    }

    fn answer(&mut self) -> Answer {
        loop {
            let Some(message) = Message::parse(&mut self.unread).expect("a message") else {
                let mut bytes = [0; 4096];
                let n = self.stream.read(&mut bytes).expect("an answer");
                assert!(n > 0, "the server closed the connection");
                self.unread.extend_from_slice(&bytes[..n]);
                continue;
            };
            return match message {
                Message::ParseComplete => Parsed,
                Message::BindComplete => Bound,
                Message::CloseComplete => Closed,
                Message::PortalSuspended => Suspended,
                Message::CommandComplete(body) => complete(body.tag().expect("a tag")),
                Message::ReadyForQuery(body) => Ready(body.status().into()),
                Message::ErrorResponse(body) => self.error(body.fields()),
                Message::DataRow(body) => {
                    let value = |range: Option<Range<usize>>| {
                        body.buffer()[range.expect("not null")].to_vec()
                    };
                    let row = body.ranges().map(|range| Ok(value(range))).collect();
                    self.rows.push(row.expect("a row"));
                    continue;
                }
                _ => continue,
            };
        }
    }

    fn error(&mut self, mut fields: ErrorFields<'_>) -> Answer {
        let mut code = String::new();
        self.detail.clear();
        while let Some(field) = fields.next().expect("a field") {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => code = value,
                b'D' => self.detail = value,
                _ => {}
            }
        }
        Answer::Error(code)
    }
}
