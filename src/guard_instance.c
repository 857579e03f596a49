/*
 * guard_instance.c
 *		One server at a time acts for a gateway.
 *
 * A copy of a gateway's whole server (base backup, snapshot of its disks, an old primary that came
 * back) has its incarnation and its secrets, and nothing in it tells it from a failover.  Left alone
 * it would take what the original has prepared for its own, find neither a running transaction
 * nor a decision, and roll it back.
 *
 * So each server draws a random number when it starts, its instance, and tells it with hello.
 * While sessions of one instance of a gateway are here, another one is refused.  After a restart or a
 * failover the sessions of the one before end by themselves, at once when its processes are gone, and at the
 * latest when its pings have ceased (remote_health_gateway.c); whoever comes earlier waits a moment for
 * that, and is refused then.
 *
 * Of a database that was lost and replaced nothing need be waited for: what still serves it is ended when
 * the one that took its place comes.  Its sessions may be idle, or hang behind a kernel that acknowledges.
 */
#include "guard_internal.h"

#include <signal.h>

#include "access/twophase.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "regions.h"
#include "regions_internal.h"
#include "shared_memory.h"

PG_FUNCTION_INFO_V1(residency_sessions_of);

/* how long the sessions of another instance are given to end, and how often that is looked at */
#define LEAVE_MS 1500
#define LEAVE_LOOK_MS 10

/* one process that serves a gateway */
typedef struct ServedGateway
{
	Oid			database;		/* InvalidOid: it serves none */
	int			pid;
	uint64		instance;
	int64		incarnation;	/* the gateway's */
	NameData	gateway;
} ServedGateway;

typedef struct InstanceShared
{
	LWLock	   *lock;
	uint64		instance;		/* of this server */
	ServedGateway served[FLEXIBLE_ARRAY_MEMBER];	/* by number of the process */
} InstanceShared;

static InstanceShared *shared = NULL;

/* the instance of this server, 0 if it has none */
uint64
residency_guard_instance(void)
{
	return shared != NULL ? shared->instance : 0;
}

/* before_shmem_exit */
static void
leave(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->served[DatumGetInt32(arg)].database = InvalidOid;
	LWLockRelease(shared->lock);
}

/* enters this process, unless one serves another instance of that gateway: then that one is returned in
 * "rival", and false */
static bool
enter(const char *gateway, uint64 instance, int64 incarnation, ServedGateway *rival)
{
	ServedGateway *own = &shared->served[compat_proc_number(MyProc)];
	bool		alone = true;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < compat_max_procs() && alone; i++)
	{
		ServedGateway *other = &shared->served[i];

		alone = other == own || other->database != MyDatabaseId || other->instance == instance ||
			strcmp(NameStr(other->gateway), gateway) != 0;
		if (!alone)
			*rival = *other;
	}
	if (alone)
	{
		own->database = MyDatabaseId;
		own->pid = MyProcPid;
		own->instance = instance;
		own->incarnation = incarnation;
		strlcpy(NameStr(own->gateway), gateway, NAMEDATALEN);
	}
	LWLockRelease(shared->lock);
	return alone;
}

/*
 * This session serves that instance of a gateway from now on; throws if another instance of it is
 * served here.  0 stands for none, and is not looked at.
 */
void
residency_guard_serve(const char *gateway, uint64 instance, int64 incarnation)
{
	static bool registered = false;
	ServedGateway rival;
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);

	if (shared == NULL || instance == 0)
		return;
	if (!registered)
		before_shmem_exit(leave, Int32GetDatum(compat_proc_number(MyProc)));
	registered = true;
	while (!enter(gateway, instance, incarnation, &rival))
	{
		CHECK_FOR_INTERRUPTS();
		if (residency_is_replaced(rival.incarnation))
			(void) kill(rival.pid, SIGTERM);
		if (GetCurrentTimestamp() > end)
			ereport(ERROR,
					(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
					 errmsg("another server acts for gateway \"%s\" here", gateway),
					 errhint("A copy of a region's server must be started with residency.workers = off, and run residency.renew(). After a failover the sessions of the old server end within residency.away_after.")));
		pg_usleep(LEAVE_LOOK_MS * 1000L);
	}
}

/* see guard.h */
ArrayType *
residency_guard_sessions(const char *gateway)
{
	Datum	   *pids = palloc(compat_max_procs() * sizeof(Datum));
	int			n = 0;

	if (shared != NULL)
	{
		LWLockAcquire(shared->lock, LW_SHARED);
		for (int i = 0; i < compat_max_procs(); i++)
		{
			ServedGateway *served = &shared->served[i];

			if (served->database == MyDatabaseId && strcmp(NameStr(served->gateway), gateway) == 0)
				pids[n++] = Int32GetDatum(served->pid);
		}
		LWLockRelease(shared->lock);
	}
	return construct_array(pids, n, INT4OID, sizeof(int32), true, TYPALIGN_INT);
}

/* SQL: residency.sessions_of(region) */
Datum
residency_sessions_of(PG_FUNCTION_ARGS)
{
	residency_require_superuser("list the sessions of a region");
	PG_RETURN_ARRAYTYPE_P(residency_guard_sessions(NameStr(*PG_GETARG_NAME(0))));
}

/* bytes of shared memory */
static Size
shared_size(void)
{
	return add_size(offsetof(InstanceShared, served), mul_size(compat_max_procs(), sizeof(ServedGateway)));
}

/* see shared_memory.h; a crash that restarts all processes makes a new instance, too */
static void
start_shared(void *memory, LWLock *lock)
{
	InstanceShared *fresh = memory;

	fresh->lock = lock;
	if (!pg_strong_random(&fresh->instance, sizeof(fresh->instance)))
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("no random number could be made")));
}

/* called while the library is preloaded */
void
residency_guard_instance_init(void)
{
	residency_shared_memory("residency instances", shared_size, (void **) &shared, start_shared);
}
