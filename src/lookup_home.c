/*
 * lookup_home.c
 *		What a region lookup reads here: homes in the directory, rows of this region.
 *
 * Both are read by index with the statement's own snapshot, so they agree: a key whose
 * home is this region and that has no row in the partition stored here has no row at all.
 *
 * The directory is read whatever the client's rights on it: nothing of it is shown.  Rights on
 * the rows were checked on the parent.  Both tables are opened when they are first needed,
 * and stay open until the node ends.
 */
#include "lookup_state.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* begins a scan of the index with this snapshot */
static void
probe_begin(LookupProbe *probe, int nkeys, Snapshot snapshot)
{
	probe->scan = compat_index_beginscan(probe->heap, probe->index, snapshot, nkeys);
}

/* opens a table with its index; columns: index column of each key */
static void
probe_open(LookupState *state, LookupProbe *probe, List *columns)
{
	MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);

	probe->heap = table_open(probe->relid, AccessShareLock);
	probe->index = index_open(probe->indexid, AccessShareLock);
	probe->keys = palloc0(state->nkeys * sizeof(ScanKeyData));
	for (int i = 0; i < state->nkeys; i++)
	{
		int			column = list_nth_int(columns, i);
		ScanKeyData *key = &probe->keys[column - 1];

		ScanKeyEntryInitialize(key, 0, column, BTEqualStrategyNumber, state->key_types[i],
							   state->key_collations[i], get_opcode(state->key_operators[i]), (Datum) 0);
		/* which key's value belongs here; the scan does not look at it */
		key->sk_argument = Int32GetDatum(i);
	}
	probe->slot = table_slot_create(probe->heap, NULL);
	probe_begin(probe, state->nkeys, state->css.ss.ps.state->es_snapshot);
	MemoryContextSwitchTo(old);
}

/* ends the scan of an index */
static void
probe_end_scan(LookupProbe *probe)
{
	ExecClearTuple(probe->slot);
	index_endscan(probe->scan);
	probe->scan = NULL;
}

/* closes a table, if it is open */
static void
probe_close(LookupProbe *probe)
{
	if (probe->heap == NULL)
		return;
	probe_end_scan(probe);
	ExecDropSingleTupleTableSlot(probe->slot);
	index_close(probe->index, NoLock);
	table_close(probe->heap, NoLock);
	probe->heap = NULL;
}

/* looks for a key; probe_next gives the rows */
static void
probe_key(LookupState *state, LookupProbe *probe, const LookupEntry *entry, List *columns)
{
	ScanKeyData keys[INDEX_MAX_KEYS];

	memcpy(keys, probe->keys, state->nkeys * sizeof(ScanKeyData));
	for (int i = 0; i < state->nkeys; i++)
		keys[list_nth_int(columns, i) - 1].sk_argument = entry->values[i];
	index_rescan(probe->scan, keys, state->nkeys, NULL, 0);
}

/* the next row of the key, in probe->slot */
static bool
probe_next(LookupProbe *probe)
{
	return index_getnext_slot(probe->scan, ForwardScanDirection, probe->slot);
}

/* a list of the plan */
static List *
private_list(LookupState *state, LookupPrivate which)
{
	return list_nth(castNode(CustomScan, state->css.ss.ps.plan)->custom_private, which);
}

/* reads directory and home with another snapshot from now on; NULL: the statement's own */
void
residency_home_snapshot(LookupState *state, Snapshot snapshot)
{
	LookupProbe *probes[] = {&state->directory, &state->home};

	for (int i = 0; i < lengthof(probes); i++)
	{
		if (probes[i]->heap == NULL)
		{
			/* opened here, or it would begin with the statement's */
			if (snapshot == NULL || !OidIsValid(probes[i]->relid))
				continue;
			probe_open(state, probes[i], private_list(state, i == 0 ? LookupDirectoryColumns : LookupHomeColumns));
		}
		probe_end_scan(probes[i]);
		probe_begin(probes[i], state->nkeys,
					snapshot != NULL ? snapshot : state->css.ss.ps.state->es_snapshot);
	}
}

