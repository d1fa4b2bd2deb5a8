/*
 * Calls that capture and apply make into PostgreSQL and that can raise.
 *
 * Each returns 0, or 1 with the error in *edata (CopyErrorData, in the caller's
 * memory context); no Rust frame is ever jumped over.  Thin wrappers only.
 */
#include "shim.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/index.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/tablecmds.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/postgres_r.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/typcache.h"

#include "shim_heap.h"

#define GUARD(statement) PGR_GUARD(edata, statement)

/* ---------------- memory ---------------- */

/* "name" must be a constant. */
int
pgr_shim_context_new(bool under_cache, const char *name, MemoryContext *out,
					 ErrorData **edata)
{
	GUARD(*out = AllocSetContextCreateInternal(under_cache ? CacheMemoryContext : TopMemoryContext,
											   name, ALLOCSET_SMALL_SIZES));
}

/* ---------------- relations ---------------- */

/* Never raises. */
void
pgr_shim_attribute(Relation rel, int i, PgrAttribute *out)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

	out->type = att->attisdropped ? InvalidOid : att->atttypid;
	out->typmod = att->atttypmod;
	out->len = att->attlen;
	out->align = att->attalign;
	out->by_value = att->attbyval;
	out->dropped = att->attisdropped;
}

int
pgr_shim_relation_open(Oid relid, LOCKMODE mode, Relation *out, ErrorData **edata)
{
	GUARD(*out = try_relation_open(relid, mode));
}

int
pgr_shim_relation_close(Relation rel, LOCKMODE mode, ErrorData **edata)
{
	GUARD(relation_close(rel, mode));
}

/*
 * Does a type compare by "collation", which parts of it may replace by their
 * own, as an index on it does?  Under a nondeterministic collation strings of
 * different bytes are equal.  Few types' functions hash accordingly (name hashes
 * bytes), and the equality of some (citext) goes by bytes.
 */
static bool
follows_collation(Oid type, Oid collation, bool hashed)
{
	Oid			element;
	TypeCacheEntry *entry;
	TupleDesc	columns;
	bool		result = true;

	type = getBaseType(type);
	element = get_element_type(type);
	if (OidIsValid(element))
		return follows_collation(element, collation, hashed);
	switch (get_typtype(type))
	{
		case TYPTYPE_RANGE:
			entry = lookup_type_cache(type, TYPECACHE_RANGE_INFO);
			return follows_collation(entry->rngelemtype->type_id, entry->rng_collation, hashed);
		case TYPTYPE_MULTIRANGE:
			entry = lookup_type_cache(type, TYPECACHE_MULTIRANGE_INFO);
			return follows_collation(entry->rngtype->type_id, InvalidOid, hashed);
		case TYPTYPE_COMPOSITE:
			columns = lookup_rowtype_tupdesc(type, -1);
			for (int i = 0; result && i < columns->natts; i++)
			{
				Form_pg_attribute att = TupleDescAttr(columns, i);

				result = att->attisdropped ||
					follows_collation(att->atttypid, att->attcollation, hashed);
			}
			ReleaseTupleDesc(columns);
			return result;
		default:
			return !OidIsValid(collation) || get_collation_isdeterministic(collation) ||
				type == TEXTOID || type == VARCHAROID || type == BPCHAROID ||
				(type == NAMEOID && !hashed);
	}
}

/*
 * A primary key names rows where the replica identity names none.  An index in
 * which rows of unequal names can't be told apart names none, nor does one with
 * columns that may be null, for their constraints are NOT VALID.
 */
static Oid
identity_index(Relation rel)
{
	Oid			oid = RelationGetReplicaIndex(rel);
	Relation	index;
	bool		found = true;

	if (!OidIsValid(oid))
		oid = RelationGetPrimaryKeyIndex(rel, false);
	if (!OidIsValid(oid))
		return InvalidOid;
	index = index_open(oid, AccessShareLock);
	for (int i = 0; found && i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		int			column = index->rd_index->indkey.values[i];

		found = TupleDescCompactAttr(RelationGetDescr(rel), column - 1)->attnullability == ATTNULLABLE_VALID &&
			follows_collation(TupleDescAttr(RelationGetDescr(rel), column - 1)->atttypid,
							  index->rd_indcollation[i], false);
	}
	index_close(index, AccessShareLock);
	return found ? oid : InvalidOid;
}

int
pgr_shim_identity_index(Relation rel, Oid *out, ErrorData **edata)
{
	GUARD(*out = identity_index(rel));
}

