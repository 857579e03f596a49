/*
 * lookup_sql.c
 *		The texts that a region lookup sends.
 *
 * They ask for keys by their ordinal number, so answers need not carry the keys, and tell
 * keys that are not held from those whose rows the conditions reject:
 *
 *		SELECT r.c1, ..., k.n,
 *			   CASE WHEN r.held THEN true
 *					WHEN residency.homed_here('public', 'details', k.k1::text) THEN false END
 *		FROM ROWS FROM (pg_catalog.unnest($1::uuid[])) WITH ORDINALITY AS k (k1, n)
 *			LEFT JOIN LATERAL (SELECT name, ..., true, <conditions>
 *							   FROM "gbr"."details" AS d
 *							   WHERE uuid = k.k1) AS r (c1, ..., held, passes) ON true
 *		WHERE r.held IS NULL OR r.passes
 *
 * The column behind the number is false for a key that is not held although the home's own
 * directory calls it the home: then there is no such row.  It is NULL for a key that may be
 * elsewhere, and for all keys not held if there is no directory: nobody asks again then.
 *
 * Rows that are to be locked must not be locked before they have passed the conditions, so
 * those stand with the key then, and whether a key without rows is held is asked apart.
 *
 * A write at the home has the values computed here in arrays next to those of the keys; the
 * question which keys are not held follows in the same flight, so that a row that moved while
 * the write waited for it is found:
 *
 *		UPDATE "gbr"."details" SET name = k.v1
 *		FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::text[]))
 *			WITH ORDINALITY AS k (k1, v1, n)
 *		WHERE uuid = k.k1 AND <conditions>
 *
 * Columns without a prefix are those of the table.  The text is the same for all regions but
 * for the table's name, which the executor puts in for LOOKUP_NAME.
 */
#include "lookup.h"

#include "catalog/pg_collation.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/restrictinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "fdw_plan.h"
#include "fdw_shippable.h"
#include "regions.h"

/* name of a type as the home reads it, whatever its search_path */
static char *
type_name(Oid type)
{
	return format_type_extended(type, -1,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/*
 * What the columns of k are called: k1, v1 and n behind a prefix that makes them differ from
 * the table's own columns, which a write refers to next to them.
 */
static char *
column_prefix(const LookupTable *table)
{
	StringInfoData prefix;
	bool		taken;

	initStringInfo(&prefix);
	do
	{
		taken = false;
		for (AttrNumber attno = 1; attno <= table->rel->max_attr; attno++)
		{
			char	   *name = get_attname(table->relid, attno, true);

			if (name != NULL && strncmp(name, prefix.data, prefix.len) == 0 &&
				(strspn(name + prefix.len, "kvn0123456789") == strlen(name + prefix.len)))
				taken = true;
		}
		if (taken)
			appendStringInfoChar(&prefix, '_');
	} while (taken);
	return prefix.data;
}

/* ROWS FROM (unnest of each array) WITH ORDINALITY AS k (k1, ..., v1, ..., n) */
static void
append_arrays(StringInfo buf, const LookupTable *table, List *row_params, const char *prefix)
{
	ListCell   *lc;

	appendStringInfoString(buf, "ROWS FROM (");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%spg_catalog.unnest($%d::%s)", i > 0 ? ", " : "",
						 i + 1, type_name(get_array_type(table->keys[i].type)));
	foreach(lc, row_params)
		appendStringInfo(buf, ", pg_catalog.unnest($%d::%s)",
						 table->nkeys + foreach_current_index(lc) + 1,
						 type_name(get_array_type(exprType(lfirst(lc)))));
	appendStringInfoString(buf, ") WITH ORDINALITY AS k (");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%sk%d, ", prefix, i + 1);
	foreach(lc, row_params)
		appendStringInfo(buf, "%sv%d, ", prefix, foreach_current_index(lc) + 1);
	appendStringInfo(buf, "%sn)", prefix);
}

/* WHERE key = k.k1 AND ... */
static void
append_key_conditions(StringInfo buf, const LookupTable *table, const AttrNumber *keys,
					  const char *prefix)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		const LookupKey *key = &table->keys[i];

		appendStringInfoString(buf, i > 0 ? " AND " : " WHERE ");
		residency_deparse_column(buf, table->relid, keys[i]);
		appendStringInfo(buf, " OPERATOR(pg_catalog.%s) k.%sk%d", get_opname(key->opno), prefix, i + 1);
		if (OidIsValid(key->collation) && key->collation != DEFAULT_COLLATION_OID)
			appendStringInfo(buf, " COLLATE pg_catalog.%s",
							 quote_identifier(get_collation_name(key->collation)));
	}
}

