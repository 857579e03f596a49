/*
 * global.h
 *		Copies of global tables: capture at the gateway, apply in the other regions.
 */
#ifndef RESIDENCY_GLOBAL_H
#define RESIDENCY_GLOBAL_H

#include "residency.h"

/* registers the producer (remote.h) and the transaction callbacks of this part */
extern void residency_global_init(void);

#endif							/* RESIDENCY_GLOBAL_H */
