/*
 * fdw_plan_hook.c
 *		Direct UPDATE and DELETE of tables with row triggers or generated columns.
 *
 * The core offers PlanDirectModify only if no row trigger of the foreign table and
 * no generated column needs to see the rows here.  But row triggers of a resident
 * table run at its home alone, which computes generated columns too; to fetch
 * whole rows just to send them back would cost a round trip and carry columns over
 * the border that nobody asked for.  So PlanForeignModify, which the core calls
 * instead, makes such a statement direct as well and leaves a mark in place of its
 * private list; when the plan is complete, the planner hook enters the marked
 * tables where the executor looks for direct ones.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "nodes/plannodes.h"
#include "optimizer/planner.h"
#include "utils/rel.h"

static planner_hook_type next_planner = NULL;

/* calls of the hook in progress; a mark is left only if somebody will look for it */
static int	planning = 0;

/*
 * residency_may_force_direct tells whether the table is one that the core did not
 * offer for a direct statement, for a reason that does not hold for us.
 */
bool
residency_may_force_direct(const ModifyTable *plan, Relation rel)
{
	bool		triggers = rel->trigdesc != NULL &&
		(plan->operation == CMD_UPDATE
		 ? rel->trigdesc->trig_update_before_row || rel->trigdesc->trig_update_after_row
		 : rel->trigdesc->trig_delete_before_row || rel->trigdesc->trig_delete_after_row);
	bool		generated = plan->operation == CMD_UPDATE &&
		RelationGetDescr(rel)->constr != NULL &&
		RelationGetDescr(rel)->constr->has_generated_stored;

	return planning > 0 && (triggers || generated) && plan->withCheckOptionLists == NIL &&
		(plan->operation == CMD_UPDATE || plan->operation == CMD_DELETE);
}

/*
 * residency_direct_mark returns what PlanForeignModify leaves for a table whose
 * statement has been made direct: shorter than any list that means something.
 */
List *
residency_direct_mark(void)
{
	StaticAssertStmt(FdwModifyLength > 1, "a mark must differ from a private list");
	return list_make1(makeString("direct"));
}

/*
 * Enters marked tables among the direct ones.
 */
static void
enter_direct(Plan *plan)
{
	ModifyTable *modify = (ModifyTable *) plan;
	ListCell   *lc;

	if (plan == NULL || !IsA(plan, ModifyTable))
		return;
	foreach(lc, modify->fdwPrivLists)
	{
		List	   *private = (List *) lfirst(lc);

		if (private == NIL || !IsA(private, List) || list_length(private) != 1 ||
			!IsA(linitial(private), String) || strcmp(strVal(linitial(private)), "direct") != 0)
			continue;
		lfirst(lc) = NIL;
		modify->fdwDirectModifyPlans = bms_add_member(modify->fdwDirectModifyPlans,
													  foreach_current_index(lc));
	}
}

/*
 * planner_hook: plans, then looks at the statement's ModifyTable nodes; those of
 * data-modifying WITH queries are on top of subplans.
 */
static PlannedStmt *
plan_statement(Query *parse, const char *query_string, int cursorOptions, ParamListInfo boundParams)
{
	planner_hook_type next = next_planner ? next_planner : standard_planner;
	PlannedStmt *result;
	ListCell   *lc;

	planning++;
	PG_TRY();
	{
		result = next(parse, query_string, cursorOptions, boundParams);
	}
	PG_FINALLY();
	{
		planning--;
	}
	PG_END_TRY();

	enter_direct(result->planTree);
	foreach(lc, result->subplans)
		enter_direct((Plan *) lfirst(lc));
	return result;
}

/*
 * residency_fdw_plan_init installs the planner hook; called once, when the library
 * is loaded.
 */
void
residency_fdw_plan_init(void)
{
	next_planner = planner_hook;
	planner_hook = plan_statement;
}
