/*
 * writer random|sequential MIB: a memory stressor. `random` changes a few bytes in pages picked at random; `sequential` rewrites
 * the memory from front to end with records that a program might keep: a running number, a time, a state, random bytes.
 * The writes done so far stand in the first 8 bytes of /tmp/operations.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t state = 88172645463325252u;

static uint64_t next(void)
{
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

struct record {
  uint64_t number, time;
  uint32_t state, length;
  uint8_t random[40];
};

static volatile uint64_t *open_counter(void)
{
  int file = open("/tmp/operations", O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ftruncate(file, 4096) != 0) exit(1);
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (page == MAP_FAILED) exit(1);
  return page;
}

int main(int argc, char **argv)
{
  if (argc != 3) return 2;
  size_t bytes = (size_t)atol(argv[2]) << 20;
  uint8_t *memory = malloc(bytes);
  if (memory == NULL) return 1;
  for (size_t at = 0; at < bytes; at += 8) *(uint64_t *)(memory + at) = next();
  volatile uint64_t *done = open_counter();
  struct timespec pause = { 0, 2000000 };
  uint64_t number = 0;
  if (strcmp(argv[1], "random") == 0) {
    for (;;) {
      for (int i = 0; i < 24; i++) {
        uint8_t *at = memory + next() % (bytes - 64);
        uint64_t value = next();
        /* A counter, a pointer, a short string. */
        memcpy(at, &value, 1 + value % 24 % 8);
        at[8] += 1;
      }
      *done += 24;
      nanosleep(&pause, NULL);
    }
  }
  for (size_t at = 0;; at = (at + sizeof(struct record)) % (bytes - sizeof(struct record))) {
    struct timespec now;
    struct record r = { .number = number++, .state = (uint32_t)(number % 5), .length = 40 };
    if (number % 512 == 0) nanosleep(&pause, NULL);
    clock_gettime(CLOCK_MONOTONIC, &now);
    r.time = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    for (int i = 0; i < 40; i += 8) *(uint64_t *)(r.random + i) = next();
    memcpy(memory + at / 8 * 8, &r, sizeof r);
    *done = number;
  }
}
