/*
 * Calls that the server side of Postgres-R makes into PostgreSQL: functions that
 * may raise (as shim.c has it: 0, or 1 with the error in *edata, and no Rust
 * frame is ever jumped over), macros and inlines.  Thin wrappers only.
 */
#include "shim.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/autovacuum.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/postgres_r.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "storage/shmem.h"
#include "storage/standby.h"
#include "tcop/cmdtag.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

#include "shim_server.h"

/* ---------------- shared state ---------------- */

int
pgr_shim_shmem_init(const char *name, Size size, void **out, bool *found,
					ErrorData **edata)
{
	PGR_GUARD(edata, *out = ShmemInitStruct(name, size, found));
}

/* One for each process that has a PGPROC, auxiliary ones included. */
int
pgr_shim_process_slots(void)
{
	return MaxBackends + NUM_AUXILIARY_PROCS;
}

void
pgr_shim_state_lock(void)
{
	LWLockAcquire(ReplicationGroupStateLock, LW_EXCLUSIVE);
}

void
pgr_shim_state_unlock(void)
{
	LWLockRelease(ReplicationGroupStateLock);
}

int
pgr_shim_wal_flush(XLogRecPtr upto, ErrorData **edata)
{
	PGR_GUARD(edata, XLogFlush(upto));
}

/* NULL: this build knows none. */
int
pgr_shim_collation_version(char provider, const char *locale, const char **out,
						   ErrorData **edata)
{
	PGR_GUARD(edata, *out = get_collation_actual_version(provider, locale));
}

XLogRecPtr
pgr_shim_wal_flushed(void)
{
	return GetFlushRecPtr(NULL);
}

bool
pgr_shim_in_recovery(void)
{
	return RecoveryInProgress();
}

/* ---------------- processes ---------------- */

static void
init_worker(BackgroundWorker *worker, const char *type, const char *function)
{
	memset(worker, 0, sizeof(*worker));
	strlcpy(worker->bgw_name, type, BGW_MAXLEN);
	strlcpy(worker->bgw_type, type, BGW_MAXLEN);
	strlcpy(worker->bgw_library_name, "postgres", MAXPGPATH);
	strlcpy(worker->bgw_function_name, function, BGW_MAXLEN);
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
}

static int
start_worker(BackgroundWorker *worker, BackgroundWorkerHandle **handle,
			 bool *started, ErrorData **edata)
{
	PGR_GUARD(edata, *started = RegisterDynamicBackgroundWorker(worker, handle));
}

int
pgr_shim_register_coordinator(int restart_seconds, ErrorData **edata)
{
	BackgroundWorker worker;

	init_worker(&worker, "replication coordinator", "PgrCoordinatorMain");
	worker.bgw_restart_time = restart_seconds;
	PGR_GUARD(edata, RegisterBackgroundWorker(&worker));
}

/*
 * Helpers that this process, the coordinator, has started, by number.  Handles
 * live in TopMemoryContext as long as the process.
 */
static BackgroundWorkerHandle *helper_handles[65];

int
pgr_shim_start_helper(uint32 number, bool *started, ErrorData **edata)
{
	BackgroundWorker worker;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	int			failed;

	init_worker(&worker, "replication helper", "PgrHelperMain");
	snprintf(worker.bgw_name, BGW_MAXLEN, "replication helper %u", number);
	worker.bgw_flags |= BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_main_arg = UInt32GetDatum(number);
	worker.bgw_notify_pid = MyProcPid;
	failed = start_worker(&worker, &helper_handles[number], started, edata);
	MemoryContextSwitchTo(old);
	return failed;
}

/* Has the helper ended, or will it never start? */
bool
pgr_shim_helper_ended(uint32 number)
{
	pid_t		pid;

	if (helper_handles[number] == NULL ||
		GetBackgroundWorkerPid(helper_handles[number], &pid) != BGWH_STOPPED)
		return false;
	pfree(helper_handles[number]);
	helper_handles[number] = NULL;
	return true;
}

void
pgr_shim_stop_helpers(void)
{
	for (int i = 0; i < lengthof(helper_handles); i++)
		if (helper_handles[i] != NULL)
			TerminateBackgroundWorker(helper_handles[i]);
}

static void
coordinator_begin(void)
{
	/* It ends in its own time after SIGTERM. */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	/* No database, and so no session, but a row in pg_stat_activity. */
	pgstat_beinit();
	pgstat_bestart_initial();
	pgstat_report_activity(STATE_UNDEFINED, NULL);
}

/* Signals and status of the coordinator. */
int
pgr_shim_coordinator_begin(ErrorData **edata)
{
	PGR_GUARD(edata, coordinator_begin());
}

