/*
 * shared_memory.h
 *		Pieces of the server's shared memory.
 */
#ifndef RESIDENCY_SHARED_MEMORY_H
#define RESIDENCY_SHARED_MEMORY_H

#include "residency.h"

#include "storage/lwlock.h"

/*
 * Asks for a piece of shared memory, and for a lock of its own; called while the library is preloaded.
 *
 *	name	of the piece, and of the lock's tranche
 *	size	bytes, computed when the server's settings are known
 *	where	is set to the memory when the server starts, and to new memory when a crash has restarted it
 *	start	fills the memory, which is zero; runs once, or again after such a crash
 */
extern void residency_shared_memory(const char *name, Size (*size) (void), void **where,
									void (*start) (void *memory, LWLock *lock));

#endif							/* RESIDENCY_SHARED_MEMORY_H */
