/*
 * worker_launcher.c
 *		The process that starts the workers of all databases.
 *
 * It belongs to no database and cannot look into one.  When the server has started it sends a
 * resolver into each database that can be connected to; that finds out whether a
 * region is there.  Later, databases announce themselves (residency_worker_announce).
 *
 * It starts when recovery is over: a standby has no workers, and a promoted one gets them.
 */
#include "worker_internal.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* the launcher looks this often while a worker is to be started later, and otherwise */
#define LOOK_SOON_MS 250
#define LOOK_MS 60000

PGDLLEXPORT void residency_launcher_main(Datum arg);

/* a resolver was sent into each database that was there when the server started */
static bool everyone_looked_into = false;

/* true if workers may be sent into the database unasked */
static bool
is_candidate(Form_pg_database form)
{
	/* -2 marks one whose DROP DATABASE was interrupted */
	return form->datallowconn && !form->datistemplate && form->datconnlimit >= -1;
}

/* gives a slot to a database that has none, if one can be had; the spinlock is held */
static WorkerSlot *
give_slot(Oid database)
{
	WorkerSlot *slot = residency_worker_slot(database);

	return slot != NULL ? slot : residency_worker_take_slot(database);
}

/* frees the slots of databases that are none of the "n" that the server has; those in "before" only,
 * for one that announced itself since the look began may be newer than the look */
static void
free_slots(const Oid *before, const Oid *databases, int n)
{
	WorkerShared *shared = residency_worker_shared;

	SpinLockAcquire(&shared->mutex);
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
	{
		WorkerSlot *slot = &shared->slots[i];
		bool		keep = slot->database != before[i];

		for (int kind = 0; kind < RESIDENCY_WORKER_KINDS; kind++)
			keep |= slot->process[kind].pid != 0;
		for (int k = 0; k < n && !keep; k++)
			keep = databases[k] == slot->database;
		if (!keep)
			slot->database = InvalidOid;
	}
	SpinLockRelease(&shared->mutex);
}

/* all databases, in *oids, and how many of them, the first ones, can be sent workers unasked */
static int
list_databases(Oid **oids, int *candidates)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple	tuple;
	int			max = 64;
	int			n = 0;

	*oids = palloc(max * sizeof(Oid));
	*candidates = 0;
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (n == max)
			*oids = repalloc(*oids, (max *= 2) * sizeof(Oid));
		(*oids)[n] = form->oid;
		if (is_candidate(form))
		{
			(*oids)[n] = (*oids)[*candidates];
			(*oids)[(*candidates)++] = form->oid;
		}
		n++;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	qsort(*oids, *candidates, sizeof(Oid), oid_cmp);
	return n;
}

/*
 * Frees the slots of databases that are gone, and gives one to each that nobody has looked into since the
 * server started, in the order of their OIDs.  There may be more databases than slots: those of
 * databases without a region are given to others.  True if some still wait for one.
 */
static bool
read_databases(void)
{
	static Oid	looked_into = InvalidOid;	/* and all with lower OIDs */
	WorkerShared *shared = residency_worker_shared;
	Oid			before[WORKER_MAX_DATABASES];
	Oid		   *databases;
	bool		waiting = false;
	int			candidates;
	int			n;

	SpinLockAcquire(&shared->mutex);
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
		before[i] = shared->slots[i].database;
	SpinLockRelease(&shared->mutex);
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	n = list_databases(&databases, &candidates);
	free_slots(before, databases, n);
	for (int i = 0; i < candidates && !waiting && !everyone_looked_into; i++)
	{
		if (databases[i] <= looked_into)
			continue;
		SpinLockAcquire(&shared->mutex);
		waiting = give_slot(databases[i]) == NULL;
		SpinLockRelease(&shared->mutex);
		if (!waiting)
			looked_into = databases[i];
	}
	everyone_looked_into |= !waiting;
	CommitTransactionCommand();
	return waiting;
}

/* starts a worker; false if the server has no room for one more */
static bool
start_worker(Oid database, int kind)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;
	memcpy(worker.bgw_extra, &kind, sizeof(kind));
	strlcpy(worker.bgw_library_name, RESIDENCY_WRAPPER, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "residency_worker_main", sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "residency %s", residency_worker_kind_name(kind));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "residency %s for database %u",
			 residency_worker_kind_name(kind), database);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/*
 * Takes a worker that is to be started now, and puts it on hold, in case it does not come
 * up; false if there is none.  *later is set if one is to be started later.
 */
static bool
next_to_start(Oid *database, int *kind, bool *later)
{
	WorkerShared *shared = residency_worker_shared;
	TimestampTz now = GetCurrentTimestamp();
	bool		found = false;

	SpinLockAcquire(&shared->mutex);
	for (int i = 0; i < WORKER_MAX_DATABASES && !found; i++)
	{
		WorkerSlot *slot = &shared->slots[i];
		int			kinds = RESIDENCY_WORKER_KINDS;

		if (!OidIsValid(slot->database) || slot->state == WORKER_DATABASE_NONE)
			continue;
		if (slot->state == WORKER_DATABASE_UNKNOWN)
			kinds = RESIDENCY_WORKER_RESOLVER + 1;
		for (int k = 0; k < kinds && !found; k++)
		{
			WorkerProcess *process = &slot->process[k];

			if (process->pid != 0)
				continue;
			if (process->hold_until > now)
			{
				*later = true;
				continue;
			}
			process->hold_until = TimestampTzPlusMilliseconds(now, WORKER_YIELD_MS);
			*database = slot->database;
			*kind = k;
			found = true;
		}
	}
	SpinLockRelease(&shared->mutex);
	return found;
}

/* starts what is to be started; true if something is to be started later.  Complains
 * once if there is no room: a restart of the server is needed to change that. */
static bool
start_workers(void)
{
	static bool complained = false;
	bool		later = false;
	Oid			database;
	int			kind;

	while (next_to_start(&database, &kind, &later))
	{
		later = true;
		if (!start_worker(database, kind) && !complained)
		{
			complained = true;
			ereport(LOG,
					(errmsg("no background worker is left for residency's %s", residency_worker_kind_name(kind)),
					 errhint("Raise max_worker_processes by %d for each database that is a region, and by one.",
							 RESIDENCY_WORKER_KINDS)));
		}
	}
	return later;
}

/* before_shmem_exit: nobody shall set the latch of a process that is no more */
static void
leave_launcher(int code, Datum arg)
{
	SpinLockAcquire(&residency_worker_shared->mutex);
	residency_worker_shared->launcher = NULL;
	SpinLockRelease(&residency_worker_shared->mutex);
}

/* entry of the process */
void
residency_launcher_main(Datum arg)
{
	bool		later = false;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	SpinLockAcquire(&residency_worker_shared->mutex);
	residency_worker_shared->launcher = MyLatch;
	SpinLockRelease(&residency_worker_shared->mutex);
	before_shmem_exit(leave_launcher, (Datum) 0);
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	while (!ShutdownRequestPending)
	{
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		later = false;
		if (residency_workers)
		{
			later = read_databases();
			later |= start_workers();
		}
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 later ? LOOK_SOON_MS : LOOK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	proc_exit(0);
}

/* called by residency_worker_init: the server starts the launcher when it has recovered */
void
residency_worker_register_launcher(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, RESIDENCY_WRAPPER, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "residency_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "residency launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "residency launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}
