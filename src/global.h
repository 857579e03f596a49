/*
 * global.h
 *		Copies of global tables: capture at the gateway, apply in the other regions.
 *
 * global_capture.c	triggers that note what a transaction did to global tables
 * global_notes.c	the notes: one per key, in order, undone with their subtransaction
 * global_note_tables.c	the tables they belong to
 * global_send.c	sends what was noted to all regions
 * global_records.c	reads each noted row once and writes its record
 * global_text.c	rows, keys and versions as text, the same in every region
 * global_apply.c	residency.apply(): takes what another gateway sent
 * global_target.c	finds, checks and writes the rows of one table
 * global_triggers.c	which triggers fire for rows that another gateway sent
 * global_recheck.c	foreign keys of a batch that comes in several pieces
 * global_locks.c	bounded lock waits of the client's own statements
 */
#ifndef RESIDENCY_GLOBAL_H
#define RESIDENCY_GLOBAL_H

#include "residency.h"

#include "executor/execdesc.h"

/* registers the producer (remote.h) and the transaction callbacks of this part */
extern void residency_global_init(void);

/*
 * Bounded lock waits.  No deadlock detector sees a cycle through two regions, so
 * a client's statement that writes (or locks rows of) a global table may wait for
 * a lock no longer than residency.lock_timeout.  The ExecutorRun and ExecutorFinish
 * hooks (triggers and foreign keys wait there) surround the standard function so:
 *
 *		level = residency_global_limit_locks(queryDesc);
 *		PG_TRY();
 *			standard_ExecutorRun(...);
 *		PG_CATCH();
 *			if (level >= 0)
 *				residency_global_translate_error();
 *			PG_RE_THROW();
 *		PG_END_TRY();
 *		residency_global_unlimit_locks(level);
 *
 * The ProcessUtility hook does the same with residency_global_limit_utility, for
 * COPY FROM and TRUNCATE.  Both return the GUC nest level, or -1 if the statement
 * needs no limit or the session has set a shorter one.
 */
extern int	residency_global_limit_locks(QueryDesc *queryDesc);
extern int	residency_global_limit_utility(Node *parsetree);
extern void residency_global_constraints_deferred(void);
extern void residency_global_part_ends(void);
extern void residency_global_unlimit_locks(int level);

/* only in PG_CATCH: throws 40P01 if the current error is a lock timeout, else returns */
extern void residency_global_translate_error(void);

#endif							/* RESIDENCY_GLOBAL_H */
