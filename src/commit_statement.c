/*
 * commit_statement.c
 *		Where top-level statements begin and end.
 *
 * An error belongs to the statement that caused it (law 6).  Writes that nobody waits
 * for are therefore looked at when the outermost statement ends: inside a transaction
 * block they are awaited there; outside of one the commit follows at once, and they
 * share a flight with PREPARE.  If another statement follows without a transaction
 * block after all (extended protocol without Sync), its start waits for them.
 *
 * "Outermost" is counted by the executor and utility hooks, as pg_stat_statements does.
 * Queries of deferred triggers, which run at the outermost level while the transaction
 * commits, are no statements; they are known by their destination, SPI.
 */
#include "commit_internal.h"

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "border.h"
#include "commit.h"
#include "fdw.h"
#include "global.h"
#include "guard.h"
#include "regions.h"
#include "worker.h"

static ExecutorStart_hook_type next_ExecutorStart = NULL;
static ExecutorRun_hook_type next_ExecutorRun = NULL;
static ExecutorFinish_hook_type next_ExecutorFinish = NULL;
static ProcessUtility_hook_type next_ProcessUtility = NULL;

static object_access_hook_type next_object_access = NULL;

/* depth of executor and utility calls; 0 between top-level statements */
static int	nest_level = 0;

/* the current transaction may have used NOTIFY */
static bool notifies = false;

/* checks in each region written by this statement that every row has its identity at
 * home; the answers are deferred ones */
static void
queue_home_constraints(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);
		char	   *sql;

		if (region->level == 0 || !region->resident || region->failed_level > 0)
			continue;
		sql = psprintf("SET CONSTRAINTS %s." RESIDENCY_HOME_CONSTRAINT " IMMEDIATE",
					   quote_identifier(region->name));
		residency_pipeline_add(region, REMOTE_KIND_STATEMENT, sql, 0, NULL, REMOTE_DEFERRED, -1);
		region->resident = false;
		region->immediate = true;
	}
}

/*
 * Checks the same for rows stored here, if this statement wrote any: without it the
 * error would come at COMMIT, when rows stored elsewhere get theirs now.
 */
static void
check_home_constraint_here(void)
{
	ConstraintsSetStmt *stmt;
	ListCell   *lc;
	bool		pending = false;

	/* what a gateway's statement is only the gateway knows */
	if (residency_session_gateway() != NULL || !TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return;
	foreach(lc, residency_home_partitions())
		pending |= AfterTriggerPendingOnRel(lfirst_oid(lc));
	if (!pending)
		return;
	stmt = makeNode(ConstraintsSetStmt);
	stmt->constraints = list_make1(makeRangeVar(pstrdup(residency_self()->region),
												RESIDENCY_HOME_CONSTRAINT, -1));
	stmt->deferred = false;
	CommandCounterIncrement();
	AfterTriggerSetState(stmt);
	stmt->deferred = true;
	AfterTriggerSetState(stmt);
}

/* a top-level statement starts, see commit.h */
void
residency_statement_start(void)
{
	dlist_iter	iter;

	if (residency_remote.context == NULL || residency_remote.committing)
		return;
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->level > 0 && region->deferred > 0)
		{
			residency_remote_wait_deferred();
			return;
		}
	}
}

/* a top-level statement ends, see commit.h */
void
residency_statement_end(void)
{
	if (residency_remote.committing)
		return;
	residency_transaction_produce(NULL);
	if (!IsTransactionBlock())
		return;
	if (residency_remote.context != NULL)
	{
		queue_home_constraints();
		residency_remote_flush();
	}
	check_home_constraint_here();	/* while the answers are on their way */
	residency_remote_wait_deferred();
	residency_border_flush();
}

/* one level deeper, with bounded lock waits if locks >= 0 (global.h); returns locks */
static int
enter(int locks, bool may_wait)
{
	nest_level++;
	if (may_wait)
		residency_doubt_begin(nest_level);
	return locks;
}

/*
 * True if the plan may wait for rows that somebody else has locked: it writes or locks
 * some, or reads no table, and then probably calls a function.  The statements of that
 * function come by here as well, but not what a function in C does.
 */
static bool
may_wait(QueryDesc *queryDesc)
{
	PlannedStmt *stmt = queryDesc->plannedstmt;

	return stmt->resultRelations != NIL || stmt->rowMarks != NIL || stmt->hasModifyingCTE ||
		stmt->relationOids == NIL;
}

/* back to where enter was called */
static void
leave(int locks)
{
	residency_doubt_end(nest_level--);
	residency_global_unlimit_locks(locks);
}

/* the same in PG_CATCH: goes on with the error */
static void
leave_by_error(int locks)
{
	residency_doubt_end(nest_level--);
	residency_doubt_translate_error();
	if (locks >= 0)
		residency_global_translate_error();
	PG_RE_THROW();
}

