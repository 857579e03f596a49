/*
 * global_catchup_flip.c
 *		Makes a region that has caught up "up".
 *
 * The region's lock, taken exclusively, tells that nobody who left the region out is running
 * or in doubt here, and keeps others from beginning to: what is noted then is all that there
 * is.  It is shipped under the lock, and when it is applied there the region is up.
 *
 * Writers wait meanwhile: while we queue for the lock, because new ones queue behind us, and
 * while we hold it.  So
 *	- a wait ends after flip_wait, and the next one is put off for FLIP_PAUSE times as long;
 *	  it grows up to FLIP_WAIT_MAX, as transactions of several statements may always overlap;
 *	- who has outlasted a wait (a session left open, a doubt) is looked for first, and as long
 *	  as one is still there nobody queues;
 *	- the lock is given back after FLIP_HOLD, whatever the region does.
 * All that is less than the default of residency.lock_timeout, so that no writer fails.
 */
#include "residency.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "commit_internal.h"
#include "fault.h"
#include "global_catchup.h"
#include "health.h"

/* longest wait for the end of those who leave a region out, in ms, as new ones wait with us:
 * at first, and after some attempts that somebody has outlasted */
#define FLIP_WAIT			200
#define FLIP_WAIT_MAX		1600

/* ms between two attempts, for each ms of waiting */
#define FLIP_PAUSE			5

/* how long nobody can leave the region out, in ms, and batches that may be shipped meanwhile */
#define FLIP_HOLD			3000
#define FLIP_BATCHES		4

/*
 * Round: true if no note about the region is there, and all that was shipped is applied.
 * Our lock keeps new notes out.
 */
static bool
nothing_left(void *arg)
{
	CatchUpRegion *region = arg;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(region->name)};
	bool		nothing;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("SELECT FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1 LIMIT 1",
						   lengthof(types), types, values, true);
	nothing = SPI_processed == 0;
	SPI_finish();
	/* a batch whose last message was lost is applied there by the resolver, some time */
	return nothing && residency_ship_settled(region->name);
}

/* true if the transaction is one of these */
static bool
is_among(VirtualTransactionId one, const VirtualTransactionId *all, int n)
{
	for (int i = 0; i < n; i++)
		if (VirtualTransactionIdEquals(one, all[i]))
			return true;
	return false;
}

/* the next attempt is not earlier than in that many ms */
static void
put_off(CatchUpRegion *region, int ms)
{
	region->no_flip_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

/* an attempt has kept writers waiting in vain: the next one is later, and waits longer */
static void
back_off(CatchUpRegion *region)
{
	put_off(region, region->flip_wait * FLIP_PAUSE);
	region->flip_wait = Min(region->flip_wait * 2, FLIP_WAIT_MAX);
}

/*
 * Round: takes the lock, for the session; false if somebody outlasts the wait.  Who has done
 * so before is waited for without asking for the lock: new writers need not wait as well.
 */
static bool
lock_region(void *arg)
{
	CatchUpRegion *region = arg;
	int			nbefore;
	int			nafter;
	VirtualTransactionId *before = residency_backlog_holders(region->name, &nbefore);
	VirtualTransactionId *after;

	for (int i = 0; i < nbefore; i++)
		if (is_among(before[i], region->blockers, region->nblockers))
			return false;
	region->nblockers = 0;
	if (residency_backlog_lock_exclusive(region->name, Min(region->flip_wait, Max(residency_lock_timeout / 3, 1))))
		return true;
	after = residency_backlog_holders(region->name, &nafter);
	for (int i = 0; i < nafter && region->nblockers < FLIP_BLOCKERS; i++)
		if (is_among(after[i], before, nbefore))
			region->blockers[region->nblockers++] = after[i];
	back_off(region);
	return false;
}

/* Under the lock: ships one batch before that time; false if it fails. */
static bool
ship_before(CatchUpRegion *region, BatchWork *work, TimestampTz end)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

	work->hurry = true;
	return left > 0 && residency_catch_up_ship(work, region, 0, left);
}

/*
 * Under the lock: ships what is left, and makes the region "up"; true if it is.
 */
static bool
flip_locked(CatchUpRegion *region)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FLIP_HOLD);

	for (int i = 0; i < FLIP_BATCHES; i++)
	{
		BatchWork	work = {0};
		BatchWork	last = {.order = {.overdue = true, .final = true}};

		if (!ship_before(region, &work, end))
			return false;
		if (work.result.taken == 0)
		{
			long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
			bool		up = left > 0 && residency_catch_up_try(region, nothing_left, region, false, left) &&
				residency_health_flip_up(region->name);

			RESIDENCY_FAULT(flipped);
			return up;
		}
		if (work.result.overdue > 0 && !ship_before(region, &last, end))
			return false;
		if (work.result.done == 0 && last.result.done == 0)
			return false;
	}
	return false;
}

/*
 * Makes a region "up": see the head of this file.  True if it is.  The lock is given back
 * whatever happens.
 */
bool
residency_catch_up_flip(CatchUpRegion *region)
{
	bool		up = false;

	if (region->flip_wait == 0)
		region->flip_wait = FLIP_WAIT;
	put_off(region, FLIP_WAIT * FLIP_PAUSE);
	if (residency_catch_up_try(region, lock_region, region, false, FLIP_HOLD))
	{
		RESIDENCY_FAULT(flip_locked);
		up = flip_locked(region);
		if (!up)
			back_off(region);
	}
	LockReleaseSession(USER_LOCKMETHOD);	/* an error may have come behind it */
	if (up)
		region->flip_wait = FLIP_WAIT;
	return up;
}
