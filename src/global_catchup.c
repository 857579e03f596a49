/*
 * global_catchup.c
 *		Ships what was noted about a region: one batch, in one distributed transaction.
 *
 *	 1. The oldest notes are locked, but for those that somebody else holds.
 *	 2. Each key's row is read and locked as it is now.  A row that somebody is writing,
 *		or whose writer is in doubt, is passed over: its note stays for the next time.
 *	 3. The rows go out in full, or as absent, and the region answers what became of each
 *		(global_catchup_apply.c).  It waits for nobody either.
 *	 4. For rows that were deleted there: they must still not be here.  A writer that
 *		thinks the region is up touches no note, so it could have made the row anew in
 *		both places since 2; but the region has locked what it deleted, so from 3 on it
 *		cannot.
 *	 5. The notes that were dealt with are deleted.  The commit is the ordinary one.
 *
 * Notes are taken in the order of their changes, so what a row refers to is mostly there
 * before it.  Where it is not, the region answers "later" and the note stays.
 */
#include "residency.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "commit_internal.h"
#include "fault.h"
#include "global_backlog.h"
#include "regions.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(residency_ship);

/* text after which a batch is closed */
#define SHIP_BYTES		(4 * 1024 * 1024)

#define SHIP_SQL \
	"SELECT number, outcome, kind, constraint_name, content FROM residency.apply_shipped(" \
	"$1::pg_catalog.text[], $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.bool)"

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
	bool		refused;		/* a constraint failed before */
	bool		overdue;		/* for longer than the patience */
	bool		unreadable;		/* the key is none of the table's, as it is now */
	bool		absent;			/* was shipped as no more */
	char		outcome;		/* ShipOutcome; SHIP_BUSY until known otherwise */
} ShipNote;

typedef struct Shipment
{
	const ShipOrder *order;
	const char *region;
	MemoryContext context;
	List	   *tables;			/* ShipTable */
	List	   *names;			/* char *, in the order of wire numbers */
	ShipNote   *notes;
	int			nnotes;
	ShipNote  **sent;			/* in the order of the records */
	int			nsent;
	StringInfoData changes;
} Shipment;

/*
 * The table of a note, opened at its first.  One that somebody has locked against readers,
 * or that has lost its primary key, keeps its notes for now, and holds up no others.
 */
static ShipTable *
open_table(Shipment *shipment, Oid relid)
{
	ShipTable  *table;
	Relation	rel;
	ListCell   *lc;
	const TableRule *rule;

	foreach(lc, shipment->tables)
		if (((ShipTable *) lfirst(lc))->relid == relid)
			return lfirst(lc);
	table = palloc0(sizeof(ShipTable));
	table->relid = relid;
	shipment->tables = lappend(shipment->tables, table);
	table->blocked = !ConditionalLockRelationOid(relid, RowShareLock);
	rel = table->blocked ? NULL : try_relation_open(relid, NoLock);
	if (rel == NULL)
		return table;
	rule = residency_table_rule(relid);
	if (rule != NULL && rule->kind == RESIDENCY_GLOBAL && rel->rd_rel->relkind == RELKIND_RELATION)
		table->blocked = !OidIsValid(compat_primary_key_index(rel));
	else
	{
		relation_close(rel, RowShareLock);
		return table;
	}
	if (table->blocked)
		relation_close(rel, NoLock);
	else
		table->probe = residency_probe_open(rel);
	return table;
}

/* Closes all tables; locks stay until the transaction ends. */
static void
close_tables(Shipment *shipment)
{
	ListCell   *lc;

	foreach(lc, shipment->tables)
	{
		RowProbe   *probe = ((ShipTable *) lfirst(lc))->probe;

		if (probe == NULL)
			continue;
		residency_probe_close(probe);
		table_close(probe->rel, NoLock);
	}
}

/* has been refused for longer than that many seconds */
#define IS_OVERDUE(seconds) \
	"refused_at OPERATOR(pg_catalog.<) " \
	"(pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => " seconds "))"

