//! The language of the transcripts; `README.md` describes it.

use postgres_r::capture::hash::What;
use postgres_r::capture::table_mode;
use postgres_r::certifier::{Certifier, Config, Verdict};
use postgres_r::changeset::key::{
    KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_ORDER, KEY_READ, KEY_RELATION, KEY_UNIQUE, Key, LockMode,
};
use postgres_r::ids::{Gid, MemberId};
use std::collections::HashMap;
use std::fmt::Write;

pub struct Interpreter {
    certifier: Certifier,
    config: Config,
    /// Names of relations in the order in which they came up; a relation's number is its place.
    relations: Vec<String>,
    hashes: HashMap<String, u64>,
}

impl Default for Interpreter {
    fn default() -> Self {
        let config = Config { keys_max: 1000 };
        Self {
            certifier: Certifier::new(config),
            config,
            relations: Vec::new(),
            hashes: HashMap::new(),
        }
    }
}

type Result<T> = std::result::Result<T, String>;

impl Interpreter {
    /// Carries out one command, which may have several lines.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let mut lines = command.lines();
        let head = lines.next().ok_or("no command")?;
        let mut words = head.split_whitespace();
        let name = words.next().ok_or("no command")?;
        let rest: Vec<&str> = words.collect();
        let lines: Vec<&str> = lines.collect();
        if name != "commit" && !lines.is_empty() {
            return Err(format!("{name} takes one line"));
        }
        match (name, rest.as_slice()) {
            ("group", [keys_max]) => {
                let keys_max = named(keys_max, "keys_max")? as usize;
                *self = Self::default();
                self.config = Config { keys_max };
                self.certifier = Certifier::new(self.config);
                Ok("ok\n".into())
            }
            ("join", [member, low]) => {
                self.certifier
                    .member_added(member_id(member)?, Gid(named(low, "low")?));
                Ok(self.floor())
            }
            ("leave", [member]) => {
                self.certifier.member_removed(member_id(member)?);
                Ok(self.floor())
            }
            ("report", [member, low]) => {
                self.certifier
                    .report_low(member_id(member)?, Gid(named(low, "low")?));
                Ok(self.floor())
            }
            ("reserve", [member, position, relations @ ..]) => {
                let relations: Vec<u32> = relations.iter().map(|r| self.relation(r)).collect();
                let position = named(position, "position")?;
                self.certifier
                    .reserve(member_id(member)?, &relations, position);
                Ok(self.reserved())
            }
            ("release", [member, position]) => {
                let position = named(position, "position")?;
                self.certifier.release(member_id(member)?, position);
                Ok(self.reserved())
            }
            ("restart", []) => self.restart(),
            ("state", []) => Ok(format!(
                "last={} floor={} retained={}\n",
                self.certifier.last_gid(),
                self.certifier.floor(),
                self.certifier.retained()
            )),
            ("commit", [member, snapshot, used @ ..]) if matches!(used, [] | ["reserved"]) => {
                let origin = member_id(member)?;
                let snapshot = Gid(named(snapshot, "snapshot")?);
                let mut keys = Vec::new();
                for line in &lines {
                    match line.trim().strip_prefix("table ") {
                        Some(lock) => self.table_lock(lock, snapshot, &mut keys)?,
                        None => keys.push(self.key(line, snapshot)?),
                    }
                }
                let verdict = self.certifier.certify(origin, snapshot, keys.into_iter());
                if !used.is_empty() {
                    self.certifier.reservation_used(origin);
                }
                Ok(self.show(verdict))
            }
            _ => Err(format!("unknown command: {head}")),
        }
    }

    /// `write|lock|read|order RELATION[/ROW] MODE [since=GID] [deferred]`
    fn key(&mut self, line: &str, snapshot: Gid) -> Result<Key> {
        let mut words = line.split_whitespace();
        let usage = match words.next() {
            Some("write") => 0,
            Some("lock") => KEY_LOCK_ONLY,
            Some("read") => KEY_READ,
            Some("order") => KEY_ORDER,
            other => return Err(format!("write, lock, read or order, not {other:?}")),
        };
        let name = words.next().ok_or("a key has a name")?;
        let mode = match words.next() {
            Some("key-share") => LockMode::KeyShare,
            Some("share") => LockMode::Share,
            Some("no-key-update") => LockMode::NoKeyUpdate,
            Some("update") => LockMode::Update,
            other => return Err(format!("no such mode: {other:?}")),
        };
        let (relation, kind) = match name.split_once('/') {
            None => (name, KEY_RELATION),
            Some((relation, row)) if row.contains('=') => (relation, KEY_UNIQUE),
            Some((relation, _)) => (relation, 0),
        };
        let mut key = Key {
            hash: self.hash(name),
            since: snapshot,
            relation: self.relation(relation),
            mode,
            flags: usage | kind,
        };
        for word in words {
            if word == "deferred" {
                key.flags |= KEY_FROM_SINCE;
            } else {
                key.since = Gid(named(word, "since")?);
            }
        }
        Ok(key)
    }

    /// `RELATION MODE [since=GID]`
    fn table_lock(&mut self, line: &str, snapshot: Gid, keys: &mut Vec<Key>) -> Result<()> {
        let mut words = line.split_whitespace();
        let relation = words.next().ok_or("a lock names its table")?;
        let mode = match words.next() {
            Some("row-share") => table_mode::ROW_SHARE,
            Some("row-exclusive") => table_mode::ROW_EXCLUSIVE,
            Some("share-update-exclusive") => table_mode::SHARE_UPDATE_EXCLUSIVE,
            Some("share") => table_mode::SHARE,
            Some("share-row-exclusive") => table_mode::SHARE_ROW_EXCLUSIVE,
            Some("exclusive") => table_mode::EXCLUSIVE,
            Some("access-exclusive") => table_mode::ACCESS_EXCLUSIVE,
            other => return Err(format!("no such mode of a table's lock: {other:?}")),
        };
        let since = words.next().map_or(Ok(snapshot.0), |w| named(w, "since"))?;
        for &(what, mode, flags) in table_mode::keys(mode) {
            let hash = match what {
                What::Relation => self.hash(relation),
                _ => self.hash(&format!("locks of {relation}")),
            };
            keys.push(Key {
                hash,
                since: Gid(since),
                relation: self.relation(relation),
                mode,
                flags,
            });
        }
        Ok(())
    }

    fn hash(&mut self, name: &str) -> u64 {
        let next = self.hashes.len() as u64;
        *self.hashes.entry(name.to_string()).or_insert(next)
    }

    fn relation(&mut self, name: &str) -> u32 {
        let at = self.relations.iter().position(|r| r == name);
        let at = at.unwrap_or_else(|| {
            self.relations.push(name.to_string());
            self.relations.len() - 1
        });
        u32::try_from(at).expect("a transcript names few relations")
    }

    fn restart(&mut self) -> Result<String> {
        let mut before = Vec::new();
        self.certifier.encode(&mut before);
        let decoded = Certifier::decode(self.config, &before).map_err(|e| e.to_string())?;
        if decoded.digest() != self.certifier.digest() {
            return Err("the digest changed".into());
        }
        self.certifier = decoded;
        let mut after = Vec::new();
        self.certifier.encode(&mut after);
        if before != after {
            return Err("the checkpoint of what a checkpoint gave is another".into());
        }
        Ok("ok\n".into())
    }

    fn floor(&self) -> String {
        format!("floor={}\n", self.certifier.floor())
    }

    fn reserved(&self) -> String {
        let held = self.certifier.reservations();
        let held: Vec<String> = held.map(|(m, at)| format!("m{m} at {at}")).collect();
        if held.is_empty() {
            "reserved: none\n".into()
        } else {
            format!("reserved: {}\n", held.join(", "))
        }
    }

    fn show(&self, verdict: Verdict) -> String {
        let mut out = String::new();
        match verdict {
            Verdict::Pass { gid, depends_on } => {
                writeln!(out, "pass gid={gid} depends_on={depends_on}")
            }
            Verdict::Conflict {
                relation,
                gid,
                origin,
            } => {
                let relation = &self.relations[relation as usize];
                writeln!(out, "conflict on {relation} with gid={gid} of m{origin}")
            }
            Verdict::Reserved { relation, member } => {
                let relation = &self.relations[relation as usize];
                writeln!(out, "{relation} is reserved by m{member}")
            }
            Verdict::BelowFloor => writeln!(out, "below floor"),
        }
        .expect("a string has room");
        out
    }
}

/// `m3`
fn member_id(word: &str) -> Result<MemberId> {
    let number = word.strip_prefix('m').and_then(|n| n.parse().ok());
    number
        .map(MemberId)
        .ok_or_else(|| format!("a member is written m1, not {word}"))
}

/// `name=17`
fn named(word: &str, name: &str) -> Result<u64> {
    let value = word
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('='));
    value
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| format!("{name}=NUMBER, not {word}"))
}
