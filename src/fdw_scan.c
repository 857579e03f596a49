/*
 * fdw_scan.c
 *		Runs a scan of rows that live in another region.
 *
 * A scan that is known to be small is one SELECT.  Any other is a cursor: DECLARE and the
 * first FETCH travel together, so it costs no more round trips, and the rows come in
 * batches of which at most two are in memory: the next one is asked for when half
 * of the current one has been read, so reading and travelling overlap.  Its cursor lets
 * two scans share a connection, and lets a scan be abandoned for nothing.
 *
 * Rows are converted one at a time, into the executor's memory for one row.  The
 * PGresult belongs to its request and goes with it.
 *
 * Invariants: "current" is the request whose rows are read (result in "res") or, while
 * res is NULL, will be read next; "ahead" is the one after it, if it was sent already.
 */
#include "postgres.h"

#include "fdw_exec.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* rows per FETCH, whatever their width */
#define FETCH_MIN 100
#define FETCH_MAX 20000

/* rows of the first FETCH if they are not wide, so that common scans need no second */
#define FETCH_FIRST 10000
#define NARROW_ROW 200			/* bytes */

/*
 * Cursors of this backend are numbered through: a region's own numbers begin again with
 * each remote transaction, and a scan is numbered before that has begun.
 */
static unsigned int last_cursor = 0;

typedef struct FdwScan
{
	FdwNode		node;			/* must be first */
	const char *sql;
	bool		small;			/* no cursor */
	int			width;			/* bytes per row, estimated, later measured */
	FdwInput   *input;

	unsigned int cursor;		/* number of the open cursor, 0 if there is none */
	PGresult   *res;			/* answer to "current", NULL if not awaited yet */
	int			row;			/* next row of res */
	int			nrows;
	int			asked;			/* rows asked for by "current" */
	int			asked_ahead;	/* ... by "ahead" */
	int			batches;		/* received since the scan was sent */
	bool		exhausted;		/* there is nothing after "current" */
	int			flags;			/* of the request that begins it */
	bool		needed;			/* cannot be left out */
	bool		left_out;		/* the statement reads without this region */
} FdwScan;

/* rows to ask for in one FETCH */
static int
fetch_rows(FdwScan *scan, bool first)
{
	int64		rows = residency_fetch_bytes * INT64CONST(1024) / Max(scan->width, 1);

	if (first && scan->width <= NARROW_ROW)
		rows = Max(rows, FETCH_FIRST);
	return Min(Max(rows, FETCH_MIN), FETCH_MAX);
}

/* queues a FETCH on the open cursor */
static RemoteRequest *
send_fetch(FdwScan *scan, int rows)
{
	char		sql[64];

	snprintf(sql, sizeof(sql), "FETCH FORWARD %d FROM scan%u", rows, scan->cursor);
	return residency_node_send(&scan->node, sql, 0, 0);
}

/*
 * Queues a CLOSE that nobody waits for, unless the cursor went with its savepoint
 * or transaction.
 */
static void
close_cursor(FdwScan *scan)
{
	char		sql[32];

	if (scan->cursor != 0 && !scan->node.gone && IsTransactionState())
	{
		snprintf(sql, sizeof(sql), "CLOSE scan%u", scan->cursor);
		residency_remote_release(residency_node_send(&scan->node, sql, 0, 0));
	}
	scan->cursor = 0;
}

/* forgets all rows and requests of the last start */
static void
drop_rows(FdwScan *scan)
{
	residency_node_release(&scan->node);
	close_cursor(scan);
	scan->res = NULL;
	scan->row = scan->nrows = 0;
	scan->batches = 0;
	scan->exhausted = false;
}

/* are the rows of the last start still in memory, from the first one on? */
static bool
can_rewind(FdwScan *scan)
{
	return scan->node.current != NULL && scan->batches <= 1 &&
		(!scan->node.gone || (scan->res != NULL && scan->exhausted));
}

/*
 * FdwNodeStart of scans.  After a rescan with the same parameters the rows that are in
 * memory are read again instead.
 */
static void
start_scan(FdwNode *node)
{
	FdwScan    *scan = (FdwScan *) node;
	bool		same;
	char	   *sql;

	scan->left_out = !scan->needed &&
		residency_leaves_out(node->state->ss.ps.state, node->serverid);
	if (scan->left_out)
	{
		node->started = true;
		return;
	}
	same = residency_node_evaluate(node);
	node->started = true;
	if (same && can_rewind(scan))
	{
		scan->row = 0;
		return;
	}
	drop_rows(scan);
	residency_node_begin(node);
	if (scan->small)
	{
		node->current = residency_node_send(node, scan->sql, node->nparams, scan->flags);
		return;
	}
	scan->cursor = ++last_cursor;
	sql = psprintf("DECLARE scan%u NO SCROLL CURSOR FOR %s", scan->cursor, scan->sql);
	node->declare = residency_node_send(node, sql, node->nparams, scan->flags);
	scan->asked = fetch_rows(scan, true);
	node->current = send_fetch(scan, scan->asked);
	pfree(sql);
}

