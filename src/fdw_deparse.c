/*
 * fdw_deparse.c
 *		SQL text of whole statements for the home.
 *
 * A statement is about one table, so columns are written without a prefix.  The
 * table is called by its local name: names are the same in all regions.  In each
 * statement "params" collects what is sent as $1, $2, ..., and "attrs" tells
 * which columns come back, in which order.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/prep.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*
 * residency_deparse_relation writes "schema"."name".
 */
void
residency_deparse_relation(StringInfo buf, Relation rel)
{
	appendStringInfoString(buf,
						   quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
													  RelationGetRelationName(rel)));
}

/*
 * Columns with commas between.
 */
static void
append_columns(StringInfo buf, Oid relid, List *attrs)
{
	ListCell   *lc;

	foreach(lc, attrs)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(buf, ", ");
		residency_deparse_column(buf, relid, (AttrNumber) lfirst_int(lc));
	}
}

/*
 * RETURNING for the client's RETURNING: at least something for each row.
 */
static void
append_client_returning(StringInfo buf, Relation rel, List *returning, List *attrs)
{
	if (returning == NIL)
		return;
	appendStringInfoString(buf, " RETURNING ");
	if (attrs == NIL)
		appendStringInfoString(buf, "NULL");
	append_columns(buf, RelationGetRelid(rel), attrs);
}

/*
 * RETURNING and its columns, if there are any.
 */
static void
append_returning(StringInfo buf, Relation rel, List *returning)
{
	if (returning != NIL)
	{
		appendStringInfoString(buf, " RETURNING ");
		append_columns(buf, RelationGetRelid(rel), returning);
	}
}

/*
 * The columns named in a set (offset as pull_varattnos does), as attnums in
 * their order; a whole-row reference means all of them.  Dropped columns are
 * left out, and of the system columns all but ctid.
 */
static List *
used_columns(TupleDesc desc, Bitmapset *used)
{
	bool		all = bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, used);
	List	   *attrs = NIL;

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
 * WHERE a AND b; conditions are RestrictInfos or bare expressions.
 */
static void
append_where(DeparseContext *cx, List *conds)
{
	ListCell   *lc;

	foreach(lc, conds)
	{
		Node	   *cond = lfirst(lc);

		if (IsA(cond, RestrictInfo))
			cond = (Node *) ((RestrictInfo *) cond)->clause;
		appendStringInfoString(cx->buf, foreach_current_index(lc) == 0 ? " WHERE " : " AND ");
		residency_deparse_expr(cx, (Expr *) cond);
	}
}

/*
 * residency_deparse_order_by writes ORDER BY, which residency_sort_member has found possible for each key.
 */
void
residency_deparse_order_by(DeparseContext *cx, List *pathkeys)
{
	ListCell   *lc;

	foreach(lc, pathkeys)
	{
		PathKey    *pathkey = lfirst_node(PathKey, lc);
		EquivalenceMember *member = residency_sort_member(cx->root, cx->rel, pathkey);

		if (member == NULL)
			elog(ERROR, "sort key %d is not shippable", foreach_current_index(lc));
		appendStringInfoString(cx->buf, foreach_current_index(lc) == 0 ? " ORDER BY " : ", ");
		residency_deparse_expr(cx, member->em_expr);
		appendStringInfoString(cx->buf, compat_pathkey_is_descending(pathkey) ? " DESC" : " ASC");
		appendStringInfoString(cx->buf, pathkey->pk_nulls_first ? " NULLS FIRST" : " NULLS LAST");
	}
}

/*
 * residency_deparse_count writes a LIMIT or OFFSET that is a constant or computed at the gateway.
 */
void
residency_deparse_count(DeparseContext *cx, const char *word, Expr *count)
{
	if (count == NULL || (IsA(count, Const) && ((Const *) count)->constisnull))
		return;
	appendStringInfo(cx->buf, " %s ", word);
	if (IsA(count, Const))
		appendStringInfo(cx->buf, INT64_FORMAT, DatumGetInt64(((Const *) count)->constvalue));
	else
		residency_deparse_param(cx, count);
}

/*
 * residency_locking_clause tells the lock that a scan takes at the home, NULL if
 * none: for rows of a FOR UPDATE and the like, and for rows that an UPDATE or
 * DELETE will write one by one.  An UPDATE takes the weaker lock, as it does
 * locally, so that foreign key checks can go on.
 */
