/*
 * commit_joining.c
 *		What add_region() left in a newcomer, since this gateway died or lost the line.
 *
 * Until it is decided no region knows the newcomer, and its part has made the very role by
 * which this region's gateway logs in there.  So before add_region() changes anything, it puts
 * on record here how it came in: a row of residency.joining, committed apart from its own
 * transaction.  The resolver goes in the same way, as that superuser and without hello, because the other
 * side does not know yet which region it is.  What it finds there is judged in the same order
 * as anywhere else, see commit_resolve.c.
 *
 *		row on record --> parts prepared --> decided --> committed everywhere --> row deleted
 *						  |                  '- our gateway's role is let in, or the newcomer
 *						  |                     was told "commit" ----------------'
 *						  '- not decided: rolled back there, and JOIN_LOCK is free --'
 *
 * The newcomer's part holds JOIN_LOCK from before the row was written, in doubt included.  So where
 * that can be had, no session of that attempt is at work any more, and none can prepare
 * anything behind our back.
 *
 * replace_region() takes the same way.  The row of residency.region is there before, and is of this
 * call when its joined_in says so; the newcomer has the name of a region that is lost.
 *
 * A region that has joined is asked as a superuser only while it does not let the gateway in, and
 * its row is here; one that is away later on never is.
 */
#include "commit_resolve.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "fault.h"
#include "regions.h"
#include "regions_internal.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(residency_announce_attempt);

/* newcomers that the worker could not reach are left in peace for so long */
#define JOIN_PAUSE_MS 3000

/* the lock that add_region() takes in the newcomer, see sql/41_add_region.sql */
#define TRY_JOIN_LOCK "SELECT pg_catalog.pg_try_advisory_xact_lock(7366837216) AND NOT pg_catalog.pg_is_in_recovery()"

#define RECORD_ATTEMPT \
	"INSERT INTO residency.joining (xid, incarnation, region, connection, admin) " \
	"SELECT $1::pg_catalog.xid8, s.incarnation, $2::pg_catalog.name, $3, $4::pg_catalog.name FROM residency.self s " \
	"WHERE s.incarnation OPERATOR(pg_catalog.=) $5::pg_catalog.int8"

#define LIST_ATTEMPTS \
	"SELECT j.xid::pg_catalog.text, j.region::pg_catalog.text, j.connection, s.oid, u.oid, r.name IS NOT NULL " \
	"FROM residency.joining j " \
	"JOIN residency.self i ON i.incarnation OPERATOR(pg_catalog.=) j.incarnation " \
	"LEFT JOIN residency.region r ON r.joined_in OPERATOR(pg_catalog.=) j.xid AND r.name OPERATOR(pg_catalog.=) j.region " \
	"LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname OPERATOR(pg_catalog.=) j.region " \
	"LEFT JOIN pg_catalog.pg_user_mapping m ON m.umserver OPERATOR(pg_catalog.=) s.oid AND " \
	"m.umuser OPERATOR(pg_catalog.=) (SELECT a.oid FROM pg_catalog.pg_roles a WHERE a.rolname OPERATOR(pg_catalog.=) j.admin) " \
	"LEFT JOIN pg_catalog.pg_roles u ON u.oid OPERATOR(pg_catalog.=) m.umuser AND u.rolsuper " \
	"ORDER BY j.xid"

#define FORGET_ATTEMPT "DELETE FROM residency.joining WHERE xid OPERATOR(pg_catalog.=) $1::pg_catalog.xid8"

/* one call of add_region() */
typedef struct Attempt
{
	char	   *xid;
	char	   *region;
	char	   *conninfo;		/* NULL: by the mapping of ... */
	Oid			serverid;		/* ... this server ... */
	Oid			userid;			/* ... of this superuser; InvalidOid: it is gone */
	bool		joined;			/* decided, and applied here */
} Attempt;

/* a value of the present SPI result, copied by the caller's context */
static char *
text_value(MemoryContext context, uint64 row, int col)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col);

	return value != NULL ? MemoryContextStrdup(context, value) : NULL;
}

/* all calls on record; SPI is connected */
static List *
list_attempts(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *attempts = NIL;

	residency_spi_as_owner(LIST_ATTEMPTS, 0, NULL, NULL, true);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;
		HeapTuple	tuple = SPI_tuptable->vals[i];
		Attempt    *attempt = MemoryContextAllocZero(context, sizeof(Attempt));
		MemoryContext old;
		bool		isnull;

		attempt->xid = text_value(context, i, 1);
		attempt->region = text_value(context, i, 2);
		attempt->conninfo = text_value(context, i, 3);
		attempt->serverid = DatumGetObjectId(SPI_getbinval(tuple, desc, 4, &isnull));
		attempt->userid = DatumGetObjectId(SPI_getbinval(tuple, desc, 5, &isnull));
		attempt->joined = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));
		old = MemoryContextSwitchTo(context);
		attempts = lappend(attempts, attempt);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	return attempts;
}

/* the connection that the call had; NULL if there is no way in any more */
static RemoteRegion *
way_in(const Attempt *attempt)
{
	RemoteRegion *region;
	Oid			user;
	int			context;

	if (attempt->conninfo != NULL)
		return residency_remote_stranger(attempt->region, attempt->conninfo);
	if (!OidIsValid(attempt->serverid) || !OidIsValid(attempt->userid))
		return NULL;
	/* an error that leaves here ends the (sub)transaction, which gives the user back */
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(attempt->userid, context | SECURITY_LOCAL_USERID_CHANGE);
	region = residency_remote_admin(attempt->serverid, false);
	SetUserIdAndSecContext(user, context);
	return region;
}

