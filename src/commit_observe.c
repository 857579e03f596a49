/*
 * commit_observe.c
 *		What the resolver looks at: parts prepared elsewhere, decisions here, traces there.
 *
 * The order of the looks is the business of commit_resolve.c.  A look at other regions
 * asks all of them side by side and waits for a bounded time; a region that does not
 * answer is given up for the rest of the round.
 */
#include "commit_resolve.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "regions.h"

PG_FUNCTION_INFO_V1(residency_replicated_here);

/* longest wait for a standby to catch up with decisions */
#define SAFE_WAIT_MS 1000
#define SAFE_LOOK_MS 20

/* what is not listed as prepared has ended; whether a failover may undo that is asked last, and
 * answered for all that the list's snapshot saw */
#define LIST_LEFTOVERS \
	"SELECT p.gid, NULL::pg_catalog.int8, NULL::pg_catalog.xid8, " \
	"NULL::pg_catalog.text[], NULL::pg_catalog.text[], NULL::pg_catalog.bool " \
	"FROM residency.prepared_here() AS p(gid) " \
	"UNION ALL " \
	"SELECT NULL::pg_catalog.text, t.incarnation, t.xid, t.gids, t.regions, NULL::pg_catalog.bool " \
	"FROM residency.traces_here($1::pg_catalog.text[]) AS t " \
	"UNION ALL " \
	"SELECT NULL::pg_catalog.text, NULL::pg_catalog.int8, NULL::pg_catalog.xid8, " \
	"NULL::pg_catalog.text[], NULL::pg_catalog.text[], residency.replicated_here()"

/*
 * Begins a round over all other regions; those that the filter (NULL: all) does not want
 * count as not reached.  Each step of it waits at most timeout_ms.
 */
void
residency_resolve_begin(ResolveRound *round, ResolveFilter wanted, int timeout_ms)
{
	List	   *servers = list_copy(residency_other_servers());
	ListCell   *lc;

	memset(round, 0, sizeof(*round));
	round->timeout_ms = timeout_ms;
	round->regions = palloc0((list_length(servers) + 1) * sizeof(ResolveRegion));
	foreach(lc, servers)
	{
		RemoteRegion *region = residency_remote_region(lfirst_oid(lc));

		if (region->level > 0)
			ereport(ERROR,
					(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
					 errmsg("transactions cannot be resolved by one that has used region \"%s\" itself",
							region->name),
					 errhint("COMMIT or ROLLBACK first.")));
		round->regions[round->n].region = region;
		round->regions[round->n++].reached = wanted == NULL || wanted(lfirst_oid(lc));
	}
}

/* the origin's xid if the gid is of that incarnation, 0 if not.  A gid is
 * residency:<incarnation>:<xid8>:<n>:<random>. */
static uint64
xid_of(const char *gid, int64 incarnation)
{
	char		prefix[64];
	int			len;

	len = snprintf(prefix, sizeof(prefix), RESIDENCY_GID_PREFIX "%016llx:", (unsigned long long) incarnation);
	return strncmp(gid, prefix, len) == 0 ? strtoull(gid + len, NULL, 10) : 0;
}

/* the origin's xid if the gid is of our present incarnation, or of one that we were about to take
 * on; 0 if not */
uint64
residency_resolve_xid(const char *gid)
{
	const ResidencySelf *self = residency_self();
	uint64		xid = xid_of(gid, self->incarnation);

	for (int i = 0; i < self->nannounced && xid == 0; i++)
		xid = xid_of(gid, self->announced[i]);
	return xid;
}

/* true while the transaction that prepared a gid may still decide */
bool
residency_resolve_is_running(uint64 xid)
{
	FullTransactionId full = FullTransactionIdFromU64(xid);
	FullTransactionId next = ReadNextFullTransactionId();

	/* not assigned now: the server crashed before anything of that transaction was on disk */
	if (!FullTransactionIdPrecedes(full, next))
		return false;
	/* of another epoch: over for so long that its xid may belong to somebody else */
	if (U64FromFullTransactionId(next) - xid > (uint64) PG_INT32_MAX)
		return false;
	return TransactionIdIsInProgress(XidFromFullTransactionId(full));
}

