/*
 * global_text.c
 *		Rows, keys and versions of global tables as text, the same in every region.
 *
 * Values travel in the text form of their types under the fixed formats of
 * residency_output_begin(); the grammar around them is in global_internal.h.  A
 * field is its length and its bytes, so nothing needs quoting, and what a region
 * receives is exactly what the other one's output function wrote.
 *
 * A row's version is a 64-bit hash over that same text, in column order.  Dropped columns do not take part, since
 * a region that joined later never had them; nor do columns that are not stored.
 */
#include "residency.h"

#include "catalog/pg_attribute.h"
#include "lib/stringinfo.h"
#include "pgtime.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "fdw.h"
#include "global_internal.h"

/* FNV-1a's offset and prime for 64 bits */
#define VERSION_SEED	UINT64CONST(0xcbf29ce484222325)
#define VERSION_PRIME	UINT64CONST(0x100000001b3)

struct GlobalText
{
	int			natts;			/* of the relation, dropped ones included */
	int			ncolumns;		/* columns that travel */
	AttrNumber *columns;
	int			nkeys;
	AttrNumber *keys;
	int		   *key_columns;	/* position of each key in "columns" */
	FdwOutput  *output;			/* by position in "columns" */
	FmgrInfo   *input;
	Oid		   *ioparam;
	int32	   *typmod;
};

/*
 * Looks up how the columns of a table are written and read; the result lives in
 * the current memory context.
 */
GlobalText *
residency_text_make(TupleDesc desc, int nkeys, const AttrNumber *keys)
{
	GlobalText *text = palloc0(sizeof(GlobalText));
	Oid		   *types = palloc(sizeof(Oid) * desc->natts);

	text->natts = desc->natts;
	text->columns = palloc(sizeof(AttrNumber) * desc->natts);
	text->input = palloc(sizeof(FmgrInfo) * desc->natts);
	text->ioparam = palloc(sizeof(Oid) * desc->natts);
	text->typmod = palloc(sizeof(int32) * desc->natts);
	text->nkeys = nkeys;
	text->keys = palloc(sizeof(AttrNumber) * nkeys);
	text->key_columns = palloc(sizeof(int) * nkeys);
	memcpy(text->keys, keys, sizeof(AttrNumber) * nkeys);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i);
		int			n = text->ncolumns;
		Oid			function;

		if (attr->attisdropped ||
			(attr->attgenerated && attr->attgenerated != ATTRIBUTE_GENERATED_STORED))
			continue;
		types[n] = attr->atttypid;
		text->columns[n] = attr->attnum;
		getTypeInputInfo(attr->atttypid, &function, &text->ioparam[n]);
		fmgr_info(function, &text->input[n]);
		text->typmod[n] = attr->atttypmod;
		for (int k = 0; k < nkeys; k++)
			if (keys[k] == attr->attnum)
				text->key_columns[k] = n;
		text->ncolumns++;
	}
	text->output = residency_output_make(text->ncolumns, types);
	pfree(types);
	return text;
}

/*
 * Fixes the formats for all other functions here that write text, until the result
 * is passed to residency_text_end(); an error in between restores the settings with
 * the (sub)transaction.  A version needs more than a value that only travels: the
 * offset of a time must be the same everywhere, too.
 */
int
residency_text_begin(void)
{
	int			level = NewGUCNestLevel();

	if (strcmp(pg_get_timezone_name(session_timezone), "UTC") != 0)
		(void) set_config_option("timezone", "UTC", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (bytea_output != BYTEA_OUTPUT_HEX)
		(void) set_config_option("bytea_output", "hex", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	/* its nest level lies within ours, and ends with it */
	(void) residency_output_begin();
	return level;
}

/* Restores what residency_text_begin() has changed. */
void
residency_text_end(int level)
{
	AtEOXact_GUC(true, level);
}

/* One more byte string for a version. */
static inline uint64
version_add(uint64 version, const char *bytes, Size len)
{
	for (Size i = 0; i < len; i++)
		version = (version ^ (unsigned char) bytes[i]) * VERSION_PRIME;
	return version;
}

/*
 * The version of a row, given as its values by attribute number.  A value's length
 * is hashed with it, and NULL as a length that no value has, so that neither the
 * border between two columns nor NULL and an empty string can be confused.
 */
uint64
residency_text_version(GlobalText *text, const Datum *values, const bool *nulls)
{
	uint64		version = VERSION_SEED;

	for (int i = 0; i < text->ncolumns; i++)
	{
		int			att = text->columns[i] - 1;
		char		length[8];
		uint64		len = PG_UINT64_MAX;
		char	   *value = NULL;

		if (!nulls[att])
		{
			value = residency_output_value(text->output, i, values[att]);
			len = strlen(value);
		}
		for (int b = 0; b < 8; b++)
			length[b] = (char) (len >> (8 * b));
		version = version_add(version, length, sizeof(length));
		if (value)
		{
			version = version_add(version, value, len);
			pfree(value);
		}
	}
	/* the last bytes hardly reach the high bits otherwise */
	version ^= version >> 33;
	version *= UINT64CONST(0xff51afd7ed558ccd);
	version ^= version >> 33;
	return version;
}

/* Appends a record's head. */
void
residency_text_head(StringInfo buf, ChangeKind kind, ChangeCheck check,
					int table, int home, uint64 version)
{
	appendStringInfo(buf, "%c%c %x %x " "%" INT64_MODIFIER "x ",
					 (char) kind, (char) check, table, home, version);
}

/* Appends one field. */
static void
put_field(StringInfo buf, GlobalText *text, int column, Datum value, bool isnull)
{
	char	   *string;
	int			len;

	if (isnull)
	{
		appendStringInfoChar(buf, '-');
		return;
	}
	string = residency_output_value(text->output, column, value);
	len = strlen(string);
	appendStringInfo(buf, "%d:", len);
	appendBinaryStringInfo(buf, string, len);
	pfree(string);
}

/* Appends a row's stored columns; values by attribute number. */
void
residency_text_row(StringInfo buf, GlobalText *text, const Datum *values, const bool *nulls)
{
	for (int i = 0; i < text->ncolumns; i++)
	{
		int			att = text->columns[i] - 1;

		put_field(buf, text, i, values[att], nulls[att]);
	}
}

/* Appends a key; values in index order. */
void
residency_text_key(StringInfo buf, GlobalText *text, const Datum *keys)
{
	for (int k = 0; k < text->nkeys; k++)
		put_field(buf, text, text->key_columns[k], keys[k], false);
}

/* What arrives comes from a region of the same version, so this cannot happen. */
static void
malformed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("malformed change of a global table received from another region"),
			 errhint("Install the same version of the extension in all regions.")));
}

