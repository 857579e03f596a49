/*
 * lookup_write.c
 *		UPDATE and DELETE of a resident table whose rows a region lookup finds.
 *
 * The lookup stands below ModifyTable in place of the scans of all partitions, so it must give
 * out what those would: the row identity columns (tableoid, ctid, wholerow), which the planner
 * refers to by ROWID_VAR as no one partition has them all.  Our node cannot, so its
 * path stands alone below an Append, which the planner lets refer to them, and removes.
 *
 * If the homes can compute conditions and new values the write is direct: one statement for each
 * home, with all keys.  ModifyTable then sees rows of this region, and what RETURNING brought.
 * The new values in the list above the lookup are for the former only.
 */
#include "lookup.h"

#include "access/sysattr.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/restrictinfo.h"
#include "parser/parsetree.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "fdw_plan.h"
#include "regions.h"

/* the column of a partitioned table that a row identity column comes from; 1 if unknown */
static AttrNumber
identity_column(const char *name)
{
	if (strcmp(name, "ctid") == 0)
		return SelfItemPointerAttributeNumber;
	if (strcmp(name, "tableoid") == 0)
		return TableOidAttributeNumber;
	return strcmp(name, "wholerow") == 0 ? InvalidAttrNumber : 1;
}

/*
 * Can an UPDATE or DELETE of rel take its rows from a lookup?  Not one that assigns the
 * region: the core and fdw_modify.c decide about that row by row, in their own words.
 */
bool
residency_lookup_writes(PlannerInfo *root, RelOptInfo *rel)
{
	const TableRule *rule = residency_table_rule(planner_rt_fetch(rel->relid, root)->relid);
	ListCell   *lc;

	if (rel->relid != root->parse->resultRelation || rule == NULL ||
		(root->parse->commandType != CMD_UPDATE && root->parse->commandType != CMD_DELETE))
		return false;
	if (root->parse->commandType == CMD_UPDATE && list_member_int(root->update_colnos, rule->region_attno))
		return false;
	/* whole rows of two types, the query's and ModifyTable's, could not be told apart */
	if (!bms_is_empty(rel->attr_needed[InvalidAttrNumber - rel->min_attr]))
		return false;
	foreach(lc, root->row_identity_vars)
	{
		if (identity_column(lfirst_node(RowIdentityVarInfo, lc)->rowidname) > 0)
			return false;
	}
	return true;
}

/*
 * The column of rel that a Var stands for: itself, or that of the partitioned table behind a
 * row identity column.  NULL for columns of others.
 */
Var *
residency_lookup_column(PlannerInfo *root, RelOptInfo *rel, Var *var)
{
	RowIdentityVarInfo *info;

	if (var->varno == rel->relid)
		return var;
	if (var->varno != ROWID_VAR || rel->relid != root->parse->resultRelation)
		return NULL;
	info = list_nth_node(RowIdentityVarInfo, root->row_identity_vars, var->varattno - 1);
	return makeVar(rel->relid, identity_column(info->rowidname), var->vartype, var->vartypmod,
				   var->varcollid, 0);
}

/* is the clause one of those that the key comes from? */
bool
residency_lookup_is_key(const LookupTable *table, RestrictInfo *rinfo)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		if (table->keys[i].rinfo == rinfo)
			return true;
	}
	return false;
}

/* adds the clauses to *conditions, but for those of the key; false if one cannot travel */
static bool
ship_clauses(PlannerInfo *root, const LookupTable *table, List *clauses, List **conditions)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (residency_lookup_is_key(table, rinfo))
			continue;
		if (rinfo->pseudoconstant || !restriction_is_securely_promotable(rinfo, table->rel) ||
			!residency_is_shippable(root, table->rel, rinfo->clause))
			return false;
		*conditions = lappend(*conditions, rinfo->clause);
	}
	return true;
}

/* can the homes compute all new values? */
static bool
values_ship(PlannerInfo *root, const LookupTable *table)
{
	ListCell   *tle;
	ListCell   *attno;

	if (root->parse->commandType != CMD_UPDATE)
		return true;
	forboth(tle, root->processed_tlist, attno, root->update_colnos)
	{
		Expr	   *value = lfirst_node(TargetEntry, tle)->expr;

		if (contain_volatile_functions((Node *) value) ||
			!residency_is_shippable(root, table->rel, value))
			return false;
	}
	return true;
}

/* columns of the parent that RETURNING looks at; false if there is one that cannot travel */
static bool
returned_columns(PlannerInfo *root, const LookupTable *table, List **returned)
{
	Bitmapset  *used = NULL;
	int			member = -1;

	pull_varattnos((Node *) root->parse->returningList, table->rel->relid, &used);
	while ((member = bms_next_member(used, member)) >= 0)
	{
		AttrNumber	attno = member + FirstLowInvalidHeapAttributeNumber;

		if (attno == InvalidAttrNumber)
		{
			*returned = NIL;
			for (attno = 1; attno <= table->rel->max_attr; attno++)
			{
				if (get_attname(table->relid, attno, true) != NULL &&
					OidIsValid(get_atttype(table->relid, attno)))
					*returned = lappend_int(*returned, attno);
			}
			if (bms_is_member(SelfItemPointerAttributeNumber - FirstLowInvalidHeapAttributeNumber, used))
				*returned = lappend_int(*returned, SelfItemPointerAttributeNumber);
			return true;
		}
		if (attno == TableOidAttributeNumber)
			continue;
		if (attno < 0 && attno != SelfItemPointerAttributeNumber)
			return false;
		*returned = lappend_int(*returned, attno);
	}
	return true;
}

