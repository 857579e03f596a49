/*
 * global_apply.c
 *		residency.apply(): takes the changes of global tables that a gateway sends.
 *
 * Runs in a session that a gateway opened, as that gateway's role, inside the
 * distributed transaction.  Rows are locked in the order in which they come.  At a
 * row's home its order is decided: another writer is waited for no longer than
 * residency.home_wait, and only the version that the gateway saw is replaced.
 * Copies wait up to residency.lock_timeout, and take what comes, but for a row that
 * another region is the home of: two regions have made a row with the same key, or
 * this copy is behind, and the writer gets 40001.  So of two simultaneous writers of
 * a row the first at its home wins, and the other one knows after one round trip.
 */
#include "residency.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "global_backlog.h"
#include "global_target.h"
#include "guard.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_apply);
PG_FUNCTION_INFO_V1(residency_apply_truncate);

/* true while rows are applied: a trigger that fires then must not apply others */
static bool applying = false;

/* The strings (char *) of a text array without NULLs. */
static List *
array_strings(ArrayType *array)
{
	Datum	   *values;
	int			n;
	List	   *strings = NIL;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, &n);
	for (int i = 0; i < n; i++)
		strings = lappend(strings, TextDatumGetCString(values[i]));
	return strings;
}

/* Throws unless another region may apply changes in this session now. */
static void
check_session(void)
{
	if (residency_session_gateway() == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("changes of global tables are applied only in sessions opened by another region"),
				 errhint("Write the global table itself, at any gateway.")));
	if (applying)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("a trigger cannot apply changes of global tables"),
				 errhint("Let a trigger of a global table write other global tables at the gateway.")));
	if (residency_self() == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is not a region yet"),
				 errhint("Call residency.init() in it.")));
}

/* Bounds the waits for locks that follow, to that many milliseconds. */
static void
set_limit(ApplyRun *run, int limit)
{
	char		value[16];

	if (run->limit == limit)
		return;
	/* 0 would mean to wait for ever */
	snprintf(value, sizeof(value), "%d", Max(limit, 1));
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	run->limit = limit;
}

/* True if the current error is that of a lock not obtained in time. */
static bool
is_lock_timeout(ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE &&
		error->message_id != NULL &&
		strcmp(error->message_id, "canceling statement due to lock timeout") == 0;
}

/*
 * True if the error is that rows of a global table refer to one that was to go.  The
 * gateway's copies had no such row, so somebody has made it meanwhile.
 */
static bool
is_new_reference(ErrorData *error)
{
	const TableRule *rule;
	Oid			schema;

	if (error->sqlerrcode != ERRCODE_FOREIGN_KEY_VIOLATION || error->schema_name == NULL ||
		error->table_name == NULL || error->message_id == NULL ||
		strncmp(error->message_id, "update or delete on table", 25) != 0)
		return false;
	schema = get_namespace_oid(error->schema_name, true);
	rule = OidIsValid(schema) ? residency_table_rule(get_relname_relid(error->table_name, schema)) : NULL;
	return rule != NULL && rule->kind == RESIDENCY_GLOBAL;
}

/*
 * Throws the current error again, as what it means to the gateway: a lost race is
 * 40001, a wait that was too long 40P01 at a copy, and a violated key is reported
 * without the values that it has.
 */
static void
rethrow(ApplyRun *run, MemoryContext context)
{
	ErrorData  *error;
	const char *region = residency_self()->region;
	bool		primary;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (is_lock_timeout(error))
	{
		FlushErrorState();
		if (run->at_home)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access to global table \"%s\" in region \"%s\"",
							run->table, region),
					 errdetail("Another transaction is changing the row there, where its home is."),
					 errhint("Try the transaction again.")));
		ereport(ERROR,
				(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
				 errmsg("could not lock a row of global table \"%s\" in region \"%s\" in time",
						run->table ? run->table : "?", region),
				 errdetail("Another transaction has kept it locked for %d ms.", run->limit),
				 errhint("Try the transaction again, or raise residency.lock_timeout in that region.")));
	}
	if (run->behind && (error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
						error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION))
	{
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("global table \"%s\" in region \"%s\" is not complete yet",
						run->table ? run->table : "?", region),
				 errdetail("The region is catching up with what it missed, and a constraint may fail only because of that."),
				 errhint("Try the transaction again.")));
	}
	if (is_new_reference(error))
	{
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to global table \"%s\" in region \"%s\"",
						error->table_name, region),
				 errdetail("A row that another transaction has made there refers to one that is deleted or gets another key."),
				 errhint("Try the transaction again; if that does not help, look for the row in residency.conflicts.")));
	}
	if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION || error->constraint_name == NULL)
		PG_RE_THROW();

	primary = OidIsValid(run->index) && get_rel_name(run->index) != NULL &&
		strcmp(error->constraint_name, get_rel_name(run->index)) == 0;
	FlushErrorState();
	if (primary)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to global table \"%s\" in region \"%s\"",
						run->table, region),
				 errdetail("Another transaction has inserted a row with the same key there."),
				 errhint("Try the transaction again.")));
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("duplicate key value violates unique constraint \"%s\" of global table \"%s\" in region \"%s\"",
					error->constraint_name, run->table, region),
			 err_generic_string(PG_DIAG_SCHEMA_NAME, error->schema_name ? error->schema_name : ""),
			 err_generic_string(PG_DIAG_TABLE_NAME, run->table),
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->constraint_name)));
}

