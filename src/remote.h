/*
 * remote.h
 *		The other regions as seen from one backend: connections, requests, answers.
 *
 * Each backend has at most one connection to a region (two while DDL runs: see
 * "admin"), in libpq pipeline mode, non-blocking.  A caller queues requests on
 * as many regions as it likes, and waits once: everything queued so far goes out
 * together, and the wait covers all regions side by side.
 *
 *		req = residency_remote_send(region, userid, sql, n, values, flags, -1);
 *		...								(more requests, other regions)
 *		res = residency_remote_wait(req);	(one round trip for all of them)
 *		...								(PQgetvalue(res, ...))
 *		residency_remote_release(req);
 *
 * BEGIN, savepoints, hello and SET LOCAL ROLE are queued in front of a request
 * by remote_send itself, in the same flight.
 */
#ifndef RESIDENCY_REMOTE_H
#define RESIDENCY_REMOTE_H

#include "residency.h"

#include "lib/ilist.h"
#include "libpq-fe.h"
#include "nodes/pg_list.h"

typedef struct RemoteRegion RemoteRegion;	/* remote_internal.h */
typedef struct RemoteRequest RemoteRequest;

/* request flags */
#define REMOTE_WRITES	0x01	/* changes data there: the region takes part in the commit */
#define REMOTE_DEFERRED	0x02	/* nobody waits for it; its error or a count other than
								 * "expect" is raised at the latest when the top-level
								 * statement ends or the transaction prepares.  The
								 * request is released by the pump itself. */
#define REMOTE_NAMED	0x04	/* worth a prepared statement: same text will come again */
#define REMOTE_AS_GATEWAY 0x08	/* runs as the gateway's own role, userid is ignored */
#define REMOTE_RESIDENT	0x10	/* writes a resident table: its home constraint is checked
								 * when the top-level statement ends */
#define REMOTE_LOCKS	0x20	/* locks rows there: losing the region ends the transaction */
#define REMOTE_SHIPS	0x40	/* a batch of catch-up: told by its part's gid */

/*
 * The backend's entry for the region behind a foreign server of our wrapper.
 * Connects nowhere.  While the current transaction has the admin connection of
 * that region open, this is the entry of that one (its uncommitted DDL must be
 * visible to all that follows).  Valid until the end of the transaction.
 */
extern RemoteRegion *residency_remote_region(Oid serverid);

/*
 * Entry for the region's admin connection, made with the mapping of the current
 * user instead of the gateway's; for DDL.  Throws if this transaction has used
 * the region's ordinary connection already.  With joined false nothing is asked of the other side first
 * (add_region does its own checks); otherwise hello is, as on every connection.
 */
extern RemoteRegion *residency_remote_admin(Oid serverid, bool joined);

/*
 * Entry for a region that no catalog here knows: a newcomer whose add_region() died.  It is
 * reached by a connection string, as whom that says, and nothing is asked of it first.  An
 * entry made before for that name gets the new string.
 */
extern RemoteRegion *residency_remote_stranger(const char *name, const char *conninfo);

extern const char *residency_remote_name(const RemoteRegion *region);
extern Oid	residency_remote_serverid(const RemoteRegion *region);

/*
 * Queues one statement; sends nothing until something waits, or flush is called,
 * or more than a few MB are queued.  Parameters are in text form, NULL pointer is
 * SQL NULL; sql and values are copied.  "userid" is the role whose rights decide at
 * the home (rte->checkAsUser or GetUserId()).  "expect" is the number of rows that
 * a deferred write must report, -1 for any.  Throws if the region has already
 * failed in this (sub)transaction, if the session itself was opened by a gateway
 * (a leaf must not write or read on), or under SERIALIZABLE.
 *
 * The request is valid until released, not longer than the transaction.
 */
extern RemoteRequest *residency_remote_send(RemoteRegion *region, Oid userid,
											const char *sql, int nparams,
											const char *const *values,
											int flags, int64 expect);

/*
 * Traffic of one node of a plan: lives until the node and all requests that carry it
 * have let go of it, since a deferred request may outlive its query.
 */
typedef struct RemoteTraffic
{
	uint64		statements;		/* sent */
	uint64		round_trips;	/* flights whose answer somebody stood still for */
	uint64		rows_out;		/* rows in parameters */
	uint64		rows_in;		/* rows in answers */
	uint64		bytes_out;		/* payload of requests: SQL and parameters */
	uint64		bytes_in;		/* payload of rows in answers */
} RemoteTraffic;

typedef struct RemoteTally
{
	RemoteTraffic traffic;
	uint64		last_trip;		/* the last round trip that was counted */
	int			references;
} RemoteTally;

extern RemoteTally *residency_tally_make(void);
extern void residency_tally_release(RemoteTally *tally);	/* NULL is allowed */

/* what a request is about, for the counters */
typedef struct RemoteSubject
{
	Oid			relid;			/* the table as declared, or InvalidOid */
	uint64		rows;			/* in the parameters */
	RemoteTally *tally;			/* or NULL */
} RemoteSubject;

/* residency_remote_send of a request whose traffic is put down to a table and a node */
extern RemoteRequest *residency_remote_send_about(const RemoteSubject *about, RemoteRegion *region,
												  Oid userid, const char *sql, int nparams,
												  const char *const *values, int flags, int64 expect);

/* starts the flights of everything queued so far; never waits */
extern void residency_remote_flush(void);

/* true if waiting for this request would not block */
extern bool residency_remote_answered(RemoteRequest *req);

/*
 * Waits for the answer, at the same time moving the traffic of all other regions.
 * Interruptible.  Throws the remote error (region named, SQLSTATE kept, no row
 * values).  The PGresult belongs to the request.
 */
extern PGresult *residency_remote_wait(RemoteRequest *req);

/* the caller is done with the request, answered or not; NULL is allowed */
extern void residency_remote_release(RemoteRequest *req);

/* number of rows that a write reports, from its command tag */
extern uint64 residency_remote_affected(PGresult *res);

/*
 * Waits until no deferred request is outstanding in any region, after asking
 * every producer (below) to queue what it still holds back.
 */
extern void residency_remote_wait_deferred(void);

/*
 * A producer holds rows back in order to send them together (row buffers of an
 * INSERT, notes of a global table).  It is called before a request that will be
 * waited for is queued on "region", with NULL at the end of the outermost
 * statement and before PREPARE for all regions; it must then queue all that it
 * holds, as REMOTE_DEFERRED.  Register from _PG_init; called in order of
 * registration; never called during abort.
 */
typedef void (*RemoteProducer) (RemoteRegion *region);
extern void residency_remote_register_producer(RemoteProducer producer);

/*
 * Counters of this backend since it started, for EXPLAIN.  round_trips is the length of the
 * longest chain of flights that had to be awaited one after the other: two regions
 * asked side by side are one, whoever waits for them.
 */
extern const RemoteTraffic *residency_remote_traffic(void);

/* names of the regions asked since that many statements had been sent, for EXPLAIN */
extern List *residency_remote_asked_since(uint64 statements);

#endif							/* RESIDENCY_REMOTE_H */
