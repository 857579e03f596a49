/*
 * global_send.c
 *		Sends what a transaction noted of global tables to all other regions.
 *
 * State is sent, not operations: each noted row is read once, as it is now, and
 * goes out in full or as absent.  All regions get the same text, in the order of
 * the notes; nobody waits for the answers here.
 *
 * This runs before the next request to a region, when the outermost statement
 * ends, and in the middle of a statement that writes very many rows.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "global_backlog.h"
#include "regions.h"
#include "remote.h"

/* bytes of records in one request; a single larger row travels alone */
#define CHUNK_BYTES		(4 * 1024 * 1024)

#define APPLY_SQL \
	"SELECT residency.apply($1::pg_catalog.text[], $2::pg_catalog.text[], " \
	"$3::pg_catalog.text, $4::pg_catalog.bool, $5::pg_catalog.text[], $6::pg_catalog.bool)"
#define TRUNCATE_SQL \
	"SELECT residency.apply_truncate($1::pg_catalog.text[])"

/* reads the current rows of one table by primary key */
typedef struct NoteReader
{
	NoteTable  *table;
	int			wire_number;	/* position of the table in this request, 0 none yet */
	uint64		rows;			/* of the table in this request */
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	GlobalText *text;
	Datum	   *values;			/* room for an old row */
	bool	   *nulls;
	ScanKeyData keys[INDEX_MAX_KEYS];
} NoteReader;

/* one run of sending */
typedef struct Sender
{
	MemoryContext context;		/* of everything here */
	MemoryContext row_context;	/* of one record */
	List	   *readers;
	List	   *tables;			/* names in the order of their wire numbers */
	List	   *homes;			/* const char *, likewise */
	StringInfoData changes;
	List	   *left_out;		/* char *: regions that are not up, see global_backlog.c */
	BacklogNotes *notes;		/* rows homed here that they do not get; NULL: nobody is left out */
	bool		conflicts;		/* rows homed here are looked up in residency.conflict */
	const char *table;			/* name of the latest record's table, for errors */
} Sender;

/* an unfinished batch: the regions hold back checks until its last piece */
static bool batch_open = false;

/* the client has deferred constraints, with SET CONSTRAINTS, in this transaction */
static bool constraints_deferred = false;

/* The name of a relation as the other regions know it. */
static char *
relation_name(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

/*
 * Opens a table for reading, at its first dirty note.  Returns NULL if the table
 * has been dropped since, or is no longer declared.
 */
static NoteReader *
open_reader(Sender *sender, NoteTable *table)
{
	MemoryContext old;
	NoteReader *reader;
	Relation	rel;
	const TableRule *rule;
	ListCell   *lc;

	foreach(lc, sender->readers)
		if (((NoteReader *) lfirst(lc))->table == table)
			return lfirst(lc);
	rel = try_relation_open(table->relid, AccessShareLock);
	if (rel == NULL)
		return NULL;
	rule = residency_table_rule(table->relid);
	if (rule == NULL || rule->kind != RESIDENCY_GLOBAL)
	{
		relation_close(rel, AccessShareLock);
		return NULL;
	}
	if (table->stale)
		residency_note_table(rel);

	old = MemoryContextSwitchTo(sender->context);
	reader = palloc0(sizeof(NoteReader));
	reader->table = table;
	reader->rel = rel;
	reader->index = index_open(table->index, AccessShareLock);
	reader->slot = table_slot_create(rel, NULL);
	reader->text = residency_text_make(RelationGetDescr(rel), table->nkeys, table->keys);
	reader->values = palloc(sizeof(Datum) * RelationGetDescr(rel)->natts);
	reader->nulls = palloc(sizeof(bool) * RelationGetDescr(rel)->natts);
	for (int k = 0; k < table->nkeys; k++)
		ScanKeyEntryInitialize(&reader->keys[k], 0, k + 1, BTEqualStrategyNumber,
							   InvalidOid, table->collations[k],
							   table->equals[k].fn_oid, (Datum) 0);
	reader->scan = index_beginscan(rel, reader->index, SnapshotSelf, table->nkeys, 0);
	sender->readers = lappend(sender->readers, reader);
	MemoryContextSwitchTo(old);
	return reader;
}

/* Closes all readers; locks stay until the transaction ends. */
static void
close_readers(Sender *sender)
{
	ListCell   *lc;

	foreach(lc, sender->readers)
	{
		NoteReader *reader = lfirst(lc);

		index_endscan(reader->scan);
		ExecDropSingleTupleTableSlot(reader->slot);
		index_close(reader->index, NoLock);
		relation_close(reader->rel, NoLock);
	}
}

/*
 * Reads the row that has the note's key now, in the eyes of this very command.
 * False if there is none.
 */
static bool
read_row(Sender *sender, NoteReader *reader, Note *note)
{
	MemoryContext old;
	bool		found;

	for (int k = 0; k < note->table->nkeys; k++)
		reader->keys[k].sk_argument = note->key[k];
	/* the index's access method keeps memory of its own between calls */
	old = MemoryContextSwitchTo(sender->context);
	index_rescan(reader->scan, reader->keys, note->table->nkeys, NULL, 0);
	found = index_getnext_slot(reader->scan, ForwardScanDirection, reader->slot);
	MemoryContextSwitchTo(old);
	if (!found)
		return false;
	slot_getallattrs(reader->slot);
	return true;
}

/* Position (1..) of a string in one of the arrays that a request carries. */
static int
wire_position(List **list, const char *string)
{
	ListCell   *lc;

	foreach(lc, *list)
		if (lfirst(lc) == string)
			return foreach_current_index(lc) + 1;
	*list = lappend(*list, unconstify(char *, string));
	return list_length(*list);
}

/*
 * Position of a note's home; throws if the row names no region.  For a row that was
 * not there before, the current row (in the reader's slot) says where its home is.
 */
static int
wire_home(Sender *sender, NoteReader *reader, Note *note, bool present)
{
	NoteTable  *table = note->table;
	MemoryContext old;
	int			position;

	if (note->home == NULL && present)
	{
		if (reader->slot->tts_isnull[table->region_attno - 1])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("a row of global table \"%s\" names no region",
							RelationGetRelationName(reader->rel)),
					 errdetail("Column \"%s\" is null.",
							   NameStr(TupleDescAttr(RelationGetDescr(reader->rel),
													 table->region_attno - 1)->attname)),
					 errhint("Every row of a global table needs a home region, where writes of it are ordered."),
					 errtablecol(reader->rel, table->region_attno)));
		note->home = residency_note_home(table,
										 reader->slot->tts_values[table->region_attno - 1]);
		/* throws if there is no such region */
		(void) residency_region_server(note->home);
	}
	old = MemoryContextSwitchTo(sender->context);
	position = note->home ? wire_position(&sender->homes, note->home) : 0;
	MemoryContextSwitchTo(old);
	return position;
}

