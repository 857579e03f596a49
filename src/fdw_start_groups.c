/*
 * fdw_start_groups.c
 *		Sorts the remote scans of a statement into groups that start together.
 *
 * Read off the plan once, after ExecutorStart.  The statement's own group are the scans that
 * every answer of it needs.  A new group, which starts when the first of it is fetched
 * from, begins
 *
 *		under a subplan, an init plan or a CTE			might never be read
 *		under a gating Result							its condition may be false
 *		at the inner side of a nested loop that passes parameters to it
 *		at the remote side of a join whose other side is purely local, hence may be
 *			empty without any region knowing
 *
 * and under a LIMIT each scan is its own group, until a node comes that reads all
 * of its input anyway (sort, aggregate, hash) or the first row of each child (merge).
 * Children that an Append prunes at run time start only if they survive.
 *
 * What stands beside the plan's tree belongs to the statement's group after all
 *
 *		a CTE			that a scan in the group's reach reads, or that writes
 *		a subquery		whose value is certainly computed: in what an aggregate without
 *						groups, or a Result without input, gives out
 *		a subquery		in any expression in the group's reach, if it asks only regions
 *						that the group asks anyway: then no region is asked in vain
 *
 * but not within CASE and COALESCE, which may be there in order not to reach it.
 */
#include "postgres.h"

#include "fdw_exec.h"

#include "executor/execPartition.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"

#include "lookup.h"

/* a subquery that may belong to the statement's group */
typedef struct Candidate
{
	PlanState  *plan;
	bool		certain;		/* its value is needed whatever comes */
} Candidate;

/* one sorting of a statement's scans */
typedef struct GroupWalk
{
	EState	   *estate;
	FdwGroup   *top;			/* the statement's own group */
	List	   *subplans;		/* subplans sorted so far, a list of PlanStates */
	List	   *in_top;			/* ... those among them that belong to the top group */
	List	   *candidates;
} GroupWalk;

/* how scans below a plan node start */
typedef struct StartContext
{
	GroupWalk  *all;
	FdwGroup   *group;			/* NULL: each scan by itself */
	FdwGroup   *once;			/* below a LIMIT: group of what is read at least once, or NULL */
	PlanState  *pruner;			/* nearest Append that prunes at run time */
	int			pruner_index;
	bool		recursive;		/* at the side of a recursive union that reads its own rows */
} StartContext;

static void walk(PlanState *ps, StartContext context);

/* the node of a plan node if it is one of ours */
static FdwNode *
node_of(PlanState *ps)
{
	dlist_iter	iter;

	dlist_foreach(iter, &residency_live_nodes)
	{
		FdwNode    *node = dlist_container(FdwNode, link, iter.cur);

		if (&node->state->ss.ps == ps)
			return node;
	}
	return NULL;
}

/* a context like the given one, but with a group of its own */
static StartContext
new_group(StartContext context)
{
	context.group = palloc0(sizeof(FdwGroup));
	context.once = NULL;
	return context;
}

/* the context below a node that reads all its input, or the first row of each input */
static StartContext
whole_input(StartContext context)
{
	if (context.group == NULL && context.once == NULL)
		return new_group(context);
	if (context.group == NULL)
		context.group = context.once;
	context.once = NULL;
	return context;
}

/*
 * Servers of the scans of ours below a node, which may be NULL; looks no further than joins
 * and appends go.
 */
static List *
servers_below(PlanState *ps, List *servers)
{
	FdwNode    *node;
	ListCell   *lc;

	if (ps == NULL)
		return servers;
	check_stack_depth();
	switch (nodeTag(ps))
	{
		case T_ForeignScanState:
			node = node_of(ps);
			return node == NULL ? servers : list_append_unique_oid(servers, node->serverid);
		case T_AppendState:
			for (int i = 0; i < ((AppendState *) ps)->as_nplans; i++)
				servers = servers_below(((AppendState *) ps)->appendplans[i], servers);
			return servers;
		case T_MergeAppendState:
			for (int i = 0; i < ((MergeAppendState *) ps)->ms_nplans; i++)
				servers = servers_below(((MergeAppendState *) ps)->mergeplans[i], servers);
			return servers;
		case T_SubqueryScanState:
			return servers_below(((SubqueryScanState *) ps)->subplan, servers);
		case T_CteScanState:
			return servers_below(((CteScanState *) ps)->cteplanstate, servers);
		case T_CustomScanState:
			servers = list_concat_unique_oid(servers, residency_lookup_servers(ps));
			foreach(lc, ((CustomScanState *) ps)->custom_ps)
				servers = servers_below((PlanState *) lfirst(lc), servers);
			return servers;
		default:
			return servers_below(innerPlanState(ps), servers_below(outerPlanState(ps), servers));
	}
}

