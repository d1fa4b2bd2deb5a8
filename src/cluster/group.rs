//! A group of servers in one folder: how it is set up, grows and ends.

use super::server::{StopMode, wait_for};
use super::{Account, ClusterError, Result, Server, db_error, status};
use std::fmt::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a start with recovery, a base backup or a join may take.
const SLOW: Duration = Duration::from_secs(300);

/// What `pgr up` is asked for.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// Members.
    pub members: usize,
    /// Port of member 1; member I listens on `port + I - 1`, its group traffic on 2000 above.
    pub port: u16,
    /// The replicated database.
    pub database: String,
    /// Group name.
    pub group: String,
    /// SQL that fills the database before it is replicated.
    pub init: Option<PathBuf>,
    /// Or pgbench's tables at this scale.
    pub pgbench_scale: Option<u32>,
    /// More lines for every postgresql.conf.
    pub configuration: String,
    /// Where what initdb makes is kept, to be copied for the next group.
    pub template: Option<PathBuf>,
    /// Where the programs are; by default where this program is.
    pub bin: PathBuf,
}

impl UpOptions {
    /// Three members beside this program, database `app`.
    pub fn new(bin: PathBuf) -> Self {
        Self {
            members: 3,
            port: 5501,
            database: "app".into(),
            group: "app".into(),
            init: None,
            pgbench_scale: None,
            configuration: String::new(),
            template: None,
            bin,
        }
    }
}

/// Distance from a member's client port to the port of its group traffic.
const GROUP_PORT_OFFSET: u16 = 2000;

/// The servers of one folder.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The folder.
    pub dir: PathBuf,
    /// The replicated database.
    pub database: String,
    /// The group's name.
    pub group: String,
    /// Port of member 1.
    pub port: u16,
    /// In the order in which they were made.
    pub servers: Vec<Server>,
    configuration: String,
    bin: PathBuf,
    account: Account,
}

impl Cluster {
    /// Makes a group: member 1 starts it, the others join it while it runs.
    pub fn up(dir: &Path, options: &UpOptions, say: &mut dyn FnMut(&str)) -> Result<Cluster> {
        if options.members == 0 || options.members > crate::limits::MEMBERS_MAX {
            return Err(ClusterError::new(
                "checking -n",
                format!("1 to {} members", crate::limits::MEMBERS_MAX),
            ));
        }
        let mut cluster = Self::create(dir, options)?;
        cluster.first(options, say)?;
        let mut copies: Vec<Server> = Vec::new();
        for _ in 1..options.members {
            let copy = match copies.first() {
                Some(first) => cluster.copy_again(first, say)?,
                None => cluster.prepare_join(say)?,
            };
            copies.push(copy);
        }
        for copy in &copies {
            cluster.take_in(copy, say)?;
        }
        Ok(cluster)
    }

