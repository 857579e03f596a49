/*
 * fdw_plan_partial.c
 *		Aggregates over several regions: partial results there, the rest here.
 *
 * A partial result is made of plain SQL values, so nothing depends on how a server represents its states:
 *
 *		aggregate					each region computes		here
 *		count						count						sum of counts
 *		sum of integers				sum							sum of sums, cast back
 *		avg							sum and count				sum / sum, as avg() itself divides
 *		min, bool_and, bit_or, ...	the same					the same
 *		DISTINCT					groups by the argument too	the same
 *
 * The last but one is every aggregate whose results combine like its values: it has no
 * final function and combines by its transition function.  sum(float4) is left out: single precision would
 * show in which order values were added.
 *
 * The plan is
 *
 *		Region Aggregate			gives results the names that the query knows them by
 *			Agg						sums of sums
 *				Append
 *					Agg				over the partition stored here
 *					Foreign Scan	an aggregate query, one per region
 *
 * Aggregates carry numbers by which an Agg node finds their states: each of the two
 * levels is numbered from zero.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "access/htup_details.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/prep.h"
#include "optimizer/tlist.h"
#include "parser/parse_oper.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"
#include "utils/syscache.h"

#include "fdw_shippable.h"

struct PartialPlan
{
	List	   *columns;		/* of a partial result: groups, then aggregates */
	List	   *clauses;		/* SortGroupClauses of the groups, numbered from 1 */
	int			nquery;			/* so many of the groups are the query's own */
	int			ngroups;
	int			npartial;		/* aggregates in columns */
	List	   *exprs;			/* results as the query knows them: its groups, its aggregates */
	List	   *finals;			/* the same, computed from columns */
	int			nfinal;			/* aggregates in finals */
	bool		sorted;			/* some aggregate has DISTINCT: no hashing here */
};

/*
 * Catalog facts about a built-in aggregate: type of its state, and whether it combines results as it combines
 * values.
 */
static Oid
aggregate_state(Oid function, bool *self_combining)
{
	HeapTuple	tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(function));
	Form_pg_aggregate form;
	Oid			type;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", function);
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	type = form->aggtranstype;
	*self_combining = !OidIsValid(form->aggfinalfn) && OidIsValid(form->aggcombinefn) &&
		form->aggcombinefn == form->aggtransfn;
	ReleaseSysCache(tuple);
	return type;
}

/*
 * An aggregate function of one argument.
 */
static Aggref *
make_aggregate(Oid function, Oid result, Expr *arg)
{
	Aggref	   *agg = makeNode(Aggref);
	bool		ignored;

	agg->aggfnoid = function;
	agg->aggtype = result;
	agg->aggtranstype = aggregate_state(function, &ignored);
	agg->aggargtypes = list_make1_oid(exprType((Node *) arg));
	agg->args = list_make1(makeTargetEntry(arg, 1, NULL, false));
	agg->aggkind = AGGKIND_NORMAL;
	agg->aggsplit = AGGSPLIT_SIMPLE;
	agg->location = -1;
	return agg;
}

/*
 * Adds an aggregate to the columns of partial results, unless it is there; returns the one that is.
 */
static Expr *
add_partial(PartialPlan *plan, Aggref *agg)
{
	ListCell   *lc;

	foreach(lc, plan->columns)
	{
		Aggref	   *other = (Aggref *) lfirst(lc);

		if (!IsA(other, Aggref))
			continue;
		agg->aggno = other->aggno;
		agg->aggtransno = other->aggtransno;
		if (equal(agg, other))
			return (Expr *) other;
	}
	agg->aggno = agg->aggtransno = plan->npartial++;
	plan->columns = lappend(plan->columns, agg);
	return (Expr *) agg;
}

/*
 * Gives an aggregate of the upper level its number.
 */
static Expr *
number_final(PartialPlan *plan, Aggref *agg)
{
	agg->aggno = agg->aggtransno = plan->nfinal++;
	return (Expr *) agg;
}

/*
 * sum() of a column of partial results.
 */
static Expr *
final_sum(PartialPlan *plan, Expr *column)
{
	switch (exprType((Node *) column))
	{
		case INT8OID:
			return number_final(plan, make_aggregate(F_SUM_INT8, NUMERICOID, column));
		case NUMERICOID:
			return number_final(plan, make_aggregate(F_SUM_NUMERIC, NUMERICOID, column));
		case FLOAT8OID:
			return number_final(plan, make_aggregate(F_SUM_FLOAT8, FLOAT8OID, column));
		default:
			elog(ERROR, "partial results of type %u have no sum", exprType((Node *) column));
	}
}

/*
 * A call of a built-in function.
 */
