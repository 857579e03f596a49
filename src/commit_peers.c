/*
 * commit_peers.c
 *		Parts of other regions' transactions that are prepared here, when their origin is
 *		gone: what another participant knows, and the operator's last word.
 *
 * Every part of a distributed transaction carries its trace, a row of
 * residency.transaction.  Where that row is visible the part is committed, hence the
 * decision was to commit, hence a part that is still prepared here may be committed too:
 * for that the origin is not needed.  A participant without trace says nothing: its own part
 * may be prepared, with the trace inside, or not have been prepared at all.  If nobody has
 * a trace the part waits, for the origin, or for residency.decide().
 *
 * A part here is finished by what is observed in this order:
 *
 *	 1. it is prepared here, and has been for residency.doubt_timeout: its origin had time;
 *		or the operator has decided its transaction here
 *	 2. a region that answers shows its trace	-> commit, or is the origin	-> that one does it
 *	 3. the operator's word, here or in a region that answers	-> that
 *
 * The operator's word is asked about, too: it may have been said while the origin was away, and be
 * carried out only now.  Two contrary ones cannot be: see residency.decide().
 *
 * Which regions take part cannot be seen from a part, so all are asked.  All parts of a
 * transaction are known by its gids, which differ in one number only.
 *
 * Only prepared transactions of roles by which gateways log in are looked at, under
 * names that this extension makes.
 */
#include "commit_resolve.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "fault.h"
#include "regions.h"
#include "regions_internal.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(residency_ask_outcome);
PG_FUNCTION_INFO_V1(residency_propose);

/* how long the origin is given if residency.doubt_timeout is 0 */
#define PATIENCE_MS 5000

#define ASK_OUTCOMES \
	"SELECT o.gid, o.outcome FROM residency.outcomes_here($1::pg_catalog.text[]) AS o"

/* what is about to be decided takes the place of an earlier proposal, and of no decision */
#define PROPOSE \
	"INSERT INTO residency.decision (transaction, gid, commit, role, proposed) " \
	"VALUES (residency.transaction_key($1), $1, $2::pg_catalog.bool, $3::pg_catalog.name, true) " \
	"ON CONFLICT (transaction) DO UPDATE SET commit = excluded.commit, role = excluded.role, decided_at = excluded.decided_at " \
	"WHERE decision.proposed OR decision.commit OPERATOR(pg_catalog.=) excluded.commit"
#define WITHDRAW \
	"DELETE FROM residency.decision WHERE transaction OPERATOR(pg_catalog.=) residency.transaction_key($1) AND proposed"

/* one part prepared here */
typedef struct Part
{
	char	   *gid;
	char	   *origin;
	bool		decided;
	bool		commit;			/* valid if decided */
	bool		committed;		/* by another participant: nothing else can be true any more */
	bool		owned;			/* its origin answers */
	const char *why;			/* of the decision, for the log */
} Part;

/* how long a part waits before others are asked about it, in ms */
static int
patience(void)
{
	return residency_doubt_timeout > 0 ? residency_doubt_timeout : PATIENCE_MS;
}

/*
 * The parts that wait here and are old enough, or decided by the operator; SPI is
 * connected.  All of them, since any may be the one that others know about: max_prepared_transactions
 * bounds their number.  *next_ms becomes less if another one will be old enough earlier.
 */
static List *
read_parts(long *next_ms)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *parts = NIL;

	residency_spi_as_owner("SELECT gid, origin, word, age_ms FROM residency.parts_here()", 0, NULL, NULL, true);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		Part	   *part = palloc0(sizeof(Part));
		char	   *word = SPI_getvalue(tuple, desc, 3);
		bool		isnull;
		int64		age = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));

		part->gid = SPI_getvalue(tuple, desc, 1);
		part->origin = SPI_getvalue(tuple, desc, 2);
		part->decided = word != NULL;
		part->commit = word != NULL && *word == 't';
		part->why = "residency.decide() was called here";
		if (part->decided || age >= patience())
			parts = lappend(parts, part);
		else
			*next_ms = Min(*next_ms, (long) (patience() - age));
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	return parts;
}

