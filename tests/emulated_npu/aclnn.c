/* libopapi.so: the operators that torch_npu's C++ calls by itself, below the dispatcher that kernels.py is behind.
 *
 * They are copies: between layouts and types on the device, padding, and the filling with zeros. As in CANN, an
 * operator is described first (...GetWorkspaceSize) and then put on a stream. Anything else that torch_npu looks up
 * here is not found, and it says so with the operator's name.
 */
#define _GNU_SOURCE
#include "emulated_npu.h"
#include "halves.h"

#include <acl/acl_base.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_DIMENSIONS 16
#define PIECE 256 /* elements converted at a time */

typedef struct aclTensor {
  uint64_t dimensions;
  int64_t sizes[MOST_DIMENSIONS];
  int64_t strides[MOST_DIMENSIONS];
  aclDataType type;
  char *data; /* of the first element */
} aclTensor;

typedef struct aclOpExecutor {
  aclTensor to;
  aclTensor from;
  aclTensor around; /* for padding: all of the result, of which `to` is the inner part */
  char value[16];   /* what is put there first; of the same type as `from` */
} aclOpExecutor;

static size_t size_of(aclDataType type) {
  switch (type) {
    case ACL_INT8:
    case ACL_UINT8:
    case ACL_BOOL: return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16: return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32: return 4;
    case ACL_DOUBLE:
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_COMPLEX64: return 8;
    case ACL_COMPLEX128: return 16;
    default:
      fprintf(stderr, "emulated NPU: no tensors of ACL's type %d\n", (int)type);
      abort();
  }
}

/* ---- descriptions ------------------------------------------------------------------------------------------ */

aclTensor *aclCreateTensor(const int64_t *sizes, uint64_t dimensions, aclDataType type, const int64_t *strides,
                           int64_t offset, aclFormat format, const int64_t *storage_sizes,
                           uint64_t storage_dimensions, void *data) {
  (void)format, (void)storage_sizes, (void)storage_dimensions;
  if (dimensions > MOST_DIMENSIONS) return NULL;
  aclTensor *tensor = calloc(1, sizeof *tensor);
  tensor->dimensions = dimensions;
  tensor->type = type;
  for (uint64_t i = 0; i < dimensions; i++) {
    tensor->sizes[i] = sizes[i];
    tensor->strides[i] = strides[i];
  }
  tensor->data = (char *)data + offset * (int64_t)size_of(type);
  return tensor;
}

int aclDestroyTensor(const aclTensor *tensor) {
  free((void *)tensor);
  return 0;
}

typedef struct aclIntArray {
  uint64_t count;
  int64_t values[2 * MOST_DIMENSIONS];
} aclIntArray;

aclIntArray *aclCreateIntArray(const int64_t *values, uint64_t count) {
  if (count > 2 * MOST_DIMENSIONS) return NULL;
  aclIntArray *array = calloc(1, sizeof *array);
  array->count = count;
  memcpy(array->values, values, count * sizeof *values);
  return array;
}

int aclDestroyIntArray(const aclIntArray *array) {
  free((void *)array);
  return 0;
}

typedef struct aclScalar {
  aclDataType type;
  char value[16];
} aclScalar;

aclScalar *aclCreateScalar(void *value, aclDataType type) {
  aclScalar *scalar = calloc(1, sizeof *scalar);
  scalar->type = type;
  memcpy(scalar->value, value, size_of(type));
  return scalar;
}

int aclDestroyScalar(const aclScalar *scalar) {
  free((void *)scalar);
  return 0;
}

/* ---- numbers ----------------------------------------------------------------------------------------------- */

static bool is_integral(aclDataType type) {
  return type != ACL_FLOAT && type != ACL_DOUBLE && type != ACL_FLOAT16 && type != ACL_BF16;
}

#define LOAD(TYPE)                                                                                       \
  for (int64_t i = 0; i < count; i++) numbers[i] = (NUMBER)*(const TYPE *)(from + i * step)
#define STORE(TYPE)                                                                                      \
  for (int64_t i = 0; i < count; i++) *(TYPE *)(to + i * step) = (TYPE)numbers[i]

/* Whole numbers pass through int64, all others through double: neither rounds on the way. */
#define NUMBER int64_t
static void load_whole(int64_t *numbers, const char *from, int64_t step, int64_t count, aclDataType type) {
  switch (type) {
    case ACL_INT8: LOAD(int8_t); break;
    case ACL_UINT8: LOAD(uint8_t); break;
    case ACL_BOOL: LOAD(bool); break;
    case ACL_INT16: LOAD(int16_t); break;
    case ACL_UINT16: LOAD(uint16_t); break;
    case ACL_INT32: LOAD(int32_t); break;
    case ACL_UINT32: LOAD(uint32_t); break;
    case ACL_INT64: LOAD(int64_t); break;
    case ACL_UINT64: LOAD(uint64_t); break;
    default: size_of(ACL_DT_UNDEFINED);
  }
}

