/* Steps of training MDRN on processors with AMX: its blocks and 1x1 convolutions, forwards and backwards.

   Planes: 64 channels of a batch, bfloat16, channels last, one pixel of 128 bytes behind the other. Two
   zero pixels end each row, two zero rows stand before, between and after the pictures, so that the
   neighbours of any pixel lie at fixed distances (`Shape`), and a whole batch is one row of pixels. Sums
   are float32. All results are functions of what goes in alone, to the last bit.

   training/kernel.py is the only caller: it owns the memory and checks all sizes. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Counts up with every change of a structure or of what a function takes. */
#define INTERFACE 1

typedef struct {
    int32_t images, height, width; /* px */
    int32_t together;              /* images that go through a group at a time; a divisor of all */
    int64_t lead;                  /* zero pixels before the two zero rows above the first picture */
} Shape;

/* Weights as torch lays them out, float32: of gradients, those that are added to. */
typedef struct {
    float *expand, *expand_bias; /* 64 x 64, 64 */
    float *near_, *near_bias;    /* 32 x 32 x 3 x 3, 32 */
    float *wide, *wide_bias;
    float *merge, *merge_bias; /* 64 x 64 on channels not yet shuffled */
} Block;

#if defined(__x86_64__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))

#include <string.h>

#include "amx.h"

enum { PIXEL = 128, MATRIX = 8 * TILE, AROUND = 18 * TILE };

/* Pixels of which gradients of weights are summed at a time, and the bytes from a row of a channel to the next:
   rows do not fall on the same lines of the cache. */
enum { STRIP = 512, STRIP_ROW = STRIP * 2 + 64 };

/* ---- what sums become ------------------------------------------------------------------ */

enum { BIAS = 1, RELU = 2, MASK = 4, PLUS = 8, TWICE = 16 };

/* Sums of 32 outputs of 32 pixels, turned into bfloat16 while the tiles already work on the next ones. */
typedef struct {
    const float *from;      /* 32 x 32 */
    uint8_t *to;            /* first of the 32 channels of the first pixel, as all that follow */
    const float *bias;      /* of the 32 outputs */
    const uint8_t *mask;    /* MASK: what is zero here becomes zero */
    const uint8_t *plus[2]; /* PLUS: one is added, TWICE: both */
} Waiting;

PART __m512 widen(__m256i values)
{
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16);
}

PART void settle(const Waiting *w, const int at, const int pixels, const int kind)
{
#pragma GCC unroll 16
    for (int k = at; k < at + pixels; k++) {
        __m512 a = _mm512_load_ps(w->from + 32 * k), b = _mm512_load_ps(w->from + 32 * k + 16);
        if (kind & BIAS) {
            a = _mm512_add_ps(a, _mm512_loadu_ps(w->bias));
            b = _mm512_add_ps(b, _mm512_loadu_ps(w->bias + 16));
        }
        if (kind & RELU) { /* in this order a NaN stays one */
            a = _mm512_max_ps(_mm512_setzero_ps(), a);
            b = _mm512_max_ps(_mm512_setzero_ps(), b);
        }
        for (int i = 0; i < (kind & TWICE ? 2 : kind & PLUS ? 1 : 0); i++) {
            const __m512i both = _mm512_loadu_si512(w->plus[i] + k * PIXEL);
            a = _mm512_add_ps(a, widen(_mm512_castsi512_si256(both)));
            b = _mm512_add_ps(b, widen(_mm512_extracti64x4_epi64(both, 1)));
        }
        __m512i out = narrow(a, b);
        if (kind & MASK) {
            const __m512i seen = _mm512_loadu_si512(w->mask + k * PIXEL);
            out = _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(seen, seen), out);
        }
        _mm512_storeu_si512(w->to + k * PIXEL, out);
    }
}

/* Before the first sums there are none to wait for: the same work, into a place of no use. */
PART Waiting nothing(float *scratch, uint8_t *place)
{
    return (Waiting){.from = scratch, .to = place, .bias = scratch, .mask = place, .plus = {place, place}};
}

