/*
 * commit_resolve.c
 *		One round of the resolver: finishes what a crash left of this region's transactions.
 *
 * A prepared transaction of ours in another region is finished by what is observed, in
 * this order:
 *
 *	 1. the gids prepared there		(one that appears later is for the next round)
 *	 2. is its origin still running here?	-> then leave it alone.  Asked before 3: one
 *									that ends in between shows its decision in 3
 *	 3. its decision row, under a snapshot taken after 2	-> COMMIT PREPARED, else
 *									ROLLBACK PREPARED: a transaction that is not running
 *									and has no row will never get one
 *	 4. the gids prepared there, again	-> "does not exist" counts as done only if it is
 *									gone now; "busy" is one that is still there
 *
 * A trace counts as a decision too: its part is committed, and this region may have lost the row
 * to a failover.  So whoever is reached is asked for traces before anything is rolled back.
 *
 * Only gids of our own incarnation are touched, prepared by our gateway role, in that
 * database: what a clone, another deployment or a user prepared is not ours.  In a newcomer
 * that role is made by the part itself: commit_joining.c.
 *
 * A decision row that was there before 1 is deleted when every region of it was looked at
 * in 4 and none still has a part of it, nor would have one again after a failover to its
 * synchronous standby; the traces there go first.  Of a row that is younger
 * the look in 4 may have come before its parts were prepared.  A trace seen in 4 whose row
 * is not here afterwards is deleted on the same condition: its row has gone before it.  That
 * includes rows and traces of an incarnation that this region had before renew().
 */
#include "commit_resolve.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "commit.h"
#include "fault.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_resolve);

/* looks for decisions that DROP EXTENSION would take along, and the pause between two */
#define DROP_LOOKS 4
#define DROP_PAUSE_MS 250

/* what is done with one gid */
typedef struct Action
{
	ResolveRegion *where;
	char	   *gid;
	const char *name;			/* see ResolveResult */
	RemoteRequest *request;
} Action;

/*
 * True while the origin of a gid, seen prepared, may still decide.  This very transaction has not
 * prepared anything yet: a gid with its xid is of one that had it before a crash.
 */
static bool
is_undecided(uint64 xid)
{
	return xid != U64FromFullTransactionId(GetTopFullTransactionIdIfAny()) &&
		residency_resolve_is_running(xid);
}

/* one action for every gid of our incarnation found in step 1, with step 2 done; the gids in *gids */
static List *
list_actions(ResolveRound *round, List **gids)
{
	List	   *actions = NIL;
	ListCell   *lc;

	*gids = NIL;
	for (int i = 0; i < round->n; i++)
	{
		foreach(lc, round->regions[i].reached ? round->regions[i].gids : NIL)
		{
			uint64		xid = residency_resolve_xid(lfirst(lc));
			Action	   *action;

			if (xid == 0)
				continue;
			if (list_length(actions) >= RESOLVE_ROWS)
				return actions;
			action = palloc0(sizeof(Action));
			action->where = &round->regions[i];
			action->gid = lfirst(lc);
			if (is_undecided(xid))
				action->name = "running";
			*gids = lappend(*gids, action->gid);
			actions = lappend(actions, action);
		}
	}
	return actions;
}

/* a part without a decision row is not rolled back if any region has committed its transaction */
static void
spare_committed(ResolveRound *round, List *actions)
{
	List	   *gids = NIL;
	List	   *committed;
	ListCell   *lc;

	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);

		if (strcmp(action->name, "rolled back") == 0)
			gids = lappend(gids, action->gid);
	}
	if (gids == NIL)
		return;
	committed = residency_peers_committed(round, gids);
	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);

		if (residency_resolve_has(committed, action->gid))
			action->name = "committed";
	}
}

/* steps 2 and 3 for every gid found in step 1 */
static List *
make_verdicts(ResolveRound *round)
{
	List	   *gids;
	List	   *actions = list_actions(round, &gids);
	List	   *decisions;
	ListCell   *lc;
	bool		safe;

	if (actions == NIL)
		return NIL;
	decisions = residency_resolve_decisions(gids);
	safe = decisions == NIL || residency_resolve_safe();
	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);

		if (action->name != NULL)
			continue;
		if (residency_resolve_decided(decisions, action->gid))
			action->name = safe ? "committed" : "not replicated";
		else
			action->name = "rolled back";
	}
	spare_committed(round, actions);
	return actions;
}

/* true if the action's name is a verdict */
static bool
is_verdict(const Action *action)
{
	return strcmp(action->name, "committed") == 0 || strcmp(action->name, "rolled back") == 0;
}

