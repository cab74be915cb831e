/* What a product is given: y = x W^T + bias, with W as stored and x as floats or as codes. Shared by every instruction
 * set; knows nothing of Python. */
#ifndef ARROWQUANT_PRODUCT_JOB_H
#define ARROWQUANT_PRODUCT_JOB_H

#include "job.h"

enum {
    SLOTS = 8,        /* tokens whose codes are stored side by side */
    PANEL_ROWS = 32,  /* rows of W that are decoded at a time: a multiple of twice the lanes of every instruction set */
    FEW_TOKENS = 4,   /* so many are multiplied without decoding a panel */
    DEPTH = 256       /* columns of a float product that are decoded at a time; whole words of LANES lanes at any width */
};

typedef struct {
    dequantize_job weight; /* IN W; `out` and `kind` are not used */
    const float *x;        /* IN tokens x columns */
    const float *bias;     /* IN rows, or NULL */
    float *out;            /* OUT tokens x rows */
    float *ordered;        /* OUT the inputs as the product reads them */
    int64_t tokens;
    int n_threads;         /* IN each takes about as many panels further on when it is done with one */
} float_product;

/* Codes of a token are signed bytes, four to a word, in the order in which stored weights unpack (see product_codes.h);
 * word w of the tokens of a slot group lie side by side, or, in wide planes, a token after the other, and then ones. A
 * segment is columns that share every parameter. */
typedef struct {
    const float *x;        /* IN tokens x columns */
    const float *scale;    /* IN per token, or NULL: from the range of each token and span */
    const float *zero;     /* IN per token, with `scale` */
    int32_t *codes;        /* OUT slot groups x words x SLOTS */
    float *scales;         /* OUT slot groups x segments x SLOTS */
    float *sums;           /* OUT the same: what the segment's values add up to */
    int32_t *offsets;      /* OUT the same: minus the signed code of zero */
    int64_t tokens, columns, words, n_segments;
    int bits;              /* of an input code: 4 or 8 */
    int span, segment;     /* columns that share a scale; columns of a segment, a multiple of 16 that divides span */
    int weight_bits;       /* decides the order of codes, with: */
    int plane_bytes;       /* bytes that unpack together: 4, or of few tokens a vector */
} input_codes;

typedef struct {
    dequantize_job weight;
    const input_codes *inputs;
    const float *bias;
    float *out;
} code_product;

/* Blocks of rows beyond the last row repeat it. */
static inline int64_t row_or_last(const dequantize_job *w, int64_t row) { return row < w->rows ? row : w->rows - 1; }

#endif