/* a text[] literal of the parts' gids */
static char *
gids_of(List *parts)
{
	Datum	   *gids = palloc((list_length(parts) + 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, parts)
		gids[n++] = CStringGetTextDatum(((Part *) lfirst(lc))->gid);
	return OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(compat_text_array(gids, n)));
}

/* takes over what a region said of one part */
static void
learn_outcome(Part *part, const char *outcome, const char *region)
{
	if (strcmp(outcome, "origin") == 0)
		part->owned = true;
	else if (strcmp(outcome, "committed") == 0)
	{
		part->decided = part->commit = part->committed = true;
		part->why = psprintf("region \"%s\" has committed its part", region);
	}
	else if (strncmp(outcome, "operator", 8) == 0 && !part->decided)
	{
		part->decided = true;
		part->commit = strcmp(outcome, "operator: roll back") != 0;
		part->why = psprintf("residency.decide() was called in region \"%s\"", region);
	}
}

/* takes over what a region knows of the parts */
static void
learn(List *parts, ResolveRegion *r)
{
	PGresult   *res = r->request->result;

	for (int row = 0; row < PQntuples(res); row++)
	{
		ListCell   *lc;

		foreach(lc, parts)
			if (strcmp(((Part *) lfirst(lc))->gid, PQgetvalue(res, row, 0)) == 0)
				learn_outcome(lfirst(lc), PQgetvalue(res, row, 1), r->region->name);
	}
}

/* asks all regions of the round side by side what they know of these gids (a text[]
 * literal); the answers are in their requests, to be released */
static void
ask_outcomes(ResolveRound *round, const char *gids)
{
	for (int i = 0; i < round->n; i++)
		if (round->regions[i].reached)
			round->regions[i].request = residency_remote_send(round->regions[i].region, InvalidOid,
															  ASK_OUTCOMES, 1, &gids,
															  REMOTE_AS_GATEWAY, -1);
}

/* ends the question to a region */
static void
end_asking(ResolveRegion *r)
{
	residency_remote_release(r->request);
	r->request = NULL;
	if (r->region->level > 0)
		residency_transaction_abort_level(r->region, 1);
}

/*
 * Those of the gids (char *) whose transaction some region of the round shows to be committed.  It
 * asks all that are reached, side by side.
 */
List *
residency_peers_committed(ResolveRound *round, List *gids)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), round->timeout_ms);
	List	   *parts = NIL;
	List	   *committed = NIL;
	ListCell   *lc;

	foreach(lc, gids)
	{
		Part	   *part = palloc0(sizeof(Part));

		part->gid = lfirst(lc);
		parts = lappend(parts, part);
	}
	ask_outcomes(round, gids_of(parts));
	for (int i = 0; i < round->n; i++)
	{
		ResolveRegion *r = &round->regions[i];

		if (!r->reached)
			continue;
		if (residency_resolve_answer(round, r, deadline))
			learn(parts, r);
		end_asking(r);
	}
	foreach(lc, parts)
	{
		Part	   *part = lfirst(lc);

		if (part->committed || (part->decided && part->commit))
			committed = lappend(committed, part->gid);
	}
	return committed;
}

/*
 * Looks for parts that can be finished here, asking all regions of the round if need be.
 * Returns them as ResolveResults whose action is "committed" or "rolled back", for
 * residency_peers_finish; SPI must be connected.  *waiting counts those that nobody
 * knows about; *next_ms see read_parts.
 */
List *
residency_peers_find(ResolveRound *round, int *waiting, long *next_ms)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), round->timeout_ms);
	List	   *verdicts = NIL;
	List	   *parts = read_parts(next_ms);
	char	   *gids = parts != NIL ? gids_of(parts) : NULL;
	ListCell   *lc;

	*waiting = 0;
	if (gids != NULL)
		ask_outcomes(round, gids);
	for (int i = 0; gids != NULL && i < round->n; i++)
	{
		ResolveRegion *r = &round->regions[i];

		if (r->request == NULL)
			continue;
		if (residency_resolve_answer(round, r, deadline))
			learn(parts, r);
		end_asking(r);
	}
	foreach(lc, parts)
	{
		Part	   *part = lfirst(lc);
		ResolveResult *verdict;

		if (!part->decided || (part->owned && !part->committed))
		{
			(*waiting)++;
			continue;
		}
		verdict = palloc0(sizeof(ResolveResult));
		verdict->region = pstrdup(residency_self()->region);
		verdict->gid = part->gid;
		verdict->action = part->commit ? "committed" : "rolled back";
		verdict->detail = psprintf("Its origin is region \"%s\"; %s.", part->origin, part->why);
		verdicts = lappend(verdicts, verdict);
	}
	return verdicts;
}

