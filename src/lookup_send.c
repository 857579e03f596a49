/*
 * lookup_send.c
 *		Asks regions for the rows of a batch's keys, and once more for keys not held.
 *
 * First each key is asked for where the directory says.  While a person moves, or if the
 * directory here is behind, that region may not hold it; it says so, whatever the other
 * conditions, and whether its own directory calls it the home.  If so there is no row: a move
 * changes both in one local commit there.  Only other keys are asked for again: where the
 * directory says by now, and otherwise, or after that, in all regions not asked yet.  Of
 * several regions that hold a key the first one that was asked counts, so no row comes twice.
 *
 * A table without a directory has keys that any region, and more than one, may hold: all
 * are asked at once, and all rows count.
 *
 * A region that cannot be reached is an error if a key's home is there, and passed over
 * when it is merely one of all the others.
 *
 * A key whose home is this region is not asked for elsewhere: directory and partition were
 * read with one snapshot of one database (lookup_home.c), and own residents must be
 * readable while other regions are away (law 5).
 *
 * Requests are forgotten when the (sub)transaction that sent them ends; questions without an answer
 * are then sent again when their batch is read.
 */
#include "lookup_state.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "border.h"
#include "fdw_exec.h"
#include "health.h"

/* LookupEntry.asked of a key that is asked for nowhere else */
#define ASKED_ALL (~UINT64CONST(0))
#define ASKED(target) (UINT64CONST(1) << (target))

static dlist_head live_nodes = DLIST_STATIC_INIT(live_nodes);

/*
 * In PG_CATCH: goes on without the answer if the error only says that the region cannot be
 * reached.  Nothing of the local transaction is undone: such an error is raised when an
 * answer is looked at, and leaves nothing half done here.
 */
static void
skip_answer(LookupAnswer *answer, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_CONNECTION_EXCEPTION)
		PG_RE_THROW();
	FlushErrorState();
	FreeErrorData(error);
	residency_remote_release(answer->req);
	residency_remote_release(answer->missing_req);
	answer->req = answer->missing_req = NULL;
	answer->skipped = true;
}

/* sends a question, or passes it over if the region cannot be reached and need not be */
static void
send_or_skip(LookupState *state, LookupBatch *batch, LookupAnswer *answer)
{
	MemoryContext context = CurrentMemoryContext;

	if (!answer->optional)
	{
		residency_question_send(state, batch, answer);
		return;
	}
	PG_TRY();
	{
		residency_question_send(state, batch, answer);
	}
	PG_CATCH();
	{
		skip_answer(answer, context);
	}
	PG_END_TRY();
}

/*
 * Asks for the keys in the masks: bit t of masks[i] asks target t for entry i.  Other
 * regions' answers are on their way when the rows stored here are read.
 */
static void
ask(LookupState *state, LookupBatch *batch, const uint64 *masks, bool optional)
{
	for (int t = 0; t < state->ntargets; t++)
	{
		LookupAnswer *answer;
		int			n = 0;

		if (t == state->local)
			continue;
		for (int i = 0; i < batch->nentries; i++)
			n += (masks[i] & ASKED(t)) != 0;
		if (n == 0 || (optional && residency_region_state(state->targets[t].region) == RESIDENCY_AWAY))
			continue;
		if (residency_leaves_out(state->css.ss.ps.state, state->targets[t].serverid))
			continue;
		answer = residency_batch_answer(batch);
		answer->target = t;
		answer->optional = optional;
		answer->entries = MemoryContextAlloc(batch->context, n * sizeof(int));
		for (int i = 0; i < batch->nentries; i++)
		{
			if (masks[i] & ASKED(t))
				answer->entries[answer->nentries++] = i;
		}
		send_or_skip(state, batch, answer);
	}
	residency_remote_flush();

	if (state->local < 0)
		return;
	for (int i = 0; i < batch->nentries; i++)
	{
		if ((masks[i] & ASKED(state->local)) == 0)
			continue;
		state->targets[state->local].asked = true;
		ResetExprContext(state->css.ss.ps.ps_ExprContext);
		residency_home_read(state, batch, &batch->entries[i]);
	}
}

/* all regions that are not pruned, as bits */
static uint64
all_targets(LookupState *state)
{
	uint64		all = 0;

	for (int t = 0; t < state->ntargets; t++)
		all |= ASKED(t);
	return all;
}

/* asks for a new batch's keys where the directory says; does not wait */
void
residency_batch_ask(LookupState *state, LookupBatch *batch)
{
	uint64	   *masks;

	if (batch->nentries == 0)
		return;
	masks = palloc0(batch->nentries * sizeof(uint64));
	for (int i = 0; i < batch->nentries; i++)
	{
		LookupEntry *entry = &batch->entries[i];
		int			target;

		if (!state->has_directory)
		{
			masks[i] = all_targets(state);
			entry->asked = ASKED_ALL;
			continue;
		}
		if (i % 1000 == 999)
			ResetExprContext(state->css.ss.ps.ps_ExprContext);
		target = residency_home_of(state, entry);
		if (target < 0)
			continue;
		masks[i] = ASKED(target);
		/* nor is it asked for elsewhere if the statement reads without its home */
		entry->asked = target == state->local ||
			residency_leaves_out(state->css.ss.ps.state, state->targets[target].serverid) ?
			ASKED_ALL : ASKED(target);
		CHECK_FOR_INTERRUPTS();
	}
	ask(state, batch, masks, false);
	pfree(masks);
}

