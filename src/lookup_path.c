/*
 * lookup_path.c
 *		Offers region lookups to the planner, with their cost.
 *
 * A lookup competes with fetching whole partitions.  Against those it asks fewer regions,
 * moves fewer rows, and sends the keys.  So it loses where there are as many keys as rows.
 *
 * Semijoins from the resident side (key IN (SELECT ...)) are offered by the planner as
 * joins with the distinct rows of the subquery, which is what a lookup wants.
 */
#include "lookup.h"

#include <math.h>

#include "nodes/makefuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"

#include "fdw_plan.h"
#include "regions.h"

/* finding one key in a local index whose pages are in memory */
#define PROBE_COST (50 * cpu_operator_cost)

/* keys before the first row can come out, about */
#define FIRST_KEYS 1000

/* bytes of a key in the text of a request, about */
#define KEY_BYTES 40

static set_rel_pathlist_hook_type next_rel_pathlist = NULL;
static set_join_pathlist_hook_type next_join_pathlist = NULL;

/* number of regions that may hold rows of a key */
static int
count_regions(const LookupTable *table)
{
	return list_length(table->partitions) + (OidIsValid(table->home.relid) ? 1 : 0);
}

/*
 * What it costs to ask the homes of that many keys once: homes are not known before the keys
 * are, so each region counts as often as it is likely to be one.
 */
static double
trips_cost(const LookupTable *table, double keys)
{
	double		asked = 1.0;
	double		cost = 0;
	ListCell   *lc;

	if (OidIsValid(table->directory.relid))
		asked = 1.0 - pow(1.0 - 1.0 / count_regions(table), keys);
	foreach(lc, table->servers)
		cost += residency_trip_cost(lfirst_oid(lc)) * asked;
	return cost;
}

/*
 * Rows that a lookup of that many keys finds.  For a scan rel->rows knows, but it counts the
 * rows that each partition would have if all keys were at home there.
 */
static double
rows_found(PlannerInfo *root, const LookupTable *table, double keys, bool scan)
{
	RelOptInfo *rel = table->rel;
	const TableRule *rule;
	List	   *columns = NIL;
	double		distinct;

	if (table->unique)
		return scan ? Min(rel->rows, keys) : keys * Min(rel->rows / Max(table->tuples, 1.0), 1.0);
	if (scan)
		return clamp_row_est(OidIsValid(table->directory.relid) ? rel->rows / count_regions(table) : rel->rows);
	rule = residency_table_rule(table->relid);
	for (int i = 0; rule != NULL && i < table->nkeys; i++)
		columns = lappend(columns, makeVar(rel->relid, rule->keys[i],
										   get_atttype(table->relid, rule->keys[i]), -1,
										   get_typcollation(get_atttype(table->relid, rule->keys[i])), 0));
	distinct = estimate_num_groups(root, columns, Max(table->tuples, 1.0), NULL, NULL);
	return keys * Min(rel->rows / Max(distinct, 1.0), Max(rel->rows, 1.0));
}

/*
 * Costs of looking up that many keys and joining; startup is what comes before the first
 * row, without what comes before the first key.
 */
static void
lookup_cost(PlannerInfo *root, const LookupTable *table, double keys, bool scan, Cost *startup, Cost *total)
{
	double		away = (double) list_length(table->partitions) / count_regions(table);
	double		crossing = rows_found(root, table, keys, scan) * away;

	*startup = trips_cost(table, Min(keys, FIRST_KEYS));
	*total = trips_cost(table, keys) +
		keys * (2 * PROBE_COST + KEY_BYTES * BORDER_BYTE_COST) +
		crossing * (BORDER_ROW_COST + BORDER_BYTE_COST * table->rel->reltarget->width);
}

/* what rel puts out, with columns of the table in place of row identity columns */
static PathTarget *
own_target(PlannerInfo *root, RelOptInfo *rel, RelOptInfo *table)
{
	PathTarget *target;
	ListCell   *lc;

	if (!bms_is_member(table->relid, root->all_result_relids))
		return rel->reltarget;
	target = copy_pathtarget(rel->reltarget);
	foreach(lc, target->exprs)
	{
		Var		   *var = IsA(lfirst(lc), Var) ? residency_lookup_column(root, table, lfirst(lc)) : NULL;

		if (var != NULL)
			lfirst(lc) = var;
	}
	return target;
}

