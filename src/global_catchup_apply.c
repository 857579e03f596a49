/*
 * global_catchup_apply.c
 *		residency.apply_shipped(): takes rows that were noted for this region.
 *
 * The shipper is the rows' home.  What it sends is written over what is here, with these
 * exceptions:
 *
 *	- A row that somebody is writing here is left alone: writers go first.
 *	- An absent row is deleted only if the row here has its home at the shipper.  One with
 *	  another home was made later, and its home takes care of it.
 *	- A row here that has its home here was made while neither region knew of the other's
 *	  (nobody else can make one).  The region first by name wins.  If that is the shipper,
 *	  its row is written here and the row that was here goes to residency.conflict.
 *	  Else nothing is written, and this region notes the key: it ships its row back, and
 *	  the other side does what is said above.
 *	- Foreign keys are checked in both directions, unlike for copies that a writer sends:
 *	  that writer's gateway had a complete picture, ours may not have had one.  What breaks
 *	  a constraint waits for another row that may cure it; if none is left ("final"), it
 *	  goes to residency.conflict.
 *
 * All of a batch is one subtransaction.  If it fails, each row gets one of its own, so
 * that the others are not held up.
 */
#include "residency.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "compat.h"
#include "fault.h"
#include "global_backlog.h"
#include "guard.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_apply_shipped);

/* how long a writer that the look before has missed is waited for, in ms */
#define SHIPPED_WAIT	1

/* one call */
typedef struct ShippedCall
{
	List	   *tables;			/* char * */
	const char *shipper;
	text	   *changes;
	bool		final;
	bool		written;		/* the region has been told of by a write: see applied */
	MemoryContext context;		/* of the call */
	ReturnSetInfo *out;
	BacklogNotes *ours;			/* keys whose row here holds, to be shipped back */
	BacklogNotes *applied;		/* keys that were written without trouble */
} ShippedCall;

/* one attempt: all records, or a single one */
typedef struct Attempt
{
	ApplyRun	run;
	List	   *probes;			/* RowProbe, or NULL, by table */
} Attempt;

/* what is to be told of a record; strings are NULL if there is nothing to say */
typedef struct Verdict
{
	ShipOutcome outcome;
	const char *kind;
	const char *constraint;
	char	   *content;		/* the row that does not hold, as json */
} Verdict;

/* one line of the answer */
static void
tell(ShippedCall *call, int number, Verdict *verdict)
{
	char		letter[2] = {(char) verdict->outcome, '\0'};
	Datum		values[5];
	bool		nulls[5] = {false, false, verdict->kind == NULL, verdict->constraint == NULL,
	verdict->content == NULL};

	if (verdict->outcome == SHIP_DONE)
		return;
	values[0] = Int32GetDatum(number);
	values[1] = CStringGetTextDatum(letter);
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(verdict->kind);
	values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(verdict->constraint);
	values[4] = nulls[4] ? (Datum) 0 : CStringGetTextDatum(verdict->content);
	tuplestore_putvalues(call->out->setResult, call->out->setDesc, values, nulls);
}

/* a row as json, in the current memory context */
static char *
row_as_json(TupleDesc desc, Datum *values, bool *nulls)
{
	HeapTuple	tuple = heap_form_tuple(desc, values, nulls);

	return TextDatumGetCString(DirectFunctionCall1(row_to_json,
												   heap_copy_tuple_as_datum(tuple, desc)));
}

/* Opens the tables of a call for one attempt; bounds the waits for locks. */
static void
open_attempt(Attempt *attempt, ShippedCall *call)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	memset(attempt, 0, sizeof(Attempt));
	attempt->run.limit = -1;
	attempt->run.last = true;
	attempt->run.at_home = true;	/* constraints are checked as they are there */
	residency_target_open_all(&attempt->run, call->tables, RowExclusiveLock);
	for (int i = 0; i < list_length(attempt->run.targets); i++)
		attempt->probes = lappend(attempt->probes, NULL);
	/* nothing may be left to fail in PREPARE */
	AfterTriggerSetState(stmt);
}

