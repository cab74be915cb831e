/* A product on OpenMP threads: one region, for waking threads that sleep can take as long as multiplying a token.
 *
 * Panels never share an output, and each is summed in an order of its own, so the bytes do not depend on the number of
 * threads. `nbytes` of scratch are each thread's own. */
#ifndef ARROWQUANT_PRODUCT_RUN_H
#define ARROWQUANT_PRODUCT_RUN_H

#include "product.h"
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

/* Inputs are laid out by all threads, or, if `alone`, by the first that is there. */
static void run_floats(const product_set *isa, const float_product *job, int alone, uint8_t *scratch, int64_t nbytes, int n_threads) {
    const int64_t n_parts = isa->ordered_parts(job), n_panels = count_panels(&job->weight);
    int done = 0;
    (void)n_threads;
#pragma omp parallel num_threads(n_threads)
    {
        if (alone) {
#pragma omp single nowait
            {
                for (int64_t i = 0; i < n_parts; i++) run_order_inputs(isa, job, i);
                __atomic_store_n(&done, 1, __ATOMIC_RELEASE);
            }
            wait_for(&done);
        } else {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_parts; i++) run_order_inputs(isa, job, i);
        }
        uint8_t *own = own_part(scratch, nbytes);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < n_panels; i++) run_float_panel(isa, job, i, own);
    }
}

static void run_codes(const product_set *isa, const code_product *job, int64_t n_parts, uint8_t *scratch, int64_t nbytes, int n_threads) {
    const int64_t n_panels = count_panels(&job->weight);
    int done = 0;
    (void)n_threads;
#pragma omp parallel num_threads(n_threads)
    {
        uint8_t *own = own_part(scratch, nbytes);
        if (n_parts == 1) {
#pragma omp single nowait
            {
                run_encode_inputs(isa, job->inputs, 0, own);
                __atomic_store_n(&done, 1, __ATOMIC_RELEASE);
            }
            wait_for(&done);
        } else {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_parts; i++) run_encode_inputs(isa, job->inputs, i, own);
        }
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < n_panels; i++) run_code_panel(isa, job, i, own);
    }
}

#endif
