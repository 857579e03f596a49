/*
 * fdw_modify_rows.c
 *		Sends single rows of INSERT, UPDATE and DELETE to their home.
 *
 * A write is "certain" if nothing at the home can make it touch another number of
 * rows than the gateway assumes: no BEFORE ROW trigger, no rule, no ON CONFLICT, and, for
 * UPDATE and DELETE, the row was locked when it was fetched.  How a row is written:
 *
 *		deferred	certain: nobody waits; another count than expected is an error at the
 *					latest when the statement ends
 *		counted		not certain: the executor goes on as if the row had been written;
 *					answers are awaited when its run ends, and the number of rows that the
 *					client is told is corrected then (residency_modify_settle)
 *		awaited		the statement returns what only the home knows: one round trip a row
 */
#include "postgres.h"

#include "fdw_modify.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "border.h"
#include "regions.h"

/* role whose rights decide about a write */
static Oid
write_userid(EState *estate, ResultRelInfo *rri)
{
	Oid			userid;

#ifdef COMPAT_HAS_PERMISSION_INFOS
	userid = ExecGetResultRelCheckAsUser(rri, estate);
#else
	/* a partition found by tuple routing has no range table entry of its own */
	if (rri->ri_RangeTableIndex == 0 && rri->ri_RootResultRelInfo != NULL)
		rri = rri->ri_RootResultRelInfo;
	userid = rri->ri_RangeTableIndex == 0 ? InvalidOid :
		exec_rt_fetch(rri->ri_RangeTableIndex, estate)->checkAsUser;
#endif
	return OidIsValid(userid) ? userid : GetUserId();
}

/* learns which column names the region, if the relation belongs to a resident table */
static void
find_region_column(FdwModify *modify)
{
	const TableRule *rule = residency_partition_rule(RelationGetRelid(modify->rel));
	Bitmapset  *columns = NULL;
	Oid			parent;
	AttrNumber	attno;
	ListCell   *lc;

	if (rule == NULL)
		return;
	parent = rule->relid;
	attno = rule->region_attno;
	foreach(lc, modify->targets)
		columns = bms_add_member(columns, lfirst_int(lc) - FirstLowInvalidHeapAttributeNumber);
	if (residency_home_check_needed(modify->rel, modify->operation, columns))
		modify->flags |= REMOTE_RESIDENT;
	modify->region_attno = get_attnum(RelationGetRelid(modify->rel),
									  get_attname(parent, attno, false));
	modify->region = residency_server_region(modify->serverid);
}

/* converters of the columns sent and asked back for */
static void
make_converters(FdwModify *modify)
{
	TupleDesc	desc = RelationGetDescr(modify->rel);
	Oid		   *types = palloc(Max(modify->ntargets, 1) * sizeof(Oid));
	ListCell   *lc;

	foreach(lc, modify->targets)
		types[foreach_current_index(lc)] = TupleDescAttr(desc, lfirst_int(lc) - 1)->atttypid;
	modify->output = residency_output_make(modify->ntargets, types);
	if (modify->returning != NIL)
		modify->input = residency_input_make(desc, modify->returning);
}

/* do the triggers of a relation leave alone which rows are written?  Our own one only refuses. */
static bool
is_harmless(const TriggerDesc *triggers, CmdType operation)
{
	int16		event = operation == CMD_INSERT ? TRIGGER_TYPE_INSERT :
		operation == CMD_UPDATE ? TRIGGER_TYPE_UPDATE : TRIGGER_TYPE_DELETE;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (TRIGGER_FOR_ROW(trigger->tgtype) && !TRIGGER_FOR_AFTER(trigger->tgtype) &&
			(trigger->tgtype & event) != 0 && strcmp(trigger->tgname, "~residency_region") != 0)
			return false;
	}
	return true;
}

/*
 * Can a write of this kind touch no other number of rows than it says?  Triggers that the table had
 * before it was made resident are on the home partitions only; ours here has the same as the one there.
 */
