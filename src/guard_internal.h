/*
 * guard_internal.h
 *		What the guard_* files share.
 */
#ifndef RESIDENCY_GUARD_INTERNAL_H
#define RESIDENCY_GUARD_INTERNAL_H

#include "guard.h"

/* guard_errors.c: only in PG_CATCH; logs the error here and throws it without values */
extern void residency_guard_clean_error(const char *gateway) pg_attribute_noreturn();

/* guard_instance.c */
extern void residency_guard_serve(const char *gateway, uint64 instance, int64 incarnation);
extern void residency_guard_instance_init(void);

#endif							/* RESIDENCY_GUARD_INTERNAL_H */
