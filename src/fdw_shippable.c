/*
 * fdw_shippable.c
 *		May this expression be computed at the home, with the same answer as here?
 *
 * An expression over a foreign table's columns is shipped only if everything in
 * it is built in and immutable: what depends on the session (stable), on
 * chance (volatile), or on code that a region might have changed is not.  A part
 * without columns of the table is a "gateway value": it is computed here, once,
 * and sent as a parameter, so it may be stable or user-defined.
 *
 * Collations.  The home parses text and derives collations anew.  So the walk
 * below derives them as the parser will, node by node, and ships a node only if
 * the outcome is the collation that the node has here.  Names of collations are
 * written only for those that are the same everywhere: "C", "POSIX", "default"
 * (add_region checks that the databases agree about the latter).
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"
#include "fdw_shippable.h"

#include "access/sysattr.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

typedef struct ShipContext
{
	PlannerInfo *root;
	RelOptInfo *rel;
	int			conditional;	/* inside a branch that may not be evaluated */
	bool		grouped;		/* aggregates may occur */
} ShipContext;

static const DerivedColl no_coll = {InvalidOid, COLL_NONE};

static bool ship_node(Node *node, ShipContext *cx, DerivedColl *out);

/*
 * Whether the function is built in and immutable.
 */
static bool
function_ships(Oid funcid)
{
	return residency_is_built_in(funcid) && func_volatile(funcid) == PROVOLATILE_IMMUTABLE;
}

/*
 * Walker: true if the expression holds something that cannot be evaluated as an
 * expression of a scan node, whatever it is about.  With a context aggregates can.
 */
static bool
has_unfit_node(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Param:
			if (((Param *) node)->paramkind != PARAM_EXTERN &&
				((Param *) node)->paramkind != PARAM_EXEC)
				return true;
			break;
		case T_Aggref:
			if (context == NULL || ((Aggref *) node)->agglevelsup > 0)
				return true;
			break;
		case T_GroupingFunc:
		case T_WindowFunc:
		case T_SubLink:
		case T_SubPlan:
		case T_AlternativeSubPlan:
		case T_CurrentOfExpr:
		case T_NextValueExpr:
		case T_PlaceHolderVar:
		case T_SetToDefault:
			return true;
		default:
			break;
	}
	return expression_tree_walker(node, has_unfit_node, context);
}

/*
 * Whether an expression is computed at the gateway when a scan of rel starts:
 * it has no column of rel (columns of other relations are parameters of a nested
 * loop), and it is not a plain constant, which is written into the text.
 */
bool
residency_is_gateway_value(PlannerInfo *root, RelOptInfo *rel, Expr *expr)
{
	if (IsA(expr, Const) || IsA(expr, CaseTestExpr) || contain_agg_clause((Node *) expr))
		return false;
	return !bms_overlap(pull_varnos(root, (Node *) expr), rel->relids);
}

/*
 * Whether computing a gateway value can never fail, so that it may be computed
 * although the branch that it stands in might not have been reached.
 */
static bool
never_fails(Node *node)
{
	while (IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	if (IsA(node, FuncExpr))
		return ((FuncExpr *) node)->args == NIL && residency_is_built_in(((FuncExpr *) node)->funcid);
	return IsA(node, Param) || IsA(node, Var) || IsA(node, SQLValueFunction);
}

/*
 * The condition of a WHEN branch as an expression of its own: in the form
 * CASE x WHEN y it refers to x by a placeholder, for which x is put in here.  (The
 * home would look up the operator of CASE x WHEN y by search_path.)
 */
static Node *
replace_case_test(Node *node, void *arg)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, CaseTestExpr))
		return (Node *) copyObject((Node *) arg);
	/* placeholders of inner expressions are not ours */
	if (IsA(node, CaseExpr) || IsA(node, ArrayCoerceExpr))
		return node;
	return expression_tree_mutator(node, replace_case_test, arg);
}

/*
 * residency_case_condition returns a boolean expression; may share nodes with
 * the input.
 */
Expr *
residency_case_condition(const CaseExpr *expr, const CaseWhen *when)
{
	if (expr->arg == NULL)
		return when->expr;
	return (Expr *) replace_case_test((Node *) when->expr, expr->arg);
}

/*
 * Looks at all expressions of a list (NULL members are skipped), with their
 * collations merged.
 */
static bool
ship_list(List *list, ShipContext *cx, DerivedColl *merged)
{
	ListCell   *lc;

	*merged = no_coll;
	foreach(lc, list)
	{
		DerivedColl one;

		if (lfirst(lc) == NULL)
			continue;
		if (!ship_node((Node *) lfirst(lc), cx, &one) || !residency_merge_coll(merged, one))
			return false;
	}
	return true;
}

