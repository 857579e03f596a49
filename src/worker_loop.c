/*
 * worker_loop.c
 *		What runs in a worker's process, whatever its kind.
 *
 * SIGTERM ends a worker at its next look for interrupts: quietly between two rounds, with
 * a FATAL message in the middle of one, whose transaction then aborts as ever.
 */
#include "worker_internal.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "global_catchup.h"
#include "regions.h"

PGDLLEXPORT void residency_worker_main(Datum arg);

/* the kinds, in the order of ResidencyWorkerKind */
static const struct
{
	const char *name;			/* "residency <name>" in pg_stat_activity.backend_type */
	void		(*main) (void);
}			kinds[RESIDENCY_WORKER_KINDS] =
{
	{"resolver", residency_resolver_main},
	{"health", residency_health_main},
	{"catch-up", residency_catch_up_main},
};

/* this process */
static int	own_kind;
static bool is_region = true;	/* false: found out that the database is none (any more) */

/* name of a kind, for names of processes and messages */
const char *
residency_worker_kind_name(int kind)
{
	return kinds[kind].name;
}

/* before_shmem_exit: the slot may be given to another process */
static void
leave_slot(int code, Datum arg)
{
	WorkerShared *shared = residency_worker_shared;
	WorkerSlot *slot;
	WorkerProcess *process;
	Latch	   *launcher;
	TimestampTz restart_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WORKER_RESTART_MS);

	SpinLockAcquire(&shared->mutex);
	slot = residency_worker_slot(DatumGetObjectId(arg));
	process = slot != NULL ? &slot->process[own_kind] : NULL;
	if (process != NULL && process->pid == MyProcPid)
	{
		process->pid = 0;
		process->latch = NULL;
		process->hold_until = Max(process->hold_until, restart_at);
	}
	launcher = shared->launcher;
	SpinLockRelease(&shared->mutex);
	if (launcher != NULL)
		SetLatch(launcher);
}

/* takes the database's slot; false if another process has it, or nobody wants one any more */
static bool
take_slot(Oid database)
{
	WorkerSlot *slot;
	bool		taken;

	SpinLockAcquire(&residency_worker_shared->mutex);
	slot = residency_worker_slot(database);
	taken = slot != NULL && slot->process[own_kind].pid == 0;
	if (taken)
	{
		slot->process[own_kind].pid = MyProcPid;
		slot->process[own_kind].latch = MyLatch;
		slot->process[own_kind].hold_until = 0;
	}
	SpinLockRelease(&residency_worker_shared->mutex);
	if (taken)
		before_shmem_exit(leave_slot, ObjectIdGetDatum(database));
	return taken;
}

/* remembers for the launcher whether this database is a region */
static void
note_state(bool region)
{
	WorkerShared *shared = residency_worker_shared;
	WorkerSlot *slot;
	WorkerDatabase state = region ? WORKER_DATABASE_REGION : WORKER_DATABASE_NONE;
	Latch	   *launcher = NULL;

	if (is_region == region && !region)
		return;
	is_region = region;
	SpinLockAcquire(&shared->mutex);
	slot = residency_worker_slot(MyDatabaseId);
	if (slot != NULL && slot->state != state)
	{
		slot->state = state;
		launcher = shared->launcher;
	}
	SpinLockRelease(&shared->mutex);
	if (launcher != NULL)
		SetLatch(launcher);
}

/* takes the wish for a round; true if there was one */
static bool
take_wake(void)
{
	WorkerSlot *slot;
	bool		wake;

	SpinLockAcquire(&residency_worker_shared->mutex);
	slot = residency_worker_slot(MyDatabaseId);
	wake = slot != NULL && slot->process[own_kind].wake;
	if (slot != NULL)
		slot->process[own_kind].wake = false;
	SpinLockRelease(&residency_worker_shared->mutex);
	return wake;
}

/* see worker.h */
bool
residency_worker_wanted(bool *leave)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	*leave = ProcDiePending || !residency_workers || !is_region;
	if (!*leave)
		CHECK_FOR_INTERRUPTS();	/* invalidations of others must not pile up */
	return *leave || take_wake();
}

/* see worker.h */
bool
residency_worker_wait(long timeout_ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);

	for (;;)
	{
		bool		leave;
		bool		wanted = residency_worker_wanted(&leave);
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (leave)
			return false;
		if (wanted || left <= 0)
			return true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* the round inside of a transaction */
static bool
round_in_transaction(ResidencyWorkerRound round, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	bool		result = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	note_state(residency_self() != NULL && !residency_self()->copy);
	if (!is_region && residency_self() != NULL)
		ereport(LOG,
				(errmsg("database \"%s\" is a copy of region \"%s\": no workers run there",
						get_database_name(MyDatabaseId), residency_self()->region),
				 errhint("If it shall take the region's place: SELECT residency.renew().")));
	MemoryContextSwitchTo(context);
	if (is_region)
		result = round(arg);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return result;
}

/* the SQLSTATE that a round failed with when it ran last, 0 if it did not; each kind of worker has
 * a few different rounds */
static int *
last_error_of(ResidencyWorkerRound round)
{
	static struct
	{
		ResidencyWorkerRound round;
		int			error;
	}			last[4];
	int			i = 0;

	while (i < lengthof(last) - 1 && last[i].round != NULL && last[i].round != round)
		i++;
	last[i].round = round;
	return &last[i].error;
}

/* runs the round, with or without a transaction around it; see worker.h */
static bool
try_round(ResidencyWorkerRound round, void *arg, bool bare)
{
	static MemoryContext context = NULL;
	int		   *last_error = last_error_of(round);
	volatile bool result = false;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "residency worker", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	pgstat_report_activity(STATE_RUNNING, kinds[own_kind].name);
	PG_TRY();
	{
		result = bare ? round(arg) : round_in_transaction(round, arg);
		*last_error = 0;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		/* the same error round after round is told once */
		if (geterrcode() != *last_error)
			EmitErrorReport();
		*last_error = geterrcode();
		result = false;
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	pgstat_report_activity(STATE_IDLE, NULL);
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextReset(context);
	return result;
}

/* see worker.h */
bool
residency_worker_try(ResidencyWorkerRound round, void *arg)
{
	return try_round(round, arg, false);
}

/* see worker.h */
bool
residency_worker_try_bare(ResidencyWorkerRound round, void *arg)
{
	return try_round(round, arg, true);
}

/* settings of the database or the server must not keep a worker from its work */
void
residency_worker_set_own_settings(void)
{
	static const char *const settings[][2] = {
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"lock_timeout", "3000"},
		{"residency.connect_timeout", "3000"},
	};

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/* entry of a worker's process; the argument is the database, bgw_extra holds the kind */
void
residency_worker_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	residency_is_worker = true;
	memcpy(&own_kind, MyBgworkerEntry->bgw_extra, sizeof(own_kind));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (!take_slot(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	residency_worker_set_own_settings();
	kinds[own_kind].main();
	proc_exit(0);
}
