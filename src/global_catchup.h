/*
 * global_catchup.h
 *		What the files of catch-up share: see global_backlog.h for the map.
 */
#ifndef RESIDENCY_GLOBAL_CATCHUP_H
#define RESIDENCY_GLOBAL_CATCHUP_H

#include "residency.h"

/* global_catchup_progress.c */
extern void residency_progress_init(void);
extern void residency_progress_shipped(const char *region, int done, bool left);
extern void residency_progress_idle(const char *region);
extern void residency_progress_failed(const char *region, const char *error);

/* global_catchup_worker.c: main function of a worker, see worker.h */
extern void residency_catch_up_main(void);

#endif							/* RESIDENCY_GLOBAL_CATCHUP_H */
