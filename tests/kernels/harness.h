/* What both harnesses draw jobs from and say results with: the same on every machine. */
#ifndef ARROWQUANT_HARNESS_H
#define ARROWQUANT_HARNESS_H

#include <stddef.h>
#include <stdint.h>

static uint64_t state = 1;
static uint32_t next_random(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

#endif
