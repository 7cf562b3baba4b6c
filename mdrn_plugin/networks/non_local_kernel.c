/* Sums over the similar patches around each pixel, in float32: what networks/non_local.py means by
   `similar_sums`.

   The picture goes through in blocks of BLOCK_ROWS x BLOCK_COLUMNS px from its first pixel on, each by itself and
   with all offsets of the search window, so that its sums stay in the cache. Nothing is summed across a
   vector: the bits do not depend on the vectors of the processor or on which thread takes which block. Nothing
   here allocates memory or starts threads. */

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Counts up with every change of the structure or of what comes out. */
#define INTERFACE 3

enum { BLOCK_ROWS = 32, BLOCK_COLUMNS = 256, RADIUS = 4, SIDE = 2 * RADIUS + 1 };
enum { WIDE_RADIUS = 10, WIDE_SIDE = 2 * WIDE_RADIUS + 1 }; /* of the patches of the noisy picture alone */

/* `base` and `noisy` begin `margin` px above and left of the first pixel. */
typedef struct {
    const float *base, *noisy;
    float *out;
    int64_t line, plane; /* floats from a row to the next and from a colour to the next, of base and noisy */
    int32_t colours, rows, columns, margin, search;
    int32_t wide;      /* whether wide patches are compared as well */
    float scale;       /* 1 / (colours * variance of the noise) */
    float steep;       /* exponent of 2 for each unit of distance */
    float wide_steep;  /* the same, of wide patches */
} Task;

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <stddef.h>
#include <string.h>

#define PART static inline __attribute__((always_inline))

enum { LINE = BLOCK_COLUMNS + WIDE_SIDE };

/* 2^x to 3e-6 up to 2^16; 0 below 2^-30, so that no power of a weight is a denormal number: these take processors
   a hundred times as long. */
PART float power_of_2(float x)
{
    float inside = x < -30.0f ? -30.0f : x;
    inside = inside > 16.0f ? 16.0f : inside;
    int32_t whole = (int32_t)(inside + 128.0f);
    float rest = inside - (float)(whole - 128);
    float p = 0.01342351f;
    p = __builtin_fmaf(p, rest, 0.05224750f);
    p = __builtin_fmaf(p, rest, 0.24127795f);
    p = __builtin_fmaf(p, rest, 0.69304510f);
    p = __builtin_fmaf(p, rest, 1.0f);
    union { int32_t i; float f; } power = { .i = (whole - 1) << 23 };
    p *= power.f;
    return x < -30.0f ? 0.0f : p;
}

/* The squared differences of a row of both pictures and one colour; of the first colour or added to those before. */
PART void differ(float *restrict row, const float *restrict b, const float *restrict b2, const float *restrict y,
                 const float *restrict y2, int32_t n, int first)
{
    for (int32_t x = 0; x < n; x++) {
        float d = b[x] - b2[x], e = y[x] - y2[x];
        row[x] = __builtin_fmaf(d, d, first ? e * e : __builtin_fmaf(e, e, row[x]));
    }
}

/* The same of a row of the noisy picture alone. */
PART void differ_noisy(float *restrict row, const float *restrict y, const float *restrict y2, int32_t n, int first)
{
    for (int32_t x = 0; x < n; x++) {
        float e = y[x] - y2[x];
        row[x] = first ? e * e : __builtin_fmaf(e, e, row[x]);
    }
}

PART void exchange(float *restrict sum, float *restrict old, const float *restrict row, int32_t n)
{
    for (int32_t x = 0; x < n; x++) {
        sum[x] += row[x] - old[x];
        old[x] = row[x];
    }
}

/* Sums of squared differences over the last rows, column by column. */
typedef struct {
    float sum[LINE], kept[WIDE_SIDE][LINE];
    int32_t oldest;
} Columns;

PART void forget(Columns *columns, int32_t side)
{
    memset(columns->sum, 0, sizeof columns->sum);
    memset(columns->kept, 0, (size_t)side * sizeof columns->kept[0]);
    columns->oldest = 0;
}

