/*
 * global_locks.c
 *		Bounded lock waits of the client's own statements on global tables.
 *
 * A statement at a gateway may wait for a row that a transaction of another gateway
 * holds, while that one waits for a row here.  No deadlock detector sees both ends,
 * so the wait must end by itself.  See global.h for how the hooks use this.
 */
#include "residency.h"

#include "catalog/namespace.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "global.h"
#include "guard.h"
#include "regions.h"

/* True for a declared global table. */
static bool
is_global(Oid relid)
{
	const TableRule *rule = residency_table_rule(relid);

	return rule != NULL && rule->kind == RESIDENCY_GLOBAL;
}

/* Sets lock_timeout for a new nest level, and returns that. */
static int
limit(void)
{
	int			level = NewGUCNestLevel();
	char		value[16];

	snprintf(value, sizeof(value), "%d", residency_lock_timeout);
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* True if the session's own limit is not the shorter one. */
static bool
limit_wanted(void)
{
	return residency_lock_timeout > 0 &&
		(LockTimeout == 0 || LockTimeout > residency_lock_timeout) &&
		residency_any_global() && residency_session_gateway() == NULL;
}

/*
 * Limits the lock waits of a plan that writes a global table or locks rows of one.
 * Returns the nest level to be passed to residency_global_unlimit_locks(), or -1.
 */
int
residency_global_limit_locks(QueryDesc *queryDesc)
{
	PlannedStmt *stmt = queryDesc->plannedstmt;
	ListCell   *lc;

	if ((stmt->resultRelations == NIL && stmt->rowMarks == NIL) || !limit_wanted())
		return -1;
	foreach(lc, stmt->resultRelations)
		if (is_global(rt_fetch(lfirst_int(lc), stmt->rtable)->relid))
			return limit();
	foreach(lc, stmt->rowMarks)
	{
		PlanRowMark *mark = lfirst(lc);

		if (!mark->isParent && mark->strength != LCS_NONE &&
			is_global(rt_fetch(mark->rti, stmt->rtable)->relid))
			return limit();
	}
	return -1;
}

/* The same for COPY FROM and TRUNCATE. */
int
residency_global_limit_utility(Node *parsetree)
{
	ListCell   *lc;

	if (!limit_wanted())
		return -1;
	if (IsA(parsetree, CopyStmt))
	{
		CopyStmt   *copy = (CopyStmt *) parsetree;

		if (copy->is_from && copy->relation &&
			is_global(RangeVarGetRelid(copy->relation, NoLock, true)))
			return limit();
	}
	else if (IsA(parsetree, TruncateStmt))
	{
		foreach(lc, ((TruncateStmt *) parsetree)->relations)
			if (is_global(RangeVarGetRelid(lfirst(lc), NoLock, true)))
				return limit();
	}
	return -1;
}

/* Ends what one of the functions above began; -1 is allowed. */
void
residency_global_unlimit_locks(int level)
{
	if (level >= 0)
		AtEOXact_GUC(true, level);
}

/* In PG_CATCH: throws 40P01 for a wait that our limit has ended; returns otherwise. */
void
residency_global_translate_error(void)
{
	MemoryContext context;
	ErrorData  *error;
	bool		ours;

	if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
		return;
	context = MemoryContextSwitchTo(TopTransactionContext);
	error = CopyErrorData();
	MemoryContextSwitchTo(context);
	ours = error->message_id != NULL &&
		strcmp(error->message_id, "canceling statement due to lock timeout") == 0;
	FreeErrorData(error);
	if (!ours)
		return;
	FlushErrorState();
	ereport(ERROR,
			(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
			 errmsg("could not lock a global table, or a row of one, in time"),
			 errdetail("Another transaction has kept it locked for %d ms, perhaps waiting in another region for this one.",
					   residency_lock_timeout),
			 errhint("Try the transaction again, or raise residency.lock_timeout.")));
}
