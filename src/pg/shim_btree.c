/*
 * B-trees, for many rows at a time.
 *
 * nbtree inserts an entry a call: a descent from the root, and a record of WAL.
 * Rows that are applied together often have neighbouring keys, so here as many
 * of their entries as belong to one leaf go there under one lock; and where they
 * are many, WAL gets the leaf as a whole, which takes less time than a record of
 * each, and at most twice the bytes.
 * Likewise a search begins at the leaf where the last one ended.
 *
 * All that is not plain is left to nbtree itself: full leaves, equal keys,
 * lists of duplicates, versions before 4.  So nothing here splits, deletes,
 * deduplicates or waits.
 */
#include "shim.h"

#include "access/nbtree.h"
#include "access/nbtxlog.h"
#include "access/tableam.h"
#include "access/xloginsert.h"
#include "catalog/index.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/predicate.h"
#include "utils/rel.h"

#define GUARD(statement) PGR_GUARD(edata, statement)

/* Entries that go to one leaf at once. */
#define RUN_MAX 256

/* Of rows with equal keys: more are left to an index scan, which marks dead ones. */
#define FOUND_MAX 4

/* So few entries are not worth that dead ones are looked for on a leaf. */
#define FEW 16

/* A record of one entry, without the entry itself, is about as long. */
#define INSERT_RECORD 48

/* ---------------- keys ---------------- */

/* Makes "key", which was made for this index, that of "itup". */
static void
set_key(Relation index, BTScanInsert key, IndexTuple itup, bool with_tid)
{
	TupleDesc	columns = RelationGetDescr(index);

	key->anynullkeys = false;
	for (int i = 0; i < key->keysz; i++)
	{
		ScanKey		column = &key->scankeys[i];
		bool		null;

		column->sk_argument = index_getattr(itup, i + 1, columns, &null);
		if (null)
			column->sk_flags |= SK_ISNULL;
		else
			column->sk_flags &= ~SK_ISNULL;
		key->anynullkeys |= null;
	}
	if (index->rd_index->indnullsnotdistinct)
		key->anynullkeys = false;
	key->scantid = with_tid ? &itup->t_tid : NULL;
}

/* Is "key" above "itup", in the order of the index? */
static bool
is_above(Relation index, BTScanInsert key, IndexTuple itup)
{
	TupleDesc	columns = RelationGetDescr(index);

	for (int i = 0; i < key->keysz; i++)
	{
		ScanKey		column = &key->scankeys[i];
		bool		null;
		Datum		value = index_getattr(itup, i + 1, columns, &null);
		int32		order;

		if ((column->sk_flags & SK_ISNULL) || null)
		{
			bool		key_null = (column->sk_flags & SK_ISNULL) != 0;

			if (key_null == null)
				continue;
			return key_null == ((column->sk_flags & SK_BT_NULLS_FIRST) == 0);
		}
		order = DatumGetInt32(FunctionCall2Coll(&column->sk_func, column->sk_collation,
												value, column->sk_argument));
		if (order != 0)
			return (order < 0) == ((column->sk_flags & SK_BT_DESC) == 0);
	}
	return key->scantid != NULL && ItemPointerCompare(key->scantid, &itup->t_tid) > 0;
}

/* ---------------- entries ---------------- */

/*
 * Where among the items of a leaf, from "low" on, "key" belongs; false if it is
 * equal to one of them, or lies in a list of duplicates.
 */
static bool
find_place(Relation index, BTScanInsert key, Page page, OffsetNumber low, OffsetNumber *place)
{
	OffsetNumber high = OffsetNumberNext(PageGetMaxOffsetNumber(page));
	bool		first = low == P_FIRSTDATAKEY(BTPageGetOpaque(page));
	OffsetNumber ahead = 0;

	/*
	 * Keys that ascend all go to the end, or between the same two; or each goes
	 * behind the old version of its row, which is next: the steps grow.
	 */
	for (int probe = first ? 0 : 1; low < high; probe++)
	{
		OffsetNumber item = probe == 0 ? high - 1 : low + Min(ahead, (high - low) / 2);
		int32		order = _bt_compare(index, key, page, item);

		if (order == 0)
			return false;
		if (order < 0)
			high = item;
		else
			low = OffsetNumberNext(item);
		if (probe > 1)
			ahead = order > 0 ? 2 * ahead + 1 : high;
	}
	*place = low;
	return true;
}

