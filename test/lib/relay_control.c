/*
 * relay_control.c
 *		The commands of the test relay.
 *
 * One command a line, words separated by blanks; NAME is a link's name or "all".
 * The answer is any number of lines, the last of which starts with "ok" or "error".
 *
 *		link NAME region|client PORT HOST PORT [MS]		adds a link; answers its port (0: picks one)
 *		target NAME HOST PORT							where new connections go
 *		delay NAME MS [MS_BACK]							each way, for what arrives from now on
 *		hold NAME out|in|both		resume NAME			accept and keep silent; deliver again
 *		cut NAME [rst|fin]								end all connections there are
 *		refuse NAME					accept NAME			new connections
 *		trap NAME out|in cut|hold|hold_back HEX			once, when these bytes pass
 *		sprung NAME										how often a trap did
 *		record NAME DIRECTORY|off						bytes of each connection, a file per direction
 *		counts NAME					connections NAME	a line for each link or open connection
 *		reset											all counts to zero
 *		mark						waited				begin and end a measurement (relay_watch.c)
 *		rest											1 if no answer can be on its way any more: the links to
 *													regions were silent for a round trip and a bit
 *		quit
 */
#include "relay_links.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_WORDS	10
#define MAX_LINE	8192
#define REST_NS		100000000

/* someone who gives commands */
typedef struct Commander
{
	int			fd;
	Handle		handle;
	char		line[MAX_LINE];
	size_t		size;
} Commander;

static int	control_fd = -1;
static Handle control_handle = {HANDLE_CONTROL, NULL, 0};

/* Writes a passing chunk to the connection's file, if it is to be recorded. */
void
relay_record(Connection *conn, int direction, const unsigned char *data, size_t size)
{
	char		path[4096];

	if (conn->link->record_dir == NULL)
		return;
	if (conn->record[direction] == NULL)
	{
		snprintf(path, sizeof(path), "%s/%s.%d.%s", conn->link->record_dir, conn->link->name,
				 conn->id, direction == OUT ? "out" : "in");
		conn->record[direction] = fopen(path, "ab");
		if (conn->record[direction] == NULL)
			relay_die(path);
	}
	fwrite(data, 1, size, conn->record[direction]);
	fflush(conn->record[direction]);
}

/* Stops or starts recording; open files of the link are closed. */
static bool
record(Link *link, const char *dir)
{
	for (Connection *conn = link->connections; conn; conn = conn->next)
		for (int d = 0; d < 2; d++)
			if (conn->record[d])
			{
				fclose(conn->record[d]);
				conn->record[d] = NULL;
			}
	free(link->record_dir);
	link->record_dir = strcmp(dir, "off") == 0 ? NULL : strdup(dir);
	return true;
}

/* Prints what has passed: of the whole link, or of one of its connections. */
static void
print_counts(FILE *out, const Link *link, const Connection *only)
{
	Watch		sum = link->gone;
	int			open = 0;

	if (only)
		memset(&sum, 0, sizeof(sum));
	for (const Connection *conn = link->connections; conn; conn = conn->next)
	{
		if (conn->dead || (only && conn != only))
			continue;
		open++;
		sum.flights += conn->watch.flights;
		for (int d = 0; d < 2; d++)
		{
			sum.bytes[d] += conn->watch.bytes[d];
			sum.reader[d].messages += conn->watch.reader[d].messages;
		}
	}
	if (only)
		fprintf(out, "%s connection=%d", link->name, only->id);
	else
		fprintf(out, "%s opened=%llu open=%d", link->name, (unsigned long long) link->opened, open);
	fprintf(out, " flights=%llu bytes_out=%llu bytes_in=%llu messages_out=%llu messages_in=%llu\n",
			(unsigned long long) sum.flights,
			(unsigned long long) sum.bytes[OUT], (unsigned long long) sum.bytes[IN],
			(unsigned long long) sum.reader[OUT].messages,
			(unsigned long long) sum.reader[IN].messages);
}

/* Counts only: the protocol's state must live on. */
static void
reset_watch(Watch *watch)
{
	watch->flights = 0;
	for (int d = 0; d < 2; d++)
	{
		watch->bytes[d] = 0;
		watch->reader[d].messages = 0;
	}
}