int
pgr_shim_index_list(Relation rel, List **out, ErrorData **edata)
{
	GUARD(*out = RelationGetIndexList(rel));
}

/* Text of an index's expressions and predicate, NULL if it has neither. */
static char *
index_definition(Relation index)
{
	Datum		exprs,
				pred;
	bool		no_exprs,
				no_pred;

	exprs = SysCacheGetAttr(INDEXRELID, index->rd_indextuple,
							Anum_pg_index_indexprs, &no_exprs);
	pred = SysCacheGetAttr(INDEXRELID, index->rd_indextuple,
						   Anum_pg_index_indpred, &no_pred);
	if (no_exprs && no_pred)
		return NULL;
	return psprintf("%s|%s",
					no_exprs ? "" : TextDatumGetCString(exprs),
					no_pred ? "" : TextDatumGetCString(pred));
}

int
pgr_shim_index_definition(Relation index, char **out, ErrorData **edata)
{
	GUARD(*out = index_definition(index));
}

static Oid
index_equality(Relation index, int column)
{
	Oid			family = index->rd_opfamily[column];
	Oid			type = index->rd_opcintype[column];
	StrategyNumber strategy;

	strategy = IndexAmTranslateCompareType(COMPARE_EQ, index->rd_rel->relam,
										   family, true);
	if (strategy == InvalidStrategy)
		return InvalidOid;
	return get_opfamily_member(family, type, type, strategy);
}

/*
 * The extended hash function that agrees with the equality of an index's
 * column, NULL if there is none.  Lives as long as the process (typcache).
 */
static FmgrInfo *
index_hash(Relation index, int column, Oid type)
{
	Oid			input = index->rd_opcintype[column];
	TypeCacheEntry *entry;

	/* a polymorphic operator class hashes by the column's own type */
	if (!IsPolymorphicType(input) && input != RECORDOID)
		type = input;
	entry = lookup_type_cache(type, TYPECACHE_EQ_OPR |
							  TYPECACHE_HASH_EXTENDED_PROC |
							  TYPECACHE_HASH_EXTENDED_PROC_FINFO);
	if (!OidIsValid(entry->hash_extended_proc) ||
		!OidIsValid(entry->eq_opr) ||
		entry->eq_opr != index_equality(index, column) ||
		!follows_collation(type, index->rd_indcollation[column], true))
		return NULL;
	return &entry->hash_extended_proc_finfo;
}

int
pgr_shim_index_hash(Relation index, int column, Oid type, FmgrInfo **out,
					ErrorData **edata)
{
	GUARD(*out = index_hash(index, column, type));
}

/* Strategy and function for an equality search in a column of an index. */
static void
index_search(Relation index, int column, uint16 *strategy, Oid *proc)
{
	Oid			operator = index_equality(index, column);

	if (!OidIsValid(operator))
		elog(ERROR, "no equality operator for column %d of index \"%s\"",
			 column + 1, RelationGetRelationName(index));
	*strategy = IndexAmTranslateCompareType(COMPARE_EQ, index->rd_rel->relam,
											index->rd_opfamily[column], false);
	*proc = get_opcode(operator);
}

int
pgr_shim_index_search(Relation index, int column, uint16 *strategy, Oid *proc,
					  ErrorData **edata)
{
	GUARD(index_search(index, column, strategy, proc));
}

/* In the current memory context. */
int
pgr_shim_index_info(Relation index, IndexInfo **out, ErrorData **edata)
{
	GUARD(*out = BuildIndexInfo(index));
}

/* NULL if there is no such relation, or if catalogs can't be read now. */
int
pgr_shim_relation_name(Oid relid, char **out, ErrorData **edata)
{
	GUARD(*out = IsTransactionState() ? get_rel_name(relid) : NULL);
}

/* 0 if there is no such relation. */
int
pgr_shim_relation_kind(Oid relid, char *persistence, char *kind,
					   ErrorData **edata)
{
	GUARD(*kind = get_rel_relkind(relid);
		  *persistence = *kind != 0 ? get_rel_persistence(relid) : 0);
}

/* The relation and those below it, which are not locked. */
int
pgr_shim_inheritors(Oid relid, List **out, ErrorData **edata)
{
	GUARD(*out = find_all_inheritors(relid, NoLock, NULL));
}

int
pgr_shim_on_relcache(RelcacheCallbackFunction callback, ErrorData **edata)
{
	GUARD(CacheRegisterRelcacheCallback(callback, (Datum) 0));
}

