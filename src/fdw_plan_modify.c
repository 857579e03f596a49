/*
 * fdw_plan_modify.c
 *		Planning INSERT, UPDATE and DELETE of foreign tables.
 *
 * An UPDATE or DELETE whose conditions and new values the home can compute is sent
 * as one statement ("direct").  Otherwise the rows are fetched under lock and
 * written one by one, found by ctid.
 *
 * The partition key of a partition decides where a row lives, and the home's
 * own partition has no parent there that would move the row.  So an UPDATE that
 * assigns it is direct only if it assigns this partition's own region; any other
 * goes row by row, and the execution side compares.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "lookup.h"
#include "regions.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "optimizer/appendinfo.h"
#include "optimizer/inherit.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"

/*
 * AddForeignUpdateTargets: rows are found again by ctid.  What a DELETE returns is taken
 * from the row that was fetched, or each row would have to be awaited.  (The core adds the
 * whole row by itself where it needs it.)
 */
static void
residencyAddForeignUpdateTargets(PlannerInfo *root, Index rtindex,
								 RangeTblEntry *target_rte, Relation target_relation)
{
	Var		   *ctid = makeVar(rtindex, SelfItemPointerAttributeNumber, TIDOID, -1, InvalidOid, 0);

	add_row_identity_var(root, ctid, rtindex, "ctid");
	if (root->parse->commandType == CMD_DELETE && root->parse->returningList != NIL)
		add_row_identity_var(root, makeVar(rtindex, InvalidAttrNumber, RECORDOID, -1, InvalidOid, 0),
							 rtindex, "wholerow");
}

/*
 * IsForeignRelUpdatable: everything is possible; rights are checked at the home.
 */
static int
residencyIsForeignRelUpdatable(Relation rel)
{
	return (1 << CMD_INSERT) | (1 << CMD_UPDATE) | (1 << CMD_DELETE);
}

/*
 * Columns that an INSERT sends: all but generated ones, which the home computes.
 */
static List *
inserted_columns(TupleDesc desc)
{
	List	   *attrs = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !att->attgenerated)
			attrs = lappend_int(attrs, att->attnum);
	}
	return attrs;
}

/*
 * Columns that an UPDATE sends: those that it assigns.
 */
static List *
updated_columns(PlannerInfo *root, Index rtindex, TupleDesc desc)
{
	Bitmapset  *updated = get_rel_all_updated_cols(root, find_base_rel(root, rtindex));
	List	   *attrs = NIL;
	int			col = -1;

	while ((col = bms_next_member(updated, col)) >= 0)
	{
		AttrNumber	attno = col + FirstLowInvalidHeapAttributeNumber;

		if (attno <= InvalidAttrNumber)
			elog(ERROR, "system column %d cannot be updated", attno);
		if (!TupleDescAttr(desc, attno - 1)->attgenerated)
			attrs = lappend_int(attrs, attno);
	}
	return attrs;
}

/*
 * Columns of the result relation that RETURNING and WITH CHECK OPTION look at.
 */
static List *
returned_columns(ModifyTable *plan, Index rtindex, int subplan_index, TupleDesc desc)
{
	Bitmapset  *used = NULL;
	List	   *attrs = NIL;
	bool		all;

	if (plan->returningLists != NIL)
		pull_varattnos(list_nth(plan->returningLists, subplan_index), rtindex, &used);
	if (plan->withCheckOptionLists != NIL)
		pull_varattnos(list_nth(plan->withCheckOptionLists, subplan_index), rtindex, &used);

	all = bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, used);
	for (AttrNumber attno = 1; attno <= desc->natts; attno++)
	{
		if (!TupleDescAttr(desc, attno - 1)->attisdropped &&
			(all || bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, used)))
			attrs = lappend_int(attrs, attno);
	}
	if (bms_is_member(SelfItemPointerAttributeNumber - FirstLowInvalidHeapAttributeNumber, used))
		attrs = lappend_int(attrs, SelfItemPointerAttributeNumber);
	return attrs;
}

/*
 * The scan below a ModifyTable whose rows come from this foreign table alone:
 * the only child, or one of those of an Append.
 */
static ForeignScan *
scan_of_target(ModifyTable *plan, Index rtindex)
{
	Plan	   *child = outerPlan(plan);

	if (IsA(child, Result) && outerPlan(child) != NULL)
		child = outerPlan(child);
	if (IsA(child, Append))
	{
		ListCell   *lc;

		foreach(lc, ((Append *) child)->appendplans)
		{
			ForeignScan *scan = (ForeignScan *) lfirst(lc);

			if (IsA(scan, ForeignScan) && scan->scan.scanrelid == rtindex)
				return scan;
		}
		return NULL;
	}
	if (IsA(child, ForeignScan) && ((ForeignScan *) child)->scan.scanrelid == rtindex)
		return (ForeignScan *) child;
	return NULL;
}

/*
 * Whether a column decides about the partition that a row of rel belongs to.
 * Not only the region column of a declared table: a partition that nobody
 * declared is treated alike.
 */
static bool
is_partition_column(Relation rel, AttrNumber attno)
{
	Relation	parent;
	PartitionKey key;
	AttrNumber	parent_attno;
	bool		found = false;

	if (!rel->rd_rel->relispartition)
		return false;
	parent = table_open(get_partition_parent(RelationGetRelid(rel), false), AccessShareLock);
	key = RelationGetPartitionKey(parent);
	parent_attno = get_attnum(RelationGetRelid(parent),
							  NameStr(TupleDescAttr(RelationGetDescr(rel), attno - 1)->attname));
	for (int i = 0; i < key->partnatts; i++)
	{
		/* an expression as key (attnum 0) may look at any column */
		if (key->partattrs[i] == parent_attno || key->partattrs[i] == 0)
			found = true;
	}
	table_close(parent, AccessShareLock);
	return found;
}

