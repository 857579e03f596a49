/*
 * commit_record.c
 *		The rows of residency.transaction: the decision here, each part's trace there.
 *
 * A row at the origin, written by the committing transaction itself, is the decision.
 * A row at a participant, written by its part, is visible once that part is committed:
 * whoever sees one knows that the decision was to commit.
 *
 * Rows are written as the bootstrap superuser, since clients have no right on the table.
 */
#include "commit_internal.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "fault.h"
#include "guard.h"
#include "regions.h"
#include "regions_internal.h"
#include "worker.h"

/* deletes rows of the origin $1 and its incarnation $2, but for those that a resolver holds, who
 * deletes them itself or leaves them to the next one: a commit waits for nobody here */
#define FINISHED(xids) \
	"finished AS (SELECT t.incarnation, t.xid, t.gids FROM residency.transaction t " \
	"WHERE t.incarnation OPERATOR(pg_catalog.=) $2 AND t.xid OPERATOR(pg_catalog.=) ANY (" xids ") " \
	"AND t.origin OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED), " \
	"deleted AS (DELETE FROM residency.transaction t USING finished f " \
	"WHERE t.incarnation OPERATOR(pg_catalog.=) f.incarnation AND t.xid OPERATOR(pg_catalog.=) f.xid " \
	"AND t.gids OPERATOR(pg_catalog.=) f.gids) "

#define INSERT_DECISION \
	"INSERT INTO residency.transaction (origin, incarnation, xid, gids, regions) " \
	"VALUES ($1, $2, $3::pg_catalog.xid8, $4::pg_catalog.text[], $5::pg_catalog.text[])"

#define INSERT_TRACE \
	"INSERT INTO residency.transaction (origin, incarnation, xid, gids, regions) VALUES ($1, $2, $3, $4, $5)"

PG_FUNCTION_INFO_V1(residency_announce_incarnation);
PG_FUNCTION_INFO_V1(residency_participate);
PG_FUNCTION_INFO_V1(residency_forget);

/*
 * Runs one statement of the extension's own with the owner's rights; returns the SPI
 * code.  SPI must be connected; the result is in SPI_tuptable.  Works in a read-only
 * transaction only if read_only.  The current memory context stays, where SPI would leave its own,
 * which ends with SPI_finish.
 */
int
residency_spi_as_owner(const char *sql, int nargs, Oid *types, Datum *values, bool read_only)
{
	MemoryContext memory = CurrentMemoryContext;
	Oid			user;
	int			context;
	int			code;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	code = SPI_execute_with_args(sql, nargs, types, values, NULL, read_only, 0);
	MemoryContextSwitchTo(memory);
	SetUserIdAndSecContext(user, context);
	if (code < 0)
		elog(ERROR, "SPI failed with code %d", code);
	return code;
}

/*
 * SQL: residency.announce_incarnation(incarnation), step of renew().  If the renewing transaction
 * does not commit, its parts still carry the new incarnation; so it is put on record
 * first, apart from that transaction, that gids of it are this region's own.
 */
Datum
residency_announce_incarnation(PG_FUNCTION_ARGS)
{
	const char *values[] = {psprintf(INT64_FORMAT, PG_GETARG_INT64(0))};

	residency_require_superuser("renew the incarnation of this region");
	if (!residency_worker_commit_apart("put the new incarnation on record",
									   "UPDATE residency.self SET announced = "
									   "pg_catalog.array_append(announced, $1::pg_catalog.int8)",
									   lengthof(values), values))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this region cannot be renewed in the transaction that has made it"),
				 errhint("COMMIT first, and then call residency.renew().")));
	PG_RETURN_VOID();
}

/*
 * Gids of this transaction's parts: unguessable, so nobody can occupy them.  They differ in
 * the part's number only, which is how participants know that two parts belong together;
 * an xid alone may come again after a crash.  Catch-up must know its batches from clients'
 * parts, also those that a process shipped which is no more: so the number tells.  Returns the
 * incarnation in them: renew() may give this region another one before the rest of the record is
 * written.
 */
int64
residency_commit_make_gids(RemoteRegion **regions, int n, uint64 xid)
{
	int64		incarnation = residency_self()->incarnation;
	uint32		random;

	if (!pg_strong_random(&random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("no random number could be made")));
	for (int i = 0; i < n; i++)
		snprintf(regions[i]->gid, sizeof(regions[i]->gid), "residency:%016llx:%llu:%d:%08x",
				 (unsigned long long) incarnation, (unsigned long long) xid,
				 regions[i]->ships ? RESIDENCY_GID_BATCH + i : i, random);
	return incarnation;
}

/* a text[] literal of C strings */
static char *
array_literal(int n, char **strings)
{
	Datum	   *datums = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = CStringGetTextDatum(strings[i]);
	return OidOutputFunctionCall(F_ARRAY_OUT,
								 PointerGetDatum(compat_text_array(datums, n)));
}

/* an xid8[] literal */
static char *
xids_literal(const uint64 *xids, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "", xids[i]);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* literals of the parts' gids and regions' names, in the same order */
void
residency_commit_arrays(RemoteRegion **regions, int n, char **gids, char **names)
{
	char	  **strings = palloc(n * sizeof(char *));

	for (int i = 0; i < n; i++)
		strings[i] = regions[i]->gid;
	*gids = array_literal(n, strings);
	for (int i = 0; i < n; i++)
		strings[i] = regions[i]->name;
	*names = array_literal(n, strings);
}