/* Let a row enter the sums of columns, and the one that is `side` rows above leave them. */
PART void enter(Columns *columns, const Task *t, int32_t y, int32_t x, int64_t away, int32_t n, int wide)
{
    float row[LINE];
    for (int32_t c = 0; c < t->colours; c++) {
        int64_t at = c * t->plane + (t->margin + y) * t->line + t->margin + x;
        const float *b = t->base + at, *noisy = t->noisy + at;
        if (wide && c)
            differ_noisy(row, noisy, noisy + away, n, 0);
        else if (wide)
            differ_noisy(row, noisy, noisy + away, n, 1);
        else if (c)
            differ(row, b, b + away, noisy, noisy + away, n, 0);
        else
            differ(row, b, b + away, noisy, noisy + away, n, 1);
    }
    exchange(columns->sum, columns->kept[columns->oldest], row, n);
    columns->oldest = columns->oldest == (wide ? WIDE_SIDE : SIDE) - 1 ? 0 : columns->oldest + 1;
}

PART void add_pairs(float *restrict to, const float *restrict from, int32_t apart, int32_t n)
{
    for (int32_t x = 0; x < n; x++)
        to[x] = from[x] + from[x + apart];
}

/* Weights of a row from the sums of its columns. */
PART void weigh(float *restrict weight, const float *restrict sum, int32_t n, float scale, float steep)
{
    float two[LINE], four[LINE];
    add_pairs(two, sum, 1, n + SIDE - 2);
    add_pairs(four, two, 2, n + SIDE - 5);
    float slope = -scale * steep / (SIDE * SIDE), most = 2.0f * steep;
    for (int32_t x = 0; x < n; x++)
        weight[x] = power_of_2(__builtin_fmaf(four[x] + four[x + 4] + sum[x + 8], slope, most));
}

PART void weigh_wide(float *restrict weight, const float *restrict sum, int32_t n, float scale, float steep)
{
    float two[LINE], four[LINE], eight[LINE];
    add_pairs(two, sum, 1, n + WIDE_SIDE - 2);
    add_pairs(four, two, 2, n + WIDE_SIDE - 4);
    add_pairs(eight, four, 4, n + WIDE_SIDE - 8);
    float slope = -scale * steep / (WIDE_SIDE * WIDE_SIDE), most = 2.0f * steep;
    for (int32_t x = 0; x < n; x++)
        weight[x] = power_of_2(
            __builtin_fmaf(eight[x] + eight[x + 8] + (four[x + 16] + sum[x + 20]), slope, most));
}

PART void count(float *restrict first, float *restrict second, float *restrict fourth,
                const float *restrict weight, int32_t n)
{
    for (int32_t x = 0; x < n; x++) {
        float w = weight[x], w2 = w * w;
        first[x] += w;
        second[x] += w2;
        fourth[x] = __builtin_fmaf(w2, w2, fourth[x]);
    }
}

PART void gather(float *restrict noise, float *restrict value, float *restrict noise2, float *restrict value2,
                 const float *restrict weight, const float *restrict base, const float *restrict noisy, int32_t n)
{
    for (int32_t x = 0; x < n; x++) {
        float w = weight[x], w2 = w * w, b = base[x], r = noisy[x] - b;
        noise[x] = __builtin_fmaf(w, r, noise[x]);
        value[x] = __builtin_fmaf(w, b, value[x]);
        noise2[x] = __builtin_fmaf(w2, r, noise2[x]);
        value2[x] = __builtin_fmaf(w2, b, value2[x]);
    }
}

PART void count_wide(float *restrict first, float *restrict second, const float *restrict weight, int32_t n)
{
    for (int32_t x = 0; x < n; x++) {
        float w = weight[x];
        first[x] += w;
        second[x] = __builtin_fmaf(w, w, second[x]);
    }
}

PART void gather_wide(float *restrict noise, float *restrict value, const float *restrict weight,
                      const float *restrict base, const float *restrict noisy, int32_t n)
{
    for (int32_t x = 0; x < n; x++) {
        float w = weight[x], b = base[x], r = noisy[x] - b;
        noise[x] = __builtin_fmaf(w, r, noise[x]);
        value[x] = __builtin_fmaf(w, b, value[x]);
    }
}