/* is there a scan of ours below? */
static bool
has_remote(PlanState *ps)
{
	return servers_below(ps, NIL) != NIL;
}

/* the same for a subquery, with the subqueries whose values it uses */
static List *
servers_of_subquery(PlanState *ps)
{
	List	   *servers = servers_below(ps, NIL);
	ListCell   *lc;

	foreach(lc, ps->initPlan)
		servers = list_concat_unique_oid(servers,
										 servers_of_subquery(((SubPlanState *) lfirst(lc))->planstate));
	return servers;
}

/* puts a scan into a group; the statement's own wins */
static void
join_group(FdwNode *node, StartContext context)
{
	if (node->group != NULL)
	{
		if (context.group != context.all->top || node->group == context.group)
			return;
		node->group->nodes = list_delete_ptr(node->group->nodes, node);
	}
	node->group = context.group;
	node->pruner = context.pruner;
	node->pruner_index = context.pruner_index;
	if (context.group != NULL)
		context.group->nodes = lappend(context.group->nodes, node);
}

/*
 * Puts a custom scan into a group if it is a region lookup whose keys wait for no region.  One
 * that an Append may prune is left to itself, and so is one whose keys a recursion has yet to find.
 */
static void
join_lookup(PlanState *ps, StartContext context)
{
	FdwGroup   *before;
	ListCell   *lc;

	if (context.group == NULL || context.pruner != NULL || context.recursive ||
		residency_lookup_servers(ps) == NIL)
		return;
	foreach(lc, ((CustomScanState *) ps)->custom_ps)
	{
		if (has_remote((PlanState *) lfirst(lc)))
			return;
	}
	before = residency_lookup_group(ps);
	if (before != NULL)
	{
		if (context.group != context.all->top || before == context.group)
			return;
		before->lookups = list_delete_ptr(before->lookups, ps);
	}
	residency_lookup_set_group(ps, context.group);
	context.group->lookups = lappend(context.group->lookups, ps);
}

/* sorts what stands beside the tree, unless that was done, or done as well */
static void
walk_subplan(PlanState *ps, StartContext context)
{
	GroupWalk  *all = context.all;

	if (list_member_ptr(all->in_top, ps) ||
		(context.group != all->top && list_member_ptr(all->subplans, ps)))
		return;
	all->subplans = lappend(all->subplans, ps);
	if (context.group == all->top)
		all->in_top = lappend(all->in_top, ps);
	walk(ps, context);
}

/* what an expression is searched for */
typedef struct ExprSearch
{
	GroupWalk  *all;
	bool		certain;		/* only what is computed whenever the expression is */
} ExprSearch;

/* notes a subquery found in an expression */
static void
add_candidate(GroupWalk *all, PlanState *plan, bool certain)
{
	Candidate  *candidate;

	if (plan == NULL || servers_of_subquery(plan) == NIL)
		return;
	candidate = palloc(sizeof(Candidate));
	candidate->plan = plan;
	candidate->certain = certain;
	all->candidates = lappend(all->candidates, candidate);
}