static Expr *
call(Oid function, Oid result, List *args)
{
	return (Expr *) makeFuncExpr(function, result, args, InvalidOid, InvalidOid,
								 COERCE_EXPLICIT_CALL);
}

/*
 * A copy of an aggregate of the query that does something else with the same rows.
 */
static Aggref *
variant(Aggref *agg, Oid function, Oid result)
{
	Aggref	   *copy = copyObject(agg);
	bool		ignored;

	copy->aggfnoid = function;
	copy->aggtype = result;
	copy->aggtranstype = aggregate_state(function, &ignored);
	return copy;
}

/*
 * count: the sum of counts, 0 if there are none.
 */
static Expr *
split_count(PartialPlan *plan, Aggref *agg)
{
	CoalesceExpr *result = makeNode(CoalesceExpr);
	Expr	   *sum = final_sum(plan, add_partial(plan, copyObject(agg)));

	result->coalescetype = INT8OID;
	result->args = list_make2(call(F_INT8_NUMERIC, INT8OID, list_make1(sum)),
							  makeConst(INT8OID, -1, InvalidOid, sizeof(int64), Int64GetDatum(0),
										false, FLOAT8PASSBYVAL));
	result->location = -1;
	return (Expr *) result;
}

/*
 * avg: the sum of sums divided by that of counts, as the final functions of avg() do it.  Without rows the sum is
 * NULL, and both divisions are strict.
 */
static Expr *
split_avg(PartialPlan *plan, Aggref *agg, Oid sum_function, Oid sum_type)
{
	Aggref	   *sum = variant(agg, sum_function, sum_type);
	Expr	   *count = final_sum(plan, add_partial(plan, variant(agg, F_COUNT_ANY, INT8OID)));

	if (agg->aggfnoid == F_AVG_FLOAT4)
	{
		TargetEntry *arg = linitial_node(TargetEntry, sum->args);

		arg->expr = call(F_FLOAT8_FLOAT4, FLOAT8OID, list_make1(arg->expr));
		sum->aggargtypes = list_make1_oid(FLOAT8OID);
	}
	if (agg->aggtype == FLOAT8OID)
		return call(F_FLOAT8DIV, FLOAT8OID,
					list_make2(final_sum(plan, add_partial(plan, sum)),
							   call(F_FLOAT8_NUMERIC, FLOAT8OID, list_make1(count))));
	return call(F_NUMERIC_DIV, NUMERICOID,
				list_make2(final_sum(plan, add_partial(plan, sum)), count));
}

/*
 * Adds an expression to the groups of partial results; the query's own groups come first.
 */
static void
add_group(PartialPlan *plan, Expr *expr, SortGroupClause *clause)
{
	SortGroupClause *copy = copyObject(clause);

	copy->tleSortGroupRef = ++plan->ngroups;
	plan->clauses = lappend(plan->clauses, copy);
	plan->columns = lappend(plan->columns, expr);
}

/*
 * DISTINCT: each region groups by the argument, and by whether it counts, which gives each
 * value once; the aggregate itself is computed here.  For aggregates that ignore NULL only.
 */
static bool
group_by_distinct(PartialPlan *plan, Aggref *agg)
{
	TargetEntry *arg;

	if (agg->aggorder != NIL || list_length(agg->args) != 1 || list_length(agg->aggdistinct) != 1)
		return false;
	arg = linitial_node(TargetEntry, agg->args);
	if (IsA(arg->expr, Const))
		return false;
	if (!list_member(plan->columns, arg->expr))
		add_group(plan, arg->expr, linitial_node(SortGroupClause, agg->aggdistinct));
	if (agg->aggfilter != NULL && !list_member(plan->columns, agg->aggfilter))
	{
		SortGroupClause *clause = makeNode(SortGroupClause);

		get_sort_group_operators(BOOLOID, true, true, false, &clause->sortop, &clause->eqop, NULL,
								 &clause->hashable);
		add_group(plan, agg->aggfilter, clause);
	}
	plan->sorted = true;
	return true;
}

/*
 * What the query's aggregate is in terms of partial results; NULL if it cannot be split.
 */
