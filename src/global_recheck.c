/*
 * global_recheck.c
 *		Foreign keys of a batch of changes that comes in several pieces.
 *
 * One statement at a gateway may write so many rows that they come in more than
 * one call of residency.apply().  A row of the first piece may reference one of
 * the last, and one that goes with the first be referenced by one that goes with the
 * last, so foreign keys cannot be checked at the end of each call as they are for a
 * whole batch.  The region remembers which rows it wrote, and runs the checks with the
 * last piece; of rows whose home is elsewhere, only those that nothing refers to them any
 * more.  Constraints that are left to the commit are not concerned, they wait anyway.
 *
 * Remembered rows are undone with the subtransaction that wrote them.
 */
#include "residency.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "global_internal.h"

/* one row that was written; an invalid position stands for no row */
typedef struct WrittenRow
{
	Oid			relid;
	int			level;			/* transaction nesting level that wrote it */
	bool		home;			/* its home is here */
	bool		deferred;		/* the client had deferred constraints */
	ItemPointerData old;
	ItemPointerData new;
} WrittenRow;

/* in TopTransactionContext, in the order of writing */
static WrittenRow *rows = NULL;
static int	nrows = 0;
static int	maxrows = 0;

/*
 * Remembers a row written for an unfinished batch; NULL: there was or is none.  "home"
 * says that it has its home here, "deferred" that the client has deferred constraints.
 */
void
residency_recheck_remember(Oid relid, bool home, bool deferred, ItemPointer old, ItemPointer new)
{
	WrittenRow *row;

	if (rows == NULL)
	{
		maxrows = 1024;
		rows = MemoryContextAlloc(TopTransactionContext, sizeof(WrittenRow) * maxrows);
	}
	else if (nrows == maxrows)
	{
		rows = repalloc_huge(rows, sizeof(WrittenRow) * maxrows * 2);
		maxrows *= 2;
	}
	row = &rows[nrows];
	row->relid = relid;
	row->home = home;
	row->deferred = deferred;
	row->level = GetCurrentTransactionNestLevel();
	ItemPointerSetInvalid(&row->old);
	ItemPointerSetInvalid(&row->new);
	if (old)
		row->old = *old;
	if (new)
		row->new = *new;
	nrows++;
}

/* Fetches a row version that this transaction wrote or overwrote; false for none. */
static bool
fetch_row(Relation rel, ItemPointer tid, TupleTableSlot *slot)
{
	if (!ItemPointerIsValid(tid))
		return false;
	if (!table_tuple_fetch_row_version(rel, tid, SnapshotAny, slot))
		elog(ERROR, "cannot find a row of table \"%s\" that was just written",
			 RelationGetRelationName(rel));
	return true;
}

/* Runs one foreign key trigger as AFTER trigger for a row. */
static void
run_check(Relation rel, Trigger *trigger, TriggerEvent event,
		  TupleTableSlot *old, TupleTableSlot *new)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	function;
	TriggerData data = {0};
	Trigger		copy = *trigger;

	copy.tgfoid = residency_trigger_function(trigger, false);
	fmgr_info(copy.tgfoid, &function);
	data.type = T_TriggerData;
	data.tg_event = event | TRIGGER_EVENT_ROW | TRIGGER_EVENT_AFTER;
	data.tg_relation = rel;
	data.tg_trigger = &copy;
	data.tg_trigslot = old ? old : new;
	data.tg_trigtuple = ExecFetchSlotHeapTuple(data.tg_trigslot, false, NULL);
	if (event == TRIGGER_EVENT_UPDATE)
	{
		data.tg_newslot = new;
		data.tg_newtuple = ExecFetchSlotHeapTuple(new, false, NULL);
	}
	InitFunctionCallInfoData(*fcinfo, &function, 0, InvalidOid, (Node *) &data, NULL);
	(void) FunctionCallInvoke(fcinfo);
}

/* Runs all waiting checks of one row. */
static void
check_row(Relation rel, WrittenRow *row, TupleTableSlot *old, TupleTableSlot *new)
{
	TriggerDesc *desc = rel->trigdesc;
	TriggerEvent event = TRIGGER_EVENT_UPDATE;
	int16		type = TRIGGER_TYPE_UPDATE;

	if (old == NULL)
	{
		event = TRIGGER_EVENT_INSERT;
		type = TRIGGER_TYPE_INSERT;
	}
	else if (new == NULL)
	{
		event = TRIGGER_EVENT_DELETE;
		type = TRIGGER_TYPE_DELETE;
	}
	for (int i = 0; desc && i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];

		if (!residency_trigger_waits(trigger, row->deferred) || !(trigger->tgtype & type))
			continue;
		if (!row->home && RI_FKey_trigger_type(trigger->tgfoid) != RI_TRIGGER_PK)
			continue;
		if (event == TRIGGER_EVENT_UPDATE)
		{
			bool		needed;

			if (RI_FKey_trigger_type(trigger->tgfoid) == RI_TRIGGER_PK)
				needed = RI_FKey_pk_upd_check_required(trigger, rel, old, new);
			else
				needed = RI_FKey_fk_upd_check_required(trigger, rel, old, new);
			if (!needed)
				continue;
		}
		run_check(rel, trigger, event, old, new);
	}
}

/*
 * Runs the checks of all rows remembered, with the last piece of a batch.  A row
 * that was written again meanwhile is passed over by the check functions, since
 * its later version is remembered as well.
 */
void
residency_recheck_all(void)
{
	Relation	rel = NULL;
	TupleTableSlot *old = NULL;
	TupleTableSlot *new = NULL;

	for (int i = 0; i < nrows; i++)
	{
		WrittenRow *row = &rows[i];
		bool		have_old;
		bool		have_new;

		CHECK_FOR_INTERRUPTS();
		if (rel == NULL || RelationGetRelid(rel) != row->relid)
		{
			if (rel)
			{
				ExecDropSingleTupleTableSlot(old);
				ExecDropSingleTupleTableSlot(new);
				table_close(rel, NoLock);
			}
			rel = table_open(row->relid, AccessShareLock);
			old = table_slot_create(rel, NULL);
			new = table_slot_create(rel, NULL);
		}
		have_old = fetch_row(rel, &row->old, old);
		have_new = fetch_row(rel, &row->new, new);
		check_row(rel, row, have_old ? old : NULL, have_new ? new : NULL);
	}
	if (rel)
	{
		ExecDropSingleTupleTableSlot(old);
		ExecDropSingleTupleTableSlot(new);
		table_close(rel, NoLock);
	}
	nrows = 0;
}

/* The array's memory went with the transaction. */
static void
transaction_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
	{
		rows = NULL;
		nrows = 0;
		maxrows = 0;
	}
}

/* Levels never decrease along the array, so both ends are found from its end. */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId mine,
					 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (nrows > 0 && rows[nrows - 1].level >= level)
			nrows--;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = nrows - 1; i >= 0 && rows[i].level >= level; i--)
			rows[i].level = level - 1;
	}
}

/* Called once per backend from residency_global_init. */
void
residency_recheck_init(void)
{
	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}
