//! What a replicated database does not replicate yet, and so refuses before anything is changed.
//!
//! Statements come through `ProcessUtility_hook`. What is listed in [`verdict`] is known to be
//! harmless or replicated; every other statement is refused, so a new kind of statement is refused
//! until somebody has thought about it.

use super::maintenance;
use crate::capture::relation::FIRST_NORMAL_OID;
use crate::capture::transaction;
use crate::export;
use crate::pg::guard::{self, PgError, Result, boundary, boundary_nofail};
use crate::pg::{shmem, sys};
use crate::worker::{consistency, fairness};
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{Ordering, fence};

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_persistence(
        relation: *const sys::RangeVar,
        out: *mut c_char,
        edata: Edata,
    ) -> c_int;
    fn pgr_shim_object_persistence(
        kind: u32,
        object: *mut sys::Node,
        out: *mut c_char,
        edata: Edata,
    ) -> c_int;
    fn pgr_shim_command_name(
        statement: *mut sys::Node,
        out: *mut *const c_char,
        edata: Edata,
    ) -> c_int;
    fn pgr_shim_list_length(list: *const sys::List) -> c_int;
    fn pgr_shim_list_nth(list: *const sys::List, n: c_int) -> *mut sys::Node;
    fn pgr_shim_in_block() -> bool;
}

const TEMPORARY: c_char = b't' as c_char;
const PERMANENT: c_char = b'p' as c_char;

const SCHEMA_HINT: &str = "Stop replication on all members, change the schema on one, start replication there, and let the others join again as copies of it.";

const SUBSCRIPTION_HINT: &str = "Stop replication on all members, change subscriptions on one, start replication there when their tables are synchronized, and let the others join again as copies of it. Or subscribe in another database.";

const PREPARE_HINT: &str = "Use COMMIT: a commit is atomic on all members of the group.";

const SERVER_HINT: &str = "What belongs to the whole server is not replicated: run it on every member, in a database that is not replicated.";

/// Sets `ProcessUtility_hook`. In the postmaster, before any library can.
pub fn install() {
    // SAFETY: the process has one thread, and nobody has set the hook yet; libraries that are
    // loaded later call on to it.
    unsafe { sys::ProcessUtility_hook = Some(process_utility) };
}

/// Nothing of Rust is alive here while PostgreSQL runs the statement, which may raise.
#[allow(clippy::too_many_arguments)] // The hook's signature.
unsafe extern "C" fn process_utility(
    planned: *mut sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: sys::ProcessUtilityContext,
    parameters: sys::ParamListInfo,
    environment: *mut sys::QueryEnvironment,
    receiver: *mut sys::DestReceiver,
    completion: *mut sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL passes a statement.
    let statement = unsafe { (*planned).utilityStmt };
    let maintains = boundary(|| utility(statement, context));
    // SAFETY: all arguments as they came.
    unsafe {
        sys::standard_ProcessUtility(
            planned,
            text,
            read_only_tree,
            context,
            parameters,
            environment,
            receiver,
            completion,
        );
    }
    if maintains {
        boundary_nofail(maintenance::end);
    }
}

/// Whether it is maintenance, of which the end is to be told.
fn utility(statement: *mut sys::Node, context: sys::ProcessUtilityContext) -> Result<bool> {
    // The transaction is announced before START's epoch is looked at: START does it the other way
    // round.
    fence(Ordering::SeqCst);
    export::refresh_if_new();
    // A part of a statement was looked at with the whole.
    if !export::enabled() || context == sys::PROCESS_UTILITY_SUBCOMMAND {
        return Ok(false);
    }
    match verdict(statement, context)? {
        Verdict::Allowed => {
            let maintains = is_maintenance(statement);
            if maintains {
                maintenance::begin()?;
            }
            Ok(maintains)
        }
        Verdict::Local => transaction::local_effect().map(|()| false),
        Verdict::Refused(hint) => {
            // SAFETY: the answer is a constant C string.
            let name = guard::call(std::ptr::null(), |out, e| unsafe {
                pgr_shim_command_name(statement, out, e)
            })?;
            // SAFETY: see above.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            Err(PgError::new(
                "0A000",
                format!("{name} is not supported in a replicated database"),
            )
            .hint(hint))
        }
    }
}

