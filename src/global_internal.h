/*
 * global_internal.h
 *		What the files of the part "global tables" share.
 *
 * A change of a global table travels as a stream of records in one text
 * parameter; global_text.c writes and reads its fields, and this is its grammar:
 *
 *		record	:= kind check ' ' table ' ' home ' ' version ' ' fields
 *		kind	:= 'S' fields are all stored columns of the row as it is now
 *				 | 'D' fields are the key of a row that is no more
 *				 | 'M' fields are the old key, then the new key of a row
 *		check	:= 'v' the home must hold exactly this version
 *				 | 'a' the home must hold no such row
 *				 | 'n' no check: the transaction has changed the row there before
 *		table, home, version := unsigned hexadecimal; the first two are positions
 *				   in the arrays that come along
 *		field	:= length ':' bytes | '-' for NULL
 *
 * Lengths count bytes in the encoding that all regions share.
 */
#ifndef RESIDENCY_GLOBAL_INTERNAL_H
#define RESIDENCY_GLOBAL_INTERNAL_H

#include "global.h"

#include "access/htup.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "nodes/execnodes.h"
#include "storage/itemptr.h"
#include "storage/lockdefs.h"
#include "utils/rel.h"

/* global_text.c */
typedef enum ChangeKind
{
	CHANGE_STATE = 'S',
	CHANGE_DELETE = 'D',
	CHANGE_MOVE = 'M'
} ChangeKind;

typedef enum ChangeCheck
{
	CHECK_VERSION = 'v',
	CHECK_ABSENT = 'a',
	CHECK_NONE = 'n'
} ChangeCheck;

/* how the columns of one table become text and come back */
typedef struct GlobalText GlobalText;

/* one record's head, and where its fields begin */
typedef struct ChangeReader
{
	const char *next;			/* first byte not yet read */
	const char *end;
	ChangeKind	kind;
	ChangeCheck check;
	int			table;			/* 1.. */
	int			home;			/* 1.. */
	uint64		version;
} ChangeReader;

extern GlobalText *residency_text_make(TupleDesc desc, int nkeys, const AttrNumber *keys);
extern int	residency_text_begin(void);
extern void residency_text_end(int level);
extern uint64 residency_text_version(GlobalText *text, const Datum *values, const bool *nulls);
extern void residency_text_head(StringInfo buf, ChangeKind kind, ChangeCheck check,
								int table, int home, uint64 version);
extern void residency_text_row(StringInfo buf, GlobalText *text,
							   const Datum *values, const bool *nulls);
extern void residency_text_key(StringInfo buf, GlobalText *text, const Datum *keys);
extern bool residency_text_next(ChangeReader *reader);
extern bool residency_text_split(ChangeReader *reader, ChangeReader *record);
extern void residency_text_finish(ChangeReader *record);
extern void residency_text_read_row(ChangeReader *reader, GlobalText *text,
									Datum *values, bool *nulls);
extern void residency_text_read_key(ChangeReader *reader, GlobalText *text,
									Datum *values, bool *nulls);
/* the text of an array of strings, none of them NULL */
extern char *residency_text_array(List *strings);

/* global_notes.c */
/* what is known of a row's version from before this transaction */
typedef enum NoteBase
{
	BASE_PENDING,				/* the row was ours when first seen: the event that
								 * tells is still queued behind this one */
	BASE_ABSENT,				/* there was none */
	BASE_TUPLE,					/* note->old is a copy of it */
	BASE_VERSION,				/* note->version is its hash, the copy is gone */
	BASE_OURS					/* this transaction has sent it, and forgotten the note */
} NoteBase;

/* a global table that this transaction wrote */
typedef struct NoteTable
{
	dlist_node	node;
	Oid			relid;
	Oid			index;			/* primary key */
	AttrNumber	region_attno;
	bool		is_directory;
	bool		stale;			/* the relation was invalidated: compare desc */
	bool		forgot;			/* notes were sent and dropped to save memory */
	bool		has_moves;		/* some note is a NOTE_MOVE */
	TupleDesc	desc;			/* columns of the copies in note->old */
	FmgrInfo	region_out;		/* output function of the region column */
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];	/* in index order */
	Oid			key_types[INDEX_MAX_KEYS];
	Oid			collations[INDEX_MAX_KEYS];
	int16		lens[INDEX_MAX_KEYS];
	bool		byvals[INDEX_MAX_KEYS];
	FmgrInfo	equals[INDEX_MAX_KEYS];
	FmgrInfo	hashes[INDEX_MAX_KEYS]; /* fn_oid invalid: the type has none */
	Bitmapset  *further;		/* columns of further unique indexes, offset as in the core */
	struct Note *probe;			/* key to look up */
	struct notehash_hash *hash;
} NoteTable;

typedef enum NoteKind
{
	NOTE_ROW,					/* the row with this key may have changed */
	NOTE_MOVE					/* a row's key became another one */
} NoteKind;

/*
 * Levels are transaction nesting levels, 1 the outermost; 0 means never.  When a
 * subtransaction aborts, all that carries its level or a deeper one is undone; when
 * it commits, its level becomes its parent's.
 */