/* true if the query is a top-level statement and not a part of one */
static bool
is_statement(QueryDesc *queryDesc)
{
	/* a cursor that is held beyond COMMIT has no destination when it is finished */
	return nest_level == 0 && queryDesc->dest != NULL &&
		queryDesc->dest->mydest != DestSPI && queryDesc->dest->mydest != DestNone;
}

/* the plan is ready: a statement starts, and its scans are grouped (fdw_start_groups.c) */
static void
statement_ExecutorStart(QueryDesc *queryDesc, int eflags)
{
	if (is_statement(queryDesc))
		residency_statement_start();
	if (next_ExecutorStart)
		next_ExecutorStart(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
	residency_fdw_collect_scans(queryDesc);
}

/* whatever runs inside belongs to the statement */
static void
statement_ExecutorRun(COMPAT_RUN_ARGS)
{
	int			locks = enter(residency_global_limit_locks(queryDesc), may_wait(queryDesc));

	PG_TRY();
	{
		if (next_ExecutorRun)
			next_ExecutorRun(COMPAT_RUN_PASS);
		else
			standard_ExecutorRun(COMPAT_RUN_PASS);
	}
	PG_CATCH();
	{
		leave_by_error(locks);
	}
	PG_END_TRY();
	leave(locks);
}

/* AFTER triggers have run inside: the statement ends */
static void
statement_ExecutorFinish(QueryDesc *queryDesc)
{
	int			locks = enter(residency_global_limit_locks(queryDesc), may_wait(queryDesc));

	PG_TRY();
	{
		if (next_ExecutorFinish)
			next_ExecutorFinish(queryDesc);
		else
			standard_ExecutorFinish(queryDesc);
	}
	PG_CATCH();
	{
		leave_by_error(locks);
	}
	PG_END_TRY();
	leave(locks);
	if (is_statement(queryDesc))
		residency_statement_end();
	/* the triggers of what a foreign key does run with those of the statement around it */
	else if (!(queryDesc->estate->es_top_eflags & EXEC_FLAG_SKIP_TRIGGERS))
		residency_global_part_ends();
}

/* see commit_internal.h */
bool
residency_commit_notifies(void)
{
	return notifies;
}

/* object_access_hook: an expression is about to call a function */
static void
statement_object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (access == OAT_FUNCTION_EXECUTE && objectId == F_PG_NOTIFY)
		notifies = true;
	if (next_object_access)
		next_object_access(access, classId, objectId, subId, arg);
}

/* RegisterXactCallback */
static void
transaction_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		notifies = false;
}

/* COMMIT and its kin have callbacks of their own, and run partly outside of a transaction */
static void
statement_ProcessUtility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
						 ProcessUtilityContext context, ParamListInfo params,
						 QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = next_ProcessUtility ? next_ProcessUtility : standard_ProcessUtility;
	bool		outermost;
	int			locks;

	if (IsA(pstmt->utilityStmt, TransactionStmt))
	{
		TransactionStmt *stmt = (TransactionStmt *) pstmt->utilityStmt;

		/* what another region commits here may have made this database a region */
		if (stmt->kind == TRANS_STMT_COMMIT_PREPARED &&
			strncmp(stmt->gid, RESIDENCY_GID_PREFIX, strlen(RESIDENCY_GID_PREFIX)) == 0)
			residency_worker_announce();
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
		return;
	}
	outermost = nest_level == 0 && context == PROCESS_UTILITY_TOPLEVEL;
	if (outermost)
		residency_statement_start();
	notifies |= IsA(pstmt->utilityStmt, NotifyStmt);
	if (IsA(pstmt->utilityStmt, ConstraintsSetStmt) &&
		((ConstraintsSetStmt *) pstmt->utilityStmt)->deferred)
		residency_global_constraints_deferred();
	residency_worker_yield(pstmt->utilityStmt);
	locks = enter(residency_global_limit_utility(pstmt->utilityStmt), true);
	PG_TRY();
	{
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	PG_CATCH();
	{
		leave_by_error(locks);
	}
	PG_END_TRY();
	leave(locks);
	if (outermost && IsTransactionState())
		residency_statement_end();
}

/* installs the hooks, in front of those that are there */
void
residency_commit_statement_init(void)
{
	next_ExecutorStart = ExecutorStart_hook;
	ExecutorStart_hook = statement_ExecutorStart;
	next_ExecutorRun = ExecutorRun_hook;
	ExecutorRun_hook = statement_ExecutorRun;
	next_ExecutorFinish = ExecutorFinish_hook;
	ExecutorFinish_hook = statement_ExecutorFinish;
	next_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = statement_ProcessUtility;
	next_object_access = object_access_hook;
	object_access_hook = statement_object_access;
	RegisterXactCallback(transaction_callback, NULL);
}