/* sends the verdicts, side by side, and waits for the answers; step 4 judges them */
static void
send_verdicts(ResolveRound *round, List *actions)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), round->timeout_ms);
	ListCell   *lc;

	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);
		RemoteRegion *region = action->where->region;

		if (!is_verdict(action) || region->state != REMOTE_OPEN)
			continue;
		residency_pipeline_sync(region);
		action->request = residency_pipeline_add(region, REMOTE_KIND_STATEMENT,
												 psprintf("%s PREPARED %s",
														  *action->name == 'c' ? "COMMIT" : "ROLLBACK",
														  quote_literal_cstr(action->gid)),
												 0, NULL, 0, -1);
		action->request->abandoned = true;	/* its error is judged by step 4 */
		residency_pipeline_sync(region);
	}
	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);

		action->where->request = action->request;
		if (action->request != NULL && action->where->reached &&
			!residency_wait_answer(action->request, deadline))
			(void) residency_resolve_answer(round, action->where, deadline);
		residency_remote_release(action->request);
	}
}

/* what became of each gid, as step 4 has seen it */
static void
report(ResolveRound *round, List *actions)
{
	ListCell   *lc;

	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);
		const char *name = action->name;

		if (is_verdict(action))
		{
			if (action->request == NULL || !action->where->reached)
				name = "not reached";
			else if (residency_resolve_has(action->where->gids, action->gid))
				name = "busy";
		}
		residency_resolve_result(round, pstrdup(action->where->region->name), action->gid, name, NULL);
	}
}

/* true if no region needs this decision any more, by what step 4 has seen */
static bool
is_finished(ResolveRound *round, ResolveDecision *decision)
{
	ListCell   *lc;
	ListCell   *gid;

	if (decision->incarnation == residency_self()->incarnation &&
		residency_resolve_is_running(decision->xid))
		return false;
	foreach(lc, decision->regions)
	{
		ResolveRegion *r = NULL;

		for (int i = 0; i < round->n; i++)
			if (strcmp(round->regions[i].region->name, lfirst(lc)) == 0)
				r = &round->regions[i];
		/* one that this session does not know may have joined just now */
		if (r == NULL || !r->reached || !r->replicated)
			return false;
		foreach(gid, decision->gids)
			if (residency_resolve_has(r->gids, lfirst(gid)))
				return false;
	}
	return true;
}

/* the finished ones of these decisions */
static List *
finished(ResolveRound *round, List *decisions)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, decisions)
		if (is_finished(round, lfirst(lc)))
			result = lappend(result, lfirst(lc));
	return result;
}

/* an xid8[] literal of those decisions that have the incarnation of the first one; in *rest
 * the others */
