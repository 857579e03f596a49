/*
 * fdw_deparse_query.c
 *		SQL text of joins and aggregates for the home.
 *
 *		SELECT <exprs> FROM <tables> WHERE ... GROUP BY 1, 2 HAVING ... ORDER BY ... LIMIT ...
 *
 * Columns of a join are written with their table's alias, r and its number.  Inner joins become CROSS JOIN
 * with all conditions in WHERE, since the home's planner does not mind; of an outer join the
 * conditions that decide what matches, and the inner side's own, stand in ON; semi- and antijoins
 * are written as EXISTS.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_proc.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

static void append_from(DeparseContext *cx, RelOptInfo *rel);
static void append_conditions(DeparseContext *cx, RelOptInfo *rel, bool *first, const char *start);

/*
 * ORDER BY inside of an aggregate.
 */
static void
append_aggregate_order(DeparseContext *cx, Aggref *agg)
{
	ListCell   *lc;

	foreach(lc, agg->aggorder)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Oid			opfamily;
		Oid			type;
		int16		strategy;

		if (!get_ordering_op_properties(clause->sortop, &opfamily, &type, &strategy))
			elog(ERROR, "operator %u is not a valid ordering operator", clause->sortop);
		appendStringInfoString(cx->buf, foreach_current_index(lc) == 0 ? " ORDER BY " : ", ");
		residency_deparse_expr(cx, get_sortgroupclause_tle(clause, agg->args)->expr);
		appendStringInfo(cx->buf, "%s NULLS %s",
						 strategy == BTGreaterStrategyNumber ? " DESC" : " ASC",
						 clause->nulls_first ? "FIRST" : "LAST");
	}
}

/*
 * residency_deparse_aggregate writes pg_catalog.sum(DISTINCT x ORDER BY x) FILTER (WHERE ...).
 */
void
residency_deparse_aggregate(DeparseContext *cx, Aggref *agg)
{
	bool		first = true;
	ListCell   *lc;

	appendStringInfo(cx->buf, "pg_catalog.%s(%s", quote_identifier(get_func_name(agg->aggfnoid)),
					 agg->aggdistinct != NIL ? "DISTINCT " : "");
	if (agg->aggstar)
		appendStringInfoChar(cx->buf, '*');
	foreach(lc, agg->args)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk)
			continue;
		if (!first)
			appendStringInfoString(cx->buf, ", ");
		first = false;
		residency_deparse_expr(cx, tle->expr);
	}
	append_aggregate_order(cx, agg);
	appendStringInfoChar(cx->buf, ')');
	if (agg->aggfilter != NULL)
	{
		appendStringInfoString(cx->buf, " FILTER (WHERE ");
		residency_deparse_expr(cx, agg->aggfilter);
		appendStringInfoChar(cx->buf, ')');
	}
}

/*
 * Conditions with AND between, behind "start"; RestrictInfos or bare expressions.
 */
static void
append_list(DeparseContext *cx, List *conds, bool *first, const char *start)
{
	ListCell   *lc;

	foreach(lc, conds)
	{
		Node	   *cond = lfirst(lc);

		if (IsA(cond, RestrictInfo))
		{
			if (((RestrictInfo *) cond)->pseudoconstant)
				continue;
			cond = (Node *) ((RestrictInfo *) cond)->clause;
		}
		appendStringInfoString(cx->buf, *first ? start : " AND ");
		*first = false;
		residency_deparse_expr(cx, (Expr *) cond);
	}
}

/*
 * One side of a join, or all of it: what stands behind FROM.
 */
static void
append_from(DeparseContext *cx, RelOptInfo *rel)
{
	FdwRel	   *fdw = (FdwRel *) rel->fdw_private;
	Relation	relation;
	bool		first = true;

	if (IS_SIMPLE_REL(rel))
	{
		relation = table_open(planner_rt_fetch(rel->relid, cx->root)->relid, NoLock);
		residency_deparse_relation(cx->buf, relation);
		table_close(relation, NoLock);
		if (cx->qualified)
			appendStringInfo(cx->buf, " AS r%d", (int) rel->relid);
		return;
	}
	switch (fdw->jointype)
	{
		case JOIN_INNER:
			appendStringInfoChar(cx->buf, '(');
			append_from(cx, fdw->outer_rel);
			appendStringInfoString(cx->buf, " CROSS JOIN ");
			append_from(cx, fdw->inner_rel);
			appendStringInfoChar(cx->buf, ')');
			break;
		case JOIN_LEFT:
			appendStringInfoChar(cx->buf, '(');
			append_from(cx, fdw->outer_rel);
			appendStringInfoString(cx->buf, " LEFT JOIN ");
			append_from(cx, fdw->inner_rel);
			append_list(cx, fdw->join_conds, &first, " ON ");
			append_conditions(cx, fdw->inner_rel, &first, " ON ");
			appendStringInfoString(cx->buf, first ? " ON true)" : ")");
			break;
		default:
			append_from(cx, fdw->outer_rel);
			break;
	}
}