PART void block(const Task *t, int32_t top, int32_t left)
{
    float weight[BLOCK_COLUMNS];
    Columns near, far;
    int32_t n = t->columns - left < BLOCK_COLUMNS ? t->columns - left : BLOCK_COLUMNS;
    int32_t bottom = t->rows - top < BLOCK_ROWS ? t->rows : top + BLOCK_ROWS;
    int64_t plane = (int64_t)t->rows * t->columns;
    int32_t counts = t->wide ? 5 : 3, each = t->wide ? 6 : 4;
    for (int32_t k = 0; k < counts + each * t->colours; k++)
        for (int32_t y = top; y < bottom; y++)
            memset(t->out + k * plane + (int64_t)y * t->columns + left, 0, (size_t)n * sizeof(float));
    for (int32_t dy = -t->search; dy <= t->search; dy++) {
        int32_t begin = top + dy < 0 ? -dy : top; /* what lies outside the picture does not count */
        int32_t end = bottom + dy > t->rows ? t->rows - dy : bottom;
        for (int32_t dx = -t->search; dx <= t->search; dx++) {
            int64_t away = dy * t->line + dx;
            int32_t from = left + dx < 0 ? -left - dx : 0;
            int32_t to = left + n + dx > t->columns ? t->columns - left - dx : n;
            if ((!dy && !dx) || from >= to || begin >= end)
                continue;
            forget(&near, SIDE);
            for (int32_t y = begin - RADIUS; y < begin + RADIUS; y++)
                enter(&near, t, y, left - RADIUS, away, n + SIDE - 1, 0);
            if (t->wide) {
                forget(&far, WIDE_SIDE);
                for (int32_t y = begin - WIDE_RADIUS; y < begin + WIDE_RADIUS; y++)
                    enter(&far, t, y, left - WIDE_RADIUS, away, n + WIDE_SIDE - 1, 1);
            }
            for (int32_t y = begin; y < end; y++) {
                float *out = t->out + (int64_t)y * t->columns + left + from;
                int64_t at = (t->margin + y) * t->line + t->margin + left + from + away;
                enter(&near, t, y + RADIUS, left - RADIUS, away, n + SIDE - 1, 0);
                weigh(weight, near.sum, n, t->scale, t->steep);
                count(out, out + plane, out + 2 * plane, weight + from, to - from);
                for (int32_t c = 0; c < t->colours; c++) {
                    float *of = out + (counts + each * c) * plane;
                    gather(of, of + plane, of + 2 * plane, of + 3 * plane, weight + from,
                           t->base + at + c * t->plane, t->noisy + at + c * t->plane, to - from);
                }
                if (!t->wide)
                    continue;
                enter(&far, t, y + WIDE_RADIUS, left - WIDE_RADIUS, away, n + WIDE_SIDE - 1, 1);
                weigh_wide(weight, far.sum, n, t->scale, t->wide_steep);
                count_wide(out + 3 * plane, out + 4 * plane, weight + from, to - from);
                for (int32_t c = 0; c < t->colours; c++) {
                    float *of = out + (counts + each * c + 4) * plane;
                    gather_wide(of, of + plane, weight + from, t->base + at + c * t->plane,
                                t->noisy + at + c * t->plane, to - from);
                }
            }
        }
    }
}

__attribute__((target("avx512f,fma,prefer-vector-width=512"))) static void block_16(const Task *t, int32_t y, int32_t x)
{
    block(t, y, x);
}

__attribute__((target("avx2,fma"))) static void block_8(const Task *t, int32_t y, int32_t x)
{
    block(t, y, x);
}

/* Floats of a vector; 0: not for this processor. */
EXPORT int32_t mdrn_non_local_lanes(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 0;
    return __builtin_cpu_supports("avx512f") ? 16 : 8;
}

/* The block of number `index`, counted along rows. */
EXPORT void mdrn_non_local(const Task *t, int32_t index, int32_t lanes)
{
    int32_t across = (t->columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    int32_t y = index / across * BLOCK_ROWS, x = index % across * BLOCK_COLUMNS;
    if (lanes == 16)
        block_16(t, y, x);
    else
        block_8(t, y, x);
}

#else

EXPORT int32_t mdrn_non_local_lanes(void)
{
    return 0;
}

EXPORT void mdrn_non_local(const Task *t, int32_t index, int32_t lanes)
{
    (void)t, (void)index, (void)lanes;
}

#endif

EXPORT int32_t mdrn_non_local_interface(void)
{
    return INTERFACE;
}