/* Fires what is left to fire, and closes the tables. */
static void
close_attempt(Attempt *attempt)
{
	ListCell   *lc;

	foreach(lc, attempt->probes)
		if (lfirst(lc))
			residency_probe_close(lfirst(lc));
	residency_target_close_all(&attempt->run);
	residency_recheck_all();
}

/* The table's probe, made at its first record. */
static RowProbe *
probe_of(Attempt *attempt, int table)
{
	ListCell   *lc = list_nth_cell(attempt->probes, table - 1);

	if (lfirst(lc) == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(attempt->run.estate->es_query_cxt);
		ApplyTarget *target = list_nth(attempt->run.targets, table - 1);

		lfirst(lc) = residency_probe_open(target->rel);
		MemoryContextSwitchTo(old);
	}
	return lfirst(lc);
}

/* The key of a record, as it travels; the reader stays behind the record's head. */
static char *
read_key(RowProbe *probe, ChangeReader *reader)
{
	ChangeReader copy = *reader;
	StringInfoData key;
	Datum		values[INDEX_MAX_KEYS];

	if (reader->kind == CHANGE_STATE)
		residency_text_read_row(&copy, probe->text, probe->values, probe->nulls);
	else
		residency_text_read_key(&copy, probe->text, probe->values, probe->nulls);
	for (int k = 0; k < probe->nkeys; k++)
		values[k] = probe->values[probe->keys[k] - 1];
	initStringInfo(&key);
	residency_text_key(&key, probe->text, values);
	return key.data;
}

/* Leaves out a record that is not applied. */
static void
skip_record(RowProbe *probe, ChangeReader *reader)
{
	if (reader->kind == CHANGE_STATE)
		residency_text_read_row(reader, probe->text, probe->values, probe->nulls);
	else
		residency_text_read_key(reader, probe->text, probe->values, probe->nulls);
}

/*
 * Decides about a record before anything is written: true if it is to be applied.  The
 * row that is here now is in the probe's slot.
 */
static bool
judge(ShippedCall *call, RowProbe *probe, ChangeReader *reader, const char *key, Verdict *verdict)
{
	const char *self = residency_self()->region;
	ProbeResult found = residency_probe_row(probe, false);
	char	   *home;

	memset(verdict, 0, sizeof(Verdict));
	verdict->outcome = SHIP_DONE;
	if (found == PROBE_BUSY)
	{
		verdict->outcome = SHIP_BUSY;
		return false;
	}
	if (found == PROBE_NONE)
		return true;
	home = residency_probe_home(probe);
	if (reader->kind == CHANGE_DELETE)
	{
		verdict->outcome = SHIP_DELETED;
		if (strcmp(home, call->shipper) != 0)
			verdict->outcome = SHIP_DONE;
		return verdict->outcome == SHIP_DELETED;
	}
	if (strcmp(home, self) != 0)
		return true;
	if (strcmp(call->shipper, self) > 0)
	{
		verdict->outcome = SHIP_LOST;
		return false;
	}
	verdict->outcome = SHIP_WON;
	verdict->kind = "key";
	verdict->content = row_as_json(RelationGetDescr(probe->rel), probe->slot->tts_values,
								   probe->slot->tts_isnull);
	return true;
}

/*
 * What was decided about a record that is done takes effect outside of it: this runs when
 * nothing of it can fail any more.
 */
static void
settle(ShippedCall *call, Oid relid, const char *key, int number, Verdict *verdict)
{
	MemoryContext old = MemoryContextSwitchTo(call->context);

	switch (verdict->outcome)
	{
		case SHIP_LOST:
			residency_backlog_add(call->ours, relid, key);
			break;
		case SHIP_WON:
			residency_conflict_store(relid, key, verdict->kind, residency_self()->region,
									 call->shipper, NULL, verdict->content);
			residency_backlog_disown(relid, key);
			break;
		case SHIP_CONFLICT:
			residency_conflict_store(relid, key, verdict->kind, residency_self()->region,
									 call->shipper, verdict->constraint, verdict->content);
			break;
		case SHIP_DONE:
		case SHIP_DELETED:
			residency_backlog_add(call->applied, relid, key);
			break;
		default:
			break;
	}
	tell(call, number, verdict);
	MemoryContextSwitchTo(old);
}

