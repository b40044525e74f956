/* libascendcl.so as far as torch_npu needs it, with this machine's memory as the device's.
 *
 * Owns devices, memory, streams, events, copies and the counters of all of them. Everything queued on a stream is
 * done by that stream's own thread, in order, so that a synchronisation that is missing shows as wrong data. The
 * types and prototypes are those of the headers in torch_npu's wheel. Computing is not done here: kernels.py does
 * it on the processor, over the same memory; hccl.c and aclnn.c queue their work through emulated_npu.h.
 *
 * EMULATED_NPU_DEVICES=1           how many devices there are
 * EMULATED_NPU_SOC=Ascend910B2     which chip they are; Ascend910A and its kin saturate instead of making infinities
 * EMULATED_NPU_COPY_DELAY_US=0     how long a stream waits before each asynchronous copy to the device
 * EMULATED_NPU_REFUSE_REGISTER=1   host memory cannot be registered
 * EMULATED_NPU_DRIVER=25.5.0       the version of its driver
 * EMULATED_NPU_REPORT=FOLDER       a process that loads this library leaves <pid>.json there at once
 */
#define _GNU_SOURCE
#include "emulated_npu.h"

#include <acl/acl.h>
#include <acl/acl_op_compiler.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CANN_VERSION "9.1.0"
#define MOST_DEVICES 16
#define DEVICE_BYTES ((size_t)32 << 30) /* reserved addresses; pages come as they are written */
#define DEVICE_ALIGNMENT ((size_t)512)

/* One lock for everything: contention is no matter here, and one lock cannot be taken in the wrong order. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER; /* some task has ended */

static long setting(const char *name, long otherwise) {
  const char *value = getenv(name);
  return value && *value ? atol(value) : otherwise;
}

/* ---- counters ---------------------------------------------------------------------------------------------- */

struct copies { /* copies to the device that are alike */
  size_t bytes;
  bool pinned;
  bool asynchronous;
  bool on_default_stream;
  unsigned long count;
};

struct named {
  char name[32];
  unsigned long count;
};

static struct {
  unsigned long h2d, d2h, d2d;
  unsigned long events_recorded, events_waited, events_synchronised;
  unsigned long stream_synchronisations, device_synchronisations;
  struct copies *to_device;
  size_t to_device_kinds;
  struct named collectives[16];
} counted;

static void count_copy(aclrtMemcpyKind kind, struct copies copy) {
  counted.h2d += kind == ACL_MEMCPY_HOST_TO_DEVICE;
  counted.d2h += kind == ACL_MEMCPY_DEVICE_TO_HOST;
  counted.d2d += kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (kind != ACL_MEMCPY_HOST_TO_DEVICE) return;
  for (size_t i = 0; i < counted.to_device_kinds; i++) {
    struct copies *other = &counted.to_device[i];
    if (other->bytes == copy.bytes && other->pinned == copy.pinned && other->asynchronous == copy.asynchronous &&
        other->on_default_stream == copy.on_default_stream) {
      other->count++;
      return;
    }
  }
  counted.to_device = realloc(counted.to_device, (counted.to_device_kinds + 1) * sizeof copy);
  copy.count = 1;
  counted.to_device[counted.to_device_kinds++] = copy;
}

void emulated_count_collective(const char *name) {
  pthread_mutex_lock(&lock);
  struct named *entry = counted.collectives;
  while (*entry->name && strcmp(entry->name, name)) entry++;
  strncpy(entry->name, name, sizeof entry->name - 1);
  entry->count++;
  pthread_mutex_unlock(&lock);
}

