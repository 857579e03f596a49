/*
 * lookup_row.c
 *		A row of the resident table in the scan tuple of a region lookup.
 *
 * Most columns come from a stored row or an answer.  tableoid and whole rows are made here: of
 * the table's row type if the query names them, of the partition's if ModifyTable does (as a
 * row identity column, which the planner gives the type record).
 *
 * Also here: a row that another transaction has changed while it was waited for (EvalPlanQual).
 * The executor then runs the plan again for just that row, which the node finds by its
 * relation in place of looking anything up.
 */
#include "lookup_state.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/sysattr.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "nodes/value.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

/* how to make one whole row */
struct LookupWhole
{
	TupleDesc	desc;
	int		   *columns;		/* resident column of each attribute, -1: NULL */
};

/* the number in the table of a resident column */
static AttrNumber
attno_of(LookupState *state, int column)
{
	CustomScan *plan = castNode(CustomScan, state->css.ss.ps.plan);

	return list_nth_int(list_nth(plan->custom_private, LookupResident), column);
}

/* the table itself */
static Oid
parent_of(LookupState *state)
{
	CustomScan *plan = castNode(CustomScan, state->css.ss.ps.plan);

	return list_nth_oid(list_nth(plan->custom_private, LookupOids), LookupParentOid);
}

/* what it takes to make a whole row of the relation, in the query's memory */
static LookupWhole *
make_whole(LookupState *state, Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);
	Relation	rel = relation_open(relid, AccessShareLock);
	LookupWhole *whole = palloc0(sizeof(LookupWhole));
	Oid			parent = parent_of(state);

	whole->desc = CreateTupleDescCopy(RelationGetDescr(rel));
	whole->columns = palloc(Max(whole->desc->natts, 1) * sizeof(int));
	relation_close(rel, NoLock);
	for (int i = 0; i < whole->desc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(whole->desc, i);

		whole->columns[i] = -1;
		for (int c = 0; c < state->nresident && !attr->attisdropped; c++)
		{
			if (attno_of(state, c) > 0 &&
				strcmp(get_attname(parent, attno_of(state, c), false), NameStr(attr->attname)) == 0)
				whole->columns[i] = c;
		}
	}
	MemoryContextSwitchTo(old);
	return whole;
}

/* a whole row of the values of all columns */
static Datum
whole_row(const LookupWhole *whole, const Datum *values, const bool *nulls)
{
	int			natts = whole->desc->natts;
	Datum	   *row_values = palloc(Max(natts, 1) * sizeof(Datum));
	bool	   *row_nulls = palloc(Max(natts, 1) * sizeof(bool));
	HeapTuple	tuple;

	for (int i = 0; i < natts; i++)
	{
		int			c = whole->columns[i];

		row_nulls[i] = c < 0 || nulls[c];
		row_values[i] = row_nulls[i] ? (Datum) 0 : values[c];
	}
	tuple = heap_form_tuple(whole->desc, row_values, row_nulls);
	return HeapTupleGetDatum(tuple);
}

/*
 * Fills in the columns of a row of that target that are made here, in the current memory; the
 * others are there.
 */
void
residency_row_finish(LookupState *state, int target, Datum *values, bool *nulls)
{
	if (!state->special)
		return;
	for (int i = 0; i < state->nresident; i++)
	{
		AttrNumber	attno = attno_of(state, i);
		bool		of_partition = TupleDescAttr(state->resident_slot->tts_tupleDescriptor, i)->atttypid == RECORDOID;
		LookupWhole **whole = of_partition ? &state->targets[target].whole : &state->whole;

		if (attno == TableOidAttributeNumber)
			values[i] = ObjectIdGetDatum(state->targets[target].partition);
		else if (attno == InvalidAttrNumber)
		{
			if (*whole == NULL)
				*whole = make_whole(state, of_partition ? state->targets[target].partition : parent_of(state));
			values[i] = whole_row(*whole, values, nulls);
		}
		else
			continue;
		nulls[i] = false;
	}
}

/*
 * Takes the resident columns out of a stored row, of the partition stored here or, with
 * as_parent, in the table's own layout.  They live as long as the slot.
 */
void
residency_row_from_slot(LookupState *state, TupleTableSlot *slot, bool as_parent, int target,
						Datum *values, bool *nulls)
{
	slot_getallattrs(slot);
	for (int i = 0; i < state->nresident; i++)
	{
		AttrNumber	attno = as_parent ? attno_of(state, i) : state->stored[i];

		values[i] = (Datum) 0;
		nulls[i] = true;
		if (attno > 0)
		{
			values[i] = slot->tts_values[attno - 1];
			nulls[i] = slot->tts_isnull[attno - 1];
		}
		else if (attno == SelfItemPointerAttributeNumber && ItemPointerIsValid(&slot->tts_tid))
		{
			values[i] = PointerGetDatum(&slot->tts_tid);
			nulls[i] = false;
		}
	}
	residency_row_finish(state, target, values, nulls);
}

/* the target whose partition a range table entry is, -1 if none */
static int
target_of_entry(LookupState *state, Index rti)
{
	RangeTblEntry *rte = exec_rt_fetch(rti, state->css.ss.ps.state);

	for (int i = 0; rte->rtekind == RTE_RELATION && i < state->ntargets; i++)
	{
		if (state->targets[i].partition == rte->relid)
			return i;
	}
	return -1;
}

/*
 * While a row is checked again: is it, or one that it was joined with, ours?  If not (the
 * table is in a subquery, say) the lookup runs as ever.
 */
