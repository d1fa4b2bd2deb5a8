/*
 * Calls that the server side of Postgres-R makes into PostgreSQL: functions that
 * may raise (as shim.c has it: 0, or 1 with the error in *edata, and no Rust
 * frame is ever jumped over), macros and inlines.  Thin wrappers only.
 */
#include "shim.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/postgres_r.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

#include "shim_server.h"

#define GUARD(...) PGR_GUARD(edata, __VA_ARGS__)

/* ---------------- shared state ---------------- */

int
pgr_shim_shmem_init(const char *name, Size size, void **out, bool *found,
					ErrorData **edata)
{
	GUARD(*out = ShmemInitStruct(name, size, found));
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
	GUARD(XLogFlush(upto));
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

int
pgr_shim_register_coordinator(int restart_seconds, ErrorData **edata)
{
	BackgroundWorker worker;

	init_worker(&worker, "replication coordinator", "PgrCoordinatorMain");
	worker.bgw_restart_time = restart_seconds;
	GUARD(RegisterBackgroundWorker(&worker));
}

int
pgr_shim_start_helper(uint32 number, bool *started, ErrorData **edata)
{
	BackgroundWorker worker;

	init_worker(&worker, "replication helper", "PgrHelperMain");
	snprintf(worker.bgw_name, BGW_MAXLEN, "replication helper %u", number);
	worker.bgw_flags |= BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_main_arg = UInt32GetDatum(number);
	worker.bgw_notify_pid = MyProcPid;
	GUARD(*started = RegisterDynamicBackgroundWorker(&worker, NULL));
}

/* For a worker that handles SIGTERM as a backend does: in ProcessInterrupts(). */
int
pgr_shim_worker_signals(ErrorData **edata)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	GUARD(BackgroundWorkerUnblockSignals());
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
	GUARD(ProcessConfigFile(PGC_SIGHUP));
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
 * Wakes the process in a slot.  If another has taken the slot in the meantime,
 * it is woken for nothing, which every owner of a latch bears.
 */
void
pgr_shim_set_latch(uint32 slot)
{
	SetLatch(&GetPGProcByNumber(slot)->procLatch);
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

/* ---------------- START and STOP REPLICATION ---------------- */

int
pgr_shim_not_in_block(bool is_top_level, const char *statement, ErrorData **edata)
{
	GUARD(PreventInTransactionBlock(is_top_level, statement));
}

int
pgr_shim_database_oid(const char *name, Oid *out, ErrorData **edata)
{
	GUARD(*out = get_database_oid(name, false));
}

/* NULL if there is none; palloc'd. */
int
pgr_shim_database_name(Oid oid, const char **out, ErrorData **edata)
{
	GUARD(*out = get_database_name(oid));
}

/* Runs a statement that makes objects in pg_catalog. */
int
pgr_shim_system_sql(const char *sql, ErrorData **edata)
{
	GUARD(
		  int nest = NewGUCNestLevel();

		  (void) set_config_option("allow_system_table_mods", "on", PGC_SUSET,
								   PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		  (void) set_config_option("search_path", "pg_catalog", PGC_USERSET,
								   PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		  if (SPI_connect() != SPI_OK_CONNECT ||
			  SPI_execute(sql, false, 0) < 0 ||
			  SPI_finish() != SPI_OK_FINISH)
			  elog(ERROR, "could not run \"%s\"", sql);
		  AtEOXact_GUC(true, nest));
}

/* Does a query give any rows? */
int
pgr_shim_sql_any(const char *sql, bool *out, ErrorData **edata)
{
	GUARD(
		  if (SPI_connect() != SPI_OK_CONNECT ||
			  SPI_execute(sql, true, 1) != SPI_OK_SELECT)
			  elog(ERROR, "could not run \"%s\"", sql);
		  *out = SPI_processed > 0;
		  if (SPI_finish() != SPI_OK_FINISH)
			  elog(ERROR, "SPI_finish failed"));
}

/* Waits for transactions of this database that have an XID by now. */
int
pgr_shim_wait_for_writers(ErrorData **edata)
{
	GUARD(
		  VirtualTransactionId *vxids;
		  int n;

		  vxids = GetCurrentVirtualXIDs(InvalidTransactionId, false, false,
										PROC_IS_AUTOVACUUM | PROC_IN_VACUUM, &n);
		  for (int i = 0; i < n; i++)
		  {
			  TransactionId xid;
			  TransactionId xmin;
			  int nsubxid;
			  bool overflowed;

			  ProcNumberGetTransactionIds(vxids[i].procNumber, &xid, &xmin,
										  &nsubxid, &overflowed);
			  if (TransactionIdIsValid(xid))
				  (void) VirtualXactLock(vxids[i], true);
		  }
		  pfree(vxids));
}

/* ---------------- statistics ---------------- */

int
pgr_shim_rows_begin(FunctionCallInfo fcinfo, void **out, ErrorData **edata)
{
	GUARD(
		  InitMaterializedSRF(fcinfo, 0);
		  *out = TupleDescGetAttInMetadata(((ReturnSetInfo *) fcinfo->resultinfo)->setDesc));
}

/* One row from the text of its columns; NULL pointers are nulls. */
int
pgr_shim_rows_add(FunctionCallInfo fcinfo, void *state, char **values,
				  ErrorData **edata)
{
	GUARD(tuplestore_puttuple(((ReturnSetInfo *) fcinfo->resultinfo)->setResult,
							  BuildTupleFromCStrings((AttInMetadata *) state, values)));
}

/* ---------------- refusals ---------------- */

/* relpersistence of what a statement names; 0 if it doesn't exist. */
int
pgr_shim_persistence(const RangeVar *relation, char *out, ErrorData **edata)
{
	GUARD(
		  Oid oid = RangeVarGetRelid(relation, NoLock, true);

		  *out = OidIsValid(oid) ? get_rel_persistence(oid) : 0);
}