static Expr *
split_aggregate(PartialPlan *plan, Aggref *agg)
{
	bool		self_combining;
	Oid			state;
	Aggref	   *final;
	Expr	   *column;

	if (agg->aggdistinct != NIL)
		return number_final(plan, copyObject(agg));
	switch (agg->aggfnoid)
	{
		case F_COUNT_:
		case F_COUNT_ANY:
			return split_count(plan, agg);
		case F_SUM_INT2:
		case F_SUM_INT4:
			return call(F_INT8_NUMERIC, INT8OID,
						list_make1(final_sum(plan, add_partial(plan, copyObject(agg)))));
		case F_SUM_INT8:
		case F_SUM_NUMERIC:
			return final_sum(plan, add_partial(plan, copyObject(agg)));
		case F_AVG_INT2:
			return split_avg(plan, agg, F_SUM_INT2, INT8OID);
		case F_AVG_INT4:
			return split_avg(plan, agg, F_SUM_INT4, INT8OID);
		case F_AVG_INT8:
			return split_avg(plan, agg, F_SUM_INT8, NUMERICOID);
		case F_AVG_NUMERIC:
			return split_avg(plan, agg, F_SUM_NUMERIC, NUMERICOID);
		case F_AVG_FLOAT4:
		case F_AVG_FLOAT8:
			return split_avg(plan, agg, F_SUM_FLOAT8, FLOAT8OID);
		case F_SUM_FLOAT4:
			return NULL;
		default:
			break;
	}
	state = aggregate_state(agg->aggfnoid, &self_combining);
	if (!self_combining || list_length(agg->args) != 1 || agg->aggorder != NIL ||
		state != agg->aggtype ||
		state != getBaseType(exprType((Node *) linitial_node(TargetEntry, agg->args)->expr)))
		return NULL;
	column = add_partial(plan, copyObject(agg));
	final = copyObject(agg);
	final->args = list_make1(makeTargetEntry(column, 1, NULL, false));
	final->aggargtypes = list_make1_oid(agg->aggtype);
	final->aggfilter = NULL;
	return number_final(plan, final);
}

/*
 * Whether an aggregate with DISTINCT skips NULL and depends on nothing but the set of values.
 */
static bool
distinct_is_exact(Aggref *agg)
{
	bool		self_combining;

	switch (agg->aggfnoid)
	{
		case F_COUNT_ANY:
		case F_SUM_INT2:
		case F_SUM_INT4:
		case F_SUM_INT8:
		case F_SUM_NUMERIC:
		case F_SUM_FLOAT8:
		case F_AVG_INT2:
		case F_AVG_INT4:
		case F_AVG_INT8:
		case F_AVG_NUMERIC:
		case F_AVG_FLOAT8:
			return true;
		default:
			return aggregate_state(agg->aggfnoid, &self_combining) == agg->aggtype && self_combining;
	}
}

/*
 * residency_split_aggregates divides the work of a query with these groups and aggregates; NULL if it cannot be
 * done, or not exactly.  Whether regions can do their part is not asked here.
 */
PartialPlan *
residency_split_aggregates(PlannerInfo *root, List *group_exprs, List *group_clauses, List *aggs)
{
	PartialPlan *plan = palloc0(sizeof(PartialPlan));
	ListCell   *lc;
	ListCell   *clause;

	forboth(lc, group_exprs, clause, group_clauses)
		add_group(plan, lfirst(lc), lfirst_node(SortGroupClause, clause));
	plan->nquery = plan->ngroups;
	foreach(lc, aggs)
	{
		Aggref	   *agg = lfirst_node(Aggref, lc);

		if (agg->aggkind != AGGKIND_NORMAL || !residency_is_built_in(agg->aggfnoid) ||
			(agg->aggdistinct != NIL && (!distinct_is_exact(agg) || !group_by_distinct(plan, agg))))
			return NULL;
	}
	plan->exprs = list_concat_copy(group_exprs, aggs);
	plan->finals = list_copy(group_exprs);
	foreach(lc, aggs)
	{
		Expr	   *final = split_aggregate(plan, lfirst_node(Aggref, lc));

		if (final == NULL)
			return NULL;
		plan->finals = lappend(plan->finals, final);
	}
	if (!grouping_is_hashable(plan->clauses) ||
		(plan->sorted && !grouping_is_sortable(list_truncate(list_copy(plan->clauses), plan->nquery))))
		return NULL;
	return plan;
}

/*
 * A target of these expressions, of which the first ngroups are numbered as groups.
 */
static PathTarget *
make_target(PlannerInfo *root, List *exprs, int ngroups)
{
	PathTarget *target = create_empty_pathtarget();
	ListCell   *lc;

	foreach(lc, exprs)
	{
		int			n = foreach_current_index(lc) + 1;

		add_column_to_pathtarget(target, lfirst(lc), n <= ngroups ? n : 0);
	}
	return set_pathtarget_cost_width(root, target);
}

/*
 * The number of groups among that many rows.
 */
static double
count_groups(PlannerInfo *root, List *exprs, double rows)
{
	return exprs == NIL ? 1 : estimate_num_groups(root, exprs, rows, NULL, NULL);
}

/*
 * Partial results of one part; NULL if its region cannot compute them.
 */
