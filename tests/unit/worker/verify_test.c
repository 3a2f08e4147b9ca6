/* What went wrong in the kernels, or in the weights since they were packed, shows in the sampled
 * row: each bit of it. */
#include "tests/unit/worker/unit.h"

#include "worker/freivalds.h"
#include "worker/verify.h"

enum { N = 150, K = 70, M = 9 };

static _Alignas(GEMM_ALIGN) char memory[65536];
static _Alignas(64) char image[N * K + 64 + N * sizeof(float)];
static struct layer layer;
static struct scan_rows rows;
static struct scheduler_scan scan;
static struct job job;
static struct verify verify;
static uint8_t a[M][K];
static int32_t c[M][N];

static void fill(const struct gemm_kernel *kernel, enum gemm_type a_type, enum gemm_type c_type)
{
    struct gemmd_layer_desc_abi desc = {.n = N, .k = K, .a_type = (uint8_t)a_type,
                                        .c_type = (uint8_t)c_type, .scale_count = 1, .a_scale = 1,
                                        .c_scale = 1, .b_type = GEMMD_ABI_TYPE_S8};
    struct gemmd_layer_image parts;
    const float scale = 0.01f;

    assert_int_equal(gemmd_validate_layer_desc(&desc, &parts), GEMMD_STATUS_OK);
    assert_true(parts.bytes <= sizeof(image));
    for (size_t i = 0; i < N * K; i++)
        image[i] = (char)((int8_t)(i * i * 31 + i / 3) >> kernel->narrow_pairs);
    memcpy(image + parts.scales_offset, &scale, sizeof(scale));
    assert_true(layer_memory_bytes(kernel, &desc) <= sizeof(memory));
    memset(memory, 0, sizeof(memory));
    layer_memory_fill(kernel, &desc, image, memory);
    free(layer.freivalds);
    memset(&layer, 0, sizeof(layer));
    layer_memory_view(kernel, &desc, memory, &layer.view);
    layer.freivalds = freivalds_weights(&layer.view);
    assert_non_null(layer.freivalds);
    layer.shape.a_row_bytes = K;
    scheduler_init_layer(&layer.scheduled, (N + kernel->nr - 1) / kernel->nr, kernel->mr, 1000);
}

/* The job boards, and one of its rows is chosen. */
static void board(void)
{
    uint64_t bytes;

    job = (struct job){.layer = &layer, .a = &a[0][0], .c = (uint8_t *)&c[0][0],
                       .a_stride_bytes = K, .c_stride_bytes = sizeof(c[0])};
    memset(&scan, 0, sizeof(scan));
    scan.layer = &layer.scheduled;
    scan.members[0] = (struct scheduler_member){
        .job = &job.scheduled, .rows = M, .panels_left = layer.scheduled.panels};
    scan.member_count = 1;
    scan.rows = M;
    scan.changed = true;
    assert_int_equal(scan_rows_gather(&rows, &scan, 1, &bytes), 0);
    verify_board(&verify, &rows, &scan);
    assert_ptr_equal(verify.job, &job);
}

/* A round over all panels from `start` on, in slices of two; after the first one a bit of the row
 * flips (-1: none). */
static enum verify_verdict run(uint32_t start, int bit)
{
    uint32_t panels = layer.scheduled.panels, left = panels;

    scan.position = start;
    while (left) {
        uint32_t count = left < 2 ? left : 2;
        size_t begin = (size_t)scan.position * layer.view.nr, end;

        count = scan.position + count > panels ? panels - scan.position : count;
        end = begin + (size_t)count * layer.view.nr;
        gemm_run(&layer.view.s8, &layer.view.epilogue, M, rows.a, rows.c, begin,
                 end < N ? end : N);
        if (bit >= 0) {
            size_t at = begin * gemm_type_bytes(layer.view.epilogue.c_type) + (size_t)bit / 8;

            verify.c[at] = (uint8_t)(verify.c[at] ^ 1 << bit % 8);
            bit = -1;
        }
        verify_slice(&verify, &rows, &scan, count);
        left -= count;
        scan.position = (scan.position + count) % panels;
    }
    return verify_end(&verify, &job);
}

static void every_fault(const struct gemm_kernel *kernel, enum gemm_type a_type,
                        enum gemm_type c_type)
{
    uint32_t panels;

    fill(kernel, a_type, c_type);
    panels = layer.scheduled.panels;
    for (uint32_t start = 0; start < panels; start += panels / 3 + 1) {
        board();
        assert_int_equal(run(start, -1), VERIFY_RIGHT);
    }
    for (int bit = 0; bit < 8 * (int)gemm_type_bytes(c_type); bit++) {
        board();
        assert_int_equal(run(0, bit), VERIFY_WRONG);
    }
    for (size_t i = 0; i < 64; i++) { /* of the weights of column 0: all k's, some of the bits */
        size_t at = i % K / kernel->kr * kernel->kr * kernel->nr + i % kernel->kr;

        memory[at] = (char)(memory[at] ^ 1 << i % 8);
        board();
        assert_int_equal(run(0, -1), VERIFY_WRONG);
        memory[at] = (char)(memory[at] ^ 1 << i % 8);
    }
    board();
    assert_int_equal(run(0, -1), VERIFY_RIGHT);
}

static void every_fault_is_found(void **state)
{
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);
    uint32_t levels = cpu_detect();

    (void)state;
    for (size_t i = 0; i < sizeof(a); i++)
        a[i / K][i % K] = (uint8_t)(1 + i * 37 % 120); /* never 0: each weight counts */
    for (size_t i = 0; i < count; i++) {
        if (!(levels >> kernels[i].level & 1))
            continue;
        every_fault(&kernels[i], GEMM_TYPE_U8, GEMM_TYPE_S32);
        every_fault(&kernels[i], GEMM_TYPE_S8, GEMM_TYPE_F32);
        every_fault(&kernels[i], GEMM_TYPE_U8, GEMM_TYPE_S8);
    }
}

/* A job that ends half-way says nothing, and makes room for the next. */
static void half_a_job(void **state)
{
    struct job other = {.layer = &layer};

    (void)state;
    fill(gemm_select(1), GEMM_TYPE_U8, GEMM_TYPE_S32);
    board();
    assert_int_equal(verify_end(&verify, &other), VERIFY_NONE);
    gemm_run(&layer.view.s8, &layer.view.epilogue, M, rows.a, rows.c, 0, layer.view.nr);
    verify_slice(&verify, &rows, &scan, 1);
    assert_int_equal(verify_end(&verify, &job), VERIFY_NONE);
    board();
    assert_int_equal(run(0, -1), VERIFY_RIGHT);
}

static int open_verify(void **state)
{
    (void)state;
    return verify_open(&verify, 1) ? 0 : -1;
}

static int close_verify(void **state)
{
    (void)state;
    free(layer.freivalds);
    verify_close(&verify);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fault_is_found),
        cmocka_unit_test(half_a_job),
    };

    return cmocka_run_group_tests(tests, open_verify, close_verify);
}
