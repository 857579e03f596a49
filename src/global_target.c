/*
 * global_target.c
 *		Finds, checks and writes the rows of global tables that another gateway sent.
 *
 * Works like a subscription's worker: rows are found by primary key, locked, and
 * written below the level of SQL, so neither rules, row security nor privileges
 * of tables take part; constraints, indexes and generated columns do.
 *
 * All rows of a call are one query to the trigger machinery, but each is a command
 * of its own, so that a later record sees what an earlier one did.
 *
 * Rows are written, and triggers fire, as the owner of the table: what its columns'
 * types, constraints, indexes and triggers call belongs to its owner, and may need
 * rights that a gateway's role has no reason to have.  Tables of several owners in
 * one call make a query each time the owner changes; foreign keys, which could
 * otherwise be checked too early, then wait as for the last piece of a batch.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "parser/parse_relation.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#include "global_backlog.h"
#include "global_target.h"
#include "regions.h"

/* Throws unless the relation is a declared global table: all others are closed. */
static void
check_target(Relation rel)
{
	const TableRule *rule = residency_table_rule(RelationGetRelid(rel));

	if (rule == NULL || rule->kind != RESIDENCY_GLOBAL ||
		rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" is not a global table in region \"%s\"",
						RelationGetRelationName(rel), residency_self()->region),
				 errhint("Declare it in all regions with residency.make_global().")));
	if (!OidIsValid(compat_primary_key_index(rel)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("global table \"%s\" has no primary key in region \"%s\"",
						RelationGetRelationName(rel), residency_self()->region),
				 errhint("Give it the same primary key in all regions, with residency.run_everywhere().")));
}

/*
 * Opens and locks a table by its qualified name.  The gateway's role need not have
 * USAGE on its schema: being declared global is what opens it to apply.
 */
static Relation
open_table(ApplyRun *run, const char *qualified, LOCKMODE lockmode)
{
	RangeVar   *name = makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(qualified)));
	Oid			schema = name->schemaname ? get_namespace_oid(name->schemaname, true) : InvalidOid;
	Oid			relid = OidIsValid(schema) ? get_relname_relid(name->relname, schema) : InvalidOid;
	Relation	rel;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("global table \"%s\" does not exist in region \"%s\"",
						name->relname, residency_self()->region),
				 errhint("Create it in all regions with residency.run_everywhere().")));
	run->table = name->relname;
	rel = table_open(relid, lockmode);
	run->table = RelationGetRelationName(rel);
	check_target(rel);
	return rel;
}

/* Fills in a target whose relation is open and in the range table at position rti. */
static void
init_target(ApplyRun *run, ApplyTarget *target, int rti)
{
	Relation	rel = target->rel;
	Relation	index;
	Oid			function;
	bool		varlena;

	target->region_attno = residency_table_rule(RelationGetRelid(rel))->region_attno;
	getTypeOutputInfo(TupleDescAttr(RelationGetDescr(rel), target->region_attno - 1)->atttypid,
					  &function, &varlena);
	fmgr_info_cxt(function, &target->region_out, run->estate->es_query_cxt);
	target->index = compat_primary_key_index(rel);
	index = index_open(target->index, AccessShareLock);
	target->nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	memcpy(target->keys, index->rd_index->indkey.values, sizeof(AttrNumber) * target->nkeys);
	index_close(index, AccessShareLock);

	target->info = makeNode(ResultRelInfo);
	InitResultRelInfo(target->info, rel, rti, NULL, 0);
	ExecOpenIndices(target->info, false);
	/* so that the trigger machinery finds this one, with its triggers */
	run->estate->es_opened_result_relations =
		lappend(run->estate->es_opened_result_relations, target->info);

	for (int scope = 0; scope < SCOPE_COUNT; scope++)
		target->triggers[scope] = residency_triggers_for(rel, scope, run->deferred, run->shipped);
	target->referred = residency_table_is_referred(rel);
	target->text = residency_text_make(RelationGetDescr(rel), target->nkeys, target->keys);
	target->image = ExecInitExtraTupleSlot(run->estate, RelationGetDescr(rel), &TTSOpsVirtual);
	target->found = ExecInitExtraTupleSlot(run->estate, RelationGetDescr(rel),
										   table_slot_callbacks(rel));
	target->other = ExecInitExtraTupleSlot(run->estate, RelationGetDescr(rel),
										   table_slot_callbacks(rel));
}