/* Add 32 inputs of 32 pixels to 32 outputs; `weights` is two tiles. Settles [at, at + pixels) between. */
PART void add(const uint8_t *from, const uint8_t *weights, const Waiting *w, const int at, const int pixels,
              const int kind)
{
    const int n = pixels / 4;
    LOAD(4, from, PIXEL);
    LOAD(6, weights, 64);
    PRODUCT(0, 4, 6);
    settle(w, at, n, kind);
    LOAD(7, weights + TILE, 64);
    PRODUCT(1, 4, 7);
    settle(w, at + n, n, kind);
    LOAD(5, from + 16 * PIXEL, PIXEL);
    PRODUCT(2, 5, 6);
    settle(w, at + 2 * n, n, kind);
    PRODUCT(3, 5, 7);
    settle(w, at + 3 * n, n, kind);
}

/* ---- weights --------------------------------------------------------------------------- */

PART uint16_t rounded(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* 32 inputs of 32 outputs as two tiles. */
PART void pack(uint8_t *to, const float *from, int64_t output, int64_t input)
{
    uint16_t *out = (uint16_t *)to;
    for (int half = 0; half < 2; half++)
        for (int pair = 0; pair < 16; pair++)
            for (int o = 0; o < 16; o++)
                for (int k = 0; k < 2; k++) *out++ = rounded(from[(16 * half + o) * output + (2 * pair + k) * input]);
}

/* A 64 x 64 part of a matrix. */
PART void pack_matrix(uint8_t *to, const float *from, int64_t output, int64_t input)
{
    for (int o = 0; o < 2; o++)
        for (int k = 0; k < 2; k++, to += 2 * TILE) pack(to, from + 32 * o * output + 32 * k * input, output, input);
}

/* A 3x3, for the way forwards or backwards. */
PART void pack_around(uint8_t *to, const float *from, int back)
{
    for (int tap = 0; tap < 9; tap++, to += 2 * TILE)
        if (back)
            pack(to, from + 8 - tap, 9, 288);
        else
            pack(to, from + tap, 288, 9);
}

/* ---- convolutions ---------------------------------------------------------------------- */

typedef struct {
    const uint8_t *in[4]; /* planes at the first pixel, as all that follow */
    int parts;
    const uint8_t *weights; /* parts x MATRIX */
    const float *bias;
    const uint8_t *mask, *plus[2];
    uint8_t *out;
} Linear;

/* A 1x1 of `count` pixels rounded up to 32s. */
PART void linear(const Linear *l, int64_t count, const int kind)
{
    float scratch[2][CHUNK * 32] __attribute__((aligned(64)));
    uint8_t place[CHUNK * PIXEL] __attribute__((aligned(64)));
    memset(scratch, 0, sizeof scratch);
    memset(place, 0, sizeof place);
    Waiting w = nothing(scratch[1], place);
    int turn = 0;
    for (int64_t p = 0; p < count; p += CHUNK)
        for (int o = 0; o < 2; o++, turn ^= 1) {
            const int64_t at = p * PIXEL + 64 * o;
            clear();
            const uint8_t *weights = l->weights + o * 4 * TILE;
            add(l->in[0] + p * PIXEL, weights, &w, 0, 16, kind);
            add(l->in[0] + p * PIXEL + 64, weights + 2 * TILE, &w, 16, 16, kind);
            for (int part = 1; part < l->parts; part++) {
                weights += MATRIX;
                add(l->in[part] + p * PIXEL, weights, &w, 0, 0, kind);
                add(l->in[part] + p * PIXEL + 64, weights + 2 * TILE, &w, 0, 0, kind);
            }
            finish(scratch[turn], 16 * 128, 128);
            w = (Waiting){.from = scratch[turn], .to = l->out + at};
            if (kind & BIAS) w.bias = l->bias + 32 * o;
            if (kind & MASK) w.mask = l->mask + at;
            if (kind & PLUS) w.plus[0] = l->plus[0] + at;
            if (kind & TWICE) w.plus[1] = l->plus[1] + at;
        }
    settle(&w, 0, CHUNK, kind);
}

/* A 3x3 of 32 to 32 channels, dilated by `reach`. */
PART void around(const uint8_t *in, const Shape *s, int reach, const uint8_t *weights, const float *bias,
                 const uint8_t *mask, uint8_t *out, int64_t count, const int kind)
{
    float scratch[2][CHUNK * 32] __attribute__((aligned(64)));
    uint8_t place[CHUNK * PIXEL] __attribute__((aligned(64)));
    memset(scratch, 0, sizeof scratch);
    memset(place, 0, sizeof place);
    Waiting w = nothing(scratch[1], place);
    int turn = 0;
    const int64_t row = (int64_t)(s->width + 2) * reach * PIXEL;
    for (int64_t p = 0; p < count; p += CHUNK, turn ^= 1) {
        clear();
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; tap++)
            add(in + p * PIXEL + (tap / 3 - 1) * row + (tap % 3 - 1) * reach * PIXEL, weights + tap * 2 * TILE, &w,
                tap * 4, tap < 8 ? 4 : 0, kind);
        finish(scratch[turn], 16 * 128, 128);
        w = (Waiting){.from = scratch[turn], .to = out + p * PIXEL, .bias = bias};
        if (kind & MASK) w.mask = mask + p * PIXEL;
    }
    settle(&w, 0, CHUNK, kind);
}

