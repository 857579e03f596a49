/*
 * fdw_plan_join.c
 *		Joins that need rows of one region at a time.
 *
 * Resident tables joined on their region column (or both restricted to one region), and resident with
 * global tables, of which every region has a copy, are joined region by region: by each home for its
 * own rows, and here for those stored here.  What lies in one region is a part (fdw_plan_parts.c), which
 * further joins and aggregates push themselves into.
 *
 * A region lookup is preferred if it costs about the same, because it asks fewer regions.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "lookup.h"

#include "nodes/makefuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"

/* a lookup that costs up to this many times as much is taken instead */
#define LOOKUP_PREFERENCE 1.5

static set_join_pathlist_hook_type next_join_pathlist = NULL;

/* the core is joining what is stored here, and calls our hook about that */
static bool joining_locally = false;

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

	if (!residency_join_side_rels(outer, inner, InvalidOid, &outer_rel, &inner_rel) ||
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
	query->limited = residency_limit_applies(root, part->rel, root->sort_pathkeys) &&
		residency_can_sort(root, part->rel, root->sort_pathkeys);
	if (query->limited)
		query->pathkeys = root->sort_pathkeys;
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
	JoinSide	outer;
	JoinSide	inner;
	RegionParts *parts;
	Path	   *path;

	if (fits)
		remove_own(joinrel);
	if (next_join_pathlist)
		next_join_pathlist(root, joinrel, outerrel, innerrel, jointype, extra);
	if (!fits)
		return;

	if (residency_join_sides(root, outerrel, innerrel, &outer, &inner))
	{
		if (joinrel->fdw_private == NULL &&
			(jointype == JOIN_INNER || jointype == JOIN_LEFT || jointype == JOIN_SEMI || jointype == JOIN_ANTI))
			joinrel->fdw_private = residency_join_parts(root, joinrel, &outer, &inner, jointype,
														 extra->restrictlist);
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
