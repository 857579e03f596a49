/*
 * lookup_exec.c
 *		Runs a region lookup: takes keys in batches, gives joined rows out.
 *
 * Several batches are on their way at once, so a long key side costs few waits.  The
 * first batch is asked for alone if the query may stop early, and alone as long as the key side has
 * no more rows.  Outer rows are read once, kept with their batch, and come out in their
 * order.
 *
 * Invariant: batches[0] is the one whose rows come out; it is complete once "started".
 */
#include "lookup_state.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "regions.h"

/* CreateCustomScanState */
Node *
residency_lookup_create_state(CustomScan *plan)
{
	LookupState *state = (LookupState *) newNode(sizeof(LookupState), T_CustomScanState);

	state->css.methods = &residency_lookup_exec_methods;
	return (Node *) state;
}

/* the regions that are not pruned, and where homes and rows are looked up here */
static void
init_targets(LookupState *state, CustomScan *plan)
{
	List	   *private = plan->custom_private;
	List	   *oids = list_nth(private, LookupOids);
	List	   *partitions = list_nth(private, LookupPartitions);
	Oid			home = list_nth_oid(oids, LookupHomeOid);
	ListCell   *lc;

	state->targets = palloc0((list_length(partitions) + 1) * sizeof(LookupTarget));
	foreach(lc, partitions)
	{
		LookupTarget *target = &state->targets[state->ntargets++];

		target->partition = lfirst_oid(lc);
		target->serverid = list_nth_oid(list_nth(private, LookupServers), foreach_current_index(lc));
		target->region = residency_server_region(target->serverid);
	}
	state->local = -1;
	if (OidIsValid(home))
	{
		state->local = state->ntargets;
		state->targets[state->local].partition = home;
		state->targets[state->local].region = pstrdup(residency_self()->region);
		state->ntargets++;
	}
	state->directory.relid = list_nth_oid(oids, LookupDirectoryOid);
	state->has_directory = OidIsValid(state->directory.relid);
	state->directory.indexid = list_nth_oid(oids, LookupDirectoryIndexOid);
	state->directory_region = list_nth_int(list_nth(private, LookupNumbers), LookupDirectoryRegion);
	state->home.relid = home;
	state->home.indexid = list_nth_oid(oids, LookupHomeIndexOid);
	state->userid = list_nth_oid(oids, LookupUserOid);
}

/* the resident part of the scan tuple, and how it is filled */
static void
init_resident(LookupState *state, CustomScan *plan)
{
	List	   *private = plan->custom_private;
	List	   *stored = list_nth(private, LookupStored);
	List	   *fetched = list_nth(private, LookupFetched);
	TupleDesc	scan_desc = state->css.ss.ss_ScanTupleSlot->tts_tupleDescriptor;
	TupleDesc	desc;
	List	   *attrs = NIL;
	ListCell   *lc;

	state->nresident = scan_desc->natts - state->nouter;
	desc = CreateTemplateTupleDesc(state->nresident);
	state->stored = palloc0((state->nresident + 1) * sizeof(AttrNumber));
	state->stored_len = palloc0((state->nresident + 1) * sizeof(int16));
	state->stored_byval = palloc0((state->nresident + 1) * sizeof(bool));
	for (int i = 0; i < state->nresident; i++)
	{
		TupleDescCopyEntry(desc, i + 1, scan_desc, state->nouter + i + 1);
		state->stored[i] = list_nth_int(stored, i);
		state->stored_len[i] = TupleDescAttr(desc, i)->attlen;
		state->stored_byval[i] = TupleDescAttr(desc, i)->attbyval;
	}
	foreach(lc, (List *) list_nth(private, LookupResident))
		state->special = state->special || lfirst_int(lc) == InvalidAttrNumber ||
			lfirst_int(lc) == TableOidAttributeNumber;
	foreach(lc, fetched)
		attrs = lappend_int(attrs, lfirst_int(lc) + 1);
	state->resident_slot = ExecInitExtraTupleSlot(state->css.ss.ps.state, desc, &TTSOpsVirtual);
	state->input = residency_input_make(desc, attrs);
}

/*
 * What is asked for, and in which portions.  A write asks for all at once: a key in two batches
 * would have its rows written twice.
 */
static void
init_operation(LookupState *state, CustomScan *plan)
{
	List	   *private = plan->custom_private;
	List	   *numbers = list_nth(private, LookupNumbers);

	state->operation = (CmdType) list_nth_int(numbers, LookupOperation);
	state->returns = list_nth_int(numbers, LookupReturns);
	state->counts = list_nth_int(numbers, LookupCounts);
	if (state->operation == CMD_SELECT)
	{
		state->first_rows = list_nth_int(numbers, LookupFirstRows);
		state->batch_rows = list_nth_int(numbers, LookupBatchRows);
		state->sql = strVal(list_nth(private, LookupSql));
		state->param_exprs = list_nth(plan->custom_exprs, LookupParams);
		return;
	}
	state->first_rows = state->batch_rows = INT_MAX;
	state->sql = strVal(list_nth(private, LookupWriteSql));
	state->missing_sql = strVal(list_nth(private, LookupMissingSql));
	state->param_exprs = list_nth(plan->custom_exprs, LookupWriteParams);
	state->row_exprs = list_nth(plan->custom_exprs, LookupWriteRowParams);
}

