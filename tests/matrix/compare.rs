//! Whether members, and one server beside them, hold the same rows.

use crate::support::TestGroup;
use postgres::Client;
use std::collections::{BTreeMap, BTreeSet};

/// Most rows that are shown of a table.
const SHOWN: usize = 4;

type Contents = BTreeMap<String, BTreeMap<String, i64>>;

/// Connections to compare with.
pub struct Compare {
    members: Vec<Client>,
    alone: Client,
    /// Schemas of which one server may hold other values.
    apart: BTreeSet<String>,
    /// Tables that differed before; told once.
    told: BTreeSet<String>,
}

/// A connection to a member that sees all that was acknowledged.
pub fn connect(group: &TestGroup, member: usize) -> Client {
    let mut client = group.client(member);
    let all = "SET replication_consistency = before";
    client
        .batch_execute(all)
        .unwrap_or_else(|e| panic!("{e:?}"));
    client
}

/// A connection to the database that is not replicated.
pub fn connect_alone(group: &TestGroup) -> Client {
    let server = group.member(1).expect("member");
    let mut client = server.connect("alone").unwrap_or_else(|e| panic!("{e}"));
    let fast = "SET synchronous_commit = off";
    client
        .batch_execute(fast)
        .unwrap_or_else(|e| panic!("{e:?}"));
    client
}

impl Compare {
    /// Connects.
    pub fn new(group: &TestGroup, apart: BTreeSet<String>) -> Compare {
        Compare {
            members: (1..=3).map(|n| connect(group, n)).collect(),
            alone: connect_alone(group),
            apart,
            told: BTreeSet::new(),
        }
    }

    /// Differences in the schemas that are like the pattern: of each table a text. Nothing is being written.
    pub fn differences(&mut self, pattern: &str) -> Vec<(String, String)> {
        let clients = self.members.iter_mut().chain([&mut self.alone]);
        let mut all: Vec<Contents> = std::thread::scope(|scope| {
            let readers: Vec<_> = clients
                .map(|client| scope.spawn(move || contents(client, pattern)))
                .collect();
            readers
                .into_iter()
                .map(|r| r.join().expect("reads"))
                .collect()
        });
        let mut alone = all.pop().expect("it was asked last");
        let first = all.remove(0);
        let mut found = BTreeMap::new();
        for (n, other) in all.iter().enumerate() {
            differ(&first, other, &format!("member {}", n + 2), &mut found);
        }
        let schema = |table: &str| table.split('.').next().unwrap_or_default().to_owned();
        alone.retain(|table, _| !self.apart.contains(&schema(table)));
        let mut like = first.clone();
        like.retain(|table, _| !self.apart.contains(&schema(table)));
        differ(&like, &alone, "one server", &mut found);
        found
            .into_iter()
            .filter(|(table, _)| self.told.insert(table.clone()))
            .collect()
    }
}

fn contents(client: &mut Client, pattern: &str) -> Contents {
    let rows = client.query("SELECT tab, line FROM matrix.contents($1)", &[&pattern]);
    let mut contents = Contents::new();
    for row in rows.unwrap_or_else(|e| panic!("{e:?}")) {
        *contents
            .entry(row.get(0))
            .or_default()
            .entry(row.get(1))
            .or_default() += 1;
    }
    contents
}

fn differ(first: &Contents, other: &Contents, name: &str, found: &mut BTreeMap<String, String>) {
    let tables: BTreeSet<&String> = first.keys().chain(other.keys()).collect();
    let none = BTreeMap::new();
    for table in tables {
        let (a, b) = (
            first.get(table).unwrap_or(&none),
            other.get(table).unwrap_or(&none),
        );
        if a == b {
            continue;
        }
        let only = |a: &BTreeMap<String, i64>, b: &BTreeMap<String, i64>| {
            let lines = a.iter().filter(|(line, n)| b.get(*line) != Some(n));
            lines
                .take(SHOWN)
                .map(|(line, _)| line.clone())
                .collect::<Vec<_>>()
                .join("; ")
        };
        let text = found.entry(table.clone()).or_default();
        text.push_str(&format!(
            "member 1 has {}; {name} has {}\n",
            only(a, b),
            only(b, a)
        ));
    }
}