/* Logs the leaf as it is now, or adds the entries one by one, each with its record. */
static void
add_to_leaf(Relation index, Buffer buf, IndexTuple *entries, const OffsetNumber *places, int n,
			Size bytes)
{
	Page		page = BufferGetPage(buf);
	bool		logged = RelationNeedsWAL(index);
	Size		leaf = BLCKSZ - PageGetExactFreeSpace(page) + bytes;
	bool		whole = logged && leaf <= 2 * (bytes + n * INSERT_RECORD);

	START_CRIT_SECTION();
	for (int i = 0; i < n; i++)
	{
		Size		size = MAXALIGN(IndexTupleSize(entries[i]));
		/* those before it have come to lie on this leaf too */
		OffsetNumber offset = places[i] + i;

		if (PageAddItem(page, (Item) entries[i], size, offset, false, false) == InvalidOffsetNumber)
			elog(PANIC, "failed to add new item to block %u in index \"%s\"",
				 BufferGetBlockNumber(buf), RelationGetRelationName(index));
		MarkBufferDirty(buf);
		if (logged && !whole)
		{
			xl_btree_insert record;

			record.offnum = offset;
			XLogBeginInsert();
			XLogRegisterData(&record, SizeOfBtreeInsert);
			XLogRegisterBuffer(0, buf, REGBUF_STANDARD);
			XLogRegisterBufData(0, entries[i], IndexTupleSize(entries[i]));
			PageSetLSN(page, XLogInsert(RM_BTREE_ID, XLOG_BTREE_INSERT_LEAF));
		}
	}
	if (whole)
		log_newpage_buffer(buf, true);
	END_CRIT_SECTION();
}

/*
 * Adds the first of these entries, and those after it that ascend and belong to
 * the same leaf; returns how many.  0: it takes nbtree to add the first, and
 * *full is the leaf, if it is full.  With "unique" no entry may have the key of
 * another.
 */
static int
insert_run(Relation index, Relation heap, BTScanInsert key, IndexTuple *entries, int n, bool unique,
		   BlockNumber *full)
{
	OffsetNumber places[RUN_MAX];
	OffsetNumber place;
	Size		free;
	Size		bytes = 0;
	Buffer		buf;
	Page		page;
	BTPageOpaque opaque;
	BTStack		stack;
	int			count;

	*full = InvalidBlockNumber;
	set_key(index, key, entries[0], !unique);
	if (unique && key->anynullkeys)
		return 0;
	stack = _bt_search(index, heap, key, &buf, BT_WRITE);
	page = BufferGetPage(buf);
	opaque = BTPageGetOpaque(page);
	place = P_FIRSTDATAKEY(opaque);
	free = PageGetExactFreeSpace(page);
	for (count = 0; count < n && count < RUN_MAX; count++)
	{
		Size		size = MAXALIGN(IndexTupleSize(entries[count]));

		if (size > BTMaxItemSize || bytes + size + sizeof(ItemIdData) > free)
		{
			*full = BufferGetBlockNumber(buf);
			break;
		}
		if (count > 0)
		{
			set_key(index, key, entries[count], !unique);
			if ((unique && key->anynullkeys) || !is_above(index, key, entries[count - 1]))
				break;
		}
		if (!P_RIGHTMOST(opaque) && _bt_compare(index, key, page, P_HIKEY) >= 0)
			break;
		if (!find_place(index, key, page, place, &place))
			break;
		places[count] = place;
		bytes += size + sizeof(ItemIdData);
	}
	if (count > 0)
	{
		CheckForSerializableConflictIn(index, NULL, BufferGetBlockNumber(buf));
		add_to_leaf(index, buf, entries, places, count, bytes);
	}
	_bt_relbuf(index, buf);
	_bt_freestack(stack);
	return count;
}

/*
 * Entries of the rows in these slots.  "check" is UNIQUE_CHECK_YES or
 * UNIQUE_CHECK_NO, which promises that no other row can get the same key if the
 * index is unique.  Allocates in the current memory context.
 */