/*
 * All conditions that the rows of a side have to meet, but for those that are in FROM.
 */
static void
append_conditions(DeparseContext *cx, RelOptInfo *rel, bool *first, const char *start)
{
	FdwRel	   *fdw = (FdwRel *) rel->fdw_private;
	bool		inner_first = true;

	if (IS_SIMPLE_REL(rel))
	{
		/* a global table has no FdwRel; all its conditions have been found shippable */
		append_list(cx, residency_is_foreign(rel) ? fdw->remote_conds : rel->baserestrictinfo,
					first, start);
		return;
	}
	append_conditions(cx, fdw->outer_rel, first, start);
	if (fdw->jointype == JOIN_INNER)
	{
		append_conditions(cx, fdw->inner_rel, first, start);
		append_list(cx, fdw->join_conds, first, start);
	}
	else if (fdw->jointype == JOIN_SEMI || fdw->jointype == JOIN_ANTI)
	{
		appendStringInfo(cx->buf, "%s%sEXISTS (SELECT FROM ", *first ? start : " AND ",
						 fdw->jointype == JOIN_ANTI ? "NOT " : "");
		*first = false;
		append_from(cx, fdw->inner_rel);
		append_conditions(cx, fdw->inner_rel, &inner_first, " WHERE ");
		append_list(cx, fdw->join_conds, &inner_first, " WHERE ");
		appendStringInfoChar(cx->buf, ')');
	}
	append_list(cx, fdw->remote_conds, first, start);
}

/*
 * ORDER BY results, by their numbers.
 */
static void
append_positions(DeparseContext *cx, const FdwQuery *query)
{
	ListCell   *position;
	ListCell   *lc;

	forboth(position, query->positions, lc, query->pathkeys)
	{
		PathKey    *pathkey = lfirst_node(PathKey, lc);

		appendStringInfo(cx->buf, "%s%d %s NULLS %s",
						 position == list_head(query->positions) ? " ORDER BY " : ", ", lfirst_int(position),
						 compat_pathkey_is_descending(pathkey) ? "DESC" : "ASC",
						 pathkey->pk_nulls_first ? "FIRST" : "LAST");
	}
}

/*
 * residency_deparse_query writes the text; *params gets what is evaluated here and sent as $1, $2, ...
 */
void
residency_deparse_query(StringInfo buf, PlannerInfo *root, const FdwQuery *query, List **params)
{
	RelOptInfo *rel = query->rel;
	bool		joins = bms_membership(rel->relids) == BMS_MULTIPLE;
	DeparseContext cx = {.buf = buf, .root = root, .rel = rel, .params = params, .qualified = joins};
	int			formats = residency_output_begin();
	bool		first = true;
	ListCell   *lc;

	*params = NIL;
	if (!joins)
		cx.relid = planner_rt_fetch(rel->relid, root)->relid;

	appendStringInfoString(buf, "SELECT ");
	if (query->exprs == NIL)
		appendStringInfoString(buf, "NULL");
	foreach(lc, query->exprs)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(buf, ", ");
		residency_deparse_expr(&cx, lfirst(lc));
	}
	appendStringInfoString(buf, " FROM ");
	append_from(&cx, rel);
	append_conditions(&cx, rel, &first, " WHERE ");
	for (int i = 1; i <= query->ngroups; i++)
		appendStringInfo(buf, "%s%d", i == 1 ? " GROUP BY " : ", ", i);
	first = true;
	append_list(&cx, query->having, &first, " HAVING ");
	if (query->grouped)
		append_positions(&cx, query);
	else
		residency_deparse_order_by(&cx, query->pathkeys);
	if (query->limited)
		residency_deparse_count(&cx, "LIMIT", residency_limit_expr(root));
	residency_output_end(formats);
}
