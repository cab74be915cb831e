/* Hadamard transform of rows, written once for every instruction set: the including file sets ROT(name), LANES and
 * SWAP1, SWAP2, ... (lanes at distance 1, 2, ... exchanged). Sums and differences of two at a time in a fixed order, no
 * contraction: the same bytes everywhere. */

typedef float ROT(vf) __attribute__((vector_size(4 * LANES)));
typedef int32_t ROT(vi) __attribute__((vector_size(4 * LANES)));
#define vf ROT(vf)
#define vi ROT(vi)

/* a + b in the lanes whose bit `distance` is clear, a - b in the others, where a and b stand at that distance. */
#define WITHIN(x, distance, ...)                                                       \
    (SHUFFLE(x, __VA_ARGS__) + (vf)((vi)(x) ^ (lane_bit(distance) & signs)))

/* Unnormalised transform in place, length a power of two, a multiple of LANES. */
static inline __attribute__((always_inline)) void ROT(hadamard)(float *x, int64_t length) {
    const vi signs = (vi){0} + INT32_MIN;
    vi lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
#define lane_bit(distance) ((lane & (distance)) != 0)
    for (int64_t i = 0; i < length; i += LANES) {
        vf a;
        memcpy(&a, x + i, sizeof a);
        a = WITHIN(a, 1, SWAP1);
        a = WITHIN(a, 2, SWAP2);
#if LANES > 4
        a = WITHIN(a, 4, SWAP4);
#endif
#if LANES > 8
        a = WITHIN(a, 8, SWAP8);
#endif
        memcpy(x + i, &a, sizeof a);
    }
#undef lane_bit
    int64_t h = LANES;
    for (; 4 * h <= length; h *= 4) /* two stages in one pass */
        for (int64_t i = 0; i < length; i += 4 * h)
            for (int64_t j = i; j < i + h; j += LANES) {
                vf a, b, c, d;
                memcpy(&a, x + j, sizeof a);
                memcpy(&b, x + j + h, sizeof b);
                memcpy(&c, x + j + 2 * h, sizeof c);
                memcpy(&d, x + j + 3 * h, sizeof d);
                const vf e = a + b, f = a - b, g = c + d, k = c - d;
                a = e + g; b = f + k; c = e - g; d = f - k;
                memcpy(x + j, &a, sizeof a);
                memcpy(x + j + h, &b, sizeof b);
                memcpy(x + j + 2 * h, &c, sizeof c);
                memcpy(x + j + 3 * h, &d, sizeof d);
            }
    for (; h < length; h *= 2)
        for (int64_t j = 0; j < h; j += LANES) {
            vf a, b, e;
            memcpy(&a, x + j, sizeof a);
            memcpy(&b, x + j + h, sizeof b);
            e = a + b;
            b = a - b;
            memcpy(x + j, &e, sizeof e);
            memcpy(x + j + h, &b, sizeof b);
        }
}

/* Rows [start, stop) in place: times the signs and transformed, or when `backward` transformed and times the signs. */
static void ROT(rotate_block)(const rotation_job *job, int64_t start, int64_t stop) {
    const int64_t n = job->columns;
    for (float *x = job->values + start * n; x < job->values + stop * n; x += n) {
        if (!job->backward)
            for (int64_t j = 0; j < n; j++) x[j] *= job->signs[j];
        for (int64_t i = 0; i < n; i += job->length) ROT(hadamard)(x + i, job->length);
        if (job->backward)
            for (int64_t j = 0; j < n; j++) x[j] *= job->signs[j];
    }
}

#undef WITHIN
#undef vf
#undef vi
