/* Stored codes and parameters turned so that rows lie in lanes. Part of the template product_rows.h. */

#if LANES == 16
#define LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* Transpose LANES x LANES words. */
INLINE void ISA(turn)(vi x[LANES]) {
    vi y[LANES];
    for (int stage = 1; stage < LANES; stage *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = LOW(x[i], x[i + LANES / 2]);
            y[2 * i + 1] = HIGH(x[i], x[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
}
#undef LOW
#undef HIGH

/* Words [at, at + LANES) of LANES rows from `first` on, word after word; rows beyond the last repeat it, bytes beyond the
 * last of a row are 0. */
INLINE void ISA(turn_words)(const dequantize_job *w, int64_t first, int64_t at, vi x[LANES]) {
    for (int r = 0; r < LANES; r++) {
        const int64_t row = row_or_last(w, first + r), left = w->packed_stride - 4 * at;
        const uint8_t *from = w->packed + row * w->packed_stride + 4 * at;
        if (left >= 4 * LANES) memcpy(x + r, from, sizeof x[r]);
        else {
            uint8_t last[4 * LANES] = {0};
            if (left > 0) memcpy(last, from, (size_t)left);
            memcpy(x + r, last, sizeof x[r]);
        }
        __builtin_prefetch(from + 4 * LANES); /* the machine does not follow so many rows */
    }
    ISA(turn)(x);
}

/* What STEP groups of LANES rows have; `minor` of grid levels alone. */
typedef struct { vf scale[STEP], zero[STEP], minor[STEP]; } ISA(turned_grid);

/* Parameters of groups [group, group + n) of LANES rows from `first` on; group is a multiple of STEP. */
INLINE void ISA(turn_grid)(const dequantize_job *w, int64_t first, int64_t group, int n, const int bits, const int grid,
                           ISA(turned_grid) *to) {
    ISA(grid_values) v[LANES];
    for (int r = 0; r < LANES; r++)
        ISA(load_grid)(w, row_or_last(w, first + r), group, n, bits, grid, v + r);
    for (int part = 0; part < (grid == ISA(LEVELS) ? 3 : 2); part++)
        EACH_PIECE {
            vi x[LANES];
            for (int r = 0; r < LANES; r++) memcpy(x + r, (part == 0 ? v[r].scale : part == 1 ? v[r].zero : v[r].minor) + p * LANES, sizeof x[r]);
            ISA(turn)(x);
            memcpy((part == 0 ? to->scale : part == 1 ? to->zero : to->minor) + p * LANES, x, sizeof x);
        }
}
