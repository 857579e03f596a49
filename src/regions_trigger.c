/*
 * regions_trigger.c
 *		Trigger functions: cache invalidation, and no change of a row's region.
 */
#include "residency.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "guard.h"
#include "regions.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(residency_invalidate);
PG_FUNCTION_INFO_V1(residency_refuse_region_change);

/*
 * Statement trigger of the catalog tables: tells all backends, this one after the
 * current command, that what they cached of the table is out of date.  The change may
 * have made this database a region, which has workers.
 */
Datum
residency_invalidate(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("residency.invalidate() can only be called as a trigger")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	residency_worker_announce();
	return PointerGetDatum(NULL);
}

/*
 * BEFORE UPDATE row trigger of home partitions and directories, named so that it
 * fires after the users' own BEFORE triggers: an UPDATE that would leave a row in
 * another region than its region column says is refused.  The type's own equality
 * decides, since it also decided which partition the row is in.
 */
Datum
residency_refuse_region_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	Relation	rel;
	Oid			relid;
	const TableRule *rule;
	AttrNumber	attno;
	TypeCacheEntry *type;
	Form_pg_attribute attr;
	Datum		before;
	Datum		after;
	bool		before_null;
	bool		after_null;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("residency.refuse_region_change() can only be called as a trigger BEFORE UPDATE FOR EACH ROW")));
	rel = trigdata->tg_relation;
	relid = RelationGetRelid(rel);
	rule = residency_partition_rule(relid);
	if (rule == NULL)
		rule = residency_table_rule(relid);
	if (rule == NULL)
		return PointerGetDatum(trigdata->tg_newtuple);
	/* what another region sends of a directory is no UPDATE of anybody's: a row that was
	 * deleted and made anew with another home arrives as one change */
	if (rule->kind == RESIDENCY_GLOBAL && residency_session_gateway() != NULL)
		return PointerGetDatum(trigdata->tg_newtuple);

	attno = rule->region_attno;
	before = heap_getattr(trigdata->tg_trigtuple, attno, RelationGetDescr(rel), &before_null);
	after = heap_getattr(trigdata->tg_newtuple, attno, RelationGetDescr(rel), &after_null);
	attr = TupleDescAttr(RelationGetDescr(rel), attno - 1);
	type = lookup_type_cache(attr->atttypid, TYPECACHE_EQ_OPR_FINFO);
	if (before_null != after_null ||
		(!before_null &&
		 !DatumGetBool(FunctionCall2Coll(&type->eq_opr_finfo, attr->attcollation,
										 before, after))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change the region of a row of table \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("Column \"%s\" names the region that stores the row.",
						   NameStr(attr->attname)),
				 errhint("Move the row with all that belongs to its key: delete it, and insert it with the new region.")));
	return PointerGetDatum(trigdata->tg_newtuple);
}