/* the path as the planner may have it: below an Append if rows are to be written */
static Path *
wrap_path(PlannerInfo *root, RelOptInfo *rel, const LookupTable *table, CustomPath *path)
{
	if (!bms_is_member(table->rel->relid, root->all_result_relids))
		return (Path *) path;
	return (Path *) create_append_path(root, rel, list_make1(path), NIL, path->path.pathkeys, NULL, 0,
									   false, path->path.rows);
}

/* a path without what differs between scan and join */
static CustomPath *
make_path(PlannerInfo *root, RelOptInfo *rel, const LookupTable *table, JoinType jointype,
		  List *clauses)
{
	CustomPath *path = makeNode(CustomPath);
	LookupTable *copy = palloc(sizeof(LookupTable));

	*copy = *table;
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = own_target(root, rel, table->rel);
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->methods = &residency_lookup_path_methods;

	/* never copied, printed or read: the planner passes it on to our own callback */
	path->custom_private = list_make3(copy, (void *) (intptr_t) jointype, clauses);
	return path;
}

/* number of keys that a scan will look up */
static double
estimate_keys(PlannerInfo *root, const LookupTable *table)
{
	double		keys = 1;

	for (int i = 0; i < table->nkeys; i++)
	{
		if (table->keys[i].array)
			keys *= compat_estimate_array_length(root, (Node *) table->keys[i].value);
	}
	return clamp_row_est(keys);
}

/*
 * Keeps a chosen lookup.  The planner throws away all paths of a partitioned table when it
 * computes the query's output, and makes new ones from those of the partitions; so the
 * table stops being one for what follows.  That costs joins and aggregates partition by
 * partition, which a statement about keys does not want.
 */
static void
keep_lookup(RelOptInfo *rel, Path *path)
{
	ListCell   *lc;

	foreach(lc, rel->pathlist)
	{
		Path	   *other = lfirst(lc);

		if (other != path && other->total_cost <= path->total_cost)
			return;
	}
	if (list_member_ptr(rel->pathlist, path))
		rel->part_scheme = NULL;
}

/* set_rel_pathlist_hook: a resident table whose own conditions fix its key */
static void
lookup_rel_pathlist(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	LookupTable table;
	CustomPath *path;
	Path	   *wrapped;
	double		keys;
	Cost		startup;
	Cost		total;

	if (next_rel_pathlist)
		next_rel_pathlist(root, rel, rti, rte);
	if (!residency_enable_lookup || !rte->inh || rel->baserestrictinfo == NIL ||
		IS_DUMMY_REL(rel) || !bms_is_empty(rel->lateral_relids) ||
		!residency_lookup_table(root, rel, NULL, NIL, &table))
		return;

	/* the region is known: nothing is gained by looking for it */
	if (list_length(table.partitions) == 1 && !OidIsValid(table.home.relid))
		return;

	keys = estimate_keys(root, &table);
	lookup_cost(root, &table, keys, true, &startup, &total);
	path = make_path(root, rel, &table, JOIN_INNER, NIL);
	path->path.rows = rows_found(root, &table, keys, true);
	path->path.startup_cost = startup + rel->reltarget->cost.startup;
	path->path.total_cost = total + rel->reltarget->cost.startup +
		path->path.rows * (rel->reltarget->cost.per_tuple + cpu_tuple_cost);
	wrapped = wrap_path(root, rel, &table, path);
	add_path(rel, wrapped);
	keep_lookup(rel, wrapped);
}

/* is there a condition that is checked once, by a node above the join? */
static bool
has_pseudoconstant(List *clauses)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		if (lfirst_node(RestrictInfo, lc)->pseudoconstant)
			return true;
	}
	return false;
}

