//! The members as the tester sees them: a control connection to each, and connections for sessions.

use crate::session::{Answer, Session, ask};
use crate::support::{PATIENCE, TestGroup};
use postgres::Client;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Between two looks at something that nobody tells us of.
pub const LOOK: Duration = Duration::from_millis(1);

/// What a session is at.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Waits for a lock of a session of the run, or of a helper that is held at a stop point.
    pub blocked: bool,
    /// At a stop point.
    pub held: bool,
    /// In COMMIT, waits for its turn.
    pub in_turn: bool,
}

/// Control connections and idle sessions.
pub struct Members<'a> {
    group: &'a TestGroup,
    control: Vec<Client>,
    idle: Vec<Vec<Session>>,
    contents: String,
    clean: String,
}

impl<'a> Members<'a> {
    /// Connects to every member.
    pub fn new(group: &'a TestGroup) -> Members<'a> {
        let mut control: Vec<Client> = (1..=3).map(|number| group.client(number)).collect();
        // Children after their parents, for they were made in this order.
        let sql = "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY c.oid";
        let rows = control[0].query(sql, &[]).expect("the list of tables");
        let tables: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let mut contents = String::new();
        let mut clean = String::new();
        for table in &tables {
            let union = if contents.is_empty() {
                ""
            } else {
                " UNION ALL "
            };
            write!(
                contents,
                "{union}SELECT '{table} ' || t::text FROM {table} t"
            )
            .expect("room");
            clean.insert_str(0, &format!("DELETE FROM {table}; "));
        }
        contents.push_str(" ORDER BY 1");
        Members {
            group,
            control,
            idle: vec![Vec::new(), Vec::new(), Vec::new()],
            contents,
            clean,
        }
    }

    /// A session on a member, with nothing open.
    pub fn session(&mut self, member: usize) -> Result<Session, String> {
        match self.idle[member - 1].pop() {
            Some(session) => Ok(session),
            None => Session::new(self.group.client(member)),
        }
    }

    /// Takes back a session with nothing open.
    pub fn give_back(&mut self, member: usize, session: Session) {
        self.idle[member - 1].push(session);
    }

    /// Has go on whoever is held at the stop point of a commit: a run that failed has not done so.
    pub fn let_go(&mut self) {
        for control in &mut self.control {
            // An error says that nobody is.
            ask(
                control,
                "SELECT injection_points_detach('replication-commit-visible')",
            );
            ask(
                control,
                "SELECT injection_points_wakeup('replication-commit-visible')",
            );
        }
    }

    /// Ends a session whatever it does.
    pub fn end(&mut self, member: usize, session: &Session) {
        let sql = format!("SELECT pg_terminate_backend({})", session.pid);
        ask(&mut self.control[member - 1], &sql);
    }

    /// Runs SQL of the tester itself.
    pub fn run(&mut self, member: usize, sql: &str) -> Result<String, String> {
        match ask(&mut self.control[member - 1], sql) {
            Answer::Failed(code, message) => {
                Err(format!("member {member}: {sql}: {code} {message}"))
            }
            answer => Ok(answer.value().to_owned()),
        }
    }

    /// Empties all tables.
    pub fn clean(&mut self) -> Result<(), String> {
        let sql = self.clean.clone();
        self.run(1, &sql)?;
        self.in_step()
    }

    /// Waits until every member has committed, and shows, what any of them does by now.
    pub fn in_step(&mut self) -> Result<(), String> {
        let mut shown = [0; 3];
        for (member, gid) in shown.iter_mut().enumerate() {
            *gid = self.last_committed(member + 1)?;
        }
        let target = shown.iter().copied().max().unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        for (member, gid) in shown.iter_mut().enumerate() {
            while *gid < target {
                if Instant::now() > deadline {
                    return Err(format!(
                        "member {} stays at GID {gid}, before {target}",
                        member + 1
                    ));
                }
                std::thread::sleep(LOOK);
                *gid = self.last_committed(member + 1)?;
            }
        }
        Ok(())
    }

    fn last_committed(&mut self, member: usize) -> Result<i64, String> {
        let sql = "SELECT last_committed_gid FROM pg_stat_get_replication_group()";
        let answer = self.run(member, sql)?;
        answer.parse().map_err(|e| format!("{answer}: {e}"))
    }

    /// What a session is at; `pids` are the run's sessions on that member.
    pub fn stage(&mut self, member: usize, pid: i32, pids: &[i32]) -> Result<Stage, String> {
        let sql = "SELECT pg_isolation_test_session_is_blocked($1, $2 || ARRAY(\
                   SELECT pid FROM pg_stat_get_activity(NULL) WHERE wait_event_type = 'InjectionPoint')), \
                   coalesce(wait_event_type = 'InjectionPoint', false), \
                   coalesce(wait_event = 'ReplicationCommitTurn', false) \
                   FROM pg_stat_get_activity($1)";
        let row = self.control[member - 1]
            .query_opt(sql, &[&pid, &pids])
            .map_err(|e| format!("member {member}: {e:?}"))?
            .ok_or_else(|| format!("member {member}: session {pid} is gone"))?;
        Ok(Stage {
            blocked: row.get(0),
            held: row.get(1),
            in_turn: row.get(2),
        })
    }

    /// Whether all members, when in step, hold the same rows, and all went well with helpers.
    pub fn check(&mut self) -> Result<(), String> {
        let sql = self.contents.clone();
        let first = self.run(1, &sql)?;
        for member in 1..=3 {
            let here = self.run(member, &sql)?;
            if here != first {
                return Err(format!(
                    "members differ:\n  member 1: {first}\n  member {member}: {here}"
                ));
            }
            let sql = "SELECT state, helper_errors FROM pg_stat_get_replication_group()";
            let state = self.run(member, sql)?;
            if state != "online|0" {
                return Err(format!("member {member}: state and helper errors: {state}"));
            }
        }
        Ok(())
    }

    /// Compares every index of every member with its table; the number of indexes.
    pub fn check_indexes(&mut self) -> Result<usize, String> {
        let sql = "SELECT count(bt_index_check(i.indexrelid, true, i.indisunique)) \
                   FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam \
                   WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relnamespace = 'public'::regnamespace";
        let mut indexes = 0;
        for member in 1..=3 {
            let count = self.run(member, sql)?;
            indexes += count.parse::<usize>().map_err(|e| e.to_string())?;
        }
        Ok(indexes)
    }
}
