//! A client whose statements run while we look at others.

use postgres::{Client, SimpleQueryMessage};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What a statement came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It returned no rows' description.
    Done,
    /// Columns joined by `|`, rows by `, `.
    Rows(String),
    /// SQLSTATE and message.
    Failed(String, String),
}

impl Answer {
    /// As expectations name it.
    pub fn value(&self) -> &str {
        match self {
            Answer::Done => "ok",
            Answer::Rows(rows) if rows.is_empty() => "none",
            Answer::Rows(rows) => rows,
            Answer::Failed(code, _) => code,
        }
    }
}

/// A connection in a thread of its own, which ends with it.
pub struct Session {
    /// Process of the server.
    pub pid: i32,
    statements: Sender<String>,
    answers: Receiver<Answer>,
}

impl Session {
    /// Takes over a new connection.
    pub fn new(mut client: Client) -> Result<Session, String> {
        let row = client.query_one("SELECT pg_backend_pid()", &[]);
        let pid = row.map_err(|e| format!("{e:?}"))?.get(0);
        let (statements, todo) = channel::<String>();
        let (done, answers) = channel();
        std::thread::spawn(move || {
            for sql in todo {
                if done.send(ask(&mut client, &sql)).is_err() {
                    break;
                }
            }
        });
        Ok(Session {
            pid,
            statements,
            answers,
        })
    }

    /// Sends a statement; its answer is to be taken before the next.
    pub fn send(&self, sql: &str) {
        let sent = self.statements.send(sql.to_owned());
        sent.expect("the session's thread lives as long as this");
    }

    /// The answer, if it comes in time.
    pub fn answer(&self, timeout: Duration) -> Option<Answer> {
        self.answers.recv_timeout(timeout).ok()
    }
}

/// Runs a statement.
pub fn ask(client: &mut Client, sql: &str) -> Answer {
    let messages = match client.simple_query(sql) {
        Ok(messages) => messages,
        Err(e) => {
            return match e.as_db_error() {
                Some(db) => Answer::Failed(db.code().code().into(), db.message().into()),
                None => Answer::Failed("lost".into(), format!("{e:?}")),
            };
        }
    };
    let (mut described, mut rows) = (false, Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => described = true,
            SimpleQueryMessage::Row(row) => {
                let columns: Vec<&str> = (0..row.len())
                    .map(|i| row.get(i).unwrap_or_default())
                    .collect();
                rows.push(columns.join("|"));
            }
            _ => {}
        }
    }
    if described {
        Answer::Rows(rows.join(", "))
    } else {
        Answer::Done
    }
}