    /// An empty cluster folder with its secret; no server yet.
    pub fn create(dir: &Path, options: &UpOptions) -> Result<Cluster> {
        let step = format!("making {}", dir.display());
        if dir.join("cluster.conf").exists() {
            return Err(ClusterError::new(
                step,
                "there is a cluster already; `pgr down --purge` removes it",
            ));
        }
        std::fs::create_dir_all(dir).map_err(|e| ClusterError::new(&step, e))?;
        let dir = dir
            .canonicalize()
            .map_err(|e| ClusterError::new(&step, e))?;
        let account = Account::for_dir(&dir)?;
        account.own(&dir)?;
        let bin = reachable_programs(&options.bin, &dir, &account)?;
        let mut key = [0u8; crate::limits::SECRET_BYTES];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut key))
            .map_err(|e| ClusterError::new("making the group secret", e))?;
        let secret = dir.join("secret");
        let text: String = key.iter().map(|b| format!("{b:02x}")).collect();
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&secret)
            .and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()))
            .map_err(|e| ClusterError::new(format!("writing {}", secret.display()), e))?;
        account.own(&secret)?;
        let cluster = Cluster {
            dir,
            database: options.database.clone(),
            group: options.group.clone(),
            port: options.port,
            servers: Vec::new(),
            configuration: options.configuration.clone(),
            bin,
            account,
        };
        cluster.save()?;
        Ok(cluster)
    }

    /// Opens a folder that [`Cluster::create`] made.
    pub fn open(dir: &Path) -> Result<Cluster> {
        let path = dir.join("cluster.conf");
        let step = format!("reading {}", path.display());
        let text = std::fs::read_to_string(&path).map_err(|e| ClusterError::new(&step, e))?;
        let dir = dir
            .canonicalize()
            .map_err(|e| ClusterError::new(&step, e))?;
        let value = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(" = ").map(str::to_owned))
                .ok_or_else(|| ClusterError::new(&step, format!("no line \"{name} = …\"")))
        };
        let number = |name: &str| {
            value(name)?
                .parse::<u16>()
                .map_err(|e| ClusterError::new(&step, format!("{name}: {e}")))
        };
        let mut cluster = Cluster {
            database: value("database")?,
            group: value("group")?,
            port: number("port")?,
            bin: PathBuf::from(value("bin")?),
            account: Account::for_dir(&dir)?,
            servers: Vec::new(),
            configuration: std::fs::read_to_string(dir.join("member.conf")).unwrap_or_default(),
            dir,
        };
        for member in 1..=number("members")? {
            cluster.servers.push(cluster.server(usize::from(member)));
        }
        Ok(cluster)
    }

    fn save(&self) -> Result<()> {
        let text = format!(
            "database = {}\ngroup = {}\nport = {}\nbin = {}\nmembers = {}\n",
            self.database,
            self.group,
            self.port,
            self.bin.display(),
            self.servers.len()
        );
        std::fs::write(self.dir.join("cluster.conf"), text)
            .and_then(|()| std::fs::write(self.dir.join("member.conf"), &self.configuration))
            .map_err(|e| ClusterError::new("writing cluster.conf", e))
    }

    fn server(&self, number: usize) -> Server {
        Server {
            number,
            data: self.dir.join(format!("m{number}")),
            log: self.dir.join(format!("m{number}.log")),
            port: self.port + number as u16 - 1,
            bin: self.bin.clone(),
            account: self.account.clone(),
        }
    }

    /// The member of this number.
    pub fn member(&self, number: usize) -> Result<&Server> {
        number
            .checked_sub(1)
            .and_then(|i| self.servers.get(i))
            .ok_or_else(|| {
                ClusterError::new(
                    "choosing the member",
                    format!(
                        "there is no member {number}, only 1 to {}",
                        self.servers.len()
                    ),
                )
            })
    }

    /// Address of a member's group traffic: a loopback address of its own, so that it can be cut off.
    pub fn group_address(&self, server: &Server) -> String {
        format!(
            "127.0.0.{}:{}",
            server.number,
            self.group_port(server.number)
        )
    }

    /// Port of the group traffic of the member of this number.
    pub(crate) fn group_port(&self, number: usize) -> u16 {
        self.port + number as u16 - 1 + GROUP_PORT_OFFSET
    }

    fn server_configuration(&self, server: &Server, seeds: &[String]) -> String {
        let mut text = String::from("\n# by pgr\n");
        let _ = writeln!(text, "port = {}", server.port);
        let _ = writeln!(text, "listen_addresses = '127.0.0.1'");
        let _ = writeln!(text, "unix_socket_directories = '{}'", self.dir.display());
        let _ = write!(
            text,
            "replication_gcs = 'egcs:listen={};secret={}",
            self.group_address(server),
            self.dir.join("secret").display()
        );
        if !seeds.is_empty() {
            let _ = write!(text, ";seeds={}", seeds.join(","));
        }
        text.push_str("'\n");
        text.push_str(&self.configuration);
        text.push('\n');
        text
    }

    /// Member 1: initdb, contents, START REPLICATION.
    fn first(&mut self, options: &UpOptions, say: &mut dyn FnMut(&str)) -> Result<()> {
        let server = self.server(1);
        say("member 1: initdb");
        match &options.template {
            Some(template) => server.initdb_once(template)?,
            None => server.initdb()?,
        }
        server.configure(&self.server_configuration(&server, &[]))?;
        say("member 1: starting");
        server.start(SLOW)?;
        self.servers.push(server.clone());
        self.save()?;
        let database = quote(&self.database);
        server.execute(
            "postgres",
            "creating the database",
            &format!("CREATE DATABASE {database}"),
        )?;
        if let Some(file) = &options.init {
            say(&format!("member 1: running {}", file.display()));
            let text = std::fs::read_to_string(file)
                .map_err(|e| ClusterError::on(&server, format!("reading {}", file.display()), e))?;
            let init = self.dir.join("init.sql");
            std::fs::write(&init, text)
                .map_err(|e| ClusterError::on(&server, "copying the init file", e))?;
            self.account.own(&init)?;
            let (port, init) = (server.port.to_string(), init.display().to_string());
            server.run(
                "running the init file",
                "psql",
                &[
                    "-h",
                    "127.0.0.1",
                    "-p",
                    &port,
                    "-U",
                    "postgres",
                    "-d",
                    &self.database,
                    "-v",
                    "ON_ERROR_STOP=1",
                    "-q",
                    "-f",
                    &init,
                ],
            )?;
        }
        if let Some(scale) = options.pgbench_scale {
            say(&format!("member 1: pgbench tables, scale {scale}"));
            let (port, scale) = (server.port.to_string(), scale.to_string());
            server.run(
                "filling pgbench's tables",
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
                    &self.database,
                ],
            )?;
        }
        say(&format!("member 1: starting group {}", self.group));
        server.execute(
            &self.database,
            "starting replication",
            &format!(
                "ALTER DATABASE {database} START REPLICATION IN GROUP {}",
                quote(&self.group)
            ),
        )?;
        status::wait_online(&server, SLOW)
    }

    /// One more member: a copy of a live provider that joins the running group.
    pub fn join(&mut self, say: &mut dyn FnMut(&str)) -> Result<Server> {
        let server = self.prepare_join(say)?;
        self.take_in(&server, say)?;
        Ok(server)
    }

    /// The rest of [`Cluster::join`].
    fn take_in(&self, server: &Server, say: &mut dyn FnMut(&str)) -> Result<()> {
        say(&format!("member {}: joining", server.number));
        server.start(SLOW)?;
        status::wait_online(server, SLOW)?;
        say(&format!("member {}: online", server.number));
        Ok(())
    }

    /// What [`Cluster::prepare_join`] makes, from one that it has made and nobody has started.
    fn copy_again(&mut self, first: &Server, say: &mut dyn FnMut(&str)) -> Result<Server> {
        let server = self.server(self.servers.len() + 1);
        say(&format!(
            "member {}: the same base backup as member {}",
            server.number, first.number
        ));
        server.copy("base backup", &first.data, &server.data)?;
        self.prepared(server)
    }

    /// Adds a member that has its data.
    fn prepared(&mut self, server: Server) -> Result<Server> {
        let seeds: Vec<String> = self.servers.iter().map(|s| self.group_address(s)).collect();
        server.configure(&self.server_configuration(&server, &seeds))?;
        self.servers.push(server.clone());
        self.save()?;
        Ok(server)
    }

    /// The copy of [`Cluster::join`], configured but not started.
    pub fn prepare_join(&mut self, say: &mut dyn FnMut(&str)) -> Result<Server> {
        let provider = self
            .servers
            .iter()
            .find(|s| status::group_state(s).is_ok_and(|g| g.state == "online"))
            .cloned()
            .ok_or_else(|| {
                ClusterError::new("looking for a provider", "no member of the group is online")
            })?;
        let server = self.server(self.servers.len() + 1);
        say(&format!(
            "member {}: base backup of member {}",
            server.number, provider.number
        ));
        let (port, data) = (provider.port.to_string(), server.data.display().to_string());
        // Into a folder of this number left by an attempt that failed, nothing may be copied.
        if server.data.exists() {
            std::fs::remove_dir_all(&server.data).map_err(|e| {
                ClusterError::on(&server, "removing the rest of an earlier join", e)
            })?;
        }
        server.run(
            "base backup",
            "pg_basebackup",
            &[
                "-D",
                &data,
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "postgres",
                "-c",
                "fast",
                "-X",
                "stream",
                "--no-sync",
            ],
        )?;
        self.prepared(server)
    }

    /// Stops all servers, newest first.
    pub fn stop_all(&self, mode: StopMode) -> Result<()> {
        let mut first_error = None;
        for server in self.servers.iter().rev() {
            // A paused server can't stop.
            let _ = server.signal_all(nix::sys::signal::Signal::SIGCONT);
            if let Err(error) = server.stop(mode) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Stops all servers and removes the folder.
    pub fn purge(self) -> Result<()> {
        // All at once: of what they hold nothing is needed.
        for server in &self.servers {
            server.quit();
        }
        for server in &self.servers {
            server.await_end()?;
        }
        std::fs::remove_dir_all(&self.dir)
            .map_err(|e| ClusterError::new(format!("removing {}", self.dir.display()), e))
    }

    /// How to connect, a line a member.
    pub fn how_to_connect(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            let _ = writeln!(
                text,
                "member {}: {}/psql -h 127.0.0.1 -p {} -U postgres {}",
                server.number,
                self.bin.display(),
                server.port,
                self.database
            );
        }
        text
    }

    /// Waits until every running member has committed what any of them has by now.
    pub fn wait_in_step(&self, timeout: Duration) -> Result<i64> {
        let servers: Vec<&Server> = self.running().collect();
        let mut asked: Vec<status::Asked> = servers.iter().map(|s| status::Asked::new(s)).collect();
        let mut target = 0;
        for one in &mut asked {
            target = target.max(one.state()?.last_committed_gid);
        }
        for (server, one) in servers.into_iter().zip(&mut asked) {
            wait_for(timeout, || {
                one.state().ok().filter(|g| g.last_committed_gid >= target)
            })
            .ok_or_else(|| {
                let now = status::group_state(server).map_or_else(
                    |e| e.to_string(),
                    |g| format!("it is {} at GID {}", g.state, g.last_committed_gid),
                );
                ClusterError::on(
                    server,
                    format!("waiting until it has applied GID {target}"),
                    now,
                )
            })?;
        }
        Ok(target)
    }

    /// Members that run now.
    pub fn running(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(|s| s.pid().is_some())
    }
}

