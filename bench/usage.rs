//! What servers use: processor time, bytes between them, bytes of WAL.

use postgres_r::cluster::Server;
use postgres_r::cluster::status::group_state;
use std::process::Command;

/// Processor seconds that all processes of these servers have used.
pub fn cpu_seconds(servers: &[Server]) -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .unwrap_or(100) as f64;
    let mut sum = 0.0;
    for server in servers {
        let postmaster = server.pid();
        for pid in server.processes() {
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue;
            };
            let Some(rest) = stat.rsplit(')').next() else {
                continue;
            };
            let fields: Vec<f64> = rest
                .split_whitespace()
                .skip(11)
                .take(4)
                .filter_map(|f| f.parse().ok())
                .collect();
            // Children that ended are in the postmaster's account.
            let own = if Some(pid) == postmaster { 4 } else { 2 };
            sum += fields.iter().take(own).sum::<f64>();
        }
    }
    sum / ticks
}

/// Processor seconds that a process has used, to the nanosecond; of none, 0.
#[allow(dead_code)]
pub fn process_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

/// Bytes sent on connections between servers (walsenders, group traffic), from the kernel's counters.
pub fn wire_bytes(servers: &[Server]) -> f64 {
    let Ok(output) = Command::new("ss").args(["-tinpH"]).output() else {
        return 0.0;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pids: Vec<String> = servers
        .iter()
        .flat_map(Server::processes)
        .map(|p| format!("pid={p},"))
        .collect();
    let clients = ["\"pgbench\"", "\"psql\""];
    let mut sum = 0.0;
    let mut lines = text.lines().peekable();
    let ours = |line: &str| pids.iter().any(|p| line.contains(p.as_str()));
    // A connection counts when both of its ends belong to these servers.
    let mut ends: Vec<(String, String, f64)> = Vec::new();
    while let Some(line) = lines.next() {
        let detail = lines.next().unwrap_or_default();
        if !ours(line) || clients.iter().any(|c| line.contains(c)) {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let sent = detail
            .split_whitespace()
            .find_map(|w| w.strip_prefix("bytes_sent:")?.parse::<f64>().ok());
        if let (Some(local), Some(peer), Some(sent)) = (words.get(3), words.get(4), sent) {
            ends.push(((*local).to_owned(), (*peer).to_owned(), sent));
        }
    }
    for (local, peer, sent) in &ends {
        if ends.iter().any(|(l, p, _)| l == peer && p == local) {
            sum += sent;
        }
    }
    sum
}

/// Bytes of changesets that these servers have multicast, if they have a group.
pub fn changeset_bytes(servers: &[Server]) -> Option<f64> {
    let of = |server| Some(group_state(server).ok()?.changeset_bytes as f64);
    servers.iter().map(of).sum()
}

/// Bytes of WAL that these servers have written.
pub fn wal_bytes(servers: &[Server]) -> f64 {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN '0/0'::pg_lsn ELSE pg_current_wal_insert_lsn() END - '0/0')::float8";
    servers
        .iter()
        .map(|s| {
            postgres_r::cluster::group::query_one::<f64>(s, "postgres", sql)
                .unwrap_or_else(|e| panic!("{e}"))
        })
        .sum()
}
