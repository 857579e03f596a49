/*
 * global_backlog.h
 *		Regions that a change of global tables leaves out, and what is noted about that.
 *
 * global_backlog.c		who is left out; the notes at a row's home
 * global_catchup*.c	ships what was noted
 * global_conflicts.c	what could not be shipped
 */
#ifndef RESIDENCY_GLOBAL_BACKLOG_H
#define RESIDENCY_GLOBAL_BACKLOG_H

#include "global_internal.h"

#include "utils/array.h"

/* keys to be noted, collected while a batch is sent or applied */
typedef struct BacklogNotes
{
	ArrayBuildState *relations; /* oid */
	ArrayBuildState *keys;		/* text, as they travel */
	int			n;
} BacklogNotes;

/* global_backlog.c */
extern List *residency_left_out(void);
extern void residency_backlog_lock_shared(const char *region);
extern bool residency_backlog_lock_exclusive(const char *region, int timeout);
extern void residency_backlog_unlock_exclusive(const char *region);
extern BacklogNotes *residency_backlog_begin(void);
extern void residency_backlog_add(BacklogNotes *notes, Oid relid, const char *key);
extern void residency_backlog_write(BacklogNotes *notes, List *regions);
extern bool residency_region_listed(List *regions, const char *region);
extern void residency_refuse_away(const char *region, const char *table) pg_attribute_noreturn();

#endif							/* RESIDENCY_GLOBAL_BACKLOG_H */
