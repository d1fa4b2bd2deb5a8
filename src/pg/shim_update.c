/*
 * Heap updates, for many rows at a time.
 *
 * heap_update() finds out anew for each row which columns matter to whom, takes
 * its locks, and writes a record of WAL.  Rows that are updated together often
 * lie together, so here those of one page are done under one lock; and WAL gets
 * the page, and the one that the new versions go to, as a whole.
 *
 * All that is not plain is left to heap_update() itself: rows that anybody has
 * locked or changed, values out of line, pages that are all-visible, WAL that
 * is to be decoded, and pages on which so few rows change that records of them
 * would have less than half of the bytes.  So nothing here waits for anybody.
 *
 * Redo of such images does not tell the free space map, which is a hint.
 */
#include "shim.h"

#include "access/heapam.h"
#include "access/heaptoast.h"
#include "access/hio.h"
#include "access/multixact.h"
#include "access/xact.h"
#include "access/xloginsert.h"
#include "catalog/catalog.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/predicate.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#define GUARD(statement) PGR_GUARD(edata, statement)

/*
 * The record of one update, without the row itself, is about as long; and with
 * the lock of the old version that is logged before another page is looked for.
 */
#define UPDATE_RECORD 64
#define MOVE_RECORD 128

/* Rows to be updated, in order, and what is known about all of them. */
typedef struct Updates
{
	Relation	rel;
	ItemPointer old;			/* where they are */
	HeapTuple  *new;			/* their new versions */
	int			n;
	CommandId	cid;
	const bool *changed;		/* which columns change in all of them */
	int			natts;
	bool		key_intact;		/* no column of a key changes */
	bool		hot;			/* no column of an index changes */
	bool		summarized;		/* one of a summarizing index does */
} Updates;

/*
 * Which columns change decides as in heap_update(), except that it is taken from
 * "changed".  There as here the whole row and system columns always do.
 */
static void
set_columns(Updates *updates)
{
	Bitmapset  *modified = NULL;

	for (int i = FirstLowInvalidHeapAttributeNumber + 1; i <= updates->natts; i++)
		if (i > 0 ? updates->changed[i - 1] : i != TableOidAttributeNumber)
			modified = bms_add_member(modified, i - FirstLowInvalidHeapAttributeNumber);
	updates->key_intact =
		!bms_overlap(modified, RelationGetIndexAttrBitmap(updates->rel, INDEX_ATTR_BITMAP_KEY));
	updates->hot =
		!bms_overlap(modified, RelationGetIndexAttrBitmap(updates->rel, INDEX_ATTR_BITMAP_HOT_BLOCKING));
	updates->summarized =
		bms_overlap(modified, RelationGetIndexAttrBitmap(updates->rel, INDEX_ATTR_BITMAP_SUMMARIZED));
}

/* The row at "tid" of a page that is locked, if nobody has it locked or changed. */
static bool
get_plain(Relation rel, Buffer buffer, ItemPointer tid, CommandId cid, HeapTuple out)
{
	Page		page = BufferGetPage(buffer);
	ItemId		id = PageGetItemId(page, ItemPointerGetOffsetNumber(tid));

	if (!ItemIdIsNormal(id))
		return false;
	out->t_tableOid = RelationGetRelid(rel);
	out->t_data = (HeapTupleHeader) PageGetItem(page, id);
	out->t_len = ItemIdGetLength(id);
	out->t_self = *tid;
	return HeapTupleSatisfiesUpdate(out, cid, buffer) == TM_Ok &&
		(out->t_data->t_infomask & HEAP_XMAX_INVALID) != 0 &&
		!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(out->t_data)) &&
		!HeapTupleHasExternal(out);
}

/* Does heap_update() have more to do with a new version than to store it? */
static bool
is_toasted(HeapTuple tuple)
{
	return HeapTupleHasExternal(tuple) || tuple->t_len > TOAST_TUPLE_THRESHOLD;
}

/* A new version as it is to stand on a page. */
static void
set_header(Relation rel, HeapTuple tuple, TransactionId xid, CommandId cid)
{
	tuple->t_data->t_infomask &= ~HEAP_XACT_MASK;
	tuple->t_data->t_infomask2 &= ~HEAP2_XACT_MASK;
	HeapTupleHeaderSetXmin(tuple->t_data, xid);
	HeapTupleHeaderSetCmin(tuple->t_data, cid);
	tuple->t_data->t_infomask |= HEAP_UPDATED | HEAP_XMAX_INVALID;
	HeapTupleHeaderSetXmax(tuple->t_data, InvalidTransactionId);
	tuple->t_tableOid = RelationGetRelid(rel);
}

