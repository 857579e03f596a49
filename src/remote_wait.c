/*
 * remote_wait.c
 *		Waits for answers, moving the traffic of all regions meanwhile.
 *
 * There is one loop and one wait event set per backend: it holds the latch and every
 * connection of this backend, so that whoever waits for one region also writes to,
 * reads from and connects to the others.  The set is made anew only when a
 * connection was opened or closed.
 */
#include "remote_internal.h"

#include <poll.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/pmsignal.h"
#include "utils/memutils.h"

/* longer between two looks at a connection that is being made: nobody was waiting */
#define BUSY_MS 1000

/* puts the latch and the connections into a new wait event set */
static void
rebuild_wait_set(void)
{
	dlist_iter	iter;
	int			n = 2;

	if (residency_remote.wait_set != NULL)
		FreeWaitEventSet(residency_remote.wait_set);
	residency_remote.wait_set = NULL;
	dlist_foreach(iter, &residency_remote.regions)
		n++;
	residency_remote.wait_set = compat_create_wait_event_set(residency_remote.context, n);
	AddWaitEventToSet(residency_remote.wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(residency_remote.wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);
		uint32		events = WL_SOCKET_READABLE;

		region->wait_pos = -1;
		if (region->state == REMOTE_CLOSED || PQsocket(region->conn) < 0)
			continue;
		if (region->state == REMOTE_CONNECTING && region->poll == PGRES_POLLING_WRITING)
			events = WL_SOCKET_WRITEABLE;
		region->wait_pos = AddWaitEventToSet(residency_remote.wait_set, events,
											 PQsocket(region->conn), NULL, region);
	}
	residency_remote.wait_set_stale = false;
}

/*
 * Waits once for the latch or any connection, at most timeout ms (-1: no limit), and
 * reads what has come.  Throws on cancel and termination.
 */
static void
wait_once(long timeout)
{
	WaitEvent	events[RESIDENCY_MAX_REGIONS];
	dlist_iter	iter;
	TimestampTz now;
	int			n;

	if (residency_remote.wait_set == NULL || residency_remote.wait_set_stale)
		rebuild_wait_set();
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->state == REMOTE_OPEN && region->wait_pos >= 0)
			ModifyWaitEvent(residency_remote.wait_set, region->wait_pos,
							WL_SOCKET_READABLE | (region->want_write ? WL_SOCKET_WRITEABLE : 0), NULL);
	}

	n = WaitEventSetWait(residency_remote.wait_set, timeout, events, lengthof(events),
						 PG_WAIT_EXTENSION);
	now = GetCurrentTimestamp();
	dlist_foreach(iter, &residency_remote.regions)
		dlist_container(RemoteRegion, node, iter.cur)->last_look = now;
	for (int i = 0; i < n; i++)
	{
		RemoteRegion *region = events[i].user_data;

		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		else if (region == NULL)
			continue;
		else if (region->state == REMOTE_CONNECTING)
			residency_connection_poll(region);
		else if (region->state == REMOTE_OPEN && (events[i].events & WL_SOCKET_READABLE))
			(void) PQconsumeInput(region->conn);
	}
	CHECK_FOR_INTERRUPTS();
}

/* moves all connections as far as they go; ms until the next connect deadline, or -1 */
static long
advance_all(void)
{
	dlist_iter	iter;
	long		timeout = -1;

	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		/* the health worker woke us up; who merely read there before may go on without it */
		if ((!dlist_is_empty(&region->sent) || !dlist_is_empty(&region->queued)) &&
			residency_connection_drop_departed(region))
			continue;
		if (region->state == REMOTE_CONNECTING)
		{
			TimestampTz now = GetCurrentTimestamp();
			long		left;

			/* the statement was busy here: that is not the region's fault */
			if (TimestampDifferenceMilliseconds(region->last_look, now) > BUSY_MS)
				region->connect_deadline += now - region->last_look;
			region->last_look = now;
			left = TimestampDifferenceMilliseconds(now, region->connect_deadline);

			if (left <= 0)
				residency_connection_poll(region);
			else
				timeout = timeout < 0 ? left : Min(timeout, left);
		}
		else
			(void) residency_pipeline_advance(region);
	}
	return timeout;
}

/* starts the flights of everything queued so far; never waits */
void
residency_remote_flush(void)
{
	dlist_iter	iter;

	if (residency_remote.context == NULL)
		return;
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->unsynced || region->want_write)
			residency_pipeline_sync(region);
	}
}

/*
 * Throws the error of a region whose transaction has failed, if there is one.  Who is
 * going to fail must not wait for the other regions first: their answers may wait
 * for locks that this transaction holds, and others for theirs.
 */
static void
throw_failure(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (residency_region_failed(region))
			residency_error_throw(region);
	}
}

/* what the wait loop waits for */
typedef bool (*WaitDone) (RemoteRegion *region, RemoteRequest *req, Size limit);

/* the request is answered */
static bool
is_answered(RemoteRegion *region, RemoteRequest *req, Size limit)
{
	return req->answered;
}