/* ---------------- values ---------------- */

int
pgr_shim_hash(FmgrInfo *proc, Oid collation, Datum value, uint64 seed,
			  uint64 *out, ErrorData **edata)
{
	GUARD(*out = DatumGetUInt64(FunctionCall2Coll(proc, collation, value,
												  UInt64GetDatum(seed))));
}

int
pgr_shim_detoast(struct varlena *value, struct varlena **out, ErrorData **edata)
{
	GUARD(*out = detoast_external_attr(value));
}

/* With a four-byte header, neither compressed nor out of line. */
int
pgr_shim_flat(struct varlena *value, struct varlena **out, ErrorData **edata)
{
	GUARD(*out = detoast_attr(value));
}

/* The row with all attributes that its table has had added since. */
int
pgr_shim_expand_tuple(HeapTuple tuple, Relation rel, HeapTuple *out,
					  ErrorData **edata)
{
	GUARD(*out = heap_expand_tuple(tuple, RelationGetDescr(rel)));
}

int
pgr_shim_slot_tuple(TupleTableSlot *slot, HeapTuple *out, ErrorData **edata)
{
	GUARD(*out = ExecFetchSlotHeapTuple(slot, false, NULL));
}

/*
 * Values of an index's columns for the row in "slot"; *satisfied is false if
 * the row does not meet its predicate.
 */
static void
index_values(IndexInfo *info, TupleTableSlot *slot, EState *estate,
			 Datum *values, bool *nulls, bool *satisfied)
{
	*satisfied = true;
	if (info->ii_Predicate != NIL || info->ii_Expressions != NIL)
	{
		/* the values of the entry before are in the index by now */
		ResetPerTupleExprContext(estate);
		GetPerTupleExprContext(estate)->ecxt_scantuple = slot;
	}
	if (info->ii_Predicate != NIL)
	{
		if (info->ii_PredicateState == NULL)
			info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, estate);
		*satisfied = ExecQual(info->ii_PredicateState, GetPerTupleExprContext(estate));
	}
	if (*satisfied)
		FormIndexDatum(info, slot, estate, values, nulls);
}

int
pgr_shim_index_values(IndexInfo *info, TupleTableSlot *slot, EState *estate,
					  Datum *values, bool *nulls, bool *satisfied,
					  ErrorData **edata)
{
	GUARD(index_values(info, slot, estate, values, nulls, satisfied));
}

int
pgr_shim_estate_new(EState **out, ErrorData **edata)
{
	GUARD(*out = CreateExecutorState());
}

/* Frees it; index information that was used with it forgets its state. */
int
pgr_shim_estate_free(EState *estate, ErrorData **edata)
{
	GUARD(FreeExecutorState(estate));
}

/* Never raises. */
void
pgr_shim_index_info_reset(IndexInfo *info)
{
	info->ii_ExpressionsState = NIL;
	info->ii_PredicateState = NULL;
	info->ii_AmCache = NULL;
}

/* ---------------- slots ---------------- */

int
pgr_shim_slot_new(Relation rel, TupleTableSlot **out, ErrorData **edata)
{
	GUARD(*out = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple));
}

int
pgr_shim_slot_new_buffered(Relation rel, TupleTableSlot **out, ErrorData **edata)
{
	GUARD(*out = table_slot_create(rel, NULL));
}

int
pgr_shim_slot_drop(TupleTableSlot *slot, ErrorData **edata)
{
	GUARD(ExecDropSingleTupleTableSlot(slot));
}

int
pgr_shim_slot_store(TupleTableSlot *slot, HeapTuple tuple, ErrorData **edata)
{
	GUARD(ExecStoreHeapTuple(tuple, slot, false));
}

int
pgr_shim_slot_clear(TupleTableSlot *slot, ErrorData **edata)
{
	GUARD(ExecClearTuple(slot));
}

/* ---------------- the heap ---------------- */

int
pgr_shim_heap_insert(Relation rel, HeapTuple tuple, CommandId cid, ErrorData **edata)
{
	GUARD(heap_insert(rel, tuple, cid, 0, NULL));
}

int
pgr_shim_heap_multi_insert(Relation rel, TupleTableSlot **slots, int n,
						   CommandId cid, ErrorData **edata)
{
	GUARD(heap_multi_insert(rel, slots, n, cid, 0, NULL));
}

