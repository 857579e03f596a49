/*
 * commit_resolve.h
 *		What the parts of the resolver share: one round over the regions.
 *
 * A round runs in one transaction that has used no other region before, with SPI
 * connected.  All its memory is in the context that was current when it began.
 */
#ifndef RESIDENCY_COMMIT_RESOLVE_H
#define RESIDENCY_COMMIT_RESOLVE_H

#include "commit_internal.h"

/* rows of each kind looked at in one round: bounds its memory, the next one goes on */
#define RESOLVE_ROWS 2000

/* one decision row here, or one trace elsewhere */
typedef struct ResolveDecision
{
	int64		incarnation;	/* own, or one that this region had before */
	uint64		xid;
	List	   *gids;			/* char *, one for each part */
	List	   *regions;		/* char *, in the same order */
} ResolveDecision;

/* one region during a round */
typedef struct ResolveRegion
{
	RemoteRegion *region;
	RemoteRequest *request;		/* what is asked at the moment */
	bool		reached;		/* answered everything so far */
	List	   *gids;			/* char *: prepared there by our role, by the last look */
	List	   *traces;			/* ResolveDecision *: of our transactions, by the last look */
	bool		replicated;		/* what was seen in that look no failover undoes */
} ResolveRegion;

/* what was done, or found, with one gid; or with a region as a whole */
typedef struct ResolveResult
{
	const char *region;			/* where */
	const char *gid;			/* NULL: the region could not be asked, or a call of add_region() is on record */
	const char *action;			/* "committed", "rolled back", "running", "busy", "not replicated", "not reached",
								 * "joining" */
	const char *detail;			/* NULL if there is no more to say */
} ResolveResult;

/* which regions a round asks */
typedef bool (*ResolveFilter) (Oid serverid);

typedef struct ResolveRound
{
	int			n;
	ResolveRegion *regions;		/* all others, those left out are not reached */
	int			timeout_ms;		/* longest wait of each step */
	List	   *results;		/* ResolveResult * */
} ResolveRound;

/* commit_observe.c */
extern void residency_resolve_begin(ResolveRound *round, ResolveFilter wanted, int timeout_ms);
extern bool residency_resolve_answer(ResolveRound *round, ResolveRegion *r, TimestampTz deadline);
extern void residency_resolve_list(ResolveRound *round);
extern List *residency_resolve_decisions(List *gids);
extern List *residency_resolve_candidates(ResolveRound *round);
extern bool residency_resolve_is_running(uint64 xid);
extern uint64 residency_resolve_xid(const char *gid);
extern bool residency_resolve_decided(List *decisions, const char *gid);
extern bool residency_resolve_safe(void);
extern bool residency_resolve_has(List *strings, const char *string);
extern void residency_resolve_result(ResolveRound *round, const char *region, const char *gid,
									 const char *action, const char *detail);

/* commit_peers.c */
extern List *residency_peers_find(ResolveRound *round, int *waiting, long *next_ms);
extern List *residency_peers_committed(ResolveRound *round, List *gids);
extern bool residency_peers_finish(void *verdicts);

/* commit_joining.c */
extern void residency_resolve_joining(ResolveRound *round, ResolveFilter wanted);

/* commit_resolve.c */
extern void residency_resolve_prepared(ResolveRound *round);
extern List *residency_resolve_round(ResolveFilter wanted, int timeout_ms, bool *more);

/* commit_worker.c */
extern void residency_resolver_note(const ResolveResult *result);

#endif							/* RESIDENCY_COMMIT_RESOLVE_H */
