//! Servers without replication groups, to compare with.

use postgres_r::cluster::{Result, Server};
use std::time::Duration;

/// A start, a copy, or what was left to be done.
pub const SLOW: Duration = Duration::from_secs(300);

/// initdb, start, and the database `app`.
pub fn plain(server: &Server, configuration: &str) -> Result<()> {
    println!("making {}", server.data.display());
    server.initdb()?;
    server.configure(&format!(
        "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n{configuration}",
        server.port
    ))?;
    server.start(SLOW)?;
    server.execute("postgres", "creating the database", "CREATE DATABASE app")
}

/// A streaming standby, known to its primary by a name.
pub fn standby_of(standby: &Server, primary: &Server, name: &str) -> Result<()> {
    println!("making {}", standby.data.display());
    let data = standby.data.display().to_string();
    let source = format!(
        "host=127.0.0.1 port={} user=postgres application_name={name}",
        primary.port
    );
    let arguments = [
        "-D",
        &data,
        "-d",
        &source,
        "-R",
        "-c",
        "fast",
        "-X",
        "stream",
        "--no-sync",
    ];
    standby.run("base backup", "pg_basebackup", &arguments)?;
    standby.configure(&format!("port = {}\n", standby.port))?;
    standby.start(SLOW)
}
