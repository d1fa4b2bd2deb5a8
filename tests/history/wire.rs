//! A session that tells apart what a recorder must tell apart: an answer, a refusal, and silence.
//!
//! The tag of COMMIT matters: in a failed block the server answers it with ROLLBACK, not with an error.

use bytes::BytesMut;
use postgres::fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Why a statement has no result.
#[derive(Debug)]
pub enum Failure {
    /// The server said no, with this SQLSTATE, and the session goes on.
    Refused(String),
    /// The server ended the session with this SQLSTATE.
    Ended(String),
    /// The connection broke, or no answer came in time.
    Lost(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Lost(error.kind().to_string())
    }
}

/// What a statement gave.
#[derive(Debug, Default)]
pub struct Answer {
    /// The command's tag.
    pub tag: String,
    /// The first column of its rows, as text.
    pub column: Vec<String>,
}

pub struct Session {
    stream: TcpStream,
    unread: BytesMut,
}

impl Session {
    /// A session with a server on this machine that waits for no answer longer than `patience`.
    pub fn connect(
        port: u16,
        database: &str,
        options: &str,
        patience: Duration,
    ) -> Result<Session, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut session = Session {
            stream,
            unread: BytesMut::new(),
        };
        let mut startup = BytesMut::new();
        let parameters = [
            ("user", "postgres"),
            ("database", database),
            ("options", options),
        ];
        frontend::startup_message(parameters, &mut startup)?;
        session.stream.write_all(&startup)?;
        session.answer()?;
        Ok(session)
    }

    /// Runs one statement to its end.
    pub fn query(&mut self, sql: &str) -> Result<Answer, Failure> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message)?;
        self.stream.write_all(&message)?;
        self.answer()
    }

    /// Reads until the server is ready for the next statement.
    fn answer(&mut self) -> Result<Answer, Failure> {
        let mut answer = Answer::default();
        let mut refused = None;
        loop {
            let Some(message) = Message::parse(&mut self.unread)? else {
                let mut bytes = [0; 8192];
                let ended = match self.stream.read(&mut bytes) {
                    Ok(0) => "closed".into(),
                    Ok(n) => {
                        self.unread.extend_from_slice(&bytes[..n]);
                        continue;
                    }
                    Err(error) => error.kind().to_string(),
                };
                // What it said last was its last word, not an answer after which it goes on.
                return Err(refused.map_or(Failure::Lost(ended), Failure::Ended));
            };
            match message {
                Message::DataRow(row) => {
                    if let Some(Some(range)) = row.ranges().next()? {
                        let text = String::from_utf8_lossy(&row.buffer()[range]).into_owned();
                        answer.column.push(text);
                    }
                }
                Message::CommandComplete(body) => answer.tag = body.tag()?.to_owned(),
                Message::ErrorResponse(body) => refused = Some(sqlstate(body.fields())?),
                Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        refused.map_or(Ok(answer), |sqlstate| Err(Failure::Refused(sqlstate)))
    }
}

fn sqlstate(mut fields: ErrorFields<'_>) -> std::io::Result<String> {
    while let Some(field) = fields.next()? {
        if field.type_() == b'C' {
            return Ok(String::from_utf8_lossy(field.value_bytes()).into_owned());
        }
    }
    Ok("no SQLSTATE".into())
}
