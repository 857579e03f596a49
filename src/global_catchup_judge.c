/*
 * global_catchup_judge.c
 *		What becomes of the rows that were shipped for this region, one by one.
 *
 * The rules are at the head of global_catchup_apply.c.  Here is what is decided before a record
 * is written, and what an error means that writing it has thrown.
 */
#include "residency.h"

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "global_shipped.h"
#include "regions.h"

/* a key whose rows wait, as a move of it does */
typedef struct HeldKey
{
	Oid			relid;
	char	   *key;
	ShipOutcome outcome;
} HeldKey;

/* The key in a probe, as it travels. */
static char *
key_text(RowProbe *probe)
{
	StringInfoData key;
	Datum		values[INDEX_MAX_KEYS];

	for (int k = 0; k < probe->nkeys; k++)
		values[k] = probe->values[probe->keys[k] - 1];
	initStringInfo(&key);
	residency_text_key(&key, probe->text, values);
	return key.data;
}

/*
 * What the record is about, as keys travel; the reader stays behind the record's head.  The
 * probe gets the row or the (old) key.
 */
void
residency_shipped_read(RowProbe *probe, ChangeReader *reader, ShippedLine *line)
{
	ChangeReader copy = *reader;

	line->kind = reader->kind;
	if (reader->kind == CHANGE_MOVE)
	{
		residency_text_read_key(&copy, probe->text, probe->values, probe->nulls);
		residency_text_read_key(&copy, probe->text, probe->values, probe->nulls);
		line->new_key = key_text(probe);
		copy = *reader;
	}
	if (reader->kind == CHANGE_STATE)
		residency_text_read_row(&copy, probe->text, probe->values, probe->nulls);
	else
		residency_text_read_key(&copy, probe->text, probe->values, probe->nulls);
	line->key = key_text(probe);
	/* last: without a key nothing can be said about the table */
	line->relid = RelationGetRelid(probe->rel);
}

/* Leaves out a record that is not applied. */
void
residency_shipped_skip(RowProbe *probe, ChangeReader *reader)
{
	if (reader->kind == CHANGE_STATE)
		residency_text_read_row(reader, probe->text, probe->values, probe->nulls);
	else
		residency_text_read_key(reader, probe->text, probe->values, probe->nulls);
	if (reader->kind == CHANGE_MOVE)
		residency_text_read_key(reader, probe->text, probe->values, probe->nulls);
}

/*
 * The row that was shipped cannot be written over the one of a third region, which is
 * first by name: its primary key is in the way.
 */
static void
judge_third(ShippedCall *call, RowProbe *probe, Verdict *verdict)
{
	verdict->outcome = call->final ? SHIP_CONFLICT : SHIP_LATER;
	verdict->kind = "unique";
	verdict->constraint = pstrdup(RelationGetRelationName(probe->index));
	verdict->content = residency_row_as_json(RelationGetDescr(probe->rel), probe->values, probe->nulls);
}

/*
 * Decides about a record before anything is written: true if it is to be applied.  The
 * row that is here now is in the probe's slot, locked; that there is none is checked
 * again when the record is applied.
 */
static bool
judge_row(ShippedCall *call, RowProbe *probe, ChangeReader *reader, ShippedLine *line)
{
	const char *self = residency_self()->region;
	Verdict    *verdict = &line->verdict;
	ProbeResult found = residency_probe_row(probe, true);
	bool		first;
	char	   *home;
	char	   *holder;

	reader->check = found == PROBE_NONE ? CHECK_ABSENT : CHECK_NONE;
	if (found == PROBE_BUSY)
	{
		verdict->outcome = SHIP_BUSY;
		return false;
	}
	if (found == PROBE_NONE)
		return true;
	home = residency_probe_home(probe);
	if (strcmp(home, call->shipper) == 0)
	{
		if (reader->kind == CHANGE_DELETE)
			verdict->outcome = SHIP_DELETED;
		return true;
	}
	first = strcmp(call->shipper, home) < 0;
	if (strcmp(home, self) != 0)
	{
		if (reader->kind == CHANGE_DELETE)
			return false;
		/* a row that its home has given up is no rival; that it is still here is because of what refers to it */
		line->beaten = first || residency_conflict_given_up(line->relid, line->key, home);
		if (line->beaten)
			return true;
		judge_third(call, probe, verdict);
		return false;
	}
	if (reader->kind == CHANGE_DELETE || !first)
	{
		verdict->outcome = SHIP_LOST;
		return false;
	}
	/* what stays here gives way to one row only, or two regions would take theirs for that one */
	holder = residency_conflict_holder(line->relid, line->key);
	if (holder != NULL && strcmp(holder, call->shipper) < 0)
	{
		judge_third(call, probe, verdict);
		return false;
	}
	verdict->outcome = SHIP_WON;
	verdict->kind = "key";
	verdict->content = residency_row_as_json(RelationGetDescr(probe->rel), probe->slot->tts_values,
											 probe->slot->tts_isnull);
	return true;
}

/*
 * The same for a move: it is made if the row that it is about is here, and no other home's row
 * has the new key.  Otherwise there is nothing to do, and the rows of both keys come by themselves.
 */
