/*
 * guard_internal.h
 *		What the guard_* files share.
 */
#ifndef RESIDENCY_GUARD_INTERNAL_H
#define RESIDENCY_GUARD_INTERNAL_H

#include "guard.h"

/* guard_errors.c: only in PG_CATCH; logs the error here and throws it without values */
extern void residency_guard_clean_error(const char *gateway) pg_attribute_noreturn();

#endif							/* RESIDENCY_GUARD_INTERNAL_H */
