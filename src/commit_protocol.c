/*
 * commit_protocol.c
 *		Commits a transaction that involves other regions.
 *
 * What is done depends on who wrote:
 *
 *	nobody elsewhere		COMMIT is sent to the regions that were read, not waited for
 *	one region, not here	that region commits alone; a lost answer is 08007
 *	otherwise				two-phase commit, presumed abort:
 *
 *	 1. PRE_COMMIT	decision row in our own transaction, then PREPARE everywhere, side
 *					by side, together with all writes not sent yet	-> crash: no decision
 *					row is visible and we no longer run: the resolver rolls back
 *	 2. our commit	makes the decision row durable					-> crash: the resolver
 *					finds it: commits
 *	 3. COMMIT		COMMIT PREPARED is sent everywhere, and with commit_wait = applied
 *					awaited after our locks are released			-> crash: as after 2
 *	 4. later		answers to step 3 mark the transaction as finished; its rows, here
 *					and there, are deleted by the next distributed commit of this
 *					backend, or by the resolver (commit_worker.c), which is woken when an
 *					answer to PREPARE or to step 3 is missing
 *
 * Between 2 and the end of 3 an ERROR would be a PANIC of the whole server, so all
 * memory that step 3 needs is taken in step 1, and it looks up no catalogs.
 *
 * The callbacks are registered before those of all our other parts, and callbacks are
 * called last registered first: our PRE_COMMIT sees whatever the others still queue.
 */
#include "remote_internal.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "commit.h"
#include "commit_internal.h"
#include "fault.h"
#include "guard.h"
#include "regions.h"
#include "worker.h"

/* distributed transactions of this backend that some region has not acknowledged */
#define TRACKED_MAX 32
typedef struct TrackedCommit
{
	uint64		xid;			/* 0: free */
	int64		incarnation;	/* of this region, as the gids have it */
	int			waiting;		/* regions whose answer is missing */
	bool		failed;			/* some region answered with an error: left to the resolver */
	int			nregions;
	RemoteRegion *regions[RESIDENCY_MAX_REGIONS];
} TrackedCommit;

static struct
{
	TrackedCommit *tracked;		/* TRACKED_MAX entries, in TopMemoryContext */
	TrackedCommit *current;		/* the transaction that is committing now, NULL if none */
	bool		applying;		/* COMMIT PREPARED is on its way, to be awaited */
	uint64		finished[REMOTE_FINISHED_MAX];	/* own decision rows to delete */
	int			nfinished;
	int			deleting;		/* of these, how many the current transaction deletes */
} commit_state;

/*
 * A region answered COMMIT PREPARED.  When the last one has, the transaction needs no
 * record any longer.  Called by the pipeline, also behind the commit record.
 */
void
residency_commit_applied(RemoteRegion *region, uint64 xid, bool ok)
{
	for (int i = 0; commit_state.tracked != NULL && i < TRACKED_MAX; i++)
	{
		TrackedCommit *commit = &commit_state.tracked[i];

		if (commit->xid != xid)
			continue;
		commit->failed |= !ok;
		if (--commit->waiting > 0)
			return;
		if (!commit->failed)
		{
			for (int r = 0; r < commit->nregions; r++)
			{
				RemoteRegion *there = commit->regions[r];

				if (there->nfinished < REMOTE_FINISHED_MAX)
					there->finished[there->nfinished++] = xid;
			}
			if (commit_state.nfinished < REMOTE_FINISHED_MAX)
				commit_state.finished[commit_state.nfinished++] = xid;
		}
		if (commit != commit_state.current)
			commit->xid = 0;
		return;
	}
}

/* a free tracking entry; the oldest is given up (to the resolver) if there is none */
static TrackedCommit *
track_commit(uint64 xid)
{
	TrackedCommit *commit;

	if (commit_state.tracked == NULL)
		commit_state.tracked = MemoryContextAllocZero(TopMemoryContext,
													  TRACKED_MAX * sizeof(TrackedCommit));
	commit = &commit_state.tracked[0];
	for (int i = 0; i < TRACKED_MAX; i++)
	{
		if (commit_state.tracked[i].xid < commit->xid)
			commit = &commit_state.tracked[i];
	}
	memset(commit, 0, sizeof(*commit));
	commit->xid = xid;
	return commit;
}

/* the transaction is over for this region: nothing refers to its answers any more */
static void
forget_commit(RemoteRegion *region)
{
	residency_remote_release(region->decision);
	residency_pipeline_discard(region->apply);
	residency_pipeline_discard(region->spare_sync);
	region->decision = region->apply = region->spare_sync = NULL;
	region->gid[0] = '\0';
}

