/* What every user of the AMX tiles here needs: the tiles in C, their arrangement, and the first steps
   behind their sums. Included once per library, after <stdint.h>, only on x86-64 Linux with gcc or clang. */

#ifndef MDRN_AMX_H
#define MDRN_AMX_H

#include <immintrin.h>

#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define PART KERNEL static inline __attribute__((always_inline))

enum { TILE = 1024, CHUNK = 32 }; /* bytes of a tile; pixels that two tiles hold */

/* Written out, because compilers know the order of memory only with the clobber. */
#define LOAD(tile, base, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, base, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"((int64_t)(stride)) : "memory")
#define PRODUCT(sum, pixels, weights) \
    __asm__ volatile("tdpbf16ps %%tmm" #weights ", %%tmm" #pixels ", %%tmm" #sum ::)

/* Tiles 0-3 are sums: 16 pixels x 16 outputs, two of pixels by two of outputs; 4, 5 pixels; 6, 7 weights. */

PART void clear(void)
{
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3" ::);
}

PART void finish(float *to, int64_t second, int64_t stride)
{
    uint8_t *bytes = (uint8_t *)to;
    STORE(0, bytes, stride);
    STORE(1, bytes + 64, stride);
    STORE(2, bytes + second, stride);
    STORE(3, bytes + second + 64, stride);
}

PART __m512i narrow(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

typedef struct {
    uint8_t palette, row, rest[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Tiles;

static void begin(Tiles *before)
{
    Tiles tiles = {.palette = 1};
    for (int k = 0; k < 8; k++) tiles.bytes[k] = 64, tiles.rows[k] = 16;
    __asm__ volatile("sttilecfg %0" : "=m"(*before));
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
}

/* Torch's own convolutions keep their arrangement of the tiles between calls. */
static void leave(const Tiles *before)
{
    __asm__ volatile("ldtilecfg %0" ::"m"(*before));
}

#endif
