/*
 * remote_pipeline.c
 *		The queue of one connection: what was sent, in order, and what came back.
 *
 * libpq's pipeline mode answers strictly in order: for each statement its results
 * and then one NULL, for each sync one PGRES_PIPELINE_SYNC without a NULL.  "sent"
 * mirrors that order entry by entry, so no answer can be taken for another's.
 *
 * A flight is all that is sent up to a sync.  An error makes the rest of its flight
 * PGRES_PIPELINE_ABORTED; the remote transaction stays failed after the sync, until
 * ROLLBACK [TO SAVEPOINT], which therefore must come first in a flight.
 *
 * The payload of an entry is kept until its answer arrives, as long as nothing of the
 * remote transaction has been answered: if the connection turns out to be dead, the
 * same entries are sent on a new one.  COMMIT and PREPARE are never sent twice.
 */
#include "remote_internal.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "worker.h"

/* statements kept prepared on one connection; beyond it texts are sent each time */
#define MAX_NAMED_STATEMENTS 200

/* output that starts a flight by itself, so that the home can begin to work */
#define FLIGHT_BYTES (256 * 1024)

typedef struct NamedStatement
{
	uint64		hash;			/* key: of the text */
	char		name[32];
} NamedStatement;

/*
 * Makes an entry that is in no list yet; sql and values are copied.
 */
RemoteRequest *
residency_pipeline_make(RemoteRegion *region, RemoteKind kind, const char *sql,
						int nparams, const char *const *values, int flags, int64 expect)
{
	MemoryContext context = AllocSetContextCreate(residency_remote.context,
												  "residency request", ALLOCSET_START_SMALL_SIZES);
	RemoteRequest *req = MemoryContextAllocZero(context, sizeof(RemoteRequest));

	req->region = region;
	req->context = context;
	req->kind = kind;
	req->flags = flags;
	req->expect = expect;
	req->transaction = region->transaction;
	req->level = Max(region->level, 1);
	req->trip = residency_remote.traffic.round_trips + 1;
	req->account = region->account;
	req->nparams = nparams;
	if (sql != NULL)
	{
		req->sql = MemoryContextStrdup(context, sql);
		req->bytes = strlen(sql) + 1;
	}
	if (nparams > 0)
	{
		const char **copy = MemoryContextAlloc(context, nparams * sizeof(char *));

		for (int i = 0; i < nparams; i++)
		{
			copy[i] = values[i] ? MemoryContextStrdup(context, values[i]) : NULL;
			req->bytes += values[i] ? strlen(values[i]) + 5 : 4;
		}
		req->values = copy;
	}
	/* nobody holds a pointer to anything but a statement that will be waited for */
	req->released = (kind != REMOTE_KIND_STATEMENT && kind != REMOTE_KIND_APPLY) ||
		(flags & REMOTE_DEFERRED);
	if (!req->released)
		(void) hash_search(residency_remote.requests, &req, HASH_ENTER, NULL);
	return req;
}

/* frees an entry that is in no list */
static void
free_request(RemoteRequest *req)
{
	(void) hash_search(residency_remote.requests, &req, HASH_REMOVE, NULL);
	if (req->result != NULL)
		PQclear(req->result);
	residency_tally_release(req->tally);
	MemoryContextDelete(req->context);
}

/* the answer of an entry is complete: takes it off the list, frees it if nobody waits */
static void
finish_request(RemoteRequest *req)
{
	RemoteRegion *region = req->region;

	dlist_delete(&req->node);
	region->inflight -= Min(region->inflight, req->bytes);
	if (req->flags & REMOTE_DEFERRED)
		region->deferred--;
	req->answered = true;
	residency_traffic_answered(req);
	if (req->kind == REMOTE_KIND_APPLY)
		residency_commit_applied(region, req->xid, !req->failed && !req->warned);
	if (req->released)
		free_request(req);
}