/*
 * If the gateway leaves regions out: takes the locks that keep them from being up too
 * early, and begins to note the rows that have their home here.
 */
static void
lock_left_out(ApplyRun *run)
{
	const char *self = residency_self()->region;
	ListCell   *lc;

	if (run->left_out == NIL)
		return;
	foreach(lc, run->left_out)
		if (strcmp(lfirst(lc), self) != 0)
			residency_backlog_lock_shared(lfirst(lc));
	run->behind = residency_region_listed(run->left_out, self);
	run->notes = residency_backlog_begin();
}

/* Applies all records of a call. */
static void
apply_changes(ApplyRun *run, List *tables, List *homes, text *changes)
{
	ChangeReader reader = {0};
	const char *self = residency_self()->region;

	reader.next = VARDATA_ANY(changes);
	reader.end = reader.next + VARSIZE_ANY_EXHDR(changes);

	set_limit(run, residency_lock_timeout);
	lock_left_out(run);
	run->moved = residency_backlog_begin();
	run->conflicts = residency_conflicts_exist();
	if (run->notes || run->conflicts)
		(void) residency_text_begin();	/* ends with the call's own nest level */
	residency_target_open_all(run, tables, RowExclusiveLock);
	while (residency_text_next(&reader))
	{
		ApplyTarget *target;

		CHECK_FOR_INTERRUPTS();
		if (reader.table < 1 || reader.table > list_length(run->targets) ||
			reader.home > list_length(homes))
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("change of an unknown global table received from another region")));
		target = list_nth(run->targets, reader.table - 1);
		run->home = reader.home > 0 ? list_nth(homes, reader.home - 1) : NULL;
		run->at_home = run->home != NULL && strcmp(run->home, self) == 0;
		run->table = RelationGetRelationName(target->rel);
		run->index = target->index;
		set_limit(run, run->at_home ? residency_home_wait : residency_lock_timeout);
		residency_target_apply(run, target, &reader);
	}
	run->at_home = false;
	set_limit(run, residency_lock_timeout);
	residency_target_close_all(run);
	if (run->last)
		residency_recheck_all();
	if (run->notes)
		residency_backlog_write(run->notes, run->left_out);
	residency_backlog_write_moves(run->moved, run->left_out);
}

/* Empties the tables of a call. */
static void
apply_truncate(ApplyRun *run, List *tables)
{
	ListCell   *lc;

	set_limit(run, residency_lock_timeout);
	residency_target_open_all(run, tables, ExclusiveLock);
	foreach(lc, run->targets)
	{
		ApplyTarget *target = lfirst(lc);

		run->table = RelationGetRelationName(target->rel);
		residency_target_clear(run, target);
	}
	residency_target_close_all(run);
}

/*
 * residency.apply(tables, regions, changes, last, left_out, deferred): applies the records in
 * "changes", whose grammar is in global_internal.h.  With "last" false other records of
 * the same statement follow in another call.  "left_out" names the regions that do not
 * get them; this one is among them if the gateway takes it for catching up, but needs it
 * as the home of some row.  "deferred" says that the client has deferred constraints.
 */
Datum
residency_apply(PG_FUNCTION_ARGS)
{
	ApplyRun	run = {.limit = -1, .last = PG_GETARG_BOOL(3)};
	List	   *tables;
	List	   *homes;
	text	   *changes;
	MemoryContext context = CurrentMemoryContext;
	int			level;

	check_session();
	tables = array_strings(PG_GETARG_ARRAYTYPE_P(0));
	homes = array_strings(PG_GETARG_ARRAYTYPE_P(1));
	changes = PG_GETARG_TEXT_PP(2);
	run.left_out = array_strings(PG_GETARG_ARRAYTYPE_P(4));
	run.deferred = PG_GETARG_BOOL(5);
	level = NewGUCNestLevel();
	applying = true;
	PG_TRY();
	{
		apply_changes(&run, tables, homes, changes);
	}
	PG_CATCH();
	{
		applying = false;
		rethrow(&run, context);
	}
	PG_END_TRY();
	applying = false;
	AtEOXact_GUC(true, level);
	PG_RETURN_VOID();
}

/*
 * residency.apply_truncate(tables): TRUNCATE at a gateway.  Rows are deleted, as a
 * prepared TRUNCATE would keep readers out for as long as its outcome is in doubt.
 */
Datum
residency_apply_truncate(PG_FUNCTION_ARGS)
{
	ApplyRun	run = {.limit = -1, .last = true};
	List	   *tables;
	MemoryContext context = CurrentMemoryContext;
	int			level;

	check_session();
	tables = array_strings(PG_GETARG_ARRAYTYPE_P(0));
	level = NewGUCNestLevel();
	applying = true;
	PG_TRY();
	{
		apply_truncate(&run, tables);
	}
	PG_CATCH();
	{
		applying = false;
		rethrow(&run, context);
	}
	PG_END_TRY();
	applying = false;
	AtEOXact_GUC(true, level);
	PG_RETURN_VOID();
}
