/*
 * worker_errand.c
 *		One statement that is committed whatever becomes of the transaction that asks for it.
 *
 * PostgreSQL has no transactions within transactions that outlive them, so a process of its
 * own runs the statement and ends.  The caller waits for it, and its own locks must not be
 * in the statement's way.
 *
 * What is to be done, and what came of it, is in a segment of shared memory that the caller
 * makes and holds.  If the caller gives up waiting, the statement may still be committed.
 */
#include "worker_internal.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "replication/syncrep.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PGDLLEXPORT void residency_errand_main(Datum arg);

typedef struct Errand
{
	Oid			database;
	volatile bool done;
	bool		changed;		/* some row; valid if done */
	int			sqlstate;		/* of what went wrong, 0: nothing that would be known */
	char		message[256];
	int			n;				/* parameters, all text */
	char		text[FLEXIBLE_ARRAY_MEMBER];	/* the statement; each parameter, behind '-' if it
												 * is null, else '+'; all end in '\0' */
} Errand;

/* appends one parameter to the text of an errand */
static void
append_value(StringInfo text, const char *value)
{
	appendStringInfoChar(text, value != NULL ? '+' : '-');
	appendStringInfoString(text, value != NULL ? value : "");
	appendStringInfoChar(text, '\0');
}

/* the errand in shared memory that lasts as long as the caller's resource owner, at most */
static dsm_segment *
make_errand(const char *sql, int n, const char *const *values)
{
	StringInfoData text;
	dsm_segment *segment;
	Errand	   *errand;

	initStringInfo(&text);
	appendStringInfoString(&text, sql);
	appendStringInfoChar(&text, '\0');
	for (int i = 0; i < n; i++)
		append_value(&text, values[i]);
	segment = dsm_create(offsetof(Errand, text) + text.len, 0);
	errand = dsm_segment_address(segment);
	memset(errand, 0, offsetof(Errand, text));
	errand->database = MyDatabaseId;
	errand->n = n;
	memcpy(errand->text, text.data, text.len);
	pfree(text.data);
	return segment;
}

/* starts the process that does it */
static BackgroundWorkerHandle *
start_errand(dsm_segment *segment, const char *what)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = UInt32GetDatum(dsm_segment_handle(segment));
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, RESIDENCY_WRAPPER, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "residency_errand_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "residency errand", sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "residency errand of process %d", MyProcPid);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is left to %s", what),
				 errhint("Raise max_worker_processes, and restart the server.")));
	return handle;
}

/* see worker.h */
bool
residency_worker_commit_apart(const char *what, const char *sql, int n, const char *const *values)
{
	dsm_segment *segment = make_errand(sql, n, values);
	Errand	   *errand = dsm_segment_address(segment);
	BgwHandleStatus status = WaitForBackgroundWorkerShutdown(start_errand(segment, what));
	bool		changed;

	if (status == BGWH_POSTMASTER_DIED)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the server is gone")));
	if (!errand->done)
		ereport(ERROR,
				(errcode(errand->sqlstate != 0 ? errand->sqlstate : ERRCODE_INTERNAL_ERROR),
				 errmsg("could not %s: %s", what,
						errand->sqlstate != 0 ? errand->message : "the process that does it ended early")));
	changed = errand->changed;
	dsm_detach(segment);
	return changed;
}

/* runs the statement in a transaction that is on disk, here and on standbys, when it returns */
static void
run_errand(Errand *errand)
{
	const char *text = errand->text;
	Oid		   *types = palloc(Max(errand->n, 1) * sizeof(Oid));
	Datum	   *values = palloc(Max(errand->n, 1) * sizeof(Datum));
	char	   *nulls = palloc(errand->n + 1);
	const char *value = text + strlen(text) + 1;

	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		SetConfigOption("synchronous_commit", "on", PGC_SUSET, PGC_S_OVERRIDE);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, text);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	for (int i = 0; i < errand->n; i++, value += strlen(value) + 1)
	{
		types[i] = TEXTOID;
		nulls[i] = *value == '-' ? 'n' : ' ';
		values[i] = *value == '-' ? (Datum) 0 : CStringGetTextDatum(value + 1);
	}
	if (SPI_execute_with_args(text, errand->n, types, values, nulls, false, 0) < 0)
		elog(ERROR, "SPI failed");
	errand->changed = SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* entry of the process; the argument is the handle of the segment */
void
residency_errand_main(Datum arg)
{
	MemoryContext context;
	dsm_segment *segment;
	Errand	   *errand;

	residency_is_worker = true;
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	segment = dsm_attach(DatumGetUInt32(arg));
	if (segment == NULL)
		proc_exit(0);			/* the caller has given up */
	errand = dsm_segment_address(segment);
	BackgroundWorkerInitializeConnectionByOid(errand->database, InvalidOid, 0);
	residency_worker_set_own_settings();
	context = AllocSetContextCreate(TopMemoryContext, "residency errand", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run_errand(errand);
		errand->done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		errand->sqlstate = error->sqlerrcode;
		strlcpy(errand->message, error->message, sizeof(errand->message));
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	dsm_detach(segment);
	proc_exit(0);
}
