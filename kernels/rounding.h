/* The floating-point mode of a thread. Libraries built with -ffast-math flush denormals on the threads they touch; codes
 * must not depend on that. */
#ifndef ARROWQUANT_ROUNDING_H
#define ARROWQUANT_ROUNDING_H

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline uint64_t default_rounding(void) {
    uint64_t before = 0;
#if defined(__x86_64__)
    before = _mm_getcsr();
    _mm_setcsr(0x1F80);
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
#endif
    return before;
}

static inline void restore_rounding(uint64_t before) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

#endif
