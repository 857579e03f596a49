/*
 * global_catchup_worker.c
 *		The worker that ships what was noted, and makes regions "up" again.
 *
 * It looks for notes once a second, and when it is woken.  For each region that answers:
 *
 *			 .--------------------------------------------------------------.
 *			 |                  notes are left that can be shipped later    |
 *			 v                                                              |
 *		  a pass: batch after batch, each in a transaction of its own  -----+
 *			 |  no note is left, and the region is catching up
 *			 v
 *		  the region's lock, exclusively, for the session: who leaves the region out
 *			 |  has ended, and nobody new begins         (not in time: again later)
 *			 v
 *		  what these have noted is shipped, and applied  (not all of it: again later)
 *			 v
 *		  up, and the lock is given back
 *
 * A row that breaks a constraint is left for the next pass, as another row may cure it.
 * When passes ship nothing else for CONFLICT_PATIENCE, it goes to residency.conflict; from
 * there it is tried again every CONFLICT_RETRY.
 */
#include "residency.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit_internal.h"
#include "fault.h"
#include "global_backlog.h"
#include "global_catchup.h"
#include "health.h"
#include "regions.h"
#include "worker.h"

/* ms between two looks for notes; after a region failed; while rows are only in the way of
 * writers; until a constraint counts as broken; between attempts of what broke one, in s */
#define LOOK_INTERVAL		1000
#define FAILURE_PAUSE		2000
#define BUSY_PAUSE			100
#define CONFLICT_PATIENCE	3000
#define CONFLICT_RETRY		"30 seconds"

/* longest wait for the end of those who leave a region out, in ms; new ones wait with us */
#define FLIP_WAIT			200

/* batches that may be shipped while nobody can leave the region out */
#define FLIP_BATCHES		4

/* what the worker knows of a region, as long as its process lives */
typedef struct CatchUpRegion
{
	char		name[NAMEDATALEN];
	bool		behind;			/* notes about it were found by the last look */
	TimestampTz not_before;		/* do not try again earlier */
	TimestampTz stuck_since;	/* passes ship nothing, and constraints fail; 0: not so */
} CatchUpRegion;

static CatchUpRegion regions[RESIDENCY_MAX_REGIONS];
static int	nregions = 0;
static uint64 last_xid = 0;		/* our latest batch; 0: none since this process started */

/* one batch */
typedef struct BatchWork
{
	CatchUpRegion *region;
	int64		after;
	bool		final;
	bool		hurry;			/* the region's lock is held */
	ShipResult	result;
} BatchWork;

/* the entry of a region, made at first use; NULL if there are too many */
static CatchUpRegion *
find_region(const char *name)
{
	for (int i = 0; i < nregions; i++)
		if (strcmp(regions[i].name, name) == 0)
			return &regions[i];
	if (nregions == RESIDENCY_MAX_REGIONS)
		return NULL;
	memset(&regions[nregions], 0, sizeof(CatchUpRegion));
	strlcpy(regions[nregions].name, name, NAMEDATALEN);
	return &regions[nregions++];
}

/*
 * Round: notes once more what broke a constraint some time ago, if its region is up.
 * Always true.
 */
static bool
retry_conflicts(void *arg)
{
	ListCell   *lc;

	if (!residency_conflicts_exist())
		return true;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	foreach(lc, residency_other_servers())
	{
		char	   *name = residency_server_region(lfirst_oid(lc));
		Oid			types[] = {TEXTOID, TEXTOID};
		Datum		values[] = {CStringGetTextDatum(name), CStringGetTextDatum(residency_self()->region)};

		if (residency_region_state(name) != RESIDENCY_UP)
			continue;
		residency_spi_as_owner("WITH c AS (UPDATE residency.conflict SET tried_at = pg_catalog.now() "
							   "WHERE region OPERATOR(pg_catalog.=) $1 AND home OPERATOR(pg_catalog.=) $2 "
							   "AND kind OPERATOR(pg_catalog.<>) 'key' AND tried_at OPERATOR(pg_catalog.<) "
							   "(pg_catalog.now() OPERATOR(pg_catalog.-) '" CONFLICT_RETRY "'::pg_catalog.interval) "
							   "RETURNING region, relation, key) "
							   "INSERT INTO residency.backlog (region, relation, key) "
							   "SELECT DISTINCT region, relation, key FROM c ON CONFLICT DO NOTHING",
							   lengthof(types), types, values, false);
	}
	SPI_finish();
	return true;
}

