/*
 * lookup_plan.c
 *		Turns a lookup path into a plan node with its SQL.
 */
#include "lookup.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "catalog/pg_collation.h"

#include "fdw_plan.h"
#include "regions.h"

/* rows of a batch, and of the first one if the query may stop early */
#define BATCH_ROWS 10000
#define FIRST_ROWS 1000
#define MIN_BATCH_ROWS 100

/* clauses of a plan, by where they are checked */
typedef struct LookupClauses
{
	List	   *shipped;		/* at the homes */
	List	   *join;			/* decide what matches */
	List	   *filter;			/* above the join */
} LookupClauses;

/* sorts out the table's own conditions; "checked here" go to *here */
static void
divide_own(PlannerInfo *root, const LookupTable *table, List *rinfos, List **shipped, List **here)
{
	ListCell   *lc;

	foreach(lc, rinfos)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->pseudoconstant || residency_lookup_is_key(table, rinfo))
			continue;
		if (restriction_is_securely_promotable(rinfo, table->rel) &&
			residency_is_shippable(root, table->rel, rinfo->clause))
			*shipped = lappend(*shipped, rinfo->clause);
		else
			*here = lappend(*here, rinfo->clause);
	}
}

/*
 * Sorts out all conditions.  Own conditions of an outer join's inner side decide about
 * matches; policies of row security come first among those.
 */
static void
divide_clauses(PlannerInfo *root, const LookupTable *table, RelOptInfo *rel, JoinType jointype,
			   List *own, List *clauses, LookupClauses *out)
{
	List	   *match = NIL;
	ListCell   *lc;

	memset(out, 0, sizeof(*out));
	divide_own(root, table, own, &out->shipped, &match);
	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (residency_lookup_is_key(table, rinfo))
			continue;
		if (IS_OUTER_JOIN(jointype) && RINFO_IS_PUSHED_DOWN(rinfo, rel->relids))
			out->filter = lappend(out->filter, rinfo->clause);
		else
			match = lappend(match, rinfo->clause);
	}
	/* rows that a direct write returns have passed already, and must pass a filter unseen */
	if (jointype == JOIN_INNER && !bms_is_member(table->rel->relid, root->all_result_relids))
		out->filter = list_concat(match, out->filter);
	else
		out->join = match;
}

/* adds to the scan tuple the columns of rel that the expressions use; returns the list */
static List *
add_columns(PlannerInfo *root, List *columns, List *exprs, RelOptInfo *rel)
{
	List	   *vars = pull_var_clause((Node *) exprs, PVC_RECURSE_AGGREGATES |
									   PVC_RECURSE_WINDOWFUNCS | PVC_RECURSE_PLACEHOLDERS);
	ListCell   *lc;

	foreach(lc, vars)
	{
		Var		   *var = residency_lookup_column(root, rel, lfirst_node(Var, lc));

		if (var != NULL)
			columns = list_append_unique(columns, var);
	}
	return columns;
}

/* adds one column of the table by number, unless it is there */
static List *
add_column(List *columns, const LookupTable *table, AttrNumber attno)
{
	Oid			type;
	int32		typmod;
	Oid			collation;
	ListCell   *lc;

	foreach(lc, columns)
	{
		if (lfirst_node(Var, lc)->varattno == attno)
			return columns;
	}
	get_atttypetypmodcoll(table->relid, attno, &type, &typmod, &collation);
	return lappend(columns, makeVar(table->rel->relid, attno, type, typmod, collation, 0));
}

/* adds all columns if one of those there is the whole row, which is made of them here */
static List *
add_whole_row(List *columns, const LookupTable *table)
{
	bool		whole = false;
	ListCell   *lc;

	foreach(lc, columns)
		whole = whole || lfirst_node(Var, lc)->varattno == InvalidAttrNumber;
	for (AttrNumber attno = 1; whole && attno <= table->rel->max_attr; attno++)
	{
		if (get_attname(table->relid, attno, true) != NULL && OidIsValid(get_atttype(table->relid, attno)))
			columns = add_column(columns, table, attno);
	}
	return columns;
}

/* the table's key columns, in the order of table->keys */
static void
key_columns(const LookupTable *table, AttrNumber *keys)
{
	const TableRule *rule = residency_table_rule(table->relid);

	if (rule == NULL || rule->nkeys != table->nkeys)
		elog(ERROR, "rule of relation %u changed while a query was planned", table->relid);
	memcpy(keys, rule->keys, sizeof(AttrNumber) * table->nkeys);
}

