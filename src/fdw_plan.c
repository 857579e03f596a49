/*
 * fdw_plan.c
 *		Planning a scan of a foreign table.
 *
 * For each table: which conditions go to its home, how many rows and bytes cross,
 * what that costs; then paths in no order, in the orders that the query can use,
 * and with join clauses as parameters; then the plan with its SQL.
 *
 * A parameterized path asks the home once per outer row.  It is the right choice
 * for one outer row, and for a few if the table is large; its cost makes the planner
 * fetch the table once otherwise.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "regions.h"

#include <math.h>

#include "access/stratnum.h"
#include "access/sysattr.h"
#include "nodes/makefuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/planmain.h"
#include "optimizer/restrictinfo.h"
#include "parser/parsetree.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"

/*
 * Whether a condition says "column = something that is fixed during the scan".
 */
static bool
fixes_column(PlannerInfo *root, RelOptInfo *rel, Expr *cond, AttrNumber attno)
{
	OpExpr	   *op = (OpExpr *) cond;

	if (!IsA(cond, OpExpr) || list_length(op->args) != 2 || get_oprrest(op->opno) != F_EQSEL)
		return false;
	for (int side = 0; side < 2; side++)
	{
		Expr	   *column = list_nth(op->args, side);
		Expr	   *value = list_nth(op->args, 1 - side);

		while (IsA(column, RelabelType))
			column = ((RelabelType *) column)->arg;
		if (IsA(column, Var) && ((Var *) column)->varno == rel->relid &&
			((Var *) column)->varattno == attno &&
			(IsA(value, Const) || residency_is_gateway_value(root, rel, value)))
			return true;
	}
	return false;
}

/*
 * Whether the conditions (RestrictInfos or expressions) fix every column of the
 * table's key, and the key is unique, so that the home has one row at most.
 */
static bool
fixes_key(PlannerInfo *root, RelOptInfo *rel, List *conds)
{
	Oid			relid = planner_rt_fetch(rel->relid, root)->relid;
	const TableRule *rule = residency_partition_rule(relid);
	Oid			parent;
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];

	if (rule == NULL || rule->nkeys == 0 || !rule->unique)
		return false;

	/* copied, and attnums of the parent turned into ours: they may differ */
	parent = rule->relid;
	nkeys = rule->nkeys;
	memcpy(keys, rule->keys, sizeof(AttrNumber) * nkeys);

	for (int i = 0; i < nkeys; i++)
	{
		AttrNumber	attno = get_attnum(relid, get_attname(parent, keys[i], false));
		bool		fixed = false;
		ListCell   *lc;

		foreach(lc, conds)
		{
			Node	   *cond = lfirst(lc);

			if (IsA(cond, RestrictInfo))
				cond = (Node *) ((RestrictInfo *) cond)->clause;
			fixed = fixed || fixes_column(root, rel, (Expr *) cond, attno);
		}
		if (!fixed)
			return false;
	}
	return true;
}

/*
 * residency_border_cost estimates the cost of fetching that many rows: startup is the round trip and what the home
 * must do before its first row.
 */
void
residency_border_cost(RelOptInfo *rel, const FdwRel *fdw, double rows, bool sorted,
					  double sort_rows, Cost *startup, Cost *total)
{
	Cost		per_row = BORDER_ROW_COST + BORDER_BYTE_COST * fdw->width + cpu_tuple_cost;
	QualCost	local;

	*startup = residency_trip_cost(fdw->serverid);
	if (sorted)
		*startup += cpu_operator_cost * sort_rows * log2(Max(sort_rows, 2.0));

	cost_qual_eval(&local, fdw->local_conds, NULL);
	*startup += local.startup;
	*total = *startup + rows * (per_row + local.per_tuple);

	/* what the gateway computes from each row */
	*startup += rel->reltarget->cost.startup;
	*total += rel->reltarget->cost.startup + rel->reltarget->cost.per_tuple * rows;
}

/*
 * GetForeignRelSize: splits the conditions and estimates rows and width.
 */
