//! Postgres-R: synchronous update-everywhere replication below SQL.
//!
//! ```text
//!  client ── worker ─ executor ─► capture ─► changeset (built in imessage memory, no copy)
//!                       COMMIT ─► imsg ───► coordinator ─► gcs (total order + durable group log)
//!                                                             │ the same order on every member
//!                                              certifier ◄────┘  verdict + dependency GID
//!               origin: verdict imessage ─► worker ─┐      others: changeset imessage ─► helper ─► heap apply
//!                                                   └──► commit gate: commits in GID order ◄─────┘
//! ```

#[cfg(all(feature = "server", feature = "cli"))]
compile_error!(
    "`server` is the library inside PostgreSQL and `cli` the command outside: build them apart"
);

pub mod capture;
pub mod certifier;
pub mod changeset;
#[cfg(feature = "cli")]
pub mod cluster;
pub mod coordinator;
pub mod gcs;
pub mod group_file;
pub mod group_state;
pub mod ids;
#[expect(unsafe_code, reason = "shared memory")]
pub mod imsg;
pub mod limits;
pub mod sequence;
pub mod worker;

#[cfg(feature = "server")]
pub mod apply;
#[cfg(feature = "server")]
#[expect(unsafe_code, reason = "what PostgreSQL calls")]
pub mod export;
#[cfg(feature = "server")]
#[expect(unsafe_code, reason = "what calls PostgreSQL")]
pub mod pg;