/* waits for an answer, and for the one behind it */
static void
wait_for(LookupAnswer *answer)
{
	PGresult   *res = residency_remote_wait(answer->req);

	if (answer->missing_req != NULL)
		answer->missing = residency_remote_wait(answer->missing_req);
	answer->res = res;
}

/* waits for one answer, unless it may be passed over and cannot be had */
static void
await_answer(LookupState *state, LookupAnswer *answer)
{
	MemoryContext context = CurrentMemoryContext;

	if (!residency_remote_answered(answer->req))
		residency_modify_flush_before_wait(state->css.ss.ps.state);
	if (answer->optional)
	{
		PG_TRY();
		{
			wait_for(answer);
		}
		PG_CATCH();
		{
			skip_answer(answer, context);
		}
		PG_END_TRY();
	}
	else
		wait_for(answer);
}

/* hands the rows of an answer to their keys */
static void
take_answer(LookupState *state, LookupBatch *batch, int number)
{
	LookupAnswer *answer = &batch->answers[number];
	int			ordinal = PQnfields(answer->res) - 2;
	int			n = PQntuples(answer->res);

	for (int row = 0; row < n; row++)
	{
		int			i = atoi(PQgetvalue(answer->res, row, ordinal)) - 1;
		LookupEntry *entry;
		LookupRow  *found;

		if (i < 0 || i >= answer->nentries)
			elog(ERROR, "region answered for key %d of %d", i + 1, answer->nentries);
		entry = &batch->entries[answer->entries[i]];
		if (PQgetisnull(answer->res, row, ordinal + 1) ||
			*PQgetvalue(answer->res, row, ordinal + 1) != 't')
			continue;
		if (state->has_directory && entry->held >= 0 && entry->held != answer->target)
			continue;
		entry->held = answer->target;
		found = residency_batch_row(batch, entry);
		found->answer = number;
		found->row = row;
	}
}

/*
 * A key that the conditions reject is held, too, but does not come back: all that do
 * not come back as missing count as held.  So does a key of which the home is sure that
 * nobody holds it.
 */
static void
note_held(LookupBatch *batch, const LookupAnswer *answer)
{
	PGresult   *res = answer->missing != NULL ? answer->missing : answer->res;
	int			ordinal = answer->missing != NULL ? 0 : PQnfields(res) - 2;
	int			n = PQntuples(res);
	bool	   *missing = palloc0(Max(answer->nentries, 1) * sizeof(bool));

	for (int row = 0; row < n; row++)
	{
		if (answer->missing != NULL || PQgetisnull(res, row, ordinal + 1))
			missing[atoi(PQgetvalue(res, row, ordinal)) - 1] = true;
	}
	for (int i = 0; i < answer->nentries; i++)
	{
		LookupEntry *entry = &batch->entries[answer->entries[i]];

		if (!missing[i] && entry->held < 0)
			entry->held = answer->target;
	}
	pfree(missing);
}

/* waits for all answers that are not in yet */
static void
await_answers(LookupState *state, LookupBatch *batch)
{
	for (int i = batch->awaited; i < batch->nanswers; i++)
	{
		/* taken away by the end of a subtransaction, which a statement that writes does not outlive */
		if (batch->answers[i].req == NULL && !batch->answers[i].skipped)
			send_or_skip(state, batch, &batch->answers[i]);
	}
	residency_remote_flush();
	for (; batch->awaited < batch->nanswers; batch->awaited++)
	{
		LookupAnswer *answer = &batch->answers[batch->awaited];

		if (!answer->skipped)
			await_answer(state, answer);
		if (answer->res == NULL)
			continue;
		if (state->operation != CMD_SELECT)
			residency_question_take_write(state, batch, batch->awaited);
		else
			take_answer(state, batch, batch->awaited);
		if (state->has_directory)
			note_held(batch, answer);
	}
}

/*
 * A snapshot of this moment; the caller unregisters it.  While parallel workers run, PostgreSQL
 * takes none for a transaction, as they could not see it; they do not have to see this one,
 * so it is taken the way catalogs are read, which is always new for a table that is no catalog.
 */
static Snapshot
new_snapshot(LookupState *state)
{
	if (!IsInParallelMode())
		return RegisterSnapshot(GetLatestSnapshot());
	return RegisterSnapshot(GetCatalogSnapshot(RelationGetRelid(state->directory.heap)));
}

