/*
 * fdw_shippable.h
 *		What the files that decide about shipping share.
 */
#ifndef RESIDENCY_FDW_SHIPPABLE_H
#define RESIDENCY_FDW_SHIPPABLE_H

#include "residency.h"

#include "access/transam.h"
#include "catalog/pg_collation.h"
#include "nodes/primnodes.h"

/* a collation as the parser derives it; explicit beats implicit beats none */
typedef enum CollStrength
{
	COLL_NONE,
	COLL_IMPLICIT,
	COLL_EXPLICIT
} CollStrength;

typedef struct DerivedColl
{
	Oid			oid;
	CollStrength strength;
} DerivedColl;

/* fdw_shippable_types.c */
extern bool residency_type_travels(Oid type);
extern bool residency_text_form_is_fixed(Oid type);

/* fdw_shippable_coll.c */
extern bool residency_merge_coll(DerivedColl *into, DerivedColl other);
extern bool residency_settle_coll(DerivedColl in, Oid input, Oid type, Oid result, DerivedColl *out);
extern void residency_value_coll(Node *value, DerivedColl *out);

/*
 * Whether an object was there before anything was created: the same in all
 * regions.
 */
static inline bool
residency_is_built_in(Oid oid)
{
	return OidIsValid(oid) && oid < FirstGenbkiObjectId;
}

/*
 * Whether the home knows the collation by the same name with the same meaning.
 */
static inline bool
residency_is_common_collation(Oid collation)
{
	return collation == DEFAULT_COLLATION_OID ||
		collation == C_COLLATION_OID ||
		collation == POSIX_COLLATION_OID;
}

#endif							/* RESIDENCY_FDW_SHIPPABLE_H */
