/* MDRN's groups of blocks on rows that stay in the caches, by the AMX tile products of x86-64.

   Activations are bfloat16, channels last; sums, biases and the running sum of the blocks of a group
   are float32. A group takes one row of its input at a time, for a band of columns: its blocks
   follow two rows behind each other on rings of rows (`Band`), small enough for the second-level
   cache. A pixel's sums have the same order wherever it lies, so bands, threads and calls do not
   show in the result.

   The object loads on any processor; `mdrn_usable` says whether this one can run it. Nothing here
   allocates memory or starts threads. networks/native.py is the only caller: it lays out the weights
   and checks all sizes. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall */
#endif
/* Counts up with every change of a structure or of the layout of the weights. */
#define INTERFACE 1

#include "groups.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"

enum { EDGE = 2 };

/* What turns sums of 32 outputs into bfloat16, while the tiles already work on the next ones. */
typedef struct {
    const float *from;
    int64_t from_stride; /* bytes, as the other strides */
    uint8_t *to;
    int64_t to_stride;
    const float *bias;   /* RELU, LAST */
    const uint8_t *skip; /* LAST */
    int count;           /* LAST: pixels */
} Waiting;

enum { PLAIN, RELU, LAST };

/* Do pixels [at, at + pixels) of the 32. */
PART void settle(const Waiting *w, const int at, const int pixels, const int kind)
{
#pragma GCC unroll 8
    for (int k = at; k < at + pixels; k++) {
        const float *from = (const float *)((const uint8_t *)w->from + k * w->from_stride);
        __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
        if (kind != PLAIN) {
            a = _mm512_add_ps(a, _mm512_loadu_ps(w->bias));
            b = _mm512_add_ps(b, _mm512_loadu_ps(w->bias + 16));
        }
        if (kind == RELU) { /* in this order a NaN stays one */
            a = _mm512_max_ps(_mm512_setzero_ps(), a);
            b = _mm512_max_ps(_mm512_setzero_ps(), b);
        }
        if (kind == LAST) {
            if (k >= w->count) return;
            const __m512i both = _mm512_loadu_si512(w->skip + k * w->to_stride);
            const __m256i low = _mm512_castsi512_si256(both), high = _mm512_extracti64x4_epi64(both, 1);
            a = _mm512_add_ps(a, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
            b = _mm512_add_ps(b, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        }
        _mm512_storeu_si512(w->to + k * w->to_stride, narrow(a, b));
    }
}

/* Before the first sums there are none to wait for: the same work, into a place of no use. */
PART Waiting nothing(float place[64])
{
    memset(place, 0, 64 * sizeof(float));
    return (Waiting){.from = place, .to = (uint8_t *)place, .bias = place, .skip = (uint8_t *)place};
}

/* Add 32 inputs of 32 pixels to 32 outputs; `weights` is two tiles. Settles [at, at + pixels) between. */
PART void add(const uint8_t *first, const uint8_t *second, int64_t stride, const uint8_t *weights,
              const Waiting *w, const int at, const int pixels, const int kind)
{
    const int n = pixels / 4;
    LOAD(4, first, stride);
    LOAD(6, weights, 64);
    PRODUCT(0, 4, 6);
    settle(w, at, n, kind);
    LOAD(7, weights + TILE, 64);
    PRODUCT(1, 4, 7);
    settle(w, at + n, n, kind);
    LOAD(5, second, stride);
    PRODUCT(2, 5, 6);
    settle(w, at + 2 * n, n, kind);
    PRODUCT(3, 5, 7);
    settle(w, at + 3 * n, n, kind);
}

typedef struct {
    int channels, blocks;
    int left, right;      /* columns that come out */
    int origin, columns;  /* first column that is computed, and how many at most */
    int64_t ring_row, x_row, bf_row; /* bytes */
    uint8_t *x;      /* float32, 2 * blocks + 1 rows: the running sum */
    uint8_t *skip;   /* bfloat16, as many rows: the group's input after its fusion */
    uint8_t *near_;  /* per block 4 rows of the near half (64 channels), */
    uint8_t *wide;   /* 5 of the wide half; with 32 channels 5 of both */
    uint8_t *inner;  /* one row behind the 3x3s */
    uint8_t *narrow; /* one row between blocks */
    uint8_t *zeros;  /* a row of the rings, outside of the picture */
} Band;

enum { NEAR = 4, WIDE = 5 };

/* What the group's next row reads and writes, fetched from distant caches while 3x3s keep the tiles busy. */
typedef struct {
    const uint8_t *at[5];
    int64_t lines[5];
    int count, rate; /* lines per tap of a 3x3 */
} Fetch;

PART void fetch(Fetch *f)
{
    for (int k = 0; k < f->rate && f->count > 0; k++) {
        _mm_prefetch((const char *)f->at[f->count - 1], _MM_HINT_T1);
        f->at[f->count - 1] += 64;
        if (--f->lines[f->count - 1] <= 0) f->count--;
    }
}

static int64_t lay_out(Band *b, const Group *g, int left, int right, uint8_t *state)
{
    const int halo = 2 * g->blocks;
    b->channels = g->channels;
    b->blocks = g->blocks;
    b->left = left;
    b->right = right;
    b->origin = left > halo ? left - halo : 0;
    b->columns = (right + halo < g->width ? right + halo : g->width) - b->origin;
    const int64_t px = b->columns + CHUNK + 2 * EDGE;
    b->ring_row = px * 64;
    b->x_row = px * g->channels * 4;
    b->bf_row = px * g->channels * 2;
    const int64_t n = 2 * g->blocks + 1;
    int64_t at = 0;
#define TAKE(field, bytes) (b->field = state + at, at += (bytes))
    TAKE(x, n * b->x_row);
    TAKE(skip, n * b->bf_row);
    TAKE(near_, g->channels == 64 ? g->blocks * NEAR * b->ring_row : 0);
    TAKE(wide, g->blocks * WIDE * b->ring_row);
    TAKE(inner, b->bf_row);
    TAKE(narrow, b->bf_row);
    TAKE(zeros, b->ring_row);
#undef TAKE
    return at;
}

/* Sizes of the parts of the weights of one block, bytes. */
#define EXPAND(C) ((C) / 32 * ((C) / 16) * TILE)
#define AROUND(C) ((C) == 64 ? 36 * TILE : 18 * TILE)
#define BLOCK(C) (EXPAND(C) + AROUND(C) + EXPAND(C) + 2 * (C) * 4)

/* The group's input: X[0,0] from the picture, X[i,0] from the level above, X[i,j] from all it joins. */
PART void head(const Group *g, const Band *b, int64_t y, float *x, const int C)
{
    const float *weights = (const float *)g->weights;
    const int s = g->samples;
    for (int c = 0; c < b->columns; c += 4) {
        __m512 sum[4][4];
        for (int p = 0; p < 4; p++)
            for (int o = 0; o < C / 16; o++) sum[p][o] = _mm512_setzero_ps();
        for (int row = 0; row < 3; row++) {
            const float *from = g->picture + (y + row) * g->picture_row + (int64_t)(b->origin + c) * s;
            for (int k = 0; k < 3 * s; k++)
                for (int o = 0; o < C / 16; o++) {
                    const __m512 w = _mm512_loadu_ps(weights + (row * 3 * s + k) * C + 16 * o);
                    for (int p = 0; p < 4; p++)
                        sum[p][o] = _mm512_fmadd_ps(w, _mm512_set1_ps(from[p * s + k]), sum[p][o]);
                }
        }
        for (int p = 0; p < 4; p++)
            for (int o = 0; o < C / 16; o++) _mm512_storeu_ps(x + (c + p) * C + 16 * o, sum[p][o]);
    }
}

/* The 32 outputs of 32 pixels from column c that were just put into x go on into skip. */
PART Waiting joined(const float *x, uint8_t *skip, int c, int o, const int C)
{
    return (Waiting){.from = x + c * C + 32 * o, .from_stride = C * 4, .to = skip + c * C * 2 + 64 * o,
                     .to_stride = C * 2};
}

PART void down(const Group *g, const Band *b, int64_t y, float *x, uint8_t *skip, const int C)
{
    float idle[64] __attribute__((aligned(64)));
    Waiting w = nothing(idle);
    for (int c = 0; c < b->columns; c += CHUNK)
        for (int o = 0; o < C / 32; o++) {
            clear();
#pragma GCC unroll 4
            for (int tap = 0; tap < 4; tap++)
#pragma GCC unroll 2
                for (int k = 0; k < C / 32; k++) {
                    const uint8_t *from = row_of(&g->below, 2 * y + tap / 2) +
                                          ((int64_t)(b->origin + c) * 2 + tap % 2) * C * 2 + k * 64;
                    add(from, from + 16 * C * 4, C * 4,
                        g->weights + ((o * 4 + tap) * (C / 32) + k) * 2 * TILE, &w, (tap * (C / 32) + k) * (256 / C), 256 / C, PLAIN);
                }
            finish(x + c * C + 32 * o, 16 * C * 4, C * 4);
            w = joined(x, skip, c, o, C);
        }
    settle(&w, 0, CHUNK, PLAIN);
}

/* Even and odd columns apart: they see the same pixel of the level below through other weights. */
PART void fuse(const Group *g, const Band *b, int64_t y, float *x, uint8_t *skip, const int C)
{
    const uint8_t *up = g->weights + (y % 2) * 2 * EXPAND(C), *parts = g->weights + 4 * EXPAND(C);
    const uint8_t *below = row_of(&g->below, y / 2) + (int64_t)(b->origin / 2) * C * 2;
    float idle[64] __attribute__((aligned(64)));
    Waiting w = nothing(idle);
    for (int c = 0; c < b->columns; c += CHUNK)
        for (int o = 0; o < C / 32; o++) {
            clear();
#pragma GCC unroll 2
            for (int k = 0; k < C / 32; k++) {
                const int n = 256 / C;
                const uint8_t *weights = up + (o * (C / 32) + k) * 2 * TILE;
                LOAD(4, below + c / 2 * C * 2 + k * 64, C * 2);
                LOAD(6, weights, 64);
                PRODUCT(0, 4, 6);
                settle(&w, (4 * k + 0) * n, n, PLAIN);
                LOAD(7, weights + TILE, 64);
                PRODUCT(1, 4, 7);
                settle(&w, (4 * k + 1) * n, n, PLAIN);
                LOAD(6, weights + EXPAND(C), 64);
                PRODUCT(2, 4, 6);
                settle(&w, (4 * k + 2) * n, n, PLAIN);
                LOAD(7, weights + EXPAND(C) + TILE, 64);
                PRODUCT(3, 4, 7);
                settle(&w, (4 * k + 3) * n, n, PLAIN);
            }
            for (int part = 0; part < g->parts; part++) {
                const uint8_t *from = row_of(&g->part[part], y) + (int64_t)(b->origin + c) * C * 2;
                for (int k = 0; k < C / 32; k++)
                    add(from + k * 64, from + C * 2 + k * 64, C * 4,
                        parts + part * EXPAND(C) + (o * (C / 32) + k) * 2 * TILE, &w, 0, 0, PLAIN);
            }
            finish(x + c * C + 32 * o, C * 4, C * 8);
            w = joined(x, skip, c, o, C);
        }
    settle(&w, 0, CHUNK, PLAIN);
}

/* What lies beyond the picture's right border is zero for the 3x3s. */
PART void cut_right(const Group *g, const Band *b, uint8_t *ring, int end)
{
    const int last = g->width - b->origin;
    if (end > last) memset(ring + (int64_t)(EDGE + last) * 64, 0, (int64_t)(end - last) * 64);
}

PART void expand(const Group *g, const Band *b, const uint8_t *weights, int k, int64_t y, const uint8_t *from,
                 int lo, int hi, const int C)
{
    const float *bias = (const float *)(weights + 2 * EXPAND(C) + AROUND(C));
    uint8_t *wide = b->wide + (k * WIDE + y % WIDE) * b->ring_row;
    uint8_t *ring[2] = {C == 64 ? b->near_ + (k * NEAR + y % NEAR) * b->ring_row : wide, wide};
    float scratch[2][CHUNK * 32] __attribute__((aligned(64)));
    float idle[64] __attribute__((aligned(64)));
    Waiting w = nothing(idle);
    int turn = 0, end = lo;
    for (int c = lo; c < hi; c += CHUNK, end = c)
        for (int o = 0; o < C / 32; o++, turn ^= 1) {
            const uint8_t *pixels = from + (int64_t)c * C * 2;
            clear();
#pragma GCC unroll 2
            for (int i = 0; i < C / 32; i++)
                add(pixels + i * 64, pixels + 16 * C * 2 + i * 64, C * 2,
                    weights + (o * (C / 32) + i) * 2 * TILE, &w, i * (1024 / C), 1024 / C, RELU);
            finish(scratch[turn], 16 * 128, 128);
            w = (Waiting){.from = scratch[turn], .from_stride = 128, .to = ring[o] + (int64_t)(EDGE + c) * 64,
                          .to_stride = 64, .bias = bias + 32 * o};
        }
    settle(&w, 0, CHUNK, RELU);
    for (int o = 0; o < C / 32; o++) cut_right(g, b, ring[o], end);
}

/* One 3x3 of 32 to 32 channels, dilated by `reach`. */
PART void around(const uint8_t *const rows[3], int reach, const uint8_t *weights, const float *bias, uint8_t *to,
                 int64_t to_stride, int lo, int hi, Fetch *f)
{
    float scratch[2][CHUNK * 32] __attribute__((aligned(64)));
    float idle[64] __attribute__((aligned(64)));
    Waiting w = nothing(idle);
    int turn = 0;
    for (int c = lo; c < hi; c += CHUNK, turn ^= 1) {
        clear();
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; tap++) {
            const uint8_t *from = rows[tap / 3] + (int64_t)(EDGE + c + (tap % 3 - 1) * reach) * 64;
            add(from, from + 16 * 64, 64, weights + tap * 2 * TILE, &w, tap * 4, tap < 8 ? 4 : 0, RELU);
            fetch(f);
        }
        finish(scratch[turn], 16 * 128, 128);
        w = (Waiting){.from = scratch[turn], .from_stride = 128, .to = to + c * to_stride, .to_stride = to_stride,
                      .bias = bias};
    }
    settle(&w, 0, CHUNK, RELU);
}

/* Both 3x3s of 16 to 16 channels, on pixels that hold both halves. */
PART void around_both(const uint8_t *const near_[3], const uint8_t *const wide[3], const uint8_t *weights,
                      const float *bias, uint8_t *to, int lo, int hi, Fetch *f)
{
    float scratch[2][CHUNK * 32] __attribute__((aligned(64)));
    float idle[64] __attribute__((aligned(64)));
    Waiting w = nothing(idle);
    int turn = 0;
    for (int c = lo; c < hi; c += CHUNK, turn ^= 1) {
        clear();
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; tap++) {
            const uint8_t *from = near_[tap / 3] + (int64_t)(EDGE + c + (tap % 3 - 1)) * 64;
            const uint8_t *far = wide[tap / 3] + (int64_t)(EDGE + c + (tap % 3 - 1) * 2) * 64;
            LOAD(6, weights + tap * TILE, 64);
            LOAD(4, from, 64);
            PRODUCT(0, 4, 6);
            LOAD(5, from + 16 * 64, 64);
            PRODUCT(2, 5, 6);
            settle(&w, tap * 4, tap < 8 ? 2 : 0, RELU);
            LOAD(7, weights + (9 + tap) * TILE, 64);
            LOAD(4, far, 64);
            PRODUCT(1, 4, 7);
            LOAD(5, far + 16 * 64, 64);
            PRODUCT(3, 5, 7);
            settle(&w, tap * 4 + 2, tap < 8 ? 2 : 0, RELU);
            fetch(f);
        }
        finish(scratch[turn], 16 * 128, 128);
        w = (Waiting){.from = scratch[turn], .from_stride = 128, .to = to + (int64_t)c * 64, .to_stride = 64,
                      .bias = bias};
    }
    settle(&w, 0, CHUNK, RELU);
}

