/* The k format: scales and minima of a whole block of 256 weights chosen together. Part of the rows.h template.
 *
 * Every group is fitted by least squares with minimum <= 0; then the block gets the float16 pair whose multiples lie
 * nearest to its fits, each group's integers, and one sweep over neighbouring integers with the codes assigned anew.
 * A batch holds whole blocks; the groups that a short last block lacks are lanes without weights. */

typedef struct {
    float x[BATCH * MAX_K_GROUP] __attribute__((aligned(64))); /* tiles of LANES groups, [element][lane] */
    float v[BATCH * MAX_K_GROUP] __attribute__((aligned(64))); /* importance; 0 for the padding of a short group */
    float s[BATCH], m[BATCH], sv[BATCH], follow[BATCH], spread[BATCH]; /* the fits: see k_choose */
    float span[BATCH], largest[BATCH]; /* span: of a group without one its value, not positive; largest: max abs of the group */
    float d[BATCH], dmin[BATCH], sc[BATCH], mn[BATCH];          /* value = d * sc, -dmin * mn */
    int64_t row[BATCH], block[BATCH];                           /* of each block */
    int groups[BATCH], exponent[BATCH];                         /* of each block: groups in use, power of two taken out */
    int n, weighted;                                            /* blocks in use; whether v is filled */
} ISA(k_batch);

/* Integers nearest to x / d, given 1 / d or 0. */
INLINE vf ISA(k_round)(vf x, vf reciprocal, vf most) {
    return ISA(v_nearest)(v_min(v_max(x * reciprocal, (vf){0}), most));
}

INLINE vf ISA(k_reciprocal)(vf d) { return ISA(v_select)(d > (vf){0}, ISA(v_splat)(1.0f) / d, (vf){0}); }

/* Bring the groups of a block into their lanes. */
INLINE void ISA(k_load_block)(ISA(k_batch) *b, const quantize_job *job, int64_t row, int64_t block) {
    const int size = job->group_size, per_block = BLOCK / size, item = job->kind == KIND_FLOAT32 ? 4 : 2;
    float widened[MAX_K_GROUP] __attribute__((aligned(64)));
    b->row[b->n] = row;
    b->block[b->n] = block;
    b->groups[b->n] = 0;
    for (int j = 0; j < per_block; j++) {
        const int slot = b->n * per_block + j;
        const int64_t first = (block * per_block + j) * size, left = job->columns - first;
        const int length = left >= size ? size : left > 0 ? (int)left : 0;
        float *x = b->x + slot / LANES * LANES * size + slot % LANES, *v = b->v + (x - b->x);
        const uint8_t *from = job->weight + (row * job->columns + first) * item;
        const int direct = job->kind == KIND_FLOAT32 && ((uintptr_t)job->weight & 3) == 0;
        const float *w = direct ? (const float *)from : widened;
        if (length && !direct) ISA(widen)(from, job->kind, length, widened);
        const float filler = length ? w[0] : 0.0f;
        for (int k = 0; k < length; k++) x[k * LANES] = w[k];
        for (int k = length; k < size; k++) x[k * LANES] = filler;
        b->groups[b->n] += length > 0;
        if (!b->weighted) continue;
        for (int k = 0; k < size; k++) v[k * LANES] = k >= length ? 0.0f : job->importance ? job->importance[first + k] : 1.0f;
    }
    b->n++;
}

/* Scale every block by a power of two to max abs in [1, 2), as the other searches do with every group. */
static void ISA(k_normalise)(ISA(k_batch) *b, int size) {
    const int per_block = BLOCK / size;
    for (int k = 0; k < b->n; k++) {
        float largest = 0.0f;
        for (int j = 0; j < b->groups[k]; j++) largest = b->largest[k * per_block + j] > largest ? b->largest[k * per_block + j] : largest;
        b->exponent[k] = 0;
        if (largest > 0.0f && largest <= MAX_WEIGHT) {
            (void)__builtin_frexp((double)largest, &b->exponent[k]);
            b->exponent[k]--;
        }
        const double factor = ISA(power_of_two)(-b->exponent[k]);
        for (int slot = k * per_block; slot < (k + 1) * per_block; slot++) {
            float *x = b->x + slot / LANES * LANES * size + slot % LANES;
            for (int i = 0; i < size; i++) x[i * LANES] = (float)((double)x[i * LANES] * factor);
        }
    }
}

