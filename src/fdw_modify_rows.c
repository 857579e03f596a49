/*
 * fdw_modify_rows.c
 *		Sends single rows of INSERT, UPDATE and DELETE to their home.
 *
 * A write is "certain" if nothing at the home can make it touch another number of
 * rows than the gateway assumes: no BEFORE ROW trigger, no rule, no ON CONFLICT, and, for
 * UPDATE and DELETE, the row was locked when it was fetched.  Certain writes are deferred:
 * nobody waits for them, and a count other than expected is an error at the latest when
 * the statement ends.  All others are awaited.
 *
 * Certain rows of an INSERT are collected and sent many at a time.  What is collected
 * leaves
 *		- when the batch is full,
 *		- when the producer is called, because something is about to be waited for,
 *		- when the modification ends.
 *
 * Invariant: rows are sent at the nest level of the statement that they belong to,
 * never inside a subtransaction that one of its functions has opened: what that
 * aborts must not take them along.  (The producer skips such buffers; their rows follow
 * when control is back.)
 */
#include "postgres.h"

#include "fdw_exec.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "regions.h"

/* limits of one INSERT: rows, parameters (of the protocol) and bytes */
#define BATCH_ROWS 1000
#define BATCH_PARAMS 65535
#define BATCH_BYTES (1024 * 1024)

struct FdwModify
{
	EState	   *estate;
	Relation	rel;
	Oid			serverid;
	Oid			userid;
	CmdType		operation;
	List	   *targets;		/* attnums sent */
	int			ntargets;
	List	   *returning;		/* attnums to ask back for, NIL if nothing is */
	bool		do_nothing;
	bool		certain;
	int			flags;			/* of requests */
	FdwOutput  *output;
	FdwInput   *input;			/* returning != NIL */
	bool		wrote;			/* something was sent, or is held */
	MemoryContext row_context;	/* texts of a row that is sent at once */

	/* the region column */
	AttrNumber	region_attno;	/* InvalidAttrNumber: not a partition of a resident table */
	char	   *region;			/* the partition's own */

	/* rows held back; the buffer is in the list while there are any */
	dlist_node	link;
	bool		linked;
	int			nest_level;		/* of the statement */
	MemoryContext buffer_context;
	const char **values;		/* ntargets per row */
	int			max_values;		/* allocated */
	int			nrows;
	int			max_rows;
	Size		bytes;
	char	   *full_sql;		/* for max_rows rows */

	/* UPDATE, DELETE */
	AttrNumber	ctid_attno;		/* junk attributes of the plan's rows */
	AttrNumber	wholerow_attno;
	char	   *row_sql;
	HTAB	   *seen;			/* ctids that this statement has written */

	MemoryContextCallback reset;
};

static dlist_head open_buffers = DLIST_STATIC_INIT(open_buffers);

/* takes a buffer off the list; its rows are sent, or nobody wants them any more */
static void
unlink_buffer(void *arg)
{
	FdwModify  *modify = (FdwModify *) arg;

	if (modify->linked)
		dlist_delete(&modify->link);
	modify->linked = false;
}

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
	Oid			parent;
	AttrNumber	attno;

	if (rule == NULL)
		return;
	parent = rule->relid;
	attno = rule->region_attno;
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

/* can a write of this kind touch no other number of rows than it says? */
static bool
is_certain(Relation rel, CmdType operation, bool do_nothing)
{
	TriggerDesc *triggers = rel->trigdesc;

	if (do_nothing || rel->rd_rules != NULL)
		return false;
	if (triggers == NULL)
		return true;
	switch (operation)
	{
		case CMD_INSERT:
			return !triggers->trig_insert_before_row && !triggers->trig_insert_instead_row;
		case CMD_UPDATE:
			return !triggers->trig_update_before_row && !triggers->trig_update_instead_row;
		default:
			return !triggers->trig_delete_before_row && !triggers->trig_delete_instead_row;
	}
}

/*
 * Prepares to write rows of a relation, in the query's memory.  "returning" lists
 * the columns that RETURNING and checks of views look at; they are asked back for only if
 * the home may have changed them, or if wants_row says that only the home knows them.
 */
