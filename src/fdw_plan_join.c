/*
 * fdw_plan_join.c
 *		Joins that need rows of one region at a time.
 *
 * Resident tables joined on their region column (or both restricted to one region), and resident with
 * global tables, of which every region has a copy, are joined region by region: by each home for its
 * own rows, and here for those stored here.  What lies in one region is a part (fdw_plan_parts.c), which
 * further joins and aggregates push themselves into.
 *
 * A part is described by a relation that the planner does not know of, a join between partitions.
 * For the rows stored here the core finds its paths; for those elsewhere it carries what the
 * home is to be asked.
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
 *
 * A region lookup is preferred if it costs about the same, because it asks fewer regions.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "health.h"
#include "lookup.h"
#include "regions.h"

#include "catalog/pg_class.h"
#include "foreign/fdwapi.h"
#include "nodes/makefuncs.h"
#include "optimizer/appendinfo.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "parser/parsetree.h"

/* a lookup that costs up to this many times as much is taken instead */
#define LOOKUP_PREFERENCE 1.5

static set_join_pathlist_hook_type next_join_pathlist = NULL;

/* the core is joining what is stored here, and calls our hook about that */
static bool joining_locally = false;

/* one side of a join: what lies in each region, or the same everywhere */
typedef struct JoinSide
{
	RelOptInfo *rel;
	RegionParts *parts;			/* NULL: a global table */
} JoinSide;

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
 * The sides' relations in one region; a global table is the same everywhere.  False if one side has
 * none there.
 */
static bool
side_rels(const JoinSide *outer, const JoinSide *inner, Oid server,
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
 * The parts of a join, NULL if it cannot be done region by region.  The local part has no
 * paths yet.
 */
static RegionParts *
make_parts(PlannerInfo *root, RelOptInfo *joinrel, const JoinSide *outer, const JoinSide *inner,
		   JoinType jointype, List *clauses)
{
	const JoinSide *lead = outer->parts != NULL ? outer : inner;
	RegionParts *result = palloc0(sizeof(RegionParts));
	List	   *match;
	List	   *filter;

	divide_clauses(joinrel, jointype, clauses, &match, &filter);
	if (outer->rel->userid != inner->rel->userid || !clauses_fit(clauses))
		return NULL;
	if (outer->parts == NULL && jointype != JOIN_INNER && inner->parts->nparts > 1)
		return NULL;
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

		if (!side_rels(outer, inner, part_server(key), &outer_rel, &inner_rel))
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
		result->nparts++;
		result->nremote += part->remote;
	}
	return result->nremote > 0 ? result : NULL;
}

/*
 * What a join looks like to the planner between partitions.
 */
static SpecialJoinInfo *
translate_special(PlannerInfo *root, SpecialJoinInfo *info, JoinType jointype,
				  RelOptInfo *outer, RelOptInfo *inner, RelOptInfo *child)
{
	SpecialJoinInfo *copy = makeNode(SpecialJoinInfo);

	*copy = *info;
	if (jointype == JOIN_RIGHT)
	{
		RelOptInfo *swap = outer;

		outer = inner;
		inner = swap;
	}
	copy->min_lefthand = copy->syn_lefthand = outer->relids;
	copy->min_righthand = copy->syn_righthand = inner->relids;
	copy->semi_rhs_exprs = (List *) residency_translate(root, (Node *) info->semi_rhs_exprs, child);
	return copy;
}

/*
 * Lets the core join what is stored here.
 */
static void
join_locally(PlannerInfo *root, RelOptInfo *child, const JoinSide *outer, const JoinSide *inner,
			 JoinType jointype, JoinPathExtraData *extra)
{
	RelOptInfo *outer_rel;
	RelOptInfo *inner_rel;

	if (!side_rels(outer, inner, InvalidOid, &outer_rel, &inner_rel) ||
		outer_rel->cheapest_total_path == NULL || inner_rel->cheapest_total_path == NULL)
		return;
	joining_locally = true;
	PG_TRY();
	{
		add_paths_to_joinrel(root, child, outer_rel, inner_rel, jointype,
							 translate_special(root, extra->sjinfo, jointype, outer_rel, inner_rel, child),
							 (List *) residency_translate(root, (Node *) extra->restrictlist, child));
	}
	PG_FINALLY();
	{
		joining_locally = false;
	}
	PG_END_TRY();
	if (child->pathlist != NIL)
		set_cheapest(child);
}

/*
 * What a home does for a join before its first row: reads both sides.
 */
static Cost
home_cost(const RelOptInfo *child)
{
	FdwRel	   *fdw = (FdwRel *) child->fdw_private;

	if (fdw == NULL || fdw->outer_rel == NULL)
		return Max(child->tuples, child->rows) * (cpu_tuple_cost + cpu_operator_cost);
	return home_cost(fdw->outer_rel) + home_cost(fdw->inner_rel) + child->rows * cpu_tuple_cost;
}

/*
 * The path of one part.  If it is the only one, its columns are those of the join.
 */
