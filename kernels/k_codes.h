/* The k format of scales, or of minima: of each row first one float16 (float32 when wide) per block of 256 weights, then
 * one integer of 6 or 4 bits per group, integer i in bits [i * bits, (i + 1) * bits). A value is float times integer. */
#ifndef ARROWQUANT_K_CODES_H
#define ARROWQUANT_K_CODES_H

#include "half.h"
#include <stdint.h>
#include <string.h>

static inline unsigned k_integer(const uint8_t *integers, int64_t i, int bits) {
    const int64_t bit = i * bits;
    const int shift = (int)(bit & 7);
    unsigned x = integers[bit >> 3];
    if (shift + bits > 8) x |= (unsigned)integers[(bit >> 3) + 1] << 8;
    return x >> shift & ((1u << bits) - 1);
}

static inline float k_float(const uint8_t *row, int64_t block, int wide) {
    uint16_t half;
    float x;
    if (wide) memcpy(&x, row + 4 * block, 4);
    else {
        memcpy(&half, row + 2 * block, 2);
        x = half_to_float(half);
    }
    return x;
}

static inline void put_k_float(uint8_t *row, int64_t block, int wide, float x) {
    const uint16_t half = wide ? 0 : float_to_half(x);
    if (wide) memcpy(row + 4 * block, &x, 4);
    else memcpy(row + 2 * block, &half, 2);
}

#endif