#define TAKE_SQL(condition) \
	"SELECT seq, relation, key, refused_at IS NOT NULL, coalesce(" IS_OVERDUE("$4") ", false) " \
	"FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1 " \
	"AND seq OPERATOR(pg_catalog.>) $2 " condition " ORDER BY seq LIMIT $3 FOR UPDATE SKIP LOCKED"

/*
 * Step 1: locks and reads the oldest notes behind a position, and tells at once which these
 * are.  SPI is connected.
 */
static void
take_notes(Shipment *shipment, ShipResult *result)
{
	const ShipOrder *order = shipment->order;
	Oid			types[] = {NAMEOID, INT8OID, INT4OID, FLOAT8OID};
	Datum		values[] = {DirectFunctionCall1(namein, CStringGetDatum(shipment->region)),
		Int64GetDatum(order->after), Int32GetDatum(order->limit), Float8GetDatum(order->patience / 1000.0)};
	MemoryContext old;

	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner(order->overdue ? TAKE_SQL("AND refused_at IS NOT NULL AND " IS_OVERDUE("$4")) : TAKE_SQL(""),
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
	old = MemoryContextSwitchTo(shipment->context);
	shipment->nnotes = (int) SPI_processed;
	shipment->notes = palloc0(sizeof(ShipNote) * Max(shipment->nnotes, 1));
	shipment->sent = palloc0(sizeof(ShipNote *) * Max(shipment->nnotes, 1));
	for (int i = 0; i < shipment->nnotes; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		ShipNote   *note = &shipment->notes[i];
		bool		isnull;

		note->seq = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		note->table = open_table(shipment, DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull)));
		note->key = SPI_getvalue(tuple, desc, 3);
		note->refused = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
		note->overdue = DatumGetBool(SPI_getbinval(tuple, desc, 5, &isnull));
		note->outcome = SHIP_BUSY;
		result->last = note->seq;
	}
	result->taken = shipment->nnotes;
	MemoryContextSwitchTo(old);
}

/* The key of a note goes into its table's probe. */
static void
set_key(ShipNote *note)
{
	RowProbe   *probe = note->table->probe;

	residency_noted_key_read(note->key, probe->text, probe->values, probe->nulls);
}

/* some notes of a batch */
typedef struct NoteRange
{
	ShipNote   *notes;
	int			n;
} NoteRange;

/* Reads their keys. */
static void
read_range(void *arg)
{
	NoteRange  *range = arg;

	for (int i = 0; i < range->n; i++)
		if (range->notes[i].table->probe != NULL)
			set_key(&range->notes[i]);
}

/* Finds out which keys cannot be read: one by one, if that does not go well for all at once. */
static void
check_keys(Shipment *shipment)
{
	NoteRange	all = {shipment->notes, shipment->nnotes};
	int			level = residency_text_begin();

	if (!residency_keys_try(read_range, &all))
		for (int i = 0; i < shipment->nnotes; i++)
		{
			NoteRange	one = {&shipment->notes[i], 1};

			shipment->notes[i].unreadable = !residency_keys_try(read_range, &one);
		}
	residency_text_end(level);
}

/* True if the row in the probe's slot has its home here. */
static bool
is_ours(RowProbe *probe)
{
	return strcmp(residency_probe_home(probe), residency_self()->region) == 0;
}

