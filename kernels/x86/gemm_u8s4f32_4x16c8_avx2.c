/*
 * u8 x s4 -> f32 with group multipliers, tile 4 x 16, AVX2.
 *
 * vpmaddubsw multiplies u8 by s8 and adds two neighbours in s16, with saturation.  It cannot
 * saturate here, nor can sums of eight of its results:
 *
 *     |two products|        <= 2 * 255 * 8       =  4,080
 *     |eight such results|  <= 8 * 4,080         = 32,640  <  32,767
 *
 * and eight results are 32 k of a column: 4 blocks, each once for its low and once for its high
 * halves.  vpmaddwd with ones then widens to s32.  A half byte becomes its s8 through vpshufb as a
 * table of 16.
 *
 *     per 8 k and 8 columns: 1 load and 5 instructions to unpack, 4 for each row, and 2 more for
 *     each row every 32 k
 */
#include "kernels/int4.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 4,
    NV = 2, /* ymm per row of the tile */
    NR = 16,
    KR = 8,
    LANES = 8,
    BLOCK_BYTES = NR * 4,  /* 8 k of 16 columns */
    S16_BLOCKS = 4,        /* blocks that s16 holds, see above */
    PREFETCH_BYTES = 4096, /* into L2, as the AVX-512 kernel */
};

int4_ukernel_fn gemm_u8s4f32_4x16c8_avx2;

INLINE __m256i broadcast4(const uint8_t *p)
{
    int32_t four;

    __builtin_memcpy(&four, p, sizeof(four));
    return _mm256_set1_epi32(four);
}

/* 8 k of m rows, at byte t of each, into s16 sums. */
INLINE void block(size_t m, const uint8_t *const *a, size_t t, const uint8_t *blocks, __m256i *s16)
{
    const __m256i lower = _mm256_set1_epi8(15);
    const __m256i values = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1,
                                            0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);

    UNROLL
    for (size_t v = 0; v < NV; v++) {
        __m256i both = _mm256_load_si256((const __m256i *)(const void *)(blocks + v * 32));
        __m256i low = _mm256_shuffle_epi8(values, _mm256_and_si256(both, lower));
        __m256i high =
            _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(both, 4), lower));

        UNROLL
        for (size_t i = 0; i < m; i++) {
            __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(broadcast4(a[i] + t), low),
                                           _mm256_maddubs_epi16(broadcast4(a[i] + t + 4), high));

            s16[i * NV + v] = _mm256_add_epi16(s16[i * NV + v], sum);
        }
    }
}

/* acc += float of one group of `length` k (a multiple of 8). */
INLINE void add_group(size_t m, size_t length, const uint8_t *const *a, const uint8_t *panel,
                      float *acc)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *blocks = panel + NR * sizeof(uint16_t);
    __m256i sum[MR * NV];
    size_t t = 0;

    _mm_prefetch(panel + PREFETCH_BYTES, _MM_HINT_T1); /* past the end it cannot fault */
    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        sum[i] = _mm256_setzero_si256();
    while (t < length) {
        size_t end = length - t < S16_BLOCKS * KR ? length : t + S16_BLOCKS * KR;
        __m256i s16[MR * NV];

        UNROLL
        for (size_t i = 0; i < m * NV; i++)
            s16[i] = _mm256_setzero_si256();
        for (; t < end; t += KR, blocks += BLOCK_BYTES) {
            _mm_prefetch(blocks + PREFETCH_BYTES, _MM_HINT_T1);
            block(m, a, t, blocks, s16);
        }
        UNROLL
        for (size_t i = 0; i < m * NV; i++)
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(s16[i], ones));
    }
    UNROLL
    for (size_t v = 0; v < NV; v++) {
        __m256 multiplier = _mm256_cvtepi32_ps(
            _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i *)(const void *)(panel + v * 16))));

        UNROLL
        for (size_t i = 0; i < m; i++) {
            __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[i * NV + v]), multiplier);
            float *to = acc + i * NR + v * LANES;

            _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), product));
        }
    }
}

INLINE void tile(size_t m, size_t k, size_t group, const uint8_t *const *a, const uint8_t *panel,
                 float *acc)
{
    _Alignas(32) uint8_t last[MR][INT4_GROUP_MAX] = {{0}};
    const uint8_t *rows[MR];
    size_t begin = 0, rest;

    for (size_t i = 0; i < m * NV; i++)
        _mm256_store_ps(acc + i * LANES, _mm256_setzero_ps());
    for (; begin + group <= k; begin += group, panel += NR * (sizeof(uint16_t) + group / 2)) {
        for (size_t i = 0; i < m; i++)
            rows[i] = a[i] + begin;
        add_group(m, group, rows, panel, acc);
    }
    rest = k - begin;
    if (!rest)
        return;
    for (size_t i = 0; i < m; i++) { /* rows may end at a page's end */
        __builtin_memcpy(last[i], a[i] + begin, rest);
        rows[i] = last[i];
    }
    add_group(m, (rest + KR - 1) / KR * KR, rows, panel, acc);
}

void gemm_u8s4f32_4x16c8_avx2(size_t m, size_t k, size_t group, const uint8_t *const *a,
                              const uint8_t *panel, float *acc)
{
    switch (m) { /* a constant in each branch */
    case 1:
        tile(1, k, group, a, panel, acc);
        break;
    case 2:
        tile(2, k, group, a, panel, acc);
        break;
    case 3:
        tile(3, k, group, a, panel, acc);
        break;
    default:
        tile(4, k, group, a, panel, acc);
        break;
    }
}
