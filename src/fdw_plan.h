/*
 * fdw_plan.h
 *		What the files of the wrapper's planning side share with one another.
 *
 * fdw_shippable.c decides, fdw_deparse_expr.c writes: both must agree on what
 * travels as a parameter and where COLLATE is written, so each such question
 * has one function, and both ask it.
 */
#ifndef RESIDENCY_FDW_PLAN_H
#define RESIDENCY_FDW_PLAN_H

#include "residency.h"

#include "fdw.h"

#include "nodes/extensible.h"
#include "nodes/plannodes.h"
#include "nodes/primnodes.h"

/*
 * Cost of a round trip to a region whose distance nobody has measured, in the planner's
 * units: some 20 ms.  All that plans must know then is that a trip per row is dearer than
 * fetching some ten thousand rows once.
 */
#define ROUND_TRIP_COST 1000.0
/* cost of moving one row, and each byte of it, over the border */
#define BORDER_ROW_COST 0.05
#define BORDER_BYTE_COST 0.0005

/*
 * A scan that is repeated for each row of something else is taken to be repeated
 * at least so often, unless there is one such row at most: estimates of joins are
 * often too low by more, and then each row would cost a round trip.
 */
#define DOUBTED_ROUND_TRIPS 20.0

/* rows assumed of a table that nobody has analyzed */
#define UNKNOWN_ROWS 10000.0

/* no cursor is worth its while up to this LIMIT */
#define SMALL_LIMIT 1000

/* ForeignPath.fdw_private */
typedef enum FdwPathPrivate
{
	FdwPathHasLimit,			/* Boolean: the text ends in LIMIT */
	FdwPathHasOffset,			/* Boolean: and OFFSET, so no Limit node stands above */
	FdwPathQuery,				/* FdwQuery: more than a scan; may be missing */
	FdwPathLength
} FdwPathPrivate;

/*
 * More than a scan of one table that a home is asked for: a join, an aggregate, or an aggregate over
 * a join.  "exprs" are what the home computes, in the columns of "rel"; "scan_exprs"
 * are the same as the nodes above know them.
 */
typedef struct FdwQuery
{
	RelOptInfo *rel;			/* partition, or join inside one region: FROM and WHERE */
	List	   *exprs;
	List	   *scan_exprs;
	bool		grouped;		/* an aggregate, or DISTINCT */
	int			ngroups;		/* so many of exprs, the first, are grouped by */
	List	   *having;			/* in the columns of rel */
	List	   *local_quals;	/* checked here, on scan_exprs */
	bool		limited;		/* ends in a LIMIT that lets ORDER BY, LIMIT and OFFSET be applied above */
	List	   *pathkeys;		/* the query's ORDER BY if limited; rows are not taken to be sorted */
	List	   *positions;		/* IntList: which of exprs each pathkey is; of a join not used */
	bool		one_row;		/* never more than one row comes back */
	bool		needed;			/* no rows would be wrong, even of a region that is left out */
} FdwQuery;

/* what lies in one region of a relation that is spread over regions */
typedef struct RegionPart
{
	RelOptInfo *rel;			/* partition, or join of what lies in one region */
	RelOptInfo *anchor;			/* partition by which Append's pruning knows it */
	bool		remote;
} RegionPart;

typedef struct RegionParts
{
	RelOptInfo *anchor;			/* resident table, or the single foreign table */
	int			nparts;
	int			nremote;
	RegionPart *parts;
} RegionParts;

/* fdw_shippable.c */
extern bool residency_is_gateway_value(PlannerInfo *root, RelOptInfo *rel, Expr *expr);
extern Oid	residency_value_collation(Node *value);
extern Oid	residency_relabel_collation(const RelabelType *relabel);
extern Expr *residency_case_condition(const CaseExpr *expr, const CaseWhen *when);
extern bool residency_is_sort_shippable(PlannerInfo *root, RelOptInfo *rel, Expr *expr, Oid opfamily);
extern bool residency_is_grouped_shippable(PlannerInfo *root, RelOptInfo *rel, Expr *expr);

/* fdw_shippable_agg.c */
extern bool residency_is_aggregate_order_shippable(PlannerInfo *root, RelOptInfo *rel, Aggref *agg);
extern bool residency_are_groups_shippable(PlannerInfo *root, RelOptInfo *rel, List *exprs, List *clauses);

/* fdw_deparse_expr.c */
typedef struct DeparseContext
{
	StringInfo	buf;
	PlannerInfo *root;
	RelOptInfo *rel;			/* the base relation whose columns are columns there */
	Oid			relid;			/* its table */
	List	  **params;			/* expressions sent as $1, $2, ... */
	bool		qualified;		/* rel is a join: columns are written as r1.name */

	/* a text about many rows of the gateway (lookup_sql.c): expressions with columns of
	 * those are k.v1, k.v2, ... behind the prefix; NULL: they are parameters, too */
	List	  **row_params;
	const char *row_prefix;
} DeparseContext;

