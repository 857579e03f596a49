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
 * it says hello, or refuses that for whatever reason of its own: a standby may be promoted, a copy
 * renewed, another version updated.  A server that is starting, stopping or full answers too: it may
 * be that region.  Whoever else is at the address, the newcomer perhaps, is no such region.  A refused
 * login tells nothing: the caller has to know who is at that address.
 *
 * Of several hosts each is asked, so that none that is silent keeps the others from answering.  (libpq
 * goes on to the next address of one name by itself, but not from one that is silent.)
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

/* what residency.still_answers() returns */
#define ANSWER_YES "yes"
#define ANSWER_NO "no"
#define ANSWER_UNKNOWN "unknown"	/* somebody is there, but who is not known */

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

/* what a hello that failed means: is it a refusal by that region? */
static const char *
judge_refusal(const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *function = PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION);
	const char *table = PQresultErrorField(res, PG_DIAG_TABLE_NAME);

	if (state == NULL)
		return ANSWER_NO;
	/* all refusals but the first one, which names the table that says who is there */
	if (strncmp(state, "08", 2) == 0)
		return table != NULL && strcmp(table, "self") == 0 ? ANSWER_NO : ANSWER_YES;
	/* no rights: as hello found out, behind that, or in a database that is no such region */
	if (strcmp(state, "42501") == 0)
		return function != NULL && strcmp(function, "residency_hello") == 0 ? ANSWER_YES : ANSWER_NO;
	/* another version of the extension, whose hello is called otherwise */
	if (strcmp(state, "42883") == 0)
		return ANSWER_UNKNOWN;
	return strncmp(state, "53", 2) == 0 || strncmp(state, "57", 2) == 0 ? ANSWER_YES : ANSWER_NO;
}

/* greets the other end as the gateway does; does it take itself for that region? */
static const char *
says_hello(PGconn *conn, const char *region, TimestampTz deadline)
{
	const ResidencySelf *self = residency_self();
	char	   *deployment = psprintf(INT64_FORMAT, self->deployment);
	char	   *instance = psprintf("%016llx", (unsigned long long) residency_guard_instance());
	char	   *incarnation = psprintf(INT64_FORMAT, self->incarnation);
	const char *values[] = {deployment, region, RESIDENCY_VERSION, self->region, "f", instance, incarnation};
	PGresult   *res;
	const char *answer;

	if (PQsendQueryParams(conn, "SELECT residency.hello($1::pg_catalog.int8, $2::pg_catalog.text, "
						  "$3::pg_catalog.text, $4::pg_catalog.text, $5::pg_catalog.bool, "
						  "$6::pg_catalog.text, $7::pg_catalog.int8)",
						  lengthof(values), NULL, values, NULL, NULL, 0) != 1)
		return ANSWER_NO;
	while (PQisBusy(conn))
	{
		if (!wait_for_socket(conn, WL_SOCKET_READABLE, deadline) || PQconsumeInput(conn) != 1)
			return ANSWER_NO;
	}
	res = PQgetResult(conn);
	answer = PQresultStatus(res) == PGRES_TUPLES_OK ? ANSWER_YES : judge_refusal(res);
	PQclear(res);
	return answer;
}

/* notices of a home may hold values, and belong into nobody's log here */
static void
ignore_notice(void *arg, const PGresult *res)
{
}

/* what a refused connection means */
static const char *
judge_connection(PGconn *conn)
{
	const char *state = residency_health_refusal_state(PQerrorMessage(conn));

	if (strncmp(state, "57P03", 5) == 0 || strncmp(state, "53300", 5) == 0)
		return ANSWER_YES;
	return strncmp(state, "28", 2) == 0 ? ANSWER_UNKNOWN : ANSWER_NO;
}

/* asks at one host */
static const char *
ask_host(const char *region, const char **keywords, const char **values, TimestampTz deadline)
{
	PGconn	   *conn;
	const char *volatile answer = ANSWER_NO;

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
			answer = finish_connecting(conn, deadline) ? says_hello(conn, region, deadline) : judge_connection(conn);
		}
	}
	PG_FINALLY();
	{
		PQfinish(conn);
		ReleaseExternalFD();
	}
	PG_END_TRY();
	return answer;
}

/* how many hosts a list names */
static int
count_hosts(const char **keywords, const char **values)
{
	int			most = 1;

	for (int i = 0; keywords[i] != NULL; i++)
	{
		int			n = 1;

		if (values[i] == NULL || (strcmp(keywords[i], "host") != 0 && strcmp(keywords[i], "hostaddr") != 0))
			continue;
		for (const char *c = values[i]; *c; c++)
			n += *c == ',';
		most = Max(most, n);
	}
	return most;
}

/* the same parameters for one host of several, whatever it is: a standby counts, too */
static const char **
values_for_host(const char **keywords, const char **values, int host)
{
	int			n = 0;
	const char **result;

	while (keywords[n] != NULL)
		n++;
	result = palloc0((n + 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
	{
		result[i] = values[i];
		if (values[i] == NULL)
			continue;
		if (strcmp(keywords[i], "target_session_attrs") == 0)
			result[i] = "any";
		else if (strchr(values[i], ',') != NULL &&
				 (strcmp(keywords[i], "host") == 0 || strcmp(keywords[i], "hostaddr") == 0 ||
				  strcmp(keywords[i], "port") == 0))
			result[i] = residency_health_element(values[i], host);
	}
	return result;
}

/* SQL: residency.still_answers(region): asks for residency.connect_timeout at most */
Datum
residency_still_answers(PG_FUNCTION_ARGS)
{
	char	   *region = NameStr(*PG_GETARG_NAME(0));
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), residency_connect_timeout);
	const char **keywords;
	const char **values;
	const char *answer = ANSWER_NO;
	int			nhosts;

	residency_require_superuser("ask whether a region is lost");
	/* without the gateway's mapping nobody can ask */
	if (!residency_connection_parameters(residency_region_server(region), InvalidOid, &keywords, &values))
		PG_RETURN_TEXT_P(cstring_to_text(ANSWER_UNKNOWN));
	nhosts = count_hosts(keywords, values);
	for (int i = 0; i < nhosts; i++)
	{
		TimestampTz now = GetCurrentTimestamp();
		long		share = TimestampDifferenceMilliseconds(now, deadline) / (nhosts - i);
		const char *one = ask_host(region, keywords, values_for_host(keywords, values, i),
								   TimestampTzPlusMilliseconds(now, share));

		if (strcmp(one, ANSWER_NO) != 0)
			answer = one;
		if (strcmp(answer, ANSWER_YES) == 0)
			break;
	}
	PG_RETURN_TEXT_P(cstring_to_text(answer));
}
