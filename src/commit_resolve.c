/*
 * commit_resolve.c
 *		residency.resolve(): finishes what a crash left of this region's transactions.
 *
 * A prepared transaction of ours in another region is finished by what is observed, in
 * this order:
 *
 *	 1. the gids prepared there		(one that appears later is for the next call)
 *	 2. is its origin still running here?	-> then leave it alone.  Asked before 3: one
 *									that ends in between shows its decision in 3
 *	 3. its decision row, under a snapshot taken after 2	-> COMMIT PREPARED, else
 *									ROLLBACK PREPARED: a transaction that is not running
 *									and has no row will never get one
 *	 4. the gids prepared there, again	-> "does not exist" counts as done only if it is
 *									gone now; "busy" is one that is still there
 *
 * Only gids of our own incarnation are touched, prepared by our gateway role, in that
 * database: what a clone, another deployment or a user prepared is not ours.
 *
 * A decision row that was there before 1 is deleted when every region of it was looked at
 * in 4 and none still has a part of it; the traces there go first.  Of a row that is
 * younger the look in 4 may have come before its parts were prepared.
 */
#include "commit_internal.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "regions.h"

PG_FUNCTION_INFO_V1(residency_resolve);

/* one region while resolve() runs */
typedef struct ResolveRegion
{
	RemoteRegion *region;
	RemoteRequest *request;		/* what is asked at the moment */
	bool		reached;		/* answered in step 4 */
	List	   *gids;			/* char *: prepared there and ours, step 1, then step 4 */
} ResolveRegion;

/* one decision row */
typedef struct Decision
{
	uint64		xid;
	List	   *gids;
	List	   *regions;
} Decision;

#define LIST_PREPARED "SELECT gid FROM residency.prepared_here() AS p(gid)"

/*
 * The origin's xid if the gid is one of ours, 0 if not.  A gid is
 * residency:<incarnation>:<xid8>:<n>:<random>.
 */
static uint64
own_xid(const char *gid)
{
	char		prefix[64];
	int			len;

	len = snprintf(prefix, sizeof(prefix), "residency:%016llx:",
				   (unsigned long long) residency_self()->incarnation);
	if (strncmp(gid, prefix, len) != 0)
		return 0;
	return strtoull(gid + len, NULL, 10);
}

/* true while the transaction that prepared a gid may still decide */
static bool
origin_is_running(uint64 xid)
{
	FullTransactionId full = FullTransactionIdFromU64(xid);
	FullTransactionId next = ReadNextFullTransactionId();

	/* not assigned now: the server crashed before anything of that transaction was on disk */
	if (!FullTransactionIdPrecedes(full, next))
		return false;
	/* of another epoch: over for so long that its xid may belong to somebody else */
	if (U64FromFullTransactionId(next) - xid > (uint64) PG_INT32_MAX)
		return false;
	return TransactionIdIsInProgress(XidFromFullTransactionId(full));
}

/* takes the answer without throwing: NULL if the region failed, and why in "error" */
static PGresult *
take_answer(ResolveRegion *r, char *error, Size size)
{
	RemoteRequest *req = r->request;

	residency_wait_until_answered(req);
	*error = '\0';
	if (!req->failed && req->result != NULL)
		return req->result;
	strlcpy(error, r->region->failed_level > 0 ? r->region->error.message : "no answer", size);
	return NULL;
}

/* ends the read-only transaction in which a region was asked */
static void
end_read(RemoteRegion *region)
{
	if (region->level > 0)
		residency_transaction_abort_level(region, 1);
}

/*
 * Asks all regions side by side what they hold prepared of ours; adds a row to the
 * result for each that cannot be reached.
 */