/*
 * Name of the prepared statement for a text, sending its Parse in front when it is
 * new.  NULL if the connection holds enough of them already.
 */
static const char *
named_statement(RemoteRegion *region, const char *sql)
{
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) sql, strlen(sql), 0));
	NamedStatement *entry;
	RemoteRequest *parse;
	bool		found;

	if (region->statements == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(NamedStatement),
		.hcxt = residency_remote.context};

		region->statements = hash_create("residency statements", 32, &ctl,
										 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(region->statements, &hash, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->name;
	if (hash_get_num_entries(region->statements) >= MAX_NAMED_STATEMENTS)
		return NULL;

	parse = residency_pipeline_make(region, REMOTE_KIND_PARSE, NULL, 0, NULL, 0, -1);
	entry = hash_search(region->statements, &hash, HASH_ENTER, &found);
	snprintf(entry->name, sizeof(entry->name), "residency_%u", ++region->next_statement);
	parse->statement = MemoryContextStrdup(parse->context, entry->name);
	dlist_push_tail(&region->sent, &parse->node);
	(void) PQsendPrepare(region->conn, entry->name, sql, 0, NULL);
	return entry->name;
}

/* a Parse failed, or was skipped behind an error: the name does not exist there */
static void
forget_statement(RemoteRegion *region, const char *name)
{
	HASH_SEQ_STATUS seq;
	NamedStatement *entry;

	if (region->statements == NULL)
		return;
	hash_seq_init(&seq, region->statements);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (strcmp(entry->name, name) == 0)
			(void) hash_search(region->statements, &entry->hash, HASH_REMOVE, NULL);
	}
}

/*
 * Hands one entry to libpq.  What libpq refuses is a lost connection, which
 * residency_pipeline_advance notices and deals with.
 */
static void
push_request(RemoteRegion *region, RemoteRequest *req)
{
	const char *name = NULL;
	unsigned int parsed = region->next_statement;

	if (req->flags & REMOTE_NAMED)
		name = named_statement(region, req->sql);
	/* the text of a named statement crosses once */
	residency_traffic_sent(req, name == NULL || region->next_statement != parsed ? req->bytes :
						   req->bytes - strlen(req->sql) + strlen(name));
	dlist_push_tail(&region->sent, &req->node);
	region->inflight += req->bytes;
	region->unsynced = true;
	region->unsynced_bytes += req->bytes;
	if (name != NULL)
		(void) PQsendQueryPrepared(region->conn, name, req->nparams, req->values, NULL, NULL, 0);
	else
		(void) PQsendQueryParams(region->conn, req->sql, req->nparams, NULL, req->values,
								 NULL, NULL, 0);
	/* without this the home keeps the key to cancel with until the flight has ended, and
	 * what waits there for a lock could not be cancelled */
	if (req->kind == REMOTE_KIND_HELLO)
		(void) PQsendFlushRequest(region->conn);
	if (region->proved)
	{
		/* no second sending: the payload has served */
		req->sql = NULL;
		req->values = NULL;
	}
	if (region->unsynced_bytes > FLIGHT_BYTES)
		residency_pipeline_sync(region);
}

/* puts an entry into the pipeline; it reaches libpq at once if the connection stands */
void
residency_pipeline_enqueue(RemoteRegion *region, RemoteRequest *req)
{
	req->trip = residency_remote.traffic.round_trips + 1;
	if (req->flags & REMOTE_DEFERRED)
		region->deferred++;
	if (region->state == REMOTE_OPEN)
	{
		push_request(region, req);
		return;
	}
	dlist_push_tail(&region->queued, &req->node);
	if (region->state == REMOTE_CLOSED)
		residency_pipeline_abandon_lost(region);	/* it is lost, and will not be made again */
}

