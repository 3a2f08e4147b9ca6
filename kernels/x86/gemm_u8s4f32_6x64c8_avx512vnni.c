/*
 * u8 x s4 -> f32 with group multipliers for many rows, tile 6 x 64, AVX-512 VNNI, on weights
 * unpacked to s8 (kernels/int4.h).
 *
 *     registers: 24 sums of a group (6 rows x 4 zmm), 4 for B, 1 for A; the float sums are in L1
 *     per group of 64: 384 vpdpbusd on two ports = 192 cycles, 24 x (cvt, mul, add) = 36 cycles
 *
 * Unpacked for each tile anew, as gemm_u8s4f32_4x64c8_avx512vnni.c does, 8 k take 12 instructions
 * beside 48 vpdpbusd.
 */
#include "kernels/int4.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 6,
    NV = 4, /* zmm per row of the tile */
    NR = 64,
    KR = 4,
    LANES = 16,
};

int4_part_fn gemm_u8s4f32_6x64c8_avx512vnni;

INLINE __m512i broadcast4(const uint8_t *p)
{
    int32_t four;

    __builtin_memcpy(&four, p, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* sums += one group, at byte `begin` of each of m rows, for a constant m. */
INLINE void add_group(size_t m, size_t length, const uint8_t *const *a, size_t begin,
                      const int8_t *b, const uint8_t *multipliers, float *sums)
{
    __m512i dot[MR * NV];

    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        dot[i] = _mm512_setzero_si512();
    for (size_t t = begin; t < begin + length; t += KR, b += NR * KR) {
        __m512i four[NV];

        UNROLL
        for (size_t v = 0; v < NV; v++)
            four[v] = _mm512_load_si512(b + v * 64);
        UNROLL
        for (size_t i = 0; i < m; i++) {
            __m512i bytes = broadcast4(a[i] + t);

            UNROLL
            for (size_t v = 0; v < NV; v++)
                dot[i * NV + v] = _mm512_dpbusd_epi32(dot[i * NV + v], bytes, four[v]);
        }
        UNROLL
        for (size_t i = 0; i < m * NV; i++) /* else gcc 12 moves and spills them in each round */
            __asm__("" : "+v"(dot[i]));
    }
    /* The sums are to stay in L1: gcc 12 would keep some in registers, and spill dots. */
    __asm__ volatile("" : : : "memory");
    UNROLL
    for (size_t v = 0; v < NV; v++) {
        __m256i words = _mm256_load_si256((const __m256i *)(const void *)(multipliers + v * 32));
        __m512 multiplier = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(words)),
                                          _mm512_set1_ps(1.0f / INT4_UNPACKED));

        UNROLL
        for (size_t i = 0; i < m; i++) {
            float *to = sums + i * NR + v * LANES;
            __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[i * NV + v]), multiplier);

            _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), product));
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

void gemm_u8s4f32_6x64c8_avx512vnni(size_t m, const struct int4_part *part, float *sums)
{
    static void (*const parts[])(const struct int4_part *, float *) = {part_1, part_2, part_3,
                                                                       part_4, part_5, part_6};

    parts[m - 1](part, sums);
}
