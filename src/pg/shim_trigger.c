/*
 * Triggers that a helper fires: ALWAYS and REPLICA ones of the rows that it
 * changes, each in a subtransaction, as the table's owner.
 */
#include "shim.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "replication/postgres_r.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "shim_heap.h"

#define GUARD(statement) PGR_GUARD(edata, statement)

typedef struct PgrTriggers
{
	EState	   *estate;
	ResultRelInfo *info;
	TupleTableSlot *old;
	TupleTableSlot *new;
} PgrTriggers;

/* The origin has seen to constraints, whose triggers are internal. */
static bool
fires_here(const Trigger *trigger)
{
	return !trigger->tgisinternal &&
		(trigger->tgenabled == TRIGGER_FIRES_ALWAYS ||
		 trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA);
}

/* Does the relation have triggers for rows, or for TRUNCATE, that fire here? */
bool
pgr_shim_has_triggers(Relation rel, bool truncate)
{
	TriggerDesc *all = rel->trigdesc;

	for (int i = 0; all != NULL && i < all->numtriggers; i++)
	{
		Trigger    *trigger = &all->triggers[i];

		if (fires_here(trigger) &&
			(truncate ? TRIGGER_FOR_TRUNCATE(trigger->tgtype) :
			 TRIGGER_FOR_ROW(trigger->tgtype)))
			return true;
	}
	return false;
}

/* Lives as long as the transaction, unless it is closed before. */
static PgrTriggers *
triggers_open(Relation rel)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	PgrTriggers *triggers = palloc(sizeof(PgrTriggers));

	triggers->estate = CreateExecutorState();
	MemoryContextSwitchTo(triggers->estate->es_query_cxt);
	triggers->info = makeNode(ResultRelInfo);
	InitResultRelInfo(triggers->info, rel, 0, NULL, 0);
	triggers->old = ExecInitExtraTupleSlot(triggers->estate, RelationGetDescr(rel),
										   &TTSOpsHeapTuple);
	triggers->new = ExecInitExtraTupleSlot(triggers->estate, RelationGetDescr(rel),
										   &TTSOpsHeapTuple);
	MemoryContextSwitchTo(old);
	return triggers;
}

int
pgr_shim_triggers_open(Relation rel, PgrTriggers **out, ErrorData **edata)
{
	GUARD(*out = triggers_open(rel));
}

static void
triggers_close(PgrTriggers *triggers)
{
	ExecResetTupleTable(triggers->estate->es_tupleTable, false);
	FreeExecutorState(triggers->estate);
	pfree(triggers);
}

int
pgr_shim_triggers_close(PgrTriggers *triggers, ErrorData **edata)
{
	GUARD(triggers_close(triggers));
}

int
pgr_shim_triggers_count(const PgrTriggers *triggers)
{
	return triggers->info->ri_TrigDesc ? triggers->info->ri_TrigDesc->numtriggers : 0;
}

static const Trigger *
nth_trigger(const PgrTriggers *triggers, int n)
{
	return &triggers->info->ri_TrigDesc->triggers[n];
}

Oid
pgr_shim_trigger_oid(const PgrTriggers *triggers, int n)
{
	return nth_trigger(triggers, n)->tgoid;
}

const char *
pgr_shim_trigger_name(const PgrTriggers *triggers, int n)
{
	return nth_trigger(triggers, n)->tgname;
}

/* "replay": the transaction has run on this server, as origin, and is done again. */
bool
pgr_shim_trigger_is_for(const PgrTriggers *triggers, int n, TriggerEvent event,
						bool replay)
{
	const Trigger *trigger = nth_trigger(triggers, n);
	int16		operation;

	if (!fires_here(trigger) ||
		(replay && trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA))
		return false;
	if (TRIGGER_FIRED_BY_INSERT(event))
		operation = TRIGGER_TYPE_INSERT;
	else if (TRIGGER_FIRED_BY_DELETE(event))
		operation = TRIGGER_TYPE_DELETE;
	else if (TRIGGER_FIRED_BY_UPDATE(event))
		operation = TRIGGER_TYPE_UPDATE;
	else
		operation = TRIGGER_TYPE_TRUNCATE;
	return TRIGGER_TYPE_MATCHES(trigger->tgtype,
								TRIGGER_FIRED_FOR_ROW(event) ? TRIGGER_TYPE_ROW : TRIGGER_TYPE_STATEMENT,
								TRIGGER_FIRED_BEFORE(event) ? TRIGGER_TYPE_BEFORE : TRIGGER_TYPE_AFTER,
								operation);
}

/* A new row as BEFORE triggers see it: stored generated columns come later. */
static HeapTuple
without_generated(TupleDesc desc, HeapTuple tuple)
{
	Datum	   *values = palloc0_array(Datum, desc->natts);
	bool	   *nulls = palloc0_array(bool, desc->natts);
	bool	   *replace = palloc0_array(bool, desc->natts);

	for (int i = 0; i < desc->natts; i++)
		nulls[i] = replace[i] =
			TupleDescAttr(desc, i)->attgenerated == ATTRIBUTE_GENERATED_STORED;
	return heap_modify_tuple(tuple, desc, values, nulls, replace);
}

