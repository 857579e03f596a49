/*
 * regions_secret.c
 *		Secrets by which gateways log in at homes.
 *
 * A secret is drawn at the region where add_region() runs.  The home gets only its
 * SCRAM verifier, the gateway the secret itself, in a user mapping for PUBLIC that
 * ordinary users cannot read.  Both are sent as parameters, with logging switched
 * off, and stored by calling the server's functions rather than by SQL: so no text
 * that a log, pg_stat_activity or pg_stat_statements could keep contains one.
 */
#include "residency.h"

#include "access/xact.h"
#include "commands/defrem.h"
#include "commands/user.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_node.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "regions.h"
#include "regions_internal.h"

PG_FUNCTION_INFO_V1(residency_random_bits);
PG_FUNCTION_INFO_V1(residency_share_secret);
PG_FUNCTION_INFO_V1(residency_accept_verifier);
PG_FUNCTION_INFO_V1(residency_accept_secret);

/*
 * From libpq/scram.h, which includes GSSAPI headers that a server built with GSSAPI
 * wants, and that its development package does not bring.
 */
extern char *pg_be_scram_build_secret(const char *password);

#define SECRET_BYTES 24			/* 192 bits, 48 hexadecimal digits */

/* residency.random_bits() returns 64 bits of the server's strong generator. */
Datum
residency_random_bits(PG_FUNCTION_ARGS)
{
	int64		bits;

	if (!pg_strong_random(&bits, sizeof(bits)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bits")));
	PG_RETURN_INT64(bits);
}

/* A fresh secret in hexadecimal, palloc'd. */
static char *
draw_secret(void)
{
	unsigned char bytes[SECRET_BYTES];
	char	   *secret = palloc(2 * SECRET_BYTES + 1);

	if (!pg_strong_random(bytes, sizeof(bytes)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random secret")));
	for (int i = 0; i < SECRET_BYTES; i++)
		sprintf(secret + 2 * i, "%02x", bytes[i]);
	explicit_bzero(bytes, sizeof(bytes));
	return secret;
}

/* Gives the gateway's role, which learn_region() made, a new password. */
static void
store_verifier(const char *role, char *verifier)
{
	ParseState *pstate = make_parsestate(NULL);
	AlterRoleStmt *alter = makeNode(AlterRoleStmt);

	alter->role = makeNode(RoleSpec);
	alter->role->roletype = ROLESPEC_CSTRING;
	alter->role->rolename = pstrdup(role);
	alter->role->location = -1;
	alter->options =
		list_make1(makeDefElem("password", (Node *) makeString(pstrdup(verifier)), -1));
	alter->action = +1;
	AlterRole(pstate, alter);
	free_parsestate(pstate);
	CommandCounterIncrement();
}

/* Makes the PUBLIC user mapping of a server, replacing the one that is there. */
static void
store_secret(const char *server, const char *role, const char *secret)
{
	Oid			serverid = get_foreign_server_oid(server, false);
	RoleSpec   *everybody = makeNode(RoleSpec);
	CreateUserMappingStmt *create = makeNode(CreateUserMappingStmt);

	everybody->roletype = ROLESPEC_PUBLIC;
	everybody->location = -1;
	if (SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
							  ObjectIdGetDatum(serverid)))
	{
		DropUserMappingStmt *drop = makeNode(DropUserMappingStmt);

		drop->user = everybody;
		drop->servername = pstrdup(server);
		RemoveUserMapping(drop);
		CommandCounterIncrement();
	}
	create->user = everybody;
	create->servername = pstrdup(server);
	create->options =
		list_make2(makeDefElem("user", (Node *) makeString(pstrdup(role)), -1),
				   makeDefElem("password", (Node *) makeString(pstrdup(secret)), -1));
	CreateUserMapping(create);
	CommandCounterIncrement();
}

/*
 * residency.accept_verifier(role name, verifier text): this home's part.  Takes
 * nothing but a SCRAM verifier, so that no password in clear can be stored by it.
 */
Datum
residency_accept_verifier(PG_FUNCTION_ARGS)
{
	char	   *verifier = text_to_cstring(PG_GETARG_TEXT_PP(1));

	residency_require_superuser("accept a region's verifier");
	if (strncmp(verifier, "SCRAM-SHA-256$", 14) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("not a SCRAM verifier")));
	store_verifier(NameStr(*PG_GETARG_NAME(0)), verifier);
	PG_RETURN_VOID();
}

/* residency.accept_secret(server name, role name, secret text): this gateway's part. */
Datum
residency_accept_secret(PG_FUNCTION_ARGS)
{
	residency_require_superuser("accept a region's secret");
	store_secret(NameStr(*PG_GETARG_NAME(0)), NameStr(*PG_GETARG_NAME(1)),
				 text_to_cstring(PG_GETARG_TEXT_PP(2)));
	PG_RETURN_VOID();
}

/* Queues a statement in another region without waiting for it. */
static void
send_deferred(const char *region, bool joined, const char *sql, int n,
			  const char *const *values)
{
	residency_remote_send(residency_admin_connection(region, joined), GetUserId(),
						  sql, n, values,
						  REMOTE_WRITES | REMOTE_AS_GATEWAY | REMOTE_DEFERRED, -1);
}

/*
 * residency.share_secret(gateway name, home name, role name, newcomer name): draws
 * the secret by which the gateway logs in at the home as the role, and hands each
 * its half.  Neither is waited for.  The newcomer is the region that is joining,
 * which cannot answer hello yet.
 */
Datum
residency_share_secret(PG_FUNCTION_ARGS)
{
	char	   *gateway = NameStr(*PG_GETARG_NAME(0));
	char	   *home = NameStr(*PG_GETARG_NAME(1));
	char	   *role = NameStr(*PG_GETARG_NAME(2));
	char	   *newcomer = NameStr(*PG_GETARG_NAME(3));
	const ResidencySelf *self = residency_self();
	char	   *own;
	char	   *secret = draw_secret();
	char	   *verifier = pg_be_scram_build_secret(secret);

	residency_require_superuser("share secrets between regions");
	if (self == NULL)
		elog(ERROR, "this database is not a region");
	own = pstrdup(self->region);

	if (strcmp(home, own) == 0)
		store_verifier(role, verifier);
	else
	{
		const char *values[] = {role, verifier};

		send_deferred(home, strcmp(home, newcomer) != 0,
					  "SELECT residency.accept_verifier($1::pg_catalog.name, $2::pg_catalog.text)",
					  2, values);
	}
	if (strcmp(gateway, own) == 0)
		store_secret(home, role, secret);
	else
	{
		const char *values[] = {home, role, secret};

		send_deferred(gateway, strcmp(gateway, newcomer) != 0,
					  "SELECT residency.accept_secret($1::pg_catalog.name, $2::pg_catalog.name, $3::pg_catalog.text)",
					  3, values);
	}
	explicit_bzero(secret, strlen(secret));
	PG_RETURN_VOID();
}
