/*
 * fdw_modify.h
 *		What fdw_modify_rows.c and fdw_modify_send.c share; nobody else includes it.
 */
#ifndef RESIDENCY_FDW_MODIFY_H
#define RESIDENCY_FDW_MODIFY_H

#include "fdw_exec.h"

#include "utils/hsearch.h"

/* limits of one INSERT: rows, and parameters of the protocol */
#define MODIFY_BATCH_ROWS 1000
#define MODIFY_BATCH_PARAMS 65535

/* how rows are written, see fdw_modify_rows.c */
typedef enum WriteMode
{
	WRITE_DEFERRED,
	WRITE_COUNTED,
	WRITE_AWAITED
} WriteMode;

/* a counted write whose answer has not been awaited yet */
typedef struct Unsettled
{
	RemoteRequest *req;
	int			rows;			/* told to the executor */
} Unsettled;

struct FdwModify
{
	EState	   *estate;
	Relation	rel;
	Oid			serverid;
	Oid			userid;
	Oid			table;			/* whose traffic its requests are, see border.h */
	RemoteTally *tally;			/* NULL unless somebody wants to see it */
	CmdType		operation;
	List	   *targets;		/* attnums sent */
	int			ntargets;
	List	   *returning;		/* attnums to ask back for, NIL if nothing is */
	bool		do_nothing;
	WriteMode	mode;
	bool		counts;			/* its rows are part of the client's count */
	int			flags;			/* of requests */
	FdwOutput  *output;
	FdwInput   *input;			/* returning != NIL */
	bool		wrote;			/* something was sent, or is held */
	MemoryContext row_context;	/* texts of a row that is sent at once */

	/* the region column */
	AttrNumber	region_attno;	/* InvalidAttrNumber: not a partition of a resident table */
	char	   *region;			/* the partition's own */

	/* rows held back; the buffer is in the list while there are any */
	dlist_node	link;
	bool		linked;
	int			nest_level;		/* of the statement */
	MemoryContext buffer_context;
	const char **values;		/* ntargets per row */
	int			max_values;		/* allocated */
	int			nrows;
	int			max_rows;
	Size		bytes;
	char	   *full_sql;		/* for max_rows rows */

	/* counted writes; in the list while there are any */
	dlist_node	unsettled_link;
	bool		unsettled_linked;
	Unsettled  *unsettled;
	int			nunsettled;
	uint64		missing;		/* rows told to the executor that were not written */

	/* UPDATE, DELETE */
	AttrNumber	ctid_attno;		/* junk attributes of the plan's rows */
	AttrNumber	wholerow_attno;
	char	   *row_sql;
	HTAB	   *seen;			/* ctids that this statement has written */

	MemoryContextCallback reset;
};

/* fdw_modify_rows.c */
extern Size residency_modify_texts(FdwModify *modify, TupleTableSlot *slot, const char **values);
extern char *residency_modify_insert_sql(FdwModify *modify, int nrows);

/* fdw_modify_send.c */
extern void residency_modify_forget(void *arg);
extern void residency_modify_send(FdwModify *modify, const char *sql, int nvalues,
								  const char **values, int flags, int rows);
extern void residency_modify_buffer(FdwModify *modify, TupleTableSlot *slot);

#endif							/* RESIDENCY_FDW_MODIFY_H */
