/*
 * remote_internal.h
 *		What the remote_* files and the commit protocol share; nobody else includes it.
 *
 * A connection goes CLOSED -> CONNECTING -> OPEN, and back to CLOSED when it is lost
 * or given up.  A remote transaction goes, in "level":
 *
 *		0  --BEGIN-->  n  --SAVEPOINT s<n+1>-->  n+1 ...  --COMMIT / PREPARE / ROLLBACK-->  0
 *
 * where n, kept in "base", is the local nest level of the first request: no savepoints
 * are needed for the levels up to it, because when one of them aborts, all goes.
 *
 * Both are independent: requests may be queued while the connection is still being
 * made, and the answer to a COMMIT may still be on its way in the next transaction.
 */
#ifndef RESIDENCY_REMOTE_INTERNAL_H
#define RESIDENCY_REMOTE_INTERNAL_H

#include "border.h"
#include "remote.h"
#include "remote_error.h"

#include "storage/latch.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

typedef enum RemoteState
{
	REMOTE_CLOSED,
	REMOTE_CONNECTING,
	REMOTE_OPEN
} RemoteState;

/* what an entry of the pipeline is; all but STATEMENT are queued by this part itself */
typedef enum RemoteKind
{
	REMOTE_KIND_STATEMENT,		/* a caller's request */
	REMOTE_KIND_CONTROL,		/* BEGIN, SAVEPOINT, SET LOCAL ROLE, ... */
	REMOTE_KIND_HELLO,			/* residency.hello(): answer holds the cancel key */
	REMOTE_KIND_PARSE,			/* prepares a named statement */
	REMOTE_KIND_APPLY,			/* COMMIT PREPARED: the commit protocol is told of its answer */
	REMOTE_KIND_SYNC			/* end of a flight */
} RemoteKind;

struct RemoteRequest
{
	dlist_node	node;			/* in region->queued or region->sent, until answered */
	RemoteRegion *region;
	MemoryContext context;		/* holds this struct and all that it points to */
	RemoteKind	kind;
	int			flags;			/* REMOTE_... */
	int			level;			/* local nest level of the (sub)transaction that sent it */
	uint64		transaction;	/* region->transaction when it was queued */
	int64		expect;			/* rows a deferred write must report, -1 any */
	const char *sql;			/* NULL once the payload is not needed any more */
	int			nparams;
	const char *const *values;
	Size		bytes;			/* payload, counts into region->inflight */
	const char *statement;		/* PARSE: name of the prepared statement; APPLY: gid */
	uint64		xid;			/* APPLY: the local transaction that it applies */
	uint64		trip;			/* round trips that have been awaited when its answer is */
	BorderAccount *account;		/* where its traffic is put down */
	RemoteTally *tally;			/* the same for a node of a plan, or NULL */
	uint64		rows;			/* in its parameters */
	bool		answered;
	bool		released;		/* caller is done: free when answered */
	bool		abandoned;		/* its (sub)transaction is gone: its error concerns nobody */
	bool		failed;			/* answered by an error, or not executed because of one */
	bool		warned;			/* a warning came with the answer */
	bool		lost;			/* the connection went away before the answer */
	PGresult   *result;
};

#define REMOTE_FINISHED_MAX 64
#define REMOTE_UNAPPLIED_MAX 16
#define REMOTE_GID_LENGTH 100

struct RemoteRegion
{
	dlist_node	node;			/* in the list of all entries of this backend */
	Oid			serverid;
	bool		admin;			/* connection made with the current user's own mapping */
	bool		joined;			/* hello is sent first */
	Oid			admin_user;		/* admin: local user whose mapping it is */
	char	   *conninfo;		/* how to connect if no catalog knows the region, else NULL */
	char		name[NAMEDATALEN];