/* expression_tree_walker: finds subqueries that do not depend on a row */
static bool
search_expr(Node *node, ExprSearch *search)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Param:
			{
				Param	   *param = (Param *) node;
				SubPlanState *init;

				if (param->paramkind != PARAM_EXEC)
					return false;
				init = search->all->estate->es_param_exec_vals[param->paramid].execPlan;
				if (init != NULL && init->subplan->parParam == NIL)
					add_candidate(search->all, init->planstate, search->certain);
				return false;
			}
		case T_SubPlan:
			{
				SubPlan    *subplan = (SubPlan *) node;

				if (subplan->parParam == NIL)
					add_candidate(search->all,
								  list_nth(search->all->estate->es_subplanstates, subplan->plan_id - 1),
								  search->certain);
				return search_expr(subplan->testexpr, search);
			}
		case T_CaseExpr:
			{
				CaseExpr   *expr = (CaseExpr *) node;

				return search_expr((Node *) expr->arg, search) ||
					search_expr((Node *) linitial_node(CaseWhen, expr->args)->expr, search);
			}
		case T_CoalesceExpr:
			return search_expr(linitial(((CoalesceExpr *) node)->args), search);
		case T_BoolExpr:
			if (search->certain)
				return search_expr(linitial(((BoolExpr *) node)->args), search);
			break;
		default:
			break;
	}
	return expression_tree_walker(node, search_expr, search);
}

/*
 * Looks for subqueries in the expressions of a node that is within the group's reach.
 */
static void
search_node(PlanState *ps, StartContext context)
{
	ExprSearch	search = {.all = context.all};

	if (context.group != context.all->top || context.pruner != NULL)
		return;
	/* nodes that give out a row whatever their input is */
	search.certain = (IsA(ps, AggState) && ((Agg *) ps->plan)->aggstrategy == AGG_PLAIN &&
					  ((Agg *) ps->plan)->groupingSets == NIL) ||
		(IsA(ps, ResultState) && outerPlanState(ps) == NULL &&
		 ((Result *) ps->plan)->resconstantqual == NULL);
	(void) search_expr((Node *) ps->plan->targetlist, &search);
	search.certain = false;
	(void) search_expr((Node *) ps->plan->qual, &search);
}

/* children of an Append or MergeAppend; pruned: it chooses among them at run time */
static void
walk_children(PlanState *ps, PlanState **children, int n, bool pruned, StartContext context)
{
	for (int i = 0; i < n; i++)
	{
		StartContext child = context;

		if (pruned)
		{
			child.pruner = ps;
			child.pruner_index = i;
		}
		/* an Append below a LIMIT may never come to the second one */
		if (i > 0 || pruned)
			child.once = NULL;
		walk(children[i], child);
	}
}

/* both sides of a join */
static void
walk_join(PlanState *ps, StartContext context)
{
	PlanState  *outer = outerPlanState(ps);
	PlanState  *inner = innerPlanState(ps);
	bool		both = has_remote(outer) && has_remote(inner);

	if (IsA(ps, MergeJoinState))
		context = whole_input(context);
	/* the outer side waits only for the hash table of a purely local inner one */
	walk(outer, IsA(ps, HashJoinState) && !both && context.group ? new_group(context) : context);
	context.once = NULL;
	if (IsA(ps, NestLoopState) && ((NestLoop *) ps->plan)->nestParams != NIL)
		walk(inner, new_group(context));
	else if (IsA(ps, NestLoopState) && context.group == NULL)
		walk(inner, new_group(context));
	else
		walk(inner, both ? context : new_group(context));
}

/* below a LIMIT; nothing is read if that is 0 */
static void
walk_limit(PlanState *ps, StartContext context)
{
	Node	   *count = ((Limit *) ps->plan)->limitCount;

	if (context.group != NULL)
		context.once = context.group;
	context.group = NULL;
	if (count != NULL && IsA(count, Const) && !((Const *) count)->constisnull &&
		DatumGetInt64(((Const *) count)->constvalue) == 0)
		context.once = NULL;
	walk(outerPlanState(ps), context);
}

