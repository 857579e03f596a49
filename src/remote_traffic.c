/*
 * remote_traffic.c
 *		Counts what crosses a border, and the round trips that somebody waited for.
 *
 * ROUND TRIPS.  The backend's count is a clock of the longest chain: it says how many
 * flights had to be awaited one after the other until now.  A request that is sent
 * at count n carries n + 1, its "trip"; who stood still until its answer came moves the
 * count to that.  So answers of regions that were asked side by side move it once, whoever
 * waits for them in whatever order, and an answer that had come before anybody looked moves
 * it not at all.  It is what the relay of the tests counts from outside.
 *
 * A table's or node's own count goes up with each trip of which an answer came to it while the
 * backend stood still, or had stood still for that trip already.  Hence each of three regions
 * asked side by side shows one round trip, and their statement one as well.
 *
 * Nothing here throws: answers are taken also behind the commit record.
 */
#include "remote_internal.h"

#include "utils/memutils.h"

/* a new tally, held by the caller */
RemoteTally *
residency_tally_make(void)
{
	RemoteTally *tally = MemoryContextAllocZero(TopMemoryContext, sizeof(RemoteTally));

	tally->references = 1;
	return tally;
}

/* somebody lets go of a tally; the last one frees it */
void
residency_tally_release(RemoteTally *tally)
{
	if (tally != NULL && --tally->references == 0)
		pfree(tally);
}

/* puts a new request down to a table and a node */
void
residency_traffic_describe(RemoteRequest *req, const RemoteSubject *about)
{
	if (OidIsValid(about->relid))
		req->account = residency_border_account(req->region->serverid, about->relid);
	req->rows = about->rows;
	req->tally = about->tally;
	if (req->tally != NULL)
		req->tally->references++;
}

/* the counters that a request counts into besides the backend's; the second may be NULL */
static int
targets_of(RemoteRequest *req, RemoteTraffic **traffic)
{
	traffic[0] = &residency_remote.traffic;
	traffic[1] = residency_border_touch(req->account);
	if (req->tally == NULL)
		return 2;
	traffic[2] = &req->tally->traffic;
	return 3;
}

/* a request was handed to libpq, with so much payload */
void
residency_traffic_sent(RemoteRequest *req, Size bytes)
{
	RemoteTraffic *traffic[3];
	int			n = targets_of(req, traffic);

	for (int i = 0; i < n; i++)
	{
		traffic[i]->statements++;
		traffic[i]->rows_out += req->rows;
		traffic[i]->bytes_out += bytes;
	}
	req->region->last_statement = residency_remote.traffic.statements;
}

/* rows have come */
void
residency_traffic_received(RemoteRequest *req, PGresult *res)
{
	RemoteTraffic *traffic[3];
	int			n = targets_of(req, traffic);
	int			rows = PQntuples(res);
	int			columns = PQnfields(res);
	uint64		bytes = 0;

	for (int row = 0; row < rows; row++)
		for (int column = 0; column < columns; column++)
			bytes += PQgetlength(res, row, column);
	for (int i = 0; i < n; i++)
	{
		/* what the regions say to each other on connecting is no row */
		traffic[i]->rows_in += req->kind == REMOTE_KIND_STATEMENT ? rows : 0;
		traffic[i]->bytes_in += bytes;
	}
}

/*
 * The answer to a request is complete.  What nobody waits for (the end of a cursor, or of a
 * transaction that only read) counts for nothing, and what is about no table only if
 * its flight held nothing else.
 */
void
residency_traffic_answered(RemoteRequest *req)
{
	RemoteRegion *region = req->region;

	region->answered_trip = req->trip;
	if ((req->kind != REMOTE_KIND_STATEMENT && req->kind != REMOTE_KIND_APPLY) || req->lost ||
		(req->released && !(req->flags & REMOTE_DEFERRED)) ||
		!(residency_remote.blocked || req->trip <= residency_remote.traffic.round_trips))
		return;
	if (req->tally != NULL && req->tally->last_trip < req->trip)
	{
		req->tally->last_trip = req->trip;
		req->tally->traffic.round_trips++;
	}
	if (req->account == region->account && region->counted_trip >= req->trip)
		return;
	region->counted_trip = req->trip;
	residency_border_trip(req->account, req->trip);
}

/* what has waited for a connection is about to be sent: to log in took trips of its own */
void
residency_traffic_connected(RemoteRegion *region)
{
	dlist_iter	iter;

	dlist_foreach(iter, &region->queued)
	{
		RemoteRequest *req = dlist_container(RemoteRequest, node, iter.cur);

		req->trip = Max(req->trip, region->connect_trip + 1);
	}
}

/* the backend stood still until an answer of that trip came */
void
residency_traffic_awaited(uint64 trip)
{
	residency_remote.traffic.round_trips = Max(residency_remote.traffic.round_trips, trip);
}

/* counters of this backend since it started */
const RemoteTraffic *
residency_remote_traffic(void)
{
	return &residency_remote.traffic;
}

/* names of the regions asked since the backend had sent that many statements, see remote.h */
List *
residency_remote_asked_since(uint64 statements)
{
	List	   *names = NIL;
	dlist_iter	iter;

	if (residency_remote.context == NULL)
		return NIL;
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->last_statement > statements)
			names = lappend(names, region->name);
	}
	return names;
}
