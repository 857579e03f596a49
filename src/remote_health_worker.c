/*
 * remote_health_worker.c
 *		The health worker: asks all regions side by side, and judges their answers.
 *
 *					no answer for residency.away_after
 *		 up, catching up -----------------------------------> away
 *		 catching up <---- RETURN_PINGS answers in a row ----- away
 *		 up <---- global_catchup_worker.c says so ---- catching up
 *
 * No flapping: whatever is shorter than away_after changes nothing, and a region has to
 * answer several pings in a row before it is used again; each time that it
 * goes away again within FLAP_MS of its return the number doubles, up to a bound.
 *
 * The catalog is looked into once a second, in a short transaction; all the rest happens
 * outside of any.
 *
 * When workers are switched off, or the database is no region any more, the slots are given back, so
 * that regions count as up.  A worker that ends otherwise leaves them to its successor.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "regions.h"
#include "remote_health_internal.h"
#include "remote_internal.h"
#include "worker.h"

/* answers in a row that end an absence: first, and at most when it keeps coming back */
#define RETURN_PINGS 3
#define RETURN_PINGS_MAX 24

/* a region that goes away again so soon after its return is flapping */
#define FLAP_MS 60000

/* how often the catalog is looked into, and the pause after a look that took long, as a multiple of it */
#define LOOK_MS 1000
#define LOOK_PAUSE 3

/* longest wait for a lock in it, in ms */
#define LOOK_LOCK_TIMEOUT "500"

/* all state of the worker; memory lives as long as the process */
static struct
{
	MemoryContext context;
	MemoryContext scratch;		/* for one turn of the loop */
	Probe	   *probes[RESIDENCY_MAX_REGIONS];
	int			n;
	char		deployment[32];
	char		self[NAMEDATALEN];
	char		incarnation[32];
} worker;

/* before_shmem_exit: nobody watches the regions for now */
static void
stop_watching(int code, Datum arg)
{
	for (int i = 0; i < worker.n; i++)
		residency_health_probe_close(worker.probes[i]);
	residency_health_orphan_all();
}

/* true if this region holds notes of what the other one has missed */
static bool
has_notes(const char *region)
{
	Oid			types[] = {NAMEOID};
	Datum		values[] = {DirectFunctionCall1(namein, CStringGetDatum(region))};
	bool		found;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1",
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "the backlog could not be read");
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/* the probe of a region, made if it is new; NULL if there are too many */
static Probe *
find_probe(const char *region)
{
	MemoryContext context;
	Probe	   *probe;

	for (int i = 0; i < worker.n; i++)
		if (strcmp(worker.probes[i]->region, region) == 0)
			return worker.probes[i];
	if (worker.n >= RESIDENCY_MAX_REGIONS)
		return NULL;
	context = AllocSetContextCreate(worker.context, "residency probe", ALLOCSET_SMALL_SIZES);
	probe = MemoryContextAllocZero(context, sizeof(Probe));
	probe->context = context;
	strlcpy(probe->region, region, NAMEDATALEN);
	probe->rtt = -1;
	probe->answered = GetCurrentTimestamp();
	probe->slot = residency_health_claim(region, has_notes(region) ?
										 RESIDENCY_CATCHING_UP : RESIDENCY_UP);
	/* what the worker before us has said holds until we know better */
	if (probe->slot != NULL)
		strlcpy(probe->problem, probe->slot->problem, sizeof(probe->problem));
	worker.probes[worker.n++] = probe;
	return probe;
}

/* the region is no more */
static void
drop_probe(int i)
{
	Probe	   *probe = worker.probes[i];

	residency_health_probe_close(probe);
	if (probe->slot != NULL)
		residency_health_release(probe->slot);
	worker.probes[i] = worker.probes[--worker.n];
	MemoryContextDelete(probe->context);
}

/* do two arrays that end in NULL hold the same strings?  Either may be NULL. */
static bool
same_strings(const char **a, const char **b)
{
	if (a == NULL || b == NULL)
		return a == b;
	for (; *a != NULL && *b != NULL; a++, b++)
		if (strcmp(*a, *b) != 0)
			return false;
	return *a == *b;
}

