//! How long a transaction that is in the way keeps another member's commit from being applied: from
//! the commit's acknowledgement on its member until a query on the victim's member shows it.

use postgres::error::SqlState;
use postgres::{Client, Error};
use postgres_r::cluster::{Cluster, Server};
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// A row for each kind of victim to hold, another one for it to change in peace, and somewhere to copy to.
pub const TABLES: &str = "CREATE TABLE contended (id int4 PRIMARY KEY, v int4); INSERT INTO contended SELECT i, 0 FROM generate_series(0, 99) i;
    CREATE TABLE copied (id int4 PRIMARY KEY);";

/// Long enough for a loaded machine; a victim that needs it all has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the victim is at.
#[derive(Clone, Copy)]
enum Kind {
    /// There is none: what the others are to be compared with.
    Nobody,
    Idle,
    Query,
    Sleep,
    Copy,
    Cursor,
}

const KINDS: [Kind; 6] = [
    Kind::Nobody,
    Kind::Idle,
    Kind::Query,
    Kind::Sleep,
    Kind::Copy,
    Kind::Cursor,
];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Nobody => "no victim",
            Kind::Idle => "idle in transaction",
            Kind::Query => "long query",
            Kind::Sleep => "pg_sleep",
            Kind::Copy => "COPY FROM STDIN",
            Kind::Cursor => "open cursor",
        }
    }

    /// Says of a session that it is there (`pid = $1`).
    fn is_there(self) -> &'static str {
        match self {
            Kind::Nobody | Kind::Idle => "state = 'idle in transaction'",
            Kind::Cursor => "state = 'idle in transaction' AND query LIKE 'DECLARE %'",
            Kind::Query => "state = 'active' AND query LIKE 'SELECT count%' AND wait_event IS NULL",
            Kind::Sleep => "wait_event = 'PgSleep'",
            Kind::Copy => {
                "wait_event = 'ClientRead' AND pid IN (SELECT pid FROM pg_stat_progress_copy WHERE tuples_processed > 0)"
            }
        }
    }

    /// Gets into the way of changes of a row, and stays there until it fails, or is let go.
    fn hold(self, client: &mut Client, id: i32, go: &Receiver<()>) -> Result<(), Error> {
        client.batch_execute("BEGIN")?;
        client.execute("UPDATE contended SET v = -1 WHERE id = $1", &[&id])?;
        match self {
            Kind::Nobody | Kind::Idle => {}
            Kind::Query => client.batch_execute(
                "SELECT count(*) FROM (SELECT generate_series(1, 1000000000000)) s",
            )?,
            Kind::Sleep => client.batch_execute("SELECT pg_sleep(600)")?,
            Kind::Copy => {
                let mut rows = client.copy_in("COPY copied FROM STDIN")?;
                // More than the client and the server collect.
                // If that fails the end will say why.
                let _ = (0..20_000).try_for_each(|i| writeln!(rows, "{i}"));
                let _ = go.recv();
                rows.finish()?;
            }
            Kind::Cursor => {
                client.batch_execute("DECLARE k CURSOR FOR SELECT * FROM contended; FETCH k")?
            }
        }
        let _ = go.recv();
        client.batch_execute("COMMIT")
    }
}

/// A line for each kind, after so many rounds.
pub fn measure(cluster: &Cluster, rounds: u32) -> Result<Vec<String>, String> {
    let mut lines = vec![format!(
        "{:<20} {:>8} {:>8} {:>8}   ms to give way, {rounds} rounds",
        "victim", "p50", "p99", "max"
    )];
    for (id, kind) in KINDS.into_iter().enumerate() {
        let mut times = rounds_of(cluster, kind, id as i32, rounds)
            .map_err(|e| format!("victims, {}: {e}", kind.name()))?;
        times.sort_unstable();
        let at = |part: f64| {
            let index = (part * times.len() as f64).ceil() as usize;
            times[index.clamp(1, times.len()) - 1].as_secs_f64() * 1e3
        };
        lines.push(format!(
            "{:<20} {:>8.2} {:>8.2} {:>8.2}",
            kind.name(),
            at(0.5),
            at(0.99),
            at(1.0)
        ));
    }
    Ok(lines)
}

