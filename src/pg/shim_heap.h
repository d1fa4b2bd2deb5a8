/* Structures that shim_heap.c shares with Rust. */
#ifndef PGR_SHIM_HEAP_H
#define PGR_SHIM_HEAP_H

#include "utils/relcache.h"

/* What a row's layout depends on. */
typedef struct PgrAttribute
{
	Oid			type;			/* InvalidOid for a dropped column */
	int32		typmod;
	int16		len;
	char		align;			/* 'c', 's', 'i', 'd' */
	bool		by_value;
	bool		dropped;
} PgrAttribute;

/* Who we were before we became a table's owner. */
typedef struct PgrUser
{
	Oid			user;
	int			context;
	int			guc_level;
} PgrUser;

/* To the owner, with a fixed search_path, and back; an error's rollback leads back too. */
extern void pgr_become_owner(Relation rel, PgrUser *saved);
extern void pgr_become_self(const PgrUser *saved);

#endif