/* are the values that travel with the keys computed from relations of the key side alone? */
static bool
values_known(PlannerInfo *root, const LookupWrite *write, Relids relids)
{
	return bms_is_subset(pull_varnos(root, (Node *) write->row_params), relids);
}

/*
 * Fills in *write if the statement can be done at the homes as a whole; otherwise its sql
 * is NULL.  rel is the join, or the table alone; own and clauses are the table's own conditions
 * and the join's.
 */
void
residency_lookup_plan_write(PlannerInfo *root, RelOptInfo *rel, const LookupTable *table,
							const AttrNumber *keys, JoinType jointype, List *own, List *clauses, LookupWrite *write)
{
	List	   *conditions = NIL;
	List	   *returned = NIL;

	memset(write, 0, sizeof(*write));
	if (jointype == JOIN_INNER && residency_lookup_writes(root, table->rel) &&
		ship_clauses(root, table, own, &conditions) &&
		ship_clauses(root, table, clauses, &conditions) &&
		values_ship(root, table) && returned_columns(root, table, &returned) &&
		residency_lookup_write(root, table, keys, conditions, returned, write) &&
		values_known(root, write, rel->relids))
		return;
	memset(write, 0, sizeof(*write));
}

/* the lookup that gives ModifyTable its rows, NULL if it is none or more stands between */
static CustomScan *
lookup_below(ModifyTable *plan)
{
	Plan	   *child = outerPlan(plan);

	if (IsA(child, Result) && outerPlan(child) != NULL && ((Result *) child)->resconstantqual == NULL &&
		child->qual == NIL)
		child = outerPlan(child);
	if (IsA(child, Append) && list_length(((Append *) child)->appendplans) == 1)
		child = linitial(((Append *) child)->appendplans);
	if (IsA(child, CustomScan) && ((CustomScan *) child)->methods == &residency_lookup_scan_methods)
		return (CustomScan *) child;
	return NULL;
}

/*
 * New values in the list above the lookup become NULL for rows that come back from other
 * regions: those have been written, and computing them again, from new values, could fail.
 */
static void
values_here_only(Plan *plan, Oid home)
{
	TargetEntry *tableoid = NULL;
	ListCell   *lc;

	foreach(lc, plan->targetlist)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk && tle->resname != NULL && strcmp(tle->resname, "tableoid") == 0)
			tableoid = tle;
	}
	if (tableoid == NULL)
		return;
	foreach(lc, plan->targetlist)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		Const	   *here;
		CaseWhen   *when;
		CaseExpr   *expr;

		if (tle->resjunk || IsA(tle->expr, Var) || IsA(tle->expr, Const))
			continue;
		here = makeConst(OIDOID, -1, InvalidOid, sizeof(Oid), ObjectIdGetDatum(home), false, true);
		when = makeNode(CaseWhen);
		when->expr = make_opclause(lookup_type_cache(OIDOID, TYPECACHE_EQ_OPR)->eq_opr, BOOLOID, false,
								   (Expr *) copyObject(tableoid->expr), (Expr *) here,
								   InvalidOid, InvalidOid);
		((OpExpr *) when->expr)->opfuncid = F_OIDEQ;
		when->result = tle->expr;
		when->location = -1;
		expr = makeNode(CaseExpr);
		expr->casetype = exprType((Node *) tle->expr);
		expr->casecollid = exprCollation((Node *) tle->expr);
		expr->args = list_make1(when);
		expr->defresult = (Expr *) makeNullConst(expr->casetype, exprTypmod((Node *) tle->expr),
												 expr->casecollid);
		expr->location = -1;
		tle->expr = (Expr *) expr;
	}
}

/*
 * Called for each foreign partition while ModifyTable is made: makes the lookup below write
 * by itself, if it can.  All partitions get the same answer.
 */
bool
residency_lookup_force_write(PlannerInfo *root, ModifyTable *plan)
{
	CustomScan *scan = lookup_below(plan);
	List	   *numbers;

	if (scan == NULL || *strVal(list_nth(scan->custom_private, LookupWriteSql)) == '\0' ||
		scan->scan.plan.qual != NIL)
		return false;
	numbers = list_nth(scan->custom_private, LookupNumbers);
	if (list_nth_int(numbers, LookupOperation) != CMD_SELECT)
		return true;
	lfirst_int(list_nth_cell(numbers, LookupOperation)) = plan->operation;
	lfirst_int(list_nth_cell(numbers, LookupReturns)) = plan->returningLists != NIL;
	lfirst_int(list_nth_cell(numbers, LookupCounts)) = plan->canSetTag;
	if (plan->operation == CMD_UPDATE)
		values_here_only(outerPlan(plan), list_nth_oid(list_nth(scan->custom_private, LookupOids), LookupHomeOid));
	return true;
}