static void
residencyGetForeignRelSize(PlannerInfo *root, RelOptInfo *baserel, Oid foreigntableid)
{
	FdwRel	   *fdw = palloc0(sizeof(FdwRel));
	double		known;
	int32		pages;
	ListCell   *lc;

	baserel->fdw_private = fdw;
	fdw->serverid = baserel->serverid;
	fdw->userid = baserel->userid;

	foreach(lc, baserel->baserestrictinfo)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		/* a condition without columns is checked before the scan starts */
		if (rinfo->pseudoconstant)
			continue;

		/*
		 * Security policies are checked before conditions of the client that
		 * could leak what they see; the home would not keep that order.
		 */
		if (restriction_is_securely_promotable(rinfo, baserel) &&
			residency_is_shippable(root, baserel, rinfo->clause))
			fdw->remote_conds = lappend(fdw->remote_conds, rinfo);
		else
			fdw->local_conds = lappend(fdw->local_conds, rinfo);
	}

	pull_varattnos((Node *) baserel->reltarget->exprs, baserel->relid, &fdw->attrs_used);
	foreach(lc, fdw->local_conds)
		pull_varattnos((Node *) lfirst_node(RestrictInfo, lc)->clause, baserel->relid,
					   &fdw->attrs_used);

	if (residency_stats_size(foreigntableid, &known, &pages))
		baserel->tuples = known;
	else if (baserel->tuples < 0)
		baserel->tuples = UNKNOWN_ROWS;

	set_baserel_size_estimates(root, baserel);
	fdw->width = baserel->reltarget->width;
	fdw->at_most_one = fixes_key(root, baserel, fdw->remote_conds);
	if (fdw->at_most_one)
		baserel->rows = fdw->retrieved_rows = 1;
	else
		fdw->retrieved_rows =
			clamp_row_est(baserel->tuples *
						  clauselist_selectivity(root, fdw->remote_conds, baserel->relid,
												 JOIN_INNER, NULL));
	fdw->rows = baserel->rows;
	residency_border_cost(baserel, fdw, fdw->retrieved_rows, false, 0,
				&fdw->startup_cost, &fdw->total_cost);
}

/*
 * residency_is_foreign tells whether a base relation is a foreign table of ours.
 */
bool
residency_is_foreign(const RelOptInfo *rel)
{
	return rel->fdwroutine != NULL && rel->fdw_private != NULL && IS_SIMPLE_REL(rel) &&
		residency_may_use_private(rel);
}

/*
 * residency_may_use_private tells whether a relation's place for a wrapper's notes is free for ours: it belongs to
 * no other wrapper.
 */
bool
residency_may_use_private(const RelOptInfo *rel)
{
	return rel->fdwroutine == NULL ||
		rel->fdwroutine->GetForeignRelSize == residencyGetForeignRelSize;
}

/*
 * residency_sort_member finds an expression of rel that the home can sort by for
 * this key, NULL if there is none.
 */
EquivalenceMember *
residency_sort_member(PlannerInfo *root, RelOptInfo *rel, PathKey *pathkey)
{
	EquivalenceMember *member;

	if (pathkey->pk_eclass->ec_has_volatile)
		return NULL;
	compat_foreach_ec_member(member, pathkey->pk_eclass, rel->relids)
	{
		if (!bms_is_empty(member->em_relids) &&
			bms_is_subset(member->em_relids, rel->relids) &&
			residency_is_sort_shippable(root, rel, member->em_expr, pathkey->pk_opfamily))
			return member;
	}
	return NULL;
}

/*
 * residency_can_sort tells whether the home can sort by all of these keys.
 */
bool
residency_can_sort(PlannerInfo *root, RelOptInfo *rel, List *pathkeys)
{
	ListCell   *lc;

	foreach(lc, pathkeys)
	{
		if (residency_sort_member(root, rel, lfirst_node(PathKey, lc)) == NULL)
			return false;
	}
	return true;
}

/*
 * Adds the path that asks for rows in the order of pathkeys (NIL: none), with
 * LIMIT if the query's can be applied at the home.
 */
static void
add_scan_path(PlannerInfo *root, RelOptInfo *baserel, List *pathkeys)
{
	FdwRel	   *fdw = (FdwRel *) baserel->fdw_private;
	double		rows = baserel->rows;
	double		retrieved = fdw->retrieved_rows;
	bool		limited = fdw->local_conds == NIL &&
		residency_limit_applies(root, baserel, pathkeys);
	Cost		startup;
	Cost		total;

	if (limited)
	{
		retrieved = residency_limit_rows(root, retrieved, true);
		rows = Min(rows, retrieved);
	}
	residency_border_cost(baserel, fdw, retrieved, pathkeys != NIL, fdw->retrieved_rows,
				&startup, &total);
	add_path(baserel, (Path *)
			 compat_create_foreignscan_path(root, baserel, NULL, rows, startup, total, pathkeys,
											baserel->lateral_relids, NULL,
											list_make2(makeBoolean(limited), makeBoolean(false))));
}

/*
 * Adds paths in the orders that the query, or a merge join of it, can use.
 */