/* How many more rows a page may have. */
static int
pointers_left(Page page)
{
	OffsetNumber last = PageGetMaxOffsetNumber(page);
	int			left = MaxHeapTuplesPerPage - last;

	if (PageHasFreeLinePointers(page))
		for (OffsetNumber i = FirstOffsetNumber; i <= last; i++)
			if (!ItemIdIsUsed(PageGetItemId(page, i)))
				left++;
	return left;
}

/* Bytes of a page's image. */
static Size
image_bytes(Page page)
{
	return BLCKSZ - PageGetExactFreeSpace(page);
}

/*
 * Both pages are locked and have room; the old one is "buffer".  See
 * heap_update() for what is set and why.
 */
static void
replace(Updates *updates, int first, int count, HeapTupleData *old, Buffer buffer, Buffer target)
{
	Relation	rel = updates->rel;
	TransactionId xid = GetCurrentTransactionId();
	bool		hot = target == buffer && updates->hot;
	XLogRecPtr	written;

	START_CRIT_SECTION();
	PageSetPrunable(BufferGetPage(buffer), xid);
	if (target != buffer)
		PageSetFull(BufferGetPage(buffer));
	for (int i = 0; i < count; i++)
	{
		HeapTuple	new = updates->new[first + i];
		HeapTupleHeader header = old[i].t_data;

		if (hot)
		{
			HeapTupleSetHotUpdated(&old[i]);
			HeapTupleSetHeapOnly(new);
		}
		else
		{
			HeapTupleClearHotUpdated(&old[i]);
			HeapTupleClearHeapOnly(new);
		}
		RelationPutHeapTuple(rel, target, new, false);
		header->t_infomask &= ~(HEAP_XMAX_BITS | HEAP_MOVED);
		header->t_infomask2 &= ~HEAP_KEYS_UPDATED;
		HeapTupleHeaderSetXmax(header, xid);
		if (!updates->key_intact)
			header->t_infomask2 |= HEAP_KEYS_UPDATED;
		HeapTupleHeaderSetCmax(header, updates->cid, false);
		header->t_ctid = new->t_self;
	}
	MarkBufferDirty(buffer);
	if (target != buffer)
		MarkBufferDirty(target);
	if (RelationNeedsWAL(rel))
	{
		int			block = 0;

		/* Redo restores them in this order: a pointer never comes before what it points to. */
		XLogBeginInsert();
		if (target != buffer)
			XLogRegisterBuffer(block++, target, REGBUF_FORCE_IMAGE | REGBUF_STANDARD);
		XLogRegisterBuffer(block, buffer, REGBUF_FORCE_IMAGE | REGBUF_STANDARD);
		written = XLogInsert(RM_XLOG_ID, XLOG_FPI);
		if (target != buffer)
			PageSetLSN(BufferGetPage(target), written);
		PageSetLSN(BufferGetPage(buffer), written);
	}
	END_CRIT_SECTION();
}

/*
 * Updates the first of these "n" rows, which lie on one page, and as many of
 * those behind it as go to the same page; returns how many.  0: it takes
 * heap_update() to do the first, or the first *few.
 */
