/*
 * remote_connection.c
 *		Makes, replaces and closes the connections to other regions.
 *
 * Connecting is asynchronous: remote_wait.c polls all connections that are being
 * made together with those at work, so regions are connected to side by side.
 *
 * Session settings travel in the start-up packet, hence cost no round trip.  They
 * fix the text formats in which values travel (fdw_convert.c sets the same ones
 * here), and leave alone what the home's own triggers rely on, such as search_path.
 */
#include "remote_internal.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "health.h"
#include "regions.h"
#include "worker.h"

/* formats of values, and how soon the home notices that a gateway has vanished */
#define SESSION_OPTIONS \
	"-c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=3 -c TimeZone=UTC " \
	"-c lc_monetary=C -c bytea_output=hex -c cursor_tuple_fraction=1.0 " \
	"-c client_connection_check_interval=1s -c client_min_messages=warning " \
	"-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 " \
	"-c tcp_user_timeout=20s"

/* longest stay for answers when a backend ends */
#define EXIT_LINGER_MS 1000

/* what a statement is told that needs a region that is away */
#define AWAY_MESSAGE "it is away"
#define AWAY_HINT "SELECT * FROM residency.regions shows why. Rows of this region do not need it; SET residency.on_away = 'skip' reads without it."

/* our own defaults; the options of server and mapping come later and win */
static const char *const default_options[][2] = {
	{"fallback_application_name", "residency"},
	{"gssencmode", "disable"},		/* libpq would ask for it, one round trip, for nothing */
	{"keepalives_idle", "10"},
	{"keepalives_interval", "5"},
	{"keepalives_count", "3"},
	{"tcp_user_timeout", "20000"},
	{"options", SESSION_OPTIONS},
};

/*
 * Options of a user mapping.  That of InvalidOid, PUBLIC, holds the gateway's credential; a
 * user's own one is for administration.  False if there is none.
 */
static bool
mapping_options(Oid serverid, Oid userid, List **options)
{
	HeapTuple	tuple;
	Datum		datum;
	bool		isnull;

	*options = NIL;
	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(userid),
							ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tuple))
		return false;
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple,
							Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		*options = untransformRelOptions(datum);
	ReleaseSysCache(tuple);
	return true;
}

/* our defaults and these options (DefElem): arrays that end in NULL, in the current memory context */
static void
make_parameters(List *options, const char ***keywords, const char ***values)
{
	ListCell   *lc;
	int			max = lengthof(default_options) + list_length(options) + 4;
	int			n = 0;

	*keywords = palloc0(max * sizeof(char *));
	*values = palloc0(max * sizeof(char *));
	for (int i = 0; i < lengthof(default_options); i++)
	{
		(*keywords)[n] = default_options[i][0];
		(*values)[n++] = default_options[i][1];
	}
	if (residency_is_worker)
	{
		(*keywords)[n] = "fallback_application_name";
		(*values)[n++] = RESIDENCY_WORKER_APPLICATION;
	}
	foreach(lc, options)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		(*keywords)[n] = def->defname;
		(*values)[n++] = defGetString(def);
	}
	(*keywords)[n] = "client_encoding";
	(*values)[n++] = GetDatabaseEncodingName();
}

/*
 * Parameters to connect to a server with the mapping of a user (InvalidOid: PUBLIC, the
 * gateway's), as make_parameters makes them.  False if there is no such mapping.
 */
bool
residency_connection_parameters(Oid serverid, Oid userid, const char ***keywords, const char ***values)
{
	ForeignServer *server = GetForeignServer(serverid);
	List	   *options;

	if (!mapping_options(serverid, userid, &options))
		return false;
	make_parameters(list_concat(list_copy(server->options), options), keywords, values);
	return true;
}

/*
 * There is no mapping to connect with.  Throws, but for a worker: to that the region is one more that
 * cannot be reached, and keeps it from no other.
 */
