/*
 * border_counters.c
 *		The counters behind the view residency.border.
 *
 * A backend counts into accounts of its own.  They are added to shared memory when the
 * outermost statement ends, when the transaction ends and when the backend does: one
 * lock for each statement that crossed a border, none for others, none for a row.
 *
 * Shared memory holds MAX_ENTRIES accounts of all databases.  When it is full, further
 * tables are counted as if they were no table, under their region; so sums stay right.
 * The figures begin anew when the server does, or with residency.border_reset().
 */
#include "border.h"

#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "regions.h"

PG_FUNCTION_INFO_V1(residency_border_counters);
PG_FUNCTION_INFO_V1(residency_border_reset);

/* accounts in shared memory; the last ones are kept for traffic that is about no table */
#define MAX_ENTRIES 2048
#define MAX_TABLE_ENTRIES (MAX_ENTRIES - 256)

#define NCOUNTERS (sizeof(RemoteTraffic) / sizeof(uint64))

typedef struct BorderKey
{
	Oid			database;
	Oid			serverid;
	Oid			relid;
} BorderKey;

/* one account of all backends */
typedef struct BorderEntry
{
	BorderKey	key;
	pg_atomic_uint64 counters[NCOUNTERS];	/* in the order of RemoteTraffic */
} BorderEntry;

typedef struct BorderShared
{
	LWLock	   *lock;			/* exclusive to add or remove entries, shared to count */
	pg_atomic_uint64 since;		/* TimestampTz of the last reset */
} BorderShared;

/* one account of this backend */
struct BorderAccount
{
	BorderKey	key;
	RemoteTraffic traffic;		/* not added yet */
	uint64		last_trip;
	bool		dirty;
	BorderAccount *next;		/* dirty ones */
};

static BorderShared *shared = NULL;
static HTAB *shared_entries = NULL;
static HTAB *accounts = NULL;
static BorderAccount *dirty = NULL;
static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;

/* shmem_request_hook */
static void
border_shmem_request(void)
{
	if (next_shmem_request)
		next_shmem_request();
	RequestAddinShmemSpace(add_size(MAXALIGN(sizeof(BorderShared)),
									hash_estimate_size(MAX_ENTRIES, sizeof(BorderEntry))));
	RequestNamedLWLockTranche("residency border", 1);
}

/* shmem_startup_hook */
static void
border_shmem_startup(void)
{
	HASHCTL		ctl = {.keysize = sizeof(BorderKey), .entrysize = sizeof(BorderEntry)};
	bool		found;

	if (next_shmem_startup)
		next_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("residency border", sizeof(BorderShared), &found);
	if (!found)
	{
		shared->lock = &GetNamedLWLockTranche("residency border")->lock;
		pg_atomic_init_u64(&shared->since, GetCurrentTimestamp());
	}
	shared_entries = ShmemInitHash("residency border accounts", MAX_ENTRIES, MAX_ENTRIES, &ctl,
								   HASH_ELEM | HASH_BLOBS);
	LWLockRelease(AddinShmemInitLock);
}

/* the declared table of a partition, see border.h */
Oid
residency_border_table(Oid relid)
{
	const TableRule *rule = residency_partition_rule(relid);

	return rule != NULL ? rule->relid : relid;
}

/* the backend ends */
static void
at_backend_exit(int code, Datum arg)
{
	residency_border_flush();
}

/* the backend's account, see border.h */
BorderAccount *
residency_border_account(Oid serverid, Oid relid)
{
	BorderKey	key = {MyDatabaseId, serverid, relid};
	BorderAccount *account;
	bool		found;

	if (accounts == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(BorderKey), .entrysize = sizeof(BorderAccount),
		.hcxt = TopMemoryContext};

		accounts = hash_create("residency border accounts of this backend", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		before_shmem_exit(at_backend_exit, (Datum) 0);
	}
	account = hash_search(accounts, &key, HASH_FIND, NULL);
	if (account != NULL)
		return account;
	/* a backend that sees ever new tables must not grow for ever either */
	if (hash_get_num_entries(accounts) >= MAX_TABLE_ENTRIES && OidIsValid(relid))
		return residency_border_account(serverid, InvalidOid);
	account = hash_search(accounts, &key, HASH_ENTER, &found);
	memset(&account->traffic, 0, sizeof(RemoteTraffic));
	account->last_trip = 0;
	account->dirty = false;
	account->next = NULL;
	return account;
}