/* Position of a note's table. */
static int
wire_table(Sender *sender, NoteReader *reader)
{
	MemoryContext old;

	if (reader->wire_number > 0)
		return reader->wire_number;
	old = MemoryContextSwitchTo(sender->context);
	sender->tables = lappend(sender->tables, relation_name(reader->rel));
	reader->wire_number = list_length(sender->tables);
	MemoryContextSwitchTo(old);
	return reader->wire_number;
}

/* What the home must check for a note; *version is set if that is a version. */
static ChangeCheck
note_check(NoteReader *reader, Note *note, uint64 *version)
{
	*version = 0;
	if (note->first_sent > 0)
		return CHECK_NONE;
	if (note->base == BASE_TUPLE)
	{
		heap_deform_tuple(note->old, note->table->desc, reader->values, reader->nulls);
		residency_note_version(note, residency_text_version(reader->text, reader->values,
															reader->nulls));
	}
	switch (note->base)
	{
		case BASE_VERSION:
			*version = note->version;
			return CHECK_VERSION;
		case BASE_ABSENT:
			return CHECK_ABSENT;
		default:
			return CHECK_NONE;
	}
}

/*
 * A row that has its home here: throws if its key is in conflict, and notes it for the
 * regions that are left out, if any are.  "key", and "was" if it was another one, are in
 * index order.
 */
static void
note_here(Sender *sender, NoteReader *reader, const char *home, const Datum *key, const Datum *was)
{
	Oid			relid = reader->table->relid;
	StringInfoData text;
	StringInfoData before;

	sender->table = RelationGetRelationName(reader->rel);
	if ((sender->notes == NULL && !sender->conflicts) || home == NULL ||
		strcmp(home, residency_self()->region) != 0)
		return;
	initStringInfo(&text);
	initStringInfo(&before);
	residency_text_key(&text, reader->text, key);
	if (sender->conflicts)
		residency_conflict_check(relid, text.data);
	if (sender->notes)
		residency_backlog_add(sender->notes, relid, text.data);
	if (sender->notes == NULL || was == NULL)
		return;
	residency_text_key(&before, reader->text, was);
	residency_backlog_move(sender->notes, relid, before.data, text.data);
}

/*
 * Throws if a row gets another home while some region is left out: the old home could
 * not tell it from a row that is no more (global_backlog.c).  The row is in the slot.
 */