	/* connection */
	RemoteState state;
	PGconn	   *conn;
	PostgresPollingStatusType poll; /* CONNECTING: what to wait for */
	TimestampTz connect_deadline;	/* CONNECTING; moved on while nobody waits */
	TimestampTz connect_start;	/* when it was begun to be made */
	TimestampTz last_look;		/* CONNECTING: when the wait loop last looked at it */
	uint64		connect_trip;	/* round trips that logging in has taken, from a start like "trip" */
	bool		stale;			/* server or mapping changed: replace before the next transaction */
	bool		fresh;			/* nothing has been answered on it yet */
	bool		greeted;		/* hello is in the pipeline or answered */
	bool		want_write;		/* libpq holds output that the socket did not take */
	int			wait_pos;		/* position in the wait event set, -1 if not there */
	int			cancel_key;		/* told by hello, 0 if unknown */
	pgsocket	cancel_socket;	/* a cancel request under way, PGINVALID_SOCKET if none */
	HTAB	   *statements;		/* named statements by text */
	unsigned int next_statement;

	/* pipeline */
	dlist_head	queued;			/* waiting for the connection */
	dlist_head	sent;			/* handed to libpq, not answered yet, in order */
	bool		unsynced;		/* something was sent since the last sync */
	Size		unsynced_bytes;
	Size		inflight;		/* payload bytes sent and not answered */
	int			deferred;		/* deferred requests not answered yet */

	/* remote transaction */
	int			base;			/* local nest level at which BEGIN was sent */
	int			level;			/* 0 none, else nest level; savepoints s<base+1>..s<level> exist */
	uint64		transaction;	/* counts remote transactions */
	bool		proved;			/* something of this transaction was answered */
	bool		ending;			/* COMMIT or PREPARE is on its way */
	bool		wrote;			/* takes part in the commit */
	bool		locked;			/* holds locks of rows that the transaction relies on */
	bool		ships;			/* has got a batch of catch-up */
	bool		resident;		/* wrote a resident table since the home constraint was checked */
	bool		immediate;		/* the home constraint is set IMMEDIATE there */
	int			rollback_to;	/* savepoint whose rollback waits for a cancel request, 0 none */
	bool		role_known;
	Oid			role;			/* role set there, InvalidOid: the gateway's own */
	int			failed_level;	/* level whose failure makes the remote transaction useless, 0 none */
	RemoteError error;			/* valid while failed_level > 0 */

	/* counters */
	BorderAccount *account;		/* of what is about no table: BEGIN, COMMIT, ... */
	uint64		answered_trip;	/* "trip" of the last answer */
	uint64		counted_trip;	/* ... of the last one that counted */
	uint64		last_statement; /* number of the last statement sent, in this backend */

	/* commit protocol, see commit_protocol.c */
	char		unapplied[REMOTE_UNAPPLIED_MAX][REMOTE_GID_LENGTH]; /* COMMIT PREPARED that was lost */
	int			nunapplied;
	char		gid[REMOTE_GID_LENGTH]; /* "" unless PREPARE was sent */
	char		cancelled_gid[REMOTE_GID_LENGTH];	/* part whose ROLLBACK PREPARED a cancel request may have hit */
	RemoteRequest *decision;	/* answer to COMMIT, PREPARE or COMMIT PREPARED that is awaited */
	RemoteRequest *apply;		/* COMMIT PREPARED, made in PRE_COMMIT, in no list yet */
	RemoteRequest *spare_sync;	/* the sync behind it, made there too */
	uint64		finished[REMOTE_FINISHED_MAX];	/* own transactions that are applied everywhere */
	int			nfinished;
	int			forgetting;		/* of these, how many the current transaction tells it */
};

/* all state of this part in this backend */
typedef struct RemoteBackend
{
	MemoryContext context;		/* child of TopMemoryContext, holds the entries */
	HTAB	   *requests;		/* all requests not freed yet, by address */
	dlist_head	regions;
	WaitEventSet *wait_set;		/* latch and all open connections */
	bool		wait_set_stale;
	bool		waiting;		/* inside the wait loop: left by an error if still set at abort */
	bool		producing;		/* producers are being called */
	bool		committing;		/* in PRE_COMMIT or behind it: our own SQL is no statement */
	bool		blocked;		/* the backend stands still until an answer comes */
	RemoteTraffic traffic;
} RemoteBackend;
extern RemoteBackend residency_remote;