char *
residency_locking_clause(PlannerInfo *root, RelOptInfo *rel)
{
	PlanRowMark *mark;
	const char *strength = NULL;

	if (bms_is_member(rel->relid, root->all_result_relids))
	{
		if (root->parse->commandType == CMD_DELETE)
			return " FOR UPDATE";
		return root->parse->commandType == CMD_UPDATE ? " FOR NO KEY UPDATE" : NULL;
	}

	mark = get_plan_rowmark(root->rowMarks, rel->relid);
	if (mark == NULL)
		return NULL;
	switch (mark->strength)
	{
		case LCS_NONE:
			return NULL;
		case LCS_FORKEYSHARE:
			strength = " FOR KEY SHARE";
			break;
		case LCS_FORSHARE:
			strength = " FOR SHARE";
			break;
		case LCS_FORNOKEYUPDATE:
			strength = " FOR NO KEY UPDATE";
			break;
		case LCS_FORUPDATE:
			strength = " FOR UPDATE";
			break;
	}
	return psprintf("%s%s", strength,
					mark->waitPolicy == LockWaitSkip ? " SKIP LOCKED" :
					mark->waitPolicy == LockWaitError ? " NOWAIT" : "");
}

/*
 * residency_deparse_select writes the scan of a base relation, or of the one
 * below an upper relation.
 *
 * The columns are those in FdwRel.attrs_used, which covers tlist and local
 * conditions; if there are none, NULL stands in for each row.  With has_limit
 * the text ends in a LIMIT that lets LIMIT and OFFSET of the query be applied
 * above, or, for an upper relation, in the query's own LIMIT and OFFSET.
 */
void
residency_deparse_select(StringInfo buf, PlannerInfo *root, RelOptInfo *rel,
						 List *tlist, List *remote_conds, List *pathkeys,
						 bool has_limit, List **attrs, List **params)
{
	FdwRel	   *fdw = (FdwRel *) rel->fdw_private;
	RelOptInfo *base = fdw->scan_rel != NULL ? fdw->scan_rel : rel;
	Oid			relid = planner_rt_fetch(base->relid, root)->relid;
	Relation	relation = table_open(relid, NoLock);
	DeparseContext cx = {.buf = buf, .root = root, .rel = base, .relid = relid, .params = params};
	char	   *locking;
	int			formats = residency_output_begin();

	*params = NIL;
	*attrs = used_columns(RelationGetDescr(relation), fdw->attrs_used);

	appendStringInfoString(buf, "SELECT ");
	if (*attrs == NIL)
		appendStringInfoString(buf, "NULL");
	append_columns(buf, relid, *attrs);
	appendStringInfoString(buf, " FROM ");
	residency_deparse_relation(buf, relation);
	append_where(&cx, remote_conds);
	residency_deparse_order_by(&cx, pathkeys);
	if (fdw->scan_rel != NULL)
	{
		residency_deparse_count(&cx, "LIMIT", (Expr *) root->parse->limitCount);
		residency_deparse_count(&cx, "OFFSET", (Expr *) root->parse->limitOffset);
	}
	else if (has_limit)
		residency_deparse_count(&cx, "LIMIT", residency_limit_expr(root));
	locking = residency_locking_clause(root, base);
	if (locking != NULL)
		appendStringInfoString(buf, locking);

	residency_output_end(formats);
	table_close(relation, NoLock);
}

/*
 * The columns that an expression list takes from a statement's result relation.
 */
static List *
returning_columns(Relation relation, Index rtindex, List *returning)
{
	Bitmapset  *used = NULL;

	pull_varattnos((Node *) returning, rtindex, &used);
	return used_columns(RelationGetDescr(relation), used);
}

/*
 * residency_deparse_direct_update writes UPDATE ... SET ... WHERE ... for all
 * rows at once.  targetlist holds the new values of targetattrs, in that order.
 */