FdwModify *
residency_modify_make(EState *estate, ResultRelInfo *rri, CmdType operation, List *targets,
					  List *returning, bool do_nothing, bool wants_row, List *subplan_tlist)
{
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	FdwModify  *modify = palloc0(sizeof(FdwModify));
	Relation	rel = rri->ri_RelationDesc;

	modify->estate = estate;
	modify->rel = rel;
	modify->serverid = GetForeignTable(RelationGetRelid(rel))->serverid;
	modify->userid = write_userid(estate, rri);
	modify->operation = operation;
	modify->targets = targets;
	modify->ntargets = list_length(targets);
	modify->do_nothing = do_nothing;
	modify->certain = is_certain(rel, operation, do_nothing);
	modify->flags = REMOTE_WRITES;
	if (operation != CMD_INSERT)
	{
		modify->ctid_attno = ExecFindJunkAttributeInTlist(subplan_tlist, "ctid");
		if (!AttributeNumberIsValid(modify->ctid_attno))
			elog(ERROR, "could not find junk ctid column");
		modify->wholerow_attno = ExecFindJunkAttributeInTlist(subplan_tlist, "wholerow");
	}
	if (returning != NIL &&
		(!modify->certain || wants_row ||
		 (operation == CMD_DELETE && !AttributeNumberIsValid(modify->wholerow_attno))))
	{
		modify->certain = false;
		modify->returning = returning;
	}
	find_region_column(modify);
	make_converters(modify);
	modify->nest_level = GetCurrentTransactionNestLevel();
	modify->max_rows = Min(BATCH_ROWS, modify->ntargets > 0 ? BATCH_PARAMS / modify->ntargets : 1);
	modify->row_context = AllocSetContextCreate(estate->es_query_cxt, "residency row",
												ALLOCSET_SMALL_SIZES);
	modify->reset.func = unlink_buffer;
	modify->reset.arg = modify;
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &modify->reset);
	MemoryContextSwitchTo(old);
	return modify;
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
static Size
slot_texts(FdwModify *modify, TupleTableSlot *slot, const char **values)
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
static char *
insert_sql(FdwModify *modify, int nrows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	residency_deparse_insert(&buf, modify->rel, modify->targets, nrows, modify->do_nothing,
							 modify->returning);
	return buf.data;
}

/* same for the query's lifetime, for a full batch */
static char *
full_insert_sql(FdwModify *modify)
{
	if (modify->full_sql == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(modify->estate->es_query_cxt);

		modify->full_sql = insert_sql(modify, modify->max_rows);
		MemoryContextSwitchTo(old);
	}
	return modify->full_sql;
}

/* queues what a buffer holds; throws if the region cannot take it, the rows are lost then */
static void
flush_buffer(FdwModify *modify)
{
	int			nrows = modify->nrows;
	bool		full = nrows == modify->max_rows && nrows > 1;
	MemoryContext old;
	char	   *sql;

	unlink_buffer(modify);
	modify->nrows = 0;
	modify->bytes = 0;
	old = MemoryContextSwitchTo(modify->buffer_context);
	sql = full ? full_insert_sql(modify) : insert_sql(modify, nrows);
	MemoryContextSwitchTo(old);
	(void) residency_remote_send(residency_remote_region(modify->serverid), modify->userid, sql,
								 nrows * modify->ntargets, modify->values,
								 modify->flags | REMOTE_DEFERRED | (full ? REMOTE_NAMED : 0), nrows);
	modify->values = NULL;
	modify->max_values = 0;
	MemoryContextReset(modify->buffer_context);
}

/*
 * The producer of remote.h: queues the rows held for a region (all regions if NULL).
 * Buffers of an outer nest level keep theirs, see above.
 */
void
residency_modify_flush_all(RemoteRegion *region)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &open_buffers)
	{
		FdwModify  *modify = dlist_container(FdwModify, link, iter.cur);

		if (modify->nest_level == nest_level &&
			(region == NULL || residency_remote_serverid(region) == modify->serverid))
			flush_buffer(modify);
	}
}

