/*
 * global_notes.c
 *		What the current transaction did to global tables: one note per key.
 *
 * A note says that the row with a key may have changed, and which version of it
 * there was before the transaction.  It does not say how it changed: global_send.c
 * reads the row when it sends it.  So the order in which triggers fire, which is
 * innermost first, does not matter, with two exceptions:
 *
 * - The version before the transaction is the old row of some event, but not
 *   always of the first one that we see.  An old row that another transaction made
 *   is that version, whenever it comes; until one has come, the base of a note
 *   whose old rows were all our own is "pending".
 *
 * - A changed key cannot be told from a delete and an insert by looking at states,
 *   and the difference matters to rows that reference the key (ON DELETE CASCADE).
 *   Such an event makes a second kind of note, a move, placed before the notes of
 *   both of its keys.
 *
 * Everything lives in one memory context that is a child of the transaction's, and
 * is undone with the subtransaction that did it: see the levels in struct Note.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "fdw.h"
#include "global_internal.h"
#include "regions.h"

typedef struct NoteSlot
{
	Note	   *note;
	uint32		hash;
	char		status;
} NoteSlot;

static bool same_key(const Note *a, const Note *b);

#define SH_PREFIX		notehash
#define SH_ELEMENT_TYPE	NoteSlot
#define SH_KEY_TYPE		Note *
#define SH_KEY			note
#define SH_HASH_KEY(tb, key) ((key)->hash)
#define SH_EQUAL(tb, a, b) same_key(a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) ((a)->hash)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

dlist_head	residency_notes = DLIST_STATIC_INIT(residency_notes);
int			residency_notes_dirty = 0;
Size		residency_notes_bytes = 0;

static dlist_head deep_notes = DLIST_STATIC_INIT(deep_notes);
static dlist_head note_tables = DLIST_STATIC_INIT(note_tables);
static MemoryContext note_context = NULL;
static List *home_names = NIL;	/* char *, interned */

/* True if two notes of one table have the same key, as its unique index sees it. */
static bool
same_key(const Note *a, const Note *b)
{
	NoteTable  *table = a->table;

	for (int k = 0; k < table->nkeys; k++)
		if (!DatumGetBool(FunctionCall2Coll(&table->equals[k], table->collations[k],
											a->key[k], b->key[k])))
			return false;
	return true;
}

/*
 * Hash of the key under the same equality.  A column whose type has no hash
 * function does not take part.
 */
static uint32
key_hash(NoteTable *table, const Datum *key)
{
	uint32		hash = 0;

	for (int k = 0; k < table->nkeys; k++)
		if (OidIsValid(table->hashes[k].fn_oid))
			hash = hash_combine(hash,
								DatumGetUInt32(FunctionCall1Coll(&table->hashes[k],
																 table->collations[k],
																 key[k])));
	return murmurhash32(hash);
}

/* Forgets everything; the memory goes with the transaction's context. */
static void
reset_notes(void)
{
	dlist_init(&residency_notes);
	dlist_init(&deep_notes);
	dlist_init(&note_tables);
	residency_notes_dirty = 0;
	residency_notes_bytes = 0;
	note_context = NULL;
	home_names = NIL;
}

/* Fills in how the keys of the table are compared, from its primary key's index. */
static void
load_key_functions(NoteTable *table, Relation rel)
{
	Relation	index = index_open(table->index, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);

	table->nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	for (int k = 0; k < table->nkeys; k++)
	{
		AttrNumber	attno = index->rd_index->indkey.values[k];
		Form_pg_attribute attr = TupleDescAttr(desc, attno - 1);
		Oid			type = index->rd_opcintype[k];
		Oid			equal = get_opfamily_member(index->rd_opfamily[k], type, type,
												BTEqualStrategyNumber);
		RegProcedure hash;
		RegProcedure right_hash;

		if (!OidIsValid(equal))
			elog(ERROR, "no equality operator for key column %d of index %u",
				 k + 1, table->index);
		table->keys[k] = attno;
		table->key_types[k] = attr->atttypid;
		table->collations[k] = index->rd_indcollation[k];
		table->lens[k] = attr->attlen;
		table->byvals[k] = attr->attbyval;
		fmgr_info_cxt(get_opcode(equal), &table->equals[k], note_context);
		table->hashes[k].fn_oid = InvalidOid;
		if (get_op_hash_functions(equal, &hash, &right_hash))
			fmgr_info_cxt(hash, &table->hashes[k], note_context);
	}
	index_close(index, AccessShareLock);
}