static void
btree_insert(Relation index, Relation heap, IndexInfo *info, TupleTableSlot **slots, int n,
			 IndexUniqueCheck check, bool unchanged)
{
	IndexTuple *entries = palloc_array(IndexTuple, n);
	BTScanInsert key;
	int			done = 0;
	BlockNumber tried = InvalidBlockNumber;
	int			since = 0;

	for (int i = 0; i < n; i++)
	{
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		FormIndexDatum(info, slots[i], NULL, values, nulls);
		entries[i] = index_form_tuple(RelationGetDescr(index), values, nulls);
		entries[i]->t_tid = slots[i]->tts_tid;
	}
	key = _bt_mkscankey(index, entries[0]);
	while (done < n)
	{
		BlockNumber full = InvalidBlockNumber;
		int			run = 0;
		bool		hopeless;

		if (key->heapkeyspace)
			run = insert_run(index, heap, key, entries + done, n - done,
							 check != UNIQUE_CHECK_NO, &full);
		if (run > 0)
		{
			done += run;
			since += run;
			continue;
		}
		/* What has made room for few entries is not done again at once. */
		hopeless = full != InvalidBlockNumber && full == tried && since < FEW;
		if (full != InvalidBlockNumber)
		{
			tried = full;
			since = 0;
		}
		_bt_doinsert(index, entries[done], check, unchanged && !hopeless, heap);
		done++;
	}
}

int
pgr_shim_btree_insert(Relation index, Relation heap, IndexInfo *info, TupleTableSlot **slots,
					  int n, IndexUniqueCheck check, bool unchanged, ErrorData **edata)
{
	GUARD(btree_insert(index, heap, info, slots, n, check, unchanged));
}

/* ---------------- searches ---------------- */

/* A search by all columns of an index, which begins where the last one ended. */
typedef struct PgrFinger
{
	Relation	heap;
	Relation	index;
	BTScanInsert key;
	IndexFetchTableData *rows;
	BlockNumber leaf;			/* InvalidBlockNumber: from the root */
	Buffer		buffer;			/* where that was */
	OffsetNumber place;			/* behind what was found there */
} PgrFinger;

/* NULL if the index is none that this can search. */
static PgrFinger *
finger_new(Relation heap, Relation index)
{
	PgrFinger  *finger;
	BTScanInsert key = _bt_mkscankey(index, NULL);

	/* a key of no entry does not know them */
	_bt_metaversion(index, &key->heapkeyspace, &key->allequalimage);
	if (!key->heapkeyspace)
		return NULL;
	key->keysz = IndexRelationGetNumberOfKeyAttributes(index);
	key->scantid = NULL;
	key->anynullkeys = false;
	finger = palloc0_object(PgrFinger);
	finger->heap = heap;
	finger->index = index;
	finger->key = key;
	finger->rows = table_index_fetch_begin(heap);
	finger->leaf = InvalidBlockNumber;
	return finger;
}

int
pgr_shim_finger_new(Relation heap, Relation index, PgrFinger **out, ErrorData **edata)
{
	GUARD(*out = finger_new(heap, index));
}

/* Are all entries with the key on this leaf, if there are any? */
static bool
is_inside(PgrFinger *finger, Page page)
{
	BTPageOpaque opaque = BTPageGetOpaque(page);

	return P_ISLEAF(opaque) && !P_IGNORE(opaque) &&
		PageGetMaxOffsetNumber(page) >= P_FIRSTDATAKEY(opaque) &&
		(P_RIGHTMOST(opaque) || _bt_compare(finger->index, finger->key, page, P_HIKEY) < 0) &&
		(P_LEFTMOST(opaque) ||
		 _bt_compare(finger->index, finger->key, page, P_FIRSTDATAKEY(opaque)) > 0);
}

/* The leaf on which all entries with the key are, locked; InvalidBuffer if there is none. */
static Buffer
find_leaf(PgrFinger *finger)
{
	Relation	index = finger->index;
	Buffer		buf;
	Page		page;
	BTPageOpaque opaque;

	if (finger->leaf != InvalidBlockNumber)
	{
		/* It may have become anything meanwhile, but not have left the index. */
		if (ReadRecentBuffer(index->rd_locator, MAIN_FORKNUM, finger->leaf, finger->buffer))
		{
			buf = finger->buffer;
			_bt_lockbuf(index, buf, BT_READ);
			_bt_checkpage(index, buf);
		}
		else
			buf = _bt_getbuf(index, finger->leaf, BT_READ);
		finger->buffer = buf;
		if (is_inside(finger, BufferGetPage(buf)))
			return buf;
		_bt_relbuf(index, buf);
		finger->leaf = InvalidBlockNumber;
	}
	_bt_freestack(_bt_search(index, NULL, finger->key, &buf, BT_READ));
	if (!BufferIsValid(buf))
		return InvalidBuffer;
	page = BufferGetPage(buf);
	opaque = BTPageGetOpaque(page);
	if (!P_RIGHTMOST(opaque) && _bt_compare(index, finger->key, page, P_HIKEY) >= 0)
	{
		_bt_relbuf(index, buf);
		return InvalidBuffer;
	}
	finger->leaf = BufferGetBlockNumber(buf);
	finger->buffer = buf;
	finger->place = P_FIRSTDATAKEY(opaque);
	return buf;
}

