/* FAN row by row, in float32, by the vectors of AVX-512 or of AVX2 with FMA.

   A vector holds neighbouring pixels of one channel, so no number of channels is padded and a sum is
   never folded across a vector: each has one order, bias first, then input by input, whatever
   the vectors, the tiles and the threads. Both forms give the same bits.

   Rows are made when something asks for them (fan_rows.h): what comes out asks the level below, which
   asks the one above for the rows that it shrinks. Rings hold the rows that are still to be read: two
   to five of most, 40 of what waits at full size for the way down and back up. Nothing here
   allocates memory or starts threads. networks/fan_native.py is the only caller: it lays out the weights
   and checks all sizes. */

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Counts up with every change of a structure or of the layout of the weights. */
#define INTERFACE 1

enum { LEVELS = 4, LOOK = 8, PLANES = 4, MOST = 128, OUTPUTS = 8 };

/* Weights of a product: for every 8 outputs 8 biases, then 8 weights for each input. */
typedef struct {
    const float *expand, *depth, *merge; /* depth: 9 taps and a bias for each channel */
} Block;

typedef struct {
    int32_t channels, unused;
    const float *enter;       /* head, or 2x2 from the level above: inputs (dy, dx, channel) */
    Block block[2], back;     /* block[1] at the last level only, back at the middle levels */
    const float *look;        /* of the way down, then of the way up; inputs (dy, dx, channel) */
    const float *align;       /* outputs: two channels' 1 + gamma, their beta, the next two's ... */
    const float *align_back;
    const float *up;          /* to the level above: outputs (channel, dy, dx) */
} Level;

typedef struct {
    int32_t seen, unused; /* planes that the network is shown: 4, or 8 with the deviations */
    Level level[LEVELS];
    const float *tail; /* inputs (dy, dx, channel) */
} Network;

/* Mosaics: `columns` x `rows` floats, multiples of 16; lines are `line` floats apart. */
typedef struct {
    const float *values, *deviations; /* deviations: NULL without a map */
    float *out;
    int64_t line;
    int32_t rows, columns;
} Task;

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

/* `made` rows exist so far; row y lies at y modulo `rows`. */
typedef struct {
    float *data; /* column 0 of channel 0 of row 0 */
    int32_t rows, made;
    int64_t row; /* floats */
} Ring;

enum { EDGE = 16, CHUNK = 48, PLANE = 48 }; /* floats before a row; px at a time; floats of a chunk's channel */

typedef struct {
    int32_t width, height;
    int64_t channel; /* floats from a channel of a row to the next */
    Ring seen, entered, wide, second, second_wide, aligned, look, risen, risen_wide, out;
} Floor;

typedef struct {
    const Network *net;
    const Task *task;
    Floor floor[LEVELS];
    const float *zeros; /* a row of any level */
    float *depth, *merged, *near, *apart; /* of a chunk */
} State;

/* Rows that wait at each level until the way back up takes them, by what the levels below look ahead. */
static const int32_t waiting[LEVELS] = {40, 20, 10, 4};

static int64_t take(int64_t *bytes, int64_t floats)
{
    const int64_t at = *bytes;
    *bytes += (floats * 4 + 63) / 64 * 64;
    return at;
}

static void ring(Ring *r, uint8_t *memory, int64_t *bytes, int32_t rows, int32_t channels, int64_t channel)
{
    const int64_t at = take(bytes, rows * channels * channel + EDGE);
    if (memory) *r = (Ring){(float *)(memory + at) + EDGE, rows, 0, channels * channel};
}

