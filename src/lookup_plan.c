/*
 * lookup_plan.c
 *		Turns a lookup path into a plan node with its SQL.
 *
 * The text asks for keys by their ordinal number, so answers need not carry the keys, and
 * tells keys that are not held from those whose rows the conditions reject:
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
 * Columns without a prefix are those of the table, as the inner query is nearest.  The
 * text is the same for all regions but for the table's name, which the executor puts in.
 */
#include "lookup.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "catalog/pg_collation.h"

#include "fdw_plan.h"
#include "regions.h"

/* rows of a batch, and of the first one if the query may stop early */
#define BATCH_ROWS 10000
#define FIRST_ROWS 1000
#define MIN_BATCH_ROWS 100

/* clauses of a plan, by where they are checked */
typedef struct LookupClauses
{
	List	   *shipped;		/* at the homes */
	List	   *join;			/* decide what matches */
	List	   *filter;			/* above the join */
} LookupClauses;

/* is the clause one of those that the key comes from? */
static bool
is_key_clause(const LookupTable *table, RestrictInfo *rinfo)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		if (table->keys[i].rinfo == rinfo)
			return true;
	}
	return false;
}

/* sorts out the table's own conditions; "checked here" go to *here */
static void
divide_own(PlannerInfo *root, const LookupTable *table, List *rinfos, List **shipped, List **here)
{
	ListCell   *lc;

	foreach(lc, rinfos)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->pseudoconstant || is_key_clause(table, rinfo))
			continue;
		if (restriction_is_securely_promotable(rinfo, table->rel) &&
			residency_is_shippable(root, table->rel, rinfo->clause))
			*shipped = lappend(*shipped, rinfo->clause);
		else
			*here = lappend(*here, rinfo->clause);
	}
}

/*
 * Sorts out all conditions.  Own conditions of an outer join's inner side decide about
 * matches; policies of row security come first among those.
 */
static void
divide_clauses(PlannerInfo *root, const LookupTable *table, RelOptInfo *rel, JoinType jointype,
			   List *own, List *clauses, LookupClauses *out)
{
	List	   *match = NIL;
	ListCell   *lc;

	memset(out, 0, sizeof(*out));
	divide_own(root, table, own, &out->shipped, &match);
	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (is_key_clause(table, rinfo))
			continue;
		if (IS_OUTER_JOIN(jointype) && RINFO_IS_PUSHED_DOWN(rinfo, rel->relids))
			out->filter = lappend(out->filter, rinfo->clause);
		else
			match = lappend(match, rinfo->clause);
	}
	if (jointype == JOIN_INNER)
		out->filter = list_concat(match, out->filter);
	else
		out->join = match;
}

/* adds to the scan tuple the columns of rel that the expressions use; returns the list */
static List *
add_columns(List *columns, List *exprs, RelOptInfo *rel)
{
	List	   *vars = pull_var_clause((Node *) exprs, PVC_RECURSE_AGGREGATES |
									   PVC_RECURSE_WINDOWFUNCS | PVC_RECURSE_PLACEHOLDERS);
	ListCell   *lc;

	foreach(lc, vars)
	{
		Var		   *var = lfirst_node(Var, lc);

		if (var->varno == rel->relid)
			columns = list_append_unique(columns, var);
	}
	return columns;
}

/* name of a type as the home reads it, whatever its search_path */
static char *
type_name(Oid type)
{
	return format_type_extended(type, -1,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/* FROM ROWS FROM (unnest of each key's array) WITH ORDINALITY AS k (k1, ..., n) */
static void
append_keys(StringInfo buf, const LookupTable *table)
{
	appendStringInfoString(buf, " FROM ROWS FROM (");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%spg_catalog.unnest($%d::%s)", i > 0 ? ", " : "",
						 i + 1, type_name(get_array_type(table->keys[i].type)));
	appendStringInfoString(buf, ") WITH ORDINALITY AS k (");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "k%d, ", i + 1);
	appendStringInfoString(buf, "n)");
}

