/*
 * global_backlog.c
 *		Which regions a change of global tables leaves out, and the notes about it.
 *
 * A region that does not answer is left out of changes of global tables, so that all
 * others can go on.  G is the gateway of a change, H the row's home, R the region that
 * is left out; G and H may be the same.
 *
 *	1. G takes a shared lock on R at G, for the length of the transaction, and then looks
 *	   whether R is up.  If not, it sends R nothing, and tells all others so.
 *	2. H, in its part of the same transaction, takes the shared lock on R at H, which
 *	   PREPARE keeps, and notes (R, table, key) in residency.backlog.  No other region
 *	   does: so there is one place that knows what R lacks of a row.
 *	   If the row's key becomes another one, H notes both, and in residency.backlog_move which
 *	   became which: R's row must get the new key, too, so that what refers to it there follows.
 *	3. H's worker ships the row's state as it is then, behind all moves of its key, and deletes
 *	   the note, in one distributed transaction (global_catchup.c), whoever made the note, and
 *	   whatever H itself thinks of R as long as R answers it.
 *	4. When R answers again and G's own notes are shipped, G's worker takes the lock
 *	   exclusively, which outlasts every transaction of G, and every one noted at G, that
 *	   leaves R out; ships what they noted; and only then R is up in the eyes of G.
 *
 * The row's home is never left out: a row homed in a region that is away cannot be
 * written.  A region that is catching up still orders its own rows; then it gets that
 * whole request, and those of the same batch behind it, as well as the notes, which does
 * no harm.
 *
 * Invariants:
 *	- If R lacks the latest committed version of a row, a note of it is committed at the
 *	  row's home, or R has the row in residency.conflicts, or R has made a row of its own with
 *	  the key and notes that for the home (global_catchup_apply.c).  A note too many only costs
 *	  a shipment that changes nothing.
 *	- Who ships a row holds its lock at H, or, for a row that is no more, the note's
 *	  lock, which every writer that leaves R out needs, and has looked again after R has
 *	  locked it (global_catchup.c).  So nothing older ever overwrites something newer.
 *	- A row's home changes only while nobody is left out: then R has the row, and a note
 *	  about it at the old home tells R what it knows, that the old home has none.
 *	- A move is there only as long as the notes of both its keys are, and a note of one of them
 *	  is not shipped in front of it.
 *	- "up" is what G thinks.  Another gateway may think otherwise, and R may be up while
 *	  a third home still has notes about it (their link is cut, or one was in doubt):
 *	  these are shipped when they can be.
 */
#include "residency.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "commit_internal.h"
#include "global_backlog.h"
#include "health.h"
#include "regions.h"

PG_FUNCTION_INFO_V1(residency_withholds);

/* first key of our advisory locks; the second is made of the region's name */
#define BACKLOG_LOCK	0x72736479
#define BATCH_LOCK		0x7273647a

/* their class; that of SQL's functions is 1 or 2, so no user can take one of them */
#define LOCK_CLASS		3

/* char *, in TopTransactionContext: regions left out that have got a piece of the batch that is
 * being sent, as homes of rows in it */
static List *batch_regions = NIL;

/* the lock on a region: shared by transactions that leave it out */
static void
lock_tag(LOCKTAG *tag, const char *region)
{
	uint32		hash = hash_bytes((const unsigned char *) region, strlen(region));

	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, BACKLOG_LOCK, hash, LOCK_CLASS);
}

