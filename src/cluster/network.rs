//! Cut networks, for tests: drop rules in a network namespace of the test's own.

use super::{Cluster, ClusterError, Result, Server};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Puts this thread, and what it starts from now on, in a network of its own. Only root may: for
/// others it does nothing and returns false.
pub fn enter_own() -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(false);
    }
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| ClusterError::new("making a network namespace", e))?;
    tool("ip", &["link", "set", "lo", "up"])?;
    Ok(true)
}

/// Drops all group traffic from and to one member, until it is healed; its clients still reach it.
pub fn cut(cluster: &Cluster, server: &Server) -> Result<()> {
    // Every member listens on a loopback address of its own and dials from it; clients come from
    // and go to 127.0.0.1, whatever member they talk to.
    let address = cluster.group_address(server);
    let host = address.split(':').next().unwrap_or(&address);
    let (first, last) = (cluster.group_port(1), cluster.group_port(10));
    let ports = format!("{first}-{last}");
    let table = table(server);
    tool("nft", &["add", "table", "inet", &table])?;
    let hook = "{ type filter hook input priority 0; }";
    tool("nft", &["add", "chain", "inet", &table, "in", hook])?;
    for side in ["saddr", "daddr"] {
        for port in ["sport", "dport"] {
            let rule = ["ip", side, host, "tcp", port, &ports, "drop"];
            let add = ["add", "rule", "inet", &table, "in"];
            tool("nft", &[&add[..], &rule[..]].concat())?;
        }
    }
    Ok(())
}

/// Ends the cut of a member.
pub fn heal(server: &Server) -> Result<()> {
    tool("nft", &["delete", "table", "inet", &table(server)])
}

fn table(server: &Server) -> String {
    format!("cut{}", server.number)
}

fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let step = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| ClusterError::new(&step, e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::new(
        step,
        String::from_utf8_lossy(&output.stderr),
    ))
}
