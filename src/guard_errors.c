/*
 * guard_errors.c
 *		Takes the values out of errors before they cross a border.
 *
 * A gateway must not learn from an error what its client could not read, and its log
 * must not keep it.  So the home writes the full error into its own log and throws
 * another one: same SQLSTATE, the names of schema, table, column and constraint, and
 * a text made by the rule in remote_result.c.
 */
#include "guard_internal.h"

#include "utils/memutils.h"

#include "remote_internal.h"

/* only in PG_CATCH, see guard_internal.h */
void
residency_guard_clean_error(const char *gateway)
{
	ErrorData  *full;
	char		text[512];
	bool		raised;

	/* PG_CATCH leaves us in ErrorContext, which FlushErrorState empties */
	MemoryContextSwitchTo(TopTransactionContext ? TopTransactionContext : TopMemoryContext);
	full = CopyErrorData();
	FlushErrorState();

	/* the full error stays at home */
	ereport(LOG_SERVER_ONLY,
			(errcode(full->sqlerrcode),
			 errmsg("error in a statement from gateway \"%s\": %s", gateway, full->message),
			 full->detail ? errdetail_internal("%s", full->detail) : 0,
			 full->context ? errcontext_msg("%s", full->context) : 0,
			 errhidestmt(true)));

	raised = full->filename != NULL && strcmp(full->filename, "pl_exec.c") == 0;
	residency_error_text(text, sizeof(text), full->sqlerrcode, raised, full->message,
			 	 full->table_name, full->column_name, full->constraint_name);
	ereport(ERROR,
			(errcode(full->sqlerrcode),
			 errmsg_internal("%s", text),
			 full->hint && full->sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED && !raised ?
			 errhint("%s", full->hint) : 0,
			 full->schema_name ? err_generic_string(PG_DIAG_SCHEMA_NAME, full->schema_name) : 0,
			 full->table_name ? err_generic_string(PG_DIAG_TABLE_NAME, full->table_name) : 0,
			 full->column_name ? err_generic_string(PG_DIAG_COLUMN_NAME, full->column_name) : 0,
			 full->constraint_name ? err_generic_string(PG_DIAG_CONSTRAINT_NAME, full->constraint_name) : 0));
	pg_unreachable();
}