/* ---- gradients of weights -------------------------------------------------------------- */

/* Products over pixels: the first operand has rows of one channel, the second has pairs of pixels, both values
   of a channel together. Channels stand in groups of 16 in the order in which AVX-512 interleaves them. */

/* Channel at place `j` of group `b`. */
PART int channel_of(int b, int j) { return 32 * (b / 2) + 8 * (j / 4) + 4 * (b % 2) + j % 4; }

/* 32 channels of two pixels. */
PART void pair_up(const uint8_t *pixel, __m512i out[2])
{
    const __m512i a = _mm512_loadu_si512(pixel), b = _mm512_loadu_si512(pixel + PIXEL);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
}

PART __m512 plus_pair(__m512 sum, __m512i pair)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)pair, (__m512bh)_mm512_set1_epi16(0x3f80));
}

/* Pairs of 32 channels, 64 bytes per pixel; sums over pixels go into `sums` if there are any. */
PART void pairs_of(const uint8_t *from, int64_t count, uint8_t *to, __m512 *sums)
{
    for (int64_t p = 0; p < count; p += 2) {
        __m512i pair[2];
        pair_up(from + p * PIXEL, pair);
        for (int b = 0; b < 2; b++) {
            _mm512_store_si512(to + p * 64 + 64 * b, pair[b]);
            if (sums) sums[b] = plus_pair(sums[b], pair[b]);
        }
    }
}

/* Rows of 32 channels, `stride` bytes apart. */
PART void rows_of(const uint8_t *from, int64_t count, uint8_t *to, int64_t stride, __m512 *sums)
{
    for (int64_t p = 0; p < count; p += 32) {
        __m512i pairs[16][2];
        for (int k = 0; k < 16; k++) {
            pair_up(from + (p + 2 * k) * PIXEL, pairs[k]);
            for (int b = 0; b < 2; b++)
                if (sums) sums[b] = plus_pair(sums[b], pairs[k][b]);
        }
        for (int b = 0; b < 2; b++) {
            __m512i t[16], u[16];
#pragma GCC unroll 8
            for (int k = 0; k < 16; k += 2) {
                t[k] = _mm512_unpacklo_epi32(pairs[k][b], pairs[k + 1][b]);
                t[k + 1] = _mm512_unpackhi_epi32(pairs[k][b], pairs[k + 1][b]);
            }
#pragma GCC unroll 4
            for (int k = 0; k < 16; k += 4) {
                u[k] = _mm512_unpacklo_epi64(t[k], t[k + 2]);
                u[k + 1] = _mm512_unpackhi_epi64(t[k], t[k + 2]);
                u[k + 2] = _mm512_unpacklo_epi64(t[k + 1], t[k + 3]);
                u[k + 3] = _mm512_unpackhi_epi64(t[k + 1], t[k + 3]);
            }
            uint8_t *row = to + 16 * b * stride + p * 2;
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const __m512i low = _mm512_shuffle_i32x4(u[c], u[c + 4], 0x44);
                const __m512i more = _mm512_shuffle_i32x4(u[c], u[c + 4], 0xee);
                const __m512i next = _mm512_shuffle_i32x4(u[c + 8], u[c + 12], 0x44);
                const __m512i last = _mm512_shuffle_i32x4(u[c + 8], u[c + 12], 0xee);
                _mm512_store_si512(row + c * stride, _mm512_shuffle_i32x4(low, next, 0x88));
                _mm512_store_si512(row + (4 + c) * stride, _mm512_shuffle_i32x4(low, next, 0xdd));
                _mm512_store_si512(row + (8 + c) * stride, _mm512_shuffle_i32x4(more, last, 0x88));
                _mm512_store_si512(row + (12 + c) * stride, _mm512_shuffle_i32x4(more, last, 0xdd));
            }
        }
    }
}