fn connect(cluster: &Cluster, server: &Server) -> Result<Client, String> {
    server.connect(&cluster.database).map_err(|e| e.to_string())
}

fn rounds_of(cluster: &Cluster, kind: Kind, id: i32, rounds: u32) -> Result<Vec<Duration>, String> {
    let told = |e: Error| format!("{e:?}");
    let (here, there) = (&cluster.servers[0], &cluster.servers[1]);
    let (mut reader, mut writer) = (connect(cluster, here)?, connect(cluster, there)?);
    let read = reader
        .prepare("SELECT v FROM contended WHERE id = $1")
        .map_err(told)?;
    let write = writer
        .prepare("UPDATE contended SET v = $2 WHERE id = $1")
        .map_err(told)?;
    let victim = Victim::new(connect(cluster, here)?, kind, id)?;
    let mut times = Vec::new();
    for round in 1..=rounds as i32 {
        if !matches!(kind, Kind::Nobody) {
            victim.begin();
            victim.await_there(&mut reader)?;
        }
        writer.execute(&write, &[&id, &round]).map_err(told)?;
        // A query after the other: that is as fine as the figures are.
        let acknowledged = Instant::now();
        while reader
            .query_one(&read, &[&id])
            .map_err(told)?
            .get::<_, i32>(0)
            != round
        {
            if acknowledged.elapsed() > PATIENCE {
                return Err("it does not give way".into());
            }
        }
        times.push(acknowledged.elapsed());
        if !matches!(kind, Kind::Nobody) {
            victim.end()?;
        }
    }
    Ok(times)
}

/// A session in a thread of its own, which ends with it. Those that are at something fail at once, the
/// others when they are let go.
struct Victim {
    kind: Kind,
    pid: i32,
    begin: Sender<()>,
    go: Sender<()>,
    /// Of the transaction, and of the next one.
    outcomes: Receiver<(Result<(), Error>, Result<(), Error>)>,
}

impl Victim {
    fn new(mut client: Client, kind: Kind, id: i32) -> Result<Victim, String> {
        let row = client.query_one("SELECT pg_backend_pid()", &[]);
        let pid = row.map_err(|e| format!("{e:?}"))?.get(0);
        let (begin, rounds) = channel();
        let (go, held) = channel();
        let (told, outcomes) = channel();
        std::thread::spawn(move || {
            for () in rounds {
                let outcome = kind.hold(&mut client, id, &held);
                // The session is usable. One that only ever loses would get a reservation.
                let usable = client.batch_execute(&format!(
                    "ROLLBACK; UPDATE contended SET v = v + 1 WHERE id = {id} + 50"
                ));
                if told.send((outcome, usable)).is_err() {
                    break;
                }
            }
        });
        Ok(Victim {
            kind,
            pid,
            begin,
            go,
            outcomes,
        })
    }

    fn begin(&self) {
        self.begin.send(()).expect("its thread lives as long");
    }

    fn await_there(&self, client: &mut Client) -> Result<(), String> {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND {} \
             AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = $1 AND locktype = 'transactionid')",
            self.kind.is_there()
        );
        let start = Instant::now();
        loop {
            let row = client.query_one(&sql, &[&self.pid]);
            if row.map_err(|e| format!("{e:?}"))?.get::<_, i64>(0) == 1 {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err("it does not get into the way".into());
            }
        }
    }

    /// It must have lost.
    fn end(&self) -> Result<(), String> {
        self.go.send(()).expect("its thread lives as long");
        let outcomes = self.outcomes.recv_timeout(PATIENCE);
        match outcomes.map_err(|e| e.to_string())? {
            (Err(e), Ok(())) if e.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => Ok(()),
            other => Err(format!("it was to fail with 40001, and go on: {other:?}")),
        }
    }
}
