/*
 * worker.c
 *		The backends' side of background workers: waking, announcing, making room.
 *
 * worker_launcher.c starts the processes, worker_loop.c is what runs in them,
 * worker_internal.h describes the shared memory between all of them.
 *
 * A worker is connected to its database, and so in the way of DROP DATABASE, CREATE DATABASE
 * with it as template, and their kin; so are the sessions there of other regions' workers.
 * And in a round a worker holds locks that DROP EXTENSION waits for.  Who is about to run
 * such a statement asks the workers to leave; they stay away for a while, long enough for
 * the statement to take its locks.
 */
#include "worker_internal.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "commit.h"
#include "shared_memory.h"

WorkerShared *residency_worker_shared = NULL;
bool		residency_is_worker = false;


/* what the current transaction does when it commits */
static bool wake_at_commit[RESIDENCY_WORKER_KINDS];
static bool announce_at_commit = false;

/* see shared_memory.h */
static Size
shared_size(void)
{
	return sizeof(WorkerShared);
}

/* see shared_memory.h; a spinlock is all that a postmaster's child may need at any time */
static void
start_shared(void *memory, LWLock *lock)
{
	SpinLockInit(&((WorkerShared *) memory)->mutex);
}

/* the database's slot, or a free one for InvalidOid; NULL if there is none.  The spinlock is held. */
WorkerSlot *
residency_worker_slot(Oid database)
{
	for (int i = 0; i < WORKER_MAX_DATABASES; i++)
		if (residency_worker_shared->slots[i].database == database)
			return &residency_worker_shared->slots[i];
	return NULL;
}

/*
 * A slot for a database that has none: a free one, or that of a database in which no region was found;
 * should one come into being there, it makes itself known.  NULL if all are in use.  The spinlock is
 * held.
 */
WorkerSlot *
residency_worker_take_slot(Oid database)
{
	WorkerSlot *slot = residency_worker_slot(InvalidOid);

	for (int i = 0; i < WORKER_MAX_DATABASES && slot == NULL; i++)
	{
		WorkerSlot *other = &residency_worker_shared->slots[i];
		bool		used = other->state != WORKER_DATABASE_NONE;

		for (int kind = 0; kind < RESIDENCY_WORKER_KINDS; kind++)
			used |= other->process[kind].pid != 0;
		if (!used)
			slot = other;
	}
	if (slot != NULL)
	{
		memset(slot, 0, sizeof(*slot));
		slot->database = database;
	}
	return slot;
}

/*
 * Makes sure that this database has a slot, and wakes a worker of it (kind < 0: none).
 * "fresh": what was found out about the database is out of date.
 */
static void
call_workers(int kind, bool fresh)
{
	WorkerShared *shared = residency_worker_shared;
	WorkerSlot *slot;
	Latch	   *latch = NULL;

	if (shared == NULL || !OidIsValid(MyDatabaseId))
		return;
	SpinLockAcquire(&shared->mutex);
	slot = residency_worker_slot(MyDatabaseId);
	if (slot == NULL)
	{
		slot = residency_worker_take_slot(MyDatabaseId);
		if (slot != NULL)
			latch = shared->launcher;
	}
	if (slot != NULL && slot->state == WORKER_DATABASE_NONE && fresh)
	{
		slot->state = WORKER_DATABASE_UNKNOWN;
		latch = shared->launcher;
	}
	if (slot != NULL && kind >= 0)
	{
		slot->process[kind].wake = true;
		latch = slot->process[kind].latch != NULL ? slot->process[kind].latch : shared->launcher;
	}
	SpinLockRelease(&shared->mutex);
	/* a latch of a process that has ended meanwhile: its next owner looks around for nothing */
	if (latch != NULL)
		SetLatch(latch);
}

/* see worker.h */
void
residency_worker_wake(ResidencyWorkerKind kind)
{
	call_workers(kind, false);
}

/* see worker.h */
void
residency_worker_wake_at_commit(ResidencyWorkerKind kind)
{
	wake_at_commit[kind] = true;
}

/* see worker.h */
void
residency_worker_announce(void)
{
	announce_at_commit = true;
}

/* RegisterXactCallback: carries out what waits for the commit */
static void
transaction_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
	{
		if (announce_at_commit)
			call_workers(-1, true);
		for (int kind = 0; kind < RESIDENCY_WORKER_KINDS; kind++)
			if (wake_at_commit[kind])
				call_workers(kind, false);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		announce_at_commit = false;
		memset(wake_at_commit, 0, sizeof(wake_at_commit));
	}
}

/* true for the application_name of a worker's session, or of its like: "residency health".
 * Sessions that gateways open for their clients are called "residency" alone. */