/* Who owns the target's table. */
static Oid
owner_of(ApplyTarget *target)
{
	return target->rel->rd_rel->relowner;
}

/*
 * Opens and locks the tables of a call, and makes the executor state for all of
 * them.  Throws if one is missing here, or not global.
 */
void
residency_target_open_all(ApplyRun *run, List *names, LOCKMODE lockmode)
{
	List	   *rtable = NIL;
	List	   *infos PG_USED_FOR_ASSERTS_ONLY = NIL;
	ListCell   *lc;
	MemoryContext old;

	run->estate = CreateExecutorState();
	old = MemoryContextSwitchTo(run->estate->es_query_cxt);
	foreach(lc, names)
	{
		ApplyTarget *target = palloc0(sizeof(ApplyTarget));
		RangeTblEntry *rte = makeNode(RangeTblEntry);

		target->rel = open_table(run, lfirst(lc), lockmode);
		rte->rtekind = RTE_RELATION;
		rte->relid = RelationGetRelid(target->rel);
		rte->relkind = target->rel->rd_rel->relkind;
		rte->rellockmode = lockmode;
#ifdef COMPAT_HAS_PERMISSION_INFOS
		(void) addRTEPermissionInfo(&infos, rte);
#endif
		rtable = lappend(rtable, rte);
		run->targets = lappend(run->targets, target);
	}
	compat_init_range_table(run->estate, rtable, infos);
	foreach(lc, run->targets)
		init_target(run, lfirst(lc), foreach_current_index(lc) + 1);
	MemoryContextSwitchTo(old);
	foreach(lc, run->targets)
		if (owner_of(lfirst(lc)) != owner_of(linitial(run->targets)))
			run->many_owners = true;
}

/* Acts as that role from here on, until user and context are restored. */
static void
act_as(Oid owner, Oid *user, int *context)
{
	GetUserIdAndSecContext(user, context);
	SetUserIdAndSecContext(owner, *context | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * Fires the triggers of the rows written since begin_query(), as the owner of their
 * tables.
 */
static void
end_query(ApplyRun *run)
{
	ListCell   *lc;
	Oid			user;
	int			context;

	if (!OidIsValid(run->owner))
		return;
	foreach(lc, run->targets)
	{
		ApplyTarget *target = lfirst(lc);

		/* a superset of what any row was queued for */
		target->info->ri_TrigDesc = target->triggers[SCOPE_HOME];
	}
	act_as(run->owner, &user, &context);
	AfterTriggerEndQuery(run->estate);
	SetUserIdAndSecContext(user, context);
	run->owner = InvalidOid;
}

/* Makes sure that a query for tables of the target's owner is open. */
static void
begin_query(ApplyRun *run, ApplyTarget *target)
{
	if (run->owner == owner_of(target))
		return;
	end_query(run);
	AfterTriggerBeginQuery();
	run->owner = owner_of(target);
}

/* Fires the triggers that have not fired yet, and closes everything but the locks. */
void
residency_target_close_all(ApplyRun *run)
{
	ListCell   *lc;

	end_query(run);
	ExecResetTupleTable(run->estate->es_tupleTable, false);
	ExecCloseResultRelations(run->estate);
	foreach(lc, run->targets)
		table_close(((ApplyTarget *) lfirst(lc))->rel, NoLock);
	FreeExecutorState(run->estate);
}

/* Throws 40001: the home holds another version than the one that the gateway saw. */
static void
refuse_version(ApplyTarget *target)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to global table \"%s\" in region \"%s\"",
					RelationGetRelationName(target->rel), residency_self()->region),
			 errdetail("Another transaction has changed the row there, where its home is."),
			 errhint("Try the transaction again.")));
}

