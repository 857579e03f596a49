/*
 * fdw_deparse_expr.c
 *		Expressions as SQL text for the home.
 *
 * Only for expressions that fdw_shippable.c has passed; anything else is an
 * internal error.  The text must mean the same whatever the search_path of the
 * session that reads it: operators, functions, types and collations are
 * qualified, and forms that look an operator up by name (CASE x WHEN,
 * IS DISTINCT FROM, NULLIF, IN) are written out with the operator we mean.
 * Every operand has its type in the text, so the parser cannot choose another
 * function or operator than the one named.
 */
#include "residency.h"

#include "fdw.h"
#include "fdw_plan.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * Name of a type, qualified unless it is a keyword of SQL that always means the
 * built-in one.  Palloc'd.
 */
static char *
type_name(Oid type)
{
	return format_type_extended(type, -1,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/*
 * residency_deparse_column writes a column's name; ctid is the only system
 * column that the home is asked for.
 */
void
residency_deparse_column(StringInfo buf, Oid relid, AttrNumber attno)
{
	if (attno == SelfItemPointerAttributeNumber)
		appendStringInfoString(buf, "ctid");
	else
		appendStringInfoString(buf, quote_identifier(get_attname(relid, attno, false)));
}

/*
 * A column; in a join behind the alias of its table.
 */
static void
deparse_var(DeparseContext *cx, Var *var)
{
	Oid			relid = cx->relid;

	if (cx->qualified)
	{
		relid = planner_rt_fetch(var->varno, cx->root)->relid;
		appendStringInfo(cx->buf, "r%d.", (int) var->varno);
	}
	residency_deparse_column(cx->buf, relid, var->varattno);
}

/*
 * A collation's name behind what was written before.
 */
static void
append_collate(StringInfo buf, Oid collation)
{
	if (OidIsValid(collation))
		appendStringInfo(buf, " COLLATE %s",
						 quote_qualified_identifier("pg_catalog", get_collation_name(collation)));
}

/*
 * residency_deparse_param writes $n for an expression evaluated at the gateway,
 * with its type, and adds the expression to cx->params unless it is there; or k.vn and
 * cx->row_params, if there are such and the expression has columns.
 */
void
residency_deparse_param(DeparseContext *cx, Expr *expr)
{
	int			number = 0;
	bool		by_row = cx->row_params != NULL && contain_var_clause((Node *) expr);
	List	  **params = by_row ? cx->row_params : cx->params;
	Oid			collation = residency_value_collation((Node *) expr);
	ListCell   *lc;

	foreach(lc, *params)
	{
		if (equal(lfirst(lc), expr))
		{
			number = foreach_current_index(lc) + 1;
			break;
		}
	}
	if (number == 0)
	{
		*params = lappend(*params, expr);
		number = list_length(*params);
	}
	appendStringInfoString(cx->buf, OidIsValid(collation) ? "(" : "");
	if (by_row)
		appendStringInfo(cx->buf, "k.%sv%d", cx->row_prefix, number);
	else
		appendStringInfo(cx->buf, "$%d", number);
	appendStringInfo(cx->buf, "::%s", type_name(exprType((Node *) expr)));
	append_collate(cx->buf, collation);
	if (OidIsValid(collation))
		appendStringInfoChar(cx->buf, ')');
}

/*
 * A constant as a literal with its type.  The caller has put the formats of
 * output functions in force (residency_output_begin).
 */
static void
deparse_const(DeparseContext *cx, Const *c)
{
	Oid			collation = residency_value_collation((Node *) c);

	if (c->consttype == BOOLOID && !c->constisnull)
	{
		appendStringInfoString(cx->buf, DatumGetBool(c->constvalue) ? "true" : "false");
		return;
	}
	if (OidIsValid(collation))
		appendStringInfoChar(cx->buf, '(');
	if (c->constisnull)
		appendStringInfoString(cx->buf, "NULL");
	else
	{
		Oid			output;
		bool		varlena;

		getTypeOutputInfo(c->consttype, &output, &varlena);
		appendStringInfoString(cx->buf,
							   quote_literal_cstr(OidOutputFunctionCall(output, c->constvalue)));
	}
	appendStringInfo(cx->buf, "::%s", type_name(c->consttype));
	append_collate(cx->buf, collation);
	if (OidIsValid(collation))
		appendStringInfoChar(cx->buf, ')');
}

/*
 * OPERATOR(schema.name)
 */
static void
append_operator(StringInfo buf, Oid opno)
{
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(opno));
	Form_pg_operator form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", opno);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	appendStringInfo(buf, "OPERATOR(%s.%s)",
					 quote_identifier(get_namespace_name(form->oprnamespace)),
					 NameStr(form->oprname));
	ReleaseSysCache(tuple);
}

