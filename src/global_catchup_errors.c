/*
 * global_catchup_errors.c
 *		Tells errors that are about a shipped record from those that are not.
 *
 * The first must not hold up other records; the others end the batch, which is tried again.
 */
#include "residency.h"

#include "global_backlog.h"

/*
 * Tells what an error has to do with the record.  What is not known to be about the server,
 * the session or the connection is the record's: triggers and checks of the user's may throw
 * whatever they like, and one row must not hold up all others for ever.
 */
ErrorMeaning
residency_error_meaning(int sqlerrcode)
{
	switch (sqlerrcode)
	{
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_OBJECT_IN_USE:
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
			return ERROR_BUSY;
		case ERRCODE_PROTOCOL_VIOLATION:	/* the table has other columns here */
			return ERROR_REFUSED;
		case ERRCODE_DATA_CORRUPTED:
		case ERRCODE_INDEX_CORRUPTED:
			return ERROR_ELSEWHERE;
	}
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'):	/* connection */
		case MAKE_SQLSTATE('2', '5', '0', '0', '0'):	/* state of the transaction */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* memory, disk, connections */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* cancelled, shut down */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* input and output */
			return ERROR_ELSEWHERE;
	}
	return ERROR_REFUSED;
}
