/*
 * fdw_shippable_agg.c
 *		Grouping, and orders inside of aggregates, at the home.
 *
 * Both compare values.  The home looks operators up by the type of what it compares, so an aggregate
 * or a GROUP BY goes there only if it uses the type's own order and equality; and text
 * is ordered only under a collation that is the same everywhere.  For equality any
 * deterministic collation will do: under all of them equal means the same bytes.
 */
#include "residency.h"

#include "fdw_plan.h"
#include "fdw_shippable.h"

#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "utils/lsyscache.h"
#include "utils/pg_locale.h"
#include "utils/typcache.h"

/*
 * residency_is_aggregate_order_shippable tells whether what an aggregate compares, for itself as min() does, or
 * for its ORDER BY or DISTINCT, compares the same at the home.
 */
bool
residency_is_aggregate_order_shippable(PlannerInfo *root, RelOptInfo *rel, Aggref *agg)
{
	List	   *clauses = list_concat_copy(agg->aggorder, agg->aggdistinct);
	ListCell   *lc;

	if (OidIsValid(agg->inputcollid) && !residency_is_common_collation(agg->inputcollid))
		return false;
	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Expr	   *expr = get_sortgroupclause_tle(clause, agg->args)->expr;
		Oid			opfamily;
		Oid			type;
		int16		strategy;

		if (!OidIsValid(clause->sortop) ||
			!get_ordering_op_properties(clause->sortop, &opfamily, &type, &strategy) ||
			!residency_is_sort_shippable(root, rel, expr, opfamily))
			return false;
	}
	return true;
}

/*
 * residency_are_groups_shippable tells whether the home can group by these expressions of rel, each with its
 * SortGroupClause.
 */
bool
residency_are_groups_shippable(PlannerInfo *root, RelOptInfo *rel, List *exprs, List *clauses)
{
	ListCell   *expr;
	ListCell   *clause;

	forboth(expr, exprs, clause, clauses)
	{
		Node	   *node = (Node *) lfirst(expr);
		Oid			type = exprType(node);
		Oid			collation = exprCollation(node);
		TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);

		if (entry->eq_opr != lfirst_node(SortGroupClause, clause)->eqop ||
			!residency_type_travels(type) || type_is_rowtype(getBaseType(type)) ||
			(OidIsValid(collation) && !get_collation_isdeterministic(collation)) ||
			!residency_is_shippable(root, rel, (Expr *) node))
			return false;
	}
	return true;
}
