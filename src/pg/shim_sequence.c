/*
 * Sequences: their tuples, what pg_sequence says of them, and the lock round
 * the values that this server has of them.  Functions that may raise are as
 * shim.c has it.
 */
#include "shim.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xloginsert.h"
#include "catalog/pg_class.h"
#include "catalog/pg_sequence.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lwlock.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "shim_sequence.h"

void
pgr_shim_ranges_lock(void)
{
	LWLockAcquire(ReplicationSequenceRangeLock, LW_EXCLUSIVE);
}

void
pgr_shim_ranges_unlock(void)
{
	LWLockRelease(ReplicationSequenceRangeLock);
}

/* The one tuple, in a buffer that is locked, as sequence.c finds it. */
static Form_pg_sequence_data
sequence_tuple(Relation rel, int mode, Buffer *buffer, HeapTupleData *tuple)
{
	Page		page;
	ItemId		item;

	if (rel->rd_rel->relkind != RELKIND_SEQUENCE)
		elog(ERROR, "relation %u is not a sequence", RelationGetRelid(rel));
	*buffer = ReadBuffer(rel, 0);
	LockBuffer(*buffer, mode);
	page = BufferGetPage(*buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	if (!ItemIdIsNormal(item))
		elog(ERROR, "sequence %u has no tuple", RelationGetRelid(rel));
	tuple->t_data = (HeapTupleHeader) PageGetItem(page, item);
	tuple->t_len = ItemIdGetLength(item);
	return (Form_pg_sequence_data) GETSTRUCT(tuple);
}

static void
sequence_read(Relation rel, PgrSequence *out)
{
	Buffer		buffer;
	HeapTupleData tuple;
	Form_pg_sequence_data data = sequence_tuple(rel, BUFFER_LOCK_SHARE, &buffer, &tuple);

	out->last_value = data->last_value;
	out->is_called = data->is_called;
	out->logged_ahead = data->log_cnt != 0;
	out->tag = HeapTupleHeaderGetRawCommandId(tuple.t_data);
	UnlockReleaseBuffer(buffer);
}

int
pgr_shim_sequence_read(Relation rel, PgrSequence *out, ErrorData **edata)
{
	PGR_GUARD(edata, sequence_read(rel, out));
}

/*
 * Writes the tuple, and to WAL just what it says then.  The number in the place
 * of the command that made the tuple, which is committed for ever, means nothing
 * to anybody else.
 */
static bool
sequence_write(Relation rel, const PgrSequence *expected, const PgrSequence *new)
{
	Buffer		buffer;
	HeapTupleData tuple;
	Form_pg_sequence_data data = sequence_tuple(rel, BUFFER_LOCK_EXCLUSIVE, &buffer, &tuple);

	if (expected != NULL &&
		(data->last_value != expected->last_value ||
		 data->is_called != expected->is_called))
	{
		UnlockReleaseBuffer(buffer);
		return false;
	}

	START_CRIT_SECTION();

	data->last_value = new->last_value;
	data->is_called = new->is_called;
	data->log_cnt = 0;
	HeapTupleHeaderSetCmin(tuple.t_data, new->tag);
	MarkBufferDirty(buffer);

	if (RelationNeedsWAL(rel))
	{
		xl_seq_rec	record;
		XLogRecPtr	end;

		XLogBeginInsert();
		XLogRegisterBuffer(0, buffer, REGBUF_WILL_INIT);
		record.locator = rel->rd_locator;
		XLogRegisterData(&record, sizeof(xl_seq_rec));
		XLogRegisterData(tuple.t_data, tuple.t_len);
		end = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
		PageSetLSN(BufferGetPage(buffer), end);
	}

	END_CRIT_SECTION();

	UnlockReleaseBuffer(buffer);
	return true;
}

/* False, and nothing is done, if the sequence is not (any more) as expected. */
int
pgr_shim_sequence_write(Relation rel, const PgrSequence *expected,
						const PgrSequence *new, bool *done, ErrorData **edata)
{
	PGR_GUARD(edata, *done = sequence_write(rel, expected, new));
}

static void
sequence_rule(Oid oid, PgrSequenceRule *out)
{
	HeapTuple	row = SearchSysCache1(SEQRELID, ObjectIdGetDatum(oid));
	Form_pg_sequence form;

	if (!HeapTupleIsValid(row))
		elog(ERROR, "cache lookup failed for sequence %u", oid);
	form = (Form_pg_sequence) GETSTRUCT(row);
	out->increment = form->seqincrement;
	out->min = form->seqmin;
	out->max = form->seqmax;
	out->cache = form->seqcache;
	out->cycle = form->seqcycle;
	ReleaseSysCache(row);
}

int
pgr_shim_sequence_rule(Oid oid, PgrSequenceRule *out, ErrorData **edata)
{
	PGR_GUARD(edata, sequence_rule(oid, out));
}

/* Was its storage made in the current transaction, which alone sees it then? */
bool
pgr_shim_sequence_is_new(Relation rel)
{
	return rel->rd_createSubid != InvalidSubTransactionId ||
		rel->rd_firstRelfilelocatorSubid != InvalidSubTransactionId;
}

static List *
permanent_sequences(void)
{
	List	   *result = NIL;
	Relation	classes = table_open(RelationRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(classes, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	row;

	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(row);

		if (form->relkind == RELKIND_SEQUENCE &&
			form->relpersistence == RELPERSISTENCE_PERMANENT)
			result = lappend_oid(result, form->oid);
	}
	systable_endscan(scan);
	table_close(classes, AccessShareLock);
	return result;
}

int
pgr_shim_permanent_sequences(List **out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = permanent_sequences());
}
