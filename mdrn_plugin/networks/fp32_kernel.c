/* MDRN's groups of blocks in float32 on rows that stay in the caches, by the vectors of AVX-512 or of AVX2
   with FMA: the order of work of kernel.c, for processors without its tiles.

   A vector holds neighbouring outputs of one pixel; every convolution is the same product (fp32_rows.h),
   12 sums in registers. A sum has one order, bias first, then tap by tap and input by input, whatever the
   vectors, bands, tiles and threads: all give the same bits.

   Nothing here allocates memory or starts threads. networks/native.py is the only caller,
   networks/fp32_native.py lays out the weights: by 16 outputs, and of each input 16 weights. */

#include "groups.h"

/* Counts up with every change of a structure or of the layout of the weights. */
#define INTERFACE 1

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

enum { EDGE = 2, OUTPUTS = 16, SUMS = 12, NEAR = 4, WIDE = 5 };

typedef struct {
    int channels, blocks;
    int left, right;        /* columns that come out */
    int origin, columns;    /* first column that is computed, and how many at most */
    int64_t half_row, row;  /* floats */
    float *skip;  /* 2 * blocks + 1 rows: the group's input after its fusion */
    float *x;     /* 2 * blocks - 1 rows, with more than one block: the running sum behind the first */
    float *near_; /* per block 4 rows of the near half, */
    float *wide;  /* 5 of the wide half */
    float *inner; /* one row behind the 3x3s */
    float *zeros; /* a row of a half, outside of the picture */
} Band;

static int64_t lay_out(Band *b, const Group *g, int left, int right, uint8_t *state)
{
    const int n = g->blocks, halo = 2 * n;
    b->channels = g->channels;
    b->blocks = n;
    b->left = left;
    b->right = right;
    b->origin = left > halo ? left - halo : 0;
    b->columns = (right + halo < g->width ? right + halo : g->width) - b->origin;
    b->row = (int64_t)(b->columns + SUMS + 2 * EDGE) * g->channels; /* products read SUMS pixels too many at most */
    b->half_row = b->row / 2;
    int64_t at = 0;
#define TAKE(field, floats) (b->field = (float *)state + at, at += (floats))
    TAKE(skip, (2 * n + 1) * b->row);
    TAKE(x, n > 1 ? (2 * n - 1) * b->row : 0);
    TAKE(near_, n * NEAR * b->half_row);
    TAKE(wide, n * WIDE * b->half_row);
    TAKE(inner, b->row);
    TAKE(zeros, b->half_row);
#undef TAKE
    return at * 4;
}

#define FLOATS(bytes) ((const float *)(bytes))

/* Floats of the parts of the weights. */
#define MATRIX(C) ((C) * (C))
#define AROUND(C) (9 * (C) / 2 * (C) / 2)
#define BLOCK(C) (2 * MATRIX(C) + 2 * AROUND(C) + 3 * (C))

/* The inputs of a sum that lie side by side in memory. */
typedef struct {
    const float *from;    /* of the first pixel */
    const float *weights; /* of the first 16 outputs */
} Term;

typedef struct {
    Term term[9];
    int32_t terms, outputs, pixels;
    int64_t next; /* floats of weights to the next 16 outputs */
    const float *bias;
    float *to;
    int64_t to_pixel; /* floats */
    const float *plus, *skip; /* as `to` */
} Product;

enum { PLAIN, RELU, ADD, LAST };

#define LANES 16
#define NAME(name) name##_512
#define KERNEL __attribute__((target("avx512f,fma")))
#include "fp32_rows.h"
#undef LANES
#undef NAME
#undef KERNEL
#define LANES 8
#define NAME(name) name##_256
#define KERNEL __attribute__((target("avx2,fma")))
#include "fp32_rows.h"

EXPORT int64_t mdrn_state_bytes(const Group *g, int32_t left, int32_t right)
{
    Band b;
    return lay_out(&b, g, left, right, 0);
}

/* Take rows [first, end) of the group's input, for columns [left, right) of its output; `left` is even.
   Rows [first - 2 * blocks, end - 2 * blocks) come out, at the picture's end all. */
EXPORT void mdrn_group(const Group *g, int32_t left, int32_t right, uint8_t *state, int32_t first, int32_t end)
{
    Band b;
    const int64_t bytes = lay_out(&b, g, left, right, state);
    if (first == 0) memset(state, 0, (size_t)bytes);
    if (g->lanes == 16)
        group_512(g, &b, first, end);
    else
        group_256(g, &b, first, end);
}

/* Rows [first, end) of what the last 3x3 gives, columns [left, right). */
EXPORT void mdrn_tail(const Tail *g, int32_t left, int32_t right, int32_t first, int32_t end)
{
    if (g->lanes == 16)
        tail_512(g, left, right, first, end);
    else
        tail_256(g, left, right, first, end);
}

/* Floats of a vector: 16, 8, or 0 if the processor or the system has neither. */
EXPORT int32_t mdrn_usable(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX2 = 1 << 5, AVX512F = 1 << 16 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !(c & FMA)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6) return 0;
    return (b & AVX512F) && (low & 0xe6) == 0xe6 ? 16 : 8;
}

#else

EXPORT int64_t mdrn_state_bytes(const Group *g, int32_t left, int32_t right)
{
    (void)g, (void)left, (void)right;
    return -1;
}

EXPORT void mdrn_group(const Group *g, int32_t left, int32_t right, uint8_t *state, int32_t first, int32_t end)
{
    (void)g, (void)left, (void)right, (void)state, (void)first, (void)end;
}

EXPORT void mdrn_tail(const Tail *g, int32_t left, int32_t right, int32_t first, int32_t end)
{
    (void)g, (void)left, (void)right, (void)first, (void)end;
}

EXPORT int32_t mdrn_usable(void)
{
    return 0;
}

#endif

EXPORT int32_t mdrn_interface(void)
{
    return INTERFACE;
}
