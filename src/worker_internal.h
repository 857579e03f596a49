/*
 * worker_internal.h
 *		What the worker_* files share: the slots of databases in shared memory.
 *
 * A slot's database goes
 *
 *		UNKNOWN --resolver finds a region--> REGION --extension or region gone--> NONE
 *		   |                                    ^                                  |
 *		   +------------- finds none ---------- | -------------------------------> |
 *		                                        +---- residency_worker_announce ---+
 *
 * (an announcement leads by way of UNKNOWN).  In UNKNOWN only the resolver is started,
 * in REGION all kinds, in NONE nothing.
 *
 * Everything is behind one spinlock, held for a few instructions, because a backend wakes
 * a worker behind the commit record, where nothing may fail or wait.
 */
#ifndef RESIDENCY_WORKER_INTERNAL_H
#define RESIDENCY_WORKER_INTERNAL_H

#include "worker.h"

#include "datatype/timestamp.h"
#include "storage/latch.h"
#include "storage/spin.h"

/* databases of one server that can be regions; there may be any number of others */
#define WORKER_MAX_DATABASES 64

/* pause before a worker that ended is started again, and after it made room */
#define WORKER_RESTART_MS 1000
#define WORKER_YIELD_MS 5000

typedef enum WorkerDatabase
{
	WORKER_DATABASE_UNKNOWN,
	WORKER_DATABASE_REGION,
	WORKER_DATABASE_NONE
} WorkerDatabase;

/* one worker of a database */
typedef struct WorkerProcess
{
	pid_t		pid;			/* 0: none is running */
	Latch	   *latch;			/* of that process */
	bool		wake;			/* somebody wants a round now */
	TimestampTz hold_until;		/* not to be started before */
} WorkerProcess;

typedef struct WorkerSlot
{
	Oid			database;		/* InvalidOid: free */
	WorkerDatabase state;
	TimestampTz held_until;		/* somebody needs the database alone until then, at most */
	WorkerProcess process[RESIDENCY_WORKER_KINDS];
} WorkerSlot;

typedef struct WorkerShared
{
	slock_t		mutex;
	Latch	   *launcher;		/* NULL: none is running */
	WorkerSlot	slots[WORKER_MAX_DATABASES];
} WorkerShared;

/* worker.c */
extern WorkerShared *residency_worker_shared;
extern WorkerSlot *residency_worker_slot(Oid database);
extern WorkerSlot *residency_worker_take_slot(Oid database);

/* worker_launcher.c */
extern void residency_worker_register_launcher(void);

/* worker_loop.c */
extern void residency_worker_set_own_settings(void);
extern const char *residency_worker_kind_name(int kind);

#endif							/* RESIDENCY_WORKER_INTERNAL_H */