/*
 * What the trigger returns is of no account: the row is decided.  Constraint
 * triggers that its statements deferred fire before it is over, for nobody can
 * do without what fails at the end of the transaction.
 */
static void
call(PgrTriggers *triggers, int n, TriggerEvent event, HeapTuple old,
	 HeapTuple new, const bool *changed)
{
	EState	   *estate = triggers->estate;
	Relation	rel = triggers->info->ri_RelationDesc;
	FmgrInfo   *function = &triggers->info->ri_TrigFunctions[n];
	TriggerData data = {.type = T_TriggerData};
	TupleDesc	desc = RelationGetDescr(rel);
	Bitmapset  *columns = NULL;
	PgrUser		saved;

	if (TRIGGER_FIRED_BY_INSERT(event) && TRIGGER_FIRED_BEFORE(event) &&
		desc->constr != NULL && desc->constr->has_generated_stored)
		new = without_generated(desc, new);
	pgr_become_owner(rel, &saved);
	data.tg_event = event;
	data.tg_relation = rel;
	data.tg_trigger = &triggers->info->ri_TrigDesc->triggers[n];
	if (old != NULL)
		data.tg_trigslot = ExecStoreHeapTuple(old, triggers->old, false);
	if (new != NULL)
		ExecStoreHeapTuple(new, triggers->new, false);
	if (TRIGGER_FIRED_BY_INSERT(event))
	{
		data.tg_trigtuple = new;
		data.tg_trigslot = triggers->new;
	}
	else
		data.tg_trigtuple = old;
	if (TRIGGER_FIRED_BY_UPDATE(event))
	{
		data.tg_newtuple = new;
		data.tg_newslot = triggers->new;
		for (int i = 0; i < desc->natts; i++)
		{
			if (changed[i])
				columns = bms_add_member(columns, i + 1 - FirstLowInvalidHeapAttributeNumber);
		}
		data.tg_updatedcols = columns;
	}
	if (TriggerEnabled(estate, triggers->info, data.tg_trigger, event, columns,
					   old ? triggers->old : NULL, new ? triggers->new : NULL))
	{
		/* what it looks up is kept with it */
		if (function->fn_oid == InvalidOid)
			fmgr_info_cxt(data.tg_trigger->tgfoid, function, estate->es_query_cxt);
		ExecCallTriggerFunc(&data, n, triggers->info->ri_TrigFunctions, NULL,
							GetPerTupleMemoryContext(estate));
		AfterTriggerSetState(makeNode(ConstraintsSetStmt));
	}
	pgr_become_self(&saved);
}

/*
 * Fires one trigger.  Its error ends up in *failure, in the memory context that
 * is current, and what it did is undone.
 */
static void
fire(PgrTriggers *triggers, int n, TriggerEvent event, HeapTuple old,
	 HeapTuple new, const bool *changed, ErrorData **failure)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(GetPerTupleMemoryContext(triggers->estate));
	pgr_enabled = true;
	PG_TRY();
	{
		call(triggers, n, event, old, new, changed);
		pgr_enabled = false;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		pgr_enabled = false;
		MemoryContextSwitchTo(context);
		*failure = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	ExecClearTuple(triggers->old);
	ExecClearTuple(triggers->new);
	ResetPerTupleExprContext(triggers->estate);
}

int
pgr_shim_trigger_fire(PgrTriggers *triggers, int n, TriggerEvent event,
					  HeapTuple old, HeapTuple new, const bool *changed,
					  ErrorData **failure, ErrorData **edata)
{
	GUARD(fire(triggers, n, event, old, new, changed, failure));
}

int
pgr_shim_copy_tuple(HeapTuple tuple, HeapTuple *out, ErrorData **edata)
{
	GUARD(*out = heap_copytuple(tuple));
}

/* ---------------- where a transaction runs ---------------- */

/*
 * Will a helper that redoes the transaction call this trigger again, for sure?
 * "outer": and the one that it is called in, if any.  Before a row changes it
 * may still be kept from that, and UPDATE OF goes by something else there.
 * Never raises.
 */
bool
pgr_shim_is_redone(const TriggerData *data, bool outer)
{
	return fires_here(data->tg_trigger) &&
		data->tg_trigger->tgenabled == TRIGGER_FIRES_ALWAYS &&
		data->tg_trigger->tgnattr == 0 &&
		TRIGGER_FIRED_AFTER(data->tg_event) &&
		(TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		 TRIGGER_FIRED_BY_TRUNCATE(data->tg_event)) &&
		(outer || RelationIsPermanent(data->tg_relation));
}
