/* Unpacking of codes into lanes, and conversion of stored weights to float32. Part of the rows.h template.
 * Code i of a byte lies in bits [i * bits, (i + 1) * bits). */

typedef uint64_t ISA(vq) __attribute__((vector_size(4 * LANES)));

/* IN 2 * bits bytes at `packed`; OUT sixteen codes in lanes. */
INLINE void ISA(unpack_sixteen)(const uint8_t *packed, const int bits, vi out[PIECES]) {
    if (bits == 8) {
        EACH_PIECE out[p] = ISA(v_from_bytes)(packed + p * LANES);
        return;
    }
    vi shift;
    for (int i = 0; i < LANES; i++) shift[i] = (i * bits) & 31;
    EACH_PIECE {
        vi word;
#if LANES == 16
        if (bits == 4) { /* eight codes in each half of a 64-bit word */
            uint64_t bytes;
            memcpy(&bytes, packed, 8);
            word = (vi)(bytes - (ISA(vq)){0});
            out[p] = (SHUFFLE(word, word, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1) >> shift) & 15;
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

INLINE void ISA(load_one)(const uint8_t *from, int wide, float *to) {
    uint16_t half;
    if (wide) { memcpy(to, from, 4); return; }
    memcpy(&half, from, 2);
    *to = half_to_float(half);
}

/* n <= STEP stored scales or minima. */
INLINE void ISA(load_stored)(const uint8_t *from, int n, int wide, float to[STEP]) {
    if (wide) { memcpy(to, from, (size_t)n * 4); return; }
    uint16_t half[STEP] = {0};
    if (n == STEP) memcpy(half, from, sizeof half); /* no call */
    else memcpy(half, from, (size_t)n * 2);
    ISA(widen)((const uint8_t *)half, KIND_FLOAT16, STEP, to);
}

INLINE void ISA(to_halves)(const float from[BATCH], uint16_t to[BATCH]) {
    EACH_TILE {
        vh h = ISA(v_to_half)(ISA(v_load)(from + p * LANES));
        memcpy(to + p * LANES, &h, sizeof h);
    }
}

/* n <= STEP packed zero-point codes. */
INLINE void ISA(load_codes)(const uint8_t *packed, int n, const int bits, float to[STEP]) {
    uint8_t bytes[STEP] = {0};
    vi codes[PIECES];
    if (n == STEP) memcpy(bytes, packed, STEP * bits / 8);
    else memcpy(bytes, packed, (size_t)(n * bits + 7) / 8);
    ISA(unpack_sixteen)(bytes, bits, codes);
    EACH_PIECE ISA(v_store)(to + p * LANES, __builtin_convertvector(codes[p], vf));
}
