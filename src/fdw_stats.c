/*
 * fdw_stats.c
 *		ANALYZE of a foreign table: numbers from the home, no values.
 *
 * The core's ANALYZE samples rows and keeps values of them in pg_statistic.  For a
 * table of another region that would store personal data here.  So our sample is
 * always empty; instead the home is asked for residency.statistics() of its own
 * table, and the answer goes into residency.table_statistic and
 * residency.column_statistic, whence fdw_stats_planner.c feeds the planner.
 *
 * ANALYZE of a partitioned parent comes here for each foreign partition.  What it
 * samples then are rows of the local partition alone, which are at home.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "border.h"

/* columns of residency.statistics() */
enum
{
	STAT_COLUMN,
	STAT_NULL_FRACTION,
	STAT_WIDTH,
	STAT_DISTINCT,
	STAT_UNIQUE,
	STAT_ROWS,
	STAT_PAGES
};

/*
 * Runs one statement by SPI with text parameters; throws if that fails.
 */
static void
run(const char *sql, int nargs, const char *const *texts)
{
	Oid			types[6];
	Datum		values[6];
	int			code;

	Assert(nargs <= lengthof(types));
	for (int i = 0; i < nargs; i++)
	{
		types[i] = TEXTOID;
		values[i] = CStringGetTextDatum(texts[i]);
	}
	code = SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0);
	if (code < 0)
		elog(ERROR, "statistics could not be stored: %s", SPI_result_code_string(code));
}

/*
 * Replaces what is known about the relation by the answer of its home.
 *
 * The tables belong to the extension, and whoever may run ANALYZE may have this
 * done, so it is done as superuser; the statements are fixed and qualified.
 * Rows of relations that no longer exist go too.
 */
static void
store_statistics(Relation relation, PGresult *res)
{
	char	   *relid = psprintf("%u", RelationGetRelid(relation));
	Oid			save_userid;
	int			save_context;

	GetUserIdAndSecContext(&save_userid, &save_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   save_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	run("DELETE FROM residency.column_statistic WHERE relation OPERATOR(pg_catalog.=) $1::pg_catalog.oid"
		" OR NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) relation)",
		1, (const char *const[]) {relid});
	run("DELETE FROM residency.table_statistic WHERE relation OPERATOR(pg_catalog.=) $1::pg_catalog.oid"
		" OR NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) relation)",
		1, (const char *const[]) {relid});
	run("INSERT INTO residency.table_statistic (relation, row_count, page_count)"
		" VALUES ($1::pg_catalog.oid, $2::pg_catalog.float8, $3::pg_catalog.int4)",
		3, (const char *const[]) {relid, PQgetvalue(res, 0, STAT_ROWS), PQgetvalue(res, 0, STAT_PAGES)});
	for (int i = 0; i < PQntuples(res); i++)
		run("INSERT INTO residency.column_statistic"
			" (relation, column_name, null_fraction, width, distinct_values, is_unique)"
			" VALUES ($1::pg_catalog.oid, $2::pg_catalog.name, $3::pg_catalog.float4,"
			" $4::pg_catalog.int4, $5::pg_catalog.float4, $6::pg_catalog.bool)",
			6, (const char *const[]) {relid, PQgetvalue(res, i, STAT_COLUMN),
			PQgetvalue(res, i, STAT_NULL_FRACTION), PQgetvalue(res, i, STAT_WIDTH),
			PQgetvalue(res, i, STAT_DISTINCT), PQgetvalue(res, i, STAT_UNIQUE)});

	SPI_finish();
	SetUserIdAndSecContext(save_userid, save_context);

	/* the numbers are cached per relation; pg_class may not change at all */
	CacheInvalidateRelcache(relation);
	CommandCounterIncrement();
}

/*
 * AcquireSampleRowsFunc: no rows, and the number of rows that was fetched when
 * AnalyzeForeignTable was called.
 */
static int
acquire_nothing(Relation relation, int elevel, HeapTuple *rows, int targrows,
				double *totalrows, double *totaldeadrows)
{
	int32		pages;

	if (!residency_stats_size(RelationGetRelid(relation), totalrows, &pages))
		*totalrows = 0;
	*totaldeadrows = 0;
	return 0;
}

/*
 * Asks the home for its numbers and stores them; one round trip.  Changes nothing
 * if the home knows no such table.
 */
static void
fetch_statistics(Relation relation)
{
	ForeignTable *table = GetForeignTable(RelationGetRelid(relation));
	RemoteRegion *region = residency_remote_region(table->serverid);
	RemoteSubject about = {residency_border_table(RelationGetRelid(relation)), 0, NULL};
	RemoteRequest *request;
	PGresult   *res;
	const char *names[2];

	names[0] = get_namespace_name(RelationGetNamespace(relation));
	names[1] = RelationGetRelationName(relation);
	request = residency_remote_send_about(&about, region, GetUserId(),
										  "SELECT column_name, null_fraction, width, distinct_values,"
										  " is_unique, row_count, page_count"
										  " FROM residency.statistics($1::pg_catalog.text, $2::pg_catalog.text)",
										  2, names, REMOTE_AS_GATEWAY, -1);
	res = residency_remote_wait(request);
	if (PQntuples(res) > 0)
		store_statistics(relation, res);
	residency_remote_release(request);
}

/*
 * Like fetch_statistics, but a region that cannot be reached is no error: ANALYZE of
 * a parent shall not fail, for all its other partitions, because one is away.
 */
static void
try_fetch_statistics(Relation relation)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fetch_statistics(relation);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_CONNECTION_EXCEPTION)
			ReThrowError(error);
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("no new statistics of \"%s\"", RelationGetRelationName(relation)),
				 errdetail_internal("%s", error->message)));
		FreeErrorData(error);
	}
	PG_END_TRY();
}

/*
 * True if this statement has asked for the relation's numbers already; else notes that it
 * does now.  ANALYZE of a parent comes here twice for each partition: as part of the parent
 * and for its own sake, in transactions of their own.
 */
static bool
asked_before(Oid relid)
{
	static TimestampTz statement = 0;
	static List *asked = NIL;
	MemoryContext old;
	bool		before;

	if (statement != GetCurrentStatementStartTimestamp())
	{
		list_free(asked);
		asked = NIL;
		statement = GetCurrentStatementStartTimestamp();
	}
	before = list_member_oid(asked, relid);
	/* one that is looked at a third time is not ANALYZE of a parent: ask again */
	old = MemoryContextSwitchTo(TopMemoryContext);
	asked = before ? list_delete_oid(asked, relid) : lappend_oid(asked, relid);
	MemoryContextSwitchTo(old);
	return before;
}

/*
 * AnalyzeForeignTable: brings the numbers up to date.  False, which makes ANALYZE
 * skip the table with a warning, if nothing at all is known about it.
 */
static bool
residencyAnalyzeForeignTable(Relation relation, AcquireSampleRowsFunc *func,
							 BlockNumber *totalpages)
{
	double		rows;
	int32		pages;

	if (!asked_before(RelationGetRelid(relation)))
		try_fetch_statistics(relation);
	if (!residency_stats_size(RelationGetRelid(relation), &rows, &pages))
		return false;

	/* not 0, or ANALYZE of the parent would not call our function */
	*totalpages = (BlockNumber) Max(pages, 1);
	*func = acquire_nothing;
	return true;
}

/*
 * residency_fdw_stats_routine installs the callback of ANALYZE.
 */
void
residency_fdw_stats_routine(FdwRoutine *routine)
{
	routine->AnalyzeForeignTable = residencyAnalyzeForeignTable;
}
