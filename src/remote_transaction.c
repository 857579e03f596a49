/*
 * remote_transaction.c
 *		One remote transaction per region and local transaction, and the requests in it.
 *
 * residency_remote_send puts in front of a request whatever the remote transaction
 * still lacks: BEGIN, hello on a new connection, a savepoint per local subtransaction,
 * the client's role.  All of it rides in the request's own flight.
 *
 * Subtransactions: the savepoint s<n> is made when a request is first sent at nest
 * level n, never earlier.  When level n commits, deferred answers are awaited and the
 * savepoint is released; when it aborts, ROLLBACK TO is queued without waiting.  An
 * error belongs to the level of its request.  If that level is an outer one, because
 * the request was deferred there, rolling back the inner level does not help: the error
 * is thrown again at each use until its own level goes.
 */
#include "remote_internal.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "guard.h"
#include "regions.h"

RemoteBackend residency_remote;

#define MAX_PRODUCERS 4
static RemoteProducer producers[MAX_PRODUCERS];
static int	nproducers = 0;

/* bytes on their way to one region beyond which a sender waits for answers */
#define INFLIGHT_LIMIT (8 * 1024 * 1024)

/* adds a producer; called from _PG_init only */
void
residency_remote_register_producer(RemoteProducer producer)
{
	if (nproducers >= MAX_PRODUCERS)
		elog(ERROR, "too many producers");
	producers[nproducers++] = producer;
}

/* lets the producers queue what they hold back; for all regions if region is NULL */
void
residency_transaction_produce(RemoteRegion *region)
{
	if (residency_remote.producing)
		return;
	residency_remote.producing = true;
	PG_TRY();
	{
		for (int i = 0; i < nproducers; i++)
			producers[i] (region);
	}
	PG_FINALLY();
	{
		residency_remote.producing = false;
	}
	PG_END_TRY();
}

/* makes this part's memory on first use */
static void
init_backend(void)
{
	HASHCTL		ctl = {.keysize = sizeof(RemoteRequest *), .entrysize = sizeof(RemoteRequest *)};

	residency_remote.context = AllocSetContextCreate(TopMemoryContext, "residency regions",
													 ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = residency_remote.context;
	residency_remote.requests = hash_create("residency requests", 64, &ctl,
											HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	dlist_init(&residency_remote.regions);
	residency_connection_init();
}

/* makes an entry; "name" is that of the region */
static RemoteRegion *
make_region(Oid serverid, bool admin, const char *name)
{
	RemoteRegion *region = MemoryContextAllocZero(residency_remote.context, sizeof(RemoteRegion));

	region->serverid = serverid;
	region->admin = admin;
	region->joined = true;
	region->cancel_socket = PGINVALID_SOCKET;
	region->wait_pos = -1;
	strlcpy(region->name, name, NAMEDATALEN);
	region->account = residency_border_account(serverid, InvalidOid);
	dlist_init(&region->queued);
	dlist_init(&region->sent);
	dlist_push_tail(&residency_remote.regions, &region->node);
	residency_remote.wait_set_stale = true;
	return region;
}

/*
 * Closes connections by servers that are no more: those of a call of add_region() that failed have made
 * their server themselves, and a superuser's session would stay there as long as this one.
 */
static void
close_homeless(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->state == REMOTE_CLOSED || region->level > 0 || region->conninfo != NULL ||
			SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(region->serverid)))
			continue;
		residency_connection_close(region);
		residency_pipeline_abandon_lost(region);
	}
}

/* finds the backend's entry, or makes it */
static RemoteRegion *
find_region(Oid serverid, bool admin)
{
	dlist_iter	iter;

	if (residency_remote.context == NULL)
		init_backend();
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->serverid == serverid && region->admin == admin)
			return region;
	}
	close_homeless();
	return make_region(serverid, admin, GetForeignServer(serverid)->servername);
}

/* the entry of a region in no catalog, see remote.h */
RemoteRegion *
residency_remote_stranger(const char *name, const char *conninfo)
{
	dlist_iter	iter;
	RemoteRegion *region = NULL;

	if (residency_remote.context == NULL)
		init_backend();
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *other = dlist_container(RemoteRegion, node, iter.cur);

		if (other->conninfo != NULL && strcmp(other->name, name) == 0)
			region = other;
	}
	if (region == NULL)
	{
		region = make_region(InvalidOid, true, name);
		region->joined = false;
	}
	else if (strcmp(region->conninfo, conninfo) == 0)
		return region;
	else
	{
		residency_connection_close(region);
		residency_pipeline_abandon_lost(region);
		pfree(region->conninfo);
	}
	region->conninfo = MemoryContextStrdup(residency_remote.context, conninfo);
	return region;
}