/* attnums of the resident columns in the partition stored here; of no use if it is pruned */
static List *
stored_columns(PlannerInfo *root, const LookupTable *table, List *columns)
{
	RelOptInfo *rel = table->rel;
	AppendRelInfo *appinfo = NULL;
	List	   *result = NIL;
	ListCell   *lc;

	for (int i = 0; i < rel->nparts && OidIsValid(table->home.relid); i++)
	{
		RelOptInfo *child = rel->part_rels[i];

		if (child != NULL && planner_rt_fetch(child->relid, root)->relid == table->home.relid)
			appinfo = root->append_rel_array[child->relid];
	}
	foreach(lc, columns)
	{
		AttrNumber	attno = lfirst_node(Var, lc)->varattno;

		result = lappend_int(result, appinfo == NULL || attno <= 0 ? attno :
							 list_nth_node(Var, appinfo->translated_vars, attno - 1)->varattno);
	}
	return result;
}

/*
 * Rows of a batch, so that about as many bytes come back as in one batch of a scan; the
 * first one is small if the query may stop after a few rows.
 */
static List *
batch_sizes(PlannerInfo *root, const LookupTable *table, const CustomPath *path, JoinType jointype,
			int nouter)
{
	double		width = Max(table->rel->reltarget->width, 1);
	double		rows = Max(residency_fetch_bytes * 1024.0 / width, MIN_BATCH_ROWS);
	int			batch = (int) Min(rows, BATCH_ROWS);
	int			first = root->tuple_fraction > 0 || root->limit_tuples > 0 ? Min(batch, FIRST_ROWS) : batch;

	return lappend_int(lappend_int(lappend_int(list_make5_int(jointype, nouter, first, batch,
															  table->directory_region),
											   CMD_SELECT), false), false);
}

/* the lists of custom_private that are about keys, and all others in their order */
static List *
make_private(PlannerInfo *root, const LookupTable *table, const AttrNumber *keys, List *numbers,
			 List *columns, List *fetched, const char *sql, const LookupWrite *write)
{
	List	   *operators = NIL;
	List	   *types = NIL;
	List	   *collations = NIL;
	List	   *arrays = NIL;
	List	   *names = NIL;
	List	   *resident = NIL;
	List	   *oids = NIL;
	List	   *private;
	ListCell   *lc;

	for (int i = 0; i < table->nkeys; i++)
	{
		operators = lappend_oid(operators, table->keys[i].opno);
		types = lappend_oid(types, table->keys[i].type);
		collations = lappend_oid(collations, table->keys[i].collation);
		arrays = lappend_int(arrays, table->keys[i].array);
		names = lappend(names, makeString(get_attname(table->relid, keys[i], false)));
	}
	foreach(lc, columns)
		resident = lappend_int(resident, lfirst_node(Var, lc)->varattno);
	oids = list_make5_oid(table->relid, table->directory.relid, table->directory.indexid,
						  table->home.relid, table->home.indexid);
	oids = lappend_oid(oids, table->userid);

	private = list_make5(numbers, oids, list_copy(table->partitions), list_copy(table->servers),
						 operators);
	private = list_concat(private, list_make5(types, collations, arrays,
											  table->directory.columns, table->home.columns));
	private = list_concat(private, list_make5(resident, stored_columns(root, table, columns),
											  fetched, names, makeString(pstrdup(sql))));
	return list_concat(private, list_make3(makeString(pstrdup(write->sql ? write->sql : "")),
										   makeString(pstrdup(write->missing_sql ? write->missing_sql : "")),
										   write->returned));
}

/* the output of the outer plan, then these columns, as the scan tuple */
static List *
scan_tuple(const LookupTable *table, List *custom_plans, List *columns, int *nouter)
{
	List	   *result = NIL;
	ListCell   *lc;

	*nouter = 0;
	if (custom_plans != NIL)
	{
		foreach(lc, ((Plan *) linitial(custom_plans))->targetlist)
			result = lappend(result, makeTargetEntry(copyObject(lfirst_node(TargetEntry, lc)->expr),
													 ++(*nouter), NULL, false));
	}
	foreach(lc, columns)
	{
		Var		   *var = lfirst_node(Var, lc);

		result = lappend(result, makeTargetEntry((Expr *) copyObject(var), list_length(result) + 1,
												 var->varattno == InvalidAttrNumber ? pstrdup("wholerow") :
												 get_attname(table->relid, var->varattno, false), false));
	}
	return result;
}

