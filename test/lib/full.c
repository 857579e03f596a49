/*
 * full.c
 *		A disk that fills up: loaded into a server by LD_PRELOAD.
 *
 * While the file that FULL_DISK names exists, a write that would make a file longer fails with
 * ENOSPC, if the file's path contains what FULL_DISK_FOR names ("/base/", "/pg_wal/").
 * Existing blocks can still be written, as on a real disk.  Only the calls by which
 * PostgreSQL writes tables and WAL are covered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* would this write make a file longer that is on the full disk? */
static int
is_full(int fd, off_t end)
{
	const char *flag = getenv("FULL_DISK");
	const char *part = getenv("FULL_DISK_FOR");
	char		link[64],
				path[4096];
	struct stat st;
	ssize_t		n;

	if (flag == NULL || part == NULL || access(flag, F_OK) != 0)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n <= 0)
		return 0;
	path[n] = '\0';
	return strstr(path, part) != NULL && fstat(fd, &st) == 0 && end > st.st_size;
}

/* each call: the disk's answer, or the C library's */
#define GUARDED(result, name, parameters, arguments, end) \
	result name parameters \
	{ \
		static result (*next) parameters; \
		int			saved = errno; \
		if (next == NULL) \
			next = (result (*) parameters) dlsym(RTLD_NEXT, #name); \
		if (is_full(fd, end)) \
		{ \
			errno = ENOSPC; \
			return -1; \
		} \
		errno = saved; \
		return next arguments; \
	}

GUARDED(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), at + (off_t) size)
GUARDED(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), at + (off_t) size)
GUARDED(ssize_t, pwritev, (int fd, const struct iovec *data, int n, off_t at), (fd, data, n, at), at + 1)
GUARDED(ssize_t, pwritev64, (int fd, const struct iovec *data, int n, off_t at), (fd, data, n, at), at + 1)