/*
 * Expressions with commas between.
 */
static void
deparse_list(DeparseContext *cx, List *list)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(cx->buf, ", ");
		residency_deparse_expr(cx, lfirst(lc));
	}
}

/*
 * A function call, by its own name: casts too are calls of their functions.
 */
static void
deparse_function(DeparseContext *cx, FuncExpr *f)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(f->funcid));
	Form_pg_proc form;
	ListCell   *lc;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", f->funcid);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	appendStringInfo(cx->buf, "%s(",
					 quote_qualified_identifier(get_namespace_name(form->pronamespace),
												NameStr(form->proname)));
	ReleaseSysCache(tuple);

	foreach(lc, f->args)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(cx->buf, ", ");
		if (f->funcvariadic && lnext(f->args, lc) == NULL)
			appendStringInfoString(cx->buf, "VARIADIC ");
		residency_deparse_expr(cx, lfirst(lc));
	}
	appendStringInfoChar(cx->buf, ')');
}

/*
 * (a OPERATOR(pg_catalog.+) b), or a prefix operator.
 */
static void
deparse_operator(DeparseContext *cx, OpExpr *o)
{
	appendStringInfoChar(cx->buf, '(');
	if (list_length(o->args) == 2)
	{
		residency_deparse_expr(cx, linitial(o->args));
		appendStringInfoChar(cx->buf, ' ');
	}
	append_operator(cx->buf, o->opno);
	appendStringInfoChar(cx->buf, ' ');
	residency_deparse_expr(cx, llast(o->args));
	appendStringInfoChar(cx->buf, ')');
}

/*
 * a IS DISTINCT FROM b, without the parser's own choice of "=".
 */
static void
deparse_distinct(DeparseContext *cx, OpExpr *o)
{
	appendStringInfoString(cx->buf, "(CASE WHEN ");
	residency_deparse_expr(cx, linitial(o->args));
	appendStringInfoString(cx->buf, " IS NULL THEN ");
	residency_deparse_expr(cx, lsecond(o->args));
	appendStringInfoString(cx->buf, " IS NOT NULL WHEN ");
	residency_deparse_expr(cx, lsecond(o->args));
	appendStringInfoString(cx->buf, " IS NULL THEN true ELSE NOT ");
	deparse_operator(cx, o);
	appendStringInfoString(cx->buf, " END)");
}

/*
 * NULLIF(a, b), likewise.
 */
static void
deparse_nullif(DeparseContext *cx, OpExpr *o)
{
	appendStringInfoString(cx->buf, "(CASE WHEN ");
	deparse_operator(cx, o);
	appendStringInfoString(cx->buf, " THEN NULL ELSE ");
	residency_deparse_expr(cx, linitial(o->args));
	appendStringInfoString(cx->buf, " END)");
}

/*
 * x = ANY (array), and its relatives.
 */
static void
deparse_array_operator(DeparseContext *cx, ScalarArrayOpExpr *s)
{
	appendStringInfoChar(cx->buf, '(');
	residency_deparse_expr(cx, linitial(s->args));
	appendStringInfoChar(cx->buf, ' ');
	append_operator(cx->buf, s->opno);
	appendStringInfoString(cx->buf, s->useOr ? " ANY (" : " ALL (");
	residency_deparse_expr(cx, lsecond(s->args));
	appendStringInfoString(cx->buf, "))");
}

