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
 *
 * A statement waits also where no hook of ours comes by before: while it is parsed or planned, if the
 * doubt concerns a whole table (DDL in all regions), and for a deferred unique constraint at
 * COMMIT.  Such waits are ended from outside, by the resolver, which looks at all processes
 * while parts wait here that nobody knows about.  It cancels a process while it holds the lock's
 * partition, without which nobody leaves the wait; so the signal meets the statement that waits
 * and no other.  A slot in shared memory tells the process why it was cancelled, and the
 * resolver what the session has set residency.doubt_timeout to.
 */
#include "commit_internal.h"

#include <signal.h>

#include "access/twophase.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "commit.h"
#include "regions.h"
#include "regions_internal.h"
#include "shared_memory.h"

/* class bits of a wait event */
#define WAIT_CLASS_MASK 0xFF000000U

/* waiters in a row behind which the holder may be */
#define MAX_CHAIN 8

/* bounds of the time between two looks, a fifth of the time-out between them */
#define LOOK_MIN_MS 20
#define LOOK_MAX_MS 1000

/* a limit of lock waits shorter than this is for transactions that only take their time */
#define SHORT_LIMIT_MS 1000

/* the resolver leaves a statement's own timer that much time */
#define OUTSIDE_GRACE_MS 500

#define DOUBT_MESSAGE "a transaction in doubt keeps the row or table locked, and only region \"%s\" knows its outcome"
#define DOUBT_DETAIL "The statement has waited for %d ms (residency.doubt_timeout)."
#define DOUBT_HINT "Try again when that region can be reached. If it is gone for good: SELECT * FROM residency.transactions, then residency.decide()."

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
	NameData	names[RESIDENCY_MAX_REGIONS];
}			gateways;

/* what a process and the resolver tell each other; one for each process of the server */
typedef struct DoubtSlot
{
	int			limit;			/* ms that this session waits, -1: as the server's files say */
	int			waited;			/* ms; 0: it was not cancelled by the resolver */
	NameData	region;			/* ... for a transaction of this region */
} DoubtSlot;

static DoubtSlot *slots = NULL;
static emit_log_hook_type next_emit_log = NULL;

/* this process's slot; NULL while it is none of the server's */
static DoubtSlot *
own_slot(void)
{
	return slots != NULL && MyProc != NULL ? &slots[compat_proc_number(MyProc)] : NULL;
}

/* name of the region that logs in by that role */
static const char *
gateway_of(Oid role)
{
	for (int i = 0; i < gateways.n; i++)
		if (gateways.oids[i] == role)
			return NameStr(gateways.names[i]);
	return "?";
}

/* cancels a process that waits for a lock whose partition is held; see the head of the file */
static void
cancel_from_outside(PGPROC *waiter, Oid role, int waited)
{
	DoubtSlot  *slot = &slots[compat_proc_number(waiter)];

	strlcpy(NameStr(slot->region), gateway_of(role), NAMEDATALEN);
	slot->waited = waited;
	pg_memory_barrier();
	(void) kill(waiter->pid, SIGINT);
}

/* A waiter's lock: the role of its holder if that is a prepared transaction of a gateway;
 * else InvalidOid, and in *next the process to look at instead, NULL if none.  The waiter is
 * cancelled if waited > 0 and there is such a holder. */
static Oid
look_at_lock(PGPROC *waiter, PGPROC **next, int waited)
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
	if (OidIsValid(role) && waited > 0)
		cancel_from_outside(waiter, role, waited);
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
		Oid			role = look_at_lock(proc, &next, 0);

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

		if (!OidIsValid(oid) || gateways.n >= RESIDENCY_MAX_REGIONS)
			continue;
		strlcpy(NameStr(gateways.names[gateways.n]), lfirst(lc), NAMEDATALEN);
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

/* in PG_CATCH: throws 55P03 if the current error is the handler's or the resolver's doing,
 * else returns */
