/* Codes and error sums of groups, elements in lanes. Part of the rows.h template.
 * Element k of a group adds to partial sum k % 16; `zero` is the zero-point code or the minimum. */

typedef float ISA(partials)[BATCH][BATCH]; /* [group][lane] */

typedef struct { vf ww[PIECES], wq[PIECES], ee[PIECES]; } ISA(sums);

/* Lanes of element k + lane < length keep their value, the padding of a tail becomes 0. */
INLINE vf ISA(within)(vf x, int k, int length) {
    vi lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (vf)((vi)x & (lane < length - k - (vi){0}));
}

typedef struct { vf s, m, low, high, reciprocal, doubt; vi to_code; int minimum; } ISA(grid);

INLINE ISA(grid) ISA(make_grid)(float scale, float zero, int n, const int minimum) {
    return (ISA(grid)){
        .s = ISA(v_splat)(scale), .m = ISA(v_splat)(zero),
        .low = ISA(v_splat)(minimum ? 0.0f : -zero), .high = ISA(v_splat)(minimum ? (float)n : (float)n - zero),
        .reciprocal = ISA(v_splat)(1.0f / scale), .doubt = ISA(v_splat)(0.5f - (float)n * 0x1p-22f),
        .to_code = (minimum ? 0 : (int32_t)zero) - MAGIC_BITS - (vi){0}, .minimum = minimum};
}

/* Dequantized value of x; its code goes to *code. */
INLINE vf ISA(encode_lanes)(vf x, const ISA(grid) *grid, vi *code) {
    vf t = v_min(v_max((grid->minimum ? x - grid->m : x) / grid->s, grid->low), grid->high) + ISA(v_splat)(MAGIC);
    *code = (vi)t + grid->to_code;
    t -= ISA(v_splat)(MAGIC);
    return grid->minimum ? t * grid->s + grid->m : t * grid->s;
}

/* Four vectors at a time, straight from registers to packed bytes; length is a multiple of 4 * LANES.
 *
 * The quotient is taken as x * (1 / s). It differs from x / s by less than n * 2^-22 steps, so both round to the same code
 * unless it lies that close to the middle between two codes; then all four vectors are divided instead. */
INLINE void ISA(encode_whole)(const float *w, int length, const int bits, const ISA(grid) *grid, int divide, uint8_t *packed,
                              ISA(sums) *sums) {
    for (int k = 0; k < length; k += 4 * LANES) {
        vf x[4], q[4], t[4], furthest = (vf){0};
        vi code[4];
        for (int j = 0; j < 4; j++) {
            x[j] = ISA(v_load)(w + k + j * LANES);
            t[j] = (grid->minimum ? x[j] - grid->m : x[j]) * grid->reciprocal;
        }
        for (int j = 0; j < 4; j++) t[j] = v_min(v_max(t[j], grid->low), grid->high);
        for (int j = 0; j < 4; j++) {
            q[j] = t[j] + ISA(v_splat)(MAGIC);
            code[j] = (vi)q[j] + grid->to_code;
            q[j] -= ISA(v_splat)(MAGIC);
            furthest = v_max_abs(furthest, t[j] - q[j]);
            q[j] = grid->minimum ? q[j] * grid->s + grid->m : q[j] * grid->s;
        }
        if (__builtin_expect(divide || ISA(v_any)(furthest > grid->doubt), 0))
            for (int j = 0; j < 4; j++) q[j] = ISA(encode_lanes)(x[j], grid, &code[j]);
        ISA(store_codes)(code, bits, packed + k * bits / 8);
        for (int j = 0; j < 4; j++) {
            const vf e = q[j] - x[j];
            sums->ww[j % PIECES] += x[j] * x[j];
            sums->wq[j % PIECES] += x[j] * q[j];
            sums->ee[j % PIECES] += e * e;
        }
    }
}

/* Any length: one code a byte, packed later. */
INLINE void ISA(encode_any)(const float *w, int length, const ISA(grid) *grid, uint8_t *codes, ISA(sums) *sums) {
    for (int k = 0; k < length; k += BATCH) EACH_PIECE {
        vi code;
        vf x = ISA(v_load)(w + k + p * LANES), q = ISA(encode_lanes)(x, grid, &code), e = q - x;
        ISA(v_to_bytes)(code, codes + k + p * LANES);
        if (k + BATCH > length) e = ISA(within)(e, k + p * LANES, length);
        sums->ww[p] += x * x;
        sums->wq[p] += x * q;
        sums->ee[p] += e * e;
    }
    if (length & 15) memset(codes + length, 0, (size_t)(-length & 15));
}

/* Error sums from codes that stay, after the gain correction. */
INLINE void ISA(score)(const float *w, const uint8_t *packed, int length, const int bits, const ISA(grid) *grid, ISA(sums) *sums) {
    for (int k = 0; k < length; k += BATCH) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k * bits / 8, bits, codes);
        EACH_PIECE {
            vf x = ISA(v_load)(w + k + p * LANES), c = __builtin_convertvector(codes[p], vf);
            vf q = grid->minimum ? c * grid->s + grid->m : (c - grid->m) * grid->s, e = q - x;
            if (k + BATCH > length) e = ISA(within)(e, k + p * LANES, length);
            sums->wq[p] += x * q;
            sums->ee[p] += e * e;
        }
    }
}

/* The same sums in double, for tensors whose weights would overflow or vanish when squared in float32. */
static void ISA(wide_sums)(const float *w, const uint8_t *packed, int length, int bits, float scale, float zero, int minimum,
                           double sums[3]) {
    double partial[3][BATCH] = {{0}};
    for (int k = 0; k < length; k++) {
        int bit = k * bits, code = packed[bit >> 3] >> (bit & 7) & ((1 << bits) - 1);
        float q = minimum ? (float)code * scale + zero : ((float)code - zero) * scale;
        double x = w[k], e = (double)q - x;
        partial[0][k & 15] += x * x;
        partial[1][k & 15] += x * (double)q;
        partial[2][k & 15] += e * e;
    }
    for (int i = 0; i < 3; i++) {
        for (int half = 8; half; half /= 2)
            for (int l = 0; l < half; l++) partial[i][l] += partial[i][l + half];
        sums[i] = partial[i][0];
    }
}
