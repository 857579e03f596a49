/*
 * global_triggers.c
 *		Which triggers fire for rows of a global table that another gateway sent.
 *
 * User triggers have run at the gateway, and what they wrote is on its way too.
 * Here only those fire that their owner has marked ENABLE ALWAYS or REPLICA, and
 * never our own.  Foreign keys:
 *
 *	 between global tables	the gateway has checked them on its copies.  That what a
 *							row refers to exists is checked again at the row's home
 *							only.  That nothing refers to a row that goes is checked
 *							in every region: who makes a reference at another
 *							gateway has locked what it refers to there, and perhaps
 *							nowhere else, so only a check that waits for that lock
 *							sees it.  Referential actions are not repeated, as the
 *							rows that they changed are on their way; they turn into
 *							the same check.
 *	 from other tables		rows of resident partitions, and of tables that only
 *							this region has, are checked and acted on in every
 *							region: only it can see them.
 *
 * Rows that are shipped later (global_catchup_apply.c) come one by one, and those that refer to
 * them from other homes.  So what an UPDATE's action does between global tables is done there as
 * well: else a row with another key, and one of another home that refers to it, would each
 * wait for the other.  What the action writes comes from these rows' own homes, too; and if
 * that is the region itself, it is noted for all others (global_capture.c).
 *
 * If the client has deferred constraints, all that can be deferred wait for the commit.
 *
 * User triggers do not fire for what such an action writes either: see action_ExecutorStart().
 *
 * A table's triggers are copied once per scope with all that must not fire set to
 * disabled.  The copies have the same triggers at the same positions, since the
 * executor caches what it knows of them by position.
 */
#include "residency.h"

#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "global_backlog.h"
#include "regions.h"

/*
 * True for our own triggers: the one of global_capture.c, and the one that refuses an UPDATE
 * of a directory row's region (regions_trigger.c): what is applied is no UPDATE of anybody's.
 */
static bool
is_ours(Trigger *trigger)
{
	static const char *const names[] = {"capture", "refuse_region_change"};

	for (int i = 0; i < lengthof(names); i++)
	{
		List	   *name = list_make2(makeString(pstrdup(RESIDENCY_SCHEMA)),
									  makeString(pstrdup(names[i])));
		Oid			function = LookupFuncName(name, 0, NULL, true);

		list_free_deep(name);
		if (trigger->tgfoid == function)
			return true;
	}
	return false;
}

/* True if both ends of a foreign key are global tables; one of them has the trigger. */
static bool
between_global_tables(Trigger *trigger)
{
	const TableRule *rule = residency_table_rule(trigger->tgconstrrelid);

	return rule != NULL && rule->kind == RESIDENCY_GLOBAL;
}

/*
 * True for a foreign key's trigger whose check waits for the last piece of a batch:
 * one that is not left to the commit, and that an incomplete batch could fail.
 * "deferred" says that the client has deferred constraints.
 */
bool
residency_trigger_waits(Trigger *trigger, bool deferred)
{
	return trigger->tgisinternal && !trigger->tginitdeferred &&
		!(deferred && trigger->tgdeferrable) &&
		trigger->tgenabled != TRIGGER_DISABLED &&
		RI_FKey_trigger_type(trigger->tgfoid) != RI_TRIGGER_NONE &&
		(RI_FKey_trigger_type(trigger->tgfoid) == RI_TRIGGER_FK ||
		 between_global_tables(trigger));
}

/*
 * The function that a foreign key's trigger runs for rows that were sent, or "shipped" in
 * catch-up: an action between global tables becomes a check.  (Actions are never deferred, so
 * no later event can run the action after all.)  So does RESTRICT, which the gateway has kept:
 * here the batch is checked at its end, and a row with the same key may be there again.
 */
Oid
residency_trigger_function(Trigger *trigger, bool shipped)
{
	switch (trigger->tgfoid)
	{
		case F_RI_FKEY_CASCADE_DEL:
		case F_RI_FKEY_SETNULL_DEL:
		case F_RI_FKEY_SETDEFAULT_DEL:
		case F_RI_FKEY_RESTRICT_DEL:
			return between_global_tables(trigger) ? F_RI_FKEY_NOACTION_DEL : trigger->tgfoid;
		case F_RI_FKEY_CASCADE_UPD:
		case F_RI_FKEY_SETNULL_UPD:
		case F_RI_FKEY_SETDEFAULT_UPD:
			return between_global_tables(trigger) && !shipped ? F_RI_FKEY_NOACTION_UPD : trigger->tgfoid;
		case F_RI_FKEY_RESTRICT_UPD:
			return between_global_tables(trigger) ? F_RI_FKEY_NOACTION_UPD : trigger->tgfoid;
		default:
			return trigger->tgfoid;
	}
}

