/*
 * fdw_convert.c
 *		Values to text and back, the same on both sides of a border.
 *
 * The text of a value can depend on settings: dates on DateStyle, intervals on
 * IntervalStyle, floats on extra_float_digits, money on lc_monetary, names of
 * relations and functions on search_path.  The connections fix these settings in
 * their start-up packet; here they are fixed around output functions, and around input
 * functions of the few types whose input depends on them.
 *
 * Changing a setting costs microseconds, so it is done only for types that need it,
 * and only if the session has changed the setting: with the usual ones (ISO, postgres,
 * extra_float_digits > 0) nothing is done at all.  TimeZone is left alone: a timestamptz is
 * written with its offset, so it reads the same everywhere.
 *
 * What an input function says about a value it does not like may contain the value.
 * Such an error is replaced by one that names the column (law 6).
 */
#include "postgres.h"

#include "fdw.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/typcache.h"
#include "utils/xml.h"

/* settings that the text of a type depends on */
#define DEPENDS_FORMATS		0x01	/* dates, intervals, floats */
#define DEPENDS_MONEY		0x02
#define DEPENDS_NAMES		0x04	/* search_path */
#define DEPENDS_XML			0x08	/* xmloption, for input only */

struct FdwInput
{
	int			ncolumns;		/* columns of the result */
	struct InputColumn
	{
		AttrNumber	attnum;		/* of the scan tuple; ctid is a negative one */
		FmgrInfo	function;
		Oid			typioparam;
		int32		typmod;
		bool		text;		/* plain text: no function needed */
		const char *name;
	}		   *columns;
	int			natts;
	int			depends;		/* DEPENDS_... of input functions */
};

struct FdwOutput
{
	int			n;
	bool		depends;		/* some type needs fixed formats */
	struct OutputValue
	{
		FmgrInfo	function;
		int			depends;
	}		   *values;
};

/* settings that the text of a built-in base type depends on */
static int
builtin_depends(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BYTEAOID:
		case CHAROID:
		case NAMEOID:
		case INT8OID:
		case INT2OID:
		case INT4OID:
		case TEXTOID:
		case OIDOID:
		case TIDOID:
		case XIDOID:
		case XID8OID:
		case CIDOID:
		case JSONOID:
		case JSONBOID:
		case JSONPATHOID:
		case BPCHAROID:
		case VARCHAROID:
		case NUMERICOID:
		case UUIDOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
		case TSVECTOROID:
		case TSQUERYOID:
			return 0;
		case XMLOID:
			return DEPENDS_XML;
		case CASHOID:
			return DEPENDS_MONEY;
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return DEPENDS_NAMES;
		default:
			return DEPENDS_FORMATS;
	}
}

/*
 * Settings that the text of any type depends on, looking into domains, arrays, ranges
 * and composite types.
 */
static int
type_depends(Oid type)
{
	Oid			inner;
	int			depends = 0;

	type = getBaseType(type);
	check_stack_depth();
	if (type == RECORDOID)
		return DEPENDS_FORMATS | DEPENDS_MONEY | DEPENDS_NAMES | DEPENDS_XML;
	if (OidIsValid(inner = get_element_type(type)))
		return type_depends(inner);
	switch (get_typtype(type))
	{
		case TYPTYPE_ENUM:
			return 0;
		case TYPTYPE_RANGE:
			return type_depends(get_range_subtype(type));
		case TYPTYPE_MULTIRANGE:
			return type_depends(get_range_subtype(get_multirange_range(type)));
		case TYPTYPE_COMPOSITE:
			{
				TupleDesc	desc = lookup_rowtype_tupdesc(type, -1);

				for (int i = 0; i < desc->natts; i++)
					if (!TupleDescAttr(desc, i)->attisdropped)
						depends |= type_depends(TupleDescAttr(desc, i)->atttypid);
				ReleaseTupleDesc(desc);
				return depends;
			}
		default:
			break;
	}
	return type < FirstUnpinnedObjectId ? builtin_depends(type) : DEPENDS_FORMATS;
}