/* BeginCustomScan: prepares; reads and asks for nothing yet */
static void
lookup_begin(CustomScanState *node, EState *estate, int eflags)
{
	LookupState *state = (LookupState *) node;
	CustomScan *plan = castNode(CustomScan, node->ss.ps.plan);
	List	   *numbers = list_nth(plan->custom_private, LookupNumbers);
	ListCell   *lc;

	init_operation(state, plan);
	state->jointype = (JoinType) list_nth_int(numbers, LookupJoinType);
	state->nouter = list_nth_int(numbers, LookupOuterColumns);
	foreach(lc, plan->custom_plans)
	{
		state->outer = ExecInitNode((Plan *) lfirst(lc), estate,
									eflags & ~(EXEC_FLAG_BACKWARD | EXEC_FLAG_MARK));
		node->custom_ps = list_make1(state->outer);
		state->outer_slot = ExecInitExtraTupleSlot(estate, ExecGetResultType(state->outer),
												   &TTSOpsMinimalTuple);
	}
	init_targets(state, plan);
	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	residency_keys_init(state, plan);
	init_resident(state, plan);
	state->shipped = ExecInitQual(list_nth(plan->custom_exprs, LookupShipped), &node->ss.ps);
	state->joinquals = ExecInitQual(list_nth(plan->custom_exprs, LookupJoinQuals), &node->ss.ps);
	state->nparams = list_length(state->param_exprs);
	state->param_states = ExecInitExprList(state->param_exprs, &node->ss.ps);
	state->row_states = ExecInitExprList(state->row_exprs, &node->ss.ps);
	residency_lookup_live(state);
}

/*
 * Fills the scan tuple's resident part.  NULL values mean no row at all.  The outer part
 * stays as it is.
 */
void
residency_lookup_load(LookupState *state, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;

	ExecClearTuple(slot);
	if (values == NULL)
	{
		memset(slot->tts_values + state->nouter, 0, state->nresident * sizeof(Datum));
		memset(slot->tts_isnull + state->nouter, true, state->nresident * sizeof(bool));
	}
	else
	{
		memcpy(slot->tts_values + state->nouter, values, state->nresident * sizeof(Datum));
		memcpy(slot->tts_isnull + state->nouter, nulls, state->nresident * sizeof(bool));
	}
	ExecStoreVirtualTuple(slot);
}

/* fills the scan tuple's outer part from a slot, whose values must live on */
void
residency_lookup_load_outer(LookupState *state, TupleTableSlot *outer)
{
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;

	if (state->nouter == 0)
		return;
	slot_getallattrs(outer);
	memcpy(slot->tts_values, outer->tts_values, state->nouter * sizeof(Datum));
	memcpy(slot->tts_isnull, outer->tts_isnull, state->nouter * sizeof(bool));
}

/* computes the key of the outer row in the scan tuple; false if a part is NULL */
static bool
evaluate_key(LookupState *state)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	ListCell   *lc;

	econtext->ecxt_scantuple = state->css.ss.ss_ScanTupleSlot;
	foreach(lc, state->key_states)
	{
		bool		isnull;
		int			i = foreach_current_index(lc);

		state->key_values[i] = ExecEvalExprSwitchContext((ExprState *) lfirst(lc), econtext, &isnull);
		if (isnull)
			return false;
	}
	return true;
}

/* takes the next outer rows into the batch, as many as fit */
static void
fill_from_outer(LookupState *state, LookupBatch *batch, int max_rows, Size max_bytes)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	Size		bytes = 0;

	while (batch->nouters < max_rows && bytes < max_bytes)
	{
		TupleTableSlot *slot = ExecProcNode(state->outer);
		MinimalTuple tuple;
		MemoryContext old;
		int			entry = -1;

		if (TupIsNull(slot))
		{
			state->exhausted = true;
			return;
		}
		ResetExprContext(econtext);
		residency_lookup_load_outer(state, slot);
		residency_lookup_load(state, NULL, NULL);
		if (evaluate_key(state))
			entry = residency_batch_entry(state, batch, state->key_values);
		if (entry >= 0 && state->row_states != NIL)
			residency_question_row_values(state, batch, &batch->entries[entry]);
		else if (entry < 0 && (state->jointype == JOIN_INNER || state->jointype == JOIN_SEMI))
			continue;
		old = MemoryContextSwitchTo(batch->context);
		tuple = ExecCopySlotMinimalTuple(slot);
		MemoryContextSwitchTo(old);
		residency_batch_outer(batch, tuple, entry);
		bytes += tuple->t_len + sizeof(LookupOuter) + sizeof(LookupEntry);
		CHECK_FOR_INTERRUPTS();
	}
}