/* the account's counters, which are about to change */
RemoteTraffic *
residency_border_touch(BorderAccount *account)
{
	if (!account->dirty)
	{
		account->dirty = true;
		account->next = dirty;
		dirty = account;
	}
	return &account->traffic;
}

/* counts a round trip, see border.h */
void
residency_border_trip(BorderAccount *account, uint64 trip)
{
	if (account->last_trip >= trip)
		return;
	account->last_trip = trip;
	residency_border_touch(account)->round_trips++;
}

/*
 * The shared entry of an account, or of its region if there is no room; NULL if there is
 * none for that either.  Called, and returns, with the lock held, which is shared unless
 * an entry had to be added.
 */
static BorderEntry *
find_entry(const BorderKey *account_key, bool *exclusive)
{
	BorderKey	key = *account_key;
	BorderEntry *entry = hash_search(shared_entries, &key, HASH_FIND, NULL);
	bool		found;

	if (entry != NULL)
		return entry;
	if (!*exclusive)
	{
		LWLockRelease(shared->lock);
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		*exclusive = true;
	}
	if (hash_get_num_entries(shared_entries) >= MAX_TABLE_ENTRIES)
		key.relid = InvalidOid;
	entry = hash_search(shared_entries, &key, HASH_ENTER_NULL, &found);
	if (entry != NULL && !found)
	{
		for (int i = 0; i < NCOUNTERS; i++)
			pg_atomic_init_u64(&entry->counters[i], 0);
	}
	return entry;
}

/* adds what this backend has counted to shared memory, see border.h */
void
residency_border_flush(void)
{
	bool		exclusive = false;

	if (dirty == NULL || shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_SHARED);
	while (dirty != NULL)
	{
		BorderAccount *account = dirty;
		uint64	   *counters = (uint64 *) &account->traffic;
		BorderEntry *entry = find_entry(&account->key, &exclusive);

		dirty = account->next;
		account->dirty = false;
		for (int i = 0; i < NCOUNTERS; i++)
		{
			if (entry != NULL && counters[i] > 0)
				pg_atomic_fetch_add_u64(&entry->counters[i], counters[i]);
			counters[i] = 0;
		}
	}
	LWLockRelease(shared->lock);
}

/* the transaction has ended, and what its commit sent has been counted */
static void
at_resource_release(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (phase == RESOURCE_RELEASE_AFTER_LOCKS && isTopLevel)
		residency_border_flush();
}

/* residency.border_counters(): this database's entries; since comes with each */
Datum
residency_border_counters(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	HASH_SEQ_STATUS seq;
	BorderEntry *entry;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		PG_RETURN_NULL();
	residency_border_flush();
	LWLockAcquire(shared->lock, LW_SHARED);
	hash_seq_init(&seq, shared_entries);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		Datum		values[NCOUNTERS + 3];
		bool		nulls[NCOUNTERS + 3] = {false};

		if (entry->key.database != MyDatabaseId)
			continue;
		values[0] = ObjectIdGetDatum(entry->key.serverid);
		values[1] = ObjectIdGetDatum(entry->key.relid);
		nulls[1] = !OidIsValid(entry->key.relid);
		for (int i = 0; i < NCOUNTERS; i++)
			values[i + 2] = Int64GetDatum(pg_atomic_read_u64(&entry->counters[i]));
		values[NCOUNTERS + 2] = TimestampTzGetDatum((TimestampTz) pg_atomic_read_u64(&shared->since));
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
	}
	LWLockRelease(shared->lock);
	PG_RETURN_NULL();
}

/* residency.border_reset(): forgets this database's entries */
Datum
residency_border_reset(PG_FUNCTION_ARGS)
{
	HASH_SEQ_STATUS seq;
	BorderEntry *entry;

	if (shared == NULL)
		PG_RETURN_VOID();
	residency_border_flush();
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&seq, shared_entries);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (entry->key.database == MyDatabaseId)
			(void) hash_search(shared_entries, &entry->key, HASH_REMOVE, NULL);
	}
	pg_atomic_write_u64(&shared->since, GetCurrentTimestamp());
	LWLockRelease(shared->lock);
	PG_RETURN_VOID();
}

/* registers everything, see border.h */
void
residency_border_init(void)
{
	next_shmem_request = shmem_request_hook;
	shmem_request_hook = border_shmem_request;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = border_shmem_startup;
	RegisterResourceReleaseCallback(at_resource_release, NULL);
	residency_border_explain_init();
}
