/* The rotation kernel for every instruction set, and the choice between them. */
#ifndef ARROWQUANT_ROTATION_H
#define ARROWQUANT_ROTATION_H

#include <stdint.h>
#include <string.h>
#include "rounding.h"

typedef struct {
    float *values;      /* IN and OUT rows x columns */
    const float *signs; /* IN columns: +- 1 / sqrt(length) */
    int64_t columns;    /* a multiple of length */
    int64_t length;     /* of a block: a power of two, 16 or more */
    int backward;
} rotation_job;

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLE(x, ...) __builtin_shuffle(x, (vi){__VA_ARGS__})
#endif

#define ROT(name) name##_scalar
#define LANES 4
#define SWAP1 1, 0, 3, 2
#define SWAP2 2, 3, 0, 1
#include "rotation_rows.h"
#undef ROT
#undef LANES
#undef SWAP1
#undef SWAP2

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define ROT(name) name##_avx2
#define LANES 8
#define SWAP1 1, 0, 3, 2, 5, 4, 7, 6
#define SWAP2 2, 3, 0, 1, 6, 7, 4, 5
#define SWAP4 4, 5, 6, 7, 0, 1, 2, 3
#include "rotation_rows.h"
#undef ROT
#undef LANES
#undef SWAP1
#undef SWAP2
#undef SWAP4
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,prefer-vector-width=512")
#endif
#define ROT(name) name##_avx512
#define LANES 16
#define SWAP1 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#define SWAP2 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13
#define SWAP4 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11
#define SWAP8 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#include "rotation_rows.h"
#undef ROT
#undef LANES
#undef SWAP1
#undef SWAP2
#undef SWAP4
#undef SWAP8
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

typedef void (*rotation)(const rotation_job *job, int64_t start, int64_t stop);

/* Kernel for the lanes of an instruction set that this machine is known to run: 4 (any machine), 8 or 16. */
static inline rotation rotation_for(int lanes) {
#if defined(__x86_64__)
    if (lanes == 8) return rotate_block_avx2;
    if (lanes == 16) return rotate_block_avx512;
#endif
    (void)lanes;
    return rotate_block_scalar;
}

static inline void run_rotation(rotation kernel, const rotation_job *job, int64_t start, int64_t stop) {
    uint64_t before = default_rounding();
    kernel(job, start, stop);
    restore_rounding(before);
}

#endif
