/*
 * relay.c
 *		A TCP relay for tests: puts distance and trouble between regions.
 *
 *		relay [--control PATH] [--die-with-parent]
 *			  {--listen PORT --to HOST:PORT [--delay MS] [--name NAME] [--client]} ...
 *
 * A link is a listening port on 127.0.0.1 and the address that each connection
 * made to it is passed on to.  Each direction of a connection is a queue of chunks
 * stamped with the time at which they are due, so a delay adds latency and leaves
 * the bandwidth alone; a queue that has reached its limit stops the reading, and
 * TCP stops the sender.  All links live in one process, hence on one clock:
 * relay_watch.c says how round trips are counted on it.
 *
 * Commands come as lines on the control socket (relay_control.c) and are obeyed
 * in order, each answered before the next is read.
 *
 * What it does not imitate: the TCP handshake (the relay accepts at once, and
 * resets the connection if the target cannot be reached), TCP's windows, loss.
 */
#include "relay_links.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE		65536
#define QUEUE_LIMIT		(64 * 1024 * 1024)	/* bytes on their way, per direction */

Link	   *links;

static int	epoll_fd;
static int	timer_fd;
static int	last_connection_id;
static Handle timer_handle = {HANDLE_TIMER, NULL, 0};

/* ns, monotonic */
int64_t
relay_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Ends the relay, and with it the test: there is nothing to recover here. */
void
relay_die(const char *what)
{
	fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Zeroed memory; does not return without. */
void *
relay_alloc(size_t size)
{
	void	   *p = calloc(1, size);

	if (p == NULL)
		relay_die("out of memory");
	return p;
}

/* Adds a descriptor to the loop, or changes what is waited for. */
void
relay_poll(int op, int fd, uint32_t what, Handle *handle)
{
	struct epoll_event e = {.events = what, .data.ptr = handle};

	if (epoll_ctl(epoll_fd, op, fd, &e) < 0 && op != EPOLL_CTL_DEL)
		relay_die("epoll_ctl");
}

/* Waits for what each side of the connection can do next. */
static void
poll_connection(Connection *conn)
{
	for (int side = 0; side < 2; side++)
	{
		Flow	   *from_here = &conn->flow[side];	/* side 0 feeds OUT, side 1 feeds IN */
		Flow	   *to_here = &conn->flow[1 - side];
		uint32_t	what = 0;

		if (conn->fd[side] < 0 || conn->hung_up[side])
			continue;
		if (!from_here->ended && from_here->queued < QUEUE_LIMIT && !(side == 1 && conn->connecting))
			what |= EPOLLIN;
		if (to_here->blocked || (side == 1 && conn->connecting))
			what |= EPOLLOUT;
		if (what != conn->polled[side])
			relay_poll(EPOLL_CTL_MOD, conn->fd[side], what, &conn->handle[side]);
		conn->polled[side] = what;
	}
}

/*
 * Marks a connection as dead and closes its sockets, with RST if asked.  The
 * memory goes at the end of the loop's round, since events may still name it.
 */
void
relay_close(Connection *conn, bool reset)
{
	struct linger hard = {1, 0};

	for (int side = 0; side < 2; side++)
	{
		if (conn->fd[side] < 0)
			continue;
		if (reset)
			setsockopt(conn->fd[side], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
		close(conn->fd[side]);
		conn->fd[side] = -1;
	}
	conn->dead = true;
}

/* Forgets what a closed connection still had to deliver. */
static void
free_chunks(Flow *flow)
{
	while (flow->first)
	{
		Chunk	   *next = flow->first->next;

		free(flow->first);
		flow->first = next;
	}
}

/* Frees the connections that died; their counts stay with the link. */
static void
sweep(void)
{
	for (Link *link = links; link; link = link->next)
		for (Connection **p = &link->connections; *p;)
		{
			Connection *conn = *p;

			if (!conn->dead)
			{
				p = &conn->next;
				continue;
			}
			link->gone.flights += conn->watch.flights;
			for (int d = 0; d < 2; d++)
			{
				link->gone.bytes[d] += conn->watch.bytes[d];
				link->gone.reader[d].messages += conn->watch.reader[d].messages;
				free_chunks(&conn->flow[d]);
				if (conn->record[d])
					fclose(conn->record[d]);
			}
			*p = conn->next;
			free(conn);
		}
}

/* Notes what passes, for the trips' count; see relay_watch.c for the two vantage points. */
static void
note_event(Connection *conn, int direction, bool delivered)
{
	Link	   *link = conn->link;
	int64_t		trip = link->delay[OUT] + link->delay[IN];

	if (link->client && !delivered)
		trips_event(direction == OUT ? EVENT_ASKED : EVENT_TOLD, conn->id, relay_now(), 0);
	else if (!link->client && direction == OUT && !delivered)
		trips_event(EVENT_REQUEST, conn->id, relay_now(), trip);
	else if (!link->client && direction == IN && delivered)
		trips_event(EVENT_ANSWER, conn->id, relay_now(), trip);
}

/* Delivers what is due in one direction, as far as the receiver takes it. */
static void
deliver(Connection *conn, int direction)
{
	Flow	   *flow = &conn->flow[direction];
	int			to = conn->fd[1 - direction];
	int64_t		now = relay_now();

	flow->blocked = false;
	if (conn->dead || conn->connecting || conn->link->held[direction])
		return;
	while (flow->first && flow->first->due <= now)
	{
		Chunk	   *chunk = flow->first;

		if (chunk->kind == CHUNK_RESET)
		{
			relay_close(conn, true);
			return;
		}
		if (chunk->kind == CHUNK_END)
		{
			shutdown(to, SHUT_WR);
			flow->closed = true;
		}
		else
		{
			ssize_t		n = send(to, chunk->data + chunk->sent, chunk->size - chunk->sent,
								 MSG_NOSIGNAL | MSG_DONTWAIT);

			if (n < 0 && (errno == EAGAIN || errno == EINTR))
			{
				flow->blocked = true;
				return;
			}
			if (n < 0)
			{
				relay_close(conn, true);
				return;
			}
			note_event(conn, direction, true);
			chunk->sent += (size_t) n;
			flow->queued -= (size_t) n;
			if (chunk->sent < chunk->size)
				continue;
		}
		flow->first = chunk->next;
		if (flow->first == NULL)
			flow->last = NULL;
		free(chunk);
	}
	if (conn->flow[OUT].closed && conn->flow[IN].closed)
		relay_close(conn, false);
}

/* Appends to a direction's queue, due after the link's delay as it is now. */
static void
enqueue(Connection *conn, int direction, ChunkKind kind, const unsigned char *data, size_t size)
{
	Flow	   *flow = &conn->flow[direction];
	Chunk	   *chunk = relay_alloc(sizeof(Chunk) + size);

	chunk->kind = kind;
	chunk->size = size;
	chunk->due = relay_now() + conn->link->delay[direction];
	if (chunk->due < flow->due)
		chunk->due = flow->due; /* a shorter delay does not overtake */
	flow->due = chunk->due;
	if (size > 0)
		memcpy(chunk->data, data, size);
	if (flow->last)
		flow->last->next = chunk;
	else
		flow->first = chunk;
	flow->last = chunk;
	flow->queued += size;
}

/*
 * Looks for the link's trap in what has just arrived; the end of the bytes before is
 * kept, so a pattern may lie across two reads.  True if it was found.
 */
static bool
in_trap(Connection *conn, int direction, const unsigned char *data, size_t size)
{
	Trap	   *trap = &conn->link->trap;
	Flow	   *flow = &conn->flow[direction];
	unsigned char *text;
	size_t		keep;
	bool		found;

	if (trap->action == TRAP_NONE || trap->direction != direction)
		return false;
	text = relay_alloc(flow->ntail + size);
	memcpy(text, flow->tail, flow->ntail);
	memcpy(text + flow->ntail, data, size);
	size += flow->ntail;
	found = memmem(text, size, trap->pattern, trap->size) != NULL;
	keep = size < trap->size - 1 ? size : trap->size - 1;
	memcpy(flow->tail, text + size - keep, keep);
	flow->ntail = keep;
	free(text);
	return found;
}

/* Reads what has come from one side and queues it for the other. */
static void
receive(Connection *conn, int side)
{
	static unsigned char buffer[READ_SIZE];
	int			direction = side == 0 ? OUT : IN;
	ssize_t		n = recv(conn->fd[side], buffer, sizeof(buffer), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
	{
		conn->flow[direction].ended = true;
		enqueue(conn, direction, n == 0 ? CHUNK_END : CHUNK_RESET, NULL, 0);
		return;
	}
	watch_bytes(&conn->watch, direction, buffer, (size_t) n);
	note_event(conn, direction, false);
	relay_record(conn, direction, buffer, (size_t) n);
	if (in_trap(conn, direction, buffer, (size_t) n))
	{
		TrapAction	action = conn->link->trap.action;

		conn->link->trap.action = TRAP_NONE;
		conn->link->trap.fired++;
		if (action == TRAP_CUT)
		{
			relay_cut(conn->link, true);
			return;
		}
		/* one way stays silent from here on: the pattern's own, or the answer's */
		conn->link->held[action == TRAP_HOLD ? direction : 1 - direction] = true;
	}
	enqueue(conn, direction, CHUNK_DATA, buffer, (size_t) n);
}

/* Closes every connection of a link. */
void
relay_cut(Link *link, bool reset)
{
	for (Connection *conn = link->connections; conn; conn = conn->next)
		if (!conn->dead)
			relay_close(conn, reset);
}

/* Takes a new connection and starts to connect to the link's target. */
static void
accept_connection(Link *link)
{
	int			fd = accept4(link->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	int			on = 1;
	Connection *conn;

	if (fd < 0)
		return;
	conn = relay_alloc(sizeof(Connection));
	conn->link = link;
	conn->id = ++last_connection_id;
	conn->fd[0] = fd;
	conn->fd[1] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (conn->fd[1] < 0)
		relay_die("socket");
	conn->next = link->connections;
	link->connections = conn;
	link->opened++;
	for (int side = 0; side < 2; side++)
	{
		setsockopt(conn->fd[side], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		conn->handle[side] = (Handle) {HANDLE_CONNECTION, conn, side};
		relay_poll(EPOLL_CTL_ADD, conn->fd[side], 0, &conn->handle[side]);
	}
	conn->connecting = true;
	if (connect(conn->fd[1], (struct sockaddr *) &link->target, sizeof(link->target)) == 0)
		conn->connecting = false;
	else if (errno != EINPROGRESS)
		relay_close(conn, true);
}

/* Handles an event on one side's socket; the end of one way leaves the other open. */
static void
connection_event(Connection *conn, int side, uint32_t what)
{
	if (conn->dead)
		return;
	if (side == 1 && conn->connecting && what & (EPOLLOUT | EPOLLERR | EPOLLHUP))
	{
		int			error = 0;
		socklen_t	size = sizeof(error);

		getsockopt(conn->fd[1], SOL_SOCKET, SO_ERROR, &error, &size);
		if (error)
		{
			relay_close(conn, true);
			return;
		}
		conn->connecting = false;
		return;
	}

	if (what & (EPOLLOUT | EPOLLHUP))
		conn->flow[1 - side].blocked = false;
	if (what & (EPOLLIN | EPOLLERR | EPOLLHUP) && !conn->flow[side].ended)
		receive(conn, side);
	else if (what & EPOLLERR)
		relay_close(conn, true);
	else if (what & EPOLLHUP)
	{
		/* would be reported for ever; what is still to be sent there finds out by itself */
		relay_poll(EPOLL_CTL_DEL, conn->fd[side], 0, NULL);
		conn->hung_up[side] = true;
	}
}

/* Delivers all that is due, and sets the alarm for what is due next. */
static void
deliver_all(void)
{
	int64_t		next = INT64_MAX;
	struct itimerspec alarm = {{0, 0}, {0, 0}};

	for (Link *link = links; link; link = link->next)
		for (Connection *conn = link->connections; conn; conn = conn->next)
		{
			for (int d = 0; d < 2 && !conn->dead; d++)
			{
				Flow	   *flow = &conn->flow[d];

				if (!flow->blocked)
					deliver(conn, d);
				if (!conn->dead && flow->first && !flow->blocked && !conn->connecting &&
					!link->held[d] && flow->first->due < next)
					next = flow->first->due;
			}
			if (!conn->dead)
				poll_connection(conn);
		}
	if (next != INT64_MAX)
	{
		alarm.it_value.tv_sec = next / 1000000000;
		alarm.it_value.tv_nsec = next % 1000000000;
	}
	timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &alarm, NULL);
}

/*
 * Starts or, with port 0, picks the listening port of a link; false with errno
 * set if it cannot.
 */
bool
relay_listen(Link *link)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(link->port)};
	socklen_t	size = sizeof(a);
	int			on = 1;
	int			fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		relay_die("socket");
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *) &a, sizeof(a)) < 0 || listen(fd, 128) < 0)
	{
		int			save = errno;

		close(fd);
		errno = save;
		return false;
	}
	getsockname(fd, (struct sockaddr *) &a, &size);
	link->port = ntohs(a.sin_port);
	link->fd = fd;
	link->handle = (Handle) {HANDLE_LISTENER, link, 0};
	relay_poll(EPOLL_CTL_ADD, fd, EPOLLIN, &link->handle);
	return true;
}

