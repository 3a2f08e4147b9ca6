/* The same bits as gemm_run, from each kernel, whoever runs in between. */
#include "tests/unit/worker/unit.h"

#include "kernels/pack.h"
#include "kernels/pausing.h"

enum { N = 84, K_MAX = 2 * PAUSING_K + 77, ROWS_MAX = 33, STRIDE = K_MAX + 3 };

static int8_t weights[N * K_MAX];
static int8_t packed[(N + GEMM_NR_MAX) * (K_MAX + GEMM_ALIGN)] __attribute__((aligned(GEMM_ALIGN)));
static int32_t offset[N + GEMM_NR_MAX] __attribute__((aligned(GEMM_ALIGN)));
static float scale[N + GEMM_NR_MAX] __attribute__((aligned(GEMM_ALIGN)));
static float bias[N + GEMM_NR_MAX] __attribute__((aligned(GEMM_ALIGN)));
static uint8_t a_bytes[ROWS_MAX * STRIDE];
static int32_t expected[ROWS_MAX * N], got[ROWS_MAX * N], aside[ROWS_MAX * N];
static const uint8_t *a[ROWS_MAX];
static void *to_expected[ROWS_MAX], *to_got[ROWS_MAX], *to_aside[ROWS_MAX];

struct call {
    struct gemm_weights weights;
    struct gemm_epilogue epilogue;
    uint32_t looks, served;
};

/* Every third time. */
static bool look(void *owner)
{
    struct call *call = owner;

    return ++call->looks % 3 == 0;
}

/* Another product, of another number of rows: the kernel's registers are not those it left. */
static void serve(void *owner)
{
    struct call *call = owner;

    gemm_run(&call->weights, &call->epilogue, 1 + call->served++ * 5 % ROWS_MAX, a, to_aside, 0,
             call->weights.kernel->nr);
}

static void check(const struct gemm_kernel *kernel, uint32_t rows, uint32_t k, enum gemm_type type)
{
    struct call call = {.weights = {kernel, N, k, packed},
                        .epilogue = {.a_type = type, .c_type = GEMM_TYPE_S32, .offset = offset,
                                     .scale = scale, .bias = bias, .inverse_c_scale = 1.0f}};
    const struct pausing pausing = {look, serve, &call};
    uint32_t tiles = (rows + kernel->mr - 1) / kernel->mr;
    uint32_t panels = (N + kernel->nr - 1) / kernel->nr;
    uint32_t looks = tiles * panels * ((k + PAUSING_K - 1) / PAUSING_K);

    gemm_pack(kernel, N, k, weights, k, packed, offset);
    gemm_offset(N, type, 3, offset, NULL, offset);
    memset(expected, 0, sizeof(expected));
    memset(got, 0, sizeof(got));
    gemm_run(&call.weights, &call.epilogue, rows, a, to_expected, 0, N);
    pausing_run(&pausing, &call.weights, &call.epilogue, rows, a, to_got, 0, N);
    assert_memory_equal(got, expected, sizeof(got));
    if (kernel->pausing) /* more where it takes the columns of a panel in turn */
        assert_in_range(call.looks, looks, 2 * looks);
    else
        assert_int_equal(call.looks, looks);
    assert_true(call.served > 0);
}

static void test_same_bits(void **state)
{
    static const uint32_t rows[] = {1, 3, 17, ROWS_MAX};
    static const uint32_t k[] = {PAUSING_K + 1, K_MAX};
    const struct gemm_kernel *kernels;
    size_t count;

    (void)state;
    kernels = gemm_kernels(&count);
    for (size_t i = 0; i < count * 16; i++) {
        const struct gemm_kernel *kernel = &kernels[i / 16];

        if (cpu_detect() >> kernel->level & 1)
            check(kernel, rows[i % 4], k[i / 4 % 2], i / 8 % 2 ? GEMM_TYPE_S8 : GEMM_TYPE_U8);
    }
}

static int set_up(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(weights); i++)
        weights[i] = (int8_t)(i * 31 + i / 113);
    for (size_t i = 0; i < sizeof(a_bytes); i++)
        a_bytes[i] = (uint8_t)(i * 7 + i / 251);
    for (uint32_t i = 0; i < ROWS_MAX; i++) {
        a[i] = a_bytes + i * STRIDE;
        to_expected[i] = expected + i * N;
        to_got[i] = got + i * N;
        to_aside[i] = aside + i * N;
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits)};

    return cmocka_run_group_tests(tests, set_up, NULL);
}
