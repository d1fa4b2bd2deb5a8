//! Storms: transactions from sessions on all members at once, and what must hold of the rows all the
//! time. Tests run them for seconds, `bench/storms` for minutes. README.md has the list.

mod bank;
mod collations;
mod foreign_keys;
mod jobs;
mod ring;
#[path = "../sim/rng.rs"]
#[allow(dead_code)]
mod rng;
mod unique;

pub use bank::Bank;
pub use collations::Collations;
pub use foreign_keys::ForeignKeys;
pub use jobs::Jobs;
pub use ring::Ring;
pub use unique::Unique;

use postgres::error::SqlState;
use postgres::{Client, Error, IsolationLevel, Transaction};
use postgres_r::cluster::{Cluster, Server, status, verify};
use rng::Rng;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sessions that write, on each member.
const WRITERS: usize = 2;

/// Long enough for a loaded machine; what needs it all has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A workload and its invariant.
pub trait Storm: Sync {
    fn name(&self) -> &'static str;

    /// Defines the tables, before the database is replicated.
    fn tables(&self) -> &'static str;

    /// The rows to begin with.
    fn rows(&self) -> String;

    /// SQLSTATEs that a client has to expect, beside 40001.
    fn expected(&self) -> &'static [SqlState] {
        &[]
    }

    /// One transaction; whether it changed anything.
    fn transact(&self, session: &mut Session) -> Result<bool, Error>;

    /// What does not hold in a snapshot, of those things that always must.
    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error>;

    /// What no session ever sees fall.
    fn progress(&self, _snapshot: &mut Transaction<'_>) -> Result<i64, Error> {
        Ok(0)
    }

    /// As [`Storm::violation`], of what must hold when all sessions are done.
    fn loss(
        &self,
        _snapshot: &mut Transaction<'_>,
        _tally: &Tally,
    ) -> Result<Option<String>, Error> {
        Ok(None)
    }
}

/// How long a storm goes on.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Time(Duration),
    /// So many commits of each session.
    Commits(u64),
}

/// One client that writes.
pub struct Session {
    pub client: Client,
    /// From 0 on, over all members.
    pub number: usize,
    /// From 1 on.
    pub member: usize,
    /// Transactions that committed so far.
    pub commits: u64,
    rng: Rng,
}

impl Session {
    /// 0..n
    fn below(&mut self, n: i32) -> i32 {
        self.rng.below(n as u64) as i32
    }
}

/// How its transactions ended.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub committed: u64,
    /// Those of them that changed something.
    pub changed: u64,
    /// By SQLSTATE.
    pub failed: BTreeMap<String, u64>,
    /// Snapshots that were looked at meanwhile, over all members.
    pub looks: u64,
    pub seconds: f64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.committed += other.committed;
        self.changed += other.changed;
        for (code, n) in other.failed {
            *self.failed.entry(code).or_default() += n;
        }
        self.looks += other.looks;
    }

    /// Transactions that failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Failures with a SQLSTATE, as a part of all transactions, in per cent.
    fn percent(&self, n: u64) -> f64 {
        100.0 * n as f64 / (self.committed + self.failures()).max(1) as f64
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} tps, {} committed ({} changed rows), {:.1} % failed",
            self.committed as f64 / self.seconds.max(1e-3),
            self.committed,
            self.changed,
            self.percent(self.failures())
        )?;
        for (code, n) in &self.failed {
            write!(f, ", {code} {:.1} %", self.percent(*n))?;
        }
        write!(f, ", {} snapshots", self.looks)
    }
}

