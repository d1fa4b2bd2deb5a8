/*
 * Replication origins: where a transaction came from that another system
 * committed first.
 */
#include "shim.h"

#include "access/xact.h"
#include "catalog/pg_replication_origin.h"
#include "replication/logicalworker.h"
#include "replication/origin.h"
#include "storage/lmgr.h"

extern int	pgr_shim_source_name(RepOriginId node, const char **out, ErrorData **edata);
extern XLogRecPtr pgr_shim_source_progress(void);
extern bool pgr_shim_is_logical_worker(void);
extern int	pgr_shim_source_assume(const char *name, ErrorData **edata);

static const char *
source_name(RepOriginId node)
{
	char	   *name;

	(void) replorigin_by_oid(node, false, &name);
	return name;
}

/* palloc'd */
int
pgr_shim_source_name(RepOriginId node, const char **out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = source_name(node));
}

/* Of the origin that the session has set up. */
XLogRecPtr
pgr_shim_source_progress(void)
{
	return replorigin_session_get_progress(false);
}

bool
pgr_shim_is_logical_worker(void)
{
	return IsLogicalWorker();
}

static void
source_assume(const char *name)
{
	static bool is_set_up = false;
	RepOriginId node;

	if (is_set_up)
		replorigin_session_reset();
	is_set_up = false;
	/* The lock keeps the number from going to another origin before the commit. */
	for (;;)
	{
		node = replorigin_by_name(name, true);
		if (node == InvalidRepOriginId)
			node = replorigin_create(name);
		LockSharedObject(ReplicationOriginRelationId, node, 0, AccessShareLock);
		if (replorigin_by_name(name, true) == node)
			break;
		UnlockSharedObject(ReplicationOriginRelationId, node, 0, AccessShareLock);
	}
	replorigin_session_setup(node, REPLORIGIN_UNACQUIRED);
	is_set_up = true;
	replorigin_session_origin = node;
}

/*
 * From here on what this process writes, and then its commit, is of the origin
 * of this name, which is made if there is none.  Whoever has acquired it is not
 * asked.
 */
int
pgr_shim_source_assume(const char *name, ErrorData **edata)
{
	PGR_GUARD(edata, source_assume(name));
}