/*
 * The only region that was written commits alone.  Interrupts in the middle leave the
 * outcome unknown, and that is what the client is told.
 */
static void
commit_alone(RemoteRegion *region)
{
	RemoteRequest *volatile req;

	req = residency_pipeline_add(region, REMOTE_KIND_STATEMENT, "COMMIT", 0, NULL, 0, -1);
	region->decision = req;
	region->ending = true;
	residency_remote_flush();
	RESIDENCY_FAULT(alone_sent);
	PG_TRY();
	{
		residency_wait_until_answered(req);
	}
	PG_CATCH();
	{
		FlushErrorState();
		residency_remote.waiting = false;
	}
	PG_END_TRY();

	if (!req->answered || req->lost)
		ereport(ERROR,
				(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
				 errmsg("region \"%s\": the answer to COMMIT was lost", region->name),
				 errdetail("The transaction wrote in this region only; it has committed or rolled back there as a whole."),
				 errhint("Look there whether its changes exist before you repeat it.")));
	if (req->failed)
		residency_error_throw(region);
	if (strcmp(PQcmdStatus(req->result), "COMMIT") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_TRANSACTION_ROLLBACK),
				 errmsg("region \"%s\" rolled the transaction back", region->name)));
	forget_commit(region);
	residency_transaction_reset(region);
}

/* queues all that makes a region's part prepared, in one flight with earlier writes */
static void
queue_prepare(RemoteRegion *region, TrackedCommit *commit, const char *gids, const char *names)
{
	char		sql[300];

	if (region->level == 0)
		elog(ERROR, "region \"%s\" has no transaction to prepare", region->name);
	residency_pipeline_control(region, "SET CONSTRAINTS ALL IMMEDIATE");
	residency_commit_queue_participate(region, commit->incarnation, commit->xid, gids, names);
	snprintf(sql, sizeof(sql), "PREPARE TRANSACTION '%s'", region->gid);
	region->decision = residency_pipeline_add(region, REMOTE_KIND_STATEMENT, sql, 0, NULL, 0, -1);
	region->ending = true;

	snprintf(sql, sizeof(sql), "COMMIT PREPARED '%s'", region->gid);
	region->apply = residency_pipeline_make(region, REMOTE_KIND_APPLY, sql, 0, NULL, 0, -1);
	region->apply->xid = commit->xid;
	region->apply->statement = MemoryContextStrdup(region->apply->context, region->gid);
}

/* waits for PREPARE of one region; "prepared" is its tag and nothing else, because
 * PREPARE of a failed transaction answers ROLLBACK without an error */
static void
await_prepare(RemoteRegion *region)
{
	RemoteRequest *req = region->decision;

	residency_wait_unless_failed(req);
	if (req->failed || req->result == NULL ||
		strcmp(PQcmdStatus(req->result), "PREPARE TRANSACTION") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_TRANSACTION_ROLLBACK),
				 errmsg("region \"%s\" could not prepare the transaction", region->name)));
	/* the only thing that it warns of, and a failover would forget the part */
	if (req->warned)
		ereport(ERROR,
				(errcode(ERRCODE_TRANSACTION_ROLLBACK),
				 errmsg("region \"%s\" has prepared the transaction, but not replicated it to its synchronous standby",
						region->name),
				 errdetail("The wait for that was cancelled there."),
				 errhint("Repeat the transaction when the standby of that region is back.")));
	residency_remote_release(req);
	region->decision = NULL;
	region->spare_sync = residency_pipeline_make(region, REMOTE_KIND_SYNC, NULL, 0, NULL, 0, -1);
}

