/*
 * u8 x s4 -> f32 with group multipliers for many rows, tile 6 x 16, AVX-VNNI, on weights unpacked
 * to s8 (kernels/int4.h); and the unpacking.
 *
 *     registers: 12 sums of a group (6 rows x 2 ymm), 2 for B, 1 for A, of 16; the float sums are
 *                in L1
 */
#include "kernels/int4.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 6,
    NV = 2, /* ymm per row of the tile */
    NR = 16,
    KR = 4,
    LANES = 8,
    ROW = NR * KR, /* bytes: a block's low halves are a row of the panel, as its high ones */
};

int4_part_fn gemm_u8s4f32_6x16c8_avxvnni;
int4_unpack_fn int4_unpack_avxvnni;

INLINE __m256i load(const void *from)
{
    return _mm256_load_si256(from);
}

INLINE __m256i broadcast4(const uint8_t *p)
{
    int32_t four;

    __builtin_memcpy(&four, p, sizeof(four));
    return _mm256_set1_epi32(four);
}

/* sums += one group, at byte `begin` of each of m rows, for a constant m. */
INLINE void add_group(size_t m, size_t length, const uint8_t *const *a, size_t begin,
                      const int8_t *b, const uint8_t *multipliers, float *sums)
{
    __m256i dot[MR * NV];

    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        dot[i] = _mm256_setzero_si256();
    for (size_t t = begin; t < begin + length; t += KR, b += ROW) {
        __m256i first = load(b), second = load(b + 32);

        UNROLL
        for (size_t i = 0; i < m; i++) {
            __m256i bytes = broadcast4(a[i] + t);

            dot[i * NV] = _mm256_dpbusd_avx_epi32(dot[i * NV], bytes, first);
            dot[i * NV + 1] = _mm256_dpbusd_avx_epi32(dot[i * NV + 1], bytes, second);
        }
        UNROLL
        for (size_t i = 0; i < m * NV; i++) /* else gcc 12 moves and spills them in each round */
            __asm__("" : "+x"(dot[i]));
    }
    /* The sums are to stay in L1: gcc 12 would keep some in registers, and spill dots. */
    __asm__ volatile("" : : : "memory");
    UNROLL
    for (size_t v = 0; v < NV; v++) {
        __m128i words = _mm_load_si128((const __m128i *)(const void *)(multipliers + v * 16));
        __m256 multiplier = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(words)),
                                          _mm256_set1_ps(1.0f / INT4_UNPACKED));

        UNROLL
        for (size_t i = 0; i < m; i++) {
            float *to = sums + i * NR + v * LANES;
            __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[i * NV + v]), multiplier);

            _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), product));
        }
    }
}

#define PART(m)                                                                                    \
    static void part_##m(const struct int4_part *part, float *sums)                                \
    {                                                                                              \
        for (size_t g = 0; g < part->groups; g++)                                                  \
            add_group(m, part->group, part->a, g * part->group,                                    \
                      part->unpacked + g * part->group * NR,                                       \
                      part->multipliers + g * part->group_bytes, sums);                            \
    }
PART(1)
PART(2)
PART(3)
PART(4)
PART(5)
PART(6)

void gemm_u8s4f32_6x16c8_avxvnni(size_t m, const struct int4_part *part, float *sums)
{
    static void (*const parts[])(const struct int4_part *, float *) = {part_1, part_2, part_3,
                                                                       part_4, part_5, part_6};

    parts[m - 1](part, sums);
}

void int4_unpack_avxvnni(const struct int4_part *part, int8_t *to)
{
    const __m256i upper = _mm256_set1_epi8((char)0xf0);

    for (size_t g = 0; g < part->groups; g++) {
        const uint8_t *blocks = part->multipliers + g * part->group_bytes + NR * sizeof(uint16_t);

        for (size_t t = 0; t < part->group; t += 2 * KR, blocks += ROW, to += 2 * ROW) {
            for (size_t at = 0; at < ROW; at += 32) {
                __m256i both = load(blocks + at);
                __m256i low = _mm256_and_si256(_mm256_slli_epi16(both, 4), upper);

                _mm256_store_si256((__m256i *)(void *)(to + at), low);
                _mm256_store_si256((__m256i *)(void *)(to + ROW + at),
                                   _mm256_and_si256(both, upper));
            }
        }
    }
}
