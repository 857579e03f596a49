/*
 * fdw_stats.h
 *		Numbers about relations that fdw_stats_cache.c hands to the planner hooks.
 */
#ifndef RESIDENCY_FDW_STATS_H
#define RESIDENCY_FDW_STATS_H

#include "residency.h"

#include "access/attnum.h"

typedef struct ColumnStats
{
	bool		known;
	float4		null_fraction;
	int32		width;
	float4		distinct;		/* as in pg_statistic */
} ColumnStats;

typedef struct RelationStats
{
	Oid			relid;			/* hash key */
	bool		unread;			/* entry only watches for changes of a partition */
	bool		known;			/* false: there are none, and the rest is not set */
	double		rows;
	int32		pages;			/* at the home; 0 for others */
	int			natts;
	ColumnStats *columns;		/* by attnum - 1 */
	/* a parent's spread over its regions */
	AttrNumber	region_attno;	/* partition column, 0: no spread known */
	int			nregions;
	bool		region_byval;
	int16		region_len;
	Datum	   *regions;		/* values of the partition column */
	float4	   *shares;			/* fraction of all rows */
} RelationStats;

extern const RelationStats *residency_relation_stats(Oid relid);
extern void residency_stats_cache_init(void);

#endif							/* RESIDENCY_FDW_STATS_H */