/* WHERE key = k.k1 AND ... */
static void
append_key_conditions(StringInfo buf, const LookupTable *table, const AttrNumber *keys)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		const LookupKey *key = &table->keys[i];

		appendStringInfoString(buf, i > 0 ? " AND " : " WHERE ");
		residency_deparse_column(buf, table->relid, keys[i]);
		appendStringInfo(buf, " OPERATOR(pg_catalog.%s) k.k%d", get_opname(key->opno), i + 1);
		if (OidIsValid(key->collation) && key->collation != DEFAULT_COLLATION_OID)
			appendStringInfo(buf, " COLLATE pg_catalog.%s",
							 quote_identifier(get_collation_name(key->collation)));
	}
}

/*
 * The key's number, and whether it is held.  The home can ask its own directory only about
 * keys of the column's own type.
 */
static void
append_held(StringInfo buf, const LookupTable *table, const AttrNumber *keys)
{
	bool		same_types = OidIsValid(table->directory.relid);

	for (int i = 0; i < table->nkeys; i++)
		same_types = same_types &&
			getBaseType(get_atttype(table->relid, keys[i])) == getBaseType(table->keys[i].type);
	if (!same_types)
	{
		appendStringInfoString(buf, "k.n, r.held");
		return;
	}
	appendStringInfo(buf, "k.n, CASE WHEN r.held THEN true WHEN residency.homed_here(%s, %s",
					 quote_literal_cstr(get_namespace_name(get_rel_namespace(table->relid))),
					 quote_literal_cstr(get_rel_name(table->relid)));
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, ", k.k%d::pg_catalog.text", i + 1);
	appendStringInfoString(buf, ") THEN false END");
}

/*
 * Writes the SQL around the table's name into *head and *tail; *params gets what is sent
 * behind the keys.
 */
static void
make_sql(PlannerInfo *root, const LookupTable *table, const AttrNumber *keys,
		 List *attnos, List *shipped, char **head, char **tail, List **params)
{
	List	   *numbered = NIL;
	DeparseContext cx = {.root = root, .rel = table->rel, .relid = table->relid, .params = &numbered};
	StringInfoData start;
	StringInfoData conditions;
	StringInfoData end;
	int			formats = residency_output_begin();
	ListCell   *lc;

	/* the arrays' places; no expression is equal to a String node */
	for (int i = 0; i < table->nkeys; i++)
		numbered = lappend(numbered, makeString("key"));

	initStringInfo(&conditions);
	cx.buf = &conditions;
	foreach(lc, shipped)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(&conditions, " AND ");
		residency_deparse_expr(&cx, lfirst(lc));
	}

	initStringInfo(&start);
	appendStringInfoString(&start, "SELECT ");
	foreach(lc, attnos)
		appendStringInfo(&start, "r.c%d, ", foreach_current_index(lc) + 1);
	append_held(&start, table, keys);
	append_keys(&start, table);
	appendStringInfoString(&start, " LEFT JOIN LATERAL (SELECT ");
	foreach(lc, attnos)
	{
		residency_deparse_column(&start, table->relid, (AttrNumber) lfirst_int(lc));
		appendStringInfoString(&start, ", ");
	}
	appendStringInfo(&start, "true, %s FROM ", shipped != NIL ? conditions.data : "true");

	initStringInfo(&end);
	appendStringInfoString(&end, " AS d");
	append_key_conditions(&end, table, keys);
	appendStringInfoString(&end, ") AS r (");
	foreach(lc, attnos)
		appendStringInfo(&end, "c%d, ", foreach_current_index(lc) + 1);
	appendStringInfoString(&end, "held, passes) ON true");
	if (shipped != NIL)
		appendStringInfoString(&end, " WHERE r.held IS NULL OR r.passes");

	residency_output_end(formats);
	*head = start.data;
	*tail = end.data;
	*params = list_copy_tail(numbered, table->nkeys);
}

