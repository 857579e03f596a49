/*
 * global_conflicts.c
 *		Rows of global tables that could not be shipped to a region.
 *
 * A row goes whole to residency.conflict, at its home and in the region that could not
 * take it, in the transaction that ships it:
 *
 *	kind "key"			rows of one key were made in two regions that could not see each other.
 *						The row of the region first by name ("home") holds everywhere; "row" is
 *						the other one, made in "region".  Until somebody decides, writes of the
 *						key get 40001 at its home, so that nothing is built on the wrong one.
 *						With a constraint's name "region" still has its own row, as the one that
 *						holds would break that constraint there.
 *	unique, reference,	"region" cannot take the row, because of that constraint of a row that
 *	other				it has, or lacks; "row" is the row as it was shipped.  It is shipped anew
 *						now and then; success, or residency.resolve_conflict(), deletes the entry.
 */
#include "residency.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "commit_internal.h"
#include "compat.h"
#include "global_backlog.h"
#include "guard.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_key_values);
PG_FUNCTION_INFO_V1(residency_key_text);

/* The OID of residency.conflict; InvalidOid in a database without the extension. */
static Oid
conflict_table(void)
{
	Oid			schema = get_namespace_oid(RESIDENCY_SCHEMA, true);

	return OidIsValid(schema) ? get_relname_relid("conflict", schema) : InvalidOid;
}

/*
 * False if there is no conflict, nor is one being stored or decided: the cheap test, once for
 * each batch, before keys are looked up one by one.  Blocks alone do not tell, as entries that
 * are gone leave theirs behind.
 */
bool
residency_conflicts_exist(void)
{
	Oid			relid = conflict_table();
	Relation	rel;
	bool		exist;

	if (!OidIsValid(relid))
		return false;
	rel = table_open(relid, AccessShareLock);
	exist = RelationGetNumberOfBlocks(rel) > 0;
	if (exist)
	{
		SnapshotData dirty;
		TableScanDesc scan;
		TupleTableSlot *slot = table_slot_create(rel, NULL);

		/* also sees what is not committed yet */
		InitDirtySnapshot(dirty);
		scan = table_beginscan(rel, &dirty, 0, NULL);
		exist = table_scan_getnextslot(scan, ForwardScanDirection, slot);
		table_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
	}
	table_close(rel, AccessShareLock);
	return exist;
}

/*
 * Throws 40001 if two rows of the key were made apart, and nobody has decided yet.  For each
 * row that is written at home while there is any conflict, so the plan is kept.
 */
void
residency_conflict_check(Oid relid, const char *key)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(key)};
	bool		found;
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	if (plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare("SELECT FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
									   "AND key OPERATOR(pg_catalog.=) $2 AND kind OPERATOR(pg_catalog.=) 'key'",
									   lengthof(types), types);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "SPI_prepare failed");
		plan = made;
	}
	if (SPI_execute_plan(plan, values, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "conflicts cannot be looked up");
	found = SPI_processed > 0;
	PopActiveSnapshot();
	SPI_finish();
	SetUserIdAndSecContext(user, context);
	if (found)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("two rows of global table \"%s\" were made with the same key", get_rel_name(relid)),
				 errdetail("Their regions could not reach each other. One of them holds everywhere, the other one is in residency.conflicts."),
				 errhint("SELECT * FROM residency.conflicts; then decide with residency.resolve_conflict().")));
}

/*
 * True if the home of the row that is here has shipped that it has none, and that could not be
 * done because of what refers to it.
 */
bool
residency_conflict_given_up(Oid relid, const char *key, const char *home)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(key),
	CStringGetTextDatum(residency_self()->region), CStringGetTextDatum(home)};
	bool		found;

	if (!residency_conflicts_exist())
		return false;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("SELECT FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND key OPERATOR(pg_catalog.=) $2 AND region OPERATOR(pg_catalog.=) $3 "
						   "AND home OPERATOR(pg_catalog.=) $4 AND kind OPERATOR(pg_catalog.=) 'reference' "
						   "AND content IS NULL",
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/*
 * Stores a row that could not be shipped, or replaces what was stored of it; it stays
 * noticed when it was first.
 */
void
residency_conflict_store(Oid relid, const char *key, const char *kind, const char *region,
						 const char *home, const char *constraint, const char *row)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1] = "       ";
	Oid			user;
	int			context;

	values[0] = ObjectIdGetDatum(relid);
	values[1] = CStringGetTextDatum(key);
	values[2] = CStringGetTextDatum(kind ? kind : "other");
	values[3] = CStringGetTextDatum(region);
	values[4] = CStringGetTextDatum(home);
	values[5] = constraint ? CStringGetTextDatum(constraint) : (Datum) 0;
	values[6] = row ? CStringGetTextDatum(row) : (Datum) 0;
	nulls[5] = constraint ? ' ' : 'n';
	nulls[6] = row ? ' ' : 'n';
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("INSERT INTO residency.conflict AS c "
							  "(relation, key, kind, region, home, constraint_name, content) "
							  "VALUES ($1, $2, $3, $4, $5, $6, $7::pg_catalog.jsonb) "
							  "ON CONFLICT (relation, key, region, kind) DO UPDATE SET home = excluded.home, "
							  "constraint_name = excluded.constraint_name, content = excluded.content, "
							  "tried_at = excluded.tried_at",
							  lengthof(types), types, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "cannot store a conflict");
	SPI_finish();
	SetUserIdAndSecContext(user, context);
}