static void store_whole(const int64_t *numbers, char *to, int64_t step, int64_t count, aclDataType type) {
  switch (type) {
    case ACL_INT8: STORE(int8_t); break;
    case ACL_UINT8: STORE(uint8_t); break;
    case ACL_BOOL: STORE(bool); break;
    case ACL_INT16: STORE(int16_t); break;
    case ACL_UINT16: STORE(uint16_t); break;
    case ACL_INT32: STORE(int32_t); break;
    case ACL_UINT32: STORE(uint32_t); break;
    case ACL_INT64: STORE(int64_t); break;
    case ACL_UINT64: STORE(uint64_t); break;
    default: size_of(ACL_DT_UNDEFINED);
  }
}
#undef NUMBER

#define NUMBER double
static void load_real(double *numbers, const char *from, int64_t step, int64_t count, aclDataType type) {
  int64_t whole[PIECE];
  switch (type) {
    case ACL_FLOAT: LOAD(float); break;
    case ACL_DOUBLE: LOAD(double); break;
    case ACL_FLOAT16: LOAD(_Float16); break;
    case ACL_BF16:
      for (int64_t i = 0; i < count; i++) numbers[i] = from_bf16(*(const uint16_t *)(from + i * step));
      break;
    default:
      load_whole(whole, from, step, count, type);
      for (int64_t i = 0; i < count; i++) numbers[i] = (double)whole[i];
  }
}

static void store_real(const double *numbers, char *to, int64_t step, int64_t count, aclDataType type) {
  int64_t whole[PIECE];
  switch (type) {
    case ACL_FLOAT: STORE(float); break;
    case ACL_DOUBLE: STORE(double); break;
    case ACL_BOOL: STORE(bool); break;
    case ACL_FLOAT16:
      for (int64_t i = 0; i < count; i++) *(_Float16 *)(to + i * step) = to_fp16(numbers[i]);
      break;
    case ACL_BF16:
      for (int64_t i = 0; i < count; i++) *(uint16_t *)(to + i * step) = to_bf16((float)numbers[i]);
      break;
    default:
      for (int64_t i = 0; i < count; i++) whole[i] = (int64_t)numbers[i];
      store_whole(whole, to, step, count, type);
  }
}
#undef NUMBER

/* ---- copying ----------------------------------------------------------------------------------------------- */

static void copy_row(char *to, int64_t to_step, aclDataType to_type, const char *from, int64_t from_step,
                     aclDataType from_type, int64_t count) {
  size_t size = size_of(to_type);
  if (to_type == from_type) {
    if (to_step == (int64_t)size && from_step == (int64_t)size) {
      memmove(to, from, (size_t)count * size);
    } else if (size == 2) {
      for (int64_t i = 0; i < count; i++) memcpy(to + i * to_step, from + i * from_step, 2);
    } else if (size == 4) {
      for (int64_t i = 0; i < count; i++) memcpy(to + i * to_step, from + i * from_step, 4);
    } else {
      for (int64_t i = 0; i < count; i++) memcpy(to + i * to_step, from + i * from_step, size);
    }
    return;
  }
  for (int64_t done = 0; done < count; done += PIECE) {
    int64_t part = count - done < PIECE ? count - done : PIECE;
    if (is_integral(to_type) && is_integral(from_type)) {
      int64_t numbers[PIECE];
      load_whole(numbers, from + done * from_step, from_step, part, from_type);
      store_whole(numbers, to + done * to_step, to_step, part, to_type);
    } else {
      double numbers[PIECE];
      load_real(numbers, from + done * from_step, from_step, part, from_type);
      store_real(numbers, to + done * to_step, to_step, part, to_type);
    }
  }
}

/* `from` has been broadcast to the sizes of `to`. */
static void copy_dimension(const aclTensor *to, const aclTensor *from, uint64_t dimension, char *into, const char *of) {
  int64_t to_step = to->dimensions ? to->strides[dimension] * (int64_t)size_of(to->type) : 0;
  int64_t from_step = to->dimensions ? from->strides[dimension] * (int64_t)size_of(from->type) : 0;
  int64_t count = to->dimensions ? to->sizes[dimension] : 1;
  if (dimension + 1 >= to->dimensions) {
    copy_row(into, to_step, to->type, of, from_step, from->type, count);
    return;
  }
  for (int64_t i = 0; i < count; i++)
    copy_dimension(to, from, dimension + 1, into + i * to_step, of + i * from_step);
}