/* x + merge(inner), in place and in bfloat16; of the last block with the skip and all biases. */
PART void merge(const uint8_t *weights, const uint8_t *inner, uint8_t *x, const uint8_t *skip, const float *bias,
                uint8_t *to, int lo, int hi, const int C, const int kind)
{
    float idle[64] __attribute__((aligned(64)));
    Waiting w = nothing(idle);
    for (int c = lo; c < hi; c += CHUNK)
        for (int o = 0; o < C / 32; o++) {
            float *sum = (float *)x + (int64_t)c * C + 32 * o;
            const uint8_t *pixels = inner + (int64_t)c * C * 2;
            LOAD(0, sum, C * 4);
            LOAD(1, sum + 16, C * 4);
            LOAD(2, sum + 16 * C, C * 4);
            LOAD(3, sum + 16 * C + 16, C * 4);
#pragma GCC unroll 2
            for (int i = 0; i < C / 32; i++)
                add(pixels + i * 64, pixels + 16 * C * 2 + i * 64, C * 2,
                    weights + (o * (C / 32) + i) * 2 * TILE, &w, i * (1024 / C), 1024 / C, kind);
            finish(sum, 16 * C * 4, C * 4);
            const int64_t place = (int64_t)c * C * 2 + 64 * o;
            w = (Waiting){.from = sum, .from_stride = C * 4, .to = to + place, .to_stride = C * 2,
                          .bias = bias + 32 * o, .skip = skip + place, .count = hi - c < CHUNK ? hi - c : CHUNK};
        }
    settle(&w, 0, CHUNK, kind);
}