/* copy of such an array */
static const char **
copy_strings(const char **strings)
{
	const char **copy;
	int			n = 0;

	while (strings[n] != NULL)
		n++;
	copy = palloc0((n + 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
		copy[i] = pstrdup(strings[i]);
	return copy;
}

/* takes over how the region is reached; a connection made otherwise is given up */
static void
set_parameters(Probe *probe, Oid serverid)
{
	const char **keywords = NULL;
	const char **values = NULL;
	MemoryContext old;

	(void) residency_connection_parameters(serverid, InvalidOid, &keywords, &values);
	/* so that the home's administrator knows what that idle session is for */
	for (int i = 0; keywords != NULL && keywords[i] != NULL; i++)
		if (strcmp(keywords[i], "fallback_application_name") == 0)
			values[i] = "residency health";
	if (same_strings(keywords, probe->keywords) && same_strings(values, probe->values))
		return;
	residency_health_probe_close(probe);
	residency_health_address_forget(probe);
	probe->due = 0;
	/* what was there before stays until the process ends: it changes once in a blue moon */
	old = MemoryContextSwitchTo(probe->context);
	probe->keywords = keywords ? copy_strings(keywords) : NULL;
	probe->values = values ? copy_strings(values) : NULL;
	MemoryContextSwitchTo(old);
}

/* ResidencyWorkerRound: learns which regions there are, and ends sessions of silent ones */
static bool
look_around(void *arg)
{
	const ResidencySelf *self = residency_self();
	List	   *servers;
	ListCell   *lc;

	snprintf(worker.deployment, sizeof(worker.deployment), INT64_FORMAT, self->deployment);
	strlcpy(worker.self, self->region, sizeof(worker.self));
	snprintf(worker.incarnation, sizeof(worker.incarnation), INT64_FORMAT, self->incarnation);
	for (int i = 0; i < worker.n; i++)
		worker.probes[i]->seen = false;
	servers = list_copy(residency_other_servers());
	foreach(lc, servers)
	{
		Probe	   *probe = find_probe(GetForeignServer(lfirst_oid(lc))->servername);

		if (probe == NULL)
			continue;
		probe->seen = true;
		set_parameters(probe, lfirst_oid(lc));
	}
	for (int i = worker.n - 1; i >= 0; i--)
		if (!worker.probes[i]->seen)
			drop_probe(i);
	for (int i = 0; i < worker.n; i++)
		if (worker.probes[i]->slot != NULL)
			residency_health_dismiss(worker.probes[i]->slot,
									 residency_health_probe_patience(worker.probes[i]));
	return true;
}

/* answers in a row that end the region's absence */
static int
pings_wanted(const Probe *probe)
{
	return Min(RETURN_PINGS << Min(probe->flaps, 8), RETURN_PINGS_MAX);
}

/* the region has been silent for too long */
static void
go_away(Probe *probe, TimestampTz now)
{
	long		silent = TimestampDifferenceMilliseconds(probe->answered, now);

	if (probe->returned != 0 && TimestampDifferenceMilliseconds(probe->returned, now) < FLAP_MS)
		probe->flaps++;
	else
		probe->flaps = 0;
	probe->good = 0;
	ereport(LOG,
			(errmsg("region \"%s\" is away: no answer for %ld ms", probe->region, silent),
			 probe->problem[0] != '\0' ? errdetail_internal("%s", probe->problem) : 0));
}

/*
 * The region answers steadily again.  Only the catch-up worker can tell whether it has
 * missed anything: a transaction that has left it out may still be running.
 */
static void
come_back(Probe *probe, TimestampTz now)
{
	if (!residency_health_change(probe->slot, RESIDENCY_AWAY, RESIDENCY_CATCHING_UP))
		return;
	residency_worker_wake(RESIDENCY_WORKER_CATCH_UP);
	probe->returned = now;
	ereport(LOG,
			(errmsg("region \"%s\" is back: %d answers in a row", probe->region, probe->good)));
}

/* moves the region's state on, if it is time */
static void
judge(Probe *probe, TimestampTz now)
{
	ResidencyRegionState state;
	bool		silent;

	if (probe->slot == NULL)
		return;
	state = pg_atomic_read_u32(&probe->slot->state);
	silent = residency_health_probe_silent(probe, now);
	if (state != RESIDENCY_AWAY)
	{
		if (silent && residency_health_change(probe->slot, state, RESIDENCY_AWAY))
			go_away(probe, now);
	}
	else if (!silent && probe->good >= pings_wanted(probe))
		come_back(probe, now);
}

/* tells others what was found out, if it is news */
static void
describe(Probe *probe)
{
	if (probe->slot != NULL &&
		(strcmp(probe->slot->problem, probe->problem) != 0 || (probe->ever && !probe->slot->met)))
		residency_health_describe(probe->slot, probe->ever, probe->problem);
}

/* when something is due next, in ms from now */
static long
next_due(TimestampTz now, TimestampTz look)
{
	long		timeout = TimestampDifferenceMilliseconds(now, look);

	for (int i = 0; i < worker.n; i++)
	{
		Probe	   *probe = worker.probes[i];

		if (probe->phase == PROBE_CLOSED || probe->phase == PROBE_RESTING)
			timeout = Min(timeout, TimestampDifferenceMilliseconds(now, probe->due));
		else
			timeout = Min(timeout, residency_health_probe_pause(probe));
	}
	return Max(timeout, 1);
}

/*
 * Waits for the latch, any socket, or the time; reads all that has come.  A latch that is set
 * hides the sockets from a wait, so they are looked at once more.
 */
static void
wait_for_answers(long timeout)
{
	WaitEvent	events[RESIDENCY_MAX_REGIONS + 2];
	WaitEventSet *set = compat_create_wait_event_set(worker.context, RESIDENCY_MAX_REGIONS + 2);
	TimestampTz now;
	bool		woken;
	int			n;

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < worker.n; i++)
	{
		pgsocket	socket;
		int			wanted = residency_health_probe_events(worker.probes[i], &socket);

		if (wanted != 0)
			AddWaitEventToSet(set, wanted, socket, NULL, worker.probes[i]);
	}
	do
	{
		woken = false;
		n = WaitEventSetWait(set, timeout, events, lengthof(events), PG_WAIT_EXTENSION);
		for (int i = 0; i < n; i++)
			woken |= (events[i].events & WL_LATCH_SET) != 0;
		if (woken)
			ResetLatch(MyLatch);
		timeout = 0;
	} while (woken);
	FreeWaitEventSet(set);
	now = GetCurrentTimestamp();
	for (int i = 0; i < n; i++)
		if (events[i].user_data != NULL)
			residency_health_probe_readable(events[i].user_data, now);
}

/*
 * This process was woken so many ms too late: it was stopped, or the machine was asleep.  Regions
 * could not be heard meanwhile, which is not their fault.
 */
static void
forgive(long late, TimestampTz now)
{
	for (int i = 0; i < worker.n; i++)
	{
		Probe	   *probe = worker.probes[i];

		probe->answered = Min(TimestampTzPlusMilliseconds(probe->answered, late), now);
		probe->asked = Min(TimestampTzPlusMilliseconds(probe->asked, late), now);
	}
}

/*
 * Answers that came at the pace of another residency.away_after say nothing about the new
 * one: all regions are asked at once.
 */
static void
heed_setting(TimestampTz now)
{
	static int	heeded = 0;

	if (heeded == residency_away_after)
		return;
	heeded = residency_away_after;
	for (int i = 0; i < worker.n; i++)
	{
		worker.probes[i]->answered = Max(worker.probes[i]->answered, now);
		worker.probes[i]->due = now;
	}
}

/* main function of the worker's kind, see worker.h */
void
residency_health_main(void)
{
	TimestampTz look = 0;
	bool		leave = false;

	worker.context = AllocSetContextCreate(TopMemoryContext, "residency health", ALLOCSET_DEFAULT_SIZES);
	worker.scratch = AllocSetContextCreate(worker.context, "residency health turn", ALLOCSET_DEFAULT_SIZES);
	before_shmem_exit(stop_watching, (Datum) 0);
	/* while it waits for a lock nobody is asked, and others take this gateway for a silent one */
	SetConfigOption("lock_timeout", LOOK_LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	while (!leave)
	{
		const char *hello[3] = {worker.deployment, worker.self, worker.incarnation};
		TimestampTz start = GetCurrentTimestamp();
		TimestampTz now = start;
		long		timeout;

		if (now >= look)
		{
			(void) residency_worker_try(look_around, NULL);
			now = GetCurrentTimestamp();
			look = TimestampTzPlusMilliseconds(now, Max(LOOK_MS, LOOK_PAUSE *
														TimestampDifferenceMilliseconds(start, now)));
		}
		MemoryContextSwitchTo(worker.scratch);
		MemoryContextReset(worker.scratch);
		heed_setting(now);
		for (int i = 0; i < worker.n; i++)
		{
			residency_health_probe_excuse(worker.probes[i], start, now);
			residency_health_probe_step(worker.probes[i], hello, now);
		}

		timeout = next_due(now, look);
		wait_for_answers(timeout);

		/* what has come is read: now everybody can be judged */
		start = TimestampTzPlusMilliseconds(now, timeout);
		now = GetCurrentTimestamp();
		forgive(TimestampDifferenceMilliseconds(start, now), now);
		for (int i = 0; i < worker.n; i++)
		{
			residency_health_probe_expire(worker.probes[i], now);
			judge(worker.probes[i], now);
			describe(worker.probes[i]);
		}
		(void) residency_worker_wanted(&leave);
	}
	/* who was terminated is followed by another one; otherwise nobody comes */
	if (!ProcDiePending)
		residency_health_release_all();
}
