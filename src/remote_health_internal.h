/*
 * remote_health_internal.h
 *		What the remote_health files share.
 */
#ifndef RESIDENCY_REMOTE_HEALTH_INTERNAL_H
#define RESIDENCY_REMOTE_HEALTH_INTERNAL_H

#include "health.h"

#include "port/atomics.h"
#include "utils/timestamp.h"

/* longest text about what is wrong with a region, with its end */
#define HEALTH_PROBLEM 256

/*
 * One watched region of one database, in shared memory.  The worker of that database
 * claims it, is the only one to change it (but for "heard", and for the flip from catching
 * up to up), and gives it back.  Slots never move.  The lock guards who owns a slot and the
 * fields that are no atomics.
 */
typedef struct HealthSlot
{
	Oid			database;		/* InvalidOid: free */
	char		region[NAMEDATALEN];
	pg_atomic_uint32 state;		/* ResidencyRegionState */
	pg_atomic_uint32 departures;	/* transitions to away */
	pg_atomic_uint32 rtt;		/* smoothed, in µs; 0: not measured */
	bool		met;			/* has answered hello, so it runs our version */
	TimestampTz since;			/* when the state began */
	char		problem[HEALTH_PROBLEM];	/* why it does not answer, "" if it does */
} HealthSlot;

/* remote_health.c */
extern HealthSlot *residency_health_claim(const char *region, ResidencyRegionState state);
extern void residency_health_release(HealthSlot *slot);
extern void residency_health_release_all(void);
extern bool residency_health_change(HealthSlot *slot, ResidencyRegionState from, ResidencyRegionState to);
extern void residency_health_describe(HealthSlot *slot, bool met, const char *problem);

#endif							/* RESIDENCY_REMOTE_HEALTH_INTERNAL_H */
