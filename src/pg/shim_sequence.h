/*
 * What sequences need of PostgreSQL.  See shim_sequence.c.
 */
#ifndef PGR_SHIM_SEQUENCE_H
#define PGR_SHIM_SEQUENCE_H

#include "nodes/pg_list.h"
#include "utils/elog.h"
#include "utils/rel.h"

/* A sequence's tuple. */
typedef struct PgrSequence
{
	int64		last_value;
	uint32		tag;
	bool		is_called;
	bool		logged_ahead;	/* WAL says more; ignored where it is written */
} PgrSequence;

/* Of pg_sequence. */
typedef struct PgrSequenceRule
{
	int64		increment;
	int64		min;
	int64		max;
	int64		cache;
	bool		cycle;
} PgrSequenceRule;

extern void pgr_shim_ranges_lock(void);
extern void pgr_shim_ranges_unlock(void);
extern int	pgr_shim_sequence_read(Relation rel, PgrSequence *out, ErrorData **edata);
extern int	pgr_shim_sequence_write(Relation rel, const PgrSequence *expected,
									const PgrSequence *new, bool *done,
									ErrorData **edata);
extern int	pgr_shim_sequence_rule(Oid oid, PgrSequenceRule *out, ErrorData **edata);
extern bool pgr_shim_sequence_is_new(Relation rel);
extern int	pgr_shim_permanent_sequences(List **out, ErrorData **edata);

#endif
