/* What a kernel is given: one matrix, its buffers, and a block of its rows.
 * Shared by every instruction set; knows nothing of Python. */
#ifndef ARROWQUANT_JOB_H
#define ARROWQUANT_JOB_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { KIND_FLOAT32 = 0, KIND_FLOAT16 = 1, KIND_BFLOAT16 = 2 };
enum { METHOD_RTN = 0, METHOD_MSE = 1, METHOD_ULS = 2, METHOD_HQQ = 3, METHOD_R2Q = 4 };
enum { GRID_ZERO_POINT = 0, GRID_MINIMUM = 1, GRID_LEVELS = 2 };
enum { STATUS_NOT_USABLE = 1, STATUS_NEEDS_FLOAT32 = 2 };
enum {
    STEP = 16,      /* elements a step: element k of a group adds to partial sum k % STEP */
    BATCH = 32,     /* groups in flight */
    MAX_GROUP = 256,
    BLOCK = 256,     /* weights of one row under one pair of float16, in the k format */
    MAX_K_GROUP = 64 /* so that a batch holds whole blocks: BLOCK / 64 ... BLOCK / 16 groups each */
};

typedef struct {
    const uint8_t *weight;   /* IN rows x columns of `kind`, any alignment */
    const float *importance; /* IN columns, or NULL */
    uint8_t *packed;         /* OUT rows x packed_stride */
    uint8_t *scales;         /* OUT rows x n_groups float16, float32 when wide; pairs a1, a2 (r2q); k: rows x k_stride */
    uint8_t *zeros;          /* OUT minima (uls, hqq) or offsets (r2q) like the scales, else packed codes rows x zeros_stride */
    double *sums;            /* OUT rows x 4: ww, wq, ee, max abs */
    uint8_t *status;         /* OUT rows */
    int64_t rows, columns, n_groups, packed_stride, zeros_stride;
    int64_t k_stride, n_blocks; /* of the k format */
    int kind, bits, group_size, method, gain, wide;
    int k_bits; /* bits of an integer scale or minimum: 6 or 4; 0 = one float per group */
} quantize_job;

typedef struct {
    const uint8_t *packed, *scales, *zeros; /* IN as above */
    uint8_t *out;                           /* OUT rows x columns of `kind` */
    int64_t rows, columns, n_groups, packed_stride, zeros_stride;
    int64_t k_stride, n_blocks;
    int kind, bits, group_size, minimum, wide, k_bits;
    int levels; /* pairs a1, a2 as scales, with minimum = 1 */
} dequantize_job;

static const float FLOAT16_TINY = 0x1p-24f;  /* floor of a float16 scale */
static const float FLOAT16_FLUSH = 0x1p-25f; /* at or below, float16 rounds to 0 */
static const float FLOAT32_TINY = 0x1p-149f;
static const float SEARCH_FLOOR = 0x1p-48f;  /* floor of a scale while groups are normalised to [1, 2) */
static const float MAX_WEIGHT = 0x1p125f;    /* twice the range of a group still is a float32 */
static const float MAGIC = 12582912.0f;      /* 1.5 * 2^23: adding it rounds to an integer, half to even */
static const int32_t MAGIC_BITS = 0x4B400000;

static const float LEVELS_RIDGE = 0x1p-20f;       /* weight of a level's present value, of a group's whole weight */
static const float LEVELS_LEAST_WEIGHT = 0x1p-60f; /* the largest importance of a matrix is in [1, 2) */
enum { LEVELS_REFITS = 8, HQQ_STEPS = 20 };

/* Grid of a method. */
static inline int grid_of(int method) {
    return method == METHOD_R2Q ? GRID_LEVELS : method == METHOD_ULS || method == METHOD_HQQ ? GRID_MINIMUM : GRID_ZERO_POINT;
}

#define SHRINK(step, i) (float)(1.0 - (step) * (i))
static const float MSE_SHRINKS[9] = {
    SHRINK(0.075, 0), SHRINK(0.075, 1), SHRINK(0.075, 2), SHRINK(0.075, 3), SHRINK(0.075, 4),
    SHRINK(0.075, 5), SHRINK(0.075, 6), SHRINK(0.075, 7), SHRINK(0.075, 8)};
static const float ULS_SHRINKS[12] = {
    SHRINK(0.05, 0), SHRINK(0.05, 1), SHRINK(0.05, 2), SHRINK(0.05, 3), SHRINK(0.05, 4), SHRINK(0.05, 5),
    SHRINK(0.05, 6), SHRINK(0.05, 7), SHRINK(0.05, 8), SHRINK(0.05, 9), SHRINK(0.05, 10), SHRINK(0.05, 11)};
#undef SHRINK
/* Steps by which the ends of a range move inwards: of 64 pairs the eight that together leave the least error, measured. */
static const double RANGE_SHIFTS[8][2] = {{0.0, 0.0}, {0.0, 0.4}, {-0.2, 0.6}, {0.2, -0.2},
                                          {0.4, -0.4}, {0.4, 0.6}, {0.6, 0.4}, {0.8, 0.2}};

#endif
