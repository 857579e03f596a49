/*
 * regions_columns.c
 *		Columns that DDL would fill with other values in each region.
 *
 * DDL on a global table runs in every region by itself.  A column added with a
 * default that is not immutable (now(), random(), a sequence) would get other
 * values in each copy, and the copies would differ from then on: every later write
 * of such a row would look like a conflict.  The event triggers of sql/46 ask here.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(residency_differing_column);

/*
 * True if the column was added by the current transaction: no version of its catalog
 * row comes from an earlier one.  Versions that this transaction replaced are still in
 * the heap, since it has not ended.
 */
static bool
column_is_new(Oid relid, AttrNumber attno)
{
	Relation	rel = table_open(AttributeRelationId, AccessShareLock);
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		is_new = true;

	ScanKeyInit(&key[0], Anum_pg_attribute_attrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	ScanKeyInit(&key[1], Anum_pg_attribute_attnum, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(attno));
	scan = systable_beginscan(rel, AttributeRelidNumIndexId, true, SnapshotAny, 2, key);
	while (is_new && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TransactionId xmin = HeapTupleHeaderGetXmin(tuple->t_data);

		if (!TransactionIdIsCurrentTransactionId(xmin) &&
			(!TransactionIdIsNormal(xmin) || TransactionIdDidCommit(xmin)))
			is_new = false;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return is_new;
}

/*
 * residency.differing_column(relation regclass, rewritten boolean) names a column
 * that this transaction has added with a default that is not immutable, NULL if there
 * is none.  Unless the table is rewritten such a default matters only if it was
 * stored as the value of the rows that are there.
 */
Datum
residency_differing_column(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	bool		rewritten = PG_GETARG_BOOL(1);
	Relation	rel = relation_open(relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	Name		name = NULL;

	for (int i = 0; i < desc->natts && name == NULL; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i);

		if (attr->attisdropped || attr->attgenerated != '\0' ||
			!(attr->atthasdef || attr->attidentity != '\0') ||
			!(rewritten || attr->atthasmissing) ||
			!column_is_new(relid, attr->attnum))
			continue;
		if (attr->attidentity != '\0' ||
			contain_mutable_functions(build_column_default(rel, attr->attnum)))
		{
			name = palloc(NAMEDATALEN);
			namestrcpy(name, NameStr(attr->attname));
		}
	}
	relation_close(rel, AccessShareLock);
	if (name == NULL)
		PG_RETURN_NULL();
	PG_RETURN_NAME(name);
}
