/*
 * fdw_plan_cost.c
 *		What the way to a region costs a plan.
 *
 * The health worker measures round-trip times; a plan that is made while they are known counts
 * each region by its own.  A plan may be kept for long, and be wrong when a region has moved:
 * that is a matter of speed only, and what decides is the order of magnitude.
 */
#include "residency.h"

#include "fdw_plan.h"
#include "health.h"
#include "regions.h"

/*
 * Planner units of one millisecond of waiting: a row from memory (cpu_tuple_cost, 0.01)
 * takes some 0.2 microseconds.
 */
#define COST_PER_MS 50.0

/* the way to a process on the same machine and back, with what either end does about it */
#define LEAST_TRIP_COST 10.0

/* planner units of one round trip to the region behind a server */
double
residency_trip_cost(Oid serverid)
{
	double		rtt = residency_region_rtt(residency_server_region(serverid));

	return rtt < 0 ? ROUND_TRIP_COST : Max(rtt * COST_PER_MS, LEAST_TRIP_COST);
}
