//! A group of servers for one test, removed when the test ends.

use bytes::Bytes;
use postgres::error::SqlState;
use postgres::{Client, Error};
use postgres_r::cluster::{Cluster, Server, UpOptions, status, verify};
use postgres_r::coordinator::message::{self, Message};
use postgres_r::gcs::egcs::disk::{Disk, FileDisk};
use postgres_r::gcs::egcs::log::{EntryKind, Record};
use postgres_r::gcs::egcs::segment::{Header, Scan};
use postgres_r::gcs::egcs::wire::decode_batch;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Long enough for a loaded machine; a test that needs it all has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How many times longer than usual storms and faults go on (`PGR_TEST_SCALE`).
pub fn scale() -> u32 {
    std::env::var("PGR_TEST_SCALE").map_or(1, |v| v.parse().expect("PGR_TEST_SCALE is a number"))
}

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// Ten ports in a row for clients, and the ten 2000 above for group traffic, that nobody uses now.
fn free_ports() -> u16 {
    loop {
        let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let base = 20_000 + ((std::process::id() as u16 % 60) * 16 + step) % 1000 * 10;
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (0..10).all(|i| free(base + i) && free(base + 2000 + i)) {
            return base;
        }
    }
}

/// A folder for what initdb makes, shared by all groups that there are at a time.
struct Template(PathBuf);

impl Drop for Template {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn template() -> Arc<Template> {
    static TEMPLATE: Mutex<(u32, Weak<Template>)> = Mutex::new((0, Weak::new()));
    let mut last = TEMPLATE.lock().expect("nothing fails while it is locked");
    last.1.upgrade().unwrap_or_else(|| {
        let dir = format!("pgr-test-initdb-{}-{}", std::process::id(), last.0);
        let next = Arc::new(Template(std::env::temp_dir().join(dir)));
        *last = (last.0 + 1, Arc::downgrade(&next));
        next
    })
}

/// A running group in a folder of its own.
pub struct TestGroup {
    cluster: Option<Cluster>,
    _template: Arc<Template>,
}

/// The changesets in the group log of a member that runs, those of each member in its order.
pub fn changesets(group: &TestGroup, number: usize) -> Vec<Bytes> {
    let server = group.member(number).expect("member");
    let disk = FileDisk::open(server.data.join("pg_group/log"));
    let mut found = BTreeMap::new();
    for name in disk.list().expect("the group's log") {
        let bytes = disk.whole(&name).expect("read");
        // The next one is made before it is written to.
        let Some(header) = Header::decode(&bytes) else {
            continue;
        };
        for record in Scan::new(&header, bytes).map(|found| found.record) {
            if let Record::Entry(entry) = record
                && entry.kind == EntryKind::Batch
            {
                found.extend(decode_batch(entry.data).expect("a batch"));
            }
        }
    }
    let message = |payload| message::parse(&payload).expect("a message");
    found
        .into_values()
        .filter_map(|payload| match message(payload) {
            Message::Changeset(_, bytes) => Some(bytes),
            _ => None,
        })
        .collect()
}

impl Deref for TestGroup {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.cluster.as_ref().expect("until the drop")
    }
}

impl DerefMut for TestGroup {
    fn deref_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("until the drop")
    }
}

impl Drop for TestGroup {
    fn drop(&mut self) {
        let Some(cluster) = self.cluster.take() else {
            return;
        };
        if std::thread::panicking() {
            for server in &cluster.servers {
                eprintln!(
                    "--- log of member {} ---\n{}",
                    server.number,
                    server.log_tail(60)
                );
            }
        }
        if std::env::var_os("PGR_TEST_KEEP").is_some() && std::thread::panicking() {
            eprintln!("kept: {}", cluster.dir.display());
            let _ = cluster.stop_all(postgres_r::cluster::server::StopMode::Immediate);
            return;
        }
        let dir = cluster.dir.clone();
        if let Err(error) = cluster.purge() {
            eprintln!("cleaning up {}: {error}", dir.display());
        }
    }
}

/// Where the servers' programs are.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("PGR_BINDIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("build/check/bin"),
        PathBuf::from,
    )
}

/// Options of a small group.
pub fn options(members: usize) -> UpOptions {
    let mut options = UpOptions::new(bin_dir());
    options.members = members;
    options.port = free_ports();
    options.configuration =
        "shared_buffers = 64MB\nmax_wal_size = 1GB\nmax_connections = 60\nfsync = on\nrecovery_init_sync_method = syncfs\nlog_line_prefix = '%m [%p] %q%a '\n".into();
    options
}

/// A group of so many members whose replicated database holds what `init` makes.
pub fn group(name: &str, members: usize, init: &str) -> TestGroup {
    group_with(name, options(members), init)
}

