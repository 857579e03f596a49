/*
 * lookup_state.h
 *		What the files that run a region lookup share: the node's state and its batches.
 */
#ifndef RESIDENCY_LOOKUP_STATE_H
#define RESIDENCY_LOOKUP_STATE_H

#include "lookup.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "commands/explain.h"
#include "executor/tuptable.h"
#include "lib/ilist.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* reading one table by an index; open while "heap" is set */
typedef struct LookupProbe
{
	Oid			relid;
	Oid			indexid;
	Relation	heap;
	Relation	index;
	IndexScanDesc scan;
	ScanKeyData *keys;
	TupleTableSlot *slot;
} LookupProbe;

typedef struct LookupWhole LookupWhole; /* lookup_row.c */

/* a region that can hold rows */
typedef struct LookupTarget
{
	Oid			serverid;		/* InvalidOid: this one */
	Oid			partition;
	char	   *region;
	char	   *sql;			/* NULL until it is asked for the first time */
	char	   *missing_sql;	/* asked behind a write, if there is a directory */
	bool		asked;			/* since the node began, for EXPLAIN */
	LookupWhole *whole;			/* its whole row, if that is needed */
	TupleTableSlot *returned_slot;	/* a row that a write has returned */
	FdwInput   *returned_input;
} LookupTarget;

/* a row that was found for a key */
typedef struct LookupRow
{
	int			next;			/* next row of the same key, -1 */
	int			answer;			/* that holds it, -1: values are here */
	int			row;
	Datum	   *values;			/* of the resident columns */
	bool	   *nulls;
} LookupRow;

/* a distinct key of a batch */
typedef struct LookupEntry
{
	uint32		hash;
	int			next;			/* in its bucket, -1 */
	Datum	   *values;
	uint64		asked;			/* targets asked for it, as bits */
	int			held;			/* target whose rows count, -1 */
	int			first;			/* its rows, -1 */
	int			last;
	char	  **texts;			/* of a write: values that travel with the key */
} LookupEntry;

/* an outer row of a batch */
typedef struct LookupOuter
{
	MinimalTuple tuple;			/* NULL for a scan */
	int			entry;			/* its key, -1: has a NULL */
} LookupOuter;

/* a question to one region */
typedef struct LookupAnswer
{
	int			target;
	RemoteRequest *req;			/* NULL: to be sent again */
	PGresult   *res;			/* NULL: not awaited yet */
	RemoteRequest *missing_req; /* of a write: which keys are not held */
	PGresult   *missing;
	bool		optional;		/* the region is passed over if it cannot be reached */
	bool		skipped;		/* it was */
	int		   *entries;		/* by ordinal number of the key asked for, from 0 */
	int			nentries;
} LookupAnswer;

typedef struct LookupBatch
{
	MemoryContext context;
	LookupOuter *outers;
	int			nouters;
	int			max_outers;
	LookupEntry *entries;
	int			nentries;
	int			max_entries;
	int		   *buckets;
	int			nbuckets;		/* power of 2 */
	LookupRow  *rows;
	int			nrows;
	int			max_rows;
	LookupAnswer *answers;
	int			nanswers;
	int			max_answers;
	int			awaited;		/* answers before this one are in */
	bool		complete;
} LookupBatch;

/* batches that may be on their way at once */
#define LOOKUP_BATCHES 4