static void
refuse_new_home(Sender *sender, NoteReader *reader, Note *note)
{
	NoteTable  *table = note->table;
	Datum		value = reader->slot->tts_values[table->region_attno - 1];

	if (sender->left_out == NIL || reader->slot->tts_isnull[table->region_attno - 1] ||
		residency_note_home(table, value) == note->home)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 errmsg("the home of a row of global table \"%s\" cannot change while region \"%s\" is left out",
					RelationGetRelationName(reader->rel), (char *) linitial(sender->left_out)),
			 errhint("Wait until SELECT * FROM residency.regions shows it as up.")));
}

/* Writes the record of a key that has no row (any more). */
static void
put_delete(Sender *sender, NoteReader *reader, Note *note)
{
	uint64		version;
	ChangeCheck check = note_check(reader, note, &version);

	residency_text_head(&sender->changes, CHANGE_DELETE, check,
						wire_table(sender, reader),
						wire_home(sender, reader, note, false), version);
	residency_text_key(&sender->changes, reader->text, note->key);
	note_here(sender, reader, note->home, note->key, NULL);
}

/* Writes the record of a row note, if it has anything to tell. */
static void
put_row(Sender *sender, NoteReader *reader, Note *note)
{
	uint64		version;
	ChangeCheck check;

	if (!read_row(sender, reader, note))
	{
		if (note->base == BASE_ABSENT && note->first_sent == 0)
		{
			residency_note_skipped(note);
			return;
		}
		put_delete(sender, reader, note);
	}
	else
	{
		int			home = wire_home(sender, reader, note, true);

		refuse_new_home(sender, reader, note);
		note_here(sender, reader, note->home, note->key, NULL);
		check = note_check(reader, note, &version);
		residency_text_head(&sender->changes, CHANGE_STATE, check,
							wire_table(sender, reader), home, version);
		residency_text_row(&sender->changes, reader->text,
						   reader->slot->tts_values, reader->slot->tts_isnull);
	}
	residency_note_sent(note);
}

/*
 * Writes the records of a changed key.  The states of both keys follow, unchecked:
 * the move itself has been checked.
 */
static void
put_move(Sender *sender, NoteReader *reader, Note *move)
{
	uint64		version;
	ChangeCheck check;

	/*
	 * A row that came and went under its first key before anything was sent needs
	 * no move: the other key's state tells all.
	 */
	if (move->from->base == BASE_ABSENT && move->from->first_sent == 0)
	{
		residency_note_skipped(move);
		return;
	}
	if (move->vacate && (move->to->base != BASE_ABSENT || move->to->first_sent > 0))
		put_delete(sender, reader, move->to);
	if (move->vacate)
		residency_note_sent(move->to);
	check = note_check(reader, move->from, &version);
	residency_text_head(&sender->changes, CHANGE_MOVE, check,
						wire_table(sender, reader),
						wire_home(sender, reader, move->from, false), version);
	residency_text_key(&sender->changes, reader->text, move->from->key);
	residency_text_key(&sender->changes, reader->text, move->to->key);
	note_here(sender, reader, move->from->home, move->to->key, move->from->key);
	if (move->to->home == NULL)
		move->to->home = move->from->home;
	residency_note_sent(move);
	residency_note_sent(move->from);
	residency_note_sent(move->to);
	/* both keys' states still have to follow */
	residency_note_touch(move->from);
	residency_note_touch(move->to);
}

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

/* Sends the records written so far, and starts anew.  For the counters it is about the table with most rows. */
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

/* Writes the records of all dirty notes, in order. */
static void
put_notes(Sender *sender, bool all)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);
		NoteReader *reader;
		MemoryContext old;
		int			length = sender->changes.len;

		if (!note->dirty)
			continue;
		if (!all && note->kind == NOTE_ROW && note->base == BASE_PENDING)
			continue;
		CHECK_FOR_INTERRUPTS();
		reader = open_reader(sender, note->table);
		if (reader == NULL)
		{
			residency_note_sent(note);
			continue;
		}
		old = MemoryContextSwitchTo(sender->row_context);
		if (note->kind == NOTE_MOVE)
			put_move(sender, reader, note);
		else
			put_row(sender, reader, note);
		MemoryContextSwitchTo(old);
		MemoryContextReset(sender->row_context);
		reader->rows += sender->changes.len > length;
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
	if (sender.left_out != NIL)
		sender.notes = residency_backlog_begin();
	level = residency_text_begin();
	put_notes(&sender, all);
	residency_text_end(level);
	if (sender.changes.len > 0 || (last && batch_open))
		send_chunk(&sender, last);
	close_readers(&sender);
	if (pushed)
		PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(sender.context);
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
	residency_global_send(true, true);
	values[0] = residency_text_array(list_make1(relation_name(rel)));
	send_everywhere(RelationGetRelid(rel), 0, TRUNCATE_SQL, 1, values, NIL);
}

/* The producer: see remote.h.  A region's request may depend on any row, so all get all that is noted. */
static void
produce(RemoteRegion *region)
{
	residency_global_send(region == NULL, true);
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
