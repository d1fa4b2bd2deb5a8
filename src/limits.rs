//! Every bound of the system, related to each other at compile time.

use crate::changeset::key::KEY_BYTES_MAX;

/// Members a group can ever have at one time.
pub const MEMBERS_MAX: usize = 64;
/// Bytes of one changeset, header included (a larger one fails at the origin with 54000).
pub const CHANGESET_BYTES_MAX: usize = 64 << 20;
/// Keys of a changeset; what a transaction comes to stays far below (see [`KEYS_EXACT_MAX`]).
pub const CHANGESET_KEYS_MAX: usize = 2 << 20;
/// Bytes of one record in the group log, and so of one batch of messages.
pub const LOG_RECORD_BYTES_MAX: usize = CHANGESET_BYTES_MAX + (1 << 20);
/// Bytes of one frame between members.
pub const FRAME_BYTES_MAX: usize = LOG_RECORD_BYTES_MAX + (1 << 20);
/// Bytes of one preallocated segment of the group log; a larger record gets a segment of its own size.
pub const LOG_SEGMENT_BYTES: usize = 16 << 20;
/// Payload bytes that the leader gathers into one log entry before it starts the next.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Messages in one log entry.
pub const BATCH_MESSAGES_MAX: usize = 512;
/// Bytes of entries of a fragment that travels ahead of its changeset, unless a single row has more.
pub const FRAGMENT_BYTES: usize = 1 << 20;
/// Bytes of entries after which there is a place at which they can be cut into fragments: the row that
/// passes them is the last before it.
pub const FRAGMENT_PART_BYTES: usize = 16 << 10;
/// Bytes of entries from which on they are compressed, in a changeset or a fragment.
pub const COMPRESSED_FROM_BYTES: usize = 2 << 10;
/// Fragments of one transaction that may be without a place in the order.
pub const FRAGMENTS_AHEAD: u32 = 4;
/// Ordered fragments that stay in memory for a helper that applies them before their changeset comes;
/// those before are read from the group log again.
pub const EARLY_KEPT_MAX: usize = 8;
/// Ticks after which a large transaction does not wait for a member that applies it early and says nothing.
pub const PACE_TICKS: u32 = 15;
/// Keys of a transaction beyond which each is said once, and whole relations take their place.
pub const KEYS_EXACT_MAX: usize = 64 << 10;
/// Transactions whose fragments wait for their changesets, in a group.
pub const OPEN_TRANSACTIONS_MAX: usize = 256;
/// Bytes ordered since the last checkpoint beyond which no other transaction may begin to send
/// fragments while some are open: a checkpoint waits until none is.
pub const OPEN_ADMIT_BYTES: u64 = 16 << 30;
/// Bytes ordered since the last checkpoint beyond which all open transactions fail.
pub const OPEN_BYTES_MAX: u64 = 64 << 30;
/// Bytes ordered since a member was last heard of beyond which its open transactions fail.
pub const OPEN_SILENT_BYTES: u64 = 4 << 30;
/// Bytes that stay free on the disk of the group log when fragments are written.
pub const LOG_RESERVE_BYTES: u64 = 256 << 20;
/// Connections that have not yet authenticated.
pub const HALF_OPEN_MAX: usize = 16;
/// Bytes that wait to be sent on one connection. One message of the engine at its largest fits, and
/// all the entries that it sends ahead of an answer; a connection that gathers more is dropped.
pub const SEND_QUEUE_BYTES_MAX: usize = FRAME_WHOLE_BYTES_MAX + (256 << 20);
/// Ticks that a connection may take to be made and authenticated.
pub const HANDSHAKE_TICKS: u32 = 30;
/// Idle ticks after which something is sent on a connection, so that the other side knows.
pub const KEEPALIVE_TICKS: u32 = 10;
/// Ticks without a sign of life after which a connection is dropped.
pub const SILENCE_TICKS: u32 = 50;
const _: () = assert!(KEEPALIVE_TICKS * 3 < SILENCE_TICKS);
/// Bytes of a block of the imessage pool.
pub const POOL_BLOCK_BYTES: usize = 8 << 10;
/// Keys that the certifier retains; beyond it the oldest go and late windows fail with 40001.
pub const CERTIFIER_KEYS_MAX: usize = 4 << 20;
/// Keys of what a SERIALIZABLE transaction has read; beyond it whole relations take their place.
pub const READ_KEYS_MAX: usize = 16 << 10;
/// Keys that one search of a SERIALIZABLE transaction is taken down as.
pub const READ_POINTS_MAX: usize = 256;
/// Keys of a changeset beyond which it names no more index entries for SERIALIZABLE searches.
pub const ENTRY_KEYS_MAX: u32 = 8 << 10;
/// Relations of one reservation. They fit in one imessage.
pub const RESERVED_RELATIONS_MAX: usize = 8;
/// Changesets of other members that a reservation outlasts.
pub const RESERVATION_ENTRIES: u32 = 10_000;
/// Ticks after which any member ends a reservation, in the order: its member may be gone.
pub const RESERVATION_TICKS: u32 = 100;
/// Transactions of a session that lose in a row, before the next is for a reservation.
pub const LOSSES_BEFORE_RESERVATION: u32 = 8;
/// Bytes of a client's messages that are kept so that a query can be run again.
pub const REPEATED_BYTES_MAX: usize = 256 << 10;
/// Delivered messages between two checkpoints of the certification state, at least.
pub const CHECKPOINT_EVERY_MESSAGES: u64 = 10_000;
/// Most transactions of one member between multicast and verdict.
pub const IN_FLIGHT_MAX: usize = 4096;
/// Slots of the table of waiters for a commit turn: certified transactions in flight on one server.
pub const COMMIT_TURNS: usize = 4096;
/// Length of the name of a group (as a PostgreSQL identifier).
pub const GROUP_NAME_BYTES_MAX: usize = 63;
/// Helpers that `replication_helpers` allows.
pub const HELPERS_MAX: usize = 64;
/// Bytes of the group secret file's key.
pub const SECRET_BYTES: usize = 32;
/// GIDs between two comparisons of the members' verdict digests.
pub const DIGEST_EVERY_GIDS: u64 = 1024;
/// Digest points that are remembered to judge members that report late.
pub const DIGEST_POINTS_MAX: usize = 64;
/// Delivered messages after the first difference of two digests by which it is decided who is right.
pub const DIGEST_DECIDE_MESSAGES: u64 = 256;
/// Ticks without a majority after which commits that write are refused; beyond the engine's election timeouts.
pub const QUORUM_LOST_TICKS: u32 = 30;
/// Idle ticks after which a member reports its moved positions by a message of its own.
pub const STATUS_IDLE_TICKS: u32 = 5;
/// Bytes of changesets that wait for a helper in memory; those beyond are read from the group log again.
pub const APPLY_QUEUE_BYTES_MAX: usize = 256 << 20;
/// Tries of helpers on one changeset before the member fails; the pauses between them double, from
/// one tick on.
pub const HELPER_ATTEMPTS_MAX: u32 = 8;

