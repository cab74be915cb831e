/* Packing and unpacking of codes, and conversion of stored weights to float32. Part of the rows.h template.
 * Code i of a byte lies in bits [i * bits, (i + 1) * bits). */

typedef uint16_t ISA(vu16) __attribute__((vector_size(4 * LANES)));
typedef uint8_t ISA(vu8) __attribute__((vector_size(2 * LANES)));
typedef uint8_t ISA(vb) __attribute__((vector_size(LANES)));

/* IN n bytes (n a multiple of 16); OUT n / 2 bytes: each pair (a, b) becomes a | b << (8 - shift). */
INLINE void ISA(join_pairs)(const uint8_t *from, int n, int shift, uint8_t *to) {
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        ISA(vu16) x;
        memcpy(&x, from + i, sizeof x);
        ISA(vu8) y = __builtin_convertvector(x | (x >> shift), ISA(vu8));
        memcpy(to + i / 2, &y, sizeof y);
    }
    for (; i < n; i += 2) to[i / 2] = (uint8_t)(from[i] | from[i + 1] << (8 - shift));
}

/* IN n codes, one a byte, followed by zeros up to a multiple of 16; OUT ceil(n * bits / 8) bytes, no more. */
INLINE void ISA(pack_codes)(const uint8_t *codes, int n, int bits, uint8_t *out) {
    uint8_t half[MAX_GROUP], quarter[MAX_GROUP];
    int padded = (n + 15) & ~15;
    if (bits == 8) { memcpy(out, codes, (size_t)n); return; }
    if (bits == 4) {
        if (n == padded) { ISA(join_pairs)(codes, n, 4, out); return; }
        ISA(join_pairs)(codes, padded, 4, half);
        memcpy(out, half, (size_t)(n + 1) / 2);
        return;
    }
    ISA(join_pairs)(codes, padded, 6, half);
    memset(half + padded / 2, 0, 8);
    ISA(join_pairs)(half, (padded / 2 + 15) & ~15, 4, quarter);
    memcpy(out, quarter, (size_t)(n + 3) / 4);
}

/* IN 2 * bits bytes at `packed`; OUT sixteen codes in lanes. */
INLINE void ISA(unpack_sixteen)(const uint8_t *packed, int bits, vi out[PIECES]) {
    if (bits == 8) {
        EACH_PIECE {
            ISA(vb) b;
            memcpy(&b, packed + p * LANES, sizeof b);
            out[p] = __builtin_convertvector(b, vi);
        }
        return;
    }
    vi shift;
    for (int i = 0; i < LANES; i++) shift[i] = (i * bits) & 31;
    EACH_PIECE {
        vi word;
#if LANES == 16
        if (bits == 4) {
            int32_t low, high;
            memcpy(&low, packed, 4);
            memcpy(&high, packed + 4, 4);
            word = (vi){low, low, low, low, low, low, low, low, high, high, high, high, high, high, high, high};
            out[p] = (word >> shift) & 15;
            continue;
        }
#endif
        uint32_t bytes = 0; /* LANES * bits / 8 bytes hold this piece */
        memcpy(&bytes, packed + p * LANES * bits / 8, LANES * bits / 8 > 4 ? 4 : (size_t)(LANES * bits / 8));
        word = (int32_t)bytes - (vi){0};
        out[p] = (word >> shift) & ((1 << bits) - 1);
    }
}

/* IN n weights of `kind`; OUT float32, then zeros up to a multiple of 16. */
INLINE void ISA(widen)(const uint8_t *from, int kind, int n, float *to) {
    int i = 0;
    if (kind == KIND_FLOAT32) {
        memcpy(to, from, (size_t)n * 4);
        i = n;
    } else {
        for (; i + LANES <= n; i += LANES) {
            vh h;
            memcpy(&h, from + 2 * i, sizeof h);
            ISA(v_store)(to + i, kind == KIND_FLOAT16 ? ISA(v_from_half)(h) : (vf)(__builtin_convertvector(h, vi) << 16));
        }
        for (; i < n; i++) {
            uint16_t h;
            memcpy(&h, from + 2 * i, 2);
            to[i] = kind == KIND_FLOAT16 ? half_to_float(h) : bits_float((uint32_t)h << 16);
        }
    }
    for (; i & 15; i++) to[i] = 0.0f;
}