/* are rows of the table written or locked? then one may have to be checked again here */
static bool
is_checked_again(PlannerInfo *root, const LookupTable *table)
{
	return bms_is_member(table->rel->relid, root->all_result_relids) || root->rowMarks != NIL;
}

/*
 * Columns of the scan tuple.  First those that cross, of which *fetched lists the positions of
 * those in the text and *attnos their numbers; then those that only conditions checked here, for
 * rows stored here, use.  The list of output columns may be set after us (and is empty
 * then), so all that the path and its relation promise are there.
 */
static List *
choose_columns(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, const LookupTable *table,
			   const AttrNumber *keys, List *tlist, LookupClauses *divided, List **fetched, List **attnos)
{
	List	   *columns;
	ListCell   *lc;

	*fetched = *attnos = NIL;
	columns = add_columns(root, NIL, tlist, table->rel);
	columns = add_columns(root, columns, path->path.pathtarget->exprs, table->rel);
	columns = add_columns(root, columns, rel->reltarget->exprs, table->rel);
	columns = add_columns(root, columns, divided->join, table->rel);
	columns = add_columns(root, columns, divided->filter, table->rel);
	columns = add_whole_row(columns, table);
	foreach(lc, columns)
	{
		AttrNumber	attno = lfirst_node(Var, lc)->varattno;

		if (attno <= 0 && attno != SelfItemPointerAttributeNumber)
			continue;
		*fetched = lappend_int(*fetched, foreach_current_index(lc));
		*attnos = lappend_int(*attnos, attno);
	}
	columns = add_columns(root, columns, divided->shipped, table->rel);
	for (int i = 0; i < table->nkeys && is_checked_again(root, table); i++)
		columns = add_column(columns, table, keys[i]);

	/* an empty list would mean the table's own row */
	if (columns == NIL)
		columns = add_column(NIL, table, keys[0]);
	return columns;
}

/* PlanCustomPath */
static Plan *
plan_lookup(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist, List *clauses,
			List *custom_plans)
{
	LookupTable *table = linitial(path->custom_private);
	JoinType	jointype = (JoinType) (intptr_t) lsecond(path->custom_private);
	bool		joins = custom_plans != NIL;
	List	   *own = joins ? table->rel->baserestrictinfo : clauses;
	List	   *join_clauses = joins ? lthird(path->custom_private) : NIL;
	CustomScan *scan = makeNode(CustomScan);
	AttrNumber	keys[INDEX_MAX_KEYS];
	LookupClauses divided;
	LookupWrite write;
	List	   *columns;
	List	   *attnos;
	List	   *fetched;
	List	   *params;
	List	   *values = NIL;
	int			nouter;
	char	   *sql;

	key_columns(table, keys);
	divide_clauses(root, table, rel, jointype, own, join_clauses, &divided);
	columns = choose_columns(root, rel, path, table, keys, tlist, &divided, &fetched, &attnos);
	sql = residency_lookup_select(root, table, keys, attnos, divided.shipped,
								  residency_locking_clause(root, table->rel), &params);
	residency_lookup_plan_write(root, rel, table, keys, jointype, own, join_clauses, &write);
	for (int i = 0; i < table->nkeys; i++)
		values = lappend(values, table->keys[i].value);

	scan->custom_scan_tlist = scan_tuple(table, custom_plans, columns, &nouter);
	scan->scan.plan.targetlist = tlist;
	scan->scan.plan.qual = divided.filter;
	scan->scan.scanrelid = joins ? 0 : rel->relid;
	scan->flags = path->flags;
	scan->custom_plans = custom_plans;
	scan->custom_exprs = list_make5(values, params, divided.shipped, divided.join, write.params);
	scan->custom_exprs = lappend(scan->custom_exprs, write.row_params);
	scan->custom_private = make_private(root, table, keys,
										batch_sizes(root, table, path, jointype, nouter),
										columns, fetched, sql, &write);
	scan->custom_relids = rel->relids;
	scan->methods = &residency_lookup_scan_methods;

	/* the query does not mention the directory, but its plan depends on it */
	if (OidIsValid(table->directory.relid))
		root->glob->relationOids = lappend_oid(root->glob->relationOids, table->directory.relid);
	return &scan->scan.plan;
}

const CustomPathMethods residency_lookup_path_methods = {
	.CustomName = "Region Lookup",
	.PlanCustomPath = plan_lookup
};

const CustomScanMethods residency_lookup_scan_methods = {
	.CustomName = "Region Lookup",
	.CreateCustomScanState = residency_lookup_create_state
};