/* Add the products of 32 channels by 32 over `count` pixels to four tiles of sums. */
PART void products(const uint8_t *rows, const uint8_t *pairs, int64_t count, float *sums)
{
    LOAD(0, sums, 64);
    LOAD(1, sums + 256, 64);
    LOAD(2, sums + 512, 64);
    LOAD(3, sums + 768, 64);
    for (int64_t p = 0; p < count; p += 32) {
        LOAD(4, rows + p * 2, STRIP_ROW);
        LOAD(6, pairs + p * 64, 128);
        PRODUCT(0, 4, 6);
        LOAD(7, pairs + p * 64 + 64, 128);
        PRODUCT(1, 4, 7);
        LOAD(5, rows + 16 * STRIP_ROW + p * 2, STRIP_ROW);
        PRODUCT(2, 5, 6);
        PRODUCT(3, 5, 7);
    }
    STORE(0, sums, 64);
    STORE(1, sums + 256, 64);
    STORE(2, sums + 512, 64);
    STORE(3, sums + 768, 64);
}

/* Sums of 32 channels by 32, added to gradients. */
PART void hand_out(const float *sums, float *to, int64_t row, int64_t column)
{
    for (int i = 0; i < 2; i++)
        for (int o = 0; o < 2; o++)
            for (int r = 0; r < 16; r++)
                for (int c = 0; c < 16; c++)
                    to[channel_of(i, r) * row + channel_of(o, c) * column] += sums[(2 * i + o) * 256 + 16 * r + c];
}

PART void hand_out_bias(const __m512 sums[2], float *to)
{
    float values[16];
    for (int b = 0; b < 2; b++) {
        _mm512_storeu_ps(values, sums[b]);
        for (int j = 0; j < 16; j++) to[channel_of(b, j)] += values[j];
    }
}

PART int64_t whole_chunks(int64_t pixels) { return (pixels + CHUNK - 1) & ~(int64_t)(CHUNK - 1); }

/* Of a 1x1: activations `x`, gradients `g` of what comes out, `count` pixels; beyond them up to 31 of `g` are zero. */
PART void linear_weights(const uint8_t *x, const uint8_t *g, int64_t count, float *weights, int64_t row, float *bias,
                         uint8_t *strips)
{
    float sums[4][1024] __attribute__((aligned(64)));
    __m512 total[4];
    uint8_t *rows = strips, *pairs = strips + 64 * STRIP_ROW;
    memset(sums, 0, sizeof sums);
    for (int b = 0; b < 4; b++) total[b] = _mm512_setzero_ps();
    for (int64_t p = 0; p < count; p += STRIP) {
        const int64_t n = whole_chunks(count - p < STRIP ? count - p : STRIP);
        for (int q = 0; q < 2; q++) {
            rows_of(x + p * PIXEL + 64 * q, n, rows + 32 * q * STRIP_ROW, STRIP_ROW, 0);
            pairs_of(g + p * PIXEL + 64 * q, n, pairs + q * STRIP * 64, total + 2 * q);
        }
        for (int i = 0; i < 2; i++)
            for (int o = 0; o < 2; o++)
                products(rows + 32 * i * STRIP_ROW, pairs + o * STRIP * 64, n, sums[2 * i + o]);
    }
    for (int i = 0; i < 2; i++)
        for (int o = 0; o < 2; o++) hand_out(sums[2 * i + o], weights + 32 * i + 32 * o * row, 1, row);
    for (int o = 0; o < 2 && bias; o++) hand_out_bias(total + 2 * o, bias + 32 * o);
}

/* Of both 3x3s. `h` can be read for two rows and two pixels around. A tap's shift by whole pairs of pixels is another
   place in the same pairs; by an odd number of pixels, which only the near 3x3 has, in pairs that begin a pixel later. */