/* makes the next batch and asks for it; does not wait */
static void
add_batch(LookupState *state)
{
	bool		first = state->nbatches == 0 && state->read_batches == 0;
	int			rows = first ? state->first_rows : state->batch_rows;
	LookupBatch *batch = residency_batch_make(state);

	if (state->outer != NULL)
		fill_from_outer(state, batch, rows, state->operation != CMD_SELECT ? SIZE_MAX :
						(Size) work_mem * 1024 / LOOKUP_BATCHES);
	else
		residency_keys_fill(state, batch, rows);
	state->batches[state->nbatches++] = batch;
	state->keys_asked += batch->nentries;
	residency_batch_ask(state, batch);
}

/* throws the first batch away */
static void
drop_batch(LookupState *state)
{
	residency_batch_free(state->batches[0]);
	state->nbatches--;
	memmove(&state->batches[0], &state->batches[1], state->nbatches * sizeof(LookupBatch *));
	state->batches[state->nbatches] = NULL;
	state->read_batches++;
}

/* the state of a plan node if it is a region lookup, else NULL */
static LookupState *
lookup_of(PlanState *ps)
{
	if (!IsA(ps, CustomScanState) ||
		((CustomScanState *) ps)->methods != &residency_lookup_exec_methods)
		return NULL;
	return (LookupState *) ps;
}

/* servers that the lookup may ask, see lookup.h */
List *
residency_lookup_servers(PlanState *ps)
{
	LookupState *state = lookup_of(ps);
	List	   *servers = NIL;

	for (int i = 0; state != NULL && i < state->ntargets; i++)
	{
		if (i != state->local)
			servers = lappend_oid(servers, state->targets[i].serverid);
	}
	return servers;
}

/* the group that the lookup starts with, or NULL */
FdwGroup *
residency_lookup_group(PlanState *ps)
{
	return lookup_of(ps)->group;
}

/* makes the lookup start with a group */
void
residency_lookup_set_group(PlanState *ps, FdwGroup *group)
{
	lookup_of(ps)->group = group;
}

/*
 * Asks for the first keys, unless that was done; does not wait.  The plan below is run in the
 * query's memory, as the executor does: who starts a group may be a ForeignScan, which is called
 * in memory of one row, and a hash table made there would be freed behind its join's back.
 */
void
residency_lookup_start(PlanState *ps)
{
	LookupState *state = lookup_of(ps);
	MemoryContext old = MemoryContextSwitchTo(ps->state->es_query_cxt);

	if (ps->chgParam != NULL)
		ExecReScan(ps);
	if (state->live && !state->started && !state->exhausted && state->nbatches == 0)
		add_batch(state);
	MemoryContextSwitchTo(old);
}

/* the next batch is in place and complete; false if there is none */
static bool
next_batch(LookupState *state)
{
	if (state->started && state->nbatches > 0)
	{
		/* the last one stays, for a rescan */
		if (state->exhausted && state->nbatches == 1)
			return false;
		drop_batch(state);
	}
	else if (state->started)
		return false;

	if (!state->started && state->group != NULL)
		residency_group_start(state->group);
	/* all that may be on its way at once is asked for before anything is waited for */
	if (!state->exhausted && state->nbatches == 0)
		add_batch(state);
	while (!state->exhausted && state->nbatches < LOOKUP_BATCHES &&
		   (state->read_batches > 0 || state->first_rows == state->batch_rows))
		add_batch(state);
	state->started = true;
	if (state->nbatches == 0)
		return false;
	residency_batch_complete(state, state->batches[0]);
	state->outer_row = 0;
	state->outer_loaded = false;
	return true;
}

/* puts an outer row's columns into the scan tuple and begins with its key's rows */
static void
begin_outer(LookupState *state, LookupBatch *batch)
{
	LookupOuter *outer = &batch->outers[state->outer_row];

	if (outer->tuple != NULL)
	{
		ExecForceStoreMinimalTuple(outer->tuple, state->outer_slot, false);
		residency_lookup_load_outer(state, state->outer_slot);
	}
	state->found_row = outer->entry < 0 ? -1 : batch->entries[outer->entry].first;
	state->outer_loaded = true;
	state->matched = false;
}

