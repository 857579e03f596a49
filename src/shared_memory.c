/*
 * shared_memory.c
 *		Pieces of the server's shared memory: each part says what it needs, and the hooks
 *		that ask for it and hand it out are here.
 */
#include "shared_memory.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

/* more than there are callers */
#define MAX_PIECES 16

typedef struct SharedPiece
{
	const char *name;
	Size		(*size) (void);
	void	  **where;
	void		(*start) (void *memory, LWLock *lock);
} SharedPiece;

static struct
{
	int			n;
	SharedPiece pieces[MAX_PIECES];
	shmem_request_hook_type next_request;
	shmem_startup_hook_type next_startup;
} shared;

/* shmem_request_hook */
static void
request_memory(void)
{
	if (shared.next_request)
		shared.next_request();
	for (int i = 0; i < shared.n; i++)
	{
		RequestAddinShmemSpace(MAXALIGN(shared.pieces[i].size()));
		RequestNamedLWLockTranche(shared.pieces[i].name, 1);
	}
}

/* shmem_startup_hook */
static void
start_memory(void)
{
	if (shared.next_startup)
		shared.next_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	for (int i = 0; i < shared.n; i++)
	{
		SharedPiece *piece = &shared.pieces[i];
		bool		found;

		*piece->where = ShmemInitStruct(piece->name, piece->size(), &found);
		if (found)
			continue;
		memset(*piece->where, 0, piece->size());
		piece->start(*piece->where, &GetNamedLWLockTranche(piece->name)->lock);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* see shared_memory.h */
void
residency_shared_memory(const char *name, Size (*size) (void), void **where,
						void (*start) (void *memory, LWLock *lock))
{
	if (shared.n == 0)
	{
		shared.next_request = shmem_request_hook;
		shmem_request_hook = request_memory;
		shared.next_startup = shmem_startup_hook;
		shmem_startup_hook = start_memory;
	}
	if (shared.n >= MAX_PIECES)
		elog(FATAL, "too many pieces of shared memory");
	shared.pieces[shared.n++] = (SharedPiece) {name, size, where, start};
}