/* one setting for the current nest level, opening one if there is none yet */
static void
fix_setting(int *level, const char *name, const char *value)
{
	if (*level == 0)
		*level = NewGUCNestLevel();
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/* fixes what the given types depend on; returns the nest level, 0 if nothing was changed */
static int
fix_settings(int depends)
{
	int			level = 0;

	if (depends & DEPENDS_FORMATS)
	{
		if (DateStyle != USE_ISO_DATES)
			fix_setting(&level, "datestyle", "ISO");
		if (IntervalStyle != INTSTYLE_POSTGRES)
			fix_setting(&level, "intervalstyle", "postgres");
		if (extra_float_digits < 1)
			fix_setting(&level, "extra_float_digits", "3");
	}
	if ((depends & DEPENDS_MONEY) && strcmp(locale_monetary, "C") != 0)
		fix_setting(&level, "lc_monetary", "C");
	if (depends & DEPENDS_NAMES)
		fix_setting(&level, "search_path", "pg_catalog");
	if ((depends & DEPENDS_XML) && xmloption != XMLOPTION_CONTENT)
		fix_setting(&level, "xmloption", "content");
	return level;
}

/*
 * Fixes the formats that output functions of common types depend on, for a run of
 * residency_output_value.  Pass the result to residency_output_end; an error in
 * between restores the settings with the (sub)transaction.
 */
int
residency_output_begin(void)
{
	return fix_settings(DEPENDS_FORMATS);
}

/* restores what residency_output_begin has changed */
void
residency_output_end(int nestlevel)
{
	if (nestlevel > 0)
		AtEOXact_GUC(true, nestlevel);
}

/* prepares n values of these types; lives in the current memory context */
FdwOutput *
residency_output_make(int n, const Oid *types)
{
	FdwOutput  *output = palloc0(sizeof(FdwOutput));

	output->n = n;
	output->values = palloc0(Max(n, 1) * sizeof(output->values[0]));
	for (int i = 0; i < n; i++)
	{
		Oid			function;
		bool		varlena;

		getTypeOutputInfo(types[i], &function, &varlena);
		fmgr_info(function, &output->values[i].function);
		output->values[i].depends = type_depends(types[i]) & (DEPENDS_MONEY | DEPENDS_NAMES);
	}
	return output;
}

/*
 * The text of a value that is not NULL, in the current memory context.  The caller is
 * between residency_output_begin and _end; the rare types that need more than that
 * are dealt with here.
 */
char *
residency_output_value(FdwOutput *output, int i, Datum value)
{
	struct OutputValue *v = &output->values[i];
	char	   *text;
	int			level;

	Assert(i >= 0 && i < output->n);
	if (likely(v->depends == 0))
		return OutputFunctionCall(&v->function, value);
	level = fix_settings(v->depends);
	text = OutputFunctionCall(&v->function, value);
	residency_output_end(level);
	return text;
}

/*
 * Prepares to turn result columns into tuples of this descriptor: column i of the
 * result becomes attribute attrs[i], all others are NULL.  Lives in the current
 * memory context.
 */
FdwInput *
residency_input_make(TupleDesc desc, List *attrs)
{
	FdwInput   *input = palloc0(sizeof(FdwInput));
	ListCell   *lc;

	input->natts = desc->natts;
	input->columns = palloc0(Max(list_length(attrs), 1) * sizeof(input->columns[0]));
	foreach(lc, attrs)
	{
		struct InputColumn *column = &input->columns[input->ncolumns++];
		Oid			type = TIDOID;
		Oid			function;

		column->attnum = lfirst_int(lc);
		column->typmod = -1;
		column->name = "ctid";
		if (column->attnum > 0)
		{
			Form_pg_attribute att = TupleDescAttr(desc, column->attnum - 1);

			type = att->atttypid;
			column->typmod = att->atttypmod;
			column->name = pstrdup(NameStr(att->attname));
		}
		else if (column->attnum != SelfItemPointerAttributeNumber)
			elog(ERROR, "system column %d cannot be fetched", column->attnum);
		getTypeInputInfo(type, &function, &column->typioparam);
		fmgr_info(function, &column->function);
		column->text = type == TEXTOID;
		input->depends |= type_depends(type) & ~DEPENDS_FORMATS;
	}
	return input;
}

/* converts one row; *at tells where it was when an input function threw */
static void
convert_row(FdwInput *input, PGresult *res, int row, TupleTableSlot *slot, volatile int *at)
{
	for (int i = 0; i < input->ncolumns; i++)
	{
		struct InputColumn *column = &input->columns[i];
		bool		isnull = PQgetisnull(res, row, i);
		char	   *text = isnull ? NULL : PQgetvalue(res, row, i);
		Datum		value;

		*at = i;
		if (isnull && column->function.fn_strict)
			value = (Datum) 0;
		else if (column->text)
			value = PointerGetDatum(cstring_to_text_with_len(text, PQgetlength(res, row, i)));
		else
			value = InputFunctionCall(&column->function, text, column->typioparam, column->typmod);

		if (column->attnum > 0)
		{
			slot->tts_values[column->attnum - 1] = value;
			slot->tts_isnull[column->attnum - 1] = isnull;
		}
		else if (!isnull)
			slot->tts_tid = *(ItemPointer) DatumGetPointer(value);
	}
}

/* throws the error of an input function again, without what it says about the value */
static void
rethrow_input_error(FdwInput *input, int column, MemoryContext context)
{
	ErrorData  *error;
	int			category;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category != ERRCODE_TO_CATEGORY(ERRCODE_DATA_EXCEPTION) &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION) &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION))
		PG_RE_THROW();
	FlushErrorState();
	ereport(ERROR,
			(errcode(error->sqlerrcode),
			 errmsg("a value of column \"%s\" that another region sent does not fit the column's type here",
					input->columns[column].name),
			 errhint("Give the column and its type the same definition in all regions, "
					 "with residency.run_everywhere().")));
}

/*
 * Stores one row of a result in the slot, as a virtual tuple whose values live in the
 * current memory context; the caller resets that before long.
 */
void
residency_input_row(FdwInput *input, PGresult *res, int row, TupleTableSlot *slot)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int at = 0;
	int			level;

	if (PQnfields(res) < input->ncolumns)
		elog(ERROR, "answer has %d columns instead of %d", PQnfields(res), input->ncolumns);
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, input->natts * sizeof(bool));
	memset(slot->tts_values, 0, input->natts * sizeof(Datum));
	level = input->depends ? fix_settings(input->depends) : 0;
	PG_TRY();
	{
		convert_row(input, res, row, slot, &at);
	}
	PG_CATCH();
	{
		rethrow_input_error(input, at, context);
	}
	PG_END_TRY();
	residency_output_end(level);
	ExecStoreVirtualTuple(slot);
}
