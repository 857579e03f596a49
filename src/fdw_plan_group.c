/*
 * fdw_plan_group.c
 *		Aggregates, GROUP BY and DISTINCT that the regions compute.
 *
 * Two ways.  If every group lies in one region (because the query is about one region, or groups by
 * the partition column), each region computes its groups to the end, HAVING included, and results are
 * appended.  Otherwise each region gives partial results (fdw_plan_partial.c).
 *
 * What cannot be computed at the homes with the same outcome is left as it is: rows
 * come here.  So do those of a region lookup, which fetches no more than a few anyway.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "lookup.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/planner.h"
#include "optimizer/prep.h"
#include "optimizer/tlist.h"
#include "utils/selfuncs.h"

static create_upper_paths_hook_type next_upper_paths = NULL;

/* what a query wants of a relation's rows */
typedef struct Grouping
{
	PathTarget *target;			/* of the grouped relation */
	List	   *exprs;			/* expressions grouped by */
	List	   *clauses;		/* SortGroupClause of each */
	List	   *aggs;			/* Aggrefs in target and having, each once */
	List	   *having;
} Grouping;

/*
 * Is the relation best read by a region lookup?
 */
static bool
is_lookup(RelOptInfo *rel)
{
	Path	   *path = rel->cheapest_total_path;

	while (path != NULL && IsA(path, ProjectionPath))
		path = ((ProjectionPath *) path)->subpath;
	return path != NULL && IsA(path, CustomPath) &&
		((CustomPath *) path)->methods == &residency_lookup_path_methods;
}

/*
 * Adds to *aggs the aggregates in an expression.
 */
static void
collect_aggregates(Node *node, List **aggs)
{
	ListCell   *lc;

	foreach(lc, pull_var_clause(node, PVC_INCLUDE_AGGREGATES | PVC_RECURSE_WINDOWFUNCS |
								PVC_INCLUDE_PLACEHOLDERS))
	{
		if (IsA(lfirst(lc), Aggref))
			*aggs = list_append_unique(*aggs, lfirst(lc));
	}
}

/*
 * The grouped expressions, found in a target by the clauses' numbers.  False if one is missing.
 */
static bool
collect_groups(PathTarget *target, List *clauses, Grouping *grouping)
{
	ListCell   *lc;
	ListCell   *expr;

	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		bool		found = false;

		foreach(expr, target->exprs)
		{
			if (get_pathtarget_sortgroupref(target, foreach_current_index(expr)) != clause->tleSortGroupRef)
				continue;
			found = true;
			if (list_member(grouping->exprs, lfirst(expr)))
				break;
			grouping->exprs = lappend(grouping->exprs, lfirst(expr));
			grouping->clauses = lappend(grouping->clauses, clause);
			break;
		}
		if (!found)
			return false;
	}
	return true;
}

/*
 * Does each group lie in one region?
 */
static bool
groups_are_local(const RegionParts *parts, const Grouping *grouping)
{
	RelOptInfo *rel = parts->anchor;

	if (parts->nparts == 1)
		return true;
	if (!IS_PARTITIONED_REL(rel))
		return false;
	for (int i = 0; i < rel->part_scheme->partnatts; i++)
	{
		bool		grouped = false;
		ListCell   *lc;

		foreach(lc, grouping->exprs)
		{
			Node	   *expr = lfirst(lc);

			if (exprCollation(expr) != rel->part_scheme->partcollation[i])
				continue;
			while (IsA(expr, RelabelType))
				expr = (Node *) ((RelabelType *) expr)->arg;
			grouped = grouped || list_member(rel->partexprs[i], expr);
		}
		if (!grouped)
			return false;
	}
	return true;
}

/*
 * Divides HAVING into what the home checks and what is checked here on its results.
 */
static void
divide_having(PlannerInfo *root, const RegionPart *part, List *having, List **there, List **here)
{
	ListCell   *lc;

	foreach(lc, having)
	{
		if (residency_is_grouped_shippable(root, part->rel, lfirst(lc)))
			*there = lappend(*there, lfirst(lc));
		else
			*here = lappend(*here, lfirst(lc));
	}
}

/*
 * Complete groups of one region elsewhere; NULL if it cannot compute them.  If the path is the whole answer
 * (alone), the nodes above know its columns as those of the parent.
 */