PART void around_weights(const uint8_t *h, const uint8_t *g, const Shape *s, int64_t count, const Block *to,
                         uint8_t *strips)
{
    float sums[18][1024] __attribute__((aligned(64)));
    __m512 total[4];
    const int64_t line = s->width + 2;
    float *weights[2] = {to->near_, to->wide}, *bias[2] = {to->near_bias, to->wide_bias};
    memset(sums, 0, sizeof sums);
    for (int b = 0; b < 4; b++) total[b] = _mm512_setzero_ps();
    for (int64_t p = 0; p < count; p += STRIP) {
        const int64_t n = whole_chunks(count - p < STRIP ? count - p : STRIP);
        for (int q = 0; q < 2; q++) {
            const int reach = q + 1;
            const int64_t before = (line + 1) * reach, all = n + 2 * before;
            uint8_t *rows = strips, *even = strips + 32 * STRIP_ROW, *odd = even + (all + 2) * 64;
            rows_of(g + p * PIXEL + 64 * q, n, rows, STRIP_ROW, total + 2 * q);
            const uint8_t *from = h + (p - before) * PIXEL + 64 * q;
            pairs_of(from, all, even, 0);
            if (q == 0) pairs_of(from + PIXEL, all, odd, 0);
            for (int tap = 0; tap < 9; tap++) {
                const int64_t at = (tap / 3 * line + tap % 3) * reach;
                products(rows, at % 2 ? odd + (at - 1) * 64 : even + at * 64, n, sums[9 * q + tap]);
            }
        }
    }
    for (int q = 0; q < 2; q++) {
        for (int tap = 0; tap < 9; tap++) hand_out(sums[9 * q + tap], weights[q] + tap, 288, 9);
        hand_out_bias(total + 2 * q, bias[q]);
    }
}

/* ---- groups of blocks ------------------------------------------------------------------ */

/* Zeros beside and between `images` pictures, of which the first begins at `pixel`, behind a layer with a bias. */
PART void clean(uint8_t *pixel, const Shape *s, int64_t images)
{
    const int64_t line = (s->width + 2) * PIXEL;
    for (int64_t k = 0; k < images; k++) {
        uint8_t *row = pixel + k * (s->height + 2) * line;
        for (int y = 0; y < s->height; y++) memset(row + y * line + s->width * PIXEL, 0, 2 * PIXEL);
        if (k + 1 < images) memset(row + s->height * line, 0, (size_t)(2 * line));
    }
    memset(pixel + (images * (s->height + 2) - 2) * line, 0, CHUNK * PIXEL);
}

/* Bytes before the first pixel of a plane. */
PART int64_t start_of(const Shape *s) { return (s->lead + 2 * (s->width + 2)) * PIXEL; }

/* Pixels from the first of `images` pictures to their last. */
PART int64_t pixels_of(const Shape *s, int64_t images) { return (images * (s->height + 2) - 2) * (s->width + 2); }

/* Bytes to the first pixel of the k-th pictures that are handled together: as many each time. */
PART int64_t part_of(const Shape *s, int64_t k)
{
    return start_of(s) + k * s->together * (s->height + 2) * (s->width + 2) * PIXEL;
}

/* Of the weights of a block, in bytes of one buffer. */
enum { EXPAND = 0, MERGE = MATRIX, NEAR = 2 * MATRIX, WIDE = NEAR + AROUND, BACK = WIDE + AROUND, PACKED = BACK + MATRIX };

/* A part goes through all blocks before the next one does: what lies between two blocks stays in the caches.
   `h` is a plane of one part, zero around it. */
KERNEL static void group_forward(const Shape *s, int blocks, const Block *weights, const uint8_t *x, uint8_t *const *m,
                                 uint8_t *const *y, uint8_t *h, uint8_t *packed)
{
    const int64_t count = pixels_of(s, s->together);
    for (int i = 0; i < blocks; i++) {
        const Block *w = weights + i;
        uint8_t *to = packed + (int64_t)i * PACKED;
        pack_matrix(to + EXPAND, w->expand, 64, 1);
        pack_matrix(to + MERGE, w->merge, 64, 1);
        pack_around(to + NEAR, w->near_, 0);
        pack_around(to + WIDE, w->wide, 0);
    }
    for (int64_t k = 0; k < s->images / s->together; k++) {
        const int64_t at = part_of(s, k);
        const uint8_t *in = x + at;
        for (int i = 0; i < blocks; i++) {
            const Block *w = weights + i;
            const uint8_t *tiles = packed + (int64_t)i * PACKED;
            uint8_t *middle = m[i] + at, *out = y[i] + at;
            const Linear first = {.in = {in}, .parts = 1, .weights = tiles + EXPAND, .bias = w->expand_bias, .out = h};
            linear(&first, count, BIAS | RELU);
            clean(h, s, s->together);
            around(h, s, 1, tiles + NEAR, w->near_bias, 0, middle, count, BIAS | RELU);
            around(h + 64, s, 2, tiles + WIDE, w->wide_bias, 0, middle + 64, count, BIAS | RELU);
            clean(middle, s, s->together);
            const Linear last = {.in = {middle}, .parts = 1, .weights = tiles + MERGE, .bias = w->merge_bias,
                                 .out = out, .plus = {in, x + at}};
            if (i + 1 == blocks)
                linear(&last, count, BIAS | PLUS | TWICE);
            else
                linear(&last, count, BIAS | PLUS);
            clean(out, s, s->together);
            in = out;
        }
    }
}

