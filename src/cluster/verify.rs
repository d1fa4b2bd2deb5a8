//! Whether all members hold the same rows, compared row by row in the database, whatever the
//! physical order, and whether their sequences stand at the same values.

use super::group::quote;
use super::server::{Server, pause_briefly};
use super::{Cluster, ClusterError, Result, db_error};
use postgres::{Client, Transaction};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// Most differing rows that are named for a table.
const DIFFERENCES_SHOWN: usize = 10;

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Report {
    /// All members were compared as of this GID.
    pub gid: i64,
    /// Members compared.
    pub members: usize,
    /// Tables compared, and rows in them on the first member.
    pub tables: usize,
    /// Rows on the first member.
    pub rows: u64,
    /// Sequences compared.
    pub sequences: usize,
    /// One line a difference; empty if the members are equal.
    pub differences: Vec<String>,
}

struct Table {
    name: String,
    /// What stands behind FROM.
    source: String,
    key: Option<String>,
}

/// Catalogs that hold data: name, what stands behind FROM, key. Roles are compared by name.
const LARGE_OBJECTS: [(&str, &str, &str); 2] = [
    ("pg_largeobject", "pg_largeobject", "t.loid, t.pageno"),
    (
        "pg_largeobject_metadata",
        "(SELECT oid, lomowner::regrole, lomacl FROM pg_largeobject_metadata)",
        "t.oid",
    ),
];

/// Waits until all running members show the same GID, then compares every table and sequence of the
/// replicated database between the first and each other member.
pub fn verify(cluster: &Cluster, timeout: Duration) -> Result<Report> {
    let servers: Vec<&Server> = cluster.running().collect();
    if servers.is_empty() {
        return Err(ClusterError::new("verifying", "no member is running"));
    }
    let mut clients = Vec::new();
    for server in &servers {
        clients.push(server.connect(&cluster.database)?);
    }
    let deadline = Instant::now() + timeout;
    loop {
        let mut snapshots = Vec::new();
        let mut gids = Vec::new();
        for (client, server) in clients.iter_mut().zip(&servers) {
            let (snapshot, gid) = snapshot(client)
                .map_err(|e| ClusterError::on(server, "taking a snapshot", db_error(&e)))?;
            snapshots.push(snapshot);
            gids.push(gid);
        }
        let late = Instant::now() > deadline;
        if let [Some(first), rest @ ..] = gids.as_slice()
            && rest.iter().all(|g| *g == Some(*first))
        {
            let (sequences, differences) = compare_sequences(&servers, &mut snapshots)?;
            // They are read as they are, in no snapshot: one may be ahead for a moment.
            if differences.is_empty() || late {
                let mut report = compare(&servers, snapshots, *first)?;
                report.sequences = sequences;
                report.differences.extend(differences);
                return Ok(report);
            }
        } else if late {
            let seen: Vec<String> = servers
                .iter()
                .zip(&gids)
                .map(|(s, g)| {
                    format!(
                        "member {} at {}",
                        s.number,
                        g.map_or("a moving GID".into(), |g| g.to_string())
                    )
                })
                .collect();
            return Err(ClusterError::new(
                format!(
                    "waiting {} s for all members to be at one GID",
                    timeout.as_secs()
                ),
                format!("{}; is something still writing?", seen.join(", ")),
            ));
        }
        drop(snapshots);
        pause_briefly();
    }
}

