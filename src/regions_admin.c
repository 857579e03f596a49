/*
 * regions_admin.c
 *		One SQL text in many regions, side by side, in one distributed transaction.
 *
 * residency.ask() is what the SQL functions of this part are built on: it queues a
 * statement on the admin connections of the regions named, runs it in this region
 * meanwhile if that is among them, and returns all rows as text.  The functions
 * that change regions and tables thus have the same shape: one step that every
 * region performs from its own catalogs, asked of all of them in one round trip.
 */
#include "residency.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "regions.h"
#include "regions_internal.h"

PG_FUNCTION_INFO_V1(residency_ask);
PG_FUNCTION_INFO_V1(residency_begin_change_sql);

/*
 * Key of the advisory lock that one change of a deployment holds; arbitrary, and the same
 * in all versions.
 */
#define CHANGE_LOCK_KEY INT64CONST(7366837215)
#define CHANGE_LOCK_SQL "SELECT pg_catalog.pg_advisory_xact_lock(7366837215)"

/* one region's part of residency.ask(); request is NULL for this region itself */
typedef struct AskedRegion
{
	char	   *name;
	RemoteRequest *request;
} AskedRegion;

/* Throws unless the current user is a superuser. */
void
residency_require_superuser(const char *what)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to %s", what)));
}

/*
 * The admin connection to a region, made with the current user's own mapping: a
 * PUBLIC mapping is the gateway's and has no business with DDL.  With joined
 * false the server may be one that is not in the catalog yet.
 */
RemoteRegion *
residency_admin_connection(const char *region, bool joined)
{
	Oid			serverid = joined ? residency_region_server(region) :
		get_foreign_server_oid(region, false);

	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(GetUserId()),
							   ObjectIdGetDatum(serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" has no admin mapping for region \"%s\"",
						GetUserNameFromId(GetUserId(), false), region),
				 errdetail("Changes of regions and tables use the mapping of the current user, not that of the gateway."),
				 errhint("Run CREATE USER MAPPING FOR CURRENT_USER SERVER %s OPTIONS (user '...', password '...') with a superuser of that region.",
						 quote_identifier(region))));
	return residency_remote_admin(serverid, joined);
}

/* Shortens this transaction's lock waits to residency.lock_timeout. */
static void
bound_lock_waits(const char *bound)
{
	if (LockTimeout == 0 || LockTimeout > residency_lock_timeout)
		(void) set_config_option("lock_timeout", bound, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

/* Gives the other regions the bound on lock waits, and the search_path unless NULL. */
static void
prepare_regions(List *regions, const char *bound, const char *search_path)
{
	const char *values[] = {bound, search_path};
	ListCell   *lc;

	foreach(lc, regions)
		residency_remote_send(residency_admin_connection(lfirst(lc), true), GetUserId(),
							  "SELECT pg_catalog.set_config('lock_timeout', $1::pg_catalog.text, true), "
							  "pg_catalog.set_config('search_path', COALESCE($2::pg_catalog.text, "
							  "pg_catalog.current_setting('search_path')), true)",
							  2, values,
							  REMOTE_WRITES | REMOTE_AS_GATEWAY | REMOTE_DEFERRED, -1);
}

/*
 * The lock below is free as soon as the last change is decided, and that may have to be applied here yet.
 * Its part has written these tables: whoever can lock them sees what it did.
 */
static void
await_last_change(void)
{
	static const char *const tables[] = {"region", "rule"};
	Oid			schema = get_namespace_oid(RESIDENCY_SCHEMA, false);

	for (int i = 0; i < lengthof(tables); i++)
		LockRelationOid(get_relname_relid(tables[i], schema), ShareRowExclusiveLock);
}

/*
 * Two changes at once would lock tables in different orders in different regions, so
 * all of them first take a lock in one fixed region, the one with the lowest number.
 * It lasts as long as the transaction there, prepared ones included.  While one region is
 * being replaced the lock is that of the first of the others: who still wants it from the
 * lost one gets no answer.
 */
void
residency_begin_change(const char *search_path, const char *without)
{
	const ResidencySelf *self = residency_self();
	char	   *bound = psprintf("%dms", residency_lock_timeout);
	List	   *regions = NIL;
	char	   *first;
	bool		here;
	ListCell   *lc;

	if (self == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is not a region yet"),
				 errhint("Run SELECT residency.init('name-of-this-region') first.")));
	foreach(lc, residency_other_regions())
		if (without == NULL || strcmp(lfirst(lc), without) != 0)
			regions = lappend(regions, pstrdup(lfirst(lc)));
	first = pstrdup(residency_first_region(without));
	here = strcmp(first, self->region) == 0;

	bound_lock_waits(bound);
	prepare_regions(regions, bound, search_path);
	if (here)
		DirectFunctionCall1(pg_advisory_xact_lock_int8, Int64GetDatum(CHANGE_LOCK_KEY));
	else
	{
		RemoteRequest *request =
			residency_remote_send(residency_admin_connection(first, true), GetUserId(),
								  CHANGE_LOCK_SQL, 0, NULL,
								  REMOTE_WRITES | REMOTE_AS_GATEWAY, -1);

		residency_remote_wait(request);
		residency_remote_release(request);
	}
	await_last_change();
	CommandCounterIncrement();
	AcceptInvalidationMessages();
}

/* residency.begin_change(without): the same for the SQL functions, which read and copy what is there once the
 * lock is held; an older snapshot would not show them what others have done until then. */
Datum
residency_begin_change_sql(PG_FUNCTION_ARGS)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("regions and tables are changed under READ COMMITTED only"),
				 errhint("Run SET default_transaction_isolation = 'read committed' first.")));
	residency_begin_change(NULL, PG_ARGISNULL(0) ? NULL : NameStr(*PG_GETARG_NAME(0)));
	PG_RETURN_VOID();
}

