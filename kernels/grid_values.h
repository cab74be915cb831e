/* Stored parameters of groups, back to floats: what every kernel that decodes begins with. Part of a template. */

typedef struct { vf a1, a2, mu; } ISA(planes);

/* Value of codes in lanes. */
INLINE vf ISA(level_of)(vi code, ISA(planes) g) {
    const vi minus1 = (~code & 2) << 30, minus2 = (vi)((~code & 1) << 31);
    return (g.mu + (vf)((vi)g.a1 ^ minus1)) + (vf)((vi)g.a2 ^ minus2);
}

/* The levels 0, 1, 2, 3, again and again. */
INLINE vf ISA(four_levels)(ISA(planes) g) {
    vi lane;
    for (int i = 0; i < LANES; i++) lane[i] = i & 3;
    return ISA(level_of)(lane, g);
}

/* The floats of up to four blocks of a row, 0 where there are none. */
INLINE vf ISA(k_load_floats)(const uint8_t *row, int64_t block, int n_blocks, int wide) {
    vf to = {0};
    vh half = {0};
    for (int i = 0; i < 4; i++) {
        uint16_t x = 0;
        if (i < n_blocks && wide) to[i] = k_float(row, block + i, 1);
        else if (i < n_blocks) memcpy(&x, row + 2 * (block + i), 2);
        half[i] = x;
    }
    return wide ? to : ISA(v_from_half)(half);
}

/* STEP integers of `bits` bits, four in each of the first four words. */
INLINE vi ISA(k_load_words)(const uint8_t *integers, const int bits) {
    uint32_t word[4];
    for (int i = 0; i < 3; i++) memcpy(word + i, integers + i * bits / 2, 4);
    memcpy(word + 3, integers + 2 * bits - 4, 4); /* reads no further */
    return (vi){(int32_t)word[0], (int32_t)word[1], (int32_t)word[2], (int32_t)(word[3] >> (32 - 4 * bits))};
}

/* Of piece p, word lane / 4 in each lane. */
#if LANES == 16
#define FOUR_TIMES(words, p) SHUFFLE(words, words, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
#elif LANES == 8
#define FOUR_TIMES(words, p) ((p) ? SHUFFLE(words, words, 2, 2, 2, 2, 3, 3, 3, 3) : SHUFFLE(words, words, 0, 0, 0, 0, 1, 1, 1, 1))
#else
#define FOUR_TIMES(words, p) ((vi){0} + (words)[p])
#endif

/* n <= STEP values of a row from `group` on, a multiple of STEP; integers of `bits` bits. */
INLINE void ISA(k_load_values)(const uint8_t *row, const dequantize_job *job, int64_t group, int n, const int bits, float to[STEP]) {
    const int per_block = BLOCK / job->group_size;
    const uint8_t *integers = row + job->n_blocks * (job->wide ? 4 : 2) + group * bits / 8;
    vi words;
    if (n == STEP) words = ISA(k_load_words)(integers, bits);
    else {
        uint8_t bytes[STEP] = {0};
        memcpy(bytes, integers, (size_t)(n * bits + 7) / 8);
        words = ISA(k_load_words)(bytes, bits);
    }
    const vf d = ISA(k_load_floats)(row, group / per_block, (n + per_block - 1) / per_block, job->wide);
    EACH_PIECE {
        vi shift, lane;
        for (int i = 0; i < LANES; i++) {
            lane[i] = p * LANES + i;
            shift[i] = i % 4 * bits;
        }
        const vi code = FOUR_TIMES(words, p) >> shift & ((1 << bits) - 1);
        vf x = ISA(v_splat)(d[0]);
        for (int k = 1; k < 4; k++) x = ISA(v_select)(lane >= k * per_block, ISA(v_splat)(d[k]), x);
        ISA(v_store)(to + p * LANES, x * __builtin_convertvector(code, vf));
    }
}
#undef FOUR_TIMES

/* Stored parameters of up to STEP groups; scale and minor are a1 and a2 of levels. */
typedef struct { float scale[STEP], zero[STEP], minor[STEP]; } ISA(grid_values);

enum { ISA(ZERO_POINT), ISA(MINIMUM), ISA(LEVELS) };

/* Stored parameters of groups [first, first + n) of a row; first is a multiple of STEP. */
INLINE void ISA(load_grid)(const dequantize_job *job, int64_t row, int64_t first, int n, const int bits, const int grid,
                           ISA(grid_values) *v) {
    const int item = job->wide ? 4 : 2;
    const int64_t at = row * job->n_groups + first;
    if (grid == ISA(LEVELS)) {
        float pairs[2 * STEP];
        const uint8_t *from = job->scales + at * 2 * item;
        ISA(load_stored)(from, n < STEP / 2 ? 2 * n : STEP, job->wide, pairs);
        if (2 * n > STEP) ISA(load_stored)(from + STEP * item, 2 * n - STEP, job->wide, pairs + STEP);
        for (int g = 0; g < STEP; g++) {
            v->scale[g] = g < n ? pairs[2 * g] : 0.0f;
            v->minor[g] = g < n ? pairs[2 * g + 1] : 0.0f;
        }
    } else if (grid == ISA(MINIMUM) && job->k_bits) {
        const int k_bits = bits == 4 ? 6 : 4;
        ISA(k_load_values)(job->scales + row * job->k_stride, job, first, n, k_bits, v->scale);
        ISA(k_load_values)(job->zeros + row * job->k_stride, job, first, n, k_bits, v->zero);
        EACH_PIECE ISA(v_store)(v->zero + p * LANES, -ISA(v_load)(v->zero + p * LANES));
        return;
    } else ISA(load_stored)(job->scales + at * item, n, job->wide, v->scale);
    if (grid == ISA(ZERO_POINT)) ISA(load_codes)(job->zeros + row * job->zeros_stride + first * bits / 8, n, bits, v->zero);
    else ISA(load_stored)(job->zeros + at * item, n, job->wide, v->zero);
}
