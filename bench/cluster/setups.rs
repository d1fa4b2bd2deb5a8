//! The servers that are compared.

use crate::servers::{SLOW, plain, standby_of};
use postgres_r::cluster::{Account, Cluster, Server, UpOptions, verify};
use std::path::{Path, PathBuf};

/// One way to run pgbench.
pub struct Setup {
    /// Short name, for tables.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Takes pgbench; several at once share the clients.
    pub writers: Vec<Server>,
    /// All servers whose processor time counts.
    pub servers: Vec<Server>,
    /// The database.
    pub database: String,
    /// Set on the writers before a run.
    pub before: Option<&'static str>,
}

/// All of them, and how to remove them.
pub struct Setups {
    /// In the order of the report.
    pub all: Vec<Setup>,
    group: Cluster,
    plain: Vec<Server>,
    dir: PathBuf,
}

const CONFIGURATION: &str = "shared_buffers = 256MB\nmax_connections = 100\nmax_wal_size = 4GB\ncheckpoint_timeout = 30min\nautovacuum = off\nlog_checkpoints = off\n";

impl Setups {
    /// Builds all set-ups with pgbench tables of one scale.
    pub fn make(scale: u32) -> Setups {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
        let dir = std::env::temp_dir().join(format!("pgr-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder of the benchmark");
        let account = Account::for_dir(&dir).unwrap_or_else(|e| panic!("{e}"));
        account.own(&dir).unwrap_or_else(|e| panic!("{e}"));
        let (stock, patched) = (root.join("stock/bin"), root.join("pgsql/bin"));
        let server = |number: usize, name: &str, port: u16, bin: &Path| Server {
            number,
            data: dir.join(name),
            log: dir.join(format!("{name}.log")),
            port,
            bin: bin.to_path_buf(),
            account: account.clone(),
        };
        let alone = server(1, "stock", 6101, &stock);
        let off = server(2, "off", 6102, &patched);
        let primary = server(3, "primary", 6103, &stock);
        for (server, more) in [
            (&alone, ""),
            (&off, ""),
            (
                &primary,
                "synchronous_standby_names = 'ANY 1 (s1, s2)'\nsynchronous_commit = local\n",
            ),
        ] {
            done(plain(server, &format!("{CONFIGURATION}{more}")));
            fill(server, scale);
        }
        let mut standbys = Vec::new();
        for (i, name) in ["s1", "s2"].iter().enumerate() {
            let standby = server(4 + i, name, 6104 + i as u16, &stock);
            done(standby_of(&standby, &primary, name));
            standbys.push(standby);
        }
        println!("making a group of three");
        let mut options = UpOptions::new(patched);
        options.port = 6111;
        options.pgbench_scale = Some(scale);
        options.configuration = CONFIGURATION.into();
        let group = Cluster::up(&dir.join("group"), &options, &mut |text| {
            println!("  {text}")
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let with_standbys: Vec<Server> = std::iter::once(&primary)
            .chain(&standbys)
            .cloned()
            .collect();
        let setup = |name, title, writers: &[Server], servers: &[Server], before| Setup {
            name,
            title,
            writers: writers.to_vec(),
            servers: servers.to_vec(),
            database: "app".to_owned(),
            before,
        };
        let all = vec![
            setup(
                "stock",
                "stock PostgreSQL",
                std::slice::from_ref(&alone),
                std::slice::from_ref(&alone),
                None,
            ),
            setup(
                "off",
                "patched, replication off",
                std::slice::from_ref(&off),
                std::slice::from_ref(&off),
                None,
            ),
            setup(
                "standby on",
                "stock, two standbys, ANY 1, on",
                std::slice::from_ref(&primary),
                &with_standbys,
                Some("on"),
            ),
            setup(
                "standby apply",
                "the same, remote_apply",
                std::slice::from_ref(&primary),
                &with_standbys,
                Some("remote_apply"),
            ),
            setup(
                "group one",
                "three members, writes on one",
                &group.servers[..1],
                &group.servers,
                None,
            ),
            setup(
                "group all",
                "three members, writes on all",
                &group.servers,
                &group.servers,
                None,
            ),
        ];
        let plain = [alone, off, primary].into_iter().chain(standbys).collect();
        Setups {
            all,
            group,
            plain,
            dir,
        }
    }

    /// The only server of a set-up that has one.
    pub fn server(&self, name: &str) -> Option<&Server> {
        self.all.iter().find(|s| s.name == name)?.servers.first()
    }

    /// Whether the group's members still agree.
    pub fn verify(&self) -> Result<String, String> {
        let report = verify::verify(&self.group, SLOW).map_err(|e| e.to_string())?;
        if report.differences.is_empty() {
            Ok(format!(
                "{} rows identical on {} members at GID {}",
                report.rows, report.members, report.gid
            ))
        } else {
            Err(report.differences.join("\n"))
        }
    }
}

impl Drop for Setups {
    fn drop(&mut self) {
        let immediate = postgres_r::cluster::server::StopMode::Immediate;
        for server in self.plain.iter().rev() {
            let _ = server.stop(immediate);
        }
        let _ = self.group.stop_all(immediate);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn done(outcome: postgres_r::cluster::Result<()>) {
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

fn fill(server: &Server, scale: u32) {
    let (port, scale) = (server.port.to_string(), scale.to_string());
    done(
        server
            .run(
                "filling",
                "pgbench",
                &[
                    "-i",
                    "-q",
                    "-s",
                    &scale,
                    "-h",
                    "127.0.0.1",
                    "-p",
                    &port,
                    "-U",
                    "postgres",
                    "app",
                ],
            )
            .map(drop),
    );
}
