/*
 * global_catchup_worker.c
 *		The worker that ships what was noted, and makes regions "up" again.
 *
 * It looks for notes once a second, and when it is woken.  Each region that answers gets its
 * turn, again and again while there is something to do:
 *
 *			 .--------------------------------------------------------------.
 *			 |                                              notes are left  |
 *			 v                                                              |
 *		  a pass, from the oldest note to the newest, TURN_BATCHES of them  |
 *			 |  in a turn, each in a transaction of its own  ---------------+
 *			 |  nothing was refused, and the region is catching up
 *			 v
 *		  the region's lock, exclusively, for the session: who leaves the region out
 *			 |  has ended, and nobody new begins         (not in time: again later)
 *			 v
 *		  what these have noted is shipped, and applied  (not all of it: again later)
 *			 v
 *		  up, and the lock is given back
 *
 * Notes that come while a pass is under way are no reason to put the flip off: under steady
 * writes there would always be some, and under the lock there are none.
 *
 * A row that breaks a constraint is left for the next pass, as another row may cure it.
 * When that has gone on for CONFLICT_PATIENCE, whatever else is shipped, it goes to
 * residency.conflict; from there it is tried again every residency.conflict_retry.
 *
 * One region holds up the others for one turn at most: a batch that is not over after
 * residency.ship_timeout is given up, and the next ones are smaller, down to a single note, which is
 * passed over.  The pass goes on where it was, so it comes to an end all the same.  Writers
 * that leave a region out wait for us only while we ask for its lock and hold it: that is
 * bounded (global_catchup_flip.c).  What this process remembers of a region has a
 * fixed size; all that must outlast it is in the notes.
 */
#include "residency.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "commit_internal.h"
#include "fault.h"
#include "global_backlog.h"
#include "global_catchup.h"
#include "health.h"
#include "regions.h"
#include "worker.h"

/* ms between two looks for notes; after a region failed; while constraints fail; between
 * attempts of what broke one, in s */
#define LOOK_INTERVAL		1000
#define FAILURE_PAUSE		2000
#define REFUSED_PAUSE		750

/* of what is in residency.conflicts, how many are tried again at a time; and ms until the next ones, if there are as many */
#define RETRY_NOTES			1000
#define RETRY_PAUSE			5000

#define RETRY_SQL \
	"WITH o AS (SELECT relation, key, region, kind FROM residency.conflict " \
	"WHERE region OPERATOR(pg_catalog.=) $1 AND home OPERATOR(pg_catalog.=) $2 " \
	"AND kind OPERATOR(pg_catalog.<>) 'key' AND tried_at OPERATOR(pg_catalog.<) " \
	"(pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $4)) ORDER BY tried_at LIMIT $3), " \
	"c AS (UPDATE residency.conflict AS t SET tried_at = pg_catalog.now() FROM o " \
	"WHERE t.relation OPERATOR(pg_catalog.=) o.relation AND t.key OPERATOR(pg_catalog.=) o.key " \
	"AND t.region OPERATOR(pg_catalog.=) o.region AND t.kind OPERATOR(pg_catalog.=) o.kind " \
	"RETURNING t.region, t.relation, t.key, t.noticed_at), " \
	"n AS (INSERT INTO residency.backlog (region, relation, key, refused_at) " \
	"SELECT region, relation, key, pg_catalog.min(noticed_at) FROM c " \
	"GROUP BY region, relation, key ON CONFLICT DO NOTHING) " \
	"SELECT FROM c"

/* while rows are only in the way of writers: at first, and after many attempts, in ms */
#define BUSY_PAUSE			100
#define BUSY_PAUSE_MAX		1000

/* until a constraint counts as broken, in ms */
#define CONFLICT_PATIENCE	3000

/* batches for one region before the next one gets its turn */
#define TURN_BATCHES		2

static CatchUpRegion regions[RESIDENCY_MAX_REGIONS];
static int	nregions = 0;
static bool timed_out = false;	/* the last round was given up because it took too long */

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
	regions[nregions].batch = SHIP_NOTES;
	regions[nregions].busy_pause = BUSY_PAUSE;
	return &regions[nregions++];
}

/*
 * Round: notes once more what broke a constraint some time ago, if its region is up, those
 * first that were not tried for longest; and forgets conflicts of tables that are global no
 * more.  *arg tells whether there may be more.  Always true.
 */
