/*
 * residency.c
 *		Loads the extension: settings, callbacks and hooks of all parts.
 *
 * The library must be loaded by shared_preload_libraries: the hooks of a home's sessions
 * have to be there before a gateway's first statement.
 */
#include "residency.h"

#include "miscadmin.h"

#include "border.h"
#include "commit.h"
#include "fdw.h"
#include "global.h"
#include "guard.h"
#include "health.h"
#include "lookup.h"
#include "regions.h"
#include "worker.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

/* called by the server when it loads the library */
void
_PG_init(void)
{
	residency_define_settings();

	/* without the hooks nothing here would be safe to use: residency.init() refuses, and
	 * only then does a session load the library by itself */
	if (!process_shared_preload_libraries_in_progress)
		return;

	residency_worker_init();	/* wakes workers when all else of a commit is done */
	residency_border_init();	/* counts what the commit sends, so it is called after it */
	residency_commit_init();	/* before all others: its transaction callback must run last */
	residency_regions_init();
	residency_health_init();
	residency_global_init();	/* before the row buffers: identities precede details */
	residency_fdw_modify_init();
	residency_fdw_start_init();
	residency_fdw_away_init();
	residency_fdw_stats_init();
	residency_fdw_plan_init();
	residency_lookup_init();
	residency_fdw_join_init();
	residency_fdw_group_init();
	residency_guard_init();
}