bool
residency_row_is_checked(LookupState *state)
{
	EState	   *estate = state->css.ss.ps.state;
	EPQState   *epq = estate->es_epq_active;

	if (epq == NULL)
		return false;
	for (Index rti = 1; rti <= estate->es_range_table_size; rti++)
	{
		if ((epq->relsubs_slot[rti - 1] != NULL || epq->relsubs_rowmark[rti - 1] != NULL) &&
			target_of_entry(state, rti) >= 0)
			return true;
	}
	return false;
}

/* the marked row of a relation that is not the one being checked, in a slot of its own; or NULL */
static TupleTableSlot *
marked_row(LookupState *state, Index rti, bool *as_parent)
{
	EState	   *estate = state->css.ss.ps.state;
	ExecAuxRowMark *mark = estate->es_epq_active->relsubs_rowmark[rti - 1];
	TupleTableSlot *slot;

	*as_parent = mark->rowmark->markType == ROW_MARK_COPY;
	if (*as_parent)
	{
		if (state->whole == NULL)
			state->whole = make_whole(state, parent_of(state));
		slot = MakeSingleTupleTableSlot(state->whole->desc, &TTSOpsHeapTuple);
	}
	else
		slot = table_slot_create(mark->rowmark->relation, NULL);
	if (EvalPlanQualFetchRowMark(estate->es_epq_active, rti, slot))
		return slot;
	ExecDropSingleTupleTableSlot(slot);
	return NULL;
}

/* loads the row to be checked, or the one it was joined with; false if there is none */
static bool
load_checked(LookupState *state)
{
	EState	   *estate = state->css.ss.ps.state;
	EPQState   *epq = estate->es_epq_active;
	Datum	   *values = palloc((state->nresident + 1) * sizeof(Datum));
	bool	   *nulls = palloc((state->nresident + 1) * sizeof(bool));

	for (Index rti = 1; rti <= estate->es_range_table_size; rti++)
	{
		int			target = target_of_entry(state, rti);
		TupleTableSlot *slot = epq->relsubs_slot[rti - 1];
		bool		as_parent = false;

		if (target < 0)
			continue;
		if (slot == NULL && epq->relsubs_rowmark[rti - 1] != NULL)
			slot = marked_row(state, rti, &as_parent);
		if (TupIsNull(slot))
			continue;
		residency_row_from_slot(state, slot, as_parent, target, values, nulls);
		residency_lookup_load(state, values, nulls);
		return true;
	}
	return false;
}

/* is the key of the row in the scan tuple this value, or in this array? */
static bool
key_matches(LookupState *state, int key, Datum column, Datum value)
{
	FmgrInfo	equal;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	fmgr_info(get_opcode(state->key_operators[key]), &equal);
	if (!list_nth_int(state->key_arrays, key))
		return DatumGetBool(FunctionCall2Coll(&equal, state->key_collations[key], column, value));
	deconstruct_array(DatumGetArrayTypeP(value), state->key_types[key], state->key_len[key],
					  state->key_byval[key], lookup_type_cache(state->key_types[key], 0)->typalign,
					  &values, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i] &&
			DatumGetBool(FunctionCall2Coll(&equal, state->key_collations[key], column, values[i])))
			return true;
	}
	return false;
}

/* does the row in the scan tuple have the key that the other side asks for? */
static bool
has_key(LookupState *state)
{
	CustomScan *plan = castNode(CustomScan, state->css.ss.ps.plan);
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	TupleTableSlot *slot = state->css.ss.ss_ScanTupleSlot;
	ListCell   *lc;

	foreach(lc, state->key_states)
	{
		int			key = foreach_current_index(lc);
		char	   *name = strVal(list_nth(list_nth(plan->custom_private, LookupKeyNames), key));
		AttrNumber	attno = get_attnum(parent_of(state), name);
		int			column = 0;
		bool		isnull;
		Datum		value = ExecEvalExprSwitchContext((ExprState *) lfirst(lc), econtext, &isnull);

		while (column < state->nresident && attno_of(state, column) != attno)
			column++;
		if (column == state->nresident)
			elog(ERROR, "key column \"%s\" is not in the scan tuple", name);
		column += state->nouter;
		if (isnull || slot->tts_isnull[column] ||
			!key_matches(state, key, slot->tts_values[column], value))
			return false;
	}
	return true;
}

/*
 * The one row that the plan gives for the row being checked, in the scan tuple; false if none,
 * also at every further call until the node is rescanned.
 */
bool
residency_row_check(LookupState *state)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	bool		matches;

	if (state->checked)
		return false;
	state->checked = true;
	ResetExprContext(econtext);
	if (state->outer != NULL)
	{
		TupleTableSlot *outer = ExecProcNode(state->outer);

		if (TupIsNull(outer))
			return false;
		ExecCopySlot(state->outer_slot, outer);
		residency_lookup_load_outer(state, state->outer_slot);
	}
	residency_lookup_load(state, NULL, NULL);
	econtext->ecxt_scantuple = state->css.ss.ss_ScanTupleSlot;
	matches = load_checked(state) && has_key(state) &&
		(state->shipped == NULL || ExecQual(state->shipped, econtext)) &&
		(state->joinquals == NULL || ExecQual(state->joinquals, econtext));
	if (state->jointype == JOIN_ANTI)
		return !matches;
	if (!matches && state->jointype == JOIN_LEFT)
		residency_lookup_load(state, NULL, NULL);
	return matches || state->jointype == JOIN_LEFT;
}