/*
 * The home's order: at the home of a row, what is there must be what the gateway
 * saw before its transaction.  The row, if any, is in target->found, locked.
 */
static void
check_version(ApplyRun *run, ApplyTarget *target, ChangeReader *reader, bool found)
{
	uint64		version;
	int			level;

	if (!run->at_home || reader->check == CHECK_NONE)
		return;
	if (found != (reader->check == CHECK_VERSION))
		refuse_version(target);
	if (!found)
		return;
	slot_getallattrs(target->found);
	level = residency_text_begin();
	version = residency_text_version(target->text, target->found->tts_values,
									 target->found->tts_isnull);
	residency_text_end(level);
	if (version != reader->version)
		refuse_version(target);
}

/*
 * Throws 40001 if the row that a copy has, in the slot, is another region's than the
 * one that the gateway writes: over it, or in its place, nothing is written.
 */
static void
check_home(ApplyRun *run, ApplyTarget *target, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value;
	char	   *home;

	if (run->home == NULL)
		return;
	value = slot_getattr(slot, target->region_attno, &isnull);
	home = isnull ? pstrdup("") : OutputFunctionCall(&target->region_out, value);
	if (strcmp(home, run->home) == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("a row of global table \"%s\" with the same key has its home in region \"%s\", not \"%s\"",
					RelationGetRelationName(target->rel), home, run->home),
			 errdetail("These regions could not reach each other, or the deletion of that row is still on its way."),
			 errhint("Try the transaction again when all regions are up.")));
}

/* The same for a record, which says whether its transaction has been here before. */
static void
check_found(ApplyRun *run, ApplyTarget *target, ChangeReader *reader, bool found)
{
	check_version(run, target, reader, found);
	if (found && reader->check != CHECK_NONE)
		check_home(run, target, target->found);
}

/*
 * Says which columns an update changes, so that the row lock is no stronger than
 * needed and column triggers fire rightly; false if there are none.
 */
static bool
set_changed_columns(ApplyRun *run, ApplyTarget *target)
{
	TupleDesc	desc = RelationGetDescr(target->rel);
	RangeTblEntry *rte = exec_rt_fetch(target->info->ri_RangeTableIndex, run->estate);
	Bitmapset  *changed = NULL;

	slot_getallattrs(target->found);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i);

		if (attr->attisdropped)
			continue;
		if (target->found->tts_isnull[i] == target->image->tts_isnull[i] &&
			(target->image->tts_isnull[i] ||
			 datum_image_eq(target->found->tts_values[i], target->image->tts_values[i],
							attr->attbyval, attr->attlen)))
			continue;
		changed = bms_add_member(changed, attr->attnum - FirstLowInvalidHeapAttributeNumber);
	}
#ifdef COMPAT_HAS_PERMISSION_INFOS
	getRTEPermissionInfo(run->estate->es_rteperminfos, rte)->updatedCols = changed;
#else
	rte->updatedCols = changed;
#endif
	return changed != NULL;
}

/* True if foreign keys between global tables must wait for more rows to come. */
static bool
checks_wait(ApplyRun *run)
{
	return !run->last || run->many_owners;
}

/*
 * Notes a row for the check with the last piece, if that is wanted.  A BEFORE trigger may
 * have kept the new one from being written.
 */
static void
remember(ApplyRun *run, ApplyTarget *target, TupleTableSlot *old, TupleTableSlot *new)
{
	if (new != NULL && !ItemPointerIsValid(&new->tts_tid))
		return;
	if (run->scope == SCOPE_HOME_PIECE ||
		(run->scope == SCOPE_COPY_PIECE && old != NULL && target->referred))
		residency_recheck_remember(RelationGetRelid(target->rel), run->scope == SCOPE_HOME_PIECE,
								   run->deferred, old ? &old->tts_tid : NULL, new ? &new->tts_tid : NULL);
}

/*
 * Makes the command at hand the one that writes: BEFORE triggers look for the row as it was
 * then, which can be as late as the record before this one.
 */
