/*
 * global_decide.c
 *		The steps of residency.resolve_conflict() in each region that knows the conflict.
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
#include "guard.h"
#include "regions.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(residency_forget_conflict);
PG_FUNCTION_INFO_V1(residency_forget_conflict_in);

#define FORGET_SQL \
	"SELECT residency.forget_conflict($1::pg_catalog.text, $2::pg_catalog.text)"

/* throws unless another region or a superuser calls */
static void
require_rights(void)
{
	if (residency_session_gateway() == NULL && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to decide about conflicts")));
}

/*
 * SQL: residency.forget_conflict(relation, key).  Deletes the entries of the key here.
 * What broke a constraint is noted again, if it was shipped from here.
 */
Datum
residency_forget_conflict(PG_FUNCTION_ARGS)
{
	RangeVar   *name = makeRangeVarFromNameList(textToQualifiedNameList(PG_GETARG_TEXT_PP(0)));
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];

	require_rights();
	values[0] = ObjectIdGetDatum(get_relname_relid(name->relname, get_namespace_oid(name->schemaname, true)));
	values[1] = PG_GETARG_DATUM(1);
	values[2] = CStringGetTextDatum(residency_self()->region);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("WITH c AS (DELETE FROM residency.conflict WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND key OPERATOR(pg_catalog.=) $2 RETURNING relation, key, region, kind, home) "
						   "INSERT INTO residency.backlog (region, relation, key) SELECT DISTINCT region, relation, key "
						   "FROM c WHERE kind OPERATOR(pg_catalog.<>) 'key' AND home OPERATOR(pg_catalog.=) $3 "
						   "ON CONFLICT DO NOTHING", lengthof(types), types, values, false);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * SQL: residency.forget_conflict_in(region, relation, key).  Has another region do the same,
 * in the current transaction; class 08 if it does not answer.
 */
Datum
residency_forget_conflict_in(PG_FUNCTION_ARGS)
{
	Oid			server = residency_region_server(NameStr(*PG_GETARG_NAME(0)));
	const char *values[2];
	RemoteRequest *request;

	require_rights();
	values[0] = text_to_cstring(PG_GETARG_TEXT_PP(1));
	values[1] = text_to_cstring(PG_GETARG_TEXT_PP(2));
	request = residency_remote_send(residency_remote_region(server), GetUserId(), FORGET_SQL, 2, values,
									REMOTE_WRITES | REMOTE_AS_GATEWAY, -1);
	(void) residency_remote_wait(request);
	residency_remote_release(request);
	PG_RETURN_VOID();
}
