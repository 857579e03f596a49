/*
 * commit_internal.h
 *		What the commit_* files share.
 */
#ifndef RESIDENCY_COMMIT_INTERNAL_H
#define RESIDENCY_COMMIT_INTERNAL_H

#include "remote_internal.h"

/* all gids begin with it */
#define RESIDENCY_GID_PREFIX "residency:"

/* added to the number of a part that is a batch of catch-up: three digits, else at most two */
#define RESIDENCY_GID_BATCH	100

/* commit_record.c */
extern int64 residency_commit_make_gids(RemoteRegion **regions, int n, uint64 xid);
extern void residency_commit_arrays(RemoteRegion **regions, int n, char **gids, char **names);
extern void residency_commit_record(int64 incarnation, uint64 xid, const char *gids, const char *names,
									const uint64 *finished, int nfinished);
extern void residency_commit_queue_participate(RemoteRegion *region, int64 incarnation, uint64 xid,
											   const char *gids, const char *names);
extern int	residency_spi_as_owner(const char *sql, int nargs, Oid *types, Datum *values,
								   bool read_only);

/* commit_doubt.c */
extern void residency_doubt_begin(int level);
extern void residency_doubt_end(int level);
extern void residency_doubt_translate_error(void);
extern int	residency_doubt_end_waits(void);
extern void residency_doubt_init(void);

/* commit_worker.c */
extern void residency_resolver_init(void);

/* commit_statement.c: true if this transaction may have notifications to send */
extern bool residency_commit_notifies(void);
extern void residency_commit_statement_init(void);

#endif							/* RESIDENCY_COMMIT_INTERNAL_H */