/* Adds a row (region, values) to the result. */
static void
put_row(ReturnSetInfo *rsinfo, const char *region, int n, char **values)
{
	Datum	   *items = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));
	int			dims[1] = {n};
	int			lbounds[1] = {1};
	Datum		row[2];
	bool		rownulls[2] = {false, false};
	NameData	name;

	for (int i = 0; i < n; i++)
	{
		nulls[i] = values[i] == NULL;
		items[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(values[i]);
	}
	namestrcpy(&name, region);
	row[0] = NameGetDatum(&name);
	row[1] = PointerGetDatum(n == 0 ? construct_empty_array(TEXTOID) :
							 construct_md_array(items, nulls, 1, dims, lbounds, TEXTOID,
												-1, false, TYPALIGN_INT));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, rownulls);
}

/* Runs the statement in this region, and collects its rows if any. */
static void
ask_here(ReturnSetInfo *rsinfo, const char *region, const char *sql, int nparams,
		 char **params)
{
	Oid		   *types = palloc(sizeof(Oid) * Max(nparams, 1));
	Datum	   *values = palloc(sizeof(Datum) * Max(nparams, 1));
	char	   *nulls = palloc(nparams + 1);
	int			rc;

	for (int i = 0; i < nparams; i++)
	{
		types[i] = TEXTOID;
		nulls[i] = params[i] == NULL ? 'n' : ' ';
		values[i] = params[i] == NULL ? (Datum) 0 : CStringGetTextDatum(params[i]);
	}
	if ((rc = SPI_connect()) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect: %s", SPI_result_code_string(rc));
	rc = SPI_execute_with_args(sql, nparams, types, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_with_args: %s", SPI_result_code_string(rc));
	if (SPI_tuptable != NULL)
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	  **row = palloc(sizeof(char *) * Max(desc->natts, 1));

		for (uint64 i = 0; i < SPI_processed; i++)
		{
			for (int col = 0; col < desc->natts; col++)
				row[col] = SPI_getvalue(SPI_tuptable->vals[i], desc, col + 1);
			put_row(rsinfo, region, desc->natts, row);
		}
	}
	SPI_finish();
}

/* Collects the rows of another region's answer. */
static void
put_answer(ReturnSetInfo *rsinfo, const char *region, PGresult *res)
{
	int			n = PQnfields(res);
	char	  **row = palloc(sizeof(char *) * Max(n, 1));

	for (int i = 0; i < PQntuples(res); i++)
	{
		for (int col = 0; col < n; col++)
			row[col] = PQgetisnull(res, i, col) ? NULL : PQgetvalue(res, i, col);
		put_row(rsinfo, region, n, row);
	}
}

/* Elements of a text or name array as C strings, NULL for SQL NULL. */
static char **
array_strings(ArrayType *array, Oid type, int *n)
{
	Datum	   *items;
	bool	   *nulls;
	char	  **strings;

	if (type == NAMEOID)
		deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
						  &items, &nulls, n);
	else
		deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &items, &nulls, n);
	strings = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		if (nulls[i])
			strings[i] = NULL;
		else if (type == NAMEOID)
			strings[i] = pstrdup(NameStr(*DatumGetName(items[i])));
		else
			strings[i] = TextDatumGetCString(items[i]);
	}
	return strings;
}

/*
 * residency.ask(regions name[], statement text, parameters text[], deferred
 * boolean, joined boolean) returns the rows of the statement in each region as
 * text.  A deferred one returns nothing from other regions, and does not wait for
 * them.  Parameters are text here and must be cast in the statement, which makes
 * their type the same whether it runs here or elsewhere.
 */
Datum
residency_ask(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const ResidencySelf *self = residency_self();
	char	   *own = self != NULL ? pstrdup(self->region) : NULL;
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(1));
	bool		deferred = PG_GETARG_BOOL(3);
	bool		joined = PG_GETARG_BOOL(4);
	int			nregions;
	int			nparams;
	char	  **names = array_strings(PG_GETARG_ARRAYTYPE_P(0), NAMEOID, &nregions);
	char	  **params = array_strings(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, &nparams);
	AskedRegion *asked = palloc0(sizeof(AskedRegion) * Max(nregions, 1));

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < nregions; i++)
	{
		asked[i].name = names[i];
		if (names[i] == NULL || (own != NULL && strcmp(names[i], own) == 0))
			continue;
		asked[i].request =
			residency_remote_send(residency_admin_connection(names[i], joined),
								  GetUserId(), sql, nparams,
								  (const char *const *) params,
								  REMOTE_WRITES | REMOTE_AS_GATEWAY |
								  (deferred ? REMOTE_DEFERRED : 0), -1);
	}
	residency_remote_flush();

	for (int i = 0; i < nregions; i++)
		if (asked[i].request == NULL && asked[i].name != NULL)
			ask_here(rsinfo, asked[i].name, sql, nparams, params);
	for (int i = 0; i < nregions && !deferred; i++)
	{
		if (asked[i].request == NULL)
			continue;
		put_answer(rsinfo, asked[i].name, residency_remote_wait(asked[i].request));
		residency_remote_release(asked[i].request);
	}
	return (Datum) 0;
}
