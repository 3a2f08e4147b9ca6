/*
 * B [n x k] -> panels, and back.  The layout is in pack.h; every kernel's is the same formula with
 * its own nr and kr.
 *
 * Cost: one pass over B and one over the panels.  Runs once per layer, when it is loaded, so it
 * stays plain: about 1 GB/s, which a disk does not outrun.
 */
#include "kernels/pack.h"

#include <assert.h>
#include <string.h>

/* Between two looks at whether all pairs were narrow: weights of 8 bits end the search in the first
 * block. */
enum { PAIRS_BLOCK_BYTES = 1024 };

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* Columns that panels hold: whole panels, and in the last one a multiple of n_step. */
static size_t padded_columns(const struct gemm_kernel *kernel, size_t n)
{
    return round_up(n, kernel->n_step);
}

/* Where panel byte (t, column) lies: the first of the kr bytes. */
static size_t panel_offset(const struct gemm_kernel *kernel, size_t n, size_t k, size_t column,
                           size_t t)
{
    size_t first = column / kernel->nr * kernel->nr, left = padded_columns(kernel, n) - first;
    size_t columns = left < kernel->nr ? left : kernel->nr;

    return first * round_up(k, kernel->kr) + t * columns + (column - first) * kernel->kr;
}

size_t gemm_packed_bytes(const struct gemm_kernel *kernel, uint32_t n, uint32_t k)
{
    return round_up(padded_columns(kernel, n) * round_up(k, kernel->kr), GEMM_ALIGN);
}

void gemm_pack(const struct gemm_kernel *kernel, uint32_t n, uint32_t k, const int8_t *b,
               size_t stride_bytes, int8_t *panels, int32_t *column_sums)
{
    size_t kr = kernel->kr;
    size_t n_padded = padded_columns(kernel, n), k_padded = round_up(k, kr);
    size_t used = n_padded * k_padded;

    assert(n > 0 && k > 0 && k <= GEMM_K_MAX && (uintptr_t)panels % GEMM_ALIGN == 0);
    for (size_t j = 0; j < n_padded; j++) {
        const int8_t *row = j < n ? b + j * stride_bytes : NULL;
        int32_t sum = 0;

        for (size_t t = 0; t < k_padded; t += kr) {
            int8_t *to = panels + panel_offset(kernel, n, k, j, t);
            size_t have = !row || t >= k ? 0 : k - t < kr ? k - t : kr;

            for (size_t r = 0; r < kr; r++) {
                to[r] = r < have ? row[t + r] : 0;
                sum += to[r];
            }
        }
        if (row)
            column_sums[j] = sum;
    }
    memset(panels + used, 0, gemm_packed_bytes(kernel, n, k) - used);
}

void gemm_unpack(const struct gemm_kernel *kernel, uint32_t n, uint32_t k, const int8_t *panels,
                 int8_t *b, size_t stride_bytes)
{
    size_t kr = kernel->kr;

    assert(n > 0 && k > 0 && k <= GEMM_K_MAX);
    for (size_t j = 0; j < n; j++) {
        for (size_t t = 0; t < k; t += kr)
            memcpy(b + j * stride_bytes + t, panels + panel_offset(kernel, n, k, j, t),
                   k - t < kr ? k - t : kr);
    }
}

/* How far the pairs of a block go beyond -128 .. 128: a loop that becomes vectors. */
static bool block_is_narrow(const int8_t *panels, size_t bytes)
{
    uint16_t beyond = 0;

    for (size_t i = 0; i < bytes; i += 2) {
        int16_t pair, sum;

        memcpy(&pair, panels + i, sizeof(pair));
        sum = (int16_t)((pair >> 8) + ((int16_t)((uint16_t)pair << 8) >> 8));
        beyond |= (uint16_t)(sum > 128) | (uint16_t)(sum < -128);
    }
    return beyond == 0;
}

bool gemm_pairs_are_narrow(const int8_t *panels, size_t bytes)
{
    assert(bytes % 2 == 0);
    for (size_t i = 0; i < bytes; i += PAIRS_BLOCK_BYTES) {
        size_t count = bytes - i < PAIRS_BLOCK_BYTES ? bytes - i : PAIRS_BLOCK_BYTES;

        if (!block_is_narrow(panels + i, count))
            return false;
    }
    return true;
}
