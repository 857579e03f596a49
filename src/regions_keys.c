/*
 * regions_keys.c
 *		What indexes tell about the keys of declared tables.
 *
 * Read from pg_index without opening the tables: the cache is loaded while queries about
 * other tables are planned, and those must not wait for DDL on a table that they do not use.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_index.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "regions.h"
#include "regions_internal.h"

/*
 * Primary key columns of a global table, looked up in pg_index without opening
 * the table.
 */
void
residency_load_primary_key(TableRule *rule)
{
	Relation	rel = table_open(IndexRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_index_indrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(rule->relid));
	scan = systable_beginscan(rel, IndexIndrelidIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

		if (!index->indisprimary || !index->indisvalid)
			continue;
		rule->nkeys = index->indnkeyatts;
		for (int i = 0; i < index->indnkeyatts; i++)
			rule->keys[i] = index->indkey.values[i];
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Is every key column among the first n of an index, and nothing else? */
static bool
is_key_index(const TableRule *rule, Oid relid, Form_pg_index index)
{
	if (index->indnkeyatts != rule->nkeys)
		return false;
	for (int i = 0; i < rule->nkeys; i++)
	{
		AttrNumber	attno = get_attnum(relid, get_attname(rule->relid, rule->keys[i], false));
		bool		found = false;

		for (int j = 0; j < index->indnkeyatts; j++)
			found = found || index->indkey.values[j] == attno;
		if (!found)
			return false;
	}
	return true;
}

/*
 * Whether the partition stored here has a unique index on the key, and nothing but the key.
 * Home partitions are alike in all regions, so this tells about them all.
 */
bool
residency_has_unique_key(const TableRule *rule, Oid relid)
{
	Relation	rel = table_open(IndexRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = false;

	ScanKeyInit(&key, Anum_pg_index_indrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, IndexIndrelidIndexId, true, NULL, 1, &key);
	while (!result && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

		result = index->indisunique && index->indisvalid && index->indimmediate &&
			heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
			is_key_index(rule, relid, index);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}
