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

#include "replication/walsender_private.h"

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

/* ExecInitRangeTable takes permission infos since 16, and the relations that were
 * not pruned since 18 */
#if PG_VERSION_NUM >= 180000
#define compat_init_range_table(estate, rtable, infos) \
	ExecInitRangeTable(estate, rtable, infos, bms_add_range(NULL, 1, list_length(rtable)))
#elif PG_VERSION_NUM >= 160000
#define compat_init_range_table(estate, rtable, infos) \
	ExecInitRangeTable(estate, rtable, infos)
#else
#define compat_init_range_table(estate, rtable, infos) ExecInitRangeTable(estate, rtable)
#endif

/* EvalPlanQualInit takes the result relations since 16; these are for updates
 * outside of a plan */
#if PG_VERSION_NUM >= 160000
#define compat_epq_init(epq, estate) EvalPlanQualInit(epq, estate, NULL, NIL, -1, NIL)
#else
#define compat_epq_init(epq, estate) EvalPlanQualInit(epq, estate, NULL, NIL, -1)
#endif

/* ExecutorRun lost its execute_once argument in 18 */
#if PG_VERSION_NUM >= 180000
#define COMPAT_RUN_ARGS QueryDesc *queryDesc, ScanDirection direction, uint64 count
#define COMPAT_RUN_PASS queryDesc, direction, count
#else
#define COMPAT_RUN_ARGS QueryDesc *queryDesc, ScanDirection direction, uint64 count, bool execute_once
#define COMPAT_RUN_PASS queryDesc, direction, count, execute_once
#endif

/* whether synchronous_standby_names demands anything; a set of flags in 18 and in newer
 * minors of the others */
#ifdef SYNC_STANDBY_DEFINED
#define compat_sync_standbys_defined() ((WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0)
#else
#define compat_sync_standbys_defined() (WalSndCtl->sync_standbys_defined)
#endif

/* construct_array_builtin is new in 16; utils/array.h and catalog/pg_type.h needed */
#if PG_VERSION_NUM >= 160000
#define compat_text_array(datums, n) construct_array_builtin(datums, n, TEXTOID)
#else
#define compat_text_array(datums, n) construct_array(datums, n, TEXTOID, -1, false, TYPALIGN_INT)
#endif

/* the key that cancels this backend's statements; longer, and not used, since 18 */
#if PG_VERSION_NUM >= 180000
#define compat_cancel_key() 0
#else
#define compat_cancel_key() ((int32) MyCancelKey)
#endif

/* while this is set, SET ROLE does not ask for membership (a worker that repeats its
 * leader's settings must not either); access/parallel.h needed */
#define compat_bypass_role_membership InitializingParallelWorker

/* pg_database_ownercheck became object_ownercheck in 16; utils/acl.h and
 * catalog/pg_database.h needed */
#if PG_VERSION_NUM >= 160000
#define compat_database_ownercheck(database, role) object_ownercheck(DatabaseRelationId, database, role)
#else
#define compat_database_ownercheck(database, role) pg_database_ownercheck(database, role)
#endif

/* entry number i, from 1, of this process's copy of the backends' states;
 * utils/backend_status.h needed */
#if PG_VERSION_NUM >= 160000
#define compat_local_beentry(i) pgstat_get_local_beentry_by_index(i)
#else
#define compat_local_beentry(i) pgstat_fetch_stat_local_beentry(i)
#endif

/* number of a process in ProcGlobal->allProcs, and how many there are, before shared memory is
 * made; storage/proc.h and access/twophase.h needed */
#if PG_VERSION_NUM >= 170000
#define compat_proc_number(proc) GetNumberFromPGProc(proc)
#else
#define compat_proc_number(proc) ((proc)->pgprocno)
#endif
#define compat_max_procs() (MaxBackends + NUM_AUXILIARY_PROCS + max_prepared_xacts)

/* true for a process that serves a client */
#if PG_VERSION_NUM >= 180000
#define compat_proc_is_client(proc) ((proc)->isRegularBackend)
#else
#define compat_proc_is_client(proc) (!(proc)->isBackgroundWorker)
#endif

