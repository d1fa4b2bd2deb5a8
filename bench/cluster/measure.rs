//! One run of pgbench and what it used.

use crate::setups::Setup;
use crate::usage::{changeset_bytes, cpu_seconds, wal_bytes, wire_bytes};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What pgbench does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Script {
    /// TPC-B-like
    Tpcb,
    /// simple-update, `-N`
    Simple,
    /// TPC-B-like at SERIALIZABLE
    Serializable,
    /// The same, with small tables read by their indexes as if they were large
    Indexed,
    /// Updates of so many rows, each as likely as the others
    Hot(u32),
}

impl std::str::FromStr for Script {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tpcb" => Ok(Script::Tpcb),
            "simple" => Ok(Script::Simple),
            "serializable" => Ok(Script::Serializable),
            "indexed" => Ok(Script::Indexed),
            other => other
                .strip_prefix("hot")
                .and_then(|rows| rows.parse().ok())
                .map(Script::Hot)
                .ok_or_else(|| format!("unknown script {other}")),
        }
    }
}

impl Script {
    /// For tables.
    pub fn name(self) -> String {
        match self {
            Script::Tpcb => "tpcb".to_owned(),
            Script::Simple => "simple".to_owned(),
            Script::Serializable => "serializable".to_owned(),
            Script::Indexed => "indexed".to_owned(),
            Script::Hot(rows) => format!("hot{rows}"),
        }
    }

    /// Where its statements are, if they are not pgbench's own.
    fn file(self) -> PathBuf {
        let name = format!("pgr-bench-{}-{}.sql", self.name(), std::process::id());
        std::env::temp_dir().join(name)
    }

    /// What pgbench is told to do.
    fn prepare(self, pgbench: &mut Command) {
        match self {
            Script::Tpcb => {}
            Script::Simple => {
                pgbench.arg("-N");
            }
            Script::Serializable => {
                pgbench.env("PGOPTIONS", "-c default_transaction_isolation=serializable");
            }
            Script::Indexed => {
                let options = "-c default_transaction_isolation=serializable -c enable_seqscan=off";
                pgbench.env("PGOPTIONS", options);
            }
            Script::Hot(rows) => {
                let file = self.file();
                let sql = format!(
                    "\\set aid random(1, {rows})\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"
                );
                std::fs::write(&file, sql).expect("write the script");
                pgbench.arg("-f").arg(file);
            }
        }
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of the set-up.
    pub setup: &'static str,
    /// Script.
    pub script: Script,
    /// Clients over all writers.
    pub clients: u32,
    /// Transactions a second over all writers.
    pub tps: f64,
    /// Mean latency, ms, over the writers.
    pub latency_ms: f64,
    /// Serialization failures that were retried, a transaction.
    pub aborts: f64,
    /// Processor seconds of all servers' processes, a thousand transactions.
    pub cpu_s_per_1000: f64,
    /// Bytes sent on TCP between servers, a transaction.
    pub wire_bytes: f64,
    /// Bytes of WAL of all servers, a transaction.
    pub wal_bytes: f64,
    /// Bytes of changesets, a transaction; 0 without a group.
    pub changeset_bytes: f64,
}

impl Run {
    /// One line, as the run ends.
    pub fn line(&self, round: u32) -> String {
        format!(
            "round {round} {:<12} {:>2} clients {:<14} {:>8.0} tps {:>8.2} ms {:>7.4} aborts/tx {:>7.3} CPU s/1000 tx {:>7.0} B wire {:>7.0} B WAL {:>5.0} B changesets",
            self.script.name(),
            self.clients,
            self.setup,
            self.tps,
            self.latency_ms,
            self.aborts,
            self.cpu_s_per_1000,
            self.wire_bytes,
            self.wal_bytes,
            self.changeset_bytes
        )
    }
}

/// pgbench takes a statement that it could not prepare for prepared, so it can't be told of a
/// serialization failure then; where there are such failures, it has to send text.
fn protocol(setup: &Setup) -> &'static str {
    if setup.writers.len() > 1 {
        "simple"
    } else {
        "prepared"
    }
}

/// Runs pgbench on all writers of a set-up at once.
pub fn run(setup: &Setup, script: Script, clients: u32, seconds: u32) -> Run {
    if let Some(level) = setup.before {
        for server in &setup.writers {
            let sql = format!("ALTER DATABASE app SET synchronous_commit = {level}");
            server
                .execute("postgres", "setting synchronous_commit", &sql)
                .unwrap_or_else(|e| panic!("{e}"));
        }
    }
    for server in &setup.servers {
        // Everybody begins with clean buffers; a standby checkpoints when it can.
        let _ = server.execute("postgres", "checkpoint", "CHECKPOINT");
    }
    let writers = setup.writers.len() as u32;
    let changesets = || changeset_bytes(&setup.servers).unwrap_or_default();
    let (cpu, wire, wal, changesets_before) = (
        cpu_seconds(&setup.servers),
        wire_bytes(&setup.servers),
        wal_bytes(&setup.servers),
        changesets(),
    );
    let children: Vec<_> = setup
        .writers
        .iter()
        .enumerate()
        .map(|(i, server)| {
            let share = clients / writers + u32::from((i as u32) < clients % writers);
            (share > 0).then(|| {
                let mut command = server.program("pgbench");
                command
                    .args([
                        "-n",
                        "-M",
                        protocol(setup),
                        "--max-tries=0",
                        "-h",
                        "127.0.0.1",
                        "-U",
                        "postgres",
                    ])
                    .args([
                        "-T",
                        &seconds.to_string(),
                        "-c",
                        &share.to_string(),
                        "-p",
                        &server.port.to_string(),
                    ]);
                script.prepare(&mut command);
                command
                    .arg(&setup.database)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                command.spawn().expect("pgbench")
            })
        })
        .collect();
    let (mut tps, mut latency, mut transactions, mut retries, mut running) =
        (0.0, 0.0, 0.0, 0.0, 0.0);
    for child in children.into_iter().flatten() {
        let output = child.wait_with_output().expect("pgbench ends");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "pgbench on {}: {text} {}",
            setup.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let value = |prefix: &str| -> f64 {
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix(prefix))
                .unwrap_or("0");
            let number: String = line
                .trim_start_matches([':', ' ', '='])
                .chars()
                .take_while(|c| c.is_ascii_digit() || *c == '.')
                .collect();
            number.parse().unwrap_or(0.0)
        };
        tps += value("tps");
        latency += value("latency average");
        transactions += value("number of transactions actually processed");
        retries += value("total number of retries");
        running += 1.0;
    }
    // Only some have one.
    let _ = std::fs::remove_file(script.file());
    let per = |total: f64| total / f64::max(transactions, 1.0);
    // What a run leaves to be applied is part of its cost.
    let wal = wal_bytes(&setup.servers) - wal;
    Run {
        setup: setup.name,
        script,
        clients,
        tps,
        latency_ms: latency / running,
        aborts: per(retries),
        cpu_s_per_1000: per(cpu_seconds(&setup.servers) - cpu) * 1000.0,
        wire_bytes: per(wire_bytes(&setup.servers) - wire),
        wal_bytes: per(wal),
        changeset_bytes: per(changesets() - changesets_before),
    }
}