/// How many sequences there are, and where one stands differently on two members.
fn compare_sequences(
    servers: &[&Server],
    snapshots: &mut [Transaction<'_>],
) -> Result<(usize, Vec<String>)> {
    let sql = "SELECT n.nspname, c.relname, d.last_value, d.is_called \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_get_sequence_data(c.oid) d \
               WHERE c.relkind = 'S' AND c.relpersistence = 'p' ORDER BY 1, 2";
    let mut lists = Vec::new();
    for (snapshot, server) in snapshots.iter_mut().zip(servers) {
        let rows = snapshot
            .query(sql, &[])
            .map_err(|e| ClusterError::on(server, "reading sequences", db_error(&e)))?;
        let states = rows.iter().map(|row| {
            let name = format!("{}.{}", quote(row.get(0)), quote(row.get(1)));
            (name, (row.get::<_, i64>(2), row.get::<_, bool>(3)))
        });
        lists.push(states.collect::<BTreeMap<_, _>>());
    }
    let mut differences = Vec::new();
    for (list, server) in lists.iter().zip(servers).skip(1) {
        let names: BTreeSet<&String> = lists[0].keys().chain(list.keys()).collect();
        for name in names {
            let sides = [(servers[0], lists[0].get(name)), (*server, list.get(name))];
            if sides[0].1 != sides[1].1 {
                let says = sides.map(|(server, state)| match state {
                    Some((last, called)) => {
                        format!("({last}, {called}) on member {}", server.number)
                    }
                    None => format!("not on member {}", server.number),
                });
                differences.push(format!("sequence {name}: {}", says.join(", ")));
            }
        }
    }
    Ok((lists[0].len(), differences))
}

/// A read-only snapshot and its GID, unknown if commits went on while it was taken.
fn snapshot(
    client: &mut Client,
) -> std::result::Result<(Transaction<'_>, Option<i64>), postgres::Error> {
    let gid = "SELECT last_committed_gid, last_ordered_gid FROM pg_stat_get_replication_group()";
    let before = client.query_one(gid, &[])?;
    let mut snapshot = client
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    // The snapshot is taken by this statement.
    let after = snapshot.query_one(gid, &[])?;
    let (committed, ordered): (i64, i64) = (after.get(0), after.get(1));
    let still = before.get::<_, i64>(0) == committed && committed == ordered;
    Ok((snapshot, still.then_some(committed)))
}

fn compare(servers: &[&Server], mut snapshots: Vec<Transaction<'_>>, gid: i64) -> Result<Report> {
    let mut report = Report {
        gid,
        members: servers.len(),
        ..Report::default()
    };
    let mut lists = Vec::new();
    for (snapshot, server) in snapshots.iter_mut().zip(servers) {
        lists.push(
            tables(snapshot)
                .map_err(|e| ClusterError::on(server, "listing tables", db_error(&e)))?,
        );
    }
    for (list, server) in lists.iter().zip(servers).skip(1) {
        let names = |l: &[Table]| l.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        if names(list) != names(&lists[0]) {
            report.differences.push(format!(
                "member {} has other tables than member {}",
                server.number, servers[0].number
            ));
        }
    }
    let (first, others) = snapshots.split_first_mut().expect("there is a member");
    for table in &lists[0] {
        report.tables += 1;
        if others.is_empty() {
            report.rows += count(first, table)
                .map_err(|e| ClusterError::on(servers[0], "counting", db_error(&e)))?;
        }
        for (i, (other, server)) in others.iter_mut().zip(&servers[1..]).enumerate() {
            let rows = compare_table(
                first,
                other,
                table,
                (servers[0].number, server.number),
                &mut report.differences,
            )
            .map_err(|e| ClusterError::on(server, format!("comparing table {}", table.name), e))?;
            if i == 0 {
                report.rows += rows;
            }
        }
    }
    Ok(report)
}

fn tables(snapshot: &mut Transaction<'_>) -> std::result::Result<Vec<Table>, postgres::Error> {
    let sql = "SELECT n.nspname, c.relname, \
               (SELECT array_agg(a.attname::text ORDER BY k.ord) \
                  FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, ord), pg_attribute a \
                 WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.attnum) \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind = 'r' AND c.relpersistence = 'p' \
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2";
    let rows = snapshot.query(sql, &[])?;
    let large_objects = LARGE_OBJECTS.map(|(name, source, key)| Table {
        name: name.into(),
        source: source.into(),
        key: Some(key.into()),
    });
    let tables = rows.iter().map(|row| {
        let name = format!("{}.{}", quote(row.get(0)), quote(row.get(1)));
        Table {
            source: format!("ONLY {name}"),
            name,
            key: row.get::<_, Option<Vec<String>>>(2).map(|columns| {
                columns
                    .iter()
                    .map(|c| format!("t.{}", quote(c)))
                    .collect::<Vec<_>>()
                    .join(", ")
            }),
        }
    });
    Ok(tables.chain(large_objects).collect())
}

fn count(
    snapshot: &mut Transaction<'_>,
    table: &Table,
) -> std::result::Result<u64, postgres::Error> {
    Ok(snapshot
        .query_one(&format!("SELECT count(*) FROM {} t", table.source), &[])?
        .get::<_, i64>(0) as u64)
}

/// Both sides in one order, as lines `key <tab> row`; merged. Returns the rows of the first side.
fn compare_table(
    first: &mut Transaction<'_>,
    other: &mut Transaction<'_>,
    table: &Table,
    numbers: (usize, usize),
    differences: &mut Vec<String>,
) -> std::result::Result<u64, String> {
    let key = table
        .key
        .as_ref()
        .map_or("''".to_owned(), |k| format!("ROW({k})::text"));
    let sql = format!(
        "COPY (SELECT {key} COLLATE \"C\", t::text COLLATE \"C\" FROM {} t ORDER BY 1, 2) TO STDOUT",
        table.source
    );
    let open = |snapshot: &mut Transaction<'_>| {
        snapshot
            .batch_execute("SET LOCAL work_mem = '64MB'")
            .map_err(|e| db_error(&e))
    };
    open(first)?;
    open(other)?;
    let left = BufReader::with_capacity(1 << 18, first.copy_out(&sql).map_err(|e| db_error(&e))?);
    let right = BufReader::with_capacity(1 << 18, other.copy_out(&sql).map_err(|e| db_error(&e))?);
    let (mut left, mut right) = (left.lines(), right.lines());
    let next = |side: &mut dyn Iterator<Item = std::io::Result<String>>| {
        side.next().transpose().map_err(|e| e.to_string())
    };
    let (mut a, mut b) = (next(&mut left)?, next(&mut right)?);
    let (mut rows, mut found) = (0, 0usize);
    loop {
        use std::cmp::Ordering;
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => x.as_bytes().cmp(y.as_bytes()),
        };
        if order != Ordering::Equal {
            found += 1;
            let (line, holder) = if order == Ordering::Less {
                (&a, numbers.0)
            } else {
                (&b, numbers.1)
            };
            if found <= DIFFERENCES_SHOWN {
                let (key, row) = line
                    .as_deref()
                    .and_then(|l| l.split_once('\t'))
                    .unwrap_or(("", ""));
                let key = if key.is_empty() {
                    String::new()
                } else {
                    format!(" key {key}")
                };
                differences.push(format!(
                    "table {}{key}: only member {holder} of members {} and {} has {row}",
                    table.name, numbers.0, numbers.1
                ));
            }
        }
        if order != Ordering::Greater {
            rows += 1;
            a = next(&mut left)?;
        }
        if order != Ordering::Less {
            b = next(&mut right)?;
        }
    }
    if found > DIFFERENCES_SHOWN {
        differences.push(format!(
            "table {}: {} more differences between members {} and {}",
            table.name,
            found - DIFFERENCES_SHOWN,
            numbers.0,
            numbers.1
        ));
    }
    Ok(rows)
}