/*
 * Like ship_list, for operands: their types must travel too, since the result
 * depends on how the home understands their values.
 */
static bool
ship_operands(List *list, ShipContext *cx, DerivedColl *merged)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		if (!residency_type_travels(exprType((Node *) lfirst(lc))))
			return false;
	}
	return ship_list(list, cx, merged);
}

/*
 * Two expressions with one operator between.
 */
static bool
ship_operator(Oid opno, Oid opfuncid)
{
	return residency_is_built_in(opno) &&
		function_ships(OidIsValid(opfuncid) ? opfuncid : get_opcode(opno));
}

/*
 * A cast by way of text.
 */
static bool
ship_coerce_via_io(CoerceViaIO *expr, ShipContext *cx, DerivedColl *out)
{
	Oid			from = exprType((Node *) expr->arg);
	Oid			function;
	Oid			ioparam;
	bool		varlena;
	DerivedColl in;

	if (!residency_text_form_is_fixed(from) || !residency_text_form_is_fixed(expr->resulttype) ||
		!residency_is_built_in(expr->resulttype))
		return false;
	getTypeOutputInfo(from, &function, &varlena);
	if (!function_ships(function))
		return false;
	getTypeInputInfo(expr->resulttype, &function, &ioparam);
	if (!function_ships(function))
		return false;
	return ship_operands(list_make1(expr->arg), cx, &in) &&
		residency_settle_coll(in, in.oid, expr->resulttype, expr->resultcollid, out);
}

/*
 * A cast of an array: only one that relabels the elements (varchar[] to text[]).
 */
static bool
ship_array_coerce(ArrayCoerceExpr *expr, ShipContext *cx, DerivedColl *out)
{
	DerivedColl in;

	if (!IsA(expr->elemexpr, RelabelType) ||
		!IsA(((RelabelType *) expr->elemexpr)->arg, CaseTestExpr) ||
		!residency_is_built_in(expr->resulttype) || expr->resulttypmod >= 0)
		return false;
	return ship_operands(list_make1(expr->arg), cx, &in) &&
		residency_settle_coll(in, in.oid, expr->resulttype, expr->resultcollid, out);
}

/*
 * A relabelling, which may stand for a COLLATE clause.
 */
static bool
ship_relabel(RelabelType *expr, ShipContext *cx, DerivedColl *out)
{
	Oid			written = residency_relabel_collation(expr);
	DerivedColl in;

	if (!residency_type_travels(expr->resulttype) ||
		!ship_operands(list_make1(expr->arg), cx, &in))
		return false;
	if (OidIsValid(written))
	{
		if (!residency_is_common_collation(written))
			return false;
		out->oid = written;
		out->strength = COLL_EXPLICIT;
		return true;
	}
	return residency_settle_coll(in, in.oid, expr->resulttype, expr->resultcollid, out);
}

/*
 * CASE: everything behind the first condition is evaluated only sometimes.
 */
static bool
ship_case(CaseExpr *expr, ShipContext *cx, DerivedColl *out)
{
	DerivedColl results = no_coll;
	DerivedColl one;
	ListCell   *lc;

	foreach(lc, expr->args)
	{
		CaseWhen   *when = lfirst_node(CaseWhen, lc);
		bool		ships;

		cx->conditional += (foreach_current_index(lc) > 0);
		ships = ship_node((Node *) residency_case_condition(expr, when), cx, &one);
		cx->conditional -= (foreach_current_index(lc) > 0);
		if (!ships)
			return false;
		cx->conditional++;
		ships = ship_node((Node *) when->result, cx, &one);
		cx->conditional--;
		if (!ships || !residency_merge_coll(&results, one))
			return false;
	}
	if (expr->defresult != NULL)
	{
		bool		ships;

		cx->conditional++;
		ships = ship_node((Node *) expr->defresult, cx, &one);
		cx->conditional--;
		if (!ships || !residency_merge_coll(&results, one))
			return false;
	}
	return residency_type_travels(expr->casetype) &&
		residency_settle_coll(results, results.oid, expr->casetype, expr->casecollid, out);
}

/*
 * COALESCE: all behind the first argument is evaluated only sometimes.
 */
static bool
ship_coalesce(CoalesceExpr *expr, ShipContext *cx, DerivedColl *out)
{
	DerivedColl merged;
	DerivedColl rest;
	bool		ships;

	if (!ship_operands(list_make1(linitial(expr->args)), cx, &merged))
		return false;
	cx->conditional++;
	ships = ship_operands(list_copy_tail(expr->args, 1), cx, &rest);
	cx->conditional--;
	return ships && residency_merge_coll(&merged, rest) &&
		residency_settle_coll(merged, merged.oid, expr->coalescetype, expr->coalescecollid, out);
}

/*
 * ROW(a, b) < ROW(c, d): pair by pair.
 */
