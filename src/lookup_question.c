/*
 * lookup_question.c
 *		One question of a region lookup: its parameters, its text, and what a write answers.
 *
 * Keys travel as one array for each key column, values for each row of the key side next to
 * them.  A write asks behind it which keys are not held, in the same flight.
 */
#include "lookup_state.h"

#include "access/sysattr.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "border.h"
#include "fdw_exec.h"

/* evaluates what is sent behind the arrays, once after each rescan */
static void
evaluate_params(LookupState *state)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	MemoryContext old;
	int			level;
	ListCell   *lc;

	if (state->params_known)
		return;
	old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);
	if (state->key_output == NULL)
	{
		Oid		   *types = palloc((state->nparams + 1) * sizeof(Oid));

		foreach(lc, state->param_exprs)
			types[foreach_current_index(lc)] = exprType(lfirst(lc));
		state->param_output = residency_output_make(state->nparams, types);
		state->key_output = residency_output_make(state->nkeys, state->key_types);
		state->param_values = palloc((state->nparams + 1) * sizeof(char *));
		state->param_context = AllocSetContextCreate(CurrentMemoryContext, "residency lookup parameters",
													 ALLOCSET_SMALL_SIZES);
	}
	MemoryContextReset(state->param_context);
	MemoryContextSwitchTo(state->param_context);
	level = residency_output_begin();
	foreach(lc, state->param_states)
	{
		int			i = foreach_current_index(lc);
		bool		isnull;
		Datum		value = ExecEvalExprSwitchContext((ExprState *) lfirst(lc), econtext, &isnull);

		state->param_values[i] = isnull ? NULL : residency_output_value(state->param_output, i, value);
	}
	residency_output_end(level);
	MemoryContextSwitchTo(old);
	state->params_known = true;
}

/*
 * Texts of the values that a write takes along for the outer row in the scan tuple, kept with
 * its entry in the batch's memory.
 */
void
residency_question_row_values(LookupState *state, LookupBatch *batch, LookupEntry *entry)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	int			n = list_length(state->row_states);
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	int			level;
	ListCell   *lc;

	if (state->row_output == NULL)
	{
		Oid		   *types = palloc((n + 1) * sizeof(Oid));

		foreach(lc, state->row_exprs)
			types[foreach_current_index(lc)] = exprType(lfirst(lc));
		MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);
		state->row_output = residency_output_make(n, types);
		MemoryContextSwitchTo(batch->context);
	}
	entry->texts = palloc((n + 1) * sizeof(char *));
	level = residency_output_begin();
	foreach(lc, state->row_states)
	{
		int			i = foreach_current_index(lc);
		bool		isnull;
		Datum		value = ExecEvalExprSwitchContext((ExprState *) lfirst(lc), econtext, &isnull);

		entry->texts[i] = isnull ? NULL : residency_output_value(state->row_output, i, value);
	}
	residency_output_end(level);
	MemoryContextSwitchTo(old);
}

/* adds an element to the text of an array; NULL is SQL NULL */
static void
append_element(StringInfo buf, const char *text)
{
	if (buf->len > 1)
		appendStringInfoChar(buf, ',');
	if (text == NULL)
	{
		appendStringInfoString(buf, "NULL");
		return;
	}
	appendStringInfoChar(buf, '"');
	for (const char *p = text; *p; p++)
	{
		if (*p == '"' || *p == '\\')
			appendStringInfoChar(buf, '\\');
		appendStringInfoChar(buf, *p);
	}
	appendStringInfoChar(buf, '"');
}

/* one key column of the keys asked for, or the values behind them, as the text of an array */
static char *
array_text(LookupState *state, LookupBatch *batch, const LookupAnswer *answer, int column)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < answer->nentries; i++)
	{
		LookupEntry *entry = &batch->entries[answer->entries[i]];

		if (column >= state->nkeys)
			append_element(&buf, entry->texts[column - state->nkeys]);
		else
		{
			char	   *text = residency_output_value(state->key_output, column, entry->values[column]);

			append_element(&buf, text);
			pfree(text);
		}
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* a text with the name of the target's table put in */
char *
residency_question_text(const char *sql, Oid partition)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(partition)),
												  get_rel_name(partition));
	StringInfoData buf;

	initStringInfo(&buf);
	for (const char *p = sql; *p; p++)
	{
		if (*p == LOOKUP_NAME[0])
			appendStringInfoString(&buf, name);
		else
			appendStringInfoChar(&buf, *p);
	}
	return buf.data;
}

/* the texts for a target, made when it is first asked */
static void
make_texts(LookupState *state, LookupTarget *target)
{
	MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);

	target->sql = residency_question_text(state->sql, target->partition);
	if (state->operation != CMD_SELECT && state->has_directory)
		target->missing_sql = residency_question_text(state->missing_sql, target->partition);
	MemoryContextSwitchTo(old);
}

/* the executor's entry for writes of a partition */
static ResultRelInfo *
result_relation(LookupState *state, Oid relid)
{
	ListCell   *lc;

	foreach(lc, state->css.ss.ps.state->es_opened_result_relations)
	{
		ResultRelInfo *rri = lfirst(lc);

		if (RelationGetRelid(rri->ri_RelationDesc) == relid)
			return rri;
	}
	elog(ERROR, "relation %u is not being written", relid);
}