/* Turns a host name and port into a link's target; false if there is no such host. */
bool
relay_target(Link *link, const char *host, const char *port)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
	struct addrinfo *found;

	if (getaddrinfo(host, port, &hints, &found) != 0)
		return false;
	memcpy(&link->target, found->ai_addr, sizeof(link->target));
	freeaddrinfo(found);
	return true;
}

/* A new link that listens nowhere yet; NULL if the name is taken. */
Link *
relay_new_link(const char *name)
{
	Link	  **p = &links;
	Link	   *link;

	for (; *p; p = &(*p)->next)
		if (strcmp((*p)->name, name) == 0)
			return NULL;
	link = *p = relay_alloc(sizeof(Link));
	link->name = strdup(name);
	link->fd = -1;
	return link;
}

/* Makes the links that the command line asks for. */
static const char *
read_arguments(int argc, char **argv)
{
	const char *control = NULL;
	Link	   *link = NULL;
	char		name[32];

	for (int i = 1; i < argc; i++)
	{
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (strcmp(argv[i], "--die-with-parent") == 0)
			prctl(PR_SET_PDEATHSIG, SIGTERM);
		else if (strcmp(argv[i], "--client") == 0 && link)
			link->client = true;
		else if (strcmp(argv[i], "--control") == 0)
			control = argv[++i];
		else if (strcmp(argv[i], "--listen") == 0)
		{
			snprintf(name, sizeof(name), "%s", value);
			link = relay_new_link(name);
			if (link)
				link->port = atoi(argv[++i]);
		}
		else if (strcmp(argv[i], "--name") == 0 && link)
			link->name = argv[++i];
		else if (strcmp(argv[i], "--delay") == 0 && link)
			link->delay[OUT] = link->delay[IN] = (int64_t) (atof(argv[++i]) * 1e6);
		else if (strcmp(argv[i], "--to") == 0 && link && strrchr(value, ':'))
		{
			char	   *host = strdup(argv[++i]);
			char	   *colon = strrchr(host, ':');

			*colon = '\0';
			if (!relay_target(link, host, colon + 1))
				relay_die("unknown host");
			free(host);
		}
		else
		{
			fprintf(stderr, "usage: relay [--control PATH] [--die-with-parent] "
					"{--listen PORT --to HOST:PORT [--delay MS] [--name NAME] [--client]} ...\n");
			exit(2);
		}
	}
	return control;
}

