/* A disk that loses power, or fails, for a process under test: LD_PRELOAD it.
 *
 * TEST_DISK_ROOT    the directory that is on this disk, an absolute path without links
 * TEST_DISK_SYNCED  a directory that receives what a power cut would leave; may be unset
 * TEST_DISK_FAULT   a file whose first byte says what fails from now on; may be unset:
 *                       '-' nothing, 'f' writes with ENOSPC, 'e' writes with EIO, 's' syncs with EIO,
 *                       't' writes to files in a directory named "tables" with EIO
 *
 * What a power cut leaves is what POSIX promises, and no more. A file has the bytes and the length that
 * it had when it was last synced (fsync, fdatasync): what was written since is gone. A directory has the
 * names that it had when it was last synced itself: a file that was synced is lost if its name was not,
 * and a name that was synced before its file leads to an empty file. Renames and removals are changes of
 * directories like any other. What was there when the process began is on disk.
 *
 * The model rests on the calls that it sees: a write that goes round it is never seen as synced, so that
 * a hole in the model makes the test fail, not pass. Ways to write that it does not know (shared writable
 * maps, copies inside the kernel, syncs of whole file systems) end the process with a message.
 *
 * In TEST_DISK_SYNCED: `f-KEY` the content of a file, `d-KEY` a directory, a line an entry: `f` or `d`,
 * KEY, name; `root` the key of the root. A KEY is an inode with its time of birth, since a number is used
 * again. Nothing is really synced: tests end no machines.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct {
    char text[64];
} file_key;

/* What was written to a file since it was last synced. */
typedef struct dirty {
    file_key key;
    off_t from, to; /* bytes, if from < to */
    off_t cut;      /* the least length that it had meanwhile; -1 if it never shrank */
    struct dirty *next;
} dirty;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static dirty *dirties;
static char root[PATH_MAX], synced[PATH_MAX];
static const volatile char *fault;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_ftruncate)(int, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static int (*real_fsync)(int);
static ssize_t (*real_copy)(int, off64_t *, int, off64_t *, size_t, unsigned);

static void die(const char *what, const char *path) {
    dprintf(2, "disk: %s: %s: %s\n", what, path, strerror(errno));
    abort();
}

static void key_of(int fd, const char *path, int flags, file_key *key, struct statx *stat) {
    if (statx(fd, path, flags, STATX_BASIC_STATS | STATX_BTIME, stat) != 0) {
        if (errno != ENOENT) die("statx", path);
        memset(stat, 0, sizeof *stat);
        snprintf(key->text, sizeof key->text, "gone");
        return;
    }
    if (!(stat->stx_mask & STATX_BTIME)) die("this file system keeps no time of birth", path);
    snprintf(key->text, sizeof key->text, "%llu-%lld-%u", (unsigned long long)stat->stx_ino,
             (long long)stat->stx_btime.tv_sec, stat->stx_btime.tv_nsec);
}

enum { FOREIGN, OURS, TABLE };

/* Whether a descriptor is of a file or directory below the root, and of a table. */
static int ours(int fd, mode_t *mode) {
    struct stat stat;
    if (root[0] == 0 || fstat(fd, &stat) != 0) return FOREIGN;
    if (!S_ISREG(stat.st_mode) && !S_ISDIR(stat.st_mode)) return FOREIGN;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) die("readlink", link);
    path[length] = 0;
    size_t prefix = strlen(root);
    if (strncmp(path, root, prefix) != 0 || (path[prefix] != '/' && path[prefix] != 0)) return FOREIGN;
    if (mode) *mode = stat.st_mode;
    return strstr(path, "/tables/") ? TABLE : OURS;
}

static int fails(int what, const char *kinds, int *error) {
    char now = fault ? *fault : '-';
    if (now == 't' ? what != TABLE : now == '-' || !strchr(kinds, now)) return 0;
    *error = now == 'f' ? ENOSPC : EIO;
    return 1;
}

static dirty *dirty_of(const file_key *key) {
    for (dirty *d = dirties; d; d = d->next)
        if (strcmp(d->key.text, key->text) == 0) return d;
    dirty *d = calloc(1, sizeof *d);
    if (!d) die("calloc", "");
    d->key = *key;
    d->cut = -1;
    d->next = dirties;
    return dirties = d;
}

