/*
 * settings.c
 *		Every setting of the extension, sorted by name.
 *
 * Time-outs are in milliseconds.  docs/settings.md gives each a paragraph; the
 * long description here says why one would change it.
 */
#include "residency.h"

#include <limits.h>

#include "utils/guc.h"

#include "commit.h"
#include "fault.h"

int			residency_away_after = 5000;
int			residency_commit_timeout = 5000;
int			residency_commit_wait = RESIDENCY_COMMIT_APPLIED;
int			residency_conflict_retry = 30000;
int			residency_connect_timeout = 10000;
int			residency_doubt_timeout = 5000;
bool		residency_enable_lookup = true;
bool		residency_enable_push = true;
int			residency_fetch_bytes = 2048;
int			residency_home_wait = 50;
int			residency_lock_timeout = 5000;
int			residency_on_away = RESIDENCY_ON_AWAY_ERROR;
int			residency_resolve_interval = 10000;
int			residency_ship_timeout = 10000;
bool		residency_workers = true;

static const struct config_enum_entry commit_wait_options[] = {
	{"applied", RESIDENCY_COMMIT_APPLIED, false},
	{"decided", RESIDENCY_COMMIT_DECIDED, false},
	{NULL, 0, false}
};

static const struct config_enum_entry on_away_options[] = {
	{"error", RESIDENCY_ON_AWAY_ERROR, false},
	{"skip", RESIDENCY_ON_AWAY_SKIP, false},
	{NULL, 0, false}
};

/* defines all settings; called once, while the library is loaded */
void
residency_define_settings(void)
{
	DefineCustomIntVariable("residency.away_after",
							"Time without an answer after which a region is left out.",
							"From then on what needs the region fails at once. Longer than any hiccup of the network should be; "
							"eight round trips count at least.",
							&residency_away_after,
							5000, 100, INT_MAX / 2, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("residency.commit_timeout",
							"Longest time that COMMIT waits for the regions to apply a decided transaction.",
							"After it COMMIT returns with a warning, and residency.resolve() finishes the rest.",
							&residency_commit_timeout,
							5000, 0, INT_MAX, PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomEnumVariable("residency.commit_wait",
							 "What COMMIT waits for after the decision is durable.",
							 "\"applied\" waits until the regions show the transaction, \"decided\" does not: "
							 "one round trip less, and only this session is sure to see its own writes there.",
							 &residency_commit_wait,
							 RESIDENCY_COMMIT_APPLIED, commit_wait_options,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("residency.conflict_retry",
							"Time until a row that a region could not take is shipped to it again.",
							"These rows are in residency.conflicts.",
							&residency_conflict_retry,
							30000, 1000, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("residency.connect_timeout",
							"Longest time to connect to another region.",
							NULL,
							&residency_connect_timeout,
							10000, 100, INT_MAX, PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("residency.doubt_timeout",
							"Longest time that a statement waits for a lock of a transaction in doubt.",
							"Such a transaction is prepared here, and its outcome is known in the region where it began. 0 means no limit.",
							&residency_doubt_timeout,
							5000, 0, INT_MAX, PGC_USERSET, GUC_UNIT_MS,
							NULL, residency_doubt_timeout_assigned, NULL);
	DefineCustomBoolVariable("residency.enable_lookup",
							 "Lets the planner look up the regions of keys in the directory.",
							 "Switched off, all regions are asked for rows of any key; the answers are the same.",
							 &residency_enable_lookup,
							 true, PGC_USERSET, GUC_EXPLAIN,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("residency.enable_push",
							 "Lets the planner leave joins and aggregates to the regions.",
							 "Switched off, rows are fetched and joined and aggregated here; the answers are the same.",
							 &residency_enable_push,
							 true, PGC_USERSET, GUC_EXPLAIN,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("residency.fetch_size",
							"Memory that one batch of a scan's rows should take.",
							"A scan holds at most two batches; over a long way larger ones mean fewer round trips.",
							&residency_fetch_bytes,
							2048, 64, 1024 * 1024, PGC_USERSET, GUC_UNIT_KB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("residency.home_wait",
							"Longest time that a change of a global row waits at the row's home for another writer.",
							"After it the later writer fails with a serialization failure.",
							&residency_home_wait,
							50, 1, INT_MAX, PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("residency.lock_timeout",
							"Longest lock wait of a client's statement on a global table, of its copies, and of DDL everywhere.",
							"It ends waits in a circle over several regions, which no server can detect alone.",
							&residency_lock_timeout,
							5000, 1, INT_MAX, PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomEnumVariable("residency.on_away",
							 "What becomes of reading statements that need a region that is away.",
							 "\"error\" lets them fail, \"skip\" gives the rows of the other regions and a warning.",
							 &residency_on_away,
							 RESIDENCY_ON_AWAY_ERROR, on_away_options,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("residency.resolve_interval",
							"Time between two looks of the resolver worker at the other regions.",
							"It looks earlier when it knows of something to finish.",
							&residency_resolve_interval,
							10000, 100, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("residency.ship_timeout",
							"Longest time that a batch of rows may take that are shipped to a region that was away.",
							"It is given up then, and a smaller one is tried.",
							&residency_ship_timeout,
							10000, 1000, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("residency.workers",
							 "Whether the extension's background workers run.",
							 "Switch it off in a clone of a region, until residency.renew() has run there.",
							 &residency_workers,
							 true, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	residency_fault_init();		/* FAULTS=1 only */

	MarkGUCPrefixReserved("residency");
}
