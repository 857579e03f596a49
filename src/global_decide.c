/*
 * global_decide.c
 *		The steps of residency.resolve_conflict() in each region that knows the conflict.
 *
 * An entry of kind "key" is decided alone, told by the region whose row does not hold: each
 * of several regions may have made a row.  Entries of other kinds are forgotten together, and
 * their rows are shipped anew.
 *
 * If that region still has its own row (global_catchup_apply.c), it gives it up: from then on
 * the row's home is where the row that holds has its own, which notes the key, and ships its
 * row over it.  What refers to the row there has been dealt with before; else the foreign key
 * fails, and nothing is decided.
 */
#include "residency.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/varlena.h"

#include "commit_internal.h"
#include "global_backlog.h"
#include "global_target.h"
#include "guard.h"
#include "regions.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(residency_forget_conflict);
PG_FUNCTION_INFO_V1(residency_forget_conflict_in);

#define FORGET_SQL \
	"SELECT residency.forget_conflict($1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text)"

/* throws unless another region or a superuser calls */
static void
require_rights(void)
{
	if (residency_session_gateway() == NULL && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to decide about conflicts")));
}

/* a table by its qualified name; InvalidOid if there is none */
static Oid
relation_named(text *qualified)
{
	RangeVar   *name = makeRangeVarFromNameList(textToQualifiedNameList(qualified));
	Oid			schema = get_namespace_oid(name->schemaname, true);

	return OidIsValid(schema) ? get_relname_relid(name->relname, schema) : InvalidOid;
}

/* The record of the probe's row with that home, as it is applied; in the current context. */
static char *
record_with_home(RowProbe *probe, const char *home)
{
	TupleDesc	desc = RelationGetDescr(probe->rel);
	Form_pg_attribute attr = TupleDescAttr(desc, probe->region_attno - 1);
	StringInfoData record;
	Oid			function;
	Oid			ioparam;

	memcpy(probe->values, probe->slot->tts_values, sizeof(Datum) * desc->natts);
	memcpy(probe->nulls, probe->slot->tts_isnull, sizeof(bool) * desc->natts);
	getTypeInputInfo(attr->atttypid, &function, &ioparam);
	probe->values[attr->attnum - 1] = OidInputFunctionCall(function, unconstify(char *, home),
														   ioparam, attr->atttypmod);
	probe->nulls[attr->attnum - 1] = false;
	initStringInfo(&record);
	residency_text_head(&record, CHANGE_STATE, CHECK_NONE, 1, 0, 0);
	residency_text_row(&record, probe->text, probe->values, probe->nulls);
	return record.data;
}

/*
 * The row of that key here, if its home is here, becomes a copy of a row with that home.
 * Nobody captures it.
 */
static void
hand_over(char *relation, char *key, const char *home)
{
	ApplyRun	run = {.limit = -1, .last = true};
	ChangeReader reader = {.next = key, .end = key + strlen(key)};
	int			level = residency_text_begin();
	ApplyTarget *target;
	RowProbe   *probe;
	ProbeResult found;

	residency_target_open_all(&run, list_make1(relation), RowExclusiveLock);
	target = linitial(run.targets);
	probe = residency_probe_open(target->rel);
	residency_text_read_key(&reader, probe->text, probe->values, probe->nulls);
	found = residency_probe_row(probe, true);
	if (found == PROBE_BUSY)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a row of global table \"%s\" that is to be decided about is being written",
						RelationGetRelationName(target->rel)),
				 errhint("Try the transaction again.")));
	if (found == PROBE_ROW && strcmp(residency_probe_home(probe), residency_self()->region) == 0)
	{
		char	   *record = record_with_home(probe, home);

		memset(&reader, 0, sizeof(ChangeReader));
		reader.next = record;
		reader.end = record + strlen(record);
		(void) residency_text_next(&reader);
		residency_target_apply(&run, target, &reader);
	}
	residency_probe_close(probe);
	residency_target_close_all(&run);
	residency_text_end(level);
}

/*
 * SQL: residency.forget_conflict(relation, key, loser).  Deletes the entry of kind "key" of
 * that region's row, and those of other kinds, here.  A row that the region still has is
 * given up there.  What broke a constraint, or what that row kept out, is noted again at its
 * home.
 */
Datum
residency_forget_conflict(PG_FUNCTION_ARGS)
{
	char	   *relation = text_to_cstring(PG_GETARG_TEXT_PP(0));
	const char *self = residency_self()->region;
	char	   *loser = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];

	require_rights();
	values[0] = ObjectIdGetDatum(relation_named(PG_GETARG_TEXT_PP(0)));
	values[1] = PG_GETARG_DATUM(1);
	values[2] = PG_GETARG_DATUM(2);
	values[3] = CStringGetTextDatum(self);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (strcmp(loser, self) == 0)
	{
		residency_spi_as_owner("SELECT home FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
							   "AND key OPERATOR(pg_catalog.=) $2 AND region OPERATOR(pg_catalog.=) $3 "
							   "AND kind OPERATOR(pg_catalog.=) 'key' AND constraint_name IS NOT NULL",
							   3, types, values, false);
		if (SPI_processed > 0)
			hand_over(relation, text_to_cstring(PG_GETARG_TEXT_PP(1)),
					  SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	}
	residency_spi_as_owner("WITH c AS (DELETE FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND key OPERATOR(pg_catalog.=) $2 "
						   "AND (kind OPERATOR(pg_catalog.<>) 'key' OR region OPERATOR(pg_catalog.=) $3) "
						   "RETURNING relation, key, region, kind, home, constraint_name) "
						   "INSERT INTO residency.backlog (region, relation, key) SELECT DISTINCT region, relation, key "
						   "FROM c WHERE (kind OPERATOR(pg_catalog.<>) 'key' OR constraint_name IS NOT NULL) "
						   "AND home OPERATOR(pg_catalog.=) $4 "
						   "ON CONFLICT DO NOTHING", lengthof(types), types, values, false);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * SQL: residency.forget_conflict_in(region, relation, key, loser).  Has another region do the same,
 * in the current transaction; class 08 if it does not answer.
 */
Datum
residency_forget_conflict_in(PG_FUNCTION_ARGS)
{
	Oid			server = residency_region_server(NameStr(*PG_GETARG_NAME(0)));
	const char *values[3];
	RemoteRequest *request;

	require_rights();
	values[0] = text_to_cstring(PG_GETARG_TEXT_PP(1));
	values[1] = text_to_cstring(PG_GETARG_TEXT_PP(2));
	values[2] = text_to_cstring(PG_GETARG_TEXT_PP(3));
	request = residency_remote_send(residency_remote_region(server), GetUserId(), FORGET_SQL, 3, values,
									REMOTE_WRITES | REMOTE_AS_GATEWAY, -1);
	(void) residency_remote_wait(request);
	residency_remote_release(request);
	PG_RETURN_VOID();
}