fn is_maintenance(statement: *mut sys::Node) -> bool {
    // SAFETY: a node begins with its tag.
    let tag = unsafe { (*statement).type_ };
    matches!(
        tag,
        sys::T_VacuumStmt | sys::T_ReindexStmt | sys::T_ClusterStmt
    )
}

enum Verdict {
    Allowed,
    /// Allowed; has effects that a changeset can't carry, so the transaction is never replayed.
    Local,
    Refused(&'static str),
}

use Verdict::{Allowed, Local, Refused};

/// The node as the statement that its tag says it is.
///
/// # Safety
/// The tag is that of `T`.
unsafe fn node<'a, T>(statement: *mut sys::Node) -> &'a T {
    // SAFETY: by the caller; nodes live at least as long as the statement runs.
    unsafe { &*statement.cast::<T>() }
}

fn verdict(statement: *mut sys::Node, context: sys::ProcessUtilityContext) -> Result<Verdict> {
    // SAFETY: a node begins with its tag; below, each cast is to what the tag says.
    unsafe {
        Ok(match (*statement).type_ {
            sys::T_TransactionStmt => match node::<sys::TransactionStmt>(statement).kind {
                // What it has done is looked at when all of that is done.
                sys::TRANS_STMT_PREPARE => {
                    transaction::watch_transactions()?;
                    Allowed
                }
                _ => Allowed,
            },
            sys::T_PlannedStmt
            | sys::T_ClosePortalStmt
            | sys::T_FetchStmt
            | sys::T_DoStmt
            | sys::T_CallStmt
            | sys::T_CopyStmt
            | sys::T_PrepareStmt
            | sys::T_ExecuteStmt
            | sys::T_DeallocateStmt
            | sys::T_VariableShowStmt
            | sys::T_LoadStmt
            | sys::T_VacuumStmt
            | sys::T_CheckPointStmt
            | sys::T_AlterSystemStmt
            | sys::T_ConstraintsSetStmt
            | sys::T_NotifyStmt => Allowed,
            sys::T_AlterDatabaseStmt => membership(node(statement)),
            sys::T_VariableSetStmt
            | sys::T_DiscardStmt
            | sys::T_ListenStmt
            | sys::T_UnlistenStmt => Local,
            sys::T_DeclareCursorStmt => {
                if node::<sys::DeclareCursorStmt>(statement).options & sys::CURSOR_OPT_HOLD as c_int
                    != 0
                {
                    Local
                } else {
                    Allowed
                }
            }
            sys::T_ExplainStmt => explained(node::<sys::ExplainStmt>(statement).query, context)?,
            sys::T_ReindexStmt | sys::T_ClusterStmt => {
                // Not in a transaction that also changes rows: its strong locks are for this member.
                if context == sys::PROCESS_UTILITY_TOPLEVEL && !pgr_shim_in_block() {
                    Allowed
                } else {
                    Refused("Run it by itself, not in a transaction block or a function.")
                }
            }
            sys::T_LockStmt | sys::T_TruncateStmt => {
                // Its lock comes before the transaction's snapshot, and is in the way of what is
                // ordered before a reservation.
                if fairness::wants() {
                    consistency::before_snapshot()?;
                }
                Allowed
            }
            sys::T_CreateStmt => on_new(node::<sys::CreateStmt>(statement).relation)?,
            sys::T_CreateSeqStmt => on_new(node::<sys::CreateSeqStmt>(statement).sequence)?,
            sys::T_ViewStmt => on_new(node::<sys::ViewStmt>(statement).view)?,
            sys::T_CreateTableAsStmt => {
                let create = node::<sys::CreateTableAsStmt>(statement);
                if create.objtype == sys::OBJECT_TABLE {
                    on_new((*create.into).rel)?
                } else {
                    Refused(SCHEMA_HINT)
                }
            }
            sys::T_IndexStmt => on_old(node::<sys::IndexStmt>(statement).relation)?,
            sys::T_AlterTableStmt => {
                let alter = node::<sys::AlterTableStmt>(statement);
                if nodes(alter.cmds).all(|command| restarts_identity(node(command))) {
                    on_restarted(alter.relation)?
                } else {
                    on_old(alter.relation)?
                }
            }
            sys::T_AlterSeqStmt => {
                let alter = node::<sys::AlterSeqStmt>(statement);
                if restarts(alter.options) {
                    on_restarted(alter.sequence)?
                } else {
                    on_old(alter.sequence)?
                }
            }
            sys::T_CreateTrigStmt => on_old(node::<sys::CreateTrigStmt>(statement).relation)?,
            sys::T_RuleStmt => on_old(node::<sys::RuleStmt>(statement).relation)?,
            sys::T_RenameStmt => {
                let rename = node::<sys::RenameStmt>(statement);
                if rename.relation.is_null() {
                    Refused(hint(rename.renameType))
                } else {
                    on_old(rename.relation)?
                }
            }
            sys::T_DropStmt => {
                let drop = node::<sys::DropStmt>(statement);
                temporary_if(
                    all_objects_temporary(drop.removeType, nodes(drop.objects))?,
                    SCHEMA_HINT,
                )
            }
            sys::T_CommentStmt => {
                let comment = node::<sys::CommentStmt>(statement);
                temporary_if(
                    all_objects_temporary(comment.objtype, std::iter::once(comment.object))?,
                    hint(comment.objtype),
                )
            }
            sys::T_GrantStmt
                if node::<sys::GrantStmt>(statement).objtype == sys::OBJECT_LARGEOBJECT =>
            {
                Allowed
            }
            sys::T_GrantStmt => {
                let grant = node::<sys::GrantStmt>(statement);
                let relations = grant.targtype == sys::ACL_TARGET_OBJECT
                    && [sys::OBJECT_TABLE, sys::OBJECT_SEQUENCE].contains(&grant.objtype);
                temporary_if(
                    relations && all_temporary(grant.objects)?,
                    hint(grant.objtype),
                )
            }
            sys::T_AlterOwnerStmt => match node::<sys::AlterOwnerStmt>(statement).objectType {
                sys::OBJECT_LARGEOBJECT => Allowed,
                kind => Refused(hint(kind)),
            },
            sys::T_CreateSubscriptionStmt
            | sys::T_AlterSubscriptionStmt
            | sys::T_DropSubscriptionStmt => Refused(SUBSCRIPTION_HINT),
            sys::T_CreateRoleStmt
            | sys::T_AlterRoleStmt
            | sys::T_AlterRoleSetStmt
            | sys::T_DropRoleStmt
            | sys::T_GrantRoleStmt
            | sys::T_CreatedbStmt
            | sys::T_DropdbStmt
            | sys::T_AlterDatabaseSetStmt
            | sys::T_AlterDatabaseRefreshCollStmt
            | sys::T_CreateTableSpaceStmt
            | sys::T_AlterTableSpaceOptionsStmt
            | sys::T_DropTableSpaceStmt => Refused(SERVER_HINT),
            _ => Refused(SCHEMA_HINT),
        })
    }
}

/// ALTER DATABASE: START and STOP REPLICATION, or an option of this server's.
fn membership(alter: &sys::AlterDatabaseStmt) -> Verdict {
    let ours = nodes(alter.options).next().is_some_and(|option| {
        // SAFETY: a list of options with names; only START has one in a namespace.
        unsafe {
            let option = node::<sys::DefElem>(option);
            !option.defnamespace.is_null() || CStr::from_ptr(option.defname) == c"stop"
        }
    });
    if ours { Allowed } else { Refused(SERVER_HINT) }
}

/// ALTER TABLE ... ALTER COLUMN ... RESTART
fn restarts_identity(command: &sys::AlterTableCmd) -> bool {
    command.subtype == sys::AT_SetIdentity && restarts(command.def.cast::<sys::List>())
}

/// Whether options of a sequence are RESTART and nothing else: what it goes on from is replicated, how
/// it does is part of the schema.
fn restarts(options: *const sys::List) -> bool {
    // SAFETY: a list of options with names.
    nodes(options)
        .all(|option| unsafe { CStr::from_ptr(node::<sys::DefElem>(option).defname) == c"restart" })
}

/// How to change an object of this kind, which is not replicated.
fn hint(kind: sys::ObjectType) -> &'static str {
    match kind {
        sys::OBJECT_DATABASE
        | sys::OBJECT_ROLE
        | sys::OBJECT_TABLESPACE
        | sys::OBJECT_PARAMETER_ACL => SERVER_HINT,
        _ => SCHEMA_HINT,
    }
}

