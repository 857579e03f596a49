/*
 * lookup_keys.c
 *		The keys of a region lookup: their types, and for a scan their values.
 *
 * A scan's keys are expressions, each a value or an array.  They are evaluated once, before the
 * first batch; the product of the arrays comes out batch by batch.
 */
#include "lookup_state.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

/* functions and types of the keys; their values come later */
void
residency_keys_init(LookupState *state, CustomScan *plan)
{
	List	   *private = plan->custom_private;
	int			n = list_length(list_nth(private, LookupKeyOperators));

	state->nkeys = n;
	state->key_states = ExecInitExprList(list_nth(plan->custom_exprs, LookupKeyValues), &state->css.ss.ps);
	state->key_arrays = list_nth(private, LookupKeyArrays);
	state->key_operators = palloc(n * sizeof(Oid));
	state->key_types = palloc(n * sizeof(Oid));
	state->key_collations = palloc(n * sizeof(Oid));
	state->key_len = palloc(n * sizeof(int16));
	state->key_byval = palloc(n * sizeof(bool));
	state->key_hash = palloc0(n * sizeof(FmgrInfo));
	state->key_equal = palloc0(n * sizeof(FmgrInfo));
	state->key_values = palloc0(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		Oid			type = list_nth_oid(list_nth(private, LookupKeyTypes), i);
		TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_HASH_PROC_FINFO | TYPECACHE_EQ_OPR_FINFO);

		state->key_operators[i] = list_nth_oid(list_nth(private, LookupKeyOperators), i);
		state->key_types[i] = type;
		state->key_collations[i] = list_nth_oid(list_nth(private, LookupKeyCollations), i);
		state->key_len[i] = entry->typlen;
		state->key_byval[i] = entry->typbyval;
		fmgr_info_copy(&state->key_hash[i], &entry->hash_proc_finfo, CurrentMemoryContext);
		fmgr_info_copy(&state->key_equal[i], &entry->eq_opr_finfo, CurrentMemoryContext);
	}
}

/* elements of one key column of a scan, NULLs left out */
typedef struct KeyElements
{
	Datum	   *values;
	int			n;
	int			at;
} KeyElements;

/*
 * Leaves each value of one key column only once.  A batch would do so by itself, but the same
 * key in two batches would be looked up, and its rows come out, twice.
 */
static void
remove_duplicates(LookupState *state, int column, KeyElements *elements)
{
	Oid			collation = state->key_collations[column];
	uint32		size = 16;
	int		   *table;
	int			n = 0;

	if (elements->n < 2)
		return;
	while (size < 2 * (uint32) elements->n)
		size *= 2;
	table = MemoryContextAllocHuge(CurrentMemoryContext, size * sizeof(int));
	memset(table, -1, size * sizeof(int));
	for (int i = 0; i < elements->n; i++)
	{
		Datum		value = elements->values[i];
		uint32		slot = DatumGetUInt32(FunctionCall1Coll(&state->key_hash[column], collation, value));

		for (slot &= size - 1; table[slot] >= 0; slot = (slot + 1) & (size - 1))
		{
			if (DatumGetBool(FunctionCall2Coll(&state->key_equal[column], collation,
											   elements->values[table[slot]], value)))
				break;
		}
		if (table[slot] >= 0)
			continue;
		table[slot] = n;
		elements->values[n++] = value;
	}
	pfree(table);
	elements->n = n;
}

/*
 * Evaluates the keys of a scan; "arrays" is set to them, NIL if there is none.  Their memory is
 * used again by each rescan, of which a nested loop makes one for each outer row.
 */
static void
evaluate_scan_keys(LookupState *state)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	MemoryContext old;
	ListCell   *lc;

	if (state->arrays_context == NULL)
		state->arrays_context = AllocSetContextCreate(state->css.ss.ps.state->es_query_cxt,
													  "residency lookup keys", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(state->arrays_context);
	old = MemoryContextSwitchTo(state->arrays_context);
	state->arrays = NIL;
	foreach(lc, state->key_states)
	{
		int			i = foreach_current_index(lc);
		KeyElements *elements = palloc0(sizeof(KeyElements));
		bool		isnull;
		Datum		value = ExecEvalExprSwitchContext((ExprState *) lfirst(lc), econtext, &isnull);

		state->arrays = lappend(state->arrays, elements);
		if (isnull)
			continue;
		if (list_nth_int(state->key_arrays, i))
		{
			ArrayType  *array = DatumGetArrayTypeP(value);
			bool	   *nulls;
			int			n;

			deconstruct_array(array, state->key_types[i], state->key_len[i], state->key_byval[i],
							  lookup_type_cache(state->key_types[i], 0)->typalign,
							  &elements->values, &nulls, &n);
			for (int j = 0; j < n; j++)
			{
				if (!nulls[j])
					elements->values[elements->n++] = datumCopy(elements->values[j], state->key_byval[i],
																state->key_len[i]);
			}
			remove_duplicates(state, i, elements);
		}
		else
		{
			elements->values = palloc(sizeof(Datum));
			elements->values[0] = datumCopy(value, state->key_byval[i], state->key_len[i]);
			elements->n = 1;
		}
	}
	MemoryContextSwitchTo(old);
}

/* moves to the next combination of key values; false behind the last one */
static bool
next_combination(LookupState *state)
{
	ListCell   *lc;

	foreach(lc, state->arrays)
	{
		KeyElements *elements = lfirst(lc);

		if (++elements->at < elements->n)
			return true;
		elements->at = 0;
	}
	return false;
}

/* takes the next keys of a scan into the batch, each once, as one outer row */
void
residency_keys_fill(LookupState *state, LookupBatch *batch, int max_rows)
{
	ListCell   *lc;

	if (!state->started && state->nbatches == 0)
	{
		evaluate_scan_keys(state);
		foreach(lc, state->arrays)
		{
			if (((KeyElements *) lfirst(lc))->n == 0)
				state->exhausted = true;
		}
	}
	while (!state->exhausted && batch->nouters < max_rows)
	{
		int			entries = batch->nentries;
		int			entry;

		foreach(lc, state->arrays)
		{
			KeyElements *elements = lfirst(lc);

			state->key_values[foreach_current_index(lc)] = elements->values[elements->at];
		}
		entry = residency_batch_entry(state, batch, state->key_values);
		if (batch->nentries > entries)
			residency_batch_outer(batch, NULL, entry);
		state->exhausted = !next_combination(state);
		CHECK_FOR_INTERRUPTS();
	}
}
