//! What must be judged wrong: two stock servers that replicate to each other, each with what began on
//! it (origin = none), without any agreement about what meets.

use crate::PATIENCE;
use crate::members::{CONFIGURATION, TABLE, folder, programs};
use postgres_r::cluster::server::StopMode;
use postgres_r::cluster::{Account, ClusterError, Server};
use std::path::PathBuf;

pub const DATABASE: &str = "app";

/// More than a run gets to.
const LISTS: u32 = 10_000;

/// Two servers in a folder that is removed in the end.
pub struct Pair {
    pub servers: Vec<Server>,
    dir: PathBuf,
}

impl Pair {
    pub fn new() -> Pair {
        let mut pair = Pair {
            servers: Vec::new(),
            dir: folder("control"),
        };
        // What has come up is stopped, also when the rest does not come up.
        pair.make().unwrap_or_else(|e| panic!("{e}"));
        pair
    }

    fn make(&mut self) -> Result<(), ClusterError> {
        let account = Account::for_dir(&self.dir)?;
        account.own(&self.dir)?;
        for number in 1..=2 {
            let server = Server {
                number,
                data: self.dir.join(format!("s{number}")),
                log: self.dir.join(format!("s{number}.log")),
                port: 5610 + number as u16,
                bin: programs("PGR_STOCK_BINDIR", "stock"),
                account: account.clone(),
            };
            server.initdb()?;
            server.configure(&format!(
                "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nwal_level = logical\n{CONFIGURATION}",
                server.port
            ))?;
            server.start(PATIENCE)?;
            self.servers.push(server.clone());
            let create = format!("CREATE DATABASE {DATABASE}");
            server.execute("postgres", "creating the database", &create)?;
            // Every list is there already: replication ends at the first row that was made twice.
            let publish = format!(
                "{TABLE} INSERT INTO list SELECT key, '{{}}' FROM generate_series(0, {LISTS}) key; \
                 CREATE PUBLICATION lists FOR TABLE list"
            );
            server.execute(DATABASE, "publishing", &publish)?;
        }
        for (server, other) in self.servers.iter().zip(self.servers.iter().rev()) {
            let subscribe = format!(
                "CREATE SUBSCRIPTION from_{} CONNECTION '{}' PUBLICATION lists WITH (origin = none, copy_data = false)",
                other.number,
                other.url(DATABASE)
            );
            server.execute(DATABASE, "subscribing", &subscribe)?;
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for server in &self.servers {
            if let Err(error) = server.stop(StopMode::Immediate) {
                eprintln!("{error}");
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("left behind: {}: {error}", self.dir.display());
        }
    }
}