/* One record of an attempt: applies it, if it is to be. */
static void
apply_record(ShippedCall *call, Attempt *attempt, ChangeReader *reader, const char *key, Verdict *verdict)
{
	ApplyTarget *target = list_nth(attempt->run.targets, reader->table - 1);
	RowProbe   *probe = probe_of(attempt, reader->table);

	attempt->run.table = RelationGetRelationName(target->rel);
	attempt->run.index = target->index;
	if (judge(call, probe, reader, key, verdict))
		residency_target_apply(&attempt->run, target, reader);
	else
		skip_record(probe, reader);
}

/* Throws unless the record is of a table of this call. */
static void
check_reader(ShippedCall *call, ChangeReader *reader)
{
	if (reader->table < 1 || reader->table > list_length(call->tables) || reader->kind == CHANGE_MOVE)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("malformed change of a global table received from another region")));
}

/* what became of all records of a batch; settled when the batch stands */
typedef struct BatchLine
{
	Oid			relid;
	char	   *key;
	Verdict		verdict;
} BatchLine;

/* Applies all records in the current subtransaction; returns their lines. */
static List *
apply_all(ShippedCall *call)
{
	ChangeReader reader = {.next = VARDATA_ANY(call->changes),
	.end = VARDATA_ANY(call->changes) + VARSIZE_ANY_EXHDR(call->changes)};
	List	   *lines = NIL;
	Attempt		attempt;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	open_attempt(&attempt, call);
	while (residency_text_next(&reader))
	{
		BatchLine  *line = palloc(sizeof(BatchLine));
		RowProbe   *probe;

		CHECK_FOR_INTERRUPTS();
		check_reader(call, &reader);
		probe = probe_of(&attempt, reader.table);
		line->relid = RelationGetRelid(probe->rel);
		line->key = read_key(probe, &reader);
		apply_record(call, &attempt, &reader, line->key, &line->verdict);
		lines = lappend(lines, line);
	}
	close_attempt(&attempt);
	MemoryContextSwitchTo(old);
	return lines;
}

/*
 * What an error means for the record that caused it.  Only in PG_CATCH; rethrows what does
 * not concern the record.
 */
static void
judge_error(ShippedCall *call, Verdict *verdict)
{
	ErrorData  *error;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	error = CopyErrorData();
	MemoryContextSwitchTo(old);
	memset(verdict, 0, sizeof(Verdict));
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case MAKE_SQLSTATE('5', '5', '0', '0', '0'):
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'):
			verdict->outcome = SHIP_BUSY;
			break;
		case MAKE_SQLSTATE('2', '3', '0', '0', '0'):
		case MAKE_SQLSTATE('2', '2', '0', '0', '0'):
		case MAKE_SQLSTATE('4', '2', '0', '0', '0'):
		case MAKE_SQLSTATE('P', '0', '0', '0', '0'):
			verdict->outcome = call->final ? SHIP_CONFLICT : SHIP_LATER;
			verdict->kind = error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ? "unique" :
				error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION ? "reference" : "other";
			verdict->constraint = error->constraint_name;
			break;
		default:
			PG_RE_THROW();
	}
	FlushErrorState();
}

/*
 * Runs one record, or all (reader NULL), in a subtransaction; false if it failed.  The
 * lines of all come back in *lines, the verdict of one in *verdict.
 */
