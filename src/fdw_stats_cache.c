/*
 * fdw_stats_cache.c
 *		What is known about the size and columns of relations, in numbers.
 *
 * Of a foreign table: what its home has told (residency.table_statistic and
 * residency.column_statistic).  Of a local partition: what ANALYZE has found.  Of
 * a partitioned parent: both combined, and how its rows are spread over the
 * values of its partition column.
 *
 * What is read is cached per relation until the definition or statistics of the
 * relation or of one of its partitions change.
 */
#include "residency.h"

#include "fdw_plan.h"
#include "fdw_stats.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_type.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* order of columns in the catalog tables (sql/70_statistics.sql) */
#define TABLE_RELATION 1
#define TABLE_ROWS 2
#define TABLE_PAGES 3
#define COLUMN_RELATION 1
#define COLUMN_NAME 2
#define COLUMN_NULL_FRACTION 3
#define COLUMN_WIDTH 4
#define COLUMN_DISTINCT 5

static HTAB *stats_cache = NULL;
static MemoryContext stats_context = NULL;

static void read_stats(RelationStats *stats);

/*
 * Relation cache callback: forgets everything if a relation that we know of has
 * changed, as a parent's numbers contain its partitions'.
 */
static void
forget_stats(Datum arg, Oid relid)
{
	if (stats_cache == NULL)
		return;
	if (!OidIsValid(relid) || hash_search(stats_cache, &relid, HASH_FIND, NULL) != NULL)
	{
		MemoryContextDelete(stats_context);
		stats_context = NULL;
		stats_cache = NULL;
	}
}

/*
 * Makes the cache if there is none.
 */
