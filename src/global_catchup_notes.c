/*
 * global_catchup_notes.c
 *		The notes of one batch of catch-up: taking them, and what becomes of them.
 *
 * Steps 1 and 5 of global_catchup.c.  A note says that the row of a key is to be shipped as it
 * is.  That a row got that key from another one, or gave it to one, is a move of its own
 * (residency.backlog_move), since the region cannot tell it from a deletion and a new row: it
 * would act on the deletion with what refers to its row (ON DELETE CASCADE).
 *
 * Moves are kept as they happened, each of them, and go out in that order.  So whatever a key
 * had been when some row got it, by way of several rows or in a circle, the region
 * comes to the same.  If it cannot do one of them, the rows of its keys wait (global_catchup_judge.c).
 * When one of these is shipped all the same, because nothing is left that could cure it, it is too late
 * for the move.
 */
#include "residency.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "commit_internal.h"
#include "compat.h"
#include "global_backlog.h"
#include "global_catchup.h"
#include "regions.h"

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
void
residency_shipment_close(Shipment *shipment)
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
 * The moves that the notes of a batch depend on: all of the keys that were theirs, and of those
 * that were these rows' keys, and so on, with the first one first.
 */
#define MOVES_SQL \
	"WITH RECURSIVE k (relation, key) AS (SELECT * FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS a (t, k) " \
	"UNION SELECT l.relation, l.key FROM k CROSS JOIN LATERAL (" \
	"SELECT v.relation, v.was AS key FROM residency.backlog_move AS v WHERE v.region OPERATOR(pg_catalog.=) $1 " \
	"AND v.relation OPERATOR(pg_catalog.=) k.relation AND v.key OPERATOR(pg_catalog.=) k.key UNION ALL " \
	"SELECT v.relation, v.key FROM residency.backlog_move AS v WHERE v.region OPERATOR(pg_catalog.=) $1 " \
	"AND v.relation OPERATOR(pg_catalog.=) k.relation AND v.was OPERATOR(pg_catalog.=) k.key) AS l) " \
	"SELECT v.seq, v.relation, v.was, v.key FROM residency.backlog_move AS v JOIN k ON v.relation OPERATOR(pg_catalog.=) k.relation " \
	"AND v.was OPERATOR(pg_catalog.=) k.key WHERE v.region OPERATOR(pg_catalog.=) $1 ORDER BY v.seq FOR UPDATE OF v"

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

/* True if any move is noted about the region. */
static bool
moves_exist(Shipment *shipment)
{
	Oid			types[] = {NAMEOID};
	Datum		values[] = {DirectFunctionCall1(namein, CStringGetDatum(shipment->region))};

	residency_spi_as_owner("SELECT FROM residency.backlog_move WHERE region OPERATOR(pg_catalog.=) $1 LIMIT 1",
						   lengthof(types), types, values, false);
	return SPI_processed > 0;
}

/*
 * Step 1, when the notes are locked: reads and locks the moves that they depend on, and puts them
 * in front.  A later snapshot sees those of all who have written these notes.
 */
static void
take_moves(Shipment *shipment)
{
	BacklogNotes *keys = residency_backlog_begin();
	ShipNote   *notes = shipment->notes;
	Oid			types[] = {NAMEOID, OIDARRAYOID, TEXTARRAYOID};
	Datum		values[lengthof(types)];
	MemoryContext old;

	PushActiveSnapshot(GetLatestSnapshot());
	if (shipment->nnotes > 0 && moves_exist(shipment))
	{
		for (int i = 0; i < shipment->nnotes; i++)
			residency_backlog_add(keys, notes[i].table->relid, notes[i].key);
		values[0] = DirectFunctionCall1(namein, CStringGetDatum(shipment->region));
		values[1] = makeArrayResult(keys->relations, CurrentMemoryContext);
		values[2] = makeArrayResult(keys->keys, CurrentMemoryContext);
		residency_spi_as_owner(MOVES_SQL, lengthof(types), types, values, false);
		shipment->nmoves = (int) SPI_processed;
	}
	PopActiveSnapshot();
	old = MemoryContextSwitchTo(shipment->context);
	shipment->notes = palloc0(sizeof(ShipNote) * Max(shipment->nmoves + shipment->nnotes, 1));
	for (int i = 0; i < shipment->nmoves; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		ShipNote   *move = &shipment->notes[i];
		bool		isnull;

		move->seq = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		move->table = open_table(shipment, DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull)));
		move->was = SPI_getvalue(tuple, desc, 3);
		move->key = SPI_getvalue(tuple, desc, 4);
		move->outcome = SHIP_BUSY;
	}
	memcpy(shipment->notes + shipment->nmoves, notes, sizeof(ShipNote) * shipment->nnotes);
	shipment->nnotes += shipment->nmoves;
	shipment->sent = palloc0(sizeof(ShipNote *) * Max(shipment->nnotes, 1));
	MemoryContextSwitchTo(old);
}

