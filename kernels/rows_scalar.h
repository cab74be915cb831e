/* Portable instruction set: four lanes, nothing the compiler cannot express; the reference for the others. */
#define ISA(name) name##_scalar
#define LANES 4

typedef float ISA(vf) __attribute__((vector_size(16)));
typedef int32_t ISA(vi) __attribute__((vector_size(16)));
typedef uint16_t ISA(vh) __attribute__((vector_size(8)));

static inline ISA(vf) ISA(v_min)(ISA(vf) a, ISA(vf) b) {
    ISA(vi) less = a < b;
    return (ISA(vf))(((ISA(vi))a & less) | ((ISA(vi))b & ~less));
}
static inline ISA(vf) ISA(v_max)(ISA(vf) a, ISA(vf) b) {
    ISA(vi) less = a < b;
    return (ISA(vf))(((ISA(vi))b & less) | ((ISA(vi))a & ~less));
}
/* Larger of abs(a), abs(b); whether any lane of a comparison holds. */
static inline ISA(vf) ISA(v_max_abs)(ISA(vf) a, ISA(vf) b) {
    return ISA(v_max)((ISA(vf))((ISA(vi))a & 0x7FFFFFFF), (ISA(vf))((ISA(vi))b & 0x7FFFFFFF));
}
static inline ISA(vf) ISA(v_sqrt)(ISA(vf) x) {
    for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
static inline int ISA(v_any)(ISA(vi) mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) {
    ISA(vf) x;
    for (int i = 0; i < LANES; i++) x[i] = half_to_float(h[i]);
    return x;
}
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) {
    ISA(vh) h;
    for (int i = 0; i < LANES; i++) h[i] = float_to_half(x[i]);
    return h;
}
/* Element code (0 to 3) of each four lanes of `four`, which repeats every four lanes. */
static inline ISA(vf) ISA(v_pick)(ISA(vf) four, ISA(vi) code) {
    return (ISA(vf)){four[code[0]], four[code[1]], four[code[2]], four[code[3]]};
}
/* Four codes, one a byte, and back. */
static inline ISA(vi) ISA(v_from_bytes)(const uint8_t *from) { return (ISA(vi)){from[0], from[1], from[2], from[3]}; }
static inline void ISA(v_to_bytes)(ISA(vi) x, uint8_t *to) {
    for (int i = 0; i < LANES; i++) to[i] = (uint8_t)x[i];
}
/* Packs 4 * LANES codes; OUT 2 * bits bytes. */
static inline void ISA(store_codes)(const ISA(vi) c[4], const int bits, uint8_t *out) {
    for (int j = 0; j < 4; j += 2) {
        uint64_t x = 0;
        for (int i = 0; i < 4; i++) x |= (uint64_t)(uint32_t)c[j][i] << (8 * i) | (uint64_t)(uint32_t)c[j + 1][i] << (8 * i + 32);
        x = pack_eight(x, bits);
        memcpy(out + j / 2 * bits, &x, (size_t)bits);
    }
}
/* Nearest integer, half to even, of what is less than 2^22. */
static inline ISA(vf) ISA(v_nearest)(ISA(vf) x) { return (x + MAGIC) - MAGIC; }
/* a b + c, for sums that may round as they like, or where a b is exact. */
static inline ISA(vf) ISA(v_fma)(ISA(vf) a, ISA(vf) b, ISA(vf) c) { return a * b + c; }
/* a + b and a - b, where other machines can take their multipliers. */
static inline ISA(vf) ISA(v_plus)(ISA(vf) a, ISA(vf) b) { return a + b; }
static inline ISA(vf) ISA(v_minus)(ISA(vf) a, ISA(vf) b) { return a - b; }
/* acc + the dot product of four unsigned codes of `bits` and four signed bytes in each lane, exact. */
static inline ISA(vi) ISA(v_dot4)(ISA(vi) acc, ISA(vi) codes, ISA(vi) x, const int bits) {
    (void)bits;
    for (int i = 0; i < 4; i++) acc += (codes >> (8 * i) & 255) * (x << (24 - 8 * i) >> 24);
    return acc;
}

#include KERNEL_TEMPLATE

#undef ISA
#undef LANES