/* asks for the batch after the current one; does not wait */
static void
fetch_ahead(FdwScan *scan)
{
	if (scan->node.gone)
		return;
	scan->asked_ahead = fetch_rows(scan, false);
	scan->node.ahead = send_fetch(scan, scan->asked_ahead);
	residency_remote_flush();
}

/* takes the width of the rows received as the better estimate */
static void
measure_width(FdwScan *scan)
{
	int			sample = Min(scan->nrows, 100);
	int			columns = PQnfields(scan->res);
	int64		bytes = 0;

	if (sample == 0)
		return;
	for (int row = 0; row < sample; row++)
		for (int column = 0; column < columns; column++)
			bytes += PQgetlength(scan->res, row, column);
	scan->width = Max(bytes / sample, 1);
}

/*
 * Waits for the next batch.  Returns false at the end of the scan, and then leaves the
 * last batch in place, for a rescan.
 */
static bool
next_batch(FdwScan *scan)
{
	FdwNode    *node = &scan->node;

	if (scan->res != NULL)
	{
		if (scan->exhausted)
			return false;
		if (node->ahead == NULL)
			fetch_ahead(scan);
		if (node->ahead != NULL)
		{
			residency_remote_release(node->current);
			node->current = node->ahead;
			node->ahead = NULL;
			scan->asked = scan->asked_ahead;
			scan->res = NULL;
		}
	}
	if (node->gone)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_CURSOR_STATE),
				 errmsg("the rest of this scan is gone from region \"%s\"",
						residency_remote_name(residency_remote_region(node->serverid))),
				 errdetail("It was begun after a savepoint that has been rolled back."),
				 errhint("Fetch from the cursor before the savepoint is made, or open it again.")));
	if (node->declare != NULL)
	{
		/* an error of DECLARE says more than the one of the FETCH behind it */
		(void) residency_node_wait(node, node->declare);
		residency_remote_release(node->declare);
		node->declare = NULL;
	}
	scan->res = residency_node_wait(node, node->current);
	scan->nrows = PQntuples(scan->res);
	scan->row = 0;
	scan->batches++;
	scan->exhausted = scan->small || scan->nrows < scan->asked;
	measure_width(scan);
	return scan->nrows > 0;
}

/* prepares a scan; sends nothing, as it may never be fetched from */
static void
residencyBeginForeignScan(ForeignScanState *state, int eflags)
{
	ForeignScan *plan = (ForeignScan *) state->ss.ps.plan;
	FdwScan    *scan;

	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	scan = palloc0(sizeof(FdwScan));
	scan->sql = strVal(list_nth(plan->fdw_private, FdwScanSql));
	scan->small = boolVal(list_nth(plan->fdw_private, FdwScanSmall));
	scan->width = intVal(list_nth(plan->fdw_private, FdwScanWidth));
	scan->flags = boolVal(list_nth(plan->fdw_private, FdwScanLocked)) ? REMOTE_LOCKS : 0;
	scan->needed = boolVal(list_nth(plan->fdw_private, FdwScanNeeded));
	scan->input = residency_input_make(state->ss.ss_ScanTupleSlot->tts_tupleDescriptor,
									   list_nth(plan->fdw_private, FdwScanAttrs));
	state->fdw_state = scan;
	residency_node_init(&scan->node, state, false, start_scan);
}

/* next row; the first call starts all scans that the answer needs */
static TupleTableSlot *
residencyIterateForeignScan(ForeignScanState *state)
{
	FdwScan    *scan = (FdwScan *) state->fdw_state;
	TupleTableSlot *slot = state->ss.ss_ScanTupleSlot;

	if (!scan->node.started)
		residency_node_start(&scan->node);
	if (scan->left_out)
		return ExecClearTuple(slot);
	if (scan->row >= scan->nrows || scan->res == NULL)
	{
		if (!next_batch(scan))
			return ExecClearTuple(slot);
	}
	else if (scan->row == scan->nrows / 2 && !scan->exhausted && scan->node.ahead == NULL)
		fetch_ahead(scan);
	residency_input_row(scan->input, scan->res, scan->row++, slot);
	return slot;
}

/* the scan is to be read from its beginning, with other parameters if chgParam is set */
static void
residencyReScanForeignScan(ForeignScanState *state)
{
	FdwScan    *scan = (FdwScan *) state->fdw_state;

	/* the state of a direct modification is another one, and is never rescanned */
	if (((ForeignScan *) state->ss.ps.plan)->operation != CMD_SELECT ||
		scan == NULL || !scan->node.started)
		return;
	if (state->ss.ps.chgParam == NULL && can_rewind(scan))
		scan->row = 0;
	else
		scan->node.started = false;
}

/* gives back what the scan holds; the cursor is closed without waiting */
static void
residencyEndForeignScan(ForeignScanState *state)
{
	FdwScan    *scan = (FdwScan *) state->fdw_state;

	if (scan == NULL)
		return;
	drop_rows(scan);
	residency_node_end(&scan->node);
}

/* installs the scan callbacks */
void
residency_fdw_scan_routine(FdwRoutine *routine)
{
	routine->BeginForeignScan = residencyBeginForeignScan;
	routine->IterateForeignScan = residencyIterateForeignScan;
	routine->ReScanForeignScan = residencyReScanForeignScan;
	routine->EndForeignScan = residencyEndForeignScan;
}
