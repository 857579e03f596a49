/*
 * lookup.h
 *		Region lookup: from keys to homes to rows, one round trip for each batch of keys.
 *
 * lookup_path.c	which scans and joins can be one, and what it costs
 * lookup_match.c	conditions that fix the key; the indexes behind them
 * lookup_plan.c	the plan node with its SQL
 * lookup_keys.c	types of the keys; their values, for a scan
 * lookup_exec.c	the node: batches in, joined rows out
 * lookup_batch.c	one batch: outer rows, their distinct keys, the rows found
 * lookup_home.c	directory and local partition, read by their indexes
 * lookup_send.c	asking regions, and asking again for what they do not hold
 * lookup_homed.c	what a home answers about keys that it does not hold
 * lookup_explain.c	what EXPLAIN prints
 *
 * A lookup has two forms.  As a scan, the keys are expressions (key = $1, key = ANY
 * (array)).  As a join, they come from the rows of an outer plan; the resident table
 * is always the inner side.  Both share everything behind the keys.
 *
 * The node's scan tuple has the columns of the outer plan first (none for a scan), then
 * those of the resident table.
 */
#ifndef RESIDENCY_LOOKUP_H
#define RESIDENCY_LOOKUP_H

#include "residency.h"

#include "nodes/execnodes.h"
#include "nodes/extensible.h"
#include "nodes/pathnodes.h"

#include "fdw.h"

/* a condition that fixes one key column; nodes are the planner's own */
typedef struct LookupKey
{
	RestrictInfo *rinfo;
	Expr	   *value;			/* what the column is compared with */
	bool		array;			/* value is an array: = ANY */
	Oid			opno;			/* column on the left, value (or its element) on the right */
	Oid			type;			/* of the value (or its element) */
	Oid			collation;		/* that the operator works under */
} LookupKey;

/* where to find rows by key in one local table */
typedef struct LookupIndex
{
	Oid			relid;
	Oid			indexid;		/* InvalidOid: the table is not concerned */
	List	   *columns;		/* IntList: index column of each key column */
} LookupIndex;

/* all that paths and plans of one resident table have in common */
typedef struct LookupTable
{
	RelOptInfo *rel;			/* the parent */
	Oid			relid;
	Oid			userid;			/* whose rights decide, InvalidOid: ask at run time */
	int			nkeys;
	LookupKey	keys[INDEX_MAX_KEYS];
	LookupIndex directory;		/* relid InvalidOid: there is none */
	AttrNumber	directory_region;	/* region column of the directory */
	LookupIndex home;			/* partition stored here; relid InvalidOid: pruned */
	List	   *partitions;		/* OidList: foreign partitions that are not pruned */
	List	   *servers;		/* OidList: their servers */
	bool		unique;			/* no two rows have the same key, in all regions */
	double		tuples;			/* in all partitions that are not pruned */
} LookupTable;

/* CustomScan.custom_exprs: a list of lists */
typedef enum LookupExprs
{
	LookupKeyValues,			/* what each key column is compared with */
	LookupParams,				/* parameters behind the keys' arrays: $nkeys+1, ... */
	LookupShipped,				/* conditions that the homes check; checked here for rows stored here */
	LookupJoinQuals,			/* further conditions of a match; LEFT, SEMI and ANTI only */
	LookupExprsLength
} LookupExprs;

/* CustomScan.custom_private */
typedef enum LookupPrivate
{
	LookupNumbers,				/* IntList, see LookupNumber */
	LookupOids,					/* OidList, see LookupOid */
	LookupPartitions,			/* OidList: foreign partitions */
	LookupServers,				/* OidList: their servers */
	LookupKeyOperators,			/* OidList */
	LookupKeyTypes,				/* OidList */
	LookupKeyCollations,		/* OidList */
	LookupKeyArrays,			/* IntList: is the value an array? */
	LookupDirectoryColumns,		/* IntList: index column of each key */
	LookupHomeColumns,			/* IntList: the same for the partition stored here */
	LookupResident,				/* IntList: attnum in the parent of each resident column */
	LookupStored,				/* IntList: the same in the partition stored here */
	LookupFetched,				/* IntList: resident columns (from 0) in the order of the SQL */
	LookupKeyNames,				/* list of String: for EXPLAIN */
	LookupSqlHead,				/* String: SQL before the table's name */
	LookupSqlTail,				/* String: and behind it */
	LookupPrivateLength
} LookupPrivate;

typedef enum LookupNumber
{
	LookupJoinType,				/* JoinType; JOIN_INNER for a scan */
	LookupOuterColumns,			/* in the scan tuple, 0 for a scan */
	LookupFirstRows,			/* rows of the first batch */
	LookupBatchRows,			/* and of all others */
	LookupDirectoryRegion,		/* attnum of the directory's region column */
	LookupNumberLength
} LookupNumber;

typedef enum LookupOid
{
	LookupParentOid,
	LookupDirectoryOid,
	LookupDirectoryIndexOid,
	LookupHomeOid,				/* InvalidOid: pruned */
	LookupHomeIndexOid,
	LookupUserOid,
	LookupOidLength
} LookupOid;

/* called by residency.c */
extern void residency_lookup_init(void);

/*
 * For groups of nodes that start together (fdw_start_groups.c): servers that a plan node may ask,
 * NIL if it is no region lookup; the group of one that is; and asking for the first keys,
 * which does not wait.
 */
extern List *residency_lookup_servers(PlanState *ps);
extern FdwGroup *residency_lookup_group(PlanState *ps);
extern void residency_lookup_set_group(PlanState *ps, FdwGroup *group);
extern void residency_lookup_start(PlanState *ps);

/* can a query's lookups still send something to a region, or, with InvalidOid, to any? */
extern bool residency_lookup_reads(EState *estate, Oid serverid);

/* lookup_match.c */
extern bool residency_lookup_table(PlannerInfo *root, RelOptInfo *rel, Relids outer,
								   List *clauses, LookupTable *table);

/* lookup_plan.c */
extern const CustomPathMethods residency_lookup_path_methods;
extern const CustomScanMethods residency_lookup_scan_methods;

/* lookup_send.c */
extern void residency_lookup_send_init(void);

/* lookup_exec.c */
extern Node *residency_lookup_create_state(CustomScan *plan);

#endif							/* RESIDENCY_LOOKUP_H */