static void ISA(k_measure)(ISA(k_batch) *b, int size) {
    for (int at = 0; at < b->n * (BLOCK / size); at += LANES) {
        vf lo, hi;
        ISA(tile_range)(b->x + at * size, size, &lo, &hi);
        ISA(v_store)(b->largest + at, v_max(-lo, hi));
    }
}

/* Least squares for the LANES groups from slot `at` on. */
INLINE void ISA(k_fit_with)(ISA(k_batch) *b, const float *v, int at, int size, int n, int wide) {
    float u[MAX_K_GROUP * LANES] __attribute__((aligned(64)));
    const float *x = b->x + at * size;
    ISA(centred) g;
    vf lo, hi;
    ISA(tile_range)(x, size, &lo, &hi);
    const vf largest = v_max(-lo, hi);
    lo = v_min(lo, (vf){0});
    const vf span = hi - lo, centre = (lo + hi) * ISA(v_splat)(0.5f);
    if (!wide) ISA(v_store)(b->largest + at, largest);
    g.floor = ISA(v_splat)(wide ? SEARCH_FLOOR : FLOAT16_TINY);
    g.lo = lo - centre;
    g.top = (vf){0} - centre;
    g.step = v_max(span / ISA(v_splat)((float)n), g.floor);
    g.sv = g.su = (vf){0};
    for (int k = 0; k < size; k++) {
        vf w = ISA(v_load)(x + k * LANES) - centre, weight = v ? ISA(v_load)(v + k * LANES) : ISA(v_splat)(1.0f);
        ISA(v_store)(u + k * LANES, w);
        g.sv += weight;
        g.su += weight * w;
    }
    g.reciprocal = ISA(v_splat)(1.0f) / g.sv;
    const ISA(fit) fit = ISA(search_shifts)(u, v, size, n, &g);
    ISA(v_store)(b->s + at, fit.s);
    ISA(v_store)(b->m + at, v_min(fit.m + centre, (vf){0}));
    const vf follow = ISA(v_select)(g.sv > (vf){0}, fit.sq * g.reciprocal, (vf){0});
    ISA(v_store)(b->sv + at, g.sv);
    ISA(v_store)(b->follow + at, follow);
    ISA(v_store)(b->spread + at, v_max(fit.sqq - fit.sq * follow, (vf){0}));
    ISA(v_store)(b->span + at, ISA(v_select)(span > (vf){0}, span, lo));
}

static __attribute__((noinline)) void ISA(k_fit)(ISA(k_batch) *b, int at, int size, int n, int wide) {
    if (b->weighted) ISA(k_fit_with)(b, b->v + at * size, at, size, n, wide);
    else ISA(k_fit_with)(b, NULL, at, size, n, wide);
}

/* Index of the least of sixteen costs, the first of equals. */
INLINE int ISA(k_least)(const vf cost[PIECES]) {
    float costs[STEP];
    int least = 0;
    EACH_PIECE ISA(v_store)(costs + p * LANES, cost[p]);
    for (int i = 1; i < STEP; i++)
        if (costs[i] < costs[least]) least = i;
    return least;
}

/* Sixteen quotients of the largest value of a block, in lanes: d and 1 / d. */
INLINE void ISA(k_candidates)(float largest, float most, int wide, vf d[PIECES], vf r[PIECES]) {
    float divisors[STEP] = {most, most + 0.5f};
    for (int i = 2; i < STEP; i++) divisors[i] = most - 0.5f * (float)(i - 1);
    EACH_PIECE {
        d[p] = ISA(v_stored)(ISA(v_splat)(largest) / ISA(v_load)(divisors + p * LANES), wide);
        r[p] = ISA(k_reciprocal)(d[p]);
    }
}

