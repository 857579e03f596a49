/*
 * fdw_handler.c
 *		Entry points of the wrapper: its routine, and the options that it takes.
 *
 * A server of ours stands for a region, and its options only say how to reach
 * that region.  Who logs in there, and with which secret, belongs to the user
 * mapping, which ordinary roles cannot read; so a secret is refused everywhere
 * else.  What decides about the meaning of a session (role, search_path, time
 * zone, application_name, ...) is set by the connection itself and can be given
 * nowhere.  Tables take no option: the table in the region has the same schema,
 * name and columns, in all regions.
 */
#include "residency.h"

#include "fdw.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(residency_wrapper_handler);
PG_FUNCTION_INFO_V1(residency_wrapper_validator);

/* what an option's value must look like */
typedef enum OptionKind
{
	OPTION_TEXT,				/* libpq judges it when connecting */
	OPTION_PORT,				/* one or more of 1..65535, comma separated */
	OPTION_COUNT				/* an integer from 0 */
} OptionKind;

typedef struct WrapperOption
{
	const char *name;
	Oid			catalog;		/* where it may stand */
	OptionKind	kind;
	bool		superuser_only; /* makes the server read a file of its own */
} WrapperOption;

static const WrapperOption wrapper_options[] = {
	{"channel_binding", ForeignServerRelationId, OPTION_TEXT, false},
	{"connect_timeout", ForeignServerRelationId, OPTION_COUNT, false},
	{"dbname", ForeignServerRelationId, OPTION_TEXT, false},
	{"gssencmode", ForeignServerRelationId, OPTION_TEXT, false},
	{"host", ForeignServerRelationId, OPTION_TEXT, false},
	{"hostaddr", ForeignServerRelationId, OPTION_TEXT, false},
	{"keepalives", ForeignServerRelationId, OPTION_COUNT, false},
	{"keepalives_count", ForeignServerRelationId, OPTION_COUNT, false},
	{"keepalives_idle", ForeignServerRelationId, OPTION_COUNT, false},
	{"keepalives_interval", ForeignServerRelationId, OPTION_COUNT, false},
	{"krbsrvname", ForeignServerRelationId, OPTION_TEXT, false},
	{"load_balance_hosts", ForeignServerRelationId, OPTION_TEXT, false},
	{"port", ForeignServerRelationId, OPTION_PORT, false},
	{"requirepeer", ForeignServerRelationId, OPTION_TEXT, false},
	{"ssl_max_protocol_version", ForeignServerRelationId, OPTION_TEXT, false},
	{"ssl_min_protocol_version", ForeignServerRelationId, OPTION_TEXT, false},
	{"sslcrl", ForeignServerRelationId, OPTION_TEXT, false},
	{"sslcrldir", ForeignServerRelationId, OPTION_TEXT, false},
	{"sslmode", ForeignServerRelationId, OPTION_TEXT, false},
	{"sslnegotiation", ForeignServerRelationId, OPTION_TEXT, false},
	{"sslrootcert", ForeignServerRelationId, OPTION_TEXT, false},
	{"sslsni", ForeignServerRelationId, OPTION_COUNT, false},
	{"target_session_attrs", ForeignServerRelationId, OPTION_TEXT, false},
	{"tcp_user_timeout", ForeignServerRelationId, OPTION_COUNT, false},
	{"passfile", UserMappingRelationId, OPTION_TEXT, true},
	{"password", UserMappingRelationId, OPTION_TEXT, false},
	{"require_auth", UserMappingRelationId, OPTION_TEXT, false},
	{"sslcert", UserMappingRelationId, OPTION_TEXT, true},
	{"sslkey", UserMappingRelationId, OPTION_TEXT, true},
	{"sslpassword", UserMappingRelationId, OPTION_TEXT, true},
	{"user", UserMappingRelationId, OPTION_TEXT, false}
};

static const WrapperOption *find_option(const char *name, Oid catalog);
static bool libpq_knows(const PQconninfoOption *known, const char *name);
static void refuse_option(const PQconninfoOption *known, const char *name, Oid catalog) pg_attribute_noreturn();
static void check_value(const WrapperOption *option, const char *value);
static bool is_port_list(const char *value);
static const char *catalog_noun(Oid catalog);

/*
 * residency_wrapper_handler hands the wrapper's callbacks to the core.
 */
Datum
residency_wrapper_handler(PG_FUNCTION_ARGS)
{
	FdwRoutine *routine = makeNode(FdwRoutine);

	residency_fdw_plan_routine(routine);
	residency_fdw_scan_routine(routine);
	residency_fdw_modify_routine(routine);
	residency_fdw_stats_routine(routine);

	PG_RETURN_POINTER(routine);
}

/*
 * residency_wrapper_validator checks the options of a wrapper, server, user
 * mapping, table or column (told by the catalog) and throws at the first wrong
 * one.
 */
