/*
 * global_records.h
 *		One run of sending what was noted: global_send.c runs it, global_records.c writes.
 */
#ifndef RESIDENCY_GLOBAL_RECORDS_H
#define RESIDENCY_GLOBAL_RECORDS_H

#include "access/genam.h"
#include "access/skey.h"
#include "executor/tuptable.h"

#include "global_backlog.h"

/* reads the current rows of one table by primary key */
typedef struct NoteReader
{
	NoteTable  *table;
	int			wire_number;	/* position of the table in this request, 0 none yet */
	uint64		rows;			/* of the table in this request */
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	GlobalText *text;
	Datum	   *values;			/* room for an old row */
	bool	   *nulls;
	ScanKeyData keys[INDEX_MAX_KEYS];
} NoteReader;

/* one run of sending */
typedef struct Sender
{
	MemoryContext context;		/* of everything here */
	MemoryContext row_context;	/* of one record */
	List	   *readers;
	List	   *tables;			/* names in the order of their wire numbers */
	List	   *homes;			/* const char *, likewise */
	StringInfoData changes;
	List	   *left_out;		/* char *: regions that are not up, see global_backlog.c */
	BacklogNotes *notes;		/* rows homed here that they do not get; NULL: nobody is left out */
	BacklogNotes *moved;		/* moves of rows homed here */
	bool		conflicts;		/* rows homed here are looked up in residency.conflict */
	const char *table;			/* name of the latest record's table, for errors */
} Sender;

extern char *residency_sent_name(Relation rel);
extern void residency_records_put(Sender *sender, Note *note);
extern void residency_records_close(Sender *sender);

#endif							/* RESIDENCY_GLOBAL_RECORDS_H */