static bool
retry_conflicts(void *arg)
{
	bool	   *more = arg;
	ListCell   *lc;

	if (!residency_conflicts_exist())
		return true;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("DELETE FROM residency.conflict AS c WHERE NOT EXISTS (SELECT FROM residency.rule AS r "
						   "WHERE r.relation OPERATOR(pg_catalog.=) c.relation AND r.kind OPERATOR(pg_catalog.=) 'g')",
						   0, NULL, NULL, false);
	foreach(lc, residency_other_servers())
	{
		char	   *name = residency_server_region(lfirst_oid(lc));
		Oid			types[] = {TEXTOID, TEXTOID, INT4OID, FLOAT8OID};
		Datum		values[] = {CStringGetTextDatum(name), CStringGetTextDatum(residency_self()->region),
		Int32GetDatum(RETRY_NOTES), Float8GetDatum(residency_conflict_retry / 1000.0)};

		if (residency_region_state(name) != RESIDENCY_UP)
			continue;
		residency_spi_as_owner(RETRY_SQL, lengthof(types), types, values, false);
		*more |= SPI_processed >= RETRY_NOTES;
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

		if (region == NULL)
			continue;
		if (residency_region_state(name) == RESIDENCY_AWAY)
		{
			memset(&region->pass, 0, sizeof(PassState));
			residency_progress_idle(name, false);
			continue;
		}
		residency_spi_as_owner("SELECT FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1 LIMIT 1",
							   lengthof(types), types, values, true);
		region->behind = SPI_processed > 0 || residency_region_state(name) == RESIDENCY_CATCHING_UP;
		if (!region->behind)
			residency_progress_idle(name, true);
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
	int			timeout;		/* ms */
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
		char		late[100];

		snprintf(late, sizeof(late), "given up after %d ms", told->timeout);
		timed_out = error->sqlerrcode == ERRCODE_QUERY_CANCELED;
		for (int i = 0; i < nregions; i++)
			if (told->region == NULL || told->region == &regions[i])
				residency_progress_failed(regions[i].name, timed_out ? late : error->message);
		FreeErrorData(error);
		MemoryContextSwitchTo(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return result;
}

/*
 * Does a round for one region or all (NULL), with errors that can be seen, and gives it up
 * after that many ms.  "bare" as in worker.h.
 */
bool
residency_catch_up_try(CatchUpRegion *region, ResidencyWorkerRound round, void *arg, bool bare, int ms)
{
	Told		told = {round, arg, region, ms};
	bool		result;

	timed_out = false;
	enable_timeout_after(STATEMENT_TIMEOUT, Max(ms, 1));
	result = bare ? residency_worker_try_bare(tell_errors, &told) : residency_worker_try(tell_errors, &told);
	disable_timeout(STATEMENT_TIMEOUT, false);
	/* it may have come too late to stop anything */
	QueryCancelPending = false;
	return result;
}

/* Round: ships one batch, in a transaction of its own.  Always true. */
static bool
ship(void *arg)
{
	BatchWork  *work = arg;
	MemoryContext context = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* nobody waits for us to see the rows there, and the next batch queues behind this one;
	 * but with the lock, it is waited for, as long as others can wait for us */
	(void) set_config_option("residency.commit_wait", work->hurry ? "applied" : "decided", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	if (work->hurry)
		(void) set_config_option("residency.commit_timeout", "1s", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	residency_ship_batch(&work->order, &work->result);
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (work->result.done > 0)
		RESIDENCY_FAULT(shipped);
	return true;
}

/* ships one batch behind that note, within that many ms; false if it fails */
bool
residency_catch_up_ship(BatchWork *work, CatchUpRegion *region, int64 after, int ms)
{
	TimestampTz start = GetCurrentTimestamp();

	work->region = region;
	work->order.region = region->name;
	work->order.after = after;
	work->order.limit = region->batch;
	work->order.patience = CONFLICT_PATIENCE;
	if (!residency_catch_up_try(region, ship, work, true, ms))
	{
		if (timed_out)
			region->batch = Max((work->result.taken > 0 ? work->result.taken : region->batch) / 8, 1);
		return false;
	}
	/* twice as many must not be too many again */
	if (TimestampDifferenceMilliseconds(start, GetCurrentTimestamp()) < ms / 4)
		region->batch = Min(region->batch * 2, SHIP_NOTES);
	if (work->result.taken > 0)
		residency_progress_shipped(region->name, start, work->result.done - work->result.conflicts,
								   work->result.full || work->result.taken > work->result.done);
	return true;
}

/* what became of a turn */
typedef enum TurnResult
{
	TURN_FAILED,
	TURN_OVER,					/* the pass goes on in the next one */
	TURN_LAST					/* all notes have been gone through */
} TurnResult;

/*
 * A batch has failed.  If it was a single note that takes too long, the next one begins
 * behind it: true.
 */
static bool
pass_over(const BatchWork *work, int64 *after)
{
	if (!timed_out || work->order.limit > 1 || work->result.taken == 0)
		return false;
	*after = work->result.last;
	return true;
}

/* goes on with the pass through the notes about a region */
static TurnResult
take_turn(CatchUpRegion *region)
{
	PassState  *pass = &region->pass;

	for (int i = 0; i < TURN_BATCHES; i++)
	{
		BatchWork	work = {0};

		if (!residency_catch_up_ship(&work, region, pass->after, residency_ship_timeout))
		{
			/* as good as refused: it is no reason to make the region "up" */
			if (pass_over(&work, &pass->after))
				pass->later++;
			return TURN_FAILED;
		}
		pass->taken += work.result.taken;
		pass->done += work.result.done;
		pass->later += work.result.later;
		pass->overdue += work.result.overdue;
		if (work.result.taken > 0)
			pass->after = work.result.last;
		if (!work.result.full)
			return TURN_LAST;
	}
	return TURN_OVER;
}

/*
 * What has been refused for too long goes to residency.conflict now, unless it is taken after
 * all; one batch of it in a turn.
 */
static TurnResult
give_up_overdue(CatchUpRegion *region)
{
	PassState  *pass = &region->pass;
	BatchWork	work = {.order = {.overdue = true, .final = true}};

	if (!residency_catch_up_ship(&work, region, pass->given_up, residency_ship_timeout))
	{
		(void) pass_over(&work, &pass->given_up);
		return TURN_FAILED;
	}
	pass->done += work.result.done;
	pass->later = Max(pass->later - work.result.done, 0);
	if (work.result.taken > 0)
		pass->given_up = work.result.last;
	return work.result.full ? TURN_OVER : TURN_LAST;
}

/* when the region is to be looked at again, after that many ms */
static void
postpone(CatchUpRegion *region, int ms)
{
	region->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

/*
 * A pass is over: true if the next one can begin at once, because something was shipped and
 * what was refused has become less.
 */
static bool
after_pass(CatchUpRegion *region, const PassState *pass)
{
	int			refused = region->refused;

	region->refused = pass->later;
	if (pass->later > 0)
	{
		if (pass->done > 0 && (refused == 0 || pass->later < refused))
			return true;
		postpone(region, REFUSED_PAUSE);
		return false;
	}
	if (pass->done > 0)
	{
		region->busy_pause = BUSY_PAUSE;
		return true;
	}
	postpone(region, region->busy_pause);
	region->busy_pause = Min(region->busy_pause * 2, BUSY_PAUSE_MAX);
	return false;
}

/* begins to give up what is overdue in this pass, if anything is */
static bool
begin_giving_up(PassState *pass)
{
	if (pass->giving_up || pass->overdue == 0)
		return false;
	pass->giving_up = true;
	pass->given_up = 0;
	return true;
}

/*
 * A turn has failed.  If it only took too long the pass goes on where it was, as what is in front
 * would keep it from all others again and again; what is overdue there is given up first.
 */
static void
after_failure(CatchUpRegion *region)
{
	if (timed_out)
		(void) begin_giving_up(&region->pass);
	else
		memset(&region->pass, 0, sizeof(PassState));
	/* the others get at least as much time as a region that hangs */
	postpone(region, timed_out ? residency_ship_timeout : FAILURE_PAUSE);
}

/* does for one region what can be done in a turn; true if more can be done at once */
static bool
serve(CatchUpRegion *region)
{
	PassState  *pass = &region->pass;
	TurnResult	turn = pass->giving_up ? give_up_overdue(region) : take_turn(region);
	PassState	ended;

	if (turn == TURN_FAILED)
	{
		after_failure(region);
		return false;
	}
	if (turn == TURN_OVER)
		return true;
	pass->over |= !pass->giving_up;
	if (begin_giving_up(pass))
		return true;
	if (!pass->over)
	{
		/* it was cut short */
		pass->giving_up = false;
		pass->overdue = 0;
		return true;
	}
	ended = *pass;
	memset(pass, 0, sizeof(PassState));
	if (ended.later == 0 && ended.done < SHIP_NOTES && GetCurrentTimestamp() >= region->no_flip_before &&
		residency_region_state(region->name) == RESIDENCY_CATCHING_UP && residency_catch_up_flip(region))
		ended.taken = 0;
	if (ended.taken > 0)
		return after_pass(region, &ended);
	/* no note is left; that it is not up yet is found by the next look */
	region->behind = false;
	region->refused = 0;
	region->busy_pause = BUSY_PAUSE;
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

/*
 * Gives one region after the other its turn, until nothing can be done at once, or it is
 * time to look again; in ms, when it is.
 */
static long
serve_all(void)
{
	TimestampTz look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_INTERVAL);
	bool		more = true;
	bool		leave;

	while (more)
	{
		more = false;
		for (int i = 0; i < nregions; i++)
			if (regions[i].behind && regions[i].not_before <= GetCurrentTimestamp())
				more |= serve(&regions[i]);
		/* somebody has something new; or there is something that nobody told us */
		if (residency_worker_wanted(&leave) || GetCurrentTimestamp() >= look_at)
			return 0;
	}
	return next_pause();
}

/* main function of the worker, see worker.h */
void
residency_catch_up_main(void)
{
	TimestampTz retry_at = 0;
	long		pause = 0;

	while (residency_worker_wait(pause))
	{
		TimestampTz now = GetCurrentTimestamp();

		pause = LOOK_INTERVAL;
		if (!residency_catch_up_try(NULL, look, NULL, false, residency_ship_timeout))
			continue;
		/* on its own: what goes wrong here must keep nobody from what was noted */
		if (now >= retry_at)
		{
			bool		more = false;

			(void) residency_catch_up_try(NULL, retry_conflicts, &more, false, residency_ship_timeout);
			retry_at = TimestampTzPlusMilliseconds(now, more ? RETRY_PAUSE : LOOK_INTERVAL);
		}
		pause = serve_all();
	}
}
