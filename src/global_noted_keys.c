/*
 * global_noted_keys.c
 *		Keys that are noted, and what DDL may do to them.
 *
 * A note (residency.backlog) or a conflict has a row's key as text, read by the primary key
 * of the time at which it is shipped.  With another key it would name no row, or another
 * one, and a change would be lost.  So the key of a global table stays what it is while some
 * are noted here: an event trigger asks this file.
 *
 * What can still go wrong (a function that a domain's check calls is replaced, say) makes
 * single keys unreadable, and these must hold up no others: residency_keys_try.
 */
#include "residency.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "global_backlog.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_check_noted_keys);

/* keys that are read at a time */
#define KEYS_BATCH		1000

#define KEYS_SQL \
	"SELECT key FROM residency.backlog WHERE relation OPERATOR(pg_catalog.=) $1 " \
	"UNION ALL SELECT key FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1"

/*
 * Reads a key as it was noted, into arrays by attribute number.  Throws what the columns'
 * types throw, and 08P01 if it has another number of columns.
 */
void
residency_noted_key_read(char *key, GlobalText *text, Datum *values, bool *nulls)
{
	ChangeReader reader = {.next = key, .end = key + strlen(key)};

	residency_text_read_key(&reader, text, values, nulls);
	residency_text_finish(&reader);
}

/*
 * Runs a function that reads keys, in a subtransaction; false if it throws because of one.
 * Other errors, of the server or by cancelling, are thrown.  What it allocates is freed.
 */
bool
residency_keys_try(void (*read) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch = AllocSetContextCreate(context, "residency noted keys", ALLOCSET_DEFAULT_SIZES);
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(scratch);
		read(arg);
		ReleaseCurrentSubTransaction();
		ok = true;
	}
	PG_CATCH();
	{
		if (residency_error_meaning(geterrcode()) != ERROR_REFUSED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	MemoryContextDelete(scratch);
	return ok;
}

/* True if this transaction has written that version of a catalog's row. */
static bool
is_ours(HeapTuple tuple)
{
	return HeapTupleIsValid(tuple) &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
}

/*
 * True if the table has no primary key, or one that this transaction has made.  Other DDL
 * writes either its index anew (CLUSTER ON) or its constraint (RENAME), but not both.
 */
static bool
is_key_new(Relation rel)
{
	Oid			index = compat_primary_key_index(rel);
	HeapTuple	tuple;
	bool		is_new;

	if (!OidIsValid(index))
		return true;
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	is_new = is_ours(tuple);
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (!is_new)
		return false;
	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(get_index_constraint(index)));
	is_new = is_ours(tuple);
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return is_new;
}

/* True if DDL on types may concern the key: some column's type is none of the system's. */
static bool
has_own_types(RowProbe *probe)
{
	for (int k = 0; k < probe->nkeys; k++)
		if (TupleDescAttr(RelationGetDescr(probe->rel), probe->keys[k] - 1)->atttypid >= FirstNormalObjectId)
			return true;
	return false;
}

/* Reads the keys in SPI's result with a table's probe. */
static void
read_keys(void *arg)
{
	RowProbe   *probe = arg;

	for (uint64 i = 0; i < SPI_tuptable->numvals; i++)
		residency_noted_key_read(SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
								 probe->text, probe->values, probe->nulls);
}

/* True if all keys behind the portal can be read, as keys of that table. */
static bool
can_be_read(Portal portal, Relation rel)
{
	RowProbe   *probe = residency_probe_open(rel);
	int			level = residency_text_begin();
	bool		readable = true;

	while (readable && has_own_types(probe))
	{
		SPI_cursor_fetch(portal, true, KEYS_BATCH);
		if (SPI_processed == 0)
			break;
		readable = residency_keys_try(read_keys, probe);
		SPI_freetuptable(SPI_tuptable);
	}
	residency_text_end(level);
	residency_probe_close(probe);
	return readable;
}

/*
 * SQL: residency.check_noted_keys(relation, types).  Throws if this transaction has replaced
 * the primary key of a global table, or, with "types", done something to its types, so that
 * keys noted here would no longer be what they were.
 */
Datum
residency_check_noted_keys(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	bool		of_types = PG_GETARG_BOOL(1);
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relid)};
	Relation	rel = NULL;
	Portal		portal;
	bool		fits = true;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	/* whoever has noted something held a lock of the table, but maybe until just now */
	PushActiveSnapshot(GetLatestSnapshot());
	portal = SPI_cursor_open_with_args(NULL, KEYS_SQL, lengthof(types), types, values, NULL, true, 0);
	SPI_cursor_fetch(portal, true, 1);
	if (SPI_processed > 0)
		rel = try_relation_open(relid, AccessShareLock);
	if (rel != NULL)
	{
		fits = !is_key_new(rel);
		if (fits && of_types)
		{
			SPI_cursor_move(portal, false, 1);
			fits = can_be_read(portal, rel);
		}
		relation_close(rel, AccessShareLock);
	}
	SPI_cursor_close(portal);
	PopActiveSnapshot();
	SPI_finish();
	if (!fits)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change the key of global table \"%s\" while rows of it are noted for other regions",
						get_rel_name(relid)),
				 errdetail("They are noted by their keys, in residency.backlog or residency.conflict of region \"%s\".",
						   residency_self() ? residency_self()->region : "?"),
				 errhint("Wait until residency.catch_up there shows no notes, and decide what is in residency.conflicts; then try again.")));
	PG_RETURN_VOID();
}
