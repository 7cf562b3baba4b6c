/* The rows of fan_kernel.c for vectors of LANES floats; included once for each kind of vector.

   GROUP outputs are summed at a time: with 3 vectors of pixels they fill the registers. */

#define PART KERNEL static inline __attribute__((always_inline))

#if LANES == 16
#define V __m512
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SPLAT _mm512_set1_ps
#define ADD _mm512_add_ps
#define SUB _mm512_sub_ps
#define MUL _mm512_mul_ps
#define FMA _mm512_fmadd_ps
#define NEGATED_FMA _mm512_fnmadd_ps
#define MAX _mm512_max_ps
#else
#define V __m256
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SPLAT _mm256_set1_ps
#define ADD _mm256_add_ps
#define SUB _mm256_sub_ps
#define MUL _mm256_mul_ps
#define FMA _mm256_fmadd_ps
#define NEGATED_FMA _mm256_fnmadd_ps
#define MAX _mm256_max_ps
#endif

/* a0 b0 a1 b1 ... */
PART void NAME(interleave)(V a, V b, V *low, V *high)
{
#if LANES == 16
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    *low = _mm512_permutex2var_ps(a, first, b), *high = _mm512_permutex2var_ps(a, last, b);
#else
    const V even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
    *low = _mm256_permute2f128_ps(even, odd, 0x20), *high = _mm256_permute2f128_ps(even, odd, 0x31);
#endif
}

PART void NAME(separate)(V low, V high, V *even, V *odd)
{
#if LANES == 16
    const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(1));
    *even = _mm512_permutex2var_ps(low, first, high), *odd = _mm512_permutex2var_ps(low, last, high);
#else
    const __m256d a = (__m256d)_mm256_shuffle_ps(low, high, 0x88), b = (__m256d)_mm256_shuffle_ps(low, high, 0xdd);
    *even = (V)_mm256_permute4x64_pd(a, 0xd8), *odd = (V)_mm256_permute4x64_pd(b, 0xd8);
#endif
}

/* In this order a NaN stays one. */
#define RECTIFIED(x) MAX(SPLAT(0.0f), x)

/* The sums of `group` outputs of `n` vectors of pixels, `at` floats behind each pointer of `from`. */
PART void NAME(sums)(const float *const *from, int32_t inputs, int64_t at, const float *weights, const int group,
                     const int n, V sum[8][3])
{
#pragma GCC unroll 8
    for (int m = 0; m < group; m++) {
        const V bias = SPLAT(weights[m]);
#pragma GCC unroll 3
        for (int i = 0; i < n; i++) sum[m][i] = bias;
    }
    for (int32_t k = 0; k < inputs; k++) {
        const float *pixels = from[k] + at;
        V x[3];
        weights += OUTPUTS;
#pragma GCC unroll 3
        for (int i = 0; i < n; i++) x[i] = LOAD(pixels + i * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < group; m++) {
            const V w = SPLAT(weights[m]);
#pragma GCC unroll 3
            for (int i = 0; i < n; i++) sum[m][i] = FMA(w, x[i], sum[m][i]);
        }
    }
}

