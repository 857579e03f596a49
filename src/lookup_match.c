/*
 * lookup_match.c
 *		Whether conditions fix the key of a resident table, and with which indexes a
 *		region lookup would find homes and rows.
 *
 * A key column is fixed by "column = value" with the operator that the directory's and
 * the home partition's indexes order by, so that directory, home and remote regions mean
 * the same by "equal".  The value must not use the table's own columns.  In a join it is
 * computed from the outer row; columns that the query fixes by itself may complete a key.
 *
 * Nothing here reads a catalog by scanning it: all comes from caches that planning
 * the query has filled, but for the directory, which the query does not mention.
 */
#include "lookup.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/paths.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "fdw_plan.h"
#include "fdw_shippable.h"
#include "regions.h"

/* the column of rel that an expression is, but for a relabelling; 0 if it is none */
static AttrNumber
column_of(Node *node, RelOptInfo *rel)
{
	while (node != NULL && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	if (node != NULL && IsA(node, Var) && ((Var *) node)->varno == rel->relid &&
		((Var *) node)->varlevelsup == 0)
		return ((Var *) node)->varattno;
	return 0;
}

/* can a value of this type be put into an array, hashed, compared, and sent? */
static bool
type_fits(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_HASH_PROC | TYPECACHE_EQ_OPR);

	return OidIsValid(entry->hash_proc) && OidIsValid(entry->eq_opr) &&
		OidIsValid(get_array_type(type)) && residency_type_travels(type);
}

/*
 * Whether a clause fixes column attno by a value computed from the relations "outer"
 * alone (none for a scan); fills in *key but for its rinfo.
 */
static bool
clause_fixes(PlannerInfo *root, RelOptInfo *rel, Expr *clause, AttrNumber attno,
			 Relids outer, bool arrays, LookupKey *key)
{
	Node	   *left;
	Node	   *right;

	if (IsA(clause, OpExpr) && list_length(((OpExpr *) clause)->args) == 2)
	{
		OpExpr	   *op = (OpExpr *) clause;

		left = linitial(op->args);
		right = lsecond(op->args);
		key->opno = op->opno;
		key->collation = op->inputcollid;
		key->array = false;
		if (column_of(left, rel) != attno)
		{
			Node	   *swap = left;

			left = right;
			right = swap;
			key->opno = get_commutator(op->opno);
		}
		key->type = exprType(right);
	}
	else if (arrays && IsA(clause, ScalarArrayOpExpr) && ((ScalarArrayOpExpr *) clause)->useOr)
	{
		ScalarArrayOpExpr *op = (ScalarArrayOpExpr *) clause;

		left = linitial(op->args);
		right = lsecond(op->args);
		key->opno = op->opno;
		key->collation = op->inputcollid;
		key->array = true;
		key->type = get_base_element_type(exprType(right));
	}
	else
		return false;

	key->value = (Expr *) right;
	return column_of(left, rel) == attno && OidIsValid(key->opno) &&
		residency_is_built_in(key->opno) &&
		(!OidIsValid(key->collation) || residency_is_common_collation(key->collation)) &&
		OidIsValid(key->type) &&
		bms_is_subset(pull_varnos(root, right), outer) &&
		!contain_volatile_functions(right) && type_fits(key->type);
}

/* does an index column order by what the key's operator calls equal? */
static bool
column_serves(const LookupKey *key, Oid opfamily, Oid collation)
{
	return get_op_opfamily_strategy(key->opno, opfamily) == BTEqualStrategyNumber &&
		(!OidIsValid(collation) || collation == key->collation);
}

/*
 * The index columns of the key columns (attnums), if the index begins with exactly
 * these columns in any order; NIL otherwise.
 */
