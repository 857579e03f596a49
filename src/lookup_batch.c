/*
 * lookup_batch.c
 *		One batch of a region lookup: outer rows, their distinct keys, the rows found.
 *
 * A key that several outer rows share is asked for once.  Everything lives in the batch's
 * own memory context, but for rows of other regions, which stay in the answers until they
 * are read.  Arrays grow, so entries and rows refer to each other by number.
 */
#include "lookup_state.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#define FIRST_SIZE 8

/* an empty batch, in the query's memory */
LookupBatch *
residency_batch_make(LookupState *state)
{
	MemoryContext context = AllocSetContextCreate(state->css.ss.ps.state->es_query_cxt,
												  "residency lookup batch", ALLOCSET_DEFAULT_SIZES);
	LookupBatch *batch = MemoryContextAllocZero(context, sizeof(LookupBatch));

	batch->context = context;
	return batch;
}

/* frees a batch; its requests are released, answered or not */
void
residency_batch_free(LookupBatch *batch)
{
	for (int i = 0; i < batch->nanswers; i++)
	{
		residency_remote_release(batch->answers[i].req);
		residency_remote_release(batch->answers[i].missing_req);
	}
	MemoryContextDelete(batch->context);
}

/* makes room for one more element of an array that has "n" of "max" in use */
static void *
grow(LookupBatch *batch, void *array, int n, int *max, Size size)
{
	if (n < *max)
		return array;
	*max = Max(*max * 2, FIRST_SIZE);
	if (array == NULL)
		return MemoryContextAlloc(batch->context, *max * size);
	return repalloc_huge(array, *max * size);
}

/* hash of a key */
static uint32
hash_key(LookupState *state, const Datum *values)
{
	uint32		hash = 0;

	for (int i = 0; i < state->nkeys; i++)
		hash = hash_combine(hash, DatumGetUInt32(FunctionCall1Coll(&state->key_hash[i],
																   state->key_collations[i], values[i])));
	return hash;
}

/* are two keys equal? */
static bool
same_key(LookupState *state, const Datum *a, const Datum *b)
{
	for (int i = 0; i < state->nkeys; i++)
	{
		if (!DatumGetBool(FunctionCall2Coll(&state->key_equal[i], state->key_collations[i], a[i], b[i])))
			return false;
	}
	return true;
}

/* makes the hash table anew, with at least as many buckets as entries */
static void
rehash(LookupBatch *batch)
{
	batch->nbuckets = Max(batch->nbuckets * 4, 2 * FIRST_SIZE);
	if (batch->buckets != NULL)
		pfree(batch->buckets);
	batch->buckets = MemoryContextAlloc(batch->context, batch->nbuckets * sizeof(int));
	memset(batch->buckets, -1, batch->nbuckets * sizeof(int));
	for (int i = 0; i < batch->nentries; i++)
	{
		int		   *bucket = &batch->buckets[batch->entries[i].hash & (batch->nbuckets - 1)];

		batch->entries[i].next = *bucket;
		*bucket = i;
	}
}

/* number of the entry for a key without NULLs, which is copied if it is new; always new for a write */
int
residency_batch_entry(LookupState *state, LookupBatch *batch, const Datum *values)
{
	uint32		hash = hash_key(state, values);
	LookupEntry *entry;
	MemoryContext old;
	bool		same;
	int		   *bucket;

	if (batch->nentries >= batch->nbuckets)
		rehash(batch);
	/* for a write each row of the key side has values of its own */
	same = state->operation == CMD_SELECT;
	bucket = &batch->buckets[hash & (batch->nbuckets - 1)];
	for (int i = same ? *bucket : -1; i >= 0; i = batch->entries[i].next)
	{
		if (batch->entries[i].hash == hash && same_key(state, batch->entries[i].values, values))
			return i;
	}

	batch->entries = grow(batch, batch->entries, batch->nentries, &batch->max_entries, sizeof(LookupEntry));
	entry = &batch->entries[batch->nentries];
	old = MemoryContextSwitchTo(batch->context);
	entry->values = palloc(state->nkeys * sizeof(Datum));
	for (int i = 0; i < state->nkeys; i++)
		entry->values[i] = datumCopy(values[i], state->key_byval[i], state->key_len[i]);
	MemoryContextSwitchTo(old);
	entry->hash = hash;
	entry->asked = 0;
	entry->texts = NULL;
	entry->held = entry->first = entry->last = -1;
	entry->next = *bucket;
	*bucket = batch->nentries;
	return batch->nentries++;
}

/* adds an outer row; the tuple is in the batch's memory */
void
residency_batch_outer(LookupBatch *batch, MinimalTuple tuple, int entry)
{
	LookupOuter *outer;

	batch->outers = grow(batch, batch->outers, batch->nouters, &batch->max_outers, sizeof(LookupOuter));
	outer = &batch->outers[batch->nouters++];
	outer->tuple = tuple;
	outer->entry = entry;
}

/* adds a found row to its key, behind the others; valid until the next is added */
LookupRow *
residency_batch_row(LookupBatch *batch, LookupEntry *entry)
{
	LookupRow  *row;

	batch->rows = grow(batch, batch->rows, batch->nrows, &batch->max_rows, sizeof(LookupRow));
	row = &batch->rows[batch->nrows];
	memset(row, 0, sizeof(*row));
	row->next = row->answer = -1;
	if (entry->last >= 0)
		batch->rows[entry->last].next = batch->nrows;
	else
		entry->first = batch->nrows;
	entry->last = batch->nrows++;
	return row;
}

/* adds a question, nothing of it set yet; valid until the next is added */
LookupAnswer *
residency_batch_answer(LookupBatch *batch)
{
	LookupAnswer *answer;

	batch->answers = grow(batch, batch->answers, batch->nanswers, &batch->max_answers, sizeof(LookupAnswer));
	answer = &batch->answers[batch->nanswers++];
	memset(answer, 0, sizeof(*answer));
	return answer;
}