/* adds a row to the buffer, and sends the buffer when it is full */
static void
buffer_row(FdwModify *modify, TupleTableSlot *slot)
{
	int			used = modify->nrows * modify->ntargets;
	MemoryContext old;

	if (modify->buffer_context == NULL)
		modify->buffer_context = AllocSetContextCreate(modify->estate->es_query_cxt,
													   "residency row buffer",
													   ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(modify->buffer_context);
	if (used + modify->ntargets > modify->max_values || modify->values == NULL)
	{
		modify->max_values = Max(modify->max_values * 4, Max(modify->ntargets * 8, 1));
		modify->values = modify->values == NULL ?
			palloc(modify->max_values * sizeof(char *)) :
			repalloc(modify->values, modify->max_values * sizeof(char *));
	}
	modify->bytes += slot_texts(modify, slot, modify->values + used);
	MemoryContextSwitchTo(old);
	modify->nrows++;
	if (!modify->linked)
		dlist_push_tail(&open_buffers, &modify->link);
	modify->linked = true;
	if (modify->nrows >= modify->max_rows || modify->bytes >= BATCH_BYTES)
		flush_buffer(modify);
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
			  int flags, RemoteRequest **req)
{
	*req = residency_remote_send(residency_remote_region(modify->serverid), modify->userid, sql,
								 nvalues, values, modify->flags | flags, -1);
	return residency_remote_wait(*req);
}

/*
 * Inserts one row.  Returns the row as it is now, or NULL if it was not inserted (ON
 * CONFLICT DO NOTHING, or a trigger at the home).
 */
TupleTableSlot *
residency_modify_insert(FdwModify *modify, TupleTableSlot *slot)
{
	int			nslots = 1;

	before_first_write(modify);
	if (modify->certain)
	{
		buffer_row(modify, slot);
		return slot;
	}
	residency_modify_insert_batch(modify, &slot, &nslots);
	return nslots > 0 ? slot : NULL;
}

/*
 * Inserts several rows and waits; sets *nslots to the number inserted.  If something
 * is asked back there is only one row, and its slot is changed to what was stored.
 */
void
residency_modify_insert_batch(FdwModify *modify, TupleTableSlot **slots, int *nslots)
{
	MemoryContext old;
	const char **values;
	RemoteRequest *req;
	PGresult   *res;
	char	   *sql;

	before_first_write(modify);
	if (modify->certain)
	{
		for (int i = 0; i < *nslots; i++)
			buffer_row(modify, slots[i]);
		return;
	}
	MemoryContextReset(modify->row_context);
	old = MemoryContextSwitchTo(modify->row_context);
	values = palloc(Max(*nslots * modify->ntargets, 1) * sizeof(char *));
	for (int i = 0; i < *nslots; i++)
		(void) slot_texts(modify, slots[i], values + i * modify->ntargets);
	sql = *nslots == modify->max_rows ? full_insert_sql(modify) : insert_sql(modify, *nslots);
	MemoryContextSwitchTo(old);

	res = send_and_wait(modify, sql, *nslots * modify->ntargets, values,
						*nslots == 1 || *nslots == modify->max_rows ? REMOTE_NAMED : 0, &req);
	if (modify->returning == NIL)
		*nslots = residency_remote_affected(res);
	else if (PQntuples(res) == 0)
		*nslots = 0;
	else
	{
		Assert(*nslots == 1);
		take_returned(modify, res, slots[0]);
	}
	residency_remote_release(req);
}

/* rows that core may hand over at once: our own buffer is better where it can be used */
int
residency_modify_batch_size(FdwModify *modify)
{
	return modify == NULL || modify->certain || modify->returning != NIL ? 1 : modify->max_rows;
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
	ItemPointer tid = (ItemPointer) DatumGetPointer(ExecGetJunkAttribute(plan_slot, modify->ctid_attno, &isnull));
	MemoryContext old;
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
	values = palloc((modify->ntargets + 1) * sizeof(char *));
	values[0] = psprintf("(%u,%u)", ItemPointerGetBlockNumberNoCheck(tid),
						 ItemPointerGetOffsetNumberNoCheck(tid));
	if (new != NULL)
		(void) slot_texts(modify, new, values + 1);
	MemoryContextSwitchTo(old);

	if (modify->certain)
	{
		(void) residency_remote_send(residency_remote_region(modify->serverid), modify->userid,
									 row_sql(modify), new ? modify->ntargets + 1 : 1, values,
									 modify->flags | REMOTE_DEFERRED | REMOTE_NAMED, 1);
		return true;
	}
	res = send_and_wait(modify, row_sql(modify), new ? modify->ntargets + 1 : 1, values,
						REMOTE_NAMED, &req);
	written = modify->returning != NIL ? PQntuples(res) > 0 : residency_remote_affected(res) > 0;
	if (written && modify->returning != NIL)
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

/* queues what is still held; the memory goes with the query's */
void
residency_modify_end(FdwModify *modify)
{
	if (modify->linked)
		flush_buffer(modify);
}
