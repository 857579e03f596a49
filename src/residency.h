/*
 * residency.h
 *		Words and settings that every part shares.
 *
 * A "region" is one PostgreSQL database; the "gateway" is the region that the
 * client is connected to; the "home" of a row is the region that stores it.
 * DESIGN's section 1 has the full table of words.
 */
#ifndef RESIDENCY_H
#define RESIDENCY_H

#include "postgres.h"

#include "compat.h"
#include "fmgr.h"

/* schema of everything that the extension makes */
#define RESIDENCY_SCHEMA "residency"

/* name of the foreign data wrapper; its servers are the other regions */
#define RESIDENCY_WRAPPER "residency"

/*
 * Name of the foreign key from a home partition to its directory.  The same
 * for all resident tables, so that one SET CONSTRAINTS checks them all.
 */
#define RESIDENCY_HOME_CONSTRAINT "residency_home"

/* most regions that one transaction can involve; DESIGN asks for 64 */
#define RESIDENCY_MAX_REGIONS 64

/* settings, see settings.c and docs/settings.md */
extern int	residency_away_after;	/* ms */
extern int	residency_commit_wait;	/* ResidencyCommitWait */
extern int	residency_commit_timeout;	/* ms */
extern int	residency_conflict_retry;	/* ms */
extern int	residency_connect_timeout;	/* ms */
extern int	residency_doubt_timeout;	/* ms */
extern bool residency_enable_lookup;
extern bool residency_enable_push;
extern int	residency_fetch_bytes;	/* kB wanted per FETCH */
extern int	residency_home_wait;	/* ms */
extern int	residency_lock_timeout; /* ms */
extern int	residency_on_away;	/* ResidencyOnAway */
extern int	residency_resolve_interval; /* ms */
extern int	residency_ship_timeout; /* ms */
extern bool residency_workers;

typedef enum ResidencyCommitWait
{
	RESIDENCY_COMMIT_DECIDED,	/* return once the decision is durable */
	RESIDENCY_COMMIT_APPLIED	/* return once every region has applied it */
} ResidencyCommitWait;

typedef enum ResidencyOnAway
{
	RESIDENCY_ON_AWAY_ERROR,	/* what needs a region that is away fails */
	RESIDENCY_ON_AWAY_SKIP		/* reading goes on without it, with a warning */
} ResidencyOnAway;

extern void residency_define_settings(void);

#endif							/* RESIDENCY_H */
