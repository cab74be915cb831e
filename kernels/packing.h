/* Packing of codes in plain C, eight at a time in a 64-bit word (little endian). */
#ifndef ARROWQUANT_PACKING_H
#define ARROWQUANT_PACKING_H

#include <stdint.h>
#include <string.h>

/* IN codes, one a byte; OUT code i in bits [i * bits, (i + 1) * bits). */
static inline uint64_t pack_eight(uint64_t x, int bits) {
    if (bits == 4) {
        x = (x | x >> 4) & 0x00FF00FF00FF00FFu;
        x = (x | x >> 8) & 0x0000FFFF0000FFFFu;
        x = (x | x >> 16) & 0xFFFFFFFFu;
    } else if (bits == 2) {
        x = (x | x >> 6) & 0x000F000F000F000Fu;
        x = (x | x >> 12) & 0x000000FF000000FFu;
        x = (x | x >> 24) & 0xFFFFu;
    }
    return x;
}

/* IN n codes, one a byte, followed by zeros up to a multiple of eight; OUT ceil(n * bits / 8) bytes, no more. */
static inline void pack_codes(const uint8_t *codes, int n, int bits, uint8_t *out) {
    for (int i = 0; i < n; i += 8) {
        uint64_t x;
        memcpy(&x, codes + i, 8);
        x = pack_eight(x, bits);
        if (i + 8 <= n) memcpy(out + i * bits / 8, &x, (size_t)bits);
        else memcpy(out + i * bits / 8, &x, (size_t)((n - i) * bits + 7) / 8);
    }
}

#endif
