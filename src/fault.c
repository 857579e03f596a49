/*
 * fault.c
 *		What happens at a fault point, see fault.h.  Empty unless built with FAULTS=1.
 *
 * Points lie behind the commit record and in callbacks, so nothing here allocates or
 * throws but the action "error", and errors of files are passed over: a fault that did not
 * happen is noticed by its test.
 */
#include "fault.h"

#ifdef RESIDENCY_FAULTS

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/guc.h"

typedef struct FaultPoint
{
	const char *name;
	bool		may_fail;		/* an ERROR is possible there */
} FaultPoint;

#define FAULT_ENTRY(name, may_fail) {#name, may_fail},
static const FaultPoint points[] = {RESIDENCY_FAULT_POINTS(FAULT_ENTRY)};
static const char *const actions[] = {"error", "terminate", "crash_backend", "crash_server", "hold", "stall"};

static char *fault_setting = NULL;
static char *fault_application = NULL;
static int	passes = 0;			/* of the armed point in this process, since the setting changed */

/* true if the text begins with the word and a colon or its end follows; *rest is behind */
static bool
begins_with(const char *text, const char *word, const char **rest)
{
	size_t		len = strlen(word);

	if (strncmp(text, word, len) != 0 || (text[len] != ':' && text[len] != '\0'))
		return false;
	*rest = text + len + (text[len] == ':');
	return true;
}

/* takes the setting apart; false if there is no such place or action, or an ERROR that
 * the place cannot take */
static bool
parse_fault(const char *text, const char **point, const char **action, int *nth)
{
	const char *rest;
	const char *tail;

	for (int i = 0; i < lengthof(points); i++)
	{
		if (!begins_with(text, points[i].name, &rest))
			continue;
		for (int a = 0; a < lengthof(actions); a++)
		{
			if (!begins_with(rest, actions[a], &tail))
				continue;
			*point = points[i].name;
			*action = actions[a];
			*nth = *tail == '\0' ? 1 : atoi(tail);
			return *nth > 0 && (a > 0 || points[i].may_fail);
		}
	}
	return false;
}

/* GUC check hook: a setting that never does anything would let a test pass for nothing */
static bool
check_fault(char **newval, void **extra, GucSource source)
{
	const char *point;
	const char *action;
	int			nth;

	if (*newval == NULL || **newval == '\0' || parse_fault(*newval, &point, &action, &nth))
		return true;
	GUC_check_errdetail("It must be name:action or name:action:n, as src/fault.h has them.");
	return false;
}

/* GUC assign hook: counting begins anew */
static void
assign_fault(const char *newval, void *extra)
{
	passes = 0;
}

/* true for the one process that may act; the others, and a server that has restarted,
 * find the file */
static bool
fire(const char *name)
{
	int			fd = open(RESIDENCY_FAULT_FIRED, O_CREAT | O_EXCL | O_WRONLY, 0600);
	ssize_t		written;

	if (fd < 0)
		return false;
	written = write(fd, name, strlen(name));
	(void) close(fd);
	return written > 0;
}

/* waits for the file that releases, or for an interrupt where one is allowed and wanted */
static void
hold(bool interruptible)
{
	while (access(RESIDENCY_FAULT_RELEASE, F_OK) != 0)
	{
		pg_usleep(5000L);
		/* with a lock in shared memory the others could not leave either, and nobody is there to end them */
		if (!PostmasterIsAlive() && InterruptHoldoffCount > 0)
			return;
		if (!PostmasterIsAlive())
			_exit(1);
		if (interruptible)
			CHECK_FOR_INTERRUPTS();
	}
}

/* does what the setting says if it names this place */
void
residency_fault(const char *name)
{
	const char *point;
	const char *action;
	int			nth;

	if (fault_setting == NULL || fault_setting[0] == '\0' ||
		!parse_fault(fault_setting, &point, &action, &nth) || strcmp(point, name) != 0)
		return;
	if (fault_application[0] != '\0' && strcmp(fault_application, application_name) != 0)
		return;
	if (++passes != nth || !fire(name))
		return;
	if (strcmp(action, "error") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("fault point \"%s\"", name)));
	else if (strcmp(action, "terminate") == 0)
	{
		(void) kill(MyProcPid, SIGTERM);
		CHECK_FOR_INTERRUPTS();
	}
	else if (strcmp(action, "hold") == 0 || strcmp(action, "stall") == 0)
		hold(strcmp(action, "hold") == 0);
	else
	{
		(void) kill(strcmp(action, "crash_server") == 0 ? PostmasterPid : MyProcPid,
					strcmp(action, "crash_server") == 0 ? SIGQUIT : SIGKILL);
		for (;;)
			(void) pause();
	}
}

/* defines the settings; called once, while the library is loaded */
void
residency_fault_init(void)
{
	DefineCustomStringVariable("residency.fault",
							   "Place where a test wants something to happen.",
							   NULL, &fault_setting, "", PGC_SUSET, 0,
							   check_fault, assign_fault, NULL);
	DefineCustomStringVariable("residency.fault_application",
							   "Only sessions of this application_name act at that place.",
							   NULL, &fault_application, "", PGC_SUSET, 0,
							   NULL, NULL, NULL);
}

#endif							/* RESIDENCY_FAULTS */