/* makes an entry and puts it into the pipeline */
RemoteRequest *
residency_pipeline_add(RemoteRegion *region, RemoteKind kind, const char *sql,
					   int nparams, const char *const *values, int flags, int64 expect)
{
	RemoteRequest *req = residency_pipeline_make(region, kind, sql, nparams, values, flags, expect);

	residency_pipeline_enqueue(region, req);
	return req;
}

/* queues a command of our own, whose answer matters only if it is an error */
void
residency_pipeline_control(RemoteRegion *region, const char *sql)
{
	(void) residency_pipeline_add(region, REMOTE_KIND_CONTROL, sql, 0, NULL, 0, -1);
}

/* the same for a command whose error concerns nobody either: the end of a transaction */
void
residency_pipeline_quiet(RemoteRegion *region, const char *sql)
{
	RemoteRequest *req = residency_pipeline_make(region, REMOTE_KIND_CONTROL, sql, 0, NULL, 0, -1);

	req->abandoned = true;
	residency_pipeline_enqueue(region, req);
}

/*
 * Repeats what the connection before was told last, ahead of everything else.  Most of the time
 * it, or the resolver, was faster: then there is no such part any more.  No hello is needed, since no other
 * place has a part of that name.
 */
static void
push_unapplied(RemoteRegion *region)
{
	for (int i = 0; i < region->nunapplied; i++)
	{
		RemoteRequest *req = residency_pipeline_make(region, REMOTE_KIND_CONTROL,
													 psprintf("COMMIT PREPARED '%s'", region->unapplied[i]),
													 0, NULL, 0, -1);

		req->abandoned = true;
		req->transaction = 0;	/* of none that a new connection would repeat */
		push_request(region, req);
		residency_pipeline_sync(region);
	}
	region->nunapplied = 0;
}

/* the connection stands: hands over all that has waited for it, as one flight */
void
residency_pipeline_push_queued(RemoteRegion *region)
{
	residency_traffic_connected(region);
	push_unapplied(region);
	while (!dlist_is_empty(&region->queued))
		push_request(region, dlist_container(RemoteRequest, node, dlist_pop_head_node(&region->queued)));
	residency_pipeline_sync(region);
}

/*
 * Ends the flight and lets libpq write what the socket takes.  Does nothing while
 * the connection is being made (push_queued will).  Never throws, never waits.
 */
void
residency_pipeline_sync(RemoteRegion *region)
{
	if (region->state != REMOTE_OPEN)
		return;
	if (region->unsynced)
	{
		RemoteRequest *req = region->spare_sync;

		region->spare_sync = NULL;
		if (req == NULL)
			req = residency_pipeline_make(region, REMOTE_KIND_SYNC, NULL, 0, NULL, 0, -1);
		req->trip = residency_remote.traffic.round_trips + 1;
		dlist_push_tail(&region->sent, &req->node);
		(void) PQpipelineSync(region->conn);
		region->unsynced = false;
		region->unsynced_bytes = 0;
	}
	region->want_write = PQflush(region->conn) == 1;
}

/* a deferred write must have changed exactly as many rows as its sender assumed */
static void
check_expected(RemoteRegion *region, RemoteRequest *req, PGresult *res)
{
	uint64		changed = residency_remote_affected(res);
	char		message[200];

	if (req->expect < 0 || changed == (uint64) req->expect || req->abandoned)
		return;
	snprintf(message, sizeof(message), "%llu of %lld rows were written",
			 (unsigned long long) changed, (long long) req->expect);
	residency_error_store_text(region, req->level, ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION, message,
							   "A row trigger or rule that the gateway does not know of changed the write. "
							   "Make triggers in all regions, with residency.run_everywhere().");
}