static bool
is_certain(Relation rel, CmdType operation, bool do_nothing)
{
	bool		certain;
	ListCell   *lc;

	if (do_nothing || rel->rd_rules != NULL)
		return false;
	certain = is_harmless(rel->trigdesc, operation);
	if (!certain || !rel->rd_rel->relispartition)
		return certain;
	foreach(lc, find_inheritance_children(get_partition_parent(RelationGetRelid(rel), false), NoLock))
	{
		Relation	home;

		if (get_rel_relkind(lfirst_oid(lc)) != RELKIND_RELATION)
			continue;
		home = table_open(lfirst_oid(lc), AccessShareLock);
		certain = certain && home->rd_rules == NULL && is_harmless(home->trigdesc, operation);
		table_close(home, NoLock);
	}
	return certain;
}

/*
 * Prepares to write rows of a relation, in the query's memory.  "returning" lists
 * the columns that RETURNING and checks of views look at; they are asked back for only if
 * the home may have changed them, or if wants_row says that only the home knows them.
 */
FdwModify *
residency_modify_make(EState *estate, ResultRelInfo *rri, CmdType operation, bool counts,
					  List *targets, List *returning, bool do_nothing, bool wants_row,
					  List *subplan_tlist)
{
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	FdwModify  *modify = palloc0(sizeof(FdwModify));
	Relation	rel = rri->ri_RelationDesc;
	bool		certain = is_certain(rel, operation, do_nothing);

	modify->estate = estate;
	modify->rel = rel;
	modify->serverid = GetForeignTable(RelationGetRelid(rel))->serverid;
	modify->userid = write_userid(estate, rri);
	modify->table = residency_border_table(RelationGetRelid(rel));
	modify->tally = residency_border_tally(estate);
	modify->operation = operation;
	modify->targets = targets;
	modify->ntargets = list_length(targets);
	modify->do_nothing = do_nothing;
	modify->counts = counts;
	modify->mode = certain ? WRITE_DEFERRED : WRITE_COUNTED;
	modify->flags = REMOTE_WRITES;
	if (operation != CMD_INSERT)
	{
		modify->ctid_attno = ExecFindJunkAttributeInTlist(subplan_tlist, "ctid");
		if (!AttributeNumberIsValid(modify->ctid_attno))
			elog(ERROR, "could not find junk ctid column");
		modify->wholerow_attno = ExecFindJunkAttributeInTlist(subplan_tlist, "wholerow");
	}
	if (returning != NIL &&
		(!certain || wants_row ||
		 (operation == CMD_DELETE && !AttributeNumberIsValid(modify->wholerow_attno))))
	{
		modify->mode = WRITE_AWAITED;
		modify->returning = returning;
	}
	find_region_column(modify);
	make_converters(modify);
	modify->nest_level = GetCurrentTransactionNestLevel();
	modify->max_rows = Min(MODIFY_BATCH_ROWS, modify->ntargets > 0 ? MODIFY_BATCH_PARAMS / modify->ntargets : 1);
	modify->row_context = AllocSetContextCreate(estate->es_query_cxt, "residency row",
												ALLOCSET_SMALL_SIZES);
	modify->reset.func = residency_modify_forget;
	modify->reset.arg = modify;
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &modify->reset);
	MemoryContextSwitchTo(old);
	return modify;
}

/*
 * Checks a new row's region, given as text, against the partition's.  The home would
 * refuse the row as well, but it should not travel there at all.
 */
