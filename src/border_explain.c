/*
 * border_explain.c
 *		What EXPLAIN says about borders: of a node, and of the whole statement.
 *
 * Each node that asks other regions prints which ones, and with ANALYZE its round trips,
 * rows and bytes.  A statement's round trips are no sum of those, as regions are asked
 * side by side; so EXPLAIN ANALYZE ends with the figures of the statement, among them
 * those of writes that no node prints (rows that find their partitions while it runs).
 * PostgreSQL gives no hook for that before 18: the one for planning is used, and the group
 * that the core has closed is opened again.
 */
#include "border.h"

#include "commands/explain.h"
#ifdef COMPAT_HAS_EXPLAIN_FORMAT
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif
#include "executor/instrument.h"
#include "nodes/execnodes.h"
#include "optimizer/planner.h"
#include "tcop/tcopprot.h"

#include "commit.h"

static ExplainOneQuery_hook_type next_ExplainOneQuery = NULL;

/* a tally for a node of the query, if somebody wants to see it */
RemoteTally *
residency_border_tally(const EState *estate)
{
	return estate->es_instrument != 0 ? residency_tally_make() : NULL;
}

/* the figures, as text on one line */
static void
explain_traffic(ExplainState *es, const RemoteTraffic *traffic)
{
	ExplainPropertyInteger("Round Trips", NULL, traffic->round_trips, es);
	if (es->format == EXPLAIN_FORMAT_TEXT)
	{
		appendStringInfoSpaces(es->str, es->indent * 2);
		appendStringInfo(es->str, "Border: rows out=" UINT64_FORMAT " in=" UINT64_FORMAT
						 "  bytes out=" UINT64_FORMAT " in=" UINT64_FORMAT "\n",
						 traffic->rows_out, traffic->rows_in, traffic->bytes_out, traffic->bytes_in);
		return;
	}
	ExplainPropertyInteger("Rows Out", NULL, traffic->rows_out, es);
	ExplainPropertyInteger("Rows In", NULL, traffic->rows_in, es);
	ExplainPropertyInteger("Bytes Out", "B", traffic->bytes_out, es);
	ExplainPropertyInteger("Bytes In", "B", traffic->bytes_in, es);
}

/*
 * Prints a node's regions (names), and what crossed if that is known (ANALYZE), else NULL.
 */
void
residency_border_explain(ExplainState *es, List *regions, const RemoteTraffic *traffic)
{
	ExplainPropertyList("Regions", regions, es);
	if (traffic != NULL)
		explain_traffic(es, traffic);
}

/*
 * What the planner expects of a node that has not run, where costs are printed: keys
 * (negative: the node has none) and round trips for each time that it runs.
 */
void
residency_border_expect(ExplainState *es, double keys, int round_trips)
{
	if (es->analyze || !es->costs)
		return;
	if (keys >= 0)
		ExplainPropertyFloat("Expected Keys", NULL, keys, 0, es);
	ExplainPropertyInteger("Expected Round Trips", NULL, round_trips, es);
}

/*
 * Opens the group of a query again that has just been closed, the last thing in the output.
 * False if it does not look as it should.
 */
static bool
reopen_query(ExplainState *es)
{
	static const char xml[] = "</Query>\n";
	StringInfo	str = es->str;
	int			closing;

	switch (es->format)
	{
		case EXPLAIN_FORMAT_TEXT:
			return true;
		case EXPLAIN_FORMAT_XML:
			closing = es->indent * 2 + strlen(xml);
			if (str->len < closing || strcmp(str->data + str->len - strlen(xml), xml) != 0)
				return false;
			break;
		case EXPLAIN_FORMAT_JSON:
			closing = es->indent * 2 + 2;
			if (str->len < closing || str->data[str->len - closing] != '\n' ||
				str->data[str->len - 1] != '}')
				return false;
			break;
		default:
			closing = 0;
			break;
	}
	str->len -= closing;
	str->data[str->len] = '\0';
	es->indent++;
	/* XML keeps no stack; elsewhere what follows is not the first in its group */
	if (es->format != EXPLAIN_FORMAT_XML)
		es->grouping_stack = lcons_int(1, es->grouping_stack);
	return true;
}

/* prints what crossed since the counters were "before" */
static void
explain_statement(ExplainState *es, const RemoteTraffic *before)
{
	const RemoteTraffic *now = residency_remote_traffic();
	RemoteTraffic traffic = {
		.round_trips = now->round_trips - before->round_trips,
		.rows_out = now->rows_out - before->rows_out,
		.rows_in = now->rows_in - before->rows_in,
		.bytes_out = now->bytes_out - before->bytes_out,
		.bytes_in = now->bytes_in - before->bytes_in
	};
	List	   *regions = residency_remote_asked_since(before->statements);

	if (regions == NIL || !reopen_query(es))
		return;
	if (es->format == EXPLAIN_FORMAT_TEXT)
		residency_border_explain(es, regions, &traffic);
	else
	{
		ExplainOpenGroup("Border", "Border", true, es);
		residency_border_explain(es, regions, &traffic);
		ExplainCloseGroup("Border", "Border", true, es);
		ExplainCloseGroup("Query", NULL, true, es);
	}
}

#ifndef COMPAT_HAS_STANDARD_EXPLAIN
/* plans and explains a query, with the time and buffers that planning took */
static void
standard_ExplainOneQuery(Query *query, int cursorOptions, IntoClause *into, ExplainState *es,
						 const char *queryString, ParamListInfo params, QueryEnvironment *queryEnv)
{
	BufferUsage buffers_before = pgBufferUsage;
	BufferUsage buffers = {0};
	instr_time	start;
	instr_time	duration;
	PlannedStmt *plan;

	INSTR_TIME_SET_CURRENT(start);
	plan = pg_plan_query(query, queryString, cursorOptions, params);
	INSTR_TIME_SET_CURRENT(duration);
	INSTR_TIME_SUBTRACT(duration, start);
	BufferUsageAccumDiff(&buffers, &pgBufferUsage, &buffers_before);
	ExplainOnePlan(plan, into, es, queryString, params, queryEnv, &duration,
				   es->buffers ? &buffers : NULL);
}
#endif

/* ExplainOneQuery_hook: what the core does, then the figures of the statement */
static void
explain_query(Query *query, int cursorOptions, IntoClause *into, ExplainState *es,
			  const char *queryString, ParamListInfo params, QueryEnvironment *queryEnv)
{
	RemoteTraffic before = *residency_remote_traffic();

	if (next_ExplainOneQuery)
		next_ExplainOneQuery(query, cursorOptions, into, es, queryString, params, queryEnv);
	else
		standard_ExplainOneQuery(query, cursorOptions, into, es, queryString, params, queryEnv);
	if (!es->analyze)
		return;
	/* answers that writes still owe belong to the statement, where it waits for them */
	residency_statement_end();
	explain_statement(es, &before);
}

/* installs the hook */
void
residency_border_explain_init(void)
{
	next_ExplainOneQuery = ExplainOneQuery_hook;
	ExplainOneQuery_hook = explain_query;
}