/* less than limit bytes are on their way to the region */
static bool
has_room(RemoteRegion *region, RemoteRequest *req, Size limit)
{
	return region->inflight < limit;
}

/* no deferred request of the region is unanswered */
static bool
has_no_deferred(RemoteRegion *region, RemoteRequest *req, Size limit)
{
	return region->deferred == 0;
}

/*
 * The wait loop; left without success at the deadline (0: none).  Throws on interrupts, and
 * with unless_failed as soon as any region failed.  Leaves "waiting" set when it is left by
 * an error, which tells the abort callbacks that statements may still be running there.
 */
static bool
wait_until(WaitDone done, RemoteRegion *region, RemoteRequest *req, Size limit, bool unless_failed,
		   TimestampTz deadline)
{
	bool		success;
	bool		looked = false;
	long		timeout;

	residency_remote_flush();
	residency_remote.waiting = true;
	residency_remote.blocked = false;
	for (;;)
	{
		timeout = advance_all();
		if (unless_failed)
			throw_failure();
		success = done(region, req, limit);
		if (success)
			break;
		if (deadline != 0)
		{
			long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

			if (left <= 0)
				break;
			timeout = timeout < 0 ? left : Min(timeout, left);
		}
		/* what has come already was not waited for */
		residency_remote.blocked = looked;
		wait_once(looked ? timeout : 0);
		looked = true;
	}
	residency_remote.waiting = false;
	if (residency_remote.blocked)
		residency_traffic_awaited(req != NULL ? req->trip : region->answered_trip);
	residency_remote.blocked = false;
	return success;
}

/* the same without a deadline */
static void
wait_for(WaitDone done, RemoteRegion *region, RemoteRequest *req, Size limit, bool unless_failed)
{
	(void) wait_until(done, region, req, limit, unless_failed, 0);
}

/* waits until the request is answered, whatever the answer; throws on interrupts only */
void
residency_wait_until_answered(RemoteRequest *req)
{
	wait_for(is_answered, req->region, req, 0, false);
}

/* the same until the deadline at most; false if it is not answered then */
bool
residency_wait_answer(RemoteRequest *req, TimestampTz deadline)
{
	return wait_until(is_answered, req->region, req, 0, false, deadline);
}

/* the same without a deadline, but throws as soon as any region failed */
void
residency_wait_unless_failed(RemoteRequest *req)
{
	wait_for(is_answered, req->region, req, 0, true);
}

/* waits until less than limit bytes are on their way to the region; 0: until all
 * deferred requests are answered, or one of them has failed in any region */
void
residency_wait_room(RemoteRegion *region, Size limit)
{
	if (limit > 0)
		wait_for(has_room, region, NULL, limit, false);
	else
		wait_for(has_no_deferred, region, NULL, 0, true);
}

/* true while an answer that "all" asks for is missing: all answers, or the decision's */
static bool
answer_missing(RemoteRegion *region, bool all)
{
	return all ? !dlist_is_empty(&region->sent)
		: region->decision != NULL && !region->decision->answered;
}

/*
 * Waits, at most timeout_ms, for answers of all regions.  Throws nothing, allocates
 * nothing of the server's, and pays no heed to interrupts.
 */
static void
wait_without_errors(int timeout_ms, bool all)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);

	residency_remote.blocked = true;
	for (;;)
	{
		struct pollfd fds[RESIDENCY_MAX_REGIONS];
		RemoteRegion *waiting[RESIDENCY_MAX_REGIONS];
		dlist_iter	iter;
		int			n = 0;
		long		left;

		dlist_foreach(iter, &residency_remote.regions)
		{
			RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

			if (!answer_missing(region, all) || residency_connection_departed(region))
				continue;
			(void) residency_pipeline_advance(region);
			if (region->state != REMOTE_OPEN || !answer_missing(region, all) ||
				n >= RESIDENCY_MAX_REGIONS)
				continue;
			fds[n].fd = PQsocket(region->conn);
			fds[n].events = POLLIN | (region->want_write ? POLLOUT : 0);
			fds[n].revents = 0;
			waiting[n++] = region;
		}
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (n == 0 || left <= 0 || !PostmasterIsAlive())
			break;
		/* wake up now and then to look whether the postmaster is still there */
		(void) poll(fds, n, Min(left, 1000));
		for (int i = 0; i < n; i++)
			if (fds[i].revents != 0)
				(void) PQconsumeInput(waiting[i]->conn);
	}
	residency_remote.blocked = false;
}

/* waits until every region's "decision" is answered; for use behind the commit record */
void
residency_wait_bounded(int timeout_ms)
{
	dlist_iter	iter;

	wait_without_errors(timeout_ms, false);
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->decision != NULL && region->decision->answered)
			residency_traffic_awaited(region->decision->trip);
	}
}

/* waits until nothing is on its way any more; for use when the backend ends */
void
residency_wait_idle(int timeout_ms)
{
	wait_without_errors(timeout_ms, true);
}