static void
begin_write(ApplyRun *run)
{
	run->estate->es_output_cid = GetCurrentCommandId(true);
}

/* Writes target->image over target->found, if anything differs. */
static void
update_row(ApplyRun *run, ApplyTarget *target)
{
	EPQState	epq;

	if (!set_changed_columns(run, target))
		return;
	begin_write(run);
	compat_epq_init(&epq, run->estate);
	/* a BEFORE trigger locks the row, which this transaction may have written before */
	run->estate->es_output_cid = GetCurrentCommandId(true);
	ExecSimpleRelationUpdate(target->info, run->estate, &epq, target->found, target->image);
	EvalPlanQualEnd(&epq);
	remember(run, target, target->found, target->image);
	CommandCounterIncrement();
}

/* Deletes target->found. */
static void
delete_row(ApplyRun *run, ApplyTarget *target, TupleTableSlot *found)
{
	EPQState	epq;

	begin_write(run);
	compat_epq_init(&epq, run->estate);
	run->estate->es_output_cid = GetCurrentCommandId(true);
	ExecSimpleRelationDelete(target->info, run->estate, &epq, found);
	EvalPlanQualEnd(&epq);
	remember(run, target, found, NULL);
	CommandCounterIncrement();
}

/* Makes target->image a virtual row; its values are filled in afterwards. */
static void
clear_image(ApplyTarget *target)
{
	TupleTableSlot *image = target->image;
	int			natts = image->tts_tupleDescriptor->natts;

	ExecClearTuple(image);
	memset(image->tts_values, 0, sizeof(Datum) * natts);
	memset(image->tts_isnull, true, natts);
	ExecStoreVirtualTuple(image);
}

/* The row as it is now: written over the one with its key, or inserted. */
static void
apply_state(ApplyRun *run, ApplyTarget *target, ChangeReader *reader)
{
	bool		found;

	residency_text_read_row(reader, target->text, target->image->tts_values,
							target->image->tts_isnull);
	found = RelationFindReplTupleByIndex(target->rel, target->index, LockTupleNoKeyExclusive,
										 target->image, target->found);
	check_found(run, target, reader, found);
	if (found)
		update_row(run, target);
	else
	{
		ExecSimpleRelationInsert(target->info, run->estate, target->image);
		remember(run, target, NULL, target->image);
		CommandCounterIncrement();
	}
}

/* The row is no more.  A copy may never have had it. */
static void
apply_delete(ApplyRun *run, ApplyTarget *target, ChangeReader *reader)
{
	bool		found;

	residency_text_read_key(reader, target->text, target->image->tts_values,
							target->image->tts_isnull);
	found = RelationFindReplTupleByIndex(target->rel, target->index, LockTupleExclusive,
										 target->image, target->found);
	check_found(run, target, reader, found);
	if (found)
		delete_row(run, target, target->found);
}

/* Throws if a row, in target->other, is in the way of one whose key becomes that row's. */
static void
check_destination(ApplyRun *run, ApplyTarget *target)
{
	if (run->at_home)
		refuse_version(target);
	check_home(run, target, target->other);
}

/*
 * The row's key is another one now.  If a copy does not have the row, or has one
 * with the new key, the states of both keys, which follow, do what is left to do.
 * They come unchecked, so the new key is checked here, whatever the record says: the
 * gateway's transaction has left no row with it anywhere.
 */