extern void residency_deparse_expr(DeparseContext *cx, Expr *expr);
extern void residency_deparse_param(DeparseContext *cx, Expr *expr);
extern void residency_deparse_column(StringInfo buf, Oid relid, AttrNumber attno);

/* fdw_deparse_query.c */
extern void residency_deparse_query(StringInfo buf, PlannerInfo *root, const FdwQuery *query,
									List **params);
extern void residency_deparse_aggregate(DeparseContext *cx, Aggref *agg);

/* fdw_deparse.c */
extern void residency_deparse_order_by(DeparseContext *cx, List *pathkeys);
extern void residency_deparse_count(DeparseContext *cx, const char *word, Expr *count);
extern char *residency_locking_clause(PlannerInfo *root, RelOptInfo *rel);

/* fdw_plan.c */
extern bool residency_is_foreign(const RelOptInfo *rel);
extern bool residency_may_use_private(const RelOptInfo *rel);
extern EquivalenceMember *residency_sort_member(PlannerInfo *root, RelOptInfo *rel, PathKey *pathkey);
extern bool residency_can_sort(PlannerInfo *root, RelOptInfo *rel, List *pathkeys);
extern void residency_border_cost(RelOptInfo *rel, const FdwRel *fdw, double rows, bool sorted,
								  double sort_rows, Cost *startup, Cost *total);

/* fdw_plan_cost.c */
extern double residency_trip_cost(Oid serverid);

/* fdw_plan_parts.c */
extern RegionParts *residency_region_parts(PlannerInfo *root, RelOptInfo *rel);
extern Node *residency_translate(PlannerInfo *root, Node *node, RelOptInfo *child);
extern PathTarget *residency_translate_target(PlannerInfo *root, PathTarget *target, RelOptInfo *child);

/* fdw_plan_join_parts.c: one side of a join, what lies in each region, or the same everywhere */
typedef struct JoinSide
{
	RelOptInfo *rel;
	RegionParts *parts;			/* NULL: a global table */
} JoinSide;

extern bool residency_join_sides(PlannerInfo *root, RelOptInfo *outerrel, RelOptInfo *innerrel,
								 JoinSide *outer, JoinSide *inner);
extern bool residency_join_side_rels(const JoinSide *outer, const JoinSide *inner, Oid server,
									 RelOptInfo **outer_rel, RelOptInfo **inner_rel);
extern RegionParts *residency_join_parts(PlannerInfo *root, RelOptInfo *joinrel, const JoinSide *outer,
										 const JoinSide *inner, JoinType jointype, List *clauses);

/* fdw_plan_query.c */
extern Path *residency_query_path(PlannerInfo *root, const RegionPart *part, FdwQuery *query,
								  PathTarget *target, double rows, Cost home_cost);
extern ForeignScan *residency_plan_query(PlannerInfo *root, ForeignPath *path, FdwQuery *query, List *tlist);

/* fdw_plan_partial.c */
typedef struct PartialPlan PartialPlan;
extern PartialPlan *residency_split_aggregates(PlannerInfo *root, List *group_exprs, List *group_clauses,
											   List *aggs);
extern Path *residency_partial_path(PlannerInfo *root, RelOptInfo *rel, const RegionParts *parts,
									PartialPlan *partial, List *having);

/* fdw_combine.c */
extern const CustomPathMethods residency_combine_path_methods;
extern const CustomScanMethods residency_combine_scan_methods;

/* fdw_plan_limit.c */
extern bool residency_limit_ships(PlannerInfo *root, RelOptInfo *rel);
extern bool residency_limit_groups(PlannerInfo *root, FdwQuery *query, List *items, double *rows);
extern bool residency_limit_applies(PlannerInfo *root, RelOptInfo *rel, List *pathkeys);
extern double residency_limit_rows(PlannerInfo *root, double rows, bool with_offset);
extern Expr *residency_limit_expr(PlannerInfo *root);
extern void residency_fdw_limit_routine(FdwRoutine *routine);

/* fdw_plan_modify.c */
extern void residency_fdw_plan_modify_routine(FdwRoutine *routine);

/* fdw_plan_hook.c */
extern bool residency_may_force_direct(const ModifyTable *plan, Relation rel);
extern List *residency_direct_mark(void);

/* fdw_plan_explain.c */
extern void residency_fdw_explain_routine(FdwRoutine *routine);

/* fdw_stats_cache.c */
extern bool residency_stats_size(Oid relid, double *rows, int32 *pages);

#endif							/* RESIDENCY_FDW_PLAN_H */
