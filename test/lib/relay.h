/*
 * relay.h
 *		What the two halves of the test relay share: relay.c moves the bytes,
 *		relay_watch.c looks at them (messages, flights, round trips waited).
 */
#ifndef RELAY_H
#define RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* the two directions of a connection, seen from the side that connected */
enum
{
	OUT = 0,					/* from the connecting side to the target */
	IN = 1						/* back */
};

/* follows the PostgreSQL protocol in one direction, as long as it is readable */
typedef struct Reader
{
	unsigned char head[8];		/* start of the current message */
	int			nhead;			/* bytes of it seen */
	int64_t		body;			/* bytes of the message still to come */
	uint64_t	messages;		/* whole headers seen */
} Reader;

/* what is readable on a connection */
typedef enum Phase
{
	PHASE_STARTUP,				/* expects an untyped start-up packet */
	PHASE_OFFER,				/* encryption was asked for, one byte will answer */
	PHASE_TYPED,				/* type byte, length, body */
	PHASE_OPAQUE				/* encrypted, or not PostgreSQL: bytes only */
} Phase;

/* what is known of one connection */
typedef struct Watch
{
	Phase		phase;
	Reader		reader[2];
	uint64_t	bytes[2];
	uint64_t	flights;		/* times that OUT spoke first, or after IN had */
	bool		answered;		/* IN spoke after the last byte of OUT */
} Watch;

/* what happened, seen from the gateway */
typedef enum EventKind
{
	EVENT_REQUEST,				/* the gateway has sent something to a region */
	EVENT_ANSWER,				/* something of a region has reached the gateway */
	EVENT_ASKED,				/* a client has sent something to the gateway */
	EVENT_TOLD					/* the gateway has sent something to a client */
} EventKind;

extern void watch_bytes(Watch *watch, int direction, const unsigned char *data, size_t n);

/* flights and waits */
extern void trips_mark(void);
extern void trips_event(EventKind kind, int connection, int64_t now, int64_t round_trip);
extern void trips_report(FILE *out);
extern int64_t trips_last;		/* ns, when a region link was last used */

#endif							/* RELAY_H */