/* Makes the entry of a table that this transaction writes for the first time. */
static NoteTable *
make_table(Relation rel)
{
	const TableRule *rule = residency_table_rule(RelationGetRelid(rel));
	Oid			index = RelationGetPrimaryKeyIndex(rel);
	NoteTable  *table;
	MemoryContext old;
	Oid			function;
	bool		varlena;

	if (rule == NULL || rule->kind != RESIDENCY_GLOBAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not a global table",
						RelationGetRelationName(rel)),
				 errdetail("It has the trigger that captures changes of global tables."),
				 errhint("Call residency.make_global() for it.")));
	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("global table \"%s\" has no primary key that is checked at once",
						RelationGetRelationName(rel)),
				 errhint("Add a primary key that is not deferrable in all regions, with residency.run_everywhere().")));

	if (note_context == NULL)
		note_context = AllocSetContextCreate(TopTransactionContext,
											 "residency notes", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(note_context);
	table = palloc0(sizeof(NoteTable));
	table->relid = RelationGetRelid(rel);
	table->index = index;
	table->region_attno = rule->region_attno;
	table->is_directory = rule->is_directory;
	table->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
	getTypeOutputInfo(TupleDescAttr(table->desc, table->region_attno - 1)->atttypid,
					  &function, &varlena);
	fmgr_info(function, &table->region_out);
	load_key_functions(table, rel);
	table->probe = palloc0(offsetof(Note, key) + sizeof(Datum) * table->nkeys);
	table->probe->table = table;
	table->hash = notehash_create(note_context, 64, NULL);
	MemoryContextSwitchTo(old);

	/* nothing can fail from here on, so a half-made entry is never seen */
	dlist_push_tail(&note_tables, &table->node);
	return table;
}

/*
 * Turns the old rows that are kept into hashes while their columns are still known:
 * the table's definition has changed in the transaction.
 */
static void
hash_old_rows(NoteTable *table)
{
	GlobalText *text = residency_text_make(table->desc, table->nkeys, table->keys);
	Datum	   *values = palloc(sizeof(Datum) * table->desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * table->desc->natts);
	int			level = residency_text_begin();
	dlist_iter	iter;

	dlist_foreach(iter, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		if (note->table != table || note->kind != NOTE_ROW || note->base != BASE_TUPLE)
			continue;
		heap_deform_tuple(note->old, table->desc, values, nulls);
		residency_note_version(note, residency_text_version(text, values, nulls));
	}
	residency_text_end(level);
	pfree(values);
	pfree(nulls);
}

/*
 * Brings the entry of a table up to date after DDL on it in this transaction.
 * New key columns cannot be matched with the keys already noted.
 */
static void
refresh_table(NoteTable *table, Relation rel)
{
	const TableRule *rule = residency_table_rule(RelationGetRelid(rel));
	Oid			index = RelationGetPrimaryKeyIndex(rel);
	bool		same = rule != NULL && index == table->index;
	MemoryContext old;

	table->stale = false;
	if (same && equalTupleDescs(table->desc, RelationGetDescr(rel)) &&
		rule->region_attno == table->region_attno)
	{
		table->is_directory = rule->is_directory;
		return;
	}
	for (int k = 0; same && k < table->nkeys; k++)
		if (TupleDescAttr(RelationGetDescr(rel), table->keys[k] - 1)->atttypid !=
			table->key_types[k])
			same = false;
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change the primary key of global table \"%s\" in a transaction that has written it",
						RelationGetRelationName(rel)),
				 errhint("Commit first, and change the table with residency.run_everywhere().")));
	hash_old_rows(table);
	old = MemoryContextSwitchTo(note_context);
	table->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
	MemoryContextSwitchTo(old);
	table->region_attno = rule->region_attno;
	table->is_directory = rule->is_directory;
}

/*
 * The entry of a global table in the current transaction, made at its first use.
 * Throws if the table is not declared global or has no usable primary key.
 */
NoteTable *
residency_note_table(Relation rel)
{
	NoteTable  *table;
	dlist_iter	iter;

	dlist_foreach(iter, &note_tables)
	{
		table = dlist_container(NoteTable, node, iter.cur);
		if (table->relid == RelationGetRelid(rel))
		{
			if (table->stale)
				refresh_table(table, rel);
			return table;
		}
	}
	return make_table(rel);
}

/* Marks a note for sending. */
static void
make_dirty(Note *note)
{
	if (!note->dirty)
	{
		note->dirty = true;
		residency_notes_dirty++;
	}
}

/* Takes the mark away. */
static void
make_clean(Note *note)
{
	if (note->dirty)
	{
		note->dirty = false;
		residency_notes_dirty--;
	}
}

/*
 * Enters a note that carries the level of a subtransaction into the list that the
 * end of a subtransaction looks through; else a loop of small subtransactions
 * would look through all notes each time.
 */
