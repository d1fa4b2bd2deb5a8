//! What a server says of its group.

use super::server::wait_for;
use super::{ClusterError, Result, Server, db_error};
use postgres::Client;
use std::time::Duration;

/// A row of `pg_stat_replication_group`.
#[derive(Clone, Debug)]
pub struct GroupState {
    /// `online`, `recovering`, …
    pub state: String,
    /// Name of the group.
    pub group: String,
    /// The replicated database.
    pub database: String,
    /// Number in the group.
    pub member: i32,
    /// Committed and visible here.
    pub last_committed_gid: i64,
    /// Ordered and certified here.
    pub last_ordered_gid: i64,
    /// Changesets waiting to be applied.
    pub apply_queue: i32,
    /// Members, and how many of them are voters.
    pub members: i32,
    /// Members that count in majorities.
    pub voters: i32,
    /// Local transactions committed.
    pub commits: i64,
    /// Transactions of others applied.
    pub applied: i64,
    /// Own transactions that lost in certification.
    pub certification_failures: i64,
    /// Own transactions aborted for an ordered one.
    pub local_victims: i64,
    /// Helpers that failed.
    pub helper_errors: i64,
    /// Triggers that failed where a change was applied.
    pub trigger_errors: u64,
    /// Bytes of own changesets.
    pub changeset_bytes: u64,
    /// Why it failed.
    pub failure: Option<String>,
}

/// Asks a running server.
pub fn group_state(server: &Server) -> Result<GroupState> {
    Asked::new(server).state()
}

/// A server that is asked again and again: on one connection, for a new one costs more than the answer.
pub(crate) struct Asked<'a> {
    server: &'a Server,
    client: Option<Client>,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        Self {
            server,
            client: None,
        }
    }

    /// What it says now. After an error it is connected to anew.
    pub(crate) fn state(&mut self) -> Result<GroupState> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.server.connect("postgres")?,
        };
        let state = ask(self.server, &mut client)?;
        self.client = Some(client);
        Ok(state)
    }
}

fn ask(server: &Server, client: &mut Client) -> Result<GroupState> {
    let sql = "SELECT state, group_name::text, database::text, member_id, last_committed_gid, last_ordered_gid, \
               apply_queue, members, voters, commits, applied, certification_failures, local_victims, helper_errors, failure, trigger_errors, changeset_bytes \
               FROM pg_stat_get_replication_group()";
    let row = client
        .query_opt(sql, &[])
        .map_err(|e| ClusterError::on(server, "asking for its state", db_error(&e)))?
        .ok_or_else(|| {
            ClusterError::on(server, "asking for its state", "it belongs to no group")
        })?;
    Ok(GroupState {
        state: row.get(0),
        group: row.get::<_, Option<String>>(1).unwrap_or_default(),
        database: row.get::<_, Option<String>>(2).unwrap_or_default(),
        member: row.get(3),
        last_committed_gid: row.get(4),
        last_ordered_gid: row.get(5),
        apply_queue: row.get(6),
        members: row.get(7),
        voters: row.get(8),
        commits: row.get(9),
        applied: row.get(10),
        certification_failures: row.get(11),
        local_victims: row.get(12),
        helper_errors: row.get(13),
        failure: row.get(14),
        trigger_errors: row.get::<_, i64>(15).cast_unsigned(),
        changeset_bytes: row.get::<_, i64>(16).cast_unsigned(),
    })
}

/// Waits until a member is open to clients of its replicated database.
pub fn wait_online(server: &Server, timeout: Duration) -> Result<()> {
    let (mut last, mut asked) = (String::new(), Asked::new(server));
    wait_for(timeout, || match asked.state() {
        Ok(g) if g.state == "online" => Some(Ok(())),
        Ok(g) if g.state == "failed" || g.state == "left" => Some(Err(ClusterError::on(
            server,
            "waiting until it is online",
            format!("it is {}: {}", g.state, g.failure.unwrap_or_default()),
        ))),
        Ok(g) => {
            last = format!("it is {}", g.state);
            None
        }
        Err(e) => {
            last = e.cause;
            // The process is gone for good: no use in waiting.
            server.pid().is_none().then(|| {
                Err(ClusterError::on(
                    server,
                    "waiting until it is online",
                    "the server is not running",
                ))
            })
        }
    })
    .unwrap_or_else(|| {
        Err(ClusterError::on(
            server,
            format!("waiting {} s until it is online", timeout.as_secs()),
            &last,
        ))
    })
}