static void wrote(int fd, off_t from, off_t to) {
    file_key key;
    struct statx stat;
    if (synced[0] == 0 || from >= to) return;
    key_of(fd, "", AT_EMPTY_PATH, &key, &stat);
    pthread_mutex_lock(&lock);
    dirty *d = dirty_of(&key);
    if (d->from >= d->to) {
        d->from = from;
        d->to = to;
    } else {
        if (from < d->from) d->from = from;
        if (to > d->to) d->to = to;
    }
    pthread_mutex_unlock(&lock);
}

/* Holes stay holes: where a file shrank and grew again, its copy was cut before. */
static void copy_range(int from, int to, off_t at, off_t end) {
    static char buffer[1 << 20];
    while (at < end) {
        at = lseek(from, at, SEEK_DATA);
        if (at < 0 || at >= end) return;
        off_t hole = lseek(from, at, SEEK_HOLE);
        if (hole < 0 || hole > end) hole = end;
        while (at < hole) {
            size_t n = (size_t)(hole - at) < sizeof buffer ? (size_t)(hole - at) : sizeof buffer;
            ssize_t got = pread(from, buffer, n, at);
            if (got < 0) die("pread", "a file");
            if (got == 0) return; /* cut meanwhile */
            if (real_pwrite(to, buffer, (size_t)got, at) != got) die("pwrite", synced);
            at += got;
        }
    }
}

/* With the lock held. */
static void sync_file(int fd, int all) {
    file_key key;
    struct statx stat;
    char path[PATH_MAX + 80], self[64];
    key_of(fd, "", AT_EMPTY_PATH, &key, &stat);
    dirty *d = dirty_of(&key);
    snprintf(path, sizeof path, "%s/f-%s", synced, key.text);
    int to = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    /* The descriptor that is synced need not be one that can be read. */
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    int from = open(self, O_RDONLY | O_CLOEXEC);
    if (to < 0 || from < 0) die("open", path);
    if (d->cut >= 0) {
        struct stat old;
        if (fstat(to, &old) != 0) die("fstat", path);
        if (old.st_size > d->cut && real_ftruncate(to, d->cut) != 0) die("ftruncate", path);
    }
    off_t end = (off_t)stat.stx_size;
    if (real_ftruncate(to, end) != 0) die("ftruncate", path);
    if (all) copy_range(from, to, 0, end);
    else if (d->from < d->to) copy_range(from, to, d->from, d->to < end ? d->to : end);
    d->from = d->to = 0;
    d->cut = -1;
    close(from);
    close(to);
}

/* With the lock held. Writes what a directory lists; of a tree also everything below. */
static void sync_dir(const char *path, int tree) {
    file_key key;
    struct statx stat;
    char fresh[PATH_MAX + 80], place[PATH_MAX + 80], below[PATH_MAX];
    key_of(AT_FDCWD, path, 0, &key, &stat);
    snprintf(place, sizeof place, "%s/d-%s", synced, key.text);
    snprintf(fresh, sizeof fresh, "%s/fresh-%s", synced, key.text);
    FILE *out = fopen(fresh, "we");
    DIR *dir = opendir(path);
    if (!out || !dir) die("opendir", path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        file_key child;
        struct statx what;
        key_of(dirfd(dir), entry->d_name, AT_SYMLINK_NOFOLLOW, &child, &what);
        if (strcmp(child.text, "gone") == 0) continue;
        fprintf(out, "%c %s %s\n", S_ISDIR(what.stx_mode) ? 'd' : 'f', child.text, entry->d_name);
        if (!tree) continue;
        if (snprintf(below, sizeof below, "%s/%s", path, entry->d_name) >= (int)sizeof below) die("too long", path);
        if (S_ISDIR(what.stx_mode)) {
            sync_dir(below, 1);
        } else {
            int fd = open(below, O_RDONLY | O_CLOEXEC);
            if (fd < 0) die("open", below);
            sync_file(fd, 1);
            close(fd);
        }
    }
    closedir(dir);
    if (fclose(out) != 0 || rename(fresh, place) != 0) die("rename", place);
}