/* All counts of all links to zero; open connections count as not opened. */
static void
reset_counts(void)
{
	for (Link *link = links; link; link = link->next)
	{
		link->opened = 0;
		reset_watch(&link->gone);
		for (Connection *conn = link->connections; conn; conn = conn->next)
			reset_watch(&conn->watch);
	}
}

/* Sets a link's trap; false if the words make no sense. */
static bool
set_trap(Link *link, const char *way, const char *action, const char *hex)
{
	Trap	   *trap = &link->trap;
	size_t		n = strlen(hex) / 2;

	if (n < 1 || n > TRAP_SIZE)
		return false;
	for (size_t i = 0; i < n; i++)
	{
		unsigned	byte;

		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return false;
		trap->pattern[i] = (unsigned char) byte;
	}
	trap->size = n;
	trap->direction = strcmp(way, "out") == 0 ? OUT : IN;
	if (strcmp(action, "cut") == 0)
		trap->action = TRAP_CUT;
	else if (strcmp(action, "hold") == 0)
		trap->action = TRAP_HOLD;
	else if (strcmp(action, "hold_back") == 0)
		trap->action = TRAP_HOLD_BACK;
	else
		return false;
	for (Connection *conn = link->connections; conn; conn = conn->next)
		conn->flow[OUT].ntail = conn->flow[IN].ntail = 0;
	return true;
}

/* Closes or reopens a link's listening socket; connections there are live on. */
static bool
set_accepting(Link *link, bool accept)
{
	if (accept && link->fd < 0)
		return relay_listen(link);
	if (!accept && link->fd >= 0)
	{
		close(link->fd);
		link->fd = -1;
	}
	return true;
}

/*
 * Obeys a command about one link; false if it is none, or could not be done.
 * "word" has n entries, the rest are empty strings.
 */
static bool
link_command(FILE *out, Link *link, int n, char **word)
{
	const char *verb = word[0];
	const char *how = word[2];

	if (strcmp(verb, "target") == 0 && n == 4)
		return relay_target(link, word[2], word[3]);
	if (strcmp(verb, "delay") == 0 && n >= 3)
	{
		link->delay[OUT] = (int64_t) (atof(word[2]) * 1e6);
		link->delay[IN] = n > 3 ? (int64_t) (atof(word[3]) * 1e6) : link->delay[OUT];
		return true;
	}
	if (strcmp(verb, "hold") == 0 || strcmp(verb, "resume") == 0)
	{
		bool		hold = verb[0] == 'h';

		if (strcmp(how, "in") != 0)
			link->held[OUT] = hold;
		if (strcmp(how, "out") != 0)
			link->held[IN] = hold;
		return true;
	}
	if (strcmp(verb, "cut") == 0)
	{
		relay_cut(link, strcmp(how, "fin") != 0);
		return true;
	}
	if (strcmp(verb, "refuse") == 0 || strcmp(verb, "accept") == 0)
		return set_accepting(link, verb[0] == 'a');
	if (strcmp(verb, "trap") == 0 && n == 5)
		return set_trap(link, word[2], word[3], word[4]);
	if (strcmp(verb, "sprung") == 0)
		return fprintf(out, "%s %d\n", link->name, link->trap.fired) > 0;
	if (strcmp(verb, "record") == 0 && n == 3)
		return record(link, word[2]);
	if (strcmp(verb, "counts") == 0)
	{
		print_counts(out, link, NULL);
		return true;
	}
	if (strcmp(verb, "connections") == 0)
	{
		for (Connection *conn = link->connections; conn; conn = conn->next)
			if (!conn->dead)
				print_counts(out, link, conn);
		return true;
	}
	return false;
}

/* Adds a link as the command "link" asks. */
static void
add_link(FILE *out, int n, char **word)
{
	Link	   *link = relay_new_link(word[1]);

	if (link == NULL)
	{
		fprintf(out, "error there is a link of that name\n");
		return;
	}
	link->client = strcmp(word[2], "client") == 0;
	link->port = atoi(word[3]);
	if (n > 6)
		link->delay[OUT] = link->delay[IN] = (int64_t) (atof(word[6]) * 1e6);
	if (!relay_target(link, word[4], word[5]) || !relay_listen(link))
		fprintf(out, "error %s\n", strerror(errno));
	else
		fprintf(out, "ok %d\n", link->port);
}