typedef struct LookupState
{
	CustomScanState css;		/* must be first */
	dlist_node	link;			/* in the list of live nodes */
	FdwGroup   *group;			/* starts together with it, or NULL */
	bool		live;
	MemoryContextCallback reset;

	/* from the plan; only these and targets are set by EXPLAIN without ANALYZE */
	JoinType	jointype;
	int			nouter;
	int			nresident;
	int			first_rows;
	int			batch_rows;
	Oid			userid;
	const char *sql;
	const char *missing_sql;
	CmdType		operation;		/* what the text does: CMD_SELECT, or a direct write */
	bool		returns;		/* a direct write that has RETURNING */
	bool		counts;			/* ... whose count the client is told */

	/* keys */
	int			nkeys;
	List	   *key_states;		/* ExprStates */
	List	   *key_arrays;
	Oid		   *key_operators;
	Oid		   *key_types;
	Oid		   *key_collations;
	int16	   *key_len;
	bool	   *key_byval;
	FmgrInfo   *key_hash;
	FmgrInfo   *key_equal;
	FdwOutput  *key_output;
	Datum	   *key_values;		/* of the current outer row */

	/* regions; local is the position of this one, -1 */
	LookupTarget *targets;
	int			ntargets;
	int			local;
	bool		has_directory;
	LookupProbe directory;
	AttrNumber	directory_region;
	FmgrInfo	region_output;
	bool		region_padded;	/* bpchar: trailing blanks do not count */
	LookupProbe home;
	AttrNumber *stored;			/* by resident column */
	int16	   *stored_len;
	bool	   *stored_byval;

	/* conditions and parameters */
	ExprState  *shipped;
	ExprState  *joinquals;
	List	   *param_exprs;
	List	   *param_states;
	FdwOutput  *param_output;
	int			nparams;
	const char **param_values;
	MemoryContext param_context, arrays_context;
	bool		params_known;
	List	   *row_exprs;		/* of a direct write: values for each row of the key side */
	List	   *row_states;
	FdwOutput  *row_output;

	/* rows */
	PlanState  *outer;			/* NULL for a scan */
	TupleTableSlot *outer_slot;
	TupleTableSlot *resident_slot;
	FdwInput   *input;
	bool		special;		/* there are columns that residency_row_finish makes */
	LookupWhole *whole;			/* whole row of the table */
	bool		checked;		/* the row that is being checked again has been given out */
	LookupBatch *batches[LOOKUP_BATCHES];	/* in order; the first one is being read */
	int			nbatches;
	bool		exhausted;		/* the key side has ended */
	bool		started;		/* its first batch was read */
	int			read_batches;	/* done with, since the last rescan */
	List	   *arrays;			/* scan: position in the product of its arrays */
	int			outer_row;		/* of batches[0] */
	int			found_row;		/* next row of its key, -1 */
	bool		outer_loaded;
	bool		matched;
	SubTransactionId subid;		/* where the requests on their way began */

	/* for EXPLAIN ANALYZE */
	uint64		keys_asked;
	RemoteTally *tally;			/* NULL unless somebody wants to see it */
} LookupState;

/* lookup_exec.c */
extern const CustomExecMethods residency_lookup_exec_methods;
extern void residency_lookup_load(LookupState *state, const Datum *values, const bool *nulls);

extern void residency_lookup_load_outer(LookupState *state, TupleTableSlot *outer);

/* lookup_row.c */
extern void residency_row_finish(LookupState *state, int target, Datum *values, bool *nulls);
extern void residency_row_from_slot(LookupState *state, TupleTableSlot *slot, bool as_parent,
									int target, Datum *values, bool *nulls);
extern bool residency_row_is_checked(LookupState *state);
extern bool residency_row_check(LookupState *state);

/* lookup_question.c */
extern void residency_question_row_values(LookupState *state, LookupBatch *batch, LookupEntry *entry);
extern char *residency_question_text(const char *sql, Oid partition);
extern void residency_question_send(LookupState *state, LookupBatch *batch, LookupAnswer *answer);
extern void residency_question_take_write(LookupState *state, LookupBatch *batch, int number);
extern void residency_question_load_returned(LookupState *state, LookupAnswer *answer, int row);

/* lookup_keys.c */
extern void residency_keys_init(LookupState *state, CustomScan *plan);
extern void residency_keys_fill(LookupState *state, LookupBatch *batch, int max_rows);

/* lookup_batch.c */
extern LookupBatch *residency_batch_make(LookupState *state);
extern void residency_batch_free(LookupBatch *batch);
extern int	residency_batch_entry(LookupState *state, LookupBatch *batch, const Datum *values);
extern void residency_batch_outer(LookupBatch *batch, MinimalTuple tuple, int entry);
extern LookupRow *residency_batch_row(LookupBatch *batch, LookupEntry *entry);
extern LookupAnswer *residency_batch_answer(LookupBatch *batch);

/* lookup_home.c */
extern int	residency_home_of(LookupState *state, LookupEntry *entry);
extern void residency_home_read(LookupState *state, LookupBatch *batch, LookupEntry *entry);
extern void residency_home_snapshot(LookupState *state, Snapshot snapshot);
extern void residency_home_close(LookupState *state);

/* lookup_send.c */
extern void residency_batch_ask(LookupState *state, LookupBatch *batch);
extern void residency_batch_complete(LookupState *state, LookupBatch *batch);
extern void residency_lookup_forget(LookupState *state);
extern void residency_lookup_live(LookupState *state);

/* lookup_explain.c */
extern void residency_lookup_explain(CustomScanState *node, List *ancestors, ExplainState *es);

#endif							/* RESIDENCY_LOOKUP_STATE_H */
