/*
 * relay_watch.c
 *		Counts messages, flights, and the round trips that a client waited for.
 *
 * ROUND TRIPS WAITED.  A relay sees bytes, not waiting: what follows says exactly
 * what is counted.  The relay stands beside the gateway, on the links to the
 * regions and on the link of the client, so all times come from one clock:
 *
 *		asked		a byte of the client was received
 *		told		a byte of the gateway's answer to the client was received
 *		request		a byte of the gateway for a region was received
 *		answer		a byte of a region was delivered to the gateway, that is,
 *					after the delay of both directions
 *
 * A window is one request of the client with its answer: from the first "asked"
 * that follows a "told" to the last "told" before the next such "asked".  (It
 * presumes a client that awaits its answer before it speaks again, and only
 * one client that speaks while it is measured.)
 *
 * Within a window the count of the gateway's output ("request" and "told") is the
 * number of round trips on the longest chain that had to end before it:
 *
 *	1.	An output was released by the last answer delivered since the gateway's
 *		previous output on the same connection, or by any answer that came at
 *		nearly the same time (up to a quarter of the smallest round trip before
 *		it).  If one of them is of the output's own connection, that one has released
 *		it: so conversations that go on side by side, as when connections are opened,
 *		do not count for each other.  Else the highest count of them is taken.
 *	2.	An answer does not release anything if its connection was in the middle of a
 *		stream, that is, if the gateway had sent on it less than half a round
 *		trip before the answer came.  Rows that are pipelined while the answers to
 *		earlier rows come in are one flight, not many.
 *	3.	An answer delivered at T belongs to the last request on its connection that
 *		was sent at T - round trip or before; nothing later can have been answered.
 *		Its count is that of the request plus one; if the request belongs to an
 *		earlier window (an answer nobody had waited for then), it is one.
 *	4.	An output that nothing released has the count of the output before it on
 *		its connection, zero at the window's start.
 *
 * The window's round trips waited are the count of its last "told".  So two
 * regions asked side by side are one; PREPARE in both of them after that, two;
 * a COMMIT PREPARED whose answer comes after the client was answered, none; and a
 * flight to a near region that nobody waited for, none, if the answer of a far one
 * was what the gateway stood still for.  The messages that open a connection
 * count as they come, 1 with trust and 3 with SCRAM; the TCP handshake is not seen.
 *
 * With a delay of zero rule 2 never holds and every alternation counts.  Choose a delay
 * far above the servers' own time (20 ms each way) for an exact count.
 */
#include "relay.h"

#include <stdlib.h>
#include <string.h>

#define MERGE_NS		1000000 /* neighbours of one kind closer than this are one event */
#define MAX_EVENTS		2000000
#define MAX_STARTUP		65536	/* a longer first packet is not PostgreSQL */

#define CODE_SSL		80877103
#define CODE_GSS		80877104
#define CODE_CANCEL		80877102

typedef struct Event
{
	int64_t		first;			/* ns, time of its first byte */
	int64_t		last;			/* ns, time of its last byte */
	int64_t		round_trip;		/* ns, of its link, at that time */
	int			connection;
	EventKind	kind;
	int			count;			/* round trips that had to end before this output */
} Event;

int64_t		trips_last;

static Event *events;
static size_t nevents;
static size_t maxevents;
static bool marked;
static bool overflown;