/* prepares the transaction in all regions that wrote, side by side */
static void
prepare_everywhere(RemoteRegion **writers, int n)
{
	uint64		xid = U64FromFullTransactionId(GetTopFullTransactionId());
	TrackedCommit *commit = track_commit(xid);
	char	   *gids;
	char	   *names;

	if (n > RESIDENCY_MAX_REGIONS)
		elog(ERROR, "too many regions in one transaction");
	RESIDENCY_FAULT(commit_begins);
	commit->incarnation = residency_commit_make_gids(writers, n, xid);
	for (int i = 0; i < n; i++)
		commit->regions[i] = writers[i];
	commit->nregions = commit->waiting = n;
	commit_state.current = commit;
	residency_commit_arrays(writers, n, &gids, &names);
	commit_state.deleting = commit_state.nfinished;
	residency_commit_record(commit->incarnation, xid, gids, names, commit_state.finished, commit_state.nfinished);
	RESIDENCY_FAULT(recorded);

	for (int i = 0; i < n; i++)
		queue_prepare(writers[i], commit, gids, names);
	residency_remote_flush();
	RESIDENCY_FAULT(prepare_sent);
	for (int i = 0; i < n; i++)
	{
		await_prepare(writers[i]);
		if (i == 0)
			RESIDENCY_FAULT(one_prepared);
	}
	RESIDENCY_FAULT(prepared);

	/* a decision that a crash could forget would not be one */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * True if the commit may still fail here after the callbacks: it puts notifications into a queue that
 * may be full, or empties temporary tables.  Then no other region must have committed before.
 */
static bool
may_fail_later(void)
{
	return residency_commit_notifies() || (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0;
}

/* step 1, see the head of the file */
static void
pre_commit(void)
{
	RemoteRegion *writers[RESIDENCY_MAX_REGIONS + 1];
	dlist_iter	iter;
	int			n = 0;

	residency_transaction_produce(NULL);
	if (residency_remote.context == NULL)
		return;
	residency_remote.committing = true;
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->level == 0)
			continue;
		/* nothing of the end has been sent, so the outcome is known: it rolls back there */
		if (region->wrote || region->locked)
			(void) residency_connection_drop_departed(region);
		residency_transaction_settle(region);
		if (residency_region_failed(region))
			residency_error_throw(region);
		if (region->wrote)
		{
			if (n > RESIDENCY_MAX_REGIONS)
				elog(ERROR, "too many regions in one transaction");
			writers[n++] = region;
		}
		else
		{
			/* the answer is read at the next use; a connection that was lost ended it */
			if (region->failed_level == 0)
				residency_pipeline_quiet(region, "COMMIT");
			residency_pipeline_sync(region);
			residency_transaction_reset(region);
		}
	}
	if (n == 1 && !TransactionIdIsValid(GetTopTransactionIdIfAny()) && !may_fail_later())
		commit_alone(writers[0]);
	else if (n > 0)
		prepare_everywhere(writers, n);
}

/* is the commit record where synchronous_standby_names wants it?  If the wait for that
 * was cancelled, a failover could forget the decision: then nobody may act on it */
static bool
decision_is_safe(void)
{
	if (!SyncRepRequested() || !compat_sync_standbys_defined())
		return true;
	return XactLastCommitEnd <= WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
}

/* takes the first entries off a list of finished transactions; others may have come behind them
 * since they were sent */
static void
drop_first(uint64 *finished, int *n, int *drop)
{
	*n -= *drop;
	memmove(finished, finished + *drop, *n * sizeof(uint64));
	*drop = 0;
}

/* step 3: the decision is durable; sends it, without waiting.  Must not throw. */
static void
send_decision(void)
{
	TrackedCommit *commit = commit_state.current;

	if (commit == NULL)
		return;
	RESIDENCY_FAULT(decided);
	commit_state.applying = true;
	drop_first(commit_state.finished, &commit_state.nfinished, &commit_state.deleting);
	for (int i = 0; i < commit->nregions; i++)
	{
		RemoteRegion *region = commit->regions[i];

		residency_transaction_reset(region);
		drop_first(region->finished, &region->nfinished, &region->forgetting);
		if (region->state != REMOTE_OPEN || !decision_is_safe())
		{
			commit->failed = true;
			continue;
		}
		region->decision = region->apply;
		region->apply = NULL;
		residency_pipeline_enqueue(region, region->decision);
		residency_pipeline_sync(region);
		if (i == 0)
			RESIDENCY_FAULT(one_told);
	}
	RESIDENCY_FAULT(all_told);
}

/* was the region's part gone when it was told?  Then the resolver, or another
 * participant, was faster; it is theirs to look again. */
static bool
was_overtaken(const RemoteRegion *region)
{
	const char *state = region->decision && region->decision->result ?
		PQresultErrorField(region->decision->result, PG_DIAG_SQLSTATE) : NULL;

	return state != NULL && strcmp(state, "42704") == 0;
}

/* waits for the regions to apply the decision, if the setting says so.  Must not throw. */
static void
await_applied(void)
{
	TrackedCommit *commit = commit_state.current;
	const char *missing = NULL;
	bool		overtaken = false;

	commit_state.applying = false;
	if (residency_commit_wait == RESIDENCY_COMMIT_APPLIED)
		residency_wait_bounded(residency_commit_timeout);
	RESIDENCY_FAULT(applied);
	for (int i = 0; i < commit->nregions; i++)
	{
		RemoteRegion *region = commit->regions[i];

		if (was_overtaken(region))
			overtaken = true;
		else if (region->decision == NULL || region->decision->failed || region->decision->warned ||
				 (!region->decision->answered && residency_commit_wait == RESIDENCY_COMMIT_APPLIED))
			missing = region->name;
		forget_commit(region);
	}
	if (commit->waiting <= 0)
		commit->xid = 0;
	commit_state.current = NULL;
	if (missing != NULL || overtaken)
		residency_worker_wake(RESIDENCY_WORKER_RESOLVER);
	if (missing != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
				 errmsg("the transaction is committed, but region \"%s\" has not applied it yet", missing),
				 errhint("The resolver finishes it as soon as the region answers; SELECT * FROM residency.transactions shows it until then.")));
}