static Path *
remote_groups(PlannerInfo *root, const RegionPart *part, const Grouping *grouping, bool alone)
{
	FdwQuery   *query = palloc0(sizeof(FdwQuery));
	List	   *all = list_concat_copy(grouping->exprs, grouping->aggs);
	List	   *having = (List *) residency_translate(root, (Node *) grouping->having, part->rel);
	List	   *groups = (List *) residency_translate(root, (Node *) grouping->exprs, part->rel);
	PathTarget *target = grouping->target;
	double		rows = 1;
	ListCell   *lc;

	query->rel = part->rel;
	query->exprs = (List *) residency_translate(root, (Node *) all, part->rel);
	query->scan_exprs = alone ? all : query->exprs;
	query->grouped = true;
	query->ngroups = list_length(groups);
	query->one_row = query->needed = groups == NIL;
	if (!residency_are_groups_shippable(root, part->rel, groups, grouping->clauses))
		return NULL;
	foreach(lc, list_copy_tail(query->exprs, query->ngroups))
	{
		if (!residency_is_grouped_shippable(root, part->rel, lfirst(lc)))
			return NULL;
	}
	divide_having(root, part, having, &query->having, &query->local_quals);
	if (alone && query->local_quals != NIL)
	{
		/* written in the columns that the output has */
		query->local_quals = grouping->having;
		query->having = NIL;
	}
	if (groups != NIL)
		rows = estimate_num_groups(root, groups, part->rel->rows, NULL, NULL);
	(void) residency_limit_groups(root, query, all, &rows);
	if (!alone)
		target = residency_translate_target(root, target, part->rel);
	return residency_query_path(root, part, query, target, rows,
								part->rel->rows * (cpu_tuple_cost +
												   cpu_operator_cost * list_length(all)));
}

/*
 * Complete groups of the rows stored here.
 */
static Path *
local_groups(PlannerInfo *root, const RegionPart *part, const Grouping *grouping)
{
	Path	   *path = part->rel->cheapest_total_path;
	PathTarget *input = create_empty_pathtarget();
	List	   *groups = (List *) residency_translate(root, (Node *) grouping->exprs, part->rel);
	List	   *having = (List *) residency_translate(root, (Node *) grouping->having, part->rel);
	List	   *aggs = (List *) residency_translate(root, (Node *) grouping->aggs, part->rel);
	AggClauseCosts costs = {0};
	ListCell   *lc;

	/* DISTINCT and ORDER BY in aggregates want sorted groups, whose columns a join would not find */
	if (path == NULL || path->param_info != NULL || root->numOrderedAggs > 0 ||
		!grouping_is_hashable(grouping->clauses))
		return NULL;
	foreach(lc, groups)
		add_column_to_pathtarget(input, lfirst(lc),
								 list_nth_node(SortGroupClause, grouping->clauses,
											   foreach_current_index(lc))->tleSortGroupRef);
	add_new_columns_to_pathtarget(input, pull_var_clause((Node *) aggs, PVC_RECURSE_AGGREGATES |
														 PVC_INCLUDE_PLACEHOLDERS));
	path = (Path *) create_projection_path(root, part->anchor, path,
										   set_pathtarget_cost_width(root, input));
	get_agg_clause_costs(root, AGGSPLIT_SIMPLE, &costs);
	return (Path *) create_agg_path(root, part->anchor, path,
									residency_translate_target(root, grouping->target, part->rel),
									AGG_HASHED, AGGSPLIT_SIMPLE, grouping->clauses, having, &costs,
									estimate_num_groups(root, groups, part->rel->rows, NULL, NULL));
}

/*
 * All groups, each computed in its region; NULL if that cannot be.
 */
static Path *
complete_path(PlannerInfo *root, const RegionParts *parts, const Grouping *grouping)
{
	List	   *subpaths = NIL;
	AppendPath *append;

	if (root->hasPseudoConstantQuals)
		return NULL;
	/* a region that is left out could not even say that it counted nothing */
	if (grouping->exprs == NIL && residency_on_away == RESIDENCY_ON_AWAY_SKIP)
		return NULL;
	if (parts->nparts == 1)
		return remote_groups(root, &parts->parts[0], grouping, true);
	if (contain_subplans((Node *) grouping->having) || contain_subplans((Node *) grouping->target->exprs))
		return NULL;
	for (int i = 0; i < parts->nparts; i++)
	{
		const RegionPart *part = &parts->parts[i];
		Path	   *path = part->remote ? remote_groups(root, part, grouping, false)
			: local_groups(root, part, grouping);

		if (path == NULL)
			return NULL;
		subpaths = lappend(subpaths, path);
	}
	append = create_append_path(root, parts->anchor, subpaths, NIL, NIL, NULL, 0, false, -1);
	append->path.pathtarget = grouping->target;
	return (Path *) append;
}

