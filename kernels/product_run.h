/* A product on OpenMP threads: one region, for waking threads that sleep can take as long as multiplying a token.
 *
 * Panels never share an output, and each is summed in an order of its own, so the bytes do not depend on the number of
 * threads. `nbytes` of scratch are each thread's own. */
#ifndef ARROWQUANT_PRODUCT_RUN_H
#define ARROWQUANT_PRODUCT_RUN_H

#include "product.h"
#include "rounding.h"
#include <sched.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static inline uint8_t *own_part(uint8_t *scratch, int64_t nbytes) {
#ifdef _OPENMP
    scratch += omp_get_thread_num() * nbytes;
#endif
    return scratch;
}

/* Wait for what takes microseconds; longer only if there are more threads than cores. */
static inline void wait_for(const int *done) {
    int tries = 0;
    while (!__atomic_load_n(done, __ATOMIC_ACQUIRE)) {
        if (tries == 10000) {
            sched_yield();
            continue;
        }
        tries++;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

static inline int64_t count_panels(const dequantize_job *w) { return (w->rows + PANEL_ROWS - 1) / PANEL_ROWS; }

/* A part of the inputs, or a panel of W, of a float_product or a code_product; `own` is scratch of the thread. */
typedef void product_part(const product_set *isa, const void *job, int64_t i, uint8_t *own);

static void order_part(const product_set *isa, const void *job, int64_t i, uint8_t *own) {
    (void)own;
    isa->order_inputs(job, i);
}

static void float_part(const product_set *isa, const void *job, int64_t i, uint8_t *own) { isa->float_panel(job, i, (float *)own); }

static void encode_part(const product_set *isa, const void *job, int64_t i, uint8_t *own) {
    isa->encode_inputs(((const code_product *)job)->inputs, i, (int8_t *)own);
}

static void code_part(const product_set *isa, const void *job, int64_t i, uint8_t *own) { isa->code_panel(job, i, own); }

/* Inputs are laid out by all threads, or, if `alone`, by the first that is there. */
static inline void run_product(const product_set *isa, const void *job, product_part *lay_out, int64_t n_parts, int alone,
                               product_part *multiply, int64_t n_panels, uint8_t *scratch, int64_t nbytes, int n_threads) {
    int done = 0;
    (void)n_threads;
#pragma omp parallel num_threads(n_threads)
    {
        const uint64_t before = default_rounding(); /* each thread has its own */
        uint8_t *own = own_part(scratch, nbytes);
        if (alone) {
#pragma omp single nowait
            {
                for (int64_t i = 0; i < n_parts; i++) lay_out(isa, job, i, own);
                __atomic_store_n(&done, 1, __ATOMIC_RELEASE);
            }
            wait_for(&done);
        } else {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_parts; i++) lay_out(isa, job, i, own);
        }
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < n_panels; i++) multiply(isa, job, i, own);
        restore_rounding(before);
    }
}

static void run_floats(const product_set *isa, const float_product *job, int alone, uint8_t *scratch, int64_t nbytes, int n_threads) {
    run_product(isa, job, order_part, isa->ordered_parts(job), alone, float_part, count_panels(&job->weight), scratch, nbytes, n_threads);
}

static void run_codes(const product_set *isa, const code_product *job, int64_t n_parts, uint8_t *scratch, int64_t nbytes, int n_threads) {
    run_product(isa, job, encode_part, n_parts, n_parts == 1, code_part, count_panels(&job->weight), scratch, nbytes, n_threads);
}

#endif
