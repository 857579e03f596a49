/*
 * worker.h
 *		Background workers: one process for each database that is a region, and kind.
 *
 * A kind is a main function, listed in worker_loop.c.  It is called outside of a transaction,
 * connected to the database as the bootstrap superuser, and returns when
 * residency_worker_wait says so; its process ends then, and is started again when there
 * is a reason.
 *
 *		void
 *		residency_some_main(void)
 *		{
 *			long		pause = 0;
 *
 *			while (residency_worker_wait(pause))
 *				pause = residency_worker_try(some_round, NULL) ? some_interval : 1000;
 *		}
 *
 * Nothing runs on a standby, nor while residency.workers is off, nor in a database
 * that is no region.  Between two rounds a worker may be ended at any time.
 */
#ifndef RESIDENCY_WORKER_H
#define RESIDENCY_WORKER_H

#include "residency.h"

#include "nodes/nodes.h"

typedef enum ResidencyWorkerKind
{
	RESIDENCY_WORKER_RESOLVER,	/* finishes what a crash left (commit_worker.c); also finds
								 * out whether the database is a region */
	RESIDENCY_WORKER_HEALTH,	/* which regions answer (remote_health_worker.c) */
	RESIDENCY_WORKER_CATCH_UP,	/* ships what other regions have missed (global_catchup_worker.c) */
	RESIDENCY_WORKER_KINDS		/* how many there are; last */
} ResidencyWorkerKind;

/* --- for everybody ------------------------------------------------------------ */

/* lets the worker of that kind in this database do a round now, and starts it if it does
 * not run.  Neither throws nor waits nor allocates: safe behind the commit record. */
extern void residency_worker_wake(ResidencyWorkerKind kind);

/* the same when the current transaction has committed, not if it aborts */
extern void residency_worker_wake_at_commit(ResidencyWorkerKind kind);

/* this database is, or becomes, a region: its workers are started if they do not run.
 * To be called in the transaction that makes it one; takes effect when it commits. */
extern void residency_worker_announce(void);

/* a utility statement is about to run: workers that would be in its way leave */
extern void residency_worker_yield(Node *statement);

/* called by residency.c while the library is preloaded */
extern void residency_worker_init(void);

/* application_name of workers' sessions in other regions; see residency_worker_yield */
#define RESIDENCY_WORKER_APPLICATION "residency worker"

/*
 * Runs a statement with text parameters (NULL: null) in a transaction of its own, as the
 * bootstrap superuser, and returns when that is on disk; it stays when the caller's own
 * transaction aborts.  "what" completes "could not ..." in the error that is thrown otherwise.
 * Interruptible: it may be committed then, or not.  Takes a free background worker.  False if the
 * statement has changed no row.
 */
extern bool residency_worker_commit_apart(const char *what, const char *sql, int n,
										  const char *const *values);

/* true if this session is such a one, and somebody wants the database for themselves now */
extern bool residency_worker_unwelcome(void);

/* this process is a worker */
extern bool residency_is_worker;

/* --- for main functions ------------------------------------------------------- */

/*
 * Waits for timeout_ms (0: not at all), or until somebody wakes this worker.  Outside of
 * a transaction.  False: the main function has to return.
 */
extern bool residency_worker_wait(long timeout_ms);

/* true if there is a reason for residency_worker_wait to return at once; for main
 * functions with a wait of their own, which includes MyLatch */
extern bool residency_worker_wanted(bool *leave);

/*
 * One round, in a transaction with a snapshot of its own, unless the database is no
 * region any more (then false, and the next wait ends the worker).  Memory allocated
 * meanwhile is freed.  An error ends the round, is logged once for each SQLSTATE in a row,
 * and makes this false; otherwise it is the round's own result.
 */
typedef bool (*ResidencyWorkerRound) (void *arg);
extern bool residency_worker_try(ResidencyWorkerRound round, void *arg);

/* the same without a transaction around it: the round begins and ends its own */
extern bool residency_worker_try_bare(ResidencyWorkerRound round, void *arg);

/* main functions, see the table in worker_loop.c */
extern void residency_resolver_main(void);
extern void residency_health_main(void);

#endif							/* RESIDENCY_WORKER_H */