typedef struct Note
{
	dlist_node	node;			/* in the order in which they became dirty, see NOTE_MOVE */
	dlist_node	deep_node;		/* in that of what a subtransaction made or sent, if "deep" */
	NoteTable  *table;
	NoteKind	kind;
	bool		deep;
	bool		dirty;			/* to be sent (again) */
	int			level;			/* where it was made */
	int			first_sent;		/* from then on the regions need no check */
	int			last_sent;

	/* NOTE_MOVE; both keys' own notes are dirty and follow in the list */
	struct Note *from;
	struct Note *to;
	bool		vacate;			/* "to" was noted before: delete it first */

	/* NOTE_ROW */
	NoteBase	base;
	HeapTuple	old;
	uint64		version;
	const char *home;			/* interned; NULL until known */
	uint32		hash;
	Datum		key[FLEXIBLE_ARRAY_MEMBER];
} Note;

extern dlist_head residency_notes; /* all notes of the transaction, in order */
extern int	residency_notes_dirty;	/* how many are dirty */
extern Size residency_notes_bytes;	/* about what they use */
extern bool residency_notes_freed;	/* values of further unique indexes have become free */

extern MemoryContext residency_note_context;	/* of all notes; NULL while there are none */
extern struct notehash_hash *residency_note_hash_make(MemoryContext context);

/* global_note_tables.c */
extern NoteTable *residency_note_table(Relation rel);
extern void residency_note_tables_reset(void);
extern void residency_note_tables_init(void);

extern Note *residency_note_row(NoteTable *table, const Datum *key, bool *found);
extern void residency_note_touch(Note *note);
extern void residency_note_base(Note *note, HeapTuple old, bool ours);
extern void residency_note_move(NoteTable *table, Note *from, Note *to, bool to_was_noted,
								bool came_late);
extern void residency_note_sent(Note *note);
extern void residency_note_skipped(Note *note);
extern void residency_note_version(Note *note, uint64 version);
extern void residency_notes_settle_table(NoteTable *table);
extern void residency_notes_forget_sent(void);
extern bool residency_notes_full(void);
extern const char *residency_note_home(NoteTable *table, Datum value);
extern void residency_notes_init(void);

/* ---- global_send.c ---- */

extern void residency_global_send(bool all, bool last);
extern void residency_global_send_truncate(Relation rel, NoteTable *table);
extern void residency_send_init(void);

/* ---- global_apply.c ---- */

/* which rows a table's triggers are wanted for */
typedef enum ApplyScope
{
	SCOPE_CLEAR,				/* rows that TRUNCATE takes */
	SCOPE_COPY,					/* rows whose home is elsewhere */
	SCOPE_COPY_PIECE,			/* the same, in a piece that others follow */
	SCOPE_HOME_PIECE,			/* rows at home, in such a piece */
	SCOPE_HOME,					/* rows at home; fires all that the others fire */
	SCOPE_COUNT
} ApplyScope;

/* one call of residency.apply or apply_truncate */
typedef struct ApplyRun
{
	EState	   *estate;
	List	   *targets;		/* ApplyTarget, in the order of the call's array */
	int			limit;			/* lock timeout in force, ms; -1 none set yet */
	bool		last;			/* no further piece of the same batch follows */
	bool		many_owners;	/* the targets have more than one owner */
	ApplyScope	scope;			/* of the row at hand */
	Oid			owner;			/* of the triggers' query that is open; invalid: none is */
	bool		at_home;		/* the row at hand has its home here */
	const char *home;			/* where it is; NULL: a copy takes what comes */
	const char *table;			/* table at hand, for error reports */
	Oid			index;			/* its primary key */
	bool		deferred;		/* the client has deferred constraints */
	List	   *left_out;		/* char *: regions that do not get this */
	struct BacklogNotes *notes; /* rows at home that they do not get; NULL if nobody */
	bool		behind;			/* this region is one of them */
	bool		conflicts;		/* rows at home are looked up in residency.conflict */
	bool		shipped;		/* this is catch-up: global_catchup_apply.c */
	struct BacklogNotes *moved; /* moves of rows at home; NULL in catch-up */
	char	   *was;			/* of a move at hand: the old key, as it travels */
} ApplyRun;

/* global_triggers.c */
extern TriggerDesc *residency_triggers_for(Relation rel, ApplyScope scope, bool deferred, bool shipped);
extern bool residency_trigger_waits(Trigger *trigger, bool deferred);
extern bool residency_table_is_referred(Relation rel);
extern Oid	residency_trigger_function(Trigger *trigger, bool shipped);
extern void residency_triggers_init(void);

/* global_recheck.c: rows whose foreign keys are checked with the batch's last piece */
extern void residency_recheck_remember(Oid relid, bool home, bool deferred,
									   ItemPointer old, ItemPointer new);
extern void residency_recheck_all(void);
extern void residency_recheck_init(void);

#endif							/* RESIDENCY_GLOBAL_INTERNAL_H */
