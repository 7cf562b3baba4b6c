/* The rows of fp32_kernel.c for vectors of LANES floats; included once for each kind of vector. */

#define PART KERNEL static inline __attribute__((always_inline))

#if LANES == 16
#define V __m512
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SPLAT _mm512_set1_ps
#define SUM _mm512_add_ps
#define FMA _mm512_fmadd_ps
#define MAX _mm512_max_ps
#else
#define V __m256
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SPLAT _mm256_set1_ps
#define SUM _mm256_add_ps
#define FMA _mm256_fmadd_ps
#define MAX _mm256_max_ps
#endif

/* Add `inputs` inputs of 12 / n pixels that are `stride` floats apart, to n vectors of outputs of each. */
PART void NAME(add)(V sum[SUMS], const float *from, const float *weights, const int64_t stride, const int inputs,
                    const int n)
{
#pragma GCC unroll 4 /* with fewer turns the processor foresees the last one: 3x3s take 14 % less time */
    for (int k = 0; k < inputs; k++) {
        V w[2];
#pragma GCC unroll 2
        for (int i = 0; i < n; i++) w[i] = LOAD(weights + k * OUTPUTS + i * LANES);
#pragma GCC unroll 12
        for (int p = 0; p < SUMS / n; p++) {
            const V x = SPLAT(from[p * stride + k]);
#pragma GCC unroll 2
            for (int i = 0; i < n; i++) sum[p * n + i] = FMA(x, w[i], sum[p * n + i]);
        }
    }
}

/* Columns [c, c + 12 / n) of a product, outputs from 16 * o on; the first term has pixels of its own stride. */
PART void NAME(tile)(const Product *p, int c, int o, const int inputs, const int64_t first, const int64_t stride,
                     const int kind, const int n)
{
    V sum[SUMS];
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) sum[i] = LOAD(p->bias + o * OUTPUTS + i % n * LANES);
    NAME(add)(sum, p->term[0].from + c * first, p->term[0].weights + o * p->next, first, inputs, n);
    for (int t = 1; t < p->terms; t++)
        NAME(add)(sum, p->term[t].from + c * stride, p->term[t].weights + o * p->next, stride, inputs, n);
    const int64_t at = c * p->to_pixel + o * OUTPUTS;
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) {
        if (c + i / n >= p->pixels) break;
        const int64_t place = at + i / n * p->to_pixel + i % n * LANES;
        V x = sum[i];
        if (kind == RELU) x = MAX(SPLAT(0.0f), x); /* in this order a NaN stays one */
        if (kind == ADD || kind == LAST) x = SUM(x, LOAD(p->plus + place));
        if (kind == LAST) x = SUM(x, LOAD(p->skip + place));
        STORE(p->to + place, x);
    }
}

/* All pixels for 16 outputs, then for the next: where the weights of 16 fill half of the first-level cache. */
PART void NAME(by_outputs)(const Product *p, const int inputs, const int64_t stride, const int kind, const int n)
{
    for (int o = 0; o * OUTPUTS < p->outputs; o++)
        for (int c = 0; c < p->pixels; c += SUMS / n) NAME(tile)(p, c, o, inputs, stride, stride, kind, n);
}

/* All outputs of a few pixels, then of the next ones, which are fetched in the meantime: rows from far away. */
PART void NAME(by_pixels)(const Product *p, const int inputs, const int64_t first, const int64_t stride)
{
    const int n = OUTPUTS / LANES, step = SUMS / n;
    for (int c = 0; c < p->pixels; c += step)
        for (int o = 0; o * OUTPUTS < p->outputs; o++) {
            for (int t = 0; t < p->terms; t++) {
                const int64_t pixel = t ? stride : first;
                const float *next = p->term[t].from + (c + step) * pixel + o * OUTPUTS;
#pragma GCC unroll 12
                for (int i = 0; i < step; i++) _mm_prefetch((const char *)(next + i * pixel), _MM_HINT_T0);
            }
            NAME(tile)(p, c, o, inputs, first, stride, PLAIN, n);
        }
}

/* The group's input: X[0,0] from the picture, X[i,0] from the level above, X[i,j] from all it joins. */
PART void NAME(head)(const Group *g, const Band *b, int64_t y, float *to, const int C)
{
    const float *weights = FLOATS(g->weights);
    const int inputs = 3 * g->samples;
    Product p = {.terms = 3, .outputs = C, .pixels = b->columns, .next = 3 * inputs * OUTPUTS,
                 .bias = weights + 3 * inputs * C, .to = to, .to_pixel = C};
    for (int row = 0; row < 3; row++)
        p.term[row] = (Term){g->picture + (y + row) * g->picture_row + (int64_t)b->origin * g->samples,
                             weights + row * inputs * OUTPUTS};
    NAME(by_outputs)(&p, inputs, g->samples, PLAIN, OUTPUTS / LANES);
}

