//! What a database must be like to be replicated.

use crate::pg::guard::{self, PgError, Result};
use crate::pg::sys;
use std::ffi::{CStr, c_char, c_int};
use std::ptr;

unsafe extern "C" {
    fn pgr_shim_sql_first(
        sql: *const c_char,
        out: *mut *const c_char,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
}

/// Something that must not be there.
struct Obstacle {
    /// Names it. Runs with nothing but `pg_catalog` in the search path.
    query: &'static CStr,
    code: &'static str,
    message: &'static str,
    reason: &'static str,
    hint: &'static str,
}

/// Nobody knows what they have changed. Once START waits for transactions that are not captured, it waits
/// for these as well; those that are captured may be prepared (`capture::prepare`).
const PREPARED: Obstacle = Obstacle {
    query: c"SELECT string_agg(quote_literal(gid), ', ' ORDER BY gid) FROM pg_prepared_xacts WHERE database = current_database() HAVING count(*) > 0",
    code: "55000",
    message: "there are prepared transactions in this database",
    reason: "What they have changed would be on no other member.",
    hint: "End them with COMMIT PREPARED or ROLLBACK PREPARED first.",
};

const OBSTACLES: &[Obstacle] = &[
    Obstacle {
        query: c"SELECT 'table ' || c.oid::regclass FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
            WHERE a.amtype = 't' AND a.amname <> 'heap' AND c.relpersistence = 'p'",
        code: "0A000",
        message: "this database has tables under an access method that is not replicated",
        reason: "Changes are captured in tables under the access method \"heap\".",
        hint: "ALTER TABLE ... SET ACCESS METHOD heap, before replication starts.",
    },
    // Of a subscription only its position is replicated: workers of any member go on from there, but they change
    // catalogs of their own server.
    Obstacle {
        query: c"SELECT 'subscription ' || quote_ident(s.subname) || ' with table ' || r.srrelid::regclass FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid JOIN pg_subscription_rel r ON r.srsubid = s.oid \
            WHERE d.datname = current_database() AND r.srsubstate <> 'r'",
        code: "55000",
        message: "this database has subscriptions to tables that are not synchronized yet",
        reason: "What synchronizes a table is not replicated.",
        hint: "Wait until all tables are in state 'r' in pg_subscription_rel, or drop what is in the way.",
    },
    Obstacle {
        query: c"SELECT 'subscription ' || quote_ident(s.subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
            WHERE d.datname = current_database() AND s.subtwophasestate <> 'd'",
        code: "0A000",
        message: "this database has subscriptions with two-phase commit",
        reason: "Two-phase commit is not replicated.",
        hint: "ALTER SUBSCRIPTION ... DISABLE, then SET (two_phase = false), before replication starts.",
    },
    Obstacle {
        query: c"SELECT 'subscription ' || quote_ident(s.subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
            WHERE d.datname = current_database() AND s.subdisableonerr",
        code: "0A000",
        message: "this database has subscriptions that an error disables",
        reason: "One would be disabled on one member only.",
        hint: "ALTER SUBSCRIPTION ... SET (disable_on_error = false), before replication starts.",
    },
    Obstacle {
        query: c"SELECT 'subscription ' || quote_ident(s.subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
            WHERE d.datname = current_database() AND s.subskiplsn <> '0/0'",
        code: "55000",
        message: "this database has subscriptions that are to skip a transaction",
        reason: "One would skip it on one member only.",
        hint: "Wait until it is skipped, or ALTER SUBSCRIPTION ... SKIP (lsn = NONE), before replication starts.",
    },
    Obstacle {
        query: c"SELECT 'table ' || c.oid::regclass FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid \
            WHERE k.contype = 'f' AND c.relpersistence = 'u' AND p.relpersistence = 'p'",
        code: "0A000",
        message: "this database has unlogged tables that refer to replicated ones",
        reason: "What other members change would not be checked against rows that are here only.",
        hint: "ALTER TABLE ... SET LOGGED, or drop the foreign key, before replication starts.",
    },
    Obstacle {
        query: c"SELECT 'table ' || c.oid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent \
            WHERE c.relpersistence = 'u' AND p.relpersistence = 'p'",
        code: "0A000",
        message: "this database has unlogged partitions or children of replicated tables",
        reason: "Unlogged tables are not replicated.",
        hint: "ALTER TABLE ... SET LOGGED, or detach them, before replication starts.",
    },
    Obstacle {
        query: c"SELECT 'trigger ' || quote_ident(t.tgname) || ' of table ' || c.oid::regclass FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
            WHERE t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' \
            AND t.tgtype & 1 = 1 AND (t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL)",
        code: "0A000",
        message: "this database has row triggers with transition tables that fire where changes are applied",
        reason: "Where a change is applied there is no statement whose rows such tables could hold.",
        hint: "ALTER TABLE ... ENABLE TRIGGER, without ALWAYS or REPLICA, before replication starts.",
    },
    // Some statements go through several transactions, of which replication may not miss one.
    Obstacle {
        query: c"SELECT 'index ' || c.oid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
            WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relpersistence = 'p' \
            UNION ALL SELECT 'partition ' || inhrelid::regclass FROM pg_inherits WHERE inhdetachpending",
        code: "55000",
        message: "this database has indexes or partitions that are not valid",
        reason: "A statement with CONCURRENTLY is at work on them, or did not finish.",
        hint: "Wait for it, or REINDEX or drop the index, or ALTER TABLE ... DETACH PARTITION ... FINALIZE.",
    },
];

/// Refuses what would not be replicated, or not be the same on all members.
pub fn check() -> Result<()> {
    OBSTACLES.iter().try_for_each(|o| o.check("There is"))
}

/// Refuses transactions that were prepared when nothing was captured.
pub fn check_prepared() -> Result<()> {
    PREPARED.check("There are")
}

impl Obstacle {
    fn check(&self, there: &str) -> Result<()> {
        let Some(name) = first(self.query)? else {
            return Ok(());
        };
        Err(PgError::new(self.code, self.message)
            .detail(format!("{} {there} {name}.", self.reason))
            .hint(self.hint))
    }
}

/// What the first row of a query says.
fn first(sql: &CStr) -> Result<Option<String>> {
    // SAFETY: a C string and a place for the answer.
    let text = guard::call(ptr::null(), |out, e| unsafe {
        pgr_shim_sql_first(sql.as_ptr(), out, e)
    })?;
    // SAFETY: null, or a C string in the memory of the statement.
    let text = unsafe { super::optional(text) };
    Ok(text.map(|t| t.to_string_lossy().into_owned()))
}
