/*
 * global_records.c
 *		Writes the records of what a transaction noted of global tables.
 *
 * One record for each note: the row as it is now, that it is no more, or that its key has
 * become another one; with its home, and the version that the home must find.  The grammar
 * is in global_internal.h.  Rows that have their home here are noted for the regions that
 * are left out (global_backlog.c).
 */
#include "residency.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "global_records.h"
#include "regions.h"

/* The name of a relation as the other regions know it. */
char *
residency_sent_name(Relation rel)
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
	reader->scan = compat_index_beginscan(rel, reader->index, SnapshotSelf, table->nkeys);
	sender->readers = lappend(sender->readers, reader);
	MemoryContextSwitchTo(old);
	return reader;
}

/* Closes all readers; locks stay until the transaction ends. */
void
residency_records_close(Sender *sender)
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

/* Where the row in the reader's slot has its home; throws if it names no region. */
static const char *
home_of_row(NoteReader *reader)
{
	AttrNumber	attno = reader->table->region_attno;

	if (reader->slot->tts_isnull[attno - 1])
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("a row of global table \"%s\" names no region",
						RelationGetRelationName(reader->rel)),
				 errdetail("Column \"%s\" is null.",
						   NameStr(TupleDescAttr(RelationGetDescr(reader->rel), attno - 1)->attname)),
				 errhint("Every row of a global table needs a home region, where writes of it are ordered."),
				 errtablecol(reader->rel, attno)));
	return residency_note_home(reader->table, reader->slot->tts_values[attno - 1]);
}

/*
 * Position of a note's home; throws if the row names no region.  For a row that was
 * not there before, the current row (in the reader's slot) says where its home is.
 */
static int
wire_home(Sender *sender, NoteReader *reader, Note *note, bool present)
{
	MemoryContext old;
	int			position;

	if (note->home == NULL && present)
	{
		note->home = home_of_row(reader);
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
	if (reader->wire_number == 0)
	{
		MemoryContext old = MemoryContextSwitchTo(sender->context);

		sender->tables = lappend(sender->tables, residency_sent_name(reader->rel));
		reader->wire_number = list_length(sender->tables);
		MemoryContextSwitchTo(old);
	}
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
	if ((sender->notes == NULL && !sender->conflicts && was == NULL) || home == NULL ||
		strcmp(home, residency_self()->region) != 0)
		return;
	initStringInfo(&text);
	residency_text_key(&text, reader->text, key);
	if (sender->conflicts)
		residency_conflict_check(relid, text.data);
	if (sender->notes)
		residency_backlog_add(sender->notes, relid, text.data);
	if (was)
	{
		initStringInfo(&before);
		residency_text_key(&before, reader->text, was);
		residency_backlog_move(sender->moved, relid, before.data, text.data);
	}
}

/*
 * Throws if a row gets another home that is no region; or while some region is left out,
 * as the old home could not tell it from a row that is no more (global_backlog.c).  The row
 * is in the slot.
 */
static void
check_new_home(Sender *sender, NoteReader *reader, Note *note)
{
	const char *home = home_of_row(reader);

	if (home == note->home)
		return;
	(void) residency_region_server(home);
	if (sender->left_out == NIL)
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

		check_new_home(sender, reader, note);
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
	if (move->vacate)
	{
		if (move->to->base != BASE_ABSENT || move->to->first_sent > 0)
			put_delete(sender, reader, move->to);
		residency_note_sent(move->to);
	}
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

/* Writes the record of one dirty note. */
void
residency_records_put(Sender *sender, Note *note)
{
	NoteReader *reader = open_reader(sender, note->table);
	int			length = sender->changes.len;
	MemoryContext old;

	if (reader == NULL)
	{
		residency_note_sent(note);
		return;
	}
	old = MemoryContextSwitchTo(sender->row_context);
	if (note->kind == NOTE_MOVE)
		put_move(sender, reader, note);
	else
		put_row(sender, reader, note);
	MemoryContextSwitchTo(old);
	MemoryContextReset(sender->row_context);
	reader->rows += sender->changes.len > length;
}