static char *
xids_of_one_incarnation(List *decisions, List **rest)
{
	int64		incarnation = ((ResolveDecision *) linitial(decisions))->incarnation;
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	*rest = NIL;
	foreach(lc, decisions)
	{
		ResolveDecision *decision = lfirst(lc);

		if (decision->incarnation == incarnation)
			appendStringInfo(&buf, "%s" UINT64_FORMAT, buf.len > 1 ? "," : "", decision->xid);
		else
			*rest = lappend(*rest, decision);
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* queues the deletion of traces in a region; nobody waits for it, the next round repeats it */
static void
forget_there(ResolveRegion *r, List *decisions)
{
	if (!r->reached || r->region->state != REMOTE_OPEN || decisions == NIL)
		return;
	residency_transaction_begin(r->region, InvalidOid, REMOTE_AS_GATEWAY);
	while (decisions != NIL)
	{
		char	   *incarnation = psprintf(INT64_FORMAT, ((ResolveDecision *) linitial(decisions))->incarnation);
		const char *values[] = {incarnation, xids_of_one_incarnation(decisions, &decisions)};

		residency_pipeline_add(r->region, REMOTE_KIND_CONTROL,
							   "SELECT residency.forget($1::pg_catalog.int8, $2::pg_catalog.xid8[])",
							   2, values, 0, -1);
	}
	residency_pipeline_quiet(r->region, "COMMIT");
	residency_pipeline_sync(r->region);
	residency_transaction_reset(r->region);
}

/* deletes decision rows here, but for those that a commit is about to delete itself */
static void
forget_here(List *decisions)
{
	while (decisions != NIL)
	{
		Oid			types[] = {INT8OID, TEXTOID};
		Datum		values[2];

		values[0] = Int64GetDatum(((ResolveDecision *) linitial(decisions))->incarnation);
		values[1] = CStringGetTextDatum(xids_of_one_incarnation(decisions, &decisions));
		residency_spi_as_owner("DELETE FROM residency.transaction t "
							   "USING (SELECT f.xid FROM residency.transaction f "
							   "WHERE f.incarnation OPERATOR(pg_catalog.=) $1 "
							   "AND f.xid OPERATOR(pg_catalog.=) ANY ($2::pg_catalog.xid8[]) "
							   "FOR UPDATE SKIP LOCKED) s "
							   "WHERE t.incarnation OPERATOR(pg_catalog.=) $1 "
							   "AND t.xid OPERATOR(pg_catalog.=) s.xid",
							   2, types, values, false);
	}
}

/* the traces of a region that have no decision row here: it went with the commit that
 * deleted it, or was lost in a failover */
static List *
orphans(ResolveRegion *r)
{
	List	   *gids = NIL;
	List	   *decisions;
	List	   *result = NIL;
	ListCell   *lc;

	if (!r->reached || r->traces == NIL)
		return NIL;
	foreach(lc, r->traces)
		gids = lappend(gids, linitial(((ResolveDecision *) lfirst(lc))->gids));
	decisions = residency_resolve_decisions(gids);
	foreach(lc, r->traces)
	{
		ResolveDecision *trace = lfirst(lc);

		if (!residency_resolve_decided(decisions, linitial(trace->gids)))
			result = lappend(result, trace);
	}
	return result;
}

/* deletes what no region needs any more: traces there, then decision rows here; true if there was any */
static bool
forget_finished(ResolveRound *round, List *candidates)
{
	List	   *done = finished(round, candidates);

	for (int i = 0; i < round->n; i++)
		forget_there(&round->regions[i],
					 list_concat(finished(round, orphans(&round->regions[i])), done));
	if (done != NIL)
		RESIDENCY_FAULT(resolver_forgets);
	forget_here(done);
	return done != NIL;
}

/* steps 1 to 4 in the regions of the round, all side by side */
void
residency_resolve_prepared(ResolveRound *round)
{
	List	   *actions;

	residency_resolve_list(round);
	actions = make_verdicts(round);
	if (actions == NIL)
		return;
	RESIDENCY_FAULT(resolver_knows);
	send_verdicts(round, actions);
	RESIDENCY_FAULT(resolver_told);
	residency_resolve_list(round);
	report(round, actions);
}

/*
 * One round over all regions that the filter wants (NULL: all).  Each of its steps waits at
 * most timeout_ms.  Returns ResolveResults; throws only for what is wrong here.  *more, unless NULL:
 * there were more decision rows than one round looks at, and some of them are gone now.
 */
List *
residency_resolve_round(ResolveFilter wanted, int timeout_ms, bool *more)
{
	ResolveRound round;
	List	   *candidates;
	bool		deleted;

	residency_resolve_begin(&round, wanted, timeout_ms);
	candidates = residency_resolve_candidates(&round);
	residency_resolve_prepared(&round);
	deleted = forget_finished(&round, candidates);
	residency_resolve_joining(&round, wanted);
	/* the last thing: a round that throws has deleted nothing */
	if (more != NULL)
		*more = deleted && list_length(candidates) >= RESOLVE_ROWS;
	return round.results;
}

/* how many decisions of this region others may still wait for, after a round over all of them; SPI
 * is connected */
static uint64
decisions_left(void)
{
	(void) residency_resolve_round(NULL, residency_connect_timeout, NULL);
	residency_spi_as_owner("SELECT FROM residency.transaction t JOIN residency.self s "
						   "ON s.region::pg_catalog.text OPERATOR(pg_catalog.=) t.origin "
						   "UNION ALL SELECT FROM residency.joining", 0, NULL, NULL,
						   false);	/* sees what the round has deleted */
	return SPI_processed;
}

/*
 * The extension is about to be dropped here, and with it the decisions that other regions may still
 * wait for.  What can be finished is finished now; throws if anything is left.  The workers have
 * been asked to leave, and may hold some of the rows until they do: hence more than one look.
 */
void
residency_commit_before_drop(void)
{
	MemoryContext context = CurrentMemoryContext;
	uint64		left;

	if (RecoveryInProgress() || residency_self() == NULL || residency_self()->copy)
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(context);
	left = decisions_left();
	for (int look = 1; left > 0 && look < DROP_LOOKS; look++)
	{
		CHECK_FOR_INTERRUPTS();
		pg_usleep(DROP_PAUSE_MS * 1000L);
		left = decisions_left();
	}
	SPI_finish();
	if (left > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot drop extension %s: other regions may wait for " UINT64_FORMAT " decisions of this one",
						RESIDENCY_WRAPPER, left),
				 errhint("SELECT * FROM residency.transactions shows them. When all regions answer they are finished within seconds. If one is gone for good, DELETE FROM residency.transaction first.")));
}

/* SQL: residency.resolve(), see the head of the file */
Datum
residency_resolve(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext context = CurrentMemoryContext;
	List	   *results;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	if (RecoveryInProgress() || residency_self() == NULL)
		PG_RETURN_NULL();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(context);
	results = residency_resolve_round(NULL, residency_connect_timeout, NULL);
	foreach(lc, results)
	{
		ResolveResult *result = lfirst(lc);
		Datum		values[3];
		bool		nulls[3] = {false, result->gid == NULL, false};

		values[0] = CStringGetTextDatum(result->region);
		values[1] = result->gid ? CStringGetTextDatum(result->gid) : (Datum) 0;
		values[2] = CStringGetTextDatum(result->detail == NULL ? result->action
										: psprintf("%s: %s", result->action, result->detail));
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
		residency_resolver_note(result);
	}
	SPI_finish();
	PG_RETURN_NULL();
}
