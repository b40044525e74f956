/* libhccl.so: collectives between processes of one host, through shared memory.
 *
 * A group shares one nameless file (memfd), which the other ranks open through /proc: nothing is left behind,
 * however a process ends. Each rank has a slot in it. A collective is a task of its stream: write the own slot, meet,
 * read the others' slots, meet again, and so on for as many pieces as it takes. All ranks reduce in the order of the
 * ranks, so all have the same bits. A rank whose process has gone ends the others within a second.
 *
 * The header of HCCL in torch_npu's wheel is C++, so its types are written out below.
 */
#define _GNU_SOURCE
#include "emulated_npu.h"
#include "halves.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLOT_BYTES ((size_t)1 << 20)
#define MOST_RANKS 64
#define NAME_BYTES 128
#define ROOT_INFO_BYTES 4108
#define JOIN_SECONDS 60

enum { SUCCESS = 0, BAD_ARGUMENT = 1, NOT_SUPPORTED = 5, SYSTEM_CALL_FAILED = 8, TIMED_OUT = 9 };

enum reduction { SUM, PRODUCT, MAXIMUM, MINIMUM };

enum type { INT8, INT16, INT32, FP16, FP32, INT64, UINT64, UINT8, UINT16, UINT32, FP64, BF16, TYPES };

static const size_t size_of[TYPES] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};

struct shared {
  uint32_t arrived;
  uint32_t round; /* how often all ranks have met; a futex */
  int32_t pids[MOST_RANKS];
  char slots[] __attribute__((aligned(4096)));
};

struct group {
  struct shared *shared;
  uint32_t ranks;
  uint32_t rank;
  char name[NAME_BYTES];
};

/* ---- meeting ----------------------------------------------------------------------------------------------- */

/* A process that has ended but was not waited for yet is gone too. */
static bool is_gone(int32_t pid) {
  char path[64], text[512] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return true;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return true;
  const char *name_end = strrchr(text, ')');
  return name_end && (name_end[2] == 'Z' || name_end[2] == 'X');
}

static void end_if_a_peer_is_gone(struct group *group) {
  for (uint32_t rank = 0; rank < group->ranks; rank++) {
    int32_t pid = __atomic_load_n(&group->shared->pids[rank], __ATOMIC_ACQUIRE);
    if (!pid || !is_gone(pid)) continue;
    fprintf(stderr, "emulated HCCL: rank %u (process %d) has gone, so rank %u ends\n", rank, pid, group->rank);
    _exit(1);
  }
}

static void meet(struct group *group) {
  struct shared *shared = group->shared;
  uint32_t round = __atomic_load_n(&shared->round, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&shared->arrived, 1, __ATOMIC_ACQ_REL) == group->ranks) {
    __atomic_store_n(&shared->arrived, 0, __ATOMIC_RELEASE);
    __atomic_add_fetch(&shared->round, 1, __ATOMIC_ACQ_REL);
    syscall(SYS_futex, &shared->round, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    return;
  }
  const struct timespec patience = {.tv_nsec = 200000000};
  while (__atomic_load_n(&shared->round, __ATOMIC_ACQUIRE) == round) {
    long result = syscall(SYS_futex, &shared->round, FUTEX_WAIT, round, &patience, NULL, 0);
    bool waited_long = result < 0 && errno == ETIMEDOUT;
    if (waited_long && __atomic_load_n(&shared->round, __ATOMIC_ACQUIRE) == round) end_if_a_peer_is_gone(group);
  }
}

/* ---- groups ------------------------------------------------------------------------------------------------ */

int HcclGetRootInfo(char *info) {
  int file = memfd_create("emulated-hccl", MFD_CLOEXEC);
  if (file < 0) return SYSTEM_CALL_FAILED;
  memset(info, 0, ROOT_INFO_BYTES);
  snprintf(info, NAME_BYTES, "/proc/%d/fd/%d", getpid(), file); /* kept open as long as this process lives */
  return SUCCESS;
}