/// Changesets that a helper is given at once, when more wait than there are helpers. All are in its
/// queue, beside a word or two.
pub const HELPER_RUN_MAX: usize = 12;

/// Bytes of changesets, as they were sent, from which on a helper is given no more at once.
pub const HELPER_RUN_BYTES: usize = 64 << 10;
/// Bytes of a checkpoint of the certification state; it may exceed a record of messages.
pub const CHECKPOINT_BYTES_MAX: usize = 512 << 20;
/// Length of an address `host:port`.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Bytes of a frame between members; a longer message of the engine is sent in parts.
pub const FRAME_PART_BYTES: usize = 1 << 20;
/// Bytes of one message of the engine, put together from its parts.
pub const FRAME_WHOLE_BYTES_MAX: usize = CHECKPOINT_BYTES_MAX + LOG_RECORD_BYTES_MAX;
/// Log entries proposed and not yet committed, before the leader gathers more into one.
pub const PIPELINE_ENTRIES_MAX: u64 = 1;
/// Payload bytes of own messages that are not yet delivered.
pub const OUTBOX_BYTES_MAX: usize = 2 * CHANGESET_BYTES_MAX;
/// Payload bytes that a leader holds for entries that are not yet proposed.
pub const PROPOSALS_BYTES_MAX: usize = 4 * CHANGESET_BYTES_MAX;
/// Bytes of log entries that stay in memory for members that lag.
pub const LOG_CACHE_BYTES_MAX: usize = 64 << 20;
/// Ticks of silence after which a follower seeks a new leader (and up to twice that, at random).
pub const ELECTION_TICKS: usize = 10;
/// Ticks between a leader's heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// Entries that a learner may lack and still count as in step.
pub const IN_STEP_ENTRIES_MAX: u64 = 64;

const _: () = assert!(CHANGESET_BYTES_MAX < LOG_RECORD_BYTES_MAX);
const _: () = assert!(LOG_RECORD_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(BATCH_BYTES_MAX <= LOG_RECORD_BYTES_MAX);
const _: () = assert!(COMMIT_TURNS.is_power_of_two() && COMMIT_TURNS > HELPERS_MAX);
const _: () = assert!(POOL_BLOCK_BYTES.is_power_of_two());
const _: () = assert!(APPLY_QUEUE_BYTES_MAX > CHANGESET_BYTES_MAX);
const _: () = assert!(FRAME_PART_BYTES < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_WHOLE_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(HEARTBEAT_TICKS * 3 < ELECTION_TICKS);
const _: () = assert!(OUTBOX_BYTES_MAX >= CHANGESET_BYTES_MAX);
const _: () = assert!(READ_KEYS_MAX * KEY_BYTES_MAX < CHANGESET_BYTES_MAX / 16);
// The largest writeset leaves room for others in the certifier's index.
const _: () = assert!(CHANGESET_KEYS_MAX < CERTIFIER_KEYS_MAX);
const _: () = assert!(KEYS_EXACT_MAX + READ_KEYS_MAX < CHANGESET_KEYS_MAX);
const _: () = assert!(KEYS_EXACT_MAX * KEY_BYTES_MAX < CHANGESET_BYTES_MAX / 16);
const _: () = assert!(FRAGMENT_PART_BYTES < FRAGMENT_BYTES && FRAGMENT_BYTES < CHANGESET_BYTES_MAX);
const _: () = assert!(OPEN_SILENT_BYTES < OPEN_ADMIT_BYTES && OPEN_ADMIT_BYTES < OPEN_BYTES_MAX);
