//! What this library is.

use super::patchset::PATCHSET;
use super::sys;

/// Release of the library, the patch series that it was built for, and the server's release.
#[must_use]
pub fn text() -> String {
    let server = String::from_utf8_lossy(sys::PG_VERSION);
    let server = server.trim_end_matches('\0');
    format!(
        "Postgres-R {}, patch set {PATCHSET}, PostgreSQL {server}",
        env!("CARGO_PKG_VERSION"),
    )
}