bool
pgr_shim_shutdown_requested(void)
{
	return ShutdownRequestPending;
}

bool
pgr_shim_take_reload(void)
{
	bool		pending = ConfigReloadPending;

	ConfigReloadPending = false;
	return pending;
}

int
pgr_shim_reload(ErrorData **edata)
{
	PGR_GUARD(edata, ProcessConfigFile(PGC_SIGHUP));
}

/*
 * Sleeps until the latch is set or the time is over (negative: for ever).  Does
 * not raise: the postmaster's death ends the process.
 */
void
pgr_shim_sleep(long timeout_ms, uint32 wait_event)
{
	(void) WaitLatch(MyLatch,
					 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0),
					 timeout_ms, wait_event);
	ResetLatch(MyLatch);
}

/*
 * Serves barriers of process signals also where interrupts are held: whoever
 * emitted one (DROP DATABASE) waits for every process.
 */
int
pgr_shim_serve_barriers(ErrorData **edata)
{
	PGR_GUARD(edata, if (ProcSignalBarrierPending) ProcessProcSignalBarrier());
}

/*
 * Wakes the process in a slot.  If another has taken the slot in the meantime,
 * it is woken for nothing, which every owner of a latch bears.
 */
void
pgr_shim_set_latch(uint32 slot)
{
	SetLatch(&GetPGProcByNumber(slot)->procLatch);
}

bool
pgr_shim_postmaster_lives(void)
{
	return PostmasterIsAlive();
}

void
pgr_shim_exit(int code)
{
	proc_exit(code);
}

/* Anything that works for a user, other than a parallel worker of one. */
bool
pgr_shim_is_client(void)
{
	return !AmAutoVacuumWorkerProcess() && !IsParallelWorker() && !pgr_is_helper;
}

/* ---------------- errors ---------------- */

/* In a check hook of a setting. */
void
pgr_shim_guc_refuse(const char *detail, const char *hint)
{
	GUC_check_errdetail("%s", detail);
	if (hint)
		GUC_check_errhint("%s", hint);
}

bool
pgr_shim_has_xid(void)
{
	return TransactionIdIsValid(GetTopTransactionIdIfAny());
}

int
pgr_shim_on_exit(void (*callback) (int, Datum), ErrorData **edata)
{
	PGR_GUARD(edata, before_shmem_exit(callback, 0));
}

bool
pgr_shim_is_superuser(void)
{
	return superuser();
}

bool
pgr_shim_wal_is_minimal(void)
{
	return wal_level < WAL_LEVEL_REPLICA;
}

bool
pgr_shim_in_block(void)
{
	return IsTransactionBlock();
}

bool
pgr_shim_strong_random(uint64 *out)
{
	return pg_strong_random(out, sizeof(*out));
}

bool
pgr_shim_process_lives(int pid)
{
	return kill(pid, 0) == 0 || errno != ESRCH;
}

/* ---------------- START and STOP REPLICATION ---------------- */

int
pgr_shim_not_in_block(bool is_top_level, const char *statement, ErrorData **edata)
{
	PGR_GUARD(edata, PreventInTransactionBlock(is_top_level, statement));
}

int
pgr_shim_database_oid(const char *name, Oid *out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = get_database_oid(name, false));
}

/* NULL if there is none; palloc'd. */
int
pgr_shim_database_name(Oid oid, const char **out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = get_database_name(oid));
}

static void
system_sql(const char *sql)
{
	int			nest = NewGUCNestLevel();

	(void) set_config_option("allow_system_table_mods", "on", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "could not run \"%s\"", sql);
	SPI_finish();
	AtEOXact_GUC(true, nest);
}

/* Runs a statement that makes objects in pg_catalog. */
int
pgr_shim_system_sql(const char *sql, ErrorData **edata)
{
	PGR_GUARD(edata, system_sql(sql));
}

/* In the memory context of the caller; NULL if there is no row. */
static char *
sql_first(const char *sql)
{
	MemoryContext caller = CurrentMemoryContext;
	int			nest = NewGUCNestLevel();
	char	   *text = NULL;

	RestrictSearchPath();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute(sql, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not run \"%s\"", sql);
	if (SPI_processed > 0)
		text = MemoryContextStrdup(caller, SPI_getvalue(SPI_tuptable->vals[0],
														SPI_tuptable->tupdesc, 1));
	PopActiveSnapshot();
	SPI_finish();
	AtEOXact_GUC(false, nest);
	return text;
}

/* First column of the first row that a query gives, NULL if it gives none. */
int
pgr_shim_sql_first(const char *sql, const char **out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = sql_first(sql));
}

static void
next_transaction(void)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
}