static Path *
part_path(PlannerInfo *root, RelOptInfo *joinrel, const RegionPart *part, bool alone)
{
	Path	   *path = part->rel->cheapest_total_path;
	PathTarget *target = alone ? joinrel->reltarget : part->rel->reltarget;
	FdwQuery   *query;

	if (!part->remote)
		return path == NULL || path->param_info != NULL ? NULL :
			(Path *) create_projection_path(root, part->anchor, path, target);
	query = palloc0(sizeof(FdwQuery));
	query->rel = part->rel;
	query->exprs = part->rel->reltarget->exprs;
	query->scan_exprs = target->exprs;
	query->limited = residency_limit_applies(root, part->rel, NIL);
	return residency_query_path(root, part, query, target,
								query->limited ? residency_limit_rows(root, part->rel->rows, true) : part->rel->rows,
								home_cost(part->rel));
}

/*
 * The join region by region, under the join's own name: what stands above looks at the parent of a
 * path for the tables in it.  NULL if the rows stored here cannot be joined yet.
 */
static Path *
join_path(PlannerInfo *root, RelOptInfo *joinrel, const RegionParts *parts)
{
	List	   *subpaths = NIL;
	Path	   *path;

	for (int i = 0; i < parts->nparts; i++)
	{
		path = part_path(root, joinrel, &parts->parts[i], parts->nparts == 1);
		if (path == NULL)
			return NULL;
		subpaths = lappend(subpaths, path);
	}
	path = linitial(subpaths);
	if (parts->nparts > 1)
	{
		path = (Path *) create_append_path(root, parts->anchor, subpaths, NIL, NIL, NULL, 0, false, -1);
		path->pathtarget = joinrel->reltarget;
	}
	return (Path *) create_projection_path(root, joinrel, path, joinrel->reltarget);
}

/*
 * Is it a path that join_path made?
 */
static bool
is_own(Path *path)
{
	Path	   *below;

	if (!IsA(path, ProjectionPath))
		return false;
	below = ((ProjectionPath *) path)->subpath;
	if (IsA(below, AppendPath))
		below = linitial(((AppendPath *) below)->subpaths);
	return below->parent->reloptkind == RELOPT_OTHER_MEMBER_REL &&
		path->parent->reloptkind == RELOPT_JOINREL;
}

/*
 * Would a region lookup do about as well?
 */
static bool
lookup_is_good(RelOptInfo *joinrel, Path *path)
{
	ListCell   *lc;

	foreach(lc, joinrel->pathlist)
	{
		Path	   *other = lfirst(lc);

		if (IsA(other, CustomPath) &&
			((CustomPath *) other)->methods == &residency_lookup_path_methods &&
			other->total_cost <= path->total_cost * LOOKUP_PREFERENCE)
			return true;
	}
	return false;
}

/*
 * Takes out our path of an earlier call for the same relation: now there may be a better one, and
 * other paths must not be compared with it before they are all there.
 */
static void
remove_own(RelOptInfo *joinrel)
{
	ListCell   *lc;

	foreach(lc, joinrel->pathlist)
	{
		if (is_own(lfirst(lc)))
			joinrel->pathlist = foreach_delete_current(joinrel->pathlist, lc);
	}
}

/*
 * Can joins of this query be left to the homes at all?
 */
static bool
query_fits(PlannerInfo *root, RelOptInfo *joinrel)
{
	return residency_enable_push && !joining_locally && joinrel->reloptkind == RELOPT_JOINREL &&
		residency_may_use_private(joinrel) &&
		bms_is_empty(joinrel->lateral_relids) && root->parse->commandType == CMD_SELECT &&
		root->rowMarks == NIL && !root->hasPseudoConstantQuals;
}

/*
 * set_join_pathlist_hook
 */
static void
push_join_paths(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outerrel,
				RelOptInfo *innerrel, JoinType jointype, JoinPathExtraData *extra)
{
	bool		fits = query_fits(root, joinrel);
	JoinSide	outer = {.rel = outerrel};
	JoinSide	inner = {.rel = innerrel};
	RegionParts *parts;
	Path	   *path;

	if (fits)
		remove_own(joinrel);
	if (next_join_pathlist)
		next_join_pathlist(root, joinrel, outerrel, innerrel, jointype, extra);
	if (!fits)
		return;

	outer.parts = residency_region_parts(root, outerrel);
	inner.parts = residency_region_parts(root, innerrel);
	if ((outer.parts != NULL || inner.parts != NULL) &&
		(outer.parts != NULL || (is_global(root, outerrel) && copies_are_equal(root))) &&
		(inner.parts != NULL || (is_global(root, innerrel) && copies_are_equal(root))))
	{
		if (joinrel->fdw_private == NULL &&
			(jointype == JOIN_INNER || jointype == JOIN_LEFT || jointype == JOIN_SEMI || jointype == JOIN_ANTI))
			joinrel->fdw_private = make_parts(root, joinrel, &outer, &inner, jointype, extra->restrictlist);
		parts = (RegionParts *) joinrel->fdw_private;
		for (int i = 0; parts != NULL && i < parts->nparts; i++)
		{
			if (!parts->parts[i].remote && jointype <= JOIN_ANTI)
				join_locally(root, parts->parts[i].rel, &outer, &inner, jointype, extra);
		}
	}

	parts = (RegionParts *) joinrel->fdw_private;
	if (parts == NULL)
		return;
	path = join_path(root, joinrel, parts);
	if (path != NULL && !lookup_is_good(joinrel, path))
		add_path(joinrel, path);
}

/*
 * residency_fdw_join_init installs the planner hook; called once, after the lookup's.
 */
void
residency_fdw_join_init(void)
{
	next_join_pathlist = set_join_pathlist_hook;
	set_join_pathlist_hook = push_join_paths;
}