PART void NAME(down)(const Group *g, const Band *b, int64_t y, float *to, const int C)
{
    const float *weights = FLOATS(g->weights);
    Product p = {.terms = 4, .outputs = C, .pixels = b->columns, .next = 4 * C * OUTPUTS,
                 .bias = weights + 4 * MATRIX(C), .to = to, .to_pixel = C};
    for (int tap = 0; tap < 4; tap++)
        p.term[tap] = (Term){FLOATS(row_of(&g->below, 2 * y + tap / 2)) + ((int64_t)b->origin * 2 + tap % 2) * C,
                             weights + tap * C * OUTPUTS};
    NAME(by_pixels)(&p, C, 2 * C, 2 * C);
}

/* Even and odd columns apart: they see the same pixel of the level below through other weights. */
PART void NAME(fuse)(const Group *g, const Band *b, int64_t y, float *to, const int C)
{
    const float *up = FLOATS(g->weights) + y % 2 * 2 * MATRIX(C), *parts = FLOATS(g->weights) + 4 * MATRIX(C);
    for (int odd = 0; odd < 2; odd++) {
        Product p = {.terms = 1 + g->parts, .outputs = C, .pixels = (b->columns + 1 - odd) / 2,
                     .next = C * OUTPUTS, .bias = parts + g->parts * MATRIX(C), .to = to + odd * C,
                     .to_pixel = 2 * C};
        p.term[0] = (Term){FLOATS(row_of(&g->below, y / 2)) + (int64_t)(b->origin / 2) * C,
                           up + odd * MATRIX(C)};
        for (int k = 0; k < g->parts; k++)
            p.term[1 + k] = (Term){FLOATS(row_of(&g->part[k], y)) + (int64_t)(b->origin + odd) * C,
                                   parts + k * MATRIX(C)};
        NAME(by_pixels)(&p, C, C, 2 * C);
    }
}

/* The first 1x1 of block k: columns [lo, hi) of row y of both its halves. Beside them the rings stay zero. */
PART void NAME(expand)(const Band *b, const float *weights, int k, int64_t y, const float *from, int lo, int hi,
                       const int C)
{
    float *ring[2] = {b->near_ + (k * NEAR + y % NEAR) * b->half_row,
                      b->wide + (k * WIDE + y % WIDE) * b->half_row};
    for (int half = 0; half < 2; half++) {
        const Product p = {.term = {{from + (int64_t)lo * C, weights + half * MATRIX(C) / 2}}, .terms = 1,
                           .outputs = C / 2, .pixels = hi - lo, .next = C * OUTPUTS,
                           .bias = weights + MATRIX(C) + half * C / 2,
                           .to = ring[half] + (int64_t)(EDGE + lo) * (C / 2), .to_pixel = C / 2};
        NAME(by_outputs)(&p, C, C, RELU, OUTPUTS / LANES);
    }
}

/* One 3x3, dilated by `reach`. */
PART void NAME(around)(const float *const rows[3], int reach, const float *weights, float *to, int lo, int hi,
                       const int C)
{
    const int half = C / 2;
    Product p = {.terms = 9, .outputs = half, .pixels = hi - lo, .next = 9 * half * OUTPUTS,
                 .bias = weights + AROUND(C), .to = to + (int64_t)lo * C, .to_pixel = C};
    for (int tap = 0; tap < 9; tap++)
        p.term[tap] = (Term){rows[tap / 3] + (int64_t)(EDGE + lo + (tap % 3 - 1) * reach) * half,
                             weights + tap * half * OUTPUTS};
    NAME(by_outputs)(&p, half, half, RELU, OUTPUTS / LANES);
}

/* plus + merge(inner); of the last block with the group's input once more. */
PART void NAME(merge)(const float *weights, const float *inner, const float *plus, const float *skip, float *to,
                      int lo, int hi, const int C, const int kind)
{
    const int64_t at = (int64_t)lo * C;
    const Product p = {.term = {{inner + at, weights}}, .terms = 1, .outputs = C, .pixels = hi - lo,
                       .next = C * OUTPUTS, .bias = weights + MATRIX(C), .to = to + at, .to_pixel = C,
                       .plus = plus + at, .skip = skip + at};
    NAME(by_outputs)(&p, C, C, kind, OUTPUTS / LANES);
}

