/*
 * remote_error.h
 *		An error of another region between its arrival and the statement that it belongs to.
 */
#ifndef RESIDENCY_REMOTE_ERROR_H
#define RESIDENCY_REMOTE_ERROR_H

#include "residency.h"

/*
 * An error of a region, kept until it can be thrown in the right statement.  Of fixed
 * size, because it may be stored after the commit record, where nothing may fail.
 */
typedef struct RemoteError
{
	int			sqlstate;
	char		message[512];
	char		hint[256];		/* "" if none; so all that follow */
	char		schema[NAMEDATALEN];
	char		table[NAMEDATALEN];
	char		column[NAMEDATALEN];
	char		datatype[NAMEDATALEN];
	char		constraint[NAMEDATALEN];
} RemoteError;

#endif							/* RESIDENCY_REMOTE_ERROR_H */
