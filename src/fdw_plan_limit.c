/*
 * fdw_plan_limit.c
 *		LIMIT and OFFSET at the home.
 *
 * Two forms.  In the first, each scan of a query over one table (or over the
 * partitions of one) asks for LIMIT + OFFSET rows, and the Limit node above does
 * the rest: right whenever nothing between the scan and the Limit drops,
 * multiplies or reorders rows.  In the second, a query over a single foreign
 * table leaves OFFSET to the home too; then there is no Limit node, and skipped
 * rows never cross.
 *
 * root->limit_tuples is not used to decide: with parameters it is a guess.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "fdw_shippable.h"

#include "access/sysattr.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "utils/fmgroids.h"
#include "utils/typcache.h"

/* half of what an int8 holds: the sum of two cannot overflow */
#define HALF_INT8 (PG_INT64_MAX / 2)

/*
 * A LIMIT or OFFSET that is absent or known to be NULL means the same.
 */
static bool
is_absent(Node *count)
{
	return count == NULL || (IsA(count, Const) && ((Const *) count)->constisnull);
}

/*
 * min(count, HALF_INT8) with NULL replaced; for counts known only at run time.
 */
static Expr *
bounded_count(Node *count, int64 if_null)
{
	CoalesceExpr *known = makeNode(CoalesceExpr);
	MinMaxExpr *bounded = makeNode(MinMaxExpr);

	known->coalescetype = INT8OID;
	known->args = list_make2(count, makeConst(INT8OID, -1, InvalidOid, sizeof(int64),
											  Int64GetDatum(if_null), false, FLOAT8PASSBYVAL));
	known->location = -1;
	bounded->minmaxtype = INT8OID;
	bounded->op = IS_LEAST;
	bounded->args = list_make2(known, makeConst(INT8OID, -1, InvalidOid, sizeof(int64),
												Int64GetDatum(HALF_INT8), false, FLOAT8PASSBYVAL));
	bounded->location = -1;
	return (Expr *) bounded;
}

/*
 * residency_limit_expr returns LIMIT + OFFSET as a constant or as an expression
 * for the gateway; NULL if that is no limit at all.
 */