/*
 * AND, OR, NOT.
 */
static void
deparse_bool(DeparseContext *cx, BoolExpr *b)
{
	ListCell   *lc;

	appendStringInfoString(cx->buf, b->boolop == NOT_EXPR ? "(NOT " : "(");
	foreach(lc, b->args)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(cx->buf, b->boolop == AND_EXPR ? " AND " : " OR ");
		residency_deparse_expr(cx, lfirst(lc));
	}
	appendStringInfoChar(cx->buf, ')');
}

/*
 * IS NULL, IS TRUE, IS UNKNOWN and their opposites.
 */
static void
deparse_test(DeparseContext *cx, Expr *arg, const char *test)
{
	appendStringInfoChar(cx->buf, '(');
	residency_deparse_expr(cx, arg);
	appendStringInfo(cx->buf, " %s)", test);
}

/*
 * The words of a BooleanTest.
 */
static const char *
boolean_test_words(BoolTestType type)
{
	switch (type)
	{
		case IS_TRUE:
			return "IS TRUE";
		case IS_NOT_TRUE:
			return "IS NOT TRUE";
		case IS_FALSE:
			return "IS FALSE";
		case IS_NOT_FALSE:
			return "IS NOT FALSE";
		case IS_UNKNOWN:
			return "IS UNKNOWN";
		case IS_NOT_UNKNOWN:
			return "IS NOT UNKNOWN";
	}
	elog(ERROR, "unrecognized boolean test %d", (int) type);
}

/*
 * arg::type, with COLLATE if the relabelling stands for one.
 */
static void
deparse_cast(DeparseContext *cx, Expr *arg, Oid type, Oid collation)
{
	appendStringInfoChar(cx->buf, '(');
	residency_deparse_expr(cx, arg);
	appendStringInfo(cx->buf, "::%s", type_name(type));
	append_collate(cx->buf, collation);
	appendStringInfoChar(cx->buf, ')');
}

/*
 * CASE, always in the form without an operand.
 */
static void
deparse_case(DeparseContext *cx, CaseExpr *c)
{
	ListCell   *lc;

	appendStringInfoString(cx->buf, "(CASE");
	foreach(lc, c->args)
	{
		CaseWhen   *when = lfirst_node(CaseWhen, lc);

		appendStringInfoString(cx->buf, " WHEN ");
		residency_deparse_expr(cx, residency_case_condition(c, when));
		appendStringInfoString(cx->buf, " THEN ");
		residency_deparse_expr(cx, when->result);
	}
	if (c->defresult != NULL)
	{
		appendStringInfoString(cx->buf, " ELSE ");
		residency_deparse_expr(cx, c->defresult);
	}
	appendStringInfoString(cx->buf, " END)");
}

/*
 * An element, (a)[1], or a slice, (a)[1:2], whose bounds may be missing.
 */
static void
deparse_subscript(DeparseContext *cx, SubscriptingRef *s)
{
	ListCell   *upper;
	ListCell   *lower = list_head(s->reflowerindexpr);

	appendStringInfoString(cx->buf, "((");
	residency_deparse_expr(cx, s->refexpr);
	appendStringInfoChar(cx->buf, ')');
	foreach(upper, s->refupperindexpr)
	{
		appendStringInfoChar(cx->buf, '[');
		if (lower != NULL)
		{
			if (lfirst(lower) != NULL)
				residency_deparse_expr(cx, lfirst(lower));
			appendStringInfoChar(cx->buf, ':');
			lower = lnext(s->reflowerindexpr, lower);
		}
		if (lfirst(upper) != NULL)
			residency_deparse_expr(cx, lfirst(upper));
		appendStringInfoChar(cx->buf, ']');
	}
	appendStringInfoChar(cx->buf, ')');
}

/*
 * ROW(a, b) OPERATOR(pg_catalog.<) ROW(c, d).  All operators of the row have
 * the name of the first.
 */