/* true if the list has this string */
bool
residency_resolve_has(List *strings, const char *string)
{
	ListCell   *lc;

	foreach(lc, strings)
		if (strcmp((char *) lfirst(lc), string) == 0)
			return true;
	return false;
}

/* true if one of the decisions has this gid */
bool
residency_resolve_decided(List *decisions, const char *gid)
{
	ListCell   *lc;

	foreach(lc, decisions)
		if (residency_resolve_has(((ResolveDecision *) lfirst(lc))->gids, gid))
			return true;
	return false;
}

/* adds to what the round has to tell; the strings must live as long as the round */
void
residency_resolve_result(ResolveRound *round, const char *region, const char *gid,
						 const char *action, const char *detail)
{
	ResolveResult *result = palloc0(sizeof(ResolveResult));

	result->region = region;
	result->gid = gid;
	result->action = action;
	result->detail = detail;
	round->results = lappend(round->results, result);
}

/* gives a region up for the rest of the round */
static void
give_up(ResolveRound *round, ResolveRegion *r, const char *why)
{
	r->reached = false;
	residency_resolve_result(round, pstrdup(r->region->name), NULL, "not reached", pstrdup(why));
}

/*
 * Waits for the answer to r->request without throwing.  False if it is none; the region is
 * given up then.  A connection that stays silent is closed: nothing could follow on it.
 */
bool
residency_resolve_answer(ResolveRound *round, ResolveRegion *r, TimestampTz deadline)
{
	RemoteRequest *req = r->request;

	if (!residency_wait_answer(req, deadline))
	{
		residency_connection_close(r->region);
		residency_pipeline_abandon_lost(r->region);
		give_up(round, r, "no answer in time");
		return false;
	}
	if (!req->failed && req->result != NULL)
		return true;
	give_up(round, r, r->region->failed_level > 0 ? r->region->error.message : "the connection was lost");
	return false;
}

/* elements of a text[] as a list of C strings */
static List *
strings_of_array(Datum array)
{
	Datum	   *elements;
	int			n;
	List	   *result = NIL;

	compat_deconstruct_text_array(DatumGetArrayTypeP(array), &elements, &n);
	for (int i = 0; i < n; i++)
		result = lappend(result, TextDatumGetCString(elements[i]));
	return result;
}

/* the same of its text form */
static List *
strings_of_literal(char *literal)
{
	return strings_of_array(OidInputFunctionCall(F_ARRAY_IN, literal, TEXTOID, -1));
}

/* names of the regions that the round reaches, as text[] */
static Datum
reached_regions(ResolveRound *round)
{
	Datum	   *names = palloc((round->n + 1) * sizeof(Datum));
	int			n = 0;

	for (int i = 0; i < round->n; i++)
		if (round->regions[i].reached)
			names[n++] = CStringGetTextDatum(round->regions[i].region->name);
	return PointerGetDatum(compat_text_array(names, n));
}

/* takes over what a region answered to LIST_LEFTOVERS */
static void
read_leftovers(ResolveRegion *r, PGresult *res)
{
	for (int row = 0; row < PQntuples(res); row++)
	{
		if (!PQgetisnull(res, row, 5))
			r->replicated = *PQgetvalue(res, row, 5) == 't';
		else if (PQgetisnull(res, row, 0))
		{
			ResolveDecision *trace = palloc(sizeof(ResolveDecision));

			trace->incarnation = strtoll(PQgetvalue(res, row, 1), NULL, 10);
			trace->xid = strtoull(PQgetvalue(res, row, 2), NULL, 10);
			trace->gids = strings_of_literal(PQgetvalue(res, row, 3));
			trace->regions = strings_of_literal(PQgetvalue(res, row, 4));
			r->traces = lappend(r->traces, trace);
		}
		else
			r->gids = lappend(r->gids, pstrdup(PQgetvalue(res, row, 0)));
	}
}

/*
 * Asks all regions that are reached so far, side by side, what they hold of ours: parts
 * prepared, and traces of parts committed.
 */