/* big-endian 32-bit number */
static uint32_t
number(const unsigned char *p)
{
	return (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16 | (uint32_t) p[2] << 8 | p[3];
}

/*
 * Handles a complete header of one direction: sets how much body follows, and
 * the phase that the packet leads to.
 */
static void
read_header(Watch *watch, int direction, Reader *reader)
{
	reader->messages++;
	reader->nhead = 0;
	if (watch->phase == PHASE_STARTUP)
	{
		uint32_t	length = number(reader->head);
		uint32_t	code = number(reader->head + 4);

		if (direction != OUT || length < 8 || length > MAX_STARTUP)
			watch->phase = PHASE_OPAQUE;
		else if (code == CODE_SSL || code == CODE_GSS)
			watch->phase = PHASE_OFFER;
		else if (code == CODE_CANCEL)
			watch->phase = PHASE_OPAQUE;
		else
		{
			watch->phase = PHASE_TYPED;
			reader->body = (int64_t) length - 8;
		}
		return;
	}
	reader->body = (int64_t) number(reader->head + 1) - 4;
	if (reader->body < 0)
		watch->phase = PHASE_OPAQUE;
}

/*
 * Takes note of bytes that pass in one direction.  Called when they arrive, not
 * when they are delivered: the reader must see both directions in the order in
 * which the servers spoke.
 */
void
watch_bytes(Watch *watch, int direction, const unsigned char *data, size_t n)
{
	Reader	   *reader = &watch->reader[direction];
	size_t		i = 0;

	watch->bytes[direction] += n;
	if (direction == OUT && (watch->answered || watch->flights == 0))
	{
		watch->flights++;
		watch->answered = false;
	}
	else if (direction == IN)
		watch->answered = true;

	while (i < n && watch->phase != PHASE_OPAQUE)
	{
		int			headsize = watch->phase == PHASE_STARTUP ? 8 : 5;

		if (watch->phase == PHASE_OFFER)
		{
			/* 'N' means go on in the clear, anything else is not for us to read */
			watch->phase = direction == IN && data[i] == 'N' ? PHASE_STARTUP : PHASE_OPAQUE;
			watch->reader[IN].messages++;
			i++;
		}
		else if (reader->body > 0)
		{
			int64_t		take = (int64_t) (n - i) < reader->body ? (int64_t) (n - i) : reader->body;

			reader->body -= take;
			i += (size_t) take;
		}
		else
		{
			reader->head[reader->nhead++] = data[i++];
			if (reader->nhead == headsize)
				read_header(watch, direction, reader);
		}
	}
}

/* Forgets all events, and notes them from now on. */
void
trips_mark(void)
{
	nevents = 0;
	marked = true;
	overflown = false;
}

/*
 * Notes an event, if a measurement was begun.  Times must not go backwards.
 */
void
trips_event(EventKind kind, int connection, int64_t now, int64_t round_trip)
{
	Event	   *e;

	if (kind == EVENT_REQUEST || kind == EVENT_ANSWER)
		trips_last = now;
	if (!marked || overflown)
		return;
	if (nevents > 0)
	{
		e = &events[nevents - 1];
		if (e->kind == kind && e->connection == connection && now - e->last < MERGE_NS)
		{
			e->last = now;
			return;
		}
	}
	if (nevents == MAX_EVENTS)
	{
		overflown = true;
		return;
	}
	if (nevents == maxevents)
	{
		maxevents = maxevents ? maxevents * 2 : 1024;
		events = realloc(events, maxevents * sizeof(Event));
		if (events == NULL)
			abort();
	}
	e = &events[nevents++];
	e->first = e->last = now;
	e->round_trip = round_trip;
	e->connection = connection;
	e->kind = kind;
	e->count = 0;
}

/*
 * Finds the count of the request that an answer belongs to, plus one (rule 3), or
 * -1 if the answer came in the middle of a stream (rule 2).  "start" is the
 * window's first event.
 */
static int
answer_count(size_t start, size_t answer)
{
	const Event *a = &events[answer];

	for (size_t j = answer; j-- > start;)
	{
		const Event *e = &events[j];

		if (e->kind != EVENT_REQUEST || e->connection != a->connection)
			continue;
		if (a->first - e->last < a->round_trip / 2)
			return -1;
		if (e->first <= a->last - a->round_trip)
			return e->count + 1;
	}
	return 1;
}

/*
 * Sets the count of one output (rules 1 and 4).
 */
static void
count_output(size_t start, size_t output, int64_t shortest)
{
	int64_t		released = -1;	/* when the last answer came that may have released it */
	int			count = -1;
	int			own = -1;		/* count of the own connection's answer */
	int			before = 0;

	for (size_t j = output; j-- > start;)
	{
		const Event *e = &events[j];

		if (released >= 0 && e->last < released - shortest / 4)
			break;
		if (e->kind == EVENT_ANSWER)
		{
			int			c = answer_count(start, j);

			if (c < 0)
				continue;
			if (released < 0)
				released = e->last;
			if (c > count)
				count = c;
			if (own < 0 && e->connection == events[output].connection)
				own = c;
		}
		else if (e->kind == events[output].kind && e->connection == events[output].connection)
		{
			before = e->count;
			break;
		}
	}
	events[output].count = own >= 0 ? own : count >= 0 ? count : before;
}

/*
 * Counts one window of the client connection and prints its line.
 */
static int
count_window(FILE *out, size_t start, size_t end)
{
	int			client = events[start].connection;
	int64_t		shortest = INT64_MAX;
	int			told = 0;

	for (size_t i = start; i <= end; i++)
		if (events[i].kind == EVENT_ANSWER && events[i].round_trip < shortest)
			shortest = events[i].round_trip;
	for (size_t i = start + 1; i <= end; i++)
	{
		Event	   *e = &events[i];

		if (e->kind == EVENT_REQUEST)
			count_output(start, i, shortest);
		else if (e->kind == EVENT_TOLD && e->connection == client)
		{
			/* the end of an answer waited for all that its beginning waited for */
			count_output(start, i, shortest);
			if (e->count > told)
				told = e->count;
		}
	}
	fprintf(out, "window client=%d trips=%d ms=%.3f\n", client, told,
			(double) (events[end].last - events[start].first) / 1e6);
	return told;
}

/*
 * Prints a line for each window since trips_mark(), and the sum; ends the
 * measurement.
 */
void
trips_report(FILE *out)
{
	long		total = 0;

	if (!marked || overflown)
	{
		fprintf(out, "error %s\n", marked ? "too many events" : "no mark");
		marked = false;
		return;
	}
	for (size_t start = 0; start < nevents; start++)
	{
		size_t		end = 0;

		/* a window starts with "asked", unless the client is still in the middle of asking */
		if (events[start].kind != EVENT_ASKED)
			continue;
		for (size_t j = start; j-- > 0;)
			if (events[j].connection == events[start].connection)
			{
				if (events[j].kind == EVENT_ASKED)
					end = SIZE_MAX;
				break;
			}
		if (end == SIZE_MAX)
			continue;
		for (size_t j = start + 1; j < nevents; j++)
		{
			if (events[j].connection != events[start].connection)
				continue;
			if (events[j].kind == EVENT_TOLD)
				end = j;
			else if (end != 0)
				break;
		}
		/* no answer, as for the last word of a client: nobody waited */
		if (end != 0)
			total += count_window(out, start, end);
	}
	fprintf(out, "ok %ld\n", total);
	marked = false;
}
