/*
 * Subscriptions of a database that is, or was, replicated.
 */
#include "shim.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_subscription.h"
#include "replication/logicallauncher.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

extern void pgr_shim_wake_launcher(void);
extern int	pgr_shim_give_up_subscriptions(Oid database, ErrorData **edata);

void
pgr_shim_wake_launcher(void)
{
	ApplyLauncherWakeup();
}

static void
give_up(Relation rel, HeapTuple tuple)
{
	Form_pg_subscription sub = (Form_pg_subscription) GETSTRUCT(tuple);
	Datum		values[Natts_pg_subscription] = {0};
	bool		nulls[Natts_pg_subscription] = {0};
	bool		replaces[Natts_pg_subscription] = {0};
	HeapTuple	changed;

	values[Anum_pg_subscription_subenabled - 1] = BoolGetDatum(false);
	replaces[Anum_pg_subscription_subenabled - 1] = true;
	nulls[Anum_pg_subscription_subslotname - 1] = true;
	replaces[Anum_pg_subscription_subslotname - 1] = true;
	changed = heap_modify_tuple(tuple, RelationGetDescr(rel), values, nulls, replaces);
	CatalogTupleUpdate(rel, &tuple->t_self, changed);
	ereport(NOTICE,
			(errmsg("subscription \"%s\" was disabled on this server and has no slot here any more",
					NameStr(sub->subname)),
			 errdetail("The other members of the replication group go on with it.")));
	heap_freetuple(changed);
}

static void
give_up_subscriptions(Oid database)
{
	Relation	rel = table_open(SubscriptionRelationId, RowExclusiveLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* It may have values that are stored out of line. */
	PushActiveSnapshot(GetTransactionSnapshot());
	ScanKeyInit(&key, Anum_pg_subscription_subdbid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(database));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		has_no_slot;

		(void) heap_getattr(tuple, Anum_pg_subscription_subslotname,
							RelationGetDescr(rel), &has_no_slot);
		if (((Form_pg_subscription) GETSTRUCT(tuple))->subenabled || !has_no_slot)
			give_up(rel, tuple);
	}
	systable_endscan(scan);
	PopActiveSnapshot();
	table_close(rel, NoLock);
}

/*
 * Disables the subscriptions of a database and takes their slots from them, so
 * that neither their workers nor DROP SUBSCRIPTION are in the way of those who
 * go on with them.
 */
int
pgr_shim_give_up_subscriptions(Oid database, ErrorData **edata)
{
	PGR_GUARD(edata, give_up_subscriptions(database));
}