/* `p` is a copy: what is stored cannot change it, and it stays in registers. */
PART void NAME(produce_some)(const Product p, const int kind, const int n)
{
    const float *weights = p.weights, *skip = p.skip;
    float *to = p.to;
    for (int32_t first = 0; first < p.outputs; first += GROUP) {
        V sum[8][3];
        NAME(sums)(p.from, p.inputs, p.at, weights, GROUP, n, sum);
        weights += first % OUTPUTS + GROUP == OUTPUTS ? (int64_t)OUTPUTS * (p.inputs + 1) - OUTPUTS + GROUP : GROUP;
        if (kind == ALIGN) {
#pragma GCC unroll 8
            for (int c = 0; c < GROUP / 2; c++, to += p.to_channel, skip += p.skip_channel) {
#pragma GCC unroll 3
                for (int i = 0; i < n; i++) {
                    const int m = c / 2 * 4 + c % 2;
                    STORE(to + i * LANES, FMA(LOAD(skip + i * LANES), sum[m][i], sum[m + 2][i]));
                }
            }
        } else if (kind == UP) {
            float *to_below = p.to_below + (to - p.to);
            const float *skip_below = p.skip_below + (skip - p.skip);
#pragma GCC unroll 2
            for (int m = 0; m < GROUP; m += 4) {
#pragma GCC unroll 3
                for (int i = 0; i < n; i++) {
                    V low, high;
                    NAME(interleave)(sum[m][i], sum[m + 1][i], &low, &high);
                    STORE(to + 2 * i * LANES, ADD(low, LOAD(skip + 2 * i * LANES)));
                    STORE(to + (2 * i + 1) * LANES, ADD(high, LOAD(skip + (2 * i + 1) * LANES)));
                    NAME(interleave)(sum[m + 2][i], sum[m + 3][i], &low, &high);
                    STORE(to_below + 2 * i * LANES, ADD(low, LOAD(skip_below + 2 * i * LANES)));
                    STORE(to_below + (2 * i + 1) * LANES, ADD(high, LOAD(skip_below + (2 * i + 1) * LANES)));
                }
                to += p.to_channel, to_below += p.to_channel;
                skip += p.skip_channel, skip_below += p.skip_channel;
            }
        } else {
#pragma GCC unroll 8
            for (int m = 0; m < GROUP; m++, to += p.to_channel, skip += kind == SKIP ? p.skip_channel : 0) {
#pragma GCC unroll 3
                for (int i = 0; i < n; i++) {
                    V x = sum[m][i];
                    if (kind == RELU) x = RECTIFIED(x);
                    if (kind == SKIP) x = ADD(x, LOAD(skip + i * LANES));
                    STORE(to + i * LANES, x);
                }
            }
        }
    }
}

#define PRODUCE(name, kind)                                           \
    KERNEL static __attribute__((noinline)) void NAME(name)(const Product *p) \
    {                                                                 \
        if (p->vectors == 3)                                          \
            NAME(produce_some)(*p, kind, 3);                           \
        else if (p->vectors == 2)                                     \
            NAME(produce_some)(*p, kind, 2);                           \
        else                                                          \
            NAME(produce_some)(*p, kind, 1);                           \
    }
PRODUCE(plain, PLAIN)
PRODUCE(relu, RELU)
PRODUCE(skip, SKIP)
PRODUCE(align, ALIGN)
PRODUCE(up, UP)
#undef PRODUCE

/* A chunk: columns [x, x + 3 vectors or fewer). */
#define FOR_CHUNKS(x, n, width)                                                                    \
    for (int32_t x = 0, n; x < (width) &&                                                          \
         (n = ((width) - x + LANES - 1) / LANES < 3 ? ((width) - x + LANES - 1) / LANES : 3, 1);   \
         x += n * LANES)

static void NAME(channels)(const float **from, const float *row, int64_t channel, int32_t count)
{
    for (int32_t c = 0; c < count; c++) from[c] = row + c * channel;
}

/* The nine taps of `count` channels around row y; nothing lies beyond the picture. */
static void NAME(around)(const float **from, const State *s, const Floor *f, const Ring *r, int32_t y, int32_t count)
{
    for (int32_t dy = -1; dy <= 1; dy++) {
        const int outside = y + dy < 0 || y + dy >= f->height;
        const float *row = outside ? s->zeros : row_of(r, y + dy);
        for (int32_t dx = -1; dx <= 1; dx++)
            for (int32_t c = 0; c < count; c++) *from++ = row + (outside ? 0 : c * f->channel) + dx;
    }
}

/* The column behind the picture is what a 3x3 sees of it: nothing. */
static void NAME(close)(const Floor *f, float *row, int32_t count)
{
    for (int32_t c = 0; c < count; c++) row[c * f->channel + f->width] = 0.0f;
}

