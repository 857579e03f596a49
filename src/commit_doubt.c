/*
 * commit_doubt.c
 *		Bounded waits behind a transaction in doubt.
 *
 * A part that is prepared here keeps its locks until its origin says what was decided.
 * While the origin is away nobody knows how long, so a statement that waits for such a
 * lock ends after residency.doubt_timeout with 55P03, and names the region that knows.
 *
 * The core has no hook for lock waits.  So a timer runs with each statement that may wait;
 * its handler looks whom this backend waits for, if it does, and cancels the statement if
 * that is a prepared transaction of a gateway's role.  A prepared transaction has a PGPROC
 * without a process, whose roleId is its owner.  The timer costs a statement a look at the clock: the
 * server leaves an alarm that was set for the statement before as it is.
 *
 * The handler takes a partition lock of the lock manager, if it is free, and only while
 * the wait event says that the interrupted code sleeps in a lock wait: there it holds no
 * such lock and is in the middle of none of their structures.
 */
#include "commit_internal.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "regions.h"
#include "regions_internal.h"

/* class bits of a wait event */
#define WAIT_CLASS_MASK 0xFF000000U

/* waiters in a row behind which the holder may be */
#define MAX_CHAIN 8

/* bounds of the time between two looks, a fifth of the time-out between them */
#define LOOK_MIN_MS 20
#define LOOK_MAX_MS 1000

/* a limit of lock waits shorter than this is for transactions that only take their time */
#define SHORT_LIMIT_MS 1000

static struct
{
	TimeoutId	id;
	bool		registered;
	int			level;			/* nest level of the statement that started the timer, 0: none */
	int			limit;			/* ms that it may wait for a doubt */
	volatile Oid role;			/* owner of the prepared transaction that it was cancelled for */
}			doubt;

/* roles by which gateways log in here, for the handler, which can look nothing up */
static struct
{
	bool		valid;
	bool		watched;		/* callbacks are registered */
	int			n;
	Oid			oids[RESIDENCY_MAX_REGIONS];
}			gateways;

/* a waiter's lock: the role of its holder if that is a prepared transaction of a gateway;
 * else InvalidOid, and in *next the process to look at instead, NULL if none */
static Oid
look_at_lock(PGPROC *waiter, PGPROC **next)
{
	LOCK	   *lock = *(LOCK *volatile *) &waiter->waitLock;
	LOCKTAG		tag;
	LWLock	   *partition;
	PROCLOCK   *proclock;
	Oid			role = InvalidOid;

	*next = NULL;
	if (lock == NULL)
		return InvalidOid;
	tag = lock->tag;
	partition = LockHashPartitionLock(LockTagHashCode(&tag));
	if (!LWLockConditionalAcquire(partition, LW_SHARED))
		return InvalidOid;		/* the next look will do */
	if (waiter->waitLock == lock && memcmp(&lock->tag, &tag, sizeof(tag)) == 0)
	{
		LockMethod	method = GetLocksMethodTable(lock);

		compat_foreach_holder(proclock, lock)
		{
			PGPROC	   *holder = proclock->tag.myProc;

			if (holder == waiter || (method->conflictTab[waiter->waitLockMode] & proclock->holdMask) == 0)
				continue;
			for (int i = 0; holder->pid == 0 && i < gateways.n; i++)
				if (gateways.oids[i] == holder->roleId)
					role = holder->roleId;
			if (OidIsValid(role))
				break;
			if (holder->pid != 0)
				*next = holder;
		}
	}
	LWLockRelease(partition);
	return role;
}

