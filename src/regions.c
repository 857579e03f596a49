/*
 * regions.c
 *		Cache of what the catalog tables say: this region, the others, the tables.
 *
 * Everything is loaded at once (a deployment has at most 64 regions, and declared
 * tables by the dozen), and thrown away at once.  Two kinds of events make it
 * stale: the statement trigger residency.invalidate() on the catalog tables, and
 * changes of a declared table itself (a renamed column, a new partition), since
 * attribute numbers and partitions are resolved while loading.
 *
 * Loading reads with a fresh catalog snapshot, so a transaction sees its own
 * changes after a command counter increment, and takes no lock on the declared
 * tables: planning a query must not wait for DDL on a table that it does not use.
 */
#include "residency.h"

#include <limits.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "regions.h"
#include "regions_internal.h"

/* a partition of a resident table, with attribute numbers as the partition has them */
typedef struct PartitionRule
{
	Oid			relid;			/* hash key */
	TableRule	rule;
} PartitionRule;

/*
 * All state of this file.  "context" holds everything that is pointed to here.
 */
static struct
{
	MemoryContext context;
	bool		loaded;			/* false: load before use */
	bool		present;		/* the extension's tables exist in this database */
	Oid			self_relid;
	Oid			region_relid;
	Oid			rule_relid;
	bool		have_self;
	ResidencySelf self;
	List	   *regions;		/* names of the others (char *), sorted by name */
	List	   *roles;			/* their gateway roles here, in the same order */
	char	   *first;			/* name of the region with the lowest number */
	char	   *second;			/* ... and of the next one */
	int			nreplaced;
	int64	   *replaced;		/* incarnations that others took the place of */
	List	   *servers;		/* their servers; NIL until servers_valid */
	bool		servers_valid;
	HTAB	   *rules;			/* TableRule */
	HTAB	   *partitions;		/* PartitionRule */
	List	   *homes;			/* OIDs: partitions stored here whose rows have a directory */
	bool		any_global;
} cache;

/*
 * Any relation cache invalidation that may concern us makes the cache stale.
 * While the extension is absent every one may: it could be its creation.
 */
static void
relation_changed(Datum arg, Oid relid)
{
	if (!cache.loaded)
		return;
	if (!OidIsValid(relid) || !cache.present ||
		relid == cache.self_relid || relid == cache.region_relid ||
		relid == cache.rule_relid ||
		hash_search(cache.rules, &relid, HASH_FIND, NULL) != NULL ||
		hash_search(cache.partitions, &relid, HASH_FIND, NULL) != NULL)
		cache.loaded = false;
}

/* A server was made, renamed or dropped: only the list of their OIDs is redone. */
static void
server_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	cache.servers_valid = false;
}

/* Registers the callbacks; called once per backend from _PG_init. */
void
residency_regions_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_changed, (Datum) 0);
}

/* takes over residency.self.announced, as far as there is room */
static void
load_announced(ArrayType *array)
{
	Datum	   *items;
	int			n;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &items, NULL, &n);
	cache.self.nannounced = 0;
	for (int i = Max(0, n - RESIDENCY_MAX_ANNOUNCED); i < n; i++)
		cache.self.announced[cache.self.nannounced++] = DatumGetInt64(items[i]);
}

