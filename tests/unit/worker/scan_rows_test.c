/*
 * Rows on board against a model: members come and go as the scheduler lets them, and after each
 * change every row has its own pointers, integers, scale, zero point and sum, none of them another
 * one's.
 */
#include "tests/unit/worker/unit.h"

#include "worker/scan_rows.h"
#include "worker/session.h"

enum { PANELS = 7, JOBS = 40, ROWS = 90, K_MAX = 3000 };

static struct scan_rows rows[SCHEDULER_SCANS];
static struct scheduler_scan scan;
static struct layer layer;
static struct job jobs[JOBS];
static uint32_t offered[JOBS];              /* rows that have not boarded */
static float a[JOBS][ROWS][K_MAX];          /* as bytes for u8 rows */
static char c[JOBS][ROWS];
static char residual[JOBS][ROWS][3];
static const int32_t b_zero_points[64];
static uint64_t seed = 1;

static uint32_t random_below(uint32_t limit)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % limit);
}

static void set_up(enum gemm_type a_type, uint32_t k)
{
    bool floats = a_type == GEMM_TYPE_F32;

    layer = (struct layer){.view = {.k = k,
                                    .a_type = a_type,
                                    .a_zero_point = floats ? 0 : 3,
                                    .quantize = floats ? quantize_select(1) : NULL}};
    layer.view.epilogue.b_zero_points = b_zero_points;
    layer.view.epilogue.residual_type = GEMM_TYPE_U8;
    layer.shape.a_row_bytes = k * (uint32_t)gemm_type_bytes(a_type);
    layer.view.a_row_scales = a_type == GEMM_TYPE_U8; /* what comes behind the row is one */
    scheduler_init_layer(&layer.scheduled, PANELS, 4, 1000);
    scheduler_limit_rows(&layer.scheduled, scan_rows_limit(&layer.view), 0);
    memset(&scan, 0, sizeof(scan));
    scan.layer = &layer.scheduled;
    for (uint32_t i = 0; i < JOBS; i++) {
        offered[i] = 1 + random_below(ROWS);
        jobs[i] = (struct job){.a = (const uint8_t *)a[i],
                               .c = (uint8_t *)c[i],
                               .residual = (uint8_t *)residual[i],
                               .a_stride_bytes = sizeof(a[i][0]),
                               .c_stride_bytes = 1,
                               .residual_stride_bytes = sizeof(residual[i][0])};
        for (uint32_t j = 0; j < ROWS; j++)
            for (uint32_t t = 0; t < k; t++)
                a[i][j][t] = (float)(int32_t)(random_below(2000) - 1000u) * (float)(j + 1);
    }
}

/* The next part of any job, while there is room. */
static void board(void)
{
    uint32_t i = random_below(JOBS), room = layer.scheduled.rows_max - scan.rows;
    uint32_t count = 1 + random_below(ROWS), first = jobs[i].scheduled.rows_boarded;

    if (count > offered[i])
        count = offered[i];
    if (count > room)
        count = room;
    if (count == 0)
        return;
    scan.members[scan.member_count++] = (struct scheduler_member){
        .job = &jobs[i].scheduled, .first_row = first, .rows = count, .panels_left = PANELS};
    jobs[i].scheduled.rows_boarded += count;
    offered[i] -= count;
    scan.rows += count;
}

/* Members that have arrived leave, and now and then one in the middle; their rows come again. */
static void leave(bool drop)
{
    uint32_t kept = 0, dropped = drop && scan.member_count ? random_below(scan.member_count) : JOBS;

    for (uint32_t i = 0; i < scan.member_count; i++) {
        struct scheduler_member *member = &scan.members[i];
        struct job *job = LIST_ENTRY(member->job, struct job, scheduled);

        if (i == dropped || member->panels_left == 0) {
            scan.rows -= member->rows;
            if (offered[job - jobs] == 0) {
                job->scheduled.rows_boarded = 0;
                offered[job - jobs] = 1 + random_below(ROWS);
            }
        } else {
            scan.members[kept++] = *member;
        }
    }
    scan.member_count = kept;
}

