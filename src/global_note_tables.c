/*
 * global_note_tables.c
 *		The global tables that the current transaction has written.
 *
 * Each has an entry that tells how its keys are compared and which columns the copies
 * of its old rows have.  DDL in the same transaction makes an entry stale: at its next
 * use the old rows are hashed while their columns are still known.
 *
 * The entries live in the context of the notes (global_notes.c) and end with it.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "fdw.h"
#include "global_internal.h"
#include "regions.h"

static dlist_head note_tables = DLIST_STATIC_INIT(note_tables);

/* Forgets all entries; their memory goes with the context of the notes. */
void
residency_note_tables_reset(void)
{
	dlist_init(&note_tables);
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
		fmgr_info_cxt(get_opcode(equal), &table->equals[k], residency_note_context);
		table->hashes[k].fn_oid = InvalidOid;
		if (get_op_hash_functions(equal, &hash, &right_hash))
			fmgr_info_cxt(hash, &table->hashes[k], residency_note_context);
	}
	index_close(index, AccessShareLock);
}

/*
 * Fills in which columns further unique or exclusion constraints look at, so that a row's
 * change may make way for another row; the whole row stands for itself.
 */
static void
load_further(NoteTable *table, Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	Bitmapset  *columns = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index;

		if (lfirst_oid(lc) == table->index)
			continue;
		index = index_open(lfirst_oid(lc), AccessShareLock);
		if (index->rd_index->indisunique || index->rd_index->indisexclusion)
		{
			for (int k = 0; k < IndexRelationGetNumberOfKeyAttributes(index); k++)
				if (index->rd_index->indkey.values[k] != 0)
					columns = bms_add_member(columns, index->rd_index->indkey.values[k] - FirstLowInvalidHeapAttributeNumber);
			pull_varattnos((Node *) RelationGetIndexExpressions(index), 1, &columns);
			pull_varattnos((Node *) RelationGetIndexPredicate(index), 1, &columns);
		}
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	table->further = columns;
}

/* Makes the entry of a table that this transaction writes for the first time. */
static NoteTable *
make_table(Relation rel)
{
	const TableRule *rule = residency_table_rule(RelationGetRelid(rel));
	Oid			index = compat_primary_key_index(rel);
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

	if (residency_note_context == NULL)
		residency_note_context = AllocSetContextCreate(TopTransactionContext,
											 "residency notes", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(residency_note_context);
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
	load_further(table, rel);
	table->probe = palloc0(offsetof(Note, key) + sizeof(Datum) * table->nkeys);
	table->probe->table = table;
	table->hash = residency_note_hash_make(residency_note_context);
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
	Oid			index = compat_primary_key_index(rel);
	bool		same = rule != NULL && index == table->index;
	MemoryContext old;

	table->stale = false;
	old = MemoryContextSwitchTo(residency_note_context);
	load_further(table, rel);
	MemoryContextSwitchTo(old);
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
	old = MemoryContextSwitchTo(residency_note_context);
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

/* Called once per backend, with the notes. */
void
residency_note_tables_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
}
