/* Codes and error sums of groups, elements in lanes. Part of the rows.h template.
 * `zero` is the zero-point code or the minimum. */

typedef float ISA(partials)[BATCH][STEP];

typedef struct { vf ww[PIECES], wq[PIECES], ee[PIECES]; } ISA(sums);

/* Lanes of element k + lane < length keep their value, the padding of a tail becomes 0. */
INLINE vf ISA(within)(vf x, int k, int length) {
    vi lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (vf)((vi)x & (lane < length - k - (vi){0}));
}

/* How the groups of a batch turn weights into codes. A scale of 0, which the k format has, makes every code 0. */
typedef struct {
    float s[BATCH], m[BATCH];       /* scale and minimum */
    float low[BATCH], high[BATCH];  /* clip to these before rounding */
    float reciprocal[BATCH];
    int32_t to_code[BATCH];         /* from the bits of the rounded quotient + MAGIC to the code */
} ISA(grids);

INLINE void ISA(make_grids)(const float *scale, const float *zero, int n, const int minimum, ISA(grids) *grids) {
    EACH_TILE {
        const vf stored = ISA(v_load)(scale + p * LANES), z = ISA(v_load)(zero + p * LANES);
        const vi flat = stored == (vf){0};
        const vf s = ISA(v_select)(flat, ISA(v_splat)(1.0f), stored), levels = ISA(v_select)(flat, (vf){0}, ISA(v_splat)((float)n));
        const vi to_code = (minimum ? (vi){0} : __builtin_convertvector(z, vi)) - MAGIC_BITS;
        ISA(v_store)(grids->s + p * LANES, s);
        ISA(v_store)(grids->m + p * LANES, z);
        ISA(v_store)(grids->low + p * LANES, minimum ? (vf){0} : -z);
        ISA(v_store)(grids->high + p * LANES, minimum ? levels : levels - z);
        ISA(v_store)(grids->reciprocal + p * LANES, ISA(v_splat)(1.0f) / s);
        memcpy(grids->to_code + p * LANES, &to_code, sizeof to_code);
    }
}

/* Dequantized value of x in group g; its code goes to *code. */
INLINE vf ISA(encode_lanes)(vf x, const ISA(grids) *grids, int g, const int minimum, vi *code) {
    const vf s = ISA(v_splat)(grids->s[g]), m = ISA(v_splat)(grids->m[g]);
    vf t = v_max((minimum ? x - m : x) / s, ISA(v_splat)(grids->low[g]));
    t = v_min(t, ISA(v_splat)(grids->high[g])) + ISA(v_splat)(MAGIC);
    *code = (vi)t + grids->to_code[g];
    t -= ISA(v_splat)(MAGIC);
    return minimum ? t * s + m : t * s;
}

#define EACH_VECTOR for (int j = 0; j < 4; j++)

/* Group g, four vectors at a time, straight from registers to packed bytes; length is a multiple of 4 * LANES.
 *
 * The quotient is taken as x * (1 / s). It differs from x / s by less than n * 2^-22 steps, so both round to the same code
 * unless it lies about that close to the middle between two codes; then the four vectors are divided instead. With `within`
 * the weights span the grid, as in rtn: then clipping can only matter in the middle too, and the error e tells the distance. */
