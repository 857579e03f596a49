/*
 * guard_session.c
 *		The home's side of a session that a gateway opened.
 *
 * residency.hello() is the first statement on every such connection.  It raises an
 * error unless this database is the region that the gateway means, so a mistyped port
 * never receives another region's rows, and it marks the session.  In a marked session
 *
 *	- SET LOCAL ROLE, as a statement of its own, takes on the client's role.  The
 *	  gateway's role needs no membership for that: its rights at the home are those of
 *	  the client's role and nothing else.  A superuser's name gives residency_operator.
 *	- statements run under SECURITY_LOCAL_USERID_CHANGE, so nothing inside of them can
 *	  change the role again.
 *	- errors lose their values before they leave (guard_errors.c).
 *	- temporary tables and NOTIFY, which cannot be prepared, are refused at once.
 *
 * Connections for administration are marked as well, but stay what their role is.
 */
#include "guard.h"

#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "optimizer/planner.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "fault.h"
#include "guard_internal.h"
#include "regions.h"
#include "remote.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(residency_hello);

/* role that stands for superusers of gateways */
#define OPERATOR_ROLE "residency_operator"

static struct
{
	char		gateway[NAMEDATALEN];	/* "": a client's session */
	bool		admin;			/* opened for administration */
	int64		incarnation;	/* the gateway's, when it said hello */
	int			depth;			/* of hooks: errors are cleaned when they leave the outermost */
} session;

static planner_hook_type next_planner = NULL;
static ExecutorStart_hook_type next_ExecutorStart = NULL;
static ExecutorRun_hook_type next_ExecutorRun = NULL;
static ExecutorFinish_hook_type next_ExecutorFinish = NULL;
static ProcessUtility_hook_type next_ProcessUtility = NULL;

/* name of the gateway that opened this session, NULL in a client's own */
const char *
residency_session_gateway(void)
{
	return session.gateway[0] != '\0' ? session.gateway : NULL;
}

/* true if statements here come from clients of a gateway */
static bool
serves_gateway(void)
{
	return session.gateway[0] != '\0' && !session.admin;
}

/*
 * Ends a session of a database that another one has the place of.  hello asks only once, and may have
 * done so while residency.replace_region() was copying tables; what such a session did not commit or
 * prepare before is undone.  Called before each statement, administration included.
 */
static void
leave_if_replaced(void)
{
	if (session.gateway[0] == '\0' || !IsTransactionState())
		return;
	/* COMMIT and PREPARE lock nothing, and would not hear of it otherwise */
	AcceptInvalidationMessages();
	if (residency_is_replaced(session.incarnation))
		ereport(FATAL,
				(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
				 errmsg("the database of region \"%s\" that asks was replaced by another one", session.gateway),
				 errhint("Stop that server: what it holds is no part of the deployment any more.")));
}

/*
 * SQL: residency.hello(deployment, region, version, gateway, admin, instance, incarnation).
 *
 * Marks the session and returns the key to cancel its statements.  An error aborts the
 * rest of the gateway's flight, so nothing behind it is executed in a wrong place.
 */
Datum
residency_hello(PG_FUNCTION_ARGS)
{
	int64		deployment = PG_GETARG_INT64(0);
	char	   *region = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *version = text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *gateway = text_to_cstring(PG_GETARG_TEXT_PP(3));
	bool		admin = PG_GETARG_BOOL(4);
	const ResidencySelf *self = residency_self();
	char	   *login = GetUserNameFromId(GetSessionUserId(), false);
	const char *role;

	if (self == NULL || strcmp(self->region, region) != 0 || self->deployment != deployment)
		ereport(ERROR,
				(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
				 errmsg("this server is not region \"%s\" but %s%s%s", region,
						self ? "region \"" : "no region", self ? self->region : "",
						self == NULL ? "" : strcmp(self->region, region) == 0 ?
						"\" of another deployment" : "\""),
				 /* the one refusal that comes from somebody else, see remote_health_lost.c */
				 err_generic_string(PG_DIAG_SCHEMA_NAME, RESIDENCY_SCHEMA),
				 err_generic_string(PG_DIAG_TABLE_NAME, "self"),
				 errhint("Correct host and port: ALTER SERVER ... OPTIONS (SET host ..., SET port ...).")));
	/* it would show nothing of what is prepared on its primary */
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
				 errmsg("this server of region \"%s\" is a standby", region),
				 errhint("Name the primary, or all of its servers and the primary among them: ALTER SERVER ... OPTIONS (ADD target_session_attrs 'read-write').")));
	if (self->copy && !admin)
		ereport(ERROR,
				(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
				 errmsg("this database is a copy of region \"%s\"", region),
				 errhint("If it shall take the region's place, run there: SELECT residency.renew().")));
	if (strcmp(version, RESIDENCY_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
				 errmsg("extension residency is version %s at gateway \"%s\" and %s in region \"%s\"",
						version, gateway, RESIDENCY_VERSION, self->region),
				 errhint("Install the same version in all regions.")));
	/* a database that everybody took for lost, and another one has its place */
	if (residency_is_replaced(PG_GETARG_INT64(6)))
		ereport(ERROR,
				(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
				 errmsg("the database of region \"%s\" that asks was replaced by another one", gateway),
				 errhint("Stop that server: what it holds is no part of the deployment any more.")));
	role = residency_gateway_role(gateway);
	if (admin ? !superuser() : role == NULL || strcmp(login, role) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not act for gateway \"%s\"", login, gateway)));
	if (residency_worker_unwelcome())
		ereport(FATAL,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the database is needed by a statement that wants it alone")));
	residency_guard_serve(gateway, strtoull(text_to_cstring(PG_GETARG_TEXT_PP(5)), NULL, 16),
						  PG_GETARG_INT64(6));
	session.incarnation = PG_GETARG_INT64(6);
	strlcpy(session.gateway, gateway, sizeof(session.gateway));
	session.admin = admin;
	/* as a default, which no rollback of this transaction takes back, and no reload */
	SetConfigOption("synchronous_commit",
					synchronous_commit < SYNCHRONOUS_COMMIT_ON ? "on" : GetConfigOption("synchronous_commit", false, false),
					PGC_SUSET, PGC_S_OVERRIDE);
	PG_RETURN_INT32(compat_cancel_key());
}

