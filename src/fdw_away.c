/*
 * fdw_away.c
 *		Which regions a statement reads without (residency.on_away = skip).
 *
 * A region that is away when a statement would ask it is an error, unless the session has
 * said that it prefers the rows of the others: then its scans give no row, and a warning
 * names it.  The choice is made when the statement runs, never when it is planned, once for
 * each region, and holds until the statement ends: a region that it has asked and that
 * goes away later is an error in any case, and one that it has left out stays so although
 * it may be back.
 *
 * Nothing is left out by a statement that writes or locks, nor by one inside of it: what
 * is stored must not depend on who could be reached.
 */
#include "postgres.h"

#include "fdw.h"

#include "executor/executor.h"
#include "lib/ilist.h"
#include "nodes/plannodes.h"
#include "utils/memutils.h"

#include "health.h"
#include "regions.h"

/* the choice of one statement about one region; or the mark of a statement that writes */
typedef struct Choice
{
	dlist_node	node;			/* in choices */
	EState	   *estate;
	Oid			serverid;		/* InvalidOid: the statement writes */
	bool		left_out;
	MemoryContextCallback reset;
} Choice;

static dlist_head choices = DLIST_STATIC_INIT(choices);

static ExecutorStart_hook_type next_ExecutorStart = NULL;

/* the statement's memory goes */
static void
forget_choice(void *arg)
{
	dlist_delete(&((Choice *) arg)->node);
}

/* notes a choice for as long as the statement lives */
static Choice *
remember(EState *estate, Oid serverid)
{
	Choice	   *choice = MemoryContextAllocZero(estate->es_query_cxt, sizeof(Choice));

	choice->estate = estate;
	choice->serverid = serverid;
	dlist_push_head(&choices, &choice->node);
	choice->reset.func = forget_choice;
	choice->reset.arg = choice;
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &choice->reset);
	return choice;
}

/* does the statement write, lock rows, or fill a table with what it reads? */
static bool
writes(QueryDesc *queryDesc)
{
	PlannedStmt *stmt = queryDesc->plannedstmt;

	if (stmt->commandType != CMD_SELECT || stmt->hasModifyingCTE || stmt->rowMarks != NIL)
		return true;
	return queryDesc->dest != NULL &&
		(queryDesc->dest->mydest == DestIntoRel || queryDesc->dest->mydest == DestTransientRel);
}

/* ExecutorStart hook: marks statements that write, if it could matter */
static void
away_ExecutorStart(QueryDesc *queryDesc, int eflags)
{
	if (next_ExecutorStart)
		next_ExecutorStart(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
	if (residency_on_away == RESIDENCY_ON_AWAY_SKIP && writes(queryDesc))
		(void) remember(queryDesc->estate, InvalidOid);
}

/* see fdw.h */
bool
residency_leaves_out(EState *estate, Oid serverid)
{
	bool		writing = false;
	const char *region;
	Choice	   *choice;
	dlist_iter	iter;

	if (residency_on_away != RESIDENCY_ON_AWAY_SKIP)
		return false;
	dlist_foreach(iter, &choices)
	{
		choice = dlist_container(Choice, node, iter.cur);
		if (choice->estate == estate && choice->serverid == serverid)
			return choice->left_out;
		writing = writing || !OidIsValid(choice->serverid);
	}
	choice = remember(estate, serverid);
	region = residency_server_region(serverid);
	if (writing || residency_region_state(region) != RESIDENCY_AWAY)
		return false;
	choice->left_out = true;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("rows of region \"%s\" are missing: it is away", region),
			 errhint("SET residency.on_away = 'error' makes that an error.")));
	return true;
}

/* installs the hook */
void
residency_fdw_away_init(void)
{
	next_ExecutorStart = ExecutorStart_hook;
	ExecutorStart_hook = away_ExecutorStart;
}