static bool
ship_row_compare(RowCompareExpr *expr, ShipContext *cx, DerivedColl *out)
{
	ListCell   *op;
	ListCell   *left;
	ListCell   *right;
	ListCell   *coll;

	*out = no_coll;
	forfour(op, expr->opnos, left, expr->largs, right, expr->rargs, coll, expr->inputcollids)
	{
		DerivedColl in;

		if (!ship_operator(lfirst_oid(op), InvalidOid) ||
			!ship_operands(list_make2(lfirst(left), lfirst(right)), cx, &in) ||
			in.oid != lfirst_oid(coll))
			return false;
	}
	return true;
}

/*
 * Element or slice of an array, or member of a jsonb; never an assignment.
 */
static bool
ship_subscript(SubscriptingRef *expr, ShipContext *cx, DerivedColl *out)
{
	DerivedColl in;
	DerivedColl ignored;

	if (expr->refassgnexpr != NULL ||
		(expr->refcontainertype != JSONBOID &&
		 !OidIsValid(get_element_type(expr->refcontainertype))))
		return false;
	return ship_operands(list_make1(expr->refexpr), cx, &in) &&
		ship_list(expr->refupperindexpr, cx, &ignored) &&
		ship_list(expr->reflowerindexpr, cx, &ignored) &&
		residency_settle_coll(in, in.oid, exprType((Node *) expr), expr->refcollid, out);
}

/*
 * A column of the relation.  System columns other than ctid belong to the
 * gateway's view of the row.
 */
static bool
ship_var(Var *var, DerivedColl *out)
{
	if (var->varlevelsup != 0 ||
		(var->varattno <= 0 && var->varattno != SelfItemPointerAttributeNumber))
		return false;
	out->oid = var->varcollid;
	out->strength = OidIsValid(out->oid) ? COLL_IMPLICIT : COLL_NONE;
	return true;
}

/*
 * Operators with two operands and their relatives, and functions.
 */
static bool
ship_call(Node *node, ShipContext *cx, DerivedColl *out)
{
	DerivedColl in;

	switch (nodeTag(node))
	{
		case T_FuncExpr:
			{
				FuncExpr   *f = (FuncExpr *) node;

				return !f->funcretset && function_ships(f->funcid) &&
					residency_type_travels(f->funcresulttype) &&
					ship_operands(f->args, cx, &in) &&
					residency_settle_coll(in, f->inputcollid, f->funcresulttype, f->funccollid, out);
			}
		case T_DistinctExpr:
		case T_NullIfExpr:
			/* IS NULL of a row looks into it, so the form we write would differ */
			if (type_is_rowtype(exprType(linitial(((OpExpr *) node)->args))))
				return false;
			/* FALLTHROUGH */
		case T_OpExpr:
			{
				OpExpr	   *o = (OpExpr *) node;

				return !o->opretset && ship_operator(o->opno, o->opfuncid) &&
					ship_operands(o->args, cx, &in) &&
					(IsA(node, NullIfExpr)
					 /* yields its first operand, under that one's collation */
					 ? in.oid == o->inputcollid &&
					 ship_node(linitial(o->args), cx, out) && out->oid == o->opcollid
					 : residency_settle_coll(in, o->inputcollid, o->opresulttype, o->opcollid, out));
			}
		case T_ScalarArrayOpExpr:
			{
				ScalarArrayOpExpr *s = (ScalarArrayOpExpr *) node;

				return ship_operator(s->opno, s->opfuncid) &&
					ship_operands(s->args, cx, &in) &&
					residency_settle_coll(in, s->inputcollid, BOOLOID, InvalidOid, out);
			}
		default:
			return false;
	}
}

/*
 * An aggregate.  Its arguments and conditions are evaluated only if there are rows.
 */
static bool
ship_aggregate(Aggref *agg, ShipContext *cx, DerivedColl *out)
{
	List	   *args = NIL;
	DerivedColl in;
	DerivedColl ignored;
	bool		ships;
	ListCell   *lc;

	if (!cx->grouped || agg->aggkind != AGGKIND_NORMAL || agg->aggvariadic ||
		!function_ships(agg->aggfnoid) || !residency_type_travels(agg->aggtype) ||
		!residency_is_aggregate_order_shippable(cx->root, cx->rel, agg))
		return false;
	foreach(lc, agg->args)
	{
		if (!lfirst_node(TargetEntry, lc)->resjunk)
			args = lappend(args, lfirst_node(TargetEntry, lc)->expr);
	}
	cx->grouped = false;
	cx->conditional++;
	ships = ship_operands(args, cx, &in) &&
		(agg->aggfilter == NULL || ship_node((Node *) agg->aggfilter, cx, &ignored));
	cx->conditional--;
	cx->grouped = true;
	return ships && residency_settle_coll(in, agg->inputcollid, agg->aggtype, agg->aggcollid, out);
}