/* takes one result for the entry at the head of the pipeline */
static void
take_result(RemoteRegion *region, RemoteRequest *req, PGresult *res)
{
	if (req->transaction == region->transaction)
		region->proved = true;
	region->fresh = false;

	switch (PQresultStatus(res))
	{
		case PGRES_TUPLES_OK:
			residency_traffic_received(req, res);
			if (req->kind == REMOTE_KIND_HELLO && PQntuples(res) == 1)
				region->cancel_key = atoi(PQgetvalue(res, 0, 0));
			/* FALLTHROUGH */
		case PGRES_COMMAND_OK:
			if (req->flags & REMOTE_DEFERRED)
				check_expected(region, req, res);
			break;
		case PGRES_PIPELINE_ABORTED:
			req->failed = true;
			break;
		default:
			req->failed = true;
			/* of COMMIT PREPARED the protocol takes note; its transaction is over, and the one
			 * that goes on now has nothing to do with it */
			if (!req->abandoned && req->kind != REMOTE_KIND_APPLY)
				residency_error_store(region, req->level, res);
			break;
	}
	if (req->failed && req->kind == REMOTE_KIND_PARSE)
		forget_statement(region, req->statement);
	if (req->failed && req->kind == REMOTE_KIND_HELLO)
		region->greeted = false;
	if (req->released)
		PQclear(res);
	else
	{
		if (req->result != NULL)
			PQclear(req->result);
		req->result = res;
	}
}

/* may a new connection take the place of this one, unnoticed? */
static bool
can_replay(RemoteRegion *region)
{
	return region->level > 0 && !region->fresh && !region->proved &&
		!region->ending && region->failed_level == 0;
}

/* the last word of a session that was told to end before our request came: as good as
 * no answer, though the connection is not closed yet */
static bool
is_farewell(PGresult *res)
{
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);

	return severity != NULL && strcmp(severity, "FATAL") == 0;
}

/*
 * Moves the traffic of one open connection as far as it goes without waiting; true
 * if an answer was completed or the connection was lost.
 */
bool
residency_pipeline_advance(RemoteRegion *region)
{
	bool		progress = false;

	if (region->state != REMOTE_OPEN)
		return false;
	if (region->want_write)
		region->want_write = PQflush(region->conn) == 1;

	while (!dlist_is_empty(&region->sent) && !PQisBusy(region->conn))
	{
		RemoteRequest *req = dlist_head_element(RemoteRequest, node, &region->sent);
		PGresult   *res = PQgetResult(region->conn);

		if (PQstatus(region->conn) == CONNECTION_BAD)
		{
			PQclear(res);
			break;
		}
		progress = true;
		if (can_replay(region) && is_farewell(res))
		{
			PQclear(res);
			residency_pipeline_lost(region);
			return true;
		}
		if (req->kind == REMOTE_KIND_SYNC)
		{
			bool		in_order = PQresultStatus(res) == PGRES_PIPELINE_SYNC;

			PQclear(res);
			if (!in_order)
			{
				/* cannot happen; no error, because we may be behind the commit record */
				residency_pipeline_lost(region);
				return true;
			}
			finish_request(req);
		}
		else if (res == NULL)
			finish_request(req);
		else
			take_result(region, req, res);
	}
	if (PQstatus(region->conn) == CONNECTION_BAD)
	{
		residency_pipeline_lost(region);
		progress = true;
	}
	return progress;
}

/*
 * Answers an entry of a connection that is gone, as lost.  A COMMIT PREPARED among them is the
 * resolver's business from now on; but this session shall find its transaction applied
 * when it asks that region next, so it is kept for the next connection as well.
 */
static void
lose_request(RemoteRequest *req)
{
	RemoteRegion *region = req->region;

	if (req->kind == REMOTE_KIND_APPLY)
	{
		if (region->nunapplied < REMOTE_UNAPPLIED_MAX)
			strlcpy(region->unapplied[region->nunapplied++], req->statement, REMOTE_GID_LENGTH);
		residency_worker_wake(RESIDENCY_WORKER_RESOLVER);
	}
	req->failed = req->lost = true;
	finish_request(req);
}