/*
 * SET LOCAL ROLE of a gateway's session.  The core demands that the login role is a
 * member of the new one, which a gateway's role never is.
 */
static void
take_role(const char *name)
{
	HeapTuple	tuple = SearchSysCache1(AUTHNAME, CStringGetDatum(name));
	Oid			role;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" of gateway \"%s\" does not exist in region \"%s\"",
						name, session.gateway, residency_self()->region),
				 errhint("Create it there, or in all regions: SELECT residency.run_everywhere($$CREATE ROLE %s$$); then GRANT it what it may do there.",
						 quote_identifier(name))));
	role = ((Form_pg_authid) GETSTRUCT(tuple))->oid;
	ReleaseSysCache(tuple);
	if (superuser_arg(role))
	{
		name = OPERATOR_ROLE;
		role = get_role_oid(name, false);
	}

	/* the setting's value, so that the end of the (sub)transaction undoes it ... */
	compat_bypass_role_membership = true;
	PG_TRY();
	{
		(void) set_config_option("role", name, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	}
	PG_FINALLY();
	{
		compat_bypass_role_membership = false;
	}
	PG_END_TRY();
	/* ... and its effect, which newer minors leave out while the bypass is set */
	SetCurrentRoleId(role, false);
}

/* the new role's name if the statement is SET LOCAL ROLE name, else NULL */
static const char *
role_to_take(Node *stmt)
{
	VariableSetStmt *set = (VariableSetStmt *) stmt;

	if (!IsA(stmt, VariableSetStmt) || !set->is_local || set->kind != VAR_SET_VALUE ||
		strcmp(set->name, "role") != 0 || list_length(set->args) != 1)
		return NULL;
	return strVal(&((A_Const *) linitial(set->args))->val);
}

/* one hook deeper, and no change of role until it is left; returns the security
 * context to restore */
static int
enter(Oid *user)
{
	int			context;

	GetUserIdAndSecContext(user, &context);
	SetUserIdAndSecContext(*user, context | SECURITY_LOCAL_USERID_CHANGE);
	session.depth++;
	return context;
}

/* back to where enter was called */
static void
leave(Oid user, int context)
{
	session.depth--;
	SetUserIdAndSecContext(user, context);
}

/* the same in PG_CATCH; the end of the (sub)transaction restores the user.  Handlers of
 * functions at the home still see the error as it is. */
static void
leave_by_error(void)
{
	if (--session.depth > 0)
		PG_RE_THROW();
	residency_guard_clean_error(session.gateway);
}

/* what a prepared transaction cannot contain is an error of the statement that did it */
static void
refuse_unpreparable(void)
{
	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a statement from gateway \"%s\" used a temporary table", session.gateway),
				 errdetail("A transaction with temporary tables cannot be prepared."),
				 errhint("Change the trigger or function at the home that uses it.")));
}

/* plans with the role pinned: immutable functions run here already */
static PlannedStmt *
session_planner(Query *parse, const char *query_string, int cursorOptions, ParamListInfo boundParams)
{
	planner_hook_type next = next_planner ? next_planner : standard_planner;
	PlannedStmt *result;
	Oid			user;
	int			context;

	if (!serves_gateway())
		return next(parse, query_string, cursorOptions, boundParams);
	context = enter(&user);
	PG_TRY();
	{
		result = next(parse, query_string, cursorOptions, boundParams);
	}
	PG_CATCH();
	{
		leave_by_error();
	}
	PG_END_TRY();
	leave(user, context);
	return result;
}

