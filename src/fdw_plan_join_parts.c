/*
 * fdw_plan_join_parts.c
 *		Which joins can be done region by region, and what each region has to do for one.
 *
 * What lies in one region is described by a relation that the planner does not know of, a join between
 * partitions.  For rows stored here fdw_plan_join.c lets the core find its paths; for those elsewhere the
 * relation carries what the home is to be asked.
 *
 * Not done so:
 *
 *		rows that are locked or written			their versions must be known here
 *		conditions that policies must precede	the home would not keep the order
 *		tables whose rights differ				one request has one user
 *		a global table in a statement that writes, or calls volatile functions: these may change
 *												it, and the home would see that too early
 *		a global table's copy that is behind
 *		a global table as the outer side of an outer join, semi- or antijoin: each region would
 *												answer for rows that others match
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "health.h"
#include "regions.h"

#include "catalog/pg_class.h"
#include "foreign/fdwapi.h"
#include "nodes/makefuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "parser/parsetree.h"

/*
 * Is the relation a global table whose conditions every home can check?
 */
static bool
is_global(PlannerInfo *root, RelOptInfo *rel)
{
	RangeTblEntry *rte;
	const TableRule *rule;
	ListCell   *lc;

	if (rel->reloptkind != RELOPT_BASEREL || rel->rtekind != RTE_RELATION ||
		!bms_is_empty(rel->lateral_relids))
		return false;
	rte = planner_rt_fetch(rel->relid, root);
	if (rte->inh || rte->relkind != RELKIND_RELATION || rte->tablesample != NULL)
		return false;
	rule = residency_table_rule(rte->relid);
	if (rule == NULL || rule->kind != RESIDENCY_GLOBAL)
		return false;
	foreach(lc, rel->baserestrictinfo)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->pseudoconstant || !restriction_is_securely_promotable(rinfo, rel) ||
			!residency_is_shippable(root, rel, rinfo->clause))
			return false;
	}
	return true;
}

/*
 * Can copies of global tables take part in this statement?
 */
static bool
copies_are_equal(PlannerInfo *root)
{
	for (PlannerInfo *level = root; level != NULL; level = level->parent_root)
	{
		if (level->parse->commandType != CMD_SELECT || level->parse->hasModifyingCTE ||
			contain_volatile_functions((Node *) level->parse->targetList) ||
			contain_volatile_functions((Node *) level->parse->jointree))
			return false;
	}
	return true;
}

/*
 * The region that a part lies in; InvalidOid for the own one.
 */
static Oid
part_server(const RegionPart *part)
{
	return part->remote ? part->rel->serverid : InvalidOid;
}

/*
 * The part of that region; NULL if there is none, or several.
 */
static const RegionPart *
find_part(const RegionParts *parts, Oid server)
{
	const RegionPart *found = NULL;

	for (int i = 0; i < parts->nparts; i++)
	{
		if (part_server(&parts->parts[i]) != server)
			continue;
		if (found != NULL)
			return NULL;
		found = &parts->parts[i];
	}
	return found;
}

/*
 * Does a clause say that two expressions are equal?
 */
static bool
says_equal(RestrictInfo *rinfo, Node *a, Node *b)
{
	OpExpr	   *op = (OpExpr *) rinfo->clause;
	Node	   *left;
	Node	   *right;

	if (rinfo->mergeopfamilies == NIL || !IsA(op, OpExpr) || list_length(op->args) != 2)
		return false;
	left = linitial(op->args);
	right = lsecond(op->args);
	while (IsA(left, RelabelType))
		left = (Node *) ((RelabelType *) left)->arg;
	while (IsA(right, RelabelType))
		right = (Node *) ((RelabelType *) right)->arg;
	return (equal(left, a) && equal(right, b)) || (equal(left, b) && equal(right, a));
}

/*
 * Are the regions of both sides' rows equal in every match?  Clauses are those that decide what
 * matches.
 */
