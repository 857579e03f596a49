/*
 * fdw_plan_query.c
 *		Paths and plans that ask a home for more than rows of one table.
 *
 * What is asked for is an FdwQuery, made by fdw_plan_group.c or fdw_plan_join.c.  Its path claims to be one of
 * the part's anchor, so that Append can prune it; the plan node scans no relation of
 * the query, and its rows are the query's expressions.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/planmain.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/*
 * residency_query_path makes the path.  Rows are those that cross; home_cost is what the home must do before
 * the first one.
 */
Path *
residency_query_path(PlannerInfo *root, const RegionPart *part, FdwQuery *query,
					 PathTarget *target, double rows, Cost home_cost)
{
	Cost		startup = residency_trip_cost(part->anchor->serverid) + home_cost;
	Cost		per_row = BORDER_ROW_COST + BORDER_BYTE_COST * target->width + cpu_tuple_cost;
	ForeignPath *path;

	path = compat_create_foreignscan_path(root, part->anchor, target, rows,
										  startup + target->cost.startup,
										  startup + target->cost.startup +
										  rows * (per_row + target->cost.per_tuple),
										  NIL, NULL, NULL,
										  list_make2(makeBoolean(false), makeBoolean(false)));

	/* never copied, printed or read: the planner hands it to our own callback */
	path->fdw_private = lappend(path->fdw_private, query);
	return (Path *) path;
}

/*
 * Names of the tables that a query reads at the home.
 */
static void
append_tables(StringInfo buf, PlannerInfo *root, RelOptInfo *rel)
{
	int			relid = -1;
	bool		first = true;

	while ((relid = bms_next_member(rel->relids, relid)) >= 0)
	{
		Oid			table = planner_rt_fetch(relid, root)->relid;

		appendStringInfo(buf, "%s%s", first ? "" : " with ",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
													get_rel_name(table)));
		first = false;
	}
}

/*
 * What EXPLAIN prints about it.
 */
static char *
describe(PlannerInfo *root, const FdwQuery *query)
{
	bool		joins = bms_membership(query->rel->relids) == BMS_MULTIPLE;
	StringInfoData buf;

	initStringInfo(&buf);
	if (query->grouped)
		appendStringInfoString(&buf, "aggregate of ");
	if (joins)
		appendStringInfoString(&buf, "join of ");
	append_tables(&buf, root, query->rel);
	if (query->limited)
		appendStringInfoString(&buf, query->pathkeys != NIL ? ", sorted and limited" : ", limited");
	return buf.data;
}

/*
 * The expression that a column of the answer stands for.  What has no columns and no aggregates is sent
 * there as a parameter: if it were named here, the planner would take the column of the answer for the
 * parameter, which is needed before there is any answer.  It is computed above, of the same values.
 */
static Expr *
answered_expr(Node *expr)
{
	if (contain_var_clause(expr) || contain_agg_clause(expr))
		return copyObject((Expr *) expr);
	return (Expr *) makeNullConst(exprType(expr), exprTypmod(expr), exprCollation(expr));
}

/*
 * residency_plan_query makes the plan node.
 */
ForeignScan *
residency_plan_query(PlannerInfo *root, ForeignPath *path, FdwQuery *query, List *tlist)
{
	List	   *scan_tlist = NIL;
	List	   *attrs = NIL;
	List	   *params;
	List	   *private;
	StringInfoData sql;
	ListCell   *lc;

	foreach(lc, query->scan_exprs)
	{
		int			n = foreach_current_index(lc) + 1;

		scan_tlist = lappend(scan_tlist, makeTargetEntry(answered_expr(lfirst(lc)), n, NULL, false));
		attrs = lappend_int(attrs, n);
	}
	initStringInfo(&sql);
	residency_deparse_query(&sql, root, query, &params);
	private = list_make4(makeString(sql.data), attrs, makeBoolean(query->one_row),
						 makeInteger(Max(path->path.pathtarget->width, 1)));
	private = lappend(private, makeBoolean(query->limited));
	private = lappend(private, makeBoolean(false));
	private = lappend(private, makeString(describe(root, query)));
	private = lappend(private, makeBoolean(query->needed ||
										   ((FdwRel *) query->rel->fdw_private)->needed));
	return make_foreignscan(tlist, query->local_quals, 0, params, private, scan_tlist, NIL, NULL);
}
