/*
 * fdw.h
 *		The wrapper: what planning, deparsing and execution share.
 *
 * fdw_handler.c	routine and option validator
 * fdw_plan.c, fdw_plan_upper.c, fdw_plan_modify.c	RelOptInfo -> paths -> plan
 * fdw_shippable.c	may this expression run at the home?
 * fdw_deparse*.c	expression or statement -> SQL text
 * fdw_scan.c, fdw_start.c	run a scan; start all scans that any answer needs
 * fdw_modify.c, fdw_direct.c	INSERT, UPDATE, DELETE, TRUNCATE
 * fdw_convert.c	rows <-> text
 * fdw_stats.c		numbers from the home, no values
 *
 * A foreign table of ours stands for the table of the same schema and name in the
 * region of its server.
 */
#ifndef RESIDENCY_FDW_H
#define RESIDENCY_FDW_H

#include "residency.h"
#include "remote.h"

#include "executor/execdesc.h"
#include "executor/tuptable.h"
#include "foreign/fdwapi.h"
#include "lib/stringinfo.h"
#include "nodes/execnodes.h"
#include "nodes/pathnodes.h"
#include "utils/relcache.h"

/*
 * RelOptInfo->fdw_private of a foreign table (or of an upper relation above one).
 */
typedef struct FdwRel
{
	Oid			serverid;
	Oid			userid;			/* whose rights decide; InvalidOid: ask at run time */
	List	   *remote_conds;	/* RestrictInfos that the home checks */
	List	   *local_conds;	/* the others */
	Bitmapset  *attrs_used;		/* attnums offset by FirstLowInvalidHeapAttributeNumber */
	double		rows;			/* after remote_conds */
	double		retrieved_rows; /* rows that cross (before local_conds) */
	int			width;
	Cost		startup_cost;
	Cost		total_cost;
	bool		at_most_one;	/* remote conds fix a unique key: no cursor needed */
	/* a join that the home computes, see fdw_plan_join.c */
	JoinType	jointype;
	RelOptInfo *outer_rel;		/* NULL: no join */
	RelOptInfo *inner_rel;
	List	   *join_conds;		/* decide what matches; remote_conds apply to the result */
	bool		needed;			/* keeps rows of a global table: see FdwScanNeeded */
	/* upper relations */
	RelOptInfo *scan_rel;		/* the base relation below */
	List	   *sort_pathkeys;	/* ORDERED: shipped sort */
} FdwRel;

/* ForeignScan.fdw_private of a scan */
typedef enum FdwScanPrivate
{
	FdwScanSql,					/* String: SELECT text, parameters $1.. = fdw_exprs */
	FdwScanAttrs,				/* IntList: attnum (of the scan tuple) of each column fetched */
	FdwScanSmall,				/* Boolean: provably small, so no cursor is used */
	FdwScanWidth,				/* Integer: estimated bytes per row, 0 unknown */
	FdwScanLimit,				/* Boolean: the text ends in LIMIT */
	FdwScanLocked,				/* Boolean: the text ends in FOR UPDATE or FOR SHARE */
	FdwScanDoes,				/* String: what the home does besides scanning a table, or empty */
	FdwScanNeeded,				/* Boolean: no rows would be a wrong answer even of a region that is
								 * left out (fdw_away.c), such as that of count(*) */
	FdwScanLength
} FdwScanPrivate;

/* ForeignScan.fdw_private of a direct UPDATE or DELETE */
typedef enum FdwDirectPrivate
{
	FdwDirectSql,				/* String */
	FdwDirectHasReturning,		/* Boolean */
	FdwDirectAttrs,				/* IntList: attnums of the columns returned */
	FdwDirectSetProcessed,		/* Boolean: counts into es_processed */
	FdwDirectLength
} FdwDirectPrivate;

/* ModifyTable.fdwPrivLists: what PlanForeignModify hands to BeginForeignModify */
typedef enum FdwModifyPrivate
{
	FdwModifyTarget,			/* IntList: attnums written, in the order of the text's parameters */
	FdwModifyReturning,			/* IntList: attnums in RETURNING, NIL if none */
	FdwModifyDoNothing,			/* Boolean: ON CONFLICT DO NOTHING */
	FdwModifyLength
} FdwModifyPrivate;

