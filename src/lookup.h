/*
 * lookup.h
 *		Region lookup: from keys to homes to rows, one round trip for each batch of keys.
 *
 * lookup_path.c	which scans and joins can be one, and what it costs
 * lookup_match.c	conditions that fix the key; the indexes behind them
 * lookup_plan.c	the plan node
 * lookup_sql.c		the texts it sends
 * lookup_write.c	whether an UPDATE or DELETE is done at the homes as a whole
 * lookup_keys.c	types of the keys; their values, for a scan
 * lookup_exec.c	the node: batches in, joined rows out
 * lookup_batch.c	one batch: outer rows, their distinct keys, the rows found
 * lookup_home.c	directory and local partition, read by their indexes
 * lookup_row.c		a resident row in the scan tuple; rows that are checked again
 * lookup_send.c	asking regions, and asking again for what they do not hold
 * lookup_homed.c	what a home answers about keys that it does not hold
 * lookup_explain.c	what EXPLAIN prints
 *
 * A lookup has two forms.  As a scan, the keys are expressions (key = $1, key = ANY
 * (array)).  As a join, they come from the rows of an outer plan; the resident table
 * is always the inner side.  Both share everything behind the keys.
 *
 * An UPDATE or DELETE of the resident table takes its rows from a lookup, too: rows stored here
 * are written by the executor as ever; those elsewhere by one statement at their home
 * ("direct"), or else they are locked, fetched and written by ctid.
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
	LookupWriteParams,			/* like LookupParams, for a direct write */
	LookupWriteRowParams,		/* values for each row of the key side, in arrays */
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
	LookupSql,					/* String: with LOOKUP_NAME for the table's name */
	LookupWriteSql,				/* String: direct UPDATE or DELETE; empty if it cannot be */
	LookupMissingSql,			/* String: which keys are not held */
	LookupReturned,				/* IntList: attnums in the parent that a direct write returns */
	LookupPrivateLength
} LookupPrivate;

typedef enum LookupNumber
{
	LookupJoinType,				/* JoinType; JOIN_INNER for a scan */
	LookupOuterColumns,			/* in the scan tuple, 0 for a scan */
	LookupFirstRows,			/* rows of the first batch */
	LookupBatchRows,			/* and of all others */
	LookupDirectoryRegion,		/* attnum of the directory's region column */
	LookupOperation,			/* CmdType of a direct write, CMD_SELECT if it is none */
	LookupReturns,				/* does it return rows? */
	LookupCounts,				/* is its count the statement's? */
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

/* stands for the table's name in the texts */
#define LOOKUP_NAME "\001"

/* a direct UPDATE or DELETE */
typedef struct LookupWrite
{
	char	   *sql;
	char	   *missing_sql;	/* which keys are not held, asked behind it */
	List	   *params;			/* expressions sent behind the arrays */
	List	   *row_params;		/* expressions whose values are sent in arrays, behind the keys */
	List	   *returned;		/* IntList: attnums in the parent */
} LookupWrite;

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

/* lookup_sql.c */
extern char *residency_lookup_select(PlannerInfo *root, const LookupTable *table,
									 const AttrNumber *keys, List *attnos, List *shipped,
									 const char *locking, List **params);
extern bool residency_lookup_write(PlannerInfo *root, const LookupTable *table,
								   const AttrNumber *keys, List *conditions, List *returned,
								   LookupWrite *write);

/* lookup_write.c */
extern bool residency_lookup_writes(PlannerInfo *root, RelOptInfo *rel);
extern Var *residency_lookup_column(PlannerInfo *root, RelOptInfo *rel, Var *var);
extern void residency_lookup_plan_write(PlannerInfo *root, RelOptInfo *rel,
										const LookupTable *table, const AttrNumber *keys,
										JoinType jointype, List *own, List *clauses, LookupWrite *write);
extern bool residency_lookup_is_key(const LookupTable *table, RestrictInfo *rinfo);
extern bool residency_lookup_force_write(PlannerInfo *root, ModifyTable *plan);

/* lookup_plan.c */
extern const CustomPathMethods residency_lookup_path_methods;
extern const CustomScanMethods residency_lookup_scan_methods;

/* lookup_send.c */
extern void residency_lookup_send_init(void);

/* lookup_exec.c */
extern Node *residency_lookup_create_state(CustomScan *plan);

#endif							/* RESIDENCY_LOOKUP_H */