static void plan_fetch(Fetch *f, const Group *g, const Band *b, int64_t t)
{
    const int64_t pixel = g->channels * 2, lines = b->columns * pixel / 64;
    int64_t total = 0;
    f->count = 0;
#define ADD(rows, y, column, n) \
    (f->at[f->count] = row_of(rows, y) + (column) * pixel, f->lines[f->count++] = (n), total += (n))
    if (t - 2 * g->blocks >= 0) ADD(&g->out, t - 2 * g->blocks, b->left, (b->right - b->left) * pixel / 64);
    if (g->kind == DOWN) {
        ADD(&g->below, 2 * t, 2 * b->origin, 2 * lines);
        ADD(&g->below, 2 * t + 1, 2 * b->origin, 2 * lines);
    } else if (g->kind == FUSE) {
        for (int part = 0; part < g->parts; part++) ADD(&g->part[part], t, b->origin, lines);
        if (t % 2 == 0) ADD(&g->below, t / 2, b->origin / 2, lines / 2 + 1);
    }
#undef ADD
    const int64_t taps = 9 * (b->columns / CHUNK + 1) * g->blocks * (g->channels == 64 ? 2 : 1);
    f->rate = (int)(total / taps) + 1;
}

PART void run(const Group *g, Band *b, int64_t first, int64_t end, const int C)
{
    const int n = g->blocks, slots = 2 * n + 1;
    const int64_t joining = g->kind == HEAD ? 9 * g->samples * C * 4 : (4 + g->parts) * EXPAND(C);
    const uint8_t *blocks = g->weights + joining;
    const float *bias = (const float *)(blocks + n * BLOCK(C));
    const int64_t until = end == g->height ? end + 2 * n : end;
    for (int64_t t = first; t < until; t++) {
        Fetch f = {.count = 0};
        if (t + 1 < end) plan_fetch(&f, g, b, t + 1);
        if (t < g->height) {
            uint8_t *x = b->x + t % slots * b->x_row, *skip = b->skip + t % slots * b->bf_row;
            if (g->kind == HEAD) {
                head(g, b, t, (float *)x, C);
                for (int c = 0; c < b->columns; c += CHUNK)
                    for (int o = 0; o < C / 32; o++) {
                        Waiting w = joined((float *)x, skip, c, o, C);
                        settle(&w, 0, CHUNK, PLAIN);
                    }
            } else if (g->kind == DOWN)
                down(g, b, t, (float *)x, skip, C);
            else
                fuse(g, b, t, (float *)x, skip, C);
            expand(g, b, blocks, 0, t, skip, 0, b->columns, C);
        }
        for (int k = 0; k < n; k++) {
            const int64_t r = t - 2 * (k + 1);
            if (r < 0 || r >= g->height) continue;
            const int lo = begins(b->left, b->blocks - 1 - k, b->origin);
            const int hi = ends(b->right, b->blocks - 1 - k, g->width, b->origin);
            const uint8_t *weights = blocks + k * BLOCK(C), *taps = weights + 2 * EXPAND(C);
            const float *offset = (const float *)(taps + AROUND(C)) + C;
            const uint8_t *near_[3], *wide[3];
            for (int i = 0; i < 3; i++) {
                const int64_t v = r + i - 1, w = r + 2 * (i - 1);
                near_[i] = v < 0 || v >= g->height ? b->zeros
                           : C == 64               ? b->near_ + (k * NEAR + v % NEAR) * b->ring_row
                                                   : b->wide + (k * WIDE + v % WIDE) * b->ring_row;
                wide[i] = w < 0 || w >= g->height ? b->zeros : b->wide + (k * WIDE + w % WIDE) * b->ring_row;
            }
            if (C == 64) {
                around(near_, 1, taps, offset, b->inner, C * 2, lo, hi, &f);
                around(wide, 2, taps + 18 * TILE, offset + 32, b->inner + 64, C * 2, lo, hi, &f);
            } else
                around_both(near_, wide, taps, offset, b->inner, lo, hi, &f);
            uint8_t *x = b->x + r % slots * b->x_row;
            const uint8_t *skip = b->skip + r % slots * b->bf_row;
            if (k + 1 < n) {
                merge(weights + EXPAND(C), b->inner, x, skip, bias, b->narrow, lo, hi, C, PLAIN);
                expand(g, b, weights + BLOCK(C), k + 1, r, b->narrow, lo, hi, C);
            } else {
                uint8_t *to = row_of(&g->out, r) + (int64_t)b->origin * C * 2;
                merge(weights + EXPAND(C), b->inner, x, skip, bias, to, lo, hi, C, LAST);
            }
        }
    }
}

