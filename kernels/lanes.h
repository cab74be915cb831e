/* Lanes of the instruction set that is being compiled: loads, stores, and folds of many vectors into one. The including
 * file has set ISA(name), LANES and the operations that vector extensions cannot express; lanes_end.h takes all back. */

#define vf ISA(vf)
#define vi ISA(vi)
#define vh ISA(vh)
#define v_min ISA(v_min)
#define v_max ISA(v_max)
#define v_max_abs ISA(v_max_abs)
#define PIECES (STEP / LANES) /* vectors that make up a step */
#define EACH_PIECE for (int p = 0; p < PIECES; p++)
#define EACH_TILE for (int p = 0; p < BATCH / LANES; p++) /* the groups of a batch, LANES at a time */
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf ISA(v_load)(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
INLINE void ISA(v_store)(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf ISA(v_splat)(float x) { return x - (vf){0}; }
INLINE vf ISA(v_select)(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
INLINE vf ISA(v_round_half)(vf x) { return ISA(v_from_half)(ISA(v_to_half)(x)); }

/* Lanes of p[0..PIECES-1] folded l with l + 8, l + 4, ... down to one vector of LANES partial results. */
#define FOLD(name, OP)                                                                             \
    INLINE vf ISA(name##_pieces)(const float *p) {                                                 \
        vf x[PIECES];                                                                              \
        for (int i = 0; i < PIECES; i++) x[i] = ISA(v_load)(p + i * LANES);                        \
        for (int half = PIECES / 2; half; half /= 2)                                               \
            for (int i = 0; i < half; i++) x[i] = OP(x[i], x[i + half]);                           \
        return x[0];                                                                               \
    }                                                                                              \
    /* out[g] = fold of the partial results in[g], for all groups of a batch */                    \
    INLINE void ISA(name)(float in[BATCH][STEP], float out[BATCH]) {                               \
        EACH_TILE {                                                                                \
            vf x[LANES];                                                                           \
            for (int g = 0; g < LANES; g++) x[g] = ISA(name##_pieces)(in[p * LANES + g]);          \
            ISA(v_store)(out + p * LANES, FOLD_TREE(x, OP));                                       \
        }                                                                                          \
    }
#define ADD(a, b) ((a) + (b))

#if LANES == 16
#define STEP8(a, b, OP) OP(SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23), \
                           SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#define STEP4(a, b, OP) OP(SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27), \
                           SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
#define STEP2(a, b, OP) OP(SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29), \
                           SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))
#define STEP1(a, b, OP) OP(SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), \
                           SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
#define FOLD_TREE(x, OP)                                                                      \
    ({                                                                                        \
        for (int i = 0; i < 8; i++) x[i] = STEP8(x[2 * i], x[2 * i + 1], OP);                 \
        for (int i = 0; i < 4; i++) x[i] = STEP4(x[2 * i], x[2 * i + 1], OP);                 \
        for (int i = 0; i < 2; i++) x[i] = STEP2(x[2 * i], x[2 * i + 1], OP);                 \
        STEP1(x[0], x[1], OP);                                                                \
    })
#elif LANES == 8
#define STEP4(a, b, OP) OP(SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11), SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#define STEP2(a, b, OP) OP(SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13), SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15))
#define STEP1(a, b, OP) OP(SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14), SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15))
#define FOLD_TREE(x, OP)                                                                      \
    ({                                                                                        \
        for (int i = 0; i < 4; i++) x[i] = STEP4(x[2 * i], x[2 * i + 1], OP);                 \
        for (int i = 0; i < 2; i++) x[i] = STEP2(x[2 * i], x[2 * i + 1], OP);                 \
        STEP1(x[0], x[1], OP);                                                                \
    })
#else
#define STEP2(a, b, OP) OP(SHUFFLE(a, b, 0, 1, 4, 5), SHUFFLE(a, b, 2, 3, 6, 7))
#define STEP1(a, b, OP) OP(SHUFFLE(a, b, 0, 2, 4, 6), SHUFFLE(a, b, 1, 3, 5, 7))
#define FOLD_TREE(x, OP)                                                                      \
    ({                                                                                        \
        for (int i = 0; i < 2; i++) x[i] = STEP2(x[2 * i], x[2 * i + 1], OP);                 \
        STEP1(x[0], x[1], OP);                                                                \
    })
#endif
FOLD(fold_sum, ADD)
FOLD(fold_min, v_min)
FOLD(fold_max, v_max)