static bool
judge_move(ShippedCall *call, RowProbe *probe, ChangeReader *reader, Verdict *verdict)
{
	ChangeReader keys = *reader;
	bool		made = true;

	reader->check = CHECK_NONE;
	for (int i = 0; i < 2; i++)
	{
		ProbeResult found;

		residency_text_read_key(&keys, probe->text, probe->values, probe->nulls);
		found = residency_probe_row(probe, true);
		if (found == PROBE_BUSY)
		{
			verdict->outcome = SHIP_BUSY;
			return false;
		}
		if (found == PROBE_NONE ? i == 0 : strcmp(residency_probe_home(probe), call->shipper) != 0)
			made = false;
	}
	return made;
}

/* The same for a third region's row that is to go: it may be another one by now. */
static bool
judge_beaten(ShippedCall *call, RowProbe *probe)
{
	char	   *home;

	if (residency_probe_row(probe, true) != PROBE_ROW)
		return false;
	home = residency_probe_home(probe);
	return strcmp(home, call->shipper) != 0 && strcmp(home, residency_self()->region) != 0;
}

/* why a key has to wait, NULL if it has not */
static HeldKey *
held_key(ShippedCall *call, const ShippedLine *line)
{
	ListCell   *lc;

	foreach(lc, call->held)
	{
		HeldKey    *held = lfirst(lc);

		if (held->relid == line->relid &&
			(strcmp(held->key, line->key) == 0 || (line->new_key && strcmp(held->key, line->new_key) == 0)))
			return held;
	}
	return NULL;
}

/*
 * Decides about a record, which has been read, before anything is written: true if it is to be
 * applied.  What a move holds up waits with it; but if nothing is left that could
 * cure it ("final"), rows are taken as they come.
 */
bool
residency_shipped_judge(ShippedCall *call, RowProbe *probe, ChangeReader *reader, ShippedLine *line)
{
	Verdict    *verdict = &line->verdict;
	HeldKey    *held = held_key(call, line);

	memset(verdict, 0, sizeof(Verdict));
	verdict->outcome = SHIP_DONE;
	if (line->remove)
		return judge_beaten(call, probe);
	if (held != NULL && (line->kind == CHANGE_MOVE || !call->final || held->outcome != SHIP_LATER))
	{
		verdict->outcome = held->outcome;
		return false;
	}
	return line->kind == CHANGE_MOVE ? judge_move(call, probe, reader, verdict) : judge_row(call, probe, reader, line);
}

/* If a move was not made, the rows of both its keys have to wait: remembers them. */
void
residency_shipped_hold(ShippedCall *call, const ShippedLine *line)
{
	MemoryContext old;

	if (line->new_key == NULL || line->key == NULL || line->verdict.outcome == SHIP_DONE)
		return;
	old = MemoryContextSwitchTo(call->held_context);
	for (int i = 0; i < 2; i++)
	{
		HeldKey    *held = palloc(sizeof(HeldKey));

		held->relid = line->relid;
		held->key = pstrdup(i == 0 ? line->key : line->new_key);
		held->outcome = line->verdict.outcome;
		call->held = lappend(call->held, held);
	}
	MemoryContextSwitchTo(old);
}

/*
 * What an error means for the record that caused it.  Only in PG_CATCH; rethrows what does
 * not concern the record.
 */
static void
judge_error(ShippedCall *call, Verdict *verdict)
{
	ErrorData  *error;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	error = CopyErrorData();
	MemoryContextSwitchTo(old);
	memset(verdict, 0, sizeof(Verdict));
	switch (residency_error_meaning(error->sqlerrcode))
	{
		case ERROR_BUSY:
			verdict->outcome = SHIP_BUSY;
			break;
		case ERROR_REFUSED:
			verdict->outcome = call->final ? SHIP_CONFLICT : SHIP_LATER;
			verdict->kind = error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ? "unique" :
				error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION ? "reference" : "other";
			verdict->constraint = error->constraint_name;
			break;
		case ERROR_ELSEWHERE:
			PG_RE_THROW();
	}
	FlushErrorState();
}

/*
 * A record has failed for good that was to be written over a row made here: that row
 * stays.  "before" is what was decided about the record before it was written.
 */
static void
let_stand(const Verdict *before, Verdict *verdict)
{
	if (before->outcome != SHIP_WON || verdict->outcome != SHIP_CONFLICT)
		return;
	verdict->outcome = SHIP_STANDS;
	if (verdict->constraint == NULL)
		verdict->constraint = verdict->kind;
	verdict->kind = before->kind;
	verdict->content = before->content;
}

/*
 * A record has failed, or all of them (NULL): says what that means for it.  Only in PG_CATCH; rethrows
 * what does not concern the record.
 */
void
residency_shipped_failed(ShippedCall *call, ShippedLine *line)
{
	Verdict		judged;

	judge_error(call, &judged);
	if (line == NULL)
		return;
	let_stand(&line->verdict, &judged);
	/* a move is no row that could be kept: those of its keys are */
	if (line->kind == CHANGE_MOVE && judged.outcome == SHIP_CONFLICT)
		judged.outcome = SHIP_LATER;
	line->verdict = judged;
	if (judged.outcome == SHIP_CONFLICT)
		line->verdict.content = line->content;
}
