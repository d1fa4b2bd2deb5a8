/*
 * Locks of relations: which the current transaction has, giving them back, taking
 * them without a wait, and who waits for them.
 */
#include "shim.h"

#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/resowner.h"

/* A relation, and the modes (LOCKBIT_ON) in which it is locked.  See locks.rs. */
typedef struct PgrRelationLock
{
	Oid			database;		/* 0 for a shared relation */
	Oid			relation;
	LOCKMASK	modes;
} PgrRelationLock;

extern int	pgr_shim_relation_locks(PgrRelationLock **out, int *n, ErrorData **edata);
extern int	pgr_shim_release_relation(Oid database, Oid relation, LOCKMODE mode,
									  ErrorData **edata);
extern int	pgr_shim_lock_if_free(Oid relation, LOCKMODE mode, bool *held, bool *got,
								  ErrorData **edata);
extern int	pgr_shim_is_lock_free(Oid relation, LOCKMODE mode, bool *out, ErrorData **edata);
extern int	pgr_shim_is_exclusive_awaited(bool *out, ErrorData **edata);

/*
 * Those that are in the lock table, as far as there is room; their number.
 * Others may add entries, for locks that they find in the fast path.
 */
static int
locks_in_table(PgrRelationLock *out, int room)
{
	int			n = 0;

	for (int i = 0; i < NUM_LOCK_PARTITIONS; i++)
	{
		dlist_iter	iter;

		LWLockAcquire(LockHashPartitionLockByIndex(i), LW_SHARED);
		dlist_foreach(iter, &MyProc->myProcLocks[i])
		{
			PROCLOCK   *held = dlist_container(PROCLOCK, procLink, iter.cur);
			LOCKTAG    *tag = &held->tag.myLock->tag;

			if (tag->locktag_type != LOCKTAG_RELATION)
				continue;
			if (n < room)
			{
				out[n].database = tag->locktag_field1;
				out[n].relation = tag->locktag_field2;
			}
			n++;
		}
		LWLockRelease(LockHashPartitionLockByIndex(i));
	}
	return n;
}

static void
relation_locks(PgrRelationLock **out, int *n)
{
	/* A lock may go from the fast path to the table, but not back. */
	int			fast = FastPathLockSlotsPerBackend();
	int			room = locks_in_table(NULL, 0) + 2 * fast;
	PgrRelationLock *locks = palloc(room * sizeof(PgrRelationLock));
	int			found = 0;

	/* Only this process writes the OIDs; which of them count is seen below. */
	for (int i = 0; i < fast; i++)
	{
		if (!OidIsValid(MyProc->fpRelId[i]))
			continue;
		locks[found].database = MyDatabaseId;
		locks[found++].relation = MyProc->fpRelId[i];
	}
	found += locks_in_table(locks + found, room - found);
	Assert(found <= room);
	for (int i = 0; i < found; i++)
	{
		LOCKTAG		tag;

		SET_LOCKTAG_RELATION(tag, locks[i].database, locks[i].relation);
		locks[i].modes = 0;
		for (LOCKMODE mode = 1; mode <= MaxLockMode; mode++)
			if (LockHeldByMe(&tag, mode, false))
				locks[i].modes |= LOCKBIT_ON(mode);
	}
	*out = locks;
	*n = found;
}

/* Some may be there twice, some in no mode at all. */
int
pgr_shim_relation_locks(PgrRelationLock **out, int *n, ErrorData **edata)
{
	PGR_GUARD(edata, relation_locks(out, n));
}

/* One of those that have taken it in the transaction; NULL: only the session. */
static ResourceOwner
holder(const LOCALLOCK *lock)
{
	for (int i = 0; i < lock->numLockOwners; i++)
		if (lock->lockOwners[i].owner != NULL)
			return lock->lockOwners[i].owner;
	return NULL;
}

static void
release_relation(Oid database, Oid relation, LOCKMODE mode)
{
	ResourceOwner saved = CurrentResourceOwner;
	LOCALLOCK  *lock;
	LOCKTAG		tag;
	bool		more = true;

	SET_LOCKTAG_RELATION(tag, database, relation);
	if (!LockHeldByMe(&tag, mode, false))
		return;
	/* Once more: that tells where it is. */
	CurrentResourceOwner = TopTransactionResourceOwner;
	(void) LockAcquireExtended(&tag, mode, false, true, true, &lock, false);
	/* Cursors that were open have what they had taken until the very end. */
	while (more && (CurrentResourceOwner = holder(lock)) != NULL)
	{
		/* After the last one it is no more. */
		more = lock->nLocks > 1;
		LockRelease(&tag, mode, false);
	}
	CurrentResourceOwner = saved;
}

/* Gives back a lock, however often and by whom the transaction has taken it. */
int
pgr_shim_release_relation(Oid database, Oid relation, LOCKMODE mode, ErrorData **edata)
{
	PGR_GUARD(edata, release_relation(database, relation, mode));
}

static void
lock_if_free(Oid relation, LOCKMODE mode, bool *held, bool *got)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relation);
	*held = LockHeldByMe(&tag, mode, false);
	*got = !*held && ConditionalLockRelationOid(relation, mode);
}

/*
 * Locks a relation of this database unless the transaction has it locked so, which
 * *held says, or somebody is in the way.  Never waits.
 */
int
pgr_shim_lock_if_free(Oid relation, LOCKMODE mode, bool *held, bool *got,
					  ErrorData **edata)
{
	PGR_GUARD(edata, lock_if_free(relation, mode, held, got));
}

static bool
is_lock_free(Oid relation, LOCKMODE mode)
{
	LOCKTAG		tag;
	int			count;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relation);
	pfree(GetLockConflicts(&tag, mode, &count));
	return count == 0;
}

/* Does nobody else hold a lock of a relation that this one excludes? */
int
pgr_shim_is_lock_free(Oid relation, LOCKMODE mode, bool *out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = is_lock_free(relation, mode));
}

static bool
is_exclusive_awaited(void)
{
	bool		awaited = false;

	for (int i = 0; i < NUM_LOCK_PARTITIONS && !awaited; i++)
	{
		dlist_iter	iter;

		LWLockAcquire(LockHashPartitionLockByIndex(i), LW_SHARED);
		dlist_foreach(iter, &MyProc->myProcLocks[i])
		{
			PROCLOCK   *held = dlist_container(PROCLOCK, procLink, iter.cur);
			LOCK	   *lock = held->tag.myLock;

			awaited |= lock->tag.locktag_type == LOCKTAG_RELATION &&
				(held->holdMask & LOCKBIT_ON(AccessExclusiveLock)) != 0 &&
				lock->waitMask != 0;
		}
		LWLockRelease(LockHashPartitionLockByIndex(i));
	}
	return awaited;
}

/* Does anyone wait for a relation that the transaction keeps from all others? */
int
pgr_shim_is_exclusive_awaited(bool *out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = is_exclusive_awaited());
}
