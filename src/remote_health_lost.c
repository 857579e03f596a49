/*
 * remote_health_lost.c
 *		Whether a region that somebody takes for lost answers after all.
 *
 * residency.replace_region() asks all regions that live: what one of them can still reach is not
 * lost, and would go on beside the database that takes its place.  The states of health do not
 * tell it, since a region that came back a moment ago counts as away.
 *
 * This is a connection of its own, with the gateway's credential, because a session that serves
 * the region where replace_region() was called may not use the ordinary ones.  A region answers if
 * it says hello.  A server that is starting, stopping or full answers too: it may be that region.
 * Whoever else is at the address, the newcomer perhaps, refuses the login or is no such region.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"

#include "guard.h"
#include "regions.h"
#include "regions_internal.h"
#include "remote_health_internal.h"
#include "remote_internal.h"

PG_FUNCTION_INFO_V1(residency_still_answers);

/* waits until the socket is ready; false if the time is over */
static bool
wait_for_socket(PGconn *conn, int events, TimestampTz deadline)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	int			got;

	if (left <= 0)
		return false;
	got = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events,
							PQsocket(conn), left, PG_WAIT_EXTENSION);
	if (got & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/* goes on until the connection stands; false if it does not in time, or was refused */
static bool
finish_connecting(PGconn *conn, TimestampTz deadline)
{
	PostgresPollingStatusType poll = PGRES_POLLING_WRITING;

	while (PQstatus(conn) != CONNECTION_BAD)
	{
		if (!wait_for_socket(conn, poll == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
							 deadline))
			return false;
		poll = PQconnectPoll(conn);
		if (poll == PGRES_POLLING_OK)
			return true;
		if (poll == PGRES_POLLING_FAILED)
			return false;
	}
	return false;
}

/* greets the other end as the gateway does; true if it takes itself for that region */
static bool
says_hello(PGconn *conn, const char *region, TimestampTz deadline)
{
	const ResidencySelf *self = residency_self();
	char	   *deployment = psprintf(INT64_FORMAT, self->deployment);
	char	   *instance = psprintf("%016llx", (unsigned long long) residency_guard_instance());
	char	   *incarnation = psprintf(INT64_FORMAT, self->incarnation);
	const char *values[] = {deployment, region, RESIDENCY_VERSION, self->region, "f", instance, incarnation};
	PGresult   *res;
	bool		hello;

	if (PQsendQueryParams(conn, "SELECT residency.hello($1::pg_catalog.int8, $2::pg_catalog.text, "
						  "$3::pg_catalog.text, $4::pg_catalog.text, $5::pg_catalog.bool, "
						  "$6::pg_catalog.text, $7::pg_catalog.int8)",
						  lengthof(values), NULL, values, NULL, NULL, 0) != 1)
		return false;
	while (PQisBusy(conn))
	{
		if (!wait_for_socket(conn, WL_SOCKET_READABLE, deadline) || PQconsumeInput(conn) != 1)
			return false;
	}
	res = PQgetResult(conn);
	hello = PQresultStatus(res) == PGRES_TUPLES_OK;
	PQclear(res);
	return hello;
}

/* notices of a home may hold values, and belong into nobody's log here */
static void
ignore_notice(void *arg, const PGresult *res)
{
}

/* true if the server refuses connections for the moment only */
static bool
is_busy(PGconn *conn)
{
	const char *state = residency_health_refusal_state(PQerrorMessage(conn));

	return strncmp(state, "57P03", 5) == 0 || strncmp(state, "53300", 5) == 0;
}

/* SQL: residency.still_answers(region): asks for residency.connect_timeout at most */
Datum
residency_still_answers(PG_FUNCTION_ARGS)
{
	char	   *region = NameStr(*PG_GETARG_NAME(0));
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), residency_connect_timeout);
	const char **keywords;
	const char **values;
	PGconn	   *conn;
	volatile bool answers = false;

	residency_require_superuser("ask whether a region is lost");
	if (!residency_connection_parameters(residency_region_server(region), InvalidOid, &keywords, &values))
		PG_RETURN_BOOL(false);
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no file descriptor is left to connect to region \"%s\"", region),
				 errhint("Raise max_files_per_process on this server.")));
	conn = PQconnectStartParams(keywords, values, 0);
	PG_TRY();
	{
		if (conn != NULL)
		{
			PQsetErrorVerbosity(conn, PQERRORS_VERBOSE);
			PQsetNoticeReceiver(conn, ignore_notice, NULL);
			answers = finish_connecting(conn, deadline) ? says_hello(conn, region, deadline) : is_busy(conn);
		}
	}
	PG_FINALLY();
	{
		PQfinish(conn);
		ReleaseExternalFD();
	}
	PG_END_TRY();
	PG_RETURN_BOOL(answers);
}
