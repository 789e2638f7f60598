/* Faults in a process's own system calls that change files: LD_PRELOAD it, then call fault_arm from Python.
   Built by `scripts/fault`: cc -shared -fPIC -O2 -o shim.so shim.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT = 0, KILL = -1, SHORT = -2 };

static long at, seen;
static int armed, action;

/* From now on count calls, and let the nth one fail: by SIGKILL, by writing less, or with an errno. */
void fault_arm(long nth, int how) { at = nth; action = how; seen = 0; armed = 1; }

/* Stop; return how many calls there were. */
long fault_disarm(void) { armed = 0; return seen; }

static int hit(void) {
  if (!armed || ++seen != at) return 0;
  if (action == KILL) kill(getpid(), SIGKILL);
  return action;
}

static int regular(int fd) {
  struct stat info;
  return armed && fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define FAIL(how) do { int h = (how); if (h > 0) { errno = h; return -1; } } while (0)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  int how = regular(fd) ? hit() : 0;
  FAIL(how);
  return real(fd, data, how == SHORT && size > 1 ? size / 2 : size);
}

#define COPIES(name, offset_type) \
  ssize_t name(int out, int in, offset_type *offset, size_t size) { \
    REAL(ssize_t, #name, int, int, offset_type *, size_t); \
    int how = regular(out) ? hit() : 0; \
    FAIL(how); \
    return real(out, in, offset, how == SHORT && size > 1 ? size / 2 : size); \
  }
COPIES(sendfile, off_t)
COPIES(sendfile64, off64_t)

#define ONE(name, type, arg) \
  int name(type arg) { REAL(int, #name, type); FAIL(hit()); return real(arg); }
ONE(fsync, int, fd)
ONE(fdatasync, int, fd)
ONE(unlink, const char *, path)
ONE(rmdir, const char *, path)

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  FAIL(hit());
  return real(from, to);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
  REAL(int, "renameat", int, const char *, int, const char *);
  FAIL(hit());
  return real(from_fd, from, to_fd, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags) {
  REAL(int, "renameat2", int, const char *, int, const char *, unsigned int);
  FAIL(hit());
  return real(from_fd, from, to_fd, to, flags);
}

int symlink(const char *from, const char *to) {
  REAL(int, "symlink", const char *, const char *);
  FAIL(hit());
  return real(from, to);
}

int unlinkat(int fd, const char *path, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  FAIL(hit());
  return real(fd, path, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  FAIL(hit());
  return real(path, mode);
}

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
      va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
      if (flags & O_CREAT) FAIL(hit()); \
    } \
    return real(path, flags, mode); \
  }
OPENS(open)
OPENS(open64)