/* the region's entry for ordinary statements, see remote.h */
RemoteRegion *
residency_remote_region(Oid serverid)
{
	dlist_iter	iter;

	if (residency_remote.context != NULL)
	{
		dlist_foreach(iter, &residency_remote.regions)
		{
			RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

			if (region->serverid == serverid && region->admin && region->level > 0)
				return region;
		}
	}
	return find_region(serverid, false);
}

/* the region's entry for DDL, see remote.h */
RemoteRegion *
residency_remote_admin(Oid serverid, bool joined)
{
	RemoteRegion *plain = find_region(serverid, false);
	RemoteRegion *region = find_region(serverid, true);

	if (plain->level > 0)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("region \"%s\" was used in this transaction already", region->name),
				 errdetail("Definitions are changed on a connection of their own, which cannot see or outwait what the other one did."),
				 errhint("COMMIT first, then change the definitions.")));
	if (region->level > 0 && region->admin_user != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("another role changed definitions in region \"%s\" in this transaction", region->name),
				 errhint("COMMIT first.")));
	if (region->level == 0 &&
		(region->admin_user != GetUserId() || region->joined != joined))
	{
		residency_connection_close(region);
		residency_pipeline_abandon_lost(region);
		region->admin_user = GetUserId();
		region->joined = joined;
	}
	return region;
}

/* name of the region, as long as the backend lives */
const char *
residency_remote_name(const RemoteRegion *region)
{
	return region->name;
}

/* the foreign server behind the region */
Oid
residency_remote_serverid(const RemoteRegion *region)
{
	return region->serverid;
}

/* the request that makes sure that the other end is the region we mean; in no list */
RemoteRequest *
residency_transaction_hello(RemoteRegion *region)
{
	const ResidencySelf *self = residency_self();
	char		deployment[32];
	char		instance[32];
	char		incarnation[32];
	const char *values[7];

	if (self == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is not a region yet"),
				 errhint("Run SELECT residency.init('name of this region').")));
	snprintf(deployment, sizeof(deployment), INT64_FORMAT, self->deployment);
	values[0] = deployment;
	values[1] = region->name;
	values[2] = RESIDENCY_VERSION;
	values[3] = self->region;
	values[4] = region->admin ? "t" : "f";
	snprintf(instance, sizeof(instance), "%016llx", (unsigned long long) residency_guard_instance());
	values[5] = instance;
	snprintf(incarnation, sizeof(incarnation), INT64_FORMAT, self->incarnation);
	values[6] = incarnation;
	region->greeted = true;
	return residency_pipeline_make(region, REMOTE_KIND_HELLO,
								   "SELECT residency.hello($1::pg_catalog.int8, $2::pg_catalog.text, "
								   "$3::pg_catalog.text, $4::pg_catalog.text, $5::pg_catalog.bool, "
								   "$6::pg_catalog.text, $7::pg_catalog.int8)",
								   lengthof(values), values, 0, -1);
}

/*
 * If a cancel request is on its way, waits until it has been acted on, and then repeats
 * the rollback: the request may have hit that instead of the statement before it.
 */
void
residency_transaction_after_cancel(RemoteRegion *region)
{
	char		sql[300];

	if (region->cancel_socket == PGINVALID_SOCKET)
		return;
	residency_cancel_finish(region);
	if (region->state == REMOTE_OPEN)
	{
		residency_pipeline_quiet(region, "ROLLBACK");
		residency_pipeline_sync(region);
		if (region->cancelled_gid[0] != '\0')
		{
			snprintf(sql, sizeof(sql), "ROLLBACK PREPARED '%s'", region->cancelled_gid);
			residency_pipeline_quiet(region, sql);
			residency_pipeline_sync(region);
		}
	}
	region->cancelled_gid[0] = '\0';
}

/*
 * Closes a connection that no transaction should be started on: its server's options
 * changed, or it was closed by the other side while it was idle.  What is found out
 * later is dealt with in residency_pipeline_lost.
 */
static void
drop_unusable_connection(RemoteRegion *region)
{
	(void) residency_connection_drop_departed(region);
	residency_transaction_after_cancel(region);
	if (region->state == REMOTE_OPEN && !region->stale)
	{
		(void) PQconsumeInput(region->conn);
		(void) residency_pipeline_advance(region);
	}
	if (region->state != REMOTE_CLOSED && region->stale)
	{
		/* whatever is still unanswered has been sent, and is followed by Terminate */
		residency_connection_close(region);
		residency_pipeline_abandon_lost(region);
	}
}