static Path *
part_path(PlannerInfo *root, const RegionPart *part, PartialPlan *plan)
{
	List	   *columns = (List *) residency_translate(root, (Node *) plan->columns, part->rel);
	List	   *groups = list_truncate(list_copy(columns), plan->ngroups);
	PathTarget *target = make_target(root, columns, plan->ngroups);
	double		rows = count_groups(root, groups, part->rel->rows);
	AggClauseCosts costs = {0};
	PathTarget *input;
	Path	   *path;
	ListCell   *lc;

	get_agg_clause_costs(root, AGGSPLIT_SIMPLE, &costs);
	if (part->remote)
	{
		FdwQuery   *query = palloc0(sizeof(FdwQuery));

		query->rel = part->rel;
		query->exprs = query->scan_exprs = columns;
		query->grouped = true;
		query->ngroups = plan->ngroups;
		query->one_row = plan->ngroups == 0;
		if (!residency_are_groups_shippable(root, part->rel, groups, plan->clauses))
			return NULL;
		foreach(lc, list_copy_tail(columns, plan->ngroups))
		{
			if (!residency_is_grouped_shippable(root, part->rel, lfirst(lc)))
				return NULL;
		}
		return residency_query_path(root, part, query, target, rows,
									part->rel->rows * (cpu_tuple_cost + costs.transCost.per_tuple));
	}

	path = part->rel->cheapest_total_path;
	if (path == NULL || path->param_info != NULL)
		return NULL;
	input = create_empty_pathtarget();
	foreach(lc, groups)
		add_column_to_pathtarget(input, lfirst(lc), foreach_current_index(lc) + 1);
	add_new_columns_to_pathtarget(input, pull_var_clause((Node *) list_copy_tail(columns, plan->ngroups),
														 PVC_RECURSE_AGGREGATES | PVC_INCLUDE_PLACEHOLDERS));
	path = (Path *) create_projection_path(root, part->anchor, path,
										   set_pathtarget_cost_width(root, input));
	return (Path *) create_agg_path(root, part->anchor, path, target,
									plan->ngroups > 0 ? AGG_HASHED : AGG_PLAIN, AGGSPLIT_SIMPLE,
									plan->clauses, NIL, &costs, rows);
}

/*
 * The aggregate over all partial results.
 */
static Path *
final_path(PlannerInfo *root, RelOptInfo *rel, Path *path, PartialPlan *plan)
{
	List	   *clauses = list_truncate(list_copy(plan->clauses), plan->nquery);
	PathTarget *target = make_target(root, plan->finals, plan->nquery);
	AggStrategy strategy = AGG_PLAIN;
	AggClauseCosts costs = {0};

	get_agg_clause_costs(root, AGGSPLIT_SIMPLE, &costs);
	if (plan->nquery > 0)
	{
		strategy = AGG_HASHED;
		if (plan->sorted)
		{
			strategy = AGG_SORTED;
			path = (Path *) create_sort_path(root, path->parent, path, root->group_pathkeys, -1.0);
		}
	}
	return (Path *) create_agg_path(root, rel, path, target, strategy, AGGSPLIT_SIMPLE, clauses,
									NIL, &costs,
									count_groups(root, list_truncate(list_copy(plan->columns), plan->nquery),
												 path->rows));
}

/*
 * residency_partial_path makes the path for rel, the grouped relation; having is checked on its results.  NULL if
 * some region cannot compute its part.
 */
Path *
residency_partial_path(PlannerInfo *root, RelOptInfo *rel, const RegionParts *parts,
					   PartialPlan *plan, List *having)
{
	CustomPath *path = makeNode(CustomPath);
	List	   *subpaths = NIL;
	AppendPath *append;
	QualCost	qual;
	Path	   *below;

	for (int i = 0; i < parts->nparts; i++)
	{
		Path	   *subpath = part_path(root, &parts->parts[i], plan);

		if (subpath == NULL)
			return NULL;
		subpaths = lappend(subpaths, subpath);
	}
	append = create_append_path(root, parts->anchor, subpaths, NIL, NIL, NULL, 0, false, -1);
	append->path.pathtarget = make_target(root, plan->columns, plan->ngroups);
	below = final_path(root, rel, (Path *) append, plan);

	cost_qual_eval(&qual, having, root);
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = rel->reltarget;
	path->path.rows = rel->rows > 0 ? Min(below->rows, rel->rows) : below->rows;
	path->path.startup_cost = below->startup_cost + qual.startup + rel->reltarget->cost.startup;
	path->path.total_cost = below->total_cost + qual.startup + rel->reltarget->cost.startup +
		below->rows * (qual.per_tuple + rel->reltarget->cost.per_tuple);
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_paths = list_make1(below);
	path->custom_private = list_make2(plan->exprs, having);
	path->methods = &residency_combine_path_methods;
	return (Path *) path;
}
