/* Simulated power loss, preloaded: remembers what was written since the last sync of each file; at the N-th write or
 * sync it takes back some of that, as a disk without power would, and ends the process with status 99.
 *
 * Not modelled: lost directory entries, disks that lie about a sync, writes reordered across a sync. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512 };

struct undo {
    struct undo *older;
    ino_t inode;
    char path[PATH_MAX];
    off_t offset, old_size;
    size_t length, old_length;
    char *old;
};

static struct undo *newest;
static char directory[PATH_MAX];
static long calls, crash_at;
static int take_all_back;
static unsigned seed;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void power_loss_arm(const char *under, long at, int all, unsigned random_seed)
{
    snprintf(directory, sizeof directory, "%s/", under);
    calls = 0;
    crash_at = at;
    take_all_back = all;
    seed = random_seed;
}

long power_loss_calls(void) { return calls; }

static int watched(int fd, char *path)
{
    char link[64];
    if (!directory[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0)
        return 0;
    path[n] = 0;
    return strncmp(path, directory, strlen(directory)) == 0 && !(n > 4 && strcmp(path + n - 4, "-shm") == 0);
}

static void take_back(const struct undo *u)
{
    int fd = open(u->path, O_RDWR | O_CLOEXEC);
    int whole = take_all_back || rand_r(&seed) % 4 == 0;
    if (fd < 0)
        return;
    for (size_t at = 0; at < u->length; at += SECTOR) {
        size_t n = u->length - at < SECTOR ? u->length - at : SECTOR;
        char before[SECTOR] = {0};
        if (at < u->old_length)
            memcpy(before, u->old + at, u->old_length - at < n ? u->old_length - at : n);
        if (whole || rand_r(&seed) % 2)
            REAL(pwrite64)(fd, before, n, u->offset + (off_t)at);
    }
    if (take_all_back)
        REAL(ftruncate64)(fd, u->old_size);
    close(fd);
}

static void count_call(void)
{
    if (++calls != crash_at)
        return;
    for (const struct undo *u = newest; u; u = u->older)
        take_back(u);
    _exit(99);
}

static void remember(int fd, const char *path, off_t offset, size_t length)
{
    struct stat status;
    struct undo *u = calloc(1, sizeof *u);
    fstat(fd, &status);
    u->inode = status.st_ino;
    strcpy(u->path, path);
    u->offset = offset;
    u->length = length;
    u->old_size = status.st_size;
    u->old = malloc(length ? length : 1);
    ssize_t n = pread64(fd, u->old, length, offset);
    u->old_length = n > 0 ? (size_t)n : 0;
    u->older = newest;
    newest = u;
}

static void forget(int fd)
{
    struct stat status;
    fstat(fd, &status);
    for (struct undo **p = &newest; *p;) {
        struct undo *u = *p;
        if (u->inode == status.st_ino) {
            *p = u->older;
            free(u->old);
            free(u);
        } else {
            p = &u->older;
        }
    }
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset)
{
    char path[PATH_MAX];
    if (watched(fd, path)) {
        count_call();
        remember(fd, path, offset, n);
    }
    return REAL(pwrite64)(fd, data, n, offset);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return pwrite64(fd, data, n, offset); }

ssize_t write(int fd, const void *data, size_t n)
{
    char path[PATH_MAX];
    if (watched(fd, path)) {
        count_call();
        remember(fd, path, lseek(fd, 0, SEEK_CUR), n);
    }
    return REAL(write)(fd, data, n);
}

int ftruncate64(int fd, off64_t size)
{
    char path[PATH_MAX];
    struct stat status;
    if (watched(fd, path) && fstat(fd, &status) == 0) {
        count_call();
        if (size < status.st_size)
            remember(fd, path, size, (size_t)(status.st_size - size));
        else
            remember(fd, path, status.st_size, 0);
    }
    return REAL(ftruncate64)(fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fsync(int fd)
{
    char path[PATH_MAX];
    int is_watched = watched(fd, path);
    if (is_watched)
        count_call();
    int result = REAL(fsync)(fd);
    if (is_watched)
        forget(fd);
    return result;
}

int fdatasync(int fd)
{
    char path[PATH_MAX];
    int is_watched = watched(fd, path);
    if (is_watched)
        count_call();
    int result = REAL(fdatasync)(fd);
    if (is_watched)
        forget(fd);
    return result;
}