/* Reads the one row of residency.self, if init() has put it there. */
static void
load_self(void)
{
	Relation	rel = table_open(cache.self_relid, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);

	if (HeapTupleIsValid(tuple))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;

		strlcpy(cache.self.region,
				NameStr(*DatumGetName(heap_getattr(tuple, 1, desc, &isnull))),
				NAMEDATALEN);
		cache.self.number = DatumGetInt32(heap_getattr(tuple, 2, desc, &isnull));
		cache.self.deployment = DatumGetInt64(heap_getattr(tuple, 3, desc, &isnull));
		cache.self.incarnation = DatumGetInt64(heap_getattr(tuple, 4, desc, &isnull));
		cache.self.copy = !residency_is_own_place(TextDatumGetCString(heap_getattr(tuple, 7, desc, &isnull)));
		load_announced(DatumGetArrayTypeP(heap_getattr(tuple, 8, desc, &isnull)));
		cache.have_self = true;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* a region other than this one, while loading */
typedef struct OtherRegion
{
	NameData	name;
	NameData	role;			/* empty if it has none */
} OtherRegion;

/* list_sort comparator: names in byte order, the same in every region */
static int
compare_regions(const ListCell *a, const ListCell *b)
{
	return strcmp(NameStr(((OtherRegion *) lfirst(a))->name),
				  NameStr(((OtherRegion *) lfirst(b))->name));
}

/* adds one region's residency.region.replaced to what is known; in the cache's context */
static void
load_replaced(ArrayType *array)
{
	Datum	   *items;
	int			n;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &items, NULL, &n);
	if (n == 0)
		return;
	cache.replaced = cache.replaced == NULL ? palloc(n * sizeof(int64)) :
		repalloc(cache.replaced, (cache.nreplaced + n) * sizeof(int64));
	for (int i = 0; i < n; i++)
		cache.replaced[cache.nreplaced++] = DatumGetInt64(items[i]);
}

/* Collects all regions but this one, and notes the first two by number. */
static void
load_regions(void)
{
	Relation	rel = table_open(cache.region_relid, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	MemoryContext old = MemoryContextSwitchTo(cache.context);
	List	   *others = NIL;
	int			lowest = INT_MAX;
	int			next = INT_MAX;
	HeapTuple	tuple;
	ListCell   *lc;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Name		name = DatumGetName(heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull));
		int			number = DatumGetInt32(heap_getattr(tuple, 2, RelationGetDescr(rel), &isnull));
		OtherRegion *other;
		Datum		role;

		if (number < lowest)
		{
			next = lowest;
			cache.second = cache.first;
			lowest = number;
			cache.first = pstrdup(NameStr(*name));
		}
		else if (number < next)
		{
			next = number;
			cache.second = pstrdup(NameStr(*name));
		}
		load_replaced(DatumGetArrayTypeP(heap_getattr(tuple, 6, RelationGetDescr(rel), &isnull)));
		if (cache.have_self && strcmp(NameStr(*name), cache.self.region) == 0)
			continue;
		other = palloc0(sizeof(OtherRegion));
		other->name = *name;
		role = heap_getattr(tuple, 4, RelationGetDescr(rel), &isnull);
		if (!isnull)
			other->role = *DatumGetName(role);
		others = lappend(others, other);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	list_sort(others, compare_regions);
	foreach(lc, others)
	{
		OtherRegion *other = lfirst(lc);

		cache.regions = lappend(cache.regions, NameStr(other->name));
		cache.roles = lappend(cache.roles, NameStr(other->role));
	}
	MemoryContextSwitchTo(old);
}

/* Resolves the key columns of a resident table; false if one has gone. */
static bool
load_key_columns(TableRule *rule, Datum names)
{
	Datum	   *columns;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(names), NAMEOID, NAMEDATALEN, false,
					  TYPALIGN_CHAR, &columns, NULL, &n);
	if (n > INDEX_MAX_KEYS)
		return false;
	rule->nkeys = n;
	for (int i = 0; i < n; i++)
	{
		rule->keys[i] = get_attnum(rule->relid, NameStr(*DatumGetName(columns[i])));
		if (rule->keys[i] <= 0)
			return false;
	}
	return true;
}

