/*
 * fdw_start.c
 *		Starts the remote scans of a statement, those of a group together.
 *
 * A statement should wait for one round trip to the farthest region, not for one
 * after the other (law 3), and should not ask a region whose rows nobody needs (law
 * 4).  The executor fetches from one node at a time; so when the first of several
 * scans is fetched from, all others that the answer needs as well are queued with it.
 * Those that every answer of the statement needs start even earlier, when its top node
 * is asked for the first row: rows of this region are read while they travel.
 *
 * Which scans are a group is said in fdw_start_groups.c.  Those of a group that have no parameters go
 * first: to evaluate a parameter may mean to run a subquery, and to wait for it.
 *
 * Invariant: a group can be started any number of times; what has been started stays
 * so until a rescan makes it start again.
 */
#include "postgres.h"

#include "fdw_exec.h"
#include "lookup.h"

#include "executor/executor.h"
#include "miscadmin.h"

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

/* starts a node, unless its parameters are just being evaluated, or it has been started */
static void
start_node(FdwNode *node)
{
	if (node->started || node->starting)
		return;
	node->starting = true;
	node->start(node);
	node->starting = false;
}

/* starts one node that is not the one being fetched from */
static void
start_other(FdwNode *node)
{
	PlanState  *ps = &node->state->ss.ps;

	if (node->starting)
		return;
	/* what a rescan changes must be known before the parameters are evaluated */
	if (ps->chgParam != NULL)
		ExecReScan(ps);
	if (!left_out(node))
		start_node(node);
}

/* is there a value that must be computed before a lookup can be sent, perhaps by a subquery? */
static bool
lookup_waits(PlanState *ps)
{
	return !bms_is_empty(ps->plan->allParam);
}

/* starts all of a group that can be, but for the node given (or NULL) */
static void
start_group(FdwGroup *group, FdwNode *but)
{
	bool		later = false;
	ListCell   *lc;

	if (group->starting)
		return;
	group->starting = true;
	for (int pass = 0; pass < (later ? 2 : 1); pass++)
	{
		foreach(lc, group->nodes)
		{
			FdwNode    *node = (FdwNode *) lfirst(lc);

			if (node == but || node->state == NULL || node->started)
				continue;
			if (pass == 0 && node->nparams > 0)
				later = true;
			else
				start_other(node);
		}
		/* their keys are read here, while others are on their way */
		if (group->lookups != NIL || later)
			residency_remote_flush();
		foreach(lc, group->lookups)
		{
			if (pass == 0 && lookup_waits(lfirst(lc)))
				later = true;
			else
				residency_lookup_start(lfirst(lc));
		}
	}
	group->starting = false;
}

/* a node that is no ForeignScan is about to be fetched from for the first time */
void
residency_group_start(FdwGroup *group)
{
	start_group(group, NULL);
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
	start_node(node);
}

/* groups whose statement has not been asked for a row yet */
static dlist_head waiting_groups = DLIST_STATIC_INIT(waiting_groups);

/* takes a group off the list, also when its query's memory goes */
static void
forget_top(void *arg)
{
	FdwGroup   *group = (FdwGroup *) arg;

	if (group->top != NULL)
		dlist_delete(&group->link);
	group->top = NULL;
}

/*
 * Stands in for the first call of a statement's top node: starts its group, and
 * steps out of the way.
 */
static TupleTableSlot *
first_call(PlanState *ps)
{
	dlist_iter	iter;

	dlist_foreach(iter, &waiting_groups)
	{
		FdwGroup   *group = dlist_container(FdwGroup, link, iter.cur);

		if (group->top != ps)
			continue;
		ps->ExecProcNode = group->top_function;
		forget_top(group);
		start_group(group, NULL);
		residency_remote_flush();
		return ps->ExecProcNode(ps);
	}
	elog(ERROR, "remote scans of a statement are gone");
}

/* makes the group, in the query's memory, start with the first call of a statement's top node */
void
residency_group_start_with(FdwGroup *group, PlanState *top)
{
	group->top = top;
	group->top_function = top->ExecProcNode;
	top->ExecProcNode = first_call;
	dlist_push_tail(&waiting_groups, &group->link);
	group->reset.func = forget_top;
	group->reset.arg = group;
	MemoryContextRegisterResetCallback(top->state->es_query_cxt, &group->reset);
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
