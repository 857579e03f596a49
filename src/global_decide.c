/*
 * global_decide.c
 *		What a region does when another one says that a conflict is over: the steps of
 *		residency.resolve_conflict(), and of a shipper whose row has got another home.
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
#include "compat.h"
#include "guard.h"
#include "regions.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(residency_forget_conflict);
PG_FUNCTION_INFO_V1(residency_forget_conflict_in);
PG_FUNCTION_INFO_V1(residency_forget_shipped);

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

/* a table by its qualified name; InvalidOid if there is none */
static Oid
relation_named(text *qualified)
{
	RangeVar   *name = makeRangeVarFromNameList(textToQualifiedNameList(qualified));
	Oid			schema = get_namespace_oid(name->schemaname, true);

	return OidIsValid(schema) ? get_relname_relid(name->relname, schema) : InvalidOid;
}

/*
 * SQL: residency.forget_conflict(relation, key).  Deletes the entries of the key here.
 * What broke a constraint is noted again, if it was shipped from here.
 */
Datum
residency_forget_conflict(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];

	require_rights();
	values[0] = ObjectIdGetDatum(relation_named(PG_GETARG_TEXT_PP(0)));
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

/*
 * SQL: residency.forget_shipped(tables, keys).  The gateway that calls ships these rows no more,
 * as they have another home: what this region could not take from it is forgotten.
 */
Datum
residency_forget_shipped(PG_FUNCTION_ARGS)
{
	const char *gateway = residency_session_gateway();
	Oid			types[] = {OIDARRAYOID, TEXTARRAYOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	Datum	   *names;
	Datum	   *relations;
	int			n;

	if (gateway == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("what was not shipped is forgotten in sessions opened by its shipper only")));
	compat_deconstruct_text_array(PG_GETARG_ARRAYTYPE_P(0), &names, &n);
	relations = palloc(sizeof(Datum) * Max(n, 1));
	for (int i = 0; i < n; i++)
		relations[i] = ObjectIdGetDatum(relation_named(DatumGetTextPP(names[i])));
	values[0] = PointerGetDatum(construct_array(relations, n, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	values[1] = PG_GETARG_DATUM(1);
	values[2] = CStringGetTextDatum(residency_self()->region);
	values[3] = CStringGetTextDatum(gateway);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("DELETE FROM residency.conflict AS c USING ROWS FROM (pg_catalog.unnest($1), "
						   "pg_catalog.unnest($2)) AS a (t, k) WHERE c.relation OPERATOR(pg_catalog.=) a.t "
						   "AND c.key OPERATOR(pg_catalog.=) a.k AND c.region OPERATOR(pg_catalog.=) $3 "
						   "AND c.home OPERATOR(pg_catalog.=) $4 AND c.kind OPERATOR(pg_catalog.<>) 'key'",
						   lengthof(types), types, values, false);
	SPI_finish();
	PG_RETURN_VOID();
}
