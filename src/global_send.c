/*
 * global_send.c
 *		Sends what a transaction noted of global tables to all other regions.
 *
 * State is sent, not operations: each noted row is read once, as it is now, and
 * goes out in full or as absent.  All regions get the same text, in the order of
 * the notes; nobody waits for the answers here.
 *
 * This runs before the next request to a region, when the outermost statement
 * ends, and in the middle of one: if it writes very many rows, and when a statement
 * in a function has made values of a unique key free.
 */
#include "residency.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "global_records.h"
#include "regions.h"
#include "remote.h"

/* bytes of records in one request; a single larger row travels alone */
#define CHUNK_BYTES		(4 * 1024 * 1024)

#define APPLY_SQL \
	"SELECT residency.apply($1::pg_catalog.text[], $2::pg_catalog.text[], " \
	"$3::pg_catalog.text, $4::pg_catalog.bool, $5::pg_catalog.text[], $6::pg_catalog.bool)"
#define TRUNCATE_SQL \
	"SELECT residency.apply_truncate($1::pg_catalog.text[])"

/* an unfinished batch: the regions hold back checks until its last piece */
static bool batch_open = false;

/* the client has deferred constraints, with SET CONSTRAINTS, in this transaction */
static bool constraints_deferred = false;

/*
 * Queues one request with the same parameters on all regions but those left out.  Its
 * traffic is put down to the table given, if any.
 */
static void
send_everywhere(Oid relid, uint64 rows, const char *sql, int nparams, const char *const *values,
				List *left_out)
{
	RemoteSubject about = {relid, rows, NULL};
	List	   *servers = list_copy(residency_other_servers());
	ListCell   *lc;

	foreach(lc, servers)
		if (left_out == NIL ||
			!residency_region_listed(left_out, residency_server_region(lfirst_oid(lc))))
			(void) residency_remote_send_about(&about, residency_remote_region(lfirst_oid(lc)),
											   GetUserId(), sql, nparams, values,
											   REMOTE_WRITES | REMOTE_DEFERRED |
											   REMOTE_NAMED | REMOTE_AS_GATEWAY, 1);
	list_free(servers);
}

/*
 * Sends the records written so far, and starts anew.  For the counters the request is about
 * the table with the most rows in it.
 */
static void
send_chunk(Sender *sender, bool last)
{
	const char *values[6];
	NoteReader *most = NULL;
	uint64		rows = 0;
	ListCell   *lc;
	List	   *excluded = residency_not_sent_to(sender->left_out, sender->homes, sender->table, last);

	foreach(lc, sender->readers)
	{
		NoteReader *reader = (NoteReader *) lfirst(lc);

		if (most == NULL || reader->rows > most->rows)
			most = reader;
		rows += reader->rows;
	}

	values[0] = residency_text_array(sender->tables);
	values[1] = residency_text_array(sender->homes);
	values[2] = sender->changes.data;
	values[3] = last ? "t" : "f";
	values[4] = residency_text_array(sender->left_out);
	values[5] = constraints_deferred ? "t" : "f";
	send_everywhere(most != NULL ? most->table->relid : InvalidOid, rows, APPLY_SQL, 6, values, excluded);
	batch_open = !last;

	if (sender->notes)
	{
		residency_backlog_write(sender->notes, sender->left_out);
		sender->notes = residency_backlog_begin();
	}
	resetStringInfo(&sender->changes);
	sender->tables = NIL;
	sender->homes = NIL;
	foreach(lc, sender->readers)
	{
		((NoteReader *) lfirst(lc))->wire_number = 0;
		((NoteReader *) lfirst(lc))->rows = 0;
	}
}

/*
 * The first dirty note, looked for from the end, as that is where they are; the list's
 * head if there is none.
 */
static dlist_node *
first_dirty(void)
{
	dlist_node *first = &residency_notes.head;
	dlist_node *node = residency_notes.head.prev;

	for (int left = residency_notes_dirty; left > 0; node = node->prev)
	{
		Assert(node != &residency_notes.head);
		if (dlist_container(Note, node, node)->dirty)
		{
			first = node;
			left--;
		}
	}
	return first;
}

