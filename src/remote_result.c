/*
 * remote_result.c
 *		Errors of other regions: what is kept of them, and how they are thrown here.
 *
 * Law 6: an error keeps its SQLSTATE, names its region, and carries no row value.
 * PostgreSQL puts values into DETAIL, CONTEXT and HINT, and for some classes (22,
 * "invalid input syntax for type integer: ...") into the message itself; RAISE puts
 * there whatever its author likes.  So only the message of classes that are known to
 * name objects alone is kept, and the others get a text made from the error's fields.
 * The home applies the same rule before the error leaves it (guard_session.c); here it
 * is applied again because errors of Bind arise outside of any hook there.
 */
#include "remote_internal.h"

#include "utils/builtins.h"

#include "guard.h"

/* texts for the codes whose own message may hold a value */
static const struct
{
	int			sqlstate;
	const char *text;
}			texts[] = {
	{ERRCODE_STRING_DATA_RIGHT_TRUNCATION, "value is too long for its type"},
	{ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, "numeric value is out of range"},
	{ERRCODE_INVALID_TEXT_REPRESENTATION, "invalid text representation of a value"},
	{ERRCODE_INVALID_DATETIME_FORMAT, "invalid date or time"},
	{ERRCODE_DATETIME_FIELD_OVERFLOW, "date or time is out of range"},
	{ERRCODE_DIVISION_BY_ZERO, "division by zero"},
	{ERRCODE_CARDINALITY_VIOLATION, "a subquery returned more than one row"},
	{ERRCODE_RAISE_EXCEPTION, "a trigger or function raised an exception"},
};

/*
 * True if the message of such an error names objects only.  "raised" tells that a
 * user's function wrote the message.
 */
static bool
message_is_clean(int sqlstate, bool raised)
{
	static const char clean[][3] = {
		"08", "0A", "0L", "0P", "21", "23", "25", "26", "28", "2B", "2D", "34", "3D", "3F",
		"40", "42", "44", "53", "54", "55", "57", "58",
	};
	const char *state = unpack_sql_state(sqlstate);

	if (raised)
		return false;
	for (int i = 0; i < lengthof(clean); i++)
		if (strncmp(state, clean[i], 2) == 0)
			return true;
	return false;
}

/*
 * Writes into buf the text that an error may carry across a border.  message and
 * constraint may be NULL.
 */
void
residency_error_text(char *buf, Size size, int sqlstate, bool raised, const char *message,
					 const char *table, const char *column, const char *constraint)
{
	const char *text = "error in a statement";

	if (message != NULL && message_is_clean(sqlstate, raised))
	{
		strlcpy(buf, message, size);
		return;
	}
	for (int i = 0; i < lengthof(texts); i++)
		if (texts[i].sqlstate == sqlstate)
			text = texts[i].text;
	snprintf(buf, size, "%s%s%s%s%s%s%s%s%s%s", text,
			 table && *table ? ", table \"" : "", table && *table ? table : "",
			 table && *table ? "\"" : "",
			 column && *column ? ", column \"" : "", column && *column ? column : "",
			 column && *column ? "\"" : "",
			 constraint && *constraint ? ", constraint \"" : "",
			 constraint && *constraint ? constraint : "",
			 constraint && *constraint ? "\"" : "");
}

/* copies one field of a remote error, "" if it has none */
static void
copy_field(char *buf, Size size, PGresult *res, int code)
{
	const char *value = PQresultErrorField(res, code);

	strlcpy(buf, value ? value : "", size);
}

/*
 * Keeps a remote error until it is thrown.  The first one counts; a later one only if
 * it makes an outer level useless.  Errors that merely follow from the first are
 * not kept, nor are those of an end of transaction that nobody waits for.
 */
