/*
 * fdw_modify.c
 *		Callbacks for writes to foreign partitions: INSERT, COPY, UPDATE, DELETE, TRUNCATE.
 *
 * They translate what the executor says into fdw_modify_rows.c's terms.  Core's batches are
 * not used: they do not exist for COPY before 16, and would be awaited one by one.
 *
 * Row triggers
 * of a resident table run at the home, where the row is; so their flags are cleared in the
 * gateway's copy of the trigger description, or they would run twice.
 */
#include "postgres.h"

#include "fdw_exec.h"

#include "access/sysattr.h"
#include "commands/defrem.h"
#include "executor/executor.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "nodes/value.h"
#include "optimizer/optimizer.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "border.h"
#include "regions.h"

static ExecutorRun_hook_type next_ExecutorRun = NULL;
static ProcessUtility_hook_type next_ProcessUtility = NULL;

/* rows that the COPY under way has counted and that were not written */
static uint64 copy_missing = 0;

/*
 * Throws that a row cannot get another region.  relid is the table or a partition;
 * the text is that of the trigger on home partitions.
 */
void
residency_region_change_error(Oid relid)
{
	const TableRule *rule = residency_partition_rule(relid);
	Oid			parent = rule ? rule->relid : relid;
	char	   *column = rule ? get_attname(rule->relid, rule->region_attno, true) : NULL;

	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot change the region of a row of table \"%s\"", get_rel_name(parent)),
			 column ? errdetail("Column \"%s\" names the region that stores the row.", column) : 0,
			 errhint("Move the row with all that belongs to its key: delete it, and insert it with the new region.")));
	pg_unreachable();
}

/*
 * True if the table at home of this foreign partition has the foreign key to a
 * directory that is checked when a statement ends.
 */
bool
residency_home_constraint(Oid relid)
{
	const TableRule *rule = residency_partition_rule(relid);

	return rule != NULL && OidIsValid(rule->directory);
}

/*
 * True if a write of this kind can break that foreign key: it makes rows, or assigns one of
 * the columns (attnums offset by FirstLowInvalidHeapAttributeNumber), or a trigger at the
 * home might.
 */
bool
residency_home_check_needed(Relation rel, CmdType operation, const Bitmapset *columns)
{
	const TableRule *rule = residency_partition_rule(RelationGetRelid(rel));
	Bitmapset  *names = NULL;
	Oid			parent;

	if (rule == NULL || !OidIsValid(rule->directory) || operation == CMD_DELETE)
		return false;
	if (operation != CMD_UPDATE || (rel->trigdesc != NULL && rel->trigdesc->trig_update_before_row))
		return true;
	parent = rule->relid;
	names = bms_add_member(names, rule->region_attno);
	for (int i = 0; i < rule->nkeys; i++)
		names = bms_add_member(names, rule->keys[i]);
	for (int attno = bms_next_member(names, -1); attno >= 0; attno = bms_next_member(names, attno))
	{
		AttrNumber	here = get_attnum(RelationGetRelid(rel), get_attname(parent, attno, false));

		if (bms_is_member(here - FirstLowInvalidHeapAttributeNumber, columns))
			return true;
	}
	return false;
}

/* row triggers run at the home only */
static void
clear_row_triggers(ResultRelInfo *rri)
{
	TriggerDesc *triggers = rri->ri_TrigDesc;

	if (triggers == NULL)
		return;
	triggers->trig_insert_before_row = triggers->trig_insert_after_row = false;
	triggers->trig_insert_instead_row = false;
	triggers->trig_update_before_row = triggers->trig_update_after_row = false;
	triggers->trig_update_instead_row = false;
	triggers->trig_delete_before_row = triggers->trig_delete_after_row = false;
	triggers->trig_delete_instead_row = false;
}

/* all columns that can be written: neither dropped nor generated */
static List *
writable_columns(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *columns = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && att->attgenerated == '\0')
			columns = lappend_int(columns, att->attnum);
	}
	return columns;
}

/*
 * Columns of the written row that RETURNING and checks of views look at, given by
 * their lists of expressions.  *only_home is set if there is one that only the home knows:
 * ctid.
 */