/* rolls back everywhere, without waiting.  Must not throw. */
static void
abort_everywhere(void)
{
	dlist_iter	iter;

	if (residency_remote.context == NULL)
		return;
	if (commit_state.current != NULL)
		RESIDENCY_FAULT(aborting);
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);
		bool		in_doubt = region->gid[0] != '\0' && region->ending &&
			!(region->decision && region->decision->failed && !region->decision->lost);
		char		sql[300];

		if (region->level > 0)
			residency_transaction_abort_level(region, 1);
		if (in_doubt && region->state == REMOTE_OPEN)
		{
			/* PREPARE was sent: if it succeeded, ROLLBACK did nothing */
			snprintf(sql, sizeof(sql), "ROLLBACK PREPARED '%s'", region->gid);
			residency_pipeline_quiet(region, sql);
			residency_pipeline_sync(region);
			/* nobody waits for the answer, so nobody would notice that it is missing */
			residency_worker_wake(RESIDENCY_WORKER_RESOLVER);
			if (region->cancel_socket != PGINVALID_SOCKET)
				strlcpy(region->cancelled_gid, region->gid, sizeof(region->cancelled_gid));
		}
		else if (in_doubt)
			residency_worker_wake(RESIDENCY_WORKER_RESOLVER);
		forget_commit(region);
	}
	if (commit_state.current != NULL)
		commit_state.current->xid = 0;
	commit_state.current = NULL;
	commit_state.deleting = 0;
	residency_remote.waiting = false;
}

/* the client's own PREPARE TRANSACTION cannot include other regions */
static void
refuse_prepare(void)
{
	dlist_iter	iter;

	residency_transaction_produce(NULL);
	if (residency_remote.context == NULL)
		return;
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->level > 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has used region \"%s\"", region->name),
					 errhint("COMMIT it: the extension commits in all regions or in none.")));
	}
}

/* RegisterXactCallback: which step of the protocol belongs to which event */
static void
transaction_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			if (residency_session_gateway() != NULL && TransactionIdIsValid(GetTopTransactionIdIfAny()))
				RESIDENCY_FAULT(part_commits_alone);
			residency_remote.committing = false;
			send_decision();
			if (!commit_state.applying)
				residency_pipeline_sweep();
			break;
		case XACT_EVENT_ABORT:
			residency_remote.committing = false;
			abort_everywhere();
			residency_pipeline_sweep();
			break;
		case XACT_EVENT_PREPARE:
			if (residency_session_gateway() != NULL)
				RESIDENCY_FAULT(part_prepared);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (residency_session_gateway() != NULL)
				RESIDENCY_FAULT(part_prepares);
			refuse_prepare();
			break;
		default:
			break;
	}
}

/*
 * RegisterSubXactCallback: deferred answers are awaited before a subtransaction commits,
 * where an error still aborts it; never at its start, where one would end the session.
 */
static void
subtransaction_callback(SubXactEvent event, SubTransactionId mySubid,
						SubTransactionId parentSubid, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	dlist_iter	iter;

	if (event == SUBXACT_EVENT_PRE_COMMIT_SUB)
		residency_remote_wait_deferred();
	if (residency_remote.context == NULL ||
		(event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (event == SUBXACT_EVENT_COMMIT_SUB)
			residency_transaction_commit_level(region, level);
		else
			residency_transaction_abort_level(region, level);
	}
	if (event == SUBXACT_EVENT_ABORT_SUB)
		residency_remote.waiting = false;
}

/*
 * Locks are released: waits for step 3 now, so that writers queued behind this
 * transaction do not wait with it.  Called once per resource owner, hence the flag.
 */
static void
release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (phase == RESOURCE_RELEASE_AFTER_LOCKS && isCommit && isTopLevel && commit_state.applying)
	{
		await_applied();
		residency_pipeline_sweep();
	}
}

/* registers the callbacks; first of all our parts, see the head of the file */
void
residency_commit_init(void)
{
	RegisterXactCallback(transaction_callback, NULL);
	RegisterSubXactCallback(subtransaction_callback, NULL);
	RegisterResourceReleaseCallback(release_callback, NULL);
	residency_commit_statement_init();
	residency_doubt_init();
	residency_resolver_init();
}