/* the table's key columns, in the order of table->keys */
static void
key_columns(const LookupTable *table, AttrNumber *keys)
{
	const TableRule *rule = residency_table_rule(table->relid);

	if (rule == NULL || rule->nkeys != table->nkeys)
		elog(ERROR, "rule of relation %u changed while a query was planned", table->relid);
	memcpy(keys, rule->keys, sizeof(AttrNumber) * table->nkeys);
}

/* attnums of the resident columns in the partition stored here; zeros if it is pruned */
static List *
stored_columns(PlannerInfo *root, const LookupTable *table, List *columns)
{
	RelOptInfo *rel = table->rel;
	AppendRelInfo *appinfo = NULL;
	List	   *result = NIL;
	ListCell   *lc;

	for (int i = 0; i < rel->nparts && OidIsValid(table->home.relid); i++)
	{
		RelOptInfo *child = rel->part_rels[i];

		if (child != NULL && planner_rt_fetch(child->relid, root)->relid == table->home.relid)
			appinfo = root->append_rel_array[child->relid];
	}
	foreach(lc, columns)
	{
		AttrNumber	attno = lfirst_node(Var, lc)->varattno;

		result = lappend_int(result, appinfo == NULL ? 0 :
							 list_nth_node(Var, appinfo->translated_vars, attno - 1)->varattno);
	}
	return result;
}

/*
 * Rows of a batch, so that about as many bytes come back as in one batch of a scan; the
 * first one is small if the query may stop after a few rows.
 */
static List *
batch_sizes(PlannerInfo *root, const LookupTable *table, const CustomPath *path, JoinType jointype,
			int nouter)
{
	double		width = Max(table->rel->reltarget->width, 1);
	double		rows = Max(residency_fetch_bytes * 1024.0 / width, MIN_BATCH_ROWS);
	int			batch = (int) Min(rows, BATCH_ROWS);
	int			first = root->tuple_fraction > 0 || root->limit_tuples > 0 ? Min(batch, FIRST_ROWS) : batch;

	return list_make5_int(jointype, nouter, first, batch, table->directory_region);
}

/* the lists of custom_private that are about keys, and all others in their order */
static List *
make_private(PlannerInfo *root, const LookupTable *table, const AttrNumber *keys, List *numbers,
			 List *columns, List *fetched, const char *head, const char *tail)
{
	List	   *operators = NIL;
	List	   *types = NIL;
	List	   *collations = NIL;
	List	   *arrays = NIL;
	List	   *names = NIL;
	List	   *resident = NIL;
	List	   *oids = NIL;
	List	   *private;
	ListCell   *lc;

	for (int i = 0; i < table->nkeys; i++)
	{
		operators = lappend_oid(operators, table->keys[i].opno);
		types = lappend_oid(types, table->keys[i].type);
		collations = lappend_oid(collations, table->keys[i].collation);
		arrays = lappend_int(arrays, table->keys[i].array);
		names = lappend(names, makeString(get_attname(table->relid, keys[i], false)));
	}
	foreach(lc, columns)
		resident = lappend_int(resident, lfirst_node(Var, lc)->varattno);
	oids = list_make5_oid(table->relid, table->directory.relid, table->directory.indexid,
						  table->home.relid, table->home.indexid);
	oids = lappend_oid(oids, table->userid);

	private = list_make5(numbers, oids, list_copy(table->partitions), list_copy(table->servers),
						 operators);
	private = list_concat(private, list_make5(types, collations, arrays,
											  table->directory.columns, table->home.columns));
	private = list_concat(private, list_make5(resident, stored_columns(root, table, columns),
											  fetched, names, makeString(pstrdup(head))));
	return lappend(private, makeString(pstrdup(tail)));
}