/*
 * Whether the home may compute this node; *out is the collation that a parser
 * sees in it.  Anything not listed is not shipped.
 */
static bool
ship_node(Node *node, ShipContext *cx, DerivedColl *out)
{
	DerivedColl in;

	check_stack_depth();
	*out = no_coll;

	if (IsA(node, Const) || residency_is_gateway_value(cx->root, cx->rel, (Expr *) node))
	{
		if (!IsA(node, Const) && cx->conditional > 0 && !never_fails(node))
			return false;
		residency_value_coll(node, out);
		return residency_type_travels(exprType(node));
	}

	switch (nodeTag(node))
	{
		case T_Var:
			return ship_var((Var *) node, out);
		case T_Aggref:
			return ship_aggregate((Aggref *) node, cx, out);
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
			return ship_call(node, cx, out);
		case T_RelabelType:
			return ship_relabel((RelabelType *) node, cx, out);
		case T_CoerceViaIO:
			return ship_coerce_via_io((CoerceViaIO *) node, cx, out);
		case T_ArrayCoerceExpr:
			return ship_array_coerce((ArrayCoerceExpr *) node, cx, out);
		case T_BoolExpr:
			return ship_list(((BoolExpr *) node)->args, cx, &in);
		case T_NullTest:
			{
				NullTest   *n = (NullTest *) node;

				/* of a row: both ends must look into it, or neither */
				if (type_is_rowtype(exprType((Node *) n->arg)) != n->argisrow)
					return false;
				return ship_node((Node *) n->arg, cx, &in);
			}
		case T_BooleanTest:
			return ship_node((Node *) ((BooleanTest *) node)->arg, cx, &in);
		case T_ArrayExpr:
			{
				ArrayExpr  *a = (ArrayExpr *) node;

				return !a->multidims && ship_operands(a->elements, cx, &in) &&
					residency_settle_coll(in, in.oid, a->array_typeid, a->array_collid, out);
			}
		case T_CaseExpr:
			return ship_case((CaseExpr *) node, cx, out);
		case T_CoalesceExpr:
			return ship_coalesce((CoalesceExpr *) node, cx, out);
		case T_MinMaxExpr:
			{
				MinMaxExpr *m = (MinMaxExpr *) node;

				return ship_operands(m->args, cx, &in) &&
					residency_settle_coll(in, m->inputcollid, m->minmaxtype, m->minmaxcollid, out);
			}
		case T_SubscriptingRef:
			return ship_subscript((SubscriptingRef *) node, cx, out);
		case T_RowCompareExpr:
			return ship_row_compare((RowCompareExpr *) node, cx, out);
		default:
			return false;
	}
}

/*
 * residency_is_shippable tells whether the home of foreign table rel can compute
 * the expression with the outcome that it would have here.  Columns of other
 * relations count as parameters.
 */
bool
residency_is_shippable(PlannerInfo *root, RelOptInfo *rel, Expr *expr)
{
	ShipContext cx = {.root = root, .rel = rel, .conditional = 0};
	DerivedColl coll;

	if (contain_volatile_functions((Node *) expr) || has_unfit_node((Node *) expr, NULL))
		return false;
	return ship_node((Node *) expr, &cx, &coll);
}

/*
 * residency_is_grouped_shippable is the same for what stands above GROUP BY: aggregates, and
 * conditions of HAVING.
 */
bool
residency_is_grouped_shippable(PlannerInfo *root, RelOptInfo *rel, Expr *expr)
{
	ShipContext cx = {.root = root, .rel = rel, .conditional = 0, .grouped = true};
	DerivedColl coll;

	if (contain_volatile_functions((Node *) expr) || has_unfit_node((Node *) expr, &cx))
		return false;
	return ship_node((Node *) expr, &cx, &coll);
}

/*
 * residency_is_sort_shippable tells whether the home can sort by the expression
 * in the very order that the operator family gives here: it must be the type's
 * own order, and text must be sorted by a collation that is the same everywhere.
 */
bool
residency_is_sort_shippable(PlannerInfo *root, RelOptInfo *rel, Expr *expr, Oid opfamily)
{
	Oid			type = exprType((Node *) expr);
	Oid			collation = exprCollation((Node *) expr);
	TypeCacheEntry *entry;

	if (OidIsValid(collation) && !residency_is_common_collation(collation))
		return false;
	if (!residency_type_travels(type) || type_is_rowtype(getBaseType(type)))
		return false;
	/* a constant in ORDER BY would be taken for a column's number */
	if (residency_is_gateway_value(root, rel, expr) || IsA(expr, Const))
		return false;
	entry = lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY);
	return entry->btree_opf == opfamily &&
		residency_is_shippable(root, rel, expr);
}