/* JSON, which the caller frees. */
char *emulated_counters(void) {
  char *text = NULL;
  size_t length = 0;
  FILE *out = open_memstream(&text, &length);
  pthread_mutex_lock(&lock);
  fprintf(out, "{\"h2d\": %lu, \"d2h\": %lu, \"d2d\": %lu", counted.h2d, counted.d2h, counted.d2d);
  fprintf(out, ", \"events_recorded\": %lu, \"events_waited\": %lu, \"events_synchronised\": %lu",
          counted.events_recorded, counted.events_waited, counted.events_synchronised);
  fprintf(out, ", \"stream_synchronisations\": %lu, \"device_synchronisations\": %lu", counted.stream_synchronisations,
          counted.device_synchronisations);
  fprintf(out, ", \"to_device\": [");
  for (size_t i = 0; i < counted.to_device_kinds; i++) {
    struct copies *copy = &counted.to_device[i];
    fprintf(out, "%s{\"bytes\": %zu, \"pinned\": %s, \"asynchronous\": %s, \"on_default_stream\": %s, \"count\": %lu}",
            i ? ", " : "", copy->bytes, copy->pinned ? "true" : "false", copy->asynchronous ? "true" : "false",
            copy->on_default_stream ? "true" : "false", copy->count);
  }
  fprintf(out, "], \"collectives\": {");
  for (struct named *entry = counted.collectives; *entry->name; entry++)
    fprintf(out, "%s\"%s\": %lu", entry == counted.collectives ? "" : ", ", entry->name, entry->count);
  fprintf(out, "}}");
  pthread_mutex_unlock(&lock);
  fclose(out);
  return text;
}

/* Written on loading, so that a process that should not have loaded this library is seen however it ends. */
__attribute__((constructor)) static void leave_a_mark(void) {
  const char *folder = getenv("EMULATED_NPU_REPORT");
  if (!folder || !*folder) return;
  char path[4096];
  snprintf(path, sizeof path, "%s/%d.json", folder, getpid());
  FILE *out = fopen(path, "w");
  if (!out) return;
  fprintf(out, "{\"pid\": %d, \"finished\": false}\n", getpid());
  fclose(out);
}

/* ---- devices ----------------------------------------------------------------------------------------------- */

struct block { /* a piece of a device's memory; the list is sorted by address */
  struct block *next;
  char *start;
  size_t bytes;
};

struct device {
  char *memory;
  struct block *blocks;
  size_t used;
  struct stream *default_stream;
};

static struct device devices[MOST_DEVICES];
static __thread int current = -1; /* a thread has no device until it chooses one */
static bool saturating;           /* float16 results stop at 65504 and raise a flag */
static bool overflowed;           /* that flag */
static int64_t options[64];

static int device_count(void) {
  long count = setting("EMULATED_NPU_DEVICES", 1);
  return count < 0 ? 0 : count > MOST_DEVICES ? MOST_DEVICES : (int)count;
}

/* Addresses are reserved once for all of a device's memory, so kernels.py sees it as one tensor. */
char *emulated_memory(int device, size_t *bytes) {
  pthread_mutex_lock(&lock);
  struct device *chosen = &devices[device];
  if (!chosen->memory) {
    void *memory = mmap(NULL, DEVICE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      perror("emulated NPU: no addresses for a device's memory");
      abort();
    }
    chosen->memory = memory;
  }
  pthread_mutex_unlock(&lock);
  *bytes = DEVICE_BYTES;
  return chosen->memory;
}

const char *aclrtGetSocName(void) {
  const char *name = getenv("EMULATED_NPU_SOC");
  return name && *name ? name : "Ascend910B2";
}

static bool of_the_first_series(void) {
  static const char *names[] = {"Ascend910A", "Ascend910ProA", "Ascend910PremiumA", "Ascend910B", "Ascend910ProB"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(aclrtGetSocName(), names[i])) return true;
  return false;
}

aclError aclInit(const char *configPath) {
  (void)configPath;
  saturating = of_the_first_series();
  return ACL_SUCCESS;
}

aclError aclFinalize(void) { return ACL_SUCCESS; }

aclError aclrtGetDeviceCount(uint32_t *count) {
  *count = (uint32_t)device_count();
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t deviceId) {
  if (deviceId < 0 || deviceId >= device_count()) return ACL_ERROR_RT_INVALID_DEVICEID;
  current = deviceId;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t deviceId) {
  (void)deviceId;
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t *deviceId) {
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *deviceId = current;
  return ACL_SUCCESS;
}

aclError aclrtGetCurrentContext(aclrtContext *context) {
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *context = &devices[current];
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  current = (int)((struct device *)context - devices);
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t deviceId, uint32_t *flags, int32_t *active) {
  (void)deviceId;
  if (flags) *flags = 0;
  if (active) *active = 1;
  return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t *canAccessPeer, int32_t deviceId, int32_t peerDeviceId) {
  (void)deviceId, (void)peerDeviceId;
  *canAccessPeer = 1;
  return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t peerDeviceId, uint32_t flags) {
  (void)peerDeviceId, (void)flags;
  return ACL_SUCCESS;
}