/* Lay the rows out; without `memory` only count the bytes. */
static int64_t arrange(State *s, const Network *net, int32_t width, int32_t height, uint8_t *memory)
{
    int64_t bytes = (int64_t)(sizeof(State) + 63) / 64 * 64, longest = 0;
    for (int l = 0; l < LEVELS; l++) {
        Floor one, *f = memory ? &s->floor[l] : &one;
        const int32_t c = net->level[l].channels;
        f->width = width >> l, f->height = height >> l;
        /* What a chunk writes and reads too many; an odd number of lines of the cache spreads the channels. */
        f->channel = ((f->width + 15) / 16 + 5) / 2 * 32 + 16;
        if (f->channel > longest) longest = f->channel;
        ring(&f->seen, memory, &bytes, 5, net->seen, f->channel); /* 4, but for the two blocks of the last level */
        ring(&f->entered, memory, &bytes, 2, c, f->channel);
        ring(&f->wide, memory, &bytes, 3, 2 * c, f->channel);
        if (l == LEVELS - 1) {
            ring(&f->second, memory, &bytes, 2, c, f->channel);
            ring(&f->second_wide, memory, &bytes, 3, 2 * c, f->channel);
        }
        ring(&f->aligned, memory, &bytes, waiting[l], c, f->channel);
        if (l < LEVELS - 1) {
            ring(&f->look, memory, &bytes, waiting[l], LOOK, f->channel);
            ring(&f->risen, memory, &bytes, 3, c, f->channel);
            if (l > 0) ring(&f->risen_wide, memory, &bytes, 4, 2 * c, f->channel);
            ring(&f->out, memory, &bytes, 3, c, f->channel);
        }
    }
    const int64_t zeros = take(&bytes, longest + EDGE), depth = take(&bytes, 2 * MOST * PLANE);
    const int64_t merged = take(&bytes, MOST * PLANE), near = take(&bytes, LOOK * PLANE);
    const int64_t apart = take(&bytes, 4 * MOST * PLANE);
    if (memory) {
        s->zeros = (const float *)(memory + zeros) + EDGE;
        s->depth = (float *)(memory + depth), s->merged = (float *)(memory + merged);
        s->near = (float *)(memory + near), s->apart = (float *)(memory + apart);
    }
    return bytes;
}

static inline float *row_of(const Ring *r, int32_t y)
{
    return r->data + y % r->rows * r->row;
}

/* What a product reads, writes and adds; `at` is added to every pointer of `from`. */
typedef struct {
    const float *const *from;
    int32_t inputs, outputs, vectors;
    int64_t at;
    const float *weights;
    float *to, *to_below;
    int64_t to_channel;
    const float *skip, *skip_below;
    int64_t skip_channel;
} Product;

enum { PLAIN, RELU, SKIP, ALIGN, UP };

#define LANES 16
#define GROUP 8
#define NAME(name) name##_512
#define KERNEL __attribute__((target("avx512f,fma")))
#include "fan_rows.h"
#undef LANES
#undef GROUP
#undef NAME
#undef KERNEL
#define LANES 8
#define GROUP 4
#define NAME(name) name##_256
#define KERNEL __attribute__((target("avx2,fma")))
#include "fan_rows.h"

EXPORT int64_t mdrn_fan_state_bytes(const Network *net, int32_t columns, int32_t rows)
{
    return arrange(NULL, net, columns / 2, rows / 2, NULL);
}

/* Floats of a vector: 16, 8, or 0 if the processor or the system has neither. */
EXPORT int32_t mdrn_fan_lanes(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX2 = 1 << 5, AVX512F = 1 << 16 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !(c & FMA)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6) return 0;
    return (b & AVX512F) && (low & 0xe6) == 0xe6 ? 16 : 8;
}

/* Denoise a mosaic. `memory`: mdrn_fan_state_bytes of it, at a multiple of 64; `lanes`: as above or fewer. */
EXPORT void mdrn_fan(const Network *net, const Task *task, uint8_t *memory, int32_t lanes)
{
    State *s = (State *)memory;
    memset(memory, 0, (size_t)arrange(NULL, net, task->columns / 2, task->rows / 2, NULL));
    arrange(s, net, task->columns / 2, task->rows / 2, memory);
    s->net = net, s->task = task;
    if (lanes == 16)
        denoise_512(s);
    else
        denoise_256(s);
}

#else

EXPORT int64_t mdrn_fan_state_bytes(const Network *net, int32_t columns, int32_t rows)
{
    (void)net, (void)columns, (void)rows;
    return -1;
}

EXPORT int32_t mdrn_fan_lanes(void)
{
    return 0;
}

EXPORT void mdrn_fan(const Network *net, const Task *task, uint8_t *memory, int32_t lanes)
{
    (void)net, (void)task, (void)memory, (void)lanes;
}

#endif

EXPORT int32_t mdrn_fan_interface(void)
{
    return INTERFACE;
}