/* rights are checked here, with the role pinned */
static void
session_ExecutorStart(QueryDesc *queryDesc, int eflags)
{
	ExecutorStart_hook_type next = next_ExecutorStart ? next_ExecutorStart : standard_ExecutorStart;
	Oid			user;
	int			context;

	leave_if_replaced();
	if (!serves_gateway())
	{
		next(queryDesc, eflags);
		return;
	}
	context = enter(&user);
	PG_TRY();
	{
		next(queryDesc, eflags);
	}
	PG_CATCH();
	{
		leave_by_error();
	}
	PG_END_TRY();
	leave(user, context);
}

/* the statement's functions and row triggers run here, with the role pinned */
static void
session_ExecutorRun(COMPAT_RUN_ARGS)
{
	ExecutorRun_hook_type next = next_ExecutorRun ? next_ExecutorRun : standard_ExecutorRun;
	Oid			user;
	int			context;

	if (!serves_gateway())
	{
		next(COMPAT_RUN_PASS);
		return;
	}
	context = enter(&user);
	PG_TRY();
	{
		next(COMPAT_RUN_PASS);
	}
	PG_CATCH();
	{
		leave_by_error();
	}
	PG_END_TRY();
	leave(user, context);
}

/* the AFTER triggers run here, with the role pinned */
static void
session_ExecutorFinish(QueryDesc *queryDesc)
{
	ExecutorFinish_hook_type next = next_ExecutorFinish ? next_ExecutorFinish : standard_ExecutorFinish;
	Oid			user;
	int			context;

	if (!serves_gateway())
	{
		next(queryDesc);
		return;
	}
	context = enter(&user);
	PG_TRY();
	{
		next(queryDesc);
		refuse_unpreparable();
	}
	PG_CATCH();
	{
		leave_by_error();
	}
	PG_END_TRY();
	leave(user, context);
}

/* fault points around what a gateway, or a region that resolves, decides */
static void
fault_at_verdict(Node *stmt, bool before)
{
	TransactionStmtKind kind;

	if (!IsA(stmt, TransactionStmt) || residency_session_gateway() == NULL)
		return;
	kind = ((TransactionStmt *) stmt)->kind;
	if (kind == TRANS_STMT_COMMIT_PREPARED && before)
		RESIDENCY_FAULT(part_applies);
	else if (kind == TRANS_STMT_COMMIT_PREPARED)
		RESIDENCY_FAULT(part_applied);
	else if (kind == TRANS_STMT_ROLLBACK_PREPARED && before)
		RESIDENCY_FAULT(part_rolls_back);
	else if (kind == TRANS_STMT_ROLLBACK_PREPARED)
		RESIDENCY_FAULT(part_rolled_back);
}

/* takes on roles, and refuses what cannot be prepared */
static void
session_ProcessUtility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
					   ProcessUtilityContext context, ParamListInfo params,
					   QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = next_ProcessUtility ? next_ProcessUtility : standard_ProcessUtility;
	const char *role;

	leave_if_replaced();
	if (!serves_gateway())
	{
		/* an administrator's session is not guarded, but crashes like any other */
		fault_at_verdict(pstmt->utilityStmt, true);
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
		fault_at_verdict(pstmt->utilityStmt, false);
		return;
	}
	role = context == PROCESS_UTILITY_TOPLEVEL ? role_to_take(pstmt->utilityStmt) : NULL;
	if (role != NULL && pg_strcasecmp(role, "none") != 0)
	{
		take_role(role);
		return;
	}
	if (IsA(pstmt->utilityStmt, NotifyStmt) || IsA(pstmt->utilityStmt, ListenStmt))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a statement from gateway \"%s\" used NOTIFY or LISTEN", session.gateway),
				 errdetail("A transaction with notifications cannot be prepared."),
				 errhint("Change the trigger or function at the home that uses it.")));
	session.depth++;
	PG_TRY();
	{
		fault_at_verdict(pstmt->utilityStmt, true);
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	PG_CATCH();
	{
		leave_by_error();
	}
	PG_END_TRY();
	fault_at_verdict(pstmt->utilityStmt, false);
	session.depth--;
}

/* installs the hooks, in front of those that are there */
void
residency_guard_init(void)
{
	residency_guard_instance_init();
	next_planner = planner_hook;
	planner_hook = session_planner;
	next_ExecutorStart = ExecutorStart_hook;
	ExecutorStart_hook = session_ExecutorStart;
	next_ExecutorRun = ExecutorRun_hook;
	ExecutorRun_hook = session_ExecutorRun;
	next_ExecutorFinish = ExecutorFinish_hook;
	ExecutorFinish_hook = session_ExecutorFinish;
	next_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = session_ProcessUtility;
}
