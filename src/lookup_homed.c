/*
 * lookup_homed.c
 *		residency.homed_here(): does this region's directory call it the home of a key?
 *
 * A home that holds no row of a key answers with this.  "Yes" means that there is no such
 * row: directory and home partition change together when a person moves, in one local
 * transaction, and the statement that asks reads both with one snapshot.  So the
 * gateway need not ask anybody else.
 *
 * The client at the gateway may have no right to read the directory, as in lookup_home.c; so
 * the function reads it with the rights of nobody, by index, and tells gateways only.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "guard.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_homed_here);

/* the directory's primary key, opened; NULL if it is none that can be searched */
static Relation
open_primary_key(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	Relation	found = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (found == NULL && index->rd_index->indisprimary && index->rd_index->indisvalid &&
			index->rd_rel->relam == BTREE_AM_OID)
			found = index;
		else
			index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return found;
}

/* the key column (from 0) that has this name, -1 if none */
static int
key_of_column(const TableRule *rule, const char *name)
{
	for (int i = 0; i < rule->nkeys; i++)
	{
		char	   *key = get_attname(rule->relid, rule->keys[i], true);

		if (key != NULL && strcmp(key, name) == 0)
			return i;
	}
	return -1;
}

/* fills in the search for a key given as texts; false if the index does not fit the key */
static bool
make_search(const TableRule *rule, Relation rel, Relation index, Datum *texts, ScanKeyData *keys)
{
	if (index->rd_index->indnkeyatts != rule->nkeys)
		return false;
	for (int i = 0; i < rule->nkeys; i++)
	{
		AttrNumber	attno = index->rd_index->indkey.values[i];
		Form_pg_attribute attr = TupleDescAttr(RelationGetDescr(rel), attno - 1);
		int			key = key_of_column(rule, NameStr(attr->attname));
		Oid			type = index->rd_opcintype[i];
		Oid			opno = get_opfamily_member(index->rd_opfamily[i], type, type, BTEqualStrategyNumber);
		Oid			input;
		Oid			ioparam;

		if (key < 0 || !OidIsValid(opno))
			return false;
		getTypeInputInfo(attr->atttypid, &input, &ioparam);
		ScanKeyEntryInitialize(&keys[i], 0, i + 1, BTEqualStrategyNumber, type, index->rd_indcollation[i],
							   get_opcode(opno),
							   OidInputFunctionCall(input, TextDatumGetCString(texts[key]), ioparam,
													attr->atttypmod));
	}
	return true;
}

/* is the region of the directory row in this slot ours? */
static bool
names_own_region(TupleTableSlot *slot, AttrNumber attno)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, attno, &isnull);
	Oid			type = getBaseType(TupleDescAttr(slot->tts_tupleDescriptor, attno - 1)->atttypid);
	Oid			output;
	bool		varlena;
	char	   *region;

	if (isnull)
		return false;
	getTypeOutputInfo(type, &output, &varlena);
	region = OidOutputFunctionCall(output, value);
	if (type == BPCHAROID)
	{
		int			length = strlen(region);

		while (length > 0 && region[length - 1] == ' ')
			region[--length] = '\0';
	}
	return strcmp(region, residency_self()->region) == 0;
}

/* looks the key up with the snapshot of the statement that asks */
static bool
homed_here(const TableRule *rule, AttrNumber region_attno, Datum *texts)
{
	Relation	rel = table_open(rule->directory, AccessShareLock);
	Relation	index = open_primary_key(rel);
	ScanKeyData keys[INDEX_MAX_KEYS];
	bool		result = false;

	if (index != NULL && make_search(rule, rel, index, texts, keys))
	{
		TupleTableSlot *slot = table_slot_create(rel, NULL);
		IndexScanDesc scan = compat_index_beginscan(rel, index, GetActiveSnapshot(), rule->nkeys);

		index_rescan(scan, keys, rule->nkeys, NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, slot))
			result = names_own_region(slot, region_attno);
		ExecDropSingleTupleTableSlot(slot);
		index_endscan(scan);
	}
	if (index != NULL)
		index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * residency.homed_here(schema text, name text, VARIADIC key text[]) returns bool: does the
 * directory of that resident table say that the key's home is this region?
 */
Datum
residency_homed_here(PG_FUNCTION_ARGS)
{
	Oid			schema = get_namespace_oid(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(2);
	const TableRule *cached = NULL;
	TableRule	rule;
	Datum	   *texts;
	int			n;

	if (residency_session_gateway() == NULL && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only another region may ask where a key is at home"),
				 errhint("Read the region column of the table's directory.")));
	if (OidIsValid(schema))
		cached = residency_table_rule(get_relname_relid(text_to_cstring(PG_GETARG_TEXT_PP(1)), schema));
	if (cached == NULL || cached->kind != RESIDENCY_RESIDENT || !OidIsValid(cached->directory))
		PG_RETURN_BOOL(false);
	rule = *cached;
	cached = residency_table_rule(rule.directory);
	compat_deconstruct_text_array(array, &texts, &n);
	if (cached == NULL || n != rule.nkeys || residency_self() == NULL || array_contains_nulls(array))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(homed_here(&rule, cached->region_attno, texts));
}