static void
make_deep(Note *note, int level)
{
	if (level > 1 && !note->deep)
	{
		note->deep = true;
		dlist_push_tail(&deep_notes, &note->deep_node);
	}
}

/*
 * The note of a key, made if there is none; *found tells which.  Key values are
 * copied.  A new note is clean, and its base pending: see the functions below.
 */
Note *
residency_note_row(NoteTable *table, const Datum *key, bool *found)
{
	Note	   *probe = table->probe;
	Size		size = offsetof(Note, key) + sizeof(Datum) * table->nkeys;
	NoteSlot   *slot;
	Note	   *note;
	MemoryContext old;

	memcpy(probe->key, key, sizeof(Datum) * table->nkeys);
	probe->hash = key_hash(table, key);
	slot = notehash_lookup(table->hash, probe);
	*found = slot != NULL;
	if (slot)
		return slot->note;

	old = MemoryContextSwitchTo(note_context);
	note = palloc0(size);
	note->table = table;
	note->kind = NOTE_ROW;
	note->hash = probe->hash;
	note->level = GetCurrentTransactionNestLevel();
	note->base = BASE_PENDING;
	for (int k = 0; k < table->nkeys; k++)
	{
		if (table->lens[k] == -1)
			note->key[k] = PointerGetDatum(PG_DETOAST_DATUM_COPY(key[k]));
		else
			note->key[k] = datumCopy(key[k], table->byvals[k], table->lens[k]);
		if (!table->byvals[k])
			size += datumGetSize(note->key[k], false, table->lens[k]);
	}
	slot = notehash_insert(table->hash, note, found);
	slot->note = note;
	*found = false;
	MemoryContextSwitchTo(old);
	residency_notes_bytes += size + sizeof(NoteSlot) * 2;
	dlist_push_tail(&residency_notes, &note->node);
	make_deep(note, note->level);
	return note;
}

/* The row may have changed: it is to be sent. */
void
residency_note_touch(Note *note)
{
	make_dirty(note);
}

/*
 * Says what the row was before the transaction.  "old" is the old row of an event,
 * NULL for an INSERT; "ours" tells that this transaction had made that old row.
 */
void
residency_note_base(Note *note, HeapTuple old, bool ours)
{
	if (old != NULL && !ours)
	{
		MemoryContext context;

		if (note->base == BASE_TUPLE || note->base == BASE_VERSION)
			return;
		context = MemoryContextSwitchTo(note_context);
		note->old = heap_copytuple(old);
		MemoryContextSwitchTo(context);
		note->base = BASE_TUPLE;
		residency_notes_bytes += HEAPTUPLESIZE + note->old->t_len;
	}
	else if (note->base != BASE_PENDING)
		return;
	else if (old == NULL)
		note->base = BASE_ABSENT;
	else if (note->table->forgot)
		note->base = BASE_OURS;
}

/* The old row has been hashed; the copy is freed. */
void
residency_note_version(Note *note, uint64 version)
{
	Assert(note->base == BASE_TUPLE);
	residency_notes_bytes -= HEAPTUPLESIZE + note->old->t_len;
	heap_freetuple(note->old);
	note->old = NULL;
	note->version = version;
	note->base = BASE_VERSION;
}

/*
 * A row's key changed from one to the other.  Both notes go behind the move, so
 * that the row is renamed before either key's state is sent.  With "pretransaction"
 * the row had the first key before the transaction; a move that goes on from the
 * second key is then the later one, although its event came first (a row trigger
 * that changes the key again).
 */
void
residency_note_move(NoteTable *table, Note *from, Note *to, bool to_was_noted,
					bool pretransaction)
{
	MemoryContext old = MemoryContextSwitchTo(note_context);
	Note	   *move = palloc0(sizeof(Note));
	dlist_node *before = NULL;
	dlist_iter	iter;

	MemoryContextSwitchTo(old);
	move->table = table;
	move->kind = NOTE_MOVE;
	move->level = GetCurrentTransactionNestLevel();
	move->from = from;
	move->to = to;
	move->vacate = to_was_noted;

	if (pretransaction && table->has_moves)
		dlist_foreach(iter, &residency_notes)
		{
			Note	   *other = dlist_container(Note, node, iter.cur);

			if (other->kind == NOTE_MOVE && other->table == table && other->dirty &&
				other->from == to)
			{
				move->vacate = false;
				before = iter.cur;
				break;
			}
		}
	if (before)
		dlist_insert_before(before, &move->node);
	else
		dlist_push_tail(&residency_notes, &move->node);
	dlist_delete(&from->node);
	dlist_push_tail(&residency_notes, &from->node);
	if (!before)
	{
		dlist_delete(&to->node);
		dlist_push_tail(&residency_notes, &to->node);
	}
	table->has_moves = true;
	residency_notes_bytes += sizeof(Note);
	make_deep(move, move->level);
	make_dirty(move);
}