static int
update_page(Updates *updates, int first, int n, TU_UpdateIndexes *indexes, int *few)
{
	Relation	rel = updates->rel;
	TransactionId xid = GetCurrentTransactionId();
	HeapTuple  *new = updates->new + first;
	HeapTupleData *old = palloc_array(HeapTupleData, n);
	Buffer		buffer,
				target;
	Buffer		map = InvalidBuffer,
				target_map = InvalidBuffer;
	Page		page;
	Size		room,
				bytes = 0;
	int			pointers,
				count = 0;
	bool		taken[MaxHeapTuplesPerPage + 1] = {false};

	*few = 1;
	buffer = target = ReadBuffer(rel, ItemPointerGetBlockNumber(&updates->old[first]));
	page = BufferGetPage(buffer);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (PageGetHeapFreeSpace(page) < MAXALIGN(new[0]->t_len))
	{
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
		target = RelationGetBufferForTuple(rel, new[0]->t_len, buffer, 0, NULL,
										   &target_map, &map, 0);
	}
	room = PageGetHeapFreeSpace(BufferGetPage(target));
	pointers = pointers_left(BufferGetPage(target));
	if (!PageIsAllVisible(page) && !PageIsAllVisible(BufferGetPage(target)))
	{
		for (; count < Min(n, pointers); count++)
		{
			Size		size = MAXALIGN(new[count]->t_len) + sizeof(ItemIdData);
			OffsetNumber place = ItemPointerGetOffsetNumber(&updates->old[first + count]);

			/* Of a row that comes twice the second version is one of the first's. */
			if (MAXALIGN(new[count]->t_len) > room || is_toasted(new[count]) || taken[place] ||
				!get_plain(rel, buffer, &updates->old[first + count], updates->cid, &old[count]))
				break;
			set_header(rel, new[count], xid, updates->cid);
			taken[place] = true;
			/* The first has been given a page; the others leave on it what the first had to. */
			if (count == 0 && target != buffer)
				room -= Min(room, RelationGetTargetPageFreeSpace(rel, HEAP_DEFAULT_FILLFACTOR));
			room -= Min(room, size);
			bytes += size;
		}
	}
	if (count > 0 && RelationNeedsWAL(rel))
	{
		Size		images = image_bytes(page) + bytes;

		if (target != buffer)
			images += image_bytes(BufferGetPage(target));
		if (images > 2 * (bytes + count * (target == buffer ? UPDATE_RECORD : MOVE_RECORD)))
		{
			*few = count;
			count = 0;
		}
	}
	if (count > 0)
	{
		for (int i = 0; i < count; i++)
			CheckForSerializableConflictIn(rel, &old[i].t_self, BufferGetBlockNumber(buffer));
		replace(updates, first, count, old, buffer, target);
	}
	if (target != buffer)
		UnlockReleaseBuffer(target);
	UnlockReleaseBuffer(buffer);
	if (BufferIsValid(map))
		ReleaseBuffer(map);
	if (BufferIsValid(target_map))
		ReleaseBuffer(target_map);
	for (int i = 0; i < count; i++)
	{
		bool		hot = target == buffer && updates->hot;

		pgstat_count_heap_update(rel, hot, target != buffer);
		indexes[first + i] = !hot ? TU_All : updates->summarized ? TU_Summarizing : TU_None;
	}
	pfree(old);
	return count;
}

/* As heap_update() for each in turn, until one does not go: its number and its result. */
static int
update_many(Updates *updates, TU_UpdateIndexes *indexes, TM_Result *result)
{
	Relation	rel = updates->rel;
	int			done = 0;
	int			plain_until = 0;

	if (RelationIsLogicallyLogged(rel) || IsCatalogRelation(rel))
		plain_until = updates->n;
	set_columns(updates);
	if (updates->key_intact)
		MultiXactIdSetOldestMember();
	*result = TM_Ok;
	while (done < updates->n)
	{
		BlockNumber block = ItemPointerGetBlockNumber(&updates->old[done]);
		TM_FailureData failure;
		LockTupleMode mode;

		if (done >= plain_until && !is_toasted(updates->new[done]))
		{
			Size		records = 0;
			int			n,
						count,
						few;

			for (n = 0; done + n < updates->n &&
				 ItemPointerGetBlockNumber(&updates->old[done + n]) == block; n++)
				records += updates->new[done + n]->t_len + MOVE_RECORD;
			/* images of less than half a page are not to be hoped for */
			few = n;
			count = 2 * records < BLCKSZ / 2 ? 0 : update_page(updates, done, n, indexes, &few);
			if (count > 0)
			{
				done += count;
				continue;
			}
			plain_until = done + few;
		}
		*result = heap_update(rel, &updates->old[done], updates->new[done], updates->cid,
							  InvalidSnapshot, true, &failure, &mode, &indexes[done]);
		if (*result != TM_Ok)
			break;
		done++;
	}
	return done;
}

/*
 * Replaces the rows at "old" by "new", in order; "changed" says in which of the
 * columns they differ, the same for all.  Does the first *done; if those are not all,
 * *result says why the next was not.  Works in the current memory context.
 */
int
pgr_shim_heap_update_many(Relation rel, ItemPointer old, HeapTuple *new, int n, CommandId cid,
						  const bool *changed, int natts, TU_UpdateIndexes *indexes, int *done,
						  TM_Result *result, ErrorData **edata)
{
	Updates		updates = {rel, old, new, n, cid, changed, natts};

	GUARD(*done = update_many(&updates, indexes, result));
}