/* fdw_handler.c installs these; each is documented where it is defined */
extern void residency_fdw_plan_routine(FdwRoutine *routine);	/* planning callbacks */
extern void residency_fdw_scan_routine(FdwRoutine *routine);	/* scan callbacks */
extern void residency_fdw_modify_routine(FdwRoutine *routine);	/* write callbacks */
extern void residency_fdw_stats_routine(FdwRoutine *routine);	/* ANALYZE */
extern void residency_fdw_plan_init(void);		/* planner hook */
extern void residency_fdw_group_init(void);		/* planner hook for aggregates */
extern void residency_fdw_join_init(void);		/* planner hook for joins, after the lookup's */
extern void residency_fdw_stats_init(void);		/* statistics hook */
extern void residency_fdw_modify_init(void);	/* registers the row buffers' producer */

extern void residency_fdw_start_init(void);	/* fdw_node.c */

/* fdw_start.c: nodes that start together, also those of other parts */
typedef struct FdwGroup FdwGroup;
extern void residency_group_start(FdwGroup *group);

/* fdw_start_groups.c: called by the ExecutorStart hook after the standard function */
extern void residency_fdw_collect_scans(QueryDesc *queryDesc);

/*
 * fdw_away.c: true if this statement reads without the region, because that is away and the
 * session wants it so; the first time there is a warning.  The same until the statement ends.
 */
extern bool residency_leaves_out(EState *estate, Oid serverid);
extern void residency_fdw_away_init(void);

/* fdw_shippable.c */
extern bool residency_is_shippable(PlannerInfo *root, RelOptInfo *rel, Expr *expr);

/*
 * fdw_deparse.c.  In all of them "params" collects the expressions that are
 * evaluated at the gateway and sent as $1, $2, ...; "attrs" the attnums fetched.
 */
extern void residency_deparse_relation(StringInfo buf, Relation rel);	/* "schema"."name" */
extern void residency_deparse_select(StringInfo buf, PlannerInfo *root, RelOptInfo *rel,
									 List *tlist, List *remote_conds, List *pathkeys,
									 bool has_limit, List **attrs, List **params);
extern void residency_deparse_direct_update(StringInfo buf, PlannerInfo *root, RelOptInfo *rel,
											Relation relation, List *targetlist, List *targetattrs,
											List *remote_conds, List *returning,
											List **attrs, List **params);
extern void residency_deparse_direct_delete(StringInfo buf, PlannerInfo *root, RelOptInfo *rel,
											Relation relation, List *remote_conds, List *returning,
											List **attrs, List **params);
/* INSERT with nrows rows of parameters; generated columns are left out of targets */
extern void residency_deparse_insert(StringInfo buf, Relation rel, List *targets, int nrows,
									 bool do_nothing, List *returning);
/* UPDATE by ctid = $1, then the columns as $2.. ; DELETE by ctid = $1 */
extern void residency_deparse_update_row(StringInfo buf, Relation rel, List *targets, List *returning);
extern void residency_deparse_delete_row(StringInfo buf, Relation rel, List *returning);

/*
 * fdw_convert.c: values travel in text form, under fixed formats on both sides
 * (the sessions' start-up packets set DateStyle ISO, IntervalStyle postgres,
 * extra_float_digits 3, TimeZone UTC, lc_monetary C).
 */
typedef struct FdwInput FdwInput;	/* how to turn result columns into a slot */
extern FdwInput *residency_input_make(TupleDesc desc, List *attrs);
extern void residency_input_row(FdwInput *input, PGresult *res, int row, TupleTableSlot *slot);

typedef struct FdwOutput FdwOutput; /* how to turn values into parameters */
extern FdwOutput *residency_output_make(int n, const Oid *types);
/* text in the current memory context */
extern char *residency_output_value(FdwOutput *output, int i, Datum value);
/* fixed formats for output functions; pass the result to end */
extern int	residency_output_begin(void);
extern void residency_output_end(int nestlevel);

#endif							/* RESIDENCY_FDW_H */