/* PlanCustomPath */
static Plan *
plan_lookup(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist, List *clauses,
			List *custom_plans)
{
	LookupTable *table = linitial(path->custom_private);
	JoinType	jointype = (JoinType) (intptr_t) lsecond(path->custom_private);
	bool		joins = custom_plans != NIL;
	CustomScan *scan = makeNode(CustomScan);
	AttrNumber	keys[INDEX_MAX_KEYS];
	LookupClauses divided;
	List	   *columns;
	List	   *attnos = NIL;
	List	   *fetched = NIL;
	List	   *params;
	List	   *values = NIL;
	int			nfetched;
	int			nouter = 0;
	char	   *head;
	char	   *tail;
	ListCell   *lc;

	key_columns(table, keys);
	divide_clauses(root, table, rel, jointype,
				   joins ? table->rel->baserestrictinfo : clauses,
				   joins ? lthird(path->custom_private) : NIL, &divided);

	/*
	 * Columns that cross; then those that only the homes' conditions use.  The list of
	 * output columns may be set after us (and is empty then), so all that the path and its
	 * relation promise are there.
	 */
	columns = add_columns(NIL, tlist, table->rel);
	columns = add_columns(columns, path->path.pathtarget->exprs, table->rel);
	columns = add_columns(columns, rel->reltarget->exprs, table->rel);
	columns = add_columns(columns, divided.join, table->rel);
	columns = add_columns(columns, divided.filter, table->rel);
	nfetched = list_length(columns);
	columns = add_columns(columns, divided.shipped, table->rel);
	for (int i = 0; i < nfetched; i++)
	{
		fetched = lappend_int(fetched, i);
		attnos = lappend_int(attnos, list_nth_node(Var, columns, i)->varattno);
	}
	make_sql(root, table, keys, attnos, divided.shipped, &head, &tail, &params);

	if (joins)
	{
		foreach(lc, ((Plan *) linitial(custom_plans))->targetlist)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, lc);

			scan->custom_scan_tlist = lappend(scan->custom_scan_tlist,
											  makeTargetEntry(copyObject(tle->expr), ++nouter, NULL, false));
		}
	}
	else if (columns == NIL)
	{
		/* an empty list would mean the table's own row */
		columns = list_make1(makeVar(table->rel->relid, keys[0],
									 get_atttype(table->relid, keys[0]), -1,
									 InvalidOid, 0));
	}
	foreach(lc, columns)
	{
		Var		   *var = lfirst_node(Var, lc);

		scan->custom_scan_tlist = lappend(scan->custom_scan_tlist,
										  makeTargetEntry((Expr *) copyObject(var),
														  nouter + foreach_current_index(lc) + 1,
														  get_attname(table->relid, var->varattno, false), false));
	}
	for (int i = 0; i < table->nkeys; i++)
		values = lappend(values, table->keys[i].value);

	scan->scan.plan.targetlist = tlist;
	scan->scan.plan.qual = divided.filter;
	scan->scan.scanrelid = joins ? 0 : rel->relid;
	scan->flags = path->flags;
	scan->custom_plans = custom_plans;
	scan->custom_exprs = list_make4(values, params, divided.shipped, divided.join);
	scan->custom_private = make_private(root, table, keys,
										batch_sizes(root, table, path, jointype, nouter),
										columns, fetched, head, tail);
	scan->custom_relids = rel->relids;
	scan->methods = &residency_lookup_scan_methods;

	/* the query does not mention the directory, but its plan depends on it */
	if (OidIsValid(table->directory.relid))
		root->glob->relationOids = lappend_oid(root->glob->relationOids, table->directory.relid);
	return &scan->scan.plan;
}

const CustomPathMethods residency_lookup_path_methods = {
	.CustomName = "Region Lookup",
	.PlanCustomPath = plan_lookup
};

const CustomScanMethods residency_lookup_scan_methods = {
	.CustomName = "Region Lookup",
	.CreateCustomScanState = residency_lookup_create_state
};