/* bounds lock waits to that many ms; returns the GUC nest level to be ended */
static int
limit_waits(int timeout)
{
	int			level = NewGUCNestLevel();
	char		value[16];

	snprintf(value, sizeof(value), "%d", Max(timeout, 1));
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/*
 * Takes the shared lock on a region until the transaction ends, also by PREPARE.  Waits
 * only while the flip to "up" is under way; throws 55P03 after residency.lock_timeout.
 */
void
residency_backlog_lock_shared(const char *region)
{
	LOCKTAG		tag;
	int			level;

	lock_tag(&tag, region);
	if (LockAcquire(&tag, ShareLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
		return;
	level = limit_waits(residency_lock_timeout);
	(void) LockAcquire(&tag, ShareLock, false, false);
	AtEOXact_GUC(true, level);
}

/*
 * Takes the exclusive lock on a region for the session, waiting at most that many ms;
 * new transactions that leave the region out queue behind us meanwhile.  When it is
 * held, none is running or in doubt here.  False, in an unharmed transaction, if one
 * has outlasted the time.
 */
bool
residency_backlog_lock_exclusive(const char *region, int timeout)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool locked = false;
	LOCKTAG		tag;

	lock_tag(&tag, region);
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		int			level = limit_waits(timeout);

		(void) LockAcquire(&tag, ExclusiveLock, true, false);
		AtEOXact_GUC(true, level);
		ReleaseCurrentSubTransaction();
		locked = true;
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return locked;
}

/*
 * The transactions that leave a region out, running or in doubt: an array in the current
 * memory context, and its length.
 */
VirtualTransactionId *
residency_backlog_holders(const char *region, int *n)
{
	LOCKTAG		tag;

	lock_tag(&tag, region);
	return GetLockConflicts(&tag, ExclusiveLock, n);
}

/* gives it back */
void
residency_backlog_unlock_exclusive(const char *region)
{
	LOCKTAG		tag;

	lock_tag(&tag, region);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Names (char *, in the current context) of the regions that the current transaction
 * leaves out of what it sends now; their locks are held.  Once left out, a region stays
 * so until the transaction ends, since nobody can make it "up" under our lock.
 */
List *
residency_left_out(void)
{
	List	   *servers = residency_other_servers();
	List	   *regions = NIL;
	ListCell   *lc;

	foreach(lc, servers)
	{
		char	   *region = residency_server_region(lfirst_oid(lc));

		if (residency_region_state(region) != RESIDENCY_UP)
			regions = lappend(regions, pstrdup(region));
	}
	foreach(lc, regions)
	{
		residency_backlog_lock_shared(lfirst(lc));
		if (residency_region_state(lfirst(lc)) == RESIDENCY_UP)
			regions = foreach_delete_current(regions, lc);
	}
	return regions;
}

/* true if the list of names has this one */
bool
residency_region_listed(List *regions, const char *region)
{
	ListCell   *lc;

	foreach(lc, regions)
		if (strcmp(lfirst(lc), region) == 0)
			return true;
	return false;
}

/* throws class 08: what this transaction does needs a region that does not answer */
void
residency_refuse_away(const char *region, const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 errmsg("region \"%s\" is away", region),
			 errdetail("It is needed for what is written in global table \"%s\".", table),
			 errhint("SELECT * FROM residency.regions tells what is known of it. Rows with their home in other regions can be written.")));
}

/* forgets who has got a piece of a batch; a transaction may send very many */
void
residency_batch_ended(void)
{
	list_free_deep(batch_regions);
	batch_regions = NIL;
}

/*
 * The regions that a batch's next piece, of rows with these homes, does not go to: those left
 * out, but for a home that is catching up, which decides about its own rows.  Such a one gets
 * the pieces behind it as well: with the last one it checks the references of what it took
 * before.  Throws if a home is away.
 */
List *
residency_not_sent_to(List *left_out, List *homes, const char *table, bool last)
{
	List	   *regions = list_copy(left_out);
	ListCell   *lc;

	foreach(lc, regions)
	{
		char	   *region = lfirst(lc);
		bool		has_piece = residency_region_listed(batch_regions, region);

		if (!residency_region_listed(homes, region) && !has_piece)
			continue;
		if (residency_region_state(region) == RESIDENCY_AWAY)
			residency_refuse_away(region, table);
		if (!has_piece)
		{
			MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

			batch_regions = lappend(batch_regions, pstrdup(region));
			MemoryContextSwitchTo(old);
		}
		regions = foreach_delete_current(regions, lc);
	}
	if (last)
		residency_batch_ended();
	return regions;
}

/* begins to collect notes, in the current memory context */
BacklogNotes *
residency_backlog_begin(void)
{
	BacklogNotes *notes = palloc0(sizeof(BacklogNotes));

	notes->relations = initArrayResult(OIDOID, CurrentMemoryContext, false);
	notes->keys = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	notes->moved = initArrayResult(OIDOID, CurrentMemoryContext, false);
	notes->was = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	notes->became = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	return notes;
}

/* one more string of an array */
static void
add_text(ArrayBuildState *array, const char *string)
{
	Datum		text = CStringGetTextDatum(string);

	accumArrayResult(array, text, false, TEXTOID, array->mcontext);
	pfree(DatumGetPointer(text));
}

/* one more key, written as it travels; a key that comes twice is noted once */
void
residency_backlog_add(BacklogNotes *notes, Oid relid, const char *key)
{
	accumArrayResult(notes->relations, ObjectIdGetDatum(relid), false, OIDOID,
					 notes->relations->mcontext);
	add_text(notes->keys, key);
	notes->n++;
}

/* a row's key became another one; both are, or will be, added in the same transaction */
void
residency_backlog_move(BacklogNotes *notes, Oid relid, const char *was, const char *key)
{
	accumArrayResult(notes->moved, ObjectIdGetDatum(relid), false, OIDOID, notes->moved->mcontext);
	add_text(notes->was, was);
	add_text(notes->became, key);
}

/* False if no move is noted, nor being noted: the cheap test. */
static bool
moves_exist(void)
{
	Relation	moves = table_open(get_relname_relid("backlog_move", get_namespace_oid(RESIDENCY_SCHEMA, false)), AccessShareLock);
	bool		exist = RelationGetNumberOfBlocks(moves) > 0;

	table_close(moves, AccessShareLock);
	return exist;
}

/*
 * Moves, for the regions that are left out; and for those that are not, but still miss earlier
 * moves of the same keys.  These would be made again there behind the new ones, and leave a row
 * with a key that it had before.  So those are noted for them as well, and so is what follows
 * them in turn.  What a region makes twice does no harm: it ends where it ended.
 */
#define MOVES_SQL \
	"WITH RECURSIVE m AS MATERIALIZED (SELECT * FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3)) " \
	"WITH ORDINALITY AS u (relation, was, key, n)), " \
	"e AS MATERIALIZED (SELECT n, relation, was AS k FROM m UNION ALL SELECT n, relation, key FROM m), " \
	"r (region, n) AS (SELECT g, e.n FROM e CROSS JOIN pg_catalog.unnest($4) AS g " \
	"WHERE g OPERATOR(pg_catalog.=) ANY ($5) OR EXISTS (SELECT FROM residency.backlog_move AS v WHERE v.region OPERATOR(pg_catalog.=) g " \
	"AND v.relation OPERATOR(pg_catalog.=) e.relation AND v.was OPERATOR(pg_catalog.=) e.k) " \
	"OR EXISTS (SELECT FROM residency.backlog_move AS v WHERE v.region OPERATOR(pg_catalog.=) g " \
	"AND v.relation OPERATOR(pg_catalog.=) e.relation AND v.key OPERATOR(pg_catalog.=) e.k) " \
	"UNION SELECT r.region, b.n FROM r JOIN e AS a ON a.n OPERATOR(pg_catalog.=) r.n " \
	"JOIN e AS b ON b.relation OPERATOR(pg_catalog.=) a.relation AND b.k OPERATOR(pg_catalog.=) a.k), " \
	"w AS (INSERT INTO residency.backlog_move (region, relation, was, key) " \
	"SELECT r.region, m.relation, m.was, m.key FROM r JOIN m ON m.n OPERATOR(pg_catalog.=) r.n ORDER BY m.n) " \
	"INSERT INTO residency.backlog (region, relation, key) SELECT DISTINCT r.region, e.relation, e.k " \
	"FROM r JOIN e ON e.n OPERATOR(pg_catalog.=) r.n " \
	"ON CONFLICT (region, relation, key) DO UPDATE SET seq = excluded.seq"

/* The names of regions (char *) as name[]. */
static Datum
name_array(List *regions)
{
	ArrayBuildState *names = initArrayResult(NAMEOID, CurrentMemoryContext, false);
	ListCell   *lc;

	foreach(lc, regions)
		accumArrayResult(names, DirectFunctionCall1(namein, CStringGetDatum(lfirst(lc))),
						 false, NAMEOID, CurrentMemoryContext);
	return makeArrayResult(names, CurrentMemoryContext);
}

/*
 * Writes the moves of this region's rows that were collected, in the current transaction, with
 * notes of both keys.  Waits as residency_backlog_write does.
 */
void
residency_backlog_write_moves(BacklogNotes *notes, List *left_out)
{
	Oid			types[] = {OIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, NAMEARRAYOID, NAMEARRAYOID};
	Datum		values[lengthof(types)];
	List	   *others = NIL;
	ListCell   *lc;
	int			level;

	if (notes->moved->nelems == 0 || (left_out == NIL && !moves_exist()))
		return;
	foreach(lc, residency_other_servers())
		others = lappend(others, residency_server_region(lfirst_oid(lc)));
	values[0] = makeArrayResult(notes->moved, CurrentMemoryContext);
	values[1] = makeArrayResult(notes->was, CurrentMemoryContext);
	values[2] = makeArrayResult(notes->became, CurrentMemoryContext);
	values[3] = name_array(others);
	values[4] = name_array(left_out);
	level = limit_waits(residency_lock_timeout);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner(MOVES_SQL, lengthof(types), types, values, false);
	PopActiveSnapshot();
	SPI_finish();
	AtEOXact_GUC(true, level);
}

/*
 * Writes what was collected, for each of the regions but this one, in the current
 * transaction.  A note that is being shipped is waited for, as long as a lock of a
 * global table may be.
 */
void
residency_backlog_write(BacklogNotes *notes, List *regions)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {NAMEARRAYOID, OIDARRAYOID, TEXTARRAYOID};
	Datum		values[lengthof(types)];
	ArrayBuildState *names = initArrayResult(NAMEOID, CurrentMemoryContext, false);
	ListCell   *lc;
	int			level;
	int			code;
	Oid			user;
	int			context;

	foreach(lc, regions)
	{
		if (strcmp(lfirst(lc), residency_self()->region) == 0)
			continue;
		accumArrayResult(names, DirectFunctionCall1(namein, CStringGetDatum(lfirst(lc))),
						 false, NAMEOID, CurrentMemoryContext);
	}
	if (notes->n == 0 || names->nelems == 0)
		return;
	values[0] = makeArrayResult(names, CurrentMemoryContext);
	values[1] = makeArrayResult(notes->relations, CurrentMemoryContext);
	values[2] = makeArrayResult(notes->keys, CurrentMemoryContext);

	level = limit_waits(residency_lock_timeout);
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	if (plan == NULL)
	{
		plan = SPI_prepare("INSERT INTO residency.backlog (region, relation, key) "
						   "SELECT r, u.t, u.k FROM (SELECT t, k, pg_catalog.max(n) AS n FROM "
						   "ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) WITH ORDINALITY AS a (t, k, n) "
						   "GROUP BY t, k) AS u CROSS JOIN pg_catalog.unnest($1) AS r ORDER BY u.n "
						   "ON CONFLICT (region, relation, key) DO UPDATE SET seq = excluded.seq",
						   lengthof(types), types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_prepare failed");
	}
	code = SPI_execute_plan(plan, values, NULL, false, 0);
	if (code != SPI_OK_INSERT)
		elog(ERROR, "SPI failed with code %d", code);
	PopActiveSnapshot();
	SPI_finish();
	SetUserIdAndSecContext(user, context);
	AtEOXact_GUC(true, level);
}

/*
 * The row of this key that was made here is to be shipped to all others, some of which may
 * have another one.  The caller has locked it.  So nobody is waited for: a batch that ships
 * one of these notes has the row's lock, or leaves the note.
 */
void
residency_backlog_own(Oid relid, const char *key)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(key),
	CStringGetTextDatum(residency_self()->region)};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("INSERT INTO residency.backlog (region, relation, key) "
						   "SELECT name, $1, $2 FROM residency.region WHERE name OPERATOR(pg_catalog.<>) $3 "
						   "ON CONFLICT DO NOTHING",
						   lengthof(types), types, values, false);
	SPI_finish();
}

