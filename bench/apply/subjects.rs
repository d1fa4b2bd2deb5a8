//! Who applies: the same statements run on an origin, and another server follows it.

use crate::cases::SCHEMA;
use crate::servers::{SLOW, plain, standby_of};
use postgres_r::cluster::server::{StopMode, wait_for};
use postgres_r::cluster::{Account, Cluster, Server, UpOptions};
use std::path::{Path, PathBuf};

const CONFIGURATION: &str = "shared_buffers = 512MB\nmax_wal_size = 8GB\ncheckpoint_timeout = 30min\nautovacuum = off\n\
    log_checkpoints = off\nwal_sender_timeout = 0\nwal_receiver_timeout = 0\nsynchronous_commit = off\n";

/// One way to have changes on a second server.
pub struct Subject {
    /// For the table.
    pub name: &'static str,
    /// Where the statements run.
    pub origin: Server,
    /// Who follows, and is measured.
    pub target: Server,
    /// Another follower, which is never stopped, if there is one.
    pub other: Option<Server>,
    /// On the origin: what the follower must reach; and whether it has, for a value of the first.
    position: (&'static str, &'static str),
    reached_on_target: bool,
}

const SENT: (&str, &str) = (
    "SELECT pg_current_wal_insert_lsn()::text",
    "SELECT bool_and(replay_lsn >= '{}'::pg_lsn) FROM pg_stat_replication",
);

const GID: (&str, &str) = (
    "SELECT last_committed_gid::text FROM pg_stat_get_replication_group()",
    "SELECT last_committed_gid >= {} FROM pg_stat_get_replication_group()",
);

impl Subject {
    /// Whether it is a group of this project's.
    pub fn is_group(&self) -> bool {
        self.other.is_some()
    }

    /// Waits until all that the origin has done is done on the follower. Returns false if it takes
    /// too long.
    pub fn await_target(&self) -> bool {
        let connect =
            |server: &Server| server.connect("postgres").unwrap_or_else(|e| panic!("{e}"));
        let mut origin = connect(&self.origin);
        let position: String = origin
            .query_one(self.position.0, &[])
            .expect("position")
            .get(0);
        let question = self.position.1.replace("{}", &position);
        let mut asked = if self.reached_on_target {
            connect(&self.target)
        } else {
            origin
        };
        wait_for(SLOW, || {
            let row = asked.query_one(&question, &[]).expect("position");
            row.get::<_, Option<bool>>(0).unwrap_or(false).then_some(())
        })
        .is_some()
    }
}

/// All of them, and how to remove them.
pub struct Subjects {
    /// In the order of the report; the first is this project's.
    pub all: Vec<Subject>,
    group: Cluster,
    plain: Vec<Server>,
    dir: PathBuf,
}

impl Subjects {
    /// Makes all servers, with the tables of the cases.
    pub fn make(helpers: u32) -> Subjects {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
        let dir = std::env::temp_dir().join(format!("pgr-apply-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder of the benchmark");
        let account = Account::for_dir(&dir).unwrap_or_else(|e| panic!("{e}"));
        account.own(&dir).unwrap_or_else(|e| panic!("{e}"));
        let server = |number: u16, name: &str| Server {
            number: number.into(),
            data: dir.join(name),
            log: dir.join(format!("{name}.log")),
            port: 6200 + number,
            bin: root.join("stock/bin"),
            account: account.clone(),
        };
        let [primary, standby, publisher, subscriber] = [
            server(1, "primary"),
            server(2, "standby"),
            server(3, "publisher"),
            server(4, "subscriber"),
        ];
        let schema = |server: &Server| done(server.execute("app", "making tables", SCHEMA));
        done(plain(&primary, CONFIGURATION));
        schema(&primary);
        done(standby_of(&standby, &primary, "standby"));
        for server in [&publisher, &subscriber] {
            done(plain(
                server,
                &format!("{CONFIGURATION}wal_level = logical\n"),
            ));
            schema(server);
        }
        done(publisher.execute("app", "publishing", "CREATE PUBLICATION p FOR ALL TABLES"));
        let subscribe = format!(
            "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=app' PUBLICATION p WITH (copy_data = false)",
            publisher.port
        );
        done(subscriber.execute("app", "subscribing", &subscribe));
        let init = dir.join("schema.sql");
        std::fs::write(&init, SCHEMA).expect("write the schema");
        let mut options = UpOptions::new(root.join("pgsql/bin"));
        options.port = 6211;
        options.init = Some(init);
        options.configuration = format!("{CONFIGURATION}replication_helpers = {helpers}\n");
        let group = Cluster::up(&dir.join("group"), &options, &mut |text| {
            println!("  {text}")
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let plain = vec![primary, standby, publisher, subscriber];
        let by = |name, origin: usize, target: usize| Subject {
            name,
            origin: plain[origin].clone(),
            target: plain[target].clone(),
            other: None,
            position: SENT,
            reached_on_target: false,
        };
        let all = vec![
            Subject {
                name: "group",
                origin: group.servers[0].clone(),
                target: group.servers[1].clone(),
                other: Some(group.servers[2].clone()),
                position: GID,
                reached_on_target: true,
            },
            by("logical", 2, 3),
            by("physical", 0, 1),
        ];
        Subjects {
            all,
            group,
            plain,
            dir,
        }
    }

    /// That every follower has the rows of its origin.
    pub fn check(&self) {
        let report = postgres_r::cluster::verify::verify(&self.group, SLOW)
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(
            report.differences.is_empty(),
            "{}",
            report.differences.join("\n")
        );
        for table in ["narrow", "copied", "wide", "toasted", "indexed"] {
            let sql = format!(
                "SELECT count(*)::text || md5(sum(hashtextextended(t::text, 0))::text) FROM {table} t"
            );
            for subject in &self.all[1..] {
                let of = |server| {
                    postgres_r::cluster::group::query_one::<Option<String>>(server, "app", &sql)
                        .unwrap_or_else(|e| panic!("{e}"))
                };
                assert_eq!(
                    of(&subject.origin),
                    of(&subject.target),
                    "{} {table}",
                    subject.name
                );
            }
        }
    }
}

impl Drop for Subjects {
    fn drop(&mut self) {
        for server in self.plain.iter().rev() {
            let _ = server.signal_all(nix::sys::signal::Signal::SIGCONT);
            let _ = server.stop(StopMode::Immediate);
        }
        let _ = self.group.stop_all(StopMode::Immediate);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn done(outcome: postgres_r::cluster::Result<()>) {
    outcome.unwrap_or_else(|e| panic!("{e}"));
}
