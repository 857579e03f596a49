/*
 * lookup_explain.c
 *		What EXPLAIN prints about a region lookup.
 *
 * Without ANALYZE the regions are those that might be asked; with it those that were, the
 * number of distinct keys per batch summed up, and what crossed the borders for them.
 */
#include "lookup_state.h"

#include "commands/explain.h"
#ifdef COMPAT_HAS_EXPLAIN_FORMAT
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

#include "border.h"

/* name of a join as SQL has it */
static const char *
join_name(JoinType type)
{
	switch (type)
	{
		case JOIN_LEFT:
			return "Left";
		case JOIN_SEMI:
			return "Semi";
		case JOIN_ANTI:
			return "Anti";
		default:
			return "Inner";
	}
}

/* column = value, for each key column */
static char *
key_text(CustomScanState *node, List *ancestors, ExplainState *es)
{
	CustomScan *plan = castNode(CustomScan, node->ss.ps.plan);
	List	   *context = set_deparse_context_plan(es->deparse_cxt, &plan->scan.plan, ancestors);
	bool		useprefix = list_length(es->rtable) > 1 || es->verbose;
	StringInfoData buf;
	ListCell   *name;
	ListCell   *value;
	ListCell   *array;

	initStringInfo(&buf);
	forthree(name, list_nth(plan->custom_private, LookupKeyNames),
			 value, list_nth(plan->custom_exprs, LookupKeyValues),
			 array, list_nth(plan->custom_private, LookupKeyArrays))
	{
		char	   *text = deparse_expression(lfirst(value), context, useprefix, false);

		appendStringInfo(&buf, lfirst_int(array) ? "%s%s = ANY (%s)" : "%s%s = %s",
						 buf.len > 0 ? " AND " : "", quote_identifier(strVal(lfirst(name))), text);
	}
	return buf.data;
}

/* ExplainCustomScan */
void
residency_lookup_explain(CustomScanState *node, List *ancestors, ExplainState *es)
{
	LookupState *state = (LookupState *) node;
	CustomScan *plan = castNode(CustomScan, node->ss.ps.plan);
	List	   *joinquals = list_nth(plan->custom_exprs, LookupJoinQuals);
	List	   *regions = NIL;

	if (state->outer != NULL)
	{
		List	   *oids = list_nth(plan->custom_private, LookupOids);

		ExplainPropertyText("Join Type", join_name(state->jointype), es);
		ExplainPropertyText("Resident Table", get_rel_name(list_nth_oid(oids, LookupParentOid)), es);
	}
	if (state->operation != CMD_SELECT)
		ExplainPropertyText("Operation", state->operation == CMD_UPDATE ? "Update" : "Delete", es);
	ExplainPropertyText("Lookup Key", key_text(node, ancestors, es), es);
	if (joinquals != NIL)
	{
		List	   *context = set_deparse_context_plan(es->deparse_cxt, &plan->scan.plan, ancestors);

		ExplainPropertyText("Join Filter",
							deparse_expression((Node *) make_ands_explicit(joinquals), context,
											   list_length(es->rtable) > 1 || es->verbose, false), es);
	}
	if (es->analyze)
		ExplainPropertyInteger("Keys", NULL, state->keys_asked, es);
	for (int i = 0; i < state->ntargets; i++)
	{
		if (!es->analyze || state->targets[i].asked)
			regions = lappend(regions, i == state->local ? "local" : state->targets[i].region);
	}
	residency_border_explain(es, regions, state->tally ? &state->tally->traffic : NULL);
	residency_border_expect(es, state->outer != NULL ? state->outer->plan->plan_rows : plan->scan.plan.plan_rows, 1);
	if (es->verbose)
		ExplainPropertyText("Remote SQL",
							residency_question_text(state->sql, state->targets[0].partition), es);
}
