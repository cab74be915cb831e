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

/* n <= STEP values of a row from `group` on, a multiple of STEP. */
INLINE void ISA(k_load_values)(const uint8_t *row, const dequantize_job *job, int64_t group, int n, float to[STEP]) {
    const int bits = job->k_bits, per_block = BLOCK / job->group_size;
    const uint8_t *integers = row + job->n_blocks * (job->wide ? 4 : 2);
    uint8_t bytes[STEP] = {0};
    int32_t codes[STEP];
    float d[STEP];
    memcpy(bytes, integers + group * bits / 8, (size_t)(n * bits + 7) / 8);
    for (int i = 0; i < STEP; i += 4) {
        uint32_t word;
        memcpy(&word, bytes + i * bits / 8, 4);
        for (int k = 0; k < 4; k++) codes[i + k] = (int32_t)(word >> (k * bits) & ((1u << bits) - 1));
    }
    for (int i = 0; i < STEP; i += per_block) {
        const float x = i < n ? k_float(row, (group + i) / per_block, job->wide) : 0.0f;
        for (int k = i; k < i + per_block; k++) d[k] = x;
    }
    EACH_PIECE {
        vi c;
        memcpy(&c, codes + p * LANES, sizeof c);
        ISA(v_store)(to + p * LANES, ISA(v_load)(d + p * LANES) * __builtin_convertvector(c, vf));
    }
}

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
        ISA(k_load_values)(job->scales + row * job->k_stride, job, first, n, v->scale);
        ISA(k_load_values)(job->zeros + row * job->k_stride, job, first, n, v->zero);
        EACH_PIECE ISA(v_store)(v->zero + p * LANES, -ISA(v_load)(v->zero + p * LANES));
        return;
    } else ISA(load_stored)(job->scales + at * item, n, job->wide, v->scale);
    if (grid == ISA(ZERO_POINT)) ISA(load_codes)(job->zeros + row * job->zeros_stride + first * bits / 8, n, bits, v->zero);
    else ISA(load_stored)(job->zeros + at * item, n, job->wide, v->zero);
}
