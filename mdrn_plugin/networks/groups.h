/* What the kernels of MDRN's groups are told, kernel.c in bf16 and fp32_kernel.c: both have the structures
   of networks/native.py and compute the same columns of a band. */

#ifndef MDRN_GROUPS_H
#define MDRN_GROUPS_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    uint8_t *data; /* pixel 0 of row 0 */
    int64_t rows;  /* row y lies at y modulo this */
    int64_t row;   /* bytes from a row to the next */
} Rows;

enum { HEAD, DOWN, FUSE };

typedef struct {
    int32_t channels, blocks, kind, parts;
    int32_t width, height; /* of what comes out, px */
    int32_t samples;       /* HEAD: of a pixel of the picture */
    int32_t lanes;         /* floats of a vector; fp32_kernel.c only */
    const uint8_t *weights;
    const float *picture; /* HEAD: one row and one column of zeros around it */
    int64_t picture_row;  /* floats */
    Rows below;           /* DOWN: of twice the size; FUSE: of half the size */
    Rows part[3];         /* FUSE */
    Rows out;
} Group;

typedef struct {
    int32_t channels, samples, width, height;
    const uint8_t *weights;
    const uint8_t *zeros; /* a row of `in` */
    Rows in;              /* beside the picture zeros */
    float *out;           /* height x width x samples */
    int32_t lanes;        /* as above */
} Tail;

INLINE uint8_t *row_of(const Rows *rows, int64_t y)
{
    return rows->data + y % rows->rows * rows->row;
}

/* Columns [begins, ends) that a block gives with `later` blocks behind it, from the band's origin. */
INLINE int begins(int left, int later, int origin)
{
    const int at = left - 2 * later;
    return (at > 0 ? at : 0) - origin;
}

INLINE int ends(int right, int later, int width, int origin)
{
    const int at = right + 2 * later;
    return (at < width ? at : width) - origin;
}

#endif
