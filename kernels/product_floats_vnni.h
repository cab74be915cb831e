/* Product of float inputs where bytes can be multiplied: few tokens in integers, others as without. Part of the template
 * product_rows.h. */

INLINE int ISA(is_few)(const float_product *job) { return job->tokens <= FEW_TOKENS && job->weight.bits < 8 && !job->weight.levels; }

static int64_t ISA(ordered_size)(const float_product *job) {
    return ISA(is_few)(job) ? ISA(few_ordered)(job) : ordered_size_avx512(job);
}

static int64_t ISA(ordered_parts)(const float_product *job) { return ISA(is_few)(job) ? 1 : ordered_parts_avx512(job); }

static void ISA(order_inputs)(const float_product *job, int64_t part) {
    if (ISA(is_few)(job)) ISA(few_order)(job);
    else order_inputs_avx512(job, part);
}

static int64_t ISA(float_scratch)(const float_product *job) {
    return ISA(is_few)(job) ? ISA(few_scratch)(job) : float_scratch_avx512(job);
}

static void ISA(float_panel)(const float_product *job, int64_t panel, float *scratch) {
    if (ISA(is_few)(job)) ISA(few)(job, panel, scratch);
    else float_panel_avx512(job, panel, scratch);
}