void
residency_error_store(RemoteRegion *region, int level, PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *file = PQresultErrorField(res, PG_DIAG_SOURCE_FILE);
	/* what an administrator's definitions raise, our own functions above all, is for him */
	bool		raised = !region->admin && file != NULL && strcmp(file, "pl_exec.c") == 0;
	RemoteError *error = &region->error;
	int			sqlstate = ERRCODE_CONNECTION_FAILURE;

	if (state != NULL && strlen(state) == 5)
		sqlstate = MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
	if (region->level == 0 ||
		(region->failed_level > 0 &&
		 (level >= region->failed_level || sqlstate == ERRCODE_IN_FAILED_SQL_TRANSACTION)))
		return;

	memset(error, 0, sizeof(*error));
	region->failed_level = level;
	error->sqlstate = sqlstate;
	copy_field(error->schema, sizeof(error->schema), res, PG_DIAG_SCHEMA_NAME);
	copy_field(error->table, sizeof(error->table), res, PG_DIAG_TABLE_NAME);
	copy_field(error->column, sizeof(error->column), res, PG_DIAG_COLUMN_NAME);
	copy_field(error->datatype, sizeof(error->datatype), res, PG_DIAG_DATATYPE_NAME);
	copy_field(error->constraint, sizeof(error->constraint), res, PG_DIAG_CONSTRAINT_NAME);
	residency_error_text(error->message, sizeof(error->message), sqlstate, raised,
						 PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY),
						 error->table, error->column, error->constraint);
	/* hints of our own functions are made to travel, and name objects only */
	if (region->admin || sqlstate == ERRCODE_FEATURE_NOT_SUPPORTED ||
		sqlstate == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE ||
		sqlstate == ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION ||
		sqlstate == ERRCODE_UNDEFINED_OBJECT)
		copy_field(error->hint, sizeof(error->hint), res, PG_DIAG_MESSAGE_HINT);
}

/* the same for an error that arises here about the region */
void
residency_error_store_text(RemoteRegion *region, int level, int sqlstate,
						   const char *message, const char *hint)
{
	if (region->level == 0 || (region->failed_level > 0 && level >= region->failed_level))
		return;
	memset(&region->error, 0, sizeof(RemoteError));
	region->failed_level = level;
	region->error.sqlstate = sqlstate;
	strlcpy(region->error.message, message, sizeof(region->error.message));
	strlcpy(region->error.hint, hint ? hint : "", sizeof(region->error.hint));
}

/*
 * Throws the region's stored error, and keeps it: until the level that failed is
 * rolled back every further use throws it again, whoever caught it.
 */
void
residency_error_throw(RemoteRegion *region)
{
	RemoteError *error = &region->error;

	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg("region \"%s\": %s", region->name, error->message),
			 *error->hint ? errhint("%s", error->hint) : 0,
			 *error->schema ? err_generic_string(PG_DIAG_SCHEMA_NAME, error->schema) : 0,
			 *error->table ? err_generic_string(PG_DIAG_TABLE_NAME, error->table) : 0,
			 *error->column ? err_generic_string(PG_DIAG_COLUMN_NAME, error->column) : 0,
			 *error->datatype ? err_generic_string(PG_DIAG_DATATYPE_NAME, error->datatype) : 0,
			 *error->constraint ? err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->constraint) : 0));
	pg_unreachable();
}

/*
 * Does the region's failure concern the whole transaction?  One that was only read, and cannot
 * be reached any more, concerns those who want an answer of it and nobody else.
 */
bool
residency_region_failed(const RemoteRegion *region)
{
	return region->level > 0 && region->failed_level > 0 &&
		(region->wrote || region->locked || region->state != REMOTE_CLOSED);
}

/* the level that failed is rolled back */
void
residency_error_clear(RemoteRegion *region)
{
	region->failed_level = 0;
}

/*
 * Waits for the answer and returns it; it belongs to the request.  Throws the
 * region's error if the request, or anything it depends on, failed.
 */
PGresult *
residency_remote_wait(RemoteRequest *req)
{
	if (!req->answered)
		residency_wait_until_answered(req);
	if (req->region->failed_level > 0)
		residency_error_throw(req->region);
	if (req->failed || req->result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("region \"%s\": the statement was not executed", req->region->name)));
	return req->result;
}

/* number of rows that a write reports, from its command tag */
uint64
residency_remote_affected(PGresult *res)
{
	const char *count = PQcmdTuples(res);

	return *count ? strtoull(count, NULL, 10) : 0;
}