static void
add_sorted_paths(PlannerInfo *root, RelOptInfo *baserel)
{
	int			ec_index = -1;

	if (root->query_pathkeys != NIL && residency_can_sort(root, baserel, root->query_pathkeys))
		add_scan_path(root, baserel, list_copy(root->query_pathkeys));

	if (!baserel->has_eclass_joins && baserel->joininfo == NIL)
		return;
	while ((ec_index = bms_next_member(baserel->eclass_indexes, ec_index)) >= 0)
	{
		EquivalenceClass *ec = list_nth(root->eq_classes, ec_index);
		PathKey    *pathkey;

		if (!eclass_useful_for_merging(root, ec, baserel))
			continue;
		pathkey = make_canonical_pathkey(root, ec, linitial_oid(ec->ec_opfamilies),
										 COMPAT_ASCENDING, false);
		if (root->query_pathkeys != NIL && linitial(root->query_pathkeys) == pathkey)
			continue;
		if (residency_can_sort(root, baserel, list_make1(pathkey)))
			add_scan_path(root, baserel, list_make1(pathkey));
	}
}

/* which member of an equivalence class generate_implied_equalities works on */
typedef struct ColumnSearch
{
	Expr	   *current;		/* this column; NULL: pick the next one not done */
	List	   *done;
} ColumnSearch;

/*
 * Callback: whether this member of an equivalence class is the column that is
 * being looked for.
 */
static bool
is_current_column(PlannerInfo *root, RelOptInfo *rel, EquivalenceClass *ec,
				  EquivalenceMember *member, void *arg)
{
	ColumnSearch *search = (ColumnSearch *) arg;

	if (search->current != NULL)
		return equal(member->em_expr, search->current);
	if (list_member(search->done, member->em_expr))
		return false;
	search->current = member->em_expr;
	return true;
}

/*
 * Adds the set of outer relations of a join clause that the home could check,
 * if it is a new one.
 */
static List *
add_outer_set(PlannerInfo *root, RelOptInfo *baserel, RestrictInfo *rinfo, List *sets)
{
	Relids		outer;
	ListCell   *lc;

	if (!join_clause_is_movable_to(rinfo, baserel) ||
		!residency_is_shippable(root, baserel, rinfo->clause))
		return sets;
	outer = bms_union(rinfo->clause_relids, baserel->lateral_relids);
	outer = bms_del_member(outer, baserel->relid);
	if (bms_is_empty(outer))
		return sets;
	foreach(lc, sets)
	{
		if (bms_equal((Relids) lfirst(lc), outer))
			return sets;
	}
	return lappend(sets, outer);
}

/*
 * The sets of outer relations by whose columns the home could be asked.
 */
static List *
outer_sets(PlannerInfo *root, RelOptInfo *baserel)
{
	List	   *sets = NIL;
	ListCell   *lc;

	foreach(lc, baserel->joininfo)
		sets = add_outer_set(root, baserel, lfirst_node(RestrictInfo, lc), sets);

	if (baserel->has_eclass_joins)
	{
		ColumnSearch search = {NULL, NIL};

		for (;;)
		{
			List	   *clauses;

			search.current = NULL;
			clauses = generate_implied_equalities_for_column(root, baserel, is_current_column,
															 &search, baserel->lateral_referencers);
			if (search.current == NULL)
				break;
			foreach(lc, clauses)
				sets = add_outer_set(root, baserel, lfirst_node(RestrictInfo, lc), sets);
			search.done = lappend(search.done, search.current);
		}
	}
	return sets;
}

/*
 * Whether the outer side is one row at most: a table with all columns of a unique
 * index fixed.
 */
static bool
is_one_row(PlannerInfo *root, Relids outer)
{
	int			relid;
	RelOptInfo *rel;

	if (!bms_get_singleton_member(outer, &relid))
		return false;
	rel = root->simple_rel_array[relid];
	return rel != NULL && rel->rtekind == RTE_RELATION &&
		relation_has_unique_index_for(root, rel, NIL, NIL, NIL);
}

/*
 * Adds a path for each set of outer relations, for nested loops.
 */
static void
add_parameterized_paths(PlannerInfo *root, RelOptInfo *baserel)
{
	FdwRel	   *fdw = (FdwRel *) baserel->fdw_private;
	ListCell   *lc;

	foreach(lc, outer_sets(root, baserel))
	{
		ParamPathInfo *info = get_baserel_parampathinfo(root, baserel, (Relids) lfirst(lc));
		List	   *shipped = list_copy(fdw->remote_conds);
		double		retrieved;
		double		rows = info->ppi_rows;
		ListCell   *clause;
		Cost		startup;
		Cost		total;

		foreach(clause, info->ppi_clauses)
		{
			RestrictInfo *rinfo = lfirst_node(RestrictInfo, clause);

			if (residency_is_shippable(root, baserel, rinfo->clause))
				shipped = lappend(shipped, rinfo);
		}
		retrieved = clamp_row_est(baserel->tuples *
								  clauselist_selectivity(root, shipped, baserel->relid,
														 JOIN_INNER, NULL));
		if (fixes_key(root, baserel, shipped))
			rows = retrieved = 1;
		residency_border_cost(baserel, fdw, retrieved, false, 0, &startup, &total);
		if (!is_one_row(root, info->ppi_req_outer))
		{
			startup += (DOUBTED_ROUND_TRIPS - 1) * residency_trip_cost(fdw->serverid);
			total += (DOUBTED_ROUND_TRIPS - 1) * residency_trip_cost(fdw->serverid);
		}
		add_path(baserel, (Path *)
				 compat_create_foreignscan_path(root, baserel, NULL, rows, startup, total, NIL,
												info->ppi_req_outer, NULL,
												list_make2(makeBoolean(false), makeBoolean(false))));
	}
}