PART void NAME(depthwise_some)(float *to, const float *a, const float *b, const float *d, int64_t up, int64_t middle,
                               int64_t down, const float *weights, int32_t count, const int n)
{
    for (int32_t c = 0; c < count; c++, weights += 10, to += PLANE, a += up, b += middle, d += down) {
        V w[9], sum[3];
#pragma GCC unroll 9
        for (int k = 0; k < 9; k++) w[k] = SPLAT(weights[k]);
#pragma GCC unroll 3
        for (int i = 0; i < n; i++) sum[i] = SPLAT(weights[9]);
#pragma GCC unroll 9
        for (int k = 0; k < 9; k++) {
            const float *row = (k < 3 ? a : k < 6 ? b : d) + k % 3 - 1;
#pragma GCC unroll 3
            for (int i = 0; i < n; i++) sum[i] = FMA(w[k], LOAD(row + i * LANES), sum[i]);
        }
#pragma GCC unroll 3
        for (int i = 0; i < n; i++) STORE(to + i * LANES, RECTIFIED(sum[i]));
    }
}

/* Columns [x, x + n vectors) of the depthwise 3x3 around row y of a ring. */
KERNEL static void NAME(depthwise)(const State *s, const Floor *f, const Ring *wide, const float *weights,
                                   int32_t count, int32_t y, int32_t x, int32_t n)
{
    const int first = y == 0, last = y + 1 == f->height;
    const float *a = (first ? s->zeros : row_of(wide, y - 1)) + x, *b = row_of(wide, y) + x;
    const float *d = (last ? s->zeros : row_of(wide, y + 1)) + x;
    const int64_t up = first ? 0 : f->channel, down = last ? 0 : f->channel;
    if (n == 3)
        NAME(depthwise_some)(s->depth, a, b, d, up, f->channel, down, weights, count, 3);
    else if (n == 2)
        NAME(depthwise_some)(s->depth, a, b, d, up, f->channel, down, weights, count, 2);
    else
        NAME(depthwise_some)(s->depth, a, b, d, up, f->channel, down, weights, count, 1);
}

/* A row of a block's wide half, from the row of its input. */
static void NAME(widen)(const Floor *f, const Block *b, int32_t channels, const Ring *in, Ring *wide, int32_t y)
{
    const float *from[MOST];
    float *to = row_of(wide, y);
    NAME(channels)(from, row_of(in, y), f->channel, channels);
    FOR_CHUNKS(x, n, f->width) {
        const Product p = {.from = from, .inputs = channels, .outputs = 2 * channels, .vectors = n, .at = x,
                           .weights = b->expand, .to = to + x, .to_channel = f->channel};
        NAME(relu)(&p);
    }
    NAME(close)(f, to, 2 * channels);
    wide->made = y + 1;
}

/* Columns of what a block gives, to a chunk or a row. */
static void NAME(narrow)(const State *s, const Floor *f, const Block *b, int32_t channels, const Ring *in,
                         const Ring *wide, int32_t y, int32_t x, int32_t n, float *to, int64_t to_channel)
{
    const float *from[2 * MOST];
    NAME(depthwise)(s, f, wide, b->depth, 2 * channels, y, x, n);
    NAME(channels)(from, s->depth, PLANE, 2 * channels);
    const Product p = {.from = from, .inputs = 2 * channels, .outputs = channels, .vectors = n,
                       .weights = b->merge, .to = to, .to_channel = to_channel,
                       .skip = row_of(in, y) + x, .skip_channel = f->channel};
    NAME(skip)(&p);
}

