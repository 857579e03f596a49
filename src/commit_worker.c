/*
 * commit_worker.c
 *		The resolver: runs the rounds of commit_resolve.c, for transactions that began
 *		here, and of commit_peers.c, for parts that are prepared here, without any hand.
 *
 * It looks at all regions every residency.resolve_interval, and at once when a backend
 * misses an answer.  While something is not finished it looks again after a second, and
 * then after twice as long each time, up to four.  A region that does not answer is left in peace for
 * as long, and the log says once that it is away and once that it is back.
 *
 * Connections are kept between rounds.
 *
 * What was done with a transaction is remembered in shared memory, newest first, for
 * residency.transactions; it does not survive a restart.
 */
#include "commit_resolve.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "regions.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(residency_resolver_actions);
PG_FUNCTION_INFO_V1(residency_wake_resolver);

/* actions remembered, of all databases of the server together */
#define ACTIONS 256
#define LOCK_TRANCHE "residency resolver"

/* each step of a round waits this long at most for answers */
#define STEP_TIMEOUT_MS 3000

/* pauses while something is not finished, or a region does not answer */
#define PAUSE_FIRST_MS 1000
#define PAUSE_LAST_MS 4000

/* what became of one gid in one region */
typedef struct ActionEntry
{
	Oid			database;		/* InvalidOid: free */
	TimestampTz at;
	char		region[NAMEDATALEN];
	char		gid[200];
	char		action[32];
} ActionEntry;

typedef struct ResolverShared
{
	LWLock	   *lock;
	ActionEntry actions[ACTIONS];
} ResolverShared;

/* what the worker remembers of one region */
typedef struct RegionMemory
{
	Oid			serverid;		/* InvalidOid: free */
	int			failures;		/* in a row */
	TimestampTz retry_at;
} RegionMemory;

static ResolverShared *shared = NULL;
static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;
static RegionMemory memories[RESIDENCY_MAX_REGIONS];

/* shmem_request_hook */
static void
request_shmem(void)
{
	if (next_shmem_request)
		next_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(ResolverShared)));
	RequestNamedLWLockTranche(LOCK_TRANCHE, 1);
}