static List *
columns_looked_at(Relation rel, List *returning, List *checks, List *planned, bool *only_home)
{
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *columns = NIL;
	List	   *vars;
	Bitmapset  *used = NULL;
	bool		all = checks != NIL;
	ListCell   *lc;

	*only_home = false;
	if (returning == NIL && !all)
		return NIL;
	/* vars of joined tables have special numbers by now */
	vars = pull_var_clause((Node *) returning, PVC_RECURSE_AGGREGATES |
						   PVC_RECURSE_WINDOWFUNCS | PVC_RECURSE_PLACEHOLDERS);
	foreach(lc, vars)
	{
		Var		   *var = lfirst_node(Var, lc);

		if (IS_SPECIAL_VARNO(var->varno))
			continue;
		if (var->varattno == 0)
			all = true;
		else if (var->varattno == SelfItemPointerAttributeNumber)
			*only_home = true;
		else if (var->varattno > 0)
			used = bms_add_member(used, var->varattno);
	}
	foreach(lc, planned)
	{
		if (lfirst_int(lc) > 0)
			used = bms_add_member(used, lfirst_int(lc));
	}
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped && (all || bms_is_member(i + 1, used)))
			columns = lappend_int(columns, i + 1);
	}
	/* ctid comes first in no slot; it also keeps the list from being empty */
	if (*only_home || columns == NIL)
		columns = lappend_int(columns, SelfItemPointerAttributeNumber);
	return columns;
}

/*
 * The plan's list for one of its relations.  What the executor makes of these lists is not
 * in the ResultRelInfo yet when a modification begins.
 */
static List *
list_of_relation(ModifyTable *plan, ResultRelInfo *rri, List *lists)
{
	ListCell   *lc;

	if (lists == NIL)
		return NIL;
	foreach(lc, plan->resultRelations)
	{
		if (lfirst_int(lc) == rri->ri_RangeTableIndex)
			return (List *) list_nth(lists, foreach_current_index(lc));
	}
	elog(ERROR, "relation is not in its plan");
}

/* prepares the writes that a plan has for one relation */
static void
residencyBeginForeignModify(ModifyTableState *mtstate, ResultRelInfo *rri, List *fdw_private,
							int subplan_index, int eflags)
{
	ModifyTable *plan = (ModifyTable *) mtstate->ps.plan;
	List	   *returning;
	bool		only_home;

	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	returning = columns_looked_at(rri->ri_RelationDesc, list_of_relation(plan, rri, plan->returningLists),
								  list_of_relation(plan, rri, plan->withCheckOptionLists),
								  list_nth(fdw_private, FdwModifyReturning), &only_home);
	rri->ri_FdwState = residency_modify_make(mtstate->ps.state, rri, mtstate->operation,
											 mtstate->canSetTag, list_nth(fdw_private, FdwModifyTarget), returning,
											 boolVal(list_nth(fdw_private, FdwModifyDoNothing)),
											 only_home, outerPlan(mtstate->ps.plan)->targetlist);
	clear_row_triggers(rri);
}

/* prepares the rows that tuple routing or COPY sends to a foreign partition */
static void
residencyBeginForeignInsert(ModifyTableState *mtstate, ResultRelInfo *rri)
{
	ModifyTable *plan = (ModifyTable *) mtstate->ps.plan;
	OnConflictAction conflict = plan ? plan->onConflictAction : ONCONFLICT_NONE;
	List	   *returning;
	bool		only_home;

	if (mtstate->operation == CMD_UPDATE)
		residency_region_change_error(RelationGetRelid(rri->ri_RelationDesc));
	if (mtstate->operation != CMD_INSERT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("MERGE cannot insert rows of region \"%s\" into table \"%s\"",
						residency_server_region(GetForeignTable(RelationGetRelid(rri->ri_RelationDesc))->serverid),
						RelationGetRelationName(rri->ri_RelationDesc)),
				 errhint("Use INSERT and UPDATE, or run MERGE in that region.")));
	if (conflict != ONCONFLICT_NONE &&
		(conflict != ONCONFLICT_NOTHING || plan->arbiterIndexes != NIL))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("ON CONFLICT on table \"%s\" cannot name a constraint or update rows of another region",
						RelationGetRelationName(rri->ri_RelationDesc)),
				 errhint("Use ON CONFLICT DO NOTHING without a target, or connect to region \"%s\".",
						 residency_server_region(GetForeignTable(RelationGetRelid(rri->ri_RelationDesc))->serverid))));
	returning = columns_looked_at(rri->ri_RelationDesc, rri->ri_returningList,
								  rri->ri_WithCheckOptions, NIL, &only_home);
	rri->ri_FdwState = residency_modify_make(mtstate->ps.state, rri, CMD_INSERT,
											 plan == NULL || mtstate->canSetTag, writable_columns(rri->ri_RelationDesc), returning,
											 conflict == ONCONFLICT_NOTHING, only_home, NIL);
	clear_row_triggers(rri);
}

/* writes one row; NULL if it was not inserted and somebody wants to see it */
static TupleTableSlot *
residencyExecForeignInsert(EState *estate, ResultRelInfo *rri, TupleTableSlot *slot,
						   TupleTableSlot *plan_slot)
{
	return residency_modify_insert(rri->ri_FdwState, slot);
}

