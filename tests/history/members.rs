//! The group whose history is recorded.

use crate::PATIENCE;
use postgres_r::cluster::server::StopMode;
use postgres_r::cluster::{Cluster, UpOptions, verify};
use std::ops::Deref;
use std::path::PathBuf;

/// The lists, as rows.
pub const TABLE: &str = "CREATE TABLE list (key int4 PRIMARY KEY, elements int4[] NOT NULL);";

/// For every server here. Clients lock lists in any order, and should not stand still for it; those that
/// have given up should not leave sessions behind that wait for a lock.
pub const CONFIGURATION: &str = "shared_buffers = 64MB\nmax_connections = 60\ndeadlock_timeout = 100ms\nclient_connection_check_interval = 1s\nlog_line_prefix = '%m [%p] %q%a '\n";

/// The programs that a variable names, or those of a build here.
pub fn programs(variable: &str, build: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("build")
                .join(build)
                .join("bin")
        },
        PathBuf::from,
    )
}

/// An empty folder for servers.
pub fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("pgr-history-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make the folder");
    dir
}

/// Three members in a folder that is removed in the end.
pub struct Group(Cluster);

impl Deref for Group {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Group {
    pub fn of_three() -> Group {
        let dir = folder("group");
        let init = dir.join("list.sql");
        std::fs::write(&init, TABLE).expect("write the init file");
        let mut options = UpOptions::new(programs("PGR_BINDIR", "check"));
        options.port = 5601;
        options.configuration = CONFIGURATION.into();
        options.init = Some(init);
        let made = Cluster::up(&dir, &options, &mut |_| {});
        // Whatever came up is cleaned up, also when the rest did not.
        let group = Cluster::open(&dir).map(Group);
        made.and(group).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Takes the lists of an earlier history away.
    pub fn empty_lists(&self) {
        self.servers[0]
            .execute(&self.database, "emptying the lists", "DELETE FROM list")
            .and_then(|()| self.wait_in_step(PATIENCE).map(drop))
            .unwrap_or_else(|e| panic!("{e}"));
    }

    /// All members hold the same rows.
    pub fn assert_identical(&self) {
        let report = verify::verify(self, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.members, self.servers.len());
        assert!(
            report.differences.is_empty(),
            "members differ:\n{}",
            report.differences.join("\n")
        );
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in &self.servers {
                let tail = server.log_tail(60);
                eprintln!("--- log of member {} ---\n{tail}", server.number);
            }
        }
        let purged = self.stop_all(StopMode::Immediate).is_ok()
            && std::fs::remove_dir_all(&self.dir).is_ok();
        if !purged {
            eprintln!("left behind: {}", self.dir.display());
        }
    }
}