aclError aclrtDeviceGetBareTgid(int32_t *pid) {
  *pid = getpid();
  return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t deviceId, aclDeviceInfo deviceInfo, int64_t *value) {
  (void)deviceId, (void)deviceInfo;
  *value = 20; /* cores */
  return ACL_SUCCESS;
}

aclError aclGetCannAttribute(aclCannAttr attribute, int32_t *value) {
  *value = attribute == ACL_CANN_ATTR_JIT_COMPILE || !of_the_first_series();
  return ACL_SUCCESS;
}

aclError aclGetCannAttributeList(const aclCannAttr **list, size_t *number) {
  *list = NULL;
  *number = 0;
  return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char *package, char *version) {
  (void)package;
  strcpy(version, CANN_VERSION);
  return ACL_SUCCESS;
}

/* From driver 25.5.0 on, torch_npu asks the runtime whether memory is pinned; before, it knows but its own. */
aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion *version) {
  const char *driver = getenv("EMULATED_NPU_DRIVER");
  const char *answer = name != ACL_PKG_NAME_DRIVER ? CANN_VERSION : driver && *driver ? driver : "25.5.0";
  memset(version, 0, sizeof *version);
  strncpy(version->version, answer, sizeof version->version - 1);
  return ACL_SUCCESS;
}

aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) {
  saturating = of_the_first_series() || mode == ACL_RT_OVERFLOW_MODE_SATURATION;
  return ACL_SUCCESS;
}

int emulated_saturates(void) { return saturating; }

void emulated_raise_overflow(void) { overflowed = true; }

int emulated_take_overflow(int clear) {
  int was = overflowed;
  if (clear) overflowed = false;
  return was;
}

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) {
  *value = options[option & 63];
  return ACL_SUCCESS;
}

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  options[option & 63] = value;
  return ACL_SUCCESS;
}

aclError aclrtCtxGetSysParamOpt(aclSysParamOpt option, int64_t *value) { return aclrtGetSysParamOpt(option, value); }
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }

/* ---- memory ------------------------------------------------------------------------------------------------ */

struct pinned {
  struct pinned *next;
  char *start;
  size_t bytes;
};

static struct pinned *pinned_ranges;

static bool is_pinned(const void *memory, size_t bytes) {
  const char *start = memory;
  for (struct pinned *range = pinned_ranges; range; range = range->next)
    if (start >= range->start && start + bytes <= range->start + range->bytes) return true;
  return false;
}

static bool is_on_device(const void *memory, size_t bytes) {
  const char *start = memory;
  for (int i = 0; i < MOST_DEVICES; i++)
    for (struct block *block = devices[i].blocks; block; block = block->next)
      if (start >= block->start && start + bytes <= block->start + block->bytes) return true;
  return false;
}

