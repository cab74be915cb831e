/* What is used of DLPack 1: where a tensor of another library lies (https://dmlc.github.io/dlpack/latest). */
#ifndef ARROWQUANT_DLPACK_H
#define ARROWQUANT_DLPACK_H

#include <stdint.h>

enum { DL_MAJOR = 1, DL_CPU = 1, DL_FLOAT = 2, DL_BFLOAT = 4 };

typedef struct { uint32_t major, minor; } dl_version;
typedef struct { int32_t type, id; } dl_device;
typedef struct { uint8_t code, bits; uint16_t lanes; } dl_dtype;

typedef struct {
    void *data;
    dl_device device;
    int32_t ndim;
    dl_dtype dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

/* A library's functions, in a capsule at its tensor type; one of them is called. */
typedef struct {
    dl_version version;
    const void *older;
    void (*allocate)(void);
    void (*managed_from_object)(void);
    void (*managed_to_object)(void);
    int (*from_object)(void *object, dl_tensor *out); /* lends it; else it is -1 and an exception is set */
    void (*work_stream)(void);
} dl_exchange;

static inline int dl_has(const dl_tensor *t, int code, int bits) {
    return t->dtype.code == code && t->dtype.bits == bits && t->dtype.lanes == 1;
}

static inline int dl_is_float32(const dl_tensor *t) { return dl_has(t, DL_FLOAT, 32); }
static inline int dl_is_bfloat16(const dl_tensor *t) { return dl_has(t, DL_BFLOAT, 16); }

static inline int dl_is_contiguous(const dl_tensor *t) {
    int64_t step = 1;
    for (int i = t->ndim - 1; t->strides && i >= 0; i--) {
        if (t->shape[i] != 1 && t->strides[i] != step) return 0;
        step *= t->shape[i];
    }
    return 1;
}

static inline void *dl_start(const dl_tensor *t) { return (char *)t->data + t->byte_offset; }

#endif
