/* Preloaded into a program: it dies just before its N-th change of the file system.
   CRASH_AT=N        kill -9 before change N
   CRASH_COUNT=FILE  at the end, how many changes there were
   A change is: opening to create or cut, writing to a file, renaming, removing, making a folder, waiting for the disk. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long changes;

static void change(void) {
  const char *at = getenv("CRASH_AT");
  if (__sync_add_and_fetch(&changes, 1) == (at ? atol(at) : 0)) kill(getpid(), SIGKILL);
}

static int is_file(int fd) {
  struct stat s;
  return fd > 2 && !fstat(fd, &s) && S_ISREG(s.st_mode);
}

__attribute__((destructor)) static void end(void) {
  const char *path = getenv("CRASH_COUNT");
  if (!path) return;
  char text[32];
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
  int n = snprintf(text, sizeof text, "%ld", changes);
  if (syscall(SYS_write, fd, text, n) == n) syscall(SYS_close, fd);
}

static int opening(int folder, const char *path, int flags, mode_t mode) {
  if (flags & (O_CREAT | O_TRUNC)) change();
  return syscall(SYS_openat, folder, path, flags, mode);
}

#define MODE va_list list; va_start(list, flags); mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0; va_end(list);
int open(const char *path, int flags, ...) { MODE return opening(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opening(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return opening(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opening(folder, path, flags | O_LARGEFILE, mode); }

ssize_t write(int fd, const void *bytes, size_t n) {
  if (is_file(fd)) change();
  return syscall(SYS_write, fd, bytes, n);
}

int fsync(int fd) {
  if (is_file(fd)) change();
  return syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to) {
  change();
  return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
  change();
  return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}

int unlink(const char *path) {
  change();
  return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int unlinkat(int folder, const char *path, int flags) {
  change();
  return syscall(SYS_unlinkat, folder, path, flags);
}

int rmdir(const char *path) {
  change();
  return syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

int mkdir(const char *path, mode_t mode) {
  change();
  return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
