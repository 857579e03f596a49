/*
 * remote_health_address.c
 *		Looks up the host names of regions, so that the health worker never waits for a resolver.
 *
 * libpq looks names up while it connects, and the process stands still until the resolver has
 * answered: for many seconds if it is dead.  Meanwhile no other region could be asked, and those
 * that miss our pings would take this gateway for a silent one and end its sessions.  So a child
 * process looks names up, writes what it finds into a pipe, and libpq gets addresses.
 *
 * Addresses that were found once are kept until a new look-up succeeds: a resolver that dies hides
 * no region.  A name with several addresses becomes several hosts, which libpq tries one
 * after the other.
 *
 * The child is no process of the server: it gives up all that it has inherited, runs none of
 * our code but what is in look_up(), and dies when the worker takes no interest in it any more, or
 * after CHILD_SECONDS.
 */
#include "postgres.h"

#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/fd.h"
#include "storage/pg_shmem.h"
#include "utils/memutils.h"

#include "remote_health_internal.h"

/* longest life of a child, if nobody ends it: resolvers give up sooner */
#define CHILD_SECONDS 60

/* descriptors of ours that a child may have to close */
#define MAX_DESCRIPTORS 10000

/* a parameter of the connection, NULL if it is not given; the last one counts, as for libpq */
static const char *
parameter(const Probe *probe, const char *name)
{
	const char *value = NULL;

	for (int i = 0; probe->keywords[i] != NULL; i++)
		if (strcmp(probe->keywords[i], name) == 0)
			value = probe->values[i];
	return value != NULL && value[0] != '\0' ? value : NULL;
}

/* element n of a list with commas, in the current memory context; NULL behind its end */
char *
residency_health_element(const char *list, int n)
{
	for (; n > 0 && list != NULL; n--)
	{
		list = strchr(list, ',');
		list = list != NULL ? list + 1 : NULL;
	}
	return list != NULL ? pnstrdup(list, strcspn(list, ",")) : NULL;
}

/* one of several ports, or the one for all hosts; "" is the default port, NULL: too few are given */
static char *
port_of(const Probe *probe, int n)
{
	const char *ports = parameter(probe, "port");

	if (ports == NULL)
		return "";
	return residency_health_element(ports, strchr(ports, ',') != NULL ? n : 0);
}

/* is it a directory of Unix sockets, or nothing at all? */
static bool
is_no_name(const char *host)
{
	return host[0] == '\0' || host[0] == '/' || host[0] == '@';
}

/* resolves a host; "numeric": only if nobody has to be asked.  Returns an error of getaddrinfo, or 0. */
static int
resolve(const char *host, bool numeric, struct addrinfo **found)
{
	struct addrinfo hints;

	memset(&hints, 0, sizeof(hints));
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_flags = numeric ? AI_NUMERICHOST : 0;
	*found = NULL;
	return getaddrinfo(host, NULL, &hints, found);
}

/* does any host have to be looked up?  Not if libpq is to complain about the lists. */
bool
residency_health_address_has_names(const Probe *probe)
{
	const char *hosts = parameter(probe, "host");
	bool		names = false;
	char	   *host;

	if (hosts == NULL || parameter(probe, "hostaddr") != NULL)
		return false;
	for (int i = 0; (host = residency_health_element(hosts, i)) != NULL; i++)
	{
		struct addrinfo *found;

		if (port_of(probe, i) == NULL)
			return false;
		if (is_no_name(host) || names)
			continue;
		if (resolve(host, true, &found) != 0)
			names = true;
		else
			freeaddrinfo(found);
	}
	return names;
}

/*
 * The child: writes a line for each address, "NUMBER-OF-HOST ADDRESS", or for a name without any,
 * "NUMBER-OF-HOST !ERROR".  Allocates nothing of ours and throws nothing: what would catch it
 * belongs to the parent.
 */
static void
look_up(char *const *hosts, int n, int out)
{
	for (int i = 0; i < n; i++)
	{
		struct addrinfo *found;
		char		address[NI_MAXHOST];
		char		line[NI_MAXHOST + 32];
		int			error;

		if (is_no_name(hosts[i]))
			continue;
		error = resolve(hosts[i], false, &found);
		if (error != 0)
		{
			snprintf(line, sizeof(line), "%d !%s\n", i, gai_strerror(error));
			if (write(out, line, strlen(line)) < 0)
				return;
		}
		for (struct addrinfo *a = found; error == 0 && a != NULL; a = a->ai_next)
		{
			if (getnameinfo(a->ai_addr, a->ai_addrlen, address, sizeof(address), NULL, 0, NI_NUMERICHOST) != 0)
				continue;
			snprintf(line, sizeof(line), "%d %s\n", i, address);
			if (write(out, line, strlen(line)) < 0)
				return;
		}
	}
}

/* the child gives up what it has inherited, but for one descriptor; signals are blocked */
static void
strip_child(int out)
{
	sigset_t	alarm_only;

	PGSharedMemoryDetach();
	for (int fd = 0; fd < MAX_DESCRIPTORS; fd++)
		if (fd != out)
			(void) close(fd);
	signal(SIGALRM, SIG_DFL);
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &alarm_only, NULL);
	alarm(CHILD_SECONDS);
}