/* true if the newcomer says that no session, and no prepared part, of any call is left there */
static bool
is_over_there(ResolveRound *by_admin)
{
	ResolveRegion *there = &by_admin->regions[0];
	bool		over;

	if (!there->reached)
		return false;
	there->request = residency_remote_send(there->region, InvalidOid, TRY_JOIN_LOCK, 0, NULL,
										   REMOTE_AS_GATEWAY, -1);
	over = residency_resolve_answer(by_admin, there,
									TimestampTzPlusMilliseconds(GetCurrentTimestamp(), by_admin->timeout_ms)) &&
		PQntuples(there->request->result) == 1 &&
		strcmp(PQgetvalue(there->request->result, 0, 0), "t") == 0;
	residency_remote_release(there->request);
	if (there->region->level > 0)
		residency_transaction_abort_level(there->region, 1);
	return over;
}

/* finishes what is prepared in the newcomer, adding to the round's results; true if that was all.
 * The connection ends with it: a superuser's is not kept. */
static bool
finish_by_admin(ResolveRound *round, const Attempt *attempt)
{
	ResolveRegion there = {.region = way_in(attempt), .reached = true};
	ResolveRound by_admin = {.n = 1, .regions = &there, .timeout_ms = round->timeout_ms};
	bool		over;
	ListCell   *lc;

	if (there.region == NULL)
		return false;
	residency_resolve_prepared(&by_admin);
	over = is_over_there(&by_admin);
	foreach(lc, by_admin.results)
		if (((ResolveResult *) lfirst(lc))->gid != NULL)
			round->results = lappend(round->results, lfirst(lc));
	residency_connection_close(there.region);
	residency_pipeline_abandon_lost(there.region);
	return over;
}

/* the region behind that server as the round has found it, NULL if it was not asked */
static ResolveRegion *
found_by(ResolveRound *round, ResolveFilter wanted, Oid serverid)
{
	for (int i = 0; i < round->n; i++)
		if (residency_remote_serverid(round->regions[i].region) == serverid)
			return wanted == NULL || wanted(serverid) || round->regions[i].reached ? &round->regions[i] : NULL;
	return NULL;
}

/* true if nothing is left to do about the call; "due": newcomers that have not joined are asked in
 * this round */
static bool
finish_attempt(ResolveRound *round, ResolveFilter wanted, const Attempt *attempt, bool due)
{
	if (residency_resolve_is_running(strtoull(attempt->xid, NULL, 10)))
		return false;
	if (attempt->joined)
	{
		ResolveRegion *there = found_by(round, wanted, attempt->serverid);

		if (there == NULL)
			return false;
		return there->reached || finish_by_admin(round, attempt);
	}
	return due && finish_by_admin(round, attempt);
}

/*
 * The last step of a round with that filter: finishes what newcomers hold of ours, adding to the
 * round's results.  Waits for each newcomer as long as other steps do.
 */
void
residency_resolve_joining(ResolveRound *round, ResolveFilter wanted)
{
	static TimestampTz retry_at = 0;
	/* decided once, so that one newcomer that is gone for good holds up no other */
	bool		due = wanted == NULL || retry_at <= GetCurrentTimestamp();
	ListCell   *lc;

	/* the original finishes it */
	if (residency_self()->copy)
		return;
	foreach(lc, list_attempts())
	{
		Attempt    *attempt = lfirst(lc);

		if (finish_attempt(round, wanted, attempt, due))
		{
			Oid			type = TEXTOID;
			Datum		xid = CStringGetTextDatum(attempt->xid);

			RESIDENCY_FAULT(join_forgets);
			residency_spi_as_owner(FORGET_ATTEMPT, 1, &type, &xid, false);
		}
		else
		{
			if (due)
				retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), JOIN_PAUSE_MS);
			residency_resolve_result(round, attempt->region, NULL, "joining", NULL);
		}
	}
}

/*
 * SQL: residency.announce_attempt(region, connection), step of add_region: puts it on record
 * before anything is changed.  The row stays whatever becomes of this transaction.
 */
Datum
residency_announce_attempt(PG_FUNCTION_ARGS)
{
	const char *values[5];

	residency_require_superuser("add a region");
	RESIDENCY_FAULT(join_begins);
	values[0] = psprintf(UINT64_FORMAT, U64FromFullTransactionId(GetTopFullTransactionId()));
	values[1] = NameStr(*PG_GETARG_NAME(0));
	values[2] = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	values[3] = GetUserNameFromId(GetUserId(), false);
	/* nobody would look after a row of another incarnation than the one that the gids get */
	values[4] = psprintf(INT64_FORMAT, residency_self()->incarnation);
	if (!residency_worker_commit_apart("put on record that a region joins", RECORD_ATTEMPT, lengthof(values), values))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a region cannot join in the transaction that has made or renewed this one"),
				 errhint("COMMIT first, and then call residency.add_region() again.")));
	/* it looks again until this transaction has ended, and then at what it has left */
	residency_worker_wake(RESIDENCY_WORKER_RESOLVER);
	RESIDENCY_FAULT(join_recorded);
	PG_RETURN_VOID();
}
