/*
 * commit.h
 *		Statement boundaries and the commit of transactions that span regions.
 */
#ifndef RESIDENCY_COMMIT_H
#define RESIDENCY_COMMIT_H

#include "residency.h"

/* called by residency.c: registers transaction and resource callbacks.  Must be the
 * first module to register, so that its PRE_COMMIT runs after everybody else's. */
extern void residency_commit_init(void);

/* a top-level statement ends: producers send, deferred answers are awaited inside a
 * transaction block (outside one they share a flight with PREPARE) */
extern void residency_statement_end(void);

/* a top-level statement starts: answers still deferred by the one before are awaited */
extern void residency_statement_start(void);

/* DROP EXTENSION is about to run: throws if other regions may wait for decisions that are here */
extern void residency_commit_before_drop(void);

/* assign hook of the setting (commit_doubt.c) */
extern void residency_doubt_timeout_assigned(int value, void *extra);

#endif							/* RESIDENCY_COMMIT_H */
