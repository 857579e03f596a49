/*
 * global_catchup.h
 *		What the files of catch-up share: see global_backlog.h for the map.
 */
#ifndef RESIDENCY_GLOBAL_CATCHUP_H
#define RESIDENCY_GLOBAL_CATCHUP_H

#include "residency.h"

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "storage/lock.h"

#include "global_backlog.h"
#include "worker.h"

/* transactions that are remembered for having outlasted a wait */
#define FLIP_BLOCKERS		16

/* a table with notes */
typedef struct ShipTable
{
	Oid			relid;
	RowProbe   *probe;			/* NULL: not a global table any more, or */
	bool		blocked;		/* it cannot be read now */
	int			wire_number;	/* 0: not in this request yet */
} ShipTable;

/* one note at hand */
typedef struct ShipNote
{
	int64		seq;
	ShipTable  *table;
	char	   *key;
	char	   *was;			/* a move: the key before; NULL: the row of the key is to be shipped */
	bool		refused;		/* a constraint failed before */
	bool		overdue;		/* for longer than the patience */
	bool		unreadable;		/* the key is none of the table's, as it is now */
	bool		absent;			/* was shipped as no more */
	char		outcome;		/* ShipOutcome; SHIP_BUSY until known otherwise */
} ShipNote;

/* one batch */
typedef struct Shipment
{
	const ShipOrder *order;
	const char *region;
	MemoryContext context;
	List	   *tables;			/* ShipTable */
	List	   *names;			/* char *, in the order of wire numbers */
	ShipNote   *notes;			/* moves, and behind them all others */
	int			nmoves;
	int			nnotes;			/* with the moves */
	ShipNote  **sent;			/* in the order of the records */
	int			nsent;
	StringInfoData changes;
} Shipment;

/* one pass through the notes about a region, so far */
typedef struct PassState
{
	int64		after;			/* the next batch begins behind this note */
	int			taken;
	int			done;
	int			later;			/* refused by a constraint */
	int			overdue;		/* of these: for longer than CONFLICT_PATIENCE */
	bool		over;			/* all notes have been gone through */
	bool		giving_up;		/* what is overdue goes to residency.conflict first */
	int64		given_up;		/* ... the next batch of that begins behind this note */
} PassState;

/* what the worker knows of a region, as long as its process lives */
typedef struct CatchUpRegion
{
	char		name[NAMEDATALEN];
	bool		behind;			/* notes about it were found by the last look, or it is not up */
	TimestampTz not_before;		/* do not try again earlier */
	PassState	pass;
	int			refused;		/* "later" of the pass before */
	int			batch;			/* notes in a batch; fewer after one that took too long */
	int			busy_pause;
	int			flip_wait;		/* ms; 0: the first one */
	TimestampTz no_flip_before;
	int			nblockers;
	VirtualTransactionId blockers[FLIP_BLOCKERS];	/* who outlasted our last wait */
} CatchUpRegion;

/* one batch */
typedef struct BatchWork
{
	CatchUpRegion *region;
	ShipOrder	order;
	bool		hurry;			/* the region's lock is held */
	ShipResult	result;
} BatchWork;

/* global_catchup_notes.c */
extern void residency_shipment_take(Shipment *shipment, ShipResult *result);
extern void residency_shipment_set_key(ShipNote *note);
extern ShipResult residency_shipment_finish(Shipment *shipment);
extern void residency_shipment_close(Shipment *shipment);

/* global_catchup_progress.c */
extern void residency_progress_init(void);
extern void residency_progress_shipped(const char *region, TimestampTz start, int shipped, bool left);
extern void residency_progress_idle(const char *region, bool well);
extern void residency_progress_failed(const char *region, const char *error);

/* global_catchup_worker.c */
/* main function of the worker, see worker.h */
extern void residency_catch_up_main(void);
/* see there; NULL as a region: all of them */
extern bool residency_catch_up_try(CatchUpRegion *region, ResidencyWorkerRound round, void *arg, bool bare, int ms);
extern bool residency_catch_up_ship(BatchWork *work, CatchUpRegion *region, int64 after, int ms);

/* global_catchup_flip.c */
extern bool residency_catch_up_flip(CatchUpRegion *region);

#endif							/* RESIDENCY_GLOBAL_CATCHUP_H */