int HcclCommInitRootInfo(uint32_t ranks, const char *info, uint32_t rank, struct group **result) {
  if (ranks > MOST_RANKS || rank >= ranks) return BAD_ARGUMENT;
  size_t bytes = sizeof(struct shared) + ranks * SLOT_BYTES;
  int file = open(info, O_RDWR | O_CLOEXEC);
  if (file < 0 || (rank == 0 && ftruncate(file, (off_t)bytes))) return SYSTEM_CALL_FAILED;
  for (int tries = 0; lseek(file, 0, SEEK_END) < (off_t)bytes; tries++) {
    if (tries == JOIN_SECONDS * 1000) return TIMED_OUT;
    usleep(1000);
  }
  struct group *group = calloc(1, sizeof *group);
  *group = (struct group){.ranks = ranks, .rank = rank};
  snprintf(group->name, sizeof group->name, "%s", info);
  group->shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (group->shared == MAP_FAILED) return SYSTEM_CALL_FAILED;
  __atomic_store_n(&group->shared->pids[rank], getpid(), __ATOMIC_RELEASE);
  meet(group);
  *result = group;
  return SUCCESS;
}

int HcclCommInitRootInfoConfig(uint32_t ranks, const char *info, uint32_t rank, const void *config,
                               struct group **result) {
  (void)config;
  return HcclCommInitRootInfo(ranks, info, rank, result);
}

/* What is mapped stays mapped: tasks may still be queued. */
int HcclCommDestroy(struct group *group) {
  (void)group;
  return SUCCESS;
}

int HcclGetCommAsyncError(struct group *group, int *error) {
  (void)group;
  *error = SUCCESS;
  return SUCCESS;
}

const char *HcclGetErrorString(int code) {
  static __thread char text[64];
  snprintf(text, sizeof text, "error %d of the emulated HCCL", code);
  return text;
}

int HcclGetCommName(struct group *group, char *name) {
  strcpy(name, group->name);
  return SUCCESS;
}

int HcclGetRankSize(struct group *group, uint32_t *ranks) {
  *ranks = group->ranks;
  return SUCCESS;
}

int HcclGetRankId(struct group *group, uint32_t *rank) {
  *rank = group->rank;
  return SUCCESS;
}

int HcclSetConfig(int key, int value) {
  (void)key, (void)value;
  return SUCCESS;
}

int HcclGetConfig(int key, int *value) {
  (void)key;
  *value = 0;
  return SUCCESS;
}

uint32_t HcclGetCommConfigCapability(void) { return 0; }

/* ---- reducing ---------------------------------------------------------------------------------------------- */

/* One reduction of two numbers, of whatever type. */
#define REDUCED(a, b, how)                      \
  ((how) == SUM       ? (a) + (b)               \
   : (how) == PRODUCT ? (a) * (b)               \
   : (how) == MAXIMUM ? ((a) > (b) ? (a) : (b)) \
                      : ((a) < (b) ? (a) : (b)))

#define REDUCE_ARRAY(TYPE)                                                                \
  do {                                                                                    \
    TYPE *into = result;                                                                  \
    const TYPE *other = slot;                                                             \
    for (size_t i = 0; i < count; i++) into[i] = (TYPE)REDUCED(into[i], other[i], how);   \
  } while (0)

static void reduce(void *result, const void *slot, size_t count, enum type type, enum reduction how) {
  switch (type) {
    case INT8: REDUCE_ARRAY(int8_t); break;
    case INT16: REDUCE_ARRAY(int16_t); break;
    case INT32: REDUCE_ARRAY(int32_t); break;
    case INT64: REDUCE_ARRAY(int64_t); break;
    case UINT8: REDUCE_ARRAY(uint8_t); break;
    case UINT16: REDUCE_ARRAY(uint16_t); break;
    case UINT32: REDUCE_ARRAY(uint32_t); break;
    case UINT64: REDUCE_ARRAY(uint64_t); break;
    case FP32: REDUCE_ARRAY(float); break;
    case FP64: REDUCE_ARRAY(double); break;
    case FP16: {
      _Float16 *into = result;
      const _Float16 *other = slot;
      for (size_t i = 0; i < count; i++) into[i] = to_fp16(REDUCED((float)into[i], (float)other[i], how));
      break;
    }
    case BF16: {
      uint16_t *into = result;
      const uint16_t *other = slot;
      for (size_t i = 0; i < count; i++) into[i] = to_bf16(REDUCED(from_bf16(into[i]), from_bf16(other[i]), how));
      break;
    }
    case TYPES: break;
  }
}

/* ---- collectives ------------------------------------------------------------------------------------------- */

struct collective {
  struct group *group;
  const char *from;
  char *to;
  size_t count; /* elements of one rank */
  enum type type;
  enum reduction how;
  uint32_t root;
};

static char *slot_of(struct group *group, uint32_t rank) { return group->shared->slots + rank * SLOT_BYTES; }