/* The planes of row y: two lines of the mosaics taken apart; then those of the levels below, as they fill. */
KERNEL static void NAME(see)(State *s, int32_t y)
{
    Floor *f = &s->floor[0];
    float *to = row_of(&f->seen, y);
    for (int32_t half = 0; half < s->net->seen / PLANES; half++) {
        for (int32_t dy = 0; dy < 2; dy++, to += 2 * f->channel) {
            const float *from = (half ? s->task->deviations : s->task->values) + (2 * y + dy) * s->task->line;
            for (int32_t x = 0; x < f->width; x += LANES) {
                float rest[2 * LANES] = {0};
                const float *pair = from + 2 * x;
                if (x + LANES > f->width) pair = memcpy(rest, pair, (size_t)(f->width - x) * 8);
                V even, odd;
                NAME(separate)(LOAD(pair), LOAD(pair + LANES), &even, &odd);
                STORE(to + x, even);
                STORE(to + f->channel + x, odd);
            }
        }
    }
    NAME(close)(f, row_of(&f->seen, y), s->net->seen);
    f->seen.made = y + 1;
    for (int l = 1; l < LEVELS && y % 2; l++) {
        const Floor *g = f++;
        const float *above = row_of(&g->seen, y - 1), *below = row_of(&g->seen, y);
        y /= 2;
        to = row_of(&f->seen, y);
        for (int32_t c = 0; c < s->net->seen; c++) {
            for (int32_t x = 0; x < f->width; x += LANES) {
                V a, b, d, e;
                NAME(separate)(LOAD(above + c * g->channel + 2 * x), LOAD(above + c * g->channel + 2 * x + LANES), &a, &b);
                NAME(separate)(LOAD(below + c * g->channel + 2 * x), LOAD(below + c * g->channel + 2 * x + LANES), &d, &e);
                STORE(to + c * f->channel + x, MUL(SPLAT(0.25f), ADD(ADD(a, b), ADD(d, e))));
            }
        }
        NAME(close)(f, to, s->net->seen);
        f->seen.made = y + 1;
    }
}

static void NAME(need_aligned)(State *s, int l, int32_t y);

/* What enters a level: the head, or the 2x2 that shrinks the level above. */
KERNEL static void NAME(enter)(State *s, int l, int32_t y)
{
    Floor *f = &s->floor[l];
    const Level *v = &s->net->level[l];
    const float *from[4 * MOST];
    float *to = row_of(&f->entered, y);
    Product p = {.from = from, .outputs = v->channels, .weights = v->enter, .to_channel = f->channel};
    if (l == 0) {
        while (f->seen.made < f->height && f->seen.made <= y + 1) NAME(see)(s, f->seen.made);
        p.inputs = 9 * s->net->seen;
        NAME(around)(from, s, f, &f->seen, y, s->net->seen);
        FOR_CHUNKS(x, n, f->width) {
            p.at = x, p.vectors = n, p.to = to + x;
            NAME(plain)(&p);
        }
    } else {
        const Floor *g = &s->floor[l - 1];
        const int32_t channels = s->net->level[l - 1].channels;
        NAME(need_aligned)(s, l - 1, 2 * y + 1);
        p.inputs = 4 * channels;
        NAME(channels)(from, s->apart, PLANE, 4 * channels);
        FOR_CHUNKS(x, n, f->width) {
            for (int32_t dy = 0; dy < 2; dy++) {
                const float *row = row_of(&g->aligned, 2 * y + dy) + 2 * x;
                float *even = s->apart + 2 * dy * channels * PLANE, *odd = even + channels * PLANE;
                for (int32_t c = 0; c < channels; c++) {
                    for (int32_t i = 0; i < n; i++) {
                        const float *pair = row + c * g->channel + 2 * i * LANES;
                        V a, b;
                        NAME(separate)(LOAD(pair), LOAD(pair + LANES), &a, &b);
                        STORE(even + c * PLANE + i * LANES, a);
                        STORE(odd + c * PLANE + i * LANES, b);
                    }
                }
            }
            p.vectors = n, p.to = to + x;
            NAME(plain)(&p);
        }
    }
    f->entered.made = y + 1;
    NAME(widen)(f, &v->block[0], v->channels, &f->entered, &f->wide, y);
}