/* `scratch`: five planes of one part, zero around them. What the expanding 1x1 gives is computed again. */
KERNEL static void group_backward(const Shape *s, int blocks, const Block *weights, const uint8_t *const *x,
                                  const uint8_t *const *m, const uint8_t *g, uint8_t *by_x, const Block *to,
                                  uint8_t *const *scratch, uint8_t *packed, uint8_t *strips)
{
    const int64_t count = pixels_of(s, s->together);
    uint8_t *h = scratch[0], *gm = scratch[1], *gh = scratch[2];
    for (int i = 0; i < blocks; i++) {
        const Block *w = weights + i;
        uint8_t *tiles = packed + (int64_t)i * PACKED;
        pack_matrix(tiles + EXPAND, w->expand, 64, 1);
        pack_matrix(tiles + BACK, w->expand, 1, 64);
        pack_matrix(tiles + MERGE, w->merge, 1, 64);
        pack_around(tiles + NEAR, w->near_, 1);
        pack_around(tiles + WIDE, w->wide, 1);
    }
    for (int64_t k = 0; k < s->images / s->together; k++) {
        const int64_t at = part_of(s, k);
        const uint8_t *gy = g + at;
        for (int i = blocks - 1; i >= 0; i--) {
            const uint8_t *tiles = packed + (int64_t)i * PACKED, *in = x[i] + at, *middle = m[i] + at;
            uint8_t *gx = i == 0 ? by_x + at : scratch[3 + i % 2];
            const Linear expand = {.in = {in}, .parts = 1, .weights = tiles + EXPAND, .bias = weights[i].expand_bias,
                                   .out = h};
            linear(&expand, count, BIAS | RELU);
            clean(h, s, s->together);
            const Linear merge = {.in = {gy}, .parts = 1, .weights = tiles + MERGE, .mask = middle, .out = gm};
            linear(&merge, count, MASK);
            linear_weights(middle, gy, count, to[i].merge, 64, to[i].merge_bias, strips);
            around(gm, s, 1, tiles + NEAR, 0, h, gh, count, MASK);
            around(gm + 64, s, 2, tiles + WIDE, 0, h + 64, gh + 64, count, MASK);
            around_weights(h, gm, s, count, to + i, strips);
            const Linear back = {.in = {gh}, .parts = 1, .weights = tiles + BACK, .out = gx, .plus = {gy, g + at}};
            if (i == 0)
                linear(&back, count, PLUS | TWICE);
            else
                linear(&back, count, PLUS);
            linear_weights(in, gh, count, to[i].expand, 64, to[i].expand_bias, strips);
            gy = gx;
        }
    }
}

/* ---- what is called -------------------------------------------------------------------- */

/* All blocks of a group: x -> y[0] -> ... -> y[blocks - 1], to the last of which x is added. `m` is kept for the way
   back, `h` points at the first pixel of a plane of one part. */
EXPORT void train_group_forward(const Shape *s, int32_t blocks, const Block *weights, const uint8_t *x,
                                uint8_t *const *m, uint8_t *const *y, uint8_t *h, uint8_t *packed)
{
    Tiles before;
    begin(&before);
    group_forward(s, blocks, weights, x, m, y, h, packed);
    leave(&before);
}

/* Put the gradient of x into `by_x` and add those of the weights; x[i] is what block i saw. */
EXPORT void train_group_backward(const Shape *s, int32_t blocks, const Block *weights, const uint8_t *const *x,
                                 const uint8_t *const *m, const uint8_t *g, uint8_t *by_x, const Block *gradients,
                                 uint8_t *const *scratch, uint8_t *packed, uint8_t *strips)
{
    Tiles before;
    begin(&before);
    group_backward(s, blocks, weights, x, m, g, by_x, gradients, scratch, packed, strips);
    leave(&before);
}