/* remote_connection.c */
extern bool residency_connection_parameters(Oid serverid, Oid userid, const char ***keywords,
											const char ***values);
extern void residency_connection_start(RemoteRegion *region);
extern void residency_connection_poll(RemoteRegion *region);
extern void residency_connection_close(RemoteRegion *region);
extern bool residency_connection_departed(const RemoteRegion *region);
extern bool residency_connection_drop_departed(RemoteRegion *region);
extern void residency_connection_init(void);

/* remote_cancel.c */
extern void residency_cancel_start(RemoteRegion *region);
extern void residency_cancel_finish(RemoteRegion *region);
extern void residency_transaction_after_cancel(RemoteRegion *region);

/* remote_pipeline.c */
extern RemoteRequest *residency_pipeline_add(RemoteRegion *region, RemoteKind kind, const char *sql,
											 int nparams, const char *const *values,
											 int flags, int64 expect);
extern void residency_pipeline_enqueue(RemoteRegion *region, RemoteRequest *req);
extern void residency_pipeline_control(RemoteRegion *region, const char *sql);
extern void residency_pipeline_quiet(RemoteRegion *region, const char *sql);
extern void residency_pipeline_sync(RemoteRegion *region);
extern void residency_pipeline_push_queued(RemoteRegion *region);
extern bool residency_pipeline_advance(RemoteRegion *region);
extern void residency_pipeline_lost(RemoteRegion *region);
extern void residency_pipeline_abandon_lost(RemoteRegion *region);
extern void residency_pipeline_abandon(RemoteRegion *region, int level);
extern void residency_pipeline_sweep(void);
extern void residency_pipeline_discard(RemoteRequest *req);
extern RemoteRequest *residency_pipeline_make(RemoteRegion *region, RemoteKind kind, const char *sql,
											  int nparams, const char *const *values,
											  int flags, int64 expect);

/* remote_traffic.c */
extern void residency_traffic_describe(RemoteRequest *req, const RemoteSubject *about);
extern void residency_traffic_sent(RemoteRequest *req, Size bytes);
extern void residency_traffic_received(RemoteRequest *req, PGresult *res);
extern void residency_traffic_answered(RemoteRequest *req);
extern void residency_traffic_connected(RemoteRegion *region);
extern void residency_traffic_awaited(uint64 trip);

/* remote_wait.c */
extern void residency_wait_until_answered(RemoteRequest *req);
extern bool residency_wait_answer(RemoteRequest *req, TimestampTz deadline);
extern void residency_wait_unless_failed(RemoteRequest *req);
extern void residency_wait_room(RemoteRegion *region, Size limit);
extern void residency_wait_bounded(int timeout_ms);
extern void residency_wait_idle(int timeout_ms);

/* commit_protocol.c */
extern void residency_commit_applied(RemoteRegion *region, uint64 xid, bool ok);

/* remote_result.c */
extern void residency_error_store(RemoteRegion *region, int level, PGresult *res);
extern void residency_error_store_text(RemoteRegion *region, int level, int sqlstate,
									   const char *message, const char *hint);
extern void residency_error_throw(RemoteRegion *region) pg_attribute_noreturn();
extern void residency_error_clear(RemoteRegion *region);
extern bool residency_region_failed(const RemoteRegion *region);
extern void residency_error_text(char *buf, Size size, int sqlstate, bool raised, const char *message,
								 const char *table, const char *column, const char *constraint);

/* remote_transaction.c */
extern void residency_transaction_begin(RemoteRegion *region, Oid userid, int flags);
extern RemoteRequest *residency_transaction_hello(RemoteRegion *region);
extern void residency_transaction_reset(RemoteRegion *region);
extern void residency_transaction_produce(RemoteRegion *region);
extern void residency_transaction_abort_level(RemoteRegion *region, int level);
extern void residency_transaction_settle(RemoteRegion *region);
extern void residency_transaction_commit_level(RemoteRegion *region, int level);

#endif							/* RESIDENCY_REMOTE_INTERNAL_H */