/* answers every entry of a connection that is gone */
void
residency_pipeline_abandon_lost(RemoteRegion *region)
{
	dlist_head *lists[] = {&region->sent, &region->queued};

	for (int i = 0; i < lengthof(lists); i++)
	{
		while (!dlist_is_empty(lists[i]))
		{
			lose_request(dlist_head_element(RemoteRequest, node, lists[i]));
		}
	}
	region->inflight = 0;
}

/* moves what a dead connection has not answered back to the queue, for a new one */
static void
requeue_for_replay(RemoteRegion *region)
{
	dlist_head	again;

	dlist_init(&again);
	while (!dlist_is_empty(&region->sent))
	{
		RemoteRequest *req = dlist_head_element(RemoteRequest, node, &region->sent);

		if (req->transaction == region->transaction &&
			(req->kind == REMOTE_KIND_STATEMENT || req->kind == REMOTE_KIND_CONTROL))
		{
			bool		first = dlist_is_empty(&again);

			dlist_delete(&req->node);
			dlist_push_tail(&again, &req->node);
			if (first && region->joined)	/* BEGIN, and hello right behind it */
				dlist_push_tail(&again, &residency_transaction_hello(region)->node);
		}
		else
			lose_request(req);
	}
	while (!dlist_is_empty(&region->queued))
		dlist_push_tail(&again, dlist_pop_head_node(&region->queued));
	while (!dlist_is_empty(&again))
		dlist_push_tail(&region->queued, dlist_pop_head_node(&again));
}

/*
 * The connection is gone.  If it had been used before and nothing of the current
 * remote transaction has been answered, a new one takes its place and the same
 * entries; otherwise the whole remote transaction is lost (class 08).
 */
void
residency_pipeline_lost(RemoteRegion *region)
{
	bool		replay = can_replay(region);

	residency_connection_close(region);
	if (replay)
	{
		requeue_for_replay(region);
		residency_connection_start(region);
		region->greeted = region->joined;	/* hello is queued */
		return;
	}
	residency_pipeline_abandon_lost(region);
	if (region->level > 0)
		residency_error_store_text(region, region->base, ERRCODE_CONNECTION_FAILURE,
								   "the connection was lost", NULL);
}

/*
 * Errors of entries at this nest level or deeper concern nobody any more.  A Parse among
 * them may still be skipped behind an error, so its name is not used again.
 */
void
residency_pipeline_abandon(RemoteRegion *region, int level)
{
	dlist_head *lists[] = {&region->sent, &region->queued};
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			RemoteRequest *req = dlist_container(RemoteRequest, node, iter.cur);

			if (req->level >= level && req->transaction == region->transaction)
			{
				req->abandoned = true;
				if (req->kind == REMOTE_KIND_PARSE)
					forget_statement(region, req->statement);
			}
		}
	}
}

/* the caller is done with the request; one that the transaction's end freed is ignored */
void
residency_remote_release(RemoteRequest *req)
{
	if (req == NULL || residency_remote.requests == NULL ||
		hash_search(residency_remote.requests, &req, HASH_FIND, NULL) == NULL)
		return;
	if (req->answered)
		free_request(req);
	else
		req->released = true;
}

/* frees an entry that was made but never put into the pipeline; NULL is allowed */
void
residency_pipeline_discard(RemoteRequest *req)
{
	if (req != NULL)
		free_request(req);
}

/* the transaction is over: frees what its owners have not released */
void
residency_pipeline_sweep(void)
{
	HASH_SEQ_STATUS seq;
	RemoteRequest **entry;

	if (residency_remote.requests == NULL)
		return;
	hash_seq_init(&seq, residency_remote.requests);
	while ((entry = hash_seq_search(&seq)) != NULL)
		residency_remote_release(*entry);
}

/* true if waiting for this request would not block */
bool
residency_remote_answered(RemoteRequest *req)
{
	if (!req->answered)
		(void) residency_pipeline_advance(req->region);
	return req->answered;
}
