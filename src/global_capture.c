/*
 * global_capture.c
 *		Trigger of global tables: notes what the client's transaction does to them.
 *
 * The triggers are ENABLE ALWAYS and fire AFTER, so nothing that changes a row at
 * the gateway escapes them, be it COPY, a referential action or a logical
 * replication worker.  They do no input or output: rows are read and sent later.
 *
 * In a session that a gateway opened, residency.apply() never lets this trigger
 * fire for what it writes.  So a call there means that something else writes a
 * global table (a user's trigger, say): its change would reach the other regions
 * behind the back of the gateway that commits the transaction, and is refused.  The
 * exception is what foreign keys' actions write while rows are shipped here: see
 * note_action().
 */
#include "residency.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_constraint.h"
#include "commands/trigger.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "global_catchup.h"
#include "global_internal.h"
#include "guard.h"
#include "regions.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(residency_capture);

/* rows are being shipped here, in this session */
bool		residency_rows_shipped = false;

/* Throws if this session is a leaf: see the head of this file. */
static void
refuse_in_leaf(Relation rel)
{
	const char *gateway = residency_session_gateway();

	if (gateway)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot write global table \"%s\" in a session opened by region \"%s\"",
						RelationGetRelationName(rel), gateway),
				 errdetail("Triggers that run here for rows written elsewhere cannot write global tables."),
				 errhint("Let a trigger of a global table write it at the gateway: one that is not ENABLE ALWAYS or REPLICA.")));
}

/* True if rows of the table follow when what they refer to in a global table gets another key. */
static bool
follows_others(Relation rel)
{
	ListCell   *lc;

	foreach(lc, RelationGetFKeyList(rel))
	{
		ForeignKeyCacheInfo *key = lfirst(lc);
		const TableRule *rule = residency_table_rule(key->confrelid);
		HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(key->conoid));
		char		action = '\0';

		if (HeapTupleIsValid(tuple))
		{
			action = ((Form_pg_constraint) GETSTRUCT(tuple))->confupdtype;
			ReleaseSysCache(tuple);
		}
		if (rule != NULL && rule->kind == RESIDENCY_GLOBAL && strchr("cnd", action) != NULL && action != '\0')
			return true;
	}
	return false;
}

/*
 * Throws if an UPDATE changed the region of a directory row.  A trigger refuses that
 * before the update, but a BEFORE trigger that sorts behind it may still do it.
 */
static void
check_region(NoteTable *table, Relation rel, HeapTuple old, HeapTuple new)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Form_pg_attribute attr = TupleDescAttr(desc, table->region_attno - 1);
	bool		old_null;
	bool		new_null;
	Datum		before;
	Datum		after;

	if (!table->is_directory)
		return;
	before = heap_getattr(old, table->region_attno, desc, &old_null);
	after = heap_getattr(new, table->region_attno, desc, &new_null);
	if (old_null == new_null &&
		(old_null || datum_image_eq(before, after, attr->attbyval, attr->attlen)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot change the region of a row of table \"%s\"",
					RelationGetRelationName(rel)),
			 errdetail("Column \"%s\" names the region that stores the rows of this key.",
					   NameStr(attr->attname)),
			 errhint("Delete the row with all that belongs to its key, and insert it with the new region.")));
}

/* Takes the key's values out of a row. */
static void
get_key(NoteTable *table, Relation rel, HeapTuple tuple, Datum *key)
{
	for (int k = 0; k < table->nkeys; k++)
	{
		bool		isnull;

		key[k] = heap_getattr(tuple, table->keys[k], RelationGetDescr(rel), &isnull);
		Assert(!isnull);
	}
}

/* True if both keys are the same to the last byte, so that nothing was renamed. */
static bool
key_unchanged(NoteTable *table, const Datum *old, const Datum *new)
{
	for (int k = 0; k < table->nkeys; k++)
		if (!datum_image_eq(old[k], new[k], table->byvals[k], table->lens[k]))
			return false;
	return true;
}

/*
 * True if an UPDATE or DELETE ("new" is NULL) may have made values free that another row
 * could not have while this one had them, in an index other than the primary key's.
 */
static bool
frees_values(NoteTable *table, Relation rel, HeapTuple old, HeapTuple new)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			column = -1;

	if (new == NULL)
		return table->further != NULL;
	while ((column = bms_next_member(table->further, column)) >= 0)
	{
		AttrNumber	attno = column + FirstLowInvalidHeapAttributeNumber;
		bool		old_null;
		bool		new_null;
		Datum		before;
		Datum		after;

		if (attno <= 0)
			return true;
		before = heap_getattr(old, attno, desc, &old_null);
		after = heap_getattr(new, attno, desc, &new_null);
		if (old_null != new_null ||
			(!old_null && !datum_image_eq(before, after, TupleDescAttr(desc, attno - 1)->attbyval,
										  TupleDescAttr(desc, attno - 1)->attlen)))
			return true;
	}
	return false;
}