static aclError pin(void *memory, size_t bytes) {
  struct pinned *range = malloc(sizeof *range);
  pthread_mutex_lock(&lock);
  *range = (struct pinned){.next = pinned_ranges, .start = memory, .bytes = bytes};
  pinned_ranges = range;
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

static aclError unpin(void *memory) {
  aclError result = ACL_ERROR_RT_PARAM_INVALID;
  pthread_mutex_lock(&lock);
  for (struct pinned **at = &pinned_ranges; *at; at = &(*at)->next) {
    struct pinned *range = *at;
    if (range->start != (char *)memory) continue;
    *at = range->next;
    free(range);
    result = ACL_SUCCESS;
    break;
  }
  pthread_mutex_unlock(&lock);
  return result;
}

aclError aclrtMalloc(void **devPtr, size_t size, aclrtMemMallocPolicy policy) {
  (void)policy;
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  size_t reserved;
  char *start = emulated_memory(current, &reserved);
  char *end = start + reserved;
  size = (size + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
  pthread_mutex_lock(&lock);
  struct device *device = &devices[current];
  struct block **at = &device->blocks; /* the first gap that is large enough */
  while (*at && (size_t)((*at)->start - start) < size) {
    start = (*at)->start + (*at)->bytes;
    at = &(*at)->next;
  }
  if (!*at && (size_t)(end - start) < size) {
    pthread_mutex_unlock(&lock);
    return ACL_ERROR_RT_MEMORY_ALLOCATION;
  }
  struct block *block = malloc(sizeof *block);
  *block = (struct block){.next = *at, .start = start, .bytes = size};
  *at = block;
  device->used += size;
  pthread_mutex_unlock(&lock);
  *devPtr = start;
  return ACL_SUCCESS;
}

aclError aclrtMallocAlign32(void **devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(devPtr, size, policy);
}

aclError aclrtFree(void *devPtr) {
  if (!devPtr) return ACL_SUCCESS;
  aclError result = ACL_ERROR_RT_PARAM_INVALID;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MOST_DEVICES; i++)
    for (struct block **at = &devices[i].blocks; *at; at = &(*at)->next) {
      struct block *block = *at;
      if (block->start != (char *)devPtr) continue;
      madvise(block->start, block->bytes, MADV_DONTNEED); /* whole pages only; the rest stays */
      devices[i].used -= block->bytes;
      *at = block->next;
      free(block);
      result = ACL_SUCCESS;
      goto found;
    }
found:
  pthread_mutex_unlock(&lock);
  return result;
}

aclError aclrtGetMemInfo(aclrtMemAttr attr, size_t *free, size_t *total) {
  (void)attr;
  *total = DEVICE_BYTES;
  *free = DEVICE_BYTES - devices[current < 0 ? 0 : current].used;
  return ACL_SUCCESS;
}

aclError aclrtMallocHost(void **hostPtr, size_t size) {
  size = size ? size : 1;
  if (posix_memalign(hostPtr, 4096, size)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  return pin(*hostPtr, size);
}

aclError aclrtMallocHostWithCfg(void **ptr, uint64_t size, aclrtMallocConfig *cfg) {
  (void)cfg;
  return aclrtMallocHost(ptr, size);
}

aclError aclrtFreeHost(void *hostPtr) {
  unpin(hostPtr);
  free(hostPtr);
  return ACL_SUCCESS;
}

aclError aclrtHostRegisterV2(void *ptr, uint64_t size, uint32_t flag) {
  (void)flag;
  if (setting("EMULATED_NPU_REFUSE_REGISTER", 0)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  return pin(ptr, size);
}

aclError aclrtHostRegister(void *ptr, uint64_t size, aclrtHostRegisterType type, void **devPtr) {
  (void)type;
  *devPtr = ptr;
  return aclrtHostRegisterV2(ptr, size, 0);
}

aclError aclrtHostUnregister(void *ptr) { return unpin(ptr); }

aclError aclrtPointerGetAttributes(const void *ptr, aclrtPtrAttributes *attributes) {
  memset(attributes, 0, sizeof *attributes);
  pthread_mutex_lock(&lock);
  attributes->location.type = is_on_device(ptr, 1) ? ACL_MEM_LOCATION_TYPE_DEVICE
                              : is_pinned(ptr, 1)  ? ACL_MEM_LOCATION_TYPE_HOST
                                                   : ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

/* ---- streams ----------------------------------------------------------------------------------------------- */

struct task {
  struct task *next;
  void (*run)(void *);
  void *argument;
};

struct stream {
  struct stream *next;
  pthread_cond_t arrived;
  struct task *first, *last;
  unsigned long queued, done;
  bool started, ending;
  int device;
  int number;
};

static struct stream *all_streams; /* the latest first */

static void *work(void *argument) {
  struct stream *stream = argument;
  current = stream->device;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (!stream->first && !stream->ending) pthread_cond_wait(&stream->arrived, &lock);
    struct task *task = stream->first;
    if (!task) break;
    pthread_mutex_unlock(&lock);
    task->run(task->argument);
    pthread_mutex_lock(&lock);
    stream->first = task->next;
    stream->done++;
    free(task);
    pthread_cond_broadcast(&progress);
  }
  pthread_mutex_unlock(&lock);
  return NULL;
}

/* With the lock held. torch_npu makes 32 streams where it needs one: threads start with the first task. */
static void queue(struct stream *stream, void (*run)(void *), void *argument) {
  struct task *task = malloc(sizeof *task);
  *task = (struct task){.run = run, .argument = argument};
  if (!stream->started) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, stream)) {
      perror("emulated NPU: no thread for a stream");
      abort();
    }
    pthread_detach(thread);
    stream->started = true;
  }
  if (stream->first) {
    stream->last->next = task;
  } else {
    stream->first = task;
  }
  stream->last = task;
  stream->queued++;
  pthread_cond_signal(&stream->arrived);
}

