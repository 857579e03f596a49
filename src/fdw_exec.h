/*
 * fdw_exec.h
 *		What the files of the wrapper's execution side share; nobody else includes it.
 *
 * Every ForeignScan of ours that is being executed, reading or modifying directly,
 * has an FdwNode.  All of them are in one list of this backend, so that the scans of
 * a statement can be started together (fdw_start.c), and so that the end of a
 * (sub)transaction can tell them what it took away.
 */
#ifndef RESIDENCY_FDW_EXEC_H
#define RESIDENCY_FDW_EXEC_H

#include "fdw.h"

#include "lib/ilist.h"

typedef struct FdwNode FdwNode;

/* queues the node's requests and sets started; evaluates parameters, never waits */
typedef void (*FdwNodeStart) (FdwNode *node);

struct FdwNode
{
	dlist_node	link;			/* in the backend's list */
	ForeignScanState *state;
	Oid			serverid;
	Oid			userid;			/* whose rights decide at the home */
	Oid			table;			/* whose traffic its requests are, see border.h */
	RemoteTally *tally;			/* NULL unless somebody wants to see it */
	FdwNodeStart start;
	bool		started;
	bool		starting;		/* its parameters are being evaluated */
	bool		modifies;		/* direct UPDATE or DELETE */

	/* who starts together, see fdw_start_groups.c */
	FdwGroup   *group;			/* NULL: only itself */
	PlanState  *pruner;			/* Append or MergeAppend that may leave it out, or NULL */
	int			pruner_index;	/* which of its children leads here */

	/* requests on their way; NULL where there is none */
	RemoteRequest *declare;		/* DECLARE CURSOR */
	RemoteRequest *current;		/* rows that are read, or will be next */
	RemoteRequest *ahead;		/* rows that were asked for ahead */
	SubTransactionId subid;		/* where they began */
	bool		gone;			/* ... and that has aborted */

	/* parameters, evaluated at start */
	int			nparams;
	List	   *param_exprs;	/* ExprStates */
	FdwOutput  *param_output;
	MemoryContext param_context;	/* holds param_values */
	const char **param_values;

	MemoryContextCallback reset;
};

/* fdw_node.c */
extern dlist_head residency_live_nodes;
extern void residency_node_init(FdwNode *node, ForeignScanState *state, bool modifies,
								FdwNodeStart start);
extern bool residency_node_evaluate(FdwNode *node);
extern RemoteRequest *residency_node_send(FdwNode *node, const char *sql, int nparams, int flags);
extern void residency_node_begin(FdwNode *node);
extern PGresult *residency_node_wait(FdwNode *node, RemoteRequest *req);
extern void residency_node_release(FdwNode *node);
extern void residency_node_end(FdwNode *node);

/* nodes that start together */
struct FdwGroup
{
	List	   *nodes;			/* FdwNodes, in the plan's order */
	List	   *lookups;		/* region lookups, as PlanStates */
	bool		starting;

	/* group of the whole statement: starts at the first call of its top node */
	dlist_node	link;			/* while top is set, in a list of this backend */
	PlanState  *top;
	ExecProcNodeMtd top_function;	/* what the first call would have been */
	MemoryContextCallback reset;
};

/* fdw_start.c */
extern void residency_group_start_with(FdwGroup *group, PlanState *top);
extern void residency_node_start(FdwNode *node);
extern void residency_start_before_write(EState *estate, Oid serverid);
extern bool residency_reads_again(EState *estate, Oid serverid);

/* fdw_modify_rows.c */
typedef struct FdwModify FdwModify;
extern FdwModify *residency_modify_make(EState *estate, ResultRelInfo *rri, CmdType operation,
										bool counts, List *targets, List *returning,
										bool do_nothing, bool wants_row, List *subplan_tlist);
extern const RemoteTraffic *residency_modify_traffic(FdwModify *modify);
extern uint64 residency_modify_end(FdwModify *modify);
extern uint64 residency_modify_settle(EState *estate);
extern void residency_modify_flush_all(RemoteRegion *region);
extern void residency_modify_flush_before_wait(EState *estate);
extern EState *residency_modify_reading(EState *estate);
extern TupleTableSlot *residency_modify_insert(FdwModify *modify, TupleTableSlot *slot);
extern TupleTableSlot *residency_modify_update(FdwModify *modify, TupleTableSlot *slot,
											   TupleTableSlot *plan_slot);
extern TupleTableSlot *residency_modify_delete(FdwModify *modify, TupleTableSlot *slot,
											   TupleTableSlot *plan_slot);

/* fdw_modify.c */
extern void residency_region_change_error(Oid relid) pg_attribute_noreturn();

extern bool residency_home_constraint(Oid relid);
extern bool residency_home_check_needed(Relation rel, CmdType operation, const Bitmapset *columns);

/* fdw_direct.c */
extern void residency_direct_routine(FdwRoutine *routine);

#endif							/* RESIDENCY_FDW_EXEC_H */