/* the same for the row whose ctid is in plan_slot; slot holds the new version */
static TupleTableSlot *
residencyExecForeignUpdate(EState *estate, ResultRelInfo *rri, TupleTableSlot *slot,
						   TupleTableSlot *plan_slot)
{
	return residency_modify_update(rri->ri_FdwState, slot, plan_slot);
}

/* the same; slot takes the old version if something is returned */
static TupleTableSlot *
residencyExecForeignDelete(EState *estate, ResultRelInfo *rri, TupleTableSlot *slot,
						   TupleTableSlot *plan_slot)
{
	return residency_modify_delete(rri->ri_FdwState, slot, plan_slot);
}

/* sends what is still held back */
static void
residencyEndForeignModify(EState *estate, ResultRelInfo *rri)
{
	uint64		missing;

	if (rri->ri_FdwState == NULL)
		return;
	missing = residency_modify_end(rri->ri_FdwState);
	rri->ri_FdwState = NULL;
	/* COPY has no plan, and counts by itself */
	if (estate->es_plannedstmt == NULL)
		copy_missing += missing;
}

/* after the run of a query: its count of rows becomes what the homes have written */
static void
modify_ExecutorRun(COMPAT_RUN_ARGS)
{
	uint64		missing;

	if (next_ExecutorRun)
		next_ExecutorRun(COMPAT_RUN_PASS);
	else
		standard_ExecutorRun(COMPAT_RUN_PASS);
	missing = residency_modify_settle(queryDesc->estate);
	queryDesc->estate->es_processed -= Min(missing, queryDesc->estate->es_processed);
}

/* the same for COPY */
static void
modify_ProcessUtility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
					  ProcessUtilityContext context, ParamListInfo params,
					  QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = next_ProcessUtility ? next_ProcessUtility : standard_ProcessUtility;
	bool		copy = IsA(pstmt->utilityStmt, CopyStmt);

	if (copy)
		copy_missing = 0;
	next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	if (copy && qc != NULL)
		qc->nprocessed -= Min(copy_missing, qc->nprocessed);
}

/*
 * Truncates tables of one region.  The executor calls this region by region, so the
 * statement is deferred: all regions work side by side, and the answers are awaited
 * when the statement ends.
 */
static void
residencyExecForeignTruncate(List *rels, DropBehavior behavior, bool restart_seqs)
{
	StringInfoData buf;
	Oid			serverid = InvalidOid;
	RemoteSubject about = {InvalidOid, 0, NULL};
	int			flags = REMOTE_WRITES | REMOTE_DEFERRED;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "TRUNCATE ");
	foreach(lc, rels)
	{
		Relation	rel = (Relation) lfirst(lc);

		if (foreach_current_index(lc) > 0)
			appendStringInfoString(&buf, ", ");
		residency_deparse_relation(&buf, rel);
		serverid = GetForeignTable(RelationGetRelid(rel))->serverid;
		about.relid = residency_border_table(RelationGetRelid(rel));
		if (residency_home_constraint(RelationGetRelid(rel)))
			flags |= REMOTE_RESIDENT;
	}
	appendStringInfo(&buf, " %s IDENTITY %s", restart_seqs ? "RESTART" : "CONTINUE",
					 behavior == DROP_CASCADE ? "CASCADE" : "RESTRICT");
	(void) residency_remote_send_about(&about, residency_remote_region(serverid), GetUserId(),
									   buf.data, 0, NULL, flags, -1);
}

/* installs the write callbacks */
void
residency_fdw_modify_routine(FdwRoutine *routine)
{
	routine->BeginForeignModify = residencyBeginForeignModify;
	routine->ExecForeignInsert = residencyExecForeignInsert;
	routine->ExecForeignUpdate = residencyExecForeignUpdate;
	routine->ExecForeignDelete = residencyExecForeignDelete;
	routine->EndForeignModify = residencyEndForeignModify;
	routine->BeginForeignInsert = residencyBeginForeignInsert;
	routine->EndForeignInsert = residencyEndForeignModify;
	routine->ExecForeignTruncate = residencyExecForeignTruncate;
	residency_direct_routine(routine);
}

/* registers the row buffers' producer, and the hooks; called once, from _PG_init */
void
residency_fdw_modify_init(void)
{
	residency_remote_register_producer(residency_modify_flush_all);
	next_ExecutorRun = ExecutorRun_hook;
	ExecutorRun_hook = modify_ExecutorRun;
	next_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = modify_ProcessUtility;
}