int
pgr_shim_heap_delete(Relation rel, ItemPointer tid, CommandId cid, bool leaves,
					 TM_Result *result, ErrorData **edata)
{
	TM_FailureData failure;

	GUARD(*result = heap_delete(rel, tid, cid, InvalidSnapshot, true,
								&failure, leaves));
}

int
pgr_shim_modify_tuple(HeapTuple tuple, Relation rel, Datum *values, bool *nulls,
					  bool *replace, HeapTuple *out, ErrorData **edata)
{
	GUARD(*out = heap_modify_tuple(tuple, RelationGetDescr(rel), values, nulls, replace));
}

/*
 * As a subscription does it, and with it WAL for those that decode it.  Foreign
 * keys of others to these relations would be refused; the origin has seen to it
 * that there are none.
 */
static void
truncate_relations(const Oid *relids, int n)
{
	List	   *rels = NIL;
	List	   *oids = NIL;
	List	   *logged = NIL;
	ListCell   *cell;

	for (int i = 0; i < n; i++)
	{
		Relation	rel = table_open(relids[i], AccessExclusiveLock);

		rels = lappend(rels, rel);
		oids = lappend_oid(oids, relids[i]);
		if (RelationIsLogicallyLogged(rel))
			logged = lappend_oid(logged, relids[i]);
	}
	ExecuteTruncateGuts(rels, oids, logged, DROP_RESTRICT, false, true);
	foreach(cell, rels)
		table_close((Relation) lfirst(cell), NoLock);
}

int
pgr_shim_truncate(const Oid *relids, int n, ErrorData **edata)
{
	GUARD(truncate_relations(relids, n));
}

int
pgr_shim_fetch(Relation rel, ItemPointer tid, TupleTableSlot *slot, bool *found,
			   ErrorData **edata)
{
	GUARD(*found = table_tuple_fetch_row_version(rel, tid, SnapshotAny, slot));
}

/* ---------------- indexes ---------------- */

int
pgr_shim_index_insert(Relation index, Datum *values, bool *nulls, ItemPointer tid,
					  Relation heap, IndexUniqueCheck check, bool unchanged,
					  IndexInfo *info, bool *unique, ErrorData **edata)
{
	GUARD(*unique = index_insert(index, values, nulls, tid, heap, check, unchanged, info));
}

/* Lets go of what insertions into this index keep from one to the next. */
int
pgr_shim_index_insert_done(Relation index, IndexInfo *info, ErrorData **edata)
{
	GUARD(index_insert_cleanup(index, info));
}

int
pgr_shim_scan_begin(Relation heap, Relation index, Snapshot snapshot, int nkeys,
					IndexScanDesc *out, ErrorData **edata)
{
	GUARD(*out = index_beginscan(heap, index, snapshot, NULL, nkeys, 0));
}

int
pgr_shim_scan_key(ScanKeyData *key, int column, uint16 strategy, Oid proc,
				  Oid collation, ErrorData **edata)
{
	GUARD(ScanKeyEntryInitialize(key, 0, column + 1, strategy, InvalidOid,
								 collation, proc, (Datum) 0));
}

/* The next row for these keys; *found is false if there is none. */
static bool
scan_find(IndexScanDesc scan, Snapshot snapshot, ScanKeyData *keys, int nkeys,
		  TupleTableSlot *slot)
{
	scan->xs_snapshot = snapshot;
	index_rescan(scan, keys, nkeys, NULL, 0);
	return index_getnext_slot(scan, ForwardScanDirection, slot);
}

int
pgr_shim_scan_find(IndexScanDesc scan, Snapshot snapshot, ScanKeyData *keys,
				   int nkeys, TupleTableSlot *slot, bool *found, ErrorData **edata)
{
	GUARD(*found = scan_find(scan, snapshot, keys, nkeys, slot));
}

int
pgr_shim_scan_next(IndexScanDesc scan, TupleTableSlot *slot, bool *found,
				   ErrorData **edata)
{
	GUARD(*found = index_getnext_slot(scan, ForwardScanDirection, slot));
}

/* A scan of a whole table that begins at "first", if there is such a block. */
static TableScanDesc
table_scan_begin(Relation rel, Snapshot snapshot, BlockNumber first)
{
	TableScanDesc scan = table_beginscan_strat(rel, snapshot, 0, NULL, true, false);

	if (first < ((HeapScanDesc) scan)->rs_nblocks)
		heap_setscanlimits(scan, first, InvalidBlockNumber);
	return scan;
}