/* finishes one part in a transaction of its own; throws what keeps it from that */
static void
finish_part(const ResolveResult *verdict)
{
	MemoryContext context = CurrentMemoryContext;

	StartTransactionCommand();
	/* whatever the server's setting says: a failover must not make it prepared again */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	FinishPreparedTransaction(verdict->gid, strcmp(verdict->action, "committed") == 0);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	RESIDENCY_FAULT(peer_finished);
	residency_resolver_note(verdict);
}

/*
 * ResidencyWorkerRound, outside of any transaction; the argument is a list made by
 * residency_peers_find.  A part that somebody else finishes, or has finished, is passed
 * over; any other error is logged and keeps no other part from being finished.  False if
 * there was one.
 */
bool
residency_peers_finish(void *arg)
{
	List	   *verdicts = arg;
	MemoryContext context = CurrentMemoryContext;
	volatile bool all = true;
	ListCell   *lc;

	foreach(lc, verdicts)
	{
		PG_TRY();
		{
			CHECK_FOR_INTERRUPTS();
			RESIDENCY_FAULT(peer_knows);
			finish_part(lfirst(lc));
		}
		PG_CATCH();
		{
			int			code = geterrcode();

			HOLD_INTERRUPTS();
			/* gone, or another session is at it (busy) */
			if (code != ERRCODE_UNDEFINED_OBJECT && code != ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
				EmitErrorReport();
			all = all && code == ERRCODE_UNDEFINED_OBJECT;
			AbortOutOfAnyTransaction();
			MemoryContextSwitchTo(context);
			FlushErrorState();
			RESUME_INTERRUPTS();
		}
		PG_END_TRY();
	}
	return all;
}

/*
 * SQL: residency.ask_outcome(gid): what each other region knows of the transaction that
 * this part belongs to, for residency.decide().
 */
Datum
residency_ask_outcome(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		gid = PG_GETARG_DATUM(0);
	char	   *gids = OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(compat_text_array(&gid, 1)));
	ResolveRound round;
	TimestampTz deadline;

	InitMaterializedSRF(fcinfo, 0);
	residency_resolve_begin(&round, NULL, residency_connect_timeout);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), round.timeout_ms);
	ask_outcomes(&round, gids);
	for (int i = 0; i < round.n; i++)
	{
		ResolveRegion *r = &round.regions[i];
		Datum		values[2];
		bool		nulls[2] = {false, false};

		values[0] = CStringGetTextDatum(r->region->name);
		if (!residency_resolve_answer(&round, r, deadline))
			values[1] = CStringGetTextDatum("not reached");
		else if (PQntuples(r->request->result) > 0)
			values[1] = CStringGetTextDatum(PQgetvalue(r->request->result, 0, 1));
		else
			nulls[1] = true;
		end_asking(r);
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
	}
	PG_RETURN_NULL();
}

/*
 * SQL: residency.propose(gid, commit), step of decide: puts on record what is about to be decided here,
 * for others to see at once; with null instead of commit, withdraws it.  False if this region has
 * decided otherwise.
 */
Datum
residency_propose(PG_FUNCTION_ARGS)
{
	const char *values[3];

	residency_require_superuser("decide a transaction in doubt");
	values[0] = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (PG_ARGISNULL(1))
		PG_RETURN_BOOL(residency_worker_commit_apart("withdraw a decision", WITHDRAW, 1, values));
	values[1] = PG_GETARG_BOOL(1) ? "true" : "false";
	values[2] = GetUserNameFromId(GetSessionUserId(), false);
	PG_RETURN_BOOL(residency_worker_commit_apart("put on record what is to be decided", PROPOSE, lengthof(values), values));
}