/*
 * Round: looks which regions are behind, according to the notes, or not up.  Always true.
 */
static bool
look(void *arg)
{
	ListCell   *lc;

	for (int i = 0; i < nregions; i++)
		regions[i].behind = false;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	foreach(lc, residency_other_servers())
	{
		char	   *name = residency_server_region(lfirst_oid(lc));
		Oid			types[] = {TEXTOID};
		Datum		values[] = {CStringGetTextDatum(name)};
		CatchUpRegion *region = find_region(name);

		if (region == NULL || residency_region_state(name) == RESIDENCY_AWAY)
			continue;
		residency_spi_as_owner("SELECT FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1 LIMIT 1",
							   lengthof(types), types, values, true);
		region->behind = SPI_processed > 0 || residency_region_state(name) == RESIDENCY_CATCHING_UP;
		if (!region->behind)
			residency_progress_idle(name);
	}
	SPI_finish();
	return true;
}

/* a round, and the region whose errors it tells; NULL: they concern all */
typedef struct Told
{
	ResidencyWorkerRound round;
	void	   *arg;
	CatchUpRegion *region;
} Told;

/* Round: does another one, and leaves its error in residency.catch_up. */
static bool
tell_errors(void *arg)
{
	Told	   *told = arg;
	volatile bool result = false;

	PG_TRY();
	{
		result = told->round(told->arg);
	}
	PG_CATCH();
	{
		MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);
		ErrorData  *error = CopyErrorData();

		for (int i = 0; i < nregions; i++)
			if (told->region == NULL || told->region == &regions[i])
				residency_progress_failed(regions[i].name, error->message);
		FreeErrorData(error);
		MemoryContextSwitchTo(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return result;
}

/* residency_worker_try, for one region or all (NULL), with errors that can be seen */
static bool
try_for(CatchUpRegion *region, ResidencyWorkerRound round, void *arg)
{
	Told		told = {round, arg, region};

	return residency_worker_try(tell_errors, &told);
}

/* ships one batch, in a transaction of its own */
static bool
ship(void *arg)
{
	BatchWork  *work = arg;

	MemoryContext context = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* nobody waits for us to see the rows there; the next batch queues behind this one */
	if (!work->hurry)
		(void) set_config_option("residency.commit_wait", "decided", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	work->result = residency_ship_batch(work->region->name, work->after, work->final);
	if (FullTransactionIdIsValid(GetTopFullTransactionIdIfAny()))
		last_xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (work->result.done > 0)
		RESIDENCY_FAULT(shipped);
	return true;
}

/* what a pass came to */
typedef enum PassResult
{
	PASS_CLEAN,					/* no note is left, but for those not committed yet */
	PASS_PROGRESS,				/* something was shipped, and notes are left */
	PASS_BUSY,					/* nothing was: writers are in the way */
	PASS_LATER,					/* nothing was: constraints fail */
	PASS_FAILED
} PassResult;

/* goes through all notes about a region once, but not through more than that many batches */
static PassResult
pass(CatchUpRegion *region, bool final, bool hurry, int batches)
{
	BatchWork	work = {.region = region, .final = final, .hurry = hurry};
	Told		told = {ship, &work, region};
	int			taken = 0;
	int			done = 0;
	int			later = 0;

	do
	{
		if (!residency_worker_try_bare(tell_errors, &told))
			return PASS_FAILED;
		taken += work.result.taken;
		done += work.result.done;
		later += work.result.later;
		work.after = work.result.last;
		if (work.result.taken > 0)
			residency_progress_shipped(region->name, work.result.done, work.result.full || taken > done);
	} while (work.result.full && --batches > 0);
	if (taken == 0)
		return PASS_CLEAN;
	if (done > 0)
		return PASS_PROGRESS;
	return later > 0 ? PASS_LATER : PASS_BUSY;
}

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
	return nothing && residency_ship_settled(region->name,
											 last_xid != 0 ? last_xid :
											 U64FromFullTransactionId(ReadNextFullTransactionId()));
}

/* round: takes the lock, for the session; false if somebody outlasts the wait */
static bool
lock_region(void *arg)
{
	return residency_backlog_lock_exclusive(((CatchUpRegion *) arg)->name, FLIP_WAIT);
}

/*
 * Makes a region "up": see the head of this file.  True if it is.  The lock is given back
 * whatever happens.
 */
static bool
flip(CatchUpRegion *region)
{
	bool		up = false;

	if (!try_for(region, lock_region, region))
	{
		LockReleaseSession(USER_LOCKMETHOD);	/* an error may have come behind it */
		return false;
	}
	RESIDENCY_FAULT(flip_locked);
	for (int i = 0; i < FLIP_BATCHES; i++)
	{
		PassResult	result = pass(region, false, true, 1);

		if (result == PASS_CLEAN)
		{
			if (try_for(region, nothing_left, region))
				up = residency_health_flip_up(region->name);
			RESIDENCY_FAULT(flipped);
			break;
		}
		if (result != PASS_PROGRESS)
			break;
	}
	LockReleaseSession(USER_LOCKMETHOD);
	return up;
}

/* when the region is to be looked at again, after that many ms */
static void
postpone(CatchUpRegion *region, int ms)
{
	region->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

/* does for one region what can be done now; true if more can be done at once */
static bool
serve(CatchUpRegion *region)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		final = region->stuck_since != 0 &&
		now - region->stuck_since > CONFLICT_PATIENCE * INT64CONST(1000);

	switch (pass(region, final, false, INT_MAX))
	{
		case PASS_PROGRESS:
			region->stuck_since = 0;
			return true;
		case PASS_LATER:
			if (region->stuck_since == 0)
				region->stuck_since = now;
			postpone(region, CONFLICT_PATIENCE / 4);
			return false;
		case PASS_BUSY:
			postpone(region, BUSY_PAUSE);
			return false;
		case PASS_FAILED:
			postpone(region, FAILURE_PAUSE);
			return false;
		case PASS_CLEAN:
			break;
	}
	region->stuck_since = 0;
	region->behind = false;
	if (residency_region_state(region->name) == RESIDENCY_CATCHING_UP && !flip(region))
	{
		region->behind = true;
		postpone(region, LOOK_INTERVAL);
	}
	return false;
}

/* ms until something is to be done; 0: now */
static long
next_pause(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		pause = LOOK_INTERVAL;

	for (int i = 0; i < nregions; i++)
		if (regions[i].behind)
			pause = Min(pause, TimestampDifferenceMilliseconds(now, Max(now, regions[i].not_before)));
	return Max(pause, 10);
}

/* main function of the worker, see worker.h */
void
residency_catch_up_main(void)
{
	long		pause = 0;

	while (residency_worker_wait(pause))
	{
		bool		more = true;

		pause = LOOK_INTERVAL;
		if (!try_for(NULL, look, NULL))
			continue;
		/* on its own: what goes wrong here must keep nobody from what was noted */
		(void) try_for(NULL, retry_conflicts, NULL);
		while (more)
		{
			bool		leave;

			more = false;
			for (int i = 0; i < nregions; i++)
				if (regions[i].behind && regions[i].not_before <= GetCurrentTimestamp())
					more |= serve(&regions[i]);
			if (more && (residency_worker_wanted(&leave), leave))
				break;
		}
		pause = next_pause();
	}
}