KERNEL static void all_linear(const Shape *s, Linear *l, const float *weights, int64_t output, int64_t input,
                              int64_t part, const float *bias, const uint8_t *plus, uint8_t *out)
{
    static _Thread_local uint8_t packed[4 * MATRIX] __attribute__((aligned(64)));
    const int64_t at = start_of(s), count = pixels_of(s, s->images);
    for (int k = 0; k < l->parts; k++) {
        pack_matrix(packed + k * MATRIX, weights + k * part, output, input);
        l->in[k] += at;
    }
    l->weights = packed, l->bias = bias, l->out = out + at, l->plus[0] = plus ? plus + at : 0;
    if (bias && plus)
        linear(l, count, BIAS | PLUS);
    else if (bias)
        linear(l, count, BIAS);
    else if (plus)
        linear(l, count, PLUS);
    else
        linear(l, count, 0);
    if (bias) clean(out + at, s, s->images);
}

/* out = sum over parts of weights * in (+ bias) (+ plus). The weight of output o and input i of part k
   lies at o * output + i * input + k * part. */
EXPORT void train_linear(const Shape *s, const uint8_t *const in[4], int32_t parts, const float *weights,
                         int64_t output, int64_t input, int64_t part, const float *bias, const uint8_t *plus,
                         uint8_t *out)
{
    Tiles before;
    Linear l = {.in = {in[0], in[1], in[2], in[3]}, .parts = parts};
    begin(&before);
    all_linear(s, &l, weights, output, input, part, bias, plus, out);
    leave(&before);
}

KERNEL static void all_linear_weights(const Shape *s, const uint8_t *x, const uint8_t *g, float *weights, int64_t row,
                                      float *bias, uint8_t *strips)
{
    const int64_t at = start_of(s);
    linear_weights(x + at, g + at, pixels_of(s, s->images), weights, row, bias, strips);
}

/* Add the gradients of a 1x1's 64 x 64 weights, `row` apart, and of its bias if there is one. */
EXPORT void train_linear_weights(const Shape *s, const uint8_t *x, const uint8_t *g, float *weights, int64_t row,
                                 float *bias, uint8_t *strips)
{
    Tiles before;
    begin(&before);
    all_linear_weights(s, x, g, weights, row, bias, strips);
    leave(&before);
}

/* Make all zero that is no pixel of a picture; a plane has `pixels` in all. */
KERNEL EXPORT void train_clear(const Shape *s, uint8_t *plane, int64_t pixels)
{
    const int64_t at = start_of(s), end = at + pixels_of(s, s->images) * PIXEL;
    memset(plane, 0, (size_t)at);
    clean(plane + at, s, s->images);
    memset(plane + end, 0, (size_t)(pixels * PIXEL - end));
}

/* Between a plane and four of half its height and width: those of even and odd rows and columns. */
KERNEL static void quarter(const Shape *s, uint8_t *whole, uint8_t *const quarters[4], int join)
{
    const int64_t line = s->width + 2, half = s->width / 2 + 2;
    for (int64_t k = 0; k < s->images; k++)
        for (int64_t y = 0; y < s->height; y++) {
            uint8_t *row = whole + (s->lead + (2 + k * (s->height + 2) + y) * line) * PIXEL;
            const int64_t place = (s->lead + (2 + k * (s->height / 2 + 2) + y / 2) * half) * PIXEL;
            for (int64_t c = 0; c < s->width; c++) {
                uint8_t *one = row + c * PIXEL, *other = quarters[y % 2 * 2 + c % 2] + place + c / 2 * PIXEL;
                uint8_t *to = join ? one : other, *from = join ? other : one;
                _mm512_storeu_si512(to, _mm512_loadu_si512(from));
                _mm512_storeu_si512(to + 64, _mm512_loadu_si512(from + 64));
            }
        }
}

EXPORT void train_quarter(const Shape *s, uint8_t *whole, uint8_t *const quarters[4], int32_t join)
{
    quarter(s, whole, quarters, join);
}

#endif

EXPORT int32_t train_interface(void)
{
    return INTERFACE;
}