/* True for rows of a batch of which more are to come. */
static bool
is_piece(ApplyScope scope)
{
	return scope == SCOPE_COPY_PIECE || scope == SCOPE_HOME_PIECE;
}

/* Decides whether a trigger fires in a scope: see the head of this file. */
static bool
fires(Trigger *trigger, ApplyScope scope, bool deferred)
{
	bool		piece = is_piece(scope);

	if (trigger->tgenabled == TRIGGER_DISABLED)
		return false;
	if (!trigger->tgisinternal)
		return (trigger->tgenabled == TRIGGER_FIRES_ALWAYS ||
				trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA) && !is_ours(trigger);

	switch (RI_FKey_trigger_type(trigger->tgfoid))
	{
		case RI_TRIGGER_FK:
			if (scope != SCOPE_HOME && scope != SCOPE_HOME_PIECE)
				return false;
			return !piece || !residency_trigger_waits(trigger, deferred);
		case RI_TRIGGER_PK:
			if (!between_global_tables(trigger))
				return true;
			if (scope == SCOPE_CLEAR)
				return false;
			return !piece || !residency_trigger_waits(trigger, deferred);
		default:
			/* deferrable unique constraints, and what later versions invent */
			return true;
	}
}

/* True if rows of global tables, this one perhaps, refer to rows of the table. */
bool
residency_table_is_referred(Relation rel)
{
	TriggerDesc *desc = rel->trigdesc;

	for (int i = 0; desc && i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];

		if (trigger->tgisinternal &&
			RI_FKey_trigger_type(trigger->tgfoid) == RI_TRIGGER_PK &&
			between_global_tables(trigger))
			return true;
	}
	return false;
}

/*
 * The triggers of a table as rows of this scope see them, in the current memory
 * context; NULL if the table has none.  "deferred": the client has deferred constraints;
 * "shipped": the rows come by catch-up.
 */
TriggerDesc *
residency_triggers_for(Relation rel, ApplyScope scope, bool deferred, bool shipped)
{
	TriggerDesc *desc = CopyTriggerDesc(rel->trigdesc);

	if (desc == NULL)
		return NULL;
	for (int i = 0; i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];

		if (!fires(trigger, scope, deferred))
			trigger->tgenabled = TRIGGER_DISABLED;
		else
		{
			trigger->tgenabled = TRIGGER_FIRES_ALWAYS;
			trigger->tgfoid = residency_trigger_function(trigger, shipped);
			/* a unique key that can be deferred is violated between two pieces, too */
			if (trigger->tgisinternal &&
				(deferred || (is_piece(scope) && trigger->tgfoid == F_UNIQUE_KEY_RECHECK)))
				trigger->tginitdeferred = trigger->tgdeferrable;
		}
	}
	return desc;
}

static ExecutorStart_hook_type next_ExecutorStart = NULL;

/*
 * What a foreign key's action writes in a global table while rows are shipped here is an
 * ordinary UPDATE to the executor.  User triggers have run for it at the gateway.
 */
static void
action_ExecutorStart(QueryDesc *queryDesc, int eflags)
{
	ListCell   *lc;

	if (next_ExecutorStart)
		next_ExecutorStart(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
	if (!residency_rows_shipped)
		return;
	foreach(lc, queryDesc->estate->es_opened_result_relations)
	{
		ResultRelInfo *info = lfirst(lc);
		const TableRule *rule = residency_table_rule(RelationGetRelid(info->ri_RelationDesc));
		MemoryContext old;

		if (info->ri_TrigDesc == NULL || rule == NULL || rule->kind != RESIDENCY_GLOBAL)
			continue;
		old = MemoryContextSwitchTo(queryDesc->estate->es_query_cxt);
		info->ri_TrigDesc = CopyTriggerDesc(info->ri_TrigDesc);
		MemoryContextSwitchTo(old);
		for (int i = 0; i < info->ri_TrigDesc->numtriggers; i++)
		{
			Trigger    *trigger = &info->ri_TrigDesc->triggers[i];

			if (!trigger->tgisinternal && trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA)
				trigger->tgenabled = TRIGGER_FIRES_ALWAYS;
			else if (!trigger->tgisinternal && trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN)
				trigger->tgenabled = TRIGGER_DISABLED;
		}
	}
}

/* Called once per backend from residency_global_init. */
void
residency_triggers_init(void)
{
	next_ExecutorStart = ExecutorStart_hook;
	ExecutorStart_hook = action_ExecutorStart;
}
