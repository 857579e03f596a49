/*
 * regions_internal.h
 *		What the files of the regions part share among themselves.
 *
 * regions.c			cache of the catalog tables
 * regions_keys.c		keys of declared tables, from pg_index
 * regions_servers.c	from a region to its foreign server, and back
 * regions_trigger.c	triggers: invalidation, no change of a row's region
 * regions_admin.c		one SQL text in many regions, on the admin connections
 * regions_everywhere.c	residency.run_everywhere: splitting and refusing
 * regions_secret.c		roles and user mappings with secrets, that no SQL text holds
 * regions_columns.c	columns that DDL would fill with other values in each region
 * regions_check.c		connection strings, and whether a server answers
 */
#ifndef RESIDENCY_REGIONS_INTERNAL_H
#define RESIDENCY_REGIONS_INTERNAL_H

#include "residency.h"

#include "nodes/pg_list.h"
#include "regions.h"
#include "remote.h"

/* regions_keys.c: called while the cache is loaded */
extern void residency_load_primary_key(TableRule *rule);
extern bool residency_has_unique_key(const TableRule *rule, Oid relid);

/* regions_servers.c: true if residency.own_place() gives this text here */
extern bool residency_is_own_place(const char *place);

/* names (char *) of all other regions in byte order; same life as the rest of regions.h */
extern List *residency_other_regions(void);

/* name of the region with the lowest number, this one included, of those that are not
 * "without" (NULL: all); NULL before init */
extern const char *residency_first_region(const char *without);

/* throws 42501 unless the current user is a superuser; "what" completes "to ..." */
extern void residency_require_superuser(const char *what);

/*
 * The admin connection of another region for the current user.  Throws 42501 with
 * a hint if the user has no mapping of his own for its server.
 */
extern RemoteRegion *residency_admin_connection(const char *region, bool joined);

/*
 * Begins a change of all regions: one at a time in the deployment, and nowhere waiting
 * for a lock longer than residency.lock_timeout.  search_path, if not NULL, becomes that
 * of the other regions.  The region "without", if not NULL, is lost and left out.
 */
extern void residency_begin_change(const char *search_path, const char *without);

#endif							/* RESIDENCY_REGIONS_INTERNAL_H */
