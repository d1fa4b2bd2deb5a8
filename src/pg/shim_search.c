/*
 * Searches in indexes: which values a scan looks for.
 */
#include "shim.h"

#include "access/genam.h"
#include "access/hash.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "shim_search.h"

#define GUARD(statement) PGR_GUARD(edata, statement)

extern int	pgr_shim_is_newer(Relation rel, const ItemPointerData *tid, bool *out,
							  ErrorData **edata);
extern int	pgr_shim_index_search_values(Relation index, ScanKey keys, int nkeys,
										 PgrSearched *out, int *count,
										 PgrRange *range, bool *nothing,
										 ErrorData **edata);
extern int	pgr_shim_index_integer(Relation index, int column);

/*
 * The extended hash function for values of another type that hash as those of
 * the column do where the two are equal; NULL if there is none.
 */
static FmgrInfo *
cross_type_hash(Relation index, int column, Oid subtype, StrategyNumber equal)
{
	Oid			family = index->rd_opfamily[column];
	Oid			own = index->rd_opcintype[column];
	Oid			operator = get_opfamily_member(family, own, subtype, equal);
	TypeCacheEntry *mine = lookup_type_cache(own, TYPECACHE_HASH_EXTENDED_PROC);
	TypeCacheEntry *other = lookup_type_cache(subtype,
											  TYPECACHE_HASH_EXTENDED_PROC_FINFO);

	if (!OidIsValid(operator) || !OidIsValid(mine->hash_opf) ||
		mine->hash_opf != other->hash_opf ||
		get_opfamily_member(mine->hash_opf, own, subtype,
							HTEqualStrategyNumber) != operator ||
		!OidIsValid(other->hash_extended_proc))
		return NULL;
	return &other->hash_extended_proc_finfo;
}

/*
 * The values that equality with "key" allows in a column.  False if it is
 * something else than equality.
 */
static bool
searched_values(Relation index, int column, ScanKey key, PgrSearched *out,
				bool *nothing)
{
	StrategyNumber equal = IndexAmTranslateCompareType(COMPARE_EQ,
													   index->rd_rel->relam,
													   index->rd_opfamily[column],
													   true);
	Oid			subtype = key->sk_subtype;

	if (key->sk_attno != column + 1 || key->sk_strategy != equal ||
		equal == InvalidStrategy ||
		(key->sk_flags & (SK_ROW_HEADER | SK_ROW_MEMBER | SK_ORDER_BY |
						  SK_SEARCHNULL | SK_SEARCHNOTNULL)) != 0)
		return false;
	if (key->sk_flags & SK_ISNULL)
	{
		/* operators of indexes are strict */
		*nothing = true;
		return true;
	}
	out->hash = NULL;
	if (OidIsValid(subtype) && subtype != index->rd_opcintype[column])
	{
		out->hash = cross_type_hash(index, column, subtype, equal);
		if (out->hash == NULL)
			return false;
	}
	if (key->sk_flags & SK_SEARCHARRAY)
	{
		ArrayType  *array = DatumGetArrayTypeP(key->sk_argument);
		int16		len;
		bool		by_value;
		char		align;
		Datum	   *elements;
		bool	   *nulls;
		int			n;

		get_typlenbyvalalign(ARR_ELEMTYPE(array), &len, &by_value, &align);
		deconstruct_array(array, ARR_ELEMTYPE(array), len, by_value, align,
						  &elements, &nulls, &n);
		out->values = elements;
		out->n = 0;
		for (int i = 0; i < n; i++)
		{
			if (!nulls[i])
				elements[out->n++] = elements[i];
		}
		if (out->n == 0)
			*nothing = true;
	}
	else
	{
		out->values = palloc_object(Datum);
		out->values[0] = key->sk_argument;
		out->n = 1;
	}
	return true;
}

/*
 * A type whose values are integers: one of those that are compared with each
 * other as such.  InvalidOid for any other type.
 */
static Oid
integers(Oid type)
{
	switch (type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return INT8OID;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case OIDOID:
			return type;
		default:
			return InvalidOid;
	}
}

/* The integer that a value of such a type is. */
static int64
integer(Oid type, Datum value)
{
	switch (type)
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
		case DATEOID:
			return DatumGetInt32(value);
		case OIDOID:
			return DatumGetObjectId(value);
		default:
			return DatumGetInt64(value);
	}
}

/*
 * Bytes of the integers by whose order a column of an index is sorted, negative
 * for unsigned ones; 0 if it is sorted otherwise.
 */