int
pgr_shim_table_scan_begin(Relation rel, Snapshot snapshot, BlockNumber first,
						  TableScanDesc *out, ErrorData **edata)
{
	GUARD(*out = table_scan_begin(rel, snapshot, first));
}

int
pgr_shim_table_scan_next(TableScanDesc scan, TupleTableSlot *slot, bool *found,
						 ErrorData **edata)
{
	GUARD(*found = table_scan_getnextslot(scan, ForwardScanDirection, slot));
}

int
pgr_shim_table_scan_end(TableScanDesc scan, ErrorData **edata)
{
	GUARD(table_endscan(scan));
}

/* ---------------- transactions ---------------- */

static void
begin(Snapshot *snapshot)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	*snapshot = GetActiveSnapshot();
}

/* A transaction with a snapshot that sees all that is committed. */
int
pgr_shim_begin(Snapshot *snapshot, ErrorData **edata)
{
	GUARD(begin(snapshot));
}

static void
renew_snapshot(Snapshot *snapshot)
{
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());
	*snapshot = GetActiveSnapshot();
}

int
pgr_shim_renew_snapshot(Snapshot *snapshot, ErrorData **edata)
{
	GUARD(renew_snapshot(snapshot));
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

int
pgr_shim_commit(ErrorData **edata)
{
	GUARD(commit());
}

int
pgr_shim_abort(ErrorData **edata)
{
	GUARD(AbortCurrentTransaction());
}

int
pgr_shim_command_id(CommandId *out, ErrorData **edata)
{
	GUARD(*out = GetCurrentCommandId(true));
}

static void
next_command(void)
{
	CommandCounterIncrement();
	UpdateActiveSnapshotCommandId();
}

/* What was written so far becomes visible to the transaction itself. */
int
pgr_shim_next_command(ErrorData **edata)
{
	GUARD(next_command());
}

static bool
is_awaited(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_TRANSACTION(tag, GetTopTransactionId());
	return LockHasWaiters(&tag, ExclusiveLock, false);
}

/* Does anyone wait for the end of the current transaction? */
int
pgr_shim_is_awaited(bool *out, ErrorData **edata)
{
	GUARD(*out = is_awaited());
}

int
pgr_shim_report_statistics(ErrorData **edata)
{
	GUARD(pgstat_report_stat(false));
}

/* ---------------- resources that outlive a transaction ---------------- */

int
pgr_shim_owner_new(ResourceOwner *out, ErrorData **edata)
{
	GUARD(*out = ResourceOwnerCreate(NULL, "pgr helper"));
}

static void
owner_free(ResourceOwner owner)
{
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_LOCKS, false, true);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_AFTER_LOCKS, false, true);
	ResourceOwnerDelete(owner);
}

/* Gives back all that it owns, without a word. */
int
pgr_shim_owner_free(ResourceOwner owner, ErrorData **edata)
{
	GUARD(owner_free(owner));
}

int
pgr_shim_lock_relation(Oid relid, LOCKMODE mode, ErrorData **edata)
{
	GUARD(LockRelationOid(relid, mode));
}

/* Leaves a search open, but without a pin on any buffer. */
int
pgr_shim_scan_rest(IndexScanDesc scan, ErrorData **edata)
{
	GUARD(index_rescan(scan, NULL, scan->numberOfKeys, NULL, 0));
}

int
pgr_shim_xid(uint64 *out, ErrorData **edata)
{
	GUARD(*out = U64FromFullTransactionId(GetTopFullTransactionId()));
}

static void
on_xact(XactCallback xact, SubXactCallback subxact)
{
	RegisterXactCallback(xact, NULL);
	/* PostgreSQL calls what is registered. */
	if (subxact)
		RegisterSubXactCallback(subxact, NULL);
}

/* subxact may be NULL. */
int
pgr_shim_on_xact(XactCallback xact, SubXactCallback subxact, ErrorData **edata)
{
	GUARD(on_xact(xact, subxact));
}

/* ---------------- a table's owner ---------------- */

void
pgr_become_owner(Relation rel, PgrUser *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	SetUserIdAndSecContext(rel->rd_rel->relowner,
						   saved->context | SECURITY_RESTRICTED_OPERATION);
	saved->guc_level = NewGUCNestLevel();
	RestrictSearchPath();
}

int
pgr_shim_become_owner(Relation rel, PgrUser *saved, ErrorData **edata)
{
	GUARD(pgr_become_owner(rel, saved));
}

void
pgr_become_self(const PgrUser *saved)
{
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->context);
}