static void
check_region(FdwModify *modify, AttrNumber attnum, const char *text)
{
	if (attnum != modify->region_attno || !AttributeNumberIsValid(attnum) ||
		(text != NULL && strcmp(text, modify->region) == 0))
		return;
	if (modify->operation == CMD_UPDATE)
		residency_region_change_error(RelationGetRelid(modify->rel));
	ereport(ERROR,
			(errcode(ERRCODE_CHECK_VIOLATION),
			 errmsg("new row for relation \"%s\" violates partition constraint",
					RelationGetRelationName(modify->rel)),
			 errdetail("It holds the rows of region \"%s\" only.", modify->region),
			 errhint("Insert into the partitioned table, which finds the right partition."),
			 errtable(modify->rel)));
}

/* texts of the target columns of a slot, in the current memory context; their length */
Size
residency_modify_texts(FdwModify *modify, TupleTableSlot *slot, const char **values)
{
	int			level = residency_output_begin();
	Size		bytes = 0;
	int			i = 0;
	ListCell   *lc;

	foreach(lc, modify->targets)
	{
		AttrNumber	attnum = lfirst_int(lc);
		bool		isnull;
		Datum		value = slot_getattr(slot, attnum, &isnull);

		values[i] = isnull ? NULL : residency_output_value(modify->output, i, value);
		if (values[i] != NULL)
			bytes += strlen(values[i]);
		check_region(modify, attnum, values[i]);
		i++;
	}
	residency_output_end(level);
	return bytes;
}

/* text of an INSERT of n rows, in the current memory context */
char *
residency_modify_insert_sql(FdwModify *modify, int nrows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	residency_deparse_insert(&buf, modify->rel, modify->targets, nrows, modify->do_nothing,
							 modify->returning);
	return buf.data;
}

/* before the first row: scans of this statement must not see what it writes */
static void
before_first_write(FdwModify *modify)
{
	if (modify->wrote)
		return;
	modify->wrote = true;
	residency_start_before_write(modify->estate, modify->serverid);
}

/* takes over the stored row that came back; its values live until the next row */
static void
take_returned(FdwModify *modify, PGresult *res, TupleTableSlot *slot)
{
	MemoryContext old = MemoryContextSwitchTo(modify->row_context);

	residency_input_row(modify->input, res, 0, slot);
	MemoryContextSwitchTo(old);
}

/* sends a statement and waits for its answer; the texts are in row_context */
static PGresult *
send_and_wait(FdwModify *modify, const char *sql, int nvalues, const char **values,
			  RemoteRequest **req)
{
	RemoteSubject about = {modify->table, 1, modify->tally};

	*req = residency_remote_send_about(&about, residency_remote_region(modify->serverid),
									   modify->userid, sql, nvalues, values,
									   modify->flags | REMOTE_NAMED, -1);
	return residency_remote_wait(*req);
}

/*
 * Inserts one row.  Returns the row as it is now, or NULL if it was not inserted (ON
 * CONFLICT DO NOTHING, or a trigger at the home) and somebody wants to see it.
 */
TupleTableSlot *
residency_modify_insert(FdwModify *modify, TupleTableSlot *slot)
{
	MemoryContext old;
	const char **values;
	RemoteRequest *req;
	PGresult   *res;
	bool		inserted;

	before_first_write(modify);
	if (modify->mode != WRITE_AWAITED)
	{
		residency_modify_buffer(modify, slot);
		return slot;
	}
	MemoryContextReset(modify->row_context);
	old = MemoryContextSwitchTo(modify->row_context);
	values = palloc(Max(modify->ntargets, 1) * sizeof(char *));
	(void) residency_modify_texts(modify, slot, values);
	if (modify->row_sql == NULL)
	{
		MemoryContextSwitchTo(modify->estate->es_query_cxt);
		modify->row_sql = residency_modify_insert_sql(modify, 1);
	}
	MemoryContextSwitchTo(old);
	res = send_and_wait(modify, modify->row_sql, modify->ntargets, values, &req);
	inserted = PQntuples(res) > 0;
	if (inserted)
		take_returned(modify, res, slot);
	residency_remote_release(req);
	return inserted ? slot : NULL;
}