/*
 * Adds a path, and takes out those that are not clearly cheaper: round trips outweigh everything else in the
 * costs of small tables, so that few paths differ by more than the planner's tolerance, and then fewer rows
 * should cross.  Sorted paths stay if the query may stop early.
 */
static void
prefer_path(PlannerInfo *root, RelOptInfo *rel, Path *path)
{
	ListCell   *lc;

	foreach(lc, rel->pathlist)
	{
		Path	   *other = lfirst(lc);

		if (other->total_cost < path->total_cost * 0.98 ||
			(other->pathkeys != NIL && root->limit_tuples > 0))
			continue;
		rel->pathlist = foreach_delete_current(rel->pathlist, lc);
	}
	add_path(rel, path);
}

/*
 * Adds the path for a grouping, if there is one.
 */
static void
add_group_path(PlannerInfo *root, RelOptInfo *grouped_rel, const RegionParts *parts,
			   const Grouping *grouping)
{
	PartialPlan *partial;
	Path	   *path = NULL;

	if (groups_are_local(parts, grouping))
		path = complete_path(root, parts, grouping);
	if (path == NULL)
	{
		partial = residency_split_aggregates(root, grouping->exprs, grouping->clauses, grouping->aggs);
		if (partial != NULL)
			path = residency_partial_path(root, grouped_rel, parts, partial, grouping->having);
	}
	if (path != NULL)
		prefer_path(root, grouped_rel, path);
}

/*
 * GROUP BY and aggregates.  The groups' expressions are those of the input.
 */
static void
group_paths(PlannerInfo *root, RelOptInfo *input_rel, RelOptInfo *grouped_rel,
			const RegionParts *parts, GroupPathExtraData *extra)
{
	Grouping	grouping = {.target = grouped_rel->reltarget, .having = (List *) extra->havingQual};

	if (root->parse->groupingSets != NIL ||
		!collect_groups(input_rel->reltarget, root->parse->groupClause, &grouping))
		return;
	collect_aggregates((Node *) grouping.target->exprs, &grouping.aggs);
	collect_aggregates((Node *) grouping.having, &grouping.aggs);
	add_group_path(root, grouped_rel, parts, &grouping);
}

/*
 * SELECT DISTINCT of plain rows: groups without aggregates.
 */
static void
distinct_paths(PlannerInfo *root, RelOptInfo *input_rel, RelOptInfo *distinct_rel,
			   const RegionParts *parts)
{
	Query	   *parse = root->parse;
	Grouping	grouping = {.target = input_rel->reltarget};

	if (parse->hasDistinctOn || parse->hasAggs || parse->groupClause != NIL ||
		parse->groupingSets != NIL || parse->hasWindowFuncs || parse->hasTargetSRFs ||
		parse->havingQual != NULL ||
		!collect_groups(input_rel->reltarget, parse->distinctClause, &grouping) ||
		list_length(grouping.exprs) != list_length(input_rel->reltarget->exprs))
		return;
	if (distinct_rel->reltarget->exprs == NIL)
		distinct_rel->reltarget = input_rel->reltarget;
	add_group_path(root, distinct_rel, parts, &grouping);
}

/*
 * create_upper_paths_hook
 */
static void
push_upper_paths(PlannerInfo *root, UpperRelationKind stage, RelOptInfo *input_rel,
				 RelOptInfo *output_rel, void *extra)
{
	RegionParts *parts;

	if (next_upper_paths)
		next_upper_paths(root, stage, input_rel, output_rel, extra);
	if (!residency_enable_push || (stage != UPPERREL_GROUP_AGG && stage != UPPERREL_DISTINCT) ||
		output_rel->reloptkind != RELOPT_UPPER_REL || root->parse->rowMarks != NIL ||
		is_lookup(input_rel))
		return;
	parts = residency_region_parts(root, input_rel);
	if (parts == NULL)
		return;
	if (stage == UPPERREL_GROUP_AGG)
		group_paths(root, input_rel, output_rel, parts, (GroupPathExtraData *) extra);
	else
		distinct_paths(root, input_rel, output_rel, parts);
}

/*
 * residency_fdw_group_init installs the planner hook; called once, when the library is loaded.
 */
void
residency_fdw_group_init(void)
{
	next_upper_paths = create_upper_paths_hook;
	create_upper_paths_hook = push_upper_paths;
	RegisterCustomScanMethods(&residency_combine_scan_methods);
}