/* With the lock held: wait for what is queued by now. */
static void drain(struct stream *stream) {
  unsigned long wanted = stream->queued;
  while (stream->done < wanted) pthread_cond_wait(&progress, &lock);
}

aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag) {
  (void)priority, (void)flag;
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  struct stream *created = calloc(1, sizeof *created);
  pthread_cond_init(&created->arrived, NULL);
  created->device = current;
  pthread_mutex_lock(&lock);
  created->next = all_streams;
  created->number = all_streams ? all_streams->number + 1 : 0;
  all_streams = created;
  if (!devices[current].default_stream) devices[current].default_stream = created; /* torch_npu makes it first */
  pthread_mutex_unlock(&lock);
  *stream = created;
  return ACL_SUCCESS;
}

aclError aclrtCreateStream(aclrtStream *stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }

/* Its thread may still look at it, so its few bytes are never freed. */
aclError aclrtDestroyStream(aclrtStream stream) {
  struct stream *ended = stream;
  pthread_mutex_lock(&lock);
  drain(ended);
  ended->ending = true;
  pthread_cond_signal(&ended->arrived);
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

/* With the lock held. The null stream is its device's default one. */
static struct stream *the_stream(aclrtStream stream) {
  return stream ? stream : devices[current < 0 ? 0 : current].default_stream;
}

void emulated_queue(aclrtStream stream, void (*run)(void *), void *argument) {
  pthread_mutex_lock(&lock);
  queue(the_stream(stream), run, argument);
  pthread_mutex_unlock(&lock);
}

/* kernels.py waits for streams through torch_npu, which empties its own queue first. That is not the program's doing,
 * so such a thread says that it is not to be counted. */
static __thread bool unobserved;

void emulated_look_away(int away) { unobserved = away; }

aclError aclrtSynchronizeStream(aclrtStream stream) {
  pthread_mutex_lock(&lock);
  counted.stream_synchronisations += !unobserved;
  drain(the_stream(stream));
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) {
  (void)timeout;
  return aclrtSynchronizeStream(stream);
}

aclError aclrtSynchronizeDevice(void) {
  pthread_mutex_lock(&lock);
  counted.device_synchronisations++;
  for (struct stream *stream = all_streams; stream; stream = stream->next)
    if (stream->device == current) drain(stream);
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) {
  (void)timeout;
  return aclrtSynchronizeDevice();
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) {
  pthread_mutex_lock(&lock);
  struct stream *asked = the_stream(stream);
  *status = asked->done == asked->queued ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream stream, int32_t *streamId) {
  pthread_mutex_lock(&lock);
  *streamId = the_stream(stream)->number;
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

struct call {
  void (*function)(void *);
  void *argument;
};

static void run_call(void *argument) {
  struct call *call = argument;
  call->function(call->argument);
  free(call);
}

aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void *argument) {
  struct call *call = malloc(sizeof *call);
  *call = (struct call){.function = function, .argument = argument};
  emulated_queue(stream, run_call, call);
  return ACL_SUCCESS;
}

aclError aclrtLaunchCallback(aclrtCallback fn, void *userData, aclrtCallbackBlockType blockType, aclrtStream stream) {
  (void)blockType;
  return aclrtLaunchHostFunc(stream, fn, userData);
}

/* ---- events ------------------------------------------------------------------------------------------------ */

struct record { /* one recording of an event; shared by the event and by those that wait for it */
  int users;
  bool done;
  struct timespec time;
};

struct event {
  struct record *latest; /* NULL: never recorded, nothing waits for it */
};

static void release(struct record *record) {
  if (record && !--record->users) free(record);
}

aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag) {
  (void)flag;
  *event = calloc(1, sizeof(struct event));
  return ACL_SUCCESS;
}

aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag) { return aclrtCreateEventExWithFlag(event, flag); }