PART void NAME(rows)(const Group *g, const Band *b, int64_t first, int64_t end, const int C)
{
    const int n = g->blocks, slots = 2 * n + 1, sums = 2 * n - 1;
    const int joining = g->kind == HEAD ? 9 * g->samples * C : (4 + g->parts) * MATRIX(C);
    const float *blocks = FLOATS(g->weights) + joining + C;
    const int64_t until = end == g->height ? end + 2 * n : end;
    for (int64_t t = first; t < until; t++) {
        if (t < g->height) {
            float *skip = b->skip + t % slots * b->row;
            if (g->kind == HEAD)
                NAME(head)(g, b, t, skip, C);
            else if (g->kind == DOWN)
                NAME(down)(g, b, t, skip, C);
            else
                NAME(fuse)(g, b, t, skip, C);
            NAME(expand)(b, blocks, 0, t, skip, 0, b->columns, C);
        }
        for (int k = 0; k < n; k++) {
            const int64_t r = t - 2 * (k + 1);
            if (r < 0 || r >= g->height) continue;
            const int lo = begins(b->left, n - 1 - k, b->origin);
            const int hi = ends(b->right, n - 1 - k, g->width, b->origin);
            const float *taps = blocks + k * BLOCK(C) + MATRIX(C) + C, *last = taps + 2 * AROUND(C) + C;
            const float *near_[3], *wide[3];
            for (int i = 0; i < 3; i++) {
                const int64_t v = r + i - 1, w = r + 2 * (i - 1);
                near_[i] = v < 0 || v >= g->height ? b->zeros : b->near_ + (k * NEAR + v % NEAR) * b->half_row;
                wide[i] = w < 0 || w >= g->height ? b->zeros : b->wide + (k * WIDE + w % WIDE) * b->half_row;
            }
            NAME(around)(near_, 1, taps, b->inner, lo, hi, C);
            NAME(around)(wide, 2, taps + AROUND(C) + C / 2, b->inner + C / 2, lo, hi, C);
            const float *skip = b->skip + r % slots * b->row;
            float *x = b->x + r % sums * b->row;
            if (k + 1 < n) {
                NAME(merge)(last, b->inner, k ? x : skip, skip, x, lo, hi, C, ADD);
                NAME(expand)(b, blocks + (k + 1) * BLOCK(C), k + 1, r, x, lo, hi, C);
            } else {
                float *to = (float *)row_of(&g->out, r) + (int64_t)b->origin * C;
                NAME(merge)(last, b->inner, k ? x : skip, skip, to, lo, hi, C, LAST);
            }
        }
    }
}

KERNEL static void NAME(group)(const Group *g, const Band *b, int64_t first, int64_t end)
{
    if (g->channels == 64)
        NAME(rows)(g, b, first, end, 64);
    else
        NAME(rows)(g, b, first, end, 32);
}

PART void NAME(tail_rows)(const Tail *g, int left, int right, int64_t first, int64_t end, const int C, const int n)
{
    const float *weights = FLOATS(g->weights);
    for (int64_t y = first; y < end; y++)
        for (int c = left; c < right; c += SUMS / n) {
            float sums[SUMS / n * OUTPUTS];
            Product p = {.terms = 9, .outputs = LANES * n, .pixels = SUMS / n, .bias = weights + 9 * C * OUTPUTS,
                         .to = sums, .to_pixel = OUTPUTS};
            for (int tap = 0; tap < 9; tap++) {
                const int64_t v = y + tap / 3 - 1;
                const uint8_t *row = v < 0 || v >= g->height ? g->zeros : row_of(&g->in, v);
                p.term[tap] = (Term){FLOATS(row) + (int64_t)(c + tap % 3 - 1) * C, weights + tap * C * OUTPUTS};
            }
            NAME(by_outputs)(&p, C, C, PLAIN, n);
            float *to = g->out + (y * g->width + c) * g->samples;
            for (int i = 0; i < SUMS / n && c + i < right; i++)
                for (int s = 0; s < g->samples; s++) to[i * g->samples + s] = sums[i * OUTPUTS + s];
        }
}

/* The last 3x3; of the 16 outputs, which are zero behind those that count, as many vectors as these fill. */
KERNEL static void NAME(tail)(const Tail *g, int left, int right, int64_t first, int64_t end)
{
    const int one = g->samples <= LANES;
    if (g->channels == 64 && one)
        NAME(tail_rows)(g, left, right, first, end, 64, 1);
    else if (g->channels == 64)
        NAME(tail_rows)(g, left, right, first, end, 64, OUTPUTS / LANES);
    else if (one)
        NAME(tail_rows)(g, left, right, first, end, 32, 1);
    else
        NAME(tail_rows)(g, left, right, first, end, 32, OUTPUTS / LANES);
}

#undef PART
#undef V
#undef LOAD
#undef STORE
#undef SPLAT
#undef SUM
#undef FMA
#undef MAX