static void
refuse_without_mapping(RemoteRegion *region)
{
	if (residency_is_worker)
	{
		residency_error_store_text(region, Max(region->base, 1), ERRCODE_UNDEFINED_OBJECT,
								   "there is no user mapping to log in with", NULL);
		residency_pipeline_abandon_lost(region);
		return;
	}
	if (region->admin)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" has no administrative access to region \"%s\"",
						GetUserNameFromId(region->admin_user, true), region->name),
				 errhint("CREATE USER MAPPING FOR CURRENT_USER SERVER %s OPTIONS (user '...', password '...').",
						 quote_identifier(region->name))));
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("region \"%s\" has no user mapping for PUBLIC", region->name),
			 errhint("SELECT residency.add_region(...) makes it; the gateway logs in with it.")));
}

/* true if the region has gone away since its connection was made; also false when this
 * process ends, since it could not wait for the lock behind which that is known, and for a
 * newcomer: what is known then is about the lost database whose place it takes */
bool
residency_connection_departed(const RemoteRegion *region)
{
	return region->joined && region->state != REMOTE_CLOSED && MyProc != NULL &&
		residency_region_left(region->name) >= region->connect_start;
}

/*
 * Gives up a connection whose region has gone away: what was asked there is lost, and so is
 * its transaction.  True if that is so.  Neither waits nor throws.
 */
bool
residency_connection_drop_departed(RemoteRegion *region)
{
	if (!residency_connection_departed(region))
		return false;
	residency_connection_close(region);
	residency_pipeline_abandon_lost(region);
	residency_error_store_text(region, region->base, ERRCODE_CONNECTION_FAILURE,
							   AWAY_MESSAGE, AWAY_HINT);
	return true;
}

/*
 * Begins to connect.  Does not wait: the wait loop goes on with it.  Throws only for
 * what is wrong here (no mapping, no descriptor); a region that cannot be reached
 * fails in residency_connection_poll, and one that is away right here, without a word to it.
 */
void
residency_connection_start(RemoteRegion *region)
{
	const char **keywords;
	const char **values;

	Assert(region->state == REMOTE_CLOSED && region->conn == NULL);

	/* in this order: whoever goes away behind the second line has left after the first */
	region->connect_start = GetCurrentTimestamp();
	/*
	 * A newcomer that does not let the gateway in yet is away for the gateway only.  Workers speak
	 * to who is not trusted yet because it came and went: its parts in doubt hold locks.
	 */
	if (region->joined && residency_region_state(region->name) == RESIDENCY_AWAY &&
		!(residency_is_worker && residency_region_returning(region->name)))
	{
		residency_error_store_text(region, Max(region->base, 1),
								   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
								   AWAY_MESSAGE, AWAY_HINT);
		residency_pipeline_abandon_lost(region);
		return;
	}
	/* libpq takes a connection string apart that stands in place of a database's name */
	if (region->conninfo != NULL)
		make_parameters(list_make1(makeDefElem("dbname", (Node *) makeString(region->conninfo), -1)),
						&keywords, &values);
	else if (!residency_connection_parameters(region->serverid,
											  region->admin ? region->admin_user : InvalidOid,
											  &keywords, &values))
	{
		refuse_without_mapping(region);
		return;
	}
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no file descriptor is left to connect to region \"%s\"", region->name),
				 errhint("Raise max_files_per_process on this server.")));

	region->conn = PQconnectStartParams(keywords, values, region->conninfo != NULL);
	residency_remote.wait_set_stale = true;
	region->state = REMOTE_CONNECTING;
	region->poll = PGRES_POLLING_WRITING;
	region->last_look = region->connect_start;
	region->connect_deadline = TimestampTzPlusMilliseconds(region->last_look,
														   residency_connect_timeout);
	region->connect_trip = residency_remote.traffic.round_trips;
	region->fresh = true;
	region->greeted = false;
	region->stale = false;
	region->want_write = false;
	region->unsynced = false;
	region->unsynced_bytes = 0;
	region->cancel_key = 0;
	if (region->conn == NULL || PQstatus(region->conn) == CONNECTION_BAD)
		residency_connection_poll(region);
}

/*
 * Discards a notice.  That there was a warning is remembered with the request that is being answered,
 * since PREPARE and COMMIT PREPARED tell in this way that their wait for a synchronous standby was
 * cancelled.
 */
static void
take_notice(void *arg, const PGresult *res)
{
	RemoteRegion *region = arg;
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);

	if (severity != NULL && strcmp(severity, "WARNING") == 0 && !dlist_is_empty(&region->sent))
		dlist_head_element(RemoteRequest, node, &region->sent)->warned = true;
}