aclError aclrtCreateEvent(aclrtEvent *event) { return aclrtCreateEventExWithFlag(event, 0); }

aclError aclrtDestroyEvent(aclrtEvent event) {
  struct event *destroyed = event;
  pthread_mutex_lock(&lock);
  release(destroyed->latest);
  pthread_mutex_unlock(&lock);
  free(destroyed);
  return ACL_SUCCESS;
}

static void run_record(void *argument) {
  struct record *record = argument;
  pthread_mutex_lock(&lock);
  clock_gettime(CLOCK_MONOTONIC, &record->time);
  record->done = true;
  pthread_cond_broadcast(&progress);
  release(record);
  pthread_mutex_unlock(&lock);
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  struct event *recorded = event;
  struct record *record = calloc(1, sizeof *record);
  record->users = 2;
  pthread_mutex_lock(&lock);
  counted.events_recorded++;
  release(recorded->latest);
  recorded->latest = record;
  queue(the_stream(stream), run_record, record);
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  (void)event, (void)stream; /* a new recording replaces the old one */
  return ACL_SUCCESS;
}

static void run_wait(void *argument) {
  struct record *record = argument;
  pthread_mutex_lock(&lock);
  while (!record->done) pthread_cond_wait(&progress, &lock);
  release(record);
  pthread_mutex_unlock(&lock);
}

/* The stream waits, not the host, and for the recording of this moment: a later one does not prolong it. */
aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  struct event *awaited = event;
  pthread_mutex_lock(&lock);
  counted.events_waited++;
  if (awaited->latest) {
    awaited->latest->users++;
    queue(the_stream(stream), run_wait, awaited->latest);
  }
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  struct event *awaited = event;
  pthread_mutex_lock(&lock);
  counted.events_synchronised++;
  struct record *record = awaited->latest;
  if (record) {
    record->users++;
    while (!record->done) pthread_cond_wait(&progress, &lock);
    release(record);
  }
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

