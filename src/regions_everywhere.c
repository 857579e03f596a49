/*
 * regions_everywhere.c
 *		residency.run_everywhere(): SQL in all regions, in one atomic commit.
 *
 * The text is split with the server's own grammar, since the connections speak the
 * extended protocol, which takes one statement at a time; and because a statement
 * that cannot take part in an atomic commit must be refused before anything ran.
 * All statements are queued in all regions before this region runs the first one,
 * so however many they are, they cost one round trip.
 */
#include "residency.h"

#include "catalog/namespace.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "tcop/utility.h"
#include "utils/builtins.h"

#include "regions.h"
#include "regions_internal.h"
#include "remote_internal.h"

PG_FUNCTION_INFO_V1(residency_run_everywhere);

/* which statement is running where, for error messages */
typedef struct RunningStatement
{
	int			number;			/* 1-based */
	const char *region;
	int			position;		/* of another region among "requests" */
	List	   *requests;		/* per statement a List of RemoteRequest, NIL while this
								 * region runs them */
} RunningStatement;

/*
 * Number of the statement that failed.  A region that has failed throws its error at
 * whatever is waited for next, so the request that was refused has to be looked for.
 */
static int
failed_number(RunningStatement *running)
{
	ListCell   *lc;

	foreach(lc, running->requests)
	{
		RemoteRequest *request = list_nth(lfirst(lc), running->position);

		if (request != NULL && request->failed)
			return foreach_current_index(lc) + 1;
	}
	return running->number;
}

/* Error context: names the statement and the region. */
static void
describe_running(void *arg)
{
	RunningStatement *running = arg;

	errcontext("statement %d of residency.run_everywhere() in region \"%s\"",
			   failed_number(running), running->region);
}

/*
 * True for statements that PostgreSQL does not run inside a transaction block, or
 * whose effect an atomic commit in several regions cannot take back.
 */
static bool
cannot_be_atomic(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_TransactionStmt:
		case T_CreatedbStmt:
		case T_DropdbStmt:
		case T_AlterDatabaseStmt:
		case T_CreateTableSpaceStmt:
		case T_DropTableSpaceStmt:
		case T_AlterSystemStmt:
		case T_CreateSubscriptionStmt:
		case T_DropSubscriptionStmt:
		case T_VacuumStmt:
		case T_CheckPointStmt:
		case T_LoadStmt:
		case T_ListenStmt:
		case T_UnlistenStmt:
		case T_NotifyStmt:
		case T_DiscardStmt:
		case T_PrepareStmt:
		case T_ExecuteStmt:
		case T_DeallocateStmt:
		case T_DeclareCursorStmt:
		case T_FetchStmt:
		case T_ClosePortalStmt:
			break;
		case T_ClusterStmt:
			return ((ClusterStmt *) stmt)->relation == NULL;
		case T_ReindexStmt:
			return ((ReindexStmt *) stmt)->kind == REINDEX_OBJECT_DATABASE ||
				((ReindexStmt *) stmt)->kind == REINDEX_OBJECT_SYSTEM ||
				((ReindexStmt *) stmt)->kind == REINDEX_OBJECT_SCHEMA;
		case T_IndexStmt:
			return ((IndexStmt *) stmt)->concurrent;
		case T_DropStmt:
			return ((DropStmt *) stmt)->concurrent;
		case T_CopyStmt:
			return true;
		case T_VariableSetStmt:
			return !((VariableSetStmt *) stmt)->is_local;
		case T_CreateStmt:
			return ((CreateStmt *) stmt)->relation->relpersistence == RELPERSISTENCE_TEMP;
		default:
			return false;
	}
	/* ANALYZE is a VacuumStmt too, and harmless */
	if (IsA(stmt, VacuumStmt))
		return ((VacuumStmt *) stmt)->is_vacuumcmd;
	return true;
}

/* The text of one statement, without the ones before and after it. */
static char *
statement_text(const char *sql, RawStmt *raw)
{
	const char *start = sql + Max(raw->stmt_location, 0);

	if (raw->stmt_len > 0)
		return pnstrdup(start, raw->stmt_len);
	return pstrdup(start);
}

/* Splits the text, refusing what cannot be atomic.  Returns a list of char *. */
static List *
split_statements(const char *sql)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, raw_parser(sql, RAW_PARSE_DEFAULT))
	{
		RawStmt    *raw = lfirst_node(RawStmt, lc);

		if (cannot_be_atomic(raw->stmt))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s cannot be part of one atomic commit in all regions",
							GetCommandTagName(CreateCommandTag(raw->stmt))),
					 errdetail("It is statement %d of residency.run_everywhere().",
							   list_length(result) + 1),
					 IsA(raw->stmt, VariableSetStmt) ?
					 errhint("Use SET LOCAL, which lasts until the end of the transaction.") :
					 errhint("Run it in each region by itself.")));
		result = lappend(result, statement_text(sql, raw));
	}
	return result;
}

/* Runs a statement in this region; throws its error. */
static void
run_here(const char *sql)
{
	int			rc = SPI_execute(sql, false, 0);

	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("statement cannot run inside a function: %s",
						SPI_result_code_string(rc))));
}

/* Copies the names of all other regions: running statements may empty the cache. */
static List *
copy_regions(void)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, residency_other_regions())
		result = lappend(result, pstrdup(lfirst(lc)));
	return result;
}

/*
 * Queues a statement in all regions.  Returns a list of RemoteRequest in the
 * order of the regions.
 */
static List *
queue_statement(List *regions, const char *sql)
{
	List	   *requests = NIL;
	ListCell   *lc;

	foreach(lc, regions)
		requests = lappend(requests,
						   residency_remote_send(residency_admin_connection(lfirst(lc), true),
												 GetUserId(), sql, 0, NULL,
												 REMOTE_WRITES | REMOTE_AS_GATEWAY, -1));
	return requests;
}

/*
 * residency.run_everywhere(sql text) runs the statements in every region, each as
 * the role that the admin mapping of the region names, here as the current user.
 * It returns when all of them succeeded; the commit of the transaction commits
 * them everywhere or nowhere.
 */
Datum
residency_run_everywhere(PG_FUNCTION_ARGS)
{
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
	List	   *statements = split_statements(sql);
	List	   *regions;
	List	   *requests = NIL;
	RunningStatement running = {0};
	ErrorContextCallback callback;
	ListCell   *lc;

	residency_begin_change(namespace_search_path, NULL);
	regions = copy_regions();
	SPI_connect();
	foreach(lc, statements)
		requests = lappend(requests, queue_statement(regions, lfirst(lc)));
	residency_remote_flush();

	running.region = pstrdup(residency_self()->region);
	callback.callback = describe_running;
	callback.arg = &running;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	foreach(lc, statements)
	{
		running.number++;
		run_here(lfirst(lc));
	}
	running.number = 0;
	running.requests = requests;
	foreach(lc, requests)
	{
		ListCell   *request;

		running.number++;
		foreach(request, (List *) lfirst(lc))
		{
			running.position = foreach_current_index(request);
			running.region = list_nth(regions, running.position);
			residency_remote_wait(lfirst(request));
			residency_remote_release(lfirst(request));
			lfirst(request) = NULL;
		}
	}
	error_context_stack = callback.previous;
	SPI_finish();
	PG_RETURN_VOID();
}