Expr *
residency_limit_expr(PlannerInfo *root)
{
	Node	   *count = root->parse->limitCount;
	Node	   *offset = root->parse->limitOffset;
	int64		sum;

	if (is_absent(count))
		return NULL;
	if (is_absent(offset))
		return (Expr *) count;
	if (!IsA(count, Const) || !IsA(offset, Const))
		return (Expr *) makeFuncExpr(F_INT8PL, INT8OID,
									 list_make2(bounded_count(count, HALF_INT8),
												bounded_count(offset, 0)),
									 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	if (pg_add_s64_overflow(DatumGetInt64(((Const *) count)->constvalue),
							DatumGetInt64(((Const *) offset)->constvalue), &sum))
		return NULL;
	return (Expr *) makeConst(INT8OID, -1, InvalidOid, sizeof(int64), Int64GetDatum(sum),
							  false, FLOAT8PASSBYVAL);
}

/*
 * residency_limit_rows estimates how many of the rows the LIMIT lets through,
 * OFFSET included or not.  What a count that is not known yet lets through is
 * guessed by the Limit node above, a tenth, and here only if there is none.
 */
double
residency_limit_rows(PlannerInfo *root, double rows, bool with_offset)
{
	if (root->limit_tuples <= 0)
		return with_offset ? rows : clamp_row_est(rows * 0.1);
	rows = Min(rows, root->limit_tuples);
	if (!with_offset)
	{
		Node	   *offset = estimate_expression_value(root, root->parse->limitOffset);

		if (!is_absent(offset) && IsA(offset, Const))
			rows -= (double) DatumGetInt64(((Const *) offset)->constvalue);
	}
	return clamp_row_est(rows);
}

/*
 * Whether a count can be handed to the home: it is the same for the whole scan,
 * and not negative (the Limit node reports that).
 */
static bool
count_ships(PlannerInfo *root, RelOptInfo *rel, Node *count)
{
	if (is_absent(count))
		return true;
	if (IsA(count, Const))
		return DatumGetInt64(((Const *) count)->constvalue) >= 0;
	return residency_is_shippable(root, rel, (Expr *) count);
}

/*
 * residency_limit_ships tells whether the query has a LIMIT that homes can be told, and nothing between the groups or
 * rows of rel and the LIMIT that drops or multiplies any, DISTINCT and grouping aside.
 */
bool
residency_limit_ships(PlannerInfo *root, RelOptInfo *rel)
{
	Query	   *parse = root->parse;

	return parse->commandType == CMD_SELECT && !is_absent(parse->limitCount) &&
		parse->limitOption == LIMIT_OPTION_COUNT &&
		!parse->hasWindowFuncs && !parse->hasTargetSRFs && parse->setOperations == NULL &&
		count_ships(root, rel, parse->limitCount) && count_ships(root, rel, parse->limitOffset);
}

/*
 * residency_limit_applies tells whether a scan of rel in that order may stop
 * after LIMIT + OFFSET rows.  The caller makes sure that the home checks all
 * conditions of the scan.
 */
bool
residency_limit_applies(PlannerInfo *root, RelOptInfo *rel, List *pathkeys)
{
	Query	   *parse = root->parse;
	Relids		top = rel->top_parent_relids != NULL ? rel->top_parent_relids : rel->relids;

	if (parse->hasAggs || parse->groupClause != NIL || parse->groupingSets != NIL ||
		parse->havingQual != NULL || parse->distinctClause != NIL)
		return false;
	if (!bms_equal(root->all_baserels, top))
		return false;
	if (!pathkeys_contained_in(root->sort_pathkeys, pathkeys))
		return false;
	return residency_limit_ships(root, rel);
}

/*
 * Which of the items a sort key is, counted from 1; 0 if none that the home sorts in the same order.
 */
static int
sort_position(PathKey *pathkey, List *items, Relids relids)
{
	EquivalenceMember *member;

	if (pathkey->pk_eclass->ec_has_volatile)
		return 0;
	compat_foreach_ec_member(member, pathkey->pk_eclass, relids)
	{
		ListCell   *lc;

		foreach(lc, items)
		{
			Node	   *item = lfirst(lc);
			Oid			collation = exprCollation(item);

			if (equal(member->em_expr, item) && !IsA(item, Const) &&
				lookup_type_cache(exprType(item), TYPECACHE_BTREE_OPFAMILY)->btree_opf == pathkey->pk_opfamily &&
				(!OidIsValid(collation) || residency_is_common_collation(collation)))
				return foreach_current_index(lc) + 1;
		}
	}
	return 0;
}

/*
 * residency_limit_groups lets a query for complete groups stop after LIMIT + OFFSET of them in the order of the
 * query, if it can; items are what the query computes, in the terms of ORDER BY.  Lowers *rows.
 */
bool
residency_limit_groups(PlannerInfo *root, FdwQuery *query, List *items, double *rows)
{
	List	   *positions = NIL;
	ListCell   *lc;

	if (query->local_quals != NIL || (root->parse->groupClause != NIL && root->parse->distinctClause != NIL) ||
		!residency_limit_ships(root, query->rel))
		return false;
	foreach(lc, root->sort_pathkeys)
	{
		int			position = sort_position(lfirst_node(PathKey, lc), items, query->rel->relids);

		if (position == 0)
			return false;
		positions = lappend_int(positions, position);
	}
	query->limited = true;
	query->pathkeys = root->sort_pathkeys;
	query->positions = positions;
	*rows = residency_limit_rows(root, *rows, true);
	return true;
}

/*
 * The foreign table that the query is all about, NULL if there is not just one.
 */
static RelOptInfo *
only_foreign_table(PlannerInfo *root, FdwRoutine *routine)
{
	int			relid;
	RelOptInfo *rel;

	if (!bms_get_singleton_member(root->all_baserels, &relid))
		return NULL;
	rel = root->simple_rel_array[relid];
	if (rel == NULL || rel->rtekind != RTE_RELATION || rel->fdwroutine != routine ||
		rel->fdw_private == NULL)
		return NULL;
	return rel;
}

/*
 * GetForeignUpperPaths: for the final relation, a scan with LIMIT and OFFSET.
 *
 * Without OFFSET the first form is as good.  Row locks need their own node, and
 * system columns are filled in only for scans of base relations.
 */
static void
residencyGetForeignUpperPaths(PlannerInfo *root, UpperRelationKind stage,
							  RelOptInfo *input_rel, RelOptInfo *output_rel, void *extra)
{
	RelOptInfo *rel;
	FdwRel	   *base;
	FdwRel	   *fdw;
	PathTarget *target;
	Bitmapset  *used = NULL;
	double		rows;
	Cost		startup;
	Cost		total;

	if (stage != UPPERREL_FINAL || output_rel->fdw_private != NULL ||
		!((FinalPathExtraData *) extra)->limit_needed ||
		is_absent(root->parse->limitOffset) || root->parse->rowMarks != NIL)
		return;
	rel = only_foreign_table(root, output_rel->fdwroutine);
	if (rel == NULL)
		return;
	base = (FdwRel *) rel->fdw_private;
	if (base->local_conds != NIL || root->hasPseudoConstantQuals ||
		!residency_limit_applies(root, rel, root->sort_pathkeys) ||
		!residency_can_sort(root, rel, root->sort_pathkeys))
		return;

	target = root->upper_targets[UPPERREL_FINAL];
	pull_varattnos((Node *) target->exprs, rel->relid, &used);
	for (AttrNumber attno = FirstLowInvalidHeapAttributeNumber + 1; attno < 0; attno++)
	{
		if (bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, used))
			return;
	}

	fdw = palloc(sizeof(FdwRel));
	*fdw = *base;
	fdw->attrs_used = used;		/* what only ORDER BY needs stays there */
	fdw->scan_rel = rel;
	fdw->sort_pathkeys = root->sort_pathkeys;
	output_rel->fdw_private = fdw;

	rows = residency_limit_rows(root, base->retrieved_rows, false);
	residency_border_cost(rel, base, rows, root->sort_pathkeys != NIL, base->retrieved_rows,
						  &startup, &total);
	add_path(output_rel, (Path *)
			 compat_create_foreign_upper_path(root, output_rel, target, rows,
											  startup + target->cost.startup,
											  total + target->cost.startup +
											  target->cost.per_tuple * rows,
											  root->sort_pathkeys, NULL,
											  list_make2(makeBoolean(true), makeBoolean(true))));
}

/*
 * residency_fdw_limit_routine installs this file's callback.
 */
void
residency_fdw_limit_routine(FdwRoutine *routine)
{
	routine->GetForeignUpperPaths = residencyGetForeignUpperPaths;
}