/* Notes that a row was there before with this key, and where its home is. */
static Note *
note_old(NoteTable *table, Relation rel, HeapTuple old, const Datum *key, bool ours)
{
	bool		found;
	bool		isnull;
	Note	   *note = residency_note_row(table, key, &found);
	Datum		region;

	residency_note_base(note, old, ours);
	if (note->home == NULL || !ours)
	{
		region = heap_getattr(old, table->region_attno, RelationGetDescr(rel), &isnull);
		if (!isnull)
			note->home = residency_note_home(table, region);
	}
	residency_note_touch(note);
	return note;
}

/*
 * Notes that a row came into being with this key.  *found: the key was noted before;
 * *late: by an event that must be a later one, since the row was ours.
 */
static Note *
note_new(NoteTable *table, const Datum *key, bool *found, bool *late)
{
	Note	   *note = residency_note_row(table, key, found);

	*late = *found && note->base == BASE_PENDING;
	residency_note_base(note, NULL, false);
	residency_note_touch(note);
	return note;
}

/* Notes one row event. */
static void
capture_row(TriggerData *trigdata, NoteTable *table)
{
	Relation	rel = trigdata->tg_relation;
	HeapTuple	old = trigdata->tg_trigtuple;
	HeapTuple	new = trigdata->tg_newtuple;
	Datum		key[INDEX_MAX_KEYS];
	Datum		new_key[INDEX_MAX_KEYS];
	bool		ours;
	bool		found;
	bool		late;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
	{
		get_key(table, rel, old, key);
		note_new(table, key, &found, &late);
		return;
	}

	ours = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(old->t_data));
	residency_notes_freed |= frees_values(table, rel, old, new);
	get_key(table, rel, old, key);
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
	{
		check_region(table, rel, old, new);
		get_key(table, rel, new, new_key);
		if (!key_unchanged(table, key, new_key))
		{
			Note	   *from = note_old(table, rel, old, key, ours);
			Note	   *to = note_new(table, new_key, &found, &late);

			/* equal under the type's equality: one note, one row, no move */
			if (from != to)
				residency_note_move(table, from, to, found, late);
			return;
		}
	}
	note_old(table, rel, old, key, ours);
}

/* A row's key, as it travels. */
static char *
key_text(RowProbe *probe, HeapTuple tuple)
{
	StringInfoData text;
	Datum		key[INDEX_MAX_KEYS];

	for (int k = 0; k < probe->nkeys; k++)
	{
		bool		isnull;

		key[k] = heap_getattr(tuple, probe->keys[k], RelationGetDescr(probe->rel), &isnull);
	}
	initStringInfo(&text);
	residency_text_key(&text, probe->text, key);
	return text.data;
}

/*
 * A row has followed one that was shipped here with another key.  Its home ships what it
 * has become; if that is this region, which may be the only one that has the row, it is noted
 * for all others.
 */
static void
note_action(Relation rel, HeapTuple old, HeapTuple new)
{
	RowProbe   *probe = residency_probe_open(rel);
	int			level = residency_text_begin();
	bool		isnull;
	Datum		home = heap_getattr(new, probe->region_attno, RelationGetDescr(rel), &isnull);
	List	   *others = NIL;
	ListCell   *lc;

	if (!isnull && strcmp(OutputFunctionCall(&probe->region_out, home), residency_self()->region) == 0)
	{
		BacklogNotes *notes = residency_backlog_begin();
		char	   *was = key_text(probe, old);
		char	   *key = key_text(probe, new);

		foreach(lc, residency_other_servers())
			others = lappend(others, residency_server_region(lfirst_oid(lc)));
		residency_backlog_add(notes, RelationGetRelid(rel), was);
		residency_backlog_add(notes, RelationGetRelid(rel), key);
		if (strcmp(was, key) != 0)
			residency_backlog_move(notes, RelationGetRelid(rel), was, key);
		residency_backlog_write(notes, others);
		residency_backlog_write_moves(notes, others);
	}
	residency_text_end(level);
	residency_probe_close(probe);
}

/*
 * residency.capture(): AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW, and AFTER
 * TRUNCATE FOR EACH STATEMENT, on global tables.
 */
Datum
residency_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	NoteTable  *table;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("residency.capture() can only be called as an AFTER trigger")));

	if (residency_rows_shipped && TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) &&
		follows_others(trigdata->tg_relation))
	{
		note_action(trigdata->tg_relation, trigdata->tg_trigtuple, trigdata->tg_newtuple);
		return PointerGetDatum(NULL);
	}
	refuse_in_leaf(trigdata->tg_relation);
	table = residency_note_table(trigdata->tg_relation);
	if (residency_other_servers() == NIL)
	{
		/* nobody has a copy, but the directory's rule holds from the start */
		if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
			check_region(table, trigdata->tg_relation,
						 trigdata->tg_trigtuple, trigdata->tg_newtuple);
		return PointerGetDatum(NULL);
	}

	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		residency_global_send_truncate(trigdata->tg_relation, table);
	else
		capture_row(trigdata, table);

	if (residency_notes_full())
	{
		residency_global_send(false, false);
		residency_notes_forget_sent();
	}
	return PointerGetDatum(NULL);
}

/* Called once per backend from _PG_init. */
void
residency_global_init(void)
{
	residency_notes_init();
	residency_send_init();
	residency_recheck_init();
	residency_triggers_init();
	residency_progress_init();
}