/* shmem_startup_hook */
static void
start_shmem(void)
{
	bool		found;

	if (next_shmem_startup)
		next_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("residency resolver", sizeof(ResolverShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(ResolverShared));
		shared->lock = &GetNamedLWLockTranche(LOCK_TRANCHE)->lock;
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * Remembers what was done with a gid, in place of what was remembered of it, or else of
 * the oldest entry; and logs it if it is finished now.  Nothing is logged of a gid that is
 * found unfinished round after round.
 */
void
residency_resolver_note(const ResolveResult *result)
{
	ActionEntry *entry;

	if (result->gid == NULL || shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	entry = &shared->actions[0];
	for (int i = 0; i < ACTIONS; i++)
	{
		ActionEntry *other = &shared->actions[i];

		if (other->database == MyDatabaseId && strcmp(other->gid, result->gid) == 0)
		{
			entry = other;
			break;
		}
		if (other->at < entry->at)
			entry = other;
	}
	entry->database = MyDatabaseId;
	entry->at = GetCurrentTimestamp();
	strlcpy(entry->region, result->region, sizeof(entry->region));
	strlcpy(entry->gid, result->gid, sizeof(entry->gid));
	strlcpy(entry->action, result->action, sizeof(entry->action));
	LWLockRelease(shared->lock);
	if (strcmp(result->action, "committed") == 0 || strcmp(result->action, "rolled back") == 0)
		ereport(LOG,
				(errmsg("resolver: %s \"%s\" in region \"%s\"", result->action, result->gid, result->region),
				 result->detail ? errdetail("%s", result->detail) : 0));
}

/* SQL: residency.resolver_actions(): what is remembered of this database */
Datum
residency_resolver_actions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	ActionEntry *copy;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		PG_RETURN_NULL();
	copy = palloc(sizeof(shared->actions));
	LWLockAcquire(shared->lock, LW_SHARED);
	memcpy(copy, shared->actions, sizeof(shared->actions));
	LWLockRelease(shared->lock);
	for (int i = 0; i < ACTIONS; i++)
	{
		Datum		values[4];
		bool		nulls[4] = {false, false, false, false};

		if (copy[i].database != MyDatabaseId)
			continue;
		values[0] = TimestampTzGetDatum(copy[i].at);
		values[1] = CStringGetTextDatum(copy[i].region);
		values[2] = CStringGetTextDatum(copy[i].gid);
		values[3] = CStringGetTextDatum(copy[i].action);
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
	}
	PG_RETURN_NULL();
}

/* SQL: residency.wake_resolver() */
Datum
residency_wake_resolver(PG_FUNCTION_ARGS)
{
	residency_worker_wake_at_commit(RESIDENCY_WORKER_RESOLVER);
	PG_RETURN_BOOL(residency_workers);
}

/* the memory of a region, made when it is new; NULL if there are too many */
static RegionMemory *
memory_of(Oid serverid)
{
	for (int i = 0; i < RESIDENCY_MAX_REGIONS; i++)
	{
		if (memories[i].serverid == InvalidOid)
			memories[i].serverid = serverid;
		if (memories[i].serverid == serverid)
			return &memories[i];
	}
	return NULL;
}

/* ResolveFilter: false while a region that did not answer is left in peace */
static bool
is_due(Oid serverid)
{
	RegionMemory *memory = memory_of(serverid);

	return memory == NULL || memory->failures == 0 || memory->retry_at <= GetCurrentTimestamp();
}

/* a region was asked: remembers whether it answered (failure NULL), and logs a change of that */
static void
remember_answer(const char *region, Oid serverid, const char *failure)
{
	RegionMemory *memory = memory_of(serverid);

	if (memory == NULL)
		return;
	if (failure == NULL)
	{
		if (memory->failures > 0)
			ereport(LOG, (errmsg("resolver: region \"%s\" answers again", region)));
		memory->failures = 0;
		return;
	}
	if (memory->failures == 0)
		ereport(LOG,
				(errmsg("resolver: region \"%s\" does not answer", region),
				 errdetail("%s", failure)));
	memory->failures = Min(memory->failures + 1, 10);
	memory->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   Min(PAUSE_FIRST_MS << (memory->failures - 1), PAUSE_LAST_MS));
}

/* remembers which of the regions asked (OIDs of servers) answered; true if all did */
static bool
digest_answers(List *results, List *asked)
{
	bool		all = true;
	ListCell   *lc;

	foreach(lc, asked)
	{
		char	   *region = residency_server_region(lfirst_oid(lc));
		const char *failure = NULL;
		ListCell   *r;

		foreach(r, results)
		{
			ResolveResult *result = lfirst(r);

			if (result->gid == NULL && result->detail != NULL && strcmp(result->region, region) == 0)
				failure = result->detail;
		}
		remember_answer(region, lfirst_oid(lc), failure);
		all &= failure == NULL;
	}
	return all;
}

/* remembers what was done; true if nothing is left to do, also in regions that do not answer */
static bool
digest_actions(List *results)
{
	bool		finished = true;
	ListCell   *lc;

	foreach(lc, results)
	{
		ResolveResult *result = lfirst(lc);

		residency_resolver_note(result);
		finished &= result->gid != NULL &&
			(strcmp(result->action, "committed") == 0 ||
			 strcmp(result->action, "rolled back") == 0 || strcmp(result->action, "running") == 0);
	}
	return finished;
}

/* true if decision rows wait here that should have been finished by now */
static bool
anything_waits(void)
{
	residency_spi_as_owner("SELECT FROM residency.transaction t JOIN residency.self s "
						   "ON s.incarnation OPERATOR(pg_catalog.=) t.incarnation "
						   "WHERE t.decided_at OPERATOR(pg_catalog.<) "
						   "(pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => 5)) "
						   "LIMIT 1", 0, NULL, NULL, true);
	return SPI_processed > 0;
}

/* servers of the regions that are due */
static List *
due_servers(void)
{
	List	   *asked = NIL;
	ListCell   *lc;

	foreach(lc, list_copy(residency_other_servers()))
		if (is_due(lfirst_oid(lc)))
			asked = lappend_oid(asked, lfirst_oid(lc));
	return asked;
}

/* ResidencyWorkerRound: finishes this region's own transactions in all regions that are
 * due; true if nothing is left to do.  The argument, a bool *, see residency_resolve_round. */
static bool
run_round(void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *asked = due_servers();
	List	   *results;
	bool		finished = list_length(asked) == list_length(residency_other_servers());

	/* what is deleted here may come back in a failover, and is deleted again then */
	(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(context);
	results = residency_resolve_round(is_due, STEP_TIMEOUT_MS, arg);
	finished &= digest_answers(results, asked);
	finished &= digest_actions(results);
	finished &= !anything_waits();
	SPI_finish();
	return finished;
}

/* what run_peers found out */
typedef struct PeersRound
{
	MemoryContext context;		/* holds verdicts, outlives the round */
	List	   *verdicts;
	int			waiting;		/* parts that nobody knows about */
	int			waits;			/* waits that may be behind one of them */
	long		next_ms;		/* until the next part is old enough */
} PeersRound;

/* ResidencyWorkerRound: looks for parts of other regions' transactions that can be
 * finished here */
static bool
run_peers(void *arg)
{
	PeersRound *peers = arg;
	MemoryContext context = CurrentMemoryContext;
	List	   *asked = due_servers();
	ResolveRound round;
	List	   *verdicts;
	ListCell   *lc;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(context);
	residency_resolve_begin(&round, is_due, STEP_TIMEOUT_MS);
	verdicts = residency_peers_find(&round, &peers->waiting, &peers->next_ms);
	if (peers->waiting > 0)
		peers->waits = residency_doubt_end_waits();
	SPI_finish();
	if (round.results != NIL)
		(void) digest_answers(round.results, asked);
	MemoryContextSwitchTo(peers->context);
	foreach(lc, verdicts)
	{
		ResolveResult *verdict = lfirst(lc);
		ResolveResult *copy = palloc(sizeof(ResolveResult));

		copy->region = pstrdup(verdict->region);
		copy->gid = pstrdup(verdict->gid);
		copy->action = pstrdup(verdict->action);
		copy->detail = pstrdup(verdict->detail);
		peers->verdicts = lappend(peers->verdicts, copy);
	}
	MemoryContextSwitchTo(context);
	return true;
}

/* finishes what can be finished here of other regions' transactions; true if nothing is
 * left to do.  *next_ms becomes less if something will be to do earlier. */
static bool
finish_peers(MemoryContext context, long *next_ms)
{
	PeersRound	peers = {.context = context, .next_ms = *next_ms};
	bool		finished;

	finished = residency_worker_try(run_peers, &peers) && peers.waiting == 0;
	if (peers.verdicts != NIL)
		finished &= residency_worker_try_bare(residency_peers_finish, peers.verdicts);
	*next_ms = peers.waits > 0 ? Min(peers.next_ms, PAUSE_FIRST_MS) : peers.next_ms;
	MemoryContextReset(context);
	return finished;
}

/* ms until the first of the regions that did not answer is due again, at most "most" */
static long
until_due(long most)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < RESIDENCY_MAX_REGIONS; i++)
		if (memories[i].failures > 0)
			most = Min(most, TimestampDifferenceMilliseconds(now, memories[i].retry_at));
	/* one that has been due for long belongs to no round any more, or rounds fail ahead of it */
	return Max(most, PAUSE_FIRST_MS);
}

/* main function of the kind, see worker.h */
void
residency_resolver_main(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "residency peers",
												  ALLOCSET_DEFAULT_SIZES);
	int			unfinished = 0; /* rounds in a row */
	long		pause = 0;

	while (residency_worker_wait(pause))
	{
		long		next_ms = residency_resolve_interval;
		bool		more = false;
		bool		finished = residency_worker_try(run_round, &more);

		finished &= finish_peers(context, &next_ms);
		unfinished = finished ? 0 : unfinished + 1;
		pause = finished ? residency_resolve_interval
			: until_due(Min(PAUSE_FIRST_MS << Min(unfinished - 1, 8), PAUSE_LAST_MS));
		pause = more ? 0 : Min(pause, next_ms);
	}
}

/* asks for the shared memory; called while the library is preloaded */
void
residency_resolver_init(void)
{
	next_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = start_shmem;
}