int
pgr_shim_become_self(const PgrUser *saved, ErrorData **edata)
{
	GUARD(pgr_become_self(saved));
}

/* ---------------- victims ---------------- */

/* Has the transaction been prepared, here or before the server's last start? */
static bool
is_prepared(VirtualTransactionId vxid)
{
	bool		more = false;

	return VirtualTransactionIdIsRecoveredPreparedXact(vxid) ||
		TransactionIdIsValid(TwoPhaseGetXidByVirtualXID(vxid, &more));
}

static void
lock_conflicts(const LOCKTAG *tag, LOCKMODE mode, VirtualTransactionId **out,
			   int *n, bool *prepared)
{
	VirtualTransactionId *found = GetLockConflicts(tag, mode, n);
	int			running = 0;

	for (int i = 0; i < *n; i++)
	{
		if (is_prepared(found[i]))
			*prepared = true;
		else
			found[running++] = found[i];
	}
	*out = found;
	*n = running;
}

/* Those that run, and whether there are prepared ones beside them. */
int
pgr_shim_lock_conflicts(const LOCKTAG *tag, LOCKMODE mode,
						VirtualTransactionId **out, int *n, bool *prepared,
						ErrorData **edata)
{
	GUARD(lock_conflicts(tag, mode, out, n, prepared));
}

/* Signals the process if it still runs this transaction; 0 if it does not. */
int
pgr_shim_signal_victim(VirtualTransactionId vxid, int *pid, ErrorData **edata)
{
	GUARD(*pid = SignalVirtualTransaction(vxid, PROCSIG_PGR_ABORT, false));
}

int
pgr_shim_abort_block(bool *failed_block, ErrorData **edata)
{
	GUARD(LockErrorCleanup(); AbortWholeTransactionBlock();
		  *failed_block = IsAbortedTransactionBlockState());
}

/* Never raises. */
void
pgr_shim_lock_error_cleanup(void)
{
	LockErrorCleanup();
}

/* Is there anything to abort, at any level? */
bool
pgr_shim_holds_transaction(void)
{
	return IsTransactionOrTransactionBlock() &&
		!(IsAbortedTransactionBlockState() && !IsSubTransaction());
}

/* 0 between transactions. */
LocalTransactionId
pgr_shim_local_xid(void)
{
	return MyProc->vxid.lxid;
}

bool
pgr_shim_in_vacuum(void)
{
	return (MyProc->statusFlags & PROC_IN_VACUUM) != 0;
}

static void
look_again(void)
{
	/* the timeout's own handler has set the latch */
}

static void
look_again_in(int milliseconds)
{
	static TimeoutId timeout = MAX_TIMEOUTS;

	if (timeout == MAX_TIMEOUTS)
		timeout = RegisterTimeout(USER_TIMEOUT, look_again);
	enable_timeout_after(timeout, milliseconds);
}

int
pgr_shim_look_again_in(int milliseconds, ErrorData **edata)
{
	GUARD(look_again_in(milliseconds));
}

/* The answer may be that about a process that is gone. */
bool
pgr_shim_is_autovacuum(int process)
{
	return (GetPGProcByNumber(process)->statusFlags & PROC_IS_AUTOVACUUM) != 0;
}

/* Where an error was caught: is it a serialization failure? */
bool
pgr_shim_is_serialization_failure(void)
{
	return geterrcode() == ERRCODE_T_R_SERIALIZATION_FAILURE;
}

void
pgr_shim_terminate(int pid)
{
	kill(pid, SIGTERM);
}

int
pgr_shim_before_exit(pg_on_exit_callback callback, ErrorData **edata)
{
	GUARD(before_shmem_exit(callback, (Datum) 0));
}

/* ---------------- a helper's process ---------------- */

static void
helper_start(Oid database)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	/* no setting of the database or of a role, and no timeout, reaches a helper */
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid,
											  BGWORKER_BYPASS_ALLOWCONN | BGWORKER_BYPASS_ROLELOGINCHECK);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("idle_in_transaction_session_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	/* the origin's triggers have fired; others fire as where a subscription is applied */
	SetConfigOption("session_replication_role", "replica", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
}

int
pgr_shim_helper_start(Oid database, ErrorData **edata)
{
	GUARD(helper_start(database));
}

/* What this process shows in pg_stat_activity; never raises. */
void
pgr_shim_report_activity(bool busy, const char *what)
{
	pgstat_report_activity(busy ? STATE_RUNNING : STATE_IDLE, what);
}
