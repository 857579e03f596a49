/*
 * global_catchup.c
 *		Ships what was noted about a region: one batch, in one distributed transaction.
 *
 *	 1. The oldest notes are locked, but for those that somebody else holds; then the moves that
 *		they depend on (global_catchup_notes.c).
 *	 2. Each key's row is read and locked as it is now.  A row that somebody is writing,
 *		or whose writer is in doubt, is passed over: its note stays for the next time.
 *	 3. The moves go out, then the rows in full, or as absent, and the region answers what became of each
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
#include "global_catchup.h"
#include "regions.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(residency_ship);

/* text after which a batch is closed */
#define SHIP_BYTES		(4 * 1024 * 1024)

#define SHIP_SQL \
	"SELECT number, outcome, kind, constraint_name, content FROM residency.apply_shipped(" \
	"$1::pg_catalog.text[], $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.bool)"

/* True if the row in the probe's slot has its home here. */
static bool
is_ours(RowProbe *probe)
{
	return strcmp(residency_probe_home(probe), residency_self()->region) == 0;
}

/* Position of a table in this request. */
static int
wire_number(Shipment *shipment, ShipTable *table)
{
	Relation	rel = table->probe->rel;
	MemoryContext old;

	if (table->wire_number > 0)
		return table->wire_number;
	old = MemoryContextSwitchTo(shipment->context);
	shipment->names = lappend(shipment->names,
							  quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
														 RelationGetRelationName(rel)));
	table->wire_number = list_length(shipment->names);
	MemoryContextSwitchTo(old);
	return table->wire_number;
}

/* Step 2 for a move: it is told as it was, whatever the rows are now. */
static void
put_move(Shipment *shipment, ShipNote *move)
{
	ShipTable  *table = move->table;

	if (table->probe == NULL)
		move->outcome = table->blocked ? SHIP_BUSY : SHIP_DONE;
	else if (move->unreadable)
		move->outcome = SHIP_LATER;
	else
	{
		residency_text_head(&shipment->changes, CHANGE_MOVE, CHECK_NONE, wire_number(shipment, table), 0, 0);
		appendStringInfoString(&shipment->changes, move->was);
		appendStringInfoString(&shipment->changes, move->key);
		shipment->sent[shipment->nsent++] = move;
	}
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
	residency_shipment_set_key(note);
	result = residency_probe_row(probe, true);
	if (result == PROBE_BUSY)
		return;
	/* another region's row is its own business, but the row that was ours is no more */
	note->absent = result == PROBE_NONE || !is_ours(probe);
	residency_text_head(&shipment->changes, note->absent ? CHANGE_DELETE : CHANGE_STATE, CHECK_NONE,
						wire_number(shipment, table), 0, 0);
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
		if (i < shipment->nmoves)
			put_move(shipment, &shipment->notes[i]);
		else
			put_note(shipment, &shipment->notes[i]);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
		if (i >= shipment->nmoves && shipment->changes.len >= SHIP_BYTES)
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
		residency_shipment_set_key(note);
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
		residency_shipment_set_key(note);
		result = residency_probe_row(note->table->probe, false);
		if (result == PROBE_BUSY || (result == PROBE_ROW && is_ours(note->table->probe)))
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("a row of global table \"%s\" came into being while its absence was shipped to region \"%s\"",
							RelationGetRelationName(note->table->probe->rel), shipment->region),
					 errhint("It is tried again.")));
	}
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
	residency_shipment_take(&shipment, result);
	full = result->taken >= order->limit;
	put_notes(&shipment);
	full = full || shipment.changes.len >= SHIP_BYTES;
	if (shipment.nsent > 0)
	{
		RESIDENCY_FAULT(ship_begins);
		send_records(&shipment);
		RESIDENCY_FAULT(ship_answered);
		look_again(&shipment);
	}
	*result = residency_shipment_finish(&shipment);
	result->full = full;
	residency_shipment_close(&shipment);
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