/*
 * True if the links to regions have been silent so long that whatever was asked
 * there is answered, unless a server takes more than REST_NS for it.
 */
static bool
at_rest(void)
{
	int64_t		longest = 0;

	for (Link *link = links; link; link = link->next)
		if (!link->client && link->delay[OUT] + link->delay[IN] > longest)
			longest = link->delay[OUT] + link->delay[IN];
	return relay_now() - trips_last > longest + REST_NS;
}

/* Obeys one line. */
static void
obey(FILE *out, char *line)
{
	char	   *word[MAX_WORDS];
	char	   *rest = NULL;
	int			n = 0;
	bool		known = false;

	for (char *w = strtok_r(line, " \t\r\n", &rest); w && n < MAX_WORDS; w = strtok_r(NULL, " \t\r\n", &rest))
		word[n++] = w;
	for (int i = n; i < MAX_WORDS; i++)
		word[i] = "";

	if (strcmp(word[0], "link") == 0 && n >= 6)
	{
		add_link(out, n, word);
		return;
	}
	if (strcmp(word[0], "waited") == 0)
	{
		trips_report(out);
		return;
	}
	if (strcmp(word[0], "rest") == 0)
	{
		fprintf(out, "ok %d\n", at_rest());
		return;
	}
	if (strcmp(word[0], "quit") == 0)
		exit(0);
	if (strcmp(word[0], "mark") == 0)
	{
		trips_mark();
		known = true;
	}
	else if (strcmp(word[0], "reset") == 0)
	{
		reset_counts();
		known = true;
	}
	else
		for (Link *link = links; link; link = link->next)
			if (strcmp(word[1], "all") == 0 || strcmp(word[1], link->name) == 0)
			{
				known = link_command(out, link, n, word);
				if (!known)
					break;
			}
	if (known)
		fprintf(out, "ok\n");
	else
		fprintf(out, "error cannot do \"%s\" with \"%s\"\n", word[0], word[1]);
}

/* Reads what a commander has said and answers every whole line of it. */
static void
listen_to(Commander *commander)
{
	ssize_t		n = read(commander->fd, commander->line + commander->size,
						 MAX_LINE - 1 - commander->size);
	char	   *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
	{
		close(commander->fd);
		free(commander);
		return;
	}
	commander->size += (size_t) n;
	commander->line[commander->size] = '\0';
	while ((end = strchr(commander->line, '\n')) != NULL)
	{
		char	   *answer = NULL;
		size_t		size = 0;
		FILE	   *out = open_memstream(&answer, &size);

		*end = '\0';
		obey(out, commander->line);
		fclose(out);
		for (size_t sent = 0; sent < size;)
		{
			ssize_t		w = write(commander->fd, answer + sent, size - sent);

			if (w <= 0)
				break;
			sent += (size_t) w;
		}
		free(answer);
		commander->size -= (size_t) (end + 1 - commander->line);
		memmove(commander->line, end + 1, commander->size + 1);
	}
	if (commander->size >= MAX_LINE - 1)
		commander->size = 0;	/* no command is that long */
}

/* Handles an event of the control socket or of someone connected to it. */
void
relay_control_event(Handle *handle)
{
	Commander  *commander;
	int			fd;

	if (handle->kind == HANDLE_COMMANDS)
	{
		listen_to(handle->owner);
		return;
	}
	fd = accept4(control_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return;
	commander = relay_alloc(sizeof(Commander));
	commander->fd = fd;
	commander->handle = (Handle) {HANDLE_COMMANDS, commander, 0};
	relay_poll(EPOLL_CTL_ADD, fd, EPOLLIN, &commander->handle);
}

/* Listens for commands on a Unix socket; the path must not exist, or be an old socket. */
void
relay_control_start(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(a.sun_path))
	{
		errno = ENAMETOOLONG;
		relay_die(path);
	}
	strcpy(a.sun_path, path);
	unlink(path);
	control_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (control_fd < 0 || bind(control_fd, (struct sockaddr *) &a, sizeof(a)) < 0 ||
		listen(control_fd, 8) < 0)
		relay_die(path);
	relay_poll(EPOLL_CTL_ADD, control_fd, EPOLLIN, &control_handle);
}