/* Reduce `count` elements that begin at element `first` of everybody's `from`. */
static void reduce_range(struct collective *task, size_t first, size_t count, char *to) {
  struct group *group = task->group;
  size_t size = size_of[task->type];
  char *own = malloc(SLOT_BYTES);
  for (size_t done = 0; done < count;) {
    size_t part = count - done < SLOT_BYTES / size ? count - done : SLOT_BYTES / size;
    memcpy(slot_of(group, group->rank), task->from + (first + done) * size, part * size);
    meet(group);
    memcpy(own, slot_of(group, 0), part * size);
    for (uint32_t rank = 1; rank < group->ranks; rank++)
      reduce(own, slot_of(group, rank), part, task->type, task->how);
    meet(group); /* before slots are written again */
    if (to) memcpy(to + done * size, own, part * size);
    done += part;
  }
  free(own);
}

static void run_all_reduce(void *argument) {
  struct collective *task = argument;
  reduce_range(task, 0, task->count, task->to);
  free(task);
}

static void run_reduce(void *argument) {
  struct collective *task = argument;
  reduce_range(task, 0, task->count, task->group->rank == task->root ? task->to : NULL);
  free(task);
}

static void run_reduce_scatter(void *argument) {
  struct collective *task = argument;
  for (uint32_t rank = 0; rank < task->group->ranks; rank++)
    reduce_range(task, rank * task->count, task->count, rank == task->group->rank ? task->to : NULL);
  free(task);
}

/* The `from` of these ranks, one after the other. */
static void gather(struct collective *task, uint32_t first_rank, uint32_t last_rank) {
  struct group *group = task->group;
  size_t bytes = task->count * size_of[task->type];
  bool gives = group->rank >= first_rank && group->rank <= last_rank;
  for (size_t done = 0; done < bytes;) {
    size_t part = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
    if (gives) memcpy(slot_of(group, group->rank), task->from + done, part);
    meet(group);
    for (uint32_t rank = first_rank; rank <= last_rank; rank++)
      memcpy(task->to + (rank - first_rank) * bytes + done, slot_of(group, rank), part);
    meet(group);
    done += part;
  }
  free(task);
}

static void run_all_gather(void *argument) {
  struct collective *task = argument;
  gather(task, 0, task->group->ranks - 1);
}

static void run_broadcast(void *argument) {
  struct collective *task = argument;
  gather(task, task->root, task->root);
}

static void run_barrier(void *argument) {
  struct collective *task = argument;
  meet(task->group);
  free(task);
}

static int launch(const char *name, void (*run)(void *), struct collective described, void *stream) {
  if ((unsigned)described.type >= TYPES || (unsigned)described.how > MINIMUM) return NOT_SUPPORTED;
  emulated_count_collective(name);
  struct collective *task = malloc(sizeof *task);
  *task = described;
  emulated_queue(stream, run, task);
  return SUCCESS;
}

int HcclAllReduce(const void *from, void *to, uint64_t count, int type, int how, struct group *group, void *stream) {
  struct collective task = {.group = group, .from = from, .to = to, .count = count, .type = type, .how = how};
  return launch("all_reduce", run_all_reduce, task, stream);
}

int HcclReduce(const void *from, void *to, uint64_t count, int type, int how, uint32_t root, struct group *group,
               void *stream) {
  struct collective task = {group, from, to, count, type, how, root};
  return launch("reduce", run_reduce, task, stream);
}

int HcclReduceScatter(const void *from, void *to, uint64_t count, int type, int how, struct group *group,
                      void *stream) {
  struct collective task = {.group = group, .from = from, .to = to, .count = count, .type = type, .how = how};
  return launch("reduce_scatter", run_reduce_scatter, task, stream);
}

int HcclAllGather(const void *from, void *to, uint64_t count, int type, struct group *group, void *stream) {
  struct collective task = {.group = group, .from = from, .to = to, .count = count, .type = type};
  return launch("all_gather", run_all_gather, task, stream);
}

int HcclBroadcast(void *memory, uint64_t count, int type, uint32_t root, struct group *group, void *stream) {
  struct collective task = {.group = group, .from = memory, .to = memory, .count = count, .type = type, .root = root};
  return launch("broadcast", run_broadcast, task, stream);
}

int HcclBarrier(struct group *group, void *stream) {
  return launch("barrier", run_barrier, (struct collective){.group = group}, stream);
}