/* The first item of the leaf that is not below the key. */
static OffsetNumber
first_item(PgrFinger *finger, Page page)
{
	OffsetNumber low = P_FIRSTDATAKEY(BTPageGetOpaque(page));
	OffsetNumber high = OffsetNumberNext(PageGetMaxOffsetNumber(page));

	/* Of keys that ascend the next is often the item behind the last one. */
	for (int probe = 0; low < high; probe++)
	{
		OffsetNumber item = probe < 2 ? finger->place - probe : 0;

		if (item < low || item >= high)
			item = low + (high - low) / 2;
		if (_bt_compare(finger->index, finger->key, page, item) > 0)
			low = OffsetNumberNext(item);
		else
			high = item;
	}
	return low;
}

/*
 * Rows that the index has under the key; at most FOUND_MAX.  -1: there may be
 * others.
 */
static int
find_tids(PgrFinger *finger, ItemPointerData *tids)
{
	Buffer		buf = find_leaf(finger);
	Page		page;
	OffsetNumber item;
	int			count = 0;

	if (!BufferIsValid(buf))
		return -1;
	page = BufferGetPage(buf);
	for (item = first_item(finger, page);
		 count >= 0 && item <= PageGetMaxOffsetNumber(page) &&
		 _bt_compare(finger->index, finger->key, page, item) == 0;
		 item++)
	{
		ItemId		id = PageGetItemId(page, item);
		IndexTuple	entry = (IndexTuple) PageGetItem(page, id);
		int			rows = BTreeTupleIsPosting(entry) ? BTreeTupleGetNPosting(entry) : 1;

		if (ItemIdIsDead(id))
			continue;
		if (count + rows > FOUND_MAX)
			count = -1;
		else if (BTreeTupleIsPosting(entry))
			for (int i = 0; i < rows; i++)
				tids[count++] = *BTreeTupleGetPostingN(entry, i);
		else
			tids[count++] = entry->t_tid;
	}
	finger->place = item;
	_bt_relbuf(finger->index, buf);
	return count;
}

/*
 * Brings the row with these values into a buffered slot, as "snapshot", which is
 * an MVCC snapshot, sees it.  1: found; 0: there is none; -1: an index scan has
 * to tell.
 */
static int
finger_find(PgrFinger *finger, Snapshot snapshot, const Datum *values, TupleTableSlot *slot)
{
	ItemPointerData tids[FOUND_MAX];
	int			count;

	for (int i = 0; i < finger->key->keysz; i++)
	{
		finger->key->scankeys[i].sk_argument = values[i];
		finger->key->scankeys[i].sk_flags &= ~SK_ISNULL;
	}
	count = find_tids(finger, tids);
	if (count < 0)
		return -1;
	pgstat_count_index_scan(finger->index);
	pgstat_count_index_tuples(finger->index, count);
	for (int i = 0; i < count; i++)
	{
		bool		again = false;

		if (table_index_fetch_tuple(finger->rows, &tids[i], snapshot, slot, &again, NULL))
		{
			pgstat_count_heap_fetch(finger->index);
			return 1;
		}
	}
	return 0;
}

int
pgr_shim_finger_find(PgrFinger *finger, Snapshot snapshot, const Datum *values,
					 TupleTableSlot *slot, int *out, ErrorData **edata)
{
	GUARD(*out = finger_find(finger, snapshot, values, slot));
}

/* Lets go of all buffers, until the next search. */
int
pgr_shim_finger_rest(PgrFinger *finger, ErrorData **edata)
{
	GUARD(table_index_fetch_reset(finger->rows));
}
