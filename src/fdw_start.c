/*
 * fdw_start.c
 *		Which remote scans of a statement start together, and when.
 *
 * A statement should wait for one round trip to the farthest region, not for one
 * after the other (law 3), and should not ask a region whose rows nobody needs (law
 * 4).  The executor fetches from one node at a time; so when the first of several
 * scans is fetched from, all others that the answer needs as well are queued with it.
 * Those that every answer of the statement needs start even earlier, when its top node
 * is asked for the first row: rows of this region are read while they travel.
 *
 * "Needed as well" is read off the plan once, after ExecutorStart: the scans are put
 * into groups, and a group starts as one.  A new group begins
 *
 *		under a subplan, an init plan or a CTE			might never be read
 *		under a gating Result							its condition may be false
 *		at the inner side of a nested loop that passes parameters to it
 *		at the remote side of a join whose other side is purely local, hence may be
 *			empty without any region knowing
 *
 * and under a LIMIT each scan is its own group, until a node comes that reads all
 * of its input anyway (sort, aggregate, hash) or the first row of each child (merge).
 * Children that an Append prunes at run time start only if they survive.
 *
 * Invariant: a group can be started any number of times; what has been started stays
 * so until a rescan makes it start again.
 */
#include "postgres.h"

#include "fdw_exec.h"
#include "lookup.h"

#include "executor/execPartition.h"
#include "executor/executor.h"
#include "miscadmin.h"

struct FdwGroup
{
	List	   *nodes;			/* FdwNodes, in the plan's order */

	/* group of the whole statement: starts at the first call of its top node */
	PlanState  *top;
	ExecProcNodeMtd top_function;	/* what the first call would have been */
};

/* how scans below a plan node start */
typedef struct StartContext
{
	EState	   *estate;
	FdwGroup   *group;			/* NULL: each scan by itself */
	PlanState  *pruner;			/* nearest Append that prunes at run time */
	int			pruner_index;
} StartContext;

static void walk(PlanState *ps, StartContext context);

/* would the Append above a node skip it, or has not decided yet? */
static bool
left_out(FdwNode *node)
{
	Bitmapset  *valid;

	if (node->pruner == NULL)
		return false;
	if (IsA(node->pruner, AppendState))
		valid = ((AppendState *) node->pruner)->as_valid_subplans;
	else
		valid = ((MergeAppendState *) node->pruner)->ms_valid_subplans;
	return !bms_is_member(node->pruner_index, valid);
}

/* starts one node that is not the one being fetched from */
static void
start_other(FdwNode *node)
{
	PlanState  *ps = &node->state->ss.ps;

	/* what a rescan changes must be known before the parameters are evaluated */
	if (ps->chgParam != NULL)
		ExecReScan(ps);
	if (!node->started && !left_out(node))
		node->start(node);
}

/* starts all of a group that can be, but for the node given (or NULL) */
static void
start_group(FdwGroup *group, FdwNode *but)
{
	ListCell   *lc;

	foreach(lc, group->nodes)
	{
		FdwNode    *node = (FdwNode *) lfirst(lc);

		if (node != but && node->state != NULL && !node->started)
			start_other(node);
	}
}

/*
 * The node is about to be fetched from for the first time since its beginning or
 * its rescan: queues its requests and those of all that the answer needs as well.
 */
void
residency_node_start(FdwNode *node)
{
	if (node->group != NULL)
		start_group(node->group, node);
	if (!node->started)
		node->start(node);
}

/*
 * Stands in for the first call of a statement's top node: starts its group, and
 * steps out of the way.
 */
static TupleTableSlot *
first_call(PlanState *ps)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwGroup   *group = dlist_container(FdwNode, link, iter.cur)->group;

		if (group == NULL || group->top != ps)
			continue;
		ps->ExecProcNode = group->top_function;
		group->top = NULL;
		start_group(group, NULL);
		residency_remote_flush();
		return ps->ExecProcNode(ps);
	}
	elog(ERROR, "remote scans of a statement are gone");
}

/*
 * Starts the scans of a query that read a region it is about to write to for the first
 * time, so that none of them sees the write.  Scans with parameters are left: the
 * values are not known yet.
 */
void
residency_start_before_write(EState *estate, Oid serverid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwNode    *node = dlist_container(FdwNode, link, iter.cur);

		if (node->state->ss.ps.state == estate && node->serverid == serverid &&
			!node->modifies && !node->started && bms_is_empty(node->state->ss.ps.plan->allParam))
			start_other(node);
	}
}

/* can a query send another scan to a region, after it has begun to write there? */
bool
residency_reads_again(EState *estate, Oid serverid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwNode    *node = dlist_container(FdwNode, link, iter.cur);

		if (node->state->ss.ps.state == estate && node->serverid == serverid &&
			!node->modifies && !bms_is_empty(node->state->ss.ps.plan->allParam))
			return true;
	}
	return residency_lookup_reads(estate, serverid);
}

/* the node of a plan node if it is one of ours */
static FdwNode *
node_of(PlanState *ps)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwNode    *node = dlist_container(FdwNode, link, iter.cur);

		if (&node->state->ss.ps == ps)
			return node;
	}
	return NULL;
}

/* a context like the given one, but with a group of its own */
static StartContext
new_group(StartContext context)
{
	context.group = palloc0(sizeof(FdwGroup));
	return context;
}

