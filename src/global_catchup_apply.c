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
 *				Z has shipped that it has none,
 *				but something here refers to it:
 *				written
 *
 * If a row has got another key, a move comes in front of the rows of both: S's row here gets the
 * new key, so that what refers to it follows, as it did where the writer's own move came.  A row of S
 * that has the new key is one that was no more there by then.  Between global tables, too,
 * what refers to the row follows here (global_triggers.c).  While a move cannot be made, the
 * rows of its keys wait, since one of them would take its place.
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
#include "global_shipped.h"
#include "global_target.h"
#include "guard.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_apply_shipped);

/* how long a writer that the look before has missed is waited for, in ms */
#define SHIPPED_WAIT	1

/* one attempt: all records, or a single one */
typedef struct Attempt
{
	ApplyRun	run;
	List	   *probes;			/* RowProbe, or NULL, by table */
} Attempt;

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
	attempt->run.shipped = true;
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

/*
 * What was decided about a record that is done takes effect outside of it: this runs when
 * nothing of it can fail any more.
 */
static void
settle(ShippedCall *call, int number, ShippedLine *line)
{
	Verdict    *verdict = &line->verdict;
	Oid			relid = line->relid;
	const char *key = line->key;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	/* a move is just made or not */
	switch (line->kind == CHANGE_MOVE ? SHIP_BUSY : verdict->outcome)
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

/* One record of an attempt, which has been read: applies it, if it is to be. */
static void
apply_record(ShippedCall *call, Attempt *attempt, ChangeReader *reader, ShippedLine *line)
{
	ApplyTarget *target = list_nth(attempt->run.targets, reader->table - 1);
	RowProbe   *probe = probe_of(attempt, reader->table);

	attempt->run.table = RelationGetRelationName(target->rel);
	attempt->run.index = target->index;
	if (residency_shipped_judge(call, probe, reader, line))
		residency_target_apply(&attempt->run, target, reader);
	else
		residency_shipped_skip(probe, reader);
}

/* Throws unless the record is of a table of this call. */
static void
check_reader(ShippedCall *call, ChangeReader *reader)
{
	if (reader->table < 1 || reader->table > list_length(call->tables))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("malformed change of a global table received from another region")));
}

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
		ShippedLine *line = palloc0(sizeof(ShippedLine));

		CHECK_FOR_INTERRUPTS();
		check_reader(call, &reader);
		residency_shipped_read(probe_of(&attempt, reader.table), &reader, line);
		apply_record(call, &attempt, &reader, line);
		residency_shipped_hold(call, line);
		lines = lappend(lines, line);
	}
	close_attempt(&attempt);
	MemoryContextSwitchTo(old);
	return lines;
}

/*
 * Applies one record in the current subtransaction.  What is learnt of it before something
 * fails is in *line.
 */
static void
apply_one(ShippedCall *call, ChangeReader record, ShippedLine *line)
{
	Attempt		attempt;
	RowProbe   *probe;

	open_attempt(&attempt, list_make1(list_nth(call->tables, record.table - 1)));
	record.table = 1;
	probe = probe_of(&attempt, 1);
	residency_shipped_read(probe, &record, line);
	if (call->final && record.kind == CHANGE_STATE)
		line->content = residency_row_as_json(RelationGetDescr(probe->rel), probe->values, probe->nulls);
	apply_record(call, &attempt, &record, line);
	residency_text_finish(&record);
	close_attempt(&attempt);
}

/*
 * Runs one record, or all (NULL), in a subtransaction; false if it failed.  The lines of all
 * come back in *lines, what became of one in *line.
 */
static bool
attempt_in_subtransaction(ShippedCall *call, ChangeReader *record, List **lines, ShippedLine *line)
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
		residency_shipped_failed(call, line);
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

/*
 * A record has failed for good that was to be written over a third region's row.  That one does
 * not hold: it goes if it can, or it would be in the way of whatever the holder's home does next.
 */
static void
remove_beaten(ShippedCall *call, int table, const ShippedLine *line)
{
	ShippedLine gone = {.kind = CHANGE_DELETE, .remove = true};
	StringInfoData text;
	ChangeReader record;

	initStringInfo(&text);
	residency_text_head(&text, CHANGE_DELETE, CHECK_NONE, table, 0, 0);
	appendStringInfoString(&text, line->key);
	memset(&record, 0, sizeof(record));
	record.next = text.data;
	record.end = text.data + text.len;
	(void) residency_text_next(&record);
	(void) attempt_in_subtransaction(call, &record, NULL, &gone);
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

	call->held = NIL;
	while (residency_text_split(&reader, &record))
	{
		ShippedLine line = {.kind = record.kind};
		MemoryContext old = MemoryContextSwitchTo(row);

		CHECK_FOR_INTERRUPTS();
		check_reader(call, &record);
		call->context = row;
		if (!attempt_in_subtransaction(call, &record, NULL, &line) && line.beaten &&
			line.verdict.outcome == SHIP_CONFLICT)
			remove_beaten(call, record.table, &line);
		call->context = context;
		residency_shipped_hold(call, &line);
		settle(call, ++number, &line);
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
		settle(call, foreach_current_index(lc) + 1, lfirst(lc));
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
	call.held_context = call.context;
	call.applied = residency_backlog_begin();
	level = residency_text_begin();
	snprintf(value, sizeof(value), "%d", SHIPPED_WAIT);
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	RESIDENCY_FAULT(part_ships);
	residency_rows_shipped = true;
	PG_TRY();
	{
		if (residency_backlog_claim_batch(call.shipper))
			apply_records(&call);
		else
			leave_records(&call);
	}
	PG_FINALLY();
	{
		residency_rows_shipped = false;
	}
	PG_END_TRY();
	RESIDENCY_FAULT(part_shipped);
	residency_text_end(level);
	MemoryContextDelete(call.context);
	PG_RETURN_NULL();
}