static void check_row(uint32_t row, const struct job *job, uint32_t index)
{
    const struct layer_view *view = &layer.view;
    const uint8_t *source = job->a + (uint64_t)index * job->a_stride_bytes;
    static uint8_t q[K_MAX];
    struct quantize_row made;

    assert_ptr_equal(rows[1].c[row], job->c + index);
    assert_ptr_equal(rows[1].residual[row], job->residual + index * sizeof(residual[0][0]));
    if (!view->quantize) {
        assert_ptr_equal(rows[1].a[row], source);
        assert_int_equal(rows[1].sums[row], gemm_row_sum(view->a_type, 3, view->k, source));
        assert_memory_equal(&rows[1].scales[row], source + view->k, sizeof(float));
        assert_int_equal(rows[1].zero_points[row], 3);
        return;
    }
    made = quantize_row(view->quantize, view->a_type, view->quantize_mode, view->k, source, q);
    assert_memory_equal(rows[1].a[row], q, view->k);
    assert_memory_equal(&rows[1].scales[row], &made.params.scale, sizeof(float));
    assert_int_equal(rows[1].zero_points[row], made.params.zero_point);
    assert_int_equal(rows[1].sums[row], made.sum);
}

/* One change and one slice. */
static uint32_t turn(void)
{
    uint64_t bytes;
    uint32_t boarded = 0, row = 0, chunks, panels = PANELS;

    for (uint32_t i = 0; i < scan.member_count; i++)
        boarded += scan.members[i].rows;
    assert_int_equal(boarded, scan.rows);
    for (uint32_t i = random_below(4); i > 0; i--)
        board();
    chunks = scan_rows_gather(&rows[1], &scan, 5, &bytes);
    assert_int_equal(bytes, (uint64_t)(scan.rows - boarded) * layer.shape.a_row_bytes);
    for (uint32_t i = chunks; i-- > 0;) /* any order will do */
        scan_rows_prepare(&rows[1], i);
    for (uint32_t i = 0; i < scan.member_count; i++) {
        const struct scheduler_member *member = &scan.members[i];
        const struct job *job = LIST_ENTRY(member->job, struct job, scheduled);

        assert_int_equal(job->start_ns, 5);
        for (uint32_t j = 0; j < member->rows; j++)
            check_row(row++, job, member->first_row + j);
        panels = member->panels_left < panels ? member->panels_left : panels;
    }
    panels = panels ? 1 + random_below(panels) : 0;
    for (uint32_t i = 0; i < scan.member_count; i++)
        scan.members[i].panels_left -= panels;
    leave(random_below(3) == 0);
    return row;
}

static void check_type(enum gemm_type a_type, uint32_t k, unsigned turns)
{
    uint64_t total = 0;

    set_up(a_type, k);
    while (turns--)
        total += turn();
    assert_true(total > 0);
}

static void test_float_rows(void **state)
{
    (void)state;
    check_type(GEMM_TYPE_F32, 1, 400);
    check_type(GEMM_TYPE_F32, 100, 400);
    check_type(GEMM_TYPE_F32, K_MAX, 150); /* scan_rows_limit is near */
}

static void test_sums_of_u8_rows(void **state)
{
    (void)state;
    check_type(GEMM_TYPE_U8, 100, 400);
    check_type(GEMM_TYPE_U8, K_MAX, 100);
}

/* The limit keeps every slot inside the memory, for every depth and tile. */
static void test_limits(void **state)
{
    struct layer_view view = {.quantize = quantize_select(1)};

    (void)state;
    for (view.k = 1; view.k <= GEMM_K_MAX; view.k++) {
        uint64_t stride = ((view.k + UINT64_C(63)) / 64 | 1) * 64;
        uint32_t limit = scan_rows_limit(&view);

        assert_in_range(limit, GEMM_MR_MAX, SCHEDULER_ROWS_MAX);
        assert_true(limit * stride <= (uint64_t)(rows[1].quantised - rows[0].quantised));
    }
    view.quantize = NULL;
    assert_int_equal(scan_rows_limit(&view), SCHEDULER_ROWS_MAX);
}

static int start(void **state)
{
    (void)state;
    return scan_rows_open(rows) ? 0 : -1;
}

static int stop(void **state)
{
    (void)state;
    scan_rows_close(rows);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float_rows),
        cmocka_unit_test(test_sums_of_u8_rows),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