KERNEL static void run_64(const Group *g, Band *b, int64_t first, int64_t end) { run(g, b, first, end, 64); }
KERNEL static void run_32(const Group *g, Band *b, int64_t first, int64_t end) { run(g, b, first, end, 32); }

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
    Tiles before;
    const int64_t bytes = lay_out(&b, g, left, right, state);
    if (first == 0) memset(state, 0, (size_t)bytes);
    begin(&before);
    if (g->channels == 64)
        run_64(g, &b, first, end);
    else
        run_32(g, &b, first, end);
    leave(&before);
}

KERNEL static void tail_row(const Tail *g, int left, int right, int64_t y)
{
    const int C = g->channels;
    const float *bias = (const float *)(g->weights + 9 * (C / 32) * TILE);
    float scratch[4 * 16 * 16] __attribute__((aligned(64)));
    for (int c = left; c < right; c += 64) {
        LOAD(0, bias, 0);
        LOAD(1, bias, 0);
        LOAD(2, bias, 0);
        LOAD(3, bias, 0);
        for (int tap = 0; tap < 9; tap++) {
            const int64_t v = y + tap / 3 - 1;
            const uint8_t *row = v < 0 || v >= g->height ? g->zeros : row_of(&g->in, v);
            for (int k = 0; k < C / 32; k++) {
                const uint8_t *from = row + (int64_t)(c + tap % 3 - 1) * C * 2 + k * 64;
                LOAD(6, g->weights + (tap * (C / 32) + k) * TILE, 64);
                LOAD(4, from, C * 2);
                PRODUCT(0, 4, 6);
                LOAD(5, from + 16 * C * 2, C * 2);
                PRODUCT(1, 5, 6);
                LOAD(4, from + 32 * C * 2, C * 2);
                PRODUCT(2, 4, 6);
                LOAD(5, from + 48 * C * 2, C * 2);
                PRODUCT(3, 5, 6);
            }
        }
        STORE(0, scratch, 64);
        STORE(1, scratch + 256, 64);
        STORE(2, scratch + 512, 64);
        STORE(3, scratch + 768, 64);
        float *to = g->out + (y * g->width + c) * g->samples;
        const int count = right - c < 64 ? right - c : 64;
        for (int p = 0; p < count; p++)
            for (int s = 0; s < g->samples; s++) to[p * g->samples + s] = scratch[16 * p + s];
    }
}

/* Rows [first, end) of what the last 3x3 gives, columns [left, right). */
EXPORT void mdrn_tail(const Tail *g, int32_t left, int32_t right, int32_t first, int32_t end)
{
    Tiles before;
    begin(&before);
    for (int64_t y = first; y < end; y++) tail_row(g, left, right, y);
    leave(&before);
}

/* Whether processor and system have what the kernel needs. Linux grants the tiles' state on request. */
EXPORT int32_t mdrn_usable(void)
{
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AVX512_BF16 = 1 << 5, OSXSAVE = 1 << 27 };
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((b & avx512) != avx512 || !(d & AMX_BF16) || !(d & AMX_TILE)) return 0;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX512_BF16)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x600e6) != 0x600e6) return 0; /* SSE, AVX, AVX-512, tiles: kept by the system */
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
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
