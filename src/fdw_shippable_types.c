/*
 * fdw_shippable_types.c
 *		May values of this type travel to another region?
 *
 * Values travel as text.  A value may be of any built-in type, or an enum,
 * domain, composite, range or array over such; but not of a type whose text
 * names objects by OID (regclass and its kin): OIDs differ by region, and the
 * answer of a comparison with them.
 */
#include "residency.h"

#include "fdw_shippable.h"

#include "catalog/pg_type.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* types in types: deeper than this is not worth shipping, and ends recursion */
#define TYPE_DEPTH 8

/* which types may travel; emptied when pg_type changes */
typedef struct TypeEntry
{
	Oid			type;			/* hash key */
	bool		travels;
} TypeEntry;

static HTAB *type_cache = NULL;

static bool type_travels(Oid type, int depth);

/*
 * Empties the cache of types.
 */
static void
forget_types(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS scan;
	TypeEntry  *entry;

	hash_seq_init(&scan, type_cache);
	while ((entry = hash_seq_search(&scan)) != NULL)
		hash_search(type_cache, &entry->type, HASH_REMOVE, NULL);
}

/*
 * Whether a built-in base type's text means the same value in all regions.
 */
static bool
built_in_travels(Oid type)
{
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
		case ACLITEMOID:
		case GTSVECTOROID:
		case PG_NODE_TREEOID:
		case PG_NDISTINCTOID:
		case PG_DEPENDENCIESOID:
		case PG_MCV_LISTOID:
			return false;
		default:
			return true;
	}
}

/*
 * Whether every column of a composite type may travel.
 */
static bool
columns_travel(Oid type, int depth)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(type, -1);
	bool		all = true;

	for (int i = 0; i < desc->natts && all; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		all = att->attisdropped || type_travels(att->atttypid, depth + 1);
	}
	ReleaseTupleDesc(desc);
	return all;
}

/*
 * Computes type_travels for a type that the cache does not know.
 */
static bool
compute_travels(Oid type, int depth)
{
	Oid			element;

	if (depth > TYPE_DEPTH)
		return false;
	element = get_element_type(type);
	if (OidIsValid(element))
		return type_travels(element, depth + 1);

	switch (get_typtype(type))
	{
		case TYPTYPE_BASE:
			return residency_is_built_in(type) && built_in_travels(type);
		case TYPTYPE_ENUM:
			return true;
		case TYPTYPE_DOMAIN:
			return type_travels(getBaseType(type), depth + 1);
		case TYPTYPE_RANGE:
			return residency_is_built_in(type) || type_travels(get_range_subtype(type), depth + 1);
		case TYPTYPE_MULTIRANGE:
			return residency_is_built_in(type) || type_travels(get_multirange_range(type), depth + 1);
		case TYPTYPE_COMPOSITE:
			return columns_travel(type, depth);
		default:
			return false;		/* pseudo-types */
	}
}

/*
 * Whether values of the type may be sent as text and compared there.
 *
 * Built-in scalar types, the common case, need one look at the cache.  A
 * composite type is looked at each time: changes of its columns do not show in
 * pg_type.
 */
static bool
type_travels(Oid type, int depth)
{
	TypeEntry  *entry;
	bool		travels;
	bool		found;

	if (type_cache == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(TypeEntry)};

		type_cache = hash_create("residency types", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterSyscacheCallback(TYPEOID, forget_types, (Datum) 0);
	}
	entry = hash_search(type_cache, &type, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->travels;

	travels = compute_travels(type, depth);
	if (residency_is_built_in(type) || get_typtype(type) == TYPTYPE_ENUM)
	{
		entry = hash_search(type_cache, &type, HASH_ENTER, &found);
		entry->travels = travels;
	}
	return travels;
}

/*
 * residency_type_travels tells whether values of the type mean the same in all
 * regions when sent as text.
 */
bool
residency_type_travels(Oid type)
{
	return type_travels(type, 0);
}

/*
 * residency_text_form_is_fixed tells whether a type's text form is free of session settings in both directions:
 * bytea, floats and intervals, though their functions claim to be immutable, are
 * not.
 */
bool
residency_text_form_is_fixed(Oid type)
{
	switch (getBaseType(type))
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
		case UUIDOID:
		case JSONOID:
		case JSONBOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
			return true;
		default:
			return false;
	}
}
