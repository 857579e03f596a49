/*
 * remote_health_probe.c
 *		Asks one region again and again whether it is there, and measures how far away it is.
 *
 * A probe has a connection of its own, made with the gateway's credential and greeted with
 * hello, because what matters is whether statements could use the region: one that is up
 * but refuses us, runs another version, or has become a standby does not count as an
 * answer.  Nothing here waits: the worker calls when a socket is ready or a time has come.
 *
 * Silence and refusal follow one rule: what counts is how long ago the region answered last.
 * A statement that is refused fails at once by itself, so nothing is lost by waiting until
 * the time is over, and a server that restarts quickly is never given up.
 *
 * Only "too many connections" is an answer, though nobody can connect: the server is
 * there, and those who are connected go on.
 *
 * A region is silent when it owes an answer.  The worker may come late to ask, because it waited for
 * the catalog: that is the worker's fault, and excused.  But an answer that was owed meanwhile would have been there when the worker came back;
 * so sockets are read before anybody is judged, and what is not there then counts in full.
 */
#include "postgres.h"

#include "storage/fd.h"

#include "guard.h"
#include "remote_health_internal.h"

/* pings: not more often, not less often, in ms */
#define PAUSE_MIN 50
#define PAUSE_MAX 1000

/* longest time to connect, in ms, unless the patience is greater */
#define CONNECT_MS 3000

/*
 * longest time that a resolver is given, in ms.  If addresses are known already, each other attempt
 * gives it only a part of the patience and goes on with these.
 */
#define LOOKING_MS 15000

/* longest delay that counts against the region before it was measured, in ms */
#define FIRST_ANSWER_MS 3000

/* longest first round-trip time that is believed, in ms: perhaps the worker just came late to read */
#define FIRST_RTT_MS 1000

/*
 * ms without an answer after which the region is away.  Not less than it takes to connect
 * and to be answered over a long way, whatever the setting says.
 */
long
residency_health_probe_patience(const Probe *probe)
{
	double		least = probe->ever && probe->rtt >= 0 ? 8 * probe->rtt : FIRST_ANSWER_MS;

	return Max((double) residency_away_after, least);
}

/* ms between two pings: several fit into the patience */
long
residency_health_probe_pause(const Probe *probe)
{
	return Min(Max(residency_health_probe_patience(probe) / 5, PAUSE_MIN), PAUSE_MAX);
}

/* ends the connection, without waiting */
void
residency_health_probe_close(Probe *probe)
{
	if (probe->conn != NULL)
	{
		PQfinish(probe->conn);
		ReleaseExternalFD();
	}
	residency_health_address_stop(probe);
	probe->conn = NULL;
	probe->phase = PROBE_CLOSED;
	probe->greeted = false;
	probe->want_write = false;
}

/*
 * SQLSTATE of the server that refused a connection, "" if none is known.  libpq tells it in
 * verbose messages only, behind the severity: "...FATAL:  53300: sorry, ...".
 */
