/*
 * fdw_stats_planner.c
 *		Feeds the planner with the numbers that homes have told.
 *
 * The planner reads statistics from pg_statistic, which for a foreign partition
 * is empty (see fdw_stats.c), and for the partitioned parent describes the local
 * partition only.  Our hooks put tuples of the same shape in their place.  Such a
 * tuple holds no value of a row: names of regions are the only values in it.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_stats.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/selfuncs.h"
#include "utils/typcache.h"

static get_relation_stats_hook_type previous_stats_hook = NULL;
static get_attavgwidth_hook_type previous_width_hook = NULL;

/*
 * Fills in the slot that tells how common each value of the partition column is.
 */
static void
add_region_slot(const RelationStats *stats, Oid type, Oid collation, Datum *values, bool *nulls)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);
	int			n = stats->nregions;
	Datum	   *shares = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		shares[i] = Float4GetDatum(stats->shares[i]);
	values[Anum_pg_statistic_stakind1 - 1] = Int16GetDatum(STATISTIC_KIND_MCV);
	values[Anum_pg_statistic_staop1 - 1] = ObjectIdGetDatum(entry->eq_opr);
	values[Anum_pg_statistic_stacoll1 - 1] = ObjectIdGetDatum(collation);
	values[Anum_pg_statistic_stanumbers1 - 1] =
		PointerGetDatum(construct_array(shares, n, FLOAT4OID, sizeof(float4), true, TYPALIGN_INT));
	nulls[Anum_pg_statistic_stanumbers1 - 1] = false;
	values[Anum_pg_statistic_stavalues1 - 1] =
		PointerGetDatum(construct_array(stats->regions, n, type, entry->typlen,
										entry->typbyval, entry->typalign));
	nulls[Anum_pg_statistic_stavalues1 - 1] = false;
}

/*
 * A tuple shaped like pg_statistic's about one column, NULL if nothing is known.
 */
static HeapTuple
make_tuple(Oid relid, AttrNumber attno, bool inherited)
{
	Relation	catalog = table_open(StatisticRelationId, AccessShareLock);
	const RelationStats *cached = residency_relation_stats(relid);
	RelationStats stats;
	ColumnStats column;
	Datum		values[Natts_pg_statistic];
	bool		nulls[Natts_pg_statistic];
	HeapTuple	tuple = NULL;

	if (cached != NULL && attno <= cached->natts && cached->columns[attno - 1].known)
	{
		bool		spread = cached->region_attno == attno && cached->nregions > 0;

		/* copied: what follows looks into catalogs */
		stats = *cached;
		column = cached->columns[attno - 1];
		if (spread)
		{
			stats.regions = palloc(sizeof(Datum) * stats.nregions);
			stats.shares = palloc(sizeof(float4) * stats.nregions);
			memcpy(stats.shares, cached->shares, sizeof(float4) * stats.nregions);
			for (int i = 0; i < stats.nregions; i++)
				stats.regions[i] = datumCopy(cached->regions[i], stats.region_byval,
											 stats.region_len);
		}

		for (int i = 0; i < Natts_pg_statistic; i++)
		{
			values[i] = (Datum) 0;
			nulls[i] = i >= Anum_pg_statistic_stanumbers1 - 1;
		}
		values[Anum_pg_statistic_starelid - 1] = ObjectIdGetDatum(relid);
		values[Anum_pg_statistic_staattnum - 1] = Int16GetDatum(attno);
		values[Anum_pg_statistic_stainherit - 1] = BoolGetDatum(inherited);
		values[Anum_pg_statistic_stanullfrac - 1] = Float4GetDatum(column.null_fraction);
		values[Anum_pg_statistic_stawidth - 1] = Int32GetDatum(column.width);
		values[Anum_pg_statistic_stadistinct - 1] = Float4GetDatum(column.distinct);
		if (spread)
		{
			Oid			type;
			int32		typmod;
			Oid			collation;

			get_atttypetypmodcoll(relid, attno, &type, &typmod, &collation);
			add_region_slot(&stats, type, collation, values, nulls);
		}
		tuple = heap_form_tuple(RelationGetDescr(catalog), values, nulls);
	}
	table_close(catalog, AccessShareLock);
	return tuple;
}

/*
 * get_relation_stats_hook: our numbers for foreign tables and for parents of such.
 */
static bool
give_stats(PlannerInfo *root, RangeTblEntry *rte, AttrNumber attno, VariableStatData *vardata)
{
	HeapTuple	tuple;

	if (previous_stats_hook && previous_stats_hook(root, rte, attno, vardata))
		return true;
	if (rte->rtekind != RTE_RELATION || attno <= 0)
		return false;
	if (rte->relkind != RELKIND_FOREIGN_TABLE &&
		!(rte->relkind == RELKIND_PARTITIONED_TABLE && rte->inh))
		return false;
	tuple = make_tuple(rte->relid, attno, rte->inh);
	if (tuple == NULL)
		return false;
	vardata->statsTuple = tuple;
	vardata->freefunc = heap_freetuple;
	/* nothing in it that the client might not see */
	vardata->acl_ok = true;
	return true;
}

/*
 * get_attavgwidth_hook: width of a column, 0 for "not known here".
 */
static int32
give_width(Oid relid, AttrNumber attno)
{
	char		kind = get_rel_relkind(relid);

	if (attno > 0 && (kind == RELKIND_FOREIGN_TABLE || kind == RELKIND_PARTITIONED_TABLE))
	{
		const RelationStats *stats = residency_relation_stats(relid);

		if (stats != NULL && attno <= stats->natts && stats->columns[attno - 1].known &&
			stats->columns[attno - 1].width > 0)
			return stats->columns[attno - 1].width;
	}
	return previous_width_hook ? previous_width_hook(relid, attno) : 0;
}

/*
 * residency_fdw_stats_init installs the planner hooks; called once, when the
 * library is loaded.
 */
void
residency_fdw_stats_init(void)
{
	previous_stats_hook = get_relation_stats_hook;
	get_relation_stats_hook = give_stats;
	previous_width_hook = get_attavgwidth_hook;
	get_attavgwidth_hook = give_width;
	residency_stats_cache_init();
}
