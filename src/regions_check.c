/*
 * regions_check.c
 *		Connection strings taken apart, whether a server answers there, and errors
 *		of the SQL functions.
 */
#include "residency.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "libpq-fe.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "regions_internal.h"

PG_FUNCTION_INFO_V1(residency_connection_options);
PG_FUNCTION_INFO_V1(residency_reachable);
PG_FUNCTION_INFO_V1(residency_refuse);

/*
 * residency.connection_options(connection text) returns the keywords and values of
 * a libpq connection string or URI, only those that are given.
 *
 * libpq's own message may quote the string, hence a part of a password, and is not
 * shown.
 */
Datum
residency_connection_options(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *connection = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *message = NULL;
	PQconninfoOption *options = PQconninfoParse(connection, &message);

	if (options == NULL)
	{
		if (message != NULL)
			PQfreemem(message);
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("connection string is not valid"),
				 errhint("Write it as 'host=... port=... dbname=...'.")));
	}
	PG_TRY();
	{
		InitMaterializedSRF(fcinfo, 0);
		for (PQconninfoOption *option = options; option->keyword != NULL; option++)
		{
			Datum		values[2];
			bool		nulls[2] = {false, false};

			if (option->val == NULL)
				continue;
			values[0] = CStringGetTextDatum(option->keyword);
			values[1] = CStringGetTextDatum(option->val);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	PG_FINALLY();
	{
		PQconninfoFree(options);
	}
	PG_END_TRY();
	return (Datum) 0;
}

/*
 * residency.reachable(connection text) tells whether a PostgreSQL server answers
 * there: NULL if so, otherwise the reason.  Needs no right to log in there, and
 * waits at most the connect_timeout in the string (seconds), which the callers set.
 */
Datum
residency_reachable(PG_FUNCTION_ARGS)
{
	residency_require_superuser("check whether a server is reachable");
	switch (PQping(text_to_cstring(PG_GETARG_TEXT_PP(0))))
	{
		case PQPING_OK:
			PG_RETURN_NULL();
		case PQPING_REJECT:
			PG_RETURN_TEXT_P(cstring_to_text("the server is starting or stopping"));
		case PQPING_NO_RESPONSE:
			PG_RETURN_TEXT_P(cstring_to_text("no server answers there"));
		case PQPING_NO_ATTEMPT:
			break;
	}
	PG_RETURN_TEXT_P(cstring_to_text("the connection parameters are not usable"));
}

/*
 * residency.refuse(errcode, message, hint, detail) raises that error, of which hint and
 * detail may be null.  The functions of the install script use it, since an error of
 * PL/pgSQL that comes from another region is taken for a user's.
 */
Datum
residency_refuse(PG_FUNCTION_ARGS)
{
	char	   *state = PG_ARGISNULL(0) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *message = PG_ARGISNULL(1) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *hint = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *detail = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));

	if (strlen(state) != 5)
		elog(ERROR, "not an SQLSTATE");
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
			 errmsg("%s", message),
			 detail != NULL ? errdetail("%s", detail) : 0,
			 hint != NULL ? errhint("%s", hint) : 0));
	PG_RETURN_VOID();
}