/* of a join's clauses those that decide what matches, without the filters above it */
static List *
matching_clauses(RelOptInfo *joinrel, JoinType jointype, List *clauses)
{
	List	   *result = NIL;
	ListCell   *lc;

	if (!IS_OUTER_JOIN(jointype))
		return clauses;
	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (!RINFO_IS_PUSHED_DOWN(rinfo, joinrel->relids))
			result = lappend(result, rinfo);
	}
	return result;
}

/* does the join give at least one key column its value? */
static bool
join_gives_key(const LookupTable *table, List *matching)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		if (list_member_ptr(matching, table->keys[i].rinfo))
			return true;
	}
	return false;
}

/* are there expressions of rel's level that a join would have to pass on as they are? */
static bool
has_computed_columns(RelOptInfo *rel)
{
	ListCell   *lc;

	foreach(lc, rel->reltarget->exprs)
	{
		if (!IsA(lfirst(lc), Var))
			return true;
	}
	return false;
}

/* adds the lookup whose keys come from one path of the outer side */
static void
add_join_path(PlannerInfo *root, RelOptInfo *joinrel, const LookupTable *table,
			  JoinType jointype, List *clauses, Path *outer)
{
	CustomPath *path = make_path(root, joinrel, table, jointype, clauses);
	QualCost	qual;
	Cost		startup;
	Cost		total;

	lookup_cost(root, table, outer->rows, false, &startup, &total);
	cost_qual_eval(&qual, clauses, root);
	path->path.rows = joinrel->rows;
	path->path.startup_cost = outer->startup_cost + startup + qual.startup +
		joinrel->reltarget->cost.startup;
	path->path.total_cost = outer->total_cost + total + qual.startup +
		joinrel->reltarget->cost.startup +
		outer->rows * (qual.per_tuple + cpu_tuple_cost) +
		joinrel->rows * (joinrel->reltarget->cost.per_tuple + cpu_tuple_cost);
	path->path.pathkeys = build_join_pathkeys(root, joinrel, jointype, outer->pathkeys);
	path->custom_paths = list_make1(outer);
	add_path(joinrel, wrap_path(root, joinrel, table, path));
}

/* set_join_pathlist_hook: a join with a resident table on its key */
static void
lookup_join_pathlist(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outerrel,
					 RelOptInfo *innerrel, JoinType jointype, JoinPathExtraData *extra)
{
	LookupTable table;
	List	   *matching;
	Path	   *outer = outerrel->cheapest_total_path;

	if (next_join_pathlist)
		next_join_pathlist(root, joinrel, outerrel, innerrel, jointype, extra);
	if (!residency_enable_lookup || innerrel->reloptkind != RELOPT_BASEREL ||
		joinrel->reloptkind != RELOPT_JOINREL ||
		!bms_is_empty(joinrel->lateral_relids) || outer->param_info != NULL ||
		extra->restrictlist == NIL)
		return;
	switch (jointype)
	{
		case JOIN_INNER:
		case JOIN_LEFT:
		case JOIN_SEMI:
		case JOIN_ANTI:
		case JOIN_UNIQUE_OUTER:
			break;
		default:
			return;
	}
	matching = matching_clauses(joinrel, jointype, extra->restrictlist);
	if (!residency_lookup_table(root, innerrel, outerrel->relids, matching, &table) ||
		!join_gives_key(&table, matching) ||
		has_pseudoconstant(extra->restrictlist) ||
		has_pseudoconstant(innerrel->baserestrictinfo) || has_computed_columns(innerrel))
		return;
	if (jointype == JOIN_UNIQUE_OUTER)
	{
		outer = (Path *) create_unique_path(root, outerrel, outer, extra->sjinfo);
		if (outer == NULL)
			return;
		jointype = JOIN_INNER;
	}
	add_join_path(root, joinrel, &table, jointype, extra->restrictlist, outer);
}

/* installs the planner hooks and the callbacks; called once, when the library is loaded */
void
residency_lookup_init(void)
{
	next_rel_pathlist = set_rel_pathlist_hook;
	set_rel_pathlist_hook = lookup_rel_pathlist;
	next_join_pathlist = set_join_pathlist_hook;
	set_join_pathlist_hook = lookup_join_pathlist;
	RegisterCustomScanMethods(&residency_lookup_scan_methods);
	residency_lookup_send_init();
}
