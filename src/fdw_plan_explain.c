/*
 * fdw_plan_explain.c
 *		What EXPLAIN prints about nodes of ours: the region, with ANALYZE what crossed the
 *		border, and with VERBOSE the SQL sent there.
 */
#include "residency.h"

#include "border.h"
#include "fdw_exec.h"
#include "fdw_plan.h"
#include "regions.h"

#include "commands/explain.h"
#ifdef COMPAT_HAS_EXPLAIN_FORMAT
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif
#include "foreign/foreign.h"
#include "utils/rel.h"

/*
 * The properties that all nodes share.  Without traffic nothing is known of it.
 */
static void
explain_node(ExplainState *es, Oid serverid, const char *sql, const RemoteTraffic *traffic)
{
	residency_border_explain(es, list_make1(residency_server_region(serverid)), traffic);
	if (es->verbose && sql != NULL)
		ExplainPropertyText("Remote SQL", sql, es);
}

/*
 * What crossed for a scan, if it was run and counted.
 */
static const RemoteTraffic *
scan_traffic(ForeignScanState *node)
{
	FdwNode    *state = (FdwNode *) node->fdw_state;

	return state != NULL && state->tally != NULL ? &state->tally->traffic : NULL;
}

/*
 * ExplainForeignScan
 */
static void
residencyExplainForeignScan(ForeignScanState *node, ExplainState *es)
{
	ForeignScan *plan = castNode(ForeignScan, node->ss.ps.plan);
	const char *does = strVal(list_nth(plan->fdw_private, FdwScanDoes));

	if (does[0] != '\0')
		ExplainPropertyText("Done There", does, es);
	explain_node(es, plan->fs_server, strVal(list_nth(plan->fdw_private, FdwScanSql)),
				 scan_traffic(node));
	residency_border_expect(es, -1, 1);
}

/*
 * ExplainDirectModify
 */
static void
residencyExplainDirectModify(ForeignScanState *node, ExplainState *es)
{
	ForeignScan *plan = castNode(ForeignScan, node->ss.ps.plan);

	explain_node(es, plan->fs_server, strVal(list_nth(plan->fdw_private, FdwDirectSql)),
				 scan_traffic(node));
	residency_border_expect(es, -1, 1);
}

/*
 * ExplainForeignModify: the text for one row; rows travel several at a time.
 */
static void
residencyExplainForeignModify(ModifyTableState *mtstate, ResultRelInfo *rinfo,
							  List *fdw_private, int subplan_index, ExplainState *es)
{
	Relation	rel = rinfo->ri_RelationDesc;
	Oid			serverid = GetForeignTable(RelationGetRelid(rel))->serverid;
	StringInfoData sql;
	List	   *targets;
	List	   *returning;

	/* a partition that rows are routed to has no list of its own */
	if (fdw_private == NIL)
	{
		explain_node(es, serverid, NULL, residency_modify_traffic(rinfo->ri_FdwState));
		return;
	}
	targets = list_nth(fdw_private, FdwModifyTarget);
	returning = list_nth(fdw_private, FdwModifyReturning);

	initStringInfo(&sql);
	switch (mtstate->operation)
	{
		case CMD_INSERT:
			residency_deparse_insert(&sql, rel, targets, 1,
									 boolVal(list_nth(fdw_private, FdwModifyDoNothing)), returning);
			break;
		case CMD_UPDATE:
			residency_deparse_update_row(&sql, rel, targets, returning);
			break;
		case CMD_DELETE:
			residency_deparse_delete_row(&sql, rel, returning);
			break;
		default:
			break;
	}
	explain_node(es, serverid, sql.data, residency_modify_traffic(rinfo->ri_FdwState));
}

/*
 * residency_fdw_explain_routine installs this file's callbacks.
 */
void
residency_fdw_explain_routine(FdwRoutine *routine)
{
	routine->ExplainForeignScan = residencyExplainForeignScan;
	routine->ExplainDirectModify = residencyExplainDirectModify;
	routine->ExplainForeignModify = residencyExplainForeignModify;
}