static void
ensure_cache(void)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(RelationStats)};

	if (stats_cache != NULL)
		return;
	stats_context = AllocSetContextCreate(CacheMemoryContext, "residency statistics",
										  ALLOCSET_SMALL_SIZES);
	ctl.hcxt = stats_context;
	stats_cache = hash_create("residency statistics", 32, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Opens one of our catalog tables; NULL in a database without them.
 */
static Relation
open_statistics(const char *name)
{
	Oid			schema = get_namespace_oid(RESIDENCY_SCHEMA, true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;

	return OidIsValid(relid) ? table_open(relid, AccessShareLock) : NULL;
}

/*
 * Starts a scan for the rows about one relation, by the primary key.
 */
static SysScanDesc
scan_statistics(Relation catalog, AttrNumber column, Oid relid)
{
	ScanKeyData key;

	RelationGetIndexList(catalog);	/* fills in rd_pkindex */
	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	return systable_beginscan(catalog, catalog->rd_pkindex, true, NULL, 1, &key);
}

/*
 * One column of a catalog row; none of those read is ever NULL.
 */
static Datum
catalog_value(Relation catalog, HeapTuple tuple, AttrNumber column)
{
	bool		isnull;

	return heap_getattr(tuple, column, RelationGetDescr(catalog), &isnull);
}

/*
 * Fills in what is stored about a foreign table.
 */
static void
read_foreign(RelationStats *stats)
{
	Relation	catalog = open_statistics("table_statistic");
	SysScanDesc scan;
	HeapTuple	tuple;

	if (catalog == NULL)
		return;
	scan = scan_statistics(catalog, TABLE_RELATION, stats->relid);
	if (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		stats->known = true;
		stats->rows = DatumGetFloat8(catalog_value(catalog, tuple, TABLE_ROWS));
		stats->pages = DatumGetInt32(catalog_value(catalog, tuple, TABLE_PAGES));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);

	if (!stats->known || (catalog = open_statistics("column_statistic")) == NULL)
		return;
	scan = scan_statistics(catalog, COLUMN_RELATION, stats->relid);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Name		name = DatumGetName(catalog_value(catalog, tuple, COLUMN_NAME));
		AttrNumber	attno = get_attnum(stats->relid, NameStr(*name));
		ColumnStats *column;

		if (attno <= 0 || attno > stats->natts)
			continue;
		column = &stats->columns[attno - 1];
		column->known = true;
		column->null_fraction = DatumGetFloat4(catalog_value(catalog, tuple, COLUMN_NULL_FRACTION));
		column->width = DatumGetInt32(catalog_value(catalog, tuple, COLUMN_WIDTH));
		column->distinct = DatumGetFloat4(catalog_value(catalog, tuple, COLUMN_DISTINCT));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/*
 * Fills in what ANALYZE has found about a local partition.
 */
static void
read_local(RelationStats *stats)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(stats->relid));

	if (!HeapTupleIsValid(tuple))
		return;
	stats->rows = ((Form_pg_class) GETSTRUCT(tuple))->reltuples;
	stats->known = stats->rows >= 0;
	ReleaseSysCache(tuple);

	for (AttrNumber attno = 1; stats->known && attno <= stats->natts; attno++)
	{
		ColumnStats *column = &stats->columns[attno - 1];

		tuple = SearchSysCache3(STATRELATTINH, ObjectIdGetDatum(stats->relid),
								Int16GetDatum(attno), BoolGetDatum(false));
		if (!HeapTupleIsValid(tuple))
			continue;
		column->known = true;
		column->null_fraction = ((Form_pg_statistic) GETSTRUCT(tuple))->stanullfrac;
		column->width = ((Form_pg_statistic) GETSTRUCT(tuple))->stawidth;
		column->distinct = ((Form_pg_statistic) GETSTRUCT(tuple))->stadistinct;
		ReleaseSysCache(tuple);
	}
}

/*
 * Combines the statistics of one column over partitions.
 *
 * Partitions share values of a column the more, the more often each of them
 * repeats its own: keys are all different, colours are the same everywhere.  So
 * the number of distinct values lies between the largest partition's and the
 * sum, at the share of rows that bring a new value.
 */
static void
combine_column(ColumnStats *into, const char *name, const RelationStats *parts, int nparts)
{
	double		nulls = 0;
	double		width = 0;
	double		sum = 0;
	double		largest = 0;
	double		rows = 0;
	double		distinct;

	for (int i = 0; i < nparts; i++)
	{
		AttrNumber	attno = get_attnum(parts[i].relid, name);
		const ColumnStats *column;
		double		own;

		if (attno <= 0 || attno > parts[i].natts)
			continue;
		column = &parts[i].columns[attno - 1];
		if (!column->known)
			continue;
		rows += parts[i].rows;
		nulls += column->null_fraction * parts[i].rows;
		width += (double) column->width * parts[i].rows;
		own = column->distinct < 0 ? -column->distinct * parts[i].rows : column->distinct;
		sum += own;
		largest = Max(largest, own);
	}
	if (rows <= 0)
		return;
	distinct = largest + (sum - largest) * Min(1.0, sum / rows);
	into->known = true;
	into->null_fraction = (float4) (nulls / rows);
	into->width = (int32) rint(width / rows);
	/* as ANALYZE does: a number that grows with the table is kept as a share */
	into->distinct = (float4) (distinct > 0.1 * rows ? -Min(1.0, distinct / rows) : rint(distinct));
}

/*
 * Notes how the rows of a list-partitioned parent are spread over the values of
 * its partition column.
 */
static void
spread_over_regions(RelationStats *stats, Relation parent, const RelationStats *parts, int nparts)
{
	PartitionKey key = RelationGetPartitionKey(parent);
	PartitionDesc desc = RelationGetPartitionDesc(parent, false);
	PartitionBoundInfo bounds = desc->boundinfo;

	if (key->strategy != PARTITION_STRATEGY_LIST || key->partnatts != 1 ||
		key->partattrs[0] == 0 || bounds == NULL)
		return;

	stats->regions = palloc(sizeof(Datum) * bounds->ndatums);
	stats->shares = palloc(sizeof(float4) * bounds->ndatums);
	for (int i = 0; i < bounds->ndatums; i++)
	{
		Oid			partition = desc->oids[bounds->indexes[i]];

		for (int p = 0; p < nparts; p++)
		{
			if (parts[p].relid != partition || parts[p].rows <= 0)
				continue;
			stats->regions[stats->nregions] =
				datumCopy(bounds->datums[i][0], key->parttypbyval[0], key->parttyplen[0]);
			stats->shares[stats->nregions++] = (float4) (parts[p].rows / stats->rows);
		}
	}
	stats->region_attno = key->partattrs[0];
	stats->region_byval = key->parttypbyval[0];
	stats->region_len = key->parttyplen[0];
	stats->columns[stats->region_attno - 1].distinct = stats->nregions;
}

/*
 * Fills in a partitioned parent from its partitions; leaves it unknown unless at
 * least one foreign partition has told its numbers, as then the core knows as
 * much as we do.
 */
static void
read_parent(RelationStats *stats)
{
	List	   *children = find_inheritance_children(stats->relid, NoLock);
	RelationStats *parts = palloc0(sizeof(RelationStats) * (list_length(children) + 1));
	int			nparts = 0;
	bool		foreign = false;
	Relation	parent;
	ListCell   *lc;

	foreach(lc, children)
	{
		RelationStats *part = &parts[nparts];

		part->relid = lfirst_oid(lc);
		read_stats(part);
		if (!part->known)
			continue;
		nparts++;
		stats->rows += part->rows;
		foreign = foreign || get_rel_relkind(part->relid) == RELKIND_FOREIGN_TABLE;
	}
	if (!foreign || stats->rows <= 0)
		return;

	for (AttrNumber attno = 1; attno <= stats->natts; attno++)
	{
		char	   *name = get_attname(stats->relid, attno, true);

		if (name != NULL)
			combine_column(&stats->columns[attno - 1], name, parts, nparts);
	}
	parent = table_open(stats->relid, NoLock);
	spread_over_regions(stats, parent, parts, nparts);
	table_close(parent, NoLock);
	stats->known = true;
}

/*
 * Number of columns of a relation, dropped ones included.
 */
static int
count_attributes(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	int			natts = 0;

	if (HeapTupleIsValid(tuple))
	{
		natts = ((Form_pg_class) GETSTRUCT(tuple))->relnatts;
		ReleaseSysCache(tuple);
	}
	return natts;
}

/*
 * Reads the statistics of stats->relid into the current memory context.
 */
static void
read_stats(RelationStats *stats)
{
	stats->natts = count_attributes(stats->relid);
	stats->columns = palloc0(sizeof(ColumnStats) * Max(stats->natts, 1));
	switch (get_rel_relkind(stats->relid))
	{
		case RELKIND_FOREIGN_TABLE:
			read_foreign(stats);
			break;
		case RELKIND_RELATION:
			read_local(stats);
			break;
		case RELKIND_PARTITIONED_TABLE:
			read_parent(stats);
			break;
		default:
			break;
	}
}

/*
 * Copies statistics, with all that they point to, into the cache.  An entry that
 * only watches never replaces one with numbers.
 */
static RelationStats *
keep_stats(const RelationStats *stats)
{
	bool		found;
	RelationStats *entry = hash_search(stats_cache, &stats->relid, HASH_ENTER, &found);
	MemoryContext old;

	if (found && stats->unread)
		return entry;
	*entry = *stats;
	old = MemoryContextSwitchTo(stats_context);
	if (stats->natts > 0)
	{
		entry->columns = palloc(sizeof(ColumnStats) * stats->natts);
		memcpy(entry->columns, stats->columns, sizeof(ColumnStats) * stats->natts);
	}
	if (stats->nregions > 0)
	{
		entry->shares = palloc(sizeof(float4) * stats->nregions);
		memcpy(entry->shares, stats->shares, sizeof(float4) * stats->nregions);
		entry->regions = palloc(sizeof(Datum) * stats->nregions);
		for (int i = 0; i < stats->nregions; i++)
			entry->regions[i] = datumCopy(stats->regions[i], stats->region_byval,
										  stats->region_len);
	}
	MemoryContextSwitchTo(old);
	return entry;
}

/*
 * residency_relation_stats returns statistics of a relation, NULL if there are none.  The answer is valid until
 * anything opens a relation or looks into a catalog.
 *
 * What reading comes across may empty the cache, so the result is copied into it
 * at once when it is complete.  Partitions get entries too: a change of one
 * must be noticed.
 */
const RelationStats *
residency_relation_stats(Oid relid)
{
	RelationStats *entry = NULL;
	RelationStats fresh = {.relid = relid};
	List	   *watch;
	ListCell   *lc;
	MemoryContext scratch;
	MemoryContext old;

	if (stats_cache != NULL)
		entry = hash_search(stats_cache, &relid, HASH_FIND, NULL);
	if (entry != NULL && !entry->unread)
		return entry->known ? entry : NULL;

	scratch = AllocSetContextCreate(CurrentMemoryContext, "residency statistics read",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(scratch);
	watch = find_inheritance_children(relid, NoLock);
	read_stats(&fresh);

	ensure_cache();
	foreach(lc, watch)
		keep_stats(&(RelationStats) {.relid = lfirst_oid(lc), .unread = true});
	entry = keep_stats(&fresh);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return entry->known ? entry : NULL;
}

/*
 * residency_stats_size tells how many rows the home has counted in a foreign
 * table, and in how many pages they lie there; false if it was never asked.
 */
bool
residency_stats_size(Oid relid, double *rows, int32 *pages)
{
	const RelationStats *stats = residency_relation_stats(relid);

	if (stats == NULL)
		return false;
	*rows = stats->rows;
	*pages = stats->pages;
	return true;
}

/*
 * residency_stats_cache_init makes the cache notice changes; called once, when the
 * library is loaded.
 */
void
residency_stats_cache_init(void)
{
	CacheRegisterRelcacheCallback(forget_stats, (Datum) 0);
}
