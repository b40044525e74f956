/* The two half types, as float32's and float64's rounding to nearest has them; float16 as the chip does it. */
#pragma once

#include "emulated_npu.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float from_bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static inline uint16_t to_bf16(float value) {
  uint32_t bits;
  if (isnan(value)) return 0x7fc0;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to nearest, ties to even */
}

static inline _Float16 to_fp16(double value) {
  _Float16 half = (_Float16)value;
  if (!emulated_saturates() || isfinite((float)half)) return half;
  emulated_raise_overflow();
  return (_Float16)(isnan(value) ? 0.0 : copysign(65504.0, value));
}