static void
list_prepared(ResolveRegion *regions, int n, ReturnSetInfo *out)
{
	for (int i = 0; i < n; i++)
		regions[i].request = residency_remote_send(regions[i].region, InvalidOid, LIST_PREPARED,
												   0, NULL, REMOTE_AS_GATEWAY, -1);
	for (int i = 0; i < n; i++)
	{
		ResolveRegion *r = &regions[i];
		char		error[512];
		PGresult   *res = take_answer(r, error, sizeof(error));

		r->gids = NIL;
		r->reached = res != NULL;
		for (int row = 0; res != NULL && row < PQntuples(res); row++)
		{
			if (own_xid(PQgetvalue(res, row, 0)) != 0)
				r->gids = lappend(r->gids, pstrdup(PQgetvalue(res, row, 0)));
		}
		residency_remote_release(r->request);
		end_read(r->region);
		if (!r->reached && out != NULL)
		{
			Datum		values[3] = {CStringGetTextDatum(r->region->name), (Datum) 0,
			CStringGetTextDatum(psprintf("not reached: %s", error))};
			bool		nulls[3] = {false, true, false};

			tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
		}
	}
}

/* elements of a text[] as a list of C strings */
static List *
strings_of_array(Datum array)
{
	Datum	   *elements;
	int			n;
	List	   *result = NIL;

	compat_deconstruct_text_array(DatumGetArrayTypeP(array), &elements, &n);
	for (int i = 0; i < n; i++)
		result = lappend(result, TextDatumGetCString(elements[i]));
	return result;
}

/* all decision rows of this region, under a snapshot taken now; SPI must be connected */
static List *
read_decisions(MemoryContext context)
{
	List	   *result = NIL;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(residency_self()->incarnation)};
	MemoryContext old;

	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("SELECT xid::pg_catalog.text, gids, regions FROM residency.transaction "
						   "WHERE incarnation OPERATOR(pg_catalog.=) $1", 1, types, values, true);
	PopActiveSnapshot();
	old = MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Decision   *decision = palloc(sizeof(Decision));
		bool		isnull;

		decision->xid = strtoull(SPI_getvalue(tuple, desc, 1), NULL, 10);
		decision->gids = strings_of_array(SPI_getbinval(tuple, desc, 2, &isnull));
		decision->regions = strings_of_array(SPI_getbinval(tuple, desc, 3, &isnull));
		result = lappend(result, decision);
	}
	MemoryContextSwitchTo(old);
	return result;
}

/* true if the list has this string */
static bool
has_string(List *strings, const char *string)
{
	ListCell   *lc;

	foreach(lc, strings)
		if (strcmp((char *) lfirst(lc), string) == 0)
			return true;
	return false;
}

/* the decision that holds this gid, NULL if none */
static Decision *
decision_of(List *decisions, const char *gid)
{
	ListCell   *lc;

	foreach(lc, decisions)
		if (has_string(((Decision *) lfirst(lc))->gids, gid))
			return lfirst(lc);
	return NULL;
}

/* what resolve() did, or will do, with one gid */
typedef struct Action
{
	ResolveRegion *where;
	char	   *gid;
	const char *name;			/* "committed", "rolled back" or "running" */
	RemoteRequest *request;
} Action;

/* steps 2 and 3 for every gid found in step 1: sends the verdicts, side by side */
static List *
send_verdicts(ResolveRegion *regions, int n)
{
	List	   *actions = NIL;
	List	   *decisions;
	ListCell   *lc;

	for (int i = 0; i < n; i++)
	{
		foreach(lc, regions[i].gids)
		{
			Action	   *action = palloc0(sizeof(Action));

			action->where = &regions[i];
			action->gid = lfirst(lc);
			if (origin_is_running(own_xid(action->gid)))
				action->name = "running";
			actions = lappend(actions, action);
		}
	}
	decisions = read_decisions(CurrentMemoryContext);
	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);
		RemoteRegion *region = action->where->region;

		if (action->name != NULL || region->state != REMOTE_OPEN)
			continue;
		action->name = decision_of(decisions, action->gid) ? "committed" : "rolled back";
		residency_pipeline_sync(region);
		action->request = residency_pipeline_add(region, REMOTE_KIND_STATEMENT,
												 psprintf("%s PREPARED %s",
														  *action->name == 'c' ? "COMMIT" : "ROLLBACK",
														  quote_literal_cstr(action->gid)),
												 0, NULL, 0, -1);
		action->request->abandoned = true;	/* its error is judged by step 4 */
		residency_pipeline_sync(region);
	}
	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);

		if (action->request != NULL)
			residency_wait_until_answered(action->request);
		residency_remote_release(action->request);
	}
	return actions;
}

