/* NEON (AArch64 baseline): four lanes, hardware float16 conversion. */
#define ISA(name) name##_neon
#define LANES 4

typedef float ISA(vf) __attribute__((vector_size(16)));
typedef int32_t ISA(vi) __attribute__((vector_size(16)));
typedef uint16_t ISA(vh) __attribute__((vector_size(8)));

static inline ISA(vf) ISA(v_min)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))vminq_f32((float32x4_t)a, (float32x4_t)b); }
static inline ISA(vf) ISA(v_max)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
/* Larger of abs(a), abs(b); whether any lane of a comparison holds. */
static inline ISA(vf) ISA(v_max_abs)(ISA(vf) a, ISA(vf) b) {
    return ISA(v_max)((ISA(vf))((ISA(vi))a & 0x7FFFFFFF), (ISA(vf))((ISA(vi))b & 0x7FFFFFFF));
}
static inline ISA(vf) ISA(v_sqrt)(ISA(vf) x) { return (ISA(vf))vsqrtq_f32((float32x4_t)x); }
static inline int ISA(v_any)(ISA(vi) mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) { return (ISA(vf))vcvt_f32_f16((float16x4_t)h); }
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) { return (ISA(vh))vcvt_f16_f32((float32x4_t)x); }
/* Element code (0 to 3) of each four lanes of `four`, which repeats every four lanes. */
static inline ISA(vf) ISA(v_pick)(ISA(vf) four, ISA(vi) code) {
    return (ISA(vf))vqtbl1q_u8((uint8x16_t)four, (uint8x16_t)(code * 0x04040404 + 0x03020100)); /* four bytes a lane */
}
/* Four codes, one a byte, and back. */
static inline ISA(vi) ISA(v_from_bytes)(const uint8_t *from) { return (ISA(vi)){from[0], from[1], from[2], from[3]}; }
static inline void ISA(v_to_bytes)(ISA(vi) x, uint8_t *to) {
    for (int i = 0; i < LANES; i++) to[i] = (uint8_t)x[i];
}
/* Packs 4 * LANES codes; OUT 2 * bits bytes. */
static inline void ISA(store_codes)(const ISA(vi) c[4], const int bits, uint8_t *out) {
    uint16x8_t low = vcombine_u16(vmovn_u32((uint32x4_t)c[0]), vmovn_u32((uint32x4_t)c[1]));
    uint16x8_t high = vcombine_u16(vmovn_u32((uint32x4_t)c[2]), vmovn_u32((uint32x4_t)c[3]));
    uint64x2_t bytes = vreinterpretq_u64_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
    uint64_t x = pack_eight(vgetq_lane_u64(bytes, 0), bits), y = pack_eight(vgetq_lane_u64(bytes, 1), bits);
    memcpy(out, &x, (size_t)bits);
    memcpy(out + bits, &y, (size_t)bits);
}
/* Nearest integer, half to even, of what is less than 2^22. */
static inline ISA(vf) ISA(v_nearest)(ISA(vf) x) { return (ISA(vf))vrndnq_f32((float32x4_t)x); }
/* a b + c, for sums that may round as they like, or where a b is exact. */
static inline ISA(vf) ISA(v_fma)(ISA(vf) a, ISA(vf) b, ISA(vf) c) {
    return (ISA(vf))vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
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