/*
 * The row of this key that was made here does not hold: that some region could not take it
 * is of no interest any more, nor that one keeps its own row instead of it, since that is now
 * between the region whose row holds and that one.
 */
void
residency_conflict_disown(Oid relid, const char *key)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(key), CStringGetTextDatum(residency_self()->region)};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("DELETE FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND key OPERATOR(pg_catalog.=) $2 AND (kind OPERATOR(pg_catalog.<>) 'key' OR "
						   "(home OPERATOR(pg_catalog.=) $3 AND constraint_name IS NOT NULL))",
						   lengthof(types), types, values, false);
	SPI_finish();
}

/*
 * The region whose row of this key holds, while the one made here stays; NULL if nobody has
 * said so yet.
 */
char *
residency_conflict_holder(Oid relid, const char *key)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(key), CStringGetTextDatum(residency_self()->region)};
	MemoryContext context = CurrentMemoryContext;
	char	   *holder = NULL;

	if (!residency_conflicts_exist())
		return NULL;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("SELECT home FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND key OPERATOR(pg_catalog.=) $2 AND region OPERATOR(pg_catalog.=) $3 "
						   "AND kind OPERATOR(pg_catalog.=) 'key' AND constraint_name IS NOT NULL",
						   lengthof(types), types, values, false);
	if (SPI_processed > 0)
		holder = MemoryContextStrdup(context, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	PopActiveSnapshot();
	SPI_finish();
	return holder;
}

/*
 * These keys have been shipped to the region after all, or what their home (NULL: any) has shipped does not
 * hold: their entries of broken constraints are deleted.  Arrays of oid and of text.
 */
void
residency_conflict_cured(const char *region, const char *home, Datum relations, Datum keys)
{
	Oid			types[] = {TEXTOID, OIDARRAYOID, TEXTARRAYOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(region), relations, keys, CStringGetTextDatum(home ? home : "")};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("DELETE FROM residency.conflict AS c USING ROWS FROM (pg_catalog.unnest($2), "
						   "pg_catalog.unnest($3)) AS a (t, k) WHERE c.relation OPERATOR(pg_catalog.=) a.t "
						   "AND c.key OPERATOR(pg_catalog.=) a.k AND c.region OPERATOR(pg_catalog.=) $1 "
						   "AND c.kind OPERATOR(pg_catalog.<>) 'key' "
						   "AND $4 OPERATOR(pg_catalog.=) ANY (ARRAY['', c.home::pg_catalog.text])",
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
	SPI_finish();
}

/* SQL: residency.key_values(key): the values of a key that is written as it travels */
Datum
residency_key_values(PG_FUNCTION_ARGS)
{
	char	   *key = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum		values[INDEX_MAX_KEYS];
	int			n = 0;

	while (*key != '\0' && n < INDEX_MAX_KEYS)
	{
		char	   *end;
		long		len = strtol(key, &end, 10);

		if (*end != ':' || len < 0 || (size_t) len > strlen(end + 1))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("this is not a key as it is noted")));
		values[n++] = PointerGetDatum(cstring_to_text_with_len(end + 1, (int) len));
		key = end + 1 + len;
	}
	PG_RETURN_DATUM(PointerGetDatum(compat_text_array(values, n)));
}

/* SQL: residency.key_text(values): the opposite */
Datum
residency_key_text(PG_FUNCTION_ARGS)
{
	Datum	   *elements;
	int			n;
	StringInfoData key;

	compat_deconstruct_text_array(PG_GETARG_ARRAYTYPE_P(0), &elements, &n);
	initStringInfo(&key);
	for (int i = 0; i < n; i++)
	{
		char	   *value = TextDatumGetCString(elements[i]);

		appendStringInfo(&key, "%d:%s", (int) strlen(value), value);
	}
	PG_RETURN_TEXT_P(cstring_to_text(key.data));
}
