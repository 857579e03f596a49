/*
 * remote_health.c
 *		States and round-trip times of regions in shared memory.
 *
 *		  .-------- no answer for residency.away_after --------.
 *		  |                                                    v
 *		 up <--- no note about it is left --- catching up --> away
 *			 (residency_health_flip_up)            ^           |
 *			                                       '-----------'
 *			                                    answers steadily again
 *
 * A region that is watched from now on starts as up, or, if something was noted about it
 * before the server stopped, as catching up.
 *
 * There is a fixed number of slots, found by walking over those in use: a server hosts few
 * databases that are regions, each with a few others.  If they ever run out the rest count
 * as up, that is, as without a health worker.  All of it dies with the server: what a
 * region has missed is told by the notes in residency.backlog, never by these states.
 *
 * What is known outlives the worker that found it out: a process that is terminated is soon
 * followed by another one, and until then a region that is away stays so.  Only when
 * none has come for ORPHAN_MS, or none may come, the regions count as up again.
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/builtins.h"

#include "fault.h"
#include "remote_health_internal.h"
#include "shared_memory.h"

PG_FUNCTION_INFO_V1(residency_region_states);

/* all databases of the server together */
#define HEALTH_SLOTS 1024

/*
 * How long states outlive their worker, in ms: longer than it takes to start another one, also
 * one that makes room for DDL, and short enough for a region that nobody can watch any more.
 */
#define ORPHAN_MS 30000

typedef struct HealthShared
{
	LWLock	   *lock;
	int			used;			/* slots from here on have never been used */
	HealthSlot	slots[HEALTH_SLOTS];
} HealthShared;

static HealthShared *shared = NULL;


/* see shared_memory.h */
static Size
shared_size(void)
{
	return sizeof(HealthShared);
}

/* see shared_memory.h */
static void
start_shared(void *memory, LWLock *lock)
{
	HealthShared *fresh = memory;

	fresh->lock = lock;
	for (int i = 0; i < HEALTH_SLOTS; i++)
	{
		pg_atomic_init_u32(&fresh->slots[i].state, RESIDENCY_UP);
		pg_atomic_init_u64(&fresh->slots[i].left, 0);
		pg_atomic_init_u32(&fresh->slots[i].rtt, 0);
		pg_atomic_init_u64(&fresh->slots[i].heard, 0);
		pg_atomic_init_u32(&fresh->slots[i].pause, 0);
	}
}

/* called while the library is preloaded */
void
residency_health_init(void)
{
	residency_shared_memory("residency health", shared_size, (void **) &shared, start_shared);
}

/* has the slot's worker ended, and no other one taken it over in time?  The lock is held. */
static bool
expired(const HealthSlot *slot)
{
	if (!OidIsValid(slot->database) || slot->orphaned == 0)
		return false;
	/* a worker that was terminated while workers were switched off could not tell */
	return (!residency_workers && slot->database == MyDatabaseId) ||
		TimestampDifferenceExceeds(slot->orphaned, GetCurrentTimestamp(), ORPHAN_MS);
}

/* slot of a region of this database, NULL if nobody watches it; the lock is held */
static HealthSlot *
find_slot(const char *region)
{
	for (int i = 0; i < shared->used; i++)
	{
		HealthSlot *slot = &shared->slots[i];

		if (slot->database == MyDatabaseId && strcmp(slot->region, region) == 0)
			return expired(slot) ? NULL : slot;
	}
	return NULL;
}

/* state of a region, see health.h */
ResidencyRegionState
residency_region_state(const char *region)
{
	ResidencyRegionState state = RESIDENCY_UP;
	HealthSlot *slot;

	if (shared == NULL || shared->used == 0)
		return RESIDENCY_UP;
	LWLockAcquire(shared->lock, LW_SHARED);
	slot = find_slot(region);
	if (slot != NULL)
		state = pg_atomic_read_u32(&slot->state);
	LWLockRelease(shared->lock);
	return state;
}

/* is a region away, and answers all the same?  See health.h */
bool
residency_region_returning(const char *region)
{
	bool		returning = false;
	HealthSlot *slot;

	if (shared == NULL || shared->used == 0)
		return false;
	LWLockAcquire(shared->lock, LW_SHARED);
	slot = find_slot(region);
	if (slot != NULL)
		returning = pg_atomic_read_u32(&slot->state) == RESIDENCY_AWAY && slot->problem[0] == '\0';
	LWLockRelease(shared->lock);
	return returning;
}

/* smoothed round-trip time in ms, < 0 if it is not known */
double
residency_region_rtt(const char *region)
{
	uint32		rtt = 0;
	HealthSlot *slot;

	if (shared == NULL || shared->used == 0)
		return -1;
	LWLockAcquire(shared->lock, LW_SHARED);
	slot = find_slot(region);
	if (slot != NULL)
		rtt = pg_atomic_read_u32(&slot->rtt);
	LWLockRelease(shared->lock);
	return rtt > 0 ? rtt / 1000.0 : -1;
}

/* when the region went away last, 0: not since it is watched */
TimestampTz
residency_region_left(const char *region)
{
	TimestampTz left = 0;
	HealthSlot *slot;

	if (shared == NULL || shared->used == 0)
		return 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	slot = find_slot(region);
	if (slot != NULL)
		left = (TimestampTz) pg_atomic_read_u64(&slot->left);
	LWLockRelease(shared->lock);
	return left;
}

/*
 * Wakes all backends of this database, so that those that wait for a region look at its
 * state.  Waking one that does something else is harmless: everybody who waits for a latch
 * looks whether there is a reason.
 */
static void
wake_backends(void)
{
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->pid != 0 && proc->databaseId == MyDatabaseId)
			SetLatch(&proc->procLatch);
	}
}