void
residency_resolve_list(ResolveRound *round)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), round->timeout_ms);
	const char *values[] = {OidOutputFunctionCall(F_ARRAY_OUT, reached_regions(round))};

	for (int i = 0; i < round->n; i++)
		if (round->regions[i].reached)
			round->regions[i].request = residency_remote_send(round->regions[i].region, InvalidOid,
															  LIST_LEFTOVERS, 1, values,
															  REMOTE_AS_GATEWAY, -1);
	for (int i = 0; i < round->n; i++)
	{
		ResolveRegion *r = &round->regions[i];

		if (!r->reached)
			continue;
		r->gids = r->traces = NIL;
		r->replicated = false;
		if (residency_resolve_answer(round, r, deadline))
			read_leftovers(r, r->request->result);
		residency_remote_release(r->request);
		if (r->region->level > 0)
			residency_transaction_abort_level(r->region, 1);
	}
}

/*
 * Reads decision rows of this region, of all its incarnations, under a snapshot taken now;
 * $2 is for "condition".
 */
static List *
read_decisions(const char *condition, Oid type, Datum value)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;
	Oid			types[] = {TEXTOID, type};
	Datum		values[] = {CStringGetTextDatum(residency_self()->region), value};

	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner(psprintf("SELECT xid::pg_catalog.text, gids, regions, incarnation FROM residency.transaction "
									"WHERE origin OPERATOR(pg_catalog.=) $1 AND %s "
									"ORDER BY incarnation, xid LIMIT %d", condition, RESOLVE_ROWS),
						   2, types, values, true);
	PopActiveSnapshot();
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		ResolveDecision *decision = palloc(sizeof(ResolveDecision));
		bool		isnull;

		decision->xid = strtoull(SPI_getvalue(tuple, desc, 1), NULL, 10);
		decision->gids = strings_of_array(SPI_getbinval(tuple, desc, 2, &isnull));
		decision->regions = strings_of_array(SPI_getbinval(tuple, desc, 3, &isnull));
		decision->incarnation = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
		result = lappend(result, decision);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	return result;
}

/* decision rows that have any of these gids (char *), at most RESOLVE_ROWS */
List *
residency_resolve_decisions(List *gids)
{
	Datum	   *datums = palloc((list_length(gids) + 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, gids)
		datums[n++] = CStringGetTextDatum(lfirst(lc));
	return read_decisions("(incarnation, xid) IN (SELECT k.incarnation, k.xid "
						  "FROM pg_catalog.unnest($2) AS g (gid) CROSS JOIN LATERAL residency.transaction_of(g.gid) AS k) "
						  "AND gids OPERATOR(pg_catalog.&&) $2",
						  TEXTARRAYOID, PointerGetDatum(compat_text_array(datums, n)));
}

/* decision rows that this round may find finished: those that wait for a region that is
 * not asked, perhaps for days, or is known no more, are not even read */
List *
residency_resolve_candidates(ResolveRound *round)
{
	return read_decisions("regions OPERATOR(pg_catalog.<@) $2", TEXTARRAYOID, reached_regions(round));
}

/*
 * The end of what is in the WAL now.  The position where the next record goes is behind a page's
 * header if the last one has filled its page, and nobody has written that header yet.
 */
static XLogRecPtr
end_of_wal(void)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();

	if (end % XLOG_BLCKSZ == SizeOfXLogShortPHD ||
		XLogSegmentOffset(end, wal_segment_size) == SizeOfXLogLongPHD)
		end -= end % XLOG_BLCKSZ;
	return end;
}

/*
 * True once all decisions that are visible now are where synchronous_standby_names wants
 * them; waits a little for it.  A decision that a failover could forget, because the wait
 * for it was cancelled, is none yet.
 */
bool
residency_resolve_safe(void)
{
	XLogRecPtr	visible;

	/* whatever this session's own synchronous_commit says */
	if (max_wal_senders == 0 || !compat_sync_standbys_defined())
		return true;
	visible = end_of_wal();
	XLogFlush(visible);
	for (int waited = 0; waited <= SAFE_WAIT_MS; waited += SAFE_LOOK_MS)
	{
		bool		safe;

		LWLockAcquire(SyncRepLock, LW_SHARED);
		safe = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH] >= visible;
		LWLockRelease(SyncRepLock);
		if (safe)
			return true;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(SAFE_LOOK_MS * 1000L);
	}
	return false;
}

/* SQL: residency.replicated_here(): residency_resolve_safe for the resolver of another region.  A
 * standby does not even show what is prepared. */
Datum
residency_replicated_here(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!RecoveryInProgress() && residency_resolve_safe());
}