/* Notes a partition of a resident table, translating column numbers by name. */
static void
load_partition(const TableRule *parent, Oid relid)
{
	PartitionRule *entry;
	bool		found;

	entry = hash_search(cache.partitions, &relid, HASH_ENTER, &found);
	entry->rule = *parent;
	entry->rule.region_attno =
		get_attnum(relid, get_attname(parent->relid, parent->region_attno, false));
	for (int i = 0; i < parent->nkeys; i++)
		entry->rule.keys[i] =
			get_attnum(relid, get_attname(parent->relid, parent->keys[i], false));
	if (OidIsValid(parent->directory) && get_rel_relkind(relid) == RELKIND_RELATION)
	{
		MemoryContext old = MemoryContextSwitchTo(cache.context);

		cache.homes = lappend_oid(cache.homes, relid);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Turns one row of residency.rule into a cache entry.  A row whose table or
 * column has gone is passed over: verify() reports it, and a table without a
 * rule is closed.
 */
static void
load_rule(HeapTuple tuple, TupleDesc desc)
{
	TableRule	rule = {0};
	TableRule  *entry;
	List	   *children = NIL;
	ListCell   *lc;
	bool		isnull;
	Datum		value;

	rule.relid = DatumGetObjectId(heap_getattr(tuple, 1, desc, &isnull));
	rule.kind = (ResidencyTableKind) DatumGetChar(heap_getattr(tuple, 2, desc, &isnull));
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(rule.relid)))
		return;
	rule.region_attno =
		get_attnum(rule.relid,
				   NameStr(*DatumGetName(heap_getattr(tuple, 3, desc, &isnull))));
	if (rule.region_attno <= 0)
		return;

	if (rule.kind == RESIDENCY_GLOBAL)
	{
		residency_load_primary_key(&rule);
		cache.any_global = true;
	}
	else
	{
		value = heap_getattr(tuple, 4, desc, &isnull);
		if (!isnull && !load_key_columns(&rule, value))
			return;
		value = heap_getattr(tuple, 5, desc, &isnull);
		rule.directory = isnull ? InvalidOid : DatumGetObjectId(value);
		children = find_inheritance_children(rule.relid, NoLock);
		foreach(lc, children)
		{
			if (rule.nkeys > 0 && get_rel_relkind(lfirst_oid(lc)) == RELKIND_RELATION)
				rule.unique = residency_has_unique_key(&rule, lfirst_oid(lc));
		}
	}
	entry = hash_search(cache.rules, &rule.relid, HASH_ENTER, NULL);
	*entry = rule;
	foreach(lc, children)
		load_partition(&rule, lfirst_oid(lc));
	list_free(children);
}

