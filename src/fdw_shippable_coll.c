/*
 * fdw_shippable_coll.c
 *		Which collation will the home's parser give to what we send?
 *
 * The rules are the parser's own: an explicit COLLATE beats what columns and
 * values imply, a column's own collation beats the default, and two different
 * ones conflict.
 */
#include "residency.h"

#include "fdw_plan.h"
#include "fdw_shippable.h"

#include "nodes/nodeFuncs.h"
#include "utils/lsyscache.h"

/*
 * residency_merge_coll combines the collations of two operands as the parser does.  Returns false on
 * a conflict, which the parser would report or leave undefined.
 */
bool
residency_merge_coll(DerivedColl *into, DerivedColl other)
{
	if (other.strength == COLL_NONE)
		return true;
	if (other.strength > into->strength)
		*into = other;
	else if (other.strength == into->strength && other.oid != into->oid)
	{
		if (into->strength == COLL_EXPLICIT)
			return false;
		if (into->oid == DEFAULT_COLLATION_OID)
			*into = other;
		else if (other.oid != DEFAULT_COLLATION_OID)
			return false;
	}
	return true;
}

/*
 * residency_settle_coll ends the look at a node: its operands have the merged collation "in", the node
 * says that it works under "input" and yields "result".  Sets *out to what its
 * own parent will see; false if the parser would come to another outcome.
 */
bool
residency_settle_coll(DerivedColl in, Oid input, Oid type, Oid result, DerivedColl *out)
{
	Oid			own = get_typcollation(type);

	if (input != in.oid)
		return false;
	if (!OidIsValid(own))
		*out = (DerivedColl) {InvalidOid, COLL_NONE};
	else if (in.strength != COLL_NONE)
		*out = in;
	else
	{
		out->oid = own;
		out->strength = COLL_IMPLICIT;
	}
	return out->oid == result;
}

/*
 * Collation that must be written behind a constant or parameter, InvalidOid if
 * its type implies it (or if only the columns around it can).
 */
Oid
residency_value_collation(Node *value)
{
	Oid			collation = exprCollation(value);

	if (collation != get_typcollation(exprType(value)) && residency_is_common_collation(collation))
		return collation;
	return InvalidOid;
}

/*
 * Collation that must be written behind a relabelling: it stands for a COLLATE
 * clause if it changes the collation of what it relabels.
 */
Oid
residency_relabel_collation(const RelabelType *relabel)
{
	Oid			own = get_typcollation(relabel->resulttype);
	Oid			below = exprCollation((Node *) relabel->arg);

	if (!OidIsValid(own))
		return InvalidOid;
	if (relabel->resultcollid == (OidIsValid(below) ? below : own))
		return InvalidOid;
	return relabel->resultcollid;
}

/*
 * residency_value_coll tells what a constant or parameter brings in.
 */
void
residency_value_coll(Node *value, DerivedColl *out)
{
	Oid			written = residency_value_collation(value);

	if (OidIsValid(written))
	{
		out->oid = written;
		out->strength = COLL_EXPLICIT;
	}
	else
	{
		out->oid = get_typcollation(exprType(value));
		out->strength = OidIsValid(out->oid) ? COLL_IMPLICIT : COLL_NONE;
	}
}
