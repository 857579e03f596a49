/*
 * fdw_modify_send.c
 *		Row buffers of INSERT and COPY, and the answers that writes still owe.
 *
 * Rows that are not awaited one by one are collected and sent many at a time, without
 * waiting between batches.  What is collected leaves
 *		- when the batch is full,
 *		- when something is about to be waited for (also the producer's call),
 *		- when the modification ends.
 *
 * Invariant: rows are sent at the nest level of the statement that they belong to,
 * never inside a subtransaction that one of its functions has opened: what that
 * aborts must not take them along.  (The producer skips such buffers; their rows follow
 * when control is back.)
 *
 * A statement must not see its own rows.  Scans without parameters have begun before
 * the first write (residency_start_before_write); others begin again and again, so the rows
 * of their own statement stay here as long as the buffer has room.
 */
#include "postgres.h"

#include "fdw_modify.h"

#include "access/xact.h"
#include "utils/memutils.h"

/* a batch is sent when it holds as many bytes */
#define BATCH_BYTES (1024 * 1024)

/* answers of counted writes that may be outstanding before some are awaited */
#define MAX_UNSETTLED 2000

static dlist_head open_buffers = DLIST_STATIC_INIT(open_buffers);
static dlist_head unsettled_writes = DLIST_STATIC_INIT(unsettled_writes);

/* query whose scan is being sent: its own rows are not in a hurry */
static EState *reading = NULL;

/* takes a buffer off the list; its rows are sent, or nobody wants them any more */
static void
unlink_buffer(FdwModify *modify)
{
	if (modify->linked)
		dlist_delete(&modify->link);
	modify->linked = false;
}

/* takes a modification off the list of those with unsettled writes */
static void
unlink_unsettled(FdwModify *modify)
{
	if (modify->unsettled_linked)
		dlist_delete(&modify->unsettled_link);
	modify->unsettled_linked = false;
	modify->nunsettled = 0;
}

/* the query's memory goes; after an error that may be all that ends the modification */
void
residency_modify_forget(void *arg)
{
	unlink_buffer((FdwModify *) arg);
	unlink_unsettled((FdwModify *) arg);
	residency_tally_release(((FdwModify *) arg)->tally);
}

/* what a modification has sent and got, if it is counted, else NULL; for EXPLAIN */
const RemoteTraffic *
residency_modify_traffic(FdwModify *modify)
{
	return modify != NULL && modify->tally != NULL ? &modify->tally->traffic : NULL;
}

/* text of the INSERT of a full batch, made once for the query */
static char *
full_sql(FdwModify *modify)
{
	if (modify->full_sql == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(modify->estate->es_query_cxt);

		modify->full_sql = residency_modify_insert_sql(modify, modify->max_rows);
		MemoryContextSwitchTo(old);
	}
	return modify->full_sql;
}

/* waits for the first n counted writes, and notes what they did not write */
static void
settle_some(FdwModify *modify, int n)
{
	for (int i = 0; i < n; i++)
	{
		Unsettled  *write = &modify->unsettled[i];
		int64		written = residency_remote_affected(residency_remote_wait(write->req));

		modify->missing += Max(write->rows - written, 0);
		residency_remote_release(write->req);
	}
	modify->nunsettled -= n;
	memmove(modify->unsettled, modify->unsettled + n, modify->nunsettled * sizeof(Unsettled));
}

/*
 * Queues a write that changes "rows" rows if it is certain, deferred or counted.
 * sql and values are copied.
 */
void
residency_modify_send(FdwModify *modify, const char *sql, int nvalues, const char **values,
					  int flags, int rows)
{
	RemoteRegion *region = residency_remote_region(modify->serverid);
	RemoteSubject about = {modify->table, rows, modify->tally};

	flags |= modify->flags;
	if (modify->mode == WRITE_DEFERRED)
	{
		(void) residency_remote_send_about(&about, region, modify->userid, sql, nvalues, values,
										   flags | REMOTE_DEFERRED, rows);
		return;
	}
	if (modify->unsettled == NULL)
		modify->unsettled = MemoryContextAlloc(modify->estate->es_query_cxt,
											   MAX_UNSETTLED * sizeof(Unsettled));
	if (modify->nunsettled >= MAX_UNSETTLED)
		settle_some(modify, MAX_UNSETTLED / 2);
	modify->unsettled[modify->nunsettled].req =
		residency_remote_send_about(&about, region, modify->userid, sql, nvalues, values, flags, -1);
	modify->unsettled[modify->nunsettled++].rows = rows;
	if (!modify->unsettled_linked)
		dlist_push_tail(&unsettled_writes, &modify->unsettled_link);
	modify->unsettled_linked = true;
}