/* Reads residency.rule, then marks the directories. */
static void
load_rules(void)
{
	Relation	rel = table_open(cache.rule_relid, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	HASH_SEQ_STATUS status;
	TableRule  *rule;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		load_rule(tuple, RelationGetDescr(rel));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	hash_seq_init(&status, cache.rules);
	while ((rule = hash_seq_search(&status)) != NULL)
	{
		TableRule  *directory;

		if (!OidIsValid(rule->directory))
			continue;
		directory = hash_search(cache.rules, &rule->directory, HASH_FIND, NULL);
		if (directory != NULL)
			directory->is_directory = true;
	}
}

/* A hash table keyed by OID in the cache's context. */
static HTAB *
make_hash(const char *name, Size entrysize)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = entrysize;
	ctl.hcxt = cache.context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Empties the cache and forgets where the catalog tables are. */
static void
empty_cache(void)
{
	if (cache.context == NULL)
		cache.context = AllocSetContextCreate(CacheMemoryContext, "residency regions",
											  ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(cache.context);
	cache.present = false;
	cache.have_self = false;
	cache.regions = NIL;
	cache.roles = NIL;
	cache.first = cache.second = NULL;
	cache.nreplaced = 0;
	cache.replaced = NULL;
	cache.servers = NIL;
	cache.servers_valid = false;
	cache.any_global = false;
	cache.homes = NIL;
	cache.rules = make_hash("residency rules", sizeof(TableRule));
	cache.partitions = make_hash("residency partitions", sizeof(PartitionRule));
}

/*
 * Brings the cache up to date.  Outside of a running transaction nothing can be
 * read, so what is there, stale or not, has to do.
 *
 * An invalidation that arrives while loading clears "loaded" behind our back, so
 * it is set first: then the next caller loads again.  An error while loading
 * leaves the cache marked stale.
 */
static void
ensure_loaded(void)
{
	if (cache.loaded || !IsTransactionState())
		return;

	empty_cache();
	AcceptInvalidationMessages();
	PG_TRY();
	{
		Oid			schema = get_namespace_oid(RESIDENCY_SCHEMA, true);

		cache.loaded = true;
		if (OidIsValid(schema))
		{
			cache.self_relid = get_relname_relid("self", schema);
			cache.region_relid = get_relname_relid("region", schema);
			cache.rule_relid = get_relname_relid("rule", schema);
			if (OidIsValid(cache.self_relid) && OidIsValid(cache.region_relid) &&
				OidIsValid(cache.rule_relid))
			{
				cache.present = true;
				load_self();
				load_regions();
				load_rules();
			}
		}
	}
	PG_CATCH();
	{
		cache.loaded = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* This database's own row, NULL before residency.init(). */
const ResidencySelf *
residency_self(void)
{
	ensure_loaded();
	return cache.context != NULL && cache.have_self ? &cache.self : NULL;
}

/* The rule of a declared table, NULL for any other. */
const TableRule *
residency_table_rule(Oid relid)
{
	ensure_loaded();
	if (cache.context == NULL)
		return NULL;
	return hash_search(cache.rules, &relid, HASH_FIND, NULL);
}

/* The rule of the resident table that relid is a partition of, or NULL. */
const TableRule *
residency_partition_rule(Oid relid)
{
	PartitionRule *entry;

	ensure_loaded();
	if (cache.context == NULL)
		return NULL;
	entry = hash_search(cache.partitions, &relid, HASH_FIND, NULL);
	return entry != NULL ? &entry->rule : NULL;
}

/*
 * Servers of all other regions, by region name.  A region whose server somebody
 * dropped is missing from the list; requests to it fail by name instead.
 */
List *
residency_other_servers(void)
{
	ensure_loaded();
	if (cache.context == NULL)
		return NIL;
	if (!cache.servers_valid && IsTransactionState())
	{
		List	   *servers = NIL;
		ListCell   *lc;

		/* looked up first, since each look-up may accept invalidations */
		cache.servers_valid = true;
		foreach(lc, cache.regions)
		{
			Oid			serverid = get_foreign_server_oid(lfirst(lc), true);
			MemoryContext old;

			if (!OidIsValid(serverid))
				continue;
			old = MemoryContextSwitchTo(cache.context);
			servers = lappend_oid(servers, serverid);
			MemoryContextSwitchTo(old);
		}
		cache.servers = servers;
	}
	return cache.servers;
}

/*
 * Role by which a region logs in here as a gateway, NULL if it is unknown or this one.
 * Its name is usually residency_<region>, but another database of this server may have
 * taken that, and it may be too long.
 */
const char *
residency_gateway_role(const char *region)
{
	ListCell   *name;
	ListCell   *role;

	ensure_loaded();
	if (cache.context == NULL)
		return NULL;
	forboth(name, cache.regions, role, cache.roles)
	{
		if (strcmp(lfirst(name), region) == 0)
			return *(char *) lfirst(role) != '\0' ? lfirst(role) : NULL;
	}
	return NULL;
}

/* True if some table is declared global. */
bool
residency_any_global(void)
{
	ensure_loaded();
	return cache.context != NULL && cache.any_global;
}

/* Names of all other regions, in the order of residency_other_servers. */
List *
residency_other_regions(void)
{
	ensure_loaded();
	return cache.context != NULL ? cache.regions : NIL;
}

/*
 * Name of the region with the lowest number, of those that are not "without" (NULL: all); the
 * same in all regions.  NULL if there is none.
 */
const char *
residency_first_region(const char *without)
{
	ensure_loaded();
	if (cache.context == NULL || cache.first == NULL)
		return NULL;
	return without != NULL && strcmp(cache.first, without) == 0 ? cache.second : cache.first;
}

/* True if that was the incarnation of a region's database that was lost and replaced. */
bool
residency_is_replaced(int64 incarnation)
{
	ensure_loaded();
	for (int i = 0; cache.context != NULL && i < cache.nreplaced; i++)
		if (cache.replaced[i] == incarnation)
			return true;
	return false;
}

/* OIDs of the partitions stored here that have a home constraint */
List *
residency_home_partitions(void)
{
	ensure_loaded();
	return cache.homes;
}
