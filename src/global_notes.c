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
bool		residency_notes_freed = false;

static dlist_head deep_notes = DLIST_STATIC_INIT(deep_notes);
MemoryContext residency_note_context = NULL;

static List *home_names = NIL;	/* char *, interned */

/*
 * When notes are sent in the middle of a statement: with so many new ones, or with as many as
 * were kept the last time if that is more, so that going through those costs little for each.
 */
#define NOTES_LIMIT			20000
#define NOTES_BYTES_LIMIT	(8 * 1024 * 1024)

static int	notes_kept = 0;
static int	dirty_kept = 0;
static Size bytes_kept = 0;

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
	residency_note_tables_reset();
	residency_notes_dirty = 0;
	residency_notes_bytes = 0;
	residency_notes_freed = false;
	notes_kept = 0;
	dirty_kept = 0;
	bytes_kept = 0;
	residency_note_context = NULL;
	home_names = NIL;
}

/* An empty hash of a table's notes, which lives as long as the context. */
struct notehash_hash *
residency_note_hash_make(MemoryContext context)
{
	return notehash_create(context, 64, NULL);
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

	old = MemoryContextSwitchTo(residency_note_context);
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

/* The row may have changed: it is to be sent, after what is to be sent already. */
void
residency_note_touch(Note *note)
{
	if (note->dirty)
		return;
	dlist_delete(&note->node);
	dlist_push_tail(&residency_notes, &note->node);
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
		context = MemoryContextSwitchTo(residency_note_context);
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
 * that the row is renamed before either key's state is sent.  With "came_late" the
 * event is the one by which the second key came into being, and another one that
 * concerns that key was seen before it: a row trigger has changed the key again, and
 * the move that goes on from there is the later one, although its event came first.
 */
void
residency_note_move(NoteTable *table, Note *from, Note *to, bool to_was_noted,
					bool came_late)
{
	MemoryContext old = MemoryContextSwitchTo(residency_note_context);
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

	if (came_late && table->has_moves)
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

/* True if a note was sent at the level that made it, which an abort would undo with the note. */
static bool
is_done(Note *note)
{
	return !note->dirty && note->last_sent <= note->level;
}

/*
 * Drops notes that will not be needed again, when there are very many: moves first, as
 * long as there is one of a table it needs the notes of both its keys.  A row that is
 * written again later is recognized as ours by its old version.
 */
void
residency_notes_forget_sent(void)
{
	dlist_mutable_iter iter;
	dlist_iter	moves;

	dlist_foreach_modify(iter, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		note->table->has_moves = false;
		if (note->kind == NOTE_MOVE && is_done(note))
			drop_note(note);
	}
	dlist_foreach(moves, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, moves.cur);

		note->table->has_moves |= note->kind == NOTE_MOVE;
	}
	notes_kept = 0;
	dlist_foreach_modify(iter, &residency_notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		if (note->table->has_moves || !is_done(note))
		{
			notes_kept++;
			continue;
		}
		note->table->forgot = true;
		drop_note(note);
	}
	dirty_kept = residency_notes_dirty;
	bytes_kept = residency_notes_bytes;
}

/* True if so much is noted that it should be sent before the statement ends. */
bool
residency_notes_full(void)
{
	return residency_notes_dirty > dirty_kept + Max(NOTES_LIMIT, notes_kept) ||
		residency_notes_bytes > bytes_kept + Max(NOTES_BYTES_LIMIT, bytes_kept);
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
	old = MemoryContextSwitchTo(residency_note_context);
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
	if (residency_note_context == NULL)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		undo_level(GetCurrentTransactionNestLevel());
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		merge_level(GetCurrentTransactionNestLevel());
}

/* Called once per backend from _PG_init. */
void
residency_notes_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
	residency_note_tables_init();
}