static bool has_happened(struct event *event) {
  pthread_mutex_lock(&lock);
  bool done = !event->latest || event->latest->done;
  pthread_mutex_unlock(&lock);
  return done;
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
  *status = has_happened(event) ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status) {
  *status = has_happened(event) ? ACL_EVENT_WAIT_STATUS_COMPLETE : ACL_EVENT_WAIT_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float *ms, aclrtEvent startEvent, aclrtEvent endEvent) {
  struct event *start = startEvent, *end = endEvent;
  aclError result = ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID;
  pthread_mutex_lock(&lock);
  if (start->latest && start->latest->done && end->latest && end->latest->done) {
    struct timespec from = start->latest->time, to = end->latest->time;
    *ms = (float)((double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6);
    result = ACL_SUCCESS;
  }
  pthread_mutex_unlock(&lock);
  return result;
}

/* ---- copies ------------------------------------------------------------------------------------------------ */

struct copy {
  void *to;
  const void *from;
  size_t bytes;
  useconds_t delay_us;
};

static void run_copy(void *argument) {
  struct copy *copy = argument;
  if (copy->delay_us) usleep(copy->delay_us);
  memmove(copy->to, copy->from, copy->bytes);
  free(copy);
}

/* With the lock held: what a copy says of its two sides must be so. */
static aclError check_copy(const void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
  bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (bytes > room || kind > ACL_MEMCPY_DEVICE_TO_DEVICE) return ACL_ERROR_RT_PARAM_INVALID;
  if (bytes && (is_on_device(to, bytes) != to_device || is_on_device(from, bytes) != from_device)) {
    fprintf(stderr, "emulated NPU: a copy of kind %d, %zu bytes, %p to %p, is not between such memories\n", (int)kind,
            bytes, from, to);
    return ACL_ERROR_RT_INVALID_MEMORY_TYPE;
  }
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind) {
  pthread_mutex_lock(&lock);
  aclError result = check_copy(dst, destMax, src, count, kind);
  if (!result) count_copy(kind, (struct copies){.bytes = count, .pinned = is_pinned(src, count)});
  pthread_mutex_unlock(&lock);
  if (!result) memmove(dst, src, count);
  return result;
}

/* Between a device and pageable memory, such a copy has been made when the call returns, as on the card. */
aclError aclrtMemcpyAsync(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  pthread_mutex_lock(&lock);
  aclError result = check_copy(dst, destMax, src, count, kind);
  if (!result) {
    struct stream *used = the_stream(stream);
    const void *host = kind == ACL_MEMCPY_HOST_TO_DEVICE ? src : kind == ACL_MEMCPY_DEVICE_TO_HOST ? dst : NULL;
    bool pinned = host && is_pinned(host, count);
    bool asynchronous = pinned || !host;
    bool on_default = used == devices[used->device].default_stream;
    count_copy(kind, (struct copies){count, pinned, asynchronous, on_default, 0});
    struct copy *copy = malloc(sizeof *copy);
    *copy = (struct copy){.to = dst, .from = src, .bytes = count};
    if (asynchronous && kind == ACL_MEMCPY_HOST_TO_DEVICE)
      copy->delay_us = (useconds_t)setting("EMULATED_NPU_COPY_DELAY_US", 0);
    queue(used, run_copy, copy);
    if (!asynchronous) drain(used);
  }
  pthread_mutex_unlock(&lock);
  return result;
}

aclError aclrtMemcpyAsyncWithCondition(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind,
                                       aclrtStream stream) {
  return aclrtMemcpyAsync(dst, destMax, src, count, kind, stream);
}

struct fill {
  void *memory;
  int value;
  size_t bytes;
};

static void run_fill(void *argument) {
  struct fill *fill = argument;
  memset(fill->memory, fill->value, fill->bytes);
  free(fill);
}

aclError aclrtMemset(void *devPtr, size_t maxCount, int32_t value, size_t count) {
  if (count > maxCount) return ACL_ERROR_RT_PARAM_INVALID;
  memset(devPtr, value, count);
  return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void *devPtr, size_t maxCount, int32_t value, size_t count, aclrtStream stream) {
  if (count > maxCount) return ACL_ERROR_RT_PARAM_INVALID;
  struct fill *fill = malloc(sizeof *fill);
  *fill = (struct fill){.memory = devPtr, .value = value, .bytes = count};
  emulated_queue(stream, run_fill, fill);
  return ACL_SUCCESS;
}

/* ---- operators of the graph engine: none has a kernel ------------------------------------------------------ */

static __thread char error_text[256] = "no error text";

const char *aclGetRecentErrMsg(void) { return error_text; }

aclError aclopCompileAndExecute(const char *opType, int numInputs, const aclTensorDesc *const inputDesc[],
                                const aclDataBuffer *const inputs[], int numOutputs,
                                const aclTensorDesc *const outputDesc[], aclDataBuffer *const outputs[],
                                const aclopAttr *attr, aclopEngineType engineType, aclopCompileType compileFlag,
                                const char *opPath, aclrtStream stream) {
  (void)numInputs, (void)inputDesc, (void)inputs, (void)numOutputs, (void)outputDesc, (void)outputs, (void)attr;
  (void)engineType, (void)compileFlag, (void)opPath, (void)stream;
  snprintf(error_text, sizeof error_text, "the emulated NPU has no kernel for %s", opType);
  fprintf(stderr, "emulated NPU: %s\n", error_text);
  return ACL_ERROR_OP_NOT_FOUND;
}

/* Descriptions of operators are made before they are refused. */
struct aclDataBuffer { int unused; };
struct aclTensorDesc { int unused; };
struct aclopAttr { int unused; };

aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) {
  (void)data, (void)size;
  return calloc(1, sizeof(struct aclDataBuffer));
}

aclError aclDestroyDataBuffer(const aclDataBuffer *dataBuffer) {
  free((void *)dataBuffer);
  return ACL_SUCCESS;
}

aclTensorDesc *aclCreateTensorDesc(aclDataType dataType, int numDims, const int64_t *dims, aclFormat format) {
  (void)dataType, (void)numDims, (void)dims, (void)format;
  return calloc(1, sizeof(struct aclTensorDesc));
}

void aclDestroyTensorDesc(const aclTensorDesc *desc) { free((void *)desc); }

aclopAttr *aclopCreateAttr(void) { return calloc(1, sizeof(struct aclopAttr)); }

void aclopDestroyAttr(const aclopAttr *attr) { free((void *)attr); }