fn temporary_if(temporary: bool, hint: &'static str) -> Verdict {
    if temporary { Local } else { Refused(hint) }
}

/// EXPLAIN ANALYZE runs what it explains.
fn explained(query: *mut sys::Node, context: sys::ProcessUtilityContext) -> Result<Verdict> {
    // SAFETY: an analyzed EXPLAIN holds a Query; the tag is looked at first.
    unsafe {
        if query.is_null() || (*query).type_ != sys::T_Query {
            return Ok(Allowed);
        }
        let inner = node::<sys::Query>(query).utilityStmt;
        if inner.is_null() {
            Ok(Allowed)
        } else {
            verdict(inner, context)
        }
    }
}

/// A statement that makes this relation.
fn on_new(relation: *mut sys::RangeVar) -> Result<Verdict> {
    // SAFETY: such a statement names its relation; the schema is null or a C string.
    let temporary = unsafe {
        (*relation).relpersistence == TEMPORARY
            || (!(*relation).schemaname.is_null()
                && CStr::from_ptr((*relation).schemaname) == c"pg_temp")
    };
    Ok(temporary_if(temporary, SCHEMA_HINT))
}

/// A statement that changes this relation; one that doesn't exist is left to the statement.
fn on_old(relation: *mut sys::RangeVar) -> Result<Verdict> {
    Ok(match persistence(relation)? {
        0 => Allowed,
        TEMPORARY => Local,
        _ => Refused(SCHEMA_HINT),
    })
}