void
residency_deparse_direct_update(StringInfo buf, PlannerInfo *root, RelOptInfo *rel,
								Relation relation, List *targetlist, List *targetattrs,
								List *remote_conds, List *returning,
								List **attrs, List **params)
{
	Oid			relid = RelationGetRelid(relation);
	DeparseContext cx = {.buf = buf, .root = root, .rel = rel, .relid = relid, .params = params};
	int			formats = residency_output_begin();
	ListCell   *target;
	ListCell   *attno;

	*params = NIL;
	*attrs = returning_columns(relation, rel->relid, returning);

	appendStringInfoString(buf, "UPDATE ");
	residency_deparse_relation(buf, relation);
	forboth(target, targetlist, attno, targetattrs)
	{
		appendStringInfoString(buf, foreach_current_index(target) == 0 ? " SET " : ", ");
		residency_deparse_column(buf, relid, (AttrNumber) lfirst_int(attno));
		appendStringInfoString(buf, " = ");
		residency_deparse_expr(&cx, lfirst_node(TargetEntry, target)->expr);
	}
	append_where(&cx, remote_conds);
	append_client_returning(buf, relation, returning, *attrs);
	residency_output_end(formats);
}

/*
 * residency_deparse_direct_delete writes DELETE ... WHERE ... for all rows at
 * once.
 */
void
residency_deparse_direct_delete(StringInfo buf, PlannerInfo *root, RelOptInfo *rel,
								Relation relation, List *remote_conds, List *returning,
								List **attrs, List **params)
{
	DeparseContext cx = {.buf = buf, .root = root, .rel = rel,
	.relid = RelationGetRelid(relation), .params = params};
	int			formats = residency_output_begin();

	*params = NIL;
	*attrs = returning_columns(relation, rel->relid, returning);

	appendStringInfoString(buf, "DELETE FROM ");
	residency_deparse_relation(buf, relation);
	append_where(&cx, remote_conds);
	append_client_returning(buf, relation, returning, *attrs);
	residency_output_end(formats);
}

/*
 * residency_deparse_insert writes INSERT of nrows rows, each with one parameter
 * for each column in targets.  Parameters carry no type: the home gives each the
 * type of its column.  Values of identity columns were drawn at the gateway, and
 * are to be taken as they are.
 */
void
residency_deparse_insert(StringInfo buf, Relation rel, List *targets, int nrows,
						 bool do_nothing, List *returning)
{
	int			ntargets = list_length(targets);
	int			param = 0;

	appendStringInfoString(buf, "INSERT INTO ");
	residency_deparse_relation(buf, rel);
	if (ntargets > 0)
	{
		appendStringInfoChar(buf, '(');
		append_columns(buf, RelationGetRelid(rel), targets);
		appendStringInfoString(buf, ") OVERRIDING SYSTEM VALUE VALUES ");
		for (int row = 0; row < nrows; row++)
		{
			appendStringInfoString(buf, row > 0 ? ", (" : "(");
			for (int i = 0; i < ntargets; i++)
				appendStringInfo(buf, "%s$%d", i > 0 ? ", " : "", ++param);
			appendStringInfoChar(buf, ')');
		}
	}
	else if (nrows == 1)
		appendStringInfoString(buf, " DEFAULT VALUES");
	else
		appendStringInfo(buf, " SELECT FROM pg_catalog.generate_series(1, %d)", nrows);
	if (do_nothing)
		appendStringInfoString(buf, " ON CONFLICT DO NOTHING");
	append_returning(buf, rel, returning);
}

/*
 * residency_deparse_update_row writes the UPDATE of one row: $1 is its ctid,
 * $2 and on are the columns in targets.
 */
void
residency_deparse_update_row(StringInfo buf, Relation rel, List *targets, List *returning)
{
	ListCell   *lc;

	appendStringInfoString(buf, "UPDATE ");
	residency_deparse_relation(buf, rel);
	foreach(lc, targets)
	{
		appendStringInfoString(buf, foreach_current_index(lc) == 0 ? " SET " : ", ");
		residency_deparse_column(buf, RelationGetRelid(rel), (AttrNumber) lfirst_int(lc));
		appendStringInfo(buf, " = $%d", foreach_current_index(lc) + 2);
	}
	appendStringInfoString(buf, " WHERE ctid OPERATOR(pg_catalog.=) $1::pg_catalog.tid");
	append_returning(buf, rel, returning);
}

/*
 * residency_deparse_delete_row writes the DELETE of the row whose ctid is $1.
 */
void
residency_deparse_delete_row(StringInfo buf, Relation rel, List *returning)
{
	appendStringInfoString(buf, "DELETE FROM ");
	residency_deparse_relation(buf, rel);
	appendStringInfoString(buf, " WHERE ctid OPERATOR(pg_catalog.=) $1::pg_catalog.tid");
	append_returning(buf, rel, returning);
}