/* Two neighbouring dimensions that lie in memory as one are one; rows get long, and copies fast. */
static void merge_dimensions(aclTensor *to, aclTensor *from) {
  uint64_t kept = 0;
  for (uint64_t i = 0; i < to->dimensions; i++) {
    if (to->sizes[i] == 1) continue;
    if (kept && to->strides[kept - 1] == to->sizes[i] * to->strides[i] &&
        from->strides[kept - 1] == to->sizes[i] * from->strides[i]) {
      to->sizes[kept - 1] *= to->sizes[i];
      to->strides[kept - 1] = to->strides[i];
      from->strides[kept - 1] = from->strides[i];
      continue;
    }
    to->sizes[kept] = to->sizes[i];
    to->strides[kept] = to->strides[i];
    from->strides[kept] = from->strides[i];
    kept++;
  }
  to->dimensions = from->dimensions = kept;
}

/* Broadcasts `from` to the sizes of `to`. */
static void copy_tensor(aclTensor to, const aclTensor *source) {
  aclTensor from = {.type = source->type, .data = source->data};
  uint64_t missing = to.dimensions - source->dimensions;
  for (uint64_t i = 0; i < to.dimensions; i++) {
    if (to.sizes[i] == 0) return;
    if (i >= missing) from.strides[i] = source->sizes[i - missing] == 1 ? 0 : source->strides[i - missing];
  }
  merge_dimensions(&to, &from);
  copy_dimension(&to, &from, 0, to.data, from.data);
}

static void run_copy(void *argument) {
  aclOpExecutor *executor = argument;
  copy_tensor(executor->to, &executor->from);
  free(executor);
}

int aclnnInplaceCopyGetWorkspaceSize(aclTensor *to, const aclTensor *from, uint64_t *bytes, aclOpExecutor **executor) {
  if (from->dimensions > to->dimensions) return 161002; /* CANN's code for a parameter that is not valid */
  *bytes = 0;
  *executor = malloc(sizeof **executor);
  **executor = (aclOpExecutor){.to = *to, .from = *from};
  return 0;
}

int aclnnInplaceCopy(void *workspace, uint64_t bytes, aclOpExecutor *executor, void *stream) {
  (void)workspace, (void)bytes;
  emulated_queue(stream, run_copy, executor);
  return 0;
}

int aclnnCastGetWorkspaceSize(const aclTensor *from, aclDataType type, aclTensor *to, uint64_t *bytes,
                              aclOpExecutor **executor) {
  (void)type; /* that of `to` */
  return aclnnInplaceCopyGetWorkspaceSize(to, from, bytes, executor);
}

int aclnnCast(void *workspace, uint64_t bytes, aclOpExecutor *executor, void *stream) {
  return aclnnInplaceCopy(workspace, bytes, executor, stream);
}

static const double zero;

int aclnnInplaceZeroGetWorkspaceSize(const aclTensor *to, uint64_t *bytes, aclOpExecutor **executor) {
  const aclTensor from = {.type = ACL_DOUBLE, .data = (char *)&zero};
  return aclnnInplaceCopyGetWorkspaceSize((aclTensor *)to, &from, bytes, executor);
}

int aclnnInplaceZero(void *workspace, uint64_t bytes, aclOpExecutor *executor, void *stream) {
  return aclnnInplaceCopy(workspace, bytes, executor, stream);
}

static void run_pad(void *argument) {
  aclOpExecutor *executor = argument;
  const aclTensor value = {.type = executor->to.type, .data = executor->value};
  copy_tensor(executor->around, &value);
  copy_tensor(executor->to, &executor->from);
  free(executor);
}

/* `padding` is (before, after) of the last dimension, then of the one before it, and so on; none may be negative. */
int aclnnConstantPadNdGetWorkspaceSize(const aclTensor *from, const aclIntArray *padding, const aclScalar *value,
                                       aclTensor *result, uint64_t *bytes, aclOpExecutor **executor) {
  aclTensor inner = *result;
  for (uint64_t i = 0; i < padding->count; i++)
    if (padding->values[i] < 0) return 161002;
  for (uint64_t i = 0; i < inner.dimensions; i++) {
    uint64_t at = 2 * (inner.dimensions - 1 - i);
    inner.sizes[i] = from->sizes[i];
    if (at < padding->count) inner.data += padding->values[at] * inner.strides[i] * (int64_t)size_of(inner.type);
  }
  int error = aclnnInplaceCopyGetWorkspaceSize(&inner, from, bytes, executor);
  if (error) return error;
  (*executor)->around = *result;
  const aclTensor one = {.type = value->type, .data = (char *)value->value};
  copy_tensor((aclTensor){.type = result->type, .data = (*executor)->value}, &one);
  return 0;
}

int aclnnConstantPadNd(void *workspace, uint64_t bytes, aclOpExecutor *executor, void *stream) {
  (void)workspace, (void)bytes;
  emulated_queue(stream, run_pad, executor);
  return 0;
}