static List *
index_columns(const LookupTable *table, const AttrNumber *attnos, int ncolumns,
			  const AttrNumber *index_attnos, const Oid *opfamilies, const Oid *collations)
{
	List	   *columns = NIL;

	if (ncolumns < table->nkeys)
		return NIL;
	for (int i = 0; i < table->nkeys; i++)
	{
		int			found = 0;

		for (int j = 0; j < table->nkeys; j++)
		{
			if (index_attnos[j] == attnos[i] &&
				column_serves(&table->keys[i], opfamilies[j], collations[j]))
				found = j + 1;
		}
		if (found == 0)
			return NIL;
		columns = lappend_int(columns, found);
	}
	return columns;
}

/*
 * Finds the directory's primary key and its region column; false if it does not serve.
 * The columns are those of the same names: make_resident has checked that.
 */
static bool
find_directory(LookupTable *table, const TableRule *rule, Oid directory)
{
	AttrNumber	attnos[INDEX_MAX_KEYS];
	Relation	rel;
	List	   *indexes;
	ListCell   *lc;

	for (int i = 0; i < table->nkeys; i++)
		attnos[i] = get_attnum(directory, get_attname(table->relid, rule->keys[i], false));

	table->directory.relid = directory;
	table->directory.indexid = InvalidOid;
	rel = table_open(directory, AccessShareLock);
	indexes = RelationGetIndexList(rel);
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		int			n = index->rd_index->indnkeyatts;

		if (index->rd_index->indisprimary && index->rd_index->indisvalid &&
			index->rd_index->indimmediate && n == table->nkeys && index->rd_rel->relam == BTREE_AM_OID)
		{
			table->directory.columns = index_columns(table, attnos, n, index->rd_index->indkey.values,
													 index->rd_opfamily, index->rd_indcollation);
			if (table->directory.columns != NIL)
				table->directory.indexid = lfirst_oid(lc);
		}
		index_close(index, NoLock);
	}
	list_free(indexes);
	table_close(rel, NoLock);
	return OidIsValid(table->directory.indexid);
}

/* finds an index of the partition stored here that begins with the key; false if none does */
static bool
find_home_index(PlannerInfo *root, LookupTable *table, const AttrNumber *keys, RelOptInfo *child)
{
	AppendRelInfo *appinfo = root->append_rel_array[child->relid];
	AttrNumber	attnos[INDEX_MAX_KEYS];
	ListCell   *lc;

	for (int i = 0; i < table->nkeys; i++)
		attnos[i] = list_nth_node(Var, appinfo->translated_vars, keys[i] - 1)->varattno;

	foreach(lc, child->indexlist)
	{
		IndexOptInfo *index = lfirst_node(IndexOptInfo, lc);
		AttrNumber	index_attnos[INDEX_MAX_KEYS];
		List	   *columns;

		if (index->relam != BTREE_AM_OID || index->indpred != NIL || index->hypothetical ||
			index->nkeycolumns < table->nkeys)
			continue;
		for (int i = 0; i < index->nkeycolumns; i++)
			index_attnos[i] = index->indexkeys[i];
		columns = index_columns(table, attnos, index->nkeycolumns, index_attnos,
								index->opfamily, index->indexcollations);
		if (columns == NIL)
			continue;
		table->home.indexid = index->indexoid;
		table->home.columns = columns;
		if (index->unique)
			break;
	}
	return OidIsValid(table->home.indexid);
}

/* sorts out the partitions that are not pruned; false if a lookup could not serve them */
static bool
find_partitions(PlannerInfo *root, LookupTable *table, const AttrNumber *keys)
{
	RelOptInfo *rel = table->rel;
	RelOptInfo *home = NULL;

	for (int i = 0; i < rel->nparts; i++)
	{
		RelOptInfo *child = rel->part_rels ? rel->part_rels[i] : NULL;
		RangeTblEntry *rte;

		if (child == NULL || IS_DUMMY_REL(child))
			continue;
		rte = planner_rt_fetch(child->relid, root);
		table->tuples += Max(child->tuples, 0);
		if (rte->relkind == RELKIND_FOREIGN_TABLE)
		{
			table->partitions = lappend_oid(table->partitions, rte->relid);
			table->servers = lappend_oid(table->servers, child->serverid);
		}
		else if (rte->relkind == RELKIND_RELATION && home == NULL)
		{
			home = child;
			table->home.relid = rte->relid;
		}
		else
			return false;
	}
	if (table->partitions == NIL || list_length(table->partitions) >= RESIDENCY_MAX_REGIONS)
		return false;
	return home == NULL || find_home_index(root, table, keys, home);
}