/* The loop: one round handles what has come, then delivers what is due. */
int
main(int argc, char **argv)
{
	const char *control;

	signal(SIGPIPE, SIG_IGN);
	control = read_arguments(argc, argv);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (epoll_fd < 0 || timer_fd < 0)
		relay_die("epoll or timerfd");
	relay_poll(EPOLL_CTL_ADD, timer_fd, EPOLLIN, &timer_handle);
	for (Link *link = links; link; link = link->next)
		if (!relay_listen(link))
			relay_die("cannot listen");
	if (control)
		relay_control_start(control);

	for (;;)
	{
		struct epoll_event e[64];
		int			n = epoll_wait(epoll_fd, e, 64, -1);
		uint64_t	ticks;

		if (n < 0 && errno != EINTR)
			relay_die("epoll_wait");
		for (int i = 0; i < n; i++)
		{
			Handle	   *handle = e[i].data.ptr;

			switch (handle->kind)
			{
				case HANDLE_TIMER:
					if (read(timer_fd, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN)
						relay_die("timerfd");
					break;
				case HANDLE_LISTENER:
					accept_connection(handle->owner);
					break;
				case HANDLE_CONNECTION:
					connection_event(handle->owner, handle->side, e[i].events);
					break;
				default:
					relay_control_event(handle);
			}
		}
		deliver_all();
		sweep();
	}
}