/*
 * residency.homed_here(...) about the key of k; false if the home cannot tell: without a
 * directory, and about keys of another type than the column's.
 */
static bool
append_homed_here(StringInfo buf, const LookupTable *table, const AttrNumber *keys, const char *prefix)
{
	if (!OidIsValid(table->directory.relid))
		return false;
	for (int i = 0; i < table->nkeys; i++)
	{
		if (getBaseType(get_atttype(table->relid, keys[i])) != getBaseType(table->keys[i].type))
			return false;
	}
	appendStringInfo(buf, "residency.homed_here(%s, %s",
					 quote_literal_cstr(get_namespace_name(get_rel_namespace(table->relid))),
					 quote_literal_cstr(get_rel_name(table->relid)));
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, ", k.%sk%d::pg_catalog.text", prefix, i + 1);
	appendStringInfoChar(buf, ')');
	return true;
}

/* EXISTS (SELECT FROM the table WHERE it holds the key of k) */
static void
append_exists(StringInfo buf, const LookupTable *table, const AttrNumber *keys, const char *prefix)
{
	appendStringInfoString(buf, "EXISTS (SELECT FROM " LOOKUP_NAME);
	append_key_conditions(buf, table, keys, prefix);
	appendStringInfoChar(buf, ')');
}

/* conditions with AND between, each behind "before" for the first */
static void
append_conditions(DeparseContext *cx, const char *before, List *conditions)
{
	ListCell   *lc;

	foreach(lc, conditions)
	{
		appendStringInfoString(cx->buf, foreach_current_index(lc) > 0 ? " AND " : before);
		residency_deparse_expr(cx, lfirst(lc));
	}
}

/* the list of parameters with places for the arrays; no expression is equal to a String */
static List *
array_places(int n)
{
	List	   *numbered = NIL;

	for (int i = 0; i < n; i++)
		numbered = lappend(numbered, makeString("array"));
	return numbered;
}

/*
 * The text that fetches columns attnos of rows that pass "shipped"; *params gets what is sent
 * behind the keys.  "locking" is a locking clause, or NULL.
 */
char *
residency_lookup_select(PlannerInfo *root, const LookupTable *table, const AttrNumber *keys,
						List *attnos, List *shipped, const char *locking, List **params)
{
	List	   *numbered = array_places(table->nkeys);
	StringInfoData sql;
	DeparseContext cx = {.buf = &sql, .root = root, .rel = table->rel, .relid = table->relid,
	.params = &numbered};
	int			formats = residency_output_begin();
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	foreach(lc, attnos)
		appendStringInfo(&sql, "r.c%d, ", foreach_current_index(lc) + 1);
	appendStringInfoString(&sql, "k.n, CASE WHEN r.held THEN true WHEN ");
	if (locking != NULL)
	{
		append_exists(&sql, table, keys, "");
		appendStringInfoString(&sql, " OR ");
	}
	if (!append_homed_here(&sql, table, keys, ""))
		appendStringInfoString(&sql, "false");
	appendStringInfoString(&sql, " THEN false END FROM ");
	append_arrays(&sql, table, NIL, "");
	appendStringInfoString(&sql, " LEFT JOIN LATERAL (SELECT ");
	foreach(lc, attnos)
	{
		residency_deparse_column(&sql, table->relid, (AttrNumber) lfirst_int(lc));
		appendStringInfoString(&sql, ", ");
	}
	appendStringInfoString(&sql, "true");
	if (locking == NULL)
		append_conditions(&cx, ", ", shipped);
	appendStringInfoString(&sql, " FROM " LOOKUP_NAME " AS d");
	append_key_conditions(&sql, table, keys, "");
	if (locking != NULL)
	{
		append_conditions(&cx, " AND ", shipped);
		appendStringInfoString(&sql, locking);
	}
	appendStringInfoString(&sql, ") AS r (");
	foreach(lc, attnos)
		appendStringInfo(&sql, "c%d, ", foreach_current_index(lc) + 1);
	appendStringInfoString(&sql, "held");
	if (locking == NULL && shipped != NIL)
		appendStringInfoString(&sql, ", passes) ON true WHERE r.held IS NULL OR r.passes");
	else
		appendStringInfoString(&sql, ") ON true");
	residency_output_end(formats);
	*params = list_copy_tail(numbered, table->nkeys);
	return sql.data;
}