static bool
regions_match(PlannerInfo *root, const JoinSide *outer, const JoinSide *inner, JoinType jointype,
			  List *clauses)
{
	int			a = -1;

	if (outer->parts->nparts == 1 && inner->parts->nparts == 1)
		return true;
	while ((a = bms_next_member(outer->rel->relids, a)) >= 0)
	{
		RelOptInfo *left = root->simple_rel_array[a];
		int			b = -1;

		if (!IS_PARTITIONED_REL(left) || left->part_scheme->partnatts != 1 || left->partexprs[0] == NIL)
			continue;
		while ((b = bms_next_member(inner->rel->relids, b)) >= 0)
		{
			RelOptInfo *right = root->simple_rel_array[b];
			ListCell   *lc;

			if (!IS_PARTITIONED_REL(right) || right->part_scheme != left->part_scheme ||
				right->partexprs[0] == NIL)
				continue;
			foreach(lc, clauses)
			{
				if (says_equal(lfirst_node(RestrictInfo, lc), linitial(left->partexprs[0]),
							   linitial(right->partexprs[0])))
					return true;
			}
			if ((jointype == JOIN_INNER || jointype == JOIN_SEMI) &&
				compat_exprs_known_equal(root, linitial(left->partexprs[0]),
										 linitial(right->partexprs[0])))
				return true;
		}
	}
	return false;
}

/*
 * The clauses that decide what matches, and the others, which apply to the result.
 */
static void
divide_clauses(RelOptInfo *joinrel, JoinType jointype, List *clauses, List **match, List **filter)
{
	ListCell   *lc;

	*match = *filter = NIL;
	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (IS_OUTER_JOIN(jointype) && RINFO_IS_PUSHED_DOWN(rinfo, joinrel->relids))
			*filter = lappend(*filter, rinfo);
		else
			*match = lappend(*match, rinfo);
	}
}

/*
 * Can clauses be handled region by region at all?  Sort keys that span tables would not be known for
 * a join of partitions.
 */
static bool
clauses_fit(List *clauses)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->pseudoconstant || (rinfo->security_level > 0 && !rinfo->leakproof))
			return false;
		if (rinfo->can_join && (bms_membership(rinfo->left_relids) == BMS_MULTIPLE ||
								bms_membership(rinfo->right_relids) == BMS_MULTIPLE))
			return false;
	}
	return true;
}

/*
 * Are all members partitions?
 */
static bool
all_partitions(PlannerInfo *root, Relids relids)
{
	int			relid = -1;

	while ((relid = bms_next_member(relids, relid)) >= 0)
	{
		if (root->append_rel_array == NULL || root->append_rel_array[relid] == NULL)
			return false;
	}
	return true;
}

/*
 * A relation for the join of what lies in one region.  The core takes one with a global table in it for an
 * ordinary join: every member of a join between children must be a child.
 */
static RelOptInfo *
make_child(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outer, RelOptInfo *inner,
		   const RegionPart *key, double share)
{
	RelOptInfo *child = makeNode(RelOptInfo);

	child->relids = bms_union(outer->relids, inner->relids);
	child->reloptkind = RELOPT_JOINREL;
	if (key->remote || all_partitions(root, child->relids))
	{
		child->reloptkind = RELOPT_OTHER_JOINREL;
		child->top_parent_relids = joinrel->relids;
	}
	child->rows = clamp_row_est(joinrel->rows * share);
	child->consider_startup = joinrel->consider_startup;
	child->reltarget = residency_translate_target(root, joinrel->reltarget, child);
	child->rtekind = RTE_JOIN;
	child->userid = key->rel->userid;
	if (key->remote)
	{
		child->serverid = key->rel->serverid;
		child->fdwroutine = key->rel->fdwroutine;
	}
	return child;
}

/*
 * Whether the home can compute the join and all that is wanted of it; if so the child gets its
 * description.
 */
static bool
describe_join(PlannerInfo *root, RelOptInfo *child, RelOptInfo *outer, RelOptInfo *inner,
			  JoinType jointype, List *match, List *filter)
{
	FdwRel	   *fdw = palloc0(sizeof(FdwRel));
	List	   *all;
	ListCell   *lc;

	fdw->serverid = child->serverid;
	fdw->userid = child->userid;
	fdw->jointype = jointype;
	fdw->outer_rel = outer;
	fdw->inner_rel = inner;
	fdw->join_conds = (List *) residency_translate(root, (Node *) extract_actual_clauses(match, false), child);
	fdw->remote_conds = (List *) residency_translate(root, (Node *) extract_actual_clauses(filter, false), child);
	fdw->rows = fdw->retrieved_rows = child->rows;
	fdw->width = child->reltarget->width;

	all = list_concat_copy(fdw->join_conds, fdw->remote_conds);
	foreach(lc, list_concat(all, child->reltarget->exprs))
	{
		if (!residency_is_shippable(root, child, lfirst(lc)))
			return false;
	}
	if (jointype == JOIN_SEMI || jointype == JOIN_ANTI)
	{
		if (filter != NIL ||
			bms_overlap(pull_varnos(root, (Node *) child->reltarget->exprs), inner->relids))
			return false;
	}
	child->fdw_private = fdw;
	return true;
}

