//! adya's opinion of a history.

use std::path::{Path, PathBuf};
use std::process::Command;

pub enum Verdict {
    Right,
    /// With the anomalies and their proofs.
    Wrong(String),
}

/// A search that finds no cycle in time leaves the verdict open, which is a failure here.
const SEARCH_MS: &str = "120000";

fn adya() -> PathBuf {
    std::env::var_os("ADYA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("build/tools/bin/adya"),
        PathBuf::from,
    )
}

/// Whether a history of list-append transactions keeps all of these consistency models.
pub fn judge(history: &Path, models: &str) -> Verdict {
    let mut command = Command::new(adya());
    command
        .args(["check", "--model", "list-append"])
        .args(["--cycle-search-timeout", SEARCH_MS])
        .args(["--consistency-models", models])
        .arg(history);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}; scripts/history installs it"));
    let text = format!(
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    match output.status.code() {
        Some(0) => Verdict::Right,
        Some(1) => Verdict::Wrong(text),
        _ => panic!("there is no verdict ({}): {text}", output.status),
    }
}
