/*
 * fault.h
 *		Named places where a test lets a process die, fail or stop.
 *
 * Compiled in by FAULTS=1 only: a server for users has neither the code nor the setting.
 * The superuser's setting residency.fault = 'name:action', or 'name:action:n' for the nth
 * time that a process comes by, arms one place in all sessions that have the setting.
 * The action is one of
 *
 *		error			an ERROR; refused for places where one would be a PANIC
 *		terminate		this session ends, as if by pg_terminate_backend()
 *		crash_backend	this process is killed, and the server restarts all others
 *		crash_server	the server stops at once and stays down
 *		hold			this process waits for the file RESIDENCY_FAULT_RELEASE
 *		stall			the same, but deaf to interrupts, as one that gets no CPU: it does not
 *						notice meanwhile that whoever it serves has vanished
 *
 * With residency.fault_application only sessions of that application_name act: those that
 * gateways open for their clients are called "residency", and workers of other
 * regions, which prepare and commit too, are not.
 *
 * A fault acts once: the file RESIDENCY_FAULT_FIRED, written into the data directory
 * beforehand, disarms the server until somebody removes it.  So a server that restarts
 * does not run into the same fault again, and a test can see that it did run into it.
 */
#ifndef RESIDENCY_FAULT_H
#define RESIDENCY_FAULT_H

#include "residency.h"

/* in the data directory; the first holds the name of the place */
#define RESIDENCY_FAULT_FIRED "residency_fault_fired"
#define RESIDENCY_FAULT_RELEASE "residency_fault_release"

/*
 * The places: the arrows of the diagram at the head of commit_protocol.c, in order.
 * POINT(name, can an ERROR be raised here)
 */
#define RESIDENCY_FAULT_POINTS(POINT) \
	/* at the gateway */ \
	POINT(commit_begins, true)		/* nothing about the commit is written or sent */ \
	POINT(recorded, true)			/* decision row written, not committed; nothing sent */ \
	POINT(prepare_sent, true)		/* PREPARE is on its way to all regions */ \
	POINT(one_prepared, true)		/* the first region's answer is there */ \
	POINT(prepared, true)			/* all regions are prepared, nothing is decided */ \
	POINT(aborting, false)			/* a region failed: ROLLBACK PREPARED comes next */ \
	POINT(decided, false)			/* the commit record is on disk; nobody knows */ \
	POINT(one_told, false)			/* COMMIT PREPARED is sent to the first region only */ \
	POINT(all_told, false)			/* COMMIT PREPARED is on its way to all regions */ \
	POINT(applied, false)			/* all have answered, the client knows nothing yet */ \
	POINT(alone_sent, true)			/* one region alone: COMMIT is on its way */ \
	/* at a participant */ \
	POINT(part_traced, true)		/* the trace is written, not prepared */ \
	POINT(part_prepares, true)		/* PREPARE TRANSACTION begins */ \
	POINT(part_prepared, false)		/* prepared and on disk, not answered */ \
	POINT(part_applies, true)		/* COMMIT PREPARED begins */ \
	POINT(part_applied, false)		/* committed, not answered */ \
	POINT(part_rolls_back, true)	/* ROLLBACK PREPARED begins */ \
	POINT(part_rolled_back, false)	/* rolled back, not answered */ \
	POINT(part_commits_alone, false)	/* one region alone: committed, not answered */ \
	/* in the resolver, at the gateway */ \
	POINT(resolver_knows, true)		/* verdicts are made, nobody is told */ \
	POINT(resolver_told, true)		/* all that answer have been told */ \
	POINT(resolver_forgets, true)	/* traces there are being deleted, decisions here are next */ \
	/* in the resolver, at a participant whose gateway is gone */ \
	POINT(peer_knows, true)			/* another participant, or the operator, knows the outcome */ \
	POINT(peer_finished, true)		/* the part here is finished, which is not noted */ \
	POINT(health_changes, false)	/* health: the lock of all states is held */ \
	/* add_region(), at the gateway; its commit has the points above */ \
	POINT(join_begins, true)		/* all is checked, nothing is on record or changed */ \
	POINT(join_recorded, true)		/* the attempt is on record, nothing is changed */ \
	POINT(join_forgets, true)		/* resolver: the newcomer is finished, the record is not deleted */ \
	/* catch-up: at a row's home, and at the region that was away */ \
	POINT(ship_begins, true)		/* notes and rows are locked, nothing is sent */ \
	POINT(ship_answered, true)		/* the region has the rows, uncommitted; the notes stay */ \
	POINT(shipped, false)			/* the batch is committed */ \
	POINT(flip_locked, false)		/* nobody can leave the region out now */ \
	POINT(flipped, false)			/* the region is up; the lock is not given back */ \
	POINT(part_ships, true)			/* rows have come, none is applied */ \
	POINT(part_shipped, true)		/* all are applied, not answered */

#ifdef RESIDENCY_FAULTS
#define RESIDENCY_FAULT(name) residency_fault(#name)
extern void residency_fault(const char *name);
extern void residency_fault_init(void);
#else
#define RESIDENCY_FAULT(name) ((void) 0)
#define residency_fault_init() ((void) 0)
#endif

#endif							/* RESIDENCY_FAULT_H */