/*
 * Asks again for keys that no region asked so far holds.  False if there are none.  With
 * everywhere, all regions are asked that were not; otherwise those are only for keys whose
 * home is still the one that was asked.
 */
static bool
ask_again(LookupState *state, LookupBatch *batch, bool everywhere)
{
	uint64		all = all_targets(state);
	uint64	   *homes = NULL;
	uint64	   *others = NULL;
	Snapshot	snapshot = NULL;

	for (int i = 0; i < batch->nentries; i++)
	{
		LookupEntry *entry = &batch->entries[i];
		int			home;

		if (entry->held >= 0 || entry->asked == 0 || entry->asked == ASKED_ALL)
			continue;
		if (homes == NULL)
		{
			homes = palloc0(batch->nentries * sizeof(uint64));
			others = palloc0(batch->nentries * sizeof(uint64));
			snapshot = new_snapshot(state);
			residency_home_snapshot(state, snapshot);
		}
		home = residency_home_of(state, entry);
		if (home < 0)
		{
			/* gone by now */
			entry->asked = ASKED_ALL;
			continue;
		}
		if (!everywhere && (entry->asked & ASKED(home)) == 0)
		{
			homes[i] = ASKED(home);
			entry->asked |= homes[i];
			continue;
		}
		others[i] = all & ~entry->asked;
		entry->asked = ASKED_ALL;
	}
	if (homes == NULL)
		return false;
	ask(state, batch, homes, false);
	ask(state, batch, others, true);
	residency_home_snapshot(state, NULL);
	UnregisterSnapshot(snapshot);
	pfree(homes);
	pfree(others);
	return true;
}

/* waits until all rows of a batch are known */
void
residency_batch_complete(LookupState *state, LookupBatch *batch)
{
	if (batch->complete)
		return;
	await_answers(state, batch);
	if (ask_again(state, batch, false))
	{
		await_answers(state, batch);
		if (ask_again(state, batch, true))
			await_answers(state, batch);
	}
	batch->complete = true;
}

/* takes a node off the list of live ones; may be called again */
void
residency_lookup_forget(LookupState *state)
{
	if (!state->live)
		return;
	dlist_delete(&state->link);
	state->live = false;
}

/* the same, when the query's memory goes */
static void
forget_node(void *arg)
{
	residency_lookup_forget((LookupState *) arg);
	residency_tally_release(((LookupState *) arg)->tally);
}

/* puts a node on the list of live ones, until it ends or its query's memory goes */
void
residency_lookup_live(LookupState *state)
{
	dlist_push_tail(&live_nodes, &state->link);
	state->live = true;
	state->tally = residency_border_tally(state->css.ss.ps.state);
	state->reset.func = forget_node;
	state->reset.arg = state;
	MemoryContextRegisterResetCallback(state->css.ss.ps.state->es_query_cxt, &state->reset);
}

/* can a query's lookups still send something to a region, or, with InvalidOid, to any? */
bool
residency_lookup_reads(EState *estate, Oid serverid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &live_nodes)
	{
		LookupState *state = dlist_container(LookupState, link, iter.cur);

		if (state->css.ss.ps.state != estate)
			continue;
		for (int i = 0; i < state->ntargets; i++)
		{
			if (!OidIsValid(serverid) || state->targets[i].serverid == serverid)
				return true;
		}
	}
	return false;
}

/* forgets the requests of a node; with "all" also answers that are in */
static void
forget_requests(LookupState *state, bool all)
{
	for (int b = 0; b < state->nbatches; b++)
	{
		LookupBatch *batch = state->batches[b];

		for (int i = 0; i < batch->nanswers; i++)
		{
			LookupAnswer *answer = &batch->answers[i];

			if (answer->res != NULL && !all)
				continue;
			if (!all)
			{
				residency_remote_release(answer->req);
				residency_remote_release(answer->missing_req);
			}
			answer->req = answer->missing_req = NULL;
			answer->res = answer->missing = NULL;
		}
	}
}

/* the transaction has ended, and all requests with it */
static void
at_transaction_end(XactEvent event, void *arg)
{
	dlist_iter	iter;

	if (event != XACT_EVENT_ABORT && event != XACT_EVENT_COMMIT && event != XACT_EVENT_PREPARE)
		return;
	dlist_foreach(iter, &live_nodes)
		forget_requests(dlist_container(LookupState, link, iter.cur), true);
}

/* a subtransaction has ended: what it sent is gone, or belongs to its parent now */
static void
at_subtransaction_end(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	dlist_iter	iter;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	dlist_foreach(iter, &live_nodes)
	{
		LookupState *state = dlist_container(LookupState, link, iter.cur);

		if (state->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_ABORT_SUB)
			forget_requests(state, false);
		else
			state->subid = parent;
	}
}

/* registers what must be told about transactions; after residency_commit_init */
void
residency_lookup_send_init(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
	RegisterSubXactCallback(at_subtransaction_end, NULL);
}
