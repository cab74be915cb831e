/* bfloat16 <-> float32 of many values in plain C, exact and rounding half to even; NaN stays NaN. */
#ifndef ARROWQUANT_BFLOAT16_H
#define ARROWQUANT_BFLOAT16_H

#include "half.h"

static inline void from_bfloat16(const uint16_t *from, float *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = bits_float((uint32_t)from[i] << 16);
}

static inline void to_bfloat16(const float *from, uint16_t *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = float_bits(from[i]), rounded = (u + 0x7FFFu + (u >> 16 & 1u)) >> 16;
        to[i] = (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? u >> 16 | 0x40u : rounded);
    }
}

#endif
