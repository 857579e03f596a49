/*
 * global_catchup_apply.c
 *		residency.apply_shipped(): takes rows that were noted for this region.
 *
 * The shipper S is the rows' home, this is region R.  What it sends is written over what
 * is here, with these exceptions:
 *
 *	- A row that somebody is writing here is left alone: writers go first.  So are all while
 *	  an earlier batch is in doubt.
 *	- Foreign keys are checked in both directions, unlike for copies that a writer sends:
 *	  that writer's gateway had a complete picture, ours may not have had one.  What breaks
 *	  a constraint waits for another row that may cure it; if none is left ("final"), it
 *	  goes to residency.conflict.
 *	- The row here may have its home in another region than S: two rows were made with the
 *	  same key K, in regions that could not reach each other.  (A writer that reaches a
 *	  region with one of them gets 40001: global_apply.c.)
 *
 * Rows made apart: the one of the region first by name holds.  What happens depends on
 * whose row is here:
 *
 *	 here is	S ships its row						S ships that it has none
 *	 --------	---------------------------------	-----------------------------------
 *	 none, S's	written								deleted
 *	 R's		S first: written, R's row goes to	R's row stays, and R notes it for
 *				residency.conflict in both, S		all others: S's may have been
 *				notes K for all others, and R's		written over it somewhere
 *				notes of K end
 *				R first: R's row stays, and R
 *				notes it for all others; S owes R
 *				nothing more
 *	 of Z		S first: written					Z's row stays
 *				Z first: waits, like what breaks
 *				a constraint
 *
 * Why all copies become equal: a region whose row is not what another one has owes that
 * one a note of K (global_backlog.c), so of two regions with rows of their own one ships
 * to the other some time, and one row is left; every step that leaves some third region
 * with the other one notes K for it.  Until two such regions meet nothing is decided: what
 * Z has may be gone by now, so R does not answer for it.  A row whose home has no row of
 * its own left is deleted, or written over, as its home ships that (global_catchup.c).
 *
 * If S is first, but its row breaks a constraint here, R keeps its own row, with what refers
 * to it, until somebody decides (global_decide.c): its residents' rows of that key must have
 * a row of the directory that names R, and nobody but a human may delete them.  All else is
 * as if S's row had been written: R's row is in residency.conflict of both, with the name of
 * the constraint; S notes K for all others, and R's notes of K end.
 *
 * All of a batch is one subtransaction.  If it fails, each row gets one of its own, and its
 * table is opened in there, so that the others are not held up: whatever an error says about
 * one row or one table, and not about this server, is that row's.
 */
#include "residency.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "compat.h"
#include "fault.h"
#include "global_backlog.h"
#include "global_target.h"
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

/* Opens tables, by name, for one attempt; bounds the waits for locks. */
static void
open_attempt(Attempt *attempt, List *tables)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	memset(attempt, 0, sizeof(Attempt));
	attempt->run.limit = -1;
	attempt->run.last = true;
	attempt->run.at_home = true;	/* constraints are checked as they are there */
	residency_target_open_all(&attempt->run, tables, RowExclusiveLock);
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
 * The row that was shipped cannot be written over the one of a third region, which is
 * first by name: its primary key is in the way.
 */
static void
judge_third(ShippedCall *call, RowProbe *probe, Verdict *verdict)
{
	verdict->outcome = call->final ? SHIP_CONFLICT : SHIP_LATER;
	verdict->kind = "unique";
	verdict->constraint = pstrdup(RelationGetRelationName(probe->index));
	verdict->content = residency_row_as_json(RelationGetDescr(probe->rel), probe->values, probe->nulls);
}

/*
 * Decides about a record before anything is written: true if it is to be applied.  The
 * row that is here now is in the probe's slot, locked; that there is none is checked
 * again when the record is applied.
 */