/* is there a scan of ours below? looks no further than joins and appends go */
static bool
has_remote(PlanState *ps)
{
	if (ps == NULL)
		return false;
	switch (nodeTag(ps))
	{
		case T_ForeignScanState:
			return node_of(ps) != NULL;
		case T_AppendState:
			for (int i = 0; i < ((AppendState *) ps)->as_nplans; i++)
				if (has_remote(((AppendState *) ps)->appendplans[i]))
					return true;
			return false;
		case T_MergeAppendState:
			for (int i = 0; i < ((MergeAppendState *) ps)->ms_nplans; i++)
				if (has_remote(((MergeAppendState *) ps)->mergeplans[i]))
					return true;
			return false;
		case T_SubqueryScanState:
			return has_remote(((SubqueryScanState *) ps)->subplan);
		case T_CustomScanState:
			{
				ListCell   *lc;

				foreach(lc, ((CustomScanState *) ps)->custom_ps)
					if (has_remote((PlanState *) lfirst(lc)))
						return true;
				return false;
			}
		default:
			return has_remote(outerPlanState(ps)) || has_remote(innerPlanState(ps));
	}
}

/* children of an Append or MergeAppend; pruned: it chooses among them at run time */
static void
walk_children(PlanState *ps, PlanState **children, int n, bool pruned, StartContext context)
{
	for (int i = 0; i < n; i++)
	{
		StartContext child = context;

		if (pruned)
		{
			child.pruner = ps;
			child.pruner_index = i;
		}
		walk(children[i], child);
	}
}

/* both sides of a join */
static void
walk_join(PlanState *ps, StartContext context)
{
	PlanState  *outer = outerPlanState(ps);
	PlanState  *inner = innerPlanState(ps);
	bool		both = has_remote(outer) && has_remote(inner);

	if (IsA(ps, MergeJoinState) && context.group == NULL)
		context = new_group(context);
	/* the outer side waits only for the hash table of a purely local inner one */
	walk(outer, IsA(ps, HashJoinState) && !both && context.group ? new_group(context) : context);
	if (IsA(ps, NestLoopState) && ((NestLoop *) ps->plan)->nestParams != NIL)
		walk(inner, new_group(context));
	else if (IsA(ps, NestLoopState) && context.group == NULL)
		walk(inner, new_group(context));
	else
		walk(inner, both ? context : new_group(context));
}

/* sorts the scans below a plan node into groups */
static void
walk(PlanState *ps, StartContext context)
{
	FdwNode    *node;

	if (ps == NULL)
		return;
	check_stack_depth();
	switch (nodeTag(ps))
	{
		case T_ForeignScanState:
			node = node_of(ps);
			if (node == NULL)
				break;
			node->group = context.group;
			node->pruner = context.pruner;
			node->pruner_index = context.pruner_index;
			if (context.group != NULL)
				context.group->nodes = lappend(context.group->nodes, node);
			break;
		case T_LimitState:
			context.group = NULL;
			walk(outerPlanState(ps), context);
			break;
		case T_SortState:
		case T_AggState:
		case T_HashState:
		case T_SetOpState:
			walk(outerPlanState(ps), context.group ? context : new_group(context));
			break;
		case T_ResultState:
			if (((Result *) ps->plan)->resconstantqual != NULL && context.group != NULL)
				context = new_group(context);
			walk(outerPlanState(ps), context);
			break;
		case T_AppendState:
			walk_children(ps, ((AppendState *) ps)->appendplans, ((AppendState *) ps)->as_nplans,
						  ((AppendState *) ps)->as_prune_state != NULL &&
						  ((AppendState *) ps)->as_prune_state->do_exec_prune, context);
			break;
		case T_MergeAppendState:
			walk_children(ps, ((MergeAppendState *) ps)->mergeplans,
						  ((MergeAppendState *) ps)->ms_nplans,
						  ((MergeAppendState *) ps)->ms_prune_state != NULL &&
						  ((MergeAppendState *) ps)->ms_prune_state->do_exec_prune,
						  context.group ? context : new_group(context));
			break;
		case T_NestLoopState:
		case T_MergeJoinState:
		case T_HashJoinState:
			walk_join(ps, context);
			break;
		case T_SubqueryScanState:
			walk(((SubqueryScanState *) ps)->subplan, context);
			break;
		case T_CustomScanState:
			{
				ListCell   *lc;

				foreach(lc, ((CustomScanState *) ps)->custom_ps)
					walk((PlanState *) lfirst(lc), context);
				break;
			}
		default:
			walk(outerPlanState(ps), context);
			walk(innerPlanState(ps), context);
			break;
	}
}

/*
 * Groups the scans of a query that has just been initialized.  Costs next to nothing
 * for a query without remote scans.
 */
void
residency_fdw_collect_scans(QueryDesc *queryDesc)
{
	EState	   *estate = queryDesc->estate;
	StartContext context = {.estate = estate};
	MemoryContext old;
	bool		any = false;
	dlist_iter	iter;
	ListCell   *lc;

	dlist_foreach(iter, &residency_live_nodes)
	{
		if (dlist_container(FdwNode, link, iter.cur)->state->ss.ps.state == estate)
		{
			any = true;
			break;
		}
	}
	if (!any)
		return;
	old = MemoryContextSwitchTo(estate->es_query_cxt);
	context = new_group(context);
	walk(queryDesc->planstate, context);
	if (context.group->nodes != NIL)
	{
		context.group->top = queryDesc->planstate;
		context.group->top_function = queryDesc->planstate->ExecProcNode;
		queryDesc->planstate->ExecProcNode = first_call;
	}
	foreach(lc, estate->es_subplanstates)
		walk((PlanState *) lfirst(lc), new_group(context));
	MemoryContextSwitchTo(old);
}
