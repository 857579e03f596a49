/*
 * health.h
 *		Which regions answer, and how far away they are, as this server sees it.
 *
 * A health worker, one in each database that is a region, asks all other regions at an
 * interval and writes what it finds into shared memory, where every backend can look for
 * next to nothing.  Each region has its own view: that of two others may differ.
 *
 * While no health worker runs in a database all its regions count as up, and what does
 * not answer is found out by each statement anew; but for the seconds from the end of one
 * worker to the begin of the next, in which what was known holds.
 */
#ifndef RESIDENCY_HEALTH_H
#define RESIDENCY_HEALTH_H

#include "residency.h"

#include "datatype/timestamp.h"

typedef enum ResidencyRegionState
{
	RESIDENCY_UP,				/* answers, and its copies of global tables are complete */
	RESIDENCY_AWAY,				/* has not answered for residency.away_after: leave it out */
	RESIDENCY_CATCHING_UP		/* answers again; what it missed is being shipped to it.
								 * Statements may use it, changes of global tables leave it out */
} ResidencyRegionState;

/* state of a region; this region itself, and one that nobody watches, is up */
extern ResidencyRegionState residency_region_state(const char *region);

/* true for a region that is away but has answered the last ping: it came and went before, so
 * more answers are wanted until it counts as back */
extern bool residency_region_returning(const char *region);

/* smoothed round-trip time in ms, < 0 if it was not measured yet */
extern double residency_region_rtt(const char *region);

/*
 * catching up -> up.  To be called by whoever knows that no note about the region is
 * left, under the lock that keeps new ones out; does nothing in other states.  False if
 * the region is away (again).
 */
extern bool residency_health_flip_up(const char *region);

/*
 * When the region went away last, 0: not since it is watched.  A connection that was made
 * before is not to be trusted: it may be half open.
 */
extern TimestampTz residency_region_left(const char *region);

/* asks for shared memory; called once from _PG_init */
extern void residency_health_init(void);

#endif							/* RESIDENCY_HEALTH_H */