/* The float pair and the integers of one block, from the fits alone. With the codes of a fit, a change of its scale by e
 * costs spread e^2 while the minimum follows by -follow e (spread = Sqq - Sq^2 / Sv, follow = Sq / Sv), and Sv t^2 more
 * where the minimum would have to pass zero by t. */
static __attribute__((noinline)) void ISA(k_choose)(ISA(k_batch) *b, int block, const quantize_job *job) {
    const int per_block = BLOCK / job->group_size, first = block * per_block, last = first + b->groups[block];
    const float most = (float)((1 << job->k_bits) - 1);
    float target[BATCH], values[STEP], largest = 0.0f;
    vf d[PIECES], r[PIECES], cost[PIECES];
    for (int g = first; g < last; g++) largest = b->s[g] > largest ? b->s[g] : largest;
    ISA(k_candidates)(largest, most, job->wide, d, r);
    EACH_PIECE cost[p] = (vf){0};
    for (int g = first; g < last; g++) {
        const vf s = ISA(v_splat)(b->s[g]), m = ISA(v_splat)(b->m[g]), sv = ISA(v_splat)(b->sv[g]);
        const vf spread = ISA(v_splat)(b->spread[g]), follow = ISA(v_splat)(b->follow[g]);
        EACH_PIECE {
            const vf e = d[p] * ISA(k_round)(s, r[p], ISA(v_splat)(most)) - s, beyond = v_max(m - follow * e, (vf){0});
            cost[p] += spread * (e * e) + sv * (beyond * beyond);
        }
    }
    EACH_PIECE ISA(v_store)(values + p * LANES, d[p]);
    const float chosen = values[ISA(k_least)(cost)], chosen_r = chosen > 0.0f ? 1.0f / chosen : 0.0f;
    largest = 0.0f;
    for (int g = first; g < last; g++) {
        float y = b->s[g] * chosen_r;
        y = y > most ? most : y;
        b->d[g] = chosen;
        b->sc[g] = (y + MAGIC) - MAGIC;
        target[g] = b->follow[g] * (chosen * b->sc[g] - b->s[g]) - b->m[g];
        target[g] = target[g] > 0.0f ? target[g] : 0.0f;
        largest = target[g] > largest ? target[g] : largest;
    }
    ISA(k_candidates)(largest, most, job->wide, d, r);
    EACH_PIECE cost[p] = (vf){0};
    for (int g = first; g < last; g++) {
        const vf t = ISA(v_splat)(target[g]);
        EACH_PIECE {
            const vf e = d[p] * ISA(k_round)(t, r[p], ISA(v_splat)(most)) - t;
            cost[p] += ISA(v_splat)(b->sv[g]) * (e * e);
        }
    }
    EACH_PIECE ISA(v_store)(values + p * LANES, d[p]);
    const float minimum = values[ISA(k_least)(cost)], minimum_r = minimum > 0.0f ? 1.0f / minimum : 0.0f;
    for (int g = first; g < first + per_block; g++) {
        if (g >= last) { /* no weights: anything finite */
            b->d[g] = b->dmin[g] = b->sc[g] = b->mn[g] = 0.0f;
            continue;
        }
        float y = target[g] * minimum_r;
        y = y > most ? most : y;
        b->dmin[g] = minimum;
        b->mn[g] = (y + MAGIC) - MAGIC;
    }
}

/* A grid that may have the scale 0: then all codes are 0. */
INLINE ISA(trial) ISA(k_trial)(vf d, vf dmin, vf sc, vf mn, vf levels) {
    const vf s = d * sc;
    const vi flat = s == (vf){0};
    return (ISA(trial)){ISA(v_select)(flat, ISA(v_splat)(1.0f), s), -(dmin * mn), (vf){0}, ISA(v_select)(flat, (vf){0}, levels)};
}