INLINE void ISA(encode_whole)(const float *w, int length, const int bits, const int minimum, const int within,
                              const ISA(grids) *grids, int g, int divide, uint8_t *packed, float *ww, float *wq, float *ee) {
    const vf magic = ISA(v_splat)(MAGIC), s = ISA(v_splat)(grids->s[g]), m = ISA(v_splat)(grids->m[g]);
    const vf near_middle = ISA(v_splat)((0.5f - (float)((1 << bits) - 1) * 0x1p-21f) * (within ? grids->s[g] : 1.0f));
    vf sum_ww[PIECES], sum_wq[PIECES], sum_ee[PIECES];
    EACH_PIECE sum_ww[p] = sum_wq[p] = sum_ee[p] = (vf){0};
    for (int k = 0; k < length; k += 4 * LANES) {
        vf x[4], q[4], t[4], e[4];
        vi code[4];
        EACH_VECTOR x[j] = ISA(v_load)(w + k + j * LANES);
        EACH_VECTOR t[j] = (minimum ? x[j] - m : x[j]) * ISA(v_splat)(grids->reciprocal[g]);
        if (!within) {
            EACH_VECTOR t[j] = v_max(t[j], ISA(v_splat)(grids->low[g]));
            EACH_VECTOR t[j] = v_min(t[j], ISA(v_splat)(grids->high[g]));
        }
        EACH_VECTOR q[j] = t[j] + magic;
        EACH_VECTOR code[j] = (vi)q[j] + grids->to_code[g];
        EACH_VECTOR q[j] -= magic;
        EACH_VECTOR t[j] -= q[j];
        EACH_VECTOR q[j] = minimum ? q[j] * s + m : q[j] * s;
        EACH_VECTOR e[j] = q[j] - x[j];
        const vf *distance = within ? e : t;
        const vf furthest = v_max_abs(v_max_abs(distance[0], distance[1]), v_max_abs(distance[2], distance[3]));
        if (__builtin_expect(divide || ISA(v_any)(furthest > near_middle), 0)) EACH_VECTOR {
            q[j] = ISA(encode_lanes)(x[j], grids, g, minimum, &code[j]);
            e[j] = q[j] - x[j];
        }
        ISA(store_codes)(code, bits, packed + k * bits / 8);
        EACH_VECTOR sum_ww[j % PIECES] += x[j] * x[j];
        EACH_VECTOR sum_wq[j % PIECES] += x[j] * q[j];
        EACH_VECTOR sum_ee[j % PIECES] += e[j] * e[j];
    }
    EACH_PIECE {
        ISA(v_store)(ww + p * LANES, sum_ww[p]);
        ISA(v_store)(wq + p * LANES, sum_wq[p]);
        ISA(v_store)(ee + p * LANES, sum_ee[p]);
    }
}

/* Any length: one code a byte, packed later. */
INLINE void ISA(encode_any)(const float *w, int length, const int minimum, const ISA(grids) *grids, int g, uint8_t *codes,
                            ISA(sums) *sums) {
    for (int k = 0; k < length; k += STEP) EACH_PIECE {
        vi code;
        vf x = ISA(v_load)(w + k + p * LANES), q = ISA(encode_lanes)(x, grids, g, minimum, &code), e = q - x;
        ISA(v_to_bytes)(code, codes + k + p * LANES);
        if (k + STEP > length) e = ISA(within)(e, k + p * LANES, length);
        sums->ww[p] += x * x;
        sums->wq[p] += x * q;
        sums->ee[p] += e * e;
    }
    if (length & 15) memset(codes + length, 0, (size_t)(-length & 15));
}

/* Error sums from codes that stay, after the gain correction. */
INLINE void ISA(score)(const float *w, const uint8_t *packed, int length, const int bits, const int minimum, float scale,
                       float zero, ISA(sums) *sums) {
    const vf s = ISA(v_splat)(scale), m = ISA(v_splat)(zero);
    for (int k = 0; k < length; k += STEP) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k * bits / 8, bits, codes);
        EACH_PIECE {
            vf x = ISA(v_load)(w + k + p * LANES), c = __builtin_convertvector(codes[p], vf);
            vf q = minimum ? c * s + m : (c - m) * s, e = q - x;
            if (k + STEP > length) e = ISA(within)(e, k + p * LANES, length);
            sums->wq[p] += x * q;
            sums->ee[p] += e * e;
        }
    }
}

/* The same sums in double, for tensors whose weights would overflow or vanish when squared in float32. */
static void ISA(wide_sums)(const float *w, const uint8_t *packed, int length, int bits, float scale, float zero, float minor, int grid,
                           double sums[3]) {
    double partial[3][BATCH] = {{0}};
    for (int k = 0; k < length; k++) {
        int bit = k * bits, code = packed[bit >> 3] >> (bit & 7) & ((1 << bits) - 1);
        float q = grid == GRID_MINIMUM ? (float)code * scale + zero : ((float)code - zero) * scale;
        if (grid == GRID_LEVELS) q = (zero + (code & 2 ? scale : -scale)) + (code & 1 ? minor : -minor);
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
