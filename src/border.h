/*
 * border.h
 *		What crossed the borders of this region: the view residency.border, and EXPLAIN.
 *
 * remote_traffic.c counts into accounts of the backend, one for each region and table; their
 * figures are added to those of all backends, in shared memory, when a statement or
 * transaction ends.
 */
#ifndef RESIDENCY_BORDER_H
#define RESIDENCY_BORDER_H

#include "residency.h"

#include "commands/explain.h"

#include "remote.h"

typedef struct BorderAccount BorderAccount;

/*
 * This backend's account for a region and a table, as declared; InvalidOid: for what is about no
 * table.  Lives as long as the backend.  May throw (memory, catalog).
 */
extern BorderAccount *residency_border_account(Oid serverid, Oid relid);

/* the account's counters, to be added to; never throws, like all that follow */
extern RemoteTraffic *residency_border_touch(BorderAccount *account);

/* an answer was waited for; each trip counts once */
extern void residency_border_trip(BorderAccount *account, uint64 trip);

/* adds what this backend has counted to shared memory */
extern void residency_border_flush(void);

/* the declared table of a partition, or the relation itself; for RemoteSubject */
extern Oid	residency_border_table(Oid relid);

/* asks for shared memory and registers callbacks; before residency_commit_init, so that
 * the commit's own traffic is counted before it is added */
extern void residency_border_init(void);

/* border_explain.c */
extern void residency_border_explain(ExplainState *es, List *regions, const RemoteTraffic *traffic);
extern RemoteTally *residency_border_tally(const EState *estate);
extern void residency_border_expect(ExplainState *es, double keys, int round_trips);
extern void residency_border_explain_init(void);

#endif							/* RESIDENCY_BORDER_H */