/*
 * The row of this key that was made here does not hold: another region is its home, and
 * ships it to those who lack it.
 */
void
residency_backlog_disown(Oid relid, const char *key)
{
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(key)};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	residency_spi_as_owner("WITH m AS (DELETE FROM residency.backlog_move WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND $2 OPERATOR(pg_catalog.=) ANY (ARRAY[was, key])) "
						   "DELETE FROM residency.backlog WHERE relation OPERATOR(pg_catalog.=) $1 "
						   "AND key OPERATOR(pg_catalog.=) $2",
						   lengthof(types), types, values, false);
	SPI_finish();
}

/*
 * Here, where rows are shipped to: true if no earlier batch of that home is under way, in doubt included.
 * Until the transaction ends, also by PREPARE, no later one begins: what the earlier one has written in
 * residency.conflict cannot be seen, and would come to light when it was thought to be decided.
 */
bool
residency_backlog_claim_batch(const char *shipper)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, BATCH_LOCK, hash_bytes((const unsigned char *) shipper, strlen(shipper)), LOCK_CLASS);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * SQL: residency.withholds(region).  Keeps everybody here from leaving the region out until
 * the transaction ends, and tells whether somebody has.  Waits as long as lock_timeout says
 * for those who are at it.
 */
Datum
residency_withholds(PG_FUNCTION_ARGS)
{
	char	   *region = NameStr(*PG_GETARG_NAME(0));
	Oid			types[] = {NAMEOID};
	Datum		values[] = {PG_GETARG_DATUM(0)};
	LOCKTAG		tag;
	bool		found;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to ask what a region has missed")));
	lock_tag(&tag, region);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	residency_spi_as_owner("SELECT FROM residency.backlog WHERE region OPERATOR(pg_catalog.=) $1 LIMIT 1",
						   lengthof(types), types, values, false);
	PopActiveSnapshot();
	found = SPI_processed > 0;
	SPI_finish();
	PG_RETURN_BOOL(found);
}