/* The key of a note goes into its table's probe. */
void
residency_shipment_set_key(ShipNote *note)
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

/* Reads one's key; of a move both. */
static void
read_note(ShipNote *note)
{
	RowProbe   *probe = note->table->probe;

	residency_shipment_set_key(note);
	if (note->was)
		residency_noted_key_read(note->was, probe->text, probe->values, probe->nulls);
}

/* Reads their keys. */
static void
read_range(void *arg)
{
	NoteRange  *range = arg;

	for (int i = 0; i < range->n; i++)
		if (range->notes[i].table->probe != NULL)
			read_note(&range->notes[i]);
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

/*
 * Step 1: takes the oldest notes behind the order's position, with the moves that they depend on,
 * and tells at once which these are.  SPI is connected.
 */
void
residency_shipment_take(Shipment *shipment, ShipResult *result)
{
	take_notes(shipment, result);
	take_moves(shipment);
	check_keys(shipment);
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

/* True if the row of one of a move's keys has been dealt with: then it is too late for it. */
static bool
is_too_late(Shipment *shipment, const ShipNote *move)
{
	for (int i = shipment->nmoves; i < shipment->nnotes; i++)
	{
		const ShipNote *note = &shipment->notes[i];

		if (note->outcome != SHIP_LATER && note->outcome != SHIP_BUSY && note->table == move->table &&
			(strcmp(note->key, move->key) == 0 || strcmp(note->key, move->was) == 0))
			return true;
	}
	return false;
}

/* Deletes the moves that were made, or will not be any more. */
static void
delete_moves(Shipment *shipment)
{
	Oid			types[] = {NAMEOID, INT8ARRAYOID};
	Datum		values[lengthof(types)];
	Datum	   *over = palloc(sizeof(Datum) * Max(shipment->nmoves, 1));
	int			n = 0;

	for (int i = 0; i < shipment->nmoves; i++)
		if (shipment->notes[i].outcome == SHIP_DONE || is_too_late(shipment, &shipment->notes[i]))
			over[n++] = Int64GetDatum(shipment->notes[i].seq);
	if (n == 0)
		return;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(shipment->region));
	values[1] = PointerGetDatum(construct_array(over, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("DELETE FROM residency.backlog_move WHERE region OPERATOR(pg_catalog.=) $1 "
						   "AND seq OPERATOR(pg_catalog.=) ANY ($2)",
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
}

/*
 * Step 5: deletes the notes that were dealt with, and marks those that were refused, since
 * when; SPI is connected.
 */
ShipResult
residency_shipment_finish(Shipment *shipment)
{
	ShipResult	result = {0};
	Datum	   *done = palloc(sizeof(Datum) * Max(shipment->nnotes, 1));
	Datum	   *refused = palloc(sizeof(Datum) * Max(shipment->nnotes, 1));
	int			nrefused = 0;
	BacklogNotes *cured = residency_backlog_begin();

	for (int i = shipment->nmoves; i < shipment->nnotes; i++)
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
	delete_moves(shipment);
	result.overdue += mark_refused(shipment, refused, nrefused);
	if (cured->n > 0 && residency_conflicts_exist())
		residency_conflict_cured(shipment->region, NULL, makeArrayResult(cured->relations, CurrentMemoryContext),
								 makeArrayResult(cured->keys, CurrentMemoryContext));
	return result;
}
