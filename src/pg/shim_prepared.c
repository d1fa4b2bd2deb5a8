/*
 * Prepared transactions that came with a copy of another server.
 */
#include "shim.h"

#include "access/transam.h"
#include "access/twophase.h"
#include "executor/spi.h"
#include "utils/builtins.h"

extern uint64 pgr_shim_next_xid(void);
extern int	pgr_shim_roll_back_prepared(uint64 before, ErrorData **edata);

/* XIDs from this one on are not in use yet. */
uint64
pgr_shim_next_xid(void)
{
	return U64FromFullTransactionId(ReadNextFullTransactionId());
}

/* The identifiers of those of this database with XIDs before "end". */
static List *
prepared_before(TransactionId end)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *gids = NIL;
	const char *sql = "SELECT transaction, gid FROM pg_catalog.pg_prepared_xacts"
		" WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()";

	SPI_connect();
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run \"%s\"", sql);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		bool		is_null;
		Datum		xid = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &is_null);

		if (TransactionIdPrecedes(DatumGetTransactionId(xid), end))
		{
			MemoryContext spi = MemoryContextSwitchTo(caller);

			gids = lappend(gids, SPI_getvalue(row, SPI_tuptable->tupdesc, 2));
			MemoryContextSwitchTo(spi);
		}
	}
	SPI_finish();
	return gids;
}

static void
roll_back_prepared(uint64 before)
{
	TransactionId end = XidFromFullTransactionId(FullTransactionIdFromU64(before));
	ListCell   *cell;

	foreach(cell, prepared_before(end))
	{
		FinishPreparedTransaction(lfirst(cell), false);
		ereport(LOG,
				(errmsg("rolled back prepared transaction \"%s\", which came with the copy of another member",
						(char *) lfirst(cell))));
	}
}

/*
 * Rolls back the transactions of this database that were prepared with XIDs
 * before this one.  In a transaction.
 */
int
pgr_shim_roll_back_prepared(uint64 before, ErrorData **edata)
{
	PGR_GUARD(edata, roll_back_prepared(before));
}