/* forks the child; false if that is not possible.  ends: of the pipe, for reading and for writing. */
static bool
fork_child(Probe *probe, const int *ends)
{
	const char *list = parameter(probe, "host");
	char	  **hosts = palloc((strlen(list) + 1) * sizeof(char *));
	sigset_t	all,
				before;
	int			n = 0;

	while ((hosts[n] = residency_health_element(list, n)) != NULL)
		n++;
	/* no handler of ours may run in the child */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	probe->child = fork();
	if (probe->child == 0)
	{
		strip_child(ends[1]);
		look_up(hosts, n, ends[1]);
		_exit(0);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	return probe->child > 0;
}

/* begins to look all names up; false if that is not possible */
bool
residency_health_address_start(Probe *probe)
{
	MemoryContext old;
	int			ends[2];

	Assert(probe->child == 0);
	if (!AcquireExternalFD())
		return false;
	if (pipe(ends) != 0)
	{
		ReleaseExternalFD();
		return false;
	}
	(void) fcntl(ends[0], F_SETFL, O_NONBLOCK);
	old = MemoryContextSwitchTo(probe->context);
	initStringInfo(&probe->found);
	MemoryContextSwitchTo(old);
	probe->pipe = ends[0];
	if (!fork_child(probe, ends))
		probe->child = 0;
	close(ends[1]);
	if (probe->child != 0)
		return true;
	residency_health_address_stop(probe);
	return false;
}

/* ends a look-up, if there is one */
void
residency_health_address_stop(Probe *probe)
{
	if (probe->child != 0)
	{
		(void) kill(probe->child, SIGKILL);
		while (waitpid(probe->child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	probe->child = 0;
	if (probe->found.data == NULL)
		return;
	close(probe->pipe);
	ReleaseExternalFD();
	pfree(probe->found.data);
	probe->found.data = NULL;
}

/* adds one host to the lists; address is "" for a directory */
static void
add(StringInfo lists, const char *host, const char *address, const char *port)
{
	const char *comma = lists[0].len + lists[1].len > 0 ? "," : "";

	appendStringInfo(&lists[0], "%s%s", comma, host);
	appendStringInfo(&lists[1], "%s%s", comma, address);
	appendStringInfo(&lists[2], "%s%s", comma, port);
}

/* makes lists of what the child has found; true if it has found an address, else problem says why not */
static bool
read_lines(Probe *probe, StringInfo lists, char *problem)
{
	const char *hosts = parameter(probe, "host");
	char	   *line = probe->found.data;
	bool		found = false;
	char	   *host;

	strlcpy(problem, "no answer about its host name", HEALTH_PROBLEM);
	for (int i = 0; (host = residency_health_element(hosts, i)) != NULL; i++)
	{
		if (is_no_name(host))
			add(lists, host, "", port_of(probe, i));
		for (; *line != '\0' && atoi(line) == i; line += strcspn(line, "\n") + 1)
		{
			char	   *text = pnstrdup(line, strcspn(line, "\n"));

			text = strchr(text, ' ') + 1;
			if (*text == '!')
				snprintf(problem, HEALTH_PROBLEM, "could not translate host name \"%s\" to address: %s",
						 host, text + 1);
			else
				add(lists, host, text, port_of(probe, i));
			found = found || *text != '!';
		}
	}
	return found;
}

/*
 * Reads what the child has written.  False if more will come.  At the end addresses are
 * replaced if new ones were found; otherwise "problem", of HEALTH_PROBLEM bytes, says why not.
 */
bool
residency_health_address_read(Probe *probe, char *problem)
{
	StringInfoData lists[3];
	char		buffer[1024];
	ssize_t		n;

	while ((n = read(probe->pipe, buffer, sizeof(buffer))) > 0)
		appendBinaryStringInfo(&probe->found, buffer, n);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return false;
	for (int i = 0; i < lengthof(lists); i++)
		initStringInfo(&lists[i]);
	if (read_lines(probe, lists, problem))
	{
		residency_health_address_forget(probe);
		probe->hosts = MemoryContextStrdup(probe->context, lists[0].data);
		probe->addresses = MemoryContextStrdup(probe->context, lists[1].data);
		probe->ports = MemoryContextStrdup(probe->context, lists[2].data);
	}
	residency_health_address_stop(probe);
	return true;
}

/* the region is reached in another way now: what was found does not hold any more */
void
residency_health_address_forget(Probe *probe)
{
	if (probe->hosts != NULL)
	{
		pfree(probe->hosts);
		pfree(probe->addresses);
		pfree(probe->ports);
	}
	probe->hosts = probe->addresses = probe->ports = NULL;
}

/* begins to connect, as PQconnectStartParams does, to the addresses that are known if there are any */
PGconn *
residency_health_address_connect(Probe *probe)
{
	const char **keywords;
	const char **values;
	int			n = 0;

	if (probe->hosts == NULL)
		return PQconnectStartParams(probe->keywords, probe->values, 0);
	while (probe->keywords[n] != NULL)
		n++;
	keywords = palloc0((n + 4) * sizeof(char *));
	values = palloc0((n + 4) * sizeof(char *));
	memcpy(keywords, probe->keywords, n * sizeof(char *));
	memcpy(values, probe->values, n * sizeof(char *));
	keywords[n] = "host";
	values[n++] = probe->hosts;
	keywords[n] = "hostaddr";
	values[n++] = probe->addresses;
	keywords[n] = "port";
	values[n] = probe->ports;
	return PQconnectStartParams(keywords, values, 0);
}