/* the target that a region's name stands for, -1 if it is pruned or unknown */
static int
target_of(LookupState *state, char *region)
{
	if (state->region_padded)
	{
		int			length = strlen(region);

		while (length > 0 && region[length - 1] == ' ')
			region[--length] = '\0';
	}
	/* the local one is the last: look there first */
	for (int i = state->ntargets - 1; i >= 0; i--)
	{
		if (strcmp(state->targets[i].region, region) == 0)
			return i;
	}
	return -1;
}

/* the target where the directory says that a key's rows are; -1 if nowhere that matters */
int
residency_home_of(LookupState *state, LookupEntry *entry)
{
	LookupProbe *probe = &state->directory;
	List	   *columns = private_list(state, LookupDirectoryColumns);
	int			target = -1;

	if (probe->heap == NULL)
	{
		Oid			type;
		Oid			function;
		bool		varlena;

		probe_open(state, probe, columns);
		type = getBaseType(TupleDescAttr(RelationGetDescr(probe->heap), state->directory_region - 1)->atttypid);
		getTypeOutputInfo(type, &function, &varlena);
		fmgr_info_cxt(function, &state->region_output, state->css.ss.ps.state->es_query_cxt);
		state->region_padded = type == BPCHAROID;
	}
	probe_key(state, probe, entry, columns);
	if (probe_next(probe))
	{
		bool		isnull;
		Datum		region = slot_getattr(probe->slot, state->directory_region, &isnull);

		if (!isnull)
		{
			MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);

			target = target_of(state, OutputFunctionCall(&state->region_output, region));
			MemoryContextSwitchTo(old);
		}
	}
	ExecClearTuple(probe->slot);
	return target;
}

/* keeps the row in probe->slot, already in the scan tuple, with its key */
static void
keep_row(LookupState *state, LookupBatch *batch, LookupEntry *entry)
{
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;
	LookupRow  *row = residency_batch_row(batch, entry);
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	row->values = palloc((state->nresident + 1) * sizeof(Datum));
	row->nulls = palloc((state->nresident + 1) * sizeof(bool));
	for (int i = 0; i < state->nresident; i++)
	{
		Datum		value = slot->tts_values[state->nouter + i];

		row->nulls[i] = slot->tts_isnull[state->nouter + i];
		row->values[i] = row->nulls[i] ? (Datum) 0 :
			datumCopy(value, state->stored_byval[i], state->stored_len[i]);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Reads the rows of a key that are stored here, and keeps those that pass the conditions
 * which other regions check for theirs.  Sets entry->held if there is any row.
 */
void
residency_home_read(LookupState *state, LookupBatch *batch, LookupEntry *entry)
{
	LookupProbe *probe = &state->home;
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	TupleTableSlot *scan_slot = state->css.ss.ss_ScanTupleSlot;
	List	   *columns = private_list(state, LookupHomeColumns);
	MemoryContext old;
	Datum	   *values = NULL;
	bool	   *nulls = NULL;

	if (probe->heap == NULL)
		probe_open(state, probe, columns);
	probe_key(state, probe, entry, columns);
	while (probe_next(probe))
	{
		entry->held = state->local;
		if (values == NULL)
		{
			values = palloc((state->nresident + 1) * sizeof(Datum));
			nulls = palloc((state->nresident + 1) * sizeof(bool));
		}
		old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
		residency_row_from_slot(state, probe->slot, false, state->local, values, nulls);
		MemoryContextSwitchTo(old);
		residency_lookup_load(state, values, nulls);
		econtext->ecxt_scantuple = scan_slot;
		if (state->shipped == NULL || ExecQual(state->shipped, econtext))
			keep_row(state, batch, entry);
		CHECK_FOR_INTERRUPTS();
	}
	ExecClearTuple(probe->slot);
	if (values != NULL)
	{
		pfree(values);
		pfree(nulls);
	}
}

/* closes what is open */
void
residency_home_close(LookupState *state)
{
	probe_close(&state->directory);
	probe_close(&state->home);
}