/*
 * Whether the new value is a constant that names the region that the row is in.
 */
static bool
is_own_region(Expr *value, Oid serverid)
{
	Const	   *c;
	Oid			output;
	bool		varlena;
	char	   *region;

	while (IsA(value, RelabelType))
		value = ((RelabelType *) value)->arg;
	if (!IsA(value, Const) || ((Const *) value)->constisnull)
		return false;
	c = (Const *) value;
	getTypeOutputInfo(c->consttype, &output, &varlena);
	region = OidOutputFunctionCall(output, c->constvalue);
	return strcmp(region, residency_server_region(serverid)) == 0;
}

/*
 * Whether the home can compute all new values of an UPDATE.
 */
static bool
values_ship(PlannerInfo *root, RelOptInfo *rel, Relation relation,
			List *targetlist, List *targetattrs)
{
	ListCell   *target;
	ListCell   *attno;

	forboth(target, targetlist, attno, targetattrs)
	{
		Expr	   *value = lfirst_node(TargetEntry, target)->expr;

		if (lfirst_int(attno) <= InvalidAttrNumber)
			elog(ERROR, "system column %d cannot be updated", lfirst_int(attno));
		if (is_partition_column(relation, (AttrNumber) lfirst_int(attno)) &&
			!is_own_region(value, rel->serverid))
			return false;
		if (!residency_is_shippable(root, rel, value))
			return false;
	}
	return true;
}

/*
 * PlanDirectModify: turns the scan into the statement itself if it can be.
 *
 * The caller has made sure that nothing at the gateway needs to see the rows: no
 * WITH CHECK OPTION; row triggers and generated columns are the home's.
 */
static bool
residencyPlanDirectModify(PlannerInfo *root, ModifyTable *plan,
						  Index resultRelation, int subplan_index)
{
	ForeignScan *scan;
	RelOptInfo *rel;
	Relation	relation;
	List	   *targetlist = NIL;
	List	   *targetattrs = NIL;
	List	   *returning = NIL;
	List	   *attrs = NIL;
	List	   *params = NIL;
	StringInfoData sql;

	if (plan->operation != CMD_UPDATE && plan->operation != CMD_DELETE)
		return false;
	if (residency_lookup_force_write(root, plan))
		return true;
	scan = scan_of_target(plan, resultRelation);
	if (scan == NULL || scan->scan.plan.qual != NIL)
		return false;

	rel = find_base_rel(root, resultRelation);
	if (plan->returningLists != NIL)
		returning = list_nth(plan->returningLists, subplan_index);
	initStringInfo(&sql);
	relation = table_open(planner_rt_fetch(resultRelation, root)->relid, NoLock);

	/* fdw_recheck_quals are the conditions that the scan leaves to the home */
	if (plan->operation == CMD_UPDATE)
	{
		get_translated_update_targetlist(root, resultRelation, &targetlist, &targetattrs);
		if (!values_ship(root, rel, relation, targetlist, targetattrs))
		{
			table_close(relation, NoLock);
			return false;
		}
		residency_deparse_direct_update(&sql, root, rel, relation, targetlist, targetattrs,
										scan->fdw_recheck_quals, returning, &attrs, &params);
	}
	else
		residency_deparse_direct_delete(&sql, root, rel, relation, scan->fdw_recheck_quals,
										returning, &attrs, &params);
	table_close(relation, NoLock);

	scan->operation = plan->operation;
	scan->resultRelation = resultRelation;
	scan->fdw_exprs = params;
	scan->fdw_private = list_make4(makeString(sql.data), makeBoolean(returning != NIL),
								   attrs, makeBoolean(plan->canSetTag));
	return true;
}

/*
 * PlanForeignModify: which columns are written and which come back; or a mark, if
 * the statement can be direct after all (see fdw_plan_hook.c).
 */
static List *
residencyPlanForeignModify(PlannerInfo *root, ModifyTable *plan,
						   Index resultRelation, int subplan_index)
{
	Relation	rel = table_open(planner_rt_fetch(resultRelation, root)->relid, NoLock);
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *targets = NIL;
	List	   *returning;

	if (plan->onConflictAction != ONCONFLICT_NONE &&
		(plan->onConflictAction != ONCONFLICT_NOTHING || plan->arbiterIndexes != NIL))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("INSERT with this ON CONFLICT clause is not supported for foreign table \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("Its unique indexes are in region \"%s\".",
						   residency_server_region(find_base_rel(root, resultRelation)->serverid)),
				 errhint("Run the statement in that region, or use ON CONFLICT DO NOTHING without columns.")));

	if (residency_may_force_direct(plan, rel) &&
		residencyPlanDirectModify(root, plan, resultRelation, subplan_index))
	{
		table_close(rel, NoLock);
		return residency_direct_mark();
	}

	if (plan->operation == CMD_INSERT)
		targets = inserted_columns(desc);
	else if (plan->operation == CMD_UPDATE)
		targets = updated_columns(root, resultRelation, desc);
	returning = returned_columns(plan, resultRelation, subplan_index, desc);
	table_close(rel, NoLock);

	return list_make3(targets, returning,
					  makeBoolean(plan->onConflictAction == ONCONFLICT_NOTHING));
}

/*
 * residency_fdw_plan_modify_routine installs this file's callbacks.
 */
void
residency_fdw_plan_modify_routine(FdwRoutine *routine)
{
	routine->AddForeignUpdateTargets = residencyAddForeignUpdateTargets;
	routine->IsForeignRelUpdatable = residencyIsForeignRelUpdatable;
	routine->PlanForeignModify = residencyPlanForeignModify;
	routine->PlanDirectModify = residencyPlanDirectModify;
}
