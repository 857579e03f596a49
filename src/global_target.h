/*
 * global_target.h
 *		One table to which changes of global rows are applied (global_target.c).
 */
#ifndef RESIDENCY_GLOBAL_TARGET_H
#define RESIDENCY_GLOBAL_TARGET_H

#include "global_internal.h"

typedef struct ApplyTarget
{
	Relation	rel;
	Oid			index;			/* primary key */
	ResultRelInfo *info;
	TriggerDesc *triggers[SCOPE_COUNT];
	GlobalText *text;
	TupleTableSlot *image;		/* the row, or just its key, as received */
	TupleTableSlot *found;		/* the row that is there, locked */
	TupleTableSlot *other;		/* the row that is at a move's destination */
	bool		referred;		/* rows of global tables refer to its rows */
	AttrNumber	region_attno;
	FmgrInfo	region_out;		/* output function of the region column */
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
} ApplyTarget;

extern void residency_target_open_all(ApplyRun *run, List *names, LOCKMODE lockmode);
extern void residency_target_close_all(ApplyRun *run);
extern void residency_target_apply(ApplyRun *run, ApplyTarget *target, ChangeReader *reader);
extern void residency_target_clear(ApplyRun *run, ApplyTarget *target);

#endif							/* RESIDENCY_GLOBAL_TARGET_H */
