/*
 * remote_health_gateway.c
 *		The home's side: which gateways are silent, and what becomes of their sessions.
 *
 * A session that a vanished gateway left behind keeps its locks until TCP gives up, and
 * for ever behind a middle box that goes on to acknowledge.  But a gateway's health worker
 * pings each region over a session of its own, and says when the next ping will come.  So
 * a gateway that has pinged and ceased, without taking leave, is silent, whatever its
 * other sessions look like: all of them are terminated.  That undoes what they had not
 * prepared; prepared parts wait for their decision elsewhere.
 *
 * A gateway that does not ping (its workers are switched off, or the session of its pings
 * broke) is judged by our own view of it: while it is away, and none of its
 * sessions has begun or ended a statement for residency.away_after, they are terminated.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"

#include "guard.h"
#include "regions.h"
#include "remote_health_internal.h"

PG_FUNCTION_INFO_V1(residency_ping);

/* the session that pings takes leave, or is terminated: its gateway pings no longer */
static void
stop_pinging(int code, Datum arg)
{
	const char *gateway = residency_session_gateway();

	if (gateway != NULL)
		residency_health_heard(gateway, 0, 0);
}

/*
 * SQL: residency.ping(pause), a gateway's question whether this region is there.  "pause" is
 * how many ms it will wait before the next one.  True unless this server is a standby, which
 * could not take writes.
 */
Datum
residency_ping(PG_FUNCTION_ARGS)
{
	static bool registered = false;
	const char *gateway = residency_session_gateway();
	int32		pause = PG_GETARG_INT32(0);

	if (gateway == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("residency.ping() is for sessions of other regions")));
	if (!registered)
		before_shmem_exit(stop_pinging, (Datum) 0);
	registered = true;
	residency_health_heard(gateway, GetCurrentTimestamp(), Max(pause, 0));
	PG_RETURN_BOOL(!RecoveryInProgress());
}

/*
 * Terminates the sessions of a gateway, those for administration too, which log in as somebody else:
 * they may hold the lock of a change of all regions.  With unless_active only if none of them did anything for
 * that many ms.  In a transaction of the worker.  Returns how many there were.
 */
static int
terminate_sessions(const char *gateway, const char *role, long unless_active)
{
	Oid			types[] = {NAMEOID, INT8OID, INT4ARRAYOID};
	Datum		values[] = {CStringGetDatum(role), Int64GetDatum(unless_active),
	PointerGetDatum(residency_guard_sessions(gateway))};
	int			count;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(
							  "WITH own AS MATERIALIZED ("
							  " SELECT pid, coalesce(state_change, 'infinity'::pg_catalog.timestamptz) AS last"
							  " FROM pg_catalog.pg_stat_activity"
							  " WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()"
							  " AND (usename OPERATOR(pg_catalog.=) $1 OR pid OPERATOR(pg_catalog.=) ANY ($3)))"
							  " SELECT pg_catalog.pg_terminate_backend(pid) FROM own"
							  " WHERE $2 OPERATOR(pg_catalog.<) 0 OR (SELECT pg_catalog.max(last) FROM own)"
							  " OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-)"
							  " pg_catalog.make_interval(secs => $2::pg_catalog.float8 OPERATOR(pg_catalog./) 1000))",
							  3, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "sessions of a gateway could not be listed");
	count = SPI_processed;
	SPI_finish();
	return count;
}

/*
 * Ends the sessions of a gateway that has fallen silent.  Called now and then, in a
 * transaction of the worker; "patience" is how long silence is borne, in ms.
 */
void
residency_health_dismiss(HealthSlot *slot, long patience)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz heard = (TimestampTz) pg_atomic_read_u64(&slot->heard);
	long		silent = heard == 0 ? 0 : TimestampDifferenceMilliseconds(heard, now);
	const char *role;
	int			count;

	if (heard != 0 && silent <= patience + (long) pg_atomic_read_u32(&slot->pause))
		return;
	if (heard == 0 && pg_atomic_read_u32(&slot->state) != RESIDENCY_AWAY)
		return;
	role = residency_gateway_role(slot->region);
	if (role == NULL)
		return;
	count = terminate_sessions(slot->region, pstrdup(role), heard != 0 ? -1 : patience);
	if (heard != 0)
		pg_atomic_write_u64(&slot->heard, 0);
	if (count > 0)
		ereport(LOG,
				(errmsg("gateway \"%s\" is silent: %d of its sessions were terminated", slot->region, count)));
}
