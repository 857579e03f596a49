/*
 * global_catchup_progress.c
 *		How far catch-up is, in shared memory, for residency.catch_up.
 *
 * One slot for each region of each database of the server that ever was behind; the worker
 * of that database is the only one to write it.  What is still to be shipped is told by the
 * notes, not here: this dies with the server.
 */
#include "residency.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "global_catchup.h"
#include "shared_memory.h"

PG_FUNCTION_INFO_V1(residency_catch_up_progress);

#define PROGRESS_SLOTS	512
#define PROGRESS_ERROR	256

/* after so many µs without notes another catch-up begins */
#define PROGRESS_GAP	(10 * INT64CONST(1000000))

typedef struct ProgressSlot
{
	Oid			database;		/* InvalidOid: free */
	char		region[NAMEDATALEN];
	int64		shipped;		/* rows taken there since "since" */
	TimestampTz since;			/* when this catch-up began; 0: never */
	TimestampTz last;			/* when the last batch was committed, or failed */
	bool		active;			/* notes are left, as far as the worker knows */
	char		error[PROGRESS_ERROR];	/* "" if the last batch went well, or nothing is left */
} ProgressSlot;

typedef struct ProgressShared
{
	LWLock	   *lock;
	ProgressSlot slots[PROGRESS_SLOTS];
} ProgressShared;

static ProgressShared *shared = NULL;


/* see shared_memory.h */
static Size
shared_size(void)
{
	return sizeof(ProgressShared);
}

/* see shared_memory.h */
static void
start_shared(void *memory, LWLock *lock)
{
	((ProgressShared *) memory)->lock = lock;
}

/* called once from residency_global_init */
void
residency_progress_init(void)
{
	residency_shared_memory("residency catch-up", shared_size, (void **) &shared, start_shared);
}

/* slot of a region of this database, claimed if there is none; NULL if all are taken.  The
 * lock is held. */
static ProgressSlot *
claim_slot(const char *region)
{
	ProgressSlot *unused = NULL;

	for (int i = 0; i < PROGRESS_SLOTS; i++)
	{
		ProgressSlot *slot = &shared->slots[i];

		if (slot->database == MyDatabaseId && strcmp(slot->region, region) == 0)
			return slot;
		if (!OidIsValid(slot->database) && unused == NULL)
			unused = slot;
	}
	if (unused != NULL)
	{
		memset(unused, 0, sizeof(ProgressSlot));
		unused->database = MyDatabaseId;
		strlcpy(unused->region, region, NAMEDATALEN);
	}
	return unused;
}

/* a batch was shipped that began then: so many rows are there now; are notes left? */
void
residency_progress_shipped(const char *region, TimestampTz start, int shipped_rows, bool left)
{
	ProgressSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = claim_slot(region);
	if (slot != NULL)
	{
		if (slot->since == 0 || (!slot->active && start - slot->last > PROGRESS_GAP))
		{
			slot->since = start;
			slot->shipped = 0;
		}
		slot->last = GetCurrentTimestamp();
		slot->shipped += shipped_rows;
		slot->active = left;
		slot->error[0] = '\0';
	}
	LWLockRelease(shared->lock);
}

/* nothing is shipped to the region; "well": it lacks nothing, whatever went wrong before */
void
residency_progress_idle(const char *region, bool well)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PROGRESS_SLOTS; i++)
	{
		ProgressSlot *slot = &shared->slots[i];

		if (slot->database != MyDatabaseId || strcmp(slot->region, region) != 0)
			continue;
		slot->active = false;
		if (well)
			slot->error[0] = '\0';
	}
	LWLockRelease(shared->lock);
}

/* a batch, or a look for notes, failed with that message */
void
residency_progress_failed(const char *region, const char *error)
{
	ProgressSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = claim_slot(region);
	if (slot != NULL)
	{
		slot->last = GetCurrentTimestamp();
		strlcpy(slot->error, error, PROGRESS_ERROR);
	}
	LWLockRelease(shared->lock);
}

/* SQL: residency.catch_up_progress(), the slots of this database */
Datum
residency_catch_up_progress(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	ProgressSlot *copies;
	int			n = 0;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		PG_RETURN_NULL();
	copies = palloc(RESIDENCY_MAX_REGIONS * sizeof(ProgressSlot));
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < PROGRESS_SLOTS && n < RESIDENCY_MAX_REGIONS; i++)
		if (shared->slots[i].database == MyDatabaseId)
			copies[n++] = shared->slots[i];
	LWLockRelease(shared->lock);
	for (int i = 0; i < n; i++)
	{
		ProgressSlot *slot = &copies[i];
		double		seconds = (slot->last - slot->since) / 1000000.0;
		Datum		values[6];
		bool		nulls[6] = {false};

		values[0] = DirectFunctionCall1(namein, CStringGetDatum(slot->region));
		values[1] = Int64GetDatum(slot->shipped);
		values[2] = TimestampTzGetDatum(slot->since);
		nulls[2] = slot->since == 0;
		values[3] = Float8GetDatum(seconds > 0 ? slot->shipped / seconds : 0);
		nulls[3] = seconds <= 0;
		values[4] = TimestampTzGetDatum(slot->last);
		values[5] = CStringGetTextDatum(slot->error);
		nulls[5] = slot->error[0] == '\0';
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
	}
	PG_RETURN_NULL();
}