/* Reads a hexadecimal number and the blank behind it. */
static uint64
read_number(ChangeReader *reader)
{
	uint64		number = 0;
	int			digits = 0;

	for (; reader->next < reader->end && *reader->next != ' '; reader->next++)
	{
		char		c = *reader->next;

		if (c >= '0' && c <= '9')
			number = (number << 4) | (c - '0');
		else if (c >= 'a' && c <= 'f')
			number = (number << 4) | (c - 'a' + 10);
		else
			malformed();
		if (++digits > 16)
			malformed();
	}
	if (digits == 0 || reader->next >= reader->end)
		malformed();
	reader->next++;
	return number;
}

/* Reads the next record's head; false at the end of the stream. */
bool
residency_text_next(ChangeReader *reader)
{
	if (reader->next >= reader->end)
		return false;
	if (reader->end - reader->next < 3 || reader->next[2] != ' ' ||
		strchr("SDM", reader->next[0]) == NULL || strchr("van", reader->next[1]) == NULL)
		malformed();
	reader->kind = (ChangeKind) reader->next[0];
	reader->check = (ChangeCheck) reader->next[1];
	reader->next += 3;
	reader->table = (int) read_number(reader);
	reader->home = (int) read_number(reader);
	reader->version = read_number(reader);
	return true;
}

/* Reads a field's length and the colon behind it, and makes sure that all of it is there. */
static int64
read_length(ChangeReader *reader)
{
	int64		len = 0;

	for (; reader->next < reader->end && *reader->next != ':'; reader->next++)
	{
		if (*reader->next < '0' || *reader->next > '9')
			malformed();
		len = len * 10 + (*reader->next - '0');
		if (len > MaxAllocSize)
			malformed();
	}
	if (reader->next >= reader->end || reader->end - reader->next - 1 < len)
		malformed();
	reader->next++;
	return len;
}

/*
 * Reads the next record, whatever its table is, as a stream of its own with the head read;
 * false at the end of the stream.
 */
bool
residency_text_split(ChangeReader *reader, ChangeReader *record)
{
	if (!residency_text_next(reader))
		return false;
	*record = *reader;
	/* a head begins with a letter, a field does not */
	while (reader->next < reader->end && (*reader->next == '-' || (*reader->next >= '0' && *reader->next <= '9')))
	{
		if (*reader->next == '-')
			reader->next++;
		else
		{
			int64		len = read_length(reader);

			reader->next += len;
		}
	}
	record->end = reader->next;
	return true;
}

/* Throws unless all of a record has been read: the table has as many columns there. */
void
residency_text_finish(ChangeReader *record)
{
	if (record->next != record->end)
		malformed();
}

/* Reads one field; a NULL is not passed to the input function, as a stored row's
 * NULL has passed its domain's checks already. */
static Datum
read_field(ChangeReader *reader, GlobalText *text, int column, bool *isnull)
{
	int64		len;
	char	   *string;
	Datum		value;

	if (reader->next >= reader->end)
		malformed();
	if (*reader->next == '-')
	{
		reader->next++;
		*isnull = true;
		return (Datum) 0;
	}
	len = read_length(reader);
	string = palloc(len + 1);
	memcpy(string, reader->next, len);
	string[len] = '\0';
	reader->next += len;
	value = InputFunctionCall(&text->input[column], string,
							  text->ioparam[column], text->typmod[column]);
	*isnull = false;
	return value;
}

/* Reads a row into arrays by attribute number; columns that do not travel become NULL. */
void
residency_text_read_row(ChangeReader *reader, GlobalText *text, Datum *values, bool *nulls)
{
	memset(nulls, true, text->natts);
	memset(values, 0, sizeof(Datum) * text->natts);
	for (int i = 0; i < text->ncolumns; i++)
	{
		int			att = text->columns[i] - 1;

		values[att] = read_field(reader, text, i, &nulls[att]);
	}
}

/* Reads a key into arrays by attribute number, and leaves the other columns alone. */
void
residency_text_read_key(ChangeReader *reader, GlobalText *text, Datum *values, bool *nulls)
{
	for (int k = 0; k < text->nkeys; k++)
	{
		int			att = text->keys[k] - 1;

		values[att] = read_field(reader, text, text->key_columns[k], &nulls[att]);
	}
}

/* The text form of a one-dimensional text array, for a parameter. */
char *
residency_text_array(List *strings)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	foreach(lc, strings)
	{
		if (buf.len > 1)
			appendStringInfoChar(&buf, ',');
		appendStringInfoChar(&buf, '"');
		for (const char *p = lfirst(lc); *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&buf, '\\');
			appendStringInfoChar(&buf, *p);
		}
		appendStringInfoChar(&buf, '"');
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}