static bool
judge(ShippedCall *call, RowProbe *probe, ChangeReader *reader, Verdict *verdict)
{
	const char *self = residency_self()->region;
	ProbeResult found = residency_probe_row(probe, true);
	bool		first;
	char	   *home;
	char	   *holder;

	reader->check = found == PROBE_NONE ? CHECK_ABSENT : CHECK_NONE;
	if (found == PROBE_BUSY)
	{
		verdict->outcome = SHIP_BUSY;
		return false;
	}
	if (found == PROBE_NONE)
		return true;
	home = residency_probe_home(probe);
	if (strcmp(home, call->shipper) == 0)
	{
		if (reader->kind == CHANGE_DELETE)
			verdict->outcome = SHIP_DELETED;
		return true;
	}
	first = strcmp(call->shipper, home) < 0;
	if (strcmp(home, self) != 0)
	{
		if (reader->kind == CHANGE_STATE && !first)
			judge_third(call, probe, verdict);
		return reader->kind == CHANGE_STATE && first;
	}
	if (reader->kind == CHANGE_DELETE || !first)
	{
		verdict->outcome = SHIP_LOST;
		return false;
	}
	/* what stays here gives way to one row only, or two regions would take theirs for that one */
	holder = residency_conflict_holder(RelationGetRelid(probe->rel), read_key(probe, reader));
	if (holder != NULL && strcmp(holder, call->shipper) < 0)
	{
		judge_third(call, probe, verdict);
		return false;
	}
	verdict->outcome = SHIP_WON;
	verdict->kind = "key";
	verdict->content = residency_row_as_json(RelationGetDescr(probe->rel), probe->slot->tts_values,
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
			residency_backlog_own(relid, key);
			residency_backlog_add(call->applied, relid, key);
			break;
		case SHIP_WON:
		case SHIP_STANDS:
			residency_conflict_store(relid, key, verdict->kind, residency_self()->region,
									 call->shipper, verdict->constraint, verdict->content);
			residency_backlog_disown(relid, key);
			residency_conflict_disown(relid, key);
			break;
		case SHIP_CONFLICT:
			/* a table that is not here is known by its home only */
			if (!OidIsValid(relid))
				break;
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

/* One record of an attempt, whose key is in its table's probe: applies it, if it is to be. */
static void
apply_record(ShippedCall *call, Attempt *attempt, ChangeReader *reader, Verdict *verdict)
{
	ApplyTarget *target = list_nth(attempt->run.targets, reader->table - 1);
	RowProbe   *probe = probe_of(attempt, reader->table);

	memset(verdict, 0, sizeof(Verdict));
	verdict->outcome = SHIP_DONE;
	attempt->run.table = RelationGetRelationName(target->rel);
	attempt->run.index = target->index;
	if (judge(call, probe, reader, verdict))
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
	char	   *content;		/* the row as it came, if it may have to be kept */
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

	open_attempt(&attempt, call->tables);
	while (residency_text_next(&reader))
	{
		BatchLine  *line = palloc(sizeof(BatchLine));
		RowProbe   *probe;

		CHECK_FOR_INTERRUPTS();
		check_reader(call, &reader);
		probe = probe_of(&attempt, reader.table);
		line->relid = RelationGetRelid(probe->rel);
		line->key = read_key(probe, &reader);
		apply_record(call, &attempt, &reader, &line->verdict);
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
	switch (residency_error_meaning(error->sqlerrcode))
	{
		case ERROR_BUSY:
			verdict->outcome = SHIP_BUSY;
			break;
		case ERROR_REFUSED:
			verdict->outcome = call->final ? SHIP_CONFLICT : SHIP_LATER;
			verdict->kind = error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ? "unique" :
				error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION ? "reference" : "other";
			verdict->constraint = error->constraint_name;
			break;
		case ERROR_ELSEWHERE:
			PG_RE_THROW();
	}
	FlushErrorState();
}

/*
 * A record has failed for good that was to be written over a row made here: that row
 * stays.  "before" is what was decided about the record before it was written.
 */
static void
let_stand(const Verdict *before, Verdict *verdict)
{
	if (before->outcome != SHIP_WON || verdict->outcome != SHIP_CONFLICT)
		return;
	verdict->outcome = SHIP_STANDS;
	if (verdict->constraint == NULL)
		verdict->constraint = verdict->kind;
	verdict->kind = before->kind;
	verdict->content = before->content;
}

/*
 * Applies one record in the current subtransaction.  What is learnt of it before something
 * fails is in *line.
 */
static void
apply_one(ShippedCall *call, ChangeReader record, BatchLine *line)
{
	Attempt		attempt;
	RowProbe   *probe;

	open_attempt(&attempt, list_make1(list_nth(call->tables, record.table - 1)));
	record.table = 1;
	probe = probe_of(&attempt, 1);
	line->key = read_key(probe, &record);
	line->relid = RelationGetRelid(probe->rel);
	if (call->final && record.kind == CHANGE_STATE)
		line->content = residency_row_as_json(RelationGetDescr(probe->rel), probe->values, probe->nulls);
	apply_record(call, &attempt, &record, &line->verdict);
	residency_text_finish(&record);
	close_attempt(&attempt);
}

/*
 * Runs one record, or all (NULL), in a subtransaction; false if it failed.  The lines of all
 * come back in *lines, what became of one in *line.
 */
static bool
attempt_in_subtransaction(ShippedCall *call, ChangeReader *record, List **lines, BatchLine *line)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = CurrentMemoryContext;
	volatile bool ok = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(call->context);
		if (record == NULL)
			*lines = apply_all(call);
		else
			apply_one(call, *record, line);
		ReleaseCurrentSubTransaction();
		ok = true;
	}
	PG_CATCH();
	{
		Verdict		judged;

		judge_error(call, &judged);
		if (line)
		{
			let_stand(&line->verdict, &judged);
			line->verdict = judged;
			if (judged.outcome == SHIP_CONFLICT)
				line->verdict.content = line->content;
		}
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
	ChangeReader record;
	int			number = 0;

	while (residency_text_split(&reader, &record))
	{
		BatchLine	line = {0};
		MemoryContext old = MemoryContextSwitchTo(row);

		CHECK_FOR_INTERRUPTS();
		check_reader(call, &record);
		call->context = row;
		(void) attempt_in_subtransaction(call, &record, NULL, &line);
		call->context = context;
		settle(call, line.relid, line.key, ++number, &line.verdict);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
}

/* Applies the records, all at once if that goes well. */
static void
apply_records(ShippedCall *call)
{
	List	   *lines = NIL;
	ListCell   *lc;

	if (!attempt_in_subtransaction(call, NULL, &lines, NULL))
		apply_each(call);
	foreach(lc, lines)
	{
		BatchLine  *line = lfirst(lc);

		settle(call, line->relid, line->key, foreach_current_index(lc) + 1, &line->verdict);
	}
	if (call->applied->n > 0 && residency_conflicts_exist())
		residency_conflict_cured(residency_self()->region, NULL,
								 makeArrayResult(call->applied->relations, call->context),
								 makeArrayResult(call->applied->keys, call->context));
}

/* All records are for later. */
static void
leave_records(ShippedCall *call)
{
	ChangeReader reader = {.next = VARDATA_ANY(call->changes),
	.end = VARDATA_ANY(call->changes) + VARSIZE_ANY_EXHDR(call->changes)};
	ChangeReader record;
	Verdict		busy = {.outcome = SHIP_BUSY};
	int			number = 0;

	while (residency_text_split(&reader, &record))
		tell(call, ++number, &busy);
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
	call.applied = residency_backlog_begin();
	level = residency_text_begin();
	snprintf(value, sizeof(value), "%d", SHIPPED_WAIT);
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	RESIDENCY_FAULT(part_ships);
	if (residency_backlog_claim_batch(call.shipper))
		apply_records(&call);
	else
		leave_records(&call);
	RESIDENCY_FAULT(part_shipped);
	residency_text_end(level);
	MemoryContextDelete(call.context);
	PG_RETURN_NULL();
}
