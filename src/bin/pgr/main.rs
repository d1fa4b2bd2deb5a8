//! `pgr`: groups of patched PostgreSQL servers on one machine, from the shell.

mod commands;
mod demo;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes, watches, breaks and checks a group of PostgreSQL servers that replicate synchronously.
///
/// Works as root too: servers then run under an unprivileged account (PGR_USER, else the owner of
/// DIR, else postgres, else nobody).
#[derive(Parser)]
#[command(name = "pgr", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a group: member I listens on 127.0.0.1, port PORT+I-1, superuser postgres
    Up {
        /// Members
        #[arg(short = 'n', default_value_t = 3)]
        members: usize,
        #[command(flatten)]
        dir: Dir,
        /// Port of member 1
        #[arg(short, long, default_value_t = 5501)]
        port: u16,
        /// The replicated database
        #[arg(short, long, default_value = "app")]
        db: String,
        /// SQL to run in the database before it is replicated
        #[arg(long)]
        init: Option<PathBuf>,
        /// Or fill it with pgbench's tables
        #[arg(long, conflicts_with = "init")]
        pgbench_scale: Option<u32>,
        /// A line for every postgresql.conf; may be repeated
        #[arg(short, long = "config")]
        config: Vec<String>,
    },
    /// Add a member to the running group: base backup of a live provider, learner, voter
    Join {
        #[command(flatten)]
        dir: Dir,
    },
    /// What every member says of itself
    Status {
        #[command(flatten)]
        dir: Dir,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait until all applied the same GID, then compare every table row by row; exit 1 if they differ
    Verify {
        #[command(flatten)]
        dir: Dir,
        /// Seconds to wait for one GID
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// kill -9 of every process of a member
    Kill(Member),
    /// Stop a member orderly
    Stop(Member),
    /// Start a member and wait until it is online
    Start(Member),
    /// Stop every process of a member in its tracks (SIGSTOP)
    Pause(Member),
    /// Let a paused member go on
    Resume(Member),
    /// Stop all members
    Down {
        #[command(flatten)]
        dir: Dir,
        /// And remove their data
        #[arg(long)]
        purge: bool,
    },
    /// Three members, pgbench on all of them at the same time, and a check that they are equal
    Demo {
        /// Seconds of pgbench
        #[arg(short = 'T', long, default_value_t = 15)]
        time: u32,
        /// Port of member 1
        #[arg(short, long, default_value_t = 5501)]
        port: u16,
        /// Where; by default a new folder below the temporary folder, removed at the end
        #[arg(short = 'D')]
        dir: Option<PathBuf>,
    },
    /// Print and check a group log offline
    Log {
        /// The log's folder (pg_group/log of a data directory)
        dir: PathBuf,
        /// Only check it
        #[arg(long)]
        check: bool,
    },
}

#[derive(clap::Args)]
struct Dir {
    /// Folder of the group
    #[arg(short = 'D')]
    dir: PathBuf,
}

#[derive(clap::Args)]
struct Member {
    #[command(flatten)]
    dir: Dir,
    /// Which member, from 1 on
    member: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match commands::run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pgr: {error}");
            ExitCode::FAILURE
        }
    }
}