/// An SQL identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Programs that the account can run: those of `bin`, or a copy in the cluster's folder when `bin`
/// lies below a folder that is closed to the account.
fn reachable_programs(bin: &Path, dir: &Path, account: &Account) -> Result<PathBuf> {
    let step = "finding PostgreSQL's programs";
    let bin = bin
        .canonicalize()
        .map_err(|e| ClusterError::new(step, format!("{}: {e}", bin.display())))?;
    if !bin.join("initdb").exists() {
        return Err(ClusterError::new(
            step,
            format!(
                "there is no initdb in {}; build it with `make pg`",
                bin.display()
            ),
        ));
    }
    if account.can_run(&bin.join("postgres"), dir) {
        return Ok(bin);
    }
    let prefix = bin
        .parent()
        .ok_or_else(|| ClusterError::new(step, "no installation prefix"))?;
    let copy = dir.join("pgsql");
    let done = std::process::Command::new("cp")
        .arg("-r")
        .arg(prefix)
        .arg(&copy)
        .status()
        .is_ok_and(|s| s.success());
    let copied = copy.join("bin");
    if done && account.can_run(&copied.join("postgres"), dir) {
        return Ok(copied);
    }
    Err(ClusterError::new(
        step,
        format!(
            "account {} can run neither {} nor a copy in {}; choose a folder that it can enter",
            account.name,
            bin.display(),
            dir.display()
        ),
    ))
}

/// Runs SQL on a database of a server and reports what the server says.
pub fn query_one<T: for<'a> postgres::types::FromSql<'a>>(
    server: &Server,
    database: &str,
    sql: &str,
) -> Result<T> {
    let mut client = server.connect(database)?;
    let row = client
        .query_one(sql, &[])
        .map_err(|e| ClusterError::on(server, sql, db_error(&e)))?;
    row.try_get(0).map_err(|e| ClusterError::on(server, sql, e))
}