static void
deparse_row_compare(DeparseContext *cx, RowCompareExpr *r)
{
	appendStringInfoString(cx->buf, "(ROW(");
	deparse_list(cx, r->largs);
	appendStringInfoString(cx->buf, ") ");
	append_operator(cx->buf, linitial_oid(r->opnos));
	appendStringInfoString(cx->buf, " ROW(");
	deparse_list(cx, r->rargs);
	appendStringInfoString(cx->buf, "))");
}

/*
 * Name and arguments of a construct that looks like a call, and its end.
 */
static void
deparse_construct(DeparseContext *cx, const char *name, List *args, const char *end)
{
	appendStringInfoString(cx->buf, name);
	deparse_list(cx, args);
	appendStringInfoString(cx->buf, end);
}

/*
 * residency_deparse_expr writes a shippable expression.  What it writes can be
 * an operand without further parentheses.
 */
void
residency_deparse_expr(DeparseContext *cx, Expr *expr)
{
	check_stack_depth();

	if (residency_is_gateway_value(cx->root, cx->rel, expr))
	{
		residency_deparse_param(cx, expr);
		return;
	}

	switch (nodeTag(expr))
	{
		case T_Const:
			deparse_const(cx, (Const *) expr);
			break;
		case T_Var:
			deparse_var(cx, (Var *) expr);
			break;
		case T_Aggref:
			residency_deparse_aggregate(cx, (Aggref *) expr);
			break;
		case T_FuncExpr:
			deparse_function(cx, (FuncExpr *) expr);
			break;
		case T_OpExpr:
			deparse_operator(cx, (OpExpr *) expr);
			break;
		case T_DistinctExpr:
			deparse_distinct(cx, (OpExpr *) expr);
			break;
		case T_NullIfExpr:
			deparse_nullif(cx, (OpExpr *) expr);
			break;
		case T_ScalarArrayOpExpr:
			deparse_array_operator(cx, (ScalarArrayOpExpr *) expr);
			break;
		case T_RelabelType:
			deparse_cast(cx, ((RelabelType *) expr)->arg, ((RelabelType *) expr)->resulttype,
						 residency_relabel_collation((RelabelType *) expr));
			break;
		case T_CoerceViaIO:
			deparse_cast(cx, ((CoerceViaIO *) expr)->arg, ((CoerceViaIO *) expr)->resulttype,
						 InvalidOid);
			break;
		case T_ArrayCoerceExpr:
			deparse_cast(cx, ((ArrayCoerceExpr *) expr)->arg,
						 ((ArrayCoerceExpr *) expr)->resulttype, InvalidOid);
			break;
		case T_BoolExpr:
			deparse_bool(cx, (BoolExpr *) expr);
			break;
		case T_NullTest:
			deparse_test(cx, ((NullTest *) expr)->arg,
						 ((NullTest *) expr)->nulltesttype == IS_NULL ? "IS NULL" : "IS NOT NULL");
			break;
		case T_BooleanTest:
			deparse_test(cx, ((BooleanTest *) expr)->arg,
						 boolean_test_words(((BooleanTest *) expr)->booltesttype));
			break;
		case T_ArrayExpr:
			deparse_construct(cx, "ARRAY[", ((ArrayExpr *) expr)->elements, "]::");
			appendStringInfoString(cx->buf, type_name(((ArrayExpr *) expr)->array_typeid));
			break;
		case T_CaseExpr:
			deparse_case(cx, (CaseExpr *) expr);
			break;
		case T_CoalesceExpr:
			deparse_construct(cx, "COALESCE(", ((CoalesceExpr *) expr)->args, ")");
			break;
		case T_MinMaxExpr:
			deparse_construct(cx, ((MinMaxExpr *) expr)->op == IS_GREATEST ? "GREATEST(" : "LEAST(",
							  ((MinMaxExpr *) expr)->args, ")");
			break;
		case T_SubscriptingRef:
			deparse_subscript(cx, (SubscriptingRef *) expr);
			break;
		case T_RowCompareExpr:
			deparse_row_compare(cx, (RowCompareExpr *) expr);
			break;
		default:
			elog(ERROR, "cannot deparse node %d", (int) nodeTag(expr));
	}
}
