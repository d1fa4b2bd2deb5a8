/*
 * What the server side of Postgres-R needs of PostgreSQL and can't call itself:
 * functions that may raise, macros and inlines.  See shim_server.c.
 */
#ifndef PGR_SHIM_SERVER_H
#define PGR_SHIM_SERVER_H

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "utils/elog.h"
#include "utils/rel.h"

/* Functions that return int return 0, or 1 with the error in *edata. */

extern int	pgr_shim_shmem_init(const char *name, Size size, void **out,
								bool *found, ErrorData **edata);
extern int	pgr_shim_process_slots(void);
extern void pgr_shim_state_lock(void);
extern void pgr_shim_state_unlock(void);
extern int	pgr_shim_wal_flush(XLogRecPtr upto, ErrorData **edata);
extern int	pgr_shim_collation_version(char provider, const char *locale,
									   const char **out, ErrorData **edata);
extern XLogRecPtr pgr_shim_wal_flushed(void);
extern bool pgr_shim_in_recovery(void);

extern int	pgr_shim_register_coordinator(int restart_seconds, ErrorData **edata);
extern int	pgr_shim_start_helper(uint32 number, bool *started, ErrorData **edata);
extern bool pgr_shim_helper_ended(uint32 number);
extern void pgr_shim_stop_helpers(void);
extern int	pgr_shim_coordinator_begin(ErrorData **edata);
extern bool pgr_shim_shutdown_requested(void);
extern bool pgr_shim_take_reload(void);
extern int	pgr_shim_reload(ErrorData **edata);
extern void pgr_shim_sleep(long timeout_ms, uint32 wait_event);
extern int	pgr_shim_serve_barriers(ErrorData **edata);
extern void pgr_shim_set_latch(uint32 slot);

extern bool pgr_shim_postmaster_lives(void);
pg_noreturn extern void pgr_shim_exit(int code);

extern bool pgr_shim_is_client(void);
extern bool pgr_shim_has_xid(void);
extern void pgr_shim_guc_refuse(const char *detail, const char *hint);

extern int	pgr_shim_on_exit(void (*callback) (int, Datum), ErrorData **edata);
extern bool pgr_shim_is_superuser(void);
extern bool pgr_shim_wal_is_minimal(void);
extern bool pgr_shim_in_block(void);
extern bool pgr_shim_strong_random(uint64 *out);
extern bool pgr_shim_process_lives(int pid);

extern int	pgr_shim_not_in_block(bool is_top_level, const char *statement,
								  ErrorData **edata);
extern int	pgr_shim_database_oid(const char *name, Oid *out, ErrorData **edata);
extern int	pgr_shim_database_name(Oid oid, const char **out, ErrorData **edata);
extern int	pgr_shim_system_sql(const char *sql, ErrorData **edata);
extern int	pgr_shim_sql_first(const char *sql, const char **out, ErrorData **edata);
extern int	pgr_shim_next_transaction(ErrorData **edata);
extern int	pgr_shim_wait_for_transactions(ErrorData **edata);
extern int	pgr_shim_flush_all_wal(ErrorData **edata);

extern int	pgr_shim_notify(const char *channel, const char *payload,
							ErrorData **edata);
extern int	pgr_shim_queue_notifies(bool ordered, ErrorData **edata);

extern int	pgr_shim_rows_begin(FunctionCallInfo fcinfo, void **out, ErrorData **edata);
extern int	pgr_shim_rows_add(FunctionCallInfo fcinfo, void *state, char **values,
							  ErrorData **edata);

extern int	pgr_shim_persistence(const RangeVar *relation, char *out, ErrorData **edata);

extern int	pgr_shim_object_persistence(ObjectType kind, Node *object, char *out,
										ErrorData **edata);
extern int	pgr_shim_command_name(Node *statement, const char **out, ErrorData **edata);
extern int	pgr_shim_list_length(const List *list);
extern Node *pgr_shim_list_nth(const List *list, int n);
extern int	pgr_shim_append(StringInfo to, const char *bytes, int length,
							ErrorData **edata);

#endif
