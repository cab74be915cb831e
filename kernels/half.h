/* float16 <-> float32 in plain C, exact and rounding half to even: for machines without the instructions. */
#ifndef ARROWQUANT_HALF_H
#define ARROWQUANT_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float bits_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) return bits_float(sign | 0x7F800000u | (magnitude << 13 & 0x7FFFFFu));
    if (magnitude < 0x0400u) return bits_float(sign | float_bits((float)magnitude * 0x1p-24f));
    return bits_float(sign | ((magnitude << 13) + 0x38000000u));
}

static inline uint16_t float_to_half(float x) {
    uint32_t u = float_bits(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);
    if (magnitude < 0x38800000u) /* subnormal: the addition rounds at 2^-24 */
        return (uint16_t)(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u));
    return (uint16_t)(sign | ((magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

#endif
