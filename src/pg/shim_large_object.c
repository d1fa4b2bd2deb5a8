/*
 * Large objects beside their pages: owner and privileges, which travel by the
 * names of roles.  Roles are each server's own, and have other OIDs where they
 * were made by hand.
 */
#include "shim.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_largeobject.h"
#include "catalog/pg_largeobject_metadata.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "commands/seclabel.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/miscnodes.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

extern int	pgr_shim_large_object(Relation rel, HeapTuple tuple, const char **owner,
								  const char **items, Size *bytes, bool *has_acl,
								  ErrorData **edata);
extern int	pgr_shim_large_object_set(Oid loid, const char *owner, const char *items,
									  Size bytes, bool has_acl, ErrorData **edata);
extern int	pgr_shim_large_object_gone(Oid loid, ErrorData **edata);

static void
describe(Relation rel, HeapTuple tuple, const char **owner, const char **items,
		 Size *bytes, bool *has_acl)
{
	Form_pg_largeobject_metadata form = (Form_pg_largeobject_metadata) GETSTRUCT(tuple);
	StringInfoData texts;
	Datum		value;
	bool		is_null;
	Acl		   *acl;

	*owner = GetUserNameFromId(form->lomowner, false);
	value = heap_getattr(tuple, Anum_pg_largeobject_metadata_lomacl,
						 RelationGetDescr(rel), &is_null);
	initStringInfo(&texts);
	*has_acl = !is_null;
	if (!is_null)
	{
		acl = DatumGetAclP(value);
		for (int i = 0; i < ACL_NUM(acl); i++)
		{
			char	   *item = DatumGetCString(DirectFunctionCall1(aclitemout,
																   PointerGetDatum(ACL_DAT(acl) + i)));

			appendBinaryStringInfo(&texts, item, strlen(item) + 1);
		}
	}
	*items = texts.data;
	*bytes = texts.len;
}

/*
 * What a row of pg_largeobject_metadata says: name of the owner, and the items
 * of its ACL as texts, one after the other, each with its NUL.  palloc'd.
 */
int
pgr_shim_large_object(Relation rel, HeapTuple tuple, const char **owner,
					  const char **items, Size *bytes, bool *has_acl,
					  ErrorData **edata)
{
	PGR_GUARD(edata, describe(rel, tuple, owner, items, bytes, has_acl));
}

/* Items about roles that this server doesn't have are left out. */
static Acl *
make_acl(Oid loid, const char *items, Size bytes)
{
	Datum	   *values = palloc(sizeof(Datum) * (bytes + 1));
	int			n = 0;

	for (const char *item = items; item < items + bytes; item += strlen(item) + 1)
	{
		ErrorSaveContext context = {T_ErrorSaveContext};

		if (DirectInputFunctionCallSafe(aclitemin, unconstify(char *, item), InvalidOid, -1,
										(Node *) &context, &values[n]))
			n++;
		else
			ereport(LOG,
					(errmsg("privileges \"%s\" of large object %u are for a role that does not exist on this member",
							item, loid)));
	}
	/* An array without elements has no dimension, but an ACL has. */
	return n == 0 ? make_empty_acl() :
		(Acl *) construct_array(values, n, ACLITEMOID, sizeof(AclItem), false,
								TYPALIGN_DOUBLE);
}

static SysScanDesc
find(Relation rel, Oid loid, HeapTuple *found)
{
	ScanKeyData key;
	SysScanDesc scan;

	ScanKeyInit(&key, Anum_pg_largeobject_metadata_oid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(loid));
	scan = systable_beginscan(rel, LargeObjectMetadataOidIndexId, true, NULL, 1, &key);
	*found = systable_getnext(scan);
	return scan;
}

static void
set(Oid loid, const char *owner_name, const char *items, Size bytes, bool has_acl)
{
	Relation	rel = table_open(LargeObjectMetadataRelationId, RowExclusiveLock);
	Oid			owner = get_role_oid(owner_name, true);
	Acl		   *acl;
	Datum		values[Natts_pg_largeobject_metadata] = {0};
	bool		nulls[Natts_pg_largeobject_metadata] = {0};
	bool		replace[Natts_pg_largeobject_metadata] = {false, true, true};
	SysScanDesc scan;
	HeapTuple	old;

	if (!OidIsValid(owner))
	{
		owner = BOOTSTRAP_SUPERUSERID;
		ereport(LOG,
				(errmsg("the owner \"%s\" of large object %u does not exist on this member; it belongs to the bootstrap superuser here",
						owner_name, loid)));
	}
	acl = has_acl ? make_acl(loid, items, bytes) : NULL;
	values[Anum_pg_largeobject_metadata_oid - 1] = ObjectIdGetDatum(loid);
	values[Anum_pg_largeobject_metadata_lomowner - 1] = ObjectIdGetDatum(owner);
	values[Anum_pg_largeobject_metadata_lomacl - 1] = PointerGetDatum(acl);
	nulls[Anum_pg_largeobject_metadata_lomacl - 1] = !has_acl;

	scan = find(rel, loid, &old);
	if (HeapTupleIsValid(old))
	{
		HeapTuple	new = heap_modify_tuple(old, RelationGetDescr(rel), values, nulls, replace);
		bool		had_no_acl;
		Datum		value = heap_getattr(old, Anum_pg_largeobject_metadata_lomacl,
										 RelationGetDescr(rel), &had_no_acl);
		Oid		   *before = NULL,
				   *after = NULL;
		int			nbefore = had_no_acl ? 0 : aclmembers(DatumGetAclP(value), &before);
		int			nafter = has_acl ? aclmembers(acl, &after) : 0;

		CatalogTupleUpdate(rel, &new->t_self, new);
		changeDependencyOnOwner(LargeObjectRelationId, loid, owner);
		updateAclDependencies(LargeObjectRelationId, loid, 0, owner,
							  nbefore, before, nafter, after);
	}
	else
	{
		CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values, nulls));
		recordDependencyOnOwner(LargeObjectRelationId, loid, owner);
		recordDependencyOnNewAcl(LargeObjectRelationId, loid, 0, owner, acl);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/* Makes a large object, or gives it another owner and other privileges. */
int
pgr_shim_large_object_set(Oid loid, const char *owner, const char *items,
						  Size bytes, bool has_acl, ErrorData **edata)
{
	PGR_GUARD(edata, set(loid, owner, items, bytes, has_acl));
}

static void
gone(Oid loid)
{
	Relation	rel = table_open(LargeObjectMetadataRelationId, RowExclusiveLock);
	ObjectAddress object;
	HeapTuple	old;
	SysScanDesc scan = find(rel, loid, &old);

	if (!HeapTupleIsValid(old))
		elog(ERROR, "large object %u is not here", loid);
	CatalogTupleDelete(rel, &old->t_self);
	systable_endscan(scan);
	table_close(rel, NoLock);

	/* What performDeletion() does; the pages go row by row. */
	ObjectAddressSet(object, LargeObjectRelationId, loid);
	deleteSharedDependencyRecordsFor(LargeObjectRelationId, loid, 0);
	DeleteComments(loid, LargeObjectRelationId, 0);
	DeleteSecurityLabel(&object);
	CommandCounterIncrement();
}

/* Drops a large object, but for its pages. */
int
pgr_shim_large_object_gone(Oid loid, ErrorData **edata)
{
	PGR_GUARD(edata, gone(loid));
}