/* Writes the records of all dirty notes, in order; those that get dirty by that are at the end. */
static void
put_notes(Sender *sender, bool all)
{
	for (dlist_node *cur = first_dirty(); cur != &residency_notes.head; cur = cur->next)
	{
		Note	   *note = dlist_container(Note, node, cur);

		if (!note->dirty)
			continue;
		if (!all && note->kind == NOTE_ROW && note->base == BASE_PENDING)
			continue;
		CHECK_FOR_INTERRUPTS();
		residency_records_put(sender, note);
		if (sender->changes.len >= CHUNK_BYTES)
			send_chunk(sender, false);
	}
}

/*
 * Queues all that is noted and not yet sent, on all regions.  With "all" false the
 * outermost statement is not over: notes whose base is pending stay behind.  With
 * "last" false more of the same statement will follow.
 *
 * Never waits.  Throws what reading rows or queueing requests throws.
 */
void
residency_global_send(bool all, bool last)
{
	Sender		sender = {0};
	MemoryContext old;
	bool		pushed = false;
	int			level;

	if (residency_notes_dirty == 0 && !(last && batch_open))
		return;
	sender.context = AllocSetContextCreate(CurrentMemoryContext, "residency send",
										   ALLOCSET_DEFAULT_SIZES);
	sender.row_context = AllocSetContextCreate(sender.context, "residency send row",
											   ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(sender.context);
	initStringInfo(&sender.changes);

	/* reading what is stored out of line needs a snapshot to be there */
	if (!ActiveSnapshotSet())
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		pushed = true;
	}
	sender.left_out = residency_left_out();
	sender.conflicts = residency_conflicts_exist();
	sender.moved = residency_backlog_begin();
	if (sender.left_out != NIL)
		sender.notes = residency_backlog_begin();
	level = residency_text_begin();
	put_notes(&sender, all);
	residency_text_end(level);
	if (sender.changes.len > 0 || (last && batch_open))
		send_chunk(&sender, last);
	residency_records_close(&sender);
	residency_backlog_write_moves(sender.moved, sender.left_out);
	if (pushed)
		PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(sender.context);
}

/*
 * A part of the outermost statement is over, a statement in a function perhaps.  If it has
 * made values of unique keys free, it is sent, as the next one may take them: of what comes
 * together each row is sent once, as it is in the end.
 */
void
residency_global_part_ends(void)
{
	if (!residency_notes_freed)
		return;
	residency_notes_freed = false;
	residency_global_send(false, false);
}

/*
 * TRUNCATE of a global table: what was noted before goes out first, then the order
 * to empty the table there; what is noted later follows.  Throws unless all are up: there
 * is no note about rows that nobody has any more.
 */
void
residency_global_send_truncate(Relation rel, NoteTable *table)
{
	const char *values[1];

	List	   *left_out = residency_left_out();

	if (left_out != NIL)
		residency_refuse_away(linitial(left_out), RelationGetRelationName(rel));
	residency_notes_settle_table(table);
	/* rows that refer to some of those may go with this very TRUNCATE */
	residency_global_send(true, false);
	values[0] = residency_text_array(list_make1(residency_sent_name(rel)));
	send_everywhere(RelationGetRelid(rel), 0, TRUNCATE_SQL, 1, values, NIL);
}

/*
 * The producer: see remote.h.  A region's request may depend on any row of a global
 * table, so all that is noted goes out to all regions.  While a trigger runs, the
 * statement that fired it is not over: what a foreign key does to other rows may be
 * still to come.
 */
static void
produce(RemoteRegion *region)
{
	bool		inside = DatumGetInt32(pg_trigger_depth(NULL)) > 0;

	residency_global_send(region == NULL && !inside, !inside);
}

/*
 * Tells that the client has deferred constraints until the commit.  Then the other regions
 * leave those that can be deferred until then, whichever the client has named: they check
 * again what the gateway has checked, so later does no harm.
 */
void
residency_global_constraints_deferred(void)
{
	constraints_deferred = true;
}

/* An unfinished batch ends with the transaction, or with the next send. */
static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
	{
		batch_open = false;
		constraints_deferred = false;
		residency_batch_ended();
	}
}

/* Called once per backend. */
void
residency_send_init(void)
{
	residency_remote_register_producer(produce);
	RegisterXactCallback(transaction_ended, NULL);
}