void
residency_doubt_translate_error(void)
{
	DoubtSlot  *slot = own_slot();
	char		region[NAMEDATALEN];
	int			waited = 0;

	if (geterrcode() != ERRCODE_QUERY_CANCELED)
		return;
	if (OidIsValid(doubt.role))
	{
		strlcpy(region, gateway_of(doubt.role), sizeof(region));
		waited = doubt.limit;
	}
	else if (slot != NULL && slot->waited > 0)
	{
		strlcpy(region, NameStr(slot->region), sizeof(region));
		waited = slot->waited;
	}
	if (waited == 0)
		return;
	doubt.role = InvalidOid;
	if (slot != NULL)
		slot->waited = 0;
	FlushErrorState();
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg(DOUBT_MESSAGE, region),
			 errdetail(DOUBT_DETAIL, waited),
			 errhint(DOUBT_HINT)));
}

/*
 * emit_log_hook: an error of a wait that the resolver has ended outside of our hooks becomes the
 * same as inside of them, on its way to the log and to the client.
 */
static void
translate_report(ErrorData *error)
{
	DoubtSlot  *slot = own_slot();

	if (slot != NULL && slot->waited > 0 && error->elevel == ERROR &&
		error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		MemoryContext old = MemoryContextSwitchTo(error->assoc_context);

		error->sqlerrcode = ERRCODE_LOCK_NOT_AVAILABLE;
		error->message = psprintf(DOUBT_MESSAGE, NameStr(slot->region));
		error->detail = psprintf(DOUBT_DETAIL, slot->waited);
		error->hint = pstrdup(DOUBT_HINT);
		slot->waited = 0;
		MemoryContextSwitchTo(old);
	}
	if (next_emit_log)
		next_emit_log(error);
}

/* a (sub)transaction aborts: what it was cancelled for is told */
static void
forget_cancel(void)
{
	DoubtSlot  *slot = own_slot();

	if (slot != NULL)
		slot->waited = 0;
}

/* RegisterXactCallback */
static void
transaction_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		forget_cancel();
}

/* RegisterSubXactCallback */
static void
subtransaction_callback(SubXactEvent event, SubTransactionId mySubid,
						SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		forget_cancel();
}

/*
 * Ends the waits in this database behind a doubt that have lasted too long, and says how many
 * others there are that may have to be ended later.  For the resolver, in a transaction.
 */
int
residency_doubt_end_waits(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			left = 0;

	collect_gateways();
	if (gateways.n == 0 || slots == NULL)
		return 0;
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		TimestampTz since = (TimestampTz) pg_atomic_read_u64(&proc->waitStart);
		int			limit = slots[i].limit >= 0 ? slots[i].limit : residency_doubt_timeout;
		PGPROC	   *next;

		if (since == 0 || limit == 0 || proc->pid == 0 || proc->databaseId != MyDatabaseId ||
			!compat_proc_is_client(proc))
			continue;
		if (TimestampDifferenceExceeds(since, now, limit + OUTSIDE_GRACE_MS))
			(void) look_at_lock(proc, &next, (int) TimestampDifferenceMilliseconds(since, now));
		left++;
	}
	return left;
}

/* before_shmem_exit: the slot will be another process's */
static void
leave_slot(int code, Datum arg)
{
	slots[DatumGetInt32(arg)].limit = -1;
	slots[DatumGetInt32(arg)].waited = 0;
}

/* GucIntAssignHook of residency.doubt_timeout: tells the resolver */
void
residency_doubt_timeout_assigned(int value, void *extra)
{
	static bool leaves = false;
	DoubtSlot  *slot = own_slot();

	if (slot == NULL || !IsUnderPostmaster)
		return;
	if (!leaves)
		before_shmem_exit(leave_slot, Int32GetDatum(slot - slots));
	leaves = true;
	slot->limit = value;
}

/* slots for all processes that the server can have, auxiliary and prepared ones included */
static Size
slots_size(void)
{
	return mul_size(compat_max_procs(), sizeof(DoubtSlot));
}

/* see shared_memory.h */
static void
start_slots(void *memory, LWLock *lock)
{
	DoubtSlot  *all = memory;

	for (int i = 0; i < compat_max_procs(); i++)
		all[i].limit = -1;
}

/* called while the library is preloaded */
void
residency_doubt_init(void)
{
	residency_shared_memory("residency doubt", slots_size, (void **) &slots, start_slots);
	next_emit_log = emit_log_hook;
	emit_log_hook = translate_report;
	RegisterXactCallback(transaction_callback, NULL);
	RegisterSubXactCallback(subtransaction_callback, NULL);
}