int
pgr_shim_index_integer(Relation index, int column)
{
	/* Families of ours sort them in no other way */
	if (index->rd_rel->relam != BTREE_AM_OID ||
		index->rd_opfamily[column] >= FirstNormalObjectId)
		return 0;
	switch (index->rd_opcintype[column])
	{
		case INT2OID:
			return 2;
		case INT4OID:
		case DATEOID:
			return 4;
		case INT8OID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return 8;
		case OIDOID:
			return -4;
		default:
			return 0;
	}
}

/* Takes from a range of a column what "key" does not allow. */
static void
narrow(Relation index, int column, ScanKey key, PgrRange *range, bool *nothing)
{
	Oid			type = key->sk_subtype;
	int64		value;

	if (!OidIsValid(type))
		type = index->rd_opcintype[column];
	if (key->sk_attno != column + 1 ||
		integers(type) != integers(index->rd_opcintype[column]) ||
		(key->sk_flags & (SK_ROW_HEADER | SK_ROW_MEMBER | SK_ORDER_BY | SK_SEARCHARRAY |
						  SK_SEARCHNULL | SK_SEARCHNOTNULL)) != 0)
		return;
	if (key->sk_flags & SK_ISNULL)
	{
		*nothing = true;
		return;
	}
	value = integer(type, key->sk_argument);
	switch (key->sk_strategy)
	{
		case BTLessStrategyNumber:
			if (value == PG_INT64_MIN)
				*nothing = true;
			else
				range->high = Min(range->high, value - 1);
			break;
		case BTLessEqualStrategyNumber:
			range->high = Min(range->high, value);
			break;
		case BTGreaterEqualStrategyNumber:
			range->low = Max(range->low, value);
			break;
		case BTGreaterStrategyNumber:
			if (value == PG_INT64_MAX)
				*nothing = true;
			else
				range->low = Max(range->low, value + 1);
			break;
		default:
			return;
	}
	range->bounded = true;
}

/* The range that the scan allows in a column of integers, if it says something of it. */
static void
index_search_range(Relation index, int column, ScanKey keys, int nkeys,
				   PgrRange *range, bool *nothing)
{
	switch (pgr_shim_index_integer(index, column))
	{
		case 2:
			range->low = PG_INT16_MIN;
			range->high = PG_INT16_MAX;
			break;
		case 4:
			range->low = PG_INT32_MIN;
			range->high = PG_INT32_MAX;
			break;
		case 8:
			range->low = PG_INT64_MIN;
			range->high = PG_INT64_MAX;
			break;
		case -4:
			range->low = 0;
			range->high = PG_UINT32_MAX;
			break;
		default:
			return;
	}
	for (int i = 0; i < nkeys; i++)
		narrow(index, column, &keys[i], range, nothing);
	if (range->low > range->high)
		*nothing = true;
}

/*
 * For each of the leading columns of an index that the scan compares with equal
 * values, these values, in memory of the current context; and the range that it
 * allows in the next.
 */
static int
index_search_values(Relation index, ScanKey keys, int nkeys, PgrSearched *out,
					PgrRange *range, bool *nothing)
{
	int			columns = IndexRelationGetNumberOfKeyAttributes(index);
	int			column;

	*nothing = false;
	for (column = 0; column < columns; column++)
	{
		bool		found = false;

		for (int i = 0; !found && i < nkeys; i++)
			found = searched_values(index, column, &keys[i], &out[column], nothing);
		if (!found || *nothing)
			break;
	}
	range->bounded = false;
	if (column < columns && !*nothing)
		index_search_range(index, column, keys, nkeys, range, nothing);
	return column;
}

int
pgr_shim_index_search_values(Relation index, ScanKey keys, int nkeys,
							 PgrSearched *out, int *count, PgrRange *range,
							 bool *nothing, ErrorData **edata)
{
	GUARD(*count = index_search_values(index, keys, nkeys, out, range, nothing));
}

/*
 * Is the row that an index has under "tid" newer than the transaction's
 * snapshot?  What the transaction itself has written is not, whichever command
 * wrote it.
 */
static bool
is_newer(Relation rel, ItemPointerData tid)
{
	SnapshotData snapshot = *GetTransactionSnapshot();

	snapshot.curcid = InvalidCommandId;
	return !table_index_fetch_tuple_check(rel, &tid, &snapshot, NULL);
}

int
pgr_shim_is_newer(Relation rel, const ItemPointerData *tid, bool *out,
				  ErrorData **edata)
{
	GUARD(*out = is_newer(rel, *tid));
}