/* queues what a buffer holds; throws if the region cannot take it, the rows are lost then */
static void
flush_buffer(FdwModify *modify)
{
	int			nrows = modify->nrows;
	bool		full = nrows == modify->max_rows && nrows > 1;
	const char **values = modify->values;
	MemoryContext old;
	char	   *sql;

	unlink_buffer(modify);
	if (nrows == 0)
		return;
	modify->nrows = 0;
	modify->bytes = 0;
	modify->values = NULL;
	modify->max_values = 0;
	old = MemoryContextSwitchTo(modify->buffer_context);
	sql = full ? full_sql(modify) : residency_modify_insert_sql(modify, nrows);
	MemoryContextSwitchTo(old);
	residency_modify_send(modify, sql, nrows * modify->ntargets, values, full ? REMOTE_NAMED : 0, nrows);
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

		if (modify->nest_level == nest_level && (reading == NULL || modify->estate != reading) &&
			(region == NULL || residency_remote_serverid(region) == modify->serverid))
			flush_buffer(modify);
	}
}

/*
 * Sets the query whose scan is being sent, NULL after it; returns the one before.
 */
EState *
residency_modify_reading(EState *estate)
{
	EState	   *before = reading;

	reading = estate;
	return before;
}

/*
 * A scan of this query is about to wait: what is held back travels meanwhile.
 */
void
residency_modify_flush_before_wait(EState *estate)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &open_buffers)
	{
		FdwModify  *modify = dlist_container(FdwModify, link, iter.cur);

		if (modify->nest_level == nest_level &&
			(modify->estate != estate || !residency_reads_again(estate, modify->serverid)))
			flush_buffer(modify);
	}
}

/* adds a row to the buffer, and sends the buffer when it is full */
void
residency_modify_buffer(FdwModify *modify, TupleTableSlot *slot)
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
	modify->bytes += residency_modify_texts(modify, slot, modify->values + used);
	MemoryContextSwitchTo(old);
	modify->nrows++;
	if (!modify->linked)
		dlist_push_tail(&open_buffers, &modify->link);
	modify->linked = true;
	if (modify->nrows >= modify->max_rows || modify->bytes >= BATCH_BYTES)
		flush_buffer(modify);
}

/* sends what is held back, and waits for counted writes; returns what they did not write */
static uint64
settle(FdwModify *modify)
{
	uint64		missing;

	if (modify->linked)
		flush_buffer(modify);
	settle_some(modify, modify->nunsettled);
	unlink_unsettled(modify);
	missing = modify->missing;
	modify->missing = 0;
	return missing;
}

/*
 * The executor's run of this query is over: awaits its counted writes, of all regions
 * side by side.  Returns by how much the executor's count of rows is too high.
 */
uint64
residency_modify_settle(EState *estate)
{
	uint64		missing = 0;
	dlist_mutable_iter iter;

	if (dlist_is_empty(&unsettled_writes) && dlist_is_empty(&open_buffers))
		return 0;
	/* everything is queued before anything is waited for */
	dlist_foreach_modify(iter, &open_buffers)
	{
		FdwModify  *modify = dlist_container(FdwModify, link, iter.cur);

		/* EXPLAIN prints what was sent before the modification ends */
		if (modify->estate == estate && (modify->mode == WRITE_COUNTED || modify->tally != NULL))
			flush_buffer(modify);
	}
	dlist_foreach_modify(iter, &unsettled_writes)
	{
		FdwModify  *modify = dlist_container(FdwModify, unsettled_link, iter.cur);
		uint64		n;

		if (modify->estate != estate)
			continue;
		n = settle(modify);
		if (modify->counts)
			missing += n;
	}
	return missing;
}

/*
 * Ends the modification: queues what is still held, and awaits counted writes.
 * Returns the number of rows that the executor was told of and that were not written.
 * The memory goes with the query's.
 */
uint64
residency_modify_end(FdwModify *modify)
{
	if (modify->linked)
		flush_buffer(modify);
	return modify->unsettled_linked ? settle(modify) : 0;
}