/* can a value for each row travel as the element of an array? */
static bool
is_element(Node *expr)
{
	Oid			type = exprType(expr);

	return OidIsValid(get_array_type(type)) && !OidIsValid(get_element_type(getBaseType(type))) &&
		residency_type_travels(type);
}

/* UPDATE ... SET ... or DELETE, up to the arrays */
static void
append_verb(DeparseContext *cx, PlannerInfo *root)
{
	bool		first = true;
	ListCell   *tle;
	ListCell   *attno;

	if (root->parse->commandType == CMD_DELETE)
	{
		appendStringInfoString(cx->buf, "DELETE FROM " LOOKUP_NAME " USING ");
		return;
	}
	appendStringInfoString(cx->buf, "UPDATE " LOOKUP_NAME " SET ");
	/* new values come first in the target list, in the order of update_colnos */
	forboth(tle, root->processed_tlist, attno, root->update_colnos)
	{
		if (first)
			first = false;
		else
			appendStringInfoString(cx->buf, ", ");
		residency_deparse_column(cx->buf, cx->relid, (AttrNumber) lfirst_int(attno));
		appendStringInfoString(cx->buf, " = ");
		residency_deparse_expr(cx, lfirst_node(TargetEntry, tle)->expr);
	}
	appendStringInfoString(cx->buf, " FROM ");
}

/*
 * Writes the texts of a write at the home: of the rows of the keys that pass the conditions,
 * which may have columns of the key side.  Those, and new values, must be shippable.  False
 * if the values of the key side cannot travel.
 */
bool
residency_lookup_write(PlannerInfo *root, const LookupTable *table, const AttrNumber *keys,
					   List *conditions, List *returned, LookupWrite *write)
{
	const char *prefix = column_prefix(table);
	List	   *row_params = NIL;
	List	   *params = NIL;
	StringInfoData verb;
	StringInfoData where;
	StringInfoData sql;
	DeparseContext cx = {.root = root, .rel = table->rel, .relid = table->relid, .params = &params,
	.row_params = &row_params, .row_prefix = prefix};
	int			formats = residency_output_begin();
	ListCell   *lc;

	memset(write, 0, sizeof(*write));
	/* twice: the numbers of parameters are known when the arrays have been counted */
	for (int pass = 0; pass < 2; pass++)
	{
		params = array_places(table->nkeys + list_length(row_params));
		initStringInfo(&verb);
		cx.buf = &verb;
		append_verb(&cx, root);
		initStringInfo(&where);
		cx.buf = &where;
		append_conditions(&cx, " AND ", conditions);
	}
	initStringInfo(&sql);
	appendStringInfoString(&sql, verb.data);
	append_arrays(&sql, table, row_params, prefix);
	append_key_conditions(&sql, table, keys, prefix);
	appendStringInfoString(&sql, where.data);
	if (root->parse->returningList != NIL)
	{
		appendStringInfoString(&sql, " RETURNING ");
		foreach(lc, returned)
		{
			residency_deparse_column(&sql, table->relid, (AttrNumber) lfirst_int(lc));
			appendStringInfoString(&sql, ", ");
		}
		appendStringInfo(&sql, "k.%sn", prefix);
	}
	write->sql = sql.data;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT k.%sn FROM ", prefix);
	append_arrays(&sql, table, NIL, prefix);
	appendStringInfoString(&sql, " WHERE NOT ");
	append_exists(&sql, table, keys, prefix);
	where.len = 0;
	if (append_homed_here(&where, table, keys, prefix))
		appendStringInfo(&sql, " AND NOT %s", where.data);
	write->missing_sql = sql.data;
	residency_output_end(formats);

	write->row_params = row_params;
	write->params = list_copy_tail(params, table->nkeys + list_length(row_params));
	write->returned = returned;
	foreach(lc, row_params)
	{
		if (!is_element(lfirst(lc)))
			return false;
	}
	return true;
}