/* Step 2 for one note: writes its record, or says why there is none. */
static void
put_note(Shipment *shipment, ShipNote *note)
{
	ShipTable  *table = note->table;
	RowProbe   *probe = table->probe;
	ProbeResult result;

	if (probe == NULL)
	{
		note->outcome = table->blocked ? SHIP_BUSY : SHIP_DONE;
		return;
	}
	if (note->unreadable)
	{
		/* like a row that is refused: nobody can tell which one it is */
		note->outcome = shipment->order->final ? SHIP_CONFLICT : SHIP_LATER;
		if (shipment->order->final)
			residency_conflict_store(table->relid, note->key, "other", shipment->region,
									 residency_self()->region, NULL, NULL);
		return;
	}
	set_key(note);
	result = residency_probe_row(probe, true);
	if (result == PROBE_BUSY)
		return;
	if (table->wire_number == 0)
	{
		MemoryContext old = MemoryContextSwitchTo(shipment->context);

		shipment->names = lappend(shipment->names,
								  quote_qualified_identifier(get_namespace_name(RelationGetNamespace(probe->rel)),
															 RelationGetRelationName(probe->rel)));
		table->wire_number = list_length(shipment->names);
		MemoryContextSwitchTo(old);
	}
	/* another region's row is its own business, but the row that was ours is no more */
	note->absent = result == PROBE_NONE || !is_ours(probe);
	residency_text_head(&shipment->changes, note->absent ? CHANGE_DELETE : CHANGE_STATE, CHECK_NONE,
						table->wire_number, 0, 0);
	if (note->absent)
		appendStringInfoString(&shipment->changes, note->key);
	else
		residency_text_row(&shipment->changes, probe->text,
						   probe->slot->tts_values, probe->slot->tts_isnull);
	shipment->sent[shipment->nsent++] = note;
}

/* Step 2 for all notes, until the request is large enough. */
static void
put_notes(Shipment *shipment)
{
	MemoryContext row = AllocSetContextCreate(shipment->context, "residency ship row",
											  ALLOCSET_DEFAULT_SIZES);
	int			level = residency_text_begin();

	for (int i = 0; i < shipment->nnotes; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(row);

		CHECK_FOR_INTERRUPTS();
		put_note(shipment, &shipment->notes[i]);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
		if (shipment->changes.len >= SHIP_BYTES)
			shipment->nnotes = i + 1;
	}
	residency_text_end(level);
}

/* A value of the region's answer, NULL for an SQL NULL. */
static char *
answer_value(PGresult *res, int row, int column)
{
	return PQgetisnull(res, row, column) ? NULL : PQgetvalue(res, row, column);
}

/* All other regions but one, by name. */
static List *
others_than(const char *region)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, residency_other_servers())
	{
		char	   *name = residency_server_region(lfirst_oid(lc));

		if (strcmp(name, region) != 0)
			names = lappend(names, pstrdup(name));
	}
	return names;
}

/*
 * Keeps what the region could not take as a conflict.  If it could not even read the row,
 * for want of the table, the row is told as it is here, where it is locked.
 */
static void
store_conflict(Shipment *shipment, ShipNote *note, PGresult *res, int row)
{
	char	   *content = answer_value(res, row, 4);
	RowProbe   *probe = note->table->probe;

	if (content == NULL && note->outcome == SHIP_CONFLICT && !note->absent)
	{
		set_key(note);
		if (residency_probe_row(probe, false) == PROBE_ROW)
			content = residency_row_as_json(RelationGetDescr(probe->rel), probe->slot->tts_values,
											probe->slot->tts_isnull);
	}
	residency_conflict_store(note->table->relid, note->key, answer_value(res, row, 2),
							 shipment->region, residency_self()->region,
							 answer_value(res, row, 3), content);
}

/* Step 3: sends the records, and takes what became of them. */
static void
send_records(Shipment *shipment)
{
	RemoteRegion *region = residency_remote_region(residency_region_server(shipment->region));
	BacklogNotes *won = residency_backlog_begin();
	BacklogNotes *beaten = residency_backlog_begin();
	const char *values[4];
	RemoteRequest *request;
	PGresult   *res;

	values[0] = residency_text_array(shipment->names);
	values[1] = residency_self()->region;
	values[2] = shipment->changes.data;
	values[3] = shipment->order->final ? "t" : "f";
	request = residency_remote_send(region, GetUserId(), SHIP_SQL, 4, values,
									REMOTE_WRITES | REMOTE_SHIPS | REMOTE_NAMED | REMOTE_AS_GATEWAY, -1);
	res = residency_remote_wait(request);
	for (int i = 0; i < shipment->nsent; i++)
		shipment->sent[i]->outcome = SHIP_DONE;
	for (int row = 0; row < PQntuples(res); row++)
	{
		int			number = atoi(PQgetvalue(res, row, 0));
		char		outcome = *PQgetvalue(res, row, 1);
		ShipNote   *note;

		if (number < 1 || number > shipment->nsent)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("region \"%s\" answered about a row that was not shipped", shipment->region)));
		note = shipment->sent[number - 1];
		note->outcome = outcome;
		if (outcome == SHIP_CONFLICT || outcome == SHIP_WON || outcome == SHIP_STANDS)
			store_conflict(shipment, note, res, row);
		if (outcome != SHIP_WON && outcome != SHIP_STANDS)
			continue;
		/* whoever got the other row of that key must get this one */
		residency_backlog_add(won, note->table->relid, note->key);
		residency_backlog_add(beaten, note->table->relid, note->key);
	}
	residency_remote_release(request);
	residency_backlog_write(won, others_than(shipment->region));
	/* that the other row could not be taken here is forgotten there at this moment */
	if (beaten->n > 0)
		residency_conflict_cured(residency_self()->region, shipment->region,
								 makeArrayResult(beaten->relations, CurrentMemoryContext),
								 makeArrayResult(beaten->keys, CurrentMemoryContext));
}