/* puts a found row into the scan tuple; its values live as long as the tuple's context */
static void
load_found(LookupState *state, LookupBatch *batch, LookupRow *row)
{
	MemoryContext old;

	if (row->answer < 0)
	{
		residency_lookup_load(state, row->values, row->nulls);
		return;
	}
	old = MemoryContextSwitchTo(state->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);
	residency_input_row(state->input, batch->answers[row->answer].res, row->row, state->resident_slot);
	residency_row_finish(state, batch->answers[row->answer].target, state->resident_slot->tts_values,
						 state->resident_slot->tts_isnull);
	MemoryContextSwitchTo(old);
	residency_lookup_load(state, state->resident_slot->tts_values, state->resident_slot->tts_isnull);
}

/*
 * The next match of the current outer row, in the scan tuple; false if there is no more.
 */
static bool
next_match(LookupState *state, LookupBatch *batch)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;

	while (state->found_row >= 0)
	{
		LookupRow  *row = &batch->rows[state->found_row];

		state->found_row = row->next;
		if (row->answer >= 0)
			ResetExprContext(econtext);
		if (row->answer >= 0 && state->operation != CMD_SELECT)
		{
			residency_question_load_returned(state, &batch->answers[row->answer], row->row);
			return true;
		}
		load_found(state, batch, row);
		econtext->ecxt_scantuple = state->css.ss.ss_ScanTupleSlot;
		if (state->joinquals == NULL || ExecQual(state->joinquals, econtext))
			return true;
	}
	return false;
}

/* the access method: the next joined row, before the filter above */
static TupleTableSlot *
lookup_next(ScanState *node)
{
	LookupState *state = (LookupState *) node;
	TupleTableSlot *slot = node->ss_ScanTupleSlot;

	if (residency_row_is_checked(state))
		return residency_row_check(state) ? slot : ExecClearTuple(slot);
	for (;;)
	{
		LookupBatch *batch = state->nbatches > 0 && state->started ? state->batches[0] : NULL;
		bool		found;

		if (batch == NULL || state->outer_row >= batch->nouters)
		{
			if (!next_batch(state))
				return ExecClearTuple(slot);
			continue;
		}
		if (!state->outer_loaded)
			begin_outer(state, batch);
		found = (state->matched && state->jointype != JOIN_INNER && state->jointype != JOIN_LEFT) ? false :
			next_match(state, batch);
		if (found)
		{
			state->matched = true;
			if (state->jointype == JOIN_ANTI)
				continue;
			return slot;
		}

		/* the outer row is done with */
		state->outer_loaded = false;
		state->outer_row++;
		if (!state->matched && (state->jointype == JOIN_LEFT || state->jointype == JOIN_ANTI))
		{
			residency_lookup_load(state, NULL, NULL);
			return slot;
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * For a join the executor calls this, when a row is checked again, in place of lookup_next; for
 * a scan it does not come here.
 */
static bool
lookup_recheck(ScanState *node, TupleTableSlot *slot)
{
	TupleTableSlot *found = lookup_next(node);

	return !TupIsNull(found);
}

/* ExecCustomScan */
static TupleTableSlot *
lookup_exec(CustomScanState *node)
{
	return ExecScan(&node->ss, lookup_next, lookup_recheck);
}

/* forgets all batches; their requests are released */
static void
drop_all(LookupState *state)
{
	while (state->nbatches > 0)
		drop_batch(state);
	state->read_batches = 0;
	state->exhausted = state->started = false;
	state->outer_row = 0;
	state->outer_loaded = false;
	state->params_known = false;
}

/* ReScanCustomScan: what is in memory is read again if it is all, and nothing has changed */
static void
lookup_rescan(CustomScanState *node)
{
	LookupState *state = (LookupState *) node;
	bool		changed = node->ss.ps.chgParam != NULL;

	state->checked = false;
	if (state->outer != NULL)
	{
		if (changed)
			UpdateChangedParamSet(state->outer, node->ss.ps.chgParam);
		changed |= state->outer->chgParam != NULL;
	}
	if (!changed && state->started && state->exhausted && state->nbatches == 1 &&
		state->read_batches == 0)
	{
		state->outer_row = 0;
		state->outer_loaded = false;
		return;
	}
	drop_all(state);
	if (state->outer != NULL && state->outer->chgParam == NULL)
		ExecReScan(state->outer);
}

/* EndCustomScan */
static void
lookup_end(CustomScanState *node)
{
	LookupState *state = (LookupState *) node;

	while (state->nbatches > 0)
		drop_batch(state);
	residency_home_close(state);
	residency_lookup_forget(state);
	if (state->outer != NULL)
		ExecEndNode(state->outer);
}

const CustomExecMethods residency_lookup_exec_methods = {
	.CustomName = "Region Lookup",
	.BeginCustomScan = lookup_begin,
	.ExecCustomScan = lookup_exec,
	.EndCustomScan = lookup_end,
	.ReScanCustomScan = lookup_rescan,
	.ExplainCustomScan = residency_lookup_explain
};