/* deletes decision rows, here and their traces there, that no region needs any more */
static void
forget_finished(ResolveRegion *regions, int n, List *decisions)
{
	StringInfoData xids;
	ListCell   *lc;
	char		incarnation[32];
	const char *values[2];

	initStringInfo(&xids);
	foreach(lc, decisions)
	{
		Decision   *decision = lfirst(lc);
		bool		finished = !origin_is_running(decision->xid);

		for (int i = 0; i < n && finished; i++)
		{
			ListCell   *gid;

			if (!has_string(decision->regions, regions[i].region->name))
				continue;
			finished = regions[i].reached;
			foreach(gid, decision->gids)
				finished = finished && !has_string(regions[i].gids, lfirst(gid));
		}
		if (finished)
			appendStringInfo(&xids, "%c" UINT64_FORMAT, xids.len ? ',' : '{', decision->xid);
	}
	if (xids.len == 0)
		return;
	appendStringInfoChar(&xids, '}');

	snprintf(incarnation, sizeof(incarnation), INT64_FORMAT, residency_self()->incarnation);
	values[0] = incarnation;
	values[1] = xids.data;
	for (int i = 0; i < n; i++)
	{
		if (!regions[i].reached)
			continue;
		residency_transaction_begin(regions[i].region, InvalidOid, REMOTE_AS_GATEWAY);
		residency_pipeline_add(regions[i].region, REMOTE_KIND_CONTROL,
							   "SELECT residency.forget($1::pg_catalog.int8, $2::pg_catalog.xid8[])",
							   2, values, 0, -1);
		residency_pipeline_control(regions[i].region, "COMMIT");
		residency_pipeline_sync(regions[i].region);
		residency_transaction_reset(regions[i].region);
	}
	residency_spi_as_owner(psprintf("DELETE FROM residency.transaction "
									"WHERE incarnation OPERATOR(pg_catalog.=) '%s'::pg_catalog.int8 "
									"AND xid OPERATOR(pg_catalog.=) ANY ('%s'::pg_catalog.xid8[])",
									incarnation, xids.data), 0, NULL, NULL, false);
}

/* SQL: residency.resolve(), see the head of the file */
Datum
residency_resolve(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *out = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *servers;
	ResolveRegion *regions;
	List	   *decisions;
	List	   *actions;
	ListCell   *lc;
	int			n = 0;

	InitMaterializedSRF(fcinfo, 0);
	if (RecoveryInProgress() || residency_self() == NULL)
		PG_RETURN_NULL();
	servers = residency_other_servers();
	regions = palloc0((list_length(servers) + 1) * sizeof(ResolveRegion));
	foreach(lc, servers)
	{
		RemoteRegion *region = residency_remote_region(lfirst_oid(lc));

		if (region->level > 0)
			ereport(ERROR,
					(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
					 errmsg("residency.resolve() cannot run in a transaction that has used region \"%s\"",
							region->name),
					 errhint("COMMIT or ROLLBACK first.")));
		regions[n++].region = region;
	}
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	decisions = read_decisions(CurrentMemoryContext);
	list_prepared(regions, n, out);
	actions = send_verdicts(regions, n);
	list_prepared(regions, n, NULL);
	foreach(lc, actions)
	{
		Action	   *action = lfirst(lc);
		bool		there = has_string(action->where->gids, action->gid);
		const char *name = action->name;
		Datum		values[3];
		bool		nulls[3] = {false, false, false};

		if (!action->where->reached || name == NULL)
			name = "not reached";
		else if (there && strcmp(name, "running") != 0)
			name = "busy";
		values[0] = CStringGetTextDatum(action->where->region->name);
		values[1] = CStringGetTextDatum(action->gid);
		values[2] = CStringGetTextDatum(name);
		tuplestore_putvalues(out->setResult, out->setDesc, values, nulls);
	}
	forget_finished(regions, n, decisions);
	SPI_finish();
	PG_RETURN_NULL();
}
