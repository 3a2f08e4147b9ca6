/* Seeded random numbers (splitmix64) and the hostile distributions. */
#include "tests/kernel/check.h"

#include <stdlib.h>
#include <string.h>

static uint64_t state;

void random_seed(uint64_t seed)
{
    state = seed;
}

uint64_t random_u64(void)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t random_below(uint32_t bound)
{
    return (uint32_t)(((random_u64() >> 32) * bound) >> 32);
}

const char *fill_name(enum fill fill)
{
    static const char *const names[FILL_COUNT] = {"uniform",     "maximal",  "minimal",
                                                  "alternating", "extremes", "sparse"};

    return names[fill];
}

static void fill_uniform(uint8_t *to, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t value = random_u64();

        memcpy(to + i, &value, bytes - i < sizeof(value) ? bytes - i : sizeof(value));
    }
}

/* One of the extremes for each value of a random byte. */
static uint8_t extreme(uint8_t byte)
{
    static const uint8_t values[] = {0, 1, 127, 128, 254, 255};

    return values[byte * sizeof(values) >> 8];
}

/* Leaves one byte in 16, its upper half as it was. */
static uint8_t sparse(uint8_t byte, size_t i)
{
    return byte % 16 ? 0 : byte | i % 16;
}

void fill_a(enum fill fill, uint8_t *to, size_t bytes, enum gemm_type a_type)
{
    bool is_signed = a_type == GEMM_TYPE_S8;

    fill_uniform(to, bytes);
    for (size_t i = 0; i < bytes; i++) {
        switch (fill) {
        case FILL_MAXIMAL:
            to[i] = is_signed ? 127 : 255;
            break;
        case FILL_MINIMAL:
            to[i] = is_signed ? 128 : 255;
            break;
        case FILL_ALTERNATING: /* for s8: +127 +127 -128 -128 */
            to[i] = !is_signed ? 255 : i / 2 % 2 ? 128 : 127;
            break;
        case FILL_EXTREMES:
            to[i] = extreme(to[i]);
            break;
        case FILL_SPARSE:
            to[i] = sparse(to[i], i);
            break;
        default:
            break;
        }
    }
}

void fill_b(enum fill fill, int8_t *to, size_t bytes)
{
    fill_uniform((uint8_t *)to, bytes);
    for (size_t i = 0; i < bytes; i++) {
        switch (fill) {
        case FILL_MAXIMAL:
            to[i] = 127;
            break;
        case FILL_MINIMAL:
            to[i] = -128;
            break;
        case FILL_ALTERNATING: /* pairs of one sign: both saturations of a pairwise s16 sum */
            to[i] = i / 2 % 2 ? -128 : 127;
            break;
        case FILL_EXTREMES:
            to[i] = (int8_t)extreme((uint8_t)to[i]);
            break;
        case FILL_SPARSE:
            to[i] = (int8_t)sparse((uint8_t)to[i], i);
            break;
        default:
            break;
        }
    }
}

/* The pair at its limit, one way or the other. */
static void narrow_pair(int8_t *pair)
{
    int limit = pair[0] > 0 ? 128 : -128;

    if (abs(pair[0] + pair[1]) <= 128)
        return;
    switch (random_below(3)) {
    case 0:
        pair[1] = (int8_t)(limit - pair[0]);
        break;
    case 1:
        pair[0] = (int8_t)(limit - pair[1]);
        break;
    default:
        pair[0] = pair[1] = (int8_t)(limit / 2);
        break;
    }
}

void narrow_b(const struct gemm_kernel *kernel, int8_t *b, size_t n, size_t k)
{
    for (size_t j = 0; j < n && kernel->narrow_pairs; j++) {
        for (size_t t = 0; t + 1 < k; t += 2)
            narrow_pair(b + j * k + t);
    }
}

int32_t oracle_dot(size_t k, const uint8_t *a, enum gemm_type a_type, const int8_t *b)
{
    int64_t sum = 0;

    for (size_t t = 0; t < k; t++)
        sum += (int64_t)(a_type == GEMM_TYPE_S8 ? (int8_t)a[t] : a[t]) * b[t];
    assert(sum >= INT32_MIN && sum <= INT32_MAX);
    return (int32_t)sum;
}