/* queues BEGIN with the local isolation level and access mode, then hello if need be */
static void
queue_begin(RemoteRegion *region)
{
	drop_unusable_connection(region);
	residency_error_clear(region);
	region->transaction++;
	region->level = region->base = GetCurrentTransactionNestLevel();
	region->proved = region->ending = region->wrote = region->locked = false;
	region->resident = region->immediate = false;
	region->role_known = true;
	region->role = InvalidOid;
	if (region->state == REMOTE_CLOSED)
		residency_connection_start(region);
	residency_pipeline_control(region, psprintf("BEGIN ISOLATION LEVEL %s%s",
												IsolationUsesXactSnapshot() ? "REPEATABLE READ" : "READ COMMITTED",
												XactReadOnly ? " READ ONLY" : ""));
	if (!region->greeted && region->joined)
		residency_pipeline_enqueue(region, residency_transaction_hello(region));
}

/* queues the change of role there, if the request's differs from the one set now */
static void
queue_role(RemoteRegion *region, Oid userid, int flags)
{
	Oid			role = (flags & REMOTE_AS_GATEWAY) ? InvalidOid : userid;

	if (region->admin && role == region->admin_user)
		role = InvalidOid;
	if (region->role_known && region->role == role)
		return;
	if (OidIsValid(role))
		residency_pipeline_control(region, psprintf("SET LOCAL ROLE %s",
													quote_identifier(GetUserNameFromId(role, false))));
	else
		residency_pipeline_control(region, "SET LOCAL ROLE NONE");
	region->role = role;
	region->role_known = true;
}

/*
 * Brings the remote transaction to where a request of this user can follow: begun, at
 * the local nest level, in the user's role, with the home constraint deferred.
 */
void
residency_transaction_begin(RemoteRegion *region, Oid userid, int flags)
{
	int			nest = GetCurrentTransactionNestLevel();

	if (region->level == 0)
		queue_begin(region);
	while (region->level < nest)
	{
		region->level++;
		residency_pipeline_control(region, psprintf("SAVEPOINT s%d", region->level));
	}
	if (region->immediate && (flags & REMOTE_RESIDENT))
	{
		residency_pipeline_control(region, psprintf("SET CONSTRAINTS %s." RESIDENCY_HOME_CONSTRAINT " DEFERRED",
													quote_identifier(region->name)));
		region->immediate = false;
	}
	queue_role(region, userid, flags);
}

/* refuses what cannot work over a border */
static void
check_allowed(RemoteRegion *region)
{
	const char *gateway = residency_session_gateway();

	if (gateway != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a session of gateway \"%s\" cannot go on to region \"%s\"", gateway, region->name),
				 errdetail("A trigger or function at the home used a table of another region."),
				 errhint("Do that work at the gateway.")));
	/* its transactions would be taken for the original's, and the other way round */
	if (!region->admin && residency_self() != NULL && residency_self()->copy)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy of region \"%s\", and may not act as it", residency_self()->region),
				 errhint("If it shall take the region's place: SELECT residency.renew().")));
	if (IsolationIsSerializable())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a SERIALIZABLE transaction cannot use region \"%s\"", region->name),
				 errhint("Use REPEATABLE READ; docs/limits.md says what it means across regions.")));
	if (IsParallelWorker())
		elog(ERROR, "a parallel worker cannot use another region");
}

/* queues one statement, see remote.h */
RemoteRequest *
residency_remote_send_about(const RemoteSubject *about, RemoteRegion *region, Oid userid,
							const char *sql, int nparams, const char *const *values,
							int flags, int64 expect)
{
	RemoteRequest *req;

	check_allowed(region);
	(void) residency_connection_drop_departed(region);
	if (!(flags & REMOTE_DEFERRED))
		residency_transaction_produce(region);
	if (region->failed_level > 0)
		residency_error_throw(region);
	if (region->inflight > INFLIGHT_LIMIT)
	{
		residency_wait_room(region, INFLIGHT_LIMIT / 2);
		if (region->failed_level > 0)
			residency_error_throw(region);
	}
	residency_transaction_settle(region);
	if (region->failed_level > 0)
		residency_error_throw(region);
	residency_transaction_begin(region, userid, flags);
	if (flags & REMOTE_WRITES)
		region->wrote = true;
	if (flags & REMOTE_LOCKS)
		region->locked = true;
	if (flags & REMOTE_SHIPS)
		region->ships = true;
	if (flags & REMOTE_RESIDENT)
		region->resident = true;
	req = residency_pipeline_make(region, REMOTE_KIND_STATEMENT, sql, nparams, values, flags, expect);
	if (about != NULL)
		residency_traffic_describe(req, about);
	residency_pipeline_enqueue(region, req);
	return req;
}

