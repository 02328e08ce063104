/* Preloaded into a process, this kills it at the n-th call that changes a file system below one directory.
 *
 * `crash_at(root, n, network, error)` arms it: SIGKILL ends the process just before the n-th step from then on; n = 0
 * only counts. A write is two steps: one before it, and one when half of its bytes are written. With `network`, messages
 * to other processes are steps, too. With an `error`, nothing is killed: from the n-th step on, every call that can fail
 * with that errno does; on a full disk (ENOSPC), calls that free space still succeed.
 * `crash_steps()` returns the number of steps so far.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static long limit, steps;
static int with_network, failure;

void crash_at(const char *directory, long n, int network, int error)
{
    steps = 0;
    limit = n;
    with_network = network;
    failure = error;
    root_length = strlen(directory);
    memcpy(root, directory, root_length + 1);
}

long crash_steps(void) { return steps; }

/* The calling thread must not run on while the signal is on its way. */
static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int below(const char *path) { return root_length && !strncmp(path, root, root_length); }

static int descriptor_below(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int connected(int fd)
{
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    return with_network && !getpeername(fd, (struct sockaddr *)&peer, &size) && peer.ss_family != AF_UNIX;
}

static int at_below(int fd, const char *path)
{
    return path[0] == '/' || fd == AT_FDCWD ? below(path) : descriptor_below(fd);
}

/* What a call needs, so as to fail without it. */
enum { NOTHING, A_WRITABLE_DISK, ROOM };

/* Count a step and return whether the call fails there; or kill the process at this step. */
static int refused(int concerned, int need)
{
    if (!concerned) return 0;
    long now = __atomic_add_fetch(&steps, 1, __ATOMIC_SEQ_CST);
    if (!limit || now < limit) return 0;
    if (!failure && now == limit) die();
    if (!failure || need < (failure == ENOSPC ? ROOM : A_WRITABLE_DISK)) return 0;
    errno = failure;
    return 1;
}

/* Whether the process is to die with a write half done. */
static int torn(void) { return !failure && __atomic_add_fetch(&steps, 1, __ATOMIC_SEQ_CST) == limit; }

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

#define CALL(name, need, concerned, parameters, arguments, ...) \
    int name parameters                                         \
    {                                                           \
        if (refused(concerned, need)) return -1;                \
        return REAL(int, name, __VA_ARGS__) arguments;          \
    }

CALL(mkdir, ROOM, below(p), (const char *p, mode_t m), (p, m), const char *, mode_t)
CALL(mkdirat, ROOM, at_below(d, p), (int d, const char *p, mode_t m), (d, p, m), int, const char *, mode_t)
CALL(rmdir, A_WRITABLE_DISK, below(p), (const char *p), (p), const char *)
CALL(unlink, A_WRITABLE_DISK, below(p), (const char *p), (p), const char *)
CALL(unlinkat, A_WRITABLE_DISK, at_below(d, p), (int d, const char *p, int f), (d, p, f), int, const char *, int)
CALL(rename, ROOM, below(p) || below(q), (const char *p, const char *q), (p, q), const char *, const char *)
CALL(renameat, ROOM, at_below(d, p) || at_below(e, q), (int d, const char *p, int e, const char *q), (d, p, e, q),
     int, const char *, int, const char *)
CALL(renameat2, ROOM, at_below(d, p) || at_below(e, q), (int d, const char *p, int e, const char *q, unsigned f),
     (d, p, e, q, f), int, const char *, int, const char *, unsigned)
CALL(link, ROOM, below(q), (const char *p, const char *q), (p, q), const char *, const char *)
CALL(linkat, ROOM, at_below(e, q), (int d, const char *p, int e, const char *q, int f), (d, p, e, q, f),
     int, const char *, int, const char *, int)
CALL(symlink, ROOM, below(q), (const char *p, const char *q), (p, q), const char *, const char *)
CALL(symlinkat, ROOM, at_below(d, q), (const char *p, int d, const char *q), (p, d, q), const char *, int, const char *)
CALL(chmod, A_WRITABLE_DISK, below(p), (const char *p, mode_t m), (p, m), const char *, mode_t)
CALL(fchmod, A_WRITABLE_DISK, descriptor_below(d), (int d, mode_t m), (d, m), int, mode_t)
CALL(fchmodat, A_WRITABLE_DISK, at_below(d, p), (int d, const char *p, mode_t m, int f), (d, p, m, f),
     int, const char *, mode_t, int)
CALL(utimensat, A_WRITABLE_DISK, at_below(d, p), (int d, const char *p, const struct timespec t[2], int f),
     (d, p, t, f), int, const char *, const struct timespec *, int)
CALL(futimens, A_WRITABLE_DISK, descriptor_below(d), (int d, const struct timespec t[2]), (d, t),
     int, const struct timespec *)
CALL(truncate, ROOM, below(p), (const char *p, off_t n), (p, n), const char *, off_t)
CALL(truncate64, ROOM, below(p), (const char *p, off64_t n), (p, n), const char *, off64_t)
CALL(ftruncate, ROOM, descriptor_below(d), (int d, off_t n), (d, n), int, off_t)
CALL(ftruncate64, ROOM, descriptor_below(d), (int d, off64_t n), (d, n), int, off64_t)
CALL(fsync, NOTHING, descriptor_below(d), (int d), (d), int)
CALL(fdatasync, NOTHING, descriptor_below(d), (int d), (d), int)
CALL(syncfs, ROOM, descriptor_below(d), (int d), (d), int)
CALL(flock, NOTHING, descriptor_below(d), (int d, int o), (d, o), int, int)

#define OPEN_CALL(name, concerned, first, ...)                                    \
    {                                                                             \
        mode_t mode = 0;                                                          \
        if (flags & (O_CREAT | O_TMPFILE)) {                                      \
            va_list rest;                                                         \
            va_start(rest, flags);                                                \
            mode = va_arg(rest, mode_t);                                          \
            va_end(rest);                                                         \
        }                                                                         \
        if (refused((flags & (O_CREAT | O_TRUNC)) && (concerned), ROOM)) return -1; \
        return ((int (*)(__VA_ARGS__, ...))dlsym(RTLD_NEXT, #name)) first;        \
    }

int open(const char *p, int flags, ...) OPEN_CALL(open, below(p), (p, flags, mode), const char *, int)
int open64(const char *p, int flags, ...) OPEN_CALL(open64, below(p), (p, flags, mode), const char *, int)
int openat(int d, const char *p, int flags, ...)
    OPEN_CALL(openat, at_below(d, p), (d, p, flags, mode), int, const char *, int)
int openat64(int d, const char *p, int flags, ...)
    OPEN_CALL(openat64, at_below(d, p), (d, p, flags, mode), int, const char *, int)

#define WRITE_CALL(name, parameters, arguments, half, ...)   \
    ssize_t name parameters                                  \
    {                                                        \
        if (descriptor_below(d) || connected(d)) {           \
            if (refused(1, ROOM)) return -1;                 \
            if (torn()) {                                    \
                REAL(ssize_t, name, __VA_ARGS__) half;       \
                die();                                       \
            }                                                \
        }                                                    \
        return REAL(ssize_t, name, __VA_ARGS__) arguments;   \
    }

WRITE_CALL(write, (int d, const void *b, size_t n), (d, b, n), (d, b, n / 2), int, const void *, size_t)
WRITE_CALL(pwrite, (int d, const void *b, size_t n, off_t o), (d, b, n, o), (d, b, n / 2, o),
           int, const void *, size_t, off_t)
WRITE_CALL(pwrite64, (int d, const void *b, size_t n, off64_t o), (d, b, n, o), (d, b, n / 2, o),
           int, const void *, size_t, off64_t)
WRITE_CALL(writev, (int d, const struct iovec *v, int n), (d, v, n), (d, v, n / 2), int, const struct iovec *, int)
WRITE_CALL(sendfile, (int d, int s, off_t *o, size_t n), (d, s, o, n), (d, s, o, n / 2), int, int, off_t *, size_t)
WRITE_CALL(sendfile64, (int d, int s, off64_t *o, size_t n), (d, s, o, n), (d, s, o, n / 2),
           int, int, off64_t *, size_t)
WRITE_CALL(copy_file_range, (int s, off64_t *o, int d, off64_t *p, size_t n, unsigned f), (s, o, d, p, n, f),
           (s, o, d, p, n / 2, f), int, off64_t *, int, off64_t *, size_t, unsigned)
WRITE_CALL(send, (int d, const void *b, size_t n, int f), (d, b, n, f), (d, b, n / 2, f),
           int, const void *, size_t, int)
WRITE_CALL(sendmsg, (int d, const struct msghdr *m, int f), (d, m, f), (d, m, f), int, const struct msghdr *, int)
