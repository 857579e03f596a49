/*
 * remote_health_internal.h
 *		What the remote_health files share.
 */
#ifndef RESIDENCY_REMOTE_HEALTH_INTERNAL_H
#define RESIDENCY_REMOTE_HEALTH_INTERNAL_H

#include "health.h"

#include "lib/stringinfo.h"
#include "libpq-fe.h"
#include "port/atomics.h"
#include "utils/timestamp.h"

/* longest text about what is wrong with a region, with its end */
#define HEALTH_PROBLEM 256

/*
 * One watched region of one database, in shared memory.  The worker of that database
 * claims it, is the only one to change it (but for "heard" and "pause", and for the flip from
 * catching up to up), and gives it back, or leaves it to its successor.  Slots never move.  The lock
 * guards who owns a slot and the fields that are no atomics.
 */
typedef struct HealthSlot
{
	Oid			database;		/* InvalidOid: free */
	char		region[NAMEDATALEN];
	pg_atomic_uint32 state;		/* ResidencyRegionState */
	pg_atomic_uint64 left;		/* last transition to away (TimestampTz), 0: none */
	pg_atomic_uint32 rtt;		/* smoothed, in µs; 0: not measured */
	pg_atomic_uint64 heard;		/* last ping of that region here (TimestampTz), 0: it pings not */
	pg_atomic_uint32 pause;		/* ms until the next one, as it said */
	bool		met;			/* has answered hello, so it runs our version */
	TimestampTz since;			/* when the state began */
	TimestampTz orphaned;		/* when its worker ended; 0: it runs, or the state was set by hand */
	char		problem[HEALTH_PROBLEM];	/* why it does not answer, "" if it does */
} HealthSlot;

/* remote_health.c */
extern HealthSlot *residency_health_claim(const char *region, ResidencyRegionState state);
extern void residency_health_release(HealthSlot *slot);
extern void residency_health_release_all(void);
extern void residency_health_orphan_all(void);
extern bool residency_health_change(HealthSlot *slot, ResidencyRegionState from, ResidencyRegionState to);
extern void residency_health_heard(const char *gateway, TimestampTz when, uint32 pause);
extern void residency_health_describe(HealthSlot *slot, bool met, const char *problem);

/*
 * What goes on between the worker and one region.  Times are those of this server.
 *
 *		CLOSED --> LOOKING --> CONNECTING --> ASKING (hello) --> RESTING <--> ASKING (ping)
 *		   ^     (for names)                                                     |
 *		   '------- lost, refused, or too long without an answer ----------------'
 */
typedef enum ProbePhase
{
	PROBE_CLOSED,
	PROBE_LOOKING,				/* a resolver is asked where the region is */
	PROBE_CONNECTING,
	PROBE_ASKING,
	PROBE_RESTING
} ProbePhase;

typedef struct Probe
{
	char		region[NAMEDATALEN];
	HealthSlot *slot;			/* NULL: none was free, so nothing is told to anybody */
	MemoryContext context;		/* holds this struct and the parameters */
	const char **keywords;		/* to connect with; NULL: there is no mapping */
	const char **values;
	bool		seen;			/* still a region at the last look into the catalog */

	/* remote_health_address.c */
	char	   *hosts;			/* lists of what the host names stand for; NULL: not known */
	char	   *addresses;
	char	   *ports;
	pid_t		child;			/* process that looks them up, 0: none */
	int			pipe;			/* what it tells */
	StringInfoData found;		/* what it has told; data NULL: none runs */
	bool		hasty;			/* at the next attempt the resolver is given little time */

	ProbePhase	phase;
	PGconn	   *conn;
	PostgresPollingStatusType poll; /* CONNECTING: what to wait for */
	bool		want_write;		/* libpq holds output that the socket did not take */
	bool		greeted;		/* hello was answered on this connection */
	TimestampTz asked;			/* when the phase began that waits for the region */
	TimestampTz due;			/* CLOSED, RESTING: when to act next */

	TimestampTz answered;		/* last sign that the region is there, moved on by what is excused */
	long		excused;		/* ms of this silence that were excused while it was connected to */
	bool		ever;			/* it has answered since the worker began */
	int			good;			/* pings answered in a row */
	double		rtt;			/* smoothed, in ms; < 0: not measured */
	char		problem[HEALTH_PROBLEM];	/* why it did not answer last time */

	/* remote_health_worker.c */
	TimestampTz returned;		/* when it came back last, 0: never */
	int			flaps;			/* times it went away again soon after */
} Probe;

/* remote_health_gateway.c */
extern void residency_health_dismiss(HealthSlot *slot, long patience);

/* remote_health_address.c */
extern bool residency_health_address_has_names(const Probe *probe);
extern bool residency_health_address_start(Probe *probe);
extern bool residency_health_address_read(Probe *probe, char *problem);
extern void residency_health_address_stop(Probe *probe);
extern PGconn *residency_health_address_connect(Probe *probe);
extern void residency_health_address_forget(Probe *probe);
extern char *residency_health_element(const char *list, int n);

/* remote_health_probe.c */
extern const char *residency_health_refusal_state(const char *message);
extern void residency_health_probe_step(Probe *probe, const char *const *hello, TimestampTz now);
extern void residency_health_probe_expire(Probe *probe, TimestampTz now);
extern void residency_health_probe_excuse(Probe *probe, TimestampTz since, TimestampTz now);
extern bool residency_health_probe_silent(const Probe *probe, TimestampTz now);
extern void residency_health_probe_readable(Probe *probe, TimestampTz now);
extern void residency_health_probe_close(Probe *probe);
extern int	residency_health_probe_events(const Probe *probe, pgsocket *socket);
extern long residency_health_probe_patience(const Probe *probe);
extern long residency_health_probe_pause(const Probe *probe);

#endif							/* RESIDENCY_REMOTE_HEALTH_INTERNAL_H */