static bool
attempt_in_subtransaction(ShippedCall *call, ChangeReader *reader, const char *key,
						  List **lines, Verdict *verdict)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = CurrentMemoryContext;
	volatile bool ok = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(call->context);
		if (reader == NULL)
			*lines = apply_all(call);
		else
		{
			Attempt		attempt;

			open_attempt(&attempt, call);
			/* this attempt's probe looks for the key that it has read */
			(void) read_key(probe_of(&attempt, reader->table), reader);
			apply_record(call, &attempt, reader, key, verdict);
			close_attempt(&attempt);
		}
		ReleaseCurrentSubTransaction();
		ok = true;
	}
	PG_CATCH();
	{
		Verdict		judged;

		judge_error(call, &judged);
		if (verdict)
			*verdict = judged;
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

/* Applies the records one by one, each in a subtransaction of its own. */
static void
apply_each(ShippedCall *call)
{
	ChangeReader reader = {.next = VARDATA_ANY(call->changes),
	.end = VARDATA_ANY(call->changes) + VARSIZE_ANY_EXHDR(call->changes)};
	MemoryContext row = AllocSetContextCreate(call->context, "residency shipped row",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext context = call->context;
	Attempt		attempt;		/* only to read with */
	int			number = 0;

	open_attempt(&attempt, call);
	while (residency_text_next(&reader))
	{
		ChangeReader copy = reader;
		RowProbe   *probe;
		char	   *key;
		Verdict		verdict;
		MemoryContext old = MemoryContextSwitchTo(row);

		CHECK_FOR_INTERRUPTS();
		check_reader(call, &reader);
		probe = probe_of(&attempt, reader.table);
		key = read_key(probe, &reader);
		call->context = row;
		if (!attempt_in_subtransaction(call, &copy, key, NULL, &verdict) &&
			verdict.outcome == SHIP_CONFLICT && reader.kind == CHANGE_STATE)
			verdict.content = row_as_json(RelationGetDescr(probe->rel), probe->values, probe->nulls);
		call->context = context;
		settle(call, RelationGetRelid(probe->rel), key, ++number, &verdict);
		skip_record(probe, &reader);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
	close_attempt(&attempt);
}

/* Applies the records, all at once if that goes well. */
static void
apply_records(ShippedCall *call)
{
	List	   *lines = NIL;
	ListCell   *lc;

	if (!attempt_in_subtransaction(call, NULL, NULL, &lines, NULL))
		apply_each(call);
	foreach(lc, lines)
	{
		BatchLine  *line = lfirst(lc);

		settle(call, line->relid, line->key, foreach_current_index(lc) + 1, &line->verdict);
	}
	residency_backlog_write(call->ours, list_make1(unconstify(char *, call->shipper)));
	if (call->applied->n > 0 && residency_conflicts_exist())
		residency_conflict_cured(residency_self()->region,
								 makeArrayResult(call->applied->relations, call->context),
								 makeArrayResult(call->applied->keys, call->context));
}

/* The strings of a text array without NULLs. */
static List *
strings_of(ArrayType *array)
{
	Datum	   *elements;
	int			n;
	List	   *strings = NIL;

	compat_deconstruct_text_array(array, &elements, &n);
	for (int i = 0; i < n; i++)
		strings = lappend(strings, TextDatumGetCString(elements[i]));
	return strings;
}

/*
 * SQL: residency.apply_shipped(tables, shipper, changes, final).  Returns a row for each
 * record that was not simply applied.
 */
Datum
residency_apply_shipped(PG_FUNCTION_ARGS)
{
	ShippedCall call = {0};
	const char *gateway = residency_session_gateway();
	char		value[16];
	int			level;

	call.shipper = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (gateway == NULL || strcmp(gateway, call.shipper) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("rows are shipped only in sessions opened by their home"),
				 errhint("Write the global table itself, at any gateway.")));
	InitMaterializedSRF(fcinfo, 0);
	call.out = (ReturnSetInfo *) fcinfo->resultinfo;
	call.tables = strings_of(PG_GETARG_ARRAYTYPE_P(0));
	call.changes = PG_GETARG_TEXT_PP(2);
	call.final = PG_GETARG_BOOL(3);
	call.context = AllocSetContextCreate(CurrentMemoryContext, "residency shipped",
										 ALLOCSET_DEFAULT_SIZES);
	call.ours = residency_backlog_begin();
	call.applied = residency_backlog_begin();
	level = residency_text_begin();
	snprintf(value, sizeof(value), "%d", SHIPPED_WAIT);
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	RESIDENCY_FAULT(part_ships);
	apply_records(&call);
	RESIDENCY_FAULT(part_shipped);
	residency_text_end(level);
	MemoryContextDelete(call.context);
	PG_RETURN_NULL();
}