/* visits the PROCLOCKs of a lock; lists in shared memory became dlists in 16;
 * storage/lock.h needed */
#if PG_VERSION_NUM >= 160000
#define compat_foreach_holder(proclock, lock) \
	for (dlist_node *holder_node = dlist_is_empty(&(lock)->procLocks) ? NULL \
		 : dlist_head_node(&(lock)->procLocks); \
		 holder_node != NULL && \
		 ((proclock) = dlist_container(PROCLOCK, lockLink, holder_node), true); \
		 holder_node = dlist_has_next(&(lock)->procLocks, holder_node) \
		 ? dlist_next_node(&(lock)->procLocks, holder_node) : NULL)
#else
#define compat_foreach_holder(proclock, lock) \
	for ((proclock) = (PROCLOCK *) SHMQueueNext(&(lock)->procLocks, &(lock)->procLocks, \
												 offsetof(PROCLOCK, lockLink)); \
		 (proclock) != NULL; \
		 (proclock) = (PROCLOCK *) SHMQueueNext(&(lock)->procLocks, &(proclock)->lockLink, \
												 offsetof(PROCLOCK, lockLink)))
#endif

/* a path key's direction became a CompareType in 18 */
#if PG_VERSION_NUM >= 180000
#define compat_pathkey_is_descending(key) ((key)->pk_cmptype == COMPARE_GT)
#define COMPAT_ASCENDING COMPARE_LT
#else
#define compat_pathkey_is_descending(key) ((key)->pk_strategy == BTGreaterStrategyNumber)
#define COMPAT_ASCENDING BTLessStrategyNumber
#endif

/* members of an equivalence class that stand for child relations moved to lists
 * of their own in 18; the loop visits every member that may concern "relids" */
#if PG_VERSION_NUM >= 180000
#define compat_foreach_ec_member(member, ec, relids) \
	EquivalenceMemberIterator member##_iterator; \
	setup_eclass_member_iterator(&member##_iterator, ec, relids); \
	while (((member) = eclass_member_iterator_next(&member##_iterator)) != NULL)
#else
#define compat_foreach_ec_member(member, ec, relids) \
	for (int member##_i = 0; \
		 member##_i < list_length((ec)->ec_members) && \
		 ((member) = list_nth((ec)->ec_members, member##_i), true); \
		 member##_i++)
#endif

/* helpers that print EXPLAIN properties have a header of their own since 18 */
#if PG_VERSION_NUM >= 180000
#define COMPAT_HAS_EXPLAIN_FORMAT 1
#endif

/* what a hook for EXPLAIN of a query stands in for has a name since 17 */
#if PG_VERSION_NUM >= 170000
#define COMPAT_HAS_STANDARD_EXPLAIN 1
#endif

/* index_beginscan takes instrumentation since 18 */
#if PG_VERSION_NUM >= 180000
#define compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* the primary key's index, unless it can be deferred; one has to say so since 18 */
#if PG_VERSION_NUM >= 180000
#define compat_primary_key_index(rel) RelationGetPrimaryKeyIndex(rel, false)
#else
#define compat_primary_key_index(rel) RelationGetPrimaryKeyIndex(rel)
#endif

/* exprs_known_equal takes an operator family, or none, since 18 */
#if PG_VERSION_NUM >= 180000
#define compat_exprs_known_equal(root, a, b) exprs_known_equal(root, a, b, InvalidOid)
#else
#define compat_exprs_known_equal(root, a, b) exprs_known_equal(root, a, b)
#endif

/* estimate_array_length takes the planner's state since 17 */
#if PG_VERSION_NUM >= 170000
#define compat_estimate_array_length(root, array) estimate_array_length(root, array)
#else
#define compat_estimate_array_length(root, array) estimate_array_length(array)
#endif

/* the same for taking one apart */
#if PG_VERSION_NUM >= 160000
#define compat_deconstruct_text_array(array, elements, n) \
	deconstruct_array_builtin(array, TEXTOID, elements, NULL, n)
#else
#define compat_deconstruct_text_array(array, elements, n) \
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, elements, NULL, n)
#endif

#endif							/* RESIDENCY_COMPAT_H */
