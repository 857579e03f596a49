/*
 * fdw_node.c
 *		What all ForeignScans of ours have in common: parameters, requests, their end.
 *
 * All that are being executed are in one list of this backend.  It serves to start
 * scans together (fdw_start.c), and to tell them about the end of the (sub)transaction
 * that their requests belong to: a request does not outlive its transaction, while the
 * memory of a failed query goes after that.
 */
#include "postgres.h"

#include "fdw_exec.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "border.h"

dlist_head	residency_live_nodes = DLIST_STATIC_INIT(residency_live_nodes);

/* takes a node off the list of live ones when its query's memory goes */
static void
forget_node(void *arg)
{
	residency_node_end((FdwNode *) arg);
	residency_tally_release(((FdwNode *) arg)->tally);
}

/* the table whose traffic a scan is; of a join that its home does, the first one */
static Oid
scan_table(ForeignScanState *state)
{
	ForeignScan *plan = (ForeignScan *) state->ss.ps.plan;
	int			rti = plan->scan.scanrelid > 0 ? plan->scan.scanrelid : -1;

	while (rti < 0 || exec_rt_fetch(rti, state->ss.ps.state)->rtekind != RTE_RELATION)
	{
		rti = bms_next_member(plan->fs_relids, rti);
		if (rti < 0)
			return InvalidOid;
	}
	return residency_border_table(exec_rt_fetch(rti, state->ss.ps.state)->relid);
}

/* role whose rights decide about a scan: a view's or definer function's, or the user */
static Oid
scan_userid(ForeignScanState *state)
{
	ForeignScan *plan = (ForeignScan *) state->ss.ps.plan;
	Oid			userid;

#ifdef COMPAT_HAS_PERMISSION_INFOS
	userid = plan->checkAsUser;
#else
	int			rti = plan->scan.scanrelid > 0 ? plan->scan.scanrelid :
		bms_next_member(plan->fs_relids, -1);

	userid = exec_rt_fetch(rti, state->ss.ps.state)->checkAsUser;
#endif
	return OidIsValid(userid) ? userid : GetUserId();
}

/*
 * Fills in the part that all nodes share.  The node is allocated, zeroed, in the
 * query's memory context, and is cleaned up with it, also after an error.
 */
void
residency_node_init(FdwNode *node, ForeignScanState *state, bool modifies, FdwNodeStart start)
{
	ForeignScan *plan = (ForeignScan *) state->ss.ps.plan;
	MemoryContext context = state->ss.ps.state->es_query_cxt;
	List	   *exprs = plan->fdw_exprs;

	node->state = state;
	node->serverid = plan->fs_server;
	node->userid = scan_userid(state);
	node->table = scan_table(state);
	node->tally = residency_border_tally(state->ss.ps.state);
	node->start = start;
	node->modifies = modifies;
	node->nparams = list_length(exprs);
	if (node->nparams > 0)
	{
		Oid		   *types = palloc(node->nparams * sizeof(Oid));
		ListCell   *lc;

		foreach(lc, exprs)
			types[foreach_current_index(lc)] = exprType((Node *) lfirst(lc));
		node->param_exprs = ExecInitExprList(exprs, &state->ss.ps);
		node->param_output = residency_output_make(node->nparams, types);
		node->param_context = AllocSetContextCreate(context, "residency scan parameters",
													ALLOCSET_SMALL_SIZES);
	}
	dlist_push_tail(&residency_live_nodes, &node->link);
	node->reset.func = forget_node;
	node->reset.arg = node;
	MemoryContextRegisterResetCallback(context, &node->reset);
}

/*
 * Evaluates the parameters.  Returns true if their texts are what they were at the
 * last call, so that rows fetched then are still the right ones.
 */