aclError aclGetTensorDescDimV2(const aclTensorDesc *desc, size_t index, int64_t *dimSize) {
  (void)desc, (void)index;
  *dimSize = 0;
  return ACL_SUCCESS;
}

void aclSetTensorDescName(aclTensorDesc *desc, const char *name) { (void)desc, (void)name; }

size_t aclGetCompileoptSize(aclCompileOpt opt) {
  (void)opt;
  return 256;
}

aclError aclGetCompileopt(aclCompileOpt opt, char *value, size_t length) {
  (void)opt;
  snprintf(value, length, "disable");
  return ACL_SUCCESS;
}

/* ---- what need not do anything ----------------------------------------------------------------------------- */

/* Other names of two functions: the headers declare them with arguments, none of which matters here. */
#define ALIAS(name, of) __asm__(".globl " #name "\n.type " #name ", @function\n.set " #name ", " #of)
#define ACCEPTED(name) ALIAS(name, emulated_accept)
#define REFUSED(name) ALIAS(name, emulated_refuse)

__attribute__((used)) int64_t emulated_accept(void) { return 0; }

__attribute__((used)) int64_t emulated_refuse(void) {
  fprintf(stderr, "emulated NPU: a call that is not emulated: virtual memory, shared handles or a compiled kernel\n");
  return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

ACCEPTED(aclAppLog);
ACCEPTED(aclGetTensorDescFormat);
ACCEPTED(aclGetTensorDescNumDims);
ACCEPTED(aclGetTensorDescType);
ACCEPTED(aclSetCompileopt);
ACCEPTED(aclSetTensorFormat);
ACCEPTED(aclSetTensorPlaceMent);
ACCEPTED(aclSetTensorShape);
ACCEPTED(aclmdlFinalizeDump);
ACCEPTED(aclmdlInitDump);
ACCEPTED(aclmdlSetDump);
ACCEPTED(aclopSetAttrBool);
ACCEPTED(aclopSetAttrDataType);
ACCEPTED(aclopSetAttrFloat);
ACCEPTED(aclopSetAttrInt);
ACCEPTED(aclopSetAttrListBool);
ACCEPTED(aclopSetAttrListFloat);
ACCEPTED(aclopSetAttrListInt);
ACCEPTED(aclopSetAttrListListInt);
ACCEPTED(aclopSetAttrString);
ACCEPTED(aclrtGetLastError);
ACCEPTED(aclrtPeekAtLastError);
ACCEPTED(aclrtSetOpExecuteTimeOut);
ACCEPTED(aclrtSetOpWaitTimeout);
ACCEPTED(aclrtSetStreamAttribute);
ACCEPTED(aclrtSetStreamFailureMode);
ACCEPTED(aclrtSetStreamOverflowSwitch);
ACCEPTED(aclrtSubscribeReport);
ACCEPTED(aclrtUnSubscribeReport);
ACCEPTED(MsprofGetHashId);
ACCEPTED(MsprofRegisterCallback);
ACCEPTED(MsprofReportAdditionalInfo);
ACCEPTED(MsprofReportApi);
ACCEPTED(MsprofReportCompactInfo);
ACCEPTED(MsprofSysCycleTime);

REFUSED(aclrtBinaryGetFunction);
REFUSED(aclrtBinaryLoadFromData);
REFUSED(aclrtFreePhysical);
REFUSED(aclrtGetFunctionAddr);
REFUSED(aclrtMallocPhysical);
REFUSED(aclrtMapMem);
REFUSED(aclrtMemExportToShareableHandle);
REFUSED(aclrtMemImportFromShareableHandle);
REFUSED(aclrtMemSetPidToShareableHandle);
REFUSED(aclrtReleaseMemAddress);
REFUSED(aclrtReserveMemAddress);
REFUSED(aclrtUnmapMem);
REFUSED(rtDevBinaryRegister);
REFUSED(rtFunctionRegister);
REFUSED(rtGetC2cCtrlAddr);
REFUSED(rtKernelLaunch);

aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag) {
  (void)stream;
  *flag = 0;
  return ACL_SUCCESS;
}

aclError aclrtProcessReport(int32_t timeout) { /* a thread of torch_npu calls it without end */
  (void)timeout;
  usleep(1000);
  return ACL_SUCCESS;
}
