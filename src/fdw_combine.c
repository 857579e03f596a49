/*
 * fdw_combine.c
 *		The node "Region Aggregate", on top of a plan that combines partial results.
 *
 * The planner knows the query's aggregates by their expressions, and a node above finds count(*) in the
 * output of a node below by comparing them.  The plan below this node computes something
 * else, such as a sum of counts; so this node says which of its columns is which.  It checks HAVING, and
 * computes what stands around the aggregates.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "executor/executor.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"

/*
 * PlanCustomPath
 */
static Plan *
plan_combine(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist, List *clauses,
			 List *custom_plans)
{
	CustomScan *scan = makeNode(CustomScan);
	ListCell   *lc;

	foreach(lc, linitial(path->custom_private))
		scan->custom_scan_tlist = lappend(scan->custom_scan_tlist,
										  makeTargetEntry(copyObject(lfirst(lc)),
														  foreach_current_index(lc) + 1, NULL, false));
	scan->scan.plan.targetlist = tlist;
	scan->scan.plan.qual = lsecond(path->custom_private);
	scan->flags = path->flags;
	scan->custom_plans = custom_plans;
	scan->methods = &residency_combine_scan_methods;
	return &scan->scan.plan;
}

/*
 * BeginCustomScan
 */
static void
begin_combine(CustomScanState *node, EState *estate, int eflags)
{
	CustomScan *plan = castNode(CustomScan, node->ss.ps.plan);

	node->custom_ps = list_make1(ExecInitNode(linitial(plan->custom_plans), estate,
											  eflags & ~(EXEC_FLAG_BACKWARD | EXEC_FLAG_MARK)));
}

/*
 * The next row of the plan below, under our own names; its values stay where they are.
 */
static TupleTableSlot *
next_row(ScanState *node)
{
	TupleTableSlot *row = ExecProcNode(linitial(((CustomScanState *) node)->custom_ps));
	TupleTableSlot *slot = ExecClearTuple(node->ss_ScanTupleSlot);
	int			n = slot->tts_tupleDescriptor->natts;

	if (TupIsNull(row))
		return slot;
	slot_getallattrs(row);
	memcpy(slot->tts_values, row->tts_values, n * sizeof(Datum));
	memcpy(slot->tts_isnull, row->tts_isnull, n * sizeof(bool));
	return ExecStoreVirtualTuple(slot);
}

/*
 * Nothing is ever fetched again: rows of aggregates are not locked.
 */
static bool
recheck_row(ScanState *node, TupleTableSlot *slot)
{
	return true;
}

/*
 * ExecCustomScan
 */
static TupleTableSlot *
exec_combine(CustomScanState *node)
{
	return ExecScan(&node->ss, next_row, recheck_row);
}

/*
 * EndCustomScan
 */
static void
end_combine(CustomScanState *node)
{
	ExecEndNode(linitial(node->custom_ps));
}

/*
 * ReScanCustomScan
 */
static void
rescan_combine(CustomScanState *node)
{
	PlanState  *below = linitial(node->custom_ps);

	if (node->ss.ps.chgParam != NULL)
		UpdateChangedParamSet(below, node->ss.ps.chgParam);
	if (below->chgParam == NULL)
		ExecReScan(below);
	ExecScanReScan(&node->ss);
}

static const CustomExecMethods combine_exec_methods = {
	.CustomName = "Region Aggregate",
	.BeginCustomScan = begin_combine,
	.ExecCustomScan = exec_combine,
	.EndCustomScan = end_combine,
	.ReScanCustomScan = rescan_combine
};

/*
 * CreateCustomScanState
 */
static Node *
create_combine(CustomScan *plan)
{
	CustomScanState *node = makeNode(CustomScanState);

	node->methods = &combine_exec_methods;
	return (Node *) node;
}

const CustomPathMethods residency_combine_path_methods = {
	.CustomName = "Region Aggregate",
	.PlanCustomPath = plan_combine
};

const CustomScanMethods residency_combine_scan_methods = {
	.CustomName = "Region Aggregate",
	.CreateCustomScanState = create_combine
};
