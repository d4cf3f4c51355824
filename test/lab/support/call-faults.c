/*
 * Preloaded into a process: one of its system calls on files of a folder fails, whether it is carried out or not.
 *
 *     CALL_FAULT_BELOW   the folder
 *     CALL_FAULT_LOG     file that gets a line for each such call: NAME PATH
 *     CALL_FAULT_NAME    name of the call that fails; "create" is an open that may make the file
 *     CALL_FAULT_NTH     which of its calls of that name, from 1
 *     CALL_FAULT_ERRNO   what it says
 *     CALL_FAULT_DONE    1: it is carried out all the same
 *     CALL_FAULT_OUTAGE  1: all calls after it, of any name, are not carried out and say EIO
 *
 * Here are the calls by which node's libuv changes names and files; all of them have several threads.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum verdict { AS_EVER, NOT_DONE, DONE };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int count;
static int is_outage;

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value == NULL ? "" : value;
}

static enum verdict judge(const char *name, const char *path) {
  const char *below = variable("CALL_FAULT_BELOW");
  enum verdict verdict = AS_EVER;
  int before = errno;
  if (*below == 0 || strncmp(path, below, strlen(below)) != 0) return AS_EVER;
  pthread_mutex_lock(&mutex);
  int log = REAL(open64)(variable("CALL_FAULT_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (log >= 0) {
    dprintf(log, "%s %s\n", name, path);
    close(log);
  }
  if (is_outage) {
    verdict = NOT_DONE;
  } else if (strcmp(name, variable("CALL_FAULT_NAME")) == 0 && ++count == atoi(variable("CALL_FAULT_NTH"))) {
    verdict = atoi(variable("CALL_FAULT_DONE")) == 1 ? DONE : NOT_DONE;
    is_outage = atoi(variable("CALL_FAULT_OUTAGE"));
  }
  pthread_mutex_unlock(&mutex);
  errno = before;
  return verdict;
}

static int failed(void) {
  errno = atoi(variable("CALL_FAULT_ERRNO"));
  return -1;
}

#define OF_PATH(name, path, parameters, arguments)    \
  int name parameters {                               \
    enum verdict verdict = judge(#name, path);        \
    if (verdict == NOT_DONE) return failed();         \
    int result = REAL(name) arguments;                \
    return verdict == DONE ? failed() : result;       \
  }

OF_PATH(link, to, (const char *from, const char *to), (from, to))
OF_PATH(rename, to, (const char *from, const char *to), (from, to))
OF_PATH(unlink, path, (const char *path), (path))

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  enum verdict verdict = judge(flags & O_CREAT ? "create" : "open", path);
  if (verdict == NOT_DONE) return failed();
  int fd = REAL(open64)(path, flags, mode);
  if (verdict == AS_EVER) return fd;
  close(fd);
  return failed();
}

/* The path of an open file. */
static const char *path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

#define OF_FILE(name)                                              \
  int name(int fd) {                                               \
    char path[PATH_MAX];                                           \
    enum verdict verdict = judge("sync", path_of(fd, path));       \
    if (verdict == NOT_DONE) return failed();                      \
    int result = REAL(name)(fd);                                   \
    return verdict == DONE ? failed() : result;                    \
  }

OF_FILE(fsync)
OF_FILE(fdatasync)