/* Commits the transaction of a statement that must be in no block, and begins another. */
int
pgr_shim_next_transaction(ErrorData **edata)
{
	PGR_GUARD(edata, next_transaction());
}

static void
wait_for_transactions(void)
{
	int			n;
	VirtualTransactionId *vxids =
		GetCurrentVirtualXIDs(InvalidTransactionId, false, false,
							  PROC_IS_AUTOVACUUM | PROC_IN_VACUUM, &n);

	for (int i = 0; i < n; i++)
		(void) VirtualXactLock(vxids[i], true);
	pfree(vxids);
}

/*
 * Waits for all other transactions of this database that there are now, whether
 * they have an XID or get one later.
 */
int
pgr_shim_wait_for_transactions(ErrorData **edata)
{
	PGR_GUARD(edata, wait_for_transactions());
}

/* What was committed so far is on disk, also where nobody waited for that. */
int
pgr_shim_flush_all_wal(ErrorData **edata)
{
	PGR_GUARD(edata, XLogFlush(LogStandbySnapshot()));
}

/* ---------------- notifications ---------------- */

int
pgr_shim_notify(const char *channel, const char *payload, ErrorData **edata)
{
	PGR_GUARD(edata, Async_Notify(channel, payload));
}

static void
queue_notifies(bool ordered)
{
	PG_TRY();
	{
		AsyncQueuePendingNotifies(ordered);
	}
	PG_CATCH();
	{
		/* Whoever has to give up its turn can't be rolled back at once. */
		LWLockReleaseAll();
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* At the end of a transaction, when it holds no LWLock. */
int
pgr_shim_queue_notifies(bool ordered, ErrorData **edata)
{
	PGR_GUARD(edata, queue_notifies(ordered));
}

/* ---------------- statistics ---------------- */

static AttInMetadata *
rows_begin(FunctionCallInfo fcinfo)
{
	InitMaterializedSRF(fcinfo, 0);
	return TupleDescGetAttInMetadata(((ReturnSetInfo *) fcinfo->resultinfo)->setDesc);
}

int
pgr_shim_rows_begin(FunctionCallInfo fcinfo, void **out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = rows_begin(fcinfo));
}

/* One row from the text of its columns; NULL pointers are nulls. */
int
pgr_shim_rows_add(FunctionCallInfo fcinfo, void *state, char **values,
				  ErrorData **edata)
{
	PGR_GUARD(edata, tuplestore_puttuple(((ReturnSetInfo *) fcinfo->resultinfo)->setResult,
							  BuildTupleFromCStrings((AttInMetadata *) state, values)));
}

/* ---------------- refusals ---------------- */

static char
persistence(const RangeVar *relation)
{
	Oid			oid = RangeVarGetRelid(relation, NoLock, true);

	return OidIsValid(oid) ? get_rel_persistence(oid) : 0;
}

/* relpersistence of what a statement names; 0 if it doesn't exist. */
int
pgr_shim_persistence(const RangeVar *relation, char *out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = persistence(relation));
}

static char
object_persistence(ObjectType kind, Node *object)
{
	List	   *names;

	switch (kind)
	{
		case OBJECT_TABLE:
		case OBJECT_INDEX:
		case OBJECT_SEQUENCE:
		case OBJECT_VIEW:
			names = castNode(List, object);
			break;
		case OBJECT_COLUMN:
		case OBJECT_POLICY:
		case OBJECT_RULE:
		case OBJECT_TABCONSTRAINT:
		case OBJECT_TRIGGER:
			/* the last name is that of a part of the relation */
			names = list_copy(castNode(List, object));
			names = list_truncate(names, list_length(names) - 1);
			break;
		default:
			return RELPERSISTENCE_PERMANENT;
	}
	return names == NIL ? 0 : persistence(makeRangeVarFromNameList(names));
}

/*
 * The same for an object of DROP or COMMENT that is a relation or part of one;
 * any other counts as permanent.
 */
int
pgr_shim_object_persistence(ObjectType kind, Node *object, char *out,
							ErrorData **edata)
{
	PGR_GUARD(edata, *out = object_persistence(kind, object));
}

int
pgr_shim_command_name(Node *statement, const char **out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = GetCommandTagName(CreateCommandTag(statement)));
}

int
pgr_shim_list_length(const List *list)
{
	return list_length(list);
}

Node *
pgr_shim_list_nth(const List *list, int n)
{
	return (Node *) list_nth(list, n);
}

int
pgr_shim_append(StringInfo to, const char *bytes, int length, ErrorData **edata)
{
	PGR_GUARD(edata, appendBinaryStringInfo(to, bytes, length));
}
