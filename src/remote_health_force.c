/*
 * remote_health_force.c
 *		Sets the state of a region by hand.
 *
 * An operator may set a region aside before its server is taken down, and a test may do
 * so without waiting for a health worker.  A worker that runs has the last word: it
 * decides by what it sees.
 */
#include "remote_health_internal.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "regions.h"

PG_FUNCTION_INFO_V1(residency_set_region_state);

/* the state of that name; throws if there is none */
static ResidencyRegionState
state_of(const char *name)
{
	if (strcmp(name, "up") == 0)
		return RESIDENCY_UP;
	if (strcmp(name, "away") == 0)
		return RESIDENCY_AWAY;
	if (strcmp(name, "catching up") == 0)
		return RESIDENCY_CATCHING_UP;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is no state of a region", name),
			 errhint("The states are 'up', 'away' and 'catching up'.")));
}

/* SQL: residency.set_region_state(region, state) */
Datum
residency_set_region_state(PG_FUNCTION_ARGS)
{
	char	   *region = text_to_cstring(PG_GETARG_TEXT_PP(0));
	ResidencyRegionState state = state_of(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	HealthSlot *slot;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to set the state of a region")));
	if (!OidIsValid(residency_region_server(region)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("region \"%s\" is this one", region),
				 errhint("Name another region: SELECT name FROM residency.regions WHERE NOT home.")));
	slot = residency_health_claim(region, state);
	if (slot == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many regions are watched in this server")));
	for (ResidencyRegionState from = RESIDENCY_UP; from <= RESIDENCY_CATCHING_UP; from++)
		if (from != state && residency_health_change(slot, from, state))
			break;
	PG_RETURN_VOID();
}