/// A statement that restarts this sequence, or one of this table.
fn on_restarted(relation: *mut sys::RangeVar) -> Result<Verdict> {
    Ok(match persistence(relation)? {
        0 | PERMANENT => Allowed,
        _ => Local,
    })
}

fn persistence(relation: *const sys::RangeVar) -> Result<c_char> {
    // SAFETY: a range variable of the statement.
    guard::call(0, |out, e| unsafe {
        pgr_shim_persistence(relation, out, e)
    })
}

fn nodes(list: *const sys::List) -> impl Iterator<Item = *mut sys::Node> {
    // SAFETY: null or a list of nodes, which lives as long as the statement.
    let length = unsafe { pgr_shim_list_length(list) };
    // SAFETY: n is below the length.
    (0..length).map(move |n| unsafe { pgr_shim_list_nth(list, n) })
}

fn all_temporary(relations: *const sys::List) -> Result<bool> {
    for relation in nodes(relations) {
        if persistence(relation.cast::<sys::RangeVar>())? != TEMPORARY {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Do all these objects that exist belong to the session's temporary tables?
fn all_objects_temporary(
    kind: sys::ObjectType,
    objects: impl Iterator<Item = *mut sys::Node>,
) -> Result<bool> {
    for object in objects {
        // SAFETY: an object of a statement about this kind.
        let found = guard::call(0, |out, e| unsafe {
            pgr_shim_object_persistence(kind, object, out, e)
        })?;
        if found != TEMPORARY && found != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Rows of a foreign table are about to change. Its server commits before the group has given its
/// verdict, and what it committed stays when that is a no.
pub fn foreign(name: &str) -> Result<()> {
    Err(PgError::new(
        "0A000",
        format!("cannot change foreign table \"{name}\" from a replicated database"),
    )
    .hint("Change it from a database that is not replicated, or connect to its server."))
}

/// A statement is about to change rows of this relation.
pub fn catalog(oid: u32, name: &str) -> Result<()> {
    if oid >= FIRST_NORMAL_OID {
        return Ok(());
    }
    Err(PgError::new(
        "0A000",
        format!("cannot modify system catalog \"{name}\" in a replicated database"),
    )
    .detail("Rows of catalogs are not replicated.")
    .hint(SCHEMA_HINT))
}

/// A transaction that has done this is about to be prepared.
pub fn prepare(what: &str) -> PgError {
    PgError::new(
        "0A000",
        format!("cannot PREPARE a transaction that has {what}"),
    )
    .hint(PREPARE_HINT)
}

/// DROP DATABASE.
pub fn database(oid: u32, name: &CStr) -> Result<()> {
    let replicated = shmem::try_shared().map_or(0, |s| s.control().database.load(Ordering::SeqCst));
    if replicated != oid || oid == 0 {
        return Ok(());
    }
    let name = name.to_string_lossy();
    Err(
        PgError::new("55006", format!("database \"{name}\" is replicated")).hint(format!(
            "Run ALTER DATABASE \"{name}\" STOP REPLICATION in it first."
        )),
    )
}
