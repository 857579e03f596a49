/*
 * regions.h
 *		What this database knows of itself, of the other regions, and of its tables.
 *
 * All of it is read from the extension's catalog tables and cached in the backend;
 * a trigger on each of those tables sends a relation invalidation, which empties
 * the cache.  Pointers returned here stay valid until the next call that may
 * accept invalidations (opening a relation, starting a command): copy what you keep.
 */
#ifndef RESIDENCY_REGIONS_H
#define RESIDENCY_REGIONS_H

#include "residency.h"

#include "nodes/pg_list.h"

/* this database's own row in residency.self */
/* incarnations of residency.self.announced that are kept in mind */
#define RESIDENCY_MAX_ANNOUNCED 8

typedef struct ResidencySelf
{
	char		region[NAMEDATALEN];	/* own region's name */
	int			number;			/* 1..64, for sequences */
	int64		deployment;		/* same in all regions of one deployment */
	int64		incarnation;	/* 64 random bits, see residency.renew() */
	int			nannounced;		/* incarnations whose renewal did not commit, the latest ones */
	int64		announced[RESIDENCY_MAX_ANNOUNCED];
	bool		copy;			/* made by copying the region's database: not to act as it */
} ResidencySelf;

typedef enum ResidencyTableKind
{
	RESIDENCY_GLOBAL = 'g',
	RESIDENCY_RESIDENT = 'r'
} ResidencyTableKind;

/* one row of residency.rule: a declared table (the parent, for a resident one) */
typedef struct TableRule
{
	Oid			relid;			/* hash key */
	ResidencyTableKind kind;
	AttrNumber	region_attno;	/* column that names each row's home */
	int			nkeys;			/* resident: columns of the directory's key;
								 * global: columns of the primary key */
	AttrNumber	keys[INDEX_MAX_KEYS];	/* attnums in relid, in index order */
	bool		unique;			/* resident: no two rows of a region have the same key */
	Oid			directory;		/* resident: the global table that knows each key's
								 * home, InvalidOid if none; global: InvalidOid */
	bool		is_directory;	/* global: some resident table names it */
} TableRule;

/* NULL before residency.init(), or outside of a database with the extension */
extern const ResidencySelf *residency_self(void);

/* the rule of a declared table, NULL for any other; a partition is looked up by
 * its parent with residency_partition_rule */
extern const TableRule *residency_table_rule(Oid relid);

/*
 * The rule of the resident table that relid is a partition of, or NULL.  Its relid is
 * the resident table's; attribute numbers are those of the partition, which may differ
 * (the home partition may have dropped columns).
 */
extern const TableRule *residency_partition_rule(Oid relid);

/* OIDs of the foreign servers of all other joined regions, by region name */
extern List *residency_other_servers(void);

/* name of the region behind one of our foreign servers: the server's own name */
extern char *residency_server_region(Oid serverid);

/* server of that region, InvalidOid if it is this one; throws 08000-class hint if unknown */
extern Oid	residency_region_server(const char *region);

/* role by which that region logs in here as a gateway, NULL if unknown; same life as above */
extern const char *residency_gateway_role(const char *region);

/* true if that was the incarnation of a region's database that was lost and replaced */
extern bool residency_is_replaced(int64 incarnation);

/* role by which this region logs in behind that server, palloc'd, NULL if none */
extern char *residency_role_at(Oid serverid);

/* true if some table is declared global: a cheap test before looking closer */
extern bool residency_any_global(void);

/* OIDs of the partitions stored here that have a home constraint */
extern List *residency_home_partitions(void);

extern void residency_regions_init(void);	/* registers invalidation callbacks */

#endif							/* RESIDENCY_REGIONS_H */