/* The first block of the last level, and the wide half of its second. */
static void NAME(second)(State *s, int32_t y)
{
    Floor *f = &s->floor[LEVELS - 1];
    const Level *v = &s->net->level[LEVELS - 1];
    while (f->wide.made < f->height && f->wide.made <= y + 1) NAME(enter)(s, LEVELS - 1, f->wide.made);
    FOR_CHUNKS(x, n, f->width) {
        float *to = row_of(&f->second, y) + x;
        NAME(narrow)(s, f, &v->block[0], v->channels, &f->entered, &f->wide, y, x, n, to, f->channel);
    }
    f->second.made = y + 1;
    NAME(widen)(f, &v->block[1], v->channels, &f->second, &f->second_wide, y);
}

/* Rows to y of what the way down gives at a level. */
static void NAME(need_aligned)(State *s, int l, int32_t last)
{
    Floor *f = &s->floor[l];
    const Level *v = &s->net->level[l];
    const int deepest = l == LEVELS - 1;
    const int32_t c = v->channels, looks = deepest ? 1 : 2;
    Ring *wide = deepest ? &f->second_wide : &f->wide;
    const Ring *in = deepest ? &f->second : &f->entered;
    for (int32_t y = f->aligned.made; y <= last; y++) {
        while (wide->made < f->height && wide->made <= y + 1) {
            if (deepest)
                NAME(second)(s, wide->made);
            else
                NAME(enter)(s, l, wide->made);
        }
        const float *seen[9 * 2 * PLANES], *near[LOOK];
        NAME(around)(seen, s, f, &f->seen, y, s->net->seen);
        NAME(channels)(near, s->near, PLANE, LOOK);
        FOR_CHUNKS(x, n, f->width) {
            NAME(narrow)(s, f, &v->block[deepest], c, in, wide, y, x, n, s->merged, PLANE);
            Product p = {.from = seen, .inputs = 9 * s->net->seen, .outputs = LOOK, .vectors = n, .at = x,
                         .weights = v->look, .to = s->near, .to_channel = PLANE};
            NAME(relu)(&p);
            if (looks == 2) {
                p.weights += OUTPUTS * (p.inputs + 1);
                p.to = row_of(&f->look, y) + x, p.to_channel = f->channel;
                NAME(relu)(&p);
            }
            p = (Product){.from = near, .inputs = LOOK, .outputs = 2 * c, .vectors = n, .weights = v->align,
                          .to = row_of(&f->aligned, y) + x, .to_channel = f->channel,
                          .skip = s->merged, .skip_channel = PLANE};
            NAME(align)(&p);
        }
        f->aligned.made = y + 1;
    }
}

