/*
 * global_backlog.h
 *		Regions that a change of global tables leaves out, and what is noted about that.
 *
 * global_backlog.c			who is left out; the notes at a row's home
 * global_probe.c			finds rows without waiting for anybody
 * global_noted_keys.c		reads noted keys; keeps DDL from changing them
 * global_catchup.c			ships what was noted, one batch in one transaction
 * global_catchup_notes.c	takes the notes of a batch, and deletes those that were dealt with
 * global_catchup_apply.c	takes what was shipped
 * global_catchup_judge.c	decides what becomes of it
 * global_catchup_errors.c	what errors mean there
 * global_catchup_worker.c	keeps shipping
 * global_catchup_flip.c	makes regions "up" again
 * global_conflicts.c		what could not be shipped
 */
#ifndef RESIDENCY_GLOBAL_BACKLOG_H
#define RESIDENCY_GLOBAL_BACKLOG_H

#include "global_internal.h"

#include "access/skey.h"
#include "executor/tuptable.h"
#include "storage/lock.h"
#include "utils/array.h"

/* keys to be noted, collected while a batch is sent or applied */
typedef struct BacklogNotes
{
	ArrayBuildState *relations; /* oid */
	ArrayBuildState *keys;		/* text, as they travel */
	int			n;
	/* keys that rows have changed: of tables, from, to */
	ArrayBuildState *moved;
	ArrayBuildState *was;
	ArrayBuildState *became;
} BacklogNotes;

/* finds rows of one table by primary key */
typedef struct RowProbe
{
	Relation	rel;
	Relation	index;
	GlobalText *text;
	AttrNumber	region_attno;
	FmgrInfo	region_out;
	TupleTableSlot *slot;		/* the row found */
	Datum	   *values;			/* by attribute number: the key to look for */
	bool	   *nulls;
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
	ScanKeyData scan_keys[INDEX_MAX_KEYS];
} RowProbe;

typedef enum ProbeResult
{
	PROBE_NONE,					/* no such row, and nobody is making one */
	PROBE_ROW,
	PROBE_BUSY					/* a transaction that is not over has to do with it */
} ProbeResult;

/*
 * What became of a shipped record, as one letter of the receiver's answer; a record that
 * the answer does not mention was applied and changed no more than a copy.
 */
typedef enum ShipOutcome
{
	SHIP_DONE = 'd',
	SHIP_DELETED = 'x',			/* done, and the row was there: look again that it is none */
	SHIP_BUSY = 'b',			/* somebody is writing the row there */
	SHIP_LATER = 'r',			/* a constraint fails, perhaps for want of another row */
	SHIP_CONFLICT = 'c',		/* the same, for good: the row is in conflicts there */
	SHIP_WON = 'k',				/* done; another row of the key, made there, is in conflicts */
	SHIP_STANDS = 's',			/* the same, but that row stays there: constraints want it */
	SHIP_LOST = 'l'				/* done; the receiver has a row of its own, and will ship that */
} ShipOutcome;

/* what an error tells about a shipped record */
typedef enum ErrorMeaning
{
	ERROR_BUSY,					/* somebody else is in the way */
	ERROR_REFUSED,				/* the record cannot be applied, for now at least */
	ERROR_ELSEWHERE				/* it is not about the record at all */
} ErrorMeaning;

/* one batch that is to be shipped */
typedef struct ShipOrder
{
	const char *region;
	int64		after;			/* only notes behind this position */
	int			limit;			/* not more of them than that, nor than SHIP_NOTES */
	int			patience;		/* ms for which a constraint may fail before it counts as broken */
	bool		overdue;		/* only notes that have been refused for longer than that */
	bool		final;			/* what is refused goes to residency.conflict */
} ShipOrder;

/* notes in one batch, at most */
#define SHIP_NOTES		5000

/* what it came to, in notes */
typedef struct ShipResult
{
	int			taken;			/* looked at; 0: there are no more behind "after" */
	int			done;			/* no longer noted */
	int			conflicts;		/* of these: in residency.conflict now */
	int			later;			/* of the rest: refused by a constraint */
	int			overdue;		/* of these: for longer than the patience */
	int64		last;			/* position of the last one */
	bool		full;			/* there may be more behind it */
} ShipResult;

/* global_capture.c */
extern bool residency_rows_shipped;

/* global_probe.c */
extern RowProbe *residency_probe_open(Relation rel);
extern void residency_probe_close(RowProbe *probe);
extern ProbeResult residency_probe_row(RowProbe *probe, bool lock);
extern char *residency_probe_home(RowProbe *probe);
extern char *residency_row_as_json(TupleDesc desc, Datum *values, bool *nulls);

/* global_noted_keys.c */
extern void residency_noted_key_read(char *key, GlobalText *text, Datum *values, bool *nulls);
extern bool residency_keys_try(void (*read) (void *arg), void *arg);

/* global_catchup_errors.c */
extern ErrorMeaning residency_error_meaning(int sqlerrcode);

/* global_catchup.c */
extern void residency_ship_batch(const ShipOrder *order, ShipResult *result);
extern bool residency_ship_settled(const char *region);

/* global_conflicts.c */
extern bool residency_conflicts_exist(void);
extern void residency_conflict_check(Oid relid, const char *key);
extern bool residency_conflict_given_up(Oid relid, const char *key, const char *home);
extern void residency_conflict_store(Oid relid, const char *key, const char *kind,
									 const char *region, const char *home,
									 const char *constraint, const char *row);
extern char *residency_conflict_holder(Oid relid, const char *key);
extern void residency_conflict_disown(Oid relid, const char *key);
extern void residency_conflict_cured(const char *region, const char *home, Datum relations, Datum keys);

/* global_backlog.c */
extern bool residency_backlog_claim_batch(const char *shipper);
extern List *residency_left_out(void);
extern List *residency_not_sent_to(List *left_out, List *homes, const char *table, bool last);
extern void residency_batch_ended(void);
extern void residency_backlog_lock_shared(const char *region);
extern bool residency_backlog_lock_exclusive(const char *region, int timeout);
extern VirtualTransactionId *residency_backlog_holders(const char *region, int *n);
extern void residency_backlog_unlock_exclusive(const char *region);
extern BacklogNotes *residency_backlog_begin(void);
extern void residency_backlog_add(BacklogNotes *notes, Oid relid, const char *key);
extern void residency_backlog_write_moves(BacklogNotes *notes, List *left_out);
extern void residency_backlog_move(BacklogNotes *notes, Oid relid, const char *was, const char *key);
extern void residency_backlog_write(BacklogNotes *notes, List *regions);
extern void residency_backlog_own(Oid relid, const char *key);
extern void residency_backlog_disown(Oid relid, const char *key);
extern bool residency_region_listed(List *regions, const char *region);
extern void residency_refuse_away(const char *region, const char *table) pg_attribute_noreturn();

#endif							/* RESIDENCY_GLOBAL_BACKLOG_H */
