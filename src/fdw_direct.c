/*
 * fdw_direct.c
 *		Runs an UPDATE or DELETE that is done at the home as a whole.
 *
 * It is a ForeignScan whose first fetch sends the statement; those of several regions
 * are in one group (fdw_start_groups.c), so they run side by side.  The number of rows is part
 * of the client's answer, so it is always awaited.  With RETURNING the rows that come
 * back are handed to ModifyTable one by one, in the scan slot.
 */
#include "postgres.h"

#include "fdw_exec.h"

#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/value.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

typedef struct FdwDirect
{
	FdwNode		node;			/* must be first */
	const char *sql;
	bool		has_returning;
	bool		set_processed;
	int			flags;			/* of the request */
	FdwInput   *input;			/* has_returning */
	bool		done;			/* the answer was counted */
	PGresult   *res;
	int			row;			/* next row of res */
} FdwDirect;

/* FdwNodeStart of direct modifications */
static void
start_direct(FdwNode *node)
{
	FdwDirect  *direct = (FdwDirect *) node;

	residency_start_before_write(node->state->ss.ps.state, node->serverid);
	(void) residency_node_evaluate(node);
	residency_node_begin(node);
	node->current = residency_node_send(node, direct->sql, node->nparams, direct->flags);
	node->started = true;
}

/*
 * Makes the plan node compute nothing but junk columns.  Its target list holds the
 * new values of an UPDATE as well, which the home has computed already; computing them here
 * again, from new values or NULLs, could fail.
 */
static void
project_junk_only(ForeignScanState *state)
{
	List	   *tlist = NIL;
	ListCell   *lc;

	if (state->ss.ps.ps_ProjInfo == NULL)
		return;
	foreach(lc, state->ss.ps.plan->targetlist)
	{
		TargetEntry *entry = copyObject((TargetEntry *) lfirst(lc));

		if (!entry->resjunk && !IsA(entry->expr, Var))
			entry->expr = (Expr *) makeNullConst(exprType((Node *) entry->expr),
												 exprTypmod((Node *) entry->expr),
												 exprCollation((Node *) entry->expr));
		tlist = lappend(tlist, entry);
	}
	state->ss.ps.ps_ProjInfo = ExecBuildProjectionInfo(tlist, state->ss.ps.ps_ExprContext,
													   state->ss.ps.ps_ResultTupleSlot, &state->ss.ps,
													   state->ss.ss_ScanTupleSlot->tts_tupleDescriptor);
}

/* prepares a direct modification; sends nothing */
static void
residencyBeginDirectModify(ForeignScanState *state, int eflags)
{
	ForeignScan *plan = (ForeignScan *) state->ss.ps.plan;
	FdwDirect  *direct;

	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	direct = palloc0(sizeof(FdwDirect));
	direct->sql = strVal(list_nth(plan->fdw_private, FdwDirectSql));
	direct->has_returning = boolVal(list_nth(plan->fdw_private, FdwDirectHasReturning));
	direct->set_processed = boolVal(list_nth(plan->fdw_private, FdwDirectSetProcessed));
	direct->flags = REMOTE_WRITES;
	if (residency_home_check_needed(state->ss.ss_currentRelation, plan->operation,
									ExecGetUpdatedCols(state->resultRelInfo, state->ss.ps.state)))
		direct->flags |= REMOTE_RESIDENT;
	if (direct->has_returning)
	{
		direct->input = residency_input_make(state->ss.ss_ScanTupleSlot->tts_tupleDescriptor,
											 list_nth(plan->fdw_private, FdwDirectAttrs));
		project_junk_only(state);
	}
	state->fdw_state = direct;
	residency_node_init(&direct->node, state, true, start_direct);
}

/* waits for the answer, and counts the rows */
static void
take_answer(ForeignScanState *state, FdwDirect *direct)
{
	uint64		n;

	if (!direct->node.started)
		residency_node_start(&direct->node);
	direct->res = residency_node_wait(&direct->node, direct->node.current);
	n = direct->has_returning ? PQntuples(direct->res) : residency_remote_affected(direct->res);
	if (direct->set_processed)
		state->ss.ps.state->es_processed += n;
	if (!direct->has_returning && state->ss.ps.instrument != NULL)
		state->ss.ps.instrument->tuplecount += n;
	direct->done = true;
}

/* next row of RETURNING; an empty slot at the end, or at once without RETURNING */
static TupleTableSlot *
residencyIterateDirectModify(ForeignScanState *state)
{
	FdwDirect  *direct = (FdwDirect *) state->fdw_state;
	TupleTableSlot *slot = state->ss.ss_ScanTupleSlot;
	ResultRelInfo *rri = state->resultRelInfo;

	if (!direct->done)
		take_answer(state, direct);
	if (!direct->has_returning || direct->row >= PQntuples(direct->res))
		return ExecClearTuple(slot);

	residency_input_row(direct->input, direct->res, direct->row++, slot);
	slot->tts_tableOid = RelationGetRelid(rri->ri_RelationDesc);
	/* this is where ModifyTable looks for the row that RETURNING is about */
	if (rri->ri_projectReturning != NULL)
		rri->ri_projectReturning->pi_exprContext->ecxt_scantuple = slot;
	return slot;
}

/* gives back the answer */
static void
residencyEndDirectModify(ForeignScanState *state)
{
	if (state->fdw_state != NULL)
		residency_node_end(&((FdwDirect *) state->fdw_state)->node);
}

/* installs the callbacks of direct modification */
void
residency_direct_routine(FdwRoutine *routine)
{
	routine->BeginDirectModify = residencyBeginDirectModify;
	routine->IterateDirectModify = residencyIterateDirectModify;
	routine->EndDirectModify = residencyEndDirectModify;
}