/* The note's record is on its way. */
void
residency_note_sent(Note *note)
{
	int			level = GetCurrentTransactionNestLevel();

	make_clean(note);
	if (note->first_sent == 0)
		note->first_sent = level;
	note->last_sent = level;
	make_deep(note, level);
}

/*
 * The note has nothing to tell: no such row before, none now.  An abort of the
 * subtransaction that came to this makes it dirty again, as if it had been sent.
 */
void
residency_note_skipped(Note *note)
{
	make_clean(note);
	note->last_sent = GetCurrentTransactionNestLevel();
	make_deep(note, note->last_sent);
}

/*
 * TRUNCATE: all that was noted of the table is settled, as if each key had been
 * sent as absent.
 */
void
residency_notes_settle_table(NoteTable *table)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		if (note->table == table)
			residency_note_sent(note);
	}
}

/* Frees a note and all that hangs on it. */
static void
drop_note(Note *note)
{
	NoteTable  *table = note->table;
	Size		size = sizeof(Note);

	make_clean(note);
	dlist_delete(&note->node);
	if (note->deep)
		dlist_delete(&note->deep_node);
	if (note->kind == NOTE_ROW)
	{
		size = offsetof(Note, key) + sizeof(Datum) * table->nkeys + sizeof(NoteSlot) * 2;
		notehash_delete(table->hash, note);
		if (note->old)
		{
			size += HEAPTUPLESIZE + note->old->t_len;
			heap_freetuple(note->old);
		}
		for (int k = 0; k < table->nkeys; k++)
			if (!table->byvals[k])
			{
				size += datumGetSize(note->key[k], false, table->lens[k]);
				pfree(DatumGetPointer(note->key[k]));
			}
	}
	residency_notes_bytes -= Min(size, residency_notes_bytes);
	pfree(note);
}

/*
 * Drops notes that will not be needed again, when there are very many: those sent
 * at the level that made them, which an abort would undo together with the note.
 * A row that is written again later is recognized as ours by its old version.
 */
void
residency_notes_forget_sent(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		if (note->dirty || note->table->has_moves || note->last_sent > note->level)
			continue;
		note->table->forgot = true;
		drop_note(note);
	}
}

/*
 * The name of a home region as a string that lives as long as the notes do, so
 * that equal homes are equal pointers.  "value" is the region column's.
 */
const char *
residency_note_home(NoteTable *table, Datum value)
{
	char	   *name = OutputFunctionCall(&table->region_out, value);
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, home_names)
		if (strcmp(lfirst(lc), name) == 0)
			return lfirst(lc);
	old = MemoryContextSwitchTo(note_context);
	name = pstrdup(name);
	home_names = lappend(home_names, name);
	MemoryContextSwitchTo(old);
	return name;
}

/* A subtransaction is gone: so is what it noted, and what it sent is to be sent again. */
static void
undo_level(int level)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &deep_notes)
	{
		Note	   *note = dlist_container(Note, deep_node, iter.cur);

		if (note->level >= level)
			drop_note(note);
		else if (note->last_sent >= level)
		{
			make_dirty(note);
			if (note->first_sent >= level)
				note->first_sent = 0;
			note->last_sent = note->first_sent;
		}
	}
}

/* A subtransaction has become part of its parent. */
static void
merge_level(int level)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &deep_notes)
	{
		Note	   *note = dlist_container(Note, deep_node, iter.cur);

		note->level = Min(note->level, level - 1);
		note->first_sent = Min(note->first_sent, level - 1);
		note->last_sent = Min(note->last_sent, level - 1);
		if (level == 2)
		{
			note->deep = false;
			dlist_delete(&note->deep_node);
		}
	}
}

/* The notes end with the transaction, however it ends. */
static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		reset_notes();
}

/* Runs while the level is still the subtransaction's own. */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId mine,
					 SubTransactionId parent, void *arg)
{
	if (note_context == NULL)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		undo_level(GetCurrentTransactionNestLevel());
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		merge_level(GetCurrentTransactionNestLevel());
}

/* A relation changed; InvalidOid means any.  May run anywhere, so it only marks. */
static void
relation_changed(Datum arg, Oid relid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &note_tables)
	{
		NoteTable  *table = dlist_container(NoteTable, node, iter.cur);

		if (relid == InvalidOid || relid == table->relid)
			table->stale = true;
	}
}

/* Called once per backend from _PG_init. */
void
residency_notes_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
}
