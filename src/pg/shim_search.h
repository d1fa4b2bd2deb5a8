/* Structures that shim_search.c shares with Rust. */
#ifndef PGR_SHIM_SEARCH_H
#define PGR_SHIM_SEARCH_H

/* The values that a search allows in one column of an index. */
typedef struct PgrSearched
{
	Datum	   *values;
	int			n;
	FmgrInfo   *hash;			/* NULL: they are of the column's own type */
} PgrSearched;

/* The integers that a search allows in a column, if it does not allow all. */
typedef struct PgrRange
{
	int64		low;
	int64		high;
	bool		bounded;
} PgrRange;

#endif