/* Step 4, see the head of this file. */
static void
look_again(Shipment *shipment)
{
	for (int i = 0; i < shipment->nsent; i++)
	{
		ShipNote   *note = shipment->sent[i];
		ProbeResult result;

		if (note->outcome != SHIP_DELETED)
			continue;
		set_key(note);
		result = residency_probe_row(note->table->probe, false);
		if (result == PROBE_BUSY || (result == PROBE_ROW && is_ours(note->table->probe)))
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("a row of global table \"%s\" came into being while its absence was shipped to region \"%s\"",
							RelationGetRelationName(note->table->probe->rel), shipment->region),
					 errhint("It is tried again.")));
	}
}

/* Deletes notes about the region, by position. */
static void
delete_notes(Shipment *shipment, Datum *positions, int n)
{
	Oid			types[] = {NAMEOID, INT8ARRAYOID};
	Datum		values[2];

	if (n == 0)
		return;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(shipment->region));
	values[1] = PointerGetDatum(construct_array(positions, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("DELETE FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1 "
						   "AND seq OPERATOR(pg_catalog.=) ANY ($2)",
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
}

/*
 * Marks notes that were refused for the first time.  One whose row is a conflict already has
 * been refused since that came up: a row that is written all the time would get new patience
 * each time, and keep the region from being up.  Returns how many are overdue by that.
 */
static int
mark_refused(Shipment *shipment, Datum *positions, int n)
{
	Oid			types[] = {NAMEOID, INT8ARRAYOID, FLOAT8OID};
	Datum		values[3];
	bool		isnull;
	int64		overdue;

	if (n == 0)
		return 0;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(shipment->region));
	values[1] = PointerGetDatum(construct_array(positions, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] = Float8GetDatum(shipment->order->patience / 1000.0);
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("WITH marked AS (UPDATE residency.backlog AS b SET refused_at = LEAST(pg_catalog.now(), "
						   "(SELECT pg_catalog.min(c.noticed_at) FROM residency.conflict AS c "
						   "WHERE c.relation OPERATOR(pg_catalog.=) b.relation AND c.key OPERATOR(pg_catalog.=) b.key "
						   "AND c.region OPERATOR(pg_catalog.=) b.region AND c.kind OPERATOR(pg_catalog.<>) 'key')) "
						   "WHERE b.region OPERATOR(pg_catalog.=) $1 AND b.seq OPERATOR(pg_catalog.=) ANY ($2) "
						   "RETURNING b.refused_at) "
						   "SELECT pg_catalog.count(*) FROM marked WHERE " IS_OVERDUE("$3"),
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
	overdue = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	return (int) overdue;
}

/*
 * Step 5: deletes the notes that were dealt with, and marks those that were refused, since
 * when; SPI is connected.
 */
static ShipResult
finish(Shipment *shipment)
{
	ShipResult	result = {0};
	Datum	   *done = palloc(sizeof(Datum) * Max(shipment->nnotes, 1));
	Datum	   *refused = palloc(sizeof(Datum) * Max(shipment->nnotes, 1));
	int			nrefused = 0;
	BacklogNotes *cured = residency_backlog_begin();

	for (int i = 0; i < shipment->nnotes; i++)
	{
		ShipNote   *note = &shipment->notes[i];

		result.taken++;
		result.last = note->seq;
		if (note->outcome == SHIP_LATER)
			result.later++;
		if (note->outcome == SHIP_LATER && note->overdue)
			result.overdue++;
		if (note->outcome == SHIP_LATER && !note->refused)
			refused[nrefused++] = Int64GetDatum(note->seq);
		if (note->outcome == SHIP_LATER || note->outcome == SHIP_BUSY)
			continue;
		done[result.done++] = Int64GetDatum(note->seq);
		if (note->outcome == SHIP_CONFLICT)
			result.conflicts++;
		else
			residency_backlog_add(cured, note->table->relid, note->key);
	}
	delete_notes(shipment, done, result.done);
	result.overdue += mark_refused(shipment, refused, nrefused);
	if (cured->n > 0 && residency_conflicts_exist())
		residency_conflict_cured(shipment->region, NULL, makeArrayResult(cured->relations, CurrentMemoryContext),
								 makeArrayResult(cured->keys, CurrentMemoryContext));
	return result;
}

/*
 * Ships one batch of the notes about a region, the oldest behind position "after", in the
 * current transaction, which the caller commits.  With "final" nothing else is on its way
 * that could make a constraint hold: what fails goes to residency.conflicts.  Throws what
 * connecting, sending and the region's errors throw; then "taken" and "last" of the result,
 * which is all zeros at first, tell what was taken up.
 */
void
residency_ship_batch(const ShipOrder *order, ShipResult *result)
{
	Shipment	shipment = {.order = order, .region = order->region, .context = CurrentMemoryContext};
	bool		full;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	initStringInfo(&shipment.changes);
	take_notes(&shipment, result);
	full = shipment.nnotes >= order->limit;
	check_keys(&shipment);
	put_notes(&shipment);
	full = full || shipment.changes.len >= SHIP_BYTES;
	if (shipment.nsent > 0)
	{
		RESIDENCY_FAULT(ship_begins);
		send_records(&shipment);
		RESIDENCY_FAULT(ship_answered);
		look_again(&shipment);
	}
	*result = finish(&shipment);
	result->full = full;
	close_tables(&shipment);
	SPI_finish();
}

/*
 * True if the region has no batch of this one's prepared: each that was committed here is
 * applied there, whichever process shipped it.  What clients have prepared there is no
 * batch, and under steady traffic there would always be some.  One round trip, on the
 * connection that the batches took, hence behind them.
 */
bool
residency_ship_settled(const char *region)
{
	RemoteRequest *request;
	PGresult   *res;
	char		ours[64];
	const char *values[1] = {ours};
	bool		settled;

	snprintf(ours, sizeof(ours), "^" RESIDENCY_GID_PREFIX "%016llx:[0-9]+:%c[0-9]{2}:",
			 (unsigned long long) residency_self()->incarnation, '0' + RESIDENCY_GID_BATCH / 100);
	request = residency_remote_send(residency_remote_region(residency_region_server(region)), GetUserId(),
									"SELECT FROM residency.prepared_here() AS p(gid) "
									"WHERE gid OPERATOR(pg_catalog.~) $1::pg_catalog.text",
									1, values, REMOTE_NAMED | REMOTE_AS_GATEWAY, -1);
	res = residency_remote_wait(request);
	settled = PQntuples(res) == 0;
	residency_remote_release(request);
	return settled;
}

/* SQL: residency.ship(region): one batch by hand; the number of notes dealt with */
Datum
residency_ship(PG_FUNCTION_ARGS)
{
	char	   *region = text_to_cstring(PG_GETARG_TEXT_PP(0));
	ShipOrder	order = {.limit = SHIP_NOTES};
	ShipResult	result = {0};

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to ship rows to a region")));
	if (!OidIsValid(residency_region_server(region)))
		PG_RETURN_INT32(0);
	order.region = region;
	order.final = PG_GETARG_BOOL(1);
	residency_ship_batch(&order, &result);
	PG_RETURN_INT32(result.done);
}