/* Codes anew, least squares for the scale, and the integers beside its own; a group keeps the best of four. */
INLINE void ISA(k_sweep_with)(ISA(k_batch) *b, const float *v, int at, int size, int n, float most) {
    const float *x = b->x + at * size;
    const vf d = ISA(v_load)(b->d + at), dmin = ISA(v_load)(b->dmin + at), levels = ISA(v_splat)((float)n), top = ISA(v_splat)(most);
    const vf r = ISA(k_reciprocal)(d), minimum_r = ISA(k_reciprocal)(dmin);
    vf sc[4], mn[4], sse[4], sv = (vf){0}, sx = (vf){0};
    ISA(trial) trial[4];
    ISA(code_sums) sums;
    sc[0] = ISA(v_load)(b->sc + at);
    mn[0] = ISA(v_load)(b->mn + at);
    trial[0] = ISA(k_trial)(d, dmin, sc[0], mn[0], levels);
    ISA(sum_codes)(x, v, size, 1, trial, &sums);
    for (int k = 0; k < size; k++) {
        const vf weight = v ? ISA(v_load)(v + k * LANES) : ISA(v_splat)(1.0f);
        sv += weight;
        sx += weight * ISA(v_load)(x + k * LANES);
    }
    const vf spread = sv * sums.qq - sums.q * sums.q;
    const vf s = ISA(v_select)(spread > (vf){0}, (sv * sums.qu - sx * sums.q) / spread, d * sc[0]);
    const vf nearest = ISA(k_round)(s, r, top);
    for (int i = 1; i < 4; i++) {
        sc[i] = i == 1 ? nearest : i == 2 ? v_max(nearest - ISA(v_splat)(1.0f), (vf){0}) : v_min(nearest + ISA(v_splat)(1.0f), top);
        mn[i] = ISA(k_round)(((d * sc[i]) * sums.q - sx) / sv, minimum_r, top);
        mn[i] = ISA(v_select)(sv > (vf){0}, mn[i], mn[0]);
        trial[i] = ISA(k_trial)(d, dmin, sc[i], mn[i], levels);
    }
    ISA(judge)(x, v, size, 2, 1, trial, sse);
    ISA(judge)(x, v, size, 2, 1, trial + 2, sse + 2);
    for (int i = 1; i < 4; i++) {
        const vi better = sse[i] < sse[0];
        sse[0] = ISA(v_select)(better, sse[i], sse[0]);
        sc[0] = ISA(v_select)(better, sc[i], sc[0]);
        mn[0] = ISA(v_select)(better, mn[i], mn[0]);
    }
    ISA(v_store)(b->sc + at, sc[0]);
    ISA(v_store)(b->mn + at, mn[0]);
}

static __attribute__((noinline)) void ISA(k_sweep)(ISA(k_batch) *b, int at, int size, int n, float most) {
    if (b->weighted) ISA(k_sweep_with)(b, b->v + at * size, at, size, n, most);
    else ISA(k_sweep_with)(b, NULL, at, size, n, most);
}