/*
 * residency_join_side_rels finds the sides' relations in one region; a global table is the same everywhere.  False
 * if one side has none there.
 */
bool
residency_join_side_rels(const JoinSide *outer, const JoinSide *inner, Oid server,
						 RelOptInfo **outer_rel, RelOptInfo **inner_rel)
{
	const RegionPart *part;

	*outer_rel = outer->rel;
	*inner_rel = inner->rel;
	if (outer->parts != NULL)
	{
		if ((part = find_part(outer->parts, server)) == NULL)
			return false;
		*outer_rel = part->rel;
	}
	if (inner->parts != NULL)
	{
		if ((part = find_part(inner->parts, server)) == NULL)
			return false;
		*inner_rel = part->rel;
	}
	return true;
}

/*
 * Does a side of a join keep rows of a global table, whatever its region holds?
 */
static bool
is_needed(const RelOptInfo *rel)
{
	return rel->fdw_private != NULL && ((FdwRel *) rel->fdw_private)->needed;
}

/*
 * residency_join_parts makes the parts of a join, NULL if it cannot be done region by region.  The local part has
 * no paths yet.
 */
RegionParts *
residency_join_parts(PlannerInfo *root, RelOptInfo *joinrel, const JoinSide *outer,
					 const JoinSide *inner, JoinType jointype, List *clauses)
{
	const JoinSide *lead = outer->parts != NULL ? outer : inner;
	RegionParts *result = palloc0(sizeof(RegionParts));
	List	   *match;
	List	   *filter;
	bool		keeps_copies;	/* also rows of a global table that match nothing */

	divide_clauses(joinrel, jointype, clauses, &match, &filter);
	if (outer->rel->userid != inner->rel->userid || !clauses_fit(clauses))
		return NULL;
	keeps_copies = outer->parts == NULL && jointype != JOIN_INNER && jointype != JOIN_SEMI;
	if (outer->parts == NULL && jointype != JOIN_INNER && inner->parts->nparts > 1)
		return NULL;
	if (keeps_copies && residency_on_away == RESIDENCY_ON_AWAY_SKIP)
		return NULL;			/* rows of the global table must come even if the region is left out */
	if (outer->parts != NULL && inner->parts != NULL &&
		!regions_match(root, outer, inner, jointype, match))
		return NULL;

	result->anchor = lead->parts->anchor;
	result->parts = palloc0(sizeof(RegionPart) * lead->parts->nparts);
	for (int i = 0; i < lead->parts->nparts; i++)
	{
		const RegionPart *key = &lead->parts->parts[i];
		RegionPart *part = &result->parts[result->nparts];
		RelOptInfo *outer_rel;
		RelOptInfo *inner_rel;

		if (!residency_join_side_rels(outer, inner, part_server(key), &outer_rel, &inner_rel))
		{
			if (jointype == JOIN_INNER || jointype == JOIN_SEMI)
				continue;
			return NULL;
		}
		if (key->remote && (outer->parts == NULL || inner->parts == NULL) &&
			residency_region_state(residency_server_region(key->rel->serverid)) != RESIDENCY_UP)
			return NULL;
		part->rel = make_child(root, joinrel, outer_rel, inner_rel, key,
							   Min(key->rel->rows / Max(lead->rel->rows, 1.0), 1.0));
		part->anchor = key->anchor;
		part->remote = key->remote;
		if (part->remote &&
			!describe_join(root, part->rel, outer_rel, inner_rel, jointype, match, filter))
			return NULL;
		if (part->remote)
			((FdwRel *) part->rel->fdw_private)->needed =
				keeps_copies || is_needed(outer_rel) || is_needed(inner_rel);
		result->nparts++;
		result->nremote += part->remote;
	}
	return result->nremote > 0 ? result : NULL;
}

/*
 * residency_join_sides looks at both sides of a join; false if it cannot be done region by region.
 */
bool
residency_join_sides(PlannerInfo *root, RelOptInfo *outerrel, RelOptInfo *innerrel,
					 JoinSide *outer, JoinSide *inner)
{
	*outer = (JoinSide) {outerrel, residency_region_parts(root, outerrel)};
	*inner = (JoinSide) {innerrel, residency_region_parts(root, innerrel)};
	if (outer->parts != NULL && inner->parts != NULL)
		return true;
	if (outer->parts == NULL && inner->parts == NULL)
		return false;
	return is_global(root, outer->parts == NULL ? outerrel : innerrel) && copies_are_equal(root);
}