/* Rows to `last` of what the way up gives at a level. */
static void NAME(need_out)(State *s, int l, int32_t last)
{
    Floor *f = &s->floor[l];
    if (l == LEVELS - 1) {
        NAME(need_aligned)(s, l, last);
        return;
    }
    const Level *v = &s->net->level[l], *w = &s->net->level[l + 1];
    const Floor *g = &s->floor[l + 1];
    const Ring *lower = l + 1 == LEVELS - 1 ? &g->aligned : &g->out;
    const int32_t c = v->channels, ahead = l > 0;
    const float *from[MOST], *look[LOOK];
    for (int32_t y = f->out.made; y <= last; y++) {
        while (f->risen.made < f->height && f->risen.made <= y + ahead) {
            const int32_t top = f->risen.made;
            NAME(need_out)(s, l + 1, top / 2);
            NAME(need_aligned)(s, l, top + 1);
            NAME(channels)(from, row_of(lower, top / 2), g->channel, w->channels);
            FOR_CHUNKS(x, n, g->width) {
                const Product p = {.from = from, .inputs = w->channels, .outputs = 4 * c, .vectors = n, .at = x,
                                   .weights = w->up, .to_channel = f->channel, .skip_channel = f->channel,
                                   .to = row_of(&f->risen, top) + 2 * x,
                                   .to_below = row_of(&f->risen, top + 1) + 2 * x,
                                   .skip = row_of(&f->aligned, top) + 2 * x,
                                   .skip_below = row_of(&f->aligned, top + 1) + 2 * x};
                NAME(up)(&p);
            }
            f->risen.made = top + 2;
            for (int32_t k = 0; k < 2 && l > 0; k++)
                NAME(widen)(f, &v->back, c, &f->risen, &f->risen_wide, top + k);
        }
        NAME(channels)(look, row_of(&f->look, y), f->channel, LOOK);
        FOR_CHUNKS(x, n, f->width) {
            Product p = {.from = look, .inputs = LOOK, .outputs = 2 * c, .vectors = n, .at = x,
                         .weights = v->align_back, .to = row_of(&f->out, y) + x, .to_channel = f->channel,
                         .skip = row_of(&f->risen, y) + x, .skip_channel = f->channel};
            if (l > 0) {
                NAME(narrow)(s, f, &v->back, c, &f->risen, &f->risen_wide, y, x, n, s->merged, PLANE);
                p.skip = s->merged, p.skip_channel = PLANE;
            }
            NAME(align)(&p);
        }
        if (l == 0) NAME(close)(f, row_of(&f->out, y), c);
        f->out.made = y + 1;
    }
}

/* Columns of two lines of the mosaic: what is seen less the noise. */
PART void NAME(subtract)(const Product *p, const Task *t, int32_t y, int32_t width, const int n)
{
    V sum[8][3];
    NAME(sums)(p->from, p->inputs, p->at, p->weights, PLANES, n, sum);
    for (int dy = 0; dy < 2; dy++) {
        for (int i = 0; i < n; i++) {
            const int64_t x = p->at + i * LANES, at = (2 * y + dy) * t->line + 2 * x;
            const size_t bytes = x + LANES <= width ? 8 * LANES : (size_t)(width - x) * 8;
            float values[2 * LANES] = {0}, deviations[2 * LANES] = {0};
            memcpy(values, t->values + at, bytes);
            V half[2];
            NAME(interleave)(sum[2 * dy][i], sum[2 * dy + 1][i], &half[0], &half[1]);
            if (t->deviations) memcpy(deviations, t->deviations + at, bytes);
            for (int k = 0; k < 2; k++) {
                const V seen = LOAD(values + k * LANES), deviation = LOAD(deviations + k * LANES);
                STORE(values + k * LANES, t->deviations ? NEGATED_FMA(deviation, half[k], seen) : SUB(seen, half[k]));
            }
            memcpy(t->out + at, values, bytes);
        }
    }
}

KERNEL static void NAME(denoise)(State *s)
{
    Floor *f = &s->floor[0];
    const int32_t channels = s->net->level[0].channels;
    const float *from[9 * MOST];
    for (int32_t y = 0; y < f->height; y++) {
        NAME(need_out)(s, 0, y + 1 < f->height ? y + 1 : y);
        NAME(around)(from, s, f, &f->out, y, channels);
        FOR_CHUNKS(x, n, f->width) {
            const Product p = {.from = from, .inputs = 9 * channels, .at = x, .weights = s->net->tail};
            if (n == 3)
                NAME(subtract)(&p, s->task, y, f->width, 3);
            else if (n == 2)
                NAME(subtract)(&p, s->task, y, f->width, 2);
            else
                NAME(subtract)(&p, s->task, y, f->width, 1);
        }
    }
}

#undef PART
#undef V
#undef LOAD
#undef STORE
#undef SPLAT
#undef ADD
#undef SUB
#undef MUL
#undef FMA
#undef NEGATED_FMA
#undef MAX
#undef RECTIFIED
#undef FOR_CHUNKS