/*
 * Writes the decision row, and deletes those of earlier transactions that all their
 * regions have applied.  Part of the committing transaction.
 */
void
residency_commit_record(int64 incarnation, uint64 xid, const char *gids, const char *names,
						const uint64 *finished, int nfinished)
{
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		xid_text[32];

	snprintf(xid_text, sizeof(xid_text), UINT64_FORMAT, xid);
	values[0] = CStringGetTextDatum(residency_self()->region);
	values[1] = Int64GetDatum(incarnation);
	values[2] = CStringGetTextDatum(xid_text);
	values[3] = CStringGetTextDatum(gids);
	values[4] = CStringGetTextDatum(names);
	values[5] = CStringGetTextDatum(xids_literal(finished, nfinished));

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	residency_spi_as_owner(nfinished > 0 ? "WITH " FINISHED("$6::pg_catalog.xid8[]") INSERT_DECISION : INSERT_DECISION,
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
	SPI_finish();
}

/*
 * Queues what a participant's part must leave there besides its own writes: the trace
 * for whoever looks for the outcome.  It runs as the gateway's role, which then is the
 * owner of the prepared transaction, so that resolve() may finish it.
 */
void
residency_commit_queue_participate(RemoteRegion *region, int64 incarnation, uint64 xid,
								   const char *gids, const char *names)
{
	char		incarnation_text[32];
	char		xid_text[32];
	const char *values[6];

	snprintf(incarnation_text, sizeof(incarnation_text), INT64_FORMAT, incarnation);
	snprintf(xid_text, sizeof(xid_text), UINT64_FORMAT, xid);
	values[0] = residency_self()->region;
	values[1] = incarnation_text;
	values[2] = xid_text;
	values[3] = gids;
	values[4] = names;
	values[5] = xids_literal(region->finished, region->nfinished);
	region->forgetting = region->nfinished;
	residency_transaction_begin(region, InvalidOid, REMOTE_AS_GATEWAY);
	residency_pipeline_add(region, REMOTE_KIND_CONTROL,
						   "SELECT residency.participate($1::pg_catalog.text, $2::pg_catalog.int8, "
						   "$3::pg_catalog.xid8, $4::pg_catalog.text[], $5::pg_catalog.text[], "
						   "$6::pg_catalog.xid8[])",
						   lengthof(values), values, REMOTE_NAMED, -1);
	if (region->admin)
	{
		char	   *role = residency_role_at(region->serverid);

		if (role != NULL)
			residency_pipeline_control(region, psprintf("SET LOCAL ROLE %s", quote_identifier(role)));
	}
}

/* only gateways, and superusers during administration, may touch traces */
static void
require_gateway(void)
{
	if (residency_session_gateway() == NULL && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only a gateway may call this function")));
}

/* SQL: residency.participate(origin, incarnation, xid, gids, regions, finished) */
Datum
residency_participate(PG_FUNCTION_ARGS)
{
	Oid			types[] = {TEXTOID, INT8OID, XID8OID, TEXTARRAYOID, TEXTARRAYOID, XID8ARRAYOID};
	Datum		values[lengthof(types)];
	const char *gateway;

	require_gateway();
	gateway = residency_session_gateway();
	if (gateway != NULL && strcmp(text_to_cstring(PG_GETARG_TEXT_PP(0)), gateway) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("gateway \"%s\" may leave traces of its own transactions only", gateway)));
	/* hello has seen to it, but nobody says that to a newcomer */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	for (int i = 0; i < lengthof(types); i++)
		values[i] = PG_GETARG_DATUM(i);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner(ARR_NDIM(DatumGetArrayTypeP(values[5])) > 0 ? "WITH " FINISHED("$6") INSERT_TRACE : INSERT_TRACE,
						   lengthof(types), types, values, false);
	SPI_finish();
	RESIDENCY_FAULT(part_traced);
	PG_RETURN_VOID();
}

/* SQL: residency.forget(incarnation, xids): deletes traces that nobody needs any more; a
 * gateway's own ones only */
Datum
residency_forget(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT8OID, XID8ARRAYOID, TEXTOID};
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), (Datum) 0};
	const char *gateway = residency_session_gateway();

	require_gateway();
	values[2] = CStringGetTextDatum(gateway != NULL ? gateway : "");
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	/* never waits for a later transaction of the same gateway, which may be prepared */
	residency_spi_as_owner("DELETE FROM residency.transaction t USING ("
						   "SELECT f.xid FROM residency.transaction f "
						   "WHERE f.incarnation OPERATOR(pg_catalog.=) $1 "
						   "AND f.xid OPERATOR(pg_catalog.=) ANY ($2) "
						   "AND $3 OPERATOR(pg_catalog.=) ANY (ARRAY['', f.origin]) "
						   "FOR UPDATE SKIP LOCKED) s "
						   "WHERE t.incarnation OPERATOR(pg_catalog.=) $1 AND t.xid OPERATOR(pg_catalog.=) s.xid",
						   lengthof(types), types, values, false);
	SPI_finish();
	PG_RETURN_VOID();
}
