/*
 * global_probe.c
 *		Finds a row of a global table by its primary key, without waiting for anybody.
 *
 * Catch-up yields to writers at both ends, so it must know a row that somebody is
 * writing, or has in a prepared transaction, from one that is there and from none.
 *
 * A snapshot that sees uncommitted rows cannot tell by itself that there is none: while
 * a row is updated it may see neither version.  So a snapshot of what is committed has
 * the first word, and only what it does not see is looked for among the uncommitted.
 */
#include "residency.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "executor/tuptable.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "global_backlog.h"
#include "regions.h"

/*
 * Makes a probe for an open global table, in the current memory context.  Throws if the
 * table has no primary key; the caller has checked that it is declared.
 */
RowProbe *
residency_probe_open(Relation rel)
{
	RowProbe   *probe = palloc0(sizeof(RowProbe));
	const TableRule *rule = residency_table_rule(RelationGetRelid(rel));
	Oid			function;
	bool		varlena;

	probe->rel = rel;
	probe->region_attno = rule->region_attno;
	probe->index = index_open(compat_primary_key_index(rel), AccessShareLock);
	probe->nkeys = IndexRelationGetNumberOfKeyAttributes(probe->index);
	for (int k = 0; k < probe->nkeys; k++)
	{
		Oid			type = probe->index->rd_opcintype[k];
		Oid			equal = get_opfamily_member(probe->index->rd_opfamily[k], type, type,
												BTEqualStrategyNumber);

		probe->keys[k] = probe->index->rd_index->indkey.values[k];
		ScanKeyEntryInitialize(&probe->scan_keys[k], 0, k + 1, BTEqualStrategyNumber,
							   InvalidOid, probe->index->rd_indcollation[k],
							   get_opcode(equal), (Datum) 0);
	}
	probe->text = residency_text_make(RelationGetDescr(rel), probe->nkeys, probe->keys);
	probe->slot = table_slot_create(rel, NULL);
	probe->values = palloc0(sizeof(Datum) * RelationGetDescr(rel)->natts);
	probe->nulls = palloc0(sizeof(bool) * RelationGetDescr(rel)->natts);
	getTypeOutputInfo(TupleDescAttr(RelationGetDescr(rel), probe->region_attno - 1)->atttypid,
					  &function, &varlena);
	fmgr_info(function, &probe->region_out);
	return probe;
}

/* Closes it; the table and all locks are the caller's. */
void
residency_probe_close(RowProbe *probe)
{
	ExecDropSingleTupleTableSlot(probe->slot);
	index_close(probe->index, NoLock);
}

/* Looks for the key with one snapshot; the row, if any, is in probe->slot. */
static bool
scan(RowProbe *probe, Snapshot snapshot)
{
	IndexScanDesc desc = compat_index_beginscan(probe->rel, probe->index, snapshot, probe->nkeys);
	bool		found;

	index_rescan(desc, probe->scan_keys, probe->nkeys, NULL, 0);
	found = index_getnext_slot(desc, ForwardScanDirection, probe->slot);
	if (found)
		ExecMaterializeSlot(probe->slot);
	index_endscan(desc);
	return found;
}

/* True if a transaction that is not over has made, changed or locked a row with the key. */
static bool
is_being_written(RowProbe *probe)
{
	SnapshotData dirty;

	InitDirtySnapshot(dirty);
	return scan(probe, &dirty);
}

/*
 * Looks for the row whose key is in probe->values.  With "lock" a row that is found is
 * locked against writers until the transaction ends; that it was locked by another one is
 * told as PROBE_BUSY.
 */
ProbeResult
residency_probe_row(RowProbe *probe, bool lock)
{
	Snapshot	snapshot = GetLatestSnapshot();
	ProbeResult result = PROBE_ROW;
	TM_FailureData failure;

	for (int k = 0; k < probe->nkeys; k++)
		probe->scan_keys[k].sk_argument = probe->values[probe->keys[k] - 1];
	ExecClearTuple(probe->slot);
	PushActiveSnapshot(snapshot);
	if (!scan(probe, GetActiveSnapshot()))
		result = is_being_written(probe) ? PROBE_BUSY : PROBE_NONE;
	else if (lock &&
			 table_tuple_lock(probe->rel, &probe->slot->tts_tid, GetActiveSnapshot(),
							  probe->slot, GetCurrentCommandId(false),
							  LockTupleNoKeyExclusive, LockWaitSkip, 0, &failure) != TM_Ok)
		result = PROBE_BUSY;
	PopActiveSnapshot();
	if (result == PROBE_ROW)
		slot_getallattrs(probe->slot);
	return result;
}

/* Home of the row in probe->slot, palloc'd; "" if the row names none. */
char *
residency_probe_home(RowProbe *probe)
{
	if (probe->slot->tts_isnull[probe->region_attno - 1])
		return pstrdup("");
	return OutputFunctionCall(&probe->region_out, probe->slot->tts_values[probe->region_attno - 1]);
}

/* A row as json, in the current memory context. */
char *
residency_row_as_json(TupleDesc desc, Datum *values, bool *nulls)
{
	HeapTuple	tuple = heap_form_tuple(desc, values, nulls);

	return TextDatumGetCString(DirectFunctionCall1(row_to_json,
												   heap_copy_tuple_as_datum(tuple, desc)));
}
