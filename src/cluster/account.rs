//! The unprivileged account that servers run under.

use super::{ClusterError, Result};
use nix::unistd::{Gid, Uid, User, chown, geteuid};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Who runs the servers. When `pgr` itself is not root, that is whoever runs `pgr`.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name, for messages.
    pub name: String,
    ids: Option<(Uid, Gid)>,
}

impl Account {
    /// `PGR_USER`, else the owner of `dir` if that is not root, else `postgres`, else `nobody`.
    pub fn for_dir(dir: &Path) -> Result<Account> {
        let me = geteuid();
        if !me.is_root() {
            let name = User::from_uid(me)
                .ok()
                .flatten()
                .map_or_else(|| me.to_string(), |u| u.name);
            return Ok(Account { name, ids: None });
        }
        let owner = std::fs::metadata(dir)
            .ok()
            .filter(|m| m.uid() != 0)
            .map(|m| Uid::from_raw(m.uid()));
        let by_name = |name: &str| User::from_name(name).ok().flatten();
        let user = if let Ok(name) = std::env::var("PGR_USER") {
            Some(by_name(&name).ok_or_else(|| {
                ClusterError::new(
                    "choosing the account of the servers",
                    format!("PGR_USER: there is no account {name}"),
                )
            })?)
        } else if let Some(uid) = owner {
            User::from_uid(uid).ok().flatten()
        } else {
            by_name("postgres").or_else(|| by_name("nobody"))
        };
        let user = user.ok_or_else(|| {
            ClusterError::new("choosing the account of the servers", "PostgreSQL does not run as root, and there is neither an account postgres nor nobody; set PGR_USER")
        })?;
        if user.uid.is_root() {
            return Err(ClusterError::new(
                "choosing the account of the servers",
                "PostgreSQL does not run as root; set PGR_USER to another account",
            ));
        }
        Ok(Account {
            name: user.name,
            ids: Some((user.uid, user.gid)),
        })
    }

    /// A command that runs as this account, in a folder that it may enter, with a clean locale.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(dir)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PGSERVICE");
        for name in [
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
            "PGDATA",
            "PGOPTIONS",
        ] {
            command.env_remove(name);
        }
        if let Some((uid, gid)) = self.ids {
            // groups() of the account are dropped with root's by setgid before setuid in exec.
            command.uid(uid.as_raw()).gid(gid.as_raw()).env("HOME", dir);
        }
        command
    }

    /// Gives a file or folder to the account.
    pub fn own(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.ids else {
            return Ok(());
        };
        chown(path, Some(uid), Some(gid)).map_err(|e| {
            ClusterError::new(
                format!("giving {} to account {}", path.display(), self.name),
                e,
            )
        })
    }

    /// Whether the account can run a program, which it can't below another account's 0700 home.
    pub fn can_run(&self, program: &Path, dir: &Path) -> bool {
        self.command(program, dir)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    }
}
