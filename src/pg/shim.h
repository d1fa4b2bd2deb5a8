/* What every C file of the shim shares: the guard round a call that can raise. */
#ifndef PGR_SHIM_H
#define PGR_SHIM_H

#include "postgres.h"

#include "utils/elog.h"
#include "utils/memutils.h"

/*
 * Body of a shim function: runs a statement that may raise an error.  Returns 0
 * when it did not; else 1, with a copy of the error in *edata, in the memory
 * context that was current.  No Rust frame lies between PG_TRY and the error.
 */
#define PGR_GUARD(edata, statement) \
	do { \
		MemoryContext pgr_guard_context = CurrentMemoryContext; \
		volatile int pgr_guard_failed = 0; \
		PG_TRY(); \
		{ \
			statement; \
		} \
		PG_CATCH(); \
		{ \
			MemoryContextSwitchTo(pgr_guard_context); \
			*(edata) = CopyErrorData(); \
			FlushErrorState(); \
			pgr_guard_failed = 1; \
		} \
		PG_END_TRY(); \
		return pgr_guard_failed; \
	} while (0)

#endif
