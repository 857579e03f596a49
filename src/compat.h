/*
 * compat.h
 *		Differences between the PostgreSQL majors that the extension builds with.
 *
 * The only file that looks at PG_VERSION_NUM.  Each difference gets a feature name
 * or a wrapper here; the rest of the sources use those.
 */
#ifndef RESIDENCY_COMPAT_H
#define RESIDENCY_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "pg_residency builds with PostgreSQL 15 to 18"
#endif

/* CreateWaitEventSet takes a resource owner since 17; NULL means "I free it" */
#if PG_VERSION_NUM >= 170000
#define compat_create_wait_event_set(context, n) CreateWaitEventSet(NULL, n)
#else
#define compat_create_wait_event_set(context, n) CreateWaitEventSet(context, n)
#endif

/* create_foreignscan_path and its upper form gained fdw_restrictinfo (17) and
 * disabled_nodes (18) */
#if PG_VERSION_NUM >= 180000
#define compat_create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, extra, private) \
	create_foreignscan_path(root, rel, target, rows, 0, startup, total, keys, outer, extra, NIL, private)
#define compat_create_foreign_upper_path(root, rel, target, rows, startup, total, keys, extra, private) \
	create_foreign_upper_path(root, rel, target, rows, 0, startup, total, keys, extra, NIL, private)
#elif PG_VERSION_NUM >= 170000
#define compat_create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, extra, private) \
	create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, extra, NIL, private)
#define compat_create_foreign_upper_path(root, rel, target, rows, startup, total, keys, extra, private) \
	create_foreign_upper_path(root, rel, target, rows, startup, total, keys, extra, NIL, private)
#else
#define compat_create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, extra, private) \
	create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, extra, private)
#define compat_create_foreign_upper_path(root, rel, target, rows, startup, total, keys, extra, private) \
	create_foreign_upper_path(root, rel, target, rows, startup, total, keys, extra, private)
#endif

/* whose rights a range table entry is checked with moved to RTEPermissionInfo in 16 */
#if PG_VERSION_NUM >= 160000
#define COMPAT_HAS_PERMISSION_INFOS 1
#endif

/* ExecutorRun lost its execute_once argument in 18 */
#if PG_VERSION_NUM >= 180000
#define COMPAT_RUN_ARGS QueryDesc *queryDesc, ScanDirection direction, uint64 count
#define COMPAT_RUN_PASS queryDesc, direction, count
#else
#define COMPAT_RUN_ARGS QueryDesc *queryDesc, ScanDirection direction, uint64 count, bool execute_once
#define COMPAT_RUN_PASS queryDesc, direction, count, execute_once
#endif

#endif							/* RESIDENCY_COMPAT_H */