static void
apply_move(ApplyRun *run, ApplyTarget *target, ChangeReader *reader)
{
	TupleTableSlot *image = target->image;
	int			natts = image->tts_tupleDescriptor->natts;
	Datum	   *new_values = palloc(sizeof(Datum) * natts);
	bool	   *new_nulls = palloc(sizeof(bool) * natts);
	const char *start = reader->next;
	bool		found;

	residency_text_read_key(reader, target->text, image->tts_values, image->tts_isnull);
	run->was = pnstrdup(start, reader->next - start);
	residency_text_read_key(reader, target->text, new_values, new_nulls);
	found = RelationFindReplTupleByIndex(target->rel, target->index, LockTupleExclusive,
										 image, target->found);
	check_found(run, target, reader, found);
	if (found)
	{
		slot_getallattrs(target->found);
		memcpy(image->tts_values, target->found->tts_values, sizeof(Datum) * natts);
		memcpy(image->tts_isnull, target->found->tts_isnull, natts);
	}
	for (int k = 0; k < target->nkeys; k++)
	{
		image->tts_values[target->keys[k] - 1] = new_values[target->keys[k] - 1];
		image->tts_isnull[target->keys[k] - 1] = new_nulls[target->keys[k] - 1];
	}
	if (RelationFindReplTupleByIndex(target->rel, target->index, LockTupleExclusive,
									 image, target->other))
	{
		/* in catch-up: its home had deleted it by then */
		if (!run->shipped)
			check_destination(run, target);
		else if (found)
			delete_row(run, target, target->other);
		found &= run->shipped;
	}
	if (found)
		update_row(run, target);
}

/*
 * Notes the key of the record at hand for the regions that are left out, and throws if
 * it is in conflict.  Of a move it is the new one; both keys' states follow.
 */
static void
note_key(ApplyRun *run, ApplyTarget *target)
{
	Datum		key[INDEX_MAX_KEYS];
	StringInfoData text;

	for (int k = 0; k < target->nkeys; k++)
		key[k] = target->image->tts_values[target->keys[k] - 1];
	initStringInfo(&text);
	residency_text_key(&text, target->text, key);
	if (run->conflicts)
		residency_conflict_check(RelationGetRelid(target->rel), text.data);
	if (run->notes)
		residency_backlog_add(run->notes, RelationGetRelid(target->rel), text.data);
	if (run->was && run->moved)
		residency_backlog_move(run->moved, RelationGetRelid(target->rel), run->was, text.data);
}

/*
 * Applies one record whose head has been read.  run->at_home is set, and so is the
 * lock timeout.
 */
void
residency_target_apply(ApplyRun *run, ApplyTarget *target, ChangeReader *reader)
{
	MemoryContext old;
	Oid			user;
	int			context;

	begin_query(run, target);
	act_as(run->owner, &user, &context);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(run->estate));
	if (checks_wait(run))
		run->scope = run->at_home ? SCOPE_HOME_PIECE : SCOPE_COPY_PIECE;
	else
		run->scope = run->at_home ? SCOPE_HOME : SCOPE_COPY;
	target->info->ri_TrigDesc = target->triggers[run->scope];
	clear_image(target);
	run->was = NULL;
	switch (reader->kind)
	{
		case CHANGE_STATE:
			apply_state(run, target, reader);
			break;
		case CHANGE_DELETE:
			apply_delete(run, target, reader);
			break;
		case CHANGE_MOVE:
			apply_move(run, target, reader);
			break;
	}
	if (run->at_home && (run->notes || run->conflicts || (run->was && run->moved)))
		note_key(run, target);
	ExecClearTuple(target->image);
	ExecClearTuple(target->found);
	ExecClearTuple(target->other);
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(run->estate);
	SetUserIdAndSecContext(user, context);
}

/*
 * Deletes every row of a table that is locked against other writers.  Foreign keys
 * between global tables are not looked at: TRUNCATE at the gateway has made sure
 * that all tables which reference each other go together.
 */
void
residency_target_clear(ApplyRun *run, ApplyTarget *target)
{
	Snapshot	snapshot;
	TableScanDesc scan;
	MemoryContext old;
	Oid			user;
	int			context;

	begin_query(run, target);
	act_as(run->owner, &user, &context);
	run->scope = SCOPE_CLEAR;
	target->info->ri_TrigDesc = target->triggers[SCOPE_CLEAR];
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(target->rel, snapshot, 0, NULL);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(run->estate));
	while (table_scan_getnextslot(scan, ForwardScanDirection, target->found))
	{
		CHECK_FOR_INTERRUPTS();
		delete_row(run, target, target->found);
		ResetPerTupleExprContext(run->estate);
	}
	MemoryContextSwitchTo(old);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	SetUserIdAndSecContext(user, context);
}