/// The same with other options.
pub fn group_with(name: &str, mut options: UpOptions, init: &str) -> TestGroup {
    let dir = std::env::temp_dir().join(format!("pgr-test-{name}-{}", std::process::id()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("remove what an earlier run left");
    }
    std::fs::create_dir_all(&dir).expect("make the folder of the group");
    let file = dir.join("test.sql");
    std::fs::write(&file, init).expect("write the init file");
    options.init = Some(file);
    let template = template();
    options.template = Some(template.0.clone());
    let made = Cluster::up(&dir, &options, &mut |_| {});
    // Whatever came up is cleaned up, also when the rest did not.
    let group = TestGroup {
        cluster: Cluster::open(&dir).ok(),
        _template: template,
    };
    if let Err(error) = made {
        panic!("{error}");
    }
    group
}

impl TestGroup {
    /// A connection to the replicated database of member `number`.
    pub fn client(&self, number: usize) -> Client {
        let server = self.member(number).expect("member");
        server
            .connect(&self.database)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// The same with a setting of the session.
    pub fn client_with(&self, number: usize, name: &str, value: &str) -> Client {
        let mut client = self.client(number);
        client
            .batch_execute(&format!("SET {name} = {value}"))
            .unwrap_or_else(|e| panic!("member {number}: {name} = {value}: {e:?}"));
        client
    }

    /// Runs SQL on a member.
    pub fn execute(&self, number: usize, sql: &str) {
        self.client(number)
            .batch_execute(sql)
            .unwrap_or_else(|e| panic!("member {number}: {sql}: {e:?}"));
    }

    /// Waits until all members are in step and asserts that they hold the same rows, that commit
    /// and apply left no helper error anywhere, and returns how many rows were compared.
    pub fn assert_identical(&self) -> u64 {
        let report = verify::verify(self, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            report.differences.is_empty(),
            "members differ:\n{}",
            report.differences.join("\n")
        );
        assert_eq!(report.members, self.running().count());
        for server in self.running() {
            let group = status::group_state(server).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(
                group.helper_errors,
                0,
                "member {}: helpers failed\n{}",
                server.number,
                server.log_tail(60)
            );
            assert_eq!(group.state, "online", "member {}", server.number);
        }
        report.rows
    }

    /// State of a member.
    pub fn state(&self, number: usize) -> status::GroupState {
        status::group_state(self.member(number).expect("member")).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts a member that was killed or stopped, and waits until it is online.
    pub fn start(&self, number: usize) {
        let server = self.member(number).expect("member");
        server.start(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        self.await_online(number);
    }

    /// Waits until a running member is open to clients.
    pub fn await_online(&self, number: usize) {
        let server = self.member(number).expect("member");
        status::wait_online(server, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Waits until a query on a member answers with the wanted value.
    pub fn await_value(&self, server: &Server, sql: &str, wanted: i64) {
        let (mut last, mut client) = (None, None);
        let seen = postgres_r::cluster::server::wait_for(PATIENCE, || {
            let open = match client.take() {
                Some(open) => Some(open),
                None => server.connect(&self.database).ok(),
            };
            last = None;
            if let Some(mut open) = open
                && let Ok(row) = open.query_one(sql, &[])
            {
                last = Some(row.get(0));
                client = Some(open);
            }
            (last == Some(wanted)).then_some(())
        });
        assert!(
            seen.is_some(),
            "member {}: {sql} gave {last:?}, not {wanted}",
            server.number
        );
    }
}

/// Checks all B-trees of tables in `public`, entry for entry against the heap and from the root; how many.
/// The database has amcheck.
pub fn check_trees(server: &Server) -> i64 {
    let sql = "SELECT count(*) FROM (SELECT bt_index_parent_check(i.indexrelid, true, true, true), pg_relation_size(i.indexrelid)
         FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
         WHERE m.amname = 'btree' AND t.relnamespace = 'public'::regnamespace OFFSET 0) s";
    postgres_r::cluster::group::query_one(server, "app", sql).unwrap_or_else(|e| panic!("{e}"))
}

/// Tells threads of a scope to stop when it is dropped, also by a panic, which would wait for them.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether an error is a serialization failure, which a client answers by trying again.
pub fn is_serialization_failure(error: &Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

/// Runs a transaction until it commits; each conflict must be a clean 40001. Returns the retries.
pub fn until_committed(
    client: &mut Client,
    mut work: impl FnMut(&mut postgres::Transaction<'_>) -> Result<(), Error>,
) -> Result<u32, Error> {
    let mut retries = 0;
    loop {
        let outcome = client.transaction().and_then(|mut t| {
            work(&mut t)?;
            t.commit()
        });
        match outcome {
            Ok(()) => return Ok(retries),
            // An abort that meets the very start of COMMIT leaves the block open, as a cancel does.
            Err(e) if is_serialization_failure(&e) => {
                retries += 1;
                client.batch_execute("ROLLBACK")?;
            }
            Err(e) => return Err(e),
        }
    }
}

impl TestGroup {
    /// Starts a member and waits only until the server accepts connections.
    pub fn start_quietly(&self, number: usize) {
        self.member(number)
            .expect("member")
            .start(PATIENCE)
            .unwrap_or_else(|e| panic!("{e}"));
    }
}
