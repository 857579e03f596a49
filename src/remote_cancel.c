/*
 * remote_cancel.c
 *		Cancels what a region is still doing for a statement that was given up here.
 *
 * PQcancel would block on a region that has fallen silent, inside an abort callback.
 * So the cancel request is sent by hand: hello told us the key, the socket is
 * non-blocking, and nothing waits for it except the connection's next use, which
 * must not begin before the request has done its work: otherwise it might hit the
 * next statement.  The server closes the cancel connection when the signal is sent,
 * hence end-of-file is that sign.
 *
 * The request goes unencrypted, as that of PQcancel before PostgreSQL 17.
 */
#include "remote_internal.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libpq/pqcomm.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/fd.h"

/* longest wait for the three-way handshake, within the abort of a transaction */
#define CANCEL_CONNECT_MS 1000

/* longest wait for the other side to have acted, before the next transaction */
#define CANCEL_DONE_MS 5000

/* connects to the address that the connection has, without blocking for long */
static pgsocket
connect_like(PGconn *conn)
{
	struct sockaddr_storage addr;
	socklen_t	len = sizeof(addr);
	struct pollfd fd;
	int			error = 0;
	socklen_t	error_len = sizeof(error);
	pgsocket	sock;

	if (getpeername(PQsocket(conn), (struct sockaddr *) &addr, &len) != 0)
		return PGINVALID_SOCKET;
	sock = socket(addr.ss_family, SOCK_STREAM, 0);
	if (sock == PGINVALID_SOCKET)
		return PGINVALID_SOCKET;
	(void) fcntl(sock, F_SETFD, FD_CLOEXEC);
	if (!pg_set_noblock(sock))
		goto failed;
	if (connect(sock, (struct sockaddr *) &addr, len) != 0)
	{
		if (errno != EINPROGRESS && errno != EINTR)
			goto failed;
		fd.fd = sock;
		fd.events = POLLOUT;
		if (poll(&fd, 1, CANCEL_CONNECT_MS) != 1 ||
			getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &error_len) != 0 || error != 0)
			goto failed;
	}
	return sock;

failed:
	closesocket(sock);
	return PGINVALID_SOCKET;
}

/*
 * Asks the region to cancel what it is doing.  Never throws.  If the request cannot be
 * made the connection is closed instead, and the home ends the transaction when it
 * notices (client_connection_check_interval).
 */
void
residency_cancel_start(RemoteRegion *region)
{
	struct
	{
		uint32		length;
		CancelRequestPacket packet;
	}			request;

	if (region->cancel_socket != PGINVALID_SOCKET)
		return;
	if (region->cancel_key != 0 && !residency_connection_departed(region) && AcquireExternalFD())
	{
		region->cancel_socket = connect_like(region->conn);
		if (region->cancel_socket != PGINVALID_SOCKET)
		{
			request.length = pg_hton32((uint32) sizeof(request));
			request.packet.cancelRequestCode = (MsgType) pg_hton32(CANCEL_REQUEST_CODE);
			request.packet.backendPID = pg_hton32((uint32) PQbackendPID(region->conn));
			request.packet.cancelAuthCode = pg_hton32((uint32) region->cancel_key);
			if (send(region->cancel_socket, &request, sizeof(request), MSG_NOSIGNAL) == sizeof(request))
				return;
			closesocket(region->cancel_socket);
			region->cancel_socket = PGINVALID_SOCKET;
		}
		ReleaseExternalFD();
	}
	residency_pipeline_lost(region);
}

/*
 * Waits, interruptibly, until an earlier cancel request has been acted on.  After
 * CANCEL_DONE_MS the connection is given up.
 */
void
residency_cancel_finish(RemoteRegion *region)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CANCEL_DONE_MS);

	for (;;)
	{
		char		byte;
		ssize_t		n = recv(region->cancel_socket, &byte, 1, 0);
		long		left;

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
			break;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left <= 0 || residency_connection_departed(region))
		{
			residency_connection_close(region);
			residency_pipeline_abandon_lost(region);
			return;
		}
		(void) WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 region->cancel_socket, left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	closesocket(region->cancel_socket);
	region->cancel_socket = PGINVALID_SOCKET;
	ReleaseExternalFD();
}