/// Tells all threads to stop when it is dropped, also by a panic or an error.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fills the tables, has the storm rage, and holds it against its invariant: all the time on every
/// member, and in the end, when all members hold the same rows and no helper has failed.
pub fn rage(cluster: &Cluster, storm: &dyn Storm, length: Length) -> Result<Tally, String> {
    let first = cluster.member(1).map_err(told)?;
    first
        .execute(&cluster.database, "filling the tables", &storm.rows())
        .map_err(told)?;
    cluster.wait_in_step(PATIENCE).map_err(told)?;
    let (start, over, settled) = (
        Instant::now(),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    let mut tally = std::thread::scope(|scope| {
        let calm = Stop(&settled);
        let watchers: Vec<_> = cluster
            .servers
            .iter()
            .map(|server| {
                let (over, settled) = (&over, &settled);
                scope.spawn(move || {
                    let _over = Stop(over);
                    watch(cluster, storm, server, settled)
                })
            })
            .collect();
        let members = cluster.servers.len();
        let sessions: Vec<_> = (0..WRITERS * members)
            .map(|number| {
                let (server, over) = (&cluster.servers[number % members], &over);
                scope.spawn(move || {
                    let done = write(cluster, storm, server, number, length, over);
                    if done.is_err() {
                        over.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        let mut tally = Tally::default();
        let mut errors = Vec::new();
        let mut take = |outcome: std::thread::Result<Result<Tally, String>>| match outcome {
            Ok(Ok(part)) => tally.add(part),
            Ok(Err(error)) => errors.push(error),
            Err(_) => errors.push("a session panicked".into()),
        };
        sessions.into_iter().for_each(|s| take(s.join()));
        drop(calm);
        watchers.into_iter().for_each(|w| take(w.join()));
        if errors.is_empty() {
            Ok(tally)
        } else {
            Err(format!("{}: {}", storm.name(), errors.join("\n")))
        }
    })?;
    tally.seconds = start.elapsed().as_secs_f64();
    settle(cluster, storm, &tally).map_err(|e| format!("{}: {e}", storm.name()))?;
    Ok(tally)
}

fn told(error: impl fmt::Display) -> String {
    error.to_string()
}

fn connect(cluster: &Cluster, server: &Server) -> Result<Client, String> {
    let mut client = server.connect(&cluster.database).map_err(told)?;
    let patience = format!("SET statement_timeout = '{}s'", PATIENCE.as_secs());
    client.batch_execute(&patience).map_err(told)?;
    Ok(client)
}

/// One session's part.
fn write(
    cluster: &Cluster,
    storm: &dyn Storm,
    server: &Server,
    number: usize,
    length: Length,
    over: &AtomicBool,
) -> Result<Tally, String> {
    let mut session = Session {
        client: connect(cluster, server)?,
        number,
        member: server.number,
        commits: 0,
        rng: Rng::new(number as u64 + 1),
    };
    let mut tally = Tally::default();
    let start = Instant::now();
    let goes_on = |commits| match length {
        Length::Time(time) => start.elapsed() < time,
        Length::Commits(wanted) => commits < wanted,
    };
    while goes_on(session.commits) && !over.load(Ordering::Relaxed) {
        let error = match storm.transact(&mut session) {
            Ok(changed) => {
                session.commits += 1;
                tally.changed += u64::from(changed);
                continue;
            }
            Err(error) => error,
        };
        match error.code() {
            Some(code)
                if *code == SqlState::T_R_SERIALIZATION_FAILURE
                    || storm.expected().contains(code) =>
            {
                *tally.failed.entry(code.code().to_owned()).or_default() += 1;
            }
            _ => return Err(format!("session {number}: {error:?}")),
        }
        // An abort that meets the very start of COMMIT leaves the block open, as a cancel does.
        session
            .client
            .batch_execute("ROLLBACK")
            .map_err(|e| format!("session {number}: ROLLBACK: {e:?}"))?;
    }
    tally.committed = session.commits;
    Ok(tally)
}

/// Looks at one snapshot after the other on a member.
fn watch(
    cluster: &Cluster,
    storm: &dyn Storm,
    server: &Server,
    settled: &AtomicBool,
) -> Result<Tally, String> {
    let mut client = watcher(cluster, server)?;
    let (mut tally, mut last) = (Tally::default(), 0);
    while !settled.load(Ordering::Relaxed) {
        look(&mut client, server, |snapshot| {
            let before = std::mem::replace(&mut last, storm.progress(snapshot)?);
            if last < before {
                return Ok(Some(format!("{last}, after {before}")));
            }
            storm.violation(snapshot)
        })?;
        tally.looks += 1;
    }
    Ok(tally)
}

/// A session that reads whole tables: an index might hide what it should not.
fn watcher(cluster: &Cluster, server: &Server) -> Result<Client, String> {
    let mut client = connect(cluster, server)?;
    client
        .batch_execute("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off")
        .map_err(told)?;
    Ok(client)
}

fn look(
    client: &mut Client,
    server: &Server,
    wrong: impl FnOnce(&mut Transaction<'_>) -> Result<Option<String>, Error>,
) -> Result<(), String> {
    let snapshot = || {
        let mut snapshot = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()?;
        let found = wrong(&mut snapshot)?;
        snapshot.commit()?;
        Ok(found)
    };
    match snapshot() {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(format!("a snapshot on member {}: {what}", server.number)),
        Err(error) => Err::<_, Error>(error)
            .map_err(|e| format!("a reader on member {}: {e:?}", server.number)),
    }
}

/// When all sessions are done.
fn settle(cluster: &Cluster, storm: &dyn Storm, tally: &Tally) -> Result<(), String> {
    let report = verify::verify(cluster, PATIENCE).map_err(told)?;
    if !report.differences.is_empty() {
        return Err(format!(
            "members differ:\n{}",
            report.differences.join("\n")
        ));
    }
    for server in &cluster.servers {
        let group = status::group_state(server).map_err(told)?;
        if group.state != "online" || group.helper_errors != 0 {
            return Err(format!(
                "member {} is {}, with {} errors of helpers\n{}",
                server.number,
                group.state,
                group.helper_errors,
                server.log_tail(60)
            ));
        }
        let mut client = watcher(cluster, server)?;
        look(&mut client, server, |snapshot| storm.violation(snapshot))?;
        look(&mut client, server, |snapshot| storm.loss(snapshot, tally))?;
    }
    Ok(())
}