static bool
is_visitor(const char *name)
{
	return strncmp(name, RESIDENCY_WORKER_APPLICATION, strlen("residency ")) == 0;
}

/*
 * Sessions in a database that workers of other regions have opened end; they come back when
 * they find nobody in the way.  Whoever gives a session of their own that name loses it too.
 */
static void
end_visits(Oid database)
{
	int			n = pgstat_fetch_stat_numbackends();

	for (int i = 1; i <= n; i++)
	{
		PgBackendStatus *backend = &compat_local_beentry(i)->backendStatus;

		if (backend->st_databaseid == database && backend->st_backendType == B_BACKEND &&
			is_visitor(backend->st_appname))
			(void) kill(backend->st_procpid, SIGTERM);
	}
}

/* see worker.h */
bool
residency_worker_unwelcome(void)
{
	WorkerSlot *slot;
	bool		held;

	if (residency_worker_shared == NULL || application_name == NULL ||
		!is_visitor(application_name))
		return false;
	SpinLockAcquire(&residency_worker_shared->mutex);
	slot = residency_worker_slot(MyDatabaseId);
	held = slot != NULL && slot->held_until > GetCurrentTimestamp();
	SpinLockRelease(&residency_worker_shared->mutex);
	return held;
}

/*
 * The workers of a database leave, and stay away for a while.  The workers themselves
 * never get here.  Signals may reach a process that took over the number of one that
 * ended just now only if that happened within these few instructions.
 */
static void
leave_database(Oid database)
{
	WorkerShared *shared = residency_worker_shared;
	WorkerSlot *slot;
	pid_t		pids[RESIDENCY_WORKER_KINDS] = {0};

	if (shared == NULL || !OidIsValid(database))
		return;
	SpinLockAcquire(&shared->mutex);
	slot = residency_worker_slot(database);
	if (slot != NULL)
		slot->held_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WORKER_YIELD_MS);
	for (int kind = 0; slot != NULL && kind < RESIDENCY_WORKER_KINDS; kind++)
	{
		slot->process[kind].hold_until =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WORKER_YIELD_MS);
		pids[kind] = slot->process[kind].pid;
	}
	SpinLockRelease(&shared->mutex);
	for (int kind = 0; kind < RESIDENCY_WORKER_KINDS; kind++)
		if (pids[kind] != 0)
			(void) kill(pids[kind], SIGTERM);
}

/* the same for a database by name, if the current user may do such things to it */
static void
leave_database_named(const char *name)
{
	Oid			database = name ? get_database_oid(name, true) : InvalidOid;

	if (OidIsValid(database) && compat_database_ownercheck(database, GetUserId()))
	{
		leave_database(database);
		end_visits(database);
	}
}

/* true if the statement drops or alters this extension, and the current user could */
static bool
changes_extension(Node *statement)
{
	ListCell   *lc;

	if (!superuser())
		return false;
	if (IsA(statement, AlterExtensionStmt))
		return strcmp(((AlterExtensionStmt *) statement)->extname, RESIDENCY_WRAPPER) == 0;
	if (!IsA(statement, DropStmt) || ((DropStmt *) statement)->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, ((DropStmt *) statement)->objects)
		if (strcmp(strVal(lfirst(lc)), RESIDENCY_WRAPPER) == 0)
			return true;
	return false;
}

/* see worker.h */
void
residency_worker_yield(Node *statement)
{
	ListCell   *lc;

	if (IsA(statement, DropdbStmt))
		leave_database_named(((DropdbStmt *) statement)->dbname);
	else if (IsA(statement, AlterDatabaseStmt))
	{
		/* of these only a new tablespace needs the database for itself */
		foreach(lc, ((AlterDatabaseStmt *) statement)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				leave_database_named(((AlterDatabaseStmt *) statement)->dbname);
	}
	else if (IsA(statement, RenameStmt) && ((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
		leave_database_named(((RenameStmt *) statement)->subname);
	else if (IsA(statement, CreatedbStmt))
	{
		foreach(lc, ((CreatedbStmt *) statement)->options)
		{
			DefElem    *def = lfirst(lc);

			if (strcmp(def->defname, "template") == 0 && def->arg != NULL)
				leave_database_named(defGetString(def));
		}
	}
	else if (changes_extension(statement))
	{
		leave_database(MyDatabaseId);
		if (IsA(statement, DropStmt))
			residency_commit_before_drop();
	}
}

/* see worker.h */
void
residency_worker_init(void)
{
	residency_shared_memory("residency workers", shared_size, (void **) &residency_worker_shared, start_shared);
	RegisterXactCallback(transaction_callback, NULL);
	residency_worker_register_launcher();
}
