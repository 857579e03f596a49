/*
 * network.c
 *		A resolver that a test rules, and a witness of socket options: loaded into a server by LD_PRELOAD.
 *
 * The file that NETWORK_NAMES names says what becomes of look-ups of names that end in ".test": it
 * holds an address, which is the answer at once, or "dead" and a number of ms, after which there is
 * none.  Other names are the C library's.
 *
 * Each such look-up, and each option that is set on a socket, adds a line to the file that NETWORK_LOG
 * names: "PID lookup NAME PARENT", or "PID option LEVEL NAME VALUE".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* adds a line to the log, in one piece: many processes write there */
static void
tell(const char *what)
{
	const char *path = getenv("NETWORK_LOG");
	char		line[512];
	int			n = snprintf(line, sizeof(line), "%d %s\n", (int) getpid(), what);
	int			fd = path != NULL ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;

	if (fd < 0)
		return;
	if (write(fd, line, n) != n)
		abort();
	close(fd);
}

/* the first line of the file, "" if it cannot be read */
static void
read_rule(char *rule, int size)
{
	const char *path = getenv("NETWORK_NAMES");
	FILE	   *file = path != NULL ? fopen(path, "r") : NULL;

	rule[0] = '\0';
	if (file == NULL)
		return;
	if (fgets(rule, size, file) != NULL)
		rule[strcspn(rule, "\n")] = '\0';
	fclose(file);
}

/* does the string end like that? */
static int
ends_in(const char *string, const char *end)
{
	return strlen(string) >= strlen(end) && strcmp(string + strlen(string) - strlen(end), end) == 0;
}

/* instead of the C library's */
int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	static int	(*next) (const char *, const char *, const struct addrinfo *, struct addrinfo **);
	char		rule[256];
	char		what[300];
	int			ms;

	if (next == NULL)
		next = (int (*) (const char *, const char *, const struct addrinfo *, struct addrinfo **)) dlsym(RTLD_NEXT, "getaddrinfo");
	if (node == NULL || !ends_in(node, ".test") || (hints != NULL && (hints->ai_flags & AI_NUMERICHOST)))
		return next(node, service, hints, found);
	snprintf(what, sizeof(what), "lookup %.200s %d", node, (int) getppid());
	tell(what);
	read_rule(rule, sizeof(rule));
	if (sscanf(rule, "dead %d", &ms) != 1)
		return next(rule, service, hints, found);
	/* a signal does not end it, as it would not end the real one */
	for (; ms > 0; ms -= 10)
		usleep(10000);
	return EAI_AGAIN;
}

/* the C library's, with a witness */
int
setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
	static int	(*next) (int, int, int, const void *, socklen_t);
	char		what[100];

	if (next == NULL)
		next = (int (*) (int, int, int, const void *, socklen_t)) dlsym(RTLD_NEXT, "setsockopt");
	if (size == sizeof(int))
	{
		snprintf(what, sizeof(what), "option %d %d %d", level, name, *(const int *) value);
		tell(what);
	}
	return next(fd, level, name, value, size);
}
