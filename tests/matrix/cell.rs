//! A cell of the matrix: statements on a table, run in the group and on one server.

use postgres::{Client, SimpleQueryMessage};

/// In place of an SQLSTATE if there was no answer.
pub const LOST: &str = "lost";

/// What is run on what.
pub struct Cell {
    pub statement: String,
    pub table: String,
    /// The line of the output that it counts for.
    pub line: String,
    /// Cells of a lane run one after the other.
    pub lane: usize,
    /// Where, from 1.
    pub member: usize,
    /// What the session is set to.
    pub before: Vec<String>,
    pub run: Vec<String>,
    /// One server must answer the same, and hold the same rows.
    pub compared: bool,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Rows of all statements; sorted, for no member has to scan in the order of another.
    Done(Vec<String>),
    Failed(Failure),
}

/// An error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
}

impl Outcome {
    /// SQLSTATE, `ok` if there was no error.
    pub fn code(&self) -> &str {
        match self {
            Outcome::Done(_) => "ok",
            Outcome::Failed(f) => &f.code,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Done(rows) => write!(f, "ok {}", rows.join(", ")),
            Outcome::Failed(Failure {
                code,
                message,
                hint: Some(hint),
            }) => write!(f, "{code} {message} HINT: {hint}"),
            Outcome::Failed(Failure {
                code,
                message,
                hint: None,
            }) => write!(f, "{code} {message}"),
        }
    }
}

impl Cell {
    /// Runs it in a session that has nothing open.
    pub fn run(&self, client: &mut Client) -> Outcome {
        let outcome = self.try_run(client);
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(failure(&error)));
        if matches!(outcome, Outcome::Failed(_)) {
            // It may have been in a block.
            let _ = client.batch_execute("ROLLBACK");
        }
        if !self.before.is_empty() {
            let _ = client.batch_execute("RESET ROLE");
        }
        if matches!(outcome, Outcome::Failed(_)) {
            let _ = client.batch_execute("RESET session_replication_role");
        }
        outcome
    }

    /// Whether one server would do what is refused: in a block that is rolled back.
    pub fn would_run(&self, client: &mut Client) -> Outcome {
        let ends = |sql: &String| {
            ["BEGIN", "COMMIT", "ROLLBACK"]
                .iter()
                .any(|w| sql.starts_with(w))
        };
        if self.run.iter().any(ends) {
            return Outcome::Done(Vec::new());
        }
        let outcome = client
            .batch_execute("BEGIN")
            .and_then(|()| self.try_run(client));
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(failure(&error)));
        let _ = client.batch_execute("ROLLBACK");
        outcome
    }

    fn try_run(&self, client: &mut Client) -> Result<Outcome, postgres::Error> {
        for sql in &self.before {
            client.batch_execute(sql)?;
        }
        let mut rows = Vec::new();
        for sql in &self.run {
            for message in client.simple_query(sql)? {
                if let SimpleQueryMessage::Row(row) = message {
                    let columns = (0..row.len()).map(|i| row.get(i).unwrap_or("null"));
                    rows.push(columns.collect::<Vec<_>>().join("|"));
                }
            }
        }
        rows.sort();
        Ok(Outcome::Done(rows))
    }
}

/// An error, as it is compared.
pub fn failure(error: &postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(db) => Failure {
            code: db.code().code().to_owned(),
            message: db.message().to_owned(),
            hint: db.hint().map(str::to_owned),
        },
        None => Failure {
            code: LOST.into(),
            message: format!("{error:?}"),
            hint: None,
        },
    }
}
