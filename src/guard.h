/*
 * guard.h
 *		A home's side of a session that was opened by a gateway.
 */
#ifndef RESIDENCY_GUARD_H
#define RESIDENCY_GUARD_H

#include "residency.h"

#include "utils/array.h"

/* name of the gateway that opened this session, NULL in a session of a client */
extern const char *residency_session_gateway(void);

/* what this server tells others with hello, to be known from a copy of it (guard_instance.c) */
extern uint64 residency_guard_instance(void);

/* int4[]: processes of this database whose session serves that gateway, administration included */
extern ArrayType *residency_guard_sessions(const char *gateway);

/* installs the executor, planner and utility hooks (session role, statement ends,
 * error texts); saves and calls whatever was installed before */
extern void residency_guard_init(void);

#endif							/* RESIDENCY_GUARD_H */