/* notes that the row is being written; false if this statement has written it before */
static bool
first_write_of(FdwModify *modify, ItemPointer tid)
{
	bool		found;

	if (modify->seen == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(ItemPointerData),
			.entrysize = sizeof(ItemPointerData),
		.hcxt = modify->estate->es_query_cxt};

		modify->seen = hash_create("residency rows written", 256, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	(void) hash_search(modify->seen, tid, HASH_ENTER, &found);
	return !found;
}

/* text of the UPDATE or DELETE of one row */
static const char *
row_sql(FdwModify *modify)
{
	MemoryContext old;
	StringInfoData buf;

	if (modify->row_sql != NULL)
		return modify->row_sql;
	old = MemoryContextSwitchTo(modify->estate->es_query_cxt);
	initStringInfo(&buf);
	if (modify->operation == CMD_UPDATE)
		residency_deparse_update_row(&buf, modify->rel, modify->targets, modify->returning);
	else
		residency_deparse_delete_row(&buf, modify->rel, modify->returning);
	MemoryContextSwitchTo(old);
	modify->row_sql = buf.data;
	return modify->row_sql;
}

/*
 * Sends the UPDATE or DELETE of the row whose ctid the plan has fetched.  Returns
 * false if the row was not written: twice in one statement, or kept by a trigger.
 * new is the updated row, NULL for DELETE; result the slot for what is asked back.
 */
static bool
write_row(FdwModify *modify, TupleTableSlot *plan_slot, TupleTableSlot *new, TupleTableSlot *result)
{
	bool		isnull;
	Datum		ctid = ExecGetJunkAttribute(plan_slot, modify->ctid_attno, &isnull);
	ItemPointer tid = (ItemPointer) DatumGetPointer(ctid);
	MemoryContext old;
	int			nvalues = new != NULL ? modify->ntargets + 1 : 1;
	const char **values;
	RemoteRequest *req;
	PGresult   *res;
	bool		written;

	if (isnull)
		elog(ERROR, "ctid is NULL");
	if (!first_write_of(modify, tid))
		return false;
	before_first_write(modify);
	MemoryContextReset(modify->row_context);
	old = MemoryContextSwitchTo(modify->row_context);
	values = palloc(nvalues * sizeof(char *));
	values[0] = psprintf("(%u,%u)", ItemPointerGetBlockNumberNoCheck(tid),
						 ItemPointerGetOffsetNumberNoCheck(tid));
	if (new != NULL)
		(void) residency_modify_texts(modify, new, values + 1);
	MemoryContextSwitchTo(old);

	if (modify->mode != WRITE_AWAITED)
	{
		residency_modify_send(modify, row_sql(modify), nvalues, values, REMOTE_NAMED, 1);
		return true;
	}
	res = send_and_wait(modify, row_sql(modify), nvalues, values, &req);
	written = PQntuples(res) > 0;
	if (written)
		take_returned(modify, res, result);
	residency_remote_release(req);
	return written;
}

/* updates one row; the row as it is now, or NULL if it was not updated */
TupleTableSlot *
residency_modify_update(FdwModify *modify, TupleTableSlot *slot, TupleTableSlot *plan_slot)
{
	return write_row(modify, plan_slot, slot, slot) ? slot : NULL;
}

/* deletes one row; a slot with the old row if something is to be returned, or NULL */
TupleTableSlot *
residency_modify_delete(FdwModify *modify, TupleTableSlot *slot, TupleTableSlot *plan_slot)
{
	if (!write_row(modify, plan_slot, NULL, slot))
		return NULL;
	if (modify->returning == NIL && AttributeNumberIsValid(modify->wholerow_attno))
	{
		bool		isnull;
		Datum		row = ExecGetJunkAttribute(plan_slot, modify->wholerow_attno, &isnull);

		if (!isnull)
		{
			ExecClearTuple(slot);
			ExecStoreHeapTupleDatum(row, slot);
		}
	}
	return slot;
}

