/*
 * fdw_plan_parts.c
 *		What of a relation lies in which region.
 *
 * A resident table has one part in each region, its partition there.  So does a join that needs
 * nothing but rows of one region at a time (fdw_plan_join.c).  Aggregates and joins ask for
 * the parts of a relation and push themselves below the Append that would collect the
 * rows of all parts.
 *
 * A part has an anchor, a partition of one resident table: the Append above the parts
 * prunes at run time by the conditions on that table, as it would above its partitions.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "nodes/makefuncs.h"
#include "optimizer/appendinfo.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/tlist.h"

/*
 * A single foreign table as its own part.  Its anchor is a copy that does not
 * count as a table of the query: else the plan's output could become the whole row.
 */
static RegionParts *
single_table(RelOptInfo *rel)
{
	RegionParts *result = palloc0(sizeof(RegionParts));
	RelOptInfo *anchor = palloc(sizeof(RelOptInfo));

	*anchor = *rel;
	anchor->reloptkind = RELOPT_OTHER_MEMBER_REL;
	result->anchor = rel;
	result->nparts = result->nremote = 1;
	result->parts = palloc0(sizeof(RegionPart));
	result->parts[0] = (RegionPart) {.rel = rel, .anchor = anchor, .remote = true};
	return result;
}

/*
 * The partitions of a table that planning has not excluded.
 */
static RegionParts *
partitions(RelOptInfo *rel)
{
	RegionParts *result = palloc0(sizeof(RegionParts));

	result->anchor = rel;
	result->parts = palloc0(sizeof(RegionPart) * Max(rel->nparts, 1));
	for (int i = 0; i < rel->nparts; i++)
	{
		RelOptInfo *child = rel->part_rels[i];
		RegionPart *part = &result->parts[result->nparts];

		if (child == NULL || IS_DUMMY_REL(child))
			continue;
		part->rel = part->anchor = child;
		part->remote = residency_is_foreign(child);

		/* what is not checked at the home must see the rows */
		if (part->remote && ((FdwRel *) child->fdw_private)->local_conds != NIL)
			return NULL;
		result->nparts++;
		result->nremote += part->remote;
	}
	return result;
}

/*
 * residency_region_parts returns the parts of a table, or of a join that fdw_plan_join.c has found to have
 * such; NULL if rel is neither, if rows of some region must be seen here, or if nothing
 * of it is in another region.
 */
RegionParts *
residency_region_parts(PlannerInfo *root, RelOptInfo *rel)
{
	RegionParts *result = NULL;

	if (!bms_is_empty(rel->lateral_relids) || IS_DUMMY_REL(rel))
		return NULL;
	if (rel->reloptkind == RELOPT_JOINREL)
		result = residency_may_use_private(rel) ? (RegionParts *) rel->fdw_private : NULL;
	else if (rel->reloptkind == RELOPT_BASEREL && residency_is_foreign(rel))
		result = ((FdwRel *) rel->fdw_private)->local_conds == NIL ? single_table(rel) : NULL;
	else if (rel->reloptkind == RELOPT_BASEREL && IS_PARTITIONED_REL(rel))
		result = partitions(rel);
	return result != NULL && result->nremote > 0 ? result : NULL;
}

/*
 * residency_translate turns columns of partitioned tables into those of the partitions in child.  The result is a
 * copy.
 */
Node *
residency_translate(PlannerInfo *root, Node *node, RelOptInfo *child)
{
	AppendRelInfo **infos = palloc(sizeof(AppendRelInfo *) * Max(bms_num_members(child->relids), 1));
	int			n = 0;
	int			relid = -1;

	while ((relid = bms_next_member(child->relids, relid)) >= 0)
	{
		if (root->append_rel_array != NULL && root->append_rel_array[relid] != NULL)
			infos[n++] = root->append_rel_array[relid];
	}
	return n > 0 ? adjust_appendrel_attrs(root, node, n, infos) : (Node *) copyObject(node);
}

/*
 * residency_translate_target does so with a target.
 */
PathTarget *
residency_translate_target(PlannerInfo *root, PathTarget *target, RelOptInfo *child)
{
	PathTarget *result = copy_pathtarget(target);

	result->exprs = (List *) residency_translate(root, (Node *) target->exprs, child);
	return result;
}