/* queues the requests, their values in the current memory */
static void
send(LookupState *state, LookupBatch *batch, LookupAnswer *answer)
{
	LookupTarget *target = &state->targets[answer->target];
	RemoteRegion *region;
	RemoteSubject about = {residency_border_table(target->partition), answer->nentries, state->tally};
	bool		again = target->sql != NULL;
	int			narrays = state->nkeys + list_length(state->row_states);
	const char **values = palloc((narrays + state->nparams + 1) * sizeof(char *));
	Oid			userid = OidIsValid(state->userid) ? state->userid : GetUserId();
	int			flags = again ? REMOTE_NAMED : 0;
	ResultRelInfo *rri;
	int			level;

	if (!again)
		make_texts(state, target);
	level = residency_output_begin();
	for (int i = 0; i < narrays; i++)
		values[i] = array_text(state, batch, answer, i);
	residency_output_end(level);
	for (int i = 0; i < state->nparams; i++)
		values[narrays + i] = state->param_values[i];
	if (state->operation != CMD_SELECT)
	{
		residency_start_before_write(state->css.ss.ps.state, target->serverid);
		flags |= REMOTE_WRITES;
		rri = result_relation(state, target->partition);
		if (residency_home_check_needed(rri->ri_RelationDesc, state->operation,
										ExecGetUpdatedCols(rri, state->css.ss.ps.state)))
			flags |= REMOTE_RESIDENT;
	}
	region = residency_remote_region(target->serverid);
	answer->req = residency_remote_send_about(&about, region, userid, target->sql,
											  narrays + state->nparams, values, flags, -1);
	if (target->missing_sql != NULL)
		answer->missing_req = residency_remote_send_about(&about, region, userid, target->missing_sql,
														  state->nkeys, values, 0, -1);
}

/* queues a question that has its target and keys */
void
residency_question_send(LookupState *state, LookupBatch *batch, LookupAnswer *answer)
{
	EState	   *before;
	MemoryContext context;
	MemoryContext old;

	evaluate_params(state);
	before = residency_modify_reading(state->css.ss.ps.state);
	context = AllocSetContextCreate(CurrentMemoryContext, "residency lookup request", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	PG_TRY();
	{
		send(state, batch, answer);
	}
	PG_FINALLY();
	{
		(void) residency_modify_reading(before);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	state->targets[answer->target].asked = true;
	state->subid = GetCurrentSubTransactionId();
}

/* counts what a write has done, and hands the rows that it returns to their keys */
void
residency_question_take_write(LookupState *state, LookupBatch *batch, int number)
{
	LookupAnswer *answer = &batch->answers[number];
	int			n = PQntuples(answer->res);
	int			ordinal = PQnfields(answer->res) - 1;

	if (state->counts)
		state->css.ss.ps.state->es_processed += state->returns ? n : residency_remote_affected(answer->res);
	if (!state->returns)
		return;
	for (int row = 0; row < n; row++)
	{
		int			i = atoi(PQgetvalue(answer->res, row, ordinal)) - 1;
		LookupRow  *found;

		if (i < 0 || i >= answer->nentries)
			elog(ERROR, "region answered for key %d of %d", i + 1, answer->nentries);
		found = residency_batch_row(batch, &batch->entries[answer->entries[i]]);
		found->answer = number;
		found->row = row;
	}
}

/* how to read what a write returns into a row of the partition */
static void
make_returned(LookupState *state, LookupTarget *target, TupleDesc desc)
{
	CustomScan *plan = castNode(CustomScan, state->css.ss.ps.plan);
	Oid			parent = list_nth_oid(list_nth(plan->custom_private, LookupOids), LookupParentOid);
	MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);
	List	   *attrs = NIL;
	ListCell   *lc;

	foreach(lc, (List *) list_nth(plan->custom_private, LookupReturned))
	{
		AttrNumber	attno = lfirst_int(lc);

		attrs = lappend_int(attrs, attno < 0 ? attno :
							get_attnum(target->partition, get_attname(parent, attno, false)));
	}
	target->returned_slot = ExecInitExtraTupleSlot(state->css.ss.ps.state, desc, &TTSOpsVirtual);
	target->returned_input = residency_input_make(desc, attrs);
	MemoryContextSwitchTo(old);
}

/*
 * A row that a write has returned: where ModifyTable looks for what RETURNING is about, and of
 * the scan tuple's resident part the tableoid alone, by which it finds the partition.
 */
void
residency_question_load_returned(LookupState *state, LookupAnswer *answer, int row)
{
	LookupTarget *target = &state->targets[answer->target];
	CustomScan *plan = castNode(CustomScan, state->css.ss.ps.plan);
	ResultRelInfo *rri = result_relation(state, target->partition);
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;
	MemoryContext old;
	ListCell   *lc;

	if (target->returned_slot == NULL)
		make_returned(state, target, RelationGetDescr(rri->ri_RelationDesc));
	old = MemoryContextSwitchTo(state->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);
	residency_input_row(target->returned_input, answer->res, row, target->returned_slot);
	MemoryContextSwitchTo(old);
	target->returned_slot->tts_tableOid = target->partition;
	rri->ri_projectReturning->pi_exprContext->ecxt_scantuple = target->returned_slot;

	residency_lookup_load(state, NULL, NULL);
	foreach(lc, (List *) list_nth(plan->custom_private, LookupResident))
	{
		int			column = state->nouter + foreach_current_index(lc);

		if (lfirst_int(lc) != TableOidAttributeNumber)
			continue;
		slot->tts_values[column] = ObjectIdGetDatum(target->partition);
		slot->tts_isnull[column] = false;
	}
}