static int sync_fd(int fd) {
    mode_t mode;
    int error;
    int what = ours(fd, &mode);
    if (what == FOREIGN) return real_fsync(fd);
    if (fails(what, "fes", &error)) {
        errno = error;
        return -1;
    }
    if (synced[0] == 0) return 0;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(mode)) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length < 0) die("readlink", link);
        path[length] = 0;
        sync_dir(path, 0);
    } else {
        sync_file(fd, 0);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fallocate = dlsym(RTLD_NEXT, "fallocate64");
    real_mmap = dlsym(RTLD_NEXT, "mmap64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_copy = dlsym(RTLD_NEXT, "copy_file_range");
    const char *at = getenv("TEST_DISK_ROOT"), *to = getenv("TEST_DISK_SYNCED"),
               *control = getenv("TEST_DISK_FAULT");
    if (!at) return;
    if (control) {
        int fd = open(control, O_RDONLY | O_CLOEXEC);
        if (fd < 0) die("open", control);
        fault = real_mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
        if (fault == MAP_FAILED) die("mmap", control);
        close(fd);
    }
    if (to) {
        char path[PATH_MAX];
        file_key key;
        struct statx stat;
        snprintf(synced, sizeof synced, "%s", to);
        sync_dir(at, 1);
        key_of(AT_FDCWD, at, 0, &key, &stat);
        snprintf(path, sizeof path, "%s/root", to);
        FILE *out = fopen(path, "we");
        if (!out) die("open", path);
        fputs(key.text, out);
        if (fclose(out) != 0) die("write", path);
    }
    snprintf(root, sizeof root, "%s", at);
}

/* The calls that write. */

#define REFUSE                                                                                                         \
    int error;                                                                                                         \
    if (fails(what, "fe", &error)) {                                                                                         \
        errno = error;                                                                                                 \
        return -1;                                                                                                     \
    }

static ssize_t at_end(int fd, ssize_t done) {
    if (done > 0) {
        off_t end = lseek(fd, 0, SEEK_CUR);
        wrote(fd, end - done, end);
    }
    return done;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    int what = ours(fd, NULL);
    if (what == FOREIGN) return real_write(fd, bytes, n);
    REFUSE
    return at_end(fd, real_write(fd, bytes, n));
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (!real_writev) real_writev = dlsym(RTLD_NEXT, "writev");
    int what = ours(fd, NULL);
    if (what == FOREIGN) return real_writev(fd, parts, n);
    REFUSE
    return at_end(fd, real_writev(fd, parts, n));
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    if (!real_pwrite) real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    int what = ours(fd, NULL);
    if (what == FOREIGN) return real_pwrite(fd, bytes, n, at);
    REFUSE
    ssize_t done = real_pwrite(fd, bytes, n, at);
    if (done > 0) wrote(fd, at, at + done);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwrite64(fd, bytes, n, at); }

int ftruncate64(int fd, off64_t length) {
    if (!real_ftruncate) real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    int what = ours(fd, NULL);
    if (what == FOREIGN) return real_ftruncate(fd, length);
    REFUSE
    int done = real_ftruncate(fd, length);
    if (done == 0 && synced[0]) {
        file_key key;
        struct statx stat;
        key_of(fd, "", AT_EMPTY_PATH, &key, &stat);
        pthread_mutex_lock(&lock);
        dirty *d = dirty_of(&key);
        if (d->cut < 0 || length < d->cut) d->cut = length;
        pthread_mutex_unlock(&lock);
    }
    return done;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fallocate64(int fd, int mode, off64_t from, off64_t length) {
    if (ours(fd, NULL)) die("fallocate is not modelled", root);
    return real_fallocate(fd, mode, from, length);
}

int fallocate(int fd, int mode, off_t from, off_t length) { return fallocate64(fd, mode, from, length); }

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags) {
    if (ours(out, NULL)) die("copy_file_range is not modelled", root);
    return real_copy(in, from, out, to, n, flags);
}

void *mmap64(void *place, size_t n, int protection, int flags, int fd, off64_t at) {
    if (!real_mmap) real_mmap = dlsym(RTLD_NEXT, "mmap64");
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && ours(fd, NULL))
        die("a shared writable map is not modelled", root);
    return real_mmap(place, n, protection, flags, fd, at);
}

void *mmap(void *place, size_t n, int protection, int flags, int fd, off_t at) {
    return mmap64(place, n, protection, flags, fd, at);
}

int fsync(int fd) { return sync_fd(fd); }
int fdatasync(int fd) { return sync_fd(fd); }

int syncfs(int fd) {
    (void)fd;
    die("syncfs is not modelled", root);
    return -1;
}

int sync_file_range(int fd, off64_t at, off64_t n, unsigned flags) {
    (void)fd, (void)at, (void)n, (void)flags;
    die("sync_file_range is not modelled", root);
    return -1;
}
