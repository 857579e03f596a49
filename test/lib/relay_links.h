/*
 * relay_links.h
 *		Links, connections and queues of the test relay, for relay.c, which moves
 *		them, and relay_control.c, which obeys commands about them.
 */
#ifndef RELAY_LINKS_H
#define RELAY_LINKS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* accept4, memmem */
#endif

#include "relay.h"

#include <netinet/in.h>

typedef enum HandleKind
{
	HANDLE_TIMER,
	HANDLE_LISTENER,			/* owner: Link */
	HANDLE_CONNECTION,			/* owner: Connection */
	HANDLE_CONTROL,				/* the control socket itself */
	HANDLE_COMMANDS				/* owner: someone who gives commands */
} HandleKind;

/* what an event of the loop is about */
typedef struct Handle
{
	HandleKind	kind;
	void	   *owner;
	int			side;			/* connection: 0 the one who connected, 1 the target */
} Handle;

typedef enum ChunkKind
{
	CHUNK_DATA,
	CHUNK_END,					/* the sender will send no more */
	CHUNK_RESET					/* the sender is gone */
} ChunkKind;

typedef struct Chunk
{
	struct Chunk *next;
	ChunkKind	kind;
	int64_t		due;			/* ns, not to be delivered before */
	size_t		size;
	size_t		sent;
	unsigned char data[];
} Chunk;

#define TRAP_SIZE 256			/* longest pattern */

/* one direction of a connection */
typedef struct Flow
{
	Chunk	   *first;
	Chunk	   *last;
	size_t		queued;			/* bytes */
	int64_t		due;			/* of the last chunk ever queued */
	bool		blocked;		/* the receiver's buffer is full */
	bool		ended;			/* nothing more will be read */
	bool		closed;			/* the end was delivered */
	unsigned char tail[TRAP_SIZE];	/* last bytes read, while a trap is set */
	size_t		ntail;
} Flow;

typedef struct Connection
{
	struct Connection *next;
	struct Link *link;
	int			id;
	int			fd[2];			/* by side; -1 once closed */
	bool		connecting;		/* to the target */
	bool		dead;
	bool		hung_up[2];		/* by side: no longer in the loop */
	uint32_t	polled[2];		/* by side: events waited for */
	Handle		handle[2];
	Flow		flow[2];		/* by direction */
	Watch		watch;
	FILE	   *record[2];
} Connection;

typedef enum TrapAction
{
	TRAP_NONE,
	TRAP_CUT,					/* reset all connections; the pattern is not delivered */
	TRAP_HOLD,					/* hold this direction, from the chunk with the pattern on */
	TRAP_HOLD_BACK				/* deliver the pattern, hold the other direction */
} TrapAction;

/* waits for bytes to pass, once */
typedef struct Trap
{
	TrapAction	action;
	int			direction;
	unsigned char pattern[TRAP_SIZE];
	size_t		size;
	int			fired;
} Trap;

typedef struct Link
{
	struct Link *next;
	const char *name;
	bool		client;			/* its connections are clients of the gateway */
	int			port;
	int			fd;				/* -1 while new connections are refused */
	Handle		handle;
	struct sockaddr_in target;
	int64_t		delay[2];		/* ns, by direction */
	bool		held[2];
	Trap		trap;
	char	   *record_dir;
	uint64_t	opened;			/* connections ever */
	Watch		gone;			/* counts of those that are no more */
	Connection *connections;
} Link;

extern Link *links;

/* relay.c */
extern int64_t relay_now(void);
extern void relay_die(const char *what);
extern void *relay_alloc(size_t size);
extern void relay_poll(int op, int fd, uint32_t what, Handle *handle);
extern void relay_close(Connection *conn, bool reset);
extern void relay_cut(Link *link, bool reset);
extern bool relay_listen(Link *link);
extern bool relay_target(Link *link, const char *host, const char *port);
extern Link *relay_new_link(const char *name);

/* relay_control.c */
extern void relay_control_start(const char *path);
extern void relay_control_event(Handle *handle);
extern void relay_record(Connection *conn, int direction, const unsigned char *data, size_t size);

#endif							/* RELAY_LINKS_H */
