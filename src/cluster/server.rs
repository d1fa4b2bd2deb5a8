//! One server: a data directory, its programs, its processes.

use super::{Account, ClusterError, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One PostgreSQL server of a cluster, running or not.
#[derive(Clone, Debug)]
pub struct Server {
    /// From 1 on; of the folder, not the member number in the group, which rises with each join.
    pub number: usize,
    /// Data directory.
    pub data: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Port of clients.
    pub port: u16,
    /// Where the programs are.
    pub bin: PathBuf,
    /// Who runs it.
    pub account: Account,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug)]
pub enum StopMode {
    /// Clients are disconnected, a checkpoint is written.
    Fast,
    /// As if it had crashed, but orderly for the operating system.
    Immediate,
}

const COPYING: &str = "copying what initdb made";

impl Server {
    fn home(&self) -> &Path {
        self.data.parent().unwrap_or(&self.data)
    }

    /// A command of this server's installation, run as its account.
    pub fn program(&self, name: &str) -> Command {
        self.account.command(self.bin.join(name), self.home())
    }

    /// Runs a program to its end; its output belongs to the error if it fails.
    pub fn run(&self, step: &str, name: &str, args: &[&str]) -> Result<String> {
        self.output(step, name, self.program(name).args(args))
    }

    fn output(&self, step: &str, name: &str, command: &mut Command) -> Result<String> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|e| ClusterError::on(self, step, format!("{name}: {e}")))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = [output.stdout, output.stderr].concat();
        Err(ClusterError::on(
            self,
            step,
            format!("{name} failed: {}", String::from_utf8_lossy(&text)),
        ))
    }

    /// initdb with trust for local connections and superuser `postgres`.
    pub fn initdb(&self) -> Result<()> {
        self.initdb_with(&[])
    }

    fn initdb_with(&self, more: &[&str]) -> Result<()> {
        let data = self.data.display().to_string();
        let args = [
            "-D",
            &data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-instructions",
            "--no-sync",
        ];
        self.run("initdb", "initdb", &[&args, more].concat())
            .map(drop)
    }

    /// A copy of what initdb made before for a server like this, or initdb and a copy for the next.
    pub fn initdb_once(&self, template: &Path) -> Result<()> {
        if template.exists() {
            return self.copy(COPYING, template, &self.data);
        }
        // Segments of WAL are whole in every copy.
        self.initdb_with(&["--wal-segsize=1"])?;
        // Others may be at it as well: it is there when it is whole, and whose it is does not matter.
        let whole = self.home().join("template");
        self.copy(COPYING, &self.data, &whole)?;
        match std::fs::rename(&whole, template) {
            Err(e) if !template.exists() => Err(ClusterError::on(self, "keeping a template", e)),
            _ => Ok(()),
        }
    }

    /// A folder once more.
    pub(super) fn copy(&self, step: &str, from: &Path, to: &Path) -> Result<()> {
        let mut copy = self.account.command("cp", self.home());
        copy.args(["-a", "--reflink=auto"]).args([from, to]);
        self.output(step, "cp", &mut copy).map(drop)
    }

    /// Appends lines to postgresql.conf; a later line wins.
    pub fn configure(&self, lines: &str) -> Result<()> {
        use std::io::Write;
        let path = self.data.join("postgresql.conf");
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(lines.as_bytes()))
            .map_err(|e| ClusterError::on(self, format!("writing {}", path.display()), e))
    }

    /// Starts it and waits until it accepts connections (a replicated database may open later).
    pub fn start(&self, timeout: Duration) -> Result<()> {
        let seconds = timeout.as_secs().to_string();
        let (data, log) = (
            self.data.display().to_string(),
            self.log.display().to_string(),
        );
        // pg_ctl hands its standard output to the postmaster, so a pipe would never end: use a file.
        let answer = self.log.with_extension("start");
        let file =
            std::fs::File::create(&answer).map_err(|e| ClusterError::on(self, "starting", e))?;
        let copy = file
            .try_clone()
            .map_err(|e| ClusterError::on(self, "starting", e))?;
        let status = self
            .program("pg_ctl")
            .args(["start", "-w", "-t", &seconds, "-D", &data, "-l", &log])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .status()
            .map_err(|e| ClusterError::on(self, "starting", e))?;
        if status.success() {
            return Ok(());
        }
        Err(ClusterError::on(
            self,
            "starting",
            std::fs::read_to_string(&answer).unwrap_or_default(),
        ))
    }

    /// Stops it and waits until it is gone.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        let Some(_) = self.pid() else { return Ok(()) };
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        let data = self.data.display().to_string();
        self.run(
            "stopping",
            "pg_ctl",
            &["stop", "-w", "-t", "120", "-D", &data, "-m", mode],
        )
        .map(drop)
    }

    /// Tells it to stop as in [`StopMode::Immediate`], without waiting for it.
    pub(super) fn quit(&self) {
        // Paused processes hear nothing.
        let _ = self.signal_all(Signal::SIGCONT);
        if let Some(postmaster) = self.pid() {
            let _ = kill(postmaster, Signal::SIGQUIT);
        }
    }

    /// Waits until it is gone.
    pub(super) fn await_end(&self) -> Result<()> {
        wait_for(Duration::from_secs(120), || {
            self.pid().is_none().then_some(())
        })
        .ok_or_else(|| ClusterError::on(self, "stopping", "it is still there after 120 s"))
    }

    /// Process id of a running postmaster.
    pub fn pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?);
        // A stale file may name a process of somebody else.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let data = self.data.display().to_string();
        let ours = command
            .split(|b| *b == 0)
            .any(|word| word == data.as_bytes());
        (ours && alive(pid)).then_some(pid)
    }

    /// The postmaster and all its children.
    pub fn processes(&self) -> Vec<Pid> {
        let Some(postmaster) = self.pid() else {
            return Vec::new();
        };
        let mut all = vec![postmaster];
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<i32>().ok())
            else {
                continue;
            };
            if parent(pid) == Some(postmaster.as_raw()) {
                all.push(Pid::from_raw(pid));
            }
        }
        all
    }

    /// kill -9 of every process of the server, without any chance to react.
    pub fn kill(&self) -> Result<()> {
        let Some(postmaster) = self.pid() else {
            return Err(ClusterError::on(self, "killing", "it is not running"));
        };
        // A stopped postmaster forks no more, so the list is complete.
        let _ = kill(postmaster, Signal::SIGSTOP);
        let processes = self.processes();
        for pid in processes.iter().rev() {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        // Until nobody has a process of that number: a postmaster that starts again would take a
        // zombie for one that still runs.
        while processes.iter().any(|p| kill(*p, None).is_ok()) {
            if Instant::now() > deadline {
                return Err(ClusterError::on(
                    self,
                    "killing",
                    "processes are still there after 30 s",
                ));
            }
            pause_briefly();
        }
        Ok(())
    }

    /// Stops (SIGSTOP) or continues (SIGCONT) every process of the server.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        let processes = self.processes();
        if processes.is_empty() {
            return Err(ClusterError::on(
                self,
                format!("sending {signal}"),
                "it is not running",
            ));
        }
        for pid in processes {
            let _ = kill(pid, signal);
        }
        Ok(())
    }

    /// Connection string for a database.
    pub fn url(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database} connect_timeout=5",
            self.port
        )
    }

    /// A connection as `postgres`.
    pub fn connect(&self, database: &str) -> Result<postgres::Client> {
        postgres::Client::connect(&self.url(database), postgres::NoTls).map_err(|e| {
            ClusterError::on(
                self,
                format!("connecting to database {database}"),
                super::db_error(&e),
            )
        })
    }

    /// Runs SQL that returns nothing.
    pub fn execute(&self, database: &str, step: &str, sql: &str) -> Result<()> {
        self.connect(database)?
            .batch_execute(sql)
            .map_err(|e| ClusterError::on(self, step, super::db_error(&e)))
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let Ok(mut file) = std::fs::File::open(&self.log) else {
            return String::new();
        };
        let length = file.metadata().map_or(0, |m| m.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(16 << 10)));
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn alive(pid: Pid) -> bool {
    // A zombie is gone for every purpose here.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| {
        s.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')')
        .next()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// The step of polling for a condition that nothing can wake us for.
pub(crate) fn pause_briefly() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Polls until a condition holds; `None` when the time is over.
pub fn wait_for<T>(timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        pause_briefly();
    }
}