/* one state becomes another; false, and nothing is done, if it was not the one expected */
bool
residency_health_change(HealthSlot *slot, ResidencyRegionState from, ResidencyRegionState to)
{
	uint32		expected = from;
	bool		done;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	done = pg_atomic_compare_exchange_u32(&slot->state, &expected, to);
	RESIDENCY_FAULT(health_changes);
	if (done)
	{
		slot->since = GetCurrentTimestamp();
		/* connections made from here on see the state; see residency_connection_start */
		if (to == RESIDENCY_AWAY)
			pg_atomic_write_u64(&slot->left, (uint64) slot->since);
	}
	LWLockRelease(shared->lock);
	if (done && to == RESIDENCY_AWAY)
		wake_backends();
	return done;
}

/* catching up -> up, see health.h */
bool
residency_health_flip_up(const char *region)
{
	bool		up = true;
	HealthSlot *slot;

	if (shared == NULL)
		return true;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = find_slot(region);
	if (slot != NULL)
	{
		uint32		expected = RESIDENCY_CATCHING_UP;

		if (pg_atomic_compare_exchange_u32(&slot->state, &expected, RESIDENCY_UP))
			slot->since = GetCurrentTimestamp();
		else
			up = expected == RESIDENCY_UP;
	}
	LWLockRelease(shared->lock);
	return up;
}

/*
 * Slot for a region of this database, in the state given unless there is one already: a
 * worker goes on with what the one before it knew.  NULL if all are taken: then nobody
 * watches the region.
 */
HealthSlot *
residency_health_claim(const char *region, ResidencyRegionState state)
{
	HealthSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	/* also those of databases that are no more */
	for (int i = 0; i < shared->used; i++)
		if (expired(&shared->slots[i]))
			shared->slots[i].database = InvalidOid;
	slot = find_slot(region);
	if (slot != NULL)
		slot->orphaned = 0;
	for (int i = 0; i < HEALTH_SLOTS && slot == NULL; i++)
	{
		if (OidIsValid(shared->slots[i].database))
			continue;
		slot = &shared->slots[i];
		shared->used = Max(shared->used, i + 1);
		slot->database = MyDatabaseId;
		strlcpy(slot->region, region, NAMEDATALEN);
		pg_atomic_write_u32(&slot->state, state);
		pg_atomic_write_u32(&slot->rtt, 0);
		pg_atomic_write_u64(&slot->heard, 0);
		slot->since = GetCurrentTimestamp();
		slot->orphaned = 0;
		pg_atomic_write_u64(&slot->left, state == RESIDENCY_AWAY ? (uint64) slot->since : 0);
		slot->met = false;
		slot->problem[0] = '\0';
	}
	LWLockRelease(shared->lock);
	if (state == RESIDENCY_AWAY)
		wake_backends();
	return slot;
}

/* gives a slot back: the region counts as up again */
void
residency_health_release(HealthSlot *slot)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot->database = InvalidOid;
	LWLockRelease(shared->lock);
}

/* gives back all slots of this database: nobody watches its regions any more */
void
residency_health_release_all(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->used; i++)
		if (shared->slots[i].database == MyDatabaseId)
			shared->slots[i].database = InvalidOid;
	LWLockRelease(shared->lock);
}

/* leaves all slots of this database to the next worker: nobody watches its regions for now */
void
residency_health_orphan_all(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->used; i++)
		if (shared->slots[i].database == MyDatabaseId && shared->slots[i].orphaned == 0)
			shared->slots[i].orphaned = GetCurrentTimestamp();
	LWLockRelease(shared->lock);
}

/*
 * A gateway has pinged this region, and will again after so many ms; or it pings no longer
 * (when is 0).
 */
void
residency_health_heard(const char *gateway, TimestampTz when, uint32 pause)
{
	HealthSlot *slot;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_SHARED);
	slot = find_slot(gateway);
	if (slot != NULL)
	{
		pg_atomic_write_u32(&slot->pause, pause);
		pg_atomic_write_u64(&slot->heard, (uint64) when);
	}
	LWLockRelease(shared->lock);
}

/* notes what is wrong with a region, "" if nothing is; met: it has answered hello */
void
residency_health_describe(HealthSlot *slot, bool met, const char *problem)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot->met = slot->met || met;
	strlcpy(slot->problem, problem, HEALTH_PROBLEM);
	LWLockRelease(shared->lock);
}

/* SQL: residency.region_states(), the slots of this database */
Datum
residency_region_states(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"up", "away", "catching up"};
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	HealthSlot *copies;
	int			n = 0;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		PG_RETURN_NULL();
	copies = palloc(RESIDENCY_MAX_REGIONS * sizeof(HealthSlot));
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->used && n < RESIDENCY_MAX_REGIONS; i++)
		if (shared->slots[i].database == MyDatabaseId && !expired(&shared->slots[i]))
			copies[n++] = shared->slots[i];
	LWLockRelease(shared->lock);
	for (int i = 0; i < n; i++)
	{
		HealthSlot *slot = &copies[i];
		uint32		rtt = pg_atomic_read_u32(&slot->rtt);
		Datum		values[6];
		bool		nulls[6] = {false};

		values[0] = DirectFunctionCall1(namein, CStringGetDatum(slot->region));
		values[1] = CStringGetTextDatum(names[pg_atomic_read_u32(&slot->state)]);
		values[2] = TimestampTzGetDatum(slot->since);
		values[3] = Float8GetDatum(rtt / 1000.0);
		nulls[3] = rtt == 0;
		values[4] = CStringGetTextDatum(RESIDENCY_VERSION);
		nulls[4] = !slot->met;
		values[5] = CStringGetTextDatum(slot->problem);
		nulls[5] = slot->problem[0] == '\0';
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
	}
	PG_RETURN_NULL();
}