/* Largest weight, float pair and integers of one block to where they belong. */
static void ISA(k_store)(const ISA(k_batch) *b, int k, const quantize_job *job) {
    const int per_block = BLOCK / job->group_size, first = k * per_block, bits = job->k_bits;
    const int64_t at = job->n_blocks * (job->wide ? 4 : 2) + b->block[k] * per_block * bits / 8, row = b->row[k];
    const size_t nbytes = (size_t)(b->groups[k] * bits + 7) / 8;
    uint8_t *scales = job->scales + row * job->k_stride, *minima = job->zeros + row * job->k_stride;
    float d = b->d[first], dmin = b->dmin[first], span = 0.0f, flat = 0.0f;
    uint64_t sc = 0, mn = 0; /* the integers of a block take at most eight bytes and begin on one */
    for (int j = 0; j < b->groups[k]; j++) {
        const uint64_t mask = (1u << bits) - 1; /* weights that are no numbers must not reach the neighbours' bits */
        const int g = first + j;
        span = b->span[g] > span ? b->span[g] : span;
        flat = b->span[g] < flat ? b->span[g] : flat;
        sc |= ((float_bits(b->sc[g] + MAGIC) - (uint32_t)MAGIC_BITS) & mask) << (j * bits);
        mn |= ((float_bits(b->mn[g] + MAGIC) - (uint32_t)MAGIC_BITS) & mask) << (j * bits);
    }
    memcpy(scales + at, &sc, nbytes);
    memcpy(minima + at, &mn, nbytes);
    if (job->wide) {
        const double back = ISA(power_of_two)(b->exponent[k]);
        const float s = (float)((double)d * back);
        d = d > 0.0f && !(s >= FLOAT32_TINY) ? FLOAT32_TINY : s;
        dmin = (float)((double)dmin * back);
    } else {
        const float most = (float)((1 << bits) - 1), finest = (span / (float)((1 << job->bits) - 1)) / most;
        const int flushed = span > 0.0f ? finest <= FLOAT16_FLUSH : flat < 0.0f && -flat / most <= FLOAT16_FLUSH;
        if (flushed || !(d <= 65504.0f) || !(dmin <= 65504.0f)) job->status[row] |= STATUS_NEEDS_FLOAT32;
    }
    put_k_float(scales, b->block[k], job->wide, d);
    put_k_float(minima, b->block[k], job->wide, dmin);
}

static __attribute__((noinline)) void ISA(k_search_batch)(ISA(k_batch) *b, const quantize_job *job) {
    const int size = job->group_size, per_block = BLOCK / size, n = (1 << job->bits) - 1, slots = b->n * per_block;
    for (int g = slots; g % LANES; g++) /* lanes of the last tile beyond the last block */
        for (int k = 0; k < size; k++) {
            const int i = g / LANES * LANES * size + k * LANES + g % LANES;
            b->x[i] = b->v[i] = b->d[g] = b->dmin[g] = b->sc[g] = b->mn[g] = 0.0f;
        }
    if (job->wide) {
        ISA(k_measure)(b, size);
        ISA(k_normalise)(b, size);
    }
    for (int at = 0; at < slots; at += LANES) ISA(k_fit)(b, at, size, n, job->wide);
    for (int k = 0; k < b->n; k++) {
        double *largest = job->sums + 4 * b->row[k] + 3;
        for (int g = k * per_block; g < k * per_block + b->groups[k]; g++)
            if (b->largest[g] > *largest) *largest = b->largest[g];
    }
    for (int k = 0; k < b->n; k++) ISA(k_choose)(b, k, job);
    for (int at = 0; at < slots; at += LANES) ISA(k_sweep)(b, at, size, n, (float)((1 << job->k_bits) - 1));
    for (int k = 0; k < b->n; k++) ISA(k_store)(b, k, job);
    b->n = 0;
}

/* Scales and minima of rows [start, stop). */
static void ISA(k_search)(const quantize_job *job, int64_t start, int64_t stop) {
    ISA(k_batch) b;
    b.n = 0;
    b.weighted = job->importance != NULL || job->columns % job->group_size;
    for (int64_t row = start; row < stop; row++)
        for (int64_t block = 0; block < job->n_blocks; block++) {
            ISA(k_load_block)(&b, job, row, block);
            if (b.n == BATCH * job->group_size / BLOCK) ISA(k_search_batch)(&b, job);
        }
    if (b.n) ISA(k_search_batch)(&b, job);
}

#undef EACH_CANDIDATE
#undef EACH_STEP
#undef STRIDE
#undef CANDIDATES