/* the same for what is about no table in particular */
RemoteRequest *
residency_remote_send(RemoteRegion *region, Oid userid, const char *sql, int nparams,
					  const char *const *values, int flags, int64 expect)
{
	return residency_remote_send_about(NULL, region, userid, sql, nparams, values, flags, expect);
}

/* waits until no deferred request is outstanding anywhere; throws what failed */
void
residency_remote_wait_deferred(void)
{
	dlist_iter	iter;

	residency_transaction_produce(NULL);
	if (residency_remote.context == NULL)
		return;
	residency_remote_flush();
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		residency_transaction_settle(region);
		if (region->deferred > 0)
			residency_wait_room(region, 0);
		if (residency_region_failed(region))
			residency_error_throw(region);
	}
}

/* the remote transaction has ended, or its end is on its way */
void
residency_transaction_reset(RemoteRegion *region)
{
	region->level = 0;
	region->rollback_to = 0;
	region->wrote = region->locked = region->ships = region->resident = region->immediate = false;
	region->ending = false;
	residency_error_clear(region);
}

/* queues the rollback of a savepoint, which then is no more */
static void
rollback_to(RemoteRegion *region, int level)
{
	char		sql[64];

	snprintf(sql, sizeof(sql), "ROLLBACK TO SAVEPOINT s%d", level);
	residency_pipeline_quiet(region, sql);
	residency_pipeline_sync(region);
	snprintf(sql, sizeof(sql), "RELEASE SAVEPOINT s%d", level);
	residency_pipeline_quiet(region, sql);
}

/*
 * Does what an aborted subtransaction put off, because a cancel request was on its way
 * that could have hit the rollback: waits for that request, then rolls back.
 */
void
residency_transaction_settle(RemoteRegion *region)
{
	int			level = region->rollback_to;

	if (level == 0)
		return;
	residency_cancel_finish(region);
	region->rollback_to = 0;
	if (region->state == REMOTE_OPEN)
	{
		residency_pipeline_sync(region);
		rollback_to(region, level);
		residency_pipeline_sync(region);
	}
	else
		residency_error_store_text(region, region->base, ERRCODE_CONNECTION_FAILURE,
								   "the connection was lost", NULL);
}

/*
 * The local (sub)transaction at this nest level aborts: queues the rollback there.
 * Never waits, except that a statement that may still be running there is cancelled.
 */
void
residency_transaction_abort_level(RemoteRegion *region, int level)
{
	bool		whole = level <= region->base;

	if (region->level < level)
		return;
	residency_pipeline_abandon(region, whole ? 0 : level);
	/* without a key the connection would be closed, and a PREPARE that is on its way would
	 * leave a prepared transaction behind: then the rollback just waits its turn */
	if (region->state == REMOTE_OPEN && residency_remote.waiting && !dlist_is_empty(&region->sent) &&
		region->failed_level == 0 &&	/* else nothing runs there any more */
		!(region->ending && region->cancel_key == 0))
		residency_cancel_start(region);
	if (whole && region->state == REMOTE_CONNECTING)
	{
		/* nothing was ever sent */
		residency_connection_close(region);
		residency_pipeline_abandon_lost(region);
	}

	region->role_known = false;
	region->immediate = true;	/* not known: set DEFERRED again before the next write */
	if (region->failed_level >= level)
		residency_error_clear(region);
	if (region->state != REMOTE_CLOSED)
	{
		residency_pipeline_sync(region);	/* the rollback must be first in its flight */
		if (whole)
			residency_pipeline_quiet(region, "ROLLBACK");
		else if (region->cancel_socket != PGINVALID_SOCKET)
			region->rollback_to = level;	/* covers a deeper one; not before the request has been acted on */
		else
			rollback_to(region, level);
		residency_pipeline_sync(region);
	}
	region->level = level - 1;
	if (whole)
		residency_transaction_reset(region);
}

/*
 * The local subtransaction at this nest level commits: what it did there belongs to
 * the next outer level from now on.  Deferred answers must have been awaited.
 */
void
residency_transaction_commit_level(RemoteRegion *region, int level)
{
	dlist_head *lists[] = {&region->sent, &region->queued};
	dlist_iter	iter;

	if (region->level < level)
		return;
	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			RemoteRequest *req = dlist_container(RemoteRequest, node, iter.cur);

			req->level = Min(req->level, level - 1);
		}
	}
	region->failed_level = Min(region->failed_level, level - 1);
	region->level = level - 1;
	if (region->base >= level)
		region->base = level - 1;
	else
		residency_pipeline_control(region, psprintf("RELEASE SAVEPOINT s%d", level));
}