/* is a system column needed that lookups do not know? they do ctid, tableoid and whole rows */
static bool
needs_system_columns(RelOptInfo *rel)
{
	Bitmapset  *used = NULL;
	int			member = -1;

	for (AttrNumber attno = rel->min_attr; attno < 0; attno++)
	{
		if (!bms_is_empty(rel->attr_needed[attno - rel->min_attr]))
			used = bms_add_member(used, attno - FirstLowInvalidHeapAttributeNumber);
	}
	pull_varattnos((Node *) extract_actual_clauses(rel->baserestrictinfo, false), rel->relid, &used);
	while ((member = bms_next_member(used, member)) >= 0)
	{
		AttrNumber	attno = member + FirstLowInvalidHeapAttributeNumber;

		if (attno < 0 && attno != SelfItemPointerAttributeNumber && attno != TableOidAttributeNumber)
			return true;
	}
	return false;
}

/* looks for a condition on one key column, among join clauses first */
static bool
find_key(PlannerInfo *root, RelOptInfo *rel, Relids outer, List *clauses, AttrNumber attno,
		 LookupKey *key)
{
	List	   *lists[] = {clauses, rel->baserestrictinfo};

	for (int i = 0; i < lengthof(lists); i++)
	{
		ListCell   *lc;

		foreach(lc, lists[i])
		{
			RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

			/* the key is looked for before policies of row security are asked */
			if (restriction_is_securely_promotable(rinfo, rel) &&
				clause_fixes(root, rel, rinfo->clause, attno, outer, outer == NULL, key))
			{
				key->rinfo = rinfo;
				return true;
			}
		}
	}
	return false;
}

/*
 * Fills in *table if rel is a resident table whose whole key is fixed by the clauses (of
 * a join with the relations "outer") or, with outer NULL, by its own conditions.
 */
bool
residency_lookup_table(PlannerInfo *root, RelOptInfo *rel, Relids outer, List *clauses,
					   LookupTable *table)
{
	RangeTblEntry *rte = planner_rt_fetch(rel->relid, root);
	const TableRule *cached;
	TableRule	rule;

	if (rel->reloptkind != RELOPT_BASEREL || rte->rtekind != RTE_RELATION || !rte->inh ||
		rte->relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	cached = residency_table_rule(rte->relid);
	if (cached == NULL || cached->kind != RESIDENCY_RESIDENT || cached->nkeys == 0)
		return false;
	rule = *cached;

	/* without a directory all regions are asked, which for keys of its own any scan does */
	if (!OidIsValid(rule.directory) && outer == NULL)
		return false;

	memset(table, 0, sizeof(*table));
	table->rel = rel;
	table->relid = rte->relid;
	table->userid = rel->userid;
	table->nkeys = rule.nkeys;
	table->unique = rule.unique && OidIsValid(rule.directory);
	for (int i = 0; i < rule.nkeys; i++)
	{
		if (!find_key(root, rel, outer, clauses, rule.keys[i], &table->keys[i]))
			return false;
	}
	if (OidIsValid(rule.directory))
	{
		cached = residency_table_rule(rule.directory);
		if (cached == NULL)
			return false;
		table->directory_region = cached->region_attno;
	}
	return !needs_system_columns(rel) &&
		(!bms_is_member(rel->relid, root->all_result_relids) || residency_lookup_writes(root, rel)) &&
		find_partitions(root, table, rule.keys) &&
		(!OidIsValid(rule.directory) || find_directory(table, &rule, rule.directory));
}