bool
residency_node_evaluate(FdwNode *node)
{
	ExprContext *econtext = node->state->ss.ps.ps_ExprContext;
	const char **values;
	MemoryContext old;
	bool		same = node->param_values != NULL;
	int			level;
	int			i = 0;
	ListCell   *lc;

	if (node->nparams == 0)
		return true;
	old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	values = palloc(node->nparams * sizeof(char *));
	level = residency_output_begin();
	foreach(lc, node->param_exprs)
	{
		bool		isnull;
		Datum		value = ExecEvalExpr((ExprState *) lfirst(lc), econtext, &isnull);

		values[i] = isnull ? NULL : residency_output_value(node->param_output, i, value);
		if (same && (isnull || node->param_values[i] == NULL ?
					 values[i] != node->param_values[i] :
					 strcmp(values[i], node->param_values[i]) != 0))
			same = false;
		i++;
	}
	residency_output_end(level);
	if (!same)
	{
		MemoryContextReset(node->param_context);
		MemoryContextSwitchTo(node->param_context);
		node->param_values = palloc(node->nparams * sizeof(char *));
		for (i = 0; i < node->nparams; i++)
			node->param_values[i] = values[i] ? pstrdup(values[i]) : NULL;
	}
	MemoryContextSwitchTo(old);
	return same;
}

/*
 * Queues a statement in the node's own region; with nparams > 0 it has the parameters
 * as last evaluated.
 */
RemoteRequest *
residency_node_send(FdwNode *node, const char *sql, int nparams, int flags)
{
	EState	   *before = residency_modify_reading(node->state->ss.ps.state);
	RemoteSubject about = {node->table, 0, node->tally};
	RemoteRequest *req = NULL;

	PG_TRY();
	{
		req = residency_remote_send_about(&about, residency_remote_region(node->serverid),
										  node->userid, sql, nparams,
										  nparams > 0 ? node->param_values : NULL, flags, -1);
	}
	PG_FINALLY();
	{
		(void) residency_modify_reading(before);
	}
	PG_END_TRY();
	return req;
}

/* marks the (sub)transaction that the node's remote cursor or statement begins in */
void
residency_node_begin(FdwNode *node)
{
	node->subid = GetCurrentSubTransactionId();
	node->gone = false;
}

/*
 * Waits for a request of the node.  Whatever is queued, in all regions, and rows that are
 * held back travel in the same flight.
 */
PGresult *
residency_node_wait(FdwNode *node, RemoteRequest *req)
{
	if (!residency_remote_answered(req))
		residency_modify_flush_before_wait(node->state->ss.ps.state);
	return residency_remote_wait(req);
}

/* gives back all requests, answered or not */
void
residency_node_release(FdwNode *node)
{
	residency_remote_release(node->declare);
	residency_remote_release(node->current);
	residency_remote_release(node->ahead);
	node->declare = node->current = node->ahead = NULL;
}

/* ends a node; may be called again, and also after the transaction has ended */
void
residency_node_end(FdwNode *node)
{
	if (node->state == NULL)
		return;
	residency_node_release(node);
	dlist_delete(&node->link);
	node->state = NULL;
}

/* the transaction has ended, and all requests with it */
static void
at_transaction_end(XactEvent event, void *arg)
{
	dlist_iter	iter;

	switch (event)
	{
		case XACT_EVENT_ABORT:
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}
	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwNode    *node = dlist_container(FdwNode, link, iter.cur);

		node->declare = node->current = node->ahead = NULL;
		node->gone = true;
	}
}

/* a subtransaction has ended: what began in it is gone, or belongs to its parent now */
static void
at_subtransaction_end(SubXactEvent event, SubTransactionId subid,
					  SubTransactionId parent, void *arg)
{
	dlist_iter	iter;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwNode    *node = dlist_container(FdwNode, link, iter.cur);

		if (node->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_ABORT_SUB)
			node->gone = true;
		else
			node->subid = parent;
	}
}

/* registers what must be told about transactions; after residency_commit_init */
void
residency_fdw_start_init(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
	RegisterSubXactCallback(at_subtransaction_end, NULL);
}