/* sorts the scans below a plan node into groups */
static void
walk(PlanState *ps, StartContext context)
{
	FdwNode    *node;
	ListCell   *lc;

	if (ps == NULL)
		return;
	check_stack_depth();
	search_node(ps, context);
	switch (nodeTag(ps))
	{
		case T_ForeignScanState:
			node = node_of(ps);
			if (node != NULL)
				join_group(node, context);
			break;
		case T_LimitState:
			walk_limit(ps, context);
			break;
		case T_SortState:
		case T_AggState:
		case T_HashState:
		case T_SetOpState:
			walk(outerPlanState(ps), whole_input(context));
			break;
		case T_ResultState:
			if (((Result *) ps->plan)->resconstantqual != NULL)
			{
				context.once = NULL;
				if (context.group != NULL)
					context = new_group(context);
			}
			walk(outerPlanState(ps), context);
			break;
		case T_AppendState:
			walk_children(ps, ((AppendState *) ps)->appendplans, ((AppendState *) ps)->as_nplans,
						  ((AppendState *) ps)->as_prune_state != NULL &&
						  ((AppendState *) ps)->as_prune_state->do_exec_prune, context);
			break;
		case T_MergeAppendState:
			walk_children(ps, ((MergeAppendState *) ps)->mergeplans,
						  ((MergeAppendState *) ps)->ms_nplans,
						  ((MergeAppendState *) ps)->ms_prune_state != NULL &&
						  ((MergeAppendState *) ps)->ms_prune_state->do_exec_prune,
						  whole_input(context));
			break;
		case T_NestLoopState:
		case T_MergeJoinState:
		case T_HashJoinState:
			walk_join(ps, context);
			break;
		case T_RecursiveUnionState:
			walk(outerPlanState(ps), context);
			context.recursive = true;
			walk(innerPlanState(ps), context);
			break;
		case T_SubqueryScanState:
			walk(((SubqueryScanState *) ps)->subplan, context);
			break;
		case T_CteScanState:
			if (context.group != NULL)
				walk_subplan(((CteScanState *) ps)->cteplanstate, context);
			break;
		case T_CustomScanState:
			join_lookup(ps, context);
			foreach(lc, ((CustomScanState *) ps)->custom_ps)
				walk((PlanState *) lfirst(lc), context);
			break;
		default:
			walk(outerPlanState(ps), context);
			walk(innerPlanState(ps), context);
			break;
	}
}

/* does the statement's group ask all of these servers anyway? */
static bool
asked_anyway(GroupWalk *all, List *servers)
{
	List	   *asked = NIL;
	ListCell   *lc;

	foreach(lc, all->top->nodes)
	{
		FdwNode    *node = (FdwNode *) lfirst(lc);

		if (node->pruner == NULL)
			asked = list_append_unique_oid(asked, node->serverid);
	}
	return list_difference_oid(servers, asked) == NIL;
}

/* takes those candidates into the statement's group that belong there, until none does */
static void
take_candidates(StartContext context)
{
	GroupWalk  *all = context.all;
	bool		again = true;

	while (again)
	{
		ListCell   *lc;

		again = false;
		/* the list may grow meanwhile */
		foreach(lc, all->candidates)
		{
			Candidate  *candidate = (Candidate *) lfirst(lc);

			if (list_member_ptr(all->in_top, candidate->plan) ||
				(!candidate->certain && !asked_anyway(all, servers_of_subquery(candidate->plan))))
				continue;
			walk_subplan(candidate->plan, context);
			again = true;
		}
	}
}

/*
 * Groups the scans of a query that has just been initialized.  Costs next to nothing
 * for a query without remote scans.
 */
void
residency_fdw_collect_scans(QueryDesc *queryDesc)
{
	EState	   *estate = queryDesc->estate;
	GroupWalk	all = {.estate = estate};
	StartContext context = {.all = &all};
	MemoryContext old;
	bool		any = residency_lookup_reads(estate, InvalidOid);
	dlist_iter	iter;
	ListCell   *lc;

	dlist_foreach(iter, &residency_live_nodes)
	{
		if (dlist_container(FdwNode, link, iter.cur)->state->ss.ps.state == estate)
		{
			any = true;
			break;
		}
	}
	if (!any)
		return;
	old = MemoryContextSwitchTo(estate->es_query_cxt);
	context = new_group(context);
	all.top = context.group;
	walk(queryDesc->planstate, context);
	foreach(lc, estate->es_subplanstates)
	{
		/* what writes does so whether it is read or not */
		if (lfirst(lc) != NULL && IsA(lfirst(lc), ModifyTableState))
			walk_subplan((PlanState *) lfirst(lc), context);
	}
	take_candidates(context);
	if (context.group->nodes != NIL || context.group->lookups != NIL)
		residency_group_start_with(context.group, queryDesc->planstate);
	foreach(lc, estate->es_subplanstates)
	{
		if (!list_member_ptr(all.subplans, lfirst(lc)))
			walk_subplan((PlanState *) lfirst(lc), new_group(context));
	}
	MemoryContextSwitchTo(old);
}