/*
 * GetForeignPaths: all ways to scan the table.
 */
static void
residencyGetForeignPaths(PlannerInfo *root, RelOptInfo *baserel, Oid foreigntableid)
{
	add_scan_path(root, baserel, NIL);
	add_sorted_paths(root, baserel);
	add_parameterized_paths(root, baserel);
}

/*
 * Divides the clauses of a chosen path into those that the home checks and those
 * checked here, as bare expressions.
 */
static void
divide_clauses(PlannerInfo *root, RelOptInfo *rel, FdwRel *fdw, List *clauses,
			   List **remote, List **local)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->pseudoconstant)
			continue;
		if (list_member_ptr(fdw->remote_conds, rinfo))
			*remote = lappend(*remote, rinfo->clause);
		else if (list_member_ptr(fdw->local_conds, rinfo))
			*local = lappend(*local, rinfo->clause);
		else if (restriction_is_securely_promotable(rinfo, rel) &&
				 residency_is_shippable(root, rel, rinfo->clause))
			*remote = lappend(*remote, rinfo->clause);
		else
			*local = lappend(*local, rinfo->clause);
	}
}

/*
 * Whether the answer is known to be so small that a cursor would only cost.
 */
static bool
is_small(PlannerInfo *root, RelOptInfo *rel, List *remote, bool limited)
{
	if (fixes_key(root, rel, remote))
		return true;
	if (limited)
	{
		Expr	   *limit = residency_limit_expr(root);

		return limit != NULL && IsA(limit, Const) && !((Const *) limit)->constisnull &&
			DatumGetInt64(((Const *) limit)->constvalue) <= SMALL_LIMIT;
	}
	return false;
}

/*
 * GetForeignPlan: the scan with its text.
 *
 * A path of the final upper relation (LIMIT with OFFSET at the home) is planned
 * as a scan of the table below it: its rows look the same, there are only fewer.
 */
static ForeignScan *
residencyGetForeignPlan(PlannerInfo *root, RelOptInfo *rel, Oid foreigntableid,
						ForeignPath *best_path, List *tlist, List *scan_clauses,
						Plan *outer_plan)
{
	FdwRel	   *fdw = (FdwRel *) rel->fdw_private;
	RelOptInfo *scan_rel = fdw->scan_rel != NULL ? fdw->scan_rel : rel;
	bool		limited = boolVal(list_nth(best_path->fdw_private, FdwPathHasLimit));
	List	   *remote = NIL;
	List	   *local = NIL;
	List	   *attrs;
	List	   *params;
	List	   *private;
	StringInfoData sql;

	if (list_length(best_path->fdw_private) > FdwPathQuery)
		return residency_plan_query(root, best_path, list_nth(best_path->fdw_private, FdwPathQuery), tlist);
	if (scan_rel != rel)
		scan_clauses = scan_rel->baserestrictinfo;
	divide_clauses(root, scan_rel, (FdwRel *) scan_rel->fdw_private, scan_clauses,
				   &remote, &local);

	initStringInfo(&sql);
	residency_deparse_select(&sql, root, rel, tlist, remote, best_path->path.pathkeys,
							 limited, &attrs, &params);

	private = list_make4(makeString(sql.data),
						 attrs,
						 makeBoolean(is_small(root, scan_rel, remote, limited)),
						 makeInteger(Max(fdw->width, 1)));
	private = lappend(private, makeBoolean(limited));
	private = lappend(private, makeBoolean(residency_locking_clause(root, scan_rel) != NULL));
	private = lappend(private, makeString(""));
	private = lappend(private, makeBoolean(false));

	return make_foreignscan(tlist, local, scan_rel->relid, params, private, NIL, remote,
							outer_plan);
}

/*
 * residency_fdw_plan_routine installs the planning callbacks of all files.
 */
void
residency_fdw_plan_routine(FdwRoutine *routine)
{
	routine->GetForeignRelSize = residencyGetForeignRelSize;
	routine->GetForeignPaths = residencyGetForeignPaths;
	routine->GetForeignPlan = residencyGetForeignPlan;
	residency_fdw_limit_routine(routine);
	residency_fdw_plan_modify_routine(routine);
	residency_fdw_explain_routine(routine);
}
