/*
 * commit_joining.c
 *		A newcomer that holds its part of add_region() prepared, since this gateway died.
 *
 * That part has made the very role by which this region's gateway logs in there, so the
 * resolver cannot come in as the gateway, and the part's owner is a role that nobody sees.
 * It goes in by the admin mapping of a superuser instead, as add_region() itself did, and
 * without hello: the other side does not know yet which region it is.  What it finds there
 * is judged in the same order as anywhere else, see commit_resolve.c.
 *
 * It does so only for a region that let the gateway down in this round, and whose row here was
 * written by the very transaction that a decision row still waits for.  A region that is
 * away later on is never asked as a superuser.
 *
 * If add_region() was not decided, this region has forgotten with it where the newcomer is.
 * Then the next call for it, which tells that again, finishes the one before.
 */
#include "commit_resolve.h"

#include "executor/spi.h"
#include "miscadmin.h"

#include "regions.h"
#include "regions_internal.h"

PG_FUNCTION_INFO_V1(residency_finish_attempt);

/* regions that joined by a transaction of ours that is not finished, with the superusers that
 * have a mapping for them */
#define LIST_JOINING \
	"SELECT s.oid, m.umuser " \
	"FROM residency.self i " \
	"JOIN residency.transaction t ON t.origin OPERATOR(pg_catalog.=) i.region::pg_catalog.text " \
	"AND t.incarnation OPERATOR(pg_catalog.=) i.incarnation " \
	"JOIN residency.region r ON r.joined_in OPERATOR(pg_catalog.=) t.xid " \
	"AND r.name::pg_catalog.text OPERATOR(pg_catalog.=) ANY (t.regions) " \
	"JOIN pg_catalog.pg_foreign_server s ON s.srvname OPERATOR(pg_catalog.=) r.name " \
	"JOIN pg_catalog.pg_user_mapping m ON m.umserver OPERATOR(pg_catalog.=) s.oid " \
	"JOIN pg_catalog.pg_roles u ON u.oid OPERATOR(pg_catalog.=) m.umuser AND u.rolsuper " \
	"ORDER BY s.oid, m.oid"

/* one way into a newcomer */
typedef struct AdminWay
{
	Oid			serverid;
	Oid			userid;			/* whose mapping */
} AdminWay;

/* the ways into all newcomers that are not finished; those of one server follow each other */
static List *
admin_ways(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *ways = NIL;

	residency_spi_as_owner(LIST_JOINING, 0, NULL, NULL, true);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		AdminWay   *way = palloc(sizeof(AdminWay));
		bool		isnull;

		way->serverid = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		way->userid = DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull));
		ways = lappend(ways, way);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	return ways;
}

/* the region's admin connection, as seen by that user; it is not asked which region it is */
static RemoteRegion *
admin_connection(const AdminWay *way)
{
	RemoteRegion *region;
	Oid			user;
	int			context;

	/* an error that leaves here ends the (sub)transaction, which gives the user back */
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(way->userid, context | SECURITY_LOCAL_USERID_CHANGE);
	region = residency_remote_admin(way->serverid, false);
	SetUserIdAndSecContext(user, context);
	return region;
}

/* finishes what is prepared there; true if the region let us in.  The connection ends with
 * it: a superuser's is not kept. */
static bool
finish_by(ResolveRound *round, const AdminWay *way)
{
	ResolveRegion there = {.region = admin_connection(way), .reached = true};
	ResolveRound by_admin = {.n = 1, .regions = &there, .timeout_ms = round->timeout_ms};
	ListCell   *lc;

	residency_resolve_prepared(&by_admin);
	foreach(lc, by_admin.results)
		if (((ResolveResult *) lfirst(lc))->gid != NULL)
			round->results = lappend(round->results, lfirst(lc));
	residency_connection_close(there.region);
	residency_pipeline_abandon_lost(there.region);
	return there.reached;
}

/* true if the round asked that region and got no answer */
static bool
was_let_down(ResolveRound *round, ResolveFilter wanted, Oid serverid)
{
	for (int i = 0; i < round->n; i++)
		if (residency_remote_serverid(round->regions[i].region) == serverid)
			return !round->regions[i].reached && (wanted == NULL || wanted(serverid));
	return false;
}

/*
 * The last step of a round with that filter: finishes what newcomers hold of ours, adding to the
 * round's results.  Waits for each way in as long as other steps do, and stops at the
 * first one that is open.
 */
void
residency_resolve_joining(ResolveRound *round, ResolveFilter wanted)
{
	Oid			done = InvalidOid;
	ListCell   *lc;

	/* the original finishes it */
	if (residency_self()->copy)
		return;
	foreach(lc, admin_ways())
	{
		AdminWay   *way = lfirst(lc);

		if (way->serverid != done && was_let_down(round, wanted, way->serverid) &&
			finish_by(round, way))
			done = way->serverid;
	}
}

/*
 * SQL: residency.finish_attempt(region), step of add_region.  What this transaction has
 * asked the newcomer so far is rolled back, as nothing can be finished inside a transaction.
 * What cannot be finished stays, for the caller to see.
 */
Datum
residency_finish_attempt(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	ResolveRegion there = {.reached = true};
	ResolveRound round = {.n = 1, .regions = &there, .timeout_ms = residency_connect_timeout};
	ListCell   *lc;

	residency_require_superuser("finish an earlier attempt to add a region");
	/* the original may be at it just now */
	if (residency_self() == NULL || residency_self()->copy)
		PG_RETURN_VOID();
	there.region = residency_admin_connection(NameStr(*PG_GETARG_NAME(0)), false);
	residency_transaction_abort_level(there.region, 1);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(context);
	residency_resolve_prepared(&round);
	SPI_finish();
	foreach(lc, round.results)
		residency_resolver_note(lfirst(lc));
	PG_RETURN_VOID();
}