Datum
residency_wrapper_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	PQconninfoOption *known = PQconndefaults();
	ListCell   *lc;

	if (known == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("The list of connection options could not be made.")));

	PG_TRY();
	{
		foreach(lc, options)
		{
			DefElem    *def = (DefElem *) lfirst(lc);
			const WrapperOption *option = find_option(def->defname, catalog);

			if (option == NULL || !libpq_knows(known, def->defname))
				refuse_option(known, def->defname, catalog);
			if (option->superuser_only && !superuser())
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("only a superuser may set option \"%s\"", def->defname),
						 errdetail("It makes the server use a file or key of its own.")));
			check_value(option, defGetString(def));
		}
	}
	PG_FINALLY();
	{
		PQconninfoFree(known);
	}
	PG_END_TRY();

	PG_RETURN_VOID();
}

/*
 * The option of that name for that catalog, or NULL.
 */
static const WrapperOption *
find_option(const char *name, Oid catalog)
{
	for (int i = 0; i < lengthof(wrapper_options); i++)
	{
		if (wrapper_options[i].catalog == catalog &&
			strcmp(wrapper_options[i].name, name) == 0)
			return &wrapper_options[i];
	}
	return NULL;
}

/*
 * Whether the libpq that this server was linked with has the option: some are
 * younger than the oldest version we build with.
 */
static bool
libpq_knows(const PQconninfoOption *known, const char *name)
{
	for (const PQconninfoOption *o = known; o->keyword != NULL; o++)
	{
		if (strcmp(o->keyword, name) == 0)
			return true;
	}
	return false;
}

/*
 * Throws for an unknown option, saying which ones there are, or where the
 * option belongs if it is only misplaced.  Never prints the value: it may be a
 * password that was put in the wrong place.
 */
static void
refuse_option(const PQconninfoOption *known, const char *name, Oid catalog)
{
	StringInfoData valid;

	if (catalog == ForeignServerRelationId && find_option(name, UserMappingRelationId))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"%s\" is not allowed for a server", name),
				 errdetail("Everybody can read the options of a server."),
				 errhint("Put it into the user mapping: ALTER USER MAPPING ... OPTIONS (ADD %s '...').", name)));
	if (catalog == UserMappingRelationId && find_option(name, ForeignServerRelationId))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"%s\" is not allowed for a user mapping", name),
				 errhint("Put it into the server: ALTER SERVER ... OPTIONS (ADD %s '...').", name)));

	initStringInfo(&valid);
	for (int i = 0; i < lengthof(wrapper_options); i++)
	{
		if (wrapper_options[i].catalog == catalog &&
			libpq_knows(known, wrapper_options[i].name))
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
							 wrapper_options[i].name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 valid.len > 0
			 ? errhint("Valid options of a %s are: %s.", catalog_noun(catalog), valid.data)
			 : errhint("A %s of wrapper \"%s\" takes no options.",
					   catalog_noun(catalog), RESIDENCY_WRAPPER)));
}

/*
 * Throws if the value cannot be right.  Only a port or a number is printed.
 */
static void
check_value(const WrapperOption *option, const char *value)
{
	char	   *end;
	long		number;

	switch (option->kind)
	{
		case OPTION_TEXT:
			if (value[0] == '\0' && strcmp(option->name, "password") != 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("option \"%s\" must not be empty", option->name),
						 errhint("Leave the option out to use its default.")));
			break;
		case OPTION_PORT:
			if (!is_port_list(value))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for option \"%s\": \"%s\"", option->name, value),
						 errhint("A port is a number from 1 to 65535.")));
			break;
		case OPTION_COUNT:
			errno = 0;
			number = strtol(value, &end, 10);
			if (end == value || *end != '\0' || errno != 0 ||
				number < 0 || number > INT_MAX)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for option \"%s\": \"%s\"", option->name, value),
						 errhint("The value is a whole number, 0 or more.")));
			break;
	}
}

/*
 * Whether the text is a port, or several with commas between (one per host).
 */
static bool
is_port_list(const char *value)
{
	const char *p = value;

	for (;;)
	{
		char	   *end;
		long		port;

		if (!isdigit((unsigned char) *p))
			return false;
		port = strtol(p, &end, 10);
		if (port < 1 || port > 65535)
			return false;
		if (*end == '\0')
			return true;
		if (*end != ',')
			return false;
		p = end + 1;
	}
}

/*
 * What a catalog holds, for messages.
 */
static const char *
catalog_noun(Oid catalog)
{
	switch (catalog)
	{
		case ForeignDataWrapperRelationId:
			return "foreign data wrapper";
		case ForeignServerRelationId:
			return "server";
		case UserMappingRelationId:
			return "user mapping";
		case ForeignTableRelationId:
			return "foreign table";
		default:
			return "column";
	}
}