const char *
residency_health_refusal_state(const char *message)
{
	for (const char *p = strstr(message, ":  "); p != NULL; p = strstr(p + 1, ":  "))
		if (strspn(p + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 && p[8] == ':')
			return p + 3;
	return "";
}

/*
 * The attempt or the connection failed: notes why, and tries again after a pause.  The
 * reason is one line without the details that verbose messages have.
 */
static void
give_up(Probe *probe, const char *reason, TimestampTz now)
{
	const char *state = residency_health_refusal_state(reason);
	char	   *end;

	if (strncmp(state, "53300", 5) == 0)
	{
		probe->answered = now;
		probe->excused = 0;
	}
	strlcpy(probe->problem, reason, sizeof(probe->problem));
	end = strstr(probe->problem, "\nLOCATION:");
	if (end != NULL)
		*end = '\0';
	for (char *c = probe->problem; *c; c++)
		if (*c == '\n' || *c == '\t')
			*c = ' ';
	end = probe->problem + strlen(probe->problem);
	while (end > probe->problem && end[-1] == ' ')
		*--end = '\0';
	residency_health_probe_close(probe);
	probe->good = 0;
	probe->due = TimestampTzPlusMilliseconds(now, residency_health_probe_pause(probe));
}

/* begins to connect; the addresses are known, or need not be */
static void
start_connecting(Probe *probe, TimestampTz now)
{
	if (!AcquireExternalFD())
	{
		give_up(probe, "this server has no file descriptor left", now);
		return;
	}
	probe->conn = residency_health_address_connect(probe);
	if (probe->conn == NULL)
	{
		ReleaseExternalFD();
		give_up(probe, "out of memory", now);
		return;
	}
	probe->phase = PROBE_CONNECTING;
	probe->asked = now;
	probe->poll = PGRES_POLLING_WRITING;
	PQsetErrorVerbosity(probe->conn, PQERRORS_VERBOSE);
	if (PQstatus(probe->conn) == CONNECTION_BAD)
		give_up(probe, PQerrorMessage(probe->conn), now);
}

/* begins to look for the region */
static void
start_looking(Probe *probe, TimestampTz now)
{
	if (probe->keywords == NULL)
		give_up(probe, "there is no user mapping for PUBLIC to log in with", now);
	else if (!residency_health_address_has_names(probe))
		start_connecting(probe, now);
	else if (residency_health_address_start(probe))
	{
		probe->phase = PROBE_LOOKING;
		probe->asked = now;
		probe->hasty = !probe->hasty && probe->hosts != NULL;
	}
	else
		give_up(probe, "no process could be started to look up its host name", now);
}

/* the resolver has said all that it will; without any address there is no way to the region */
static void
end_looking(Probe *probe, const char *problem, TimestampTz now)
{
	residency_health_address_stop(probe);
	if (probe->hosts != NULL)
		start_connecting(probe, now);
	else
		give_up(probe, problem, now);
}

/* sends a question; its answer will come */
static void
ask(Probe *probe, const char *sql, int nparams, const char *const *values, TimestampTz now)
{
	if (PQsendQueryParams(probe->conn, sql, nparams, NULL, values, NULL, NULL, 0) != 1)
	{
		give_up(probe, PQerrorMessage(probe->conn), now);
		return;
	}
	probe->phase = PROBE_ASKING;
	probe->asked = now;
	probe->want_write = PQflush(probe->conn) == 1;
}

/* notices of a home may hold values, and belong into nobody's log here */
static void
ignore_notice(void *arg, const PGresult *res)
{
}

/* the connection stands: makes sure that the other end is the region we mean */
static void
greet(Probe *probe, const char *const *hello, TimestampTz now)
{
	char		instance[32];
	const char *values[7] = {hello[0], probe->region, RESIDENCY_VERSION, hello[1], "f", instance, hello[2]};

	snprintf(instance, sizeof(instance), "%016llx", (unsigned long long) residency_guard_instance());
	PQsetNoticeReceiver(probe->conn, ignore_notice, NULL);
	if (PQsetnonblocking(probe->conn, 1) != 0)
		give_up(probe, PQerrorMessage(probe->conn), now);
	else
		ask(probe, "SELECT residency.hello($1::pg_catalog.int8, $2::pg_catalog.text, "
			"$3::pg_catalog.text, $4::pg_catalog.text, $5::pg_catalog.bool, $6::pg_catalog.text, "
			"$7::pg_catalog.int8)",
			lengthof(values), values, now);
}

/*
 * A ping was answered.  A sample that is far above the others says that the line was held up,
 * not that the way has become longer: it counts, but not in full.
 */
static void
measure(Probe *probe, TimestampTz now)
{
	double		sample = (now - probe->asked) / 1000.0;

	if (probe->rtt < 0)
		probe->rtt = Min(sample, FIRST_RTT_MS);
	else
		probe->rtt += (Min(sample, 2 * probe->rtt + 5) - probe->rtt) / 8;
	if (probe->slot != NULL)
		pg_atomic_write_u32(&probe->slot->rtt, Max((uint32) (probe->rtt * 1000), 1));
}

/* takes one answer: to hello, or to a ping */
static void
take_answer(Probe *probe, PGresult *res, TimestampTz now)
{
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
	{
		const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

		give_up(probe, message ? message : "no answer", now);
	}
	else if (!probe->greeted)
	{
		probe->greeted = true;
		probe->due = now;
		probe->phase = PROBE_RESTING;
	}
	else if (PQntuples(res) != 1 || strcmp(PQgetvalue(res, 0, 0), "t") != 0)
		give_up(probe, "the server is a standby", now);
	else
	{
		measure(probe, now);
		probe->ever = true;
		probe->answered = now;
		probe->excused = 0;
		probe->good++;
		probe->problem[0] = '\0';
		probe->due = TimestampTzPlusMilliseconds(probe->asked, residency_health_probe_pause(probe));
		probe->phase = PROBE_RESTING;
	}
	PQclear(res);
}

/* the socket is ready for what residency_health_probe_events asked for */
void
residency_health_probe_readable(Probe *probe, TimestampTz now)
{
	char		problem[HEALTH_PROBLEM];

	if (probe->phase == PROBE_LOOKING)
	{
		if (residency_health_address_read(probe, problem))
			end_looking(probe, problem, now);
		return;
	}
	if (probe->phase == PROBE_CONNECTING)
	{
		probe->poll = PQconnectPoll(probe->conn);
		if (probe->poll == PGRES_POLLING_FAILED)
			give_up(probe, PQerrorMessage(probe->conn), now);
		return;
	}
	if (probe->phase == PROBE_CLOSED)
		return;
	if (probe->want_write)
		probe->want_write = PQflush(probe->conn) == 1;
	if (PQconsumeInput(probe->conn) != 1)
	{
		give_up(probe, PQerrorMessage(probe->conn), now);
		return;
	}
	while (probe->phase == PROBE_ASKING && !PQisBusy(probe->conn))
	{
		PGresult   *res = PQgetResult(probe->conn);

		if (res == NULL)
			give_up(probe, "the connection was lost", now);
		else
		{
			take_answer(probe, res, now);
			/* the end of this answer; it came with it, or the next question fails */
			while (probe->conn != NULL && !PQisBusy(probe->conn) &&
				   (res = PQgetResult(probe->conn)) != NULL)
				PQclear(res);
		}
	}
}

/* Does what has become due: looks for the region, greets it, or asks.  "hello" is deployment, own region and incarnation. */
void
residency_health_probe_step(Probe *probe, const char *const *hello, TimestampTz now)
{
	char		pause[32];
	const char *values[1] = {pause};

	if (probe->phase == PROBE_CLOSED && now >= probe->due)
		start_looking(probe, now);
	else if (probe->phase == PROBE_CONNECTING && probe->poll == PGRES_POLLING_OK)
		greet(probe, hello, now);
	if (probe->phase == PROBE_RESTING && now >= probe->due)
	{
		snprintf(pause, sizeof(pause), "%ld", residency_health_probe_pause(probe));
		ask(probe, "SELECT residency.ping($1::pg_catalog.int4)", 1, values, now);
	}
}

/* gives up on an answer that takes too long; to be called when the socket was read just now */
void
residency_health_probe_expire(Probe *probe, TimestampTz now)
{
	long		waited = TimestampDifferenceMilliseconds(probe->asked, now);
	long		patience = residency_health_probe_patience(probe);

	/*
	 * Perhaps just this connection is dead: a new one gets a chance before the region is given up.  At
	 * once, or a region that answers again for a moment would find no question to answer.
	 */
	if (probe->phase == PROBE_ASKING && waited > (probe->greeted ? patience / 2 : CONNECT_MS))
	{
		give_up(probe, "no answer", now);
		probe->due = now;
	}
	else if (probe->phase == PROBE_CONNECTING && probe->poll != PGRES_POLLING_OK &&
			 waited > Max(CONNECT_MS, patience / 2))
		give_up(probe, "time-out while connecting", now);
	else if (probe->phase == PROBE_LOOKING && waited > (probe->hasty ? patience / 4 : LOOKING_MS))
		end_looking(probe, "no answer about its host name", now);
}

/*
 * The worker was busy with something else since then, so it asked nobody and read nothing.  A
 * region whose question is due gets that time back; one that is connected to waits for our next
 * step as well, but gets back no more than its patience in each silence, or a lock that is
 * waited for again and again would hide it; one that was asked has answered, or is silent.
 */
void
residency_health_probe_excuse(Probe *probe, TimestampTz since, TimestampTz now)
{
	long		late;

	if (probe->phase == PROBE_ASKING || probe->phase == PROBE_LOOKING)
		return;
	if (probe->phase != PROBE_CONNECTING)
		since = Max(since, probe->due);
	late = TimestampDifferenceMilliseconds(since, now);
	if (probe->phase == PROBE_CONNECTING)
		probe->asked = Min(TimestampTzPlusMilliseconds(probe->asked, late), now);
	if (probe->phase != PROBE_RESTING)
	{
		late = Max(Min(late, residency_health_probe_patience(probe) - probe->excused), 0);
		probe->excused += late;
	}
	probe->answered = Min(TimestampTzPlusMilliseconds(probe->answered, late), now);
}

/* has the region owed an answer for too long?  To be asked when its socket was read just now. */
bool
residency_health_probe_silent(const Probe *probe, TimestampTz now)
{
	return probe->phase != PROBE_RESTING &&
		TimestampDifferenceMilliseconds(probe->answered, now) > residency_health_probe_patience(probe);
}

/* what to wait for: events of a wait set, 0 for none, on a socket or pipe */
int
residency_health_probe_events(const Probe *probe, pgsocket *socket)
{
	if (probe->phase == PROBE_LOOKING)
	{
		*socket = probe->pipe;
		return WL_SOCKET_READABLE;
	}
	if (probe->conn == NULL || PQsocket(probe->conn) < 0)
		return 0;
	*socket = PQsocket(probe->conn);
	if (probe->phase == PROBE_CONNECTING)
	{
		if (probe->poll == PGRES_POLLING_OK)
			return 0;
		return probe->poll == PGRES_POLLING_WRITING ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE;
	}
	return WL_SOCKET_READABLE | (probe->want_write ? WL_SOCKET_WRITEABLE : 0);
}