/*
 * Takes one step of connecting.  Called when the socket is ready as region->poll
 * asks, and now and then to look at the deadline.  Never throws: a failure becomes
 * the region's stored error (class 08), thrown by whoever waits for it.
 */
void
residency_connection_poll(RemoteRegion *region)
{
	Assert(region->state == REMOTE_CONNECTING);

	residency_remote.wait_set_stale = true; /* the socket may be another one now */
	if (region->poll == PGRES_POLLING_READING)
		region->connect_trip++;
	if (region->conn != NULL && PQstatus(region->conn) != CONNECTION_BAD)
		region->poll = PQconnectPoll(region->conn);
	else
		region->poll = PGRES_POLLING_FAILED;

	if (region->poll == PGRES_POLLING_OK)
	{
		/* notices of the home may hold values, so they end here */
		PQsetNoticeReceiver(region->conn, take_notice, region);
		if (PQsetnonblocking(region->conn, 1) != 0 || PQenterPipelineMode(region->conn) != 1)
			region->poll = PGRES_POLLING_FAILED;
		else
		{
			region->state = REMOTE_OPEN;
			residency_pipeline_push_queued(region);
			return;
		}
	}
	if (region->poll == PGRES_POLLING_FAILED ||
		GetCurrentTimestamp() > region->connect_deadline)
	{
		char		reason[256];

		if (region->poll != PGRES_POLLING_FAILED)
			strlcpy(reason, "time-out (residency.connect_timeout)", sizeof(reason));
		else
		{
			strlcpy(reason, region->conn ? PQerrorMessage(region->conn) : "out of memory",
					sizeof(reason));
			for (char *end = reason + strlen(reason); end > reason && end[-1] == '\n';)
				*--end = '\0';
		}
		residency_connection_close(region);
		residency_error_store_text(region, Max(region->base, 1), ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
								   psprintf("cannot connect: %s", reason), NULL);
		residency_pipeline_abandon_lost(region);
	}
}

/*
 * Closes the connection.  Leaves the entries of the pipeline alone: the caller says
 * what becomes of them.  libpq sends a Terminate message, without waiting.
 */
void
residency_connection_close(RemoteRegion *region)
{
	if (region->cancel_socket != PGINVALID_SOCKET)
	{
		closesocket(region->cancel_socket);
		region->cancel_socket = PGINVALID_SOCKET;
		ReleaseExternalFD();
	}
	if (region->state != REMOTE_CLOSED)
	{
		PQfinish(region->conn);
		ReleaseExternalFD();
	}
	region->conn = NULL;
	region->state = REMOTE_CLOSED;
	region->greeted = false;
	region->wait_pos = -1;
	region->inflight = 0;
	residency_remote.wait_set_stale = true;
	if (region->statements != NULL)
	{
		hash_destroy(region->statements);
		region->statements = NULL;
	}
}

/* a server or mapping changed: its connections are replaced between transactions */
static void
invalidate_connections(Datum arg, int cacheid, uint32 hashvalue)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_remote.regions)
		dlist_container(RemoteRegion, node, iter.cur)->stale = true;
}

/*
 * The backend ends: takes leave of the regions.  Answers that are still on their way
 * (to a COMMIT nobody waited for) are read first, for a bounded time; otherwise the
 * kernel would reset the connection, and every region would log that.
 */
static void
close_at_exit(int code, Datum arg)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_remote.regions)
		residency_transaction_after_cancel(dlist_container(RemoteRegion, node, iter.cur));
	residency_wait_idle(EXIT_LINGER_MS);
	dlist_foreach(iter, &residency_remote.regions)
	{
		RemoteRegion *region = dlist_container(RemoteRegion, node, iter.cur);

		if (region->state != REMOTE_CLOSED)
			PQfinish(region->conn);
		region->state = REMOTE_CLOSED;
	}
}

/* registers the callbacks; called once, with the first entry */
void
residency_connection_init(void)
{
	on_proc_exit(close_at_exit, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, invalidate_connections, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, invalidate_connections, (Datum) 0);
}
