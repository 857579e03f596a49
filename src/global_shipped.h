/*
 * global_shipped.h
 *		What takes shipped rows shares: global_catchup_apply.c and global_catchup_judge.c.
 */
#ifndef RESIDENCY_GLOBAL_SHIPPED_H
#define RESIDENCY_GLOBAL_SHIPPED_H

#include "residency.h"

#include "nodes/execnodes.h"

#include "global_backlog.h"

/* one call */
typedef struct ShippedCall
{
	List	   *tables;			/* char * */
	const char *shipper;
	text	   *changes;
	bool		final;
	MemoryContext context;		/* of the call */
	ReturnSetInfo *out;
	BacklogNotes *applied;		/* keys that were written without trouble */
	List	   *held;			/* HeldKey: see residency_shipped_hold() */
	MemoryContext held_context;
} ShippedCall;

/* what is to be told of a record; strings are NULL if there is nothing to say */
typedef struct Verdict
{
	ShipOutcome outcome;
	const char *kind;
	const char *constraint;
	char	   *content;		/* the row that does not hold, as json */
} Verdict;

/* a record, and what became of it; settled when it stands */
typedef struct ShippedLine
{
	Oid			relid;
	ChangeKind	kind;
	char	   *key;			/* of a move: the old one */
	char	   *new_key;		/* of a move; NULL for others */
	char	   *content;		/* the row as it came, if it may have to be kept */
	bool		beaten;			/* a third region's row is here that this one takes the place of */
	bool		remove;			/* that row is to go */
	Verdict		verdict;
} ShippedLine;

/* global_catchup_judge.c */
extern void residency_shipped_read(RowProbe *probe, ChangeReader *reader, ShippedLine *line);
extern void residency_shipped_skip(RowProbe *probe, ChangeReader *reader);
extern bool residency_shipped_judge(ShippedCall *call, RowProbe *probe, ChangeReader *reader, ShippedLine *line);
extern void residency_shipped_hold(ShippedCall *call, const ShippedLine *line);
extern void residency_shipped_failed(ShippedCall *call, ShippedLine *line);

#endif							/* RESIDENCY_GLOBAL_SHIPPED_H */
