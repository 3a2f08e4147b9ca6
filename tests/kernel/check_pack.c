/* Packing: the layout of pack.h byte by byte, the sums, the way back, and no byte outside. */
#include "tests/kernel/check.h"

#include <stdlib.h>
#include <string.h>

enum { PADDING = 5, FILLER = 0x5a };

/* The layout as pack.h words it. */
static int8_t expected_byte(const struct gemm_kernel *kernel, uint32_t n, uint32_t k,
                            const int8_t *b, size_t stride, size_t at)
{
    size_t k_blocks = (k + kernel->kr - 1u) / kernel->kr;
    size_t panel_bytes = (size_t)kernel->nr * kernel->kr * k_blocks;
    size_t first = at / panel_bytes * kernel->nr, rest = at % panel_bytes;
    size_t columns = (n - first + kernel->n_step - 1) / kernel->n_step * kernel->n_step;
    size_t step, column, depth;

    if (first >= n) /* padding behind the last panel */
        return 0;
    step = (columns < kernel->nr ? columns : kernel->nr) * kernel->kr;
    column = first + rest % step / kernel->kr;
    depth = rest / step * kernel->kr + rest % kernel->kr;
    return column < n && depth < k ? b[column * stride + depth] : 0;
}

static void check_shape(const struct gemm_kernel *kernel, uint32_t n, uint32_t k)
{
    size_t stride = k + PADDING, bytes = gemm_packed_bytes(kernel, n, k);
    int8_t *b = check_alloc(n * stride), *back = check_alloc(n * stride);
    int32_t *sums = check_alloc((n + 1) * sizeof(*sums));
    struct guard panels;
    bool same = true, kept = true;

    guard_alloc(&panels, bytes);
    check_step("pack n=%u k=%u", n, k);
    fill_b(FILL_UNIFORM, b, n * stride);
    memset(panels.data, FILLER, bytes);
    memset(back, FILLER, n * stride);
    sums[n] = FILLER;
    gemm_pack(kernel, n, k, b, stride, (int8_t *)panels.data, sums);
    for (size_t i = 0; i < bytes && same; i++)
        same = (int8_t)panels.data[i] == expected_byte(kernel, n, k, b, stride, i);
    check(same, "panels differ from the layout");
    for (uint32_t j = 0; j < n; j++) {
        int32_t sum = 0;

        for (uint32_t t = 0; t < k; t++)
            sum += b[j * stride + t];
        same = same && sums[j] == sum;
    }
    check(same && sums[n] == FILLER, "column sums");
    gemm_unpack(kernel, n, k, (int8_t *)panels.data, back, stride);
    for (uint32_t j = 0; j < n; j++) {
        same = same && !memcmp(b + j * stride, back + j * stride, k);
        for (size_t t = k; t < stride; t++)
            kept = kept && back[j * stride + t] == FILLER;
    }
    check(same, "unpack is not the inverse of pack");
    check(kept, "unpack wrote between rows");
    guard_free(&panels);
    free(b);
    free(back);
    free(sums);
}

void check_pack(const struct gemm_kernel *kernel)
{
    const uint32_t nr = kernel->nr, kr = kernel->kr;
    const uint32_t n_values[] = {1, nr > 1 ? nr - 1 : 1, nr, nr + 1, 3 * nr, 3 * nr + 7};
    const uint32_t k_values[] = {1, 2, 3, 4, 5, kr + 1, 63, 64, 65, 127, 257};

    for (size_t i = 0; i < sizeof(n_values) / sizeof(n_values[0]); i++) {
        for (size_t j = 0; j < sizeof(k_values) / sizeof(k_values[0]); j++)
            check_shape(kernel, n_values[i], k_values[j]);
    }
}