/* the timer, in a signal handler: cancels the statement if it has waited for long enough */
static void
handle_timeout(void)
{
	PGPROC	   *proc = MyProc;
	uint64		since;

	if (doubt.level == 0 || OidIsValid(doubt.role) ||
		(*(volatile uint32 *) my_wait_event_info & WAIT_CLASS_MASK) != PG_WAIT_LOCK)
		return;
	since = pg_atomic_read_u64(&MyProc->waitStart);
	if (since == 0 ||
		!TimestampDifferenceExceeds((TimestampTz) since, GetCurrentTimestamp(), doubt.limit))
		return;
	for (int i = 0; i < MAX_CHAIN && proc != NULL; i++)
	{
		PGPROC	   *next;
		Oid			role = look_at_lock(proc, &next);

		if (OidIsValid(role))
		{
			doubt.role = role;
			InterruptPending = QueryCancelPending = true;
			SetLatch(MyLatch);
			return;
		}
		proc = next;
	}
}

/* syscache callback: a role was renamed, made or dropped */
static void
role_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	gateways.valid = false;
}

/* relcache callback: the change may be one of the extension's catalog */
static void
relation_changed(Datum arg, Oid relid)
{
	gateways.valid = false;
}

/* makes the list of gateways' roles; next to nothing while it is valid */
static void
collect_gateways(void)
{
	ListCell   *lc;

	if (gateways.valid)
		return;
	if (!gateways.watched)
	{
		CacheRegisterSyscacheCallback(AUTHOID, role_changed, (Datum) 0);
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		gateways.watched = true;
	}
	gateways.n = 0;
	gateways.valid = true;		/* unless something changes meanwhile */
	foreach(lc, residency_self() != NULL ? list_copy(residency_other_regions()) : NIL)
	{
		const char *role = residency_gateway_role(lfirst(lc));
		Oid			oid = role ? get_role_oid(role, true) : InvalidOid;

		if (OidIsValid(oid) && gateways.n < RESIDENCY_MAX_REGIONS)
			gateways.oids[gateways.n++] = oid;
	}
}

/*
 * A statement at this nest level may wait for locks; residency_doubt_end must follow, also
 * by error.  Where its lock waits are limited to about the same time, it waits a little
 * less for a doubt, so that the error that says more comes first.
 */
void
residency_doubt_begin(int level)
{
	int			look;

	if (doubt.level > 0 || residency_doubt_timeout == 0 || !IsTransactionState())
		return;
	doubt.role = InvalidOid;
	collect_gateways();
	if (gateways.n == 0)
		return;
	if (!doubt.registered)
		doubt.id = RegisterTimeout(USER_TIMEOUT, handle_timeout);
	doubt.registered = true;
	doubt.level = level;
	doubt.limit = residency_doubt_timeout;
	look = Max(LOOK_MIN_MS, Min(doubt.limit / 5, LOOK_MAX_MS));
	if (LockTimeout >= SHORT_LIMIT_MS && LockTimeout < doubt.limit + 2 * look)
		doubt.limit = Min(doubt.limit, LockTimeout - 2 * look);
	enable_timeout_every(doubt.id,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), doubt.limit), look);
}

/* a statement at this nest level ends, whether it began or not */
void
residency_doubt_end(int level)
{
	if (doubt.level == 0 || level > doubt.level)
		return;
	doubt.level = 0;
	disable_timeout(doubt.id, false);
}

/* in PG_CATCH: throws 55P03 if the current error is the handler's doing, else returns */
void
residency_doubt_translate_error(void)
{
	Oid			role = doubt.role;
	const char *region = "?";
	ListCell   *lc;

	if (!OidIsValid(role) || geterrcode() != ERRCODE_QUERY_CANCELED)
		return;
	doubt.role = InvalidOid;
	foreach(lc, list_copy(residency_other_regions()))
	{
		const char *name = residency_gateway_role(lfirst(lc));

		if (name != NULL && get_role_oid(name, true) == role)
			region = lfirst(lc);
	}
	FlushErrorState();
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("a transaction in doubt keeps the row or table locked, and only region \"%s\" knows its outcome",
					region),
			 errdetail("The statement has waited for %d ms (residency.doubt_timeout).", doubt.limit),
			 errhint("Try again when that region can be reached. If it is gone for good: SELECT * FROM residency.transactions, then residency.decide().")));
}
